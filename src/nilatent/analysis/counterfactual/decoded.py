"""Images of scans as they are and as they would be, read out region by region as they come: none is kept."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import sparse

from nilatent.analysis.counterfactual.change import Change
from nilatent.analysis.counterfactual.shift import shift
from nilatent.analysis.latent_space import LatentSpace
from nilatent.atlas import RegionWeights
from nilatent.volumes import Volumes

DOSES = (-1.0, 0.5, 1.0, 2.0)
"""Multiples of the change that is asked; the first shows how far the decoder is from linear."""
MAX_CANDIDATES = 200
MOST_CANDIDATES = 1000
"""Of more scans that are judged, each is sought among so many, spread over all, and itself."""
# Scans about which the decoder is made linear, spread over those that are judged: this many, and more where there are few
# coordinates, up to this many steps to either side.
N_PLACES, N_STEPS = 4, 256


@dataclass(frozen=True, eq=False)
class Decoded:
    """What a change does to the scans of one latent space that are judged.

    Parameters
    ----------
    dosed : ndarray
        (dose, scan, readout) change of every readout at :data:`DOSES`; NaN where a category cannot be dosed.
    difference : ndarray
        (voxel,) mean over scans of the image at dose 1 minus the image now.
    own_now, own_changed : ndarray
        (scan,) bool: of all candidates, the scan's own image is the nearest to its image now, and to the changed one.
    n_candidates : int
        Images among which it is sought, at most one more than :data:`MOST_CANDIDATES`.
    """

    dosed: np.ndarray
    difference: np.ndarray
    own_now: np.ndarray
    own_changed: np.ndarray
    n_candidates: int

    @property
    def effect(self) -> np.ndarray:
        """(scan, readout) at dose 1."""
        return np.asarray(self.dosed[DOSES.index(1.0)])


def readout_matrix(weights: RegionWeights, voxel_ml: float) -> sparse.csr_matrix:
    """(readout, voxel) mean of every region, and last the total in millilitres."""
    mean = sparse.diags(1.0 / weights.n_voxels) @ weights.matrix
    return sparse.vstack([mean, np.full((1, weights.matrix.shape[1]), voxel_ml)]).tocsr()


def true_readouts(
    volumes: Volumes, rows: np.ndarray, readout: sparse.csr_matrix, *, batch_size: int = 64
) -> np.ndarray:
    """(row, readout) of the scans themselves."""
    parts = (volumes.masked(rows[start : start + batch_size]) for start in range(0, len(rows), batch_size))
    return np.concatenate([(readout @ part.T.astype(np.float64)).T for part in parts])


def decode(
    space: LatentSpace,
    scans: pd.DataFrame,
    rows: np.ndarray,
    change: Change,
    readout: sparse.csr_matrix,
    images_of: Callable[[np.ndarray], np.ndarray],
    sought: np.ndarray,
    *,
    others: Sequence[str],
    site: str,
) -> Decoded:
    """Draw scans now and changed.

    Parameters
    ----------
    space, scans, others, site
        As in :func:`nilatent.analysis.counterfactual.shift.shift`.
    rows : ndarray
        (scan,) numbers of scans of the space.
    change : Change
        What changes.
    readout : csr_matrix
        (readout, voxel).
    images_of : Callable
        Numbers of scans of the space to their true images, (scan, voxel).
    sought : ndarray
        (candidate,) numbers of scans that the space has not seen, among which each scan is sought; it belongs to them
        whether it is named or not.

    Returns
    -------
    Decoded
        Of the scans in order; an image is kept for as long as its batch.
    """
    count, width = len(rows), readout.shape[0]
    dosed, read = np.full((len(DOSES), count, width), np.nan), np.empty((count, width))
    difference, is_own = np.zeros(readout.shape[1]), np.zeros((2, count), dtype=bool)
    candidates = images_of(sought)
    size = np.square(candidates).sum(axis=1, dtype=np.float64)
    moves = _moves(space, scans, rows, change, 1.0, others=others, site=site)
    start = 0
    for now, changed in zip(space.moved(rows, *shift(space, scans, rows, {})), space.moved(rows, *moves), strict=True):
        batch = slice(start, start + len(now))
        delta = changed.astype(np.float64) - now
        read[batch], dosed[DOSES.index(1.0), batch] = (readout @ now.T).T, (readout @ delta.T).T
        difference += delta.sum(axis=0)
        is_own[:, batch] = [
            _is_nearest(image, candidates, size, images_of, rows[batch], sought) for image in (now, changed)
        ]
        start += len(now)
    for number, dose in enumerate(DOSES):
        if dose == 1 or (change.levels is not None and change.column in space.told):
            continue
        moves = _moves(space, scans, rows, change, dose, others=others, site=site)
        dosed[number] = np.concatenate([(readout @ batch.T).T for batch in space.moved(rows, *moves)]) - read
    return Decoded(dosed, difference / count, is_own[0], is_own[1], len(sought) + (not np.isin(rows, sought).all()))


def _is_nearest(
    drawn: np.ndarray,
    candidates: np.ndarray,
    size: np.ndarray,
    images_of: Callable[[np.ndarray], np.ndarray],
    rows: np.ndarray,
    sought: np.ndarray,
) -> np.ndarray:
    """(scan,) bool: of the candidates and the scan itself, the scan itself is nearest to what was drawn of it."""
    apart = size - 2 * drawn @ candidates.T
    found = sought[apart.argmin(axis=1)] == rows
    absent = np.flatnonzero(~np.isin(rows, sought))
    if len(absent):
        own = images_of(rows[absent])
        to_own = np.square(own).sum(axis=1, dtype=np.float64) - 2 * np.einsum("sv,sv->s", drawn[absent], own)
        found[absent] = to_own < apart[absent].min(axis=1)
    return np.asarray(found)


def example(
    space: LatentSpace, scans: pd.DataFrame, row: int, change: Change, *, others: Sequence[str], site: str
) -> tuple[np.ndarray, np.ndarray]:
    """(voxel,) images of one scan now and changed."""
    rows = np.array([row])
    now = np.concatenate(list(space.moved(rows, *shift(space, scans, rows, {}))))[0]
    moves = _moves(space, scans, rows, change, 1.0, others=others, site=site)
    return now, np.concatenate(list(space.moved(rows, *moves)))[0]


def jacobian(space: LatentSpace, scans: pd.DataFrame, rows: np.ndarray, readout: sparse.csr_matrix) -> np.ndarray:
    """(readout, coordinate) by which a readout changes per unit of a coordinate, the mean over a few of the scans.

    Central differences of half a standard deviation of the training scans to either side.
    """
    width = len(space.names)
    n_places = max(N_PLACES, N_STEPS // width)
    places = rows[np.unique(np.linspace(0, len(rows) - 1, n_places).round().astype(int))]
    half = np.maximum(0.5 * space.coordinates[space.training].std(axis=0), np.finfo(np.float32).eps)
    sides = np.concatenate([np.diag(half), -np.diag(half)])
    repeated, steps = np.repeat(places, 2 * width), np.tile(sides, (len(places), 1))
    _, told = shift(space, scans, repeated, {})
    read = np.concatenate([(readout @ batch.T).T for batch in space.moved(repeated, steps, told)])
    up, down = read.reshape(len(places), 2, width, -1).mean(axis=0)
    return np.asarray(((up - down) / (2 * half)[:, None]).T, dtype=np.float64)


def _moves(
    space: LatentSpace,
    scans: pd.DataFrame,
    rows: np.ndarray,
    change: Change,
    dose: float,
    *,
    others: Sequence[str],
    site: str,
) -> tuple[np.ndarray, pd.DataFrame | None]:
    steps, told = shift(space, scans, rows, {change.column: change.value(dose)}, others=others, site=site)
    # A level is left once; part of the way to another is the same part of the step.
    return (steps if change.levels is None else dose * steps), told
