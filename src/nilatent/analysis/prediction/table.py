"""Rows of the prediction as a table for people and as arrays for figures."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

from nilatent.analysis.prediction.compare import Comparison
from nilatent.analysis.prediction.curves import FALSE_ALARMS, N_BINS, Calibration, calibration, roc
from nilatent.analysis.prediction.cv import Told
from nilatent.analysis.prediction.measures import MAIN, MEASURES, Measured, parts_of_sums
from nilatent.analysis.prediction.targets import Target

AS_IT_IS, WITHOUT_HEAD_SIZE = "as it is", "without head size"


@dataclass(frozen=True, eq=False)
class Row:
    """One feature set judged on one target by one head.

    Parameters
    ----------
    target : Target
        What is predicted.
    features : str
        Name of the feature set.
    baseline : bool
        Whether the set is one that stands beside.
    adjusted : bool
        Whether head size and total grey matter were removed from the features.
    head : str
        Which head.
    told : Told
        What was said of held-out scans, one column.
    measured : Measured
        Measures with intervals.
    p_value : float
        Permutation p of the main measure; NaN when it was not tested.
    n_permutations : int
        Shuffles it took.
    badge : str
        Worst case.
    of_site : bool
        Whether the site is predicted to see what the features know of it.
    against : Comparison or None
        With the best baseline; None for baselines.
    """

    target: Target
    features: str
    baseline: bool
    adjusted: bool
    head: str
    told: Told
    measured: Measured
    p_value: float
    n_permutations: int
    badge: str
    of_site: bool
    against: Comparison | None = None

    @property
    def main(self) -> str:
        """Name of the measure that is tested and compared."""
        return MAIN[self.target.kind]

    @property
    def value(self) -> float:
        """The main measure."""
        return self.measured.value[self.main]

    @property
    def chance(self) -> float:
        """What the main measure is without any information."""
        return 1 / len(self.target.levels) if self.main == "balanced_accuracy" else 0.0


def table_of(rows: Sequence[Row], calibrations: Sequence[Calibration | None], subjects: np.ndarray) -> pd.DataFrame:
    """One line per row, columns of what no target needs left out.

    Parameters
    ----------
    rows : Sequence[Row]
        In the order of the table.
    calibrations : Sequence
        Of two-class rows; None for others.
    subjects : ndarray
        (scan of the cohort,) subject.
    """
    lines = []
    for row, calibrated in zip(rows, calibrations, strict=True):
        low, high = row.measured.low[row.main], row.measured.high[row.main]
        line: dict[str, object] = {
            "target": row.target.name,
            "kind": row.target.kind,
            "question": "what the features know of the site" if row.of_site else "prediction",
            "features": row.features,
            "baseline": row.baseline,
            "head_size": WITHOUT_HEAD_SIZE if row.adjusted else AS_IT_IS,
            "head": row.head,
            "n_scans": len(row.target.rows),
            "n_subjects": len(np.unique(subjects[row.target.rows])),
            "main": row.main,
            "value": row.value,
            "low": low,
            "high": high,
            "chance": row.chance,
            "p": row.p_value,
            "n_permutations": row.n_permutations,
            "badge": row.badge,
        }
        if row.against is not None:
            line |= {
                "against": row.against.against,
                "difference": row.against.difference,
                "difference_low": row.against.low,
                "difference_high": row.against.high,
                "p_difference": row.against.p_value,
            }
        line |= {name: row.measured.value[name] for name in MEASURES if name in row.measured.value}
        if calibrated is not None:
            line |= {
                "calibration_error": calibrated.error,
                "calibration_intercept": calibrated.intercept,
                "calibration_slope": calibrated.slope,
            }
        if len(row.target.levels):
            line["by_class"] = by_class(row)
        lines.append(line)
    found = pd.DataFrame(lines)
    first = [*lines[0]][:17]
    against = ["against", "difference", "difference_low", "difference_high", "p_difference"]
    last = ["calibration_error", "calibration_intercept", "calibration_slope", "by_class"]
    order = [name for name in (*first, *against, *MEASURES, *last) if name in found]
    return found[order]


def by_class(row: Row) -> str:
    """How many of each class are called as such, in words with intervals."""
    found = row.measured
    counts = np.bincount(row.target.y, minlength=len(row.target.levels))
    parts = zip(row.target.levels, counts, found.recall, found.recall_low, found.recall_high, strict=True)
    return "; ".join(f"{level} {share:.2f} [{low:.2f}, {high:.2f}] of {n}" for level, n, share, low, high in parts)


def calibrations_of(rows: Sequence[Row]) -> list[Calibration | None]:
    """Calibration of every two-class row."""
    return [
        calibration(row.told.scores[:, 0, 1], row.target.y == 1) if row.target.kind == "binary" else None
        for row in rows
    ]


def arrays_of(
    rows: Sequence[Row],
    calibrations: Sequence[Calibration | None],
    weights: dict[str, np.ndarray],
    scan_ids: pd.Index,
    *,
    alpha: float,
) -> xr.Dataset:
    """Everything that figures show: scores of each scan, ROC curves with bands, calibration and confusion tables.

    Parameters
    ----------
    rows, calibrations
        As in :func:`table_of`.
    weights : dict[str, ndarray]
        Name of the target to (resample, scan) weights.
    scan_ids : Index
        The cohort.
    alpha : float
        Of bands.

    Returns
    -------
    Dataset
        Dimension ``row`` as the lines of the table; where a row has fewer classes than others, NaN.
    """
    n_rows, n_scans = len(rows), len(scan_ids)
    n_levels = max(1, *(len(row.target.levels) for row in rows))
    score = np.full((n_rows, n_scans, n_levels), np.nan)
    called, truth = (np.full((n_rows, n_scans), np.nan) for _ in range(2))
    curve = np.full((3, n_rows, len(FALSE_ALARMS)), np.nan)
    bins = np.full((3, n_rows, N_BINS), np.nan)
    table = np.full((n_rows, n_levels, n_levels), np.nan)
    recall = np.full((3, n_rows, n_levels), np.nan)
    limits = np.full((3, n_rows, len(MEASURES)), np.nan)
    names = np.full((n_rows, n_levels), "", dtype=object)
    for number, (row, calibrated) in enumerate(zip(rows, calibrations, strict=True)):
        target, k = row.target, len(row.target.levels)
        score[number, target.rows, : max(k, 1)] = row.told.scores[:, 0]
        called[number, target.rows], truth[number, target.rows] = row.told.called[:, 0], target.y
        names[number, :k] = target.levels
        if k:
            sums = parts_of_sums(target, target.y, row.told.called[:, 0], row.told.constant[:, 0]).sum(axis=0)
            table[number, :k, :k] = sums[:-1].reshape(k, k)
            found = row.measured
            recall[:, number, :k] = found.recall, found.recall_low, found.recall_high
        if calibrated is not None:
            case = row.told.scores[:, 0, 1]
            curve[:, number] = roc(case, target.y == 1, weights[target.name], row.told.folds, alpha=alpha)
            bins[:, number] = calibrated.predicted, calibrated.observed, calibrated.count
        for position, name in enumerate(MEASURES):
            if name in row.measured.value:
                known = row.measured
                limits[:, number, position] = known.value[name], known.low[name], known.high[name]
    return xr.Dataset(
        {
            "score": (("row", "scan", "level"), score),
            "called": (("row", "scan"), called),
            "truth": (("row", "scan"), truth),
            "level_name": (("row", "level"), names.astype(str)),
            "found": (("row", "false_alarms"), curve[0]),
            "found_low": (("row", "false_alarms"), curve[1]),
            "found_high": (("row", "false_alarms"), curve[2]),
            "bin_predicted": (("row", "bin"), bins[0]),
            "bin_observed": (("row", "bin"), bins[1]),
            "bin_count": (("row", "bin"), bins[2]),
            "confusion": (("row", "level", "called_level"), table),
            "confusion_share": (("row", "level", "called_level"), table / np.nansum(table, axis=2, keepdims=True)),
            "recall": (("row", "level"), recall[0]),
            "recall_low": (("row", "level"), recall[1]),
            "recall_high": (("row", "level"), recall[2]),
            "value": (("row", "measure"), limits[0]),
            "low": (("row", "measure"), limits[1]),
            "high": (("row", "measure"), limits[2]),
        },
        coords={
            "row": np.arange(n_rows),
            "scan": scan_ids.to_numpy().astype(str),
            "level": np.arange(n_levels),
            "called_level": np.arange(n_levels),
            "false_alarms": FALSE_ALARMS,
            "measure": list(MEASURES),
        },
    )
