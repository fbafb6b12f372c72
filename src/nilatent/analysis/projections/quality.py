"""Quality of every map of every space, side by side: the numbers that say whether a picture may be believed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

from nilatent.analysis import stats
from nilatent.analysis.contrast import level_words
from nilatent.analysis.projections import judged as judged
from nilatent.analysis.projections.made import MIN_PER_LEVEL, Part, ShownMap
from nilatent.analysis.projections.maps import N_AXES, NAMES
from nilatent.progress import track

MIN_JUDGED = 10
MAX_JUDGED_SCANS = 1000
FEW_NUMBERS = 5
FULL = "all dimensions"
"""Stands for the method in a row that is no map but the space itself."""
JUDGED = ("all", "outside training")
OUTSIDE = JUDGED.index("outside training")
FAITHFUL = ("trustworthiness", "continuity")
REPEATED = ("procrustes", "overlap", "overlap_chance")
SORTED = tuple(f"{name}{end}" for name in ("purity", "silhouette") for end in ("", "_chance", "_p", "_fwe"))


@dataclass(frozen=True)
class Shuffling:
    """How p-values are made.

    Parameters
    ----------
    group, site : str
        Columns whose numbers are codes; all but the site itself is shuffled within sites. Empty for none.
    n_permutations : int
        Shuffles of every p-value.
    seed : int
        Of the shuffles.
    """

    group: str
    site: str
    n_permutations: int
    seed: int


@dataclass(frozen=True, eq=False)
class Known:
    """What is known of every scan under one name.

    Parameters
    ----------
    name : str
        Column of the cohort.
    are_levels : bool
        Names of groups rather than amounts.
    values : ndarray
        (scan,) float64 amounts, or codes of levels; NaN where not known.
    blocks : ndarray or None
        (scan,) site, within which it is shuffled; None for the site itself and without one.
    """

    name: str
    are_levels: bool
    values: np.ndarray
    blocks: np.ndarray | None


def are_levels(values: pd.Series, *, named: bool) -> bool:
    """Whether a column holds levels: words, what is named as group or site, or five different numbers at most."""
    is_number = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
    return named or not is_number or values.nunique() <= FEW_NUMBERS


def known(scans: pd.DataFrame, name: str, shuffling: Shuffling) -> Known:
    """One column of the cohort, ready to be shuffled."""
    site, levels = shuffling.site, are_levels(scans[name], named=name in (shuffling.group, shuffling.site))
    if levels:
        codes = pd.factorize(level_words(scans[name]), sort=True)[0].astype(np.float64)
        values = np.where(codes < 0, np.nan, codes)
    else:
        values = scans[name].to_numpy(dtype=np.float64)
    blocks = level_words(scans[site]).astype(str).to_numpy() if site and site != name else None
    return Known(name, levels, values, blocks)


def quality(
    maps: Sequence[ShownMap],
    spaces: Mapping[str, np.ndarray],
    variables: Sequence[Known],
    part: Part,
    shuffling: Shuffling,
) -> xr.Dataset:
    """How well each map keeps neighbours, repeats, and sorts the scans by what is known of them.

    Maps are judged in their first two dimensions, on the first session of each subject: on all of these, and on those outside
    the training part alone, where PLS belongs too.

    Parameters
    ----------
    maps : Sequence[ShownMap]
        Maps of all spaces.
    spaces : Mapping[str, ndarray]
        Name to (scan, feature) values: the truth that the maps of this space are held against, and a row of their own.
    variables : Sequence[Known]
        What is known of the scans.
    part : Part
        First sessions, and scans outside the training part.
    shuffling : Shuffling
        How p-values are made; its seed also draws 1,000 scans where there are more.

    Returns
    -------
    Dataset
        ``trustworthiness``, ``continuity`` (map, judged); ``purity``, ``silhouette`` and of each ``_chance``, ``_p``, ``_fwe``
        (map, judged, variable); ``procrustes``, ``overlap``, ``overlap_chance`` (map). NaN where it cannot be said. Purity of
        an amount is the R^2 of the neighbours' mean; ``_fwe`` is p family-wise over the maps of a space.
    """
    rows = [(space, made) for space in spaces for made in (None, *(shown for shown in maps if shown.space == space))]
    sets = _judged_scans(part, seed=shuffling.seed)
    found = {name: np.full((len(rows), len(sets)), np.nan) for name in FAITHFUL}
    found |= {name: np.full((len(rows), len(sets), len(variables)), np.nan) for name in SORTED}
    jobs = [(column, space) for column in range(len(sets)) for space in spaces if len(sets[column]) >= MIN_JUDGED]
    for column, space in track(jobs, total=len(jobs), label="projections, judged"):
        scans = sets[column]
        own = [row for row, (of, made) in enumerate(rows) if of == space and (column == OUTSIDE or not _is_told(made))]
        places = [spaces[space] if made is None else made.scores[:, :N_AXES] for _, made in (rows[row] for row in own)]
        apart = [judged.distances(shown[scans]) for shown in places]
        for row, shown in zip(own[1:], apart[1:], strict=True):
            for name, value in zip(FAITHFUL, _faithful(apart[0], shown), strict=True):
                found[name][row, column] = value
        for position, variable in enumerate(variables):
            for name, values in _sorted(apart, variable, scans, shuffling).items():
                found[name][own, column, position] = values
    repeats = {
        name: ("map", [np.nan if made is None else float(getattr(made, name)) for _, made in rows]) for name in REPEATED
    }
    return xr.Dataset(
        {name: (("map", "judged", "variable")[: values.ndim], values) for name, values in found.items()} | repeats,
        coords={
            "space": ("map", [space for space, _ in rows]),
            "method": ("map", [FULL if made is None else NAMES[made.method] for _, made in rows]),
            "judged": ("judged", list(JUDGED)),
            "n_judged": ("judged", [len(scans) for scans in sets]),
            "variable": ("variable", np.array([variable.name for variable in variables], dtype=str)),
            "are_levels": ("variable", np.array([variable.are_levels for variable in variables], dtype=np.int8)),
        },
    )


def _is_told(made: ShownMap | None) -> bool:
    return made is not None and made.method == "pls"


def _judged_scans(part: Part, *, seed: int) -> list[np.ndarray]:
    """Positions of the scans that are judged, for each of :data:`JUDGED`."""
    rng = np.random.default_rng(seed)
    sets = [part.first, np.intersect1d(part.first, part.outside)]
    return [np.sort(rng.permutation(scans)[:MAX_JUDGED_SCANS]) for scans in sets]


def _faithful(truth: np.ndarray, shown: np.ndarray) -> tuple[float, float]:
    k = judged.n_neighbours(len(truth))
    return judged.trustworthiness(truth, shown, k=k), judged.trustworthiness(shown, truth, k=k)


def _sorted(
    apart: Sequence[np.ndarray], variable: Known, scans: np.ndarray, shuffling: Shuffling
) -> dict[str, np.ndarray]:
    """Purity and silhouette of each map by a variable; nothing where the scans do not allow it."""
    values = variable.values[scans]
    kept = np.isfinite(values)
    if variable.are_levels:
        _, codes, sizes = np.unique(values[kept], return_inverse=True, return_counts=True)
        kept[kept] = sizes[codes] >= MIN_PER_LEVEL
    n_kept, blocks = int(kept.sum()), None if variable.blocks is None else variable.blocks[scans][kept]
    alone = blocks is not None and len(np.unique(blocks)) == n_kept
    if n_kept < MIN_JUDGED or len(np.unique(values[kept])) < 2 or alone:
        return {}
    orders = stats.permutations(n_kept, shuffling.n_permutations, seed=shuffling.seed, blocks=blocks)
    maps, k = [of_map[np.ix_(kept, kept)] for of_map in apart], judged.n_neighbours(n_kept)
    if not variable.are_levels:
        return _named("purity", judged.neighbour_r2(maps, values[kept], orders, k=k))
    codes = np.unique(values[kept], return_inverse=True)[1]
    pure = _named("purity", judged.purity(maps, codes, orders, k=k))
    return pure | _named("silhouette", judged.silhouette(maps, codes, orders))


def _named(name: str, found: judged.Sorting) -> dict[str, np.ndarray]:
    return {name: found.value, f"{name}_chance": found.chance, f"{name}_p": found.p_value, f"{name}_fwe": found.p_fwe}
