"""Linear heads: L2 logistic regression, cumulative for ordered levels, and ridge; penalty and threshold chosen inside.

The penalty and the threshold of a decision are chosen by cross-validation inside the scans that are handed in, by subject.
Class weights are balanced, so that a rare class counts as much as a frequent one; the probabilities are then set back to the
class frequencies of the training scans, so that they can be read as such.

References
----------
Frank & Hall 2001, doi:10.1007/3-540-44795-4_13 (ordered levels). King & Zeng 2001, doi:10.1093/oxfordjournals.pan.a004868
(setting the intercept back after weighting).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logit, softmax

from nilatent.analysis.prediction.inner import (
    Kind,
    balanced_weights,
    best_threshold,
    encode,
    inner_folds,
    subject_ranks,
)
from nilatent.analysis.prediction.solver import Design, fit_logistic, fit_ridge, make_design
from nilatent.errors import SettingError

__all__ = ["FitPredict", "Kind", "LinearHead", "calls", "fit_linear", "fit_linear_many", "probabilities"]

# Per feature of unit variance divided by the root of their number; the logistic fits are iterated, so their grid is coarse.
CLASS_PENALTIES = np.logspace(-4, 0, 5)
NUMBER_PENALTIES = np.logspace(-4, 2, 13)
ABSENT = 0.01
CELLS_AT_ONCE = 2_000_000


@dataclass(frozen=True, eq=False)
class LinearHead:
    """A linear rule on features, with all it needs to be applied to scans it has not seen.

    Parameters
    ----------
    kind : {"binary", "multi-class", "ordinal", "continuous"}
        What it predicts.
    levels : tuple[str, ...]
        Names of the codes 0, 1, ...; empty for a number.
    centre, scale : ndarray
        (feature,) by which features are standardised.
    coefficients : ndarray
        (output, feature). One output for two classes and for a number; one per class; one per cut between ordered levels.
    intercept : ndarray
        (output,).
    threshold : float
        Probability of the second class from which on it is called; NaN for other kinds.
    prior : ndarray
        (class,) share of each class in the training scans; empty for a number.
    penalty : float
        The one chosen.
    n_train : int
        Scans it was fitted on.
    """

    kind: Kind
    levels: tuple[str, ...]
    centre: np.ndarray
    scale: np.ndarray
    coefficients: np.ndarray
    intercept: np.ndarray
    threshold: float
    prior: np.ndarray
    penalty: float
    n_train: int

    def scores(self, x: np.ndarray) -> np.ndarray:
        """Probabilities of the classes, (scan, class) with rows that sum to 1; (scan, 1) numbers of a number.

        Parameters
        ----------
        x : ndarray
            (scan, feature), in the units of the training scans.

        Raises
        ------
        SettingError
            When there are more or fewer features than the head was fitted on.
        """
        x = np.asarray(x, dtype=np.float64)
        if x.ndim != 2 or x.shape[1] != len(self.centre):
            raise SettingError(
                f"The head was fitted on {len(self.centre)} features and was given an array of shape {x.shape}. Hand in "
                "(scan, feature) with the same features in the same order."
            )
        linear = (x - self.centre) / self.scale @ self.coefficients.T + self.intercept
        return np.asarray(linear) if self.kind == "continuous" else probabilities(linear, self.kind)

    def call(self, x: np.ndarray) -> np.ndarray:
        """(scan,) the code that is called, or the number that is predicted."""
        return calls(self.scores(x), self.kind, threshold=self.threshold, prior=self.prior)


FitPredict = Callable[[np.ndarray, np.ndarray, np.ndarray, "object"], np.ndarray]
"""``f(train_x, train_y, test_x, target) -> scores`` of any other head: (n_test, class) probabilities, or (n_test, 1) numbers.

The most probable class is called, so that a head which weights its classes must leave the weights in its probabilities."""


def probabilities(linear: np.ndarray, kind: Kind) -> np.ndarray:
    """Class probabilities, (scan, class), of what the outputs add up to, (scan, output).

    Of ordered levels each output says whether a cut is passed; where two contradict each other, the level between has 0.
    """
    if kind == "multi-class":
        return np.asarray(softmax(linear, axis=1))
    passed = expit(linear)
    # Two classes are two levels with one cut.
    edges = np.hstack([np.ones((len(linear), 1)), passed, np.zeros((len(linear), 1))])
    share = np.maximum(-np.diff(edges, axis=1), 0.0)
    return np.asarray(share / share.sum(axis=1, keepdims=True))


def calls(scores: np.ndarray, kind: Kind, *, threshold: float, prior: np.ndarray) -> np.ndarray:
    """(scan,) codes or numbers from scores: by the threshold, or the class whose probability grew most over its prior.

    Parameters
    ----------
    scores : ndarray
        (scan, class) or (scan, 1).
    kind : str
        Of the target.
    threshold : float
        For two classes.
    prior : ndarray
        (class,) shares of the classes; a class with share 0 is never called.
    """
    if kind == "continuous":
        return np.asarray(scores[:, 0])
    if kind == "binary":
        return np.asarray(scores[:, 1] >= threshold, dtype=np.intp)
    grown = np.divide(scores, prior, out=np.zeros(scores.shape), where=prior > 0)
    return np.asarray(grown.argmax(axis=1))


def fit_linear(
    x: np.ndarray,
    target_y: np.ndarray,
    *,
    kind: Kind,
    levels: Sequence[str],
    subjects: Sequence[object] | np.ndarray,
    seed: int = 0,
    n_inner: int = 5,
) -> LinearHead:
    """Fit a linear head; penalty and threshold by cross-validation over the subjects handed in.

    Parameters
    ----------
    x : ndarray
        (scan, feature) of the training scans alone.
    target_y : ndarray
        (scan,) codes 0, 1, ... of the levels, or numbers.
    kind : {"binary", "multi-class", "ordinal", "continuous"}
        Of the target.
    levels : Sequence[str]
        Names of the codes, in order.
    subjects : Sequence
        (scan,) subject of each scan; the inner folds keep them whole.
    seed : int
        Deals subjects to inner folds.
    n_inner : int
        Inner folds, at least 2.

    Returns
    -------
    LinearHead
        Fitted on all scans handed in.

    Raises
    ------
    SettingError
        When shapes differ, a value is missing, no feature varies or one class is present only.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> y = np.repeat([0, 1], 30)
    >>> x = rng.standard_normal((60, 3)) + 2 * y[:, None]
    >>> head = fit_linear(x, y, kind="binary", levels=("CN", "AD"), subjects=np.arange(60))
    >>> bool(np.mean(head.call(x) == y) > 0.9)
    True
    """
    y = np.asarray(target_y)
    if len(y) != len(x) or len(subjects) != len(x):
        raise SettingError(
            f"{len(x)} scans have {len(y)} targets and {len(subjects)} subjects. Give one each per scan."
        )
    if kind != "continuous" and len(np.unique(y)) < 2:
        raise SettingError("The training scans hold one class only. Use fewer folds, or more scans per class.")
    return fit_linear_many(
        make_design(x), y[:, None], kind=kind, levels=levels, subjects=subjects, seed=seed, n_inner=n_inner
    )[0]


def fit_linear_many(
    design: Design,
    targets: np.ndarray,
    *,
    kind: Kind,
    levels: Sequence[str],
    subjects: Sequence[object] | np.ndarray,
    seed: int,
    n_inner: int,
) -> list[LinearHead]:
    """The head of every column of targets, such as shuffled ones; each is what :func:`fit_linear` gives of it alone.

    Parameters
    ----------
    design : Design
        Training scans.
    targets : ndarray
        (scan, column) codes or numbers.
    kind, levels, subjects, seed, n_inner
        As in :func:`fit_linear`.
    """
    ranks = subject_ranks(subjects, seed=seed)
    if kind == "continuous":
        return _ridge_heads(design, targets, inner_folds(None, *ranks, n_inner=n_inner))
    per_column = len(targets) * n_inner * len(CLASS_PENALTIES) * (1 if kind == "binary" else len(levels))
    at_once = max(1, CELLS_AT_ONCE // per_column)
    found: list[LinearHead] = []
    for start in range(0, targets.shape[1], at_once):
        some = targets[:, start : start + at_once]
        folds = np.column_stack([inner_folds(column, *ranks, n_inner=n_inner) for column in some.T])
        found += _logistic_heads(design, some, folds, kind, tuple(levels))
    return found


def _ridge_heads(design: Design, y: np.ndarray, folds: np.ndarray) -> list[LinearHead]:
    missed = np.zeros((len(NUMBER_PENALTIES), y.shape[1]))
    for fold in range(folds.max() + 1):
        train, test = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        weights, level = fit_ridge(design, y, NUMBER_PENALTIES, rows=train)
        for number in range(len(NUMBER_PENALTIES)):
            predicted = design.rotated[test] @ weights[number] + level[number]
            missed[number] += np.square(y[test] - predicted).sum(axis=0)
    weights, level = fit_ridge(design, y, NUMBER_PENALTIES)
    heads = []
    for column, best in enumerate(_least(missed.T)):
        head = LinearHead(
            kind="continuous",
            levels=(),
            centre=design.centre,
            scale=design.scale,
            coefficients=(design.axes.T @ weights[best, :, column])[None],
            intercept=level[best, column][None],
            threshold=np.nan,
            prior=np.empty(0),
            penalty=float(NUMBER_PENALTIES[best]),
            n_train=len(y),
        )
        heads.append(head)
    return heads


def _least(loss: np.ndarray) -> np.ndarray:
    """(column,) position of the smallest loss of (column, penalty), the largest penalty among equals."""
    tied = loss <= loss.min(axis=1, keepdims=True) * (1 + 1e-9)
    return np.asarray(loss.shape[1] - 1 - tied[:, ::-1].argmax(axis=1))


def _logistic_heads(
    design: Design, y: np.ndarray, folds: np.ndarray, kind: Kind, levels: tuple[str, ...]
) -> list[LinearHead]:
    n, n_columns = y.shape
    shown = encode(y, kind, len(levels))
    chosen, held_out = _choose_penalty(design, y, shown, folds, kind)
    weights, problems = _problems(y, shown, np.ones(y.shape, dtype=bool), kind)
    fitted = fit_logistic(design, problems, weights, np.repeat(CLASS_PENALTIES[chosen], weights.shape[1] // n_columns))
    fitted = fitted.reshape(len(fitted), n_columns, -1)
    shares = np.stack([(y == code).mean(axis=0) for code in range(len(levels))], axis=1)
    shift = _back_to_shares(shares, kind, n)
    heads = []
    for column in range(n_columns):
        threshold = np.nan
        if kind == "binary":
            told = expit(held_out[:, column, 0] + shift[column, 0])
            threshold = best_threshold(told, y[:, column])
        head = LinearHead(
            kind=kind,
            levels=levels,
            centre=design.centre,
            scale=design.scale,
            coefficients=fitted[:-1, column].T @ design.axes,
            intercept=fitted[-1, column] + shift[column],
            threshold=threshold,
            prior=shares[column],
            penalty=float(CLASS_PENALTIES[chosen[column]]),
            n_train=n,
        )
        heads.append(head)
    return heads


def _problems(y: np.ndarray, shown: np.ndarray, taking_part: np.ndarray, kind: Kind) -> tuple[np.ndarray, np.ndarray]:
    """Weights (scan, problem) and 0/1 (scan, problem, output) as the solver takes them: each cut is a problem of its own.

    A shuffle may leave a class without a scan. Its weights would run to infinity, so it gets a small share of every scan, and
    a cut with all scans on one side is met half way.
    """
    if kind == "multi-class":
        absent = ~((shown > 0) & taking_part[:, :, None]).any(axis=0)
        share = ABSENT * absent
        return balanced_weights(y, taking_part), shown * (1 - share.sum(axis=1, keepdims=True)) + share
    cuts = shown.reshape(len(y), -1)
    parts = np.repeat(taking_part, shown.shape[2], axis=1)
    one_sided = ((cuts * parts).sum(axis=0) == 0) | (((1 - cuts) * parts).sum(axis=0) == 0)
    return balanced_weights(cuts.astype(np.intp), parts), np.where(one_sided, 0.5, cuts)[:, :, None]


def _choose_penalty(
    design: Design, y: np.ndarray, shown: np.ndarray, folds: np.ndarray, kind: Kind
) -> tuple[np.ndarray, np.ndarray]:
    """Best penalty of each column by its balanced log loss on inner held-out scans, and what it said of these.

    Returns
    -------
    chosen : ndarray
        (column,) position of the penalty.
    held_out : ndarray
        (scan, column, output) linear part, without the shift back to the shares of the classes.
    """
    n, n_columns, n_outputs = shown.shape
    x = np.column_stack([design.rotated, np.ones(n)])
    told = np.empty((len(CLASS_PENALTIES), n, n_columns, n_outputs))
    for fold in range(int(folds.max()) + 1):
        weights, problems = _problems(y, shown, folds != fold, kind)
        many = len(CLASS_PENALTIES)
        penalty = np.repeat(CLASS_PENALTIES, weights.shape[1])
        fitted = fit_logistic(design, np.tile(problems, (1, many, 1)), np.tile(weights, (1, many)), penalty)
        linear = (x @ fitted.reshape(len(fitted), -1)).reshape(n, many, n_columns, n_outputs).swapaxes(0, 1)
        told[:, folds == fold] = linear[:, folds == fold]
    weights, _ = _problems(y, shown, np.ones(y.shape, dtype=bool), kind)
    if kind == "multi-class":
        losses = -(np.log(softmax(told, axis=3) + 1e-300) * shown).sum(axis=3)
        loss = (losses * weights).sum(axis=1)
    else:
        losses = np.logaddexp(0, told) - shown * told
        loss = (losses * weights.reshape(shown.shape)).sum(axis=(1, 3))
    chosen = _least(loss.T)
    return chosen, told[chosen, :, np.arange(n_columns)].swapaxes(0, 1)


def _back_to_shares(shares: np.ndarray, kind: Kind, n_scans: int) -> np.ndarray:
    """(column, output) what the balanced weights took from the intercepts; a class that is absent counts half a scan."""
    floor = 0.5 / n_scans
    if kind == "multi-class":
        return np.asarray(np.log(np.maximum(shares, floor)))
    passed = 1 - np.cumsum(shares, axis=1)[:, :-1]
    return np.asarray(logit(np.clip(passed, floor, 1 - floor)))
