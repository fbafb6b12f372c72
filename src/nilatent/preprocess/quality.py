"""Quality: what is measured on every scan, and which scans stand out from the rest."""

import numpy as np
import numpy.typing as npt
import pandas as pd

from nilatent.volumes import Grid, template_array

# Measure: (unit, description, side of the distribution that is bad, or "" when it is a covariate and no judgement).
MEASURES: dict[str, tuple[str, str, str]] = {
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
    "wm_ml": ("mL", "White-matter volume in the subject's own space", "both"),
    "csf_ml": ("mL", "Fluid volume inside the brain mask in the subject's own space", "both"),
    "template_correlation": (
        "",
        "Correlation of the grey-matter map with the template's, inside its brain mask",
        "low",
    ),
    "t1_correlation": ("", "Correlation of the aligned brain with the template T1, inside its brain mask", "low"),
    "mask_dice": ("", "Dice overlap of the aligned brain mask with the template's", "low"),
    "outside_fraction": ("", "Share of the grey matter that lies outside the template's brain mask", "high"),
    "bias_range": ("", "95th by 5th percentile of the bias field inside the brain", "high"),
    "noise_ratio": ("", "Noise standard deviation divided by the mean white-matter intensity", "high"),
    "tissue_contrast": ("", "White minus grey mean intensity, divided by the white mean", "low"),
}
# Iglewicz and Hoaglin's limit for the modified z score.
OUTLIER_LIMIT = 3.5
MIN_SCANS_FOR_OUTLIERS = 8
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
    mask = template_array("mask", grid.spacing_mm)
    return {
        "template_correlation": correlation(gm, template_array("gm", grid.spacing_mm), mask > 0.5),
        "outside_fraction": outside_fraction(gm, mask > 0),
    }


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


def outlier_flags(table: pd.DataFrame, groups: pd.Series) -> pd.Series:
    """Measures by which each scan stands out among the scans of its own group.

    Parameters
    ----------
    table : DataFrame
        (scan, measure) with columns of ``MEASURES``.
    groups : Series
        Data set of each scan: scanners differ, and a difference between two scanners is no fault of either.

    Returns
    -------
    Series
        Names of the measures joined by ``", "``, ``""`` when none. Groups under eight scans are not judged.
    """
    flags: dict[object, list[str]] = {scan: [] for scan in table.index}
    for _, members in table.groupby(groups):
        for name in members:
            values = members[name].to_numpy(dtype=float)
            if np.isfinite(values).sum() < MIN_SCANS_FOR_OUTLIERS:
                continue
            bad = MEASURES[str(name)][2]
            z = robust_z(values)
            out = (z > OUTLIER_LIMIT) & (bad != "low") | (z < -OUTLIER_LIMIT) & (bad != "high")
            for scan in members.index[out]:
                flags[scan].append(str(name))
    return pd.Series({scan: ", ".join(names) for scan, names in flags.items()}, dtype=object).reindex(table.index)
