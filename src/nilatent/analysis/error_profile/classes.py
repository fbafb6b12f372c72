"""Contributions by class: whether regions weigh differently on the error of one group than on that of another.

References
----------
Westfall & Young 1993 (max-statistic). Freedman & Lane 1983, doi:10.1080/07350015.1983.10509354.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from nilatent.analysis import stats
from nilatent.analysis.contrast import MIN_DEGREES, MIN_PER_GROUP, MIN_SUBJECTS, level_words
from nilatent.analysis.error_profile.gain import Gain, gain_test, holm
from nilatent.analysis.error_profile.models import Problem, dealt_folds, parts_of
from nilatent.analysis.error_profile.shap import contributions


@dataclass(frozen=True, eq=False)
class OwnModel:
    """Ridge fitted on the scans of one class alone.

    Parameters
    ----------
    gain : Gain
        Of the regions within the class.
    p_gate : float
        Its p, adjusted for the number of classes.
    mean_abs_phi : ndarray
        (region,) NaN when the gate of the class is closed.
    """

    gain: Gain
    p_gate: float
    mean_abs_phi: np.ndarray


@dataclass(frozen=True, eq=False)
class Groups:
    """Groups between which contributions are compared.

    Parameters
    ----------
    of_scan : ndarray
        (scan,) group; empty where a scan takes no part.
    small : list[str]
        Groups that are too small to take part.
    compared : bool
        There are two groups, and the null model does not tell all of them apart without error.
    """

    of_scan: np.ndarray
    small: list[str]
    compared: bool

    @property
    def names(self) -> list[str]:
        """Groups that take part, in order."""
        return [str(name) for name in np.unique(self.of_scan[self.of_scan != ""])]


def groups_of(scans: pd.DataFrame, column: str, null: np.ndarray) -> Groups:
    """Groups of the chosen scans that are large enough; none when the cohort has no such column.

    Parameters
    ----------
    scans : DataFrame
        The chosen scans.
    column : str
        Column of the group.
    null : ndarray
        (scan, column) the null model.
    """
    if column not in scans:
        return Groups(np.full(len(scans), ""), [], False)
    group = level_words(scans[column]).fillna("").to_numpy().astype(str)
    names, counts = np.unique(group[group != ""], return_counts=True)
    small = [str(name) for name in names[counts < MIN_PER_GROUP]]
    if len(names) - len(small) < 2:
        return Groups(np.full(len(scans), ""), small, False)
    kept = np.where(np.isin(group, small), "", group)
    rows = kept != ""
    return Groups(kept, small, bool(stats.varying(_dummies(kept[rows]), null[rows]).any()))


def _dummies(group: np.ndarray) -> np.ndarray:
    return np.asarray((group[:, None] == np.unique(group)[1:]).astype(np.float64))


def class_difference(
    phi: np.ndarray, group: np.ndarray, problem: Problem, *, blocks: np.ndarray | None, n_permutations: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """p-values that the size |phi|, and the sign, of a region's contribution differ between classes; each (region,).

    The share of variance that the classes explain, labels shuffled within site; the null model is removed from both
    sides. Corrected by the maximum over all regions and both readings, so any number of classes is one family.

    Parameters
    ----------
    phi : ndarray
        (scan, region) of the pooled model.
    group : ndarray
        (scan,) class of each scan; empty where it takes no part.
    problem : Problem
        The same scans.
    blocks : ndarray or None
        (scan,) site.
    n_permutations, seed : int
        Of the test.
    """
    rows = np.flatnonzero(group != "")
    n_regions = phi.shape[1]
    values = np.hstack([np.abs(phi[rows]), phi[rows]])
    confounds, labels = problem.null[rows], _dummies(group[rows])
    p_value = np.ones(2 * n_regions)
    moving = stats.varying(values, confounds)
    orders = stats.permutations(len(rows), n_permutations, seed=seed, blocks=None if blocks is None else blocks[rows])
    if moving.any():
        p_value[moving] = stats.permuted_r2(values[:, moving], labels, orders, confounds=confounds)[1]
    return p_value[:n_regions], p_value[n_regions:]


def own_models(
    problem: Problem, group: np.ndarray, *, n_folds: int, n_permutations: int, alpha: float, seed: int
) -> dict[str, OwnModel]:
    """A ridge of its own for every class that has enough scans for its null model, each behind a gate of its own.

    Parameters
    ----------
    problem : Problem
        All scans.
    group : ndarray
        (scan,) class; empty where it takes no part.
    n_folds, n_permutations, alpha, seed : int, int, float, int
        As for the pooled model; the classes share `alpha` (Holm).
    """
    tested = {}
    for name in np.unique(group[group != ""]):
        rows = np.flatnonzero(group == name)
        part = Problem(
            problem.log_error[rows],
            problem.regions[rows],
            problem.null[rows],
            problem.levels[rows],
            problem.blocks[rows],
        )
        rank = stats.confound_basis(part.null, len(rows)).shape[1]
        if len(rows) < MIN_SUBJECTS or len(rows) - rank - 1 < MIN_DEGREES or np.bincount(part.blocks).max() < 2:
            continue
        parts = parts_of(part, dealt_folds(part.blocks, n_folds, seed=seed))
        orders = stats.permutations(len(rows), n_permutations, seed=seed, blocks=part.blocks)
        tested[str(name)] = (part, parts, gain_test(part, [parts], "ridge", orders, n_stop=1, seed=seed))
    gate = holm([gain.p_value for _, _, gain in tested.values()])
    found = {}
    for (name, (part, parts, gain)), p_gate in zip(tested.items(), gate, strict=True):
        size = np.full(problem.regions.shape[1], np.nan)
        if p_gate <= alpha:
            size = np.abs(contributions(part, [parts], "ridge", seed=seed).phi).mean(axis=0)
        found[name] = OwnModel(gain, float(p_gate), size)
    return found
