"""Whether regions tell the reconstruction error beyond the null model: gain out of fold, its p-value, its worst case.

References
----------
Freedman & Lane 1983, doi:10.1080/07350015.1983.10509354. Winkler et al. 2014 (pivotal statistics),
doi:10.1016/j.neuroimage.2014.01.060. Besag & Clifford 1991 (sequential p-values), doi:10.1093/biomet/78.2.301.
Gorriz et al. 2024 (SAR), arXiv:2402.15213. Holm 1979 (several models).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nilatent.analysis import bounds, stats
from nilatent.analysis.error_profile.models import Part, Problem, grown_trees, left_over, ridge_weights
from nilatent.analysis.sar import certify_predictions
from nilatent.analysis.sequential import sequential_p
from nilatent.progress import track

COLUMNS_AT_ONCE = 500


@dataclass(frozen=True)
class Gain:
    """How much of the variance of the log error the regions add out of fold, and the p-value of that.

    Parameters
    ----------
    model : str
        ``"ridge"`` or ``"trees"``.
    r2_null, r2 : float
        Out-of-fold R^2 of the null model and of null model plus regions, around the training mean of each
        cross-fitted model; at most 1, negative when worse than that mean.
    share : float
        Share of what the null model leaves that the regions tell out of fold; the statistic of the test.
    p_value : float
        One-sided permutation p of the share.
    n_permutations : int
        Permutations done; fewer than asked when the sequential rule stopped early.
    badge : str
        ``"bound-validated"`` or ``"inconclusive"``: the worst case of the held-out predictions, which decides nothing.
    """

    model: str
    r2_null: float
    r2: float
    share: float
    p_value: float
    n_permutations: int
    badge: str

    @property
    def gain(self) -> float:
        """R^2 that the regions add; negative when they only add noise."""
        return self.r2 - self.r2_null


@dataclass(frozen=True, eq=False)
class OutOfFold:
    """Held-out scans of one partition; each (scan, column).

    Parameters
    ----------
    around_mean : ndarray
        Log error less the training mean of the scan's cross-fitted model.
    missed : ndarray
        Log error less the null model's prediction.
    added : ndarray
        What the regions add to that prediction.
    """

    around_mean: np.ndarray
    missed: np.ndarray
    added: np.ndarray


def out_of_fold(parts: Sequence[Part], targets: np.ndarray, model: str, *, seed: int) -> OutOfFold:
    """Predictions of every scan by the models that have not seen it.

    Parameters
    ----------
    parts : Sequence[Part]
        The folds of one partition.
    targets : ndarray
        (scan, column) log errors, observed or permuted.
    model : str
        ``"ridge"`` or ``"trees"``.
    seed : int
        Of the trees.
    """
    found = OutOfFold(*(np.empty(targets.shape) for _ in range(3)))
    for part in parts:
        residuals = left_over(part, targets)
        found.around_mean[part.test] = targets[part.test] - part.level @ targets[part.train]
        found.missed[part.test] = targets[part.test] - part.null @ targets[part.train]
        if model == "ridge":
            found.added[part.test] = part.x_test @ ridge_weights(part, residuals)
        else:
            grown = [grown_trees(part, column, seed=seed) for column in residuals.T]
            found.added[part.test] = np.column_stack([trees.predict(part.x_test) for trees in grown])
    return found


def scores(
    partitions: Sequence[Sequence[Part]], targets: np.ndarray, model: str, *, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """R^2 of the null model, of null model plus regions, and the share of what is left that regions tell; each (column,).

    All out of fold and means over partitions. The share is 1 - (squares missed by both) / (squares missed by the null
    model): a ratio within the null model's residuals, which the Freedman-Lane scheme needs to keep its level.

    Parameters
    ----------
    partitions : Sequence
        Folds of each partition of the scans.
    targets, model, seed
        As in :func:`out_of_fold`.
    """
    found = np.zeros((3, targets.shape[1]))
    for parts in partitions:
        told = out_of_fold(parts, targets, model, seed=seed)
        total, null, full = (
            np.square(error).sum(axis=0) for error in (told.around_mean, told.missed, told.missed - told.added)
        )
        found += np.array([1 - null / total, 1 - full / total, 1 - full / null]) / len(partitions)
    return found[0], found[1], found[2]


def shuffled(problem: Problem, orders: np.ndarray) -> np.ndarray:
    """(scan, permutation) log errors of the Freedman-Lane scheme.

    The residuals of the null model, fitted on all scans, are put in another order within their block; the fitted values
    stay. Under the hypothesis that regions tell nothing beyond the null model, these are draws from the same distribution as
    the observed, as far as residuals within a block are exchangeable.
    """
    basis = stats.confound_basis(problem.null, len(problem.log_error))
    fitted = basis @ (basis.T @ problem.log_error)
    return np.asarray(fitted[:, None] + (problem.log_error - fitted)[orders.T])


def gain_test(
    problem: Problem, partitions: Sequence[Sequence[Part]], model: str, orders: np.ndarray, *, n_stop: int, seed: int
) -> Gain:
    """Gain of the regions over the null model; each permutation repeats the whole nested cross-validation.

    Parameters
    ----------
    problem : Problem
        The scans.
    partitions : Sequence
        Folds of each partition; the statistic is the mean over them.
    model : str
        ``"ridge"``: all permutations at once. ``"trees"``: one by one, until `n_stop` reach the observed share
        (Besag & Clifford: the p-value stays valid).
    orders : ndarray
        (permutation, scan) orders that stay within the blocks.
    n_stop : int
        Of the sequential rule.
    seed : int
        Of the trees.
    """
    null, full, share = (float(score[0]) for score in scores(partitions, problem.log_error[:, None], model, seed=seed))
    at_once, stop_after = (1, n_stop) if model == "trees" else (COLUMNS_AT_ONCE, 0)
    starts = range(0, len(orders), at_once)
    drawn = np.empty(0)
    for start in track(starts, total=len(starts), label=f"error profile, {model}"):
        by_chance = scores(partitions, shuffled(problem, orders[start : start + at_once]), model, seed=seed)[2]
        drawn = np.append(drawn, by_chance)
        if 0 < stop_after <= np.count_nonzero(drawn >= share - stats.TIE):
            break
    p_value = float(sequential_p(np.array(share), drawn, stop_after=stop_after))
    return Gain(model, null, full, share, p_value, len(drawn), _badge(problem, partitions[0], model, seed=seed))


def _badge(problem: Problem, parts: Sequence[Part], model: str, *, seed: int) -> str:
    """Whether the regions beat the null model in the worst case (SAR), on what the null model leaves of held-out scans."""
    told = out_of_fold(parts, problem.log_error[:, None], model, seed=seed)
    folds = np.empty(len(problem.log_error), dtype=np.int64)
    for number, part in enumerate(parts):
        folds[part.test] = number
    holds = certify_predictions(told.missed[:, 0], told.added[:, 0], folds).holds
    return bounds.VALIDATED if holds else bounds.INCONCLUSIVE


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Holm's adjusted p-values, in the order given."""
    raw = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(raw, kind="stable")
    adjusted = np.empty(len(raw))
    adjusted[order] = np.maximum.accumulate(raw[order] * (len(raw) - np.arange(len(raw))))
    return np.minimum(adjusted, 1.0)
