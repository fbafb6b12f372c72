"""Which scans the error profile rests on, and its null model: one scan per subject, nothing missing, nothing seen."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import gammaln

from nilatent.analysis import stats
from nilatent.analysis.contrast import (
    MIN_DEGREES,
    MIN_SUBJECTS,
    NotComparableError,
    confound_matrix,
    first_scans,
    level_words,
)
from nilatent.analysis.error_profile.models import Problem
from nilatent.errors import CohortError, LeakageError

# With fewer, a level of the null model may be known from one scan, or none, once a fold is held out.
MIN_PER_LEVEL = 4
MIN_ORDERS = 1000
MISSING_SHARE = 0.2
NUMBERS, WORDS = ("total_gm", "head_size_factor", "age"), ("sex",)
FOLD = "level of the cross-fitted model"


@dataclass(frozen=True, eq=False)
class Chosen:
    """Scans, arrays and what was left out.

    Parameters
    ----------
    scans : DataFrame
        The chosen rows of the cohort, in the order of the arrays.
    problem : Problem
        Their arrays; regions that vary beyond the null model only.
    kept : ndarray
        (region of the atlas,) bool: the region is in the arrays.
    sites : ndarray or None
        (scan,) site.
    null_model : list[str]
        What the null model holds, in words.
    notes : list[str]
        Columns the null model could not use, and why.
    left_out : dict[str, list[str]]
        Reason to identifiers of scans.
    """

    scans: pd.DataFrame
    problem: Problem
    kept: np.ndarray
    sites: np.ndarray | None
    null_model: list[str]
    notes: list[str]
    left_out: dict[str, list[str]]


def check_errors(errors: pd.DataFrame, scans: pd.DataFrame) -> None:
    """Refuse errors that are not out of sample, or do not belong to these scans.

    Raises
    ------
    CohortError
        When a column is missing, a scan repeats or is unknown, or an error is not a positive number.
    LeakageError
        When a model has seen a subject whose error it made, or scans of one subject come from different models.
    """
    missing = [name for name in ("fold", "error", "subject_id") if name not in errors]
    if missing:
        raise CohortError(f"The table of errors has no column '{missing[0]}'. It needs fold, error and subject_id.")
    if "in_training" in errors and errors["in_training"].astype(bool).any():
        seen = sorted(set(errors.loc[errors["in_training"].astype(bool), "subject_id"].astype(str)))
        raise LeakageError(
            f"Errors of {len(seen)} subjects come from a model that has seen them ({', '.join(seen[:5])}). A model hides "
            "its errors there: hand in held-out scans only, or train with `nilatent run --folds 5`."
        )
    if not errors.index.is_unique or not errors.index.isin(scans.index).all():
        odd = errors.index[errors.index.duplicated() | ~errors.index.isin(scans.index)][0]
        raise CohortError(
            f"Scan {odd} of the table of errors repeats or is not in the cohort. Compute the errors again."
        )
    values = pd.to_numeric(errors["error"], errors="coerce").to_numpy(dtype=np.float64)
    bad = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
    if len(bad):
        raise CohortError(
            f"The error of scan {errors.index[bad[0]]} is {errors['error'].iloc[bad[0]]}; a mean squared error is above 0 "
            f"({len(bad)} such scans). Look at their reconstructions."
        )
    if (errors["subject_id"].astype(str) != scans.loc[errors.index, "subject_id"].astype(str)).any():
        raise CohortError("The table of errors and the cohort name different subjects for a scan. Compute it again.")
    n_folds = errors.groupby("subject_id")["fold"].nunique()
    if errors["fold"].isna().any() or (n_folds > 1).any():
        named = n_folds.index[n_folds > 1][0] if (n_folds > 1).any() else errors.index[errors["fold"].isna()][0]
        raise LeakageError(
            f"Scans of {named} come from different folds, or from none, so one model has seen what another is judged on. "
            "Split by subject."
        )


def choose(
    errors: pd.DataFrame,
    regions: pd.DataFrame,
    scans: pd.DataFrame,
    *,
    n_voxels: np.ndarray,
    covariates: Sequence[str],
    site: str,
) -> Chosen:
    """The first complete scan of each subject, with the null model of all that the cohort knows of it.

    Parameters
    ----------
    errors : DataFrame
        Index scan_id; ``fold``, ``error``, ``subject_id``.
    regions : DataFrame
        Index scan_id, one column per region.
    scans : DataFrame
        Index scan_id; the cohort.
    n_voxels : ndarray
        (region,) size, which weighs the regions in total grey matter.
    covariates : Sequence[str]
        Columns of the null model beside total grey matter, head size, age and sex.
    site : str
        Column of the site; empty for none.

    Raises
    ------
    NotComparableError
        When too few scans remain, or nothing is left to explain or to permute.
    """
    table = scans.loc[errors.index].copy()
    x = regions.loc[errors.index].to_numpy(dtype=np.float64)
    stats.check_finite(x, what="The table of regions")
    table["total_gm"] = x @ n_voxels
    columns, notes = _automatic(table, asked=covariates)
    columns += [name for name in covariates if name not in columns]
    sites = [site] if site else []
    null = confound_matrix(table, [*columns, *sites], levels=sites)
    left_out: dict[str, list[str]] = {}
    usable = np.flatnonzero(np.isfinite(null).all(axis=1))
    _list(left_out, "missing value in the null model", table.index, np.arange(len(table)), usable)
    rows = usable[first_scans(table.iloc[usable])] if len(usable) else usable
    _list(left_out, "a later session of the same subject", table.index, usable, rows)
    # The number says nothing beyond which model it was; as text it cannot be taken for a size.
    folds = errors["fold"].astype(str).to_numpy()
    words = level_words(table[site]).astype(str).to_numpy() if site else None
    for name, values in (("site", words), ("cross-fitted model", folds)):
        enough = rows if values is None else _in_large_levels(rows, values)
        _list(left_out, f"fewer than {MIN_PER_LEVEL} scans of the same {name}", table.index, rows, enough)
        rows = enough
    table, folds = table.iloc[rows], folds[rows]
    squares = [name for name in columns if name in NUMBERS and pd.api.types.is_numeric_dtype(table[name])]
    levels = confound_matrix(pd.DataFrame({FOLD: folds}, index=table.index), [FOLD], levels=[FOLD])
    null = np.hstack([null[rows], _squared(table, squares), levels])
    blocks = np.array(
        [f"{fold}/{place}" for fold, place in zip(folds, folds if words is None else words[rows], strict=True)]
    )
    log_error = np.log(pd.to_numeric(errors["error"]).to_numpy(dtype=np.float64)[rows])
    _check(log_error, null, blocks)
    kept = stats.varying(x[rows], null)
    if not kept.any():
        raise NotComparableError("no region varies between scans once the null model is removed")
    named = [f"{name} and its square" if name in squares else name for name in columns]
    return Chosen(
        scans=table,
        problem=Problem(log_error, x[rows][:, kept], null, pd.factorize(folds)[0], pd.factorize(blocks)[0]),
        kept=kept,
        sites=None if words is None else words[rows],
        null_model=[*named, *sites, FOLD],
        notes=notes,
        left_out=left_out,
    )


def _automatic(table: pd.DataFrame, *, asked: Sequence[str]) -> tuple[list[str], list[str]]:
    """Columns every null model takes where the cohort has them, and why one of them is not taken."""
    columns, notes = [], []
    for name in (*NUMBERS, *WORDS):
        if name in asked:
            columns.append(name)
        elif name not in table:
            notes.append(f"{name} is not in the cohort")
        elif name in NUMBERS and not pd.api.types.is_numeric_dtype(table[name]):
            notes.append(f"{name} is not a column of numbers")
        elif table[name].isna().mean() > MISSING_SHARE:
            notes.append(f"{name} is missing in {table[name].isna().mean():.0%} of the scans")
        elif table[name].nunique() < 2:
            notes.append(f"{name} is the same in every scan")
        else:
            columns.append(name)
    return columns, notes


def _in_large_levels(rows: np.ndarray, values: np.ndarray) -> np.ndarray:
    level = pd.Series(values[rows])
    return rows[level.groupby(level).transform("size").to_numpy(dtype=np.int64) >= MIN_PER_LEVEL]


def _squared(table: pd.DataFrame, columns: Sequence[str]) -> np.ndarray:
    """A bent relation of the error to total grey matter is still one to total grey matter, and no region's."""
    values = table[list(columns)].to_numpy(dtype=np.float64)
    return np.asarray(np.square((values - values.mean(axis=0)) / values.std(axis=0)) if len(values) else values)


def _list(left_out: dict[str, list[str]], reason: str, index: pd.Index, before: np.ndarray, after: np.ndarray) -> None:
    gone = np.setdiff1d(before, after)
    if len(gone):
        left_out[reason] = [str(scan_id) for scan_id in index[gone]]


def _check(log_error: np.ndarray, null: np.ndarray, blocks: np.ndarray) -> None:
    if len(log_error) < MIN_SUBJECTS:
        raise NotComparableError(
            f"too few: {len(log_error)} subjects have an error from a model that has not seen them; {MIN_SUBJECTS} are "
            "needed. Train with --folds 5, so that every subject has one"
        )
    rank = stats.confound_basis(null, len(log_error)).shape[1]
    if len(log_error) - rank - 1 < MIN_DEGREES:
        raise NotComparableError(f"too few: {len(log_error)} subjects for the {rank - 1} columns of the null model")
    if not stats.varying(log_error, null)[0]:
        raise NotComparableError("the null model explains the errors without remainder, or they are all the same")
    sizes = np.unique(blocks, return_counts=True)[1]
    if gammaln(sizes + 1).sum() < np.log(MIN_ORDERS):
        raise NotComparableError(
            f"too few scans share a cross-fitted model and a site: they can be shuffled in fewer than {MIN_ORDERS} ways"
        )
