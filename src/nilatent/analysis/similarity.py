"""Similarity of two volumes as an eye would judge it: structure at one scale and at several."""

from functools import cache

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from nilatent.analysis.separable import along_axes

SSIM_SIGMA, SSIM_TRUNCATE, SSIM_K1, SSIM_K2 = 1.5, 3.5, 0.01, 0.03
WINDOW_VOXELS = 2 * int(SSIM_TRUNCATE * SSIM_SIGMA + 0.5) + 1
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def n_scales(shape: tuple[int, ...]) -> int:
    """How many of the five scales of MS-SSIM a grid allows: the window fits into the coarsest, and one is always used.

    Examples
    --------
    >>> [n_scales(shape) for shape in ((15, 17, 13), (40, 48, 40), (80, 96, 80), (160, 192, 160))]
    [1, 2, 3, 4]
    """
    allowed = [level for level in range(len(SCALE_WEIGHTS)) if min(shape) // 2**level >= WINDOW_VOXELS]
    return max(len(allowed), 1)


def ssim_3d(
    original: np.ndarray, others: npt.ArrayLike, mask: np.ndarray, *, data_range: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Structural similarity and multi-scale structural similarity, averaged inside a mask.

    The window is Gaussian with an SD of 1.5 voxels in all three directions, 11 voxels wide. From one scale to the next
    2 x 2 x 2 voxels are averaged; a coarse voxel is inside when at least half of its voxels are. MS-SSIM is the product of
    contrast and structure at all scales but the last and of the whole SSIM at the last, each to the power of its weight; the
    weights of the scales used are divided by their sum. A negative mean at some scale counts as 0.

    Parameters
    ----------
    original : ndarray
        (x, y, z) volume.
    others : array
        (other, x, y, z) volumes compared with it.
    mask : ndarray
        (x, y, z) bool; windows reach over its edge, the mean does not.
    data_range : float
        Largest minus smallest possible value.

    Returns
    -------
    tuple[ndarray, ndarray]
        (other,) SSIM in [-1, 1] and (other,) MS-SSIM in [0, 1]; 1 for identical volumes.

    References
    ----------
    Wang et al. (2004). https://doi.org/10.1109/TIP.2003.819861
    Wang, Simoncelli & Bovik (2003). https://doi.org/10.1109/ACSSC.2003.1292216
    """
    volumes = np.concatenate([np.asarray(original)[None], np.asarray(others)]).astype(np.float32)
    used = n_scales(volumes.shape[1:])
    weights = np.array(SCALE_WEIGHTS[:used]) / sum(SCALE_WEIGHTS[:used])
    inside = np.asarray(mask, dtype=bool)
    multi_scale: npt.NDArray[np.float64] = np.ones(len(volumes) - 1)
    for level, weight in enumerate(weights):
        if level:
            volumes, inside = _halved(volumes), _halved(inside[None].astype(np.float32))[0] >= 0.5
        whole, structure = _one_scale(volumes, inside, data_range=data_range)
        if level == 0:
            ssim = whole
        multi_scale *= np.maximum(whole if level == used - 1 else structure, 0.0) ** weight
    return ssim, multi_scale


def _one_scale(
    volumes: npt.NDArray[np.float32], mask: npt.NDArray[np.bool_], *, data_range: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Mean SSIM and mean contrast-structure of the first volume with each of the others."""
    matrices = [_window(side) for side in mask.shape]

    def smooth(stack: np.ndarray) -> np.ndarray:
        return np.asarray(along_axes(stack, matrices)[:, mask])

    c1, c2 = np.float32((SSIM_K1 * data_range) ** 2), np.float32((SSIM_K2 * data_range) ** 2)
    mean, square = smooth(volumes), smooth(volumes * volumes)
    variance = square - mean * mean
    covariance = smooth(volumes[:1] * volumes[1:]) - mean[:1] * mean[1:]
    structure = (2 * covariance + c2) / (variance[:1] + variance[1:] + c2)
    luminance = (2 * mean[:1] * mean[1:] + c1) / (mean[:1] ** 2 + mean[1:] ** 2 + c1)
    return (luminance * structure).mean(axis=1), structure.mean(axis=1)


@cache
def _window(side: int) -> npt.NDArray[np.float32]:
    """(side, side) Gaussian window as a matrix; beyond the border the volume is mirrored."""
    window = ndimage.gaussian_filter1d(np.eye(side), SSIM_SIGMA, axis=0, truncate=SSIM_TRUNCATE, mode="reflect")
    return np.asarray(window, dtype=np.float32)


def _halved(volumes: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Average 2 x 2 x 2 voxels; the last slice of an odd side is repeated."""
    for axis in (1, 2, 3):
        width = [(0, 0)] * axis + [(0, volumes.shape[axis] % 2)] + [(0, 0)] * (3 - axis)
        even = np.pad(volumes, width, mode="edge") if volumes.shape[axis] % 2 else volumes
        first, second = (even[(slice(None),) * axis + (slice(start, None, 2),)] for start in (0, 1))
        volumes = np.float32(0.5) * (first + second)
    return volumes
