"""Reconstruction of held-out scans, always beside the mean image and PCA with the same number of dimensions."""

from collections.abc import Iterable
from dataclasses import dataclass

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr
from scipy import ndimage

from nilatent.analysis import stats
from nilatent.analysis.similarity import ssim_3d
from nilatent.errors import CohortError, SettingError
from nilatent.finding import Finding, not_run
from nilatent.volumes import Volumes, VoxelPca, voxel_pca

NAME = "reconstruction"
QUESTION = "How much of what differs between brains does the latent description keep, in people it has never seen?"
METHODS = ("model", "pca", "mean image")
METRICS = ("mse", "mae", "psnr", "ssim", "gm_ml")
CASES = ("best", "median", "worst")
PLANES = ("sagittal", "coronal", "axial")
HELD_OUT = "test"
# Slices are kept for so many held-out scans while streaming; best, median and worst are chosen among them.
MAX_CANDIDATES = 200
# Differences in FVU below this are rounding: an anchored model that kept its start draws what PCA draws.
SAME_FVU = 5e-5
# A bootstrap over fewer subjects has an interval that is far too narrow.
MIN_SUBJECTS_JUDGED = 5


@dataclass(frozen=True, eq=False)
class Measures:
    """What streaming over the reconstructions leaves.

    Parameters
    ----------
    values : ndarray
        (metric, method, scan) in the order of METRICS and METHODS; NaN for scans that did not come.
    gm_ml : ndarray
        (scan,) grey matter of the original, ml.
    abs_error, squared_error, squared_deviation : ndarray
        (voxel,) means over held-out scans: model error absolute and squared, squared distance to the mean image.
    slices : dict[int, ndarray]
        Row to (2, voxel in the three planes) original and reconstruction.
    """

    values: npt.NDArray[np.float64]
    gm_ml: npt.NDArray[np.float64]
    abs_error: npt.NDArray[np.float64]
    squared_error: npt.NDArray[np.float64]
    squared_deviation: npt.NDArray[np.float64]
    slices: dict[int, npt.NDArray[np.float32]]


def reconstruction(
    volumes: Volumes,
    chunks: Iterable[tuple[np.ndarray, np.ndarray]],
    parts: pd.DataFrame,
    scans: pd.DataFrame,
    *,
    n_latent: int,
    seed: int,
    group: str = "",
    model_note: str = "",
    data_range: float = 1.0,
    target: str = "gm",
) -> Finding:
    """Judge reconstructions of held-out scans against the mean image and PCA of equal size.

    Parameters
    ----------
    volumes : Volumes
        The originals.
    chunks : Iterable
        Pairs of rows of the volumes and their reconstructions, (batch, voxel in mask) float32; streamed, never held.
    parts : DataFrame
        Index scan_id, column ``part``: both baselines are fitted on ``"train"``, the verdict rests on ``"test"``.
    scans : DataFrame
        Index scan_id; ``subject_id``, ``dataset``, and the group column when one is named.
    n_latent : int
        Dimensions of the latent, and of PCA.
    seed : int
        Of PCA's draw of scans and of the bootstrap.
    group : str
        Column whose levels get rows of their own; empty for none.
    model_note : str
        What a reader must know of the model, such as the chosen epoch; stands in settings and caveats.
    data_range : float
        Range of the maps for PSNR and SSIM; 1 for grey-matter fractions and scaled T1 intensities.
    target : {"gm", "t1w"}
        What the volumes hold; the error of total grey matter is given for grey matter only.

    Returns
    -------
    Finding
        Table by stratum and method, per-scan metrics, slices, error maps; the first sentence of the answer is the verdict.

    Raises
    ------
    CohortError
        When volumes, parts and scans do not hold the same scans.
    SettingError
        When the chunks leave out a held-out scan, bring one twice, or have another number of voxels.
    """
    for what, index in (("split", parts.index), ("cohort", scans.index)):
        apart = volumes.scans.index.symmetric_difference(index)
        if len(apart):
            raise CohortError(
                f"Scan {apart[0]} ({len(apart)} in all) is in the volumes or the {what} only. Pack again."
            )
    part = parts.loc[volumes.scans.index, "part"].to_numpy()
    known = scans.loc[volumes.scans.index]
    train = np.flatnonzero(part == "train")
    n_components = min(n_latent, len(train) - 1)
    if n_components < 1 or not (part == HELD_OUT).any():
        return not_run(NAME, QUESTION, f"too few: {len(train)} training and {(part == HELD_OUT).sum()} held-out scans")
    pca = voxel_pca(volumes, train, n_components, seed=seed)
    measures = _stream(volumes, chunks, part == HELD_OUT, pca, data_range=data_range, seed=seed)
    held_out = np.flatnonzero(part == HELD_OUT)
    strata = _strata(known, held_out, group=group)
    reference = np.flatnonzero((part == "train") & np.isfinite(measures.values[0, 0]))
    table = pd.concat(
        [_rows(measures, known, rows, stratum, HELD_OUT, seed=seed) for stratum, rows in strata.items()]
        + ([_rows(measures, known, reference, "all", "train", seed=seed)] if len(reference) else []),
        ignore_index=True,
    )
    data = _data(volumes, measures, known, part)
    if target != "gm":
        # The sum of T1 intensities is no volume of anything.
        table = table.drop(columns="gm_error_percent")
        data = data.drop_vars(["gm_ml", "gm_ml_original"])
    fvu = measures.squared_error / np.maximum(measures.squared_deviation, 1e-8)
    caveats = [
        "FVU is the squared error divided by that of the mean training image: 1 keeps nothing that differs, 0 everything.",
        "The mean squared error rewards blur; a low FVU is not a sharp image, and smoother maps give a lower FVU.",
    ]
    if group and group not in known:
        caveats.append(f"There is no column '{group}', so no rows by group.")
    if n_components < n_latent:
        caveats.append(f"PCA has {n_components} components, not {n_latent}: there are {len(train)} training scans.")
    if model_note:
        caveats.append(model_note)
    return Finding(
        name=NAME,
        question=QUESTION,
        answer=_answer(measures, known, strata, table, n_components=n_components, seed=seed),
        table=table,
        data=data,
        maps={"mae": _paint(volumes, measures.abs_error), "fvu": _paint(volumes, fvu)},
        settings={"n_latent": n_latent, "n_components_pca": n_components, "n_train": len(train), "seed": seed}
        | {"group": group, "data_range": data_range, "model_note": model_note, "target": target},
        caveats=tuple(caveats),
        n_scans=len(held_out),
        n_subjects=int(known["subject_id"].iloc[held_out].nunique()),
    )


def _stream(
    volumes: Volumes,
    chunks: Iterable[tuple[np.ndarray, np.ndarray]],
    is_held_out: np.ndarray,
    pca: VoxelPca,
    *,
    data_range: float,
    seed: int,
) -> Measures:
    n_scans, n_voxels = len(volumes.scans), int(volumes.mask.sum())
    held_out = np.flatnonzero(is_held_out)
    candidates = np.random.default_rng(seed).permutation(held_out)[:MAX_CANDIDATES]
    shown = np.flatnonzero(_plane_mask(volumes.mask)[volumes.mask])
    values = np.full((len(METRICS), len(METHODS), n_scans), np.nan)
    gm_ml = np.full(n_scans, np.nan)
    sums, slices = np.zeros((3, n_voxels)), {}
    voxel_ml = volumes.grid.spacing_mm**3 / 1000
    for rows, reconstructed in chunks:
        if np.shape(reconstructed) != (len(rows), n_voxels) or not np.isfinite(reconstructed).all():
            raise SettingError(
                f"A chunk of reconstructions of {len(rows)} scans has shape {np.shape(reconstructed)} or non-finite values; "
                f"({len(rows)}, {n_voxels}) finite values are expected. Decode with the model of these volumes."
            )
        originals = volumes.masked(rows)
        by_method = (reconstructed, pca.reconstruct(originals), np.broadcast_to(pca.mean, originals.shape))
        for position, row in enumerate(np.asarray(rows, dtype=int)):
            if np.isfinite(gm_ml[row]):
                raise SettingError(
                    f"Scan {volumes.scans.index[row]} came twice among the reconstructions. Send it once."
                )
            x, others = originals[position], [method[position] for method in by_method]
            gm_ml[row] = x.sum(dtype=np.float64) * voxel_ml
            values[:, :, row] = _metrics(x, others, volumes.mask if is_held_out[row] else None, data_range, voxel_ml)
            if is_held_out[row]:
                error = x.astype(np.float64) - others[0]
                sums += [np.abs(error), error**2, (x.astype(np.float64) - pca.mean) ** 2]
            if row in candidates:
                slices[int(row)] = np.stack([x[shown], others[0][shown]]).astype(np.float32)
    absent = held_out[np.isnan(gm_ml[held_out])]
    if len(absent):
        raise SettingError(
            f"Held-out scan {volumes.scans.index[absent[0]]} ({len(absent)} in all) has no reconstruction. "
            "Reconstruct every scan of part 'test'."
        )
    abs_error, squared_error, squared_deviation = sums / len(held_out)
    return Measures(values, gm_ml, abs_error, squared_error, squared_deviation, slices)


def _metrics(
    x: np.ndarray, others: list[np.ndarray], mask: np.ndarray | None, data_range: float, voxel_ml: float
) -> np.ndarray:
    """(metric, method); SSIM is NaN without a mask, for scans that do not enter the verdict."""
    difference = np.stack(others).astype(np.float64) - x
    mse = np.square(difference).mean(axis=1)
    psnr = 10 * np.log10(data_range**2 / np.maximum(mse, 1e-12))
    ssim = np.full(len(others), np.nan)
    if mask is not None:
        box = ndimage.find_objects(mask.astype(np.uint8))[0]
        inside = mask[box]
        filled = [np.zeros(inside.shape, dtype=np.float32) for _ in range(1 + len(others))]
        for volume, values in zip(filled, [x, *others], strict=True):
            volume[inside] = values
        ssim = ssim_3d(filled[0], filled[1:], inside, data_range=data_range)
    gm_ml = np.stack(others).sum(axis=1, dtype=np.float64) * voxel_ml
    return np.stack([mse, np.abs(difference).mean(axis=1), psnr, ssim, gm_ml])


def _strata(known: pd.DataFrame, held_out: np.ndarray, *, group: str) -> dict[str, np.ndarray]:
    strata = {"all": held_out}
    for column in ["dataset", *([group] if group in known else [])]:
        values = known[column].iloc[held_out].astype("string")
        levels = sorted(values.dropna().unique())
        if len(levels) > 1 or column == group:
            strata |= {
                f"{column} {level}": held_out[(values == level).fillna(False).to_numpy(bool)] for level in levels
            }
    return strata


def _rows(
    measures: Measures, known: pd.DataFrame, rows: np.ndarray, stratum: str, part: str, *, seed: int
) -> pd.DataFrame:
    subjects = known["subject_id"].to_numpy()[rows]
    ones, original = np.ones(len(rows)), measures.gm_ml[rows]
    baseline = measures.values[0, METHODS.index("mean image"), rows]
    found = []
    for index, method in enumerate(METHODS):
        mse, mae, psnr, ssim, gm_ml = measures.values[:, index, rows]
        _, mse_low, mse_high = stats.bootstrap_ratio(mse, ones, subjects, seed=seed)
        fvu, fvu_low, fvu_high = stats.bootstrap_ratio(mse, baseline, subjects, seed=seed)
        found.append(
            {
                "stratum": stratum,
                "part": part,
                "method": method,
                "n_scans": len(rows),
                "n_subjects": len(set(subjects)),
                "fvu": fvu,
                "fvu_low": fvu_low,
                "fvu_high": fvu_high,
                "mse": mse.mean(),
                "mse_sd": mse.std(ddof=1) if len(rows) > 1 else np.nan,
                "mse_low": mse_low,
                "mse_high": mse_high,
                "mae": mae.mean(),
                "psnr": psnr.mean(),
                "ssim": ssim.mean(),
                "ssim_sd": ssim.std(ddof=1) if len(rows) > 1 else np.nan,
                "gm_error_percent": float(np.mean(np.abs(gm_ml - original) / np.maximum(original, 1e-9)) * 100),
            }
        )
    return pd.DataFrame(found)


def verdict(difference: tuple[float, float, float]) -> str:
    """How a model stands to a baseline, from the paired difference in error and its interval; below zero is better."""
    _, low, high = difference
    if max(abs(low), abs(high)) < SAME_FVU:
        return "the same as"
    return "better than" if high < 0 else "worse than" if low > 0 else "not distinguishable from"


def _standing(
    measures: Measures, known: pd.DataFrame, rows: np.ndarray, *, seed: int
) -> tuple[tuple[float, float, float], tuple[float, float, float], float]:
    """FVU with its interval, its difference from PCA's with the interval, and the FVU of PCA, over some scans."""
    subjects = known["subject_id"].to_numpy()[rows]
    model, pca, mean = measures.values[0][:, rows]
    found = stats.bootstrap_ratio(model, mean, subjects, seed=seed)
    against_pca = stats.bootstrap_ratio(model - pca, mean, subjects, seed=seed)
    return found, against_pca, float(pca.sum() / mean.sum())


def _cohorts(measures: Measures, known: pd.DataFrame, strata: dict[str, np.ndarray], *, seed: int) -> str:
    said, too_few = [], []
    for stratum, rows in strata.items():
        if not stratum.startswith("dataset "):
            continue
        name = stratum.removeprefix("dataset ")
        if known["subject_id"].iloc[rows].nunique() < MIN_SUBJECTS_JUDGED:
            too_few.append(f"{name} ({len(rows)})")
            continue
        (fvu, low, high), against_pca, _ = _standing(measures, known, rows, seed=seed)
        to_mean, to_pca = verdict((fvu - 1, low - 1, high - 1)), verdict(against_pca)
        said.append(f"; in {name} ({len(rows)} scans, FVU {fvu:.3f}) {to_mean} the mean image and {to_pca} PCA")
    if too_few:
        said.append(f"; too few held-out scans to say in {', '.join(too_few)}")
    return "".join(said)


def _answer(
    measures: Measures,
    known: pd.DataFrame,
    strata: dict[str, np.ndarray],
    table: pd.DataFrame,
    *,
    n_components: int,
    seed: int,
) -> str:
    held_out = strata["all"]
    n_subjects = known["subject_id"].iloc[held_out].nunique()
    (fvu, low, high), against_pca, pca_fvu = _standing(measures, known, held_out, seed=seed)
    difference, from_, to = against_pca
    held = table[(table["stratum"] == "all") & (table["part"] == HELD_OUT)].set_index("method")
    ssim = held["ssim"]
    off = held["gm_error_percent"]["model"] if "gm_error_percent" in held else None
    total = "" if off is None else f"; total grey matter is off by {off:.1f} % on average"
    return (
        f"On {len(held_out)} held-out scans of {n_subjects} subjects the model is "
        f"{verdict((fvu - 1, low - 1, high - 1))} the mean image (FVU {fvu:.3f} [{low:.3f}, {high:.3f}]) and "
        f"{verdict(against_pca)} PCA of equal size ({n_components} components, FVU {pca_fvu:.3f}; difference "
        f"{difference:+z.4f} [{from_:+z.4f}, {to:+z.4f}]){_cohorts(measures, known, strata, seed=seed)}. "
        f"Structural similarity is {ssim['model']:.3f} for the model, {ssim['pca']:.3f} for PCA and "
        f"{ssim['mean image']:.3f} for the mean image{total}."
    )


def _planes(mask: np.ndarray) -> tuple[int, int, int]:
    """Index of the slices shown; the sagittal one passes beside the midline, where there is grey matter to see."""
    corners = [(int(axis.min()), int(axis.max())) for axis in np.nonzero(mask)]
    (left, right), (back, front), (low, high) = corners
    return left + round(0.65 * (right - left)), (back + front) // 2, (low + high) // 2


def _plane_mask(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    shown = np.zeros(mask.shape, dtype=bool)
    for axis, index in enumerate(_planes(mask)):
        shown[(slice(None),) * axis + (index,)] = True
    return shown & mask


def _paint(volumes: Volumes, values: np.ndarray) -> nib.Nifti1Image:
    volume = np.zeros(volumes.mask.shape, dtype=np.float32)
    volume[volumes.mask] = values
    return volumes.grid.to_image(volume)


def _data(volumes: Volumes, measures: Measures, known: pd.DataFrame, part: np.ndarray) -> xr.Dataset:
    came = np.flatnonzero(np.isfinite(measures.gm_ml))
    candidates = np.array(sorted(measures.slices))
    ordered = candidates[np.argsort(measures.values[0, 0, candidates], kind="stable")]
    chosen = [ordered[0], ordered[len(ordered) // 2], ordered[-1]]
    shown = _plane_mask(volumes.mask)
    cut: dict[str, tuple[tuple[str, ...], np.ndarray]] = {}
    for kind in ("original", "model", "error"):
        painted = []
        for row in chosen:
            original, model = measures.slices[int(row)]
            volume = np.zeros(volumes.mask.shape, dtype=np.float32)
            volume[shown] = {"original": original, "model": model, "error": model - original}[kind]
            painted.append(volume)
        for axis, (plane, index) in enumerate(zip(PLANES, _planes(volumes.mask), strict=True)):
            dims = ("case", *(name for position, name in enumerate("xyz") if position != axis))
            cut[f"{kind}_{plane}"] = (dims, np.stack([volume.take(index, axis=axis) for volume in painted]))
    metrics = {name: (("approach", "scan"), measures.values[index][:, came]) for index, name in enumerate(METRICS)}
    return xr.Dataset(
        {**metrics, **cut, "gm_ml_original": ("scan", measures.gm_ml[came])},
        coords={
            "approach": ("approach", np.array(METHODS, dtype=str)),
            "scan": ("scan", volumes.scans.index.to_numpy()[came].astype(str)),
            "part": ("scan", part[came].astype(str)),
            "subject": ("scan", known["subject_id"].to_numpy()[came].astype(str)),
            "dataset": ("scan", known["dataset"].to_numpy()[came].astype(str)),
            "case": ("case", np.array(CASES, dtype=str)),
            "case_scan": ("case", volumes.scans.index.to_numpy()[chosen].astype(str)),
        },
    )
