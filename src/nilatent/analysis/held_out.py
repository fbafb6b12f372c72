"""Certificates from held-out calls: the worst-case balanced error of a classifier and of every region, against chance.

CUBV, the cross-validated upper bound, asks it of a classifier; SAM, statistical agnostic mapping, of each region. The bound
rests on a published convention (n is the size of the training part), which is no theorem about held-out errors: a
certificate needs the permutation p-value as well.

References
----------
Gorriz et al. 2024, arXiv:2401.16407 (CUBV). Gorriz et al. 2021, doi:10.1016/j.inffus.2020.09.008 (SAM).
Freedman & Lane 1983, doi:10.1080/07350015.1983.10509354.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from sklearn.svm import SVC

from nilatent.analysis import bounds, stats
from nilatent.analysis.discriminability import PENALTY, FoldLatents, balanced_accuracy, of_fold, unit_scale
from nilatent.errors import LeakageError, SettingError


@dataclass(frozen=True)
class Certificate:
    """Held-out error of a rule, what it can be at most, and what guessing gives.

    Parameters
    ----------
    error : float
        Balanced error, or loss in SD of the target.
    bound : float
        Worst-case error: `error` plus the mean Delta of the folds.
    threshold : float
        0.5 for a classifier; the loss of the training mean for a regressor.
    holds : bool
        The worst case is better than guessing.
    limit : float
        Exact binomial limit of the pooled balanced error; NaN for a regressor.
    n_eff : float
        Mean n of the bounds.
    """

    error: float
    bound: float
    threshold: float
    holds: bool
    limit: float
    n_eff: float


def check_folds(folds: np.ndarray, subjects: Sequence[object] | np.ndarray | None = None) -> None:
    """Refuse folds that hold nothing out.

    Parameters
    ----------
    folds : ndarray
        (scan,) fold in which each scan is held out.
    subjects : Sequence, optional
        (scan,) subject of each scan.

    Raises
    ------
    SettingError
        When there is one fold only: resubstitution.
    LeakageError
        When scans of one subject stand in two folds.
    """
    if len(np.unique(folds)) < 2:
        raise SettingError(bounds.RESUBSTITUTION)
    if subjects is not None:
        of_subject = pd.Series(folds).groupby(np.asarray(subjects)).nunique()
        if (of_subject > 1).any():
            raise LeakageError(
                f"Subject {of_subject.idxmax()} has scans in {of_subject.max()} folds, so a rule is judged on a subject it was "
                "fitted on. Put all scans of a subject into one fold."
            )


def parts(folds: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Positions of the training and of the held-out scans, fold by fold."""
    for fold in np.unique(folds):
        yield np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)


def effective_sizes(is_case: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """(fold,) twice the smaller group of each training part: the n of the bounds.

    Raises
    ------
    SettingError
        When there is one fold only, or a training part lacks a group.
    """
    check_folds(folds)
    smallest = np.array([min(is_case[train].sum(), (~is_case[train]).sum()) for train, _ in parts(folds)])
    if smallest.min() < 1:
        raise SettingError(
            "The training part of a fold holds one group only. Use fewer folds, or more scans per group."
        )
    return np.asarray(2 * smallest)


def balanced_errors(called: np.ndarray, is_case: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Share of each fold in the pooled balanced error; the mean over folds is that error.

    A small fold may hold one group only, and then has no balanced error of its own; its misses still count here.

    Parameters
    ----------
    called : ndarray
        (scan, column) held-out call: 1 a case, 0 a reference, 0.5 none.
    is_case : ndarray
        (scan,) bool label.
    folds : ndarray
        (scan,) fold in which each scan was held out.

    Returns
    -------
    ndarray
        (fold, column), at least 0; one entry can exceed 1.
    """
    weight = np.where(is_case, 0.5 / is_case.sum(), 0.5 / (~is_case).sum())
    missed = np.abs(called - is_case[:, None]) * weight[:, None]
    names = np.unique(folds)
    return np.array([missed[folds == name].sum(axis=0) for name in names]) * len(names)


def certify_calls(
    called: np.ndarray,
    is_case: np.ndarray,
    folds: np.ndarray,
    *,
    d: int,
    eta: float = 0.05,
    theta2: np.ndarray | None = None,
) -> Certificate:
    """Certificate of a classifier from its held-out calls: balanced error plus Delta, against 0.5.

    Parameters
    ----------
    called : ndarray
        (scan,) held-out call: 1 a case, 0 a reference, 0.5 none.
    is_case : ndarray
        (scan,) bool label.
    folds : ndarray
        (scan,) fold in which each scan was held out.
    d : int
        Weights of the rule, a fitted threshold counted as one.
    eta : float
        Probability of failure, in (0, 1).
    theta2 : ndarray, optional
        (fold,) squared norm of the weights; needed from 8 weights on.

    Returns
    -------
    Certificate
        A rule that calls all scans alike has error 0.5 and never holds, however unequal the groups.
    """
    sizes = effective_sizes(is_case, folds)
    errors = balanced_errors(np.asarray(called, dtype=float)[:, None], is_case, folds)[:, 0]
    bound = bounds.mean_bound(errors, sizes, d=d, eta=eta, theta2=theta2)
    # One limit per group, each at half of eta, so that both hold together: an exact limit of the balanced error.
    limits = [
        bounds.exact_limit(int(np.ceil(np.abs(called[group] - is_case[group]).sum())), int(group.sum()), eta=eta / 2)
        for group in (is_case, ~is_case)
    ]
    holds = bound < bounds.CHANCE
    return Certificate(float(errors.mean()), bound, bounds.CHANCE, holds, float(np.mean(limits)), float(np.mean(sizes)))


def n_weights(features: FoldLatents) -> int:
    """Weights of a linear rule on the features, its threshold counted as one."""
    arrays = [features] if isinstance(features, np.ndarray) else features
    return 1 + max(int(array.shape[1]) for array in arrays)


def cubv(
    features: FoldLatents,
    is_case: np.ndarray,
    folds: np.ndarray,
    *,
    confounds: np.ndarray | None = None,
    eta: float = 0.05,
) -> Certificate:
    """Cross-validated upper bound of a linear classifier.

    A class-balanced linear support vector machine (C = 1) on features of unit variance; confounds, scales and weights come
    from the training part of each fold.

    Parameters
    ----------
    features : ndarray or Sequence of ndarray
        (scan, feature), or one such array per fold: the latents by the model that has not seen the scans of the fold.
    is_case : ndarray
        (scan,) bool label.
    folds : ndarray
        (scan,) fold in which each scan is held out.
    confounds : ndarray or None
        (scan, confound) removed from the features.
    eta : float
        Probability of failure, in (0, 1).
    """
    effective_sizes(is_case, folds)
    called, norms = np.empty(len(is_case)), []
    for number, (train, test) in enumerate(parts(folds)):
        x = unit_scale(stats.residualise(of_fold(features, number), confounds, fit_rows=train), train)
        machine = SVC(kernel="linear", C=1.0, class_weight="balanced").fit(x[train], is_case[train])
        called[test] = machine.predict(x[test])
        norms.append(float(np.square(machine.coef_).sum() + np.square(machine.intercept_).sum()))
    return certify_calls(called, is_case, folds, d=n_weights(features), eta=eta, theta2=np.array(norms))


def region_calls(
    scores: np.ndarray, is_case: np.ndarray, confounds: np.ndarray | None, folds: np.ndarray
) -> np.ndarray:
    """(scan, region) held-out call of each score by itself: the nearer mean of the two groups in the training part."""
    effective_sizes(is_case, folds)
    called = np.full(scores.shape, 0.5)
    for train, test in parts(folds):
        left = stats.residualise(scores, confounds, fit_rows=train)
        cases, references = left[train[is_case[train]]].mean(axis=0), left[train[~is_case[train]]].mean(axis=0)
        side = (left[test] - (cases + references) / 2) * (cases - references)
        called[test] = np.where(side == 0, 0.5, side > 0)
    return called


@dataclass(frozen=True, eq=False)
class RegionCertificates:
    """Held-out balanced error, worst case and outlier score, each (region,); `n_eff` is the mean n of the bounds."""

    error: np.ndarray
    bound: np.ndarray
    holds: np.ndarray
    limit: np.ndarray
    sam_z: np.ndarray
    n_eff: float


def sam(
    scores: np.ndarray,
    is_case: np.ndarray,
    folds: np.ndarray,
    *,
    confounds: np.ndarray | None = None,
    eta: float = 0.05,
) -> RegionCertificates:
    """Statistical agnostic map: the worst-case error of each region, from held-out scans.

    Parameters
    ----------
    scores : ndarray
        (scan, region) one number per region.
    is_case : ndarray
        (scan,) bool label.
    folds : ndarray
        (scan,) fold in which each scan is held out.
    confounds : ndarray or None
        (scan, confound) removed from the scores.
    eta : float
        Probability of failure, in (0, 1), of each region.

    Returns
    -------
    RegionCertificates
        ``sam_z``, the published z among regions, only says which region stands out from the others: the proportion it tests
        against is the regions' own mean. It is no test against chance.
    """
    called = region_calls(scores, is_case, confounds, folds)
    made = [certify_calls(column, is_case, folds, d=2, eta=eta) for column in called.T]
    accuracy = balanced_accuracy(called, is_case)
    spread = float(accuracy.std(ddof=1)) if len(accuracy) > 1 else 0.0
    return RegionCertificates(
        error=np.array([one.error for one in made]),
        bound=np.array([one.bound for one in made]),
        holds=np.array([one.holds for one in made]),
        limit=np.array([one.limit for one in made]),
        sam_z=(accuracy - accuracy.mean()) / spread if spread > 0 else np.zeros(len(accuracy)),
        n_eff=made[0].n_eff,
    )


def prediction_p(
    features: FoldLatents,
    target: np.ndarray,
    folds: np.ndarray,
    orders: np.ndarray,
    *,
    confounds: np.ndarray | None = None,
) -> float:
    """Permutation p-value that the features predict the target out of fold, by ridge least squares.

    The target is shuffled after confounds are removed from it (Freedman-Lane). Folds must be drawn without the target, or the
    orders must stay within folds: then every permutation is one more column of one matrix product per fold.

    Parameters
    ----------
    features : ndarray or Sequence of ndarray
        (scan, feature), or one such array per fold.
    target : ndarray
        (scan,) a number, or :func:`~nilatent.analysis.discriminability.balanced_targets` of two groups.
    folds : ndarray
        (scan,) fold in which each scan is held out.
    orders : ndarray
        (permutation, scan) from :func:`~nilatent.analysis.stats.permutations`.
    confounds : ndarray or None
        (scan, confound) removed from features and target.

    Returns
    -------
    float
        One-sided, (1 + b) / (1 + B).
    """
    check_folds(folds)
    basis = stats.confound_basis(confounds, len(target))
    observed = stats.unit_residuals(target, basis, what="The target")
    targets = np.hstack([observed, observed[orders.T, 0]])
    targets -= basis @ (basis.T @ targets)
    predicted = np.zeros(targets.shape)
    for number, (train, test) in enumerate(parts(folds)):
        x = unit_scale(stats.residualise(of_fold(features, number), confounds, fit_rows=train), train)
        gram, moments = x[train].T @ x[train] / len(train), x[train].T @ targets[train] / len(train)
        predicted[test] = x[test] @ np.linalg.solve(gram + PENALTY * np.eye(x.shape[1]), moments)
    size = np.linalg.norm(predicted, axis=0) * np.linalg.norm(targets, axis=0)
    statistic = (predicted * targets).sum(axis=0) / np.maximum(size, 1e-30)
    return float(stats.max_p(statistic[:1], statistic[1:])[0])
