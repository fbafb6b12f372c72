"""Arrays of the finding: curves of groups, values of every visit, drawn rates beside those of the regional models."""

import numpy as np
import pandas as pd
import xarray as xr

from nilatent.analysis.longitudinal.change import degrees
from nilatent.analysis.longitudinal.drawn import Courses
from nilatent.analysis.longitudinal.table import DIFFERENCE, DIRECTIONS, RATE, REGIONS, Block, DrawnRates
from nilatent.analysis.longitudinal.visits import LongitudinalConfig

N_SHOWN = 6
N_DIRECTIONS = 2
N_POINTS = 25


def arrays(
    blocks: list[Block],
    table: pd.DataFrame,
    found: Courses | None,
    drawn: DrawnRates | None,
    config: LongitudinalConfig,
) -> xr.Dataset:
    """Everything a figure needs beside the table.

    Parameters
    ----------
    blocks : list[Block]
        The regions first.
    table : DataFrame
        Of the finding; the first measures are shown.
    found : Courses or None
        Drawn courses.
    drawn : DrawnRates or None
        What the regions do in these.
    config : LongitudinalConfig
        Settings.

    Returns
    -------
    Dataset
        ``curve`` (shown, group, time, estimate) with low and high ends; ``visit_value`` (shown, visit) of average covariates,
        NaN where a kind of measure has no such visit; ``subject_rate`` (region, subject) best linear unbiased predictions;
        ``rate`` and ``drawn_rate`` (region, group, estimate); ``drawn_years`` and ``drawn_subjects`` where courses were drawn.
    """
    measured = blocks[0]
    visits, groups = measured.visits, list(measured.visits.groups)
    years = np.linspace(0.0, float(visits.years.max()), N_POINTS)
    shown = _shown(table, blocks)
    curve = np.full((len(shown), len(groups), N_POINTS, 3), np.nan)
    value = np.full((len(shown), len(visits.rows)), np.nan)
    for number, (block, measure) in enumerate(shown):
        places = [groups.index(group) for group in block.visits.groups]
        curve[number, places] = curves(block, measure, years)
        value[number, np.isin(visits.rows, block.visits.rows)] = adjusted(block, measure)
    coordinates = {
        "group": groups,
        "estimate": ["value", "low", "high"],
        "region": list(measured.names),
        "subject": list(visits.subject[visits.first]),
        "shown": np.arange(len(shown)),
        "shown_measure": ("shown", np.array([block.names[measure] for block, measure in shown], dtype=str)),
        "shown_kind": ("shown", np.array([block.kind for block, _ in shown], dtype=str)),
        "curve_years": ("time", years),
        "visit_years": ("visit", visits.years),
        "visit_group": ("visit", visits.group.astype(str)),
        "visit_subject": ("visit", visits.number),
    }
    data = {
        "curve": (("shown", "group", "time", "estimate"), curve),
        "visit_value": (("shown", "visit"), value),
        "subject_rate": (("region", "subject"), measured.change.subject_rate),
        "rate": (("region", "group", "estimate"), measured.change.rate),
    }
    if found is not None and drawn is not None:
        data["drawn_rate"] = (("region", "group", "estimate"), drawn.rate)
        data["drawn_subjects"] = (("group",), found.n_subjects)
        data["drawn_years"] = (("drawn_time",), found.years)
    return xr.Dataset(data, coords=coordinates, attrs={"step": config.step})


def _shown(table: pd.DataFrame, blocks: list[Block]) -> list[tuple[Block, int]]:
    """The measures that groups tell apart best, or that change most surely: a few directions, the rest regions."""
    what = DIFFERENCE if (table["what"] == DIFFERENCE).any() else RATE
    of = {block.kind: block for block in blocks}
    chosen: list[tuple[Block, int]] = []
    for kind, most in ((DIRECTIONS, N_DIRECTIONS), (REGIONS, N_SHOWN)):
        names = table.loc[(table["what"] == what) & (table["kind"] == kind), "measure"].drop_duplicates()
        chosen += [(of[kind], of[kind].names.index(name)) for name in names[: min(most, N_SHOWN - len(chosen))]]
    return chosen


def curves(block: Block, measure: int, years: np.ndarray) -> np.ndarray:
    """(group, time, 3) level of an average subject of every group with its 95 % interval; NaN after the last visit of a group."""
    visits, fit = block.visits, block.change.fits[measure]
    n = len(visits.groups)
    found = np.full((n, len(years), 3), np.nan)
    if fit is None:
        return found
    for number, group in enumerate(visits.groups):
        seen = years <= visits.years[visits.group == group].max()
        contrast = np.zeros((int(seen.sum()), len(fit.coefficients)))
        contrast[:, number], contrast[:, n + number] = 1.0, years[seen]
        found[number, seen] = [fit.interval(row, degrees=degrees(visits)) for row in contrast]
    return found


def adjusted(block: Block, measure: int) -> np.ndarray:
    """(visit,) values as they would be of a subject with average covariates."""
    visits, fit = block.visits, block.change.fits[measure]
    y = block.values[:, measure]
    held = slice(2 * len(visits.groups), None)
    return np.asarray(y if fit is None else y - visits.design()[:, held] @ fit.coefficients[held])
