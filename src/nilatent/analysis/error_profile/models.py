"""Regions beyond a null model, as predictors of the reconstruction error: folds, ridge and boosted trees.

Both models work on what the null model (total grey matter, age, sex, head size, site, level of each cross-fitted model)
leaves of the log error and of the regions. Everything is fitted on the training scans of a fold: null model, scale,
penalty or number of trees, weights.

References
----------
Friedman 2002 (stochastic gradient boosting), doi:10.1016/S0167-9473(01)00065-2.
"""

from dataclasses import dataclass

import numpy as np
from sklearn.ensemble import GradientBoostingRegressor

from nilatent.analysis import stats

# Ridge penalties per training scan: from nearly least squares to nearly no regions at all.
PENALTIES = tuple(10.0**power for power in np.arange(-2, 3.1, 0.5))
MAX_TREES, N_INNER = 30, 3


@dataclass(frozen=True, eq=False)
class Problem:
    """One row per subject.

    Parameters
    ----------
    log_error : ndarray
        (scan,) logarithm of the out-of-sample reconstruction error.
    regions : ndarray
        (scan, region) mean grey matter.
    null : ndarray
        (scan, column) the null model, without intercept; it holds the levels of the cross-fitted models.
    levels : ndarray
        (scan,) number of the cross-fitted model that made the error.
    blocks : ndarray
        (scan,) exchangeability block: cross-fitted model, and site where there is one.
    """

    log_error: np.ndarray
    regions: np.ndarray
    null: np.ndarray
    levels: np.ndarray
    blocks: np.ndarray


@dataclass(frozen=True, eq=False)
class Part:
    """One fold of the cross-validation, with all that does not depend on the error.

    Parameters
    ----------
    train, test : ndarray
        Rows of the problem.
    x_train, x_test : ndarray
        (row, region) regions without what the null model tells of them, in units of the training SD.
    basis : ndarray
        (train, rank) orthonormal columns of the null model over the training rows.
    null : ndarray
        (test, train) weights that take training values to the null model's prediction of the test rows.
    level : ndarray
        (test, train) weights that take training values to the training mean of the test row's cross-fitted model.
    left, singular, right : ndarray
        Singular value decomposition of `x_train`.
    """

    train: np.ndarray
    test: np.ndarray
    x_train: np.ndarray
    x_test: np.ndarray
    basis: np.ndarray
    null: np.ndarray
    level: np.ndarray
    left: np.ndarray
    singular: np.ndarray
    right: np.ndarray


def dealt_folds(blocks: np.ndarray, n_folds: int, *, seed: int) -> np.ndarray:
    """(scan,) fold of each scan, each block dealt out evenly and at random.

    So that every cross-fitted model and site of a held-out scan is among the training scans. Neither error nor group
    plays a part.
    """
    rng = np.random.default_rng(seed)
    order = np.lexsort((rng.random(len(blocks)), blocks))
    folds = np.empty(len(blocks), dtype=np.int64)
    folds[order] = np.arange(len(blocks)) % n_folds
    return folds


def parts_of(problem: Problem, folds: np.ndarray) -> list[Part]:
    """The folds of one partition, with null model, scales and decomposition of the regions from their training rows."""
    n_scans = len(folds)
    design = stats.confound_basis(problem.null, n_scans)
    is_level = (problem.levels[:, None] == np.unique(problem.levels)).astype(np.float64)
    made = []
    for fold in np.unique(folds):
        train, test = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        left, singular, right = np.linalg.svd(design[train], full_matrices=False)
        kept = singular > 1e-8
        null = design[test] @ (right[kept].T / singular[kept]) @ left[:, kept].T
        x_train = problem.regions[train] - left[:, kept] @ (left[:, kept].T @ problem.regions[train])
        x_test = problem.regions[test] - null @ problem.regions[train]
        size = np.sqrt(np.square(x_train).mean(axis=0))
        # A region that the null model explains without remainder says nothing of its own.
        scale = np.where(size > 1e-9 * np.abs(problem.regions).max(axis=0), size, np.inf)
        x_train, x_test = x_train / scale, x_test / scale
        known = is_level[:, is_level[train].any(axis=0)]
        level = known[test] @ (known[train] / known[train].sum(axis=0)).T
        # A model none of whose scans are among the training rows has no mean of its own.
        level[~known[test].any(axis=1)] = 1 / len(train)
        u, s, v = np.linalg.svd(x_train, full_matrices=False)
        held = s > 1e-8 * max(s[0], 1e-30)
        made.append(Part(train, test, x_train, x_test, left[:, kept], null, level, u[:, held], s[held], v[held]))
    return made


def left_over(part: Part, values: np.ndarray) -> np.ndarray:
    """(train, column) training values without what the null model, fitted on them, tells."""
    return np.asarray(values[part.train] - part.basis @ (part.basis.T @ values[part.train]))


def ridge_weights(part: Part, residuals: np.ndarray) -> np.ndarray:
    """(region, column) weights of a ridge whose penalty is chosen by exact leave-one-scan-out inside the training rows.

    Leaving one scan out refits the null model too: both are one linear smoother, with one diagonal.

    Parameters
    ----------
    part : Part
        The fold.
    residuals : ndarray
        (train, column) from :func:`left_over`.
    """
    moments = part.left.T @ residuals
    own = np.square(part.basis).sum(axis=1)
    squares = np.empty((len(PENALTIES), residuals.shape[1]))
    shrunk = []
    for i, penalty in enumerate(PENALTIES):
        kept = part.singular**2 / (part.singular**2 + penalty * len(part.train))
        leverage = own + np.square(part.left) @ kept
        missed = residuals - part.left @ (kept[:, None] * moments)
        squares[i] = np.square(missed / np.maximum(1 - leverage, 1e-6)[:, None]).sum(axis=0)
        shrunk.append(kept / part.singular)
    return np.asarray(part.right.T @ (np.array(shrunk)[squares.argmin(axis=0)].T * moments))


def _trees(n_trees: int, *, seed: int) -> GradientBoostingRegressor:
    return GradientBoostingRegressor(
        n_estimators=n_trees,
        max_depth=2,
        learning_rate=0.1,
        subsample=0.7,
        max_features=0.4,
        min_samples_leaf=5,
        random_state=seed,
    )


def grown_trees(part: Part, residuals: np.ndarray, *, seed: int) -> GradientBoostingRegressor:
    """Boosted trees on the training rows, as many as predict best in an inner cross-validation over the same rows.

    Parameters
    ----------
    part : Part
        The fold.
    residuals : ndarray
        (train,) from :func:`left_over`.
    seed : int
        Of inner folds and trees.
    """
    folds = np.random.default_rng(seed).permutation(np.arange(len(residuals)) % N_INNER)
    squares = np.zeros(MAX_TREES)
    for fold in range(N_INNER):
        held = folds == fold
        model = _trees(MAX_TREES, seed=seed).fit(part.x_train[~held], residuals[~held])
        squares += [np.square(residuals[held] - told).sum() for told in model.staged_predict(part.x_train[held])]
    return _trees(int(squares.argmin()) + 1, seed=seed).fit(part.x_train, residuals)
