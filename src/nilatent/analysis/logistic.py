"""Logistic regression of few terms with its intervals, by which the calibration of probabilities is judged."""

import numpy as np
from scipy.special import expit
from scipy.stats import norm

LEVEL = 0.95
# Probabilities are held this far from 0 and 1 before their log odds are taken.
SMALLEST_P = 1e-6
MAX_STEPS = 50


def logistic(x: np.ndarray, y: np.ndarray, *, offset: np.ndarray | None = None) -> np.ndarray:
    """Maximum-likelihood logistic regression with Wald intervals.

    Parameters
    ----------
    x : ndarray
        (row, term), the intercept among them.
    y : ndarray
        (row,) bool.
    offset : ndarray, optional
        (row,) added to the linear part with the weight 1.

    Returns
    -------
    ndarray
        (term, 3) estimate and limits; NaN when there is no finite maximum.
    """
    beta, given = np.zeros(x.shape[1]), np.zeros(len(y)) if offset is None else offset
    nothing = np.full((x.shape[1], 3), np.nan)
    for _ in range(MAX_STEPS):
        p = expit(x @ beta + given)
        information = (x * (p * (1 - p))[:, None]).T @ x
        if np.linalg.cond(information) > 1e10:
            return nothing
        change = np.linalg.solve(information, x.T @ (y - p))
        # A long first step over a flat likelihood may overshoot; a bounded one arrives, as the likelihood is concave.
        beta = beta + change / max(float(np.abs(change).max()), 1.0)
        if np.abs(change).max() < 1e-9:
            spread = float(norm.ppf((1 + LEVEL) / 2)) * np.sqrt(np.diag(np.linalg.inv(information)))
            return np.column_stack([beta, beta - spread, beta + spread])
    return nothing
