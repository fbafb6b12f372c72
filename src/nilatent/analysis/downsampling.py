"""Down-sampling: what the same number of values keeps of a scan when they are averages of blocks."""

from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt

from nilatent.analysis.separable import Matrices, along_axes
from nilatent.errors import SettingError

Sides = tuple[int, ...]
BATCH = 4


@dataclass(frozen=True, eq=False)
class Downsampling:
    """Averages over a coarse grid inside a mask, and the way back by trilinear interpolation.

    The box around the mask is cut into ``shape`` equal cells. A cell's value is the mean over the mask inside it, a voxel
    that lies in two cells counting by its share in each; a cell without mask has no value. Back on the fine grid a voxel is
    the trilinear interpolation between the centres of the cells around it, over those that have a value; beyond the
    outermost centres the nearest value holds. It learns nothing: the mask is all it knows.

    Parameters
    ----------
    mask : ndarray
        (x, y, z) bool.
    box : tuple of slice
        Of the mask.
    shape : tuple[int, ...]
        Cells per axis.
    n_values : int
        Cells that hold some of the mask: how many values a scan is reduced to.
    average, interpolate : Sequence of ndarray
        Per axis (cell, voxel) overlaps in voxels, and (voxel, cell) weights with sum 1.
    """

    mask: npt.NDArray[np.bool_]
    box: tuple[slice, slice, slice]
    shape: Sides
    n_values: int
    average: Matrices
    interpolate: Matrices

    def reconstruct(self, scans: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Reduce masked scans (scan, voxel) and draw them again.

        Examples
        --------
        >>> mask = np.ones((4, 4, 4), dtype=bool)
        >>> float(downsampling(mask, 1).reconstruct(np.arange(64, dtype=np.float32)[None])[0, 5])
        31.5
        """
        inside = self.mask[self.box]
        covered = along_axes(inside[None].astype(np.float32), self.average)
        has_value = covered > 0
        reached = along_axes(has_value.astype(np.float32), self.interpolate)[:, inside]
        drawn = np.empty(scans.shape, dtype=np.float32)
        for start in range(0, len(scans), BATCH):
            some = slice(start, min(start + BATCH, len(scans)))
            volumes = np.zeros((some.stop - start, *inside.shape), dtype=np.float32)
            volumes[:, inside] = scans[some]
            sums = along_axes(volumes, self.average)
            values = np.divide(sums, covered, out=np.zeros_like(sums), where=has_value)
            drawn[some] = along_axes(values, self.interpolate)[:, inside] / reached
        return drawn


def downsampling(mask: npt.NDArray[np.bool_], n_values: int) -> Downsampling:
    """The finest coarse grid with at most so many values inside a mask.

    Parameters
    ----------
    mask : ndarray
        (x, y, z) bool.
    n_values : int
        Values of a scan, at least 1; with as many as the mask has voxels, every voxel is kept.

    Returns
    -------
    Downsampling
        Its cells are as near to cubes as whole numbers of cells per axis allow.

    Raises
    ------
    SettingError
        When there is no value or no mask.
    """
    inside = np.asarray(mask, dtype=bool)
    if n_values < 1 or not inside.any():
        raise SettingError(
            f"Down-sampling to {n_values} values inside a mask of {int(inside.sum())} voxels is not possible. Give at "
            "least one value and one voxel."
        )
    corners = [(int(axis.min()), int(axis.max()) + 1) for axis in np.nonzero(inside)]
    (left, right), (back, front), (low, high) = corners
    box = (slice(left, right), slice(back, front), slice(low, high))
    boxed = inside[box]
    sides = boxed.shape
    shape = _finest(boxed, n_values)
    average = [_overlap(side, cells) for side, cells in zip(sides, shape, strict=True)]
    interpolate = [_linear(side, cells) for side, cells in zip(sides, shape, strict=True)]
    return Downsampling(inside, box, shape, _n_held(boxed, shape), average, interpolate)


def _finest(boxed: npt.NDArray[np.bool_], n_values: int) -> Sides:
    """Cells per axis: the finest near-cubes that are few enough, then one more wherever the longest edge allows it."""
    sides = boxed.shape
    edges = sorted({side / cells for side in sides for cells in range(1, side + 1)})
    shapes = [tuple(min(max(round(side / edge), 1), side) for side in sides) for edge in edges]
    for shape in dict.fromkeys([*shapes, (1, 1, 1)]):
        # Cells that hold the mask cover at least its volume, so too fine a grid is known without counting.
        if boxed.sum() * prod(shape) <= n_values * prod(sides) and _n_held(boxed, shape) <= n_values:
            break
    while True:
        longest_first = sorted(range(3), key=lambda axis: -sides[axis] / shape[axis])
        finer = [tuple(cells + (axis == more) for axis, cells in enumerate(shape)) for more in longest_first]
        fitting = [
            tried
            for tried in finer
            if all(cells <= side for cells, side in zip(tried, sides, strict=True))
            and _n_held(boxed, tried) <= n_values
        ]
        if not fitting:
            return shape
        shape = fitting[0]


def _n_held(boxed: npt.NDArray[np.bool_], shape: Sides) -> int:
    """Cells that hold some of the mask."""
    average = [_overlap(side, cells) for side, cells in zip(boxed.shape, shape, strict=True)]
    return int((along_axes(boxed[None].astype(np.float32), average) > 0).sum())


def _overlap(side: int, cells: int) -> npt.NDArray[np.float32]:
    """(cell, voxel) length that each cell shares with each voxel, in voxels."""
    edges, voxels = np.arange(cells + 1) * side / cells, np.arange(side)
    shared = np.minimum(edges[1:, None], voxels + 1) - np.maximum(edges[:-1, None], voxels)
    # What rounding leaves at an edge that two voxels share is no overlap.
    return np.where(shared > 1e-9, shared, 0.0).astype(np.float32)


def _linear(side: int, cells: int) -> npt.NDArray[np.float32]:
    """(voxel, cell) weights of linear interpolation between the centres of the cells."""
    place = np.clip((np.arange(side) + 0.5) * cells / side - 0.5, 0, cells - 1)
    weights = np.maximum(1 - np.abs(place[:, None] - np.arange(cells)), 0.0)
    return np.asarray(weights, dtype=np.float32)
