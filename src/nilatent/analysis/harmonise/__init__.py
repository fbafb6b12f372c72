"""Harmonisation: can sites be told from the brain measures, before and after ComBat, and do the effects that matter stay.

In every outer fold ComBat is fitted on training scans and applied to the held-out ones; whatever is said here is said of
held-out scans, by predictors that were fitted on training scans as well. The harmonised held-out values are in the finding.

References
----------
Johnson, Li & Rabinovic 2007, doi:10.1093/biostatistics/kxj037. Fortin et al. 2017, doi:10.1016/j.neuroimage.2017.08.047.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import pandas as pd
import xarray as xr

from nilatent.analysis import stats
from nilatent.analysis.combat import ADJUSTED
from nilatent.analysis.contrast import MIN_SUBJECTS, NotComparableError
from nilatent.analysis.harmonise.folds import (
    AFTER,
    BEFORE,
    STATES,
    Harmonised,
    Kept,
    Measures,
    Usable,
    from_covariates,
    harmonise_folds,
    usable_scans,
)
from nilatent.analysis.harmonise.fresh import fresh_calls
from nilatent.analysis.harmonise.left import judged_rows, site_of_covariate, site_share, site_spread, slopes_kept
from nilatent.analysis.harmonise.words import FRESH, answer, caveats
from nilatent.analysis.held_out import check_folds
from nilatent.analysis.site_signal import LINEAR, MODELS, Signal, judge, judge_numbers
from nilatent.errors import CohortError, SettingError
from nilatent.finding import Finding, not_run

__all__ = ["COLUMNS", "NAME", "QUESTION", "HarmoniseConfig", "Measures", "harmonise"]

NAME = "harmonise"
QUESTION = "Can the site be told from the brain measures, and does it still show once they are harmonised?"
COLUMNS = (
    "measures", "what", "measure", "model", "before", "after", "chance", "limit", "p_before", "p_after", "from_kept",
    "n_scans",
)  # fmt: skip
N_SHOWN = 3


@dataclass(frozen=True)
class HarmoniseConfig:
    """Settings of the harmonisation.

    Parameters
    ----------
    site : str
        Column of the site or scanner; empty for none.
    covariates : tuple[str, ...]
        Columns whose effect stays. Whatever differs between sites and is not named here goes with the site.
    on : tuple
        What is harmonised: ``"regions"``, ``"latents"``, or both.
    n_permutations : int
        Shuffles of the labels behind each p-value.
    seed : int
        Draws the shuffles.
    """

    site: str = ""
    covariates: tuple[str, ...] = ("age", "sex")
    on: tuple[Literal["regions", "latents"], ...] = ("regions",)
    n_permutations: int = 1000
    seed: int = 0


def harmonise(measures: Sequence[Measures], scans: pd.DataFrame, folds: np.ndarray, config: HarmoniseConfig) -> Finding:
    """Harmonise held-out scans, and say what is left of the sites and of the effects that were to stay.

    Parameters
    ----------
    measures : Sequence of Measures
        Regions, latents or both; those that `config` names are harmonised.
    scans : DataFrame
        Index scan_id in the order of the measures; ``subject_id``, optionally ``session_id``, the site and the covariates.
    folds : ndarray
        (scan,) int fold in which each scan is held out; all scans of a subject in one.
    config : HarmoniseConfig
        Settings.

    Returns
    -------
    Finding
        Table: site told before and after, covariates told before and after, slopes, variance between sites. Data:
        ``harmonised_<measures>`` (scan, feature) and ``flag_<measures>`` (scan,), what was done to each scan. Or "not run".

    Raises
    ------
    CohortError
        When there is not one fold, or not one row of every description, per scan.
    LeakageError
        When a subject is in two folds, or an encoder has seen a subject that it is judged on.
    SettingError
        When a setting names what does not exist.
    """
    chosen = _chosen(measures, config)
    for one in chosen:
        _check_rows(one, len(scans))
    try:
        usable = usable_scans(scans, folds, site=config.site, covariates=config.covariates)
        if usable.first.sum() < MIN_SUBJECTS:
            raise NotComparableError(f"too few: {usable.first.sum()} subjects; at least {MIN_SUBJECTS} are needed")
        if len(np.unique(usable.folds)) < 2 or not _shuffles(usable.folds[usable.first]):
            raise NotComparableError("no fold holds out two subjects, so labels cannot be shuffled within folds")
        check_folds(usable.folds, usable.subjects)
    except NotComparableError as error:
        return not_run(NAME, QUESTION, str(error))
    made, refused = [], []
    for one in chosen:
        try:
            made.append(_with_two_sites(harmonise_folds(one, usable), usable))
        except NotComparableError as error:
            refused.append(f"{one.name}: {error}")
    if not made:
        return not_run(NAME, QUESTION, "; ".join(refused))
    alone = from_covariates(usable)
    table = pd.DataFrame([row for one in made for row in _rows(one, usable, alone, config)], columns=list(COLUMNS))
    confounded = {one.name: site_of_covariate(usable, one, judged_rows(made[0], usable)) for one in usable.kept}
    return Finding(
        name=NAME,
        question=QUESTION,
        answer=answer(table, usable, covariates=config.covariates),
        table=table,
        data=_data(made, usable),
        settings=asdict(config)
        | {"left_out": usable.left_out, "confounded_with_site": confounded, "not_done": refused},
        caveats=caveats(table, made, usable, confounded=confounded, refused=refused),
        n_scans=len(usable.rows),
        n_subjects=int(usable.first.sum()),
    )


def _chosen(measures: Sequence[Measures], config: HarmoniseConfig) -> list[Measures]:
    given = {one.name: one for one in measures}
    absent = [name for name in config.on if name not in given]
    if absent or not config.on:
        raise SettingError(
            f"harmonise.on names {', '.join(absent) or 'nothing'}; what can be harmonised here is "
            f"{', '.join(given) or 'nothing'}."
        )
    if config.n_permutations < 1:
        raise SettingError(f"harmonise.n_permutations is {config.n_permutations}. At least 1 is needed; 1000 is usual.")
    return [given[name] for name in config.on]


def _check_rows(one: Measures, n_scans: int) -> None:
    lengths = {len(values) for values in one.by_fold}
    if one.seen is not None and np.shape(one.seen) != (len(one.by_fold), n_scans):
        raise CohortError(
            f"{one.name}: what encoders have seen has shape {np.shape(one.seen)}, for {len(one.by_fold)} arrays of {n_scans} "
            "scans. Give one row per array and one column per scan."
        )
    if lengths != {n_scans}:
        raise CohortError(
            f"{one.name}: {sorted(lengths)} rows for {n_scans} scans. Give one row per scan, in the order of the cohort."
        )


def _with_two_sites(made: Harmonised, scans: Usable) -> Harmonised:
    """Refuse to judge when fewer than two sites have held-out scans that were harmonised."""
    n_sites = len(np.unique(scans.site[judged_rows(made, scans)]))
    if n_sites < 2:
        raise NotComparableError(f"held-out scans of {n_sites} sites could be harmonised, and two are needed")
    return made


def _rows(
    made: Harmonised, scans: Usable, alone: dict[str, np.ndarray], config: HarmoniseConfig
) -> list[dict[str, object]]:
    """Rows of the table of one description of the scans."""
    judged = np.flatnonzero(judged_rows(made, scans))
    orders = stats.permutations(
        len(judged), config.n_permutations, seed=config.seed, blocks=scans.folds[judged].astype(str)
    )
    common: dict[str, object] = {"measures": made.measures.name, "n_scans": len(judged)}
    truth, rows = scans.site[judged], []
    for model in MODELS:
        told = [judge(made.sites[state, model][judged], truth, orders) for state in STATES]
        kept = float((judge(alone[model][judged], truth, orders[:1])).accuracy) if alone else np.nan
        rows.append(
            common
            | {"what": scans.site_name, "measure": "balanced accuracy", "model": model, "from_kept": kept}
            | _told(told)
        )
    share, spread = site_share(made, scans), site_spread(made, scans)
    rows += [common | row for row in _of_fresh(made, scans, config)]
    middle = {state: _median(share[state]) for state in STATES}
    rows += [
        common | {"what": scans.site_name, "measure": "share of variance", "model": "", "chance": 0.0} | middle,
        common | {"what": scans.site_name, "measure": "spread of SDs", "model": ""} | spread,
    ]
    for one in scans.kept:
        rows += [common | row for row in _of_covariate(made, scans, one, judged, orders, config)]
    return rows


def _of_fresh(made: Harmonised, scans: Usable, config: HarmoniseConfig) -> list[dict[str, object]]:
    """Site told by classifiers that learn from scans which ComBat was not fitted on; none where folds are too few."""
    calls, possible = fresh_calls(made.measures, scans)
    judged = np.flatnonzero(judged_rows(made, scans) & possible)
    if len(np.unique(scans.site[judged])) < 2 or not _shuffles(scans.folds[judged]):
        return []
    blocks = scans.folds[judged].astype(str)
    orders = stats.permutations(len(judged), config.n_permutations, seed=config.seed, blocks=blocks)
    rows = []
    for model in MODELS:
        told = [judge(calls[state, model][judged], scans.site[judged], orders) for state in STATES]
        row = {"what": scans.site_name, "measure": FRESH, "model": model, "n_scans": len(judged)}
        rows.append(row | _told(told))
    return rows


def _shuffles(folds: np.ndarray) -> bool:
    """Whether some fold holds two rows, which may change places."""
    return len(folds) > 0 and bool(np.unique(folds, return_counts=True)[1].max() > 1)


def _median(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else float("nan")


def _told(told: list[Signal]) -> dict[str, object]:
    before, after = told
    return {
        BEFORE: before.accuracy, AFTER: after.accuracy, "chance": after.chance, "limit": after.limit,
        "p_before": before.p_value, "p_after": after.p_value,
    }  # fmt: skip


def _of_covariate(
    made: Harmonised,
    scans: Usable,
    one: Kept,
    judged: np.ndarray,
    orders: np.ndarray,
    config: HarmoniseConfig,
) -> list[dict[str, object]]:
    """How well a kept covariate is told, within sites too, and what became of its slopes."""
    truth = one.values[judged]
    told = [made.told[state, one.name][judged] for state in STATES]
    rows: list[dict[str, object]] = []
    if one.is_number:
        rows.append(
            {"measure": "correlation", "model": LINEAR} | _told([judge_numbers(t, truth, orders) for t in told])
        )
        site = scans.site[judged]
        within = stats.permutations(len(judged), config.n_permutations, seed=config.seed, blocks=site)
        centred = [_centred(values, site) for values in (*told, truth)]
        signals = [judge_numbers(values, centred[-1], within) for values in centred[:-1]]
        rows.append({"measure": "correlation within sites", "model": LINEAR} | _told(signals))
    else:
        rows.append({"measure": "balanced accuracy", "model": LINEAR} | _told([judge(t, truth, orders) for t in told]))
    slopes = slopes_kept(made, scans, one)
    rows += [
        {"measure": "pattern of slopes", "model": "", BEFORE: 1.0, AFTER: slopes.pattern},
        {"measure": "size of slopes", "model": "", BEFORE: 1.0, AFTER: slopes.size},
    ]
    return [{"what": one.name} | row for row in rows]


def _centred(values: np.ndarray, site: np.ndarray) -> np.ndarray:
    of_site = pd.Series(values).groupby(site)
    return np.asarray(values - of_site.transform("mean").to_numpy())


def _data(made: list[Harmonised], scans: Usable) -> xr.Dataset:
    """Harmonised values to take away, and the features that a figure shows."""
    data = xr.Dataset(
        {"site": ("scan", scans.site), "fold": ("scan", scans.folds)}, coords={"scan": ("scan", scans.scan_ids)}
    )
    names: list[str] = []
    shown: dict[str, list[np.ndarray]] = {state: [] for state in STATES}
    for one in made:
        name = one.measures.name
        data.coords[f"feature_{name}"] = (f"feature_{name}", np.asarray(one.measures.features, dtype=str))
        data[f"harmonised_{name}"] = (("scan", f"feature_{name}"), one.values[AFTER])
        data[f"flag_{name}"] = ("scan", one.flags)
        shares = site_share(one, scans)[BEFORE]
        for feature in np.argsort(-np.where(np.isfinite(shares), shares, -np.inf), kind="stable")[:N_SHOWN]:
            names.append(f"{name}: {one.measures.features[feature]}")
            # Coordinates of different encoders have nothing in common: of these one fold is shown.
            visible = (one.flags == ADJUSTED) & (one.measures.comparable | (scans.folds == scans.folds.min()))
            before = np.where(visible, one.values[BEFORE][:, feature], np.nan)
            middle, sd = np.nanmean(before), max(float(np.nanstd(before)), 1e-12)
            for state in STATES:
                shown[state].append((np.where(visible, one.values[state][:, feature], np.nan) - middle) / sd)
    data.coords["shown"] = ("shown", np.asarray(names, dtype=str))
    for state in STATES:
        data[f"shown_{state}"] = (("shown", "scan"), np.array(shown[state]))
    return data
