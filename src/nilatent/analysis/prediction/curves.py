"""ROC curves with their bootstrap band, calibration curves, and how far probabilities are off.

References
----------
Fawcett 2006 (ROC), doi:10.1016/j.patrec.2005.10.010. Van Calster et al. 2019 (calibration), doi:10.1186/s12916-019-1466-7.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import logit

from nilatent.analysis.logistic import SMALLEST_P, logistic

FALSE_ALARMS = np.linspace(0, 1, 101)
N_BINS, SCANS_PER_BIN = 8, 12
# Draws of the band: its edges need fewer than those of a table.
MOST_DRAWS = 300


@dataclass(frozen=True, eq=False)
class Calibration:
    """Whether probabilities can be read as such.

    Parameters
    ----------
    predicted, observed, count : ndarray
        (bin,) mean probability, share of cases, scans; NaN (and 0) in bins that are not filled.
    error : float
        Expected calibration error: mean distance of the two, weighted by count.
    intercept, slope : float
        Of the log odds of being a case on the log odds predicted; 0 and 1 are perfect. NaN when the classes are separated or
        all probabilities are equal.
    """

    predicted: np.ndarray
    observed: np.ndarray
    count: np.ndarray
    error: float
    intercept: float
    slope: float


def roc(
    score: np.ndarray, is_case: np.ndarray, weights: np.ndarray, folds: np.ndarray, *, alpha: float = 0.05
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Share of cases found at each share of false alarms in :data:`FALSE_ALARMS`, and a pointwise band over subjects.

    The curve is the mean of the curves of the outer folds (vertical averaging), weighted with their pairs of a case and a
    reference, so that the area below it is the AUC of the table.

    Parameters
    ----------
    score : ndarray
        (scan,) larger is more like a case.
    is_case : ndarray
        (scan,) bool.
    weights : ndarray
        (resample, scan).
    folds : ndarray
        (scan,) outer fold.
    alpha : float
        The band covers 1 - alpha at each point.

    Returns
    -------
    found, low, high : ndarray
        (101,) each; NaN when no fold holds a case and a reference.
    """
    orders = []
    for fold in np.unique(folds):
        mine = np.flatnonzero(folds == fold)
        mine = mine[np.argsort(-score[mine], kind="stable")]
        orders.append((mine, np.append(np.flatnonzero(np.diff(score[mine])), len(mine) - 1)))
    drawn = np.array([_mean_curve(one, orders, is_case) for one in weights[:MOST_DRAWS]])
    drawn = drawn[np.isfinite(drawn).all(axis=1)]
    whole = _mean_curve(np.ones(len(score)), orders, is_case)
    if len(drawn) * 2 < min(len(weights), MOST_DRAWS) or not len(drawn):
        return whole, np.full_like(whole, np.nan), np.full_like(whole, np.nan)
    low, high = np.quantile(drawn, [alpha / 2, 1 - alpha / 2], axis=0)
    return whole, low, high


def _mean_curve(weights: np.ndarray, orders: list[tuple[np.ndarray, np.ndarray]], is_case: np.ndarray) -> np.ndarray:
    curve, pairs = np.zeros(len(FALSE_ALARMS)), 0.0
    for mine, ends in orders:
        case = np.cumsum(weights[mine] * is_case[mine])[ends]
        reference = np.cumsum(weights[mine] * ~is_case[mine])[ends]
        share = case[-1] * reference[-1]
        if share > 0:
            curve += share * _curve(np.append(0, reference / reference[-1]), np.append(0, case / case[-1]))
            pairs += share
    return curve / pairs if pairs > 0 else np.full(len(FALSE_ALARMS), np.nan)


def _curve(alarms: np.ndarray, found: np.ndarray) -> np.ndarray:
    # At equal false alarms the curve rises straight up, and its upper end is what can be had; between, ties are a slope.
    last = np.searchsorted(alarms, FALSE_ALARMS, side="right") - 1
    after = np.minimum(last + 1, len(alarms) - 1)
    width = alarms[after] - alarms[last]
    along = np.divide(FALSE_ALARMS - alarms[last], width, out=np.zeros(len(width)), where=width > 0)
    return np.asarray(found[last] + along * (found[after] - found[last]))


def calibration(probability: np.ndarray, is_case: np.ndarray) -> Calibration:
    """Calibration of probabilities of two classes, in at most :data:`N_BINS` bins that hold about as many scans each.

    Parameters
    ----------
    probability : ndarray
        (scan,) of being a case, held out.
    is_case : ndarray
        (scan,) bool.
    """
    n_bins = int(np.clip(len(probability) // SCANS_PER_BIN, 2, N_BINS))
    inner = np.unique(np.quantile(probability, np.linspace(0, 1, n_bins + 1)[1:-1]))
    of_scan = np.searchsorted(inner, probability, side="right")
    count = np.bincount(of_scan, minlength=N_BINS).astype(np.float64)
    filled = np.where(count > 0, count, np.nan)
    predicted = np.bincount(of_scan, weights=probability, minlength=N_BINS) / filled
    observed = np.bincount(of_scan, weights=is_case, minlength=N_BINS) / filled
    error = float(np.nansum(np.abs(predicted - observed) * count) / count.sum())
    intercept, slope = calibration_line(probability, is_case)
    return Calibration(predicted, observed, count, error, intercept, slope)


def calibration_line(probability: np.ndarray, is_case: np.ndarray) -> tuple[float, float]:
    """Intercept and slope of the logistic regression of being a case on the log odds predicted; NaN without a maximum."""
    odds = logit(np.clip(probability, SMALLEST_P, 1 - SMALLEST_P))
    if np.ptp(odds) < 1e-9 or is_case.all() or not is_case.any():
        return float("nan"), float("nan")
    line = logistic(np.column_stack([np.ones(len(odds)), odds]), is_case)
    return float(line[0, 0]), float(line[1, 0])
