"""Discriminability: how well what the latents know of a region tells two groups apart, or a number, out of fold.

Two readings. *Readout*: each region is predicted from all latents, and that prediction is compared between the groups;
it belongs to one region and does not depend on the arbitrary basis of the latents. *Linked*: a classifier on the latents
correlated with the region; regions that share latents share its verdict.

Wherever latents are asked for, cross-fitted models hand in one array per fold instead of one array: the latents of all
scans by the model that has not seen the scans of that fold. What is learnt from latents is learnt and used within one
model, so that coordinates of different models never meet.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata
from sklearn.linear_model import RidgeCV

from nilatent.analysis import stats
from nilatent.errors import SettingError
from nilatent.progress import track

LINK_Q, LINK_A = 0.05, 0.2
PENALTY = 0.1
PENALTIES = tuple(10.0**power for power in np.arange(-2, 4.1, 0.5))
FoldLatents = np.ndarray | Sequence[np.ndarray]


def unit_scale(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Divide each column by its root mean square over the given rows; a column that is zero there stays zero."""
    size = np.sqrt(np.square(values[rows]).mean(axis=0))
    return np.asarray(values / np.where(size > 1e-12, size, np.inf))


def of_fold(latents: FoldLatents, number: int) -> np.ndarray:
    """(scan, latent) what a fold works on: its own model's latents, or the one array there is."""
    return latents if isinstance(latents, np.ndarray) else latents[number]


def label_free_folds(n_scans: int, n_folds: int, *, seed: int) -> np.ndarray:
    """(scan,) fold of each scan, equal in size and drawn without the labels.

    Folds stratified by label would make the out-of-fold scores depend on the labels that the permutation test shuffles;
    drawn without them, the test is exact.
    """
    return np.random.default_rng(seed).permutation(np.arange(n_scans) % n_folds)


def readout_scores(
    latents: FoldLatents, regions: np.ndarray, confounds: np.ndarray | None, folds: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Read each region out of the latents, out of fold: ridge of the region on all latents.

    Confounds, scales, penalty (leave-one-out) and weights come from the training scans of each fold. Labels play no part.
    A cross-fitted model may describe scans it has seen in more detail than others, so that leave-one-out on these would
    choose too small a penalty: it is then the one with which the other models do best on scans that they have not seen.

    Parameters
    ----------
    latents : ndarray or Sequence of ndarray
        (scan, latent), or one such array per fold.
    regions : ndarray
        (scan, region).
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
    parts = []
    for number, fold in enumerate(np.unique(folds)):
        train, test = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        z = unit_scale(stats.residualise(of_fold(latents, number), confounds, fit_rows=train), train)
        x = unit_scale(stats.residualise(regions, confounds, fit_rows=train), train)
        truth[test] = x[test]
        if isinstance(latents, np.ndarray):
            ridge = RidgeCV(alphas=list(PENALTIES), fit_intercept=False, alpha_per_target=True).fit(z[train], x[train])
            scores[test] = ridge.predict(z[test]).reshape(len(test), -1)
        else:
            parts.append((test, _by_penalty(z[train], x[train], z[test])))
    if parts:
        wrong = np.array([np.square(truth[test] - predicted).sum(axis=1) for test, predicted in parts])
        for number, (test, predicted) in enumerate(parts):
            best = np.delete(wrong, number, axis=0).sum(axis=0).argmin(axis=0)
            scores[test] = predicted[best, :, np.arange(len(best))].T
    return scores, 1 - np.square(truth - scores).sum(axis=0) / np.square(truth).sum(axis=0)


def _by_penalty(z: np.ndarray, x: np.ndarray, z_new: np.ndarray) -> np.ndarray:
    """(penalty, new scan, region) ridge prediction of each column of x with each of :data:`PENALTIES`."""
    left, singular, right = np.linalg.svd(z, full_matrices=False)
    moments, turned = left.T @ x, z_new @ right.T
    return np.array([turned @ (moments * (singular / (singular**2 + penalty))[:, None]) for penalty in PENALTIES])


def balanced_targets(is_case: np.ndarray) -> np.ndarray:
    """(scan,) least-squares targets that weigh both classes alike: 1/n of the class, negative for the reference."""
    return np.where(is_case, 1 / is_case.sum(), -1 / (~is_case).sum())


def balanced_accuracy(predicted_case: np.ndarray, is_case: np.ndarray) -> np.ndarray:
    """(column,) mean of the shares of cases and of references that are called right; 0.5 is no call."""
    return np.asarray((predicted_case[is_case].mean(axis=0) + 1 - predicted_case[~is_case].mean(axis=0)) / 2)


def score_accuracy(scores: np.ndarray, is_case: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """(region,) balanced accuracy of each score, cut midway between the class means of the other folds."""
    return balanced_accuracy(score_calls(scores, is_case, folds), is_case)


def score_calls(scores: np.ndarray, is_case: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """(scan, region) 1 where each score calls the scan a case, cut midway between the class means of the other folds.

    0.5 is no call: the other folds hold one class only.
    """
    called = np.full(scores.shape, 0.5)
    for fold in np.unique(folds):
        train, test = folds != fold, folds == fold
        if len(np.unique(is_case[train])) < 2:
            continue
        cases, references = scores[train & is_case].mean(axis=0), scores[train & ~is_case].mean(axis=0)
        side = (scores[test] - (cases + references) / 2) * (cases - references)
        called[test] = side > 0
    return called


def target_r2(scores: np.ndarray, values: np.ndarray, confounds: np.ndarray | None, folds: np.ndarray) -> np.ndarray:
    """(region,) share of a number's variance that a line on each score predicts, line and confounds fitted out of fold."""
    wrong, total = np.zeros(scores.shape[1]), 0.0
    for fold in np.unique(folds):
        train, test = np.flatnonzero(folds != fold), folds == fold
        y = stats.residualise(values, confounds, fit_rows=train)
        x = stats.residualise(scores, confounds, fit_rows=train)
        slope = y[train, 0] @ x[train] / np.maximum(np.square(x[train]).sum(axis=0), 1e-30)
        wrong += np.square(y[test] - x[test] * slope).sum(axis=0)
        total += float(np.square(y[test]).sum())
    return np.asarray(1 - wrong / total)


def linked_latents(z: np.ndarray, x: np.ndarray, *, n_confounds: int) -> np.ndarray:
    """(region, latent) bool, the set J_r of methods: q <= .05 by the t-test over all pairs and |a| >= .2.

    The selection sees no labels, so it needs no permutation to be fair; it decides only which latents are looked at.
    """
    a = x.T @ z / len(z)
    q = stats.fdr(stats.correlation_p(a, degrees=len(z) - 2 - n_confounds))
    return np.asarray((q <= LINK_Q) & (np.abs(a) >= LINK_A))


@dataclass(frozen=True, eq=False)
class LinkedTest:
    """Discriminability from the latents J_r; every array is (region,).

    Parameters
    ----------
    bal_acc : ndarray
        Balanced accuracy; NaN for a number.
    p_fwe : ndarray
        Family-wise p.
    n_linked : ndarray
        Mean size of J_r.
    r : ndarray
        Correlation of the out-of-fold prediction with the target, confounds removed from it.
    """

    bal_acc: np.ndarray
    p_fwe: np.ndarray
    n_linked: np.ndarray
    r: np.ndarray


def linked_test(
    latents: FoldLatents,
    regions: np.ndarray,
    confounds: np.ndarray | None,
    *,
    folds: np.ndarray,
    orders: np.ndarray,
    is_case: np.ndarray | None = None,
    values: np.ndarray | None = None,
    label: str = "",
) -> LinkedTest:
    """Class-balanced ridge on the latents linked to each region, J_r chosen anew in every training fold.

    The statistic is the correlation of the out-of-fold prediction with the targets; targets are shuffled after confounds
    are removed from them (Freedman-Lane), all permutations in one matrix product per region and fold.

    Parameters
    ----------
    latents : ndarray or Sequence of ndarray
        (scan, latent), or one such array per fold.
    regions : ndarray
        (scan, region).
    confounds : ndarray or None
        (scan, confound) removed from latents, regions and targets.
    folds : ndarray
        (scan,) fold of each scan.
    orders : ndarray
        (permutation, scan) orders.
    is_case : ndarray or None
        (scan,) bool label; exactly one of this and `values` is given.
    values : ndarray or None
        (scan,) number to predict instead of a label.
    label : str
        What to call this work when its progress is shown; empty shows none.

    Returns
    -------
    LinkedTest
        An empty J_r predicts nothing: balanced accuracy 0.5, statistic 0.

    Raises
    ------
    SettingError
        When both or none of `is_case` and `values` are given.
    """
    if (is_case is None) == (values is None):
        raise SettingError("The linked classifier takes a label or a number: give is_case or values, and not both.")
    target = values if is_case is None else balanced_targets(is_case)
    targets = shuffled_targets(np.asarray(target), confounds, orders)
    n_scans, n_regions = regions.shape
    prepared = _linked_folds(latents, regions, confounds, folds, targets=targets, is_case=is_case)
    statistic, called = np.zeros((n_regions, targets.shape[1])), np.full((n_scans, n_regions), 0.5)
    predicted = np.zeros(targets.shape)
    for region in track(range(n_regions), total=n_regions, label=label) if label else range(n_regions):
        predicted[:] = 0
        for part in prepared:
            linked = np.flatnonzero(part.links[region])
            if len(linked) == 0:
                continue
            gram = part.gram[np.ix_(linked, linked)] + PENALTY * np.eye(len(linked))
            weights = np.linalg.solve(gram, part.moments[linked])
            predicted[part.test] = part.z_test[:, linked] @ weights
            called[part.test, region] = predicted[part.test, 0] > part.middle[linked] @ weights[:, 0]
        size = np.linalg.norm(predicted, axis=0) * np.linalg.norm(targets, axis=0)
        statistic[region] = (predicted * targets).sum(axis=0) / np.maximum(size, 1e-30)
    return LinkedTest(
        bal_acc=np.full(n_regions, np.nan) if is_case is None else balanced_accuracy(called, is_case),
        p_fwe=stats.max_p(statistic[:, 0], statistic[:, 1:].max(axis=0)),
        n_linked=np.mean([part.links.sum(axis=1) for part in prepared], axis=0),
        r=statistic[:, 0],
    )


@dataclass(frozen=True, eq=False)
class _LinkedFold:
    """What one fold needs for every region: products of its training scans, and its latents of unseen scans."""

    test: np.ndarray
    z_test: np.ndarray
    links: np.ndarray
    gram: np.ndarray
    moments: np.ndarray
    middle: np.ndarray


def _linked_folds(
    latents: FoldLatents,
    regions: np.ndarray,
    confounds: np.ndarray | None,
    folds: np.ndarray,
    *,
    targets: np.ndarray,
    is_case: np.ndarray | None,
) -> list[_LinkedFold]:
    rank = stats.confound_basis(confounds, len(regions)).shape[1] - 1
    prepared = []
    for number, fold in enumerate(np.unique(folds)):
        train, test = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        z = unit_scale(stats.residualise(of_fold(latents, number), confounds, fit_rows=train), train)
        x = unit_scale(stats.residualise(regions, confounds, fit_rows=train), train)
        links = linked_latents(z[train], x[train], n_confounds=rank)
        gram, moments = z[train].T @ z[train] / len(train), z[train].T @ targets[train] / len(train)
        middle = np.zeros(z.shape[1])
        if is_case is not None:
            middle = (z[train][is_case[train]].mean(axis=0) + z[train][~is_case[train]].mean(axis=0)) / 2
        prepared.append(_LinkedFold(test, z[test], links, gram, moments, middle))
    return prepared


def shuffled_targets(target: np.ndarray, confounds: np.ndarray | None, orders: np.ndarray) -> np.ndarray:
    """(scan, 1 + permutation) unit targets free of confounds: the observed first, then the shuffled."""
    target = balanced_targets(target) if target.dtype == bool else target
    basis = stats.confound_basis(confounds, len(target))
    observed = stats.unit_residuals(target, basis, what="The group")
    shuffled = np.hstack([observed, observed[orders.T, 0]])
    return np.asarray(shuffled - basis @ (basis.T @ shuffled))


def latent_weights(
    latents: np.ndarray, confounds: np.ndarray | None, targets: np.ndarray, folds: np.ndarray, *, tested: np.ndarray
) -> np.ndarray:
    """What each latent by itself says of the label or the number in scans that did not decide its direction.

    Parameters
    ----------
    latents : ndarray
        (scan, latent).
    confounds : ndarray or None
        (scan, confound) removed from the latents by the training scans of each fold.
    targets : ndarray
        (scan,) bool label, or number.
    folds : ndarray
        (scan,) fold of each scan.
    tested : ndarray
        Folds whose scans are judged together, each by the direction of the latent in all other folds.

    Returns
    -------
    ndarray
        (latent,) 2 AUC - 1 of the label, or correlation with the number, out of sample; 0 where it is negative or not
        defined.
    """
    scores, judged = np.zeros(latents.shape), np.isin(folds, tested)
    for fold in tested:
        train, test = np.flatnonzero(folds != fold), folds == fold
        z = unit_scale(stats.residualise(latents, confounds, fit_rows=train), train)
        centred = targets[train] - targets[train].mean()
        scores[test] = z[test] * np.sign(z[train].T @ centred)
    return np.asarray(np.maximum(0, separation(scores[judged], targets[judged])))


def separation(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """(column,) 2 AUC - 1 of a bool target (cases higher is positive), correlation with a number; 0 if not defined."""
    if targets.dtype == bool:
        n_case, n_reference = int(targets.sum()), int((~targets).sum())
        if min(n_case, n_reference) == 0:
            return np.zeros(scores.shape[1])
        ranks = np.asarray(rankdata(scores, axis=0))
        above = ranks[targets].sum(axis=0) - n_case * (n_case + 1) / 2
        return np.asarray(2 * above / (n_case * n_reference) - 1)
    x, y = scores - scores.mean(axis=0), targets - targets.mean()
    size = np.linalg.norm(x, axis=0) * np.linalg.norm(y)
    return np.asarray(np.where(size > 1e-12, y @ x / np.maximum(size, 1e-12), 0.0))


def latent_weighted(
    latents: FoldLatents, regions: np.ndarray, confounds: np.ndarray | None, targets: np.ndarray, folds: np.ndarray
) -> np.ndarray:
    """(region,) mean over latents of |a_rj| times what latent j says out of sample; in [0, 1], and 0 for no effect.

    The weight of a latent comes from scans that did not decide its direction. With cross-fitted latents each model is
    judged on the scans it has not seen, and the models are averaged by their number.
    """
    numbers = np.unique(folds)
    pooled = isinstance(latents, np.ndarray)
    total = np.zeros(regions.shape[1])
    for number, tested in enumerate([numbers] if pooled else [numbers[[i]] for i in range(len(numbers))]):
        own = of_fold(latents, number)
        kept = stats.varying(own, confounds)
        if not kept.any():
            continue
        weights = latent_weights(own[:, kept], confounds, targets, folds, tested=tested)
        association = np.abs(stats.partial_correlation(regions, own[:, kept], confounds))
        total += np.isin(folds, tested).mean() * (association @ weights) / kept.sum()
    return total
