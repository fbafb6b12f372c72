"""Intensity: bias field, percentile scaling, and how noisy a scan is."""

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from nilatent.errors import ScanError
from nilatent.extras import require

# Standard deviation of the logarithm between the fields from 4 mm (50 iterations a level) and 6 mm: .02 on even scans,
# .05 on one whose field spans a factor of 1.8; from 5 mm they are .016 and .046, at twice the time.
N4_SAMPLING_MM = 6.0
N4_SPLINE_MM = 200.0
N4_ITERATIONS = (30, 30, 30, 30)
# Tighter, N4 takes half as long again and the field moves less than it does with another sampling.
N4_TOLERANCE = 5e-4
MIN_SAMPLES = 200
# The median absolute deviation of a normal variable is this share of its standard deviation.
MAD_OF_NORMAL = 0.6744897501960817
RATIO_SAMPLING_MM, RATIO_FWHM_MM = 3.0, 30.0
# A smoother of one pass flattens a slope at the ends of the brain; what is left is smoothed again.
N_RATIO_PASSES = 3
# What differs by more than this factor (in logarithms) is another tissue, not another shade.
MAX_LOG_RATIO = 0.3
TINY = 1e-9


def bias_field(
    data: npt.NDArray[np.float32], mask: npt.NDArray[np.bool_], voxel_mm: npt.NDArray[np.float64]
) -> npt.NDArray[np.float32]:
    """Multiplicative bias field of a scan by N4; divide the scan by it.

    Parameters
    ----------
    data : ndarray
        (x, y, z) raw intensities.
    mask : ndarray
        (x, y, z) bool, the brain.
    voxel_mm : ndarray
        (3,) voxel sides.

    Returns
    -------
    ndarray
        (x, y, z) float32, positive, with geometric mean 1 inside the mask.

    Raises
    ------
    ScanError
        When too few voxels of the mask are positive, or all have the same intensity.

    Notes
    -----
    The field is smooth over centimetres, so N4 sees one voxel in about 6 mm (sampled, not averaged: averages would blur
    the tissue peaks that N4 sharpens) and the logarithm of its field is interpolated back.

    References
    ----------
    Tustison et al. (2010). https://doi.org/10.1109/TMI.2010.2046908
    """
    ants = require("ants", extra="prepare")
    step = np.maximum(1, np.round(N4_SAMPLING_MM / voxel_mm)).astype(int)
    inside = mask & (data > 0)
    _check_enough(data[inside])
    first = (
        np.array([int(np.flatnonzero(inside.any(axis=others))[0]) for others in ((1, 2), (0, 2), (0, 1))]) + step // 2
    )
    taken = tuple(slice(int(start), None, int(by)) for start, by in zip(first, step, strict=True))
    spacing = [float(side) for side in voxel_mm * step]
    field = ants.n4_bias_field_correction(
        ants.from_numpy(np.where(inside, data, 0)[taken].astype(np.float32), spacing=spacing),
        mask=ants.from_numpy(inside[taken].astype(np.float32), spacing=spacing),
        shrink_factor=1,
        convergence={"iters": list(N4_ITERATIONS), "tol": N4_TOLERANCE},
        spline_param=N4_SPLINE_MM,
        return_bias_field=True,
    ).numpy()
    log_field = np.log(np.maximum(field, 1e-6)).astype(np.float32)
    fine = ndimage.affine_transform(
        log_field, np.diag(1.0 / step), -first / step, output_shape=data.shape, order=1, mode="nearest"
    )
    return np.asarray(np.exp(fine - fine[inside].mean(dtype=np.float64)), dtype=np.float32)


def _check_enough(values: npt.NDArray[np.float32]) -> None:
    if values.size < MIN_SAMPLES or not np.isfinite(values).all() or values.min() == values.max():
        rule = "enough brain with contrast"
        found = f"{values.size} positive voxels inside the brain mask, {np.unique(values).size} different intensities"
        step = "Check the brain mask and that the scan was not emptied or thresholded."
        raise ScanError(f"Rule '{rule}' of the bias correction is broken: {found}. {step}", rule=rule)


def bias_range(field: npt.NDArray[np.float32], mask: npt.NDArray[np.bool_]) -> float:
    """How uneven the field is inside the mask: 95th by 5th percentile, 1 for a perfectly even scan."""
    low, high = np.percentile(field[mask], (5, 95))
    return float(high / low)


def scale_percentiles(
    data: npt.NDArray[np.float32], mask: npt.NDArray[np.bool_], *, low: float = 0.5, high: float = 99.5
) -> npt.NDArray[np.float32]:
    """Scan scaled to [0, 1] between two percentiles inside the mask; 0 outside the mask.

    Parameters
    ----------
    data : ndarray
        (x, y, z) intensities of one scan.
    mask : ndarray
        (x, y, z) bool, at least one voxel.
    low, high : float
        Percentiles in [0, 100] that become 0 and 1; what lies beyond is clipped.

    Returns
    -------
    ndarray
        (x, y, z) float32 in [0, 1].
    """
    bottom, top = np.percentile(data[mask], (low, high))
    if top <= bottom:
        return np.zeros(data.shape, dtype=np.float32)
    return np.where(mask, np.clip((data - bottom) / (top - bottom), 0, 1), 0).astype(np.float32)


def noise(data: npt.NDArray[np.float32], mask: npt.NDArray[np.bool_]) -> float:
    """Noise standard deviation from the finest diagonal detail inside the mask, in units of the scan.

    Parameters
    ----------
    data : ndarray
        (x, y, z) intensities.
    mask : ndarray
        (x, y, z) bool; blocks of 2 x 2 x 2 that are wholly inside are used.

    Returns
    -------
    float
        For white noise its standard deviation; anatomy hardly enters, because the detail alternates in sign along all
        three axes and the median ignores edges. NaN when no block is inside.

    References
    ----------
    Donoho & Johnstone (1994). https://doi.org/10.1093/biomet/81.3.425
    """
    even = tuple(slice(0, side // 2 * 2) for side in data.shape)
    x, y, z = (side // 2 for side in data.shape)
    blocks = data[even].reshape(x, 2, y, 2, z, 2)
    inside = mask[even].reshape(x, 2, y, 2, z, 2).all(axis=(1, 3, 5))
    if not inside.any():
        return float("nan")
    sign = np.array([1.0, -1.0], dtype=np.float32)
    detail = np.einsum("aibjck,i,j,k->abc", blocks, sign, sign, sign, optimize=True) / np.sqrt(8)
    return float(np.median(np.abs(detail[inside])) / MAD_OF_NORMAL)


def relative_field(
    values: npt.NDArray[np.float32],
    mean: npt.NDArray[np.float32],
    mask: npt.NDArray[np.bool_],
    voxel_mm: npt.NDArray[np.float64],
) -> npt.NDArray[np.float32]:
    """Smooth field by which one visit is brighter here and darker there than the average of all.

    Parameters
    ----------
    values : ndarray
        (x, y, z) of the visit, corrected by N4.
    mean : ndarray
        (x, y, z) average of the visits, on the same voxels and on any scale.
    mask : ndarray
        (x, y, z) bool, the brain.
    voxel_mm : ndarray
        (3,) voxel sides.

    Returns
    -------
    ndarray
        (x, y, z) float32, positive, about 1 in the middle: the brightness of the whole visit stays.

    Notes
    -----
    N4 finds each field by itself and errs by some hundredths, differently at each visit; the ratio of two images of one brain
    shows that difference at once. Only the brighter half of the brain counts (white matter and the inner cortex), where the
    loss of tissue between visits hardly changes the ratio, and the field is smooth over three centimetres.

    References
    ----------
    Lewis & Fox (2004). https://doi.org/10.1016/j.neuroimage.2004.04.030
    """
    step = np.maximum(1, np.round(RATIO_SAMPLING_MM / voxel_mm)).astype(int)
    taken = tuple(slice(int(by) // 2, None, int(by)) for by in step)
    own, other = values[taken], mean[taken]
    # At the rim of the brain voxels are part background.
    there = ndimage.binary_erosion(mask[taken] & (own > 0) & (other > 0))
    there &= other > np.median(other[there])
    ratio = np.where(there, np.log(np.where(there, own, 1) / np.where(there, other, 1)), 0)
    ratio -= np.where(there, np.median(ratio[there]), 0)
    there &= np.abs(ratio) < MAX_LOG_RATIO
    sigma = RATIO_FWHM_MM / np.sqrt(8 * np.log(2)) / (voxel_mm * step)
    weight = np.maximum(ndimage.gaussian_filter(there.astype(np.float64), sigma), TINY)
    smooth = np.zeros(own.shape)
    for _ in range(N_RATIO_PASSES):
        smooth += ndimage.gaussian_filter(np.where(there, ratio - smooth, 0), sigma) / weight
    fine = ndimage.affine_transform(
        smooth, np.diag(1.0 / step), -(step // 2) / step, output_shape=values.shape, order=1, mode="nearest"
    )
    return np.asarray(np.exp(fine), dtype=np.float32)
