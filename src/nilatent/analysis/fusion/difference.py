"""Whether a way of telling a target is better than another one, allowing for folds that share their training scans."""

from dataclasses import replace

import numpy as np

from nilatent.analysis import stats
from nilatent.analysis.prediction.compare import Comparison, compare
from nilatent.analysis.prediction.cv import Told
from nilatent.analysis.prediction.measures import MAIN, from_sums, parts_of_sums
from nilatent.analysis.prediction.targets import Target


def difference(
    target: Target,
    told: Told,
    other: Told,
    *,
    against: str,
    weights: np.ndarray,
    swaps: np.ndarray,
    alpha: float,
) -> Comparison:
    """Compare what two ways told of the same scans.

    Swaps and resamples take the heads as they were fitted, but every two folds share training scans, and two ways that tell
    equally much would be called different far too often. The variance grows by the factor 1 + k / (k - 1) of k folds.

    Parameters
    ----------
    target, told, other, against, weights, swaps, alpha
        As in :func:`~nilatent.analysis.prediction.compare.compare`.

    References
    ----------
    Nadeau & Bengio 2003, doi:10.1023/A:1024068626366.
    """
    found = compare(target, told, other, against=against, weights=weights, swaps=swaps, alpha=alpha)
    n_folds = len(np.unique(told.folds))
    wider = np.sqrt(1 + n_folds / (n_folds - 1))
    low, high = (float(found.difference + wider * (end - found.difference)) for end in (found.low, found.high))
    mine, theirs = (parts_of_sums(target, target.y, one.called[:, 0], one.constant[:, 0]) for one in (told, other))
    moved = swaps @ (theirs - mine)
    here, there = (
        from_sums(sums, target.kind, len(target.levels))[MAIN[target.kind]]
        for sums in (mine.sum(axis=0) + moved, theirs.sum(axis=0) - moved)
    )
    reached = int(np.count_nonzero(wider * np.abs(here - there) >= abs(found.difference) - stats.TIE))
    return replace(found, low=low, high=high, p_value=(1 + reached) / (1 + len(swaps)))
