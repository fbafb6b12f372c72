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
