"""Permutation inference over subjects, array core: whether a column moves the decoder's regions more than a shuffled one.

A direction that a column defines is the slope of the latents on it. Its regional effect through the decoder's slopes is
therefore the slope of the *decoded regional values* (latents times slopes) on the column, region by region, and a permutation
refits the direction in every model at the same time.

References
----------
Freedman & Lane 1983, doi:10.1080/07350015.1983.10509354. Winkler et al. 2014, doi:10.1016/j.neuroimage.2014.01.060.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata
from scipy.stats import t as student_t

from nilatent.analysis import stats
from nilatent.analysis.directions import forward_pattern

BATCH = 256
LEVEL = 0.95


@dataclass(frozen=True, eq=False)
class PatternTest:
    """Regional effects of a column, joined over models; arrays are (region,) where not said.

    Parameters
    ----------
    effect : ndarray
        Mean over models of the effect per unit of the column.
    by_model : ndarray
        (model, region) the effect in each.
    half_width : ndarray
        Half of the 95 % interval of the regression, mean over models, which share most of their subjects.
    p_value, p_fwe : ndarray
        Two-sided p of each region by itself, and corrected for all by the maximum of |t|.
    """

    effect: np.ndarray
    by_model: np.ndarray
    half_width: np.ndarray
    p_value: np.ndarray
    p_fwe: np.ndarray


def permuted_pattern(
    values: Sequence[np.ndarray],
    rows: Sequence[np.ndarray],
    column: np.ndarray,
    confounds: np.ndarray,
    orders: np.ndarray,
) -> PatternTest:
    """Effect of a column on regional values of several models, with p-values by permuting it over subjects.

    What is left of the column beyond the confounds is shuffled over all subjects, and removed of confounds again among the
    subjects of each model; the statistic is the mean over models of the t of each region.

    Parameters
    ----------
    values : Sequence of ndarray
        Of each model (row, region): values of its training subjects.
    rows : Sequence of ndarray
        Of each model (row,): which subjects these are.
    column : ndarray
        (subject,) numbers.
    confounds : ndarray
        (subject, confound) without intercept.
    orders : ndarray
        (permutation, subject) from :func:`nilatent.analysis.stats.permutations`.

    Returns
    -------
    PatternTest
        A region that a model does not move has t = 0 in it.

    Raises
    ------
    SettingError
        When the column is constant, or the confounds explain it, among the subjects of a model.
    """
    whole = stats.confound_basis(confounds, len(column))
    shuffled = stats.unit_residuals(column, whole, what="The column")[:, 0]
    draws = np.vstack([np.arange(len(column), dtype=orders.dtype), orders])
    total, effects, widths = np.zeros((len(draws), values[0].shape[1])), [], []
    for y, own in zip(values, rows, strict=True):
        moved = stats.varying(y, confounds[own])
        t, degrees = np.zeros((len(draws), y.shape[1])), len(own) - 1
        basis = stats.confound_basis(confounds[own], len(own))
        degrees -= basis.shape[1]
        unit = stats.unit_residuals(y[:, moved], basis, what="The decoded regions")
        # Raises where the column says nothing among these subjects.
        stats.unit_residuals(column[own], basis, what="The column among the subjects of a model")
        for start in range(0, len(draws), BATCH):
            x = shuffled[draws[start : start + BATCH][:, own]]
            x = x - (x @ basis) @ basis.T
            r = (x / np.linalg.norm(x, axis=1, keepdims=True)) @ unit
            t[start : start + BATCH, moved] = r * np.sqrt(degrees / np.maximum(1 - r**2, stats.TIE))
        effects.append(forward_pattern(y, column[own], confounds[own]))
        quantile = student_t.ppf((1 + LEVEL) / 2, degrees)
        widths.append(np.where(t[0] != 0, quantile * np.abs(effects[-1] / np.where(t[0] != 0, t[0], 1)), 0.0))
        total += t / len(values)
    size = np.abs(total)
    return PatternTest(
        effect=np.mean(effects, axis=0),
        by_model=np.array(effects),
        half_width=np.mean(widths, axis=0),
        p_value=(1 + (size[1:] >= size[0] * (1 - stats.TIE)).sum(axis=0)) / len(draws),
        p_fwe=(1 + (size[1:].max(axis=1)[:, None] >= size[0] * (1 - stats.TIE)).sum(axis=0)) / len(draws),
    )


@dataclass(frozen=True, eq=False)
class Unseen:
    """Scans that one model has not seen, one per subject.

    Parameters
    ----------
    regions : ndarray
        (row, region) true regional means.
    column : ndarray
        (row,) what they are compared by: a number, a group as 1 and 0, or a score of the latents.
    confounds : ndarray
        (row, confound) values that are held; (row, 0) for none.
    blocks : ndarray or None
        (row,) site, within which permutations stay.
    """

    regions: np.ndarray
    column: np.ndarray
    confounds: np.ndarray
    blocks: np.ndarray | None = None

    @property
    def degrees(self) -> int:
        """Residual degrees of freedom."""
        return len(self.column) - int(stats.confound_basis(self.confounds, len(self.column)).shape[1]) - 1

    @property
    def slopes(self) -> np.ndarray:
        """(region,) slope of each regional mean on the column, confounds held."""
        return forward_pattern(self.regions, self.column, self.confounds)


@dataclass(frozen=True, eq=False)
class Agreement:
    """Rank correlation over regions between what was claimed and what unseen scans do.

    Parameters
    ----------
    r : float
        Mean over models, weighted by residual degrees of freedom, in [-1, 1].
    p : float
        One-sided. Of one model by permuting the column among its unseen scans; of several from :func:`joint_p`, or twice the
        mean of theirs, because the unseen scans of one have made the claims of the others.
    by_model : ndarray
        (model,).
    """

    r: float
    p: float
    by_model: np.ndarray


def agreement(claims: Sequence[np.ndarray], unseen: Sequence[Unseen], *, n_permutations: int, seed: int) -> Agreement:
    """Whether claimed regional effects come true in scans that had no say in them.

    Each model's claim is held against its own unseen scans only, so that no scan judges what it helped to learn. Regions are
    not independent of each other, so the p-value comes from permuting scans, never from the number of regions.

    Parameters
    ----------
    claims : Sequence of ndarray
        Of each model (region,): effect of the column, in any unit above 0.
    unseen : Sequence of Unseen
        Of each model, in the same order.
    n_permutations, seed : int
        Of the test.

    Returns
    -------
    Agreement
        NaN without a model.
    """
    if not unseen:
        return Agreement(float("nan"), float("nan"), np.empty(0))
    share = np.array([one.degrees for one in unseen], dtype=np.float64)
    share /= share.sum()
    by_model, p_each = [], []
    for number, (claim, one) in enumerate(zip(claims, unseen, strict=True)):
        basis = stats.confound_basis(one.confounds, len(one.column))
        x = stats.unit_residuals(one.column, basis, what="The column")[:, 0]
        orders = stats.permutations(len(x), n_permutations, seed=seed + number, blocks=one.blocks)
        shuffled = np.vstack([x, x[orders]])
        # The length of a shuffled column scales all slopes alike, which ranks do not see.
        slopes = (shuffled - (shuffled @ basis) @ basis.T) @ one.regions
        r = rank_correlation(slopes, claim)
        by_model.append(r[0])
        p_each.append((1 + (r[1:] >= r[0] - 1e-12).sum()) / (1 + n_permutations))
    # Twice the mean holds whatever binds the models together (Vovk & Wang 2020, doi:10.1093/biomet/asaa027).
    p = p_each[0] if len(p_each) == 1 else min(2 * float(np.mean(p_each)), 1.0)
    return Agreement(float(share @ by_model), float(p), np.array(by_model))


def joint_p(
    column: np.ndarray,
    confounds: np.ndarray,
    blocks: np.ndarray | None,
    claims: Sequence[tuple[np.ndarray, np.ndarray]],
    judges: Sequence[tuple[np.ndarray, np.ndarray]],
    *,
    n_permutations: int,
    seed: int,
) -> float:
    """One-sided p of the agreement of several models whose claims come from one another's unseen scans.

    The column is permuted over all subjects at once, and claims and slopes of unseen scans are fitted again.

    Parameters
    ----------
    column, confounds, blocks : ndarray
        (subject,), (subject, confound) and (subject,) or None: what is compared by, what is held, and the site.
    claims, judges : Sequence of tuple
        Of each model, in the same order: rows among the subjects, and (row, region) of which the slopes on the column are its
        claim, or what its unseen scans do.
    n_permutations, seed : int
        Of the test.
    """
    basis = stats.confound_basis(confounds, len(column))
    left = column - basis @ (basis.T @ column)
    shuffled = np.vstack([left, left[stats.permutations(len(left), n_permutations, seed=seed, blocks=blocks)]])
    total = np.zeros(len(shuffled))
    for claim, judge in zip(claims, judges, strict=True):
        one, other = (_by_rank(_slopes(shuffled[:, rows], values, confounds[rows])) for rows, values in (claim, judge))
        total += len(judge[0]) * (one * other).sum(axis=1)
    return float((1 + (total[1:] >= total[0] - 1e-12).sum()) / len(total))


def _slopes(column: np.ndarray, values: np.ndarray, confounds: np.ndarray) -> np.ndarray:
    """(draw, region) slopes up to a factor above 0 of each draw, which ranks do not see."""
    basis = stats.confound_basis(confounds, len(values))
    return np.asarray((column - (column @ basis) @ basis.T) @ values)


def _by_rank(table: np.ndarray) -> np.ndarray:
    """Rows of unit length whose products are rank correlations; zero for a constant row."""
    ranks = rankdata(table, axis=1)
    ranks -= ranks.mean(axis=1, keepdims=True)
    size = np.linalg.norm(ranks, axis=1, keepdims=True)
    return np.asarray(np.divide(ranks, size, out=np.zeros_like(ranks), where=size > 0))


def rank_correlation(table: np.ndarray, row: np.ndarray) -> np.ndarray:
    """(row,) Spearman correlation of every row of a table with one; 0 where either is constant."""
    left, right = rankdata(table, axis=1), rankdata(row)
    left, right = left - left.mean(axis=1, keepdims=True), right - right.mean()
    size = np.linalg.norm(left, axis=1) * np.linalg.norm(right)
    return np.asarray(np.divide(left @ right, size, out=np.zeros(len(left)), where=size > 0))
