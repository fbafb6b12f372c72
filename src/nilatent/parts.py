"""Parts: which subjects train a model, choose its epoch and judge it, and the folds of cross-fitting."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from nilatent.cohort import Cohort
from nilatent.errors import SettingError


@dataclass(frozen=True)
class SplitConfig:
    """How subjects are parted.

    Parameters
    ----------
    validation_fraction, test_fraction : float
        Share of subjects, each in (0, 1), together under 1.
    n_folds : int
        Folds for cross-fitting, at least 2.
    stratify : tuple[str, ...]
        Columns whose values every part should share; numbers are cut at their quartiles.
    train_on : tuple[str, ...]
        Data sets that a model may learn from; everyone of the others is in the test part. None for all.
    seed : int
        Seed of the shuffle.
    """

    validation_fraction: float = 0.15
    test_fraction: float = 0.2
    n_folds: int = 5
    stratify: tuple[str, ...] = ()
    train_on: tuple[str, ...] = ()
    seed: int = 0


def split(cohort: Cohort, config: SplitConfig) -> pd.DataFrame:
    """Part and fold of every scan; all scans of a subject share both.

    Parameters
    ----------
    cohort : Cohort
        The scans.
    config : SplitConfig
        Fractions, strata and seed.

    Returns
    -------
    DataFrame
        Index ``scan_id``; columns ``subject_id``, ``part`` (``"train"``, ``"validation"``, ``"test"``) and ``fold``.

    Raises
    ------
    SettingError
        When a fraction or a column makes no sense, or a part would be empty.
    """
    _check_split(cohort, config)
    generator = np.random.default_rng(config.seed)
    subjects, ordered = _ordered(cohort.scans, config.stratify, generator)
    known = ordered[subjects.loc[ordered, "dataset"].isin(config.train_on)] if config.train_on else ordered
    test = _even_steps(len(known), config.test_fraction, generator.random())
    rest = known[~test]
    validation = _even_steps(len(rest), config.validation_fraction / (1 - config.test_fraction), generator.random())
    part = pd.Series("test", index=ordered)
    part[rest] = "train"
    part[rest[validation]] = "validation"
    if len(np.unique(part[known])) < 3:
        raise SettingError(
            f"{len(known)} subjects are too few to hold out {config.test_fraction:g} for test and "
            f"{config.validation_fraction:g} for validation. Bring more subjects or raise the fractions."
        )
    fold = pd.Series(np.arange(len(ordered)) % config.n_folds, index=ordered)
    owner = cohort.scans["subject_id"]
    return pd.DataFrame({"subject_id": owner, "part": owner.map(part), "fold": owner.map(fold).astype(int)})


def draw_folds(scans: pd.DataFrame, *, n_folds: int, stratify: Sequence[str], seed: int) -> "pd.Series[int]":
    """Folds of some scans, drawn anew: those of a split fall together with its parts.

    Parameters
    ----------
    scans : DataFrame
        Index scan_id; ``subject_id``, ``dataset`` and the columns of `stratify`.
    n_folds : int
        At most so many; as many as subjects where there are fewer.
    stratify : Sequence[str]
        Columns whose values every fold should share.
    seed : int
        Of the shuffle.

    Returns
    -------
    Series
        Index scan_id; int from 0, the same for all scans of a subject.
    """
    _, ordered = _ordered(scans, stratify, np.random.default_rng(seed))
    fold = pd.Series(np.arange(len(ordered)) % n_folds, index=ordered)
    return scans["subject_id"].map(fold).astype(int)


def _ordered(
    scans: pd.DataFrame, stratify: Sequence[str], generator: np.random.Generator
) -> tuple[pd.DataFrame, "pd.Index[Any]"]:
    """First row of every subject, and the subjects shuffled within their strata, which lie one behind the other."""
    # Sorted first, so that the order of the rows decides neither a subject's stratum nor the shuffle.
    subjects = scans.sort_index().drop_duplicates("subject_id").set_index("subject_id").sort_index()
    strata = pd.Series("", index=subjects.index)
    for column in ("dataset", *stratify):
        values = subjects[column]
        if pd.api.types.is_numeric_dtype(values) and values.nunique() > 4:
            values = pd.qcut(values, 4, labels=False, duplicates="drop")
        strata = strata + "|" + values.astype("string").fillna("n/a")
    shuffled = subjects.index[generator.permutation(len(subjects))]
    # Steps through this order give every stratum its share, to within one subject.
    return subjects, shuffled[np.argsort(strata[shuffled].to_numpy(), kind="stable")]


def _check_split(cohort: Cohort, config: SplitConfig) -> None:
    test, validation = config.test_fraction, config.validation_fraction
    if not (0 < test < 1 and 0 < validation < 1 and test + validation < 1):
        raise SettingError(
            f"test_fraction {test} and validation_fraction {validation} must be above 0 and sum to under 1."
        )
    if not 2 <= config.n_folds <= cohort.n_subjects:
        raise SettingError(f"n_folds is between 2 and the {cohort.n_subjects} subjects, got {config.n_folds}.")
    if config.seed < 0:
        raise SettingError(f"seed is at least 0, got {config.seed}.")
    if isinstance(config.stratify, str):
        raise SettingError(f"stratify is a tuple of columns, got the text '{config.stratify}'.")
    strangers = sorted(set(config.train_on) - set(cohort.scans["dataset"]))
    if strangers:
        names = ", ".join(map(str, cohort.scans["dataset"].unique()))
        raise SettingError(f"split.train_on: there is no data set '{strangers[0]}'. There are: {names}.")
    absent = [column for column in config.stratify if column not in cohort.scans]
    if absent:
        raise SettingError(
            f"Cannot stratify by '{absent[0]}': the columns are {', '.join(map(str, cohort.scans.columns))}."
        )


def _even_steps(n: int, fraction: float, offset: float) -> np.ndarray[Any, np.dtype[np.bool_]]:
    steps = np.floor(np.arange(n + 1) * fraction + offset)
    return np.asarray(np.diff(steps) > 0)
