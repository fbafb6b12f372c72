"""Effects of directions on regions: joined over models for what a column defines, of the study's model for single latents."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pandas as pd

from nilatent.analysis import stats
from nilatent.analysis.contrast import Comparison, Gradient, first_scans
from nilatent.analysis.directions import (
    Direction,
    compared,
    fitted_directions,
    forward_pattern,
    training_table,
    values_of,
)
from nilatent.analysis.latent_space import LatentSpace
from nilatent.analysis.sensitivity.decoder import Decoder, changes_of, departure, read_decoder, region_means
from nilatent.analysis.sensitivity.people import (
    Agreement,
    Unseen,
    agreement,
    joint_p,
    permuted_pattern,
    rank_correlation,
)
from nilatent.atlas import RegionWeights
from nilatent.errors import SettingError

SCORES = ("latent", "component")
# Kinds whose step is the slope of the latents on a column, so that a permutation of the column can refit it.
TESTED = ("covariate", "group")
# Unseen scans, and degrees of freedom left in them, below which nothing is held against them.
MIN_UNSEEN, MIN_DEGREES = 10, 4
N_SHOWN_COMPONENTS = 3


@dataclass(frozen=True)
class SensitivityConfig:
    """Settings of :func:`nilatent.analysis.sensitivity.sensitivity`.

    Parameters
    ----------
    group, contrast : str
        Column of the groups, and contrasts as in :func:`nilatent.analysis.contrast.contrasts_of`.
    covariates : tuple[str, ...]
        Columns that have directions, and are held in those of the others.
    site : str
        Column of the site: held, and the block within which permutations stay. Empty for none.
    reach : float
        How far the decoder is moved to either side, in SD of the training scans along the direction; above 0.
    n_permutations : int
        Permutations of every test; at least 1.
    alpha : float
        Family-wise error rate at which a region is called, between 0 and 1.
    seed : int
        Of the permutations.
    """

    group: str = "group"
    contrast: str = ""
    covariates: tuple[str, ...] = ()
    site: str = ""
    reach: float = 2.0
    n_permutations: int = 2000
    alpha: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values that make no test.

        Raises
        ------
        SettingError
            Names the setting and its range.
        """
        if not 0 < self.reach <= 10:
            raise SettingError(
                f"sensitivity.reach is above 0 and at most 10 SD, got {self.reach}. The usual value is 2."
            )
        if self.n_permutations < 1:
            raise SettingError(f"sensitivity.n_permutations is at least 1, got {self.n_permutations}. Ask for 2000.")
        if not 0 < self.alpha < 1:
            raise SettingError(f"sensitivity.alpha is between 0 and 1, got {self.alpha}. The usual value is 0.05.")


@dataclass(frozen=True, eq=False)
class Model:
    """A latent space that was read: its decoder in regions, and its directions.

    Parameters
    ----------
    space : LatentSpace
        The space.
    decoder : Decoder
        Its decoder.
    found : Mapping[str, Direction]
        By name.
    refused : Mapping[str, str]
        Reason for each direction that it cannot have.
    """

    space: LatentSpace
    decoder: Decoder
    found: Mapping[str, Direction]
    refused: Mapping[str, str]

    def rows(self, scan_ids: pd.Index, which: np.ndarray) -> np.ndarray:
        """Places among some scans of those that the space marks by `which`."""
        return np.flatnonzero(scan_ids.isin(self.space.scans[which]))

    def coordinates(self, scan_ids: pd.Index) -> np.ndarray:
        """(scan, coordinate)."""
        return np.asarray(self.space.coordinates[self.space.scans.get_indexer(scan_ids)])


@dataclass(frozen=True, eq=False)
class Effect:
    """What a direction does; arrays are (region,) per unit of the direction unless said, and NaN where not asked.

    Parameters
    ----------
    direction : Direction
        Of the first model.
    effect : ndarray
        Change of the drawn regional mean, mean over models.
    by_model : ndarray
        (model, region).
    departure : float
        Largest over models of the share by which slopes at the mean miss the effect.
    image : ndarray
        (voxel,) the same per voxel; (0,) where no picture is wanted.
    half_width, p, p_regional : ndarray
        Half of the 95 % interval; family-wise p of the direction, and of plain regional analysis of the same scans.
    claim : ndarray
        (judge, region) what each model that has unseen scans says of the regions of people.
    unseen : ndarray
        (judge, region) slopes of true regional means in its unseen scans.
    p_unseen, baseline : ndarray
        Family-wise p of these; the same slopes in training scans.
    agrees, baseline_agrees : Agreement
        Of the decoder's claim, and of the training scans' slopes, with unseen scans.
    n_unseen : int
        Scans that judge it.
    """

    direction: Direction
    effect: np.ndarray
    by_model: np.ndarray
    departure: float
    image: np.ndarray
    half_width: np.ndarray
    p: np.ndarray
    p_regional: np.ndarray
    claim: np.ndarray
    unseen: np.ndarray
    p_unseen: np.ndarray
    baseline: np.ndarray
    agrees: Agreement
    baseline_agrees: Agreement
    n_unseen: int = 0

    @property
    def carried(self) -> float:
        """Share of the training scans' own regional slopes that the decoder draws: slope of the one on the other through 0.

        NaN where the two have different units.
        """
        size = float(np.square(self.baseline).sum())
        return float(self.effect @ self.baseline / size) if self.direction.kind in TESTED and size > 0 else float("nan")


def read_model(space: LatentSpace, scans: pd.DataFrame, weights: RegionWeights, config: SensitivityConfig) -> Model:
    """A model with its directions, fitted on its training scans."""
    found, refused = fitted_directions(
        space,
        scans,
        group=config.group,
        contrast=config.contrast,
        covariates=config.covariates,
        site=config.site,
    )
    first = np.flatnonzero(space.training)[first_scans(training_table(space, scans))]
    return Model(space, read_decoder(space, first, weights), {one.name: one for one in found}, refused)


def column_effect(
    models: Sequence[Model],
    name: str,
    scans: pd.DataFrame,
    regions: pd.DataFrame,
    weights: RegionWeights,
    config: SensitivityConfig,
) -> Effect:
    """Effect of a direction that a column defines, joined over models.

    Parameters
    ----------
    models : Sequence of Model
        Cross-fitted ones, or the study's alone; all have the direction.
    name : str
        Of the direction.
    scans, regions, weights, config
        As in :func:`nilatent.analysis.sensitivity.sensitivity`.
    """
    one = models[0].found[name]
    table = scans.loc[models[0].space.scans]
    asked = compared(table, one, site=config.site)
    chosen = table.index[asked.rows]
    truth, column = regions.loc[chosen].to_numpy(dtype=np.float64), values_of(asked)
    trained = [model.rows(chosen, model.space.training) for model in models]
    drawn = [_drawn(model, model.found[name], weights, config.reach) for model in models]
    # One SD of a number is that of the first model's training scans throughout.
    scales = [one.size / model.found[name].size if one.kind == "covariate" else 1.0 for model in models]
    drawn = [(effect * scale, away, image * scale) for (effect, away, image), scale in zip(drawn, scales, strict=True)]
    by_model = np.array([effect for effect, _, _ in drawn])
    blank, size = np.full(truth.shape[1], np.nan), one.size
    half_width, p, p_regional, decoded = blank, blank, blank, list[np.ndarray]()
    if one.kind in TESTED:
        decoded = [
            model.coordinates(chosen[own]) @ model.decoder.slopes.T for model, own in zip(models, trained, strict=True)
        ]
        half_width, p, p_regional = _tested(decoded, [truth[own] for own in trained], trained, asked, config)
    judges = {number: held for number, model in enumerate(models) if (held := _held(model, chosen, truth, asked))}
    slopes = [forward_pattern(truth[own], column[own], asked.confounds[own]) for own in trained]
    unseen = list(judges.values())
    agrees = agreement([by_model[number] for number in judges], unseen, **_draws(config))
    baseline_agrees = agreement([slopes[number] for number in judges], unseen, **_draws(config))
    if len(judges) > 1:
        judged = [
            (models[number].rows(chosen, models[number].space.unseen), judges[number].regions) for number in judges
        ]
        claimed = [(trained[number], truth[trained[number]]) for number in judges]
        test = partial(
            joint_p, column, asked.confounds, asked.blocks, n_permutations=config.n_permutations, seed=config.seed
        )
        baseline_agrees = replace(baseline_agrees, p=test(claimed, judged))
        if decoded:
            claimed = [(trained[number], decoded[number]) for number in judges]
            agrees = replace(agrees, p=test(claimed, judged))
    return Effect(
        direction=one,
        effect=by_model.mean(axis=0),
        by_model=by_model,
        departure=float(max(away for _, away, _ in drawn)),
        image=np.mean([image for _, _, image in drawn], axis=0),
        half_width=size * half_width,
        p=p,
        p_regional=p_regional,
        claim=by_model[list(judges)],
        unseen=size * np.array([held.slopes for held in unseen]).reshape(-1, len(blank)),
        p_unseen=blank,
        baseline=size * np.mean(slopes, axis=0),
        agrees=agrees,
        baseline_agrees=baseline_agrees,
        n_unseen=sum(len(held.column) for held in unseen),
    )


def _draws(config: SensitivityConfig) -> dict[str, int]:
    return {"n_permutations": config.n_permutations, "seed": config.seed}


def _drawn(model: Model, one: Direction, weights: RegionWeights, reach: float) -> tuple[np.ndarray, float, np.ndarray]:
    """Effect by region as it is drawn, how far the slopes miss it, and the effect by voxel."""
    units = model.decoder.units(one.step, reach=reach)
    image = next(changes_of(model.space, model.decoder.centre, [one.step], [units]))
    effect = region_means(image, weights)
    return effect, departure(effect, model.decoder.slopes @ one.step), image


def _tested(
    decoded: Sequence[np.ndarray],
    truth: Sequence[np.ndarray],
    trained: Sequence[np.ndarray],
    asked: Comparison | Gradient,
    config: SensitivityConfig,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Half width of the interval per unit of the column, and p of the direction and of plain regional analysis."""
    used = np.unique(np.concatenate(trained))
    places = [np.searchsorted(used, own) for own in trained]
    blocks = None if asked.blocks is None else asked.blocks[used]
    orders = stats.permutations(len(used), config.n_permutations, seed=config.seed, blocks=blocks)
    column, confounds = values_of(asked)[used], asked.confounds[used]
    test = permuted_pattern(decoded, places, column, confounds, orders)
    plain = permuted_pattern(truth, places, column, confounds, orders)
    return test.half_width, test.p_fwe, plain.p_fwe


def _held(model: Model, chosen: pd.Index, truth: np.ndarray, asked: Comparison | Gradient) -> Unseen | None:
    """Unseen scans of a model that can judge a column, or None."""
    own = model.rows(chosen, model.space.unseen)
    if len(own) == 0:
        return None
    blocks = None if asked.blocks is None else asked.blocks[own]
    held = Unseen(truth[own], values_of(asked)[own], asked.confounds[own], blocks)
    alone = blocks is not None and pd.Series(blocks).value_counts().max() < 2
    if alone or held.degrees < MIN_DEGREES or not stats.varying(held.column, held.confounds)[0]:
        return None
    return held


def score_effects(
    study: Model, scans: pd.DataFrame, regions: pd.DataFrame, weights: RegionWeights, config: SensitivityConfig
) -> list[Effect]:
    """Effects of the single latents and components of one model, and what its unseen scans say of them."""
    found = [one for one in study.found.values() if one.kind in SCORES]
    trained, unseen = _people(study, scans, study.space.training), _people(study, scans, study.space.unseen)
    truth = regions.loc[unseen].to_numpy(dtype=np.float64)
    can = len(unseen) >= MIN_UNSEEN
    of_training = regions.loc[trained].to_numpy(dtype=np.float64)
    p_unseen = {kind: _p_of_scores(study, unseen, truth, kind, config) for kind in SCORES} if can else {}
    effects = []
    blank = np.full(truth.shape[1], np.nan)
    for number, one in enumerate(found):
        effect, away, image = _drawn(study, one, weights, config.reach)
        shown = one.kind == "component" and one.name in {f"pc{k + 1}" for k in range(N_SHOWN_COMPONENTS)}
        readout = _readout(one)
        claim = study.decoder.among_people(readout)
        baseline = forward_pattern(of_training, study.coordinates(trained) @ readout, None)
        score = study.coordinates(unseen) @ readout
        judged = can and bool(stats.varying(score)[0])
        held = [Unseen(truth, score, np.empty((len(unseen), 0)))] if judged else []
        place = number - [other.kind for other in found].index(one.kind)
        effects.append(
            Effect(
                direction=one,
                effect=effect,
                by_model=effect[None],
                departure=away,
                image=image if shown else np.empty(0),
                half_width=blank,
                p=blank,
                p_regional=blank,
                claim=claim[None][: len(held)],
                unseen=np.array([one_held.slopes for one_held in held]).reshape(-1, len(blank)),
                p_unseen=p_unseen[one.kind][:, place] if can else blank,
                baseline=baseline,
                agrees=agreement([claim] * len(held), held, **_draws(config)),
                baseline_agrees=agreement([baseline] * len(held), held, **_draws(config)),
                n_unseen=len(unseen) if judged else 0,
            )
        )
    return effects


def score_agreement(model: Model, scans: pd.DataFrame, regions: pd.DataFrame, kind: str) -> float:
    """Median over latents, or components, of the rank correlation between the decoder's claim and the model's unseen scans."""
    unseen = _people(model, scans, model.space.unseen)
    if len(unseen) < MIN_UNSEEN:
        return float("nan")
    truth = regions.loc[unseen].to_numpy(dtype=np.float64)
    readouts = [_readout(one) for one in model.found.values() if one.kind == kind]
    slopes = [forward_pattern(truth, model.coordinates(unseen) @ readout, None) for readout in readouts]
    claims = [model.decoder.among_people(readout) for readout in readouts]
    return float(np.median([rank_correlation(one[None], claim)[0] for one, claim in zip(slopes, claims, strict=True)]))


def _people(model: Model, scans: pd.DataFrame, which: np.ndarray) -> pd.Index:
    table = scans.loc[model.space.scans[which]]
    return table.index[first_scans(table)]


def _readout(one: Direction) -> np.ndarray:
    """(coordinate,) weights of the score that goes up by one with one step along a latent or a component."""
    return np.asarray(one.step / (one.step @ one.step))


def _p_of_scores(model: Model, unseen: pd.Index, truth: np.ndarray, kind: str, config: SensitivityConfig) -> np.ndarray:
    """(region, direction of the kind) p of unseen scans, family-wise over regions and directions of the kind."""
    readouts = np.array([_readout(one) for one in model.found.values() if one.kind == kind])
    scores = model.coordinates(unseen) @ readouts.T
    flat, still = stats.varying(truth), stats.varying(scores)
    p = np.ones((truth.shape[1], scores.shape[1]))
    orders = stats.permutations(len(unseen), config.n_permutations, seed=config.seed)
    test = stats.permuted_correlation(truth[:, flat], scores[:, still], orders)
    p[np.ix_(flat, still)] = test.p_fwe
    return p
