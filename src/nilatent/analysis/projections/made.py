"""Every map of every space: fitted on training scans, shown on all, and fitted again to see whether it repeats."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from nilatent.analysis.contrast import level_words
from nilatent.analysis.projections import judged as judged
from nilatent.analysis.projections.maps import (
    N_AXES,
    FittedMap,
    Method,
    NoMapError,
    explained,
    fit_neighbours,
    fit_pca,
    fit_pls,
    place,
)
from nilatent.errors import MissingExtraError
from nilatent.progress import track

LATENTS, REGIONS, VOXELS = "latents", "regional means", "voxel PCA"
"""Names of the spaces, as a reader sees them."""
MIN_PER_LEVEL, MIN_TOLD = 3, 10
# t-SNE and UMAP take seconds for so many scans, and minutes for ten times as many.
MAX_FIT_SCANS = 2000
KEPT_SHARE = 0.8
MIN_REPEATED = 10


@dataclass(frozen=True, eq=False)
class Part:
    """Who a map is fitted on, and who not.

    Parameters
    ----------
    train : ndarray
        Positions of the training scans.
    outside : ndarray
        Positions of all others: no map and no PLS has seen them.
    test : ndarray
        Positions of those among them that the model was not chosen by either.
    first : ndarray
        Positions of the first session of each subject, on which alone p-values rest.
    subject : ndarray
        (scan,) subject of every scan.
    direction : ndarray
        (scan,) mean over regions, which decides the arbitrary signs of components.
    """

    train: np.ndarray
    outside: np.ndarray
    test: np.ndarray
    first: np.ndarray
    subject: np.ndarray
    direction: np.ndarray


@dataclass(frozen=True, eq=False)
class ShownMap:
    """A map with every scan in it.

    Parameters
    ----------
    space : str
        What it is a map of, such as ``"latents"``.
    fitted : FittedMap
        The map as arrays.
    scores : ndarray
        (scan, component); NaN where PLS was told the target of the scan.
    explained, explained_heldout : ndarray
        (component,) share of the variance of training and of test scans; NaN for t-SNE and UMAP.
    procrustes, overlap, overlap_chance : float
        Mean over refits: Procrustes distance, share of common neighbours, and that share by chance. NaN where too few scans
        allow no refit.
    """

    space: str
    fitted: FittedMap
    scores: np.ndarray
    explained: np.ndarray
    explained_heldout: np.ndarray
    procrustes: float
    overlap: float
    overlap_chance: float

    @property
    def method(self) -> Method:
        """What made the map."""
        return self.fitted.method


def make_maps(
    spaces: Mapping[str, np.ndarray],
    part: Part,
    target: np.ndarray | str,
    *,
    methods: Sequence[Method],
    n_components: int,
    n_refits: int,
    seed: int,
) -> tuple[list[ShownMap], dict[tuple[str, Method], str]]:
    """Maps of all spaces by all methods.

    Parameters
    ----------
    spaces : Mapping[str, ndarray]
        Name to (scan, feature) values.
    part : Part
        Training scans and others.
    target : ndarray or str
        (scan, column) what PLS is told, NaN where it is not known; or the reason why there is none.
    methods : Sequence[str]
        Which of the four.
    n_components : int
        Of PCA; the others have two.
    n_refits : int
        Fits on other four fifths of the training subjects each, t-SNE and UMAP from a random start each.
    seed : int
        Of draws and layouts.

    Returns
    -------
    maps : list[ShownMap]
        In the order of spaces and methods.
    not_made : dict
        Space and method to the reason why there is no map.
    """
    jobs = [(space, method) for space in spaces for method in methods]
    maps: list[ShownMap] = []
    not_made: dict[tuple[str, Method], str] = {}
    for space, method in track(jobs, total=len(jobs), label="projections"):
        try:
            rows, told = _fit_rows(method, part.train, target, seed=seed)
            fitted = _fit(method, spaces[space][rows], told, part.direction[rows], n_components=n_components, seed=seed)
            maps.append(_shown(space, fitted, spaces[space], rows, told, part, n_refits=n_refits, seed=seed))
        except (NoMapError, MissingExtraError) as error:
            not_made[space, method] = str(error)
    return maps, not_made


def target_columns(values: pd.Series, train: np.ndarray, *, are_levels: bool) -> np.ndarray | str:
    """What PLS is told of each scan, or why it cannot be told.

    Parameters
    ----------
    values : Series
        (scan,) column of the cohort.
    train : ndarray
        Positions of the training scans.
    are_levels : bool
        Whether the values are names of groups rather than amounts.

    Returns
    -------
    ndarray or str
        (scan, 1) numbers, or one 0/1 column per group that has three training scans; rows of NaN where not known.
    """
    if not are_levels:
        numbers = values.to_numpy(dtype=np.float64)[:, None]
        n_known = int(np.isfinite(numbers[train]).sum())
        return numbers if n_known >= MIN_TOLD else f"{n_known} training scans with a value, {MIN_TOLD} are needed"
    words = level_words(values)
    sizes = words.iloc[train].value_counts()
    kept = sorted(sizes.index[sizes >= MIN_PER_LEVEL])
    if len(kept) < 2 or sizes[kept].sum() < MIN_TOLD:
        held = ", ".join(f"{count} {name}" for name, count in sorted(sizes.items())) or "none with a value"
        return f"training scans: {held}; two groups of {MIN_PER_LEVEL} are needed, and {MIN_TOLD} scans in all"
    columns: np.ndarray = (words.to_numpy()[:, None] == np.array(kept, dtype=object)[None]).astype(np.float64)
    columns[columns.sum(axis=1) == 0] = np.nan
    return columns


def _fit_rows(
    method: Method, train: np.ndarray, target: np.ndarray | str, *, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the scans that a method is fitted on, and what PLS is told of them."""
    if method == "pls":
        if isinstance(target, str):
            raise NoMapError(target)
        rows = train[np.isfinite(target[train]).all(axis=1)]
        return rows, target[rows]
    if method in ("tsne", "umap") and len(train) > MAX_FIT_SCANS:
        train = np.sort(np.random.default_rng(seed).choice(train, MAX_FIT_SCANS, replace=False))
    return train, np.empty((len(train), 0))


def _fit(
    method: Method,
    values: np.ndarray,
    told: np.ndarray,
    direction: np.ndarray,
    *,
    n_components: int,
    seed: int,
    start: Literal["components", "random"] = "components",
) -> FittedMap:
    if method == "pca":
        return fit_pca(values, direction, n_components=n_components)
    if method == "pls":
        return fit_pls(values, told, direction, n_components=N_AXES)
    return fit_neighbours(method, values, direction, seed=seed, start=start)


def _shown(
    space: str,
    fitted: FittedMap,
    values: np.ndarray,
    rows: np.ndarray,
    told: np.ndarray,
    part: Part,
    *,
    n_refits: int,
    seed: int,
) -> ShownMap:
    scores = _placed(fitted, values, rows)
    procrustes, overlap, chance = _stability(
        scores, fitted.method, values, rows, told, part, n_refits=n_refits, seed=seed
    )
    if fitted.method == "pls":
        # What the target did to a training scan must not be read as what the map says of it.
        scores[part.train] = np.nan
    return ShownMap(
        space,
        fitted,
        scores,
        explained=explained(fitted, values[rows]),
        explained_heldout=explained(fitted, values[part.test]),
        procrustes=procrustes,
        overlap=overlap,
        overlap_chance=chance,
    )


def _stability(
    scores: np.ndarray,
    method: Method,
    values: np.ndarray,
    rows: np.ndarray,
    told: np.ndarray,
    part: Part,
    *,
    n_refits: int,
    seed: int,
) -> tuple[float, float, float]:
    """Mean over refits of Procrustes distance, shared neighbours, and these by chance; NaN where there is no refit."""
    repeats = []
    for refit in range(1, n_refits + 1):
        kept = np.flatnonzero(_drawn(part.subject[rows], seed=seed + refit))
        again = rows[kept]
        # PLS was told the labels of training scans: how it arranges these repeats, because they repeat.
        compared = part.outside if method == "pls" else again
        if len(compared) < MIN_REPEATED:
            continue
        try:
            other = _fit(
                method,
                values[again],
                told[kept],
                part.direction[again],
                n_components=N_AXES,
                seed=seed + refit,
                start="random",
            )
        except NoMapError:
            continue
        places = other.layout if len(other.layout) else place(other, values[compared])
        repeats.append(_repeated(scores[compared, :N_AXES], places))
    if not repeats:
        return float("nan"), float("nan"), float("nan")
    procrustes, overlap, chance = np.mean(repeats, axis=0)
    return float(procrustes), float(overlap), float(chance)


def _placed(fitted: FittedMap, values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """(scan, component) places of all scans: those that made a layout stay where it put them."""
    if not len(fitted.layout):
        return place(fitted, values)
    others = np.setdiff1d(np.arange(len(values)), rows)
    scores = np.empty((len(values), N_AXES))
    scores[rows], scores[others] = fitted.layout, place(fitted, values[others])
    return scores


def _drawn(subject: np.ndarray, *, seed: int) -> np.ndarray:
    """(scan,) bool: the scan is of one of the four fifths of the subjects that are drawn."""
    names, codes = np.unique(subject, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(names))
    return np.asarray(order[codes] < np.ceil(KEPT_SHARE * len(names)))


def _repeated(one: np.ndarray, other: np.ndarray) -> tuple[float, float, float]:
    distance = judged.procrustes(one, other)
    # Neighbours of all scans would take memory and time by the square of their number.
    if len(one) > MAX_FIT_SCANS:
        some = np.linspace(0, len(one) - 1, MAX_FIT_SCANS).round().astype(int)
        one, other = one[some], other[some]
    k = judged.n_neighbours(len(one))
    overlap = judged.shared_neighbours(judged.distances(one), judged.distances(other), k=k)
    return distance, overlap, k / (len(one) - 1)
