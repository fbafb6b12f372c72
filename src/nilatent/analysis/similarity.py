"""Similarity of two volumes as an eye would judge it."""

import numpy as np
import numpy.typing as npt
from scipy import ndimage

SSIM_SIGMA, SSIM_TRUNCATE, SSIM_K1, SSIM_K2 = 1.5, 3.5, 0.01, 0.03


def ssim_3d(
    original: np.ndarray, others: list[np.ndarray], mask: np.ndarray, *, data_range: float
) -> npt.NDArray[np.float64]:
    """Mean structural similarity inside the mask, Gaussian window of 1.5 voxels in all three directions.

    Parameters
    ----------
    original : ndarray
        (x, y, z) volume, 0 outside the mask.
    others : list[ndarray]
        Volumes compared with it.
    mask : ndarray
        (x, y, z) bool; windows reach over its edge, the mean does not.
    data_range : float
        Largest minus smallest possible value.

    Returns
    -------
    ndarray
        (other,) SSIM in [-1, 1]; 1 for identical volumes.

    References
    ----------
    Wang et al. (2004). https://doi.org/10.1109/TIP.2003.819861
    """

    def smooth(volume: np.ndarray) -> npt.NDArray[np.float64]:
        smoothed = ndimage.gaussian_filter(volume, SSIM_SIGMA, truncate=SSIM_TRUNCATE)
        return np.asarray(smoothed[mask])

    c1, c2 = (SSIM_K1 * data_range) ** 2, (SSIM_K2 * data_range) ** 2
    x = original.astype(np.float64)
    mean_x = smooth(x)
    var_x = smooth(x * x) - mean_x**2
    found = []
    for other in others:
        y = other.astype(np.float64)
        mean_y = smooth(y)
        var_y, cov = smooth(y * y) - mean_y**2, smooth(x * y) - mean_x * mean_y
        luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
        found.append(np.mean(luminance * (2 * cov + c2) / (var_x + var_y + c2)))
    return np.array(found)
