"""What was judged as a table for people and as arrays for figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from nilatent.analysis import stats
from nilatent.analysis.multimodal.asked import ALL, JOINT, SHARED, Array, Question
from nilatent.analysis.multimodal.judged import EQUAL, MEAN, RIVAL, Judged, Paired, paired

ITSELF = "itself"
AGAINST = {True: EQUAL, False: RIVAL}
# Those that are compared first, then what they are compared with.
ORDER = (JOINT, SHARED, RIVAL, EQUAL)


@dataclass(frozen=True)
class Settings:
    """How intervals and tests are made.

    Parameters
    ----------
    n_bootstrap, n_flips : int
        Resamples of subjects, and flips of the signs of their differences.
    alpha : float
        False discovery rate; intervals cover 1 - alpha.
    seed : int
        Of every draw.
    n_folds : int
        Of the cross-fitting, 1 for a single split.
    """

    n_bootstrap: int
    n_flips: int
    alpha: float
    seed: int
    n_folds: int

    def apart(self, ours: Array, theirs: Array, base: Array, subjects: npt.NDArray[np.str_]) -> Paired:
        """Compare the errors of two ways, (scan,) NaN where a scan takes no part."""
        there = np.isfinite(ours) & np.isfinite(theirs)
        return paired(
            ours[there],
            theirs[there],
            base[there],
            subjects[there],
            n_folds=self.n_folds,
            seed=self.seed,
            n_bootstrap=self.n_bootstrap,
            n_flips=self.n_flips,
            alpha=self.alpha,
        )


def sources_of(question: Question) -> str:
    """What a target is told from, in words."""
    return ITSELF if question.itself else " + ".join(question.sources)


def table_of(rows: Sequence[Judged], subjects: npt.NDArray[np.str_], settings: Settings) -> pd.DataFrame:
    """One line per question and way; a question that was not answered has one, with the reason.

    Parameters
    ----------
    rows : Sequence[Judged]
        In the order of the table.
    subjects : ndarray
        (scan,) whose scan it is.
    settings : Settings
        Of intervals and tests.
    """
    lines = []
    for row in rows:
        ways = [name for name in ORDER if name in row.error]
        ways += [name for name in row.error if name not in (*ORDER, MEAN)]
        lines += [_line(row, way, subjects, settings) for way in ways or [JOINT]]
    table = pd.DataFrame(lines)
    for name in ("difference", "mean"):
        table[f"q_{name}"] = _corrected(table[f"p_{name}"].to_numpy(float))
    return table


def _corrected(p: Array) -> Array:
    known = np.isfinite(p)
    found = np.full(len(p), np.nan)
    if known.any():
        found[known] = stats.fdr(p[known])
    return found


def _line(row: Judged, way: str, subjects: npt.NDArray[np.str_], settings: Settings) -> dict[str, object]:
    nan, question = float("nan"), row.question
    line: dict[str, object] = {
        "target": question.target,
        "kind": question.kind,
        "sources": sources_of(question),
        "scans": question.given,
        "way": way,
        "n_scans": 0,
        "n_subjects": 0,
    }
    names = (
        "unexplained",
        "low",
        "high",
        "difference",
        "difference_low",
        "difference_high",
        "p_difference",
        "q_difference",
    )
    line |= dict.fromkeys((*names, "p_mean", "q_mean", "accuracy", "base_rate"), nan) | {
        "against": "",
        "note": row.note,
    }
    if row.note:
        return line
    error, base = row.error[way], row.error[MEAN]
    there = np.isfinite(error)
    value, low, high = stats.bootstrap_ratio(
        error[there],
        base[there],
        subjects[there],
        seed=settings.seed,
        n_bootstrap=settings.n_bootstrap,
        level=1 - settings.alpha,
    )
    line |= {"n_scans": int(there.sum()), "n_subjects": len(np.unique(subjects[there]))}
    line |= {"unexplained": value, "low": low, "high": high}
    if row.hit:
        line |= {"accuracy": float(row.hit[way][there].mean()), "base_rate": float(row.hit[MEAN][there].mean())}
    if way in (JOINT, RIVAL) and not question.itself:
        line["p_mean"] = settings.apart(error, base, base, subjects).p_value
    other = AGAINST[question.itself]
    if way == JOINT and other in row.error:
        found = settings.apart(error, row.error[other], base, subjects)
        line |= {"against": other, "difference": found.difference, "p_difference": found.p_value}
        line |= {"difference_low": found.low, "difference_high": found.high}
    if way == RIVAL:
        counts = pd.Series(row.chosen).value_counts()
        line["note"] = ", ".join(f"{name} in {n} of {len(row.chosen)} folds" for name, n in counts.items())
    return line


def steps_of(rows: Sequence[Judged], subjects: npt.NDArray[np.str_], settings: Settings) -> pd.DataFrame:
    """What looking at more kinds changes in the error of the joint model, on scans that have all of them.

    Returns
    -------
    DataFrame
        A row per step from one set of kinds to the next larger: ``target``, ``fewer`` (empty for none), ``more``, ``change``
        of the unexplained share (below 0 more is better), its interval ``low`` and ``high``, ``p_value`` and ``q_value``.
    """
    found = []
    by_target: dict[str, list[Judged]] = {}
    for row in rows:
        if not (row.note or row.question.itself or row.question.given != ALL):
            by_target.setdefault(row.question.target, []).append(row)
    for target, same in by_target.items():
        widest = max(same, key=lambda row: len(row.question.sources))
        # Differences rest on the scans that both errors have: here those that have every kind.
        base = widest.error[MEAN]
        error = {frozenset[str](): base} | {frozenset(row.question.sources): row.error[JOINT] for row in same}
        error = {names: np.where(np.isfinite(base), values, np.nan) for names, values in error.items()}
        for fewer, more in permutations(error, 2):
            if not fewer < more or any(fewer < between < more for between in error):
                continue
            change = settings.apart(error[more], error[fewer], base, subjects)
            names = (" + ".join(name for name in widest.question.sources if name in one) for one in (fewer, more))
            line = dict(zip(("fewer", "more"), names, strict=True)) | {"target": target, "change": change.difference}
            found.append(line | {"low": change.low, "high": change.high, "p_value": change.p_value})
    columns = ["target", "fewer", "more", "change", "low", "high", "p_value"]
    table = pd.DataFrame(found, columns=columns)
    return table.assign(q_value=_corrected(table["p_value"].to_numpy(float)))


def arrays_of(rows: Sequence[Judged], table: pd.DataFrame, steps: pd.DataFrame, scan_ids: pd.Index) -> xr.Dataset:
    """Errors of every scan and the steps, for figures and for whoever asks again.

    Parameters
    ----------
    rows : Sequence[Judged]
        As for the table.
    table, steps : DataFrame
        From :func:`table_of` and :func:`steps_of`.
    scan_ids : Index
        The cohort.

    Returns
    -------
    Dataset
        ``error`` and ``error_of_mean`` (row, scan): rows are the lines of the table, NaN where a scan takes no part.
    """
    by: Mapping[tuple[str, str, str], Judged] = {
        (row.question.target, sources_of(row.question), row.question.given): row for row in rows
    }
    nothing = np.full(len(scan_ids), np.nan)
    error, base = [], []
    for target, sources, given, way in table[["target", "sources", "scans", "way"]].itertuples(index=False):
        one = by[target, sources, given]
        error.append(one.error.get(way, nothing))
        base.append(one.error.get(MEAN, nothing))
    words = ("target", "fewer", "more")
    made: dict[str, tuple[object, ...]] = {
        f"step_{name}": ("step", steps[name].to_numpy(str if name in words else float)) for name in steps
    }
    made |= {"error": (("row", "scan"), np.array(error)), "error_of_mean": (("row", "scan"), np.array(base))}
    return xr.Dataset(made, coords={"scan": scan_ids.to_numpy().astype(str)})
