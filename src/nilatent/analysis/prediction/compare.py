"""Whether one feature set predicts better than another: swaps of their predictions by subject, and a bootstrap interval.

References
----------
Good 2005 (paired permutation), doi:10.1007/b138696. Efron 1979 (bootstrap), doi:10.1214/aos/1176344552.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from nilatent.analysis import stats
from nilatent.analysis.prediction.cv import Told
from nilatent.analysis.prediction.measures import MAIN, from_sums, interval, parts_of_sums
from nilatent.analysis.prediction.targets import Target


@dataclass(frozen=True)
class Comparison:
    """Difference of the main measure between two sets on the same scans.

    Parameters
    ----------
    against : str
        Name of the other set.
    difference, low, high : float
        This set less the other, with a percentile interval over subjects; above 0 this set is better.
    p_value : float
        Two-sided, that swapping the predictions of the two sets within subjects gives as large a difference.
    """

    against: str
    difference: float
    low: float
    high: float
    p_value: float


def subject_swaps(subjects: Sequence[object] | np.ndarray, n_swaps: int, *, seed: int) -> np.ndarray:
    """(swap, scan) 0 or 1: whether the predictions of the two sets change places, for all scans of a subject together."""
    codes, names = pd.factorize(np.asarray(subjects))
    return np.asarray(np.random.default_rng(seed).integers(0, 2, (n_swaps, len(names)))[:, codes], dtype=np.float64)


def compare(
    target: Target,
    told: Told,
    other: Told,
    *,
    against: str,
    weights: np.ndarray,
    swaps: np.ndarray,
    alpha: float = 0.05,
) -> Comparison:
    """Compare what two sets told of the same scans.

    Parameters
    ----------
    target : Target
        What was predicted.
    told, other : Told
        Of one column each.
    against : str
        Name of the other set.
    weights : ndarray
        (resample, scan) from :func:`~nilatent.analysis.prediction.measures.subject_weights`.
    swaps : ndarray
        (swap, scan) from :func:`subject_swaps`.
    alpha : float
        The interval covers 1 - alpha.

    Notes
    -----
    Swaps and resamples take the heads as they were fitted, but every two folds share training scans, and two sets that tell
    equally much would be called different too often. The variance grows by the factor 1 + k / (k - 1) of k folds.

    References
    ----------
    Nadeau & Bengio 2003, doi:10.1023/A:1024068626366.
    """
    n_folds = len(np.unique(told.folds))
    wider = float(np.sqrt(1 + n_folds / (n_folds - 1))) if n_folds > 1 else 1.0
    mine, theirs = (parts_of_sums(target, target.y, one.called[:, 0], one.constant[:, 0]) for one in (told, other))

    def apart(ours: np.ndarray, other_sums: np.ndarray) -> np.ndarray:
        both = [from_sums(sums, target.kind, len(target.levels))[MAIN[target.kind]] for sums in (ours, other_sums)]
        return np.asarray(both[0] - both[1])

    observed = float(apart(mine.sum(axis=0)[None], theirs.sum(axis=0)[None])[0])
    ends = interval(apart(weights @ mine, weights @ theirs), alpha)
    low, high = (float(observed + wider * (end - observed)) for end in ends)
    moved = swaps @ (theirs - mine)
    swapped = apart(mine.sum(axis=0) + moved, theirs.sum(axis=0) - moved)
    reached = int(np.count_nonzero(wider * np.abs(swapped) >= abs(observed) - stats.TIE))
    return Comparison(against, observed, low, high, (1 + reached) / (1 + len(swapped)))
