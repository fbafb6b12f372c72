"""What a decoder makes of time: regional means of what it draws, and the course of an average subject of every group.

References
----------
Wu 1986, Jackknife, bootstrap and other resampling methods in regression analysis. doi:10.1214/aos/1176350142
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from nilatent.analysis.contrast import NotComparableError
from nilatent.analysis.latent_space import LatentSpace
from nilatent.analysis.longitudinal.times import AGE
from nilatent.analysis.longitudinal.visits import PER_YEAR, LongitudinalConfig, Visits
from nilatent.analysis.mixed import MixedFit, deletion_steps, fit_mixed
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
    redrawn : ndarray
        (draw, group, region) change per year of the courses drawn again with other weights of the subjects; no draws where
        no atlas was given.
    """

    years: np.ndarray
    images: np.ndarray
    n_subjects: np.ndarray
    n_models: int
    seen: bool
    redrawn: np.ndarray

    @property
    def rate(self) -> np.ndarray:
        """(group, voxel) least-squares change per year."""
        return np.asarray(np.einsum("t,gtv->gv", _slope(self.years), self.images))


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
    return _effects(coordinates, visits, _fits(coordinates, visits))


def courses(
    spaces: Sequence[LatentSpace],
    scans: pd.DataFrame,
    visits: Visits,
    config: LongitudinalConfig,
    *,
    weights: RegionWeights | None = None,
    seed: int = 0,
) -> Courses:
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
    weights : RegionWeights, optional
        The atlas in the mask in which decoders draw, in whose regions the courses are drawn again as often as
        `config.n_redrawn` says; left out, they are not.
    seed : int
        Of these draws.

    Raises
    ------
    NotComparableError
        When no model can draw a group.
    """
    years, rng = _years(visits, config), np.random.default_rng(seed)
    for seen in (False, True):
        parts: list[_Part] = []
        for space in spaces:
            rows = place(space, scans, visits)
            kept = rows >= 0
            kept[kept] &= seen | space.unseen[rows[kept]]
            try:
                part = visits.take(kept, least=MIN_DRAWN)
                parts.append(_of_space(space, scans, part, years, config, weights, rng))
            except NotComparableError:
                continue
        if parts:
            return _averaged(parts, visits, years, seen=seen)
    raise NotComparableError(f"no model has {MIN_DRAWN} subjects of a group who were seen at two different times")


@dataclass(frozen=True, eq=False)
class _Part:
    """What one model draws of the groups it can: images (group, time, voxel) and redrawn rates (draw, group, region)."""

    groups: tuple[str, ...]
    n_subjects: np.ndarray
    images: np.ndarray
    redrawn: np.ndarray


def _of_space(
    space: LatentSpace,
    scans: pd.DataFrame,
    part: Visits,
    years: np.ndarray,
    config: LongitudinalConfig,
    weights: RegionWeights | None,
    rng: np.random.Generator,
) -> _Part:
    coordinates, n = space.coordinates[place(space, scans, part)], len(part.groups)
    fits = _fits(coordinates, part)
    effects = _effects(coordinates, part, fits)
    images = np.concatenate(list(_images(space, scans, part, effects[None], years, config)))
    redrawn = np.empty((0, n, 0))
    if weights is not None and config.n_redrawn:
        moved = redrawn_effects(effects, coordinates, part, fits, config.n_redrawn, rng)
        again = regional_means(_images(space, scans, part, moved, years, config), weights)
        redrawn = np.einsum("t,dgtr->dgr", _slope(years), again.reshape(len(moved), n, len(years), -1))
    n_subjects = np.array([part.n_repeated(group) for group in part.groups])
    return _Part(part.groups, n_subjects, images.reshape(n, len(years), -1), redrawn)


def _averaged(parts: Sequence[_Part], visits: Visits, years: np.ndarray, *, seen: bool) -> Courses:
    """The mean of models, each with as many votes of a group as it has subjects; NaN for a group that none could draw."""
    votes = np.zeros(len(visits.groups))
    images = np.zeros((len(votes), *parts[0].images.shape[1:]))
    redrawn = np.zeros((len(parts[0].redrawn), len(votes), parts[0].redrawn.shape[2]))
    for part in parts:
        groups = [visits.groups.index(group) for group in part.groups]
        votes[groups] += part.n_subjects
        images[groups] += part.n_subjects[:, None, None] * part.images
        redrawn[:, groups] += part.n_subjects[:, None] * part.redrawn
    with_votes = np.where(votes > 0, votes, np.nan)[:, None]
    mean = (images / with_votes[:, None]).astype(np.float32)
    return Courses(years, mean, votes.astype(int), len(parts), seen, redrawn / with_votes)


def redrawn_effects(
    effects: np.ndarray,
    coordinates: np.ndarray,
    visits: Visits,
    fits: Sequence[MixedFit | None],
    n_draws: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Fixed effects of all coordinates at once, as other samples of such subjects might have given them.

    Parameters
    ----------
    effects : ndarray
        (fixed, coordinate).
    coordinates : ndarray
        (visit, coordinate).
    visits : Visits
        Of these rows.
    fits : Sequence of MixedFit or None
        One per coordinate; None for one that does not vary.
    n_draws : int
        How many.
    rng : Generator
        Of the draws.

    Returns
    -------
    ndarray
        (draw, fixed, coordinate). Every subject moves all coordinates together, by what they would be without it times a
        standard normal number of its own (a jackknife with random weights), so that their covariance is that of the
        jackknife.
    """
    design, n_subjects = visits.design(), int(visits.first.sum())
    steps = np.zeros((n_subjects, *effects.shape))
    for number, fit in enumerate(fits):
        if fit is not None:
            steps[:, :, number] = deletion_steps(coordinates[:, number], design, visits.years, visits.subject, fit=fit)
    moves = rng.standard_normal((n_draws, n_subjects)) * np.sqrt(1 - 1 / n_subjects)
    return np.asarray(effects + np.tensordot(moves, steps, axes=1))


def _fits(coordinates: np.ndarray, visits: Visits) -> list[MixedFit | None]:
    """A model of every coordinate; None for one that does not vary."""
    design = visits.design()
    found: list[MixedFit | None] = []
    near: MixedFit | None = None
    for y in coordinates.T:
        if np.ptp(y) <= FLAT * np.abs(y).max():
            found.append(None)
            continue
        near = fit_mixed(y, design, visits.years, visits.subject, slopes=visits.slopes, near=near)
        found.append(near)
    return found


def _effects(coordinates: np.ndarray, visits: Visits, fits: Sequence[MixedFit | None]) -> np.ndarray:
    found = np.zeros((visits.design().shape[1], coordinates.shape[1]))
    for number, fit in enumerate(fits):
        if fit is None:
            found[: len(visits.groups), number] = coordinates[:, number].mean()
        else:
            found[:, number] = fit.coefficients
    return found


def _slope(years: np.ndarray) -> np.ndarray:
    """(time,) weights of values whose sum is their least-squares slope."""
    centred = years - years.mean()
    return np.asarray(centred / np.square(centred).sum())


def _years(visits: Visits, config: LongitudinalConfig) -> np.ndarray:
    longest = float(visits.years.max())
    within = [years for years in sorted(set(config.horizons)) if years <= longest]
    return np.array([0.0, *(within or [longest])])


def _images(
    space: LatentSpace,
    scans: pd.DataFrame,
    part: Visits,
    effects: np.ndarray,
    years: np.ndarray,
    config: LongitudinalConfig,
) -> Iterator[np.ndarray]:
    """Batches of the images (draw x group x time, voxel) at the fixed effects (draw, fixed, coordinate)."""
    n = len(part.groups)
    places = effects[:, :n, None] + years[:, None] * effects[:, n : 2 * n, None]
    told = _told_average(space, scans, part, years, config)
    told = None if told is None else pd.concat([told] * len(effects), ignore_index=True)
    return space.draw(places.reshape(-1, effects.shape[2]), told)


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
    found = {AGE: 1.0} if config.step == "year" else {}
    found[config.time] = PER_YEAR[config.unit]
    return {name: per_year for name, per_year in found.items() if name in space.told}


def _average(values: pd.Series) -> object:
    return values.mean() if pd.api.types.is_numeric_dtype(values) else values.mode().iloc[0]
