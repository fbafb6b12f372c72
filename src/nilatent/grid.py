"""Grid: the voxel grid that all scans share, the template on it, and the mask that the template gives."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from scipy import ndimage, sparse

from nilatent.errors import GridError, SettingError

TEMPLATES = ("t1", "gm", "wm", "csf", "mask")
# The box that holds the template brain with a margin, in mm; every side is a multiple of eight voxels at 1-4 mm.
BOX_MM = (160.0, 192.0, 160.0)
CENTRE_MM = (0.0, -17.0, 5.0)
# Grey-matter prior above which a voxel belongs to the mask: a fixed mask, so no scan of the test part shapes it.
GM_PRIOR_IN_MASK = 0.05


@dataclass(frozen=True, eq=False)
class Grid:
    """A regular, RAS-oriented, isotropic voxel grid.

    Parameters
    ----------
    shape : tuple[int, int, int]
        Voxels along left-right, posterior-anterior and inferior-superior.
    affine : ndarray
        (4, 4) voxel indices to millimetres.
    """

    shape: tuple[int, int, int]
    affine: npt.NDArray[np.float64]

    def __post_init__(self) -> None:
        """Refuse a grid that is rotated, flipped or anisotropic."""
        matrix = np.asarray(self.affine, dtype=float)
        if matrix.shape != (4, 4) or len(self.shape) != 3 or min(self.shape) < 1:
            raise GridError(f"A grid has three sides and a 4x4 affine, got sides {self.shape} and {matrix.shape}.")
        object.__setattr__(self, "affine", matrix)
        spacing = matrix[0, 0]
        if spacing <= 0 or not np.allclose(matrix[:3, :3], spacing * np.eye(3), atol=1e-4):
            raise GridError(f"A grid is RAS and isotropic; this one has the affine {matrix[:3, :3].tolist()}.")

    @staticmethod
    def mni(spacing_mm: float) -> "Grid":
        """The MNI152 grid at a spacing of 1 to 6 mm.

        Parameters
        ----------
        spacing_mm : float
            Voxel size.

        Returns
        -------
        Grid
            Covers the template brain; side lengths are multiples of eight.

        Raises
        ------
        SettingError
            When the spacing is out of range.

        Examples
        --------
        >>> Grid.mni(4.0).shape
        (40, 48, 40)
        """
        if not 1.0 <= spacing_mm <= 6.0:
            raise SettingError(f"spacing_mm is between 1 and 6, got {spacing_mm}. Usual values are 1, 2, 3 and 4.")
        shape = tuple(math.ceil(side / spacing_mm / 8 - 1e-9) * 8 for side in BOX_MM)
        affine = np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0])
        affine[:3, 3] = np.asarray(CENTRE_MM) - spacing_mm * (np.asarray(shape) - 1) / 2
        return Grid((shape[0], shape[1], shape[2]), affine)

    @property
    def spacing_mm(self) -> float:
        """Voxel size in millimetres."""
        return float(self.affine[0, 0])

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in millilitres."""
        return self.spacing_mm**3 / 1000

    def to_image(self, array: npt.NDArray[Any], dtype: npt.DTypeLike = np.float32) -> nib.Nifti1Image:
        """A NIfTI image of an array on this grid.

        Raises
        ------
        GridError
            When the array has another shape.
        """
        if tuple(array.shape) != self.shape:
            raise GridError(f"The array has shape {tuple(array.shape)}, the grid {self.shape}.")
        image = nib.Nifti1Image(np.asarray(array, dtype=dtype), self.affine)
        image.header.set_xyzt_units("mm")
        image.set_sform(self.affine, code="mni")
        image.set_qform(self.affine, code="mni")
        return image

    def check_same(self, shape: Sequence[int], affine: npt.NDArray[Any], *, place: str) -> None:
        """Refuse an image that is not on this grid.

        Raises
        ------
        GridError
            Names the place and both grids.
        """
        if tuple(shape) != self.shape or not np.allclose(affine, self.affine, atol=1e-3):
            raise GridError(
                f"{place} is on a {'x'.join(map(str, shape))} grid with origin {np.round(affine[:3, 3], 1).tolist()}; "
                f"expected {'x'.join(map(str, self.shape))} at {self.spacing_mm:g} mm with origin "
                f"{np.round(self.affine[:3, 3], 1).tolist()}. Run `nilatent prepare` on it with this spacing."
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"shape": list(self.shape), "affine": self.affine.tolist(), "space": "MNI152NLin2009aSym"}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> "Grid":
        """The grid that :meth:`to_dict` described."""
        shape = values["shape"]
        return Grid((int(shape[0]), int(shape[1]), int(shape[2])), np.asarray(values["affine"], dtype=float))


@cache
def _template_at_1mm(name: str) -> nib.Nifti1Image:
    # nilearn is slow to import and not every reader of volumes needs the template.
    from nilearn import datasets

    if name == "t1":
        return datasets.load_mni152_template(resolution=1)
    if name == "mask":
        return datasets.load_mni152_brain_mask(resolution=1)
    if name in ("gm", "wm"):
        load = datasets.load_mni152_gm_template if name == "gm" else datasets.load_mni152_wm_template
        return load(resolution=1)
    mask, grey, white = (_template_at_1mm(part).get_fdata(dtype=np.float32) for part in ("mask", "gm", "wm"))
    return nib.Nifti1Image(np.clip(mask - grey - white, 0, 1), _template_at_1mm("mask").affine)


def template(name: str, grid: Grid | None = None) -> nib.Nifti1Image:
    """The MNI152 2009a template that comes with nilearn: T1, tissue priors or brain mask.

    Parameters
    ----------
    name : str
        ``"t1"`` (brain only), ``"gm"``, ``"wm"``, ``"csf"`` (mask minus both) or ``"mask"``.
    grid : Grid, optional
        Resample to this grid by averaging over each voxel; without it, the 1 mm original.

    Returns
    -------
    Nifti1Image
        Float32, in [0, 1]; the mask at a coarse grid holds the fraction of the voxel inside the brain.

    Raises
    ------
    SettingError
        For another name.

    References
    ----------
    Fonov et al. (2011). https://doi.org/10.1016/j.neuroimage.2010.07.033
    """
    if name not in TEMPLATES:
        raise SettingError(f"The template is one of {', '.join(TEMPLATES)}, got '{name}'.")
    source = _template_at_1mm(name)
    array = source.get_fdata(dtype=np.float32)
    if name == "t1":
        array = array / array.max()
    if grid is None:
        return nib.Nifti1Image(array.astype(np.float32), source.affine)
    return grid.to_image(average_to_grid(array, source.affine, grid))


@cache
def template_array(name: str, spacing_mm: float) -> npt.NDArray[np.float32]:
    """Values of :func:`template` on the MNI grid of a spacing, kept in memory; (x, y, z) float32, read-only."""
    values = np.asarray(template(name, Grid.mni(spacing_mm)).get_fdata(dtype=np.float32))
    values.flags.writeable = False
    return values


def average_to_grid(array: npt.NDArray[Any], affine: npt.NDArray[Any], grid: Grid) -> npt.NDArray[np.float32]:
    """Mean of an image over every voxel of a grid, by sampling each voxel densely and averaging.

    Parameters
    ----------
    array : ndarray
        (x, y, z) image; 0 is assumed outside.
    affine : ndarray
        (4, 4) of the image.
    grid : Grid
        Target.

    Returns
    -------
    ndarray
        On the grid; the integral of the image is kept to the accuracy of the sampling.
    """
    source_spacing = float(np.linalg.norm(np.asarray(affine)[:3, :3], axis=0).min())
    n_sub = max(1, math.ceil(grid.spacing_mm / source_spacing - 1e-6))
    fine = grid.affine.copy()
    fine[:3, :3] /= n_sub
    fine[:3, 3] -= grid.spacing_mm / 2 * (1 - 1 / n_sub)
    to_source = np.linalg.inv(affine) @ fine
    if np.allclose(to_source[:3, :3], np.diag(np.diag(to_source[:3, :3])), atol=1e-9):
        return _average_along_axes(np.asarray(array, dtype=np.float32), to_source, grid, n_sub)
    shape = tuple(side * n_sub for side in grid.shape)
    sampled = ndimage.affine_transform(
        np.asarray(array, dtype=np.float32),
        to_source[:3, :3],
        to_source[:3, 3],
        output_shape=shape,
        order=1,
        mode="grid-constant",  # plain "constant" drops the outer half of the voxels at the edge
    )
    x, y, z = grid.shape
    return np.asarray(sampled.reshape(x, n_sub, y, n_sub, z, n_sub).mean(axis=(1, 3, 5)), dtype=np.float32)


def _average_along_axes(
    array: npt.NDArray[np.float32], to_source: npt.NDArray[np.float64], grid: Grid, n_sub: int
) -> npt.NDArray[np.float32]:
    """The same mean when the axes of image and grid are parallel: one axis after the other, which is much faster."""
    moved = array
    for axis, n_out in enumerate(grid.shape):
        n_in = moved.shape[axis]
        positions = to_source[axis, axis] * np.arange(n_out * n_sub) + to_source[axis, 3]
        before = np.floor(positions).astype(int)
        share = positions - before
        rows = np.tile(np.arange(n_out * n_sub) // n_sub, 2)
        columns, weights = np.concatenate([before, before + 1]), np.concatenate([1 - share, share]) / n_sub
        inside = (columns >= 0) & (columns < n_in)
        # A sparse product adds in one order on any machine; a dense one depends on the number of threads.
        average = sparse.csr_array((weights[inside].astype(np.float32), (rows[inside], columns[inside])), (n_out, n_in))
        front = np.moveaxis(moved, axis, 0)
        product = average @ np.ascontiguousarray(front).reshape(n_in, -1)
        moved = np.moveaxis(product.reshape(n_out, *front.shape[1:]), 0, axis)
    return np.ascontiguousarray(moved, dtype=np.float32)


def brain_mask(grid: Grid) -> npt.NDArray[np.bool_]:
    """Voxels of a grid that lie at least by half inside the template's brain."""
    return np.asarray(template("mask", grid).get_fdata(dtype=np.float32) > 0.5)


def gm_mask(grid: Grid) -> npt.NDArray[np.bool_]:
    """Voxels of a grid where grey matter can be, from the template alone."""
    return np.asarray(template("gm", grid).get_fdata(dtype=np.float32) > GM_PRIOR_IN_MASK)
