"""Simple regressions of one kind of measurement on others, whose settings are chosen inside their own training scans.

Volumes come as coordinates in which scans are as far apart as their voxels: ridge regression and partial least squares on
them are, to the last digit, those on all voxels.

References
----------
Hoerl & Kennard 1970 (ridge), doi:10.1080/00401706.1970.10488634. Wold et al. 2001 (partial least squares),
doi:10.1016/S0169-7439(01)00155-1.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import softmax
from sklearn.cross_decomposition import PLSRegression
from sklearn.exceptions import ConvergenceWarning

from nilatent.analysis.prediction.inner import inner_folds, subject_ranks
from nilatent.analysis.prediction.solver import Design, fit_logistic

Array = npt.NDArray[np.float64]
Rows = npt.NDArray[np.bool_]
RIDGE, PLS, LOGISTIC = "ridge", "PLS", "logistic"
# In units of the mean squared distance of the training scans from their mean; the last is as good as that mean.
PENALTIES = tuple(float(one) for one in np.logspace(-4, 4, 17))
LOGISTIC_PENALTIES = tuple(float(one) for one in np.logspace(-3, 1, 7))
# Tables have few columns and volumes many voxels: how much a table counts beside a volume is a setting, too.
TABLE_WEIGHTS = (0.1, 0.3, 1.0)
MOST_AXES = 8
N_INNER = 5
MAX_STEPS = 2000
# Probabilities below it are no longer told apart by the log loss.
SMALLEST_P = 1e-6

# From features and truth of training scans and features of new ones: what each setting says of the latter.
Path = Callable[[Array, Array, Array], dict[float, Array]]
Error = Callable[[Array, Array], Array]


@dataclass(frozen=True, eq=False)
class Spoken:
    """What one simple regression says of new scans.

    Parameters
    ----------
    drawn : ndarray
        (scan, value), or (scan, level) probabilities.
    inner_error : float
        Of the setting that was chosen, over left-out training subjects.
    """

    drawn: Array
    inner_error: float


def features(kinds: Mapping[str, Array | pd.DataFrame], sources: Sequence[str], known: Rows) -> tuple[Array, Array]:
    """Predictors of all scans: of volumes and of tables, each of the two with a mean square of about one per kind.

    Parameters
    ----------
    kinds : Mapping[str, ndarray or DataFrame]
        Coordinates (scan, value) of volumes or tables with a row per scan, of all scans in one order; a missing scan or
        cell is NaN.
    sources : Sequence[str]
        Which of them.
    known : ndarray
        (scan,) training scans, by which they are centred, scaled and coded. What is missing is at their mean.

    Returns
    -------
    tuple of ndarray
        (scan, value) of the volumes, and of the tables.
    """
    volumes: list[Array] = []
    tables: list[Array] = []
    for name in sources:
        one = kinds[name]
        numbers = coded(one, known) if isinstance(one, pd.DataFrame) else one - _mean(one[known])
        filled = np.where(np.isfinite(numbers), numbers, 0.0)
        present = np.isfinite(numbers[known]).any(axis=1)
        size = np.sqrt(np.square(filled[known][present]).sum(axis=1).mean()) if present.any() else 0.0
        (tables if isinstance(one, pd.DataFrame) else volumes).append(filled / (size if size > 0 else 1.0))
    nothing = np.zeros((len(known), 0))
    return np.concatenate([nothing, *volumes], axis=1), np.concatenate([nothing, *tables], axis=1)


def coded(table: pd.DataFrame, known: Rows) -> Array:
    """Columns in SD about the mean of the training scans, categories as an indicator per level of these; NaN where missing."""
    made = []
    for name in table:
        column = table[name]
        if pd.api.types.is_numeric_dtype(column):
            made.append(column.to_numpy(np.float64, na_value=np.nan)[:, None])
            continue
        levels = sorted(column[known].dropna().astype(str).unique())[1:]
        indicator = (column.astype(str).to_numpy()[:, None] == np.array(levels, dtype=str)).astype(np.float64)
        indicator[column.isna().to_numpy()] = np.nan
        made.append(indicator)
    values = np.concatenate([np.zeros((len(table), 0)), *made], axis=1)
    centred = values - _mean(values[known])
    sd = np.sqrt(_mean(np.square(centred[known])))
    return np.asarray(centred / np.where(sd > 0, sd, 1.0))


def _mean(values: Array) -> Array:
    """Of what there is of each column; 0 where there is nothing."""
    there = np.isfinite(values)
    return np.asarray(np.where(there, values, 0.0).sum(axis=0) / np.maximum(there.sum(axis=0), 1))


def chosen(
    way: str,
    x: tuple[Array, Array],
    y: Array,
    known: Rows,
    new: Rows,
    subjects: npt.NDArray[np.str_],
    *,
    seed: int,
) -> Spoken:
    """What one simple regression says of new scans, its settings chosen inside.

    Parameters
    ----------
    way : str
        :data:`RIDGE` or :data:`PLS` of numbers, or :data:`LOGISTIC` of a category.
    x : tuple of ndarray
        From :func:`features`.
    y : ndarray
        (scan, value); finite where `known`. Of a category (scan, level) indicators of the level.
    known, new : ndarray
        (scan,) scans that are learned from, and those that are told.
    subjects : ndarray
        (scan,) whose scan it is: penalty or number of axes and weight of tables are those of the smallest squared error, or
        log loss, over left-out subjects among `known`.
    seed : int
        Of the inner folds.
    """
    path, error = PATHS[way]
    codes, ranks = subject_ranks(subjects[known], seed=seed)
    folds = inner_folds(None, codes, ranks, n_inner=N_INNER)
    missed: dict[tuple[float, float], float] = {}
    for weight, values in _weighted(x):
        inside = values[known]
        for fold in np.unique(folds):
            out = folds == fold
            for setting, drawn in path(inside[~out], y[known][~out], inside[out]).items():
                summed = float(error(y[known][out], drawn).sum())
                missed[weight, setting] = missed.get((weight, setting), 0.0) + summed
    weight, setting = min(missed, key=lambda one: missed[one])
    values = dict(_weighted(x))[weight]
    return Spoken(path(values[known], y[known], values[new])[setting], missed[weight, setting] / int(known.sum()))


def _weighted(x: tuple[Array, Array]) -> Iterator[tuple[float, Array]]:
    volumes, tables = x
    both = volumes.shape[1] > 0 and tables.shape[1] > 0
    for weight in TABLE_WEIGHTS if both else (1.0,):
        yield weight, np.concatenate([volumes, weight * tables], axis=1)


def ridge_path(x: Array, y: Array, new: Array) -> dict[float, Array]:
    """What ridge regression with each penalty says of new scans, by the products of scans rather than of values."""
    centre, mean = x.mean(axis=0), y.mean(axis=0)
    inside = x - centre
    size, axes = np.linalg.eigh(inside @ inside.T)
    told, seen = axes.T @ (y - mean), (new - centre) @ inside.T @ axes
    size = np.maximum(size, 0.0)
    return {one: mean + (seen / (size + one * len(x))) @ told for one in PENALTIES}


def pls_path(x: Array, y: Array, new: Array) -> dict[float, Array]:
    """What partial least squares with 1, 2, 4 and 8 axes says of new scans; as many as there are where they are fewer."""
    centre, mean = x.mean(axis=0), y.mean(axis=0)
    u, s, vt = np.linalg.svd(x - centre, full_matrices=False)
    settings = [2**power for power in range(MOST_AXES.bit_length())]
    rank = int((s > 1e-8 * s[0]).sum())
    if not rank or not np.ptp(y, axis=0).any():
        return dict.fromkeys(map(float, settings), np.repeat(mean[None], len(new), axis=0))
    model = PLSRegression(min(MOST_AXES, rank), scale=False, max_iter=MAX_STEPS)
    with warnings.catch_warnings():
        # Of two axes that tell as much either will do, and where nothing is left to tell there are no more axes.
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.filterwarnings("ignore", message="y residual is constant")
        model.fit(u[:, :rank] * s[:rank], y - mean)
    scores = (new - centre) @ vt[:rank].T @ model.x_rotations_
    # Axes are found one after the other, so the first of many are those of a fit with few.
    return {float(one): mean + scores[:, :one] @ model.y_loadings_[:, :one].T for one in settings}


def logistic_path(x: Array, y: Array, new: Array) -> dict[float, Array]:
    """Probabilities of each level for new scans with each penalty; `y` (scan, level) indicators."""
    centre, seen = x.mean(axis=0), np.flatnonzero(y.any(axis=0))
    u, s, vt = np.linalg.svd(x - centre, full_matrices=False)
    rank = int((s > 1e-8 * s[0]).sum()) if s.size else 0
    told = {one: np.repeat(y.mean(axis=0)[None], len(new), axis=0) for one in LOGISTIC_PENALTIES}
    if len(seen) < 2 or not rank:
        return told
    inside, axes = u[:, :rank] * s[:rank], vt[:rank]
    design = Design(centre, np.ones(x.shape[1]), inside, axes, np.square(s[:rank]) / len(x))
    n_fits = len(LOGISTIC_PENALTIES)
    truth, weights = np.repeat(y[:, None, seen], n_fits, axis=1), np.full((len(x), n_fits), 1.0 / len(x))
    fitted = fit_logistic(design, truth, weights, np.array(LOGISTIC_PENALTIES))
    linear = np.einsum("sa,apl->psl", np.column_stack([design.rotate(new), np.ones(len(new))]), fitted)
    for chances, one in zip(told.values(), softmax(linear, axis=2), strict=True):
        chances[:, seen] = one
    return told


def log_loss(y: Array, chances: Array) -> Array:
    """(scan,) nats: minus the logarithm of the probability of the level it has."""
    return np.asarray(-np.log(np.maximum((y * chances).sum(axis=1), SMALLEST_P)))


def squared(y: Array, drawn: Array) -> Array:
    """(scan,) squared error, summed over values."""
    return np.asarray(np.square(y - drawn).sum(axis=1))


PATHS: dict[str, tuple[Path, Error]] = {
    RIDGE: (ridge_path, squared),
    PLS: (pls_path, squared),
    LOGISTIC: (logistic_path, log_loss),
}


def components(y: Array, known: Rows, new: Rows, *, n_components: int) -> Array:
    """New scans as principal components of the training scans draw them: (scan, value)."""
    mean = y[known].mean(axis=0)
    axes = np.linalg.svd(y[known] - mean, full_matrices=False)[2][:n_components]
    return np.asarray(mean + (y[new] - mean) @ axes.T @ axes)
