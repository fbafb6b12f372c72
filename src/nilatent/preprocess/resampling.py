"""Resampling: bring values from one space to another in one interpolation, and smooth them."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from nilatent.volumes import Grid, average_to_grid

FWHM_BY_SIGMA = float(np.sqrt(8 * np.log(2)))
# Planes worked on at a time where every voxel has its own displacement, so that memory stays small.
SLAB_PLANES = 8


@dataclass(frozen=True, eq=False)
class Warp:
    """A smooth, invertible mapping between affinely aligned brains and the template.

    Parameters
    ----------
    forward : ndarray
        (3, x, y, z) mm (RAS): the template point p belongs to the aligned point p + forward(p).
    inverse : ndarray
        (3, x, y, z) mm (RAS): the aligned point q belongs to the template point q + inverse(q).
    grid : Grid
        Of both.
    """

    forward: npt.NDArray[np.float32]
    inverse: npt.NDArray[np.float32]
    grid: Grid


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


def resample_warped(
    images: Sequence[npt.NDArray[np.float32]],
    affine: npt.NDArray[np.float64],
    grid: Grid,
    *,
    to_grid: npt.NDArray[np.float64],
    warp: Warp,
    modulate: Sequence[bool],
) -> list[npt.NDArray[np.float32]]:
    """Bring maps to the grid through affine and warp in one interpolation, as the mean over each grid voxel.

    Parameters
    ----------
    images : Sequence[ndarray]
        (x, y, z) maps in one space.
    affine : ndarray
        (4, 4) of the maps.
    grid : Grid
        Target.
    to_grid : ndarray
        (4, 4) millimetres of the maps' space to millimetres of the affinely aligned space.
    warp : Warp
        From there to the template.
    modulate : Sequence[bool]
        For each map: multiply by the Jacobian of the whole mapping, so that sum x voxel volume is the same before and
        after (Good et al. 2001), or leave the values their meaning.

    Returns
    -------
    list[ndarray]
        (x, y, z) float32 each.

    References
    ----------
    Good et al. (2001). https://doi.org/10.1006/nimg.2001.0786
    """
    n_sub = max(1, math.ceil(grid.spacing_mm / np.linalg.norm(affine[:3, :3], axis=0).min() - 1e-6))
    to_voxel = np.linalg.inv(to_grid @ affine)
    change = volume_change_of(warp) / volume_change(to_grid)
    moved = [np.empty(grid.shape, dtype=np.float32) for _ in images]
    for first in range(0, grid.shape[0], SLAB_PLANES):
        planes = slice(first, min(first + SLAB_PLANES, grid.shape[0]))
        shape = (planes.stop - planes.start, *grid.shape[1:])
        fine = grid.affine.copy()
        fine[:3, :3] /= n_sub
        fine[:3, 3] += grid.spacing_mm * (np.array([first, 0, 0]) + 0.5 / n_sub - 0.5)
        fine_shape = tuple(side * n_sub for side in shape)
        by_warp = np.linalg.inv(warp.grid.affine) @ fine
        points = _points(fine_shape, fine) + np.stack([_refined(part, by_warp, fine_shape) for part in warp.forward])
        voxels = _through(to_voxel, points)
        jacobian = _refined(change, by_warp, fine_shape)
        for image, out, keeps_volume in zip(images, moved, modulate, strict=True):
            values = ndimage.map_coordinates(image, voxels, order=1, mode="grid-constant", output=np.float32)
            if keeps_volume:
                values *= jacobian
            blocks = values.reshape(shape[0], n_sub, shape[1], n_sub, shape[2], n_sub)
            out[planes] = blocks.mean(axis=(1, 3, 5))
    return moved


def volume_change_of(warp: Warp) -> npt.NDArray[np.float32]:
    """Jacobian determinant of the forward warp, volume in the aligned space by volume in the template; (x, y, z)."""
    slopes = np.stack([np.stack(np.gradient(part, warp.grid.spacing_mm)) for part in warp.forward])
    slopes += np.eye(3, dtype=slopes.dtype)[:, :, None, None, None]
    return np.asarray(np.linalg.det(np.moveaxis(slopes, (0, 1), (-2, -1))), dtype=np.float32)


def _refined(
    part: npt.NDArray[np.float32], to_part: npt.NDArray[np.float64], shape: tuple[int, ...]
) -> npt.NDArray[np.float32]:
    moved = ndimage.affine_transform(part, to_part[:3, :3], to_part[:3, 3], output_shape=shape, order=1, mode="nearest")
    return np.asarray(moved, dtype=np.float32)


def _points(shape: tuple[int, ...], affine: npt.NDArray[np.float64], first: int = 0) -> npt.NDArray[np.float64]:
    """(3, x, y, z) millimetres of every voxel, of which the first plane counts as `first`."""
    voxels = np.indices(shape, dtype=np.float64)
    voxels[0] += first
    return _through(affine, voxels)


def _through(matrix: npt.NDArray[np.floating[Any]], points: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    moved = np.einsum("ij,j...->i...", matrix[:3, :3], points)
    moved += matrix[:3, 3].reshape(3, *[1] * (points.ndim - 1))
    return np.asarray(moved)


def pull(
    images: Sequence[nib.Nifti1Image],
    shape: tuple[int, ...],
    affine: npt.NDArray[np.float64],
    to_template: npt.NDArray[np.float64],
) -> list[npt.NDArray[np.float32]]:
    """Template images as the voxels of a scan see them, by linear interpolation.

    Parameters
    ----------
    images : Sequence[Nifti1Image]
        In template space, all on one grid.
    shape : tuple[int, int, int]
        Voxels of the scan.
    affine : ndarray
        (4, 4) of the scan.
    to_template : ndarray
        (4, 4) millimetres of the scan to millimetres of the template.

    Returns
    -------
    list[ndarray]
        (x, y, z) float32 in the scan's space; 0 outside the image.
    """
    arrays = [np.asarray(image.get_fdata(dtype=np.float32)) for image in images]
    there = np.linalg.inv(images[0].affine) @ to_template @ affine
    return [
        np.asarray(ndimage.affine_transform(array, there[:3, :3], there[:3, 3], output_shape=shape, order=1))
        for array in arrays
    ]


def _template_points(
    shape: tuple[int, ...], affine: npt.NDArray[np.float64], to_template: npt.NDArray[np.float64], warp: Warp
) -> Iterator[tuple[slice, npt.NDArray[np.float64]]]:
    """Where the voxels of a scan lie in the template, in (3, plane, y, z) millimetres, some planes at a time."""
    to_warp = np.linalg.inv(warp.grid.affine)
    for first in range(0, shape[0], SLAB_PLANES):
        planes = slice(first, min(first + SLAB_PLANES, shape[0]))
        aligned = _points((planes.stop - first, *shape[1:]), to_template @ affine, first)
        voxels = _through(to_warp, aligned)
        for axis, part in enumerate(warp.inverse):
            aligned[axis] += ndimage.map_coordinates(part, voxels, order=1, mode="nearest")
        yield planes, aligned


def displacements(
    shape: tuple[int, ...], affine: npt.NDArray[np.float64], to_template: npt.NDArray[np.float64], warp: Warp
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Affine and warp as one displacement field in each direction.

    Parameters
    ----------
    shape : tuple[int, int, int]
        Voxels of the field in the scan's space.
    affine : ndarray
        (4, 4) of that field.
    to_template : ndarray
        (4, 4) millimetres of the scan to millimetres of the affinely aligned space.
    warp : Warp
        From there to the template.

    Returns
    -------
    ndarray
        (3, x, y, z) mm (RAS) on the warp's grid: from each point of the template to its point of the scan.
    ndarray
        (3, x, y, z) mm (RAS): from each point of the scan to its point of the template.
    """
    nodes = _points(warp.grid.shape, warp.grid.affine)
    to_scan = _through(np.linalg.inv(to_template), nodes + warp.forward) - nodes
    out = np.empty((3, *shape), dtype=np.float32)
    for planes, points in _template_points(shape, affine, to_template, warp):
        out[:, planes] = points - _points((planes.stop - planes.start, *shape[1:]), affine, planes.start)
    return to_scan.astype(np.float32), out


def look_up(
    array: npt.NDArray[Any],
    array_affine: npt.NDArray[np.float64],
    shape: tuple[int, ...],
    affine: npt.NDArray[np.float64],
    *,
    order: int,
    displacement: tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]] | None = None,
) -> npt.NDArray[Any]:
    """Values of an image at the voxels of another grid of any orientation.

    Parameters
    ----------
    array : ndarray
        (x, y, z) image.
    array_affine : ndarray
        (4, 4) of the image.
    shape : tuple[int, int, int]
        Voxels of the other grid.
    affine : ndarray
        (4, 4) of the other grid, in the space of the image or, with a displacement, of the displacement.
    order : {0, 1}
        Nearest voxel, of the image's data type; or linear, float32.
    displacement : tuple[ndarray, ndarray], optional
        (3, x, y, z) mm field from the space of the other grid to that of the image, and its affine. There is nothing
        where the field ends.

    Returns
    -------
    ndarray
        0 outside the image.
    """
    dtype = array.dtype if order == 0 else np.float32
    out = np.zeros(shape, dtype=dtype)
    to_array = np.linalg.inv(array_affine)
    for first in range(0, shape[0], SLAB_PLANES):
        planes = slice(first, min(first + SLAB_PLANES, shape[0]))
        points = _points((planes.stop - first, *shape[1:]), affine, first)
        known = None
        if displacement is not None:
            field, field_affine = displacement
            voxels = _through(np.linalg.inv(field_affine), points)
            ends = np.asarray(field.shape[1:]).reshape(3, 1, 1, 1) - 0.5
            known = ((voxels > -0.5) & (voxels < ends)).all(axis=0)
            for axis, part in enumerate(field):
                points[axis] += ndimage.map_coordinates(part, voxels, order=1, mode="nearest")
        values = ndimage.map_coordinates(array, _through(to_array, points), order=order, output=dtype)
        out[planes] = values if known is None else np.where(known, values, 0)
    return out


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
