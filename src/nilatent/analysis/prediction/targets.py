"""What is predicted: columns of the cohort as classes, ordered levels or numbers, or why they cannot be."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from nilatent.analysis.contrast import MIN_SUBJECTS, REFERENCE_WORDS, NotComparableError, contrasts_of, level_words
from nilatent.analysis.prediction.config import PredictionConfig
from nilatent.analysis.prediction.inner import Kind
from nilatent.analysis.prediction.sets import FeatureSet
from nilatent.errors import SettingError

# Numbers with more values than this are numbers; with fewer they are taken for codes of classes.
MOST_CODES = 10

IS_THE_TARGET = 1 - 1e-9
FLAT = 1e-9


@dataclass(frozen=True, eq=False)
class Target:
    """One thing to predict.

    Parameters
    ----------
    name : str
        Column, or contrast of the groups.
    kind : {"binary", "multi-class", "ordinal", "continuous"}
        What it is.
    rows : ndarray
        (n,) positions in the table of scans that have a value; a subject may have several.
    y : ndarray
        (n,) codes 0, 1, ... of the levels, or float64 numbers.
    levels : tuple[str, ...]
        Names of the codes; of two, the second is the case, or the event. Empty for a number.
    left_out : dict[str, list[str]]
        Reason to identifiers of the scans that were left out.
    column : str
        Of the cohort, from which it comes.
    """

    name: str
    kind: Kind
    rows: np.ndarray
    y: np.ndarray
    levels: tuple[str, ...]
    left_out: dict[str, list[str]]
    column: str = ""


def make_targets(
    scans: pd.DataFrame, folds: np.ndarray, config: PredictionConfig, *, usable: np.ndarray
) -> tuple[list[Target], dict[str, str]]:
    """Targets that the cohort can answer, and why it cannot answer the others.

    Parameters
    ----------
    scans : DataFrame
        Index scan_id; ``subject_id`` and the columns named in the settings.
    folds : ndarray
        (scan,) outer fold.
    config : PredictionConfig
        Settings.
    usable : ndarray
        (scan,) bool: every feature set knows the scan.

    Returns
    -------
    targets : list[Target]
        In the order asked.
    refused : dict[str, str]
        Name to reason.
    """
    columns = config.targets or tuple(dict.fromkeys(name for name in (config.group, "sex", "age") if name in scans))
    found: list[Target] = []
    refused: dict[str, str] = {}
    for column in columns:
        for name in _names(scans, column, config, refused):
            try:
                found.append(make_target(scans, folds, column, name=name, config=config, usable=usable))
            except NotComparableError as error:
                refused[name] = str(error)
    return found, refused


def _names(scans: pd.DataFrame, column: str, config: PredictionConfig, refused: dict[str, str]) -> list[str]:
    """The column, or the contrasts of the groups."""
    if column != config.group or not config.contrast or column in config.ordinal:
        return [column]
    try:
        return contrasts_of(scans, group=config.group, contrast=config.contrast)
    except NotComparableError as error:
        refused[column] = str(error)
        return []


def make_target(
    scans: pd.DataFrame, folds: np.ndarray, column: str, *, name: str, config: PredictionConfig, usable: np.ndarray
) -> Target:
    """One target of a column.

    Parameters
    ----------
    scans, folds, config, usable
        As in :func:`make_targets`.
    column : str
        Of the cohort.
    name : str
        The column again, or the contrast ``"A:B"`` of its levels.

    Raises
    ------
    NotComparableError
        When there is no such column, it is constant, or a class has fewer subjects than there are folds.
    """
    if column not in scans:
        raise NotComparableError(f"no column '{column}'")
    words = level_words(scans[column])
    numbers = pd.to_numeric(scans[column], errors="coerce").to_numpy(dtype=np.float64)
    levels: tuple[str, ...] = ()
    kind: Kind = "continuous"
    if column in config.ordinal:
        levels = tuple(level.strip() for level in config.ordinal[column].split(","))
        kind = "binary" if len(levels) == 2 else "ordinal"
    elif name != column:
        kind, levels = "binary", tuple(part.strip() for part in name.partition(":")[::-2])
    elif column not in config.numbers and (not _is_number(scans[column], numbers) or column == config.site):
        levels = _ordered(sorted(words[usable].dropna().unique()))
        kind = "binary" if len(levels) == 2 else "multi-class"
    known = np.isfinite(numbers) if kind == "continuous" else words.isin(levels).to_numpy()
    rows = np.flatnonzero(known & usable)
    y = numbers[rows] if kind == "continuous" else pd.Index(levels).get_indexer(pd.Index(words.iloc[rows]))
    left_out: dict[str, list[str]] = {}
    for reason, lost in ((f"no value of {name}", ~known), ("a feature is missing", known & ~usable)):
        if lost.any():
            left_out[reason] = [str(scan) for scan in scans.index[lost]]
    found = Target(name, kind, rows, y, levels, left_out, column)
    _check(found, scans["subject_id"].to_numpy()[rows], np.asarray(folds)[rows], n_folds=len(np.unique(folds)))
    return found


def check_named(targets: Sequence[Target], scans: pd.DataFrame, config: PredictionConfig) -> None:
    """Refuse times and levels of what is not predicted, before anything is fitted.

    Raises
    ------
    SettingError
        Names the setting and what there is.
    """
    kinds = {name: target.kind for target in targets for name in (target.name, target.column)}
    for name, column in config.times.items():
        if kinds.get(name, "binary") != "binary" or (name not in kinds and name not in scans):
            raise SettingError(
                f"prediction.times names '{name}', which is no target of two classes. There are: {', '.join(kinds)}."
            )
        if column not in scans:
            raise SettingError(f"prediction.times: there is no column '{column}' of the time to '{name}'.")
    absent = [name for name in (*config.ordinal, *config.numbers) if name not in scans]
    if absent:
        raise SettingError(
            f"prediction.ordinal or prediction.numbers names '{absent[0]}', and there is no such column."
        )


def _is_number(values: pd.Series, numbers: np.ndarray) -> bool:
    """Whether a column holds numbers and not codes: every value is a number, and there are many."""
    given = level_words(values).notna().to_numpy()
    return bool(np.isfinite(numbers[given]).all() and len(np.unique(numbers[given])) > MOST_CODES)


def _ordered(levels: Sequence[str]) -> tuple[str, ...]:
    """Levels with one that is named like a control group first."""
    return tuple(sorted(levels, key=lambda level: (level.lower() not in REFERENCE_WORDS, levels.index(level))))


def _check(target: Target, subjects: np.ndarray, folds: np.ndarray, *, n_folds: int) -> None:
    n_subjects = len(np.unique(subjects))
    if n_subjects < MIN_SUBJECTS:
        raise NotComparableError(
            f"too few: {n_subjects} subjects with {target.name}; at least {MIN_SUBJECTS} are needed"
        )
    if len(np.unique(folds)) < 2:
        raise NotComparableError(f"all scans with {target.name} are held out in one and the same fold")
    if target.kind == "continuous":
        if np.ptp(target.y) == 0:
            raise NotComparableError(f"'{target.name}' is constant")
        return
    if len(target.levels) < 2:
        raise NotComparableError(f"'{target.name}' is constant: {', '.join(target.levels) or 'no value'}")
    for code, level in enumerate(target.levels):
        mine = target.y == code
        count = len(np.unique(subjects[mine]))
        if count < n_folds:
            raise NotComparableError(
                f"too few: {count} subjects are '{level}' in '{target.name}', fewer than the {n_folds} folds; join it with "
                "another level or leave it out"
            )
        for fold in np.unique(folds):
            if len(np.unique(subjects[mine & (folds != fold)])) < 2:
                raise NotComparableError(
                    f"fewer than two subjects that are '{level}' in '{target.name}' are left to learn from when fold {fold} is "
                    "held out; draw the folds stratified by it"
                )


def known_by(features: FeatureSet, target: Target) -> str:
    """Why a set must not predict a target: one of its features is the target under another name. Empty when none is."""
    y = target.y.astype(np.float64)
    shown = y[:, None] if target.kind == "continuous" else (y[:, None] == np.arange(len(target.levels))).astype(float)
    axes = np.linalg.qr(
        np.column_stack([np.ones(len(y)), shown - shown.mean(axis=0)])[:, : max(len(target.levels), 2)]
    )[0]
    for values in features.by_fold:
        x = values[target.rows]
        middle = x.mean(axis=0)
        # What is left of a constant is rounding, and says nothing.
        x = np.where(x.std(axis=0) > FLAT * (1e-3 + np.abs(middle)), x - middle, 0.0)
        total = np.square(x).sum(axis=0)
        share = np.square(axes.T @ x).sum(axis=0) / np.where(total > 0, total, np.inf)
        for position in np.flatnonzero(share > IS_THE_TARGET):
            name = features.columns[position] if features.columns else f"number {position}"
            if name != target.column:
                return f"its feature {name} is the target under another name"
    return ""
