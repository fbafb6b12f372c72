"""What is left of a table once confounds are removed: the linear algebra under every test."""

import numpy as np

from nilatent.errors import SettingError


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


def partial_correlation(left: np.ndarray, right: np.ndarray, confounds: np.ndarray | None) -> np.ndarray:
    """(left, right) correlation of every pair of columns once the confounds are removed from both."""
    basis = confound_basis(confounds, len(left))
    x, z = unit_residuals(left, basis, what="The left table"), unit_residuals(right, basis, what="The right table")
    return np.asarray(x.T @ z)
