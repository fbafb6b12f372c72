"""Discriminability: how well what the latents know of a region tells two groups apart, out of fold.

Two readings. *Readout*: each region is predicted from all latents, and that prediction is compared between the groups;
it belongs to one region and does not depend on the arbitrary basis of the latents. *Linked*: a classifier on the latents
correlated with the region; regions that share latents share its verdict.
"""

from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import RidgeCV

from nilatent.analysis import stats

LINK_Q, LINK_A = 0.05, 0.2
PENALTY = 0.1
PENALTIES = tuple(10.0**power for power in np.arange(-2, 4.1, 0.5))


def unit_scale(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Divide each column by its root mean square over the given rows; a column that is zero there stays zero."""
    size = np.sqrt(np.square(values[rows]).mean(axis=0))
    return np.asarray(values / np.where(size > 1e-12, size, np.inf))


def label_free_folds(n_scans: int, n_folds: int, *, seed: int) -> np.ndarray:
    """(scan,) fold of each scan, equal in size and drawn without the labels.

    Folds stratified by label would make the out-of-fold scores depend on the labels that the permutation test shuffles;
    drawn without them, the test is exact.
    """
    return np.random.default_rng(seed).permutation(np.arange(n_scans) % n_folds)


def readout_scores(
    latents: np.ndarray, regions: np.ndarray, confounds: np.ndarray | None, folds: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Read each region out of the latents, out of fold: ridge of the region on all latents.

    Confounds, scales, penalty (leave-one-out) and weights come from the training scans of each fold. Labels play no part.

    Parameters
    ----------
    latents, regions : ndarray
        (scan, latent) and (scan, region).
    confounds : ndarray or None
        (scan, confound) removed from both.
    folds : ndarray
        (scan,) fold of each scan.

    Returns
    -------
    scores : ndarray
        (scan, region) predicted region, in units of its residual SD.
    r2 : ndarray
        (region,) cross-validated share of the region's residual variance that the latents predict; negative when they
        predict worse than the training mean.
    """
    scores, truth = np.zeros(regions.shape), np.zeros(regions.shape)
    for fold in np.unique(folds):
        train, test = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        z = unit_scale(stats.residualise(latents, confounds, fit_rows=train), train)
        x = unit_scale(stats.residualise(regions, confounds, fit_rows=train), train)
        ridge = RidgeCV(alphas=list(PENALTIES), fit_intercept=False, alpha_per_target=True).fit(z[train], x[train])
        scores[test], truth[test] = ridge.predict(z[test]).reshape(len(test), -1), x[test]
    return scores, 1 - np.square(truth - scores).sum(axis=0) / np.square(truth).sum(axis=0)


def balanced_targets(is_case: np.ndarray) -> np.ndarray:
    """(scan,) least-squares targets that weigh both classes alike: 1/n of the class, negative for the reference."""
    return np.where(is_case, 1 / is_case.sum(), -1 / (~is_case).sum())


def balanced_accuracy(predicted_case: np.ndarray, is_case: np.ndarray) -> np.ndarray:
    """(column,) mean of the shares of cases and of references that are called right; 0.5 is no call."""
    return np.asarray((predicted_case[is_case].mean(axis=0) + 1 - predicted_case[~is_case].mean(axis=0)) / 2)


def score_accuracy(scores: np.ndarray, is_case: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """(region,) balanced accuracy of each score, cut midway between the class means of the other folds."""
    called = np.full(scores.shape, 0.5)
    for fold in np.unique(folds):
        train, test = folds != fold, folds == fold
        cases, references = scores[train & is_case].mean(axis=0), scores[train & ~is_case].mean(axis=0)
        side = (scores[test] - (cases + references) / 2) * (cases - references)
        called[test] = side > 0
    return balanced_accuracy(called, is_case)


def linked_latents(z: np.ndarray, x: np.ndarray, *, n_confounds: int) -> np.ndarray:
    """(region, latent) bool, the set J_r of methods: q <= .05 by the t-test over all pairs and |a| >= .2.

    The selection sees no labels, so it needs no permutation to be fair; it decides only which latents are looked at.
    """
    a = x.T @ z / len(z)
    q = stats.fdr(stats.correlation_p(a, degrees=len(z) - 2 - n_confounds))
    return np.asarray((q <= LINK_Q) & (np.abs(a) >= LINK_A))


@dataclass(frozen=True, eq=False)
class LinkedTest:
    """Discriminability from the latents J_r: balanced accuracy, family-wise p, and mean size of J_r, each (region,)."""

    bal_acc: np.ndarray
    p_fwe: np.ndarray
    n_linked: np.ndarray


def linked_test(
    latents: np.ndarray,
    regions: np.ndarray,
    confounds: np.ndarray | None,
    *,
    is_case: np.ndarray,
    folds: np.ndarray,
    orders: np.ndarray,
) -> LinkedTest:
    """Class-balanced ridge on the latents linked to each region, J_r chosen anew in every training fold.

    The statistic is the correlation of the out-of-fold prediction with the targets; targets are shuffled after confounds
    are removed from them (Freedman-Lane), all permutations in one matrix product per region and fold.

    Parameters
    ----------
    latents, regions : ndarray
        (scan, latent) and (scan, region).
    confounds : ndarray or None
        (scan, confound) removed from latents, regions and targets.
    is_case : ndarray
        (scan,) bool label.
    folds : ndarray
        (scan,) fold of each scan.
    orders : ndarray
        (permutation, scan) orders.

    Returns
    -------
    LinkedTest
        An empty J_r predicts nothing: balanced accuracy 0.5, statistic 0.
    """
    targets = shuffled_targets(is_case, confounds, orders)
    n_scans, n_regions = regions.shape
    prepared = []
    rank = stats.confound_basis(confounds, n_scans).shape[1] - 1
    for fold in np.unique(folds):
        train, test = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        z = unit_scale(stats.residualise(latents, confounds, fit_rows=train), train)
        x = unit_scale(stats.residualise(regions, confounds, fit_rows=train), train)
        links = linked_latents(z[train], x[train], n_confounds=rank)
        gram, moments = z[train].T @ z[train] / len(train), z[train].T @ targets[train] / len(train)
        middle = (z[train][is_case[train]].mean(axis=0) + z[train][~is_case[train]].mean(axis=0)) / 2
        prepared.append((test, z[test], links, gram, moments, middle))
    statistic, called = np.zeros((n_regions, targets.shape[1])), np.full((n_scans, n_regions), 0.5)
    predicted = np.zeros(targets.shape)
    for region in range(n_regions):
        predicted[:] = 0
        for test, z_test, links, gram, moments, middle in prepared:
            linked = np.flatnonzero(links[region])
            if len(linked) == 0:
                continue
            weights = np.linalg.solve(gram[np.ix_(linked, linked)] + PENALTY * np.eye(len(linked)), moments[linked])
            predicted[test] = z_test[:, linked] @ weights
            side = predicted[test, 0] - middle[linked] @ weights[:, 0]
            called[test, region] = side > 0
        size = np.linalg.norm(predicted, axis=0) * np.linalg.norm(targets, axis=0)
        statistic[region] = (predicted * targets).sum(axis=0) / np.maximum(size, 1e-30)
    return LinkedTest(
        bal_acc=balanced_accuracy(called, is_case),
        p_fwe=stats.max_p(statistic[:, 0], statistic[:, 1:].max(axis=0)),
        n_linked=np.mean([links.sum(axis=1) for _, _, links, *_ in prepared], axis=0),
    )


def shuffled_targets(is_case: np.ndarray, confounds: np.ndarray | None, orders: np.ndarray) -> np.ndarray:
    """(scan, 1 + permutation) unit targets free of confounds: the observed first, then the shuffled."""
    basis = stats.confound_basis(confounds, len(is_case))
    observed = stats.unit_residuals(balanced_targets(is_case), basis, what="The group")
    shuffled = np.hstack([observed, observed[orders.T, 0]])
    return np.asarray(shuffled - basis @ (basis.T @ shuffled))
