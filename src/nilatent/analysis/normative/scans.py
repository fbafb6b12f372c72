"""Who is the reference, what is known of every scan beside its image, and the folds that keep a subject from judging itself."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from nilatent.analysis.contrast import (
    REFERENCE_WORDS,
    NotComparableError,
    confound_matrix,
    first_scans,
    level_words,
)
from nilatent.analysis.held_out import check_folds, parts
from nilatent.analysis.normative.reference import (
    MIN_DEGREES,
    Deviations,
    Predictors,
    degrees_of_freedom,
    deviations,
    foreseen,
)
from nilatent.errors import SettingError

MIN_REFERENCE = 10
EVERYBODY = "all scans"


@dataclass(frozen=True)
class NormativeConfig:
    """Settings of :func:`nilatent.analysis.normative.normative`.

    Parameters
    ----------
    group : str
        Column of the groups.
    reference : str
        Level of `group` that says what is expected. Empty takes the one named like a control group, and all scans where
        there is no such group or more than one.
    covariates : tuple[str, ...]
        Columns for which a brain is expected to differ, such as age and sex.
    age : str
        The one among `covariates` that may act along a curve, and with which the spread may change.
    site : str
        Column of the site; its scans are compared with what the reference scans of that site let expect. Empty for none.
    n_components : int
        Principal directions of the reference residuals of the latents along which the distance is taken; 0 for all, with a
        covariance that is shrunk either way.
    n_maps : int
        Scans that get a map of every voxel: those that deviate most.
    alpha : float
        False discovery rate over scans at which one is said to deviate, above 0 and at most 1.
    """

    group: str = "group"
    reference: str = ""
    covariates: tuple[str, ...] = ()
    age: str = "age"
    site: str = ""
    n_components: int = 0
    n_maps: int = 50
    alpha: float = 0.05

    def __post_init__(self) -> None:
        """Refuse values that mean nothing.

        Raises
        ------
        SettingError
            Names the setting and its range.
        """
        for name in ("n_components", "n_maps"):
            if getattr(self, name) < 0:
                raise SettingError(f"normative.{name} is {getattr(self, name)}; it must be at least 0.")
        if not 0 < self.alpha <= 1:
            raise SettingError(f"normative.alpha is {self.alpha}; it must be above 0 and at most 1, usually 0.05.")


@dataclass(frozen=True, eq=False)
class Asked:
    """Everything of the scans but their images; every array has one row per scan of the cohort.

    Parameters
    ----------
    predictors : Predictors
        NaN where something is missing.
    complete : ndarray
        (scan,) bool: nothing is missing.
    fitted : ndarray
        (scan,) bool: stands for a reference subject; the first complete scan of each.
    reference : ndarray
        (scan,) bool: a complete scan of the reference group.
    group : ndarray
        (scan,) level of the group, empty where it is missing.
    subject : ndarray
        (scan,) subject.
    first : ndarray
        (scan,) bool: the first complete scan of its subject in its group.
    folds : ndarray
        (scan,) fold.
    label : str
        The reference in words.
    left_out : dict[str, list[str]]
        Reason to identifiers of scans.
    """

    predictors: Predictors
    complete: np.ndarray
    fitted: np.ndarray
    reference: np.ndarray
    group: np.ndarray
    subject: np.ndarray
    first: np.ndarray
    folds: np.ndarray
    label: str
    left_out: dict[str, list[str]]

    @property
    def beyond_age(self) -> np.ndarray:
        """(scan,) bool: younger or older than every subject of the reference."""
        age = self.predictors.age
        if age is None:
            return np.zeros(len(self.complete), dtype=bool)
        return np.asarray((age < age[self.fitted].min()) | (age > age[self.fitted].max()))


def ask(scans: pd.DataFrame, folds: np.ndarray, config: NormativeConfig) -> Asked:
    """Reference, predictors and folds of a cohort.

    Parameters
    ----------
    scans : DataFrame
        Index scan_id; ``subject_id`` and the columns named in `config`.
    folds : ndarray
        (scan,) fold in which each scan is judged.
    config : NormativeConfig
        Settings.

    Raises
    ------
    NotComparableError
        When the reference is too small for what is to be expected from it.
    LeakageError
        When a subject stands in two folds.
    SettingError
        When there is one fold only, or a column or the level of the reference does not exist.
    """
    folds, subject = np.asarray(folds), scans["subject_id"].to_numpy().astype(str)
    if folds.shape != (len(scans),):
        raise SettingError(f"{folds.shape} folds were given for {len(scans)} scans. Give one fold per scan.")
    check_folds(folds, subject)
    predictors = _predictors(scans, config)
    complete = np.isfinite(predictors.linear).all(axis=1)
    has_group = config.group in scans
    group = (level_words(scans[config.group]) if has_group else pd.Series("", scans.index)).fillna("").to_numpy(str)
    label = _reference(group, config)
    of_reference = np.full(len(scans), True) if label == EVERYBODY else group == label
    reference = complete & of_reference
    fitted, first = np.zeros(len(scans), dtype=bool), np.zeros(len(scans), dtype=bool)
    fitted[np.flatnonzero(reference)[first_scans(scans[reference])]] = True
    for level in np.unique(group):
        rows = np.flatnonzero(complete & (group == level))
        first[rows[first_scans(scans.iloc[rows])]] = True
    if label == EVERYBODY:
        first = fitted.copy()
    left_out = {} if complete.all() else {"missing value in a covariate or the site": list(scans.index[~complete])}
    asked = Asked(predictors, complete, fitted, reference, group, subject, first, folds, label, left_out)
    _check_reference(asked)
    return asked


def crossfitted(
    values: np.ndarray, asked: Asked, *, fold: int | None = None
) -> Iterator[tuple[np.ndarray, Deviations]]:
    """Deviations fold by fold, every scan from reference scans of the other folds.

    Parameters
    ----------
    values : ndarray
        (scan, column); a scan with a missing value is neither fitted nor judged.
    asked : Asked
        Of the same scans.
    fold : int, optional
        This one only, for values that mean something else in every fold.

    Yields
    ------
    rows : ndarray
        Scans that are judged: those that the reference scans fitted let foresee.
    found : Deviations
        Of these rows.
    """
    known = asked.complete & np.isfinite(values).all(axis=1)
    for train, test in parts(asked.folds):
        if fold is not None and asked.folds[test[0]] != fold:
            continue
        train, test = train[(asked.fitted & known)[train]], test[known[test]]
        reference = asked.predictors.rows(train)
        if len(test) == 0 or len(train) == 0 or degrees_of_freedom(reference) < MIN_DEGREES:
            continue
        test = test[foreseen(reference, asked.predictors.rows(test))]
        if len(test):
            yield test, deviations(values[train], reference, values[test], asked.predictors.rows(test))


def _predictors(scans: pd.DataFrame, config: NormativeConfig) -> Predictors:
    sites = [config.site] if config.site else []
    numeric = config.age in scans and pd.api.types.is_numeric_dtype(scans[config.age])
    curved = config.age in config.covariates and numeric
    plain = [name for name in config.covariates if not (curved and name == config.age)]
    age = scans[config.age].to_numpy(dtype=np.float64) if curved else None
    return Predictors(confound_matrix(scans, [*plain, *sites], levels=sites), age)


def _reference(group: np.ndarray, config: NormativeConfig) -> str:
    levels: Sequence[str] = sorted(set(group) - {""})
    if config.reference:
        if config.reference not in levels:
            raise SettingError(
                f"The reference '{config.reference}' is no level of column '{config.group}', which holds "
                f"{', '.join(levels) or 'nothing'}. Name one of these as normative.reference."
            )
        return config.reference
    known = [level for level in levels if level.lower() in REFERENCE_WORDS]
    return known[0] if len(known) == 1 else EVERYBODY


def _check_reference(asked: Asked) -> None:
    n_reference = int(asked.fitted.sum())
    if n_reference < MIN_REFERENCE:
        raise NotComparableError(
            f"too few: {n_reference} complete reference subjects ({asked.label}); at least {MIN_REFERENCE} are needed to say "
            "what is expected"
        )
    degrees = [degrees_of_freedom(asked.predictors.rows(train[asked.fitted[train]])) for train, _ in parts(asked.folds)]
    if min(degrees) < MIN_DEGREES:
        raise NotComparableError(
            f"too few: {n_reference} reference subjects ({asked.label}) leave {max(min(degrees), 0)} degrees of freedom beside "
            f"the covariates once a fold is held out, and {MIN_DEGREES} are needed; name fewer covariates"
        )
