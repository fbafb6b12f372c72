"""Parts: which subjects train a model, choose its epoch and judge it, and the folds of cross-fitting."""

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
    # Sorted first, so that the order of the rows decides neither a subject's stratum nor the shuffle.
    subjects = cohort.scans.sort_index().drop_duplicates("subject_id").set_index("subject_id").sort_index()
    strata = pd.Series("", index=subjects.index)
    for column in ("dataset", *config.stratify):
        values = subjects[column]
        if pd.api.types.is_numeric_dtype(values) and values.nunique() > 4:
            values = pd.qcut(values, 4, labels=False, duplicates="drop")
        strata = strata + "|" + values.astype("string").fillna("n/a")
    generator = np.random.default_rng(config.seed)
    shuffled = subjects.index[generator.permutation(len(subjects))]
    # Sorted by stratum, then taken at even steps: every stratum gives its share to every part, to within one subject.
    ordered = shuffled[np.argsort(strata[shuffled].to_numpy(), kind="stable")]
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
