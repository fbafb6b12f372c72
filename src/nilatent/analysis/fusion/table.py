"""Ways of telling a target as a table for people and as arrays for figures."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr

from nilatent.analysis import stats
from nilatent.analysis.fusion.judged import Row
from nilatent.analysis.fusion.ways import PRESENT, PRESENT_SINGLE
from nilatent.analysis.prediction.measures import MEASURES

IMPORTANCE = ("conditional", "marginal")


def corrected(p_values: Sequence[float]) -> np.ndarray:
    """(row,) false discovery rates of all p-values there are; NaN where nothing is tested."""
    p = np.asarray(p_values, dtype=np.float64)
    known = np.isfinite(p)
    found = np.full(len(p), np.nan)
    if known.any():
        found[known] = stats.fdr(p[known])
    return found


def ordered(rows: Sequence[Row]) -> list[Row]:
    """Target by target, ways on the same scans together, best first, those that were not run last."""
    names = list(dict.fromkeys(row.target.name for row in rows))
    return sorted(
        rows,
        key=lambda row: (
            names.index(row.target.name),
            row.way in (PRESENT, PRESENT_SINGLE),
            row.measured is None,
            -row.value if row.measured is not None else 0.0,
        ),
    )


def table_of(rows: Sequence[Row]) -> pd.DataFrame:
    """One line per way, columns of what no target needs left out.

    Parameters
    ----------
    rows : Sequence[Row]
        In the order of the table.
    """
    lines = [_line(row) for row in rows]
    measured = [{} if row.measured is None else row.measured.value for row in rows]
    found = pd.DataFrame([line | one for line, one in zip(lines, measured, strict=True)])
    for name in ("difference", "conditional"):
        found[f"q_{name}"] = corrected(list(found[f"p_{name}"]))
    first = [name for name in lines[0] if name != "note"]
    return found[[*first, *(name for name in MEASURES if name in found), "note"]]


def _line(row: Row) -> dict[str, object]:
    nan = float("nan")
    line: dict[str, object] = {
        "target": row.target.name,
        "kind": row.target.kind,
        "way": row.way,
        "features": row.features,
        "n_scans": len(row.target.rows),
        "n_subjects": row.n_subjects,
        "main": row.main,
        "value": row.value,
        "low": nan if row.measured is None else row.measured.low[row.main],
        "high": nan if row.measured is None else row.measured.high[row.main],
        "chance": row.chance,
    }
    found = row.against
    line |= {
        "against": "" if found is None else found.against,
        "difference": nan if found is None else found.difference,
        "difference_low": nan if found is None else found.low,
        "difference_high": nan if found is None else found.high,
        "p_difference": nan if found is None else found.p_value,
        "q_difference": nan,
    }
    for name in IMPORTANCE:
        lost = None if row.importance is None else getattr(row.importance, name)
        line |= {
            name: nan if lost is None else lost.value,
            f"{name}_low": nan if lost is None else lost.low,
            f"{name}_high": nan if lost is None else lost.high,
            f"p_{name}": nan if lost is None else lost.p_value,
        }
        if name == "conditional":
            line["q_conditional"] = nan
    return line | {
        "weight": float(np.mean(row.weights)) if row.weights else nan,
        "folds_chosen": row.n_chosen if row.weights else nan,
        "note": row.note,
    }


def arrays_of(rows: Sequence[Row], scan_ids: pd.Index) -> xr.Dataset:
    """What was said of every scan in every way.

    Parameters
    ----------
    rows : Sequence[Row]
        In the order of the table.
    scan_ids : Index
        The cohort.

    Returns
    -------
    Dataset
        Dimension ``row`` as the lines of the table; where a row has fewer classes than others, or a scan takes no part, NaN.
        ``weight`` is that of single modalities in weighted late fusion, fold by fold.
    """
    n_levels = max(1, *(len(row.target.levels) for row in rows))
    n_folds = max(len(row.weights) for row in rows)
    score = np.full((len(rows), len(scan_ids), n_levels), np.nan)
    called, truth = (np.full((len(rows), len(scan_ids)), np.nan) for _ in range(2))
    weight = np.full((len(rows), n_folds), np.nan)
    for number, row in enumerate(rows):
        target = row.target
        truth[number, target.rows] = target.y
        weight[number, : len(row.weights)] = row.weights
        if row.told is not None:
            score[number, target.rows, : max(len(target.levels), 1)] = row.told.scores[:, 0]
            called[number, target.rows] = row.told.called[:, 0]
    return xr.Dataset(
        {
            "score": (("row", "scan", "level"), score),
            "called": (("row", "scan"), called),
            "truth": (("row", "scan"), truth),
            "weight": (("row", "fold"), weight),
        },
        coords={
            "row": np.arange(len(rows)),
            "scan": scan_ids.to_numpy().astype(str),
            "level": np.arange(n_levels),
            "fold": np.arange(n_folds),
        },
    )
