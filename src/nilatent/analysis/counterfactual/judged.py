"""How sure an expected effect is, and whether scans that had no part in it agree: intervals and permutations over subjects.

Subjects are the unit. A resample draws subjects of the whole cohort, and every fold is done again with it: the pattern on its
training subjects, the mean on its unseen ones. A permutation shuffles the column over subjects, and every fold fits its
pattern and the slopes of its unseen subjects again; a subject is unseen in one fold and training in the others, so to shuffle
the unseen alone would call agreement where there is none.

References
----------
Efron & Tibshirani 1993, An Introduction to the Bootstrap. Vovk & Wang 2020, doi:10.1093/biomet/asaa027 (averaging p-values).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from nilatent.analysis.counterfactual.decoded import Decoded
from nilatent.analysis.counterfactual.slopes import (
    NOTHING,
    People,
    pattern,
    permutation_p,
    permuted_columns,
    rank_correlation,
)

# Unseen subjects of a fold below which it is not asked whether they agree.
MIN_UNSEEN = 5


@dataclass(frozen=True, eq=False)
class Fold:
    """One latent space and the people it is fitted and judged on.

    Parameters
    ----------
    number : int
        Of the latent space.
    training, unseen : ndarray
        (person,) bool.
    judged : ndarray
        (scan,) numbers of the people whose scans are changed, all of them unseen.
    decoded : Decoded
        Of the judged scans.
    coordinates : ndarray
        (person, coordinate).
    jacobian : ndarray
        (readout, coordinate); zero where the decoder is told the column, as the latents then stay.
    """

    number: int
    training: np.ndarray
    unseen: np.ndarray
    judged: np.ndarray
    decoded: Decoded
    coordinates: np.ndarray
    jacobian: np.ndarray


@dataclass(frozen=True, eq=False)
class Resampled:
    """Mean effect on the judged scans in every resample, the first one being the people as they are.

    Parameters
    ----------
    model, regression : ndarray
        (1 + resample, readout).
    """

    model: np.ndarray
    regression: np.ndarray

    @staticmethod
    def interval(draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(readout,) lower and upper limit of the 95 % percentile interval."""
        low, high = np.nanquantile(draws[1:], [0.025, 0.975], axis=0)
        return low, high


@dataclass(frozen=True, eq=False)
class Crossed:
    """Whether unseen scans agree with an effect per unit of the column, fold by fold.

    Parameters
    ----------
    rho : float
        Rank correlation over regions of the effect with the slopes of the fold's unseen scans: mean over folds, each counting
        by its scans.
    p_value : float
        One-sided, by permutation.
    explained : float
        Share of the variance of unseen regions, each in SD of the training scans, that column times effect explains. At most
        1; below 0 where it does worse than no effect at all. Unlike ranks, this is moved by a few regions that change much.
    explained_p : float
        One-sided, by permutation.
    rho_drawn : float
        `rho` of the images as they are drawn, where the decoder is not made linear; of regression, `rho`.
    effects, slopes : ndarray
        (fold, region) per unit of the column, times `unit`; NaN for a fold with too few unseen scans.
    """

    rho: float
    p_value: float
    explained: float
    explained_p: float
    rho_drawn: float
    effects: np.ndarray
    slopes: np.ndarray


def resampled(
    folds: Sequence[Fold], people: People, values: np.ndarray, *, amount: float, n_bootstrap: int, seed: int
) -> Resampled:
    """Effects of the model and of regional regression in resamples of the subjects; the encoder and decoder stay.

    Parameters
    ----------
    folds : Sequence[Fold]
        Every fold.
    people : People
        The subjects.
    values : ndarray
        (person, readout) true values, of which each fold's regression is fitted on its training subjects.
    amount : float
        Units of the column in the change.
    n_bootstrap, seed : int
        Number of resamples, and their draw.
    """
    rng, n = np.random.default_rng(seed), len(people.x)
    width = values.shape[1]
    model, regression = np.zeros((2, n_bootstrap + 1, width))
    tables = [np.hstack([fold.coordinates, values]) for fold in folds]
    fitted = [_pattern(fold, people, table, np.ones(n)) for fold, table in zip(folds, tables, strict=True)]
    for draw in range(n_bootstrap + 1):
        counts = np.ones(n) if draw == 0 else rng.multinomial(n, np.full(n, 1 / n)).astype(np.float64)
        total = 0.0
        for fold, table, first in zip(folds, tables, fitted, strict=True):
            weights, wide = counts[fold.judged], fold.coordinates.shape[1]
            again = first if draw == 0 else _pattern(fold, people, table, counts)
            moved = amount * (fold.jacobian @ (again[:wide] - first[:wide]))
            model[draw] += weights @ fold.decoded.effect + weights.sum() * moved
            regression[draw] += weights.sum() * amount * again[wide:]
            total += weights.sum()
        if total == 0:
            total = np.nan
        model[draw] /= total
        regression[draw] /= total
    return Resampled(model, regression)


def fitted_step(fold: Fold, people: People) -> np.ndarray:
    """(coordinate,) pattern of the column per unit, fitted on the training people of a fold."""
    return _pattern(fold, people, fold.coordinates, np.ones(len(people.x)))


def _pattern(fold: Fold, people: People, table: np.ndarray, counts: np.ndarray) -> np.ndarray:
    rows = np.flatnonzero(fold.training & (counts > 0))
    return pattern(people.x[rows], people.confounds[rows], table[rows], weights=counts[rows])


def crossed(
    folds: Sequence[Fold],
    people: People,
    values: np.ndarray,
    *,
    amount: float,
    unit: np.ndarray,
    kind: str,
    n_permutations: int,
    seed: int,
) -> Crossed:
    """Agreement of unseen scans with the model's effect, or with that of regional regression.

    Parameters
    ----------
    folds, people, amount
        As in :func:`resampled`.
    values : ndarray
        (person, region) true values.
    unit : ndarray
        (region,) by which effects and slopes are multiplied before regions are ranked: 100 over the region's mean gives per
        cent. In units of the maps, regions with much grey matter would rank first whatever happens to them.
    kind : {"model", "told", "regression"}
        The pattern of the latents times the decoder made linear; what a decoder does that is told the column, which cannot be
        fitted again: the p-values of the folds, by permuting their unseen alone, are then averaged and doubled; or the slopes
        of the training scans.
    n_permutations, seed : int
        Permutations, and their draw.
    """
    told = kind == "told"
    shuffled = replace(people, blocks=_unseen_blocks(folds, people)) if told else people
    draws = permuted_columns(shuffled, n_permutations, seed=seed)
    effects, slopes = np.full((2, len(folds), values.shape[1]), np.nan)
    rhos, drawn, gains, totals, sizes = [], [], [], [], []
    for number, fold in enumerate(folds):
        x_seen, x_new = _left(draws, fold, people)
        y_seen, y_new = _left(values, fold, people)
        size = np.square(x_new).sum(axis=0)
        if len(x_new) < MIN_UNSEEN or size[0] <= NOTHING * np.square(draws[:, 0]).sum():
            continue
        slope = (x_new.T @ y_new) / np.maximum(size, np.finfo(float).tiny)[:, None]
        shown = (fold.decoded.effect[:, :-1].mean(axis=0) / amount)[None]
        if told:
            effect = shown
        else:
            to_region = np.eye(values.shape[1]) if kind == "regression" else fold.jacobian[:-1]
            moving = y_seen if kind == "regression" else _left(fold.coordinates, fold, people)[0]
            effect = ((x_seen.T @ moving) / np.square(x_seen).sum(axis=0)[:, None]) @ to_region.T
        effects[number], slopes[number] = effect[0] * unit, slope[0] * unit
        variance = y_seen.var(axis=0)
        weights = np.divide(1.0, variance, out=np.zeros_like(variance), where=variance > 0)
        rhos.append(rank_correlation(effect * unit, slope * unit))
        shown = effect[:1] if kind == "regression" else shown
        drawn.append(float(rank_correlation(shown * unit, slope[:1] * unit)[0]))
        # Squares of y less those of y - x effect, in SD of the training scans.
        gains.append(size * (((2 * slope - effect) * effect) @ weights))
        totals.append(float((np.square(y_new) @ weights).sum()))
        sizes.append(len(x_new))
    if not rhos:
        nothing = float("nan")
        return Crossed(nothing, nothing, nothing, nothing, nothing, effects, slopes)
    rho, explained = np.average(rhos, axis=0, weights=sizes), np.sum(gains, axis=0) / sum(totals)
    p_rho, p_explained = (_p(one, of_folds, apart=told) for one, of_folds in ((rho, rhos), (explained, gains)))
    of_drawn = float(np.average(drawn, weights=sizes))
    return Crossed(float(rho[0]), p_rho, float(explained[0]), p_explained, of_drawn, effects, slopes)


def _p(draws: np.ndarray, of_folds: Sequence[np.ndarray], *, apart: bool) -> float:
    """The p of a statistic over all folds; of folds permuted apart, twice the mean of theirs (Vovk & Wang 2020)."""
    if not apart or len(of_folds) == 1:
        return permutation_p(draws)
    return min(1.0, 2 * float(np.mean([permutation_p(one) for one in of_folds])))


def _unseen_blocks(folds: Sequence[Fold], people: People) -> np.ndarray:
    """(person,) the fold that has not seen the person, and the site: within these the column is shuffled."""
    fold = np.full(len(people.x), "", dtype=object)
    for number, one in enumerate(folds):
        fold[one.unseen] = str(number)
    site = np.full(len(fold), "") if people.blocks is None else people.blocks
    return np.array([f"{a}\n{b}" for a, b in zip(fold, site, strict=True)])


def _left(values: np.ndarray, fold: Fold, people: People) -> tuple[np.ndarray, np.ndarray]:
    """What the confounds leave of training and of unseen people, by coefficients of the training ones."""
    seen = people.confounds[fold.training]
    centre = seen.mean(axis=0)
    scale = np.abs(seen - centre).max(axis=0, initial=0.0)
    kept = scale > 0
    design = np.column_stack([np.ones(len(people.x)), (people.confounds - centre)[:, kept] / scale[kept]])
    coefficients = np.linalg.lstsq(design[fold.training], values[fold.training], rcond=NOTHING)[0]
    left = values - design @ coefficients
    return left[fold.training], left[fold.unseen]
