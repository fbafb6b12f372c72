"""Resampling: bring values from one space to another in one interpolation, and smooth them."""

import nibabel as nib
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from nilatent.volumes import Grid, average_to_grid

FWHM_BY_SIGMA = float(np.sqrt(8 * np.log(2)))


def box_around(
    mask: npt.NDArray[np.bool_], affine: npt.NDArray[np.float64], *, margin_mm: float
) -> tuple[tuple[slice, slice, slice], npt.NDArray[np.float64]]:
    """Bounding box of a mask with a margin.

    Returns
    -------
    tuple[slice, slice, slice]
        Where the box lies in the image.
    ndarray
        (4, 4) affine of the part that the box cuts out.
    """
    voxel_mm = np.linalg.norm(affine[:3, :3], axis=0)
    box = []
    for axis in range(3):
        there = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        margin = int(np.ceil(margin_mm / voxel_mm[axis]))
        box.append(slice(max(0, int(there[0]) - margin), min(mask.shape[axis], int(there[-1]) + 1 + margin)))
    moved = affine.copy()
    moved[:3, 3] += moved[:3, :3] @ [part.start for part in box]
    return (box[0], box[1], box[2]), moved


def volume_change(affine: npt.NDArray[np.float64]) -> float:
    """Jacobian determinant of an affine: volume after by volume before, always positive."""
    return float(abs(np.linalg.det(np.asarray(affine)[:3, :3])))


def resample(
    data: npt.NDArray[np.float32],
    affine: npt.NDArray[np.float64],
    grid: Grid,
    *,
    to_grid: npt.NDArray[np.float64],
    modulate: bool,
) -> npt.NDArray[np.float32]:
    """Bring a map to the grid in one interpolation, as the mean over each grid voxel.

    Parameters
    ----------
    data : ndarray
        (x, y, z) map.
    affine : ndarray
        (4, 4) of the map.
    grid : Grid
        Target.
    to_grid : ndarray
        (4, 4) millimetres of the map's space to millimetres of the grid's space.
    modulate : bool
        Divide by the volume change, so that sum x voxel volume is the same before and after; otherwise the values
        keep their meaning (a probability stays one) and the volume changes with the head size.

    Returns
    -------
    ndarray
        (x, y, z) float32 on the grid. A map that is already there comes back unchanged.
    """
    placed = to_grid @ affine
    same = data.shape == grid.shape and np.allclose(placed, grid.affine, atol=1e-4)
    moved = np.asarray(data, dtype=np.float32) if same else average_to_grid(data, placed, grid)
    return np.asarray(moved / volume_change(to_grid) if modulate else moved, dtype=np.float32)


def pull(
    image: nib.Nifti1Image,
    shape: tuple[int, ...],
    affine: npt.NDArray[np.float64],
    to_template: npt.NDArray[np.float64],
) -> npt.NDArray[np.float32]:
    """A template image as the voxels of a scan see it, by linear interpolation.

    Parameters
    ----------
    image : Nifti1Image
        In template space.
    shape : tuple[int, int, int]
        Voxels of the scan.
    affine : ndarray
        (4, 4) of the scan.
    to_template : ndarray
        (4, 4) millimetres of the scan to millimetres of the template.

    Returns
    -------
    ndarray
        (x, y, z) float32 in the scan's space; 0 outside the image.
    """
    there = np.linalg.inv(image.affine) @ to_template @ affine
    moved = ndimage.affine_transform(
        image.get_fdata(dtype=np.float32), there[:3, :3], there[:3, 3], output_shape=shape, order=1
    )
    return np.asarray(moved, dtype=np.float32)


def share_inside(
    shape: tuple[int, ...], affine: npt.NDArray[np.float64], voxels: npt.NDArray[np.bool_], grid: Grid
) -> float:
    """Share of some voxels of a grid whose centres lie in the field of view of a scan.

    Parameters
    ----------
    shape : tuple[int, int, int]
        Voxels of the scan.
    affine : ndarray
        (4, 4) of the scan, in the grid's space.
    voxels : ndarray
        (x, y, z) bool on the grid, at least one true.
    grid : Grid
        Of the voxels.

    Returns
    -------
    float
        In [0, 1].
    """
    to_scan = np.linalg.inv(affine) @ grid.affine
    positions = np.argwhere(voxels) @ to_scan[:3, :3].T + to_scan[:3, 3]
    inside = (positions > -0.5) & (positions < np.asarray(shape) - 0.5)
    return float(inside.all(axis=1).mean())


def smooth(data: npt.NDArray[np.float32], *, fwhm_mm: float, spacing_mm: float) -> npt.NDArray[np.float32]:
    """Gaussian smoothing of a map on a grid.

    Parameters
    ----------
    data : ndarray
        (x, y, z) map.
    fwhm_mm : float
        Full width at half maximum; 0 leaves the map as it is.
    spacing_mm : float
        Voxel size.

    Returns
    -------
    ndarray
        (x, y, z) float32; the sum is kept but for what runs over the edge of the grid.
    """
    if fwhm_mm == 0:
        return data
    sigma = fwhm_mm / FWHM_BY_SIGMA / spacing_mm
    return np.asarray(ndimage.gaussian_filter(data, sigma, mode="constant"), dtype=np.float32)
