"""What an explorer shows of a run: its scans on maps of the latents, the ways latents can move, the range of images."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from nilatent.analysis.directions import Direction, fitted_directions
from nilatent.analysis.latent_space import LatentSpace
from nilatent.errors import FindingError, SettingError
from nilatent.finding import Finding
from nilatent.plots import projections
from nilatent.pools import Pools, open_pools
from nilatent.report.study import read_run
from nilatent.spaces import head_size, study_space
from nilatent.tables import image_files

__all__ = ["Explored", "Slide", "explored", "open_explored"]

NEEDED = ("study.toml", "prepared", "volumes", "split.tsv", "latents.nc", "model")
HIDDEN = ("subject_id", "session_id", "source_id", "path", "gm_path", "sha256", "recipe")
"""Columns that name a scan or its file; nothing to colour by."""
REACH_SD, REACH_GROUP = 3.0, 2.0
CHUNK = 64
SAMPLED = 16
"""Scans from which the range of colours is taken, evenly over the study."""
TOP = 0.999


@dataclass(frozen=True, eq=False)
class Slide:
    """A slider: a direction of the latent space, and how far it goes.

    Parameters
    ----------
    direction : Direction
        What moves.
    low, high : float
        Ends, in units of the direction: 3 SD of the training scans to either side; of groups twice their difference.
    is_place : bool
        Whether the slider stands for a place, counted from the mean of the training scans, as for latents and components;
        else for a change from where a scan is.
    """

    direction: Direction
    low: float
    high: float
    is_place: bool


@dataclass(frozen=True, eq=False)
class Explored:
    """A run that is open for looking.

    Parameters
    ----------
    pools : Pools
        The run.
    space : LatentSpace
        Of the study's own model.
    slides : tuple[Slide, ...]
        Every slider.
    scatter : Mapping
        ``scan``, ``axes`` and ``columns`` as :func:`nilatent.plots.projections.scatter` gives them.
    limits : tuple[float, float]
        Values at the ends of the colours of images.
    rows : Mapping[str, int]
        Number of every scan in the latent space by its id: the only way from a request to a scan.
    at : ndarray
        (scan,) its row in the volumes.
    coordinates : ndarray
        (scan, coordinate) where every scan lies in the latent space, reckoned once.
    """

    pools: Pools
    space: LatentSpace
    slides: tuple[Slide, ...]
    scatter: Mapping[str, Any]
    limits: tuple[float, float]
    rows: Mapping[str, int]
    at: np.ndarray
    coordinates: np.ndarray

    @cached_property
    def usual(self) -> np.ndarray:
        """(coordinate,) mean of the training scans."""
        return np.asarray(self.coordinates[self.space.training].mean(axis=0))

    @cached_property
    def ends(self) -> np.ndarray:
        """(slider, 2) how far the training scans reach along the step of every slider, to either side."""
        along = self.coordinates[self.space.training] @ np.stack([one.direction.step for one in self.slides]).T
        return np.stack([along.min(axis=0), along.max(axis=0)], axis=1)

    def places(self, row: int | None) -> list[float]:
        """Where every slider stands for a scan, or for the mean of the training scans, in units of its direction."""
        away = np.zeros(len(self.usual)) if row is None else self.coordinates[row] - self.usual
        return [
            float(away @ one.direction.step / np.square(one.direction.step).sum()) if one.is_place else 0.0
            for one in self.slides
        ]

    def beyond(self, place: np.ndarray, number: int) -> bool:
        """Whether a place (coordinate,) lies farther along a slider's direction than any training scan."""
        low, high = self.ends[number]
        here, slack = float(place @ self.slides[number].direction.step), 1e-9 * max(abs(low), abs(high), 1e-300)
        return bool(not low - slack <= here <= high + slack)


def open_explored(run: Path) -> Explored:
    """A run folder, read for looking; nothing is written into it.

    Parameters
    ----------
    run : Path
        Folder that `nilatent run` filled, as far as its latents.

    Raises
    ------
    SettingError
        When the folder is no run, the run has no model or no latents yet, or its latents are of another model.
    """
    run = Path(run)
    missing = [name for name in NEEDED if not (run / name).exists()]
    if missing:
        what = "no run" if "study.toml" in missing else "a run without a trained model and its latents"
        raise SettingError(
            f"{run} is {what}: it lacks {', '.join(missing)}. Name the folder that `nilatent run` filled, or run it first."
        )
    known = read_run(run)
    if (run / "latents.provenance.json").is_file() and "latents" not in known.records:
        raise SettingError(
            f"The latents of {run} are of another model or of other scans than it holds now. Run `nilatent run` again."
        )
    pools = open_pools(run)
    # Maps of older latents are none of these.
    return explored(pools, study_space(pools), known.findings["projections"] if known.done("projections") else None)


def explored(pools: Pools, space: LatentSpace, found: Finding | None = None) -> Explored:
    """What an explorer shows of pools that are open.

    Parameters
    ----------
    pools : Pools
        The run.
    space : LatentSpace
        Of the study's own model, of all scans.
    found : Finding, optional
        `projections` of the same scans, whose maps are offered before the latents themselves.
    """
    study, scans = pools.config.study, pools.prepared.scans
    directions, _ = fitted_directions(
        space,
        scans,
        group=study.group,
        contrast=study.contrast,
        covariates=(*study.covariates, *head_size(pools)),
        site=study.site,
    )
    at, coordinates = pools.volumes.rows(list(space.scans)), _coordinates(space)
    return Explored(
        pools=pools,
        space=space,
        slides=tuple(_slide(one, scans.loc[space.scans[space.training]]) for one in directions),
        scatter=_scatter(pools, space, coordinates, directions, found),
        limits=_limits(pools, at),
        rows={str(scan): row for row, scan in enumerate(space.scans)},
        at=at,
        coordinates=coordinates,
    )


def _slide(one: Direction, training: pd.DataFrame) -> Slide:
    is_place = one.kind in ("latent", "component")
    reach = REACH_SD
    if one.levels:
        reach = REACH_GROUP
    elif one.kind == "covariate":
        reach = REACH_SD * float(training[one.column].std(ddof=1)) / one.size
    return Slide(one, -reach, reach, is_place)


def _coordinates(space: LatentSpace) -> np.ndarray:
    """(scan, coordinate) some scans at a time: all latents on a grid in double precision are gigabytes."""
    blocks = (space.values[begin : begin + CHUNK] for begin in range(0, len(space.values), CHUNK))
    return np.concatenate([space.frame.coordinates(block.astype(np.float64)) for block in blocks])


def _scatter(
    pools: Pools, space: LatentSpace, coordinates: np.ndarray, directions: list[Direction], found: Finding | None
) -> dict[str, Any]:
    scans = pools.prepared.scans
    columns = scans.drop(columns=[*HIDDEN, *image_files(scans)], errors="ignore").loc[space.scans]
    parts = pools.parts["part"].reindex(space.scans)
    first = [name for name in (pools.config.study.group, "dataset", "age", "sex") if name and name in columns]
    columns = columns[[*first, *(name for name in columns if name not in first)]].assign(part=parts)
    own = projections.scatter(_as_finding(space, coordinates, directions), columns)
    if found is None or set(map(str, found.data["scan"].values)) != set(own["scan"]):
        return own
    try:
        maps = projections.scatter(_in_order(found, own["scan"]), columns[[]])["axes"]
    except FindingError:
        return own
    return own | {"axes": [*maps, *own["axes"]]}


def _in_order(found: Finding, scans: list[str]) -> Finding:
    """A finding whose data follow another order of the same scans."""
    return Finding(**(vars(found) | {"data": found.data.sel(scan=scans)}))


def _as_finding(space: LatentSpace, coordinates: np.ndarray, directions: list[Direction]) -> Finding:
    """Places of the scans on components and single latents, in SD of the training scans from their mean."""
    shown = [one for kind in ("component", "latent") for one in directions if one.kind == kind]
    steps = (
        np.stack([one.step / np.square(one.step).sum() for one in shown]) if shown else np.zeros((0, len(space.names)))
    )
    away = coordinates - coordinates[space.training].mean(axis=0)
    names = [f"{one.name} of the latents (SD)" if one.kind == "component" else f"{one.name} (SD)" for one in shown]
    data = xr.Dataset({"scores": (("scan", "component"), away @ steps.T)}, coords={"scan": list(map(str, space.scans))})
    table = pd.DataFrame({"component": names, "explained": np.nan})
    return Finding("latents", "", "", table, data, {}, (), len(space.scans), len(set(space.subjects)))


def _limits(pools: Pools, at: np.ndarray) -> tuple[float, float]:
    chosen = at[np.unique(np.linspace(0, len(at) - 1, min(SAMPLED, len(at))).round().astype(int))]
    values = pools.volumes.masked(chosen)
    low, high = float(np.quantile(values, 1 - TOP)), float(np.quantile(values, TOP))
    return min(low, 0.0), high if high > min(low, 0.0) else min(low, 0.0) + 1.0
