"""A simulated cohort in memory, for tests, examples and calibration."""

from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd

from nilatent.errors import SettingError
from nilatent.simulate.anatomy import Anatomy, base_anatomy, grey_matter_maps
from nilatent.simulate.config import CONTROL, SimulationConfig
from nilatent.simulate.deform import Array
from nilatent.simulate.people import draw_people, visits_of_people
from nilatent.volumes import Grid, template


@dataclass(frozen=True, eq=False)
class SimulatedCohort:
    """Grey-matter maps with the truth beside them.

    Parameters
    ----------
    maps : ndarray
        (scan, x, y, z) float32, modulated grey matter, at least 0.
    scans : DataFrame
        Index ``scan_id``; what a study would know.
    planted : DataFrame
        Index ``scan_id``; what only the simulation knows.
    grid : Grid
        Of the maps.
    truth_maps : dict[str, ndarray]
        On the grid, in template space: see :func:`truth_maps`.
    regions : DataFrame
        Planted regions: label, name, planted_loss, loss_on_grid, mean_loss.
    """

    maps: Array
    scans: pd.DataFrame
    planted: pd.DataFrame
    grid: Grid
    truth_maps: dict[str, Array]
    regions: pd.DataFrame


def simulate_maps(config: SimulationConfig) -> SimulatedCohort:
    """Simulate grey-matter maps in memory: the values that :func:`nilatent.simulate.simulate` writes.

    Parameters
    ----------
    config : SimulationConfig
        The settings; `kind` is ``"gm"``.

    Returns
    -------
    SimulatedCohort
        Maps, tables and truth.

    Raises
    ------
    SettingError
        For raw heads, which share no grid.

    Examples
    --------
    >>> cohort = simulate_maps(SimulationConfig(n_subjects=2, spacing_mm=6.0))
    >>> cohort.maps.shape
    (2, 32, 32, 32)
    """
    if config.kind != "gm":
        raise SettingError(
            f"simulate_maps makes maps on one grid, kind='{config.kind}' does not. Use simulate(out, ...)."
        )
    anatomy = base_anatomy(config)
    scans, planted = draw_people(config, template_ml=template_ml())
    people = visits_of_people(scans, planted)
    maps = np.concatenate([grey_matter_maps(config, anatomy, index, visits) for index, visits in enumerate(people)])
    regions = truth_regions(anatomy, scans, planted)
    return SimulatedCohort(maps, scans, planted, anatomy.grid, truth_maps(anatomy), regions)


@cache
def template_ml() -> float:
    """Volume of the template inside the skull, in millilitres."""
    mask = template("mask")
    return float(mask.get_fdata(dtype=np.float32).sum() * abs(np.linalg.det(mask.affine[:3, :3])) / 1000)


def truth_maps(anatomy: Anatomy) -> dict[str, Array]:
    """What was planted, on the grid of the maps, in template space.

    Returns
    -------
    dict[str, ndarray]
        ``gm``: grey matter of the template as everyone starts from it, in [0, 1]; ``loss``: fraction of it lost at
        disease 1, in [0, 1].
    """
    grey, lost = anatomy.on_grid(anatomy.grey), anatomy.on_grid(anatomy.lost)
    loss = np.divide(lost, grey, out=np.zeros_like(lost), where=grey > 1e-3)
    return {"gm": grey, "loss": loss}


def truth_regions(anatomy: Anatomy, scans: pd.DataFrame, planted: pd.DataFrame) -> pd.DataFrame:
    """Planted regions with the mean loss of those who are not controls, over all their scans."""
    sick = scans["group"] != CONTROL
    mean_atrophy = float(planted.loc[sick, "atrophy"].mean()) if sick.any() else 0.0
    return anatomy.regions.assign(mean_loss=anatomy.regions["planted_loss"] * mean_atrophy)
