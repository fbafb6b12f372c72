"""Reconstruction of held-out scans, always beside the mean image, down-sampling and PCA of the same size."""

from collections.abc import Iterable
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from nilatent.analysis.downsampling import downsampling
from nilatent.analysis.reconstruction.measures import (
    METHODS,
    METRICS,
    FeatureFunction,
    Judge,
    Measures,
    feature_space,
    measure,
    plane_mask,
    planes,
)
from nilatent.analysis.reconstruction.table import region_data, rows
from nilatent.analysis.reconstruction.words import answer, caveats, regions_sentence
from nilatent.analysis.similarity import n_scales
from nilatent.atlas import RegionWeights
from nilatent.errors import CohortError, SettingError
from nilatent.finding import Finding, not_run
from nilatent.volumes import Volumes, voxel_pca

NAME = "reconstruction"
QUESTION = "How much of what differs between brains does the latent description keep, in people it has never seen?"
CASES = ("best", "median", "worst")
PLANES = ("sagittal", "coronal", "axial")
HELD_OUT = "test"


def reconstruction(
    volumes: Volumes,
    chunks: Iterable[tuple[np.ndarray, np.ndarray]],
    parts: pd.DataFrame,
    scans: pd.DataFrame,
    *,
    n_latent: int,
    seed: int,
    group: str = "",
    site: str = "",
    regions: RegionWeights | None = None,
    features: FeatureFunction | None = None,
    features_note: str = "",
    model_note: str = "",
    data_range: float = 1.0,
    target: str = "gm",
) -> Finding:
    """Judge reconstructions of held-out scans against the mean image, down-sampling and PCA of equal size.

    Parameters
    ----------
    volumes : Volumes
        The originals.
    chunks : Iterable
        Pairs of rows of the volumes and their reconstructions, (batch, voxel in mask) float32; streamed, never held.
    parts : DataFrame
        Index scan_id, column ``part``: the baselines are fitted on ``"train"``, the verdict rests on ``"test"``.
    scans : DataFrame
        Index scan_id; ``subject_id``, ``dataset``, and the columns of group and site when they are named.
    n_latent : int
        Values in the latent of a scan: of PCA as components, of down-sampling as averages.
    seed : int
        Of the draws of scans and of the bootstrap.
    group, site : str
        Columns whose levels get rows of their own; empty for none.
    regions : RegionWeights, optional
        On the grid and inside the mask of the volumes; with them ``data`` says what becomes of every region.
    features : callable, optional
        (scan, voxel in mask) float32 to (scan, feature): the space of the deep-feature distance, which is relative to the
        mean distance of training scans from their mean image, and of the deep-feature cosine, about the training mean.
    features_note : str
        What the features are; stands in settings and caveats.
    model_note : str
        What a reader must know of the model, such as the chosen epoch; stands in settings and caveats.
    data_range : float
        Range of the maps for PSNR and SSIM; 1 for grey-matter fractions and scaled T1 intensities.
    target : {"gm", "t1w"}
        What the volumes hold; agreement of total grey matter is given for grey matter only.

    Returns
    -------
    Finding
        Table by stratum and method, per-scan metrics, regions, slices of the best, median and worst scan, error maps; the
        first sentence of the answer is the verdict.

    Raises
    ------
    AtlasError
        When the regions belong to another mask.
    CohortError
        When volumes, parts and scans do not hold the same scans.
    SettingError
        When the chunks leave out a held-out scan, bring one twice, or have another number of voxels; when features have
        no description, or are not one finite row per scan.
    """
    part, known = _joined(volumes, parts, scans)
    if features is not None and not features_note:
        raise SettingError("Deep features need a description. Say in features_note which network they come from.")
    train, held_out = np.flatnonzero(part == "train"), np.flatnonzero(part == HELD_OUT)
    if len(train) < 2 or not len(held_out):
        return not_run(NAME, QUESTION, f"too few: {len(train)} training and {len(held_out)} held-out scans")
    pca = voxel_pca(volumes, train, n_latent, seed=seed, at_most=True)
    n_components, coarse = len(pca.sd), downsampling(volumes.mask, n_latent)
    space = None if features is None else feature_space(volumes, train, pca.mean, features, seed=seed)
    judge = Judge(pca, coarse, space, regions, data_range=data_range, seed=seed)
    measures = measure(volumes, chunks, part == HELD_OUT, judge)
    subjects = known["subject_id"].to_numpy()
    strata = _strata(known, held_out, group=group, site=site)
    table = _table(measures, subjects, strata, part, seed=seed)
    # The sum of T1 intensities is no volume of anything, and without features there is no distance between them.
    absent = ("gm_",) * (target != "gm") + ("feature_",) * (features is None)
    table = table[[name for name in table if not str(name).startswith(absent)]] if absent else table
    data = _data(volumes, measures, known, part)
    data = data.drop_vars([name for name in data if str(name).startswith(absent)]) if absent else data
    sizes = {"n_latent": n_latent, "n_components": n_components, "n_coarse": coarse.n_values}
    words = answer(measures, subjects, strata, table, **sizes, seed=seed)
    if regions is not None:
        by_region = region_data(measures, regions, subjects, held_out, seed=seed)
        data, words = data.merge(by_region), words + regions_sentence(by_region)
    settings: dict[str, Any] = {
        "n_latent": n_latent,
        "n_components_pca": n_components,
        "n_values_downsampling": coarse.n_values,
        "cells_downsampling": list(coarse.shape),
        "n_scales_ssim": n_scales(volumes.grid.shape),
        "n_regions": 0 if regions is None else len(regions.names),
        "features": "" if features is None else features_note,
        "n_train": len(train),
    } | {
        "seed": seed,
        "group": group,
        "site": site,
        "data_range": data_range,
        "model_note": model_note,
        "target": target,
    }
    missing = [
        f"There is no column '{column}', so no rows by {what}."
        for what, column in (("group", group), ("site", site))
        if column and column not in known
    ]
    fvu = measures.squared_error / np.maximum(measures.squared_deviation, 1e-8)
    return Finding(
        name=NAME,
        question=QUESTION,
        answer=words,
        table=table,
        data=data,
        maps={"mae": _paint(volumes, measures.abs_error), "fvu": _paint(volumes, fvu)},
        settings=settings,
        caveats=(*caveats(settings, n_held_out=len(held_out)), *missing, *([model_note] if model_note else [])),
        n_scans=len(held_out),
        n_subjects=len(set(subjects[held_out])),
    )


def _joined(volumes: Volumes, parts: pd.DataFrame, scans: pd.DataFrame) -> tuple[npt.NDArray[np.object_], pd.DataFrame]:
    """(scan,) part, and what is known of every scan, in the order of the volumes."""
    for what, index in (("split", parts.index), ("cohort", scans.index)):
        apart = volumes.scans.index.symmetric_difference(index)
        if len(apart):
            raise CohortError(
                f"Scan {apart[0]} ({len(apart)} in all) is in the volumes or the {what} only. Pack again."
            )
    return parts.loc[volumes.scans.index, "part"].to_numpy(), scans.loc[volumes.scans.index]


def _strata(
    known: pd.DataFrame, held_out: npt.NDArray[np.intp], *, group: str, site: str
) -> dict[tuple[str, str], npt.NDArray[np.intp]]:
    """(column, level) to rows of held-out scans; data sets only where there are several."""
    strata = {("", "all"): held_out}
    for column in dict.fromkeys(["dataset", *(name for name in (group, site) if name and name in known)]):
        values = known[column].iloc[held_out].astype("string")
        levels = sorted(values.dropna().unique())
        if len(levels) > 1 or column in (group, site):
            strata |= {(column, level): held_out[(values == level).fillna(False).to_numpy(bool)] for level in levels}
    return strata


def _table(
    measures: Measures,
    subjects: npt.NDArray[np.object_],
    strata: dict[tuple[str, str], npt.NDArray[np.intp]],
    part: npt.NDArray[np.object_],
    *,
    seed: int,
) -> pd.DataFrame:
    found = []
    for (column, level), held in strata.items():
        by_method = rows(measures, subjects, held, seed=seed)
        by_method.insert(0, "stratum", f"{column} {level}".strip())
        by_method.insert(1, "part", HELD_OUT)
        found.append(by_method)
    reference = np.flatnonzero((part == "train") & np.isfinite(measures.gm_ml))
    if len(reference):
        by_method = rows(measures, subjects, reference, seed=seed)
        by_method.insert(0, "stratum", "all")
        by_method.insert(1, "part", "train")
        found.append(by_method)
    return pd.concat(found, ignore_index=True)


def _paint(volumes: Volumes, values: np.ndarray) -> nib.Nifti1Image:
    volume = np.zeros(volumes.mask.shape, dtype=np.float32)
    volume[volumes.mask] = values
    return volumes.grid.to_image(volume)


def _data(volumes: Volumes, measures: Measures, known: pd.DataFrame, part: npt.NDArray[np.object_]) -> xr.Dataset:
    came = np.flatnonzero(np.isfinite(measures.gm_ml))
    mse, at_mean = measures.of("mse", "model"), measures.of("mse", "mean image")
    candidates = np.array(sorted(measures.slices))
    ordered = candidates[np.argsort(mse[candidates], kind="stable")]
    chosen = np.array([ordered[0], ordered[len(ordered) // 2], ordered[-1]])
    metrics = {name: (("approach", "scan"), measures.values[index][:, came]) for index, name in enumerate(METRICS)}
    cases = {
        "case_mse": ("case", mse[chosen]),
        "case_fvu": ("case", mse[chosen] / np.maximum(at_mean[chosen], 1e-12)),
        "case_ssim": ("case", measures.of("ssim", "model")[chosen]),
    }
    return xr.Dataset(
        {**metrics, **cases, **_slices(volumes, measures, chosen), "gm_ml_original": ("scan", measures.gm_ml[came])},
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


def _slices(
    volumes: Volumes, measures: Measures, chosen: npt.NDArray[np.intp]
) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    shown = plane_mask(volumes.mask)
    cut: dict[str, tuple[tuple[str, ...], np.ndarray]] = {}
    for kind in ("original", "model", "error"):
        painted = []
        for row in chosen:
            original, model = measures.slices[int(row)]
            volume = np.zeros(volumes.mask.shape, dtype=np.float32)
            volume[shown] = {"original": original, "model": model, "error": model - original}[kind]
            painted.append(volume)
        for axis, (plane, index) in enumerate(zip(PLANES, planes(volumes.mask), strict=True)):
            dims = ("case", *(name for position, name in enumerate("xyz") if position != axis))
            cut[f"{kind}_{plane}"] = (dims, np.stack([volume.take(index, axis=axis) for volume in painted]))
    return cut
