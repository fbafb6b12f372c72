"""Harmonisation fold by fold: ComBat and every predictor are fitted on training scans and used on held-out ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from nilatent.analysis.combat import ADJUSTED, Combat, fit_combat
from nilatent.analysis.contrast import NotComparableError, confound_matrix, first_scans, level_words
from nilatent.analysis.held_out import parts
from nilatent.analysis.residuals import check_finite
from nilatent.analysis.site_signal import LINEAR, MODELS, call_labels
from nilatent.errors import CohortError, LeakageError, SettingError

BEFORE, AFTER = "before", "after"
STATES = (BEFORE, AFTER)
PENALTIES = tuple(10.0**power for power in np.arange(-1, 5.1, 0.5))


@dataclass(frozen=True, eq=False)
class Measures:
    """One description of the scans, such as their regions or their latents.

    Parameters
    ----------
    name : str
        ``"regions"`` or ``"latents"``.
    by_fold : tuple of ndarray
        (scan, feature) for every fold in the order of their numbers, made without the held-out subjects of that fold; one
        array alone when nothing was fitted.
    features : tuple[str, ...]
        Names of the columns.
    seen : ndarray or None
        (fold, scan) bool: the encoder of that fold was fitted, or its epoch chosen, with this subject. None: no encoder.
    """

    name: str
    by_fold: tuple[np.ndarray, ...]
    features: tuple[str, ...]
    seen: np.ndarray | None = None

    @property
    def comparable(self) -> bool:
        """Features of one fold are those of every other."""
        return len(self.by_fold) == 1

    def of_fold(self, number: int) -> np.ndarray:
        """(scan, feature) of one fold."""
        return self.by_fold[0 if self.comparable else number]


@dataclass(frozen=True, eq=False)
class Kept:
    """One covariate whose effect stays.

    Parameters
    ----------
    name : str
        Its column.
    columns : ndarray
        Positions among the columns of the matrix of covariates.
    values : ndarray
        (scan,) float64 numbers, or str levels.
    """

    name: str
    columns: np.ndarray
    values: np.ndarray

    @property
    def is_number(self) -> bool:
        """Numbers, not levels."""
        return bool(self.values.dtype.kind == "f")


@dataclass(frozen=True, eq=False)
class Usable:
    """Scans with a site and every kept covariate.

    Parameters
    ----------
    site_name : str
        Column of the site.
    rows : ndarray
        (scan,) positions in the cohort.
    scan_ids, site, subjects, folds : ndarray
        (scan,) identifier, site, subject and fold in which it is held out.
    first : ndarray
        (scan,) bool: the first of its subject's scans. Only these are judged, for the others are not independent.
    keep : ndarray
        (scan, column) kept covariates as numbers.
    kept : tuple[Kept, ...]
        The covariates one by one.
    left_out : dict[str, list[str]]
        Reason to identifiers of scans.
    """

    site_name: str
    rows: np.ndarray
    scan_ids: np.ndarray
    site: np.ndarray
    subjects: np.ndarray
    folds: np.ndarray
    first: np.ndarray
    keep: np.ndarray
    kept: tuple[Kept, ...]
    left_out: dict[str, list[str]]


@dataclass(frozen=True, eq=False)
class Harmonised:
    """One description of the held-out scans, before and after, and what was told from it.

    Parameters
    ----------
    measures : Measures
        What was harmonised.
    values : dict[str, ndarray]
        ``"before"`` and ``"after"``: (scan, feature), each scan by the fold that holds it out.
    flags : ndarray
        (scan,) flag of :mod:`~nilatent.analysis.combat`.
    sites : dict[tuple[str, str], ndarray]
        State and model to the site called of each scan, (scan,).
    told : dict[tuple[str, str], ndarray]
        State and covariate to its prediction, (scan,).
    """

    measures: Measures
    values: dict[str, np.ndarray]
    flags: np.ndarray
    sites: dict[tuple[str, str], np.ndarray]
    told: dict[tuple[str, str], np.ndarray]


def usable_scans(scans: pd.DataFrame, folds: np.ndarray, *, site: str, covariates: Sequence[str]) -> Usable:
    """Choose the scans that can be harmonised.

    Raises
    ------
    CohortError
        When there is not one fold per scan.
    NotComparableError
        When there is no site column, or no scan has all that is needed.
    SettingError
        When a covariate does not exist, is named twice, or is the site.
    """
    if not site or site not in scans:
        raise NotComparableError(f"no column '{site}' with the site of each scan" if site else "no site column named")
    if site in covariates or len(set(covariates)) < len(covariates):
        raise SettingError(
            f"The covariates {', '.join(covariates)} repeat one another or the site '{site}'. Name each once."
        )
    if len(folds) != len(scans):
        raise CohortError(f"{len(folds)} folds were given for {len(scans)} scans. Give the fold of every scan.")
    words = level_words(scans[site])
    matrices = [confound_matrix(scans, [name]) for name in covariates]
    keep = np.hstack([np.empty((len(scans), 0)), *matrices])
    has_site, has_keep = words.notna().to_numpy(), np.isfinite(keep).all(axis=1)
    left_out = {
        f"no value in column '{site}'": list(map(str, scans.index[~has_site])),
        "missing value in a covariate that is kept": list(map(str, scans.index[has_site & ~has_keep])),
    }
    rows = np.flatnonzero(has_site & has_keep)
    if not len(rows):
        raise NotComparableError("no scan has a site and every covariate that is kept")
    chosen = scans.iloc[rows]
    ends = np.cumsum([matrix.shape[1] for matrix in matrices], dtype=int)
    kept = tuple(
        Kept(name, np.arange(end - matrix.shape[1], end), _target(chosen[name]))
        for name, matrix, end in zip(covariates, matrices, ends, strict=True)
    )
    return Usable(
        site_name=site,
        rows=rows,
        scan_ids=chosen.index.to_numpy().astype(str),
        site=words.to_numpy()[rows].astype(str),
        subjects=chosen["subject_id"].to_numpy(),
        folds=np.asarray(folds)[rows],
        first=np.isin(np.arange(len(rows)), first_scans(chosen)),
        keep=keep[rows],
        kept=kept,
        left_out={reason: ids for reason, ids in left_out.items() if ids},
    )


def _target(values: "pd.Series[Any]") -> np.ndarray:
    if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
        return values.to_numpy(dtype=np.float64)
    return level_words(values).to_numpy().astype(str)


def harmonise_folds(measures: Measures, scans: Usable) -> Harmonised:
    """Harmonise the held-out scans of every fold by what its training scans say, and tell site and covariates from them.

    Raises
    ------
    LeakageError
        When an encoder has seen a subject that its fold holds out.
    NotComparableError
        When a training part cannot be harmonised, with the reason.
    SettingError
        When there are not as many arrays as folds, or a value is missing.
    """
    n, folds = len(scans.rows), np.unique(scans.folds)
    arrays = _checked(measures, scans, len(folds))
    after = np.full((n, len(measures.features)), np.nan)
    before, flags = after.copy(), np.full(n, ADJUSTED, dtype="<U32")
    sites = {(state, model): np.full(n, "", dtype="<U128") for state in STATES for model in MODELS}
    told = {
        (state, one.name): np.full(n, "", one.values.dtype)
        for state in STATES
        for one in scans.kept
        if not one.is_number
    }
    told |= {(state, one.name): np.full(n, np.nan) for state in STATES for one in scans.kept if one.is_number}
    for number, (train, test) in enumerate(parts(scans.folds)):
        x = arrays[0 if measures.comparable else number]
        try:
            combat = fit_combat(x[train], scans.site[train], scans.keep[train], subjects=scans.subjects[train])
        except NotComparableError as error:
            raise NotComparableError(f"{error} (training scans of fold {folds[number]})") from error
        made, of_scan = combat.apply(x, scans.site, scans.keep)
        before[test], after[test], flags[test] = x[test], made[test], of_scan[test]
        learn = train[of_scan[train] == ADJUSTED]
        for state, values in ((BEFORE, x), (AFTER, made)):
            for model in MODELS:
                called = call_labels(values[learn], scans.site[learn], values[test], model=model)
                sites[state, model][test] = called
        for one in scans.kept:
            blind = _without(one, x, scans, combat)
            for state, values in ((BEFORE, x), (AFTER, blind)):
                told[state, one.name][test] = _predict(values[learn], one.values[learn], values[test])
    return Harmonised(measures, {BEFORE: before, AFTER: after}, flags, sites, told)


def _checked(measures: Measures, scans: Usable, n_folds: int) -> list[np.ndarray]:
    """The arrays of the scans that are used, of every fold."""
    if len(measures.by_fold) not in (1, n_folds):
        raise SettingError(
            f"{measures.name}: {len(measures.by_fold)} arrays for {n_folds} folds. Give one, or one per fold."
        )
    if measures.seen is not None:
        for number, (_, test) in enumerate(parts(scans.folds)):
            leaked = test[np.asarray(measures.seen)[0 if measures.comparable else number, scans.rows[test]]]
            if len(leaked):
                raise LeakageError(
                    f"The encoder of fold {number} has seen subject {scans.subjects[leaked[0]]} ({len(leaked)} held-out scans in "
                    f"all), whose {measures.name} it is judged on. Use the latents of cross-fitted models."
                )
    arrays = []
    for values in measures.by_fold:
        if values.shape[1] != len(measures.features):
            raise SettingError(
                f"{measures.name}: {values.shape[1]} columns and {len(measures.features)} names. Name every feature."
            )
        arrays.append(check_finite(np.asarray(values)[scans.rows], what=f"The table of {measures.name}"))
    return arrays


def _without(one: Kept, x: np.ndarray, scans: Usable, combat: Combat) -> np.ndarray:
    """Values harmonised without knowing this covariate of a scan, for predicting it must not be made easy by ComBat."""
    hidden = scans.keep.copy()
    hidden[:, one.columns] = combat.keep_mean[one.columns]
    return combat.apply(x, scans.site, hidden)[0]


def _predict(train: np.ndarray, target: np.ndarray, new: np.ndarray) -> np.ndarray:
    if target.dtype.kind != "f":
        if len(np.unique(target)) < 2:
            return np.full(len(new), target[0])
        return call_labels(train, target, new, model=LINEAR)
    return np.asarray(make_pipeline(StandardScaler(), RidgeCV(alphas=list(PENALTIES))).fit(train, target).predict(new))


def from_covariates(scans: Usable) -> dict[str, np.ndarray]:
    """Site called from the kept covariates alone, by model: so much may stay, however good the harmonisation."""
    called = {model: np.full(len(scans.rows), "", dtype="<U128") for model in MODELS}
    if not scans.keep.shape[1]:
        return {}
    for train, test in parts(scans.folds):
        for model in MODELS:
            called[model][test] = call_labels(scans.keep[train], scans.site[train], scans.keep[test], model=model)
    return called
