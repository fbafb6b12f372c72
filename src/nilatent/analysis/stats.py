"""Permutation inference, multiplicity and resampling: the statistics every analysis shares.

Permutations are batched matrix products on standardised residuals. A permutation p-value is (1 + b) / (1 + B), so
it is never zero and stays valid for any number B of permutations.

References
----------
Freedman & Lane 1983, doi:10.1080/07350015.1983.10509354. Winkler et al. 2014, doi:10.1016/j.neuroimage.2014.01.060.
Phipson & Smyth 2010, doi:10.2202/1544-6115.1585. Westfall & Young 1993 (max-statistic). Benjamini & Hochberg 1995,
doi:10.1111/j.2517-6161.1995.tb02031.x.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control
from scipy.stats import t as student_t

from nilatent.analysis.residuals import (
    check_finite,
    confound_basis,
    partial_correlation,
    residualise,
    unit_residuals,
    varying,
)
from nilatent.errors import SettingError
from nilatent.progress import track

# Analyses have one door to the statistics, this file.
__all__ = [
    "CorrelationTest",
    "ShareTest",
    "bootstrap_ratio",
    "check_finite",
    "confound_basis",
    "correlation_p",
    "fdr",
    "max_p",
    "n_draws",
    "partial_correlation",
    "permutations",
    "permuted_batches",
    "permuted_correlation",
    "permuted_r2",
    "permuted_share",
    "residualise",
    "unit_residuals",
    "varying",
]

# Observed and permuted statistics come from different matrix products; a tie must count as a tie in float32 too.
TIE = 2e-6
# Shuffled columns of one matrix product: larger ones leave the cache, and gathering them then costs as much as the product.
BATCH_BYTES = 4 * 2**20


@dataclass(frozen=True, eq=False)
class CorrelationTest:
    """Partial correlations of every left column with every right column, and their permutation p-values.

    Parameters
    ----------
    observed : ndarray
        (left, right) partial correlation, in [-1, 1].
    p_value : ndarray
        (left, right) two-sided p-value of each pair by itself.
    p_fwe : ndarray
        (left, right) two-sided p-value corrected for all pairs by the maximum statistic.
    maxima : ndarray
        (permutation,) largest absolute correlation over all pairs in each permutation.
    """

    observed: np.ndarray
    p_value: np.ndarray
    p_fwe: np.ndarray
    maxima: np.ndarray


def permutations(
    n_rows: int, n_permutations: int, *, seed: int, blocks: Sequence[object] | np.ndarray | None = None
) -> np.ndarray:
    """Random orders of the rows, each block shuffled within itself.

    Parameters
    ----------
    n_rows, n_permutations : int
        Rows to shuffle, and how often.
    seed : int
        Seed of the draw.
    blocks : Sequence or None
        (row,) label of the exchangeability block of each row, such as its site or its class; None is one block.

    Returns
    -------
    ndarray
        (permutation, row) int32; ``values[orders[b]]`` is the b-th shuffled table.

    Raises
    ------
    SettingError
        When every block holds one row, so that nothing can be exchanged.
    """
    labels = np.zeros(n_rows, dtype=int) if blocks is None else pd.factorize(np.asarray(blocks))[0]
    if len(labels) != n_rows:
        raise SettingError(f"{len(labels)} block labels were given for {n_rows} rows. Give one label per row.")
    sizes = np.bincount(labels)
    if sizes.max(initial=0) < 2:
        raise SettingError("Every exchangeability block holds one row, so nothing can be permuted. Use fewer blocks.")
    rng = np.random.default_rng(seed)
    orders = np.tile(np.arange(n_rows, dtype=np.int32), (n_permutations, 1))
    for block in np.flatnonzero(sizes > 1):
        rows = np.flatnonzero(labels == block)
        # A few at a time: copies of all would be twice what is kept. The draws are the same.
        step = max(1, BATCH_BYTES // (4 * len(rows)))
        for start in range(0, n_permutations, step):
            some = orders[start : start + step]
            some[:, rows] = rng.permuted(some[:, rows], axis=1)
    return orders


def permuted_correlation(
    left: np.ndarray,
    right: np.ndarray,
    orders: np.ndarray | None,
    *,
    confounds: np.ndarray | None = None,
    flips: np.ndarray | None = None,
    dtype: type[np.floating] = np.float32,
    label: str = "",
) -> CorrelationTest:
    """Partial correlations with p-values by the Freedman-Lane scheme and the maximum statistic.

    The residuals of the right columns are shuffled and residualised again. The left columns are orthogonal to the
    confounds, so that second step changes only the length of the shuffled residuals, not the products: one matrix
    product per batch of permutations gives both.

    Parameters
    ----------
    left, right : ndarray
        (row, left) and (row, right) values; shuffle the side with fewer columns for speed.
    orders : ndarray or None
        (permutation, row) from :func:`permutations`; None leaves the rows in place, so that `flips` act alone.
    confounds : ndarray or None
        (row, confound) values removed from both sides.
    flips : ndarray or None
        (permutation, row) signs, 1 or -1, by which the shuffled residuals are multiplied, as of
        :func:`nilatent.analysis.exchange.sign_flips`: for errors that are symmetric but differ in variance.
    dtype : type
        Precision of the products; float64 is the check of float32.
    label : str
        What to call this work when its progress is shown; empty shows none.

    Returns
    -------
    CorrelationTest
        Observed correlations, two-sided p-values by pair and family-wise.

    Raises
    ------
    SettingError
        When a value is missing, a column is constant once confounds are removed, or neither orders nor flips are given.
    """
    basis = confound_basis(confounds, len(left))
    x = unit_residuals(left, basis, what="The left table").astype(dtype)
    z = unit_residuals(right, basis, what="The right table").astype(dtype)
    observed = x.T @ z
    threshold = np.abs(observed)[:, None, :] - TIE
    exceeding = np.zeros(observed.shape, dtype=np.int64)
    maxima = np.empty(n_draws(orders, flips))
    for start, statistic in permuted_batches(x, z, basis, orders, flips=flips, label=label):
        np.abs(statistic, out=statistic)
        exceeding += np.count_nonzero(statistic >= threshold, axis=1)
        maxima[start : start + statistic.shape[1]] = statistic.max(axis=(0, 2))
    return CorrelationTest(
        observed=observed.astype(np.float64),
        p_value=(1 + exceeding) / (1 + len(maxima)),
        p_fwe=max_p(np.abs(observed), maxima),
        maxima=maxima,
    )


def n_draws(orders: np.ndarray | None, flips: np.ndarray | None) -> int:
    """How many permutations or sign flips there are.

    Raises
    ------
    SettingError
        When neither is given, or their numbers differ.
    """
    given: list[int] = [len(draws) for draws in (orders, flips) if draws is not None]
    if not given or given[0] != given[-1]:
        raise SettingError(
            f"{given} orders and flips were given. Draw orders, flips, or as many of the one as of the other."
        )
    return given[0]


def permuted_batches(
    x: np.ndarray,
    z: np.ndarray,
    basis: np.ndarray,
    orders: np.ndarray | None,
    *,
    flips: np.ndarray | None = None,
    label: str = "",
) -> Iterator[tuple[int, np.ndarray]]:
    """Partial correlations under batch after batch of permutations.

    Parameters
    ----------
    x, z : ndarray
        (row, left) and (row, right) columns from :func:`unit_residuals`, of one precision; z is shuffled.
    basis : ndarray
        (row, rank) from :func:`confound_basis`.
    orders, flips : ndarray or None
        (permutation, row) order and signs of the rows of z.
    label : str
        What to call this work when its progress is shown; empty shows none.

    Yields
    ------
    start : int
        Number of the first permutation of the batch.
    statistic : ndarray
        (left, batch, right) correlations with their sign, overwritten by the next batch.
    """
    n_left, n_right, total = x.shape[1], z.shape[1], n_draws(orders, flips)
    # Shuffled residuals keep their mean, so the intercept (first column) needs no second removal; flipped ones do not.
    stacked = np.ascontiguousarray(np.vstack([x.T, basis[:, 1 if flips is None else 0 :].T]), dtype=z.dtype)
    batch = max(1, min(BATCH_BYTES // ((len(z) + len(stacked)) * n_right * z.itemsize), total))
    starts = range(0, total, batch)
    shuffled, products = (np.empty((rows, batch, n_right), dtype=z.dtype) for rows in (len(z), len(stacked)))
    for start in track(starts, total=len(starts), label=label) if label else starts:
        size = min(batch, total - start)
        if size < shuffled.shape[1]:
            shuffled, products = (np.empty((len(part), size, n_right), z.dtype) for part in (shuffled, products))
        if orders is None:
            shuffled[:] = z[:, None, :]
        else:
            # Orders are valid rows by construction; clipping spares numpy a second buffer.
            np.take(z, orders[start : start + size].T, axis=0, out=shuffled, mode="clip")
        if flips is not None:
            shuffled *= flips[start : start + size].T[:, :, None]
        np.matmul(stacked, shuffled.reshape(len(z), -1), out=products.reshape(len(stacked), -1))
        statistic = products[:n_left]
        if len(stacked) > n_left:
            explained = np.square(products[n_left:]).sum(axis=0)
            statistic /= np.sqrt(np.maximum(1 - explained, TIE))
        yield start, statistic


@dataclass(frozen=True, eq=False)
class ShareTest:
    """Share of the variance of each column that predictors explain, and its permutation p-values; all (column,).

    Parameters
    ----------
    share : ndarray
        In [0, 1].
    p_value : ndarray
        p of each column by itself.
    p_fwe : ndarray
        p corrected for all columns by the maximum statistic.
    """

    share: np.ndarray
    p_value: np.ndarray
    p_fwe: np.ndarray


def permuted_r2(
    values: np.ndarray,
    predictors: np.ndarray,
    orders: np.ndarray,
    *,
    confounds: np.ndarray | None = None,
    penalty: float = 0.0,
    dtype: type[np.floating] = np.float32,
) -> tuple[np.ndarray, np.ndarray]:
    """Share and family-wise p of :func:`permuted_share`."""
    found = permuted_share(values, predictors, orders, confounds=confounds, penalty=penalty, dtype=dtype)
    return found.share, found.p_fwe


def permuted_share(
    values: np.ndarray,
    predictors: np.ndarray,
    orders: np.ndarray,
    *,
    confounds: np.ndarray | None = None,
    penalty: float = 0.0,
    dtype: type[np.floating] = np.float32,
) -> ShareTest:
    """Share of each column's variance that all predictors explain jointly, with its permutation p-value.

    Parameters
    ----------
    values : ndarray
        (row, column) values; their residuals are shuffled (Freedman-Lane).
    predictors : ndarray
        (row, predictor) values, such as all latents, an age, or the 0/1 columns of a site.
    orders : ndarray
        (permutation, row) from :func:`permutations`.
    confounds : ndarray or None
        (row, confound) values removed from both sides.
    penalty : float
        0 gives the partial R^2. Above 0, each principal direction of the standardised predictors counts with weight
        e / (e + penalty), e its variance: a test that keeps power when there are as many predictors as rows.
    dtype : type
        Precision of the products.

    Returns
    -------
    ShareTest
        Share, p by column and family-wise.

    Raises
    ------
    SettingError
        When a value is missing, a column is constant, or all predictors are, once confounds are removed.

    References
    ----------
    The weighted form is the global test of Goeman et al. 2004, doi:10.1093/bioinformatics/btg382.
    """
    kept = varying(predictors, confounds)
    if not kept.any():
        raise SettingError("The predictors are constant, so they explain nothing. Choose a column that varies.")
    basis = confound_basis(confounds, len(values))
    z = unit_residuals(values, basis, what="The table of values").astype(dtype)
    predictors = unit_residuals(np.asarray(predictors)[:, kept], basis, what="The predictors")
    left, singular, _ = np.linalg.svd(predictors, full_matrices=False)
    left, variance = left[:, singular > 1e-8 * singular[0]], np.square(singular[singular > 1e-8 * singular[0]])
    weighted = (left * np.sqrt(variance / (variance + penalty))).astype(dtype)
    observed = np.square(weighted.T @ z).sum(axis=0)
    exceeding, maxima = np.zeros(len(observed), dtype=np.int64), np.empty(len(orders))
    for start, statistic in permuted_batches(weighted, z, basis, orders):
        share = np.square(statistic, out=statistic).sum(axis=0)
        exceeding += np.count_nonzero(share >= observed - TIE, axis=0)
        maxima[start : start + len(share)] = share.max(axis=1)
    return ShareTest(observed.astype(np.float64), (1 + exceeding) / (1 + len(orders)), max_p(observed, maxima))


def max_p(observed: np.ndarray, maxima: np.ndarray) -> np.ndarray:
    """Family-wise p-value of each observed statistic against the maxima of the permutations, (1 + b) / (1 + B)."""
    ordered = np.sort(maxima)
    reached = len(ordered) - np.searchsorted(ordered, np.asarray(observed, dtype=np.float64) - TIE, side="left")
    return np.asarray((1 + reached) / (1 + len(ordered)))


def correlation_p(correlation: np.ndarray, *, degrees: int) -> np.ndarray:
    """Two-sided parametric p-value of a partial correlation with the given residual degrees of freedom."""
    bounded = np.clip(np.abs(correlation), 0, 1 - 1e-12)
    return np.asarray(2 * student_t.sf(bounded * np.sqrt(degrees / (1 - bounded**2)), degrees))


def fdr(p_values: np.ndarray) -> np.ndarray:
    """Benjamini-Hochberg q-values over all entries, in the shape of the input."""
    return np.asarray(false_discovery_control(np.ravel(p_values), method="bh")).reshape(np.shape(p_values))


def bootstrap_ratio(
    numerator: np.ndarray,
    denominator: np.ndarray,
    subjects: Sequence[object] | np.ndarray,
    *,
    seed: int,
    n_bootstrap: int = 2000,
    level: float = 0.95,
) -> tuple[float, float, float]:
    """Ratio of two means and its percentile bootstrap interval, resampling subjects with all their scans.

    Parameters
    ----------
    numerator, denominator : ndarray
        (scan,) values; a denominator of ones gives the mean of the numerator.
    subjects : Sequence
        (scan,) subject of each scan.
    seed : int
        Seed of the draw.
    n_bootstrap : int
        Resamples.
    level : float
        Coverage of the interval, in (0, 1).

    Returns
    -------
    tuple[float, float, float]
        Ratio, lower and upper limit; the limits are NaN when there are fewer than two subjects.
    """
    codes = pd.factorize(np.asarray(subjects))[0]
    top, bottom = np.bincount(codes, weights=numerator), np.bincount(codes, weights=denominator)
    ratio = float(top.sum() / bottom.sum())
    if len(top) < 2:
        return ratio, float("nan"), float("nan")
    rng, even, drawn = np.random.default_rng(seed), np.full(len(top), 1 / len(top)), []
    # Whole sixteens: BLAS sums rows of a rest in another order.
    step = max(16, BATCH_BYTES // (8 * len(top)) // 16 * 16)
    for start in range(0, n_bootstrap, step):
        counts = rng.multinomial(len(top), even, size=min(step, n_bootstrap - start))
        drawn.append((counts @ top) / (counts @ bottom))
    low, high = np.quantile(np.concatenate(drawn), [(1 - level) / 2, (1 + level) / 2])
    return ratio, float(low), float(high)
