"""Domain shift: how far a new cohort lies from the study whose model and head are used on it.

References
----------
Gretton et al. 2012, A kernel two-sample test. Journal of Machine Learning Research 13, 723-773.
"""

from dataclasses import dataclass

import numpy as np
from scipy.spatial.distance import cdist
from scipy.stats import t as student_t

from nilatent.analysis import stats

MAX_ROWS = 1000
BATCH = 256
LEVEL = 0.95


@dataclass(frozen=True)
class Shift:
    """What is known of the distance between two cohorts; NaN where nothing is.

    Parameters
    ----------
    mmd2 : float
        Unbiased squared maximum mean discrepancy of the latents; about 0 when both are draws of one population.
    p_value : float
        By permutation, one-sided.
    n_study, n_new : int
        Subjects it rests on.
    error_ratio, error_low, error_high : float
        Mean squared reconstruction error of the new subjects over that of the study's held-out ones, and its interval.
    n_error : int
        Held-out subjects of the study behind the error.
    """

    mmd2: float
    p_value: float
    n_study: int
    n_new: int
    error_ratio: float
    error_low: float
    error_high: float
    n_error: int


def mmd(x: np.ndarray, y: np.ndarray, *, n_permutations: int, seed: int) -> tuple[float, float]:
    """Whether two sets of latents come from one population.

    Parameters
    ----------
    x, y : ndarray
        (subject, latent), one row per subject; more than 1000 are thinned.
    n_permutations : int
        How often the two sets are mixed.
    seed : int
        Of the draws.

    Returns
    -------
    float
        Unbiased squared MMD with a Gaussian kernel as wide as the median distance, on latents of unit variance in both sets
        together. NaN when a set has fewer than two rows.
    float
        Permutation p, (1 + b) / (1 + B).

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> mmd(rng.standard_normal((30, 2)), 3 + rng.standard_normal((30, 2)), n_permutations=99, seed=0)[1]
    0.01
    """
    rng = np.random.default_rng(seed)
    x, y = (part if len(part) <= MAX_ROWS else rng.permutation(part)[:MAX_ROWS] for part in (x, y))
    if min(len(x), len(y)) < 2:
        return float("nan"), float("nan")
    pooled = np.vstack([x, y]).astype(np.float64)
    spread = pooled.std(axis=0)
    # Scales, width and all that is learned come from both sets alike, so that mixing them changes nothing of it.
    pooled = (pooled - pooled.mean(axis=0))[:, spread > 0] / spread[spread > 0]
    squared = cdist(pooled, pooled, "sqeuclidean")
    width = float(np.median(squared[np.triu_indices(len(pooled), k=1)]))
    kernel = np.exp(-squared / (2 * width)) if width > 0 else np.ones_like(squared)
    np.fill_diagonal(kernel, 0.0)
    first = np.zeros(len(pooled))
    first[: len(x)] = 1.0
    observed = _mmd2(kernel, first[None])
    drawn = [rng.permuted(np.tile(first, (n, 1)), axis=1) for n in _sizes(n_permutations)]
    null = np.concatenate([_mmd2(kernel, marks) for marks in drawn])
    return float(observed[0]), float(stats.max_p(observed, null)[0])


def _sizes(total: int) -> list[int]:
    return [min(BATCH, total - start) for start in range(0, total, BATCH)]


def _mmd2(kernel: np.ndarray, marks: np.ndarray) -> np.ndarray:
    """(draw,) unbiased squared MMD of a kernel without its diagonal; marks (draw, row) are 1 in the first set."""
    n_first = marks[0].sum()
    n_second = len(kernel) - n_first
    product = marks @ kernel
    within, across = (product * marks).sum(axis=1), (product * (1 - marks)).sum(axis=1)
    other = kernel.sum() - within - 2 * across
    return np.asarray(
        within / (n_first * (n_first - 1)) + other / (n_second * (n_second - 1)) - 2 * across / (n_first * n_second)
    )


def mean_differences(x: np.ndarray, mean: np.ndarray, sd: np.ndarray) -> np.ndarray:
    """Standardised mean difference of each latent: the new subjects' mean less the study's, in SD of the study.

    Parameters
    ----------
    x : ndarray
        (subject, latent) of the new cohort.
    mean, sd : ndarray
        (latent,) of the study.

    Returns
    -------
    ndarray
        (latent,); 0 of a latent that did not vary in the study.
    """
    return np.asarray(np.divide(x.mean(axis=0) - mean, sd, out=np.zeros(len(mean)), where=sd > 0))


def error_ratio(errors: np.ndarray, *, error: float, error_se: float, n_error: int) -> tuple[float, float, float]:
    """Reconstruction error of new subjects over that of the study's held-out ones, with its interval.

    Parameters
    ----------
    errors : ndarray
        (subject,) mean squared error of each new subject.
    error, error_se : float
        Mean over the study's held-out subjects, and its standard error.
    n_error : int
        How many these were.

    Returns
    -------
    tuple[float, float, float]
        Ratio and limits, by the delta method on its logarithm with the degrees of freedom of the smaller set; NaN for what is
        not known.
    """
    ratio = float(errors.mean() / error) if error > 0 else float("nan")
    if not np.isfinite(ratio) or min(len(errors), n_error) < 2:
        return ratio, float("nan"), float("nan")
    own = float(errors.std(ddof=1)) / np.sqrt(len(errors)) / float(errors.mean())
    spread = float(np.hypot(own, error_se / error))
    spread *= float(student_t.ppf((1 + LEVEL) / 2, min(len(errors), n_error) - 1))
    return ratio, ratio * float(np.exp(-spread)), ratio * float(np.exp(spread))
