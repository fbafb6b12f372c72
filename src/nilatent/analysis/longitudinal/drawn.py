"""What a decoder makes of time: regional means of what it draws, and the course of an average subject of every group."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from nilatent.analysis.contrast import NotComparableError
from nilatent.analysis.latent_space import LatentSpace
from nilatent.analysis.longitudinal.visits import PER_YEAR, LongitudinalConfig, Visits
from nilatent.analysis.mixed import MixedFit, fit_mixed
from nilatent.atlas import RegionWeights

MIN_DRAWN = 4
"""Subjects of a group seen at two times, in the part a model has not seen, below which the group is not drawn by it."""
# Of the size of its values, below which what a coordinate varies is rounding.
FLAT = 1e-9


@dataclass(frozen=True, eq=False)
class Courses:
    """The average subject of every group over time, as drawn.

    Parameters
    ----------
    years : ndarray
        (time,) after the first visit, the first 0.
    images : ndarray
        (group, time, voxel) inside the mask; NaN for a group that no model could draw.
    n_subjects : ndarray
        (group,) whose latents they rest on, seen at two times or more.
    n_models : int
        Decoders whose images were averaged.
    seen : bool
        Scans that the models were trained on had to be taken.
    """

    years: np.ndarray
    images: np.ndarray
    n_subjects: np.ndarray
    n_models: int
    seen: bool

    @property
    def rate(self) -> np.ndarray:
        """(group, voxel) least-squares change per year."""
        centred = self.years - self.years.mean()
        return np.asarray(np.einsum("t,gtv->gv", centred / np.square(centred).sum(), self.images))


def regional_means(images: Iterable[np.ndarray], weights: RegionWeights) -> np.ndarray:
    """(image, region) means of batches of images (batch, voxel) inside the mask of the weights."""
    found = [np.asarray((weights.matrix @ batch.T).T) / weights.n_voxels for batch in images]
    return np.concatenate(found) if found else np.empty((0, len(weights.names)))


def told_of(space: LatentSpace, scans: pd.DataFrame) -> pd.DataFrame | None:
    """What the decoder of a space is told of these scans; None where it is told nothing."""
    return scans[list(space.told)] if space.told else None


def decoded_regions(space: LatentSpace, scans: pd.DataFrame, rows: np.ndarray, weights: RegionWeights) -> np.ndarray:
    """(row, region) regional means of the reconstructions of scans of a space.

    Parameters
    ----------
    space : LatentSpace
        The space.
    scans : DataFrame
        Index scan_id; the columns that the decoder is told.
    rows : ndarray
        (row,) numbers of scans of the space.
    weights : RegionWeights
        The atlas in the mask in which the decoder draws.
    """
    told = told_of(space, scans.loc[space.scans[rows]])
    return regional_means(space.moved(rows, np.zeros((len(rows), len(space.names))), told), weights)


def place(space: LatentSpace, scans: pd.DataFrame, visits: Visits) -> np.ndarray:
    """(visit,) number of the scan of each visit in a space."""
    return np.asarray(space.scans.get_indexer(scans.index[visits.rows]))


def fit_coordinates(coordinates: np.ndarray, visits: Visits) -> np.ndarray:
    """(fixed, coordinate) fixed effects of every coordinate, in the order of :meth:`Visits.design`.

    Parameters
    ----------
    coordinates : ndarray
        (visit, coordinate); any measures.
    visits : Visits
        Of these rows.
    """
    design = visits.design()
    found = np.zeros((design.shape[1], coordinates.shape[1]))
    near: MixedFit | None = None
    for number, y in enumerate(coordinates.T):
        if np.ptp(y) <= FLAT * np.abs(y).max():
            found[: len(visits.groups), number] = y.mean()
            continue
        near = fit_mixed(y, design, visits.years, visits.subject, slopes=visits.slopes, near=near)
        found[:, number] = near.coefficients
    return found


def courses(spaces: Sequence[LatentSpace], scans: pd.DataFrame, visits: Visits, config: LongitudinalConfig) -> Courses:
    """Draw the average subject of every group at the first visit and the horizons.

    Every model draws from the fixed effects of the coordinates of the scans it has not seen, and the images of the models are
    averaged, each with as many votes as it has subjects. Where no model has enough such scans, all of its scans are taken.

    Parameters
    ----------
    spaces : Sequence of LatentSpace
        One or more.
    scans : DataFrame
        Index scan_id.
    visits : Visits
        Who was seen when.
    config : LongitudinalConfig
        Settings.

    Raises
    ------
    NotComparableError
        When no model can draw a group.
    """
    years = _years(visits, config)
    for seen in (False, True):
        total, votes, n_models = None, np.zeros(len(visits.groups)), 0
        for space in spaces:
            rows = place(space, scans, visits)
            kept = rows >= 0
            kept[kept] &= seen | space.unseen[rows[kept]]
            try:
                part = visits.take(kept, least=MIN_DRAWN)
                effects = fit_coordinates(space.coordinates[place(space, scans, part)], part)
            except NotComparableError:
                continue
            images = _drawn(space, scans, part, effects, years, config)
            total = np.zeros((len(visits.groups), *images.shape[1:])) if total is None else total
            for group, drawn in zip(part.groups, images, strict=True):
                number, n = visits.groups.index(group), part.n_repeated(group)
                total[number] += n * drawn
                votes[number] += n
            n_models += 1
        if total is not None:
            with_votes = np.where(votes > 0, votes, np.nan)[:, None, None]
            return Courses(years, (total / with_votes).astype(np.float32), votes.astype(int), n_models, seen)
    raise NotComparableError(f"no model has {MIN_DRAWN} subjects of a group who were seen at two different times")


def _years(visits: Visits, config: LongitudinalConfig) -> np.ndarray:
    longest = float(visits.years.max())
    within = [years for years in sorted(set(config.horizons)) if years <= longest]
    return np.array([0.0, *(within or [longest])])


def _drawn(
    space: LatentSpace,
    scans: pd.DataFrame,
    part: Visits,
    effects: np.ndarray,
    years: np.ndarray,
    config: LongitudinalConfig,
) -> np.ndarray:
    """(group, time, voxel) images at the fixed effects."""
    n = len(part.groups)
    places = effects[:n, None] + years[None, :, None] * effects[n : 2 * n, None]
    told = _told_average(space, scans, part, years, config)
    images = np.concatenate(list(space.draw(places.reshape(-1, effects.shape[1]), told)))
    return np.asarray(images.reshape(n, len(years), -1), dtype=np.float64)


def _told_average(
    space: LatentSpace, scans: pd.DataFrame, part: Visits, years: np.ndarray, config: LongitudinalConfig
) -> pd.DataFrame | None:
    """What the decoder is told of an average subject of each group at each time: means of numbers, the most frequent word."""
    if not space.told:
        return None
    table = scans.iloc[part.rows[part.first]]
    rows = []
    for group in part.groups:
        for later in years:
            row = {name: _average(table[name]) for name in space.told}
            row |= {name: row[name] + later * per_year for name, per_year in timed(space, config).items()}
            rows.append(row | ({config.group: group} if config.group in space.told else {}))
    return pd.DataFrame(rows)


def timed(space: LatentSpace, config: LongitudinalConfig) -> dict[str, float]:
    """Columns told to the decoder that go with time, and by how much in a year."""
    of_time = PER_YEAR[config.unit]
    return {name: of_time if name == config.time else 1.0 for name in space.told if name in {"age", config.time}}


def _average(values: pd.Series) -> object:
    return values.mean() if pd.api.types.is_numeric_dtype(values) else values.mode().iloc[0]
