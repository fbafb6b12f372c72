"""What a column does to regions across people, and whether an expected effect agrees with it.

Regions are not independent of one another, so a correlation over regions has no p-value of its own: the column is permuted
over subjects, and all slopes are fitted again.

References
----------
Alexander-Bloch et al. 2018, doi:10.1016/j.neuroimage.2018.05.070 (why maps need their own null). Winkler et al. 2014,
doi:10.1016/j.neuroimage.2014.01.060 (permuting what the confounds leave of the regressor).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from nilatent.analysis import stats
from nilatent.analysis.contrast import compare_groups, compare_target
from nilatent.errors import CohortError

# Below this share of its own size, nothing of a regressor is left beside the confounds.
NOTHING = 1e-9


@dataclass(frozen=True, eq=False)
class People:
    """One complete scan of each subject, with the column that is asked about.

    Parameters
    ----------
    rows : ndarray
        (person,) positions in the table of scans.
    x : ndarray
        (person,) the number; of two levels 1 for the first and 0 for the second.
    confounds : ndarray
        (person, confound) what is held.
    blocks : ndarray or None
        (person,) site, within which permutations stay.
    left_out : dict[str, list[str]]
        Reason to identifiers of the scans that were left out.
    """

    rows: np.ndarray
    x: np.ndarray
    confounds: np.ndarray
    blocks: np.ndarray | None
    left_out: dict[str, list[str]]


@dataclass(frozen=True, eq=False)
class Agreement:
    """How an expected effect ranks regions, beside how they differ across people.

    Parameters
    ----------
    rho : float
        Rank correlation over regions, in [-1, 1].
    p_value : float
        One-sided, of a correlation so large, by permuting the column over subjects.
    slopes : Series
        (region,) per unit of the column.
    n_subjects : int
        Subjects behind the slopes.
    """

    rho: float
    p_value: float
    slopes: "pd.Series[float]"
    n_subjects: int


def people_of(
    scans: pd.DataFrame,
    column: str,
    *,
    others: Sequence[str] = (),
    site: str = "",
    levels: tuple[str, str] | None = None,
) -> People:
    """The first scan of each subject that has the column and everything that is held.

    Parameters
    ----------
    scans : DataFrame
        Index scan_id; ``subject_id`` and the columns named here.
    column : str
        Of numbers, or of the two `levels`.
    others : Sequence[str]
        Columns that are held.
    site : str
        Column of the site, held too, and the block of permutations; empty for none.
    levels : tuple[str, str], optional
        Two levels of a category, the first minus the second; left out: the column holds numbers.

    Raises
    ------
    NotComparableError
        When too few subjects have what is needed, or the others explain the column.
    """
    if levels is None:
        found = compare_target(scans, target=column, covariates=others, site=site)
        return People(found.rows, found.values, found.confounds, found.blocks, found.left_out)
    pair = compare_groups(scans, group=column, contrast=":".join(levels), covariates=others, site=site)
    return People(pair.rows, pair.is_case.astype(np.float64), pair.confounds, pair.blocks, pair.left_out)


def slopes_of(
    regions: pd.DataFrame,
    scans: pd.DataFrame,
    column: str,
    *,
    others: Sequence[str] = (),
    site: str = "",
    levels: tuple[str, str] | None = None,
) -> "pd.Series[float]":
    """Slope of every region on a column, given the others; subjects count once.

    Parameters
    ----------
    regions : DataFrame
        Index scan_id, one column per region.
    scans, column, others, site, levels
        As in :func:`people_of`.

    Returns
    -------
    Series
        (region,) change per unit of the column, or first minus second level.

    Examples
    --------
    >>> names = [f"s{i}" for i in range(24)]
    >>> scans = pd.DataFrame({"subject_id": names, "age": np.arange(24.0)}, index=names)
    >>> slopes_of(pd.DataFrame({"Hippocampus": 1 - 0.01 * scans["age"]}), scans, "age").round(6).to_dict()
    {'Hippocampus': -0.01}
    """
    people = people_of(scans, column, others=others, site=site, levels=levels)
    slopes = pattern(people.x, people.confounds, _values(regions, scans, people))
    return pd.Series(slopes, index=regions.columns)


def agreement(
    effect: np.ndarray,
    regions: pd.DataFrame,
    scans: pd.DataFrame,
    column: str,
    *,
    others: Sequence[str] = (),
    site: str = "",
    levels: tuple[str, str] | None = None,
    n_permutations: int = 2000,
    seed: int = 0,
) -> Agreement:
    """Whether an effect ranks regions as people who had no part in it do.

    Parameters
    ----------
    effect : ndarray
        (region,) expected change for more of the column, in the order of the columns of `regions`. Nobody in `scans` may
        have had a say in it.
    regions, scans, column, others, site, levels
        Of the other people, as in :func:`slopes_of`.
    n_permutations : int
        How often the column is permuted over subjects.
    seed : int
        Of the permutations.

    Raises
    ------
    CohortError
        When there is not one effect per region, or a scan has no regions.
    NotComparableError
        As in :func:`people_of`.
    """
    if np.shape(effect) != (regions.shape[1],):
        raise CohortError(f"{np.shape(effect)} effects do not fit {regions.shape[1]} regions. Give one per region.")
    people = people_of(scans, column, others=others, site=site, levels=levels)
    y = _values(regions, scans, people)
    draws = permuted_columns(people, n_permutations, seed=seed)
    basis = stats.confound_basis(people.confounds, len(y))
    draws, y = draws - basis @ (basis.T @ draws), y - basis @ (basis.T @ y)
    slopes = (draws.T @ y) / np.square(draws).sum(axis=0)[:, None]
    rho = rank_correlation(np.asarray(effect, dtype=np.float64)[None], slopes)
    return Agreement(float(rho[0]), permutation_p(rho), pd.Series(slopes[0], index=regions.columns), len(y))


def permuted_columns(people: People, n_permutations: int, *, seed: int) -> np.ndarray:
    """(person, 1 + permutation) what the confounds leave of the column: as it is, then permuted over subjects."""
    basis = stats.confound_basis(people.confounds, len(people.x))
    left = people.x - basis @ (basis.T @ people.x)
    orders = stats.permutations(len(left), n_permutations, seed=seed, blocks=people.blocks)
    return np.column_stack([left, left[orders].T])


def rank_correlation(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(draw,) rank correlation over the last axis of (draw, region) arrays, or of one row with many; NaN where one is flat."""
    ranks = [rankdata(part, axis=-1) for part in (left, right)]
    a, b = (part - part.mean(axis=-1, keepdims=True) for part in ranks)
    size = np.sqrt(np.square(a).sum(axis=-1) * np.square(b).sum(axis=-1))
    products = (a * b).sum(axis=-1)
    return np.asarray(np.divide(products, size, out=np.full(products.shape, np.nan), where=size > 0))


def permutation_p(draws: np.ndarray) -> float:
    """One-sided p of the first of (1 + permutation,) statistics among all; NaN where it is unknown."""
    if not np.isfinite(draws[0]):
        return float("nan")
    return float((1 + np.count_nonzero(draws[1:] >= draws[0] - stats.TIE)) / len(draws))


def pattern(
    x: np.ndarray, confounds: np.ndarray, values: np.ndarray, *, weights: np.ndarray | None = None
) -> np.ndarray:
    """Slope of every column of values on x, given the confounds; NaN where they leave nothing of x.

    Parameters
    ----------
    x : ndarray
        (person,).
    confounds : ndarray
        (person, confound).
    values : ndarray
        (person, value).
    weights : ndarray, optional
        (person,) how often each counts, as in a bootstrap; left out: once.

    Returns
    -------
    ndarray
        (value,) the coefficient of x in a regression of the values on x and the confounds: the *forward* pattern.
    """
    root = np.ones(len(x)) if weights is None else np.sqrt(weights)
    centred = confounds - confounds.mean(axis=0)
    scale = np.abs(centred).max(axis=0, initial=0.0)
    design = np.column_stack([np.ones(len(x)), centred[:, scale > 0] / scale[scale > 0]]) * root[:, None]
    left, singular, _ = np.linalg.svd(design, full_matrices=False)
    basis = left[:, singular > NOTHING * max(singular[0], np.finfo(float).tiny)]
    weighted = root * x
    rest = weighted - basis @ (basis.T @ weighted)
    size = float(rest @ rest)
    if size <= NOTHING * float(weighted @ weighted):
        return np.full(values.shape[1], np.nan)
    return np.asarray(rest @ (root[:, None] * values) / size)


def _values(regions: pd.DataFrame, scans: pd.DataFrame, people: People) -> np.ndarray:
    wanted = scans.index[people.rows]
    absent = wanted.difference(regions.index)
    if len(absent):
        raise CohortError(
            f"Scan {absent[0]} has no regions ({len(absent)} in all). Measure the regions of the same cohort."
        )
    return np.asarray(regions.loc[wanted].to_numpy(dtype=np.float64))
