"""Cohorts that are followed over years: subjects with rates of their own, uneven and missing visits, linear models of them.

Truth is the rate of every subject. A linear encoder and decoder (principal components of the training subjects, two folds)
stand for the models, which cost too much for hundreds of cohorts.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache, lru_cache

import numpy as np
import pandas as pd
from scipy import sparse

from nilatent.analysis.latent_space import LatentSpace
from nilatent.analysis.longitudinal.change import Change, change
from nilatent.analysis.longitudinal.directions import direction_scores
from nilatent.analysis.longitudinal.drawn import courses, decoded_regions
from nilatent.analysis.longitudinal.scans import visits_of
from nilatent.analysis.longitudinal.times import with_clock
from nilatent.analysis.longitudinal.visits import LongitudinalConfig, Visits
from nilatent.atlas import RegionWeights, load_atlas, region_weights
from nilatent.latents import Frame
from nilatent.preprocess.resampling import smooth
from nilatent.simulate import SimulationConfig
from nilatent.simulate.anatomy import base_anatomy, grey_matter_maps
from nilatent.simulate.memory import template_ml
from nilatent.simulate.people import draw_people, visits_of_people
from nilatent.volumes import Grid, gm_mask

ALPHA, N_PERMUTATIONS, N_FOLDS = 0.05, 199, 2
SETTINGS = LongitudinalConfig(time="years", covariates=("sex",), n_permutations=N_PERMUTATIONS)
# Arrays: regions of a few noisy voxels, people who differ along a few patterns, and what a visit adds to every region.
N_REGIONS, VOXELS_PER_REGION, N_PATTERNS, PATTERN, VISIT_NOISE, VOXEL_NOISE = 8, 5, 4, 0.3, 0.25, 0.3
PLANTED = (0, 1)
# Years that patients of arrays have lost at their rate when they are first seen.
YEARS_BEFORE = 2.0
SPACING_MM, FWHM_MM = 6.0, 8.0
# Share of a region that is lost at disease 1, below which it counts as spared: neighbours lose some by smoothing.
LEAST_LOSS = 0.005
EFFECTS_OF_IMAGES = (0.0, 0.15, 0.3)
# Of the other regions of the atlas, every so many-th is judged in images.
EVERY = 6


@dataclass(frozen=True)
class Followed:
    """What a cohort is like.

    Parameters
    ----------
    n : int
        Subjects, half of them patients.
    difference : float
        How much faster than controls patients lose: in arrays in a planted region in a year; in images the effect of
        :class:`nilatent.simulate.SimulationConfig`, one of ``EFFECTS_OF_IMAGES`` (0.125 of the loss in a year on average).
    slope : float
        SD of the rates between subjects, in arrays; in images patients' rates differ by a third to either side.
    visits : tuple[int, int]
        Least and most visits of a subject in arrays; in images there are four, of which the later are missed by 40 %.
    images : bool
        Simulated grey matter instead of arrays.
    """

    n: int = 40
    difference: float = 0.0
    slope: float = 0.1
    visits: tuple[int, int] = (1, 4)
    images: bool = False


@dataclass(frozen=True, eq=False)
class Cohort:
    """Scans over years: what was seen, what is true, and linear models of them.

    Parameters
    ----------
    scans : DataFrame
        Index scan_id; subject_id, session_id, years, sex, group.
    voxels : ndarray
        (scan, voxel).
    weights : RegionWeights
        Regions of the voxels.
    rates : DataFrame
        Index subject_id: the true rate of every region.
    planted, spared : ndarray
        (region,) bool: groups differ, or do not.
    drawn : bool
        Whether courses are drawn, which takes as long as all else.
    """

    scans: pd.DataFrame
    voxels: np.ndarray
    weights: RegionWeights
    rates: pd.DataFrame
    planted: np.ndarray
    spared: np.ndarray
    drawn: bool = False

    @property
    def regions(self) -> np.ndarray:
        """(scan, region) means."""
        return np.asarray((self.weights.matrix @ self.voxels.T).T) / self.weights.n_voxels

    def spaces(self) -> list[LatentSpace]:
        """A linear model per fold of the subjects."""
        number = np.unique(self.scans["subject_id"], return_inverse=True)[1]
        return [self._space(number // 2 % N_FOLDS != fold) for fold in range(N_FOLDS)]

    def _space(self, training: np.ndarray) -> LatentSpace:
        centre = self.voxels[training].mean(axis=0)
        n_latent = training.sum() // 4
        axes = np.linalg.svd(self.voxels[training] - centre, full_matrices=False)[2][:n_latent]

        def draw(latents: np.ndarray, told: pd.DataFrame | None) -> Iterator[np.ndarray]:
            yield centre + latents @ axes

        values = (self.voxels - centre) @ axes.T
        return LatentSpace(
            scans=self.scans.index,
            subjects=self.scans["subject_id"].to_numpy().astype(str),
            values=values,
            frame=Frame(np.zeros(n_latent), np.eye(n_latent)),
            variance=np.zeros(values.shape),
            names=tuple(f"z{one:03d}" for one in range(n_latent)),
            training=training,
            unseen=~training,
            has_prior=False,
            told=(),
            draw_latents=draw,
        )


def make_followed(condition: Followed, seed: int) -> Cohort:
    """A cohort of the condition; the same people whatever the difference."""
    return _from_images(condition, seed) if condition.images else _from_arrays(condition, seed)


def _from_arrays(condition: Followed, seed: int) -> Cohort:
    rng = np.random.default_rng([seed, condition.n])
    counts = rng.integers(condition.visits[0], condition.visits[1] + 1, condition.n)
    subject = np.repeat(np.arange(condition.n), counts)
    visit = np.concatenate([np.arange(count) for count in counts])
    years = visit + rng.uniform(-0.3, 0.3, len(subject)) * (visit > 0)
    sick = np.arange(condition.n) % 2 == 1
    rates = condition.slope * rng.normal(size=(condition.n, N_REGIONS)) - 0.1
    people = rng.normal(size=(condition.n, N_PATTERNS)) @ (PATTERN * rng.normal(size=(N_PATTERNS, N_REGIONS)))
    planted = np.isin(np.arange(N_REGIONS), PLANTED) & (condition.difference != 0)
    rates -= condition.difference * sick[:, None] * planted
    people -= YEARS_BEFORE * condition.difference * sick[:, None] * planted
    x = people[subject] + rates[subject] * years[:, None] + VISIT_NOISE * rng.normal(size=(len(subject), N_REGIONS))
    voxels = np.repeat(x, VOXELS_PER_REGION, axis=1)
    voxels += VOXEL_NOISE * rng.normal(size=voxels.shape)
    owner = np.repeat(np.arange(N_REGIONS), VOXELS_PER_REGION)
    matrix = sparse.csr_matrix((np.ones(len(owner)), (owner, np.arange(len(owner)))))
    names = [f"region {one}" for one in range(N_REGIONS)]
    weights = RegionWeights(matrix, np.arange(N_REGIONS), names, pd.DataFrame())
    people_names = np.array([f"sub-{one:03d}" for one in range(condition.n)])
    scans = pd.DataFrame(
        {
            "subject_id": people_names[subject],
            "session_id": [f"ses-{one}" for one in visit],
            "years": years,
            "sex": np.where(subject % 3, "F", "M"),
            "group": np.where(sick[subject], "patient", "control"),
        },
        index=pd.Index([f"sub-{one:03d}_ses-{two}" for one, two in zip(subject, visit, strict=True)], name="scan_id"),
    )
    return Cohort(scans, voxels, weights, pd.DataFrame(rates, people_names, names), planted, ~planted)


def _from_images(condition: Followed, seed: int) -> Cohort:
    scans, seen, true = _images_of(condition.n, seed)[condition.difference]
    weights = atlas_part()
    means = np.asarray((weights.matrix @ true.T).T) / weights.n_voxels
    named = np.isin(weights.names, SimulationConfig().regions) & (condition.difference > 0)
    mask, clean = gm_mask(Grid.mni(SPACING_MM)), base_anatomy(SimulationConfig(spacing_mm=SPACING_MM))
    lost, grey = (weights.matrix @ _smooth([clean.on_grid(one)], mask)[0] for one in (clean.lost, clean.grey))
    spared = np.full(len(named), True) if condition.difference == 0 else ~named & (lost / grey < LEAST_LOSS)
    return Cohort(scans, seen, weights, _rates(means, scans, weights.names), named, spared, drawn=True)


@lru_cache(maxsize=1)
def _images_of(n: int, seed: int) -> dict[float, tuple[pd.DataFrame, np.ndarray, np.ndarray]]:
    """Scans, their images and those without noise, (scan, voxel), for every effect: shapes cost the most, and are the same."""
    settings = SimulationConfig(n_subjects=n, seed=seed, spacing_mm=SPACING_MM, n_sessions=4, missed_fraction=0.4)
    scans, planted = draw_people(settings, template_ml=template_ml())
    people = [
        visits_of_people(scans, planted.assign(atrophy=effect * planted["atrophy"])) for effect in EFFECTS_OF_IMAGES
    ]
    mask, maps = gm_mask(Grid.mni(SPACING_MM)), []
    for noise in (1.0, 0.0):
        anatomy = base_anatomy(replace(settings, noise=noise))
        of_person = []
        for person in range(n):
            visits = [visit for effect in people for visit in effect[person]]
            made = _smooth(grey_matter_maps(settings, anatomy, person, visits), mask)
            of_person.append(made.reshape(len(people), -1, made.shape[1]))
        maps.append(np.concatenate(of_person, axis=1))
    return {effect: (scans, *pair) for effect, *pair in zip(EFFECTS_OF_IMAGES, *maps, strict=True)}


def _smooth(maps: Iterable[np.ndarray], mask: np.ndarray) -> np.ndarray:
    return np.array([smooth(one, fwhm_mm=FWHM_MM, spacing_mm=SPACING_MM)[mask] for one in maps], dtype=np.float64)


def _rates(values: np.ndarray, scans: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """Change from the first to the last visit of every subject over the years between; NaN for one visit."""
    table = pd.DataFrame(values, scans.index, list(names)).groupby(scans["subject_id"])
    years = scans["years"].groupby(scans["subject_id"])
    gone = (years.last() - years.first()).replace(0, np.nan)
    return (table.last() - table.first()).div(gone, axis=0)


@cache
def atlas_part() -> RegionWeights:
    """The planted regions and some others of the default atlas."""
    grid = Grid.mni(SPACING_MM)
    whole = region_weights(load_atlas("aal2"), grid, gm_mask(grid))
    names = np.array(whole.names)
    kept = np.isin(names, SimulationConfig().regions) | (np.arange(len(names)) % EVERY == 0)
    return RegionWeights(whole.matrix[kept], whole.labels[kept], list(names[kept]), whole.dropped)


def judge_followed(cohort: Cohort) -> dict[str, float]:
    """What is called and how true it is: measured regions, decoded regions of unseen scans, and the direction of the groups.

    ``*_planted`` and ``*_other`` count family-wise calls; ``ratio`` and ``permuted`` say whether the first region alone is
    called by either p; ``estimate``, ``low`` and ``high`` are its difference in rate, ``truth`` that of the subjects' true
    rates, ``drawn`` that of the drawn courses of images; ``slopes_r`` correlates predicted and true rates of subjects with
    two visits or more, over the planted regions (the first two where none is), ``lines_r`` those of their own straight
    lines.
    """
    config = with_clock(cohort.scans, SETTINGS)
    visits, spaces = visits_of(cohort.scans, config), cohort.spaces()
    found = change(cohort.regions[visits.rows], visits, n_permutations=N_PERMUTATIONS, seed=0)
    row = {"n_planted": int(cohort.planted.sum()), "n_other": int(cohort.spared.sum())} | _calls(
        "regions", found, cohort
    )
    decoded = np.full(cohort.regions.shape, np.nan)
    for space in spaces:
        rows = np.flatnonzero(space.unseen)
        decoded[rows] = decoded_regions(space, cohort.scans, rows, cohort.weights)
    row |= _calls("decoded", change(decoded[visits.rows], visits, n_permutations=N_PERMUTATIONS, seed=0), cohort)
    scores = direction_scores(spaces, cohort.scans, visits, config)[0].loc[cohort.scans.index[visits.rows]]
    along = change(scores[["patient:control"]].to_numpy(), visits, n_permutations=N_PERMUTATIONS, seed=0)
    row["direction"] = int(along.p_permutation[0, 0] <= ALPHA)
    first = int(np.flatnonzero(cohort.planted)[0]) if cohort.planted.any() else 0
    row |= {"ratio": int(found.p_ratio[first, 0] <= ALPHA), "permuted": int(found.p_permutation[first, 0] <= ALPHA)}
    row |= dict(zip(("estimate", "low", "high"), map(float, found.difference[first, 0]), strict=True))
    true = cohort.rates.loc[visits.subject[visits.first]]
    patient = visits.group[visits.first] == "patient"
    row["truth"] = float(true[patient].iloc[:, first].mean() - true[~patient].iloc[:, first].mean())
    several = visits.repeated[visits.first]
    judged = np.flatnonzero(cohort.planted) if cohort.planted.any() else np.arange(2)
    lines = _rates_of_lines(cohort.regions[visits.rows], visits)
    of_true = true.to_numpy()[several][:, judged].ravel()
    row["slopes_r"] = _r(found.subject_rate[judged][:, several].T.ravel(), of_true)
    row["lines_r"] = _r(lines[several][:, judged].ravel(), of_true)
    return row | {"drawn": _drawn_difference(cohort, spaces, visits, config, first) if cohort.drawn else float("nan")}


def _drawn_difference(
    cohort: Cohort, spaces: list[LatentSpace], visits: Visits, config: LongitudinalConfig, region: int
) -> float:
    drawn = courses(spaces, cohort.scans, visits, config)
    rate = np.asarray(cohort.weights.matrix[[region]] @ drawn.rate.T)[0] / cohort.weights.n_voxels[region]
    return float(rate[visits.groups.index("patient")] - rate[visits.groups.index("control")])


def _calls(kind: str, found: Change, cohort: Cohort) -> dict[str, float]:
    called = found.p_fwe[:, 0] <= ALPHA
    return {
        f"{kind}_planted": int((called & cohort.planted).sum()),
        f"{kind}_other": int((called & cohort.spared).sum()),
    }


def _rates_of_lines(values: np.ndarray, visits: Visits) -> np.ndarray:
    """(subject, measure) slope of each subject's own straight line; NaN for one time."""
    number = visits.number
    counts = np.bincount(number)
    centred = visits.years - (np.bincount(number, visits.years) / counts)[number]
    spread = np.bincount(number, centred**2)
    tops = np.stack([np.bincount(number, centred * one) for one in values.T], axis=1)
    return np.divide(tops, spread[:, None], out=np.full(tops.shape, np.nan), where=spread[:, None] > 1e-9)


def _r(one: np.ndarray, other: np.ndarray) -> float:
    known = np.isfinite(one) & np.isfinite(other)
    return float(np.corrcoef(one[known], other[known])[0, 1]) if known.sum() > 2 else float("nan")
