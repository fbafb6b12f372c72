"""Rates of change: a mixed model of every measure, and whether groups change differently.

The level and the rate of every group are fixed effects, those of every subject random ones. Groups are compared by the
likelihood ratio and by permutation of subjects between groups, on the slope of each subject weighted by its precision under
the model without a difference.

References
----------
Laird & Ware 1982, doi:10.2307/2529876. Freedman & Lane 1983, doi:10.1080/07350015.1983.10509354.
Winkler et al. 2014, doi:10.1016/j.neuroimage.2014.01.060.
"""

from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student_t

from nilatent.analysis import stats
from nilatent.analysis.longitudinal.visits import Visits
from nilatent.analysis.mixed import MixedFit, fit_mixed, likelihood_ratio
from nilatent.progress import track

# Of the size of its values, below which what varies is rounding.
FLAT = 1e-9


@dataclass(frozen=True, eq=False)
class Change:
    """Change of every measure over time; NaN for a measure that does not vary.

    Parameters
    ----------
    fits : tuple[MixedFit or None, ...]
        One restricted fit per measure.
    level : ndarray
        (measure, group) at the first visit, of an average subject.
    rate : ndarray
        (measure, group, 3) change per year with its 95 % interval.
    p_rate : ndarray
        (measure, group) two-sided p of the rate, by Student's t.
    difference : ndarray
        (measure, contrast, 3) rate of the first group less that of the second, with its 95 % interval.
    p_ratio : ndarray
        (measure, contrast) of the likelihood ratio.
    p_permutation, p_fwe : ndarray
        (measure, contrast) of each measure by itself, and corrected for all by the maximum statistic. NaN where no subject of
        one group can take the place of one of the other.
    subject_rate : ndarray
        (measure, subject) best linear unbiased prediction of the rate of every subject; that of its group without a random
        slope.
    """

    fits: tuple[MixedFit | None, ...]
    level: np.ndarray
    rate: np.ndarray
    p_rate: np.ndarray
    difference: np.ndarray
    p_ratio: np.ndarray
    p_permutation: np.ndarray
    p_fwe: np.ndarray
    subject_rate: np.ndarray


def change(values: np.ndarray, visits: Visits, *, n_permutations: int, seed: int, label: str = "") -> Change:
    """Change of measures over time, by group.

    Parameters
    ----------
    values : ndarray
        (visit, measure) finite, in the order of `visits`.
    visits : Visits
        Who was seen when.
    n_permutations, seed : int
        Of subjects between groups.
    label : str
        What to call this work when its progress is shown; empty shows none.
    """
    n, n_groups, n_pairs = values.shape[1], len(visits.groups), len(visits.contrasts)
    design, free = visits.design(), degrees(visits)
    contrasts = [_contrast(visits, pair, design.shape[1]) for pair in visits.contrasts]
    rate, difference = np.full((n, n_groups, 3), np.nan), np.full((n, n_pairs, 3), np.nan)
    level, p_ratio, p_permutation = (np.full((n, k), np.nan) for k in (n_groups, n_pairs, n_pairs))
    largest = np.zeros((n_pairs, n_permutations))
    seen = np.full((n, n_pairs), np.nan)
    subject_rate = np.full((n, int(visits.first.sum())), np.nan)
    fits: list[MixedFit | None] = [None] * n
    draws = [_draws(visits, pair, n_permutations, seed + k) for k, pair in enumerate(visits.contrasts)]
    near = None
    for measure in track(range(n), total=n, label=label) if label else range(n):
        y = values[:, measure]
        if np.ptp(y) <= FLAT * np.abs(y).max():
            continue
        near = fit = fit_mixed(y, design, visits.years, visits.subject, slopes=visits.slopes, near=near)
        fits[measure] = fit
        level[measure] = fit.coefficients[:n_groups]
        rate[measure] = [fit.interval(row, degrees=free) for row in np.eye(design.shape[1])[n_groups : 2 * n_groups]]
        subject_rate[measure] = _subject_rates(fit, visits)
        whole = fit_mixed(y, design, visits.years, visits.subject, restricted=False, slopes=visits.slopes, near=fit)
        for k, pair in enumerate(visits.contrasts):
            difference[measure, k] = fit.interval(contrasts[k], degrees=free)
            without = _merged(design, visits, pair)
            _, p_ratio[measure, k], null = likelihood_ratio(
                y, without, visits.years, visits.subject, whole=whole, slopes=visits.slopes
            )
            orders = draws[k]
            if orders is not None:
                held = slice(2 * n_groups - 1, None)
                left = y - without[:, held] @ null.coefficients[held]
                seen[measure, k], of_draws = permuted_difference(left, visits, pair, null, orders)
                p_permutation[measure, k] = stats.max_p(seen[measure, k], of_draws)
                np.maximum(largest[k], of_draws, out=largest[k])
    p_fwe = np.column_stack([stats.max_p(seen[:, k], largest[k]) for k in range(n_pairs)] or [np.empty((n, 0))])
    p_fwe[np.isnan(seen)] = np.nan
    return Change(
        tuple(fits), level, rate, _two_sided(rate, free), difference, p_ratio, p_permutation, p_fwe, subject_rate
    )


def permuted_difference(
    y: np.ndarray, visits: Visits, pair: tuple[str, str], null: MixedFit, orders: np.ndarray
) -> tuple[float, np.ndarray]:
    """How far the slopes of two groups of subjects are apart, as they are and with subjects permuted between the groups.

    The slope of each subject over time is weighted by its precision. Weighted slopes, what is left of them beside the
    columns of pace, are permuted (Freedman-Lane): under the model without a difference they have equal variances.

    Parameters
    ----------
    y : ndarray
        (visit,) outcome less its covariates.
    visits, pair
        Who was seen when, and the two groups.
    null : MixedFit
        The model in which the two groups have one slope: the variances, which know nothing of who is in which group.
    orders : ndarray
        (permutation, subject) of the subjects of both groups who were seen at two times or more.

    Returns
    -------
    seen : float
        Absolute partial correlation of weighted slope and group.
    draws : ndarray
        (permutation,) the same under permutation.
    """
    number = visits.number
    centred = visits.years - (np.bincount(number, visits.years) / np.bincount(number))[number]
    spread = np.bincount(number, np.square(centred))
    chosen = visits.repeated[visits.first] & np.isin(visits.group[visits.first], pair)
    slope = np.bincount(number, centred * y)[chosen] / spread[chosen]
    between = null.random[1, 1] if len(null.random) > 1 else 0.0
    weight = 1 / np.sqrt(between + null.residual_variance / spread[chosen])
    held = np.column_stack([np.ones(len(weight)), visits.pace[visits.first][chosen]]) * weight[:, None]
    basis = np.linalg.qr(held)[0]
    member, left = (
        (column - basis @ (basis.T @ column))
        for column in (weight * (visits.group[visits.first][chosen] == pair[0]), weight * slope)
    )
    member, left = member / np.linalg.norm(member), left / np.linalg.norm(left)
    shuffled = left[orders]
    explained = np.square(shuffled @ basis).sum(axis=1)
    return abs(float(member @ left)), np.abs(shuffled @ member) / np.sqrt(np.maximum(1 - explained, stats.TIE))


def degrees(visits: Visits) -> int:
    """Degrees of freedom of a rate: subjects who were seen at two times or more, less the rates that are fitted."""
    return max(int(visits.repeated.sum()) - len(visits.groups) - int(visits.pace.shape[1]), 1)


def _draws(visits: Visits, pair: tuple[str, str], n_permutations: int, seed: int) -> np.ndarray | None:
    """Orders of the subjects of a contrast within their sites; None where no site has subjects of both groups."""
    chosen = visits.repeated & np.isin(visits.group, pair)
    group, block = visits.group[chosen], visits.block[chosen]
    if not any(len(set(group[block == one])) > 1 for one in set(block)):
        return None
    return stats.permutations(len(group), n_permutations, seed=seed, blocks=block)


def _contrast(visits: Visits, pair: tuple[str, str], n_fixed: int) -> np.ndarray:
    contrast = np.zeros(n_fixed)
    contrast[[len(visits.groups) + visits.groups.index(group) for group in pair]] = 1.0, -1.0
    return contrast


def _merged(design: np.ndarray, visits: Visits, pair: tuple[str, str]) -> np.ndarray:
    """The design in which two groups change alike: of their two columns of time the sum."""
    one, other = (len(visits.groups) + visits.groups.index(group) for group in pair)
    merged = design.copy()
    merged[:, one] += merged[:, other]
    return np.delete(merged, other, axis=1)


def _subject_rates(fit: MixedFit, visits: Visits) -> np.ndarray:
    """(subject,) what the model predicts of the rate of each."""
    group, pace = visits.group[visits.first], visits.pace[visits.first]
    n = len(visits.groups)
    found = fit.coefficients[[n + visits.groups.index(one) for one in group]]
    found = found + pace @ fit.coefficients[2 * n : 2 * n + pace.shape[1]]
    return np.asarray(found + fit.subject_effects[:, 1] if fit.subject_effects.shape[1] > 1 else found)


def _two_sided(estimates: np.ndarray, free: int) -> np.ndarray:
    """Two-sided p of estimates with 95 % intervals (..., 3) by Student's t."""
    error = (estimates[..., 2] - estimates[..., 1]) / (2 * student_t.ppf(0.975, free))
    return np.asarray(2 * student_t.sf(np.abs(estimates[..., 0]) / error, free))
