"""Many penalised linear fits on the same scans at once: L2 logistic by accelerated majorisation, ridge in closed form.

A permutation test of a nested cross-validation needs thousands of fits that share their features and differ in labels,
weights and penalty. In the rotated features of one singular value decomposition each iteration of all of them is two matrix
products. Every column is a problem of its own: what stands beside it changes nothing.

References
----------
Böhning & Lindsay 1988 (bound of the Hessian), doi:10.1007/BF00049423. Böhning 1992 (multinomial),
doi:10.1007/BF00048682. O'Donoghue & Candès 2015 (restart), doi:10.1007/s10208-013-9150-3.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import expit, softmax

from nilatent.errors import SettingError

MAX_ITERATIONS = 3000
# Norm of the gradient in units of the majorising curvature; the objective is then within about its square of the minimum.
TOLERANCE = 1e-6
# Numbers held at once in one (scan, column) array: larger ones leave the cache.
NUMBERS_AT_ONCE = 400_000
ROUNDS_BETWEEN_LOOKS = 5


@dataclass(frozen=True, eq=False)
class Design:
    """Features of the training scans, standardised and rotated to their principal axes.

    Parameters
    ----------
    centre, scale : ndarray
        (feature,) mean and SD over the training scans; the SD of a constant feature is written as 1.
    rotated : ndarray
        (scan, axis) standardised features divided by the root of their number, on their principal axes: the mean squared
        length of a scan is 1, so that one penalty means the same for 8 features and for 8,000.
    axes : ndarray
        (axis, feature) the same division included: ``rotated @ weights`` is ``standardised @ (axes.T @ weights)``.
    variance : ndarray
        (axis,) mean square of each rotated column.
    """

    centre: np.ndarray
    scale: np.ndarray
    rotated: np.ndarray
    axes: np.ndarray
    variance: np.ndarray

    def rotate(self, x: np.ndarray) -> np.ndarray:
        """(scan, axis) other scans on the axes of the training scans."""
        return np.asarray((x - self.centre) / self.scale @ self.axes.T)


def make_design(x: np.ndarray) -> Design:
    """Standardise and rotate the features of the training scans.

    Parameters
    ----------
    x : ndarray
        (scan, feature) finite values.

    Raises
    ------
    SettingError
        When a value is missing, or no feature varies.
    """
    x = np.asarray(x, dtype=np.float64)
    if x.ndim != 2 or not np.isfinite(x).all():
        raise SettingError(
            f"Features of shape {x.shape} hold missing or infinite values, or are no table. Give (scan, feature) numbers, and "
            "leave out the scans that lack one."
        )
    centre, spread = x.mean(axis=0), x.std(axis=0)
    varies = spread > 1e-9 * (1e-3 + np.abs(centre))
    if not varies.any():
        raise SettingError("No feature varies between the training scans, so nothing can be predicted from them.")
    scale = np.where(varies, spread, 1.0)
    standard = np.where(varies, (x - centre) / scale, 0.0) / np.sqrt(varies.sum())
    if x.shape[1] > 2 * len(x):
        # The Gram matrix of few scans with many features is far cheaper, and axes too small to matter are cut more widely.
        squares, left = np.linalg.eigh(standard @ standard.T)
        kept = squares > 1e-10 * squares[-1]
        singular, left = np.sqrt(squares[kept]), left[:, kept]
        axes = (left / singular).T @ standard
    else:
        left, singular, axes = np.linalg.svd(standard, full_matrices=False)
        kept = singular > 1e-8 * singular[0]
        left, singular, axes = left[:, kept], singular[kept], axes[kept]
    return Design(centre, scale, left * singular, axes / np.sqrt(varies.sum()), np.square(singular) / len(x))


def fit_logistic(design: Design, y: np.ndarray, weights: np.ndarray, penalty: np.ndarray) -> np.ndarray:
    """Weights of L2 logistic fits, one per column; the intercept is not penalised.

    Each column minimises sum(weights * loss) + penalty / 2 * sum(square(w)) with weights that sum to 1.

    Parameters
    ----------
    design : Design
        Training scans.
    y : ndarray
        (scan, column, output) 0 or 1; one output is a binary logistic fit, several are a softmax over the outputs.
    weights : ndarray
        (scan, column) at least 0, each column summing to 1; a scan with weight 0 takes no part.
    penalty : ndarray
        (column,) above 0.

    Returns
    -------
    ndarray
        (axis + 1, column, output), the intercept last.

    Raises
    ------
    SettingError
        When a fit does not settle.
    """
    at_once = max(1, NUMBERS_AT_ONCE // (len(y) * y.shape[2]))
    found = [
        _fit_some(design, y[:, part], weights[:, part], penalty[part])
        for start in range(0, y.shape[1], at_once)
        for part in [slice(start, start + at_once)]
    ]
    return np.concatenate(found, axis=1)


def _fit_some(design: Design, y: np.ndarray, weights: np.ndarray, penalty: np.ndarray) -> np.ndarray:
    n, n_columns, n_outputs = y.shape
    x = np.column_stack([design.rotated, np.ones(n)])
    bend = (0.25 if n_outputs == 1 else 0.5) * n * weights.max(axis=0)
    slope = np.vstack([np.tile(penalty, (len(design.variance), 1)), np.zeros(n_columns)])[:, :, None]
    curvature = np.append(design.variance, 1.0)[:, None, None] * bend[:, None] + slope
    kept = np.zeros((x.shape[1], n_columns, n_outputs))
    running = np.arange(n_columns)
    current = looked = kept.copy()
    speed = np.ones(n_columns)
    weights = weights[:, :, None]
    for round_ in range(1, MAX_ITERATIONS + 1):
        linear = (x @ looked.reshape(len(looked), -1)).reshape(y.shape)
        missed = (expit(linear) if n_outputs == 1 else softmax(linear, axis=2)) - y
        missed *= weights
        gradient = (x.T @ missed.reshape(n, -1)).reshape(looked.shape) + slope * looked
        ahead = looked - gradient / curvature
        onward = np.einsum("acb,acb->c", gradient, ahead - current) < 0
        faster = np.where(onward, (1 + np.sqrt(1 + 4 * speed**2)) / 2, 1.0)
        push = np.where(onward, (speed - 1) / faster, 0.0)[:, None]
        looked, current, speed = ahead + push * (ahead - current), ahead, faster
        if round_ % ROUNDS_BETWEEN_LOOKS:
            continue
        moving = np.einsum("acb,acb->c", gradient, gradient / curvature) > TOLERANCE**2
        kept[:, running] = current
        if not moving.any():
            return kept
        running, y, weights, speed = running[moving], y[:, moving], weights[:, moving], speed[moving]
        current, looked = current[:, moving], looked[:, moving]
        slope, curvature = slope[:, moving], curvature[:, moving]
    raise SettingError(
        f"{len(running)} logistic fits did not settle in {MAX_ITERATIONS} rounds at penalty {penalty.min():g}. Use a larger "
        "penalty, or look for a feature with a few enormous values."
    )


def fit_ridge(
    design: Design, y: np.ndarray, penalties: np.ndarray, *, rows: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Ridge weights of every column for every penalty, the intercept not penalised.

    Each minimises mean(square(y - prediction)) + penalty * sum(square(w)).

    Parameters
    ----------
    design : Design
        Training scans.
    y : ndarray
        (scan, column) targets.
    penalties : ndarray
        (penalty,) above 0.
    rows : ndarray or None
        Positions of the scans that take part; None for all.

    Returns
    -------
    weights : ndarray
        (penalty, axis, column).
    intercept : ndarray
        (penalty, column).
    """
    x, y = (design.rotated, y) if rows is None else (design.rotated[rows], y[rows])
    middle, level = x.mean(axis=0), y.mean(axis=0)
    squares, axes = np.linalg.eigh((x - middle).T @ (x - middle) / len(x))
    moments = axes.T @ ((x - middle).T @ (y - level)) / len(x)
    weights = np.stack([axes @ (moments / (np.maximum(squares, 0)[:, None] + penalty)) for penalty in penalties])
    return weights, level - np.einsum("a,pac->pc", middle, weights)
