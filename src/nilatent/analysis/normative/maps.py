"""Maps of z in every voxel of single scans, block by block of voxels, so that no cohort has to fit into memory."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from nilatent.analysis.normative.scans import NormativeConfig, ask, crossfitted
from nilatent.errors import SettingError
from nilatent.progress import track
from nilatent.volumes import Volumes

BLOCK_BYTES = 8 * 2**20
# Voxels in which reference scans differ by less than this share of the median SD are edges, where nothing is expected.
FLAT_SHARE = 0.05


def deviation_maps(
    volumes: Volumes,
    scans: pd.DataFrame,
    folds: npt.NDArray[np.integer],
    config: NormativeConfig,
    *,
    chosen: Sequence[str],
    label: str = "",
) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    """Voxel-wise z of some scans, each from reference scans of the other folds.

    Parameters
    ----------
    volumes : Volumes
        The scans, read from disk block by block of voxels.
    scans : DataFrame
        Index scan_id; ``subject_id`` and the columns named in `config`. Rows join with the volumes by scan_id.
    folds : ndarray
        (scan,) fold of each row of `scans`.
    config : NormativeConfig
        Settings.
    chosen : Sequence[str]
        Scans to map, such as ``finding.settings["mapped"]``; one that cannot be judged is passed over.
    label : str
        What to call this work when its progress is shown; empty shows none.

    Yields
    ------
    scan_id : str
        One of `chosen`, in their order.
    z : ndarray
        (voxel in mask,) float32: standard normal in a new reference subject, without correction for the number of voxels;
        0 where reference scans hardly differ. All maps are in memory at once: 4 bytes per voxel and scan.

    Raises
    ------
    SettingError
        When a chosen scan is not in the cohort, and as :func:`~nilatent.analysis.normative.scans.ask`.
    GridError
        When a scan is not in the volumes.
    """
    absent = [name for name in chosen if name not in scans.index]
    if absent:
        raise SettingError(f"Scan {absent[0]} is not in the cohort, so it has no map. Choose scans of the cohort.")
    asked = ask(scans, folds, config)
    wanted = scans.index.isin(list(chosen))
    needed = np.flatnonzero(wanted | asked.fitted)
    rows = volumes.rows(list(scans.index[needed]))
    n_voxels = int(volumes.mask.sum())
    z = np.full((len(scans.index[wanted]), n_voxels), np.nan, dtype=np.float32)
    place = np.cumsum(wanted) - 1
    fold_sd = {fold: np.zeros(n_voxels) for fold in np.unique(asked.folds)}
    width = max(1, BLOCK_BYTES // (8 * len(scans)))
    starts = range(0, n_voxels, width)
    for start in track(starts, total=len(starts), label=label) if label else starts:
        stop = min(start + width, n_voxels)
        values = np.full((len(scans), stop - start), np.nan)
        values[needed] = volumes.block(rows, start, stop)
        for judged, found in crossfitted(values, asked):
            kept = wanted[judged]
            z[place[judged[kept]], start:stop] = found.z[kept]
            fold_sd[asked.folds[judged[0]]][start:stop] = found.sd
    for name in chosen:
        row = scans.index.get_loc(name)
        one, sd = z[place[row]], fold_sd[asked.folds[row]]
        if np.isfinite(one).any():
            clear = sd > FLAT_SHARE * np.nanmedian(sd[sd > 0]) if (sd > 0).any() else np.zeros(n_voxels, dtype=bool)
            yield str(name), np.where(clear & np.isfinite(one), one, np.float32(0))
