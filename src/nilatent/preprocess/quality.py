"""Quality: what is measured on every scan, which scans stand out from the rest, and the finding that says so."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from nilatent.cohort import Cohort
from nilatent.finding import Finding
from nilatent.volumes import Grid, average_to_grid, template_array

QUESTION = "Which scans could not be prepared, and which should be looked at before they are used?"
# Measure: (unit, description, side of the distribution that is bad, or "" when it is a covariate and no judgement).
MEASURES: dict[str, tuple[str, str, str]] = {
    "homogeneity": (
        "",
        "Mean correlation of the prepared grey-matter map with those of the other scans of the data set",
        "low",
    ),
    "template_correlation": (
        "",
        "Correlation of the grey-matter map with the template's, inside its brain mask, at 4 mm",
        "low",
    ),
    "t1_correlation": ("", "Correlation of the aligned brain with the template T1, inside its brain mask", "low"),
    "subject_correlation": (
        "",
        "Correlation of the scan with the average of the subject's other scans, well inside the brain",
        "low",
    ),
    "mask_dice": ("", "Dice overlap of the aligned brain mask with the template's", "low"),
    "outside_fraction": ("", "Share of the grey matter that lies outside the template's brain mask", "high"),
    "aligned_size": (
        "",
        "Volume of the brain mask after alignment relative to the template's: the brain and the head size that the "
        "affine found must agree",
        "both",
    ),
    "head_size_factor": (
        "",
        "Volume of the head relative to the template: determinant of the template-to-subject affine",
        "both",
    ),
    "tiv_ml": ("mL", "Volume of the brain mask in the subject's own space, fluid included", "both"),
    "gm_ml": (
        "mL",
        "Grey-matter volume in the subject's own space (of the map as given, for maps that existed)",
        "both",
    ),
    "wm_ml": ("mL", "White-matter volume in the subject's own space", ""),
    "csf_ml": ("mL", "Fluid volume inside the brain mask in the subject's own space", ""),
    "gm_fraction": ("", "Grey-matter volume by the volume of the brain mask", "both"),
    "wm_fraction": ("", "White-matter volume by the volume of the brain mask", "both"),
    "bias_range": ("", "95th by 5th percentile of the bias field inside the brain", "high"),
    "noise_ratio": ("", "Noise standard deviation divided by the mean white-matter intensity", ""),
    "tissue_contrast": ("", "White minus grey mean intensity, divided by the white mean", "low"),
    "noise_to_contrast": ("", "Noise standard deviation divided by the difference of white and grey", "high"),
    "resolution_mm": ("mm", "Root mean square of the voxel's sides", "high"),
    "image_quality": (
        "%",
        "Points from noise-to-contrast ratio and resolution on the scale of CAT12's weighted image quality, with our own "
        "estimate of the noise: over 85 is good, under 65 is poor",
        "low",
    ),
}
# Beyond these a scan is looked at whatever the rest of the data set is like, and in data sets too small to judge.
LIMITS: dict[str, tuple[float, float]] = {
    "template_correlation": (0.5, 1.0),
    "t1_correlation": (0.45, 1.0),
    "mask_dice": (0.9, 1.0),
    "outside_fraction": (0.0, 0.06),
    "aligned_size": (0.85, 1.15),
}
# Correlations rise with the size of the voxels; at one size they can be compared between preparations.
COMPARED_AT_MM = 4.0
# Best and worst value on the scale of school marks from 1 to 6 (Gaser et al. 2024).
NOISE_TO_CONTRAST_MARKS = (0.0466, 0.3949)
RESOLUTION_MARKS_MM = (0.5, 3.0)
MARK_RANGE = (0.5, 9.5)
# The power of the mean: the worse of the two marks decides nearly alone.
MARK_POWER = 8
N_BINS = 32
NAMES_SHOWN = 8
# Iglewicz and Hoaglin's limit for the modified z score.
OUTLIER_LIMIT = 3.5
MIN_SCANS_FOR_OUTLIERS = 8
# Of the median: a scan nearer than this never stands out, however alike the others are.
MIN_RELATIVE_DISTANCE = 0.01
# Ratios of the standard deviation of a normal variable to its median and its mean absolute deviation.
SD_BY_MAD = 1.482602218505602
SD_BY_MEAN_DEVIATION = 1.2533141373155001


def correlation(one: npt.NDArray[np.float32], two: npt.NDArray[np.float32], inside: npt.NDArray[np.bool_]) -> float:
    """Pearson correlation of two images over some voxels; 0 when one of them is constant there.

    Parameters
    ----------
    one, two : ndarray
        (x, y, z) images on the same grid.
    inside : ndarray
        (x, y, z) bool.
    """
    a = one[inside] - one[inside].mean(dtype=np.float64)
    b = two[inside] - two[inside].mean(dtype=np.float64)
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale > 0 else 0.0


def dice(one: npt.NDArray[np.bool_], two: npt.NDArray[np.bool_]) -> float:
    """Dice overlap of two masks, in [0, 1]; 1 when both are empty."""
    total = int(one.sum()) + int(two.sum())
    return 2 * float((one & two).sum()) / total if total else 1.0


def outside_fraction(values: npt.NDArray[np.float32], inside: npt.NDArray[np.bool_]) -> float:
    """Share of the sum of a non-negative map that lies outside a mask; 0 for an empty map."""
    total = float(values.sum(dtype=np.float64))
    return 1 - float(values[inside].sum(dtype=np.float64)) / total if total > 0 else 0.0


def gm_measures(gm: npt.NDArray[np.float32], grid: Grid) -> dict[str, float]:
    """How well a grey-matter map fits the template's.

    Parameters
    ----------
    gm : ndarray
        (x, y, z) on the grid, not smoothed.
    grid : Grid
        Of the map.

    Returns
    -------
    dict[str, float]
        ``template_correlation`` and ``outside_fraction``.
    """
    compared = Grid.mni(COMPARED_AT_MM)
    if grid.spacing_mm < COMPARED_AT_MM:
        gm, grid = average_to_grid(gm, grid.affine, compared), compared
    mask = template_array("mask", grid.spacing_mm)
    return {
        "template_correlation": correlation(gm, template_array("gm", grid.spacing_mm), mask > 0.5),
        "outside_fraction": outside_fraction(gm, mask > 0),
    }


def derived(measures: Mapping[str, float], voxel_mm: npt.NDArray[np.float64]) -> dict[str, float]:
    """Measures that follow from others: tissue fractions, size after alignment, noise to contrast, image quality.

    Parameters
    ----------
    measures : Mapping[str, float]
        Of one scan; what cannot be derived from them is left out.
    voxel_mm : ndarray
        (3,) voxel sides of the scan as it was given.

    Returns
    -------
    dict[str, float]
        ``image_quality`` is 105 - 10 m, m being the mean of two marks between 1 (best) and 6 with the power 8.

    References
    ----------
    Gaser et al. (2024). https://doi.org/10.1093/gigascience/giae049
    """
    found: dict[str, float] = {}
    if measures.get("tiv_ml", 0) > 0:
        tiv = measures["tiv_ml"]
        found |= {f"{name}_fraction": measures[f"{name}_ml"] / tiv for name in ("gm", "wm") if f"{name}_ml" in measures}
        if measures.get("head_size_factor", 0) > 0:
            expected = template_ml() * measures["head_size_factor"]
            found["aligned_size"] = tiv / expected
    contrast, noise = measures.get("tissue_contrast", 0.0), measures.get("noise_ratio", np.nan)
    if contrast > 0 and np.isfinite(noise):
        # To a hundredth, so that headers that were rounded differently are one resolution.
        resolution = round(float(np.sqrt(np.mean(np.square(voxel_mm)))), 2)
        ratio = noise / contrast
        marks = [_mark(ratio, NOISE_TO_CONTRAST_MARKS), _mark(resolution, RESOLUTION_MARKS_MM)]
        mark = float(np.mean(np.power(marks, MARK_POWER))) ** (1 / MARK_POWER)
        found |= {"noise_to_contrast": ratio, "resolution_mm": resolution, "image_quality": 105 - 10 * mark}
    return found


def template_ml() -> float:
    """Volume of the template's brain mask."""
    return float(template_array("mask", COMPARED_AT_MM).sum(dtype=np.float64)) * Grid.mni(COMPARED_AT_MM).voxel_ml


def _mark(value: float, best_worst: tuple[float, float]) -> float:
    best, worst = best_worst
    return float(np.clip(1 + 5 * (value - best) / (worst - best), *MARK_RANGE))


def tissue_contrast(
    brain: npt.NDArray[np.float32], gm: npt.NDArray[np.float32], wm: npt.NDArray[np.float32]
) -> tuple[float, float]:
    """Contrast between white and grey, and the mean white-matter intensity.

    Parameters
    ----------
    brain : ndarray
        (x, y, z) bias-corrected intensities.
    gm, wm : ndarray
        (x, y, z) posteriors, the weights of the means.

    Returns
    -------
    float
        (white - grey) / white.
    float
        Mean white-matter intensity.
    """
    grey = float((brain * gm).sum(dtype=np.float64) / max(float(gm.sum(dtype=np.float64)), 1e-6))
    white = float((brain * wm).sum(dtype=np.float64) / max(float(wm.sum(dtype=np.float64)), 1e-6))
    return ((white - grey) / white if white > 0 else float("nan")), white


def robust_z(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Distance of each value from the median in robust standard deviations.

    Parameters
    ----------
    values : ndarray
        (scan,) numbers; NaN is ignored and stays NaN.

    Returns
    -------
    ndarray
        (scan,) modified z scores: median absolute deviation, or mean absolute deviation when more than half of the
        values are equal, or 0 when all are.

    References
    ----------
    Iglewicz & Hoaglin (1993). How to Detect and Handle Outliers. ASQC.
    """
    away = values - np.nanmedian(values)
    spread = SD_BY_MAD * float(np.nanmedian(np.abs(away)))
    if spread <= 0:
        spread = SD_BY_MEAN_DEVIATION * float(np.nanmean(np.abs(away)))
    return np.asarray(away / spread if spread > 0 else away * 0.0)


def badness(table: pd.DataFrame, groups: pd.Series) -> pd.DataFrame:
    """How far each scan lies from the median of its own group on the bad side, in robust standard deviations.

    Parameters
    ----------
    table : DataFrame
        (scan, measure) with columns of ``MEASURES``.
    groups : Series
        Data set of each scan: scanners differ, and a difference between two scanners is no fault of either.

    Returns
    -------
    DataFrame
        (scan, measure); negative on the good side, NaN for covariates and in groups under eight scans.
    """
    found = pd.DataFrame(np.nan, index=table.index, columns=table.columns)
    for _, members in table.groupby(groups):
        for name in members:
            values, bad = members[name].to_numpy(dtype=float), MEASURES[str(name)][2]
            if not bad or np.isfinite(values).sum() < MIN_SCANS_FOR_OUTLIERS:
                continue
            # Where all scans are as good as equal, the farthest of them is no outlier; their order stays.
            near = np.abs(values - np.nanmedian(values)) < MIN_RELATIVE_DISTANCE * abs(np.nanmedian(values))
            z = np.where(near, np.clip(robust_z(values), -OUTLIER_LIMIT, OUTLIER_LIMIT), robust_z(values))
            found.loc[members.index, name] = {"low": -z, "high": z, "both": np.abs(z)}[bad]
    return found


def outlier_flags(table: pd.DataFrame, groups: pd.Series) -> pd.Series:
    """Measures by which each scan stands out among the scans of its own group, or is beyond an absolute limit.

    Parameters
    ----------
    table : DataFrame
        (scan, measure) with columns of ``MEASURES``.
    groups : Series
        Data set of each scan.

    Returns
    -------
    Series
        Names of the measures joined by ``", "``, ``""`` when none. Groups under eight scans are judged by ``LIMITS`` alone.
    """
    out = badness(table, groups) > OUTLIER_LIMIT
    for name, (low, high) in LIMITS.items():
        if name in table:
            out[name] |= (table[name] < low) | (table[name] > high)
    return pd.Series([", ".join(out.columns[row]) for row in out.to_numpy()], index=table.index, dtype=object)


def quality(cohort: Cohort, *, folder: Path) -> Finding:
    """Which scans were dropped and why, and which of the others should be looked at.

    Parameters
    ----------
    cohort : Cohort
        As ``recipe.prepare`` leaves it: measures and ``quality_flags`` of every scan, and what was left out.
    folder : Path
        Of the derivative; paths in the finding start there, so that it can be moved.

    Returns
    -------
    Finding
        Table: a row per prepared scan with its measures, its flags and ``farthest_z``, the largest distance on the bad
        side. Data: ``position`` (scan, measure) in [0, 1] between the smallest and the largest value, ``n_scans``
        (dataset, measure, bin), how the values of a data set lie between the two, ``map`` (scan), the path of
        the prepared map, and ``stage``, ``rule`` and ``reason`` of every dropped scan.
    """
    scans = cohort.scans
    measures = [name for name in MEASURES if name in scans and scans[name].notna().any()]
    flags = scans["quality_flags"].fillna("").astype(str)
    table = scans[["dataset", "recipe", *measures]].assign(
        flags=flags, farthest_z=badness(scans[measures], scans["dataset"]).max(axis=1)
    )
    return Finding(
        name="quality",
        question=QUESTION,
        answer=_answer(flags, cohort.excluded),
        table=table.rename_axis("scan_id").reset_index(),
        data=_distributions(scans, measures)
        .merge(_dropped(cohort.excluded))
        .assign(map=("scan", _paths(scans, folder))),
        settings={"outlier_limit": OUTLIER_LIMIT, "min_scans": MIN_SCANS_FOR_OUTLIERS, "limits": LIMITS},
        caveats=_caveats(scans, flags),
        n_scans=len(scans),
        n_subjects=cohort.n_subjects,
    )


def _paths(scans: pd.DataFrame, folder: Path) -> npt.NDArray[np.object_]:
    root = Path(folder).absolute()
    return np.array([Path(path).absolute().relative_to(root).as_posix() for path in scans["path"]], dtype=object)


def _answer(flags: pd.Series, excluded: pd.DataFrame) -> str:
    n, dropped = len(flags), excluded["rule"].value_counts()
    words = f"{n} of {n + len(excluded)} scans were prepared"
    if len(dropped):
        words += "; dropped: " + ", ".join(f"{count} by the rule '{rule}'" for rule, count in dropped.items())
    out = list(flags.index[flags != ""])
    if not n:
        return f"{words}."
    if not out:
        return f"{words}. None of the prepared scans stands out."
    named = ", ".join(map(str, out[:NAMES_SHOWN])) + (
        f" and {len(out) - NAMES_SHOWN} more" if len(out) > NAMES_SHOWN else ""
    )
    return f"{words}. {len(out)} of {n} should be looked at: {named}."


def _caveats(scans: pd.DataFrame, flags: pd.Series) -> tuple[str, ...]:
    sizes = scans["dataset"].value_counts()
    few = [str(name) for name, size in sizes.items() if size < MIN_SCANS_FOR_OUTLIERS]
    caveats = [
        "To stand out is no fault: volumes, fractions and homogeneity follow age and disease. Nothing was left out for it.",
        "Not to stand out is no proof: nine slices of a scan show a shift, a bad strip or a wrong segmentation, not every "
        "fault.",
    ]
    if few:
        caveats.append(
            f"Data sets with fewer than {MIN_SCANS_FOR_OUTLIERS} scans are judged by absolute limits alone: {', '.join(few)}."
        )
    if len(flags) and (flags != "").mean() > 0.2:
        caveats.append(
            "More than a fifth of the scans stand out: the data set may be a mixture, of scanners or of age groups, and "
            "no scan of it can be called unusual by its median."
        )
    return tuple(caveats)


def _distributions(scans: pd.DataFrame, measures: Sequence[str]) -> xr.Dataset:
    values = scans[list(measures)].to_numpy(dtype=float).reshape(len(scans), len(measures))
    datasets = sorted(scans["dataset"].astype(str).unique())
    counts = np.zeros((len(datasets), len(measures), N_BINS), dtype=np.int64)
    position = np.full(values.shape, np.nan)
    for column in range(len(measures)):
        known = np.isfinite(values[:, column])
        low, high = values[known, column].min(), values[known, column].max()
        position[known, column] = (values[known, column] - low) / (high - low) if high > low else 0.5
        for row, dataset in enumerate(datasets):
            mine = position[known & (scans["dataset"].astype(str) == dataset).to_numpy(), column]
            counts[row, column] = np.histogram(mine, bins=N_BINS, range=(0, 1))[0]
    return xr.Dataset(
        {"position": (("scan", "measure"), position), "n_scans": (("dataset", "measure", "bin"), counts)},
        {"scan": scans.index.astype(str).to_numpy(), "measure": list(measures), "dataset": datasets},
    )


def _dropped(excluded: pd.DataFrame) -> xr.Dataset:
    columns = {
        name: ("dropped", excluded[name].astype(str).to_numpy(dtype=object)) for name in ("stage", "rule", "reason")
    }
    return xr.Dataset(columns, {"dropped": excluded["scan_id"].astype(str).to_numpy(dtype=object)})
