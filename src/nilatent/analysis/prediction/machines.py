"""The heads beside the linear one: a linear support vector machine and boosted trees, one column of labels at a time.

Decision values of a machine become probabilities by a logistic curve (Platt) fitted on inner held-out scans of the training
part. The threshold between two classes is chosen on inner held-out scans too.

References
----------
Platt 1999 (probabilities of a machine). Frank & Hall 2001, doi:10.1007/3-540-44795-4_13 (ordered levels).
"""

from collections.abc import Callable

import numpy as np
from scipy.special import logit
from scipy.stats import rankdata
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.svm import SVC, SVR

from nilatent.analysis.prediction.inner import Kind, best_threshold, encode, inner_folds, subject_ranks
from nilatent.analysis.prediction.solver import Design, fit_logistic, make_design

# Of features whose scans have a mean square length of 1.
MARGINS = (0.1, 1.0, 10.0)
# Penalty of the logistic curve, which keeps the odds of separated classes finite.
FLATTEST = 1e-3
N_TREES, MOST_LEAVES, LEARNING_RATE = 60, 8, 0.1

Outputs = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""``f(x_train, y_train, x_test)``: (n_test,) how much the test scans look like y = 1, or the number."""


def fit_predict(
    head: str,
    design: Design,
    x_train: np.ndarray,
    x_test: np.ndarray,
    y: np.ndarray,
    *,
    kind: Kind,
    n_levels: int,
    subjects: np.ndarray,
    seed: int,
    n_inner: int,
) -> tuple[np.ndarray, np.ndarray, float]:
    """What a machine or trees say of held-out scans.

    Parameters
    ----------
    head : {"svm", "trees"}
        Which.
    design : Design
        Training scans, rotated.
    x_train, x_test : ndarray
        (scan, feature) as they are.
    y : ndarray
        (scan,) codes or numbers.
    kind : str
        Of the target.
    n_levels : int
        Classes; 0 for a number.
    subjects : ndarray
        (scan,) subject.
    seed, n_inner : int
        Of the inner folds.

    Returns
    -------
    linear : ndarray
        (test scan, output) log odds of each output of the target, or the number.
    prior : ndarray
        (class,) shares of the classes.
    threshold : float
        Of two classes; NaN for others.
    """
    x, new = design.rotated, design.rotate(x_test)
    if head == "trees":
        # Trees cut single features, which principal axes would mix.
        x, new = x_train, x_test
    ranks = subject_ranks(subjects, seed=seed)
    if kind == "continuous":
        folds = inner_folds(None, *ranks, n_inner=n_inner)
        told = _number_svm(x, y, new, folds) if head == "svm" else _number_trees(x, y, new, seed)
        return told[:, None], np.empty(0), np.nan
    folds = inner_folds(y, *ranks, n_inner=n_inner)
    prior = np.bincount(y, minlength=n_levels) / len(y)
    linear, inner = [], np.empty(0)
    for cut in encode(y, kind, n_levels).T:
        if cut.min() == cut.max():
            linear.append(np.full(len(new), logit(np.clip(cut[0], 0.5 / len(y), 1 - 0.5 / len(y)))))
            inner = np.full(len(y), cut[0])
            continue
        told, inner = _svm(x, cut, new, folds) if head == "svm" else _trees(x, cut, new, folds, seed)
        linear.append(told)
    threshold = best_threshold(_chance(inner), y) if kind == "binary" else np.nan
    if kind == "multi-class":
        # Each output is a class against all others; softmax of the log probabilities makes them sum to 1.
        linear = [np.log(_chance(one)) for one in linear]
    return np.column_stack(linear), prior, threshold


def _chance(linear: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-np.clip(linear, -50, 50))))


def _held_out(fit: Outputs, x: np.ndarray, y: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """(scan,) what inner models say of scans they were not fitted on; the mean where they had one class only."""
    told = np.zeros(len(y))
    for fold in range(folds.max() + 1):
        train, test = folds != fold, folds == fold
        told[test] = fit(x[train], y[train], x[test]) if np.ptp(y[train]) else 0.0
    return told


def _svm(x: np.ndarray, y: np.ndarray, new: np.ndarray, folds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log odds of the new scans, and of inner held-out ones."""

    def machine(margin: float) -> Outputs:
        def decide(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
            fitted = SVC(kernel="linear", C=margin, class_weight="balanced").fit(a, b)
            return np.asarray(fitted.decision_function(c))

        return decide

    inner = [_held_out(machine(margin), x, y, folds) for margin in MARGINS]
    best = int(np.argmax([rankdata(told)[y == 1].sum() for told in inner]))
    told = machine(MARGINS[best])(x, y, new)
    if np.ptp(inner[best]) == 0:
        return np.full(len(new), logit(y.mean())), np.full(len(y), logit(y.mean()))
    values = make_design(inner[best][:, None])
    curve = fit_logistic(values, y[:, None, None], np.full((len(y), 1), 1 / len(y)), np.array([FLATTEST]))[:, 0, 0]
    return values.rotate(told[:, None])[:, 0] * curve[0] + curve[1], values.rotated[:, 0] * curve[0] + curve[1]


def _number_svm(x: np.ndarray, y: np.ndarray, new: np.ndarray, folds: np.ndarray) -> np.ndarray:
    centre, scale = float(y.mean()), float(y.std()) or 1.0
    unit = (y - centre) / scale

    def machine(margin: float) -> Outputs:
        return lambda a, b, c: np.asarray(SVR(kernel="linear", C=margin, epsilon=0.1).fit(a, b).predict(c))

    missed = [np.square(_held_out(machine(margin), x, unit, folds) - unit).mean() for margin in MARGINS]
    return np.asarray(centre + scale * machine(MARGINS[int(np.argmin(missed))])(x, unit, new))


def _trees(
    x: np.ndarray, y: np.ndarray, new: np.ndarray, folds: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Log odds of the new scans, and of inner held-out ones, set back to the shares of the classes."""

    def grow(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
        grown = HistGradientBoostingClassifier(
            max_iter=N_TREES,
            max_leaf_nodes=MOST_LEAVES,
            learning_rate=LEARNING_RATE,
            min_samples_leaf=_smallest_leaf(len(a)),
            class_weight="balanced",
            early_stopping=False,
            random_state=seed,
        )
        return np.asarray(grown.fit(a, b).decision_function(c))

    shift = logit(y.mean())
    return grow(x, y, new) + shift, _held_out(grow, x, y, folds) + shift


def _number_trees(x: np.ndarray, y: np.ndarray, new: np.ndarray, seed: int) -> np.ndarray:
    grown = HistGradientBoostingRegressor(
        max_iter=N_TREES,
        max_leaf_nodes=MOST_LEAVES,
        learning_rate=LEARNING_RATE,
        min_samples_leaf=_smallest_leaf(len(x)),
        early_stopping=False,
        random_state=seed,
    )
    return np.asarray(grown.fit(x, y).predict(new))


def _smallest_leaf(n: int) -> int:
    return int(np.clip(n // 12, 2, 20))
