"""Measures of frozen predictions on a new cohort, each with an interval that holds for few subjects and at its ends.

References
----------
Clopper & Pearson 1934, doi:10.1093/biomet/26.4.404. Newcombe 2006, doi:10.1002/sim.2324 (area under the curve, method 5).
Zou & Donner 2008, doi:10.1002/sim.3095 (interval of a mean of shares from those of the shares).
Cox 1958, doi:10.1093/biomet/45.3-4.562 (calibration intercept and slope).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import logit
from scipy.stats import binomtest, norm, pearsonr
from scipy.stats import t as student_t
from sklearn.metrics import roc_auc_score, roc_curve

from nilatent.analysis.logistic import LEVEL, SMALLEST_P, logistic

# A probability of 0 or 1 has no finite logit.
EDGE = 1e-9


@dataclass(frozen=True)
class Measure:
    """One number about predictions, with what it rests on.

    Parameters
    ----------
    name : str
        What is measured.
    value, low, high : float
        Estimate and 95 % interval; NaN where there is none.
    n : int
        Subjects it rests on.
    note : str
        What a reader must know of it.
    """

    name: str
    value: float
    low: float
    high: float
    n: int
    note: str = ""


def exact_share(n_right: int, n: int) -> tuple[float, float]:
    """Clopper-Pearson interval of a share.

    Examples
    --------
    >>> low, high = exact_share(10, 10)
    >>> round(low, 4), high
    (0.6915, 1.0)
    """
    found = binomtest(n_right, n).proportion_ci(LEVEL, method="exact")
    return float(found.low), float(found.high)


def auc_interval(auc: float, n_case: int, n_reference: int) -> tuple[float, float]:
    """Newcombe's interval of an area under the ROC curve, which does not shrink to a point at 0 or 1."""
    z, n = float(norm.ppf((1 + LEVEL) / 2)), (n_case + n_reference) / 2

    def beyond(area: float) -> float:
        spread = area * (1 - area) * (1 + (n - 1) * ((1 - area) / (2 - area) + area / (1 + area)))
        return abs(auc - area) - z * float(np.sqrt(max(spread, 0.0) / (n_case * n_reference)))

    # At 0 and 1 themselves the equation holds trivially; the limit is the other solution.
    inside = min(max(auc, EDGE), 1 - EDGE)
    low = 0.0 if auc <= 0 else float(brentq(beyond, 0.0, inside))
    high = 1.0 if auc >= 1 else float(brentq(beyond, inside, 1.0))
    return low, high


def mean_share(shares: Sequence[float], intervals: Sequence[tuple[float, float]]) -> tuple[float, float, float]:
    """Mean of shares of different subjects, with its interval from theirs."""
    value = float(np.mean(shares))
    down = np.sqrt(sum((share - low) ** 2 for share, (low, _) in zip(shares, intervals, strict=True))) / len(shares)
    up = np.sqrt(sum((high - share) ** 2 for share, (_, high) in zip(shares, intervals, strict=True))) / len(shares)
    return value, float(max(value - down, 0.0)), float(min(value + up, 1.0))


def class_measures(scores: np.ndarray, called: np.ndarray, y: np.ndarray, levels: Sequence[str]) -> list[Measure]:
    """How well classes were told apart; of a cohort of one class, its sensitivity alone.

    Parameters
    ----------
    scores : ndarray
        (subject, class) probabilities.
    called : ndarray
        (subject,) code that was called.
    y : ndarray
        (subject,) code that is known.
    levels : Sequence[str]
        Names of the codes.

    Returns
    -------
    list of Measure
        Of two classes the second is the case: sensitivity is its share called right, specificity that of the first.
    """
    counts = np.bincount(y, minlength=len(levels))
    present = [code for code in range(len(levels)) if counts[code] > 0]
    binary = len(levels) == 2
    shares = {code: float(np.mean(called[y == code] == code)) for code in present}
    limits = {code: exact_share(int((called[y == code] == code).sum()), int(counts[code])) for code in present}
    names = dict(enumerate(("specificity", "sensitivity"))) if binary else {}
    found = [
        Measure(
            names.get(code, "sensitivity") + f" ({levels[code]})",
            shares[code],
            *limits[code],
            int(counts[code]),
            "exact interval",
        )
        for code in present[::-1]
    ]
    if len(present) < len(levels):
        return found
    balanced = Measure(
        "balanced accuracy", *mean_share(list(shares.values()), list(limits.values())), len(y), "0.5 is chance"
    )
    if not binary:
        areas = [_area(scores[:, code], y == code, f"AUC ({levels[code]} against the rest)") for code in present]
        chance = f"{1 / len(levels):.2f} is chance"
        return [Measure(balanced.name, balanced.value, balanced.low, balanced.high, len(y), chance), *found, *areas]
    p, is_case = scores[:, 1], y == 1
    return [_area(p, is_case, "AUC"), balanced, *found, *probability_measures(p, is_case)]


def _area(score: np.ndarray, is_case: np.ndarray, name: str) -> Measure:
    area = float(roc_auc_score(is_case, score))
    return Measure(
        name, area, *auc_interval(area, int(is_case.sum()), int((~is_case).sum())), len(score), "0.5 is chance"
    )


def probability_measures(p: np.ndarray, is_case: np.ndarray) -> list[Measure]:
    """Brier score, calibration intercept and slope of probabilities of being a case.

    Parameters
    ----------
    p : ndarray
        (subject,) in [0, 1].
    is_case : ndarray
        (subject,) bool.
    """
    missed = np.square(p - is_case)
    odds = logit(np.clip(p, SMALLEST_P, 1 - SMALLEST_P))
    ones = np.ones((len(p), 1))
    offset, one = logistic(ones, is_case, offset=odds), logistic(np.column_stack([ones, odds]), is_case)
    share = float(is_case.mean())
    n = len(p)
    value, low, high = _mean(missed)
    no_slope = "" if np.isfinite(one).all() else "not defined: the classes are separated, or all scores are the same"
    return [
        Measure(
            "Brier score",
            value,
            max(low, 0.0),
            min(high, 1.0),
            n,
            f"{share * (1 - share):.3f} by the share of cases here alone",
        ),
        _estimate("calibration intercept", offset[0], n, "0 is right; above 0: cases are more frequent than was said"),
        _estimate("calibration slope", one[1], n, no_slope or "1 is right; below 1: the probabilities are too extreme"),
    ]


def _estimate(name: str, limits: np.ndarray, n: int, note: str) -> Measure:
    value, low, high = (float(number) for number in limits)
    return Measure(name, value, low, high, n, note)


def number_measures(predicted: np.ndarray, y: np.ndarray) -> list[Measure]:
    """How near predicted numbers come: error, explained share, correlation and calibration.

    Parameters
    ----------
    predicted, y : ndarray
        (subject,) predicted and known number.
    """
    n, gone = len(y), y - predicted
    total = float(np.square(y - y.mean()).sum())
    r2 = 1 - float(np.square(gone).sum()) / total if total > 0 else float("nan")
    error = Measure(
        "mean absolute error", *_mean(np.abs(gone)), n, f"{np.abs(y - y.mean()).mean():.3g} by this cohort's mean"
    )
    shift = Measure("mean difference", *_mean(gone), n, "known minus predicted; 0 is right")
    found = [
        error,
        Measure("R2", r2, float("nan"), float("nan"), n, "0: as good as this cohort's mean; can be negative"),
    ]
    if n < 4 or np.ptp(predicted) == 0 or np.ptp(y) == 0:
        return [*found, shift]
    r = pearsonr(predicted, y)
    low, high = r.confidence_interval(LEVEL)
    slope = float(np.cov(predicted, y)[0, 1] / predicted.var(ddof=1))
    left = (y - y.mean()) - slope * (predicted - predicted.mean())
    spread = _t(n - 2) * float(np.sqrt(np.square(left).sum() / (n - 2) / np.square(predicted - predicted.mean()).sum()))
    return [
        *found,
        Measure("correlation", float(r.statistic), float(low), float(high), n),
        shift,
        Measure("calibration slope", slope, slope - spread, slope + spread, n, "1 is right; below 1: too extreme"),
    ]


def _mean(values: np.ndarray) -> tuple[float, float, float]:
    mean, n = float(values.mean()), len(values)
    if n < 2:
        return mean, float("nan"), float("nan")
    spread = _t(n - 1) * float(values.std(ddof=1)) / np.sqrt(n)
    return mean, mean - spread, mean + spread


def _t(degrees: int) -> float:
    return float(student_t.ppf((1 + LEVEL) / 2, degrees))


def roc(p: np.ndarray, is_case: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(point,) false and true positive rates of the ROC curve, from (0, 0) to (1, 1)."""
    false_rate, true_rate, _ = roc_curve(is_case, p, drop_intermediate=False)
    return np.asarray(false_rate), np.asarray(true_rate)
