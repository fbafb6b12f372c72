"""Homogeneity: how much each prepared map is like the other maps of its data set."""

from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pandas as pd

from nilatent.volumes import template_array

# Coarse enough that 2,000 scans fit into memory; neighbouring voxels still tell two brains apart.
COARSE_MM = 6.0


def homogeneity(paths: Sequence[Path], groups: pd.Series) -> npt.NDArray[np.float64]:
    """Mean correlation of every map with the maps of the other scans of its group: low when something is wrong with it.

    Parameters
    ----------
    paths : Sequence[Path]
        Maps on one grid; they are read one by one, and averaged to about 6 mm.
    groups : Series
        Data set of each.

    Returns
    -------
    ndarray
        (scan,) in [-1, 1]; NaN where a scan is alone.

    References
    ----------
    Gaser et al. (2024). https://doi.org/10.1093/gigascience/giae049
    """
    found = np.full(len(paths), np.nan)
    for _, rows in groups.reset_index(drop=True).groupby(groups.to_numpy()):
        found[rows.index] = mean_correlation(np.stack([_coarse(paths[row]) for row in rows.index]))
    return found


def _coarse(path: Path) -> npt.NDArray[np.float32]:
    image = nib.load(path)
    spacing_mm = float(image.header.get_zooms()[0])
    step = max(1, round(COARSE_MM / spacing_mm))
    inside = _blocks(template_array("mask", spacing_mm), step) > 0.5
    return _blocks(image.get_fdata(dtype=np.float32), step)[inside]


def _blocks(values: npt.NDArray[np.float32], step: int) -> npt.NDArray[np.float32]:
    x, y, z = (side // step for side in values.shape)
    blocks = values[: x * step, : y * step, : z * step].reshape(x, step, y, step, z, step)
    return np.asarray(blocks.mean(axis=(1, 3, 5)), dtype=np.float32)


def mean_correlation(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Mean of each row's correlations with the other rows, without the matrix of all pairs.

    Parameters
    ----------
    rows : ndarray
        (scan, voxel).

    Returns
    -------
    ndarray
        (scan,); a constant row correlates 0 with everything, a single row gives NaN.
    """
    if len(rows) < 2:
        return np.full(len(rows), np.nan)
    away = rows - rows.mean(axis=1, keepdims=True, dtype=np.float64).astype(np.float32)
    length = np.sqrt(np.einsum("ij,ij->i", away, away, dtype=np.float64))[:, None]
    unit = np.divide(away, length, out=np.zeros_like(away), where=length > 0).astype(np.float32)
    # The sum over the others is the sum over all, less the row itself.
    own = np.einsum("ij,ij->i", unit, unit, dtype=np.float64)
    return np.asarray((unit @ unit.sum(axis=0, dtype=np.float64) - own) / (len(rows) - 1))
