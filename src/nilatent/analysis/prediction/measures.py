"""How good held-out predictions are: measures of classes, ordered levels and numbers, with intervals over subjects.

Most measures are functions of sums over scans (the confusion table, squared errors), so that thousands of resamples, or of
swaps between two feature sets, are one matrix product.

References
----------
Brodersen et al. 2010 (balanced accuracy), doi:10.1109/ICPR.2010.764. Gorodkin 2004 (multi-class MCC),
doi:10.1016/j.compbiolchem.2004.09.006. Kendall 1945 (tau-b), doi:10.1093/biomet/33.3.239. Harrell et al. 1982 (C),
doi:10.1001/jama.1982.03320430047030. Efron 1979 (bootstrap), doi:10.1214/aos/1176344552.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from nilatent.analysis.prediction.cv import Told
from nilatent.analysis.prediction.inner import Kind
from nilatent.analysis.prediction.targets import Target

MAIN = {
    "binary": "balanced_accuracy",
    "multi-class": "balanced_accuracy",
    "ordinal": "kendall_tau",
    "continuous": "r2",
}
"""Kind of a target to the measure that is tested and compared; larger is better."""
MEASURES = (
    "balanced_accuracy", "auc", "sensitivity", "specificity", "f1", "mcc", "brier", "kendall_tau", "level_error",
    "level_error_constant", "mae", "mae_constant", "r2", "r", "c_index",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Measured:
    """Measures of one row, with percentile intervals over subjects.

    Parameters
    ----------
    value, low, high : dict[str, float]
        By name, of those in :data:`MEASURES` that the kind of target has. An interval is NaN where it cannot be drawn.
    recall, recall_low, recall_high : ndarray
        (class,) share of each class that is called as such; empty for a number.
    """

    value: dict[str, float]
    low: dict[str, float]
    high: dict[str, float]
    recall: np.ndarray
    recall_low: np.ndarray
    recall_high: np.ndarray


def subject_weights(subjects: Sequence[object] | np.ndarray, n_bootstrap: int, *, seed: int) -> np.ndarray:
    """(resample, scan) how often each scan is drawn when subjects are, with all their scans."""
    codes, names = pd.factorize(np.asarray(subjects))
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=n_bootstrap)
    return np.asarray(drawn[:, codes], dtype=np.float64)


def parts_of_sums(target: Target, y: np.ndarray, called: np.ndarray, constant: np.ndarray) -> np.ndarray:
    """(scan, ..., part) what each scan adds to the sums from which :func:`from_sums` makes measures.

    Parameters
    ----------
    target : Target
        Kind and levels.
    y, called, constant : ndarray
        (scan, ...) truth, what was called, what would be said without features.
    """
    if target.kind != "continuous":
        n_levels = len(target.levels)
        cells = np.asarray(y).astype(np.intp) * n_levels + called.astype(np.intp)
        missed = np.abs(y - constant)[..., None]
        marks = (cells[..., None] == np.arange(n_levels**2)).astype(np.float64)
        return np.concatenate([marks, missed], axis=-1)
    error, plain = y - called, y - constant
    # What is said beyond the training mean, which falls where the held-out values are high.
    centred, said = plain, called - constant
    ones = np.ones(np.shape(y))
    columns = [error**2, plain**2, abs(error), abs(plain), centred, said, centred**2, said**2, centred * said, ones]
    return np.stack(columns, axis=-1)


def from_sums(sums: np.ndarray, kind: Kind, n_levels: int) -> dict[str, np.ndarray]:
    """Measures, each (draw,), from (draw, part) sums of :func:`parts_of_sums`; NaN where a class is not drawn."""
    if kind == "continuous":
        squares, plain, missed, missed_plain, y, p, yy, pp, yp, n = sums.T
        spread = np.sqrt(np.maximum(yy - y**2 / n, 0) * np.maximum(pp - p**2 / n, 0))
        return {
            "r2": 1 - squares / plain,
            "mae": missed / n,
            "mae_constant": missed_plain / n,
            "r": _ratio(yp - y * p / n, spread),
        }
    table = sums[:, :-1].reshape(-1, n_levels, n_levels)
    truth, said, right = table.sum(axis=2), table.sum(axis=1), np.einsum("bkk->bk", table)
    n, found = truth.sum(axis=1), recalls(sums, n_levels)
    scores = {
        "balanced_accuracy": found.mean(axis=1),
        "f1": _ratio(2 * right, truth + said).mean(axis=1),
        "mcc": _mcc(table),
    }
    if kind == "binary":
        scores |= {"sensitivity": found[:, 1], "specificity": found[:, 0]}
        scores["f1"] = _ratio(2 * right, truth + said)[:, 1]
    if kind == "ordinal":
        apart = np.abs(np.subtract.outer(np.arange(n_levels), np.arange(n_levels)))
        scores["level_error"] = (table * apart).sum(axis=(1, 2)) / n
        scores["level_error_constant"] = sums[:, -1] / n
        scores["kendall_tau"] = _kendall(table)
    return scores


def recalls(sums: np.ndarray, n_levels: int) -> np.ndarray:
    """(draw, class) share of each class that is called as such; NaN where the class is not drawn."""
    table = sums[:, :-1].reshape(-1, n_levels, n_levels)
    truth = table.sum(axis=2)
    return np.where(truth > 0, np.einsum("bkk->bk", table) / np.maximum(truth, 1e-300), np.nan)


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """0 where there is nothing to divide by: calls that are all alike tell nothing."""
    return np.asarray(np.divide(top, bottom, out=np.zeros(np.shape(top)), where=bottom > 1e-12))


def _mcc(table: np.ndarray) -> np.ndarray:
    truth, said, n = table.sum(axis=2), table.sum(axis=1), table.sum(axis=(1, 2))
    top = np.einsum("bkk->b", table) * n - (truth * said).sum(axis=1)
    bottom = (n**2 - (said**2).sum(axis=1)) * (n**2 - (truth**2).sum(axis=1))
    return _ratio(top, np.sqrt(np.maximum(bottom, 0)))


def _kendall(table: np.ndarray) -> np.ndarray:
    """Tau-b of two ordered columns from their table of counts."""
    above = np.flip(np.flip(table, (1, 2)).cumsum(axis=1).cumsum(axis=2), (1, 2))
    beside = np.flip(np.flip(table, 1).cumsum(axis=1), 1).cumsum(axis=2)
    agreeing = (table[:, :-1, :-1] * above[:, 1:, 1:]).sum(axis=(1, 2))
    opposed = (table[:, :-1, 1:] * beside[:, 1:, :-1]).sum(axis=(1, 2))
    pairs = np.square(table.sum(axis=(1, 2)))
    free = [(pairs - np.square(table.sum(axis=axis)).sum(axis=1)) / 2 for axis in (1, 2)]
    return _ratio(agreeing - opposed, np.sqrt(np.maximum(free[0] * free[1], 0)))


def auc(score: np.ndarray, is_case: np.ndarray, weights: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """(draw,) area under the ROC curve, over the pairs of a case and a reference that one head has judged.

    Parameters
    ----------
    score : ndarray
        (scan,) larger is more like a case; ties count half.
    is_case : ndarray
        (scan,) bool.
    weights : ndarray
        (draw, scan).
    folds : ndarray
        (scan,) outer fold.

    Returns
    -------
    ndarray
        NaN where no fold holds both.
    """
    right, pairs = np.zeros(len(weights)), np.zeros(len(weights))
    for fold in np.unique(folds):
        mine = np.flatnonzero(folds == fold)
        mine = mine[np.argsort(score[mine], kind="stable")]
        starts = np.flatnonzero(np.r_[True, np.diff(score[mine]) > 0])
        case = np.add.reduceat(weights[:, mine] * is_case[mine], starts, axis=1)
        reference = np.add.reduceat(weights[:, mine] * ~is_case[mine], starts, axis=1)
        right += (case * (reference.cumsum(axis=1) - reference / 2)).sum(axis=1)
        pairs += case.sum(axis=1) * reference.sum(axis=1)
    return np.where(pairs > 0, right / np.maximum(pairs, 1e-300), np.nan)


def harrell_c(
    risk: np.ndarray, time: np.ndarray, event: np.ndarray, weights: np.ndarray, folds: np.ndarray
) -> np.ndarray:
    """(draw,) Harrell's C: share of the pairs whose order in time is known in which the earlier event had the higher risk.

    As in :func:`auc`, both of a pair were judged by one head.

    Parameters
    ----------
    risk : ndarray
        (scan,) larger is earlier.
    time : ndarray
        (scan,) to the event or to the last visit without it; scans without a time take no part.
    event : ndarray
        (scan,) bool.
    weights : ndarray
        (draw, scan).
    folds : ndarray
        (scan,) outer fold.
    """
    known = np.isfinite(time)
    risk, time, event, weights, folds = risk[known], time[known], event[known], weights[:, known], folds[known]
    # Who leaves at the very time of another's event was still free of it then.
    earlier = event[:, None] & ((time[:, None] < time) | ((time[:, None] == time) & ~event))
    earlier &= folds[:, None] == folds
    agreeing = earlier * ((risk[:, None] > risk) + 0.5 * (risk[:, None] == risk))
    pairs = ((weights @ earlier.astype(np.float64)) * weights).sum(axis=1)
    right = ((weights @ agreeing) * weights).sum(axis=1)
    return np.where(pairs > 0, right / np.maximum(pairs, 1e-300), np.nan)


def main_measure(target: Target, y: np.ndarray, told: Told) -> np.ndarray:
    """(column,) the main measure of every column of labels and what was told of it."""
    sums = parts_of_sums(target, y, told.called, told.constant).sum(axis=0)
    return from_sums(sums, target.kind, len(target.levels))[MAIN[target.kind]]


def measure(
    target: Target, told: Told, weights: np.ndarray, *, time: np.ndarray | None = None, alpha: float = 0.05
) -> Measured:
    """All measures of one row.

    Parameters
    ----------
    target : Target
        What is predicted.
    told : Told
        Of one column.
    weights : ndarray
        (resample, scan) from :func:`subject_weights`.
    time : ndarray or None
        (scan,) time to the event or to the last visit, for Harrell's C.
    alpha : float
        The intervals cover 1 - alpha.
    """
    n_levels = len(target.levels)
    # The first row is the cohort itself.
    weights = np.vstack([np.ones(len(target.y)), weights])
    sums = weights @ parts_of_sums(target, target.y, told.called[:, 0], told.constant[:, 0])
    drawn = from_sums(sums, target.kind, n_levels)
    scores = told.scores[:, 0]
    if target.kind != "continuous":
        shown = target.y[:, None] == np.arange(n_levels)
        ones = [1] if target.kind == "binary" else range(n_levels)
        drawn["auc"] = np.mean([auc(scores[:, one], shown[:, one], weights, told.folds) for one in ones], axis=0)
        missed = np.square(scores - shown).sum(axis=1) / (2 if target.kind == "binary" else 1)
        drawn["brier"] = weights @ missed / weights.sum(axis=1)
        if time is not None and target.kind == "binary":
            drawn["c_index"] = harrell_c(scores[:, 1], time, target.y == 1, weights, told.folds)
    value = {name: float(draws[0]) for name, draws in drawn.items()}
    limits = {name: interval(draws[1:], alpha) for name, draws in drawn.items()}
    found = recalls(sums, n_levels) if n_levels else np.empty((len(sums), 0))
    edges = np.array([interval(column[1:], alpha) for column in found.T]).reshape(-1, 2)
    low, high = ({name: both[side] for name, both in limits.items()} for side in (0, 1))
    return Measured(value, low, high, found[0], edges[:, 0], edges[:, 1])


def interval(draws: np.ndarray, alpha: float) -> tuple[float, float]:
    """Percentile interval over the resamples that have a value; NaN when half of them have none."""
    known = draws[np.isfinite(draws)]
    if len(known) * 2 < len(draws) or len(known) == 0:
        return float("nan"), float("nan")
    low, high = np.quantile(known, [alpha / 2, 1 - alpha / 2])
    return float(low), float(high)
