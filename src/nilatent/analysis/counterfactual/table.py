"""From decoded scans to one row per region, and to the arrays of a figure."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

from nilatent.analysis.counterfactual.change import Change
from nilatent.analysis.counterfactual.decoded import DOSES
from nilatent.analysis.counterfactual.judged import Crossed, Fold, Resampled, fitted_step
from nilatent.analysis.counterfactual.slopes import People, pattern

TOTAL = "total grey matter"
# People beyond the confounds below which nothing is said of their slope.
MIN_SPARE = 5
COLUMNS = (
    "change", "region", "percent", "percent_low", "percent_high", "ml", "ml_low", "ml_high", "effect", "effect_low",
    "effect_high", "regression_percent", "regression_low", "regression_high", "cross_section_percent",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Answered:
    """All that is known of one change.

    Parameters
    ----------
    change : Change
        The change.
    folds : Sequence[Fold]
        Every fold with a judged scan.
    people : People
        Subjects.
    values : ndarray
        (person, readout) true values; the last is the total in millilitres.
    draws : Resampled
        Effects and their resamples.
    model, regression : Crossed
        Agreement of unseen scans.
    beyond : ndarray
        (judged scan,) bool, over all folds in order: its new value lies beyond those of the training scans of its fold.
    told : bool
        Whether the decoder is told the column.
    """

    change: Change
    folds: Sequence[Fold]
    people: People
    values: np.ndarray
    draws: Resampled
    model: Crossed
    regression: Crossed
    beyond: np.ndarray
    told: bool

    @property
    def judged(self) -> np.ndarray:
        """(judged scan,) numbers of people, over all folds in order."""
        return np.concatenate([fold.judged for fold in self.folds])

    @property
    def effect(self) -> np.ndarray:
        """(judged scan, readout)."""
        return np.concatenate([fold.decoded.effect for fold in self.folds])

    @property
    def unit(self) -> np.ndarray:
        """(readout,) per cent of the mean of the judged scans that 1 is; NaN for a region without grey matter."""
        return unit_percent(self.values[self.judged])

    @property
    def beats_regression(self) -> bool:
        """Whether the model agrees better with unseen scans than regional regression, in rank and in amount."""
        return self.model.rho > self.regression.rho and self.model.explained > self.regression.explained


def unit_percent(values: np.ndarray) -> np.ndarray:
    """(readout,) 100 over the mean of (person, readout) values; NaN where that is not above 0."""
    mean = values.mean(axis=0)
    return np.asarray(np.divide(100.0, mean, out=np.full(len(mean), np.nan), where=mean > 0))


def region_table(found: Answered, names: Sequence[str], *, region_ml: np.ndarray) -> pd.DataFrame:
    """One row for the total and one per region, those whose change is largest beside its interval first.

    Parameters
    ----------
    found : Answered
        Of one change.
    names : Sequence[str]
        (region,).
    region_ml : ndarray
        (region,) size of each region in millilitres.

    Returns
    -------
    DataFrame
        :data:`COLUMNS`. Per cent are of the mean of the judged scans; ``effect`` is in the unit of the maps (of the total:
        millilitres). Where the decoder is told the column there is no interval, and the largest change in per cent is first.
    """
    percent = found.unit
    ml = np.append(region_ml, 1.0)
    model, (low, high) = found.draws.model[0], Resampled.interval(found.draws.model)
    width = (high - low).clip(min=np.finfo(float).tiny)
    if found.told:
        # The column stays in the weights of the decoder whoever is drawn again: an interval would have no width.
        low, high, width = np.full_like(low, np.nan), np.full_like(high, np.nan), 1 / np.nan_to_num(percent, nan=1.0)
    regression, limits = found.draws.regression[0], Resampled.interval(found.draws.regression)
    table = pd.DataFrame({"change": found.change.label, "region": [*names, TOTAL]})
    for name, values in (("", model), ("_low", low), ("_high", high)):
        table[f"percent{name}"], table[f"ml{name}"], table[f"effect{name}"] = values * percent, values * ml, values
    table["regression_percent"] = regression * percent
    table["regression_low"], table["regression_high"] = (limit * percent for limit in limits)
    table["cross_section_percent"] = _cross_section(found) * percent
    surely = pd.Series(np.abs(model) / width).where(table["region"] != TOTAL, np.inf)
    order = surely.sort_values(ascending=False, kind="stable")
    return table.loc[order.index, list(COLUMNS)].reset_index(drop=True)


def _cross_section(found: Answered) -> np.ndarray:
    """(readout,) slope among all unseen people together, times the change."""
    unseen = np.any([fold.unseen for fold in found.folds], axis=0)
    people = found.people
    if unseen.sum() < people.confounds.shape[1] + MIN_SPARE:
        return np.full(found.values.shape[1], np.nan)
    return found.change.amount * pattern(people.x[unseen], people.confounds[unseen], found.values[unseen])


def arrays(found: Answered, scans: pd.DataFrame, names: Sequence[str]) -> xr.Dataset:
    """What a figure needs of one change; dimension ``change`` of length 1."""
    n_scans, amount = len(scans), found.change.amount
    rows = found.people.rows[found.judged]
    effect_ml, beyond = np.full(n_scans, np.nan), np.full(n_scans, np.nan)
    effect_ml[rows], beyond[rows] = found.effect[:, -1], found.beyond
    dosed = np.concatenate([fold.decoded.dosed for fold in found.folds], axis=1)
    known = np.concatenate([np.column_stack([fold.decoded.own_now, fold.decoded.own_changed]) for fold in found.folds])
    sizes = np.concatenate([np.full(len(fold.judged), fold.decoded.n_candidates) for fold in found.folds])
    per_fold, scalar = ("change", "fold", "region"), "change"
    linear = _linear(found)
    return xr.Dataset(
        {
            "effect": (("change", "region"), found.draws.model[:1, :-1]),
            "regression_effect": (("change", "region"), found.draws.regression[:1, :-1]),
            "fold_effect_percent": (per_fold, amount * found.model.effects[None]),
            "fold_effect_relative": (per_fold, amount * _relative(found.model.effects)[None]),
            "fold_regression_relative": (per_fold, amount * _relative(found.regression.effects)[None]),
            "fold_slope_relative": (per_fold, amount * _relative(found.model.slopes)[None]),
            "scan_effect_ml": (("change", "scan"), effect_ml[None]),
            "beyond": (("change", "scan"), beyond[None]),
            "dose_ml": (("change", "dose"), dosed[:, :, -1].mean(axis=1)[None]),
            "monotone_share": (scalar, [_monotone(dosed[:, :, -1])]),
            "own_now": (scalar, [known[:, 0].mean()]),
            "own_changed": (scalar, [known[:, 1].mean()]),
            "own_chance": (scalar, [(1 / sizes).mean()]),
            "asymmetry": (scalar, [_apart(-dosed[0], dosed[DOSES.index(1.0)])]),
            "linear_gap": (scalar, [_apart(linear, found.effect)]),
            "rho": (scalar, [found.model.rho]),
            "rho_p": (scalar, [found.model.p_value]),
            "rho_drawn": (scalar, [found.model.rho_drawn]),
            "explained": (scalar, [found.model.explained]),
            "explained_p": (scalar, [found.model.explained_p]),
            "regression_rho": (scalar, [found.regression.rho]),
            "regression_rho_p": (scalar, [found.regression.p_value]),
            "regression_explained": (scalar, [found.regression.explained]),
            "regression_explained_p": (scalar, [found.regression.explained_p]),
        },
        coords={
            "change": [found.change.label],
            "fold": [fold.number for fold in found.folds],
            "scan": np.asarray(scans.index, dtype=str),
            "region": list(names),
            "dose": list(DOSES),
        },
    )


def _relative(values: np.ndarray) -> np.ndarray:
    """(fold, region) less the mean over the regions of each fold, as ranks within a fold see it."""
    return np.asarray(values - values.mean(axis=1, keepdims=True))


def _linear(found: Answered) -> np.ndarray:
    """(judged scan, readout) effect by the decoder made linear; of a told column, which needs none, the effect itself."""
    if found.told:
        return found.effect
    amount, people = found.change.amount, found.people
    return np.concatenate(
        [np.tile(amount * (fold.jacobian @ fitted_step(fold, people)), (len(fold.judged), 1)) for fold in found.folds]
    )


def _apart(left: np.ndarray, right: np.ndarray) -> float:
    """Root mean square difference of the mean effects on regions, relative to the right one; NaN where unknown."""
    a, b = left[:, :-1].mean(axis=0), right[:, :-1].mean(axis=0)
    size = float(np.sqrt(np.square(b).sum()))
    return float(np.sqrt(np.square(a - b).sum()) / size) if size > 0 else float("nan")


def _monotone(totals: np.ndarray) -> float:
    """Share of (dose, scan) totals that go one way all along, through no change at dose 0; NaN where there are no doses."""
    along = np.vstack([totals[:1], np.zeros((1, totals.shape[1])), totals[1:]])
    if not np.isfinite(along).all():
        return float("nan")
    steps = np.sign(np.diff(along, axis=0))
    return float((np.abs(steps.sum(axis=0)) == len(steps)).mean())
