"""Nested cross-validation over outer folds that are given: everything that learns does so inside the training part.

Permutations repeat all of it. The features of a fold do not depend on labels, so they are prepared once; what is chosen with
labels (penalty, threshold, weights) is chosen again under every shuffle.

References
----------
Varma & Simon 2006 (nested), doi:10.1186/1471-2105-7-91. Ojala & Garriga 2010 (permuted classifiers).
Besag & Clifford 1991 (stopping early), doi:10.1093/biomet/78.2.301.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from joblib import Parallel, delayed

from nilatent.analysis import stats
from nilatent.analysis.combat import fit_combat
from nilatent.analysis.prediction.heads import FitPredict, calls, fit_linear_many, probabilities
from nilatent.analysis.prediction.machines import fit_predict
from nilatent.analysis.prediction.sets import FeatureSet
from nilatent.analysis.prediction.solver import Design, make_design
from nilatent.analysis.prediction.targets import Target
from nilatent.analysis.sequential import sequential_p
from nilatent.errors import SettingError

FIRST_BATCH = 20
# Share of a feature's spread that must be left once head size is removed; less is rounding.
LEFT = 1e-6


@dataclass(frozen=True, eq=False)
class OuterPart:
    """One outer fold of a target: its features, as what was learnt from the training scans alone leaves them.

    Parameters
    ----------
    train, test : ndarray
        Positions among the scans of the target.
    x_train, x_test : ndarray
        (scan, feature).
    design : Design
        The training features, standardised and rotated.
    """

    train: np.ndarray
    test: np.ndarray
    x_train: np.ndarray
    x_test: np.ndarray
    design: Design


@dataclass(frozen=True, eq=False)
class Told:
    """What was said of held-out scans, for each column of targets.

    Parameters
    ----------
    scores : ndarray
        (scan, column, class) probabilities, or (scan, column, 1) numbers.
    called : ndarray
        (scan, column) codes or numbers.
    constant : ndarray
        (scan, column) what is said without features: the training mean of a number, else the training median of the codes.
    folds : ndarray
        (scan,) outer fold. Scores of one fold are of one head and can be ranked; those of two cannot, because a head that
        was left few cases says less of all: ranked together, useless features would seem worse than guessing.
    """

    scores: np.ndarray
    called: np.ndarray
    constant: np.ndarray
    folds: np.ndarray

    def column(self, number: int) -> "Told":
        """One column, kept as a column."""
        part = slice(number, number + 1)
        return Told(self.scores[:, part], self.called[:, part], self.constant[:, part], self.folds)


def outer_parts(
    features: FeatureSet,
    target: Target,
    folds: np.ndarray,
    *,
    head_size: np.ndarray | None = None,
    site: np.ndarray | None = None,
    keep: np.ndarray | None = None,
    subjects: np.ndarray | None = None,
) -> list[OuterPart]:
    """Prepare the features of every outer fold, learning from its training scans alone.

    Parameters
    ----------
    features : FeatureSet
        Checked by :func:`~nilatent.analysis.prediction.sets.check_sets`.
    target : Target
        What is predicted.
    folds : ndarray
        (scan of the cohort,) outer fold.
    head_size : ndarray or None
        (scan of the cohort, confound) removed from the features; None removes nothing.
    site, keep, subjects : ndarray or None
        (scan of the cohort, ...) for ComBat: site, covariates whose effect stays, subject. None harmonises nothing.

    Raises
    ------
    SettingError
        When no feature is left.
    """
    own = np.array([column != target.column for column in features.columns], dtype=bool)
    parts = []
    held_in = np.asarray(folds)[target.rows]
    for fold in np.unique(held_in):
        train, test = np.flatnonzero(held_in != fold), np.flatnonzero(held_in == fold)
        x = features.of_fold(int(fold))[target.rows]
        x = x[:, own] if len(own) else x
        if site is not None and not features.columns:
            kept = None if keep is None else keep[target.rows]
            names = site[target.rows]
            people = None if subjects is None else subjects[target.rows][train]
            learnt = fit_combat(x[train], names[train], None if kept is None else kept[train], subjects=people)
            x = learnt.apply(x, names, kept)[0]
        if head_size is not None:
            x = _without(x, head_size[target.rows], train)
        if not x.shape[1] or not (x[train].std(axis=0) > 0).any():
            raise SettingError(f"no feature of '{features.name}' is left to predict {target.name}")
        parts.append(OuterPart(train, test, x[train], x[test], make_design(x[train])))
    return parts


def _without(x: np.ndarray, confounds: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Features less what the confounds say, with coefficients of the training scans; what they explain wholly becomes 0."""
    left = stats.residualise(x, confounds, fit_rows=train)
    spread = x[train].std(axis=0)
    return np.where(left[train].std(axis=0) > LEFT * spread, left, 0.0)


def nested_cv(
    parts: Sequence[OuterPart],
    targets: np.ndarray,
    target: Target,
    *,
    subjects: np.ndarray,
    head: str,
    n_inner: int,
    seed: int,
    network: FitPredict | None = None,
) -> Told:
    """Say something of every scan by heads that have not seen its subject.

    Parameters
    ----------
    parts : Sequence[OuterPart]
        From :func:`outer_parts`.
    targets : ndarray
        (scan, column) codes or numbers of the target's scans: the observed ones, or shuffled ones.
    target : Target
        Kind and levels.
    subjects : ndarray
        (scan,) subject of the target's scans.
    head : {"linear", "svm", "trees", "network"}
        Which head.
    n_inner, seed : int
        Inner folds, and the draw that deals subjects to them.
    network : FitPredict or None
        What ``"network"`` calls.
    """
    n, n_columns = targets.shape
    n_scores = max(len(target.levels), 1)
    scores, called, constant = (
        np.full((n, n_columns, n_scores), np.nan),
        np.empty((n, n_columns)),
        np.empty((n, n_columns)),
    )
    told = Told(scores, called, constant, np.empty(n, dtype=np.intp))
    for fold, part in enumerate(parts):
        told.folds[part.test] = fold
        known = targets[part.train]
        middle = known.mean(axis=0) if target.kind == "continuous" else np.median(known, axis=0).round()
        constant[part.test] = middle
        people = subjects[part.train]
        if head == "linear":
            heads = fit_linear_many(
                part.design,
                known,
                kind=target.kind,
                levels=target.levels,
                subjects=people,
                seed=seed,
                n_inner=n_inner,
            )
            for column, fitted in enumerate(heads):
                scores[part.test, column] = said = fitted.scores(part.x_test)
                called[part.test, column] = calls(said, target.kind, threshold=fitted.threshold, prior=fitted.prior)
            continue
        for column, y in enumerate(known.T):
            scores[part.test, column], called[part.test, column] = _one(
                part, y, target, people, head=head, n_inner=n_inner, seed=seed, network=network
            )
    return told


def _one(
    part: OuterPart,
    y: np.ndarray,
    target: Target,
    subjects: np.ndarray,
    *,
    head: str,
    n_inner: int,
    seed: int,
    network: FitPredict | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Scores and calls of the held-out scans by a head that takes one column at a time."""
    if head == "network":
        if network is None:
            raise SettingError("The head 'network' was asked for and no network was handed in. Name other heads.")
        scores = np.asarray(network(part.x_train, y, part.x_test, target), dtype=np.float64)
        expected = (len(part.test), max(len(target.levels), 1))
        if scores.shape != expected or not np.isfinite(scores).all():
            raise SettingError(
                f"The network gave scores of shape {scores.shape}; finite ones of {expected} are needed."
            )
        return scores, scores[:, 0] if target.kind == "continuous" else scores.argmax(axis=1)
    linear, prior, threshold = fit_predict(
        head,
        part.design,
        part.x_train,
        part.x_test,
        y,
        kind=target.kind,
        n_levels=len(target.levels),
        subjects=subjects,
        seed=seed,
        n_inner=n_inner,
    )
    scores = linear if target.kind == "continuous" else probabilities(linear, target.kind)
    return scores, calls(scores, target.kind, threshold=threshold, prior=prior)


def label_orders(
    target: Target, subjects: np.ndarray, *, n_permutations: int, seed: int, blocks: np.ndarray | None
) -> np.ndarray:
    """Shuffles of the labels over subjects, so that all scans of a subject move together.

    A subject whose scans share one value lends it to all scans of the subject that receives it. Where values differ within
    subjects, such as ages at several sessions, they are exchanged between subjects with equally many scans, in order.

    Parameters
    ----------
    target : Target
        What is predicted.
    subjects : ndarray
        (scan,) subject.
    n_permutations, seed : int
        Shuffles, and their draw.
    blocks : ndarray or None
        (scan,) site, within which labels stay; that of a subject's first scan counts.

    Returns
    -------
    ndarray
        (permutation, scan): ``y[orders[b]]`` is the b-th shuffled target.

    Raises
    ------
    SettingError
        When nothing can be exchanged.
    """
    names, first, codes, counts = np.unique(subjects, return_index=True, return_inverse=True, return_counts=True)
    place = np.zeros(len(subjects), dtype=np.intp)
    scans_of: list[np.ndarray] = [np.flatnonzero(codes == code) for code in range(len(names))]
    for mine in scans_of:
        place[mine] = np.arange(len(mine))
    constant = bool((target.y == target.y[first][codes]).all())
    labels = np.array(["" if blocks is None else str(blocks[row]) for row in first], dtype=object)
    if not constant:
        labels = np.array([f"{label} {count}" for label, count in zip(labels, counts, strict=True)], dtype=object)
    drawn = stats.permutations(len(names), n_permutations, seed=seed, blocks=labels)
    lent = drawn[:, codes]
    if constant:
        return np.asarray(first[lent])
    table = np.zeros((len(names), counts.max()), dtype=np.intp)
    for code, mine in enumerate(scans_of):
        table[code, : len(mine)] = mine
    return np.asarray(table[lent, place])


def permuted_p(
    observed: float,
    judge: Callable[[np.ndarray], np.ndarray],
    y: np.ndarray,
    orders: np.ndarray,
    *,
    n_stop: int,
    n_jobs: int = 1,
) -> tuple[float, int]:
    """Sequential p-value of a measure against the whole procedure on shuffled labels, and how many shuffles it took.

    Parameters
    ----------
    observed : float
        Measure with the labels as they are; larger is better.
    judge : Callable
        (scan, column) labels to (column,) measure.
    y : ndarray
        (scan,) labels.
    orders : ndarray
        (permutation, scan) from :func:`label_orders`.
    n_stop : int
        Exceedances that end the test; 0 does all.
    n_jobs : int
        Threads that share the shuffles of a batch; the numbers are the same.
    """
    drawn = np.empty(0)
    while len(drawn) < len(orders) and not 0 < n_stop <= np.count_nonzero(drawn >= observed - stats.TIE):
        batch = orders[len(drawn) : len(drawn) + max(FIRST_BATCH, len(drawn))]
        if n_jobs > 1:
            shares = Parallel(n_jobs=n_jobs, prefer="threads")(delayed(judge)(y[order][:, None]) for order in batch)
            drawn = np.concatenate([drawn, *shares])
        else:
            drawn = np.concatenate([drawn, judge(y[batch].T)])
    needed = np.flatnonzero(drawn >= observed - stats.TIE)
    if 0 < n_stop <= len(needed):
        drawn = drawn[: needed[n_stop - 1] + 1]
    return float(sequential_p(np.array(observed), drawn, stop_after=n_stop)), len(drawn)
