"""How well a measure repeats: intraclass correlations of visits of the same subject.

References
----------
Shrout & Fleiss 1979, Intraclass correlations. doi:10.1037/0033-2909.86.2.420
"""

import numpy as np

from nilatent.analysis.longitudinal.visits import PER_YEAR, Visits
from nilatent.analysis.mixed import MixedFit

MIN_PAIRS = 10
"""Subjects with two visits close together below which no repeatability is given."""
N_BOOTSTRAP = 1000


def icc_of_model(fit: MixedFit) -> float:
    """Share of the variance at the first visit, beside the fixed effects, that is between subjects."""
    between = float(fit.random[0, 0])
    return between / (between + fit.residual_variance)


def repeats(visits: Visits, *, within_days: float) -> np.ndarray:
    """(pair, 2) rows of the two visits of each subject that lie closest together, where they are close enough.

    Parameters
    ----------
    visits : Visits
        Who was seen when, in years.
    within_days : float
        Largest time between the two.
    """
    near = np.flatnonzero(~visits.first)
    apart = visits.years[near] - visits.years[near - 1]
    order = np.lexsort((near, apart, visits.number[near]))
    near, apart = near[order], apart[order]
    closest = np.r_[True, np.diff(visits.number[near]) > 0] if len(near) else np.zeros(0, dtype=bool)
    second = near[closest & (apart * PER_YEAR["days"] <= within_days + 1e-6)]
    return np.column_stack([second - 1, second])


def icc(first: np.ndarray, second: np.ndarray, *, seed: int) -> np.ndarray:
    """Agreement of two repeats, ICC(2,1), with its percentile bootstrap interval over subjects.

    Parameters
    ----------
    first, second : ndarray
        (subject, measure) the two repeats.
    seed : int
        Of the bootstrap.

    Returns
    -------
    ndarray
        (measure, 3) two-way random, single measure, absolute agreement: a shift from the first repeat to the second counts
        against it. At most 1, and below 0 where subjects are more alike than repeats. NaN where nothing varies.
    """
    n = len(first)
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=N_BOOTSTRAP).astype(np.float64)
    # The mean of each measure is taken away, or squares of large values leave nothing of small differences.
    origin = (first.mean(axis=0) + second.mean(axis=0)) / 2
    first, second = first - origin, second - origin
    seen, drawn = _agreement(np.ones((1, n)), first, second)[0], _agreement(counts, first, second)
    found = np.full((len(seen), 3), np.nan)
    found[:, 0] = seen
    varies = np.isfinite(seen)
    found[varies, 1:] = np.nanquantile(drawn[:, varies], [0.025, 0.975], axis=0).T
    return found


def _agreement(counts: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(draw, measure) ICC(2,1) of two repeats, from how often each subject counts."""
    n = counts.sum(axis=1, keepdims=True)
    half, gap = (first + second) / 2, first - second
    mean, shift = counts @ half / n, counts @ gap / n
    # Mean squares of the two-way table of subjects and two repeats.
    of_subjects = 2 * (counts @ np.square(half) - n * np.square(mean)) / (n - 1)
    of_repeats = n * np.square(shift) / 2
    left = (counts @ np.square(gap) - n * np.square(shift)) / 2 / (n - 1)
    whole = of_subjects + left + 2 * (of_repeats - left) / n
    return np.asarray(np.divide(of_subjects - left, whole, out=np.full(whole.shape, np.nan), where=whole > 0))
