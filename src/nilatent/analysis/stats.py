"""Permutation inference, multiplicity and resampling: the statistics every analysis shares.

Permutations are batched matrix products on standardised residuals. A permutation p-value is (1 + b) / (1 + B), so
it is never zero and stays valid for any number B of permutations.

References
----------
Freedman & Lane 1983, doi:10.1080/07350015.1983.10509354. Winkler et al. 2014, doi:10.1016/j.neuroimage.2014.01.060.
Phipson & Smyth 2010, doi:10.2202/1544-6115.1585. Westfall & Young 1993 (max-statistic). Benjamini & Hochberg 1995,
doi:10.1111/j.2517-6161.1995.tb02031.x.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control
from scipy.stats import t as student_t

from nilatent.errors import SettingError

# Observed and permuted statistics come from different matrix products; a tie must count as a tie in float32 too.
TIE = 2e-6
BATCH_BYTES = 64 * 2**20


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


def check_finite(values: np.ndarray, *, what: str) -> np.ndarray:
    """Return the values as a two-dimensional float64 array.

    Raises
    ------
    SettingError
        When a value is missing or infinite, or when there are no rows.
    """
    values = np.asarray(values, dtype=np.float64)
    values = values[:, None] if values.ndim == 1 else values
    if values.shape[0] == 0:
        raise SettingError(f"{what} has no rows. Hand in at least two scans.")
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        raise SettingError(
            f"{what} has a missing or infinite value in row {bad[0, 0]}, column {bad[0, 1]} ({len(bad)} in all). "
            "Leave those rows out, and say so."
        )
    return values


def residualise(values: np.ndarray, confounds: np.ndarray | None, *, fit_rows: np.ndarray | None = None) -> np.ndarray:
    """Return what is left of each column after least squares on an intercept and the confounds.

    Parameters
    ----------
    values : ndarray
        (row, column) values.
    confounds : ndarray or None
        (row, confound) values without intercept; None removes the mean only.
    fit_rows : ndarray or None
        Rows on which the coefficients are fitted, such as the training scans of a fold; None fits on all rows.

    Returns
    -------
    ndarray
        (row, column) float64 residuals of all rows.
    """
    values = check_finite(values, what="The table to residualise")
    rows = np.arange(len(values)) if fit_rows is None else np.asarray(fit_rows)
    design = np.ones((len(values), 1))
    if confounds is not None:
        confounds = check_finite(confounds, what="The confounds")
        centre, scale = confounds[rows].mean(axis=0), confounds[rows].std(axis=0)
        # Columns of unit size, so that the numerical rank does not depend on whether age is in years or in days.
        design = np.hstack([design, (confounds - centre) / np.where(scale > 0, scale, 1.0)])
    coefficients = np.linalg.lstsq(design[rows], values[rows], rcond=1e-10)[0]
    return np.asarray(values - design @ coefficients)


def confound_basis(confounds: np.ndarray | None, n_rows: int) -> np.ndarray:
    """(row, rank) orthonormal columns that span an intercept and the confounds; collinear confounds count once."""
    intercept = np.full((n_rows, 1), 1 / np.sqrt(n_rows))
    if confounds is None or np.size(confounds) == 0:
        return intercept
    centred = residualise(confounds, None)
    size = np.linalg.norm(centred, axis=0)
    # A constant confound says what the intercept says, up to rounding.
    kept = centred[:, size > 1e-10 * (1 + np.abs(np.asarray(confounds)).reshape(n_rows, -1).max(axis=0))]
    if kept.shape[1] == 0:
        return intercept
    left, singular, _ = np.linalg.svd(kept / np.linalg.norm(kept, axis=0), full_matrices=False)
    return np.hstack([intercept, left[:, singular > 1e-8 * singular[0]]])


def unit_residuals(values: np.ndarray, basis: np.ndarray, *, what: str) -> np.ndarray:
    """Columns orthogonal to the basis and of unit length, so that products of them are partial correlations.

    Raises
    ------
    SettingError
        When a column is constant or is explained by the confounds without remainder.
    """
    values = check_finite(values, what=what)
    residuals = values - basis @ (basis.T @ values)
    residuals -= basis @ (basis.T @ residuals)
    size = np.linalg.norm(residuals, axis=0)
    empty = np.flatnonzero(size <= 1e-9 * np.linalg.norm(values, axis=0))
    if len(empty):
        raise SettingError(
            f"{what}: column {empty[0]} is constant, or the confounds explain it without remainder, so no correlation "
            "exists. Drop the column or the confound that equals it."
        )
    return np.asarray(residuals / size)


def varying(values: np.ndarray, confounds: np.ndarray | None = None) -> np.ndarray:
    """(column,) bool: the column still varies once the confounds are removed."""
    values = check_finite(values, what="The table")
    basis = confound_basis(confounds, len(values))
    left = np.linalg.norm(values - basis @ (basis.T @ values), axis=0)
    return np.asarray(left > 1e-9 * np.maximum(np.linalg.norm(values, axis=0), np.finfo(float).tiny))


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
        orders[:, rows] = rng.permuted(orders[:, rows], axis=1)
    return orders


def permuted_correlation(
    left: np.ndarray,
    right: np.ndarray,
    orders: np.ndarray,
    *,
    confounds: np.ndarray | None = None,
    dtype: type[np.floating] = np.float32,
) -> CorrelationTest:
    """Partial correlations with p-values by the Freedman-Lane scheme and the maximum statistic.

    The residuals of the right columns are shuffled and residualised again. The left columns are orthogonal to the
    confounds, so that second step changes only the length of the shuffled residuals, not the products: one matrix
    product per batch of permutations gives both.

    Parameters
    ----------
    left, right : ndarray
        (row, left) and (row, right) values; shuffle the side with fewer columns for speed.
    orders : ndarray
        (permutation, row) from :func:`permutations`.
    confounds : ndarray or None
        (row, confound) values removed from both sides.
    dtype : type
        Precision of the products; float64 is the check of float32.

    Returns
    -------
    CorrelationTest
        Observed correlations, two-sided p-values by pair and family-wise.

    Raises
    ------
    SettingError
        When a value is missing, or a column is constant once confounds are removed.
    """
    basis = confound_basis(confounds, len(left))
    x = unit_residuals(left, basis, what="The left table")
    z = unit_residuals(right, basis, what="The right table").astype(dtype)
    n_left, n_right = x.shape[1], z.shape[1]
    # Shuffled residuals keep their mean, so the intercept (first column) needs no second removal.
    stacked = np.vstack([x.T, basis[:, 1:].T]).astype(dtype)
    observed = stacked[:n_left] @ z
    threshold = np.abs(observed)[:, None, :] - TIE
    exceeding = np.zeros((n_left, n_right), dtype=np.int64)
    maxima = np.empty(len(orders))
    per_permutation = (len(z) + 2 * len(stacked)) * n_right * np.dtype(dtype).itemsize
    batch = max(1, BATCH_BYTES // per_permutation)
    for start in range(0, len(orders), batch):
        shuffled = np.take(z, orders[start : start + batch].T, axis=0)
        products = (stacked @ shuffled.reshape(len(z), -1)).reshape(len(stacked), -1, n_right)
        statistic = np.abs(products[:n_left])
        if len(stacked) > n_left:
            explained = np.square(products[n_left:]).sum(axis=0)
            statistic /= np.sqrt(np.maximum(1 - explained, TIE))
        exceeding += np.count_nonzero(statistic >= threshold, axis=1)
        maxima[start : start + batch] = statistic.max(axis=(0, 2))
    return CorrelationTest(
        observed=observed.astype(np.float64),
        p_value=(1 + exceeding) / (1 + len(orders)),
        p_fwe=max_p(np.abs(observed), maxima),
        maxima=maxima,
    )


def permuted_r2(
    values: np.ndarray,
    predictors: np.ndarray,
    orders: np.ndarray,
    *,
    confounds: np.ndarray | None = None,
    penalty: float = 0.0,
    dtype: type[np.floating] = np.float32,
) -> tuple[np.ndarray, np.ndarray]:
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
    share : ndarray
        (column,) in [0, 1].
    p_fwe : ndarray
        (column,) p-value corrected for all columns by the maximum statistic.

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
    weighted = left * np.sqrt(variance / (variance + penalty))
    stacked, n_directions = np.vstack([weighted.T, basis[:, 1:].T]).astype(dtype), weighted.shape[1]
    observed = np.square(stacked[:n_directions] @ z).sum(axis=0)
    maxima = np.empty(len(orders))
    batch = max(1, BATCH_BYTES // ((len(z) + 2 * len(stacked)) * z.shape[1] * np.dtype(dtype).itemsize))
    for start in range(0, len(orders), batch):
        shuffled = np.take(z, orders[start : start + batch].T, axis=0)
        products = np.square(stacked @ shuffled.reshape(len(z), -1)).reshape(len(stacked), -1, z.shape[1])
        left_over = np.maximum(1 - products[n_directions:].sum(axis=0), TIE)
        maxima[start : start + batch] = (products[:n_directions].sum(axis=0) / left_over).max(axis=1)
    return observed.astype(np.float64), max_p(observed, maxima)


def partial_correlation(left: np.ndarray, right: np.ndarray, confounds: np.ndarray | None) -> np.ndarray:
    """(left, right) correlation of every pair of columns once the confounds are removed from both."""
    basis = confound_basis(confounds, len(left))
    x, z = unit_residuals(left, basis, what="The left table"), unit_residuals(right, basis, what="The right table")
    return np.asarray(x.T @ z)


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
    counts = np.random.default_rng(seed).multinomial(len(top), np.full(len(top), 1 / len(top)), size=n_bootstrap)
    low, high = np.quantile((counts @ top) / (counts @ bottom), [(1 - level) / 2, (1 + level) / 2])
    return ratio, float(low), float(high)
