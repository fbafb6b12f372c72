"""Permutation tests that stop early and stay valid: p-values of Besag and Clifford, alone and with the maximum statistic.

A test stops once `stop_after` permutations have reached the observed value. With h of them in L permutations p is h / L;
a test that is never stopped has p = (1 + b) / (1 + B). P(p <= alpha) <= alpha at every alpha.

With the maximum statistic every column has its own p from the one row of maxima, and columns with larger statistics have
smaller or equal p. The smallest p of the columns without effect therefore belongs to their largest statistic, which is
exchangeable with its own maxima, and the maxima over all columns only raise it: the family-wise error holds, with and
without effects elsewhere. The run ends when the largest statistic has its answer, for then all have theirs.

References
----------
Besag & Clifford 1991, doi:10.1093/biomet/78.2.301. Winkler et al. 2016, doi:10.1016/j.neuroimage.2016.05.068.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from nilatent.analysis import stats
from nilatent.errors import SettingError


@dataclass(frozen=True, eq=False)
class StoppedTest:
    """Correlations tested against the maximum over all pairs, with as many permutations as were needed.

    Parameters
    ----------
    observed : ndarray
        (left, right) partial correlation.
    p_fwe : ndarray
        (left, right) family-wise p-value.
    maxima : ndarray
        (permutation done,) largest absolute correlation of each.
    """

    observed: np.ndarray
    p_fwe: np.ndarray
    maxima: np.ndarray


def sequential_p(observed: np.ndarray, drawn: np.ndarray, *, stop_after: int) -> np.ndarray:
    """Sequential p-value of each observed statistic against one row of permuted ones.

    Parameters
    ----------
    observed : ndarray
        Statistics, of any shape; larger is more extreme.
    drawn : ndarray
        (permutation,) statistics in the order in which they were drawn: all that were asked for, or as many as it took
        until `stop_after` of them reached the largest observed one.
    stop_after : int
        Exceedances that end a test, at least 1; 0 never ends one and gives (1 + b) / (1 + B).

    Returns
    -------
    ndarray
        p in (0, 1], in the shape of `observed`.
    """
    drawn = np.asarray(drawn, dtype=np.float64)
    if stop_after == 0 or len(drawn) < stop_after:
        return stats.max_p(observed, drawn)
    # A value has been reached n times once the n-th largest draw so far reaches it.
    reached_at = _nth_largest(drawn, stop_after)
    length = 1 + np.searchsorted(reached_at, np.asarray(observed, dtype=np.float64) - stats.TIE, side="left")
    return np.where(length <= len(drawn), stop_after / length, stats.max_p(observed, drawn))


def _nth_largest(drawn: np.ndarray, n: int) -> np.ndarray:
    """(draw,) n-th largest of the draws so far; minus infinity while there are fewer than n."""
    found = np.full(len(drawn), -np.inf)
    largest = np.sort(drawn[:n])
    found[n - 1] = largest[0]
    for position in range(n, len(drawn)):
        if drawn[position] > largest[0]:
            largest[0] = drawn[position]
            largest.sort()
        found[position] = largest[0]
    return found


def permuted_maxima(
    left: np.ndarray,
    right: np.ndarray,
    orders: np.ndarray | None,
    *,
    confounds: np.ndarray | None = None,
    flips: np.ndarray | None = None,
    stop_after: int = 0,
    label: str = "",
) -> StoppedTest:
    """Family-wise p-values of partial correlations from the maxima alone, stopped early where asked.

    The statistic and the draws are those of :func:`nilatent.analysis.stats.permuted_correlation`; pairs by themselves get
    no p-value, which spares the count over all pairs.

    Parameters
    ----------
    left, right, orders, confounds, flips, label
        As there.
    stop_after : int
        Exceedances of the largest observed correlation that end the run; 0 does all permutations.

    Returns
    -------
    StoppedTest
        Observed correlations, family-wise p-values and the maxima.

    Raises
    ------
    SettingError
        When `stop_after` is negative, and where :func:`~nilatent.analysis.stats.permuted_correlation` raises.
    """
    if stop_after < 0:
        raise SettingError(f"stop_after is {stop_after}; it counts exceedances, and 0 never stops.")
    basis = stats.confound_basis(confounds, len(left))
    x = stats.unit_residuals(left, basis, what="The left table").astype(np.float32)
    z = stats.unit_residuals(right, basis, what="The right table").astype(np.float32)
    observed = (x.T @ z).astype(np.float64)
    batches = stats.permuted_batches(x, z, basis, orders, flips=flips, label=label)
    maxima = _until_answered(batches, largest=float(np.abs(observed).max()), stop_after=stop_after)
    return StoppedTest(observed, sequential_p(np.abs(observed), maxima, stop_after=stop_after), maxima)


def _until_answered(batches: Iterator[tuple[int, np.ndarray]], *, largest: float, stop_after: int) -> np.ndarray:
    """(permutation,) maxima, up to the one that answers for the largest observed statistic."""
    parts: list[np.ndarray] = []
    reached = 0
    for _, statistic in batches:
        parts.append(np.abs(statistic, out=statistic).max(axis=(0, 2)).astype(np.float64))
        reached += int((parts[-1] >= largest - stats.TIE).sum())
        if 0 < stop_after <= reached:
            break
    maxima: np.ndarray = np.concatenate(parts)
    if 0 < stop_after <= reached:
        maxima = maxima[: 1 + int(np.flatnonzero(maxima >= largest - stats.TIE)[stop_after - 1])]
    return maxima
