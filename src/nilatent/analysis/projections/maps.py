"""Maps of scans: PCA, PLS, t-SNE and UMAP, each fitted on training scans and able to place any other scan.

A fitted map is a handful of arrays, so it can be stored with a finding and used on new scans years later. PCA and PLS
place a scan by a product; t-SNE and UMAP by their own placement among the training scans, which then stay where they are.

References
----------
PLS: Wold et al. 2001, doi:10.1016/S0169-7439(01)00155-1. t-SNE: van der Maaten & Hinton 2008; start and learning rate:
Kobak & Berens 2019, doi:10.1038/s41467-019-13056-x; placement: Poličar et al. 2023, doi:10.1007/s10994-021-06043-1.
UMAP: McInnes et al. 2018, arXiv:1802.03426.
"""

import warnings
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

import numpy as np
import xarray as xr

from nilatent.errors import SettingError
from nilatent.extras import require

Method = Literal["pca", "pls", "tsne", "umap"]
METHODS: tuple[Method, ...] = ("pca", "pls", "tsne", "umap")
NAMES: dict[Method, str] = {"pca": "PCA", "pls": "PLS", "tsne": "t-SNE", "umap": "UMAP"}
AXES: dict[Method, str] = {"pca": "PC", "pls": "PLS", "tsne": "t-SNE", "umap": "UMAP"}
N_AXES = 2
MAX_PERPLEXITY, MAX_UMAP_NEIGHBOURS = 30, 15
# Fewer scans have no perplexity of 5, under which t-SNE draws clusters that are not there.
MIN_FIT_SCANS = 16
PLACING_PERPLEXITY = 5
# Digits of a coordinate, in units of about the largest SD: a latent that is flipped or moved to another column changes the last
# bits of a rotation, and the many steps of t-SNE would turn these into another picture.
DIGITS = 6


class NoMapError(SettingError):
    """The scans do not allow a map; the message is the reason."""


@dataclass(frozen=True, eq=False)
class FittedMap:
    """A map as arrays.

    Parameters
    ----------
    method : {"pca", "pls", "tsne", "umap"}
        What made it.
    centre : ndarray
        (feature,) mean of the training scans.
    weights : ndarray
        (direction, feature) centred features to components (PCA, PLS), or to the rotated features that t-SNE and UMAP see.
    loadings : ndarray
        (direction, feature) what a unit of each component is worth in the features; empty for t-SNE and UMAP.
    points : ndarray
        (training scan, direction) rotated features of the training scans; empty for PCA and PLS.
    layout : ndarray
        (training scan, 2) where t-SNE or UMAP put them; empty for PCA and PLS.
    n_neighbours : int
        Perplexity of t-SNE, neighbours of UMAP, 0 for PCA and PLS.
    """

    method: Method
    centre: np.ndarray
    weights: np.ndarray
    loadings: np.ndarray
    points: np.ndarray
    layout: np.ndarray
    n_neighbours: int


def fit_pca(values: np.ndarray, direction: np.ndarray, *, n_components: int) -> FittedMap:
    """Principal components of the training scans.

    Parameters
    ----------
    values : ndarray
        (training scan, feature).
    direction : ndarray
        (training scan,) value that decides the arbitrary sign: every component correlates positively with it.
    n_components : int
        At most; a training set of lower rank has fewer.

    Returns
    -------
    FittedMap
        Components by decreasing variance.

    Raises
    ------
    NoMapError
        When all training scans are the same.
    """
    centre = values.mean(axis=0)
    components, n_kept = np.linalg.svd(values - centre, full_matrices=False)[2], _rank(values)
    if n_kept == 0:
        raise NoMapError("all training scans have the same values")
    weights = components[: min(n_components, n_kept)]
    weights = weights * _signs((values - centre) @ weights.T, direction)[:, None]
    return _linear("pca", centre, weights, weights)


def fit_pls(values: np.ndarray, target: np.ndarray, direction: np.ndarray, *, n_components: int) -> FittedMap:
    """Directions of the training scans that covary most with a target, one after the other (PLS2).

    Parameters
    ----------
    values : ndarray
        (training scan, feature).
    target : ndarray
        (training scan, column) numbers, or the 0/1 columns of groups; every column counts alike.
    direction : ndarray
        (training scan,) value that decides the arbitrary sign.
    n_components : int
        At most; there are fewer when the target is explained or the features are used up.

    Returns
    -------
    FittedMap
        Weights that make scores of centred features.

    Raises
    ------
    NoMapError
        When the target or the features do not vary, or do not covary.
    """
    centre, target = values.mean(axis=0), target - target.mean(axis=0)
    size = np.sqrt(np.square(target).mean(axis=0))
    if not (size > 1e-12).any():
        raise NoMapError("the target of PLS is the same in all training scans")
    left, target = values - centre, target[:, size > 1e-12] / size[size > 1e-12]
    least = 1e-9 * np.linalg.norm(left) * np.linalg.norm(target)
    made, loadings = [], []
    for _ in range(min(n_components, _rank(values))):
        covariance = left.T @ target
        if np.linalg.norm(covariance) <= least:
            break
        weight = np.linalg.svd(covariance, full_matrices=False)[0][:, 0]
        score = left @ weight
        loading = left.T @ score / (score @ score)
        left = left - np.outer(score, loading)
        made.append(weight)
        loadings.append(loading)
    if not made:
        raise NoMapError("no latent covaries with the target of PLS in the training scans")
    # Weights act on what earlier components left over; these act on the features themselves.
    w, p = np.array(made), np.array(loadings)
    weights = np.linalg.solve(w @ p.T, w)
    signs = _signs((values - centre) @ weights.T, direction)[:, None]
    return _linear("pls", centre, weights * signs, p * signs)


def fit_neighbours(
    method: Literal["tsne", "umap"],
    values: np.ndarray,
    direction: np.ndarray,
    *,
    seed: int,
    start: Literal["components", "random"] = "components",
) -> FittedMap:
    """A two-dimensional map that keeps neighbours, by t-SNE or UMAP.

    Parameters
    ----------
    method : {"tsne", "umap"}
        Perplexity is at most 30 and at most a third of the scans; neighbours of UMAP at most 15.
    values : ndarray
        (training scan, feature).
    direction : ndarray
        (training scan,) value that decides the sign of the first two principal components, where the map starts.
    seed : int
        Of a random start, and of the optimisation of UMAP.
    start : {"components", "random"}
        Where the layout starts: at the principal components, which keeps the arrangement at large, or anywhere.

    Returns
    -------
    FittedMap
        The layout and what is needed to place other scans in it.

    Raises
    ------
    NoMapError
        When there are fewer than 16 training scans, or all are the same.
    MissingExtraError
        When openTSNE or umap-learn is not installed.
    """
    if len(values) < MIN_FIT_SCANS:
        raise NoMapError(f"{len(values)} training scans, at least {MIN_FIT_SCANS} are needed")
    rotation = fit_pca(values, direction, n_components=min(values.shape))
    points = (values - rotation.centre) @ rotation.weights.T
    points = _steady(points, unit=_unit(points))
    begin = _start(points, seed=seed, start=start)
    fit = _fit_tsne if method == "tsne" else _fit_umap
    largest = (len(values) - 1) // 3 if method == "tsne" else len(values) - 1
    n_neighbours = min(largest, MAX_PERPLEXITY if method == "tsne" else MAX_UMAP_NEIGHBOURS)
    layout = fit(points, begin, n_neighbours=n_neighbours, seed=seed)
    # openTSNE moves a layout to this centre whenever it places scans.
    layout = layout - (layout.max(axis=0) + layout.min(axis=0)) / 2
    nothing = np.zeros((0, values.shape[1]))
    return FittedMap(method, rotation.centre, rotation.weights, nothing, points, layout, n_neighbours)


def place(fitted: FittedMap, values: np.ndarray) -> np.ndarray:
    """Where scans lie in a map that was fitted on others.

    A scan's place does not depend on which other scans are placed with it: PCA and PLS are products, openTSNE moves each new
    scan among the training scans alone, and UMAP, whose weights depend on the batch, is given one scan at a time.

    Parameters
    ----------
    fitted : FittedMap
        The map.
    values : ndarray
        (scan, feature) in the units of the training scans.

    Returns
    -------
    ndarray
        (scan, component).

    Raises
    ------
    SettingError
        When the scans have other features than the map.
    """
    if values.ndim != 2 or values.shape[1] != fitted.weights.shape[1]:
        raise SettingError(
            f"Scans of shape {values.shape} were given to a map of {fitted.weights.shape[1]} features. Give (scan, feature) "
            "values of the model that the map was made with."
        )
    scores = (values - fitted.centre) @ fitted.weights.T
    if fitted.method in ("pca", "pls"):
        return np.asarray(scores)
    if len(values) == 0:
        return np.zeros((0, N_AXES))
    scores = _steady(scores, unit=_unit(fitted.points))
    return _place_tsne(fitted, scores) if fitted.method == "tsne" else _place_umap(fitted, scores)


def explained(fitted: FittedMap, values: np.ndarray) -> np.ndarray:
    """(component,) share of the sum of squares of some scans around the training mean that each component takes away.

    NaN where there is no scan, no variance, or, for t-SNE and UMAP, no such share.
    """
    n_components = len(fitted.loadings) if len(fitted.loadings) else N_AXES
    left = values - fitted.centre
    total = float(np.square(left).sum())
    if not len(fitted.loadings) or total <= 0:
        return np.full(n_components, np.nan)
    shares = []
    for score, loading in zip((left @ fitted.weights.T).T, fitted.loadings, strict=True):
        before = float(np.square(left).sum())
        left = left - np.outer(score, loading)
        shares.append((before - float(np.square(left).sum())) / total)
    return np.array(shares)


def to_arrays(fitted: FittedMap) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    """A map as variables of a data set, under names that start with ``map_<method>_``; the features are its ``latent``."""
    scan, direction, name = f"{fitted.method}_scan", f"{fitted.method}_direction", f"map_{fitted.method}"
    arrays: dict[str, tuple[tuple[str, ...], np.ndarray]] = {
        f"{name}_centre": (("latent",), fitted.centre),
        f"{name}_weights": ((direction, "latent"), fitted.weights),
        f"{name}_n_neighbours": ((), np.asarray(fitted.n_neighbours)),
    }
    if len(fitted.loadings):
        arrays[f"{name}_loadings"] = ((direction, "latent"), fitted.loadings)
    if len(fitted.points):
        arrays[f"{name}_points"] = ((scan, direction), fitted.points)
        arrays[f"{name}_layout"] = ((scan, "axis"), fitted.layout)
    return arrays


def from_arrays(data: xr.Dataset, method: Method) -> FittedMap | None:
    """The map that :func:`to_arrays` stored, or None where this method was not run."""
    if f"map_{method}_weights" not in data:
        return None
    names = ("centre", "weights", "loadings", "points", "layout")
    found = {name: data[f"map_{method}_{name}"].values for name in names if f"map_{method}_{name}" in data}
    nothing = np.zeros((0, found["weights"].shape[1]))
    return FittedMap(
        method,
        found["centre"],
        found["weights"],
        found.get("loadings", nothing),
        found.get("points", np.zeros((0, len(found["weights"])))),
        found.get("layout", np.zeros((0, N_AXES))),
        int(data[f"map_{method}_n_neighbours"]),
    )


def _linear(method: Method, centre: np.ndarray, weights: np.ndarray, loadings: np.ndarray) -> FittedMap:
    return FittedMap(method, centre, weights, loadings, np.zeros((0, len(weights))), np.zeros((0, N_AXES)), 0)


def _rank(values: np.ndarray) -> int:
    """Directions in which scans differ; what single precision leaves of equal numbers is none."""
    singular = np.linalg.svd(values - values.mean(axis=0), compute_uv=False)
    least = max(1e-6 * singular[0], 1e-7 * np.linalg.norm(values))
    return int((singular > least).sum())


def _signs(scores: np.ndarray, direction: np.ndarray) -> np.ndarray:
    sign = np.sign((direction - direction.mean()) @ scores)
    return np.where(sign == 0, 1.0, sign)


def _unit(points: np.ndarray) -> float:
    """Largest SD, as a power of ten: what rounding does to the points must not move the grid that they are rounded to."""
    return float(10.0 ** np.round(np.log10(points.std(axis=0).max())))


def _steady(points: np.ndarray, *, unit: float) -> np.ndarray:
    return np.asarray(np.round(points / unit, DIGITS) * unit)


def _start(points: np.ndarray, *, seed: int, start: Literal["components", "random"]) -> np.ndarray:
    """(scan, 2) layout of unit SD; a little noise parts equal scans and opens a second axis where there is but one."""
    drawn = np.random.default_rng(seed).normal(size=(len(points), N_AXES))
    if start == "random":
        return np.asarray(drawn)
    layout = np.zeros((len(points), N_AXES))
    layout[:, : min(N_AXES, points.shape[1])] = points[:, :N_AXES]
    return np.asarray(layout / layout[:, 0].std() + 1e-3 * drawn)


def _fit_tsne(points: np.ndarray, begin: np.ndarray, *, n_neighbours: int, seed: int) -> np.ndarray:
    fitted = require("openTSNE", extra="embed").TSNE(
        perplexity=n_neighbours,
        initialization=1e-4 * begin,
        neighbors="exact",
        negative_gradient_method="bh",
        n_jobs=1,
        random_state=seed,
    )
    return np.array(fitted.fit(points), dtype=np.float64)


def _place_tsne(fitted: FittedMap, scores: np.ndarray) -> np.ndarray:
    engine = require("openTSNE", extra="embed")
    affinities = engine.affinity.PerplexityBasedNN(
        fitted.points, perplexity=PLACING_PERPLEXITY, method="exact", n_jobs=1
    )
    layout = engine.TSNEEmbedding(fitted.layout, affinities, negative_gradient_method="bh", n_jobs=1)
    return np.array(layout.transform(scores, perplexity=PLACING_PERPLEXITY), dtype=np.float64)


def _umap() -> ModuleType:
    with warnings.catch_warnings():
        # umap says on import that TensorFlow, which is not used here, is absent.
        warnings.simplefilter("ignore", ImportWarning)
        return require("umap", extra="embed")


def _umap_model(begin: np.ndarray, *, n_neighbours: int, seed: int, n_epochs: int | None) -> Any:
    return _umap().UMAP(n_neighbors=n_neighbours, init=begin, n_epochs=n_epochs, random_state=seed, n_jobs=1)


def _fit_umap(points: np.ndarray, begin: np.ndarray, *, n_neighbours: int, seed: int) -> np.ndarray:
    model = _umap_model(begin.astype(np.float32), n_neighbours=n_neighbours, seed=seed, n_epochs=None)
    return np.array(model.fit(points.astype(np.float32)).embedding_, dtype=np.float64)


def _place_umap(fitted: FittedMap, scores: np.ndarray) -> np.ndarray:
    layout = fitted.layout.astype(np.float32)
    # The neighbourhood of the training scans is found anew, and their stored layout is put back in its place.
    model = _umap_model(layout.copy(), n_neighbours=fitted.n_neighbours, seed=0, n_epochs=0)
    model.fit(fitted.points.astype(np.float32))
    model.embedding_, model.n_epochs = layout, None
    engine = require("numba", extra="embed")
    n_threads = engine.get_num_threads()
    # One scan is too little work to share: on a busy machine its threads wait for one another a hundred times longer.
    engine.set_num_threads(1)
    try:
        placed = [model.transform(row[None].astype(np.float32))[0] for row in scores]
    finally:
        engine.set_num_threads(n_threads)
    return np.array(placed, dtype=np.float64)
