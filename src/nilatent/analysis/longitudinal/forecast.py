"""A later scan foreseen from the first one, in subjects that neither a model nor a regression has seen.

Beside the latent forecasts stand the first scan as it is, its regions with the rate of the group, and a regression of the
last visit on the first: whoever forecasts must be better than these.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from nilatent.analysis import stats
from nilatent.analysis.contrast import NotComparableError
from nilatent.analysis.latent_space import LatentSpace
from nilatent.analysis.longitudinal.drawn import fit_coordinates, place, regional_means, timed, told_of
from nilatent.analysis.longitudinal.visits import LongitudinalConfig, Visits
from nilatent.atlas import RegionWeights

MIN_TRAINED = 4
"""Training subjects of a group seen at two times below which its rate is not learned."""
MIN_FORESEEN = 10
"""Held-out subjects below which a forecast is not judged."""
CARRIED, RATE, REGRESSION = "first scan", "first scan plus rate of the group", "regression on the first visit"
LATENT_CHANGE, LATENT = "first scan plus latent change", "latent image"
OF_LATENTS = (LATENT_CHANGE, LATENT)
REGIONAL = (CARRIED, RATE, REGRESSION, LATENT_CHANGE, LATENT)
VOXEL = (CARRIED, RATE, LATENT_CHANGE, LATENT)
# Inside the mask of every scan of a list, (scan, voxel).
Masked = Callable[[Sequence[str]], np.ndarray]


@dataclass(frozen=True, eq=False)
class Forecasts:
    """Errors of forecasts of the last visit from the first, of held-out subjects.

    Parameters
    ----------
    subject : ndarray
        (subject,) str.
    years : ndarray
        (subject,) between the two visits.
    regional : ndarray
        (method, subject) mean absolute error over regions; methods as in ``REGIONAL``.
    voxel : ndarray
        (method, subject) root mean square error inside the mask; methods as in ``VOXEL``; no subjects where there were no
        volumes.
    """

    subject: np.ndarray
    years: np.ndarray
    regional: np.ndarray
    voxel: np.ndarray


@dataclass(frozen=True, eq=False)
class Pairs:
    """First and last visits of subjects, as rows of visits."""

    first: np.ndarray
    last: np.ndarray

    @classmethod
    def of(cls, visits: Visits) -> "Pairs":
        """Of every subject seen at two times or more."""
        several = visits.n_times > 1
        return cls(np.flatnonzero(visits.first & several), np.flatnonzero(visits.last & several))


def forecasts(
    spaces: Sequence[LatentSpace],
    regions: np.ndarray,
    scans: pd.DataFrame,
    visits: Visits,
    weights: RegionWeights,
    config: LongitudinalConfig,
    *,
    masked: Masked | None = None,
) -> Forecasts:
    """Foresee the last visit of every held-out subject.

    Parameters
    ----------
    spaces : Sequence of LatentSpace
        Each learns rates from its training scans and is judged on those it has not seen; so are the regional models.
    regions : ndarray
        (scan, region) in the order of `scans`.
    scans : DataFrame
        Index scan_id.
    visits : Visits
        Who was seen when.
    weights : RegionWeights
        The atlas in the mask in which decoders draw.
    config : LongitudinalConfig
        Settings.
    masked : Callable, optional
        Scan identifiers to what was measured inside that mask, (scan, voxel); left out, voxels are not judged.

    Raises
    ------
    NotComparableError
        When fewer than ten held-out subjects can be foreseen.
    """
    found = []
    for space in spaces:
        rows = place(space, scans, visits)
        present = rows >= 0
        try:
            training = visits.take(present & space.training[rows], least=MIN_TRAINED)
            unseen = visits.take(present & space.unseen[rows], least=1)
            unseen = unseen.take(np.isin(unseen.group, training.groups), least=1)
            found.append(_of_space(space, regions, scans, training, unseen, weights, config, masked))
        except NotComparableError:
            continue
    n = sum(len(one.subject) for one in found)
    if n < MIN_FORESEEN:
        raise NotComparableError(
            f"{n} held-out subjects were seen at two times, in models with {MIN_TRAINED} such training subjects of their group; "
            f"{MIN_FORESEEN} are needed"
        )
    return Forecasts(
        np.concatenate([one.subject for one in found]),
        np.concatenate([one.years for one in found]),
        np.concatenate([one.regional for one in found], axis=1),
        np.concatenate([one.voxel for one in found], axis=1),
    )


def mean_errors(errors: np.ndarray, subject: np.ndarray, *, seed: int) -> np.ndarray:
    """(method, 3) mean of errors (method, subject), or of differences of errors, with 95 % bootstrap intervals.

    Parameters
    ----------
    errors : ndarray
        (method, subject).
    subject : ndarray
        (subject,) whom to resample.
    seed : int
        Of the resampling.
    """
    ones = np.ones(errors.shape[1])
    return np.array([stats.bootstrap_ratio(row, ones, subject, seed=seed) for row in errors])


def _of_space(
    space: LatentSpace,
    regions: np.ndarray,
    scans: pd.DataFrame,
    training: Visits,
    unseen: Visits,
    weights: RegionWeights,
    config: LongitudinalConfig,
    masked: Masked | None,
) -> Forecasts:
    pairs = Pairs.of(unseen)
    first, last = unseen.rows[pairs.first], unseen.rows[pairs.last]
    steps = rates_for(space.coordinates[place(space, scans, training)], training, unseen, pairs)
    before, after = regions[first], regions[last]
    told = told_of(space, scans.iloc[first])
    later = told
    if told is not None:
        gone = unseen.years[pairs.last] - unseen.years[pairs.first]
        later = told.assign(**{name: told[name] + gone * rate for name, rate in timed(space, config).items()})
    rows = place(space, scans, unseen)[pairs.first]
    drawn_before = regional_means(space.moved(rows, np.zeros_like(steps), told), weights)
    drawn_after = regional_means(space.moved(rows, steps, later), weights)
    foreseen = (
        before,
        before + rates_for(regions[training.rows], training, unseen, pairs),
        _regressed(regions, training, unseen, pairs),
        before + drawn_after - drawn_before,
        drawn_after,
    )
    voxel = np.empty((len(VOXEL), 0))
    if masked is not None:
        change = _voxel_rates(masked, scans, training)
        voxel = np.column_stack(
            [
                _voxel_errors(masked([scans.index[one], scans.index[other]]), rate, here, there)
                for one, other, rate, here, there in zip(
                    first,
                    last,
                    _by_group(change, training, unseen, pairs),
                    _single(space.moved(rows, np.zeros_like(steps), told)),
                    _single(space.moved(rows, steps, later)),
                    strict=True,
                )
            ]
        )
    return Forecasts(
        subject=unseen.subject[pairs.first],
        years=unseen.years[pairs.last] - unseen.years[pairs.first],
        regional=np.array([np.abs(one - after).mean(axis=1) for one in foreseen]),
        voxel=voxel,
    )


def rates_for(values: np.ndarray, training: Visits, unseen: Visits, pairs: Pairs) -> np.ndarray:
    """(pair, measure) change between two visits as the training subjects of the same group and pace let expect.

    Parameters
    ----------
    values : ndarray
        (visit, measure) of the training visits.
    training, unseen : Visits
        Who is learned from, and who is foreseen.
    pairs : Pairs
        Rows of `unseen`.
    """
    effects, n = fit_coordinates(values, training), len(training.groups)
    group = [training.groups.index(one) for one in unseen.group[pairs.first]]
    n_pace = training.pace.shape[1]
    rate = effects[n : 2 * n][group] + unseen.pace[pairs.first] @ effects[2 * n : 2 * n + n_pace]
    return np.asarray(rate * (unseen.years[pairs.last] - unseen.years[pairs.first])[:, None])


def _regressed(regions: np.ndarray, training: Visits, unseen: Visits, pairs: Pairs) -> np.ndarray:
    """(pair, region) by least squares of the last visit on the first, the years of each group and the covariates."""
    learned = Pairs.of(training)
    first, last = regions[training.rows[learned.first]], regions[training.rows[learned.last]]
    fixed, new = (_known(part, chosen, training.groups) for part, chosen in ((training, learned), (unseen, pairs)))
    start = regions[unseen.rows[pairs.first]]
    foreseen = np.empty_like(start)
    for region in range(regions.shape[1]):
        # The change is regressed, so that what few subjects cannot tell apart falls back on no change.
        design = np.column_stack([first[:, region], fixed])
        centre, size = design.mean(axis=0), design.std(axis=0)
        size = np.where(size > 0, size, 1.0)
        scaled = np.column_stack([np.ones(len(design)), (design - centre) / size])
        change = last[:, region] - first[:, region]
        slopes = np.linalg.lstsq(scaled, change, rcond=1e-8)[0]
        asked = (np.column_stack([start[:, region], new]) - centre) / size
        foreseen[:, region] = start[:, region] + slopes[0] + asked @ slopes[1:]
    return np.asarray(foreseen)


def _known(visits: Visits, pairs: Pairs, groups: tuple[str, ...]) -> np.ndarray:
    years = visits.years[pairs.last] - visits.years[pairs.first]
    member = visits.group[pairs.first][:, None] == np.array(groups)
    return np.column_stack([member * years[:, None], visits.level[pairs.first]])


def _voxel_rates(masked: Masked, scans: pd.DataFrame, training: Visits) -> np.ndarray:
    """(group, voxel) change per year of the training subjects: the sum of their changes over the sum of their years."""
    learned = Pairs.of(training)
    years = training.years[learned.last] - training.years[learned.first]
    total: dict[str, np.ndarray] = {}
    for one, other in zip(learned.first, learned.last, strict=True):
        both = masked([scans.index[training.rows[one]], scans.index[training.rows[other]]]).astype(np.float64)
        group = training.group[one]
        total[group] = total.get(group, 0.0) + both[1] - both[0]
    of_group = training.group[learned.first]
    return np.array([total[group] / years[of_group == group].sum() for group in training.groups])


def _by_group(change: np.ndarray, training: Visits, unseen: Visits, pairs: Pairs) -> Iterator[np.ndarray]:
    for one, other in zip(pairs.first, pairs.last, strict=True):
        yield change[training.groups.index(unseen.group[one])] * (unseen.years[other] - unseen.years[one])


def _voxel_errors(both: np.ndarray, rate: np.ndarray, here: np.ndarray, there: np.ndarray) -> np.ndarray:
    """(method,) root mean square error of one subject."""
    before, after = both.astype(np.float64)
    foreseen = (before, before + rate, before + there - here, there)
    return np.array([np.sqrt(np.square(one - after).mean()) for one in foreseen])


def _single(batches: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    for batch in batches:
        yield from batch
