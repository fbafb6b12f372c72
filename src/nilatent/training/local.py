"""Principal components of blocks of voxels: what a latent grid starts as."""

import numpy as np
import numpy.typing as npt
import torch

from nilatent.models import LocalStart
from nilatent.volumes import Volumes, VoxelPca

MAX_SCANS = 1000
"""A block has few components; more scans than these, at even steps, would not move them."""
SMALLEST = 1e-6
"""Share of a block's variance under which a component is rounding."""


def local_start(
    volumes: Volumes,
    rows: npt.NDArray[np.integer],
    cell: npt.NDArray[np.integer],
    *,
    known: VoxelPca,
    n_channels: int,
    n_cells: int,
    told: npt.NDArray[np.float32] | None = None,
) -> LocalStart:
    """Components of the blocks that the voxels of each cell are.

    Parameters
    ----------
    volumes : Volumes
        The scans.
    rows : ndarray
        Rows of the training scans; no other scan is touched.
    cell : ndarray
        (voxel,) cell of each voxel inside the mask. The first axis of the volume is the slowest of the cells too, so that
        voxels of one layer of cells lie together.
    known : VoxelPca
        Mean image of these scans, and what conditions add to it.
    n_channels : int
        Components per block, fewer where the block or the scans have less to give.
    n_cells : int
        Cells of the latent grid.
    told : ndarray, optional
        (scan, condition) for all scans of `volumes`.

    Returns
    -------
    LocalStart
        Each component's largest weight is positive, so the sign does not depend on the machine.
    """
    chosen = rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), MAX_SCANS)).round().astype(int))]
    components = np.zeros((n_channels, len(cell)), dtype=np.float32)
    sd = np.zeros((n_channels, n_cells), dtype=np.float32)
    left = 0.0
    for first, last in _layers(cell):
        x = volumes.block(chosen, first, last).astype(np.float64) - known.mean[first:last]
        if told is not None:
            x -= told[chosen] @ known.slopes[:, first:last]
        order = np.argsort(cell[first:last], kind="stable")
        found, begins = np.unique(cell[first:last][order], return_index=True)
        for number, voxels in zip(found, np.split(order, begins[1:]), strict=True):
            weights, spread, missed = _components(x[:, voxels], n_channels)
            components[: len(weights), first + voxels] = weights
            sd[: len(spread), number] = spread
            left += missed
    return LocalStart(torch.from_numpy(components), torch.from_numpy(sd), left / len(cell))


def _layers(cell: npt.NDArray[np.integer]) -> list[tuple[int, int]]:
    """Runs of voxels, as short as can be, that share no cell with the voxels before or after them."""
    reached = np.maximum.accumulate(cell)
    ahead = np.minimum.accumulate(cell[::-1])[::-1]
    cuts = (np.flatnonzero(ahead[1:] > reached[:-1]) + 1).tolist()
    return list(zip([0, *cuts], [*cuts, len(cell)], strict=True))


def _components(
    x: npt.NDArray[np.float64], n_wanted: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], float]:
    """Components (component, voxel) of scans (scan, voxel), the SD of their scores, and the variance left over the voxels."""
    x = x - x.mean(axis=0)
    n_scans, n_voxels = x.shape
    by_scan = n_scans < n_voxels
    values, vectors = np.linalg.eigh(x @ x.T if by_scan else x.T @ x)
    n_found = min(n_wanted, n_scans - 1, n_voxels)
    values, vectors = values[::-1][:n_found], vectors[:, ::-1][:, :n_found]
    kept = values > SMALLEST * float(np.square(x).sum())
    values, vectors = values[kept], vectors[:, kept]
    weights = (vectors / np.sqrt(values)).T @ x if by_scan else vectors.T
    weights = weights * np.sign(weights[np.arange(len(weights)), np.abs(weights).argmax(axis=1)])[:, None]
    missed = max(float(np.square(x).sum() - values.sum()), 0.0)
    degrees = max(n_scans - 1, 1)
    return weights, np.sqrt(values / degrees), missed / degrees
