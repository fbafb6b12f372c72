"""How far a map can be believed: does it keep neighbours, does it repeat, and do neighbours share what is known of them.

Three questions. *Faithful*: trustworthiness (neighbours on the map are neighbours in truth) and continuity (true neighbours
stay neighbours). *Repeatable*: Procrustes distance and shared neighbours of two maps of the same scans. *Sorted*: purity of the
neighbours and silhouette by a property of the scans, with a p-value from shuffling that property.

References
----------
Trustworthiness, continuity: Venna & Kaski 2001, doi:10.1007/3-540-44668-0_68. Silhouette: Rousseeuw 1987,
doi:10.1016/0377-0427(87)90125-7. Procrustes: Gower 1975, doi:10.1007/BF02291478.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial.distance import cdist

from nilatent.analysis import stats


def n_neighbours(n_scans: int) -> int:
    """Neighbours that count as near: a tenth of the scans, at least 3 and at most 10."""
    return max(3, min(10, n_scans // 10))


def distances(values: np.ndarray) -> np.ndarray:
    """(scan, scan) Euclidean distances."""
    return np.asarray(cdist(values, values))


def nearest(apart: np.ndarray, *, k: int) -> np.ndarray:
    """(scan, k) positions of the nearest other scans, nearest first; of equally near ones the first in the table."""
    return _order(apart)[:, 1 : k + 1]


def trustworthiness(truth: np.ndarray, shown: np.ndarray, *, k: int) -> float:
    """Whether neighbours on a map are neighbours in truth.

    A scan that is among the k nearest on the map but not in truth costs as much as its true rank exceeds k.

    Parameters
    ----------
    truth, shown : ndarray
        (scan, scan) distances in truth and on the map; exchanged, the result is the continuity.
    k : int
        Neighbours, less than half the scans.

    Returns
    -------
    float
        In [0, 1]: 1 when none is out of place, about one half by chance.
    """
    n = len(truth)
    ranks = np.empty((n, n), dtype=np.int64)
    np.put_along_axis(ranks, _order(truth), np.arange(n)[None], axis=1)
    excess = np.take_along_axis(ranks, nearest(shown, k=k), axis=1) - k
    return float(1 - 2 * np.maximum(excess, 0).sum() / (n * k * (2 * n - 3 * k - 1)))


def procrustes(one: np.ndarray, other: np.ndarray) -> float:
    """What is left of two maps of the same scans after the best shift, turn, mirroring and scaling, in [0, 1]; 0 is the same.

    Parameters
    ----------
    one, other : ndarray
        (scan, axis) places.
    """
    left, right = one - one.mean(axis=0), other - other.mean(axis=0)
    size = np.linalg.norm(left) * np.linalg.norm(right)
    if size == 0:
        return float("nan")
    return float(max(0.0, 1 - np.square(np.linalg.svd(left.T @ right / size, compute_uv=False).sum())))


def shared_neighbours(one: np.ndarray, other: np.ndarray, *, k: int) -> float:
    """Mean share of the k nearest scans that two maps, given as (scan, scan) distances, have in common."""
    pairs = zip(nearest(one, k=k), nearest(other, k=k), strict=True)
    return float(np.mean([len(np.intersect1d(left, right)) / k for left, right in pairs]))


@dataclass(frozen=True, eq=False)
class Sorting:
    """How maps sort scans by a property; every array is (map,).

    Parameters
    ----------
    value : ndarray
        Purity, R^2 of the neighbours, or silhouette.
    chance : ndarray
        Mean of the value over the permutations.
    p_value : ndarray
        One-sided: a value as large by chance.
    p_fwe : ndarray
        Corrected for all maps by the maximum statistic, each map in units of its own spread over permutations.
    """

    value: np.ndarray
    chance: np.ndarray
    p_value: np.ndarray
    p_fwe: np.ndarray


def purity(maps: Sequence[np.ndarray], codes: np.ndarray, orders: np.ndarray, *, k: int) -> Sorting:
    """Share of a scan's k nearest scans that are of its level: mean over the scans of a level, then over levels.

    Parameters
    ----------
    maps : Sequence[ndarray]
        (scan, scan) distances of each map.
    codes : ndarray
        (scan,) level from 0 to L - 1, none empty.
    orders : ndarray
        (permutation, scan) from :func:`nilatent.analysis.stats.permutations`.
    k : int
        Neighbours.

    Returns
    -------
    Sorting
        By chance the purity is about 1 / L, however unequal the levels are.
    """
    sizes = np.bincount(codes)
    weight = 1.0 / (sizes * len(sizes))

    def shares(shuffled: np.ndarray, near: np.ndarray) -> np.ndarray:
        same = (shuffled[:, near] == shuffled[:, :, None]).mean(axis=2)
        return np.asarray((same * weight[shuffled]).sum(axis=1))

    return _sorting([_of_neighbours(codes, orders, nearest(apart, k=k), shares) for apart in maps])


def neighbour_r2(maps: Sequence[np.ndarray], values: np.ndarray, orders: np.ndarray, *, k: int) -> Sorting:
    """Share of the variance of a number that the mean of a scan's k nearest scans tells; negative where it tells nothing.

    Parameters
    ----------
    maps : Sequence[ndarray]
        (scan, scan) distances of each map.
    values : ndarray
        (scan,) number, such as the age; not constant.
    orders : ndarray
        (permutation, scan).
    k : int
        Neighbours; by chance the result is about -1 / k.
    """
    centred = values - values.mean()
    total = np.square(centred).sum()

    def shares(shuffled: np.ndarray, near: np.ndarray) -> np.ndarray:
        return np.asarray(1 - np.square(shuffled - shuffled[:, near].mean(axis=2)).sum(axis=1) / total)

    return _sorting([_of_neighbours(centred, orders, nearest(apart, k=k), shares) for apart in maps])


def silhouette(maps: Sequence[np.ndarray], codes: np.ndarray, orders: np.ndarray) -> Sorting:
    """Mean silhouette by level: 1 for tight and distant clusters, 0 for none, negative for mixed ones.

    Parameters
    ----------
    maps : Sequence[ndarray]
        (scan, scan) distances of each map.
    codes : ndarray
        (scan,) level from 0 to L - 1, L at least 2, none empty.
    orders : ndarray
        (permutation, scan).
    """
    sizes = np.bincount(codes).astype(np.float32)
    rows = np.vstack([codes, codes[orders]])
    batch = max(1, stats.BATCH_BYTES // (8 * codes.size * sizes.size))
    parts = [rows[start : start + batch] for start in range(0, len(rows), batch)]
    return _sorting([np.concatenate([_silhouettes(apart, part, sizes) for part in parts]) for apart in maps])


def _silhouettes(apart: np.ndarray, rows: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """(row,) mean silhouette of each shuffled row of levels."""
    n_rows, n_scans = rows.shape
    members = (rows[:, :, None] == np.arange(len(sizes))).astype(np.float32)
    sums = apart.astype(np.float32) @ members.transpose(1, 0, 2).reshape(n_scans, -1)
    sums = sums.reshape(n_scans, n_rows, len(sizes))
    own = rows.T[:, :, None]
    size = sizes[rows.T]
    inside = np.take_along_axis(sums, own, axis=2)[:, :, 0] / np.maximum(size - 1, 1)
    means = sums / sizes
    np.put_along_axis(means, own, np.inf, axis=2)
    outside = means.min(axis=2)
    larger = np.maximum(inside, outside)
    found = np.where((size > 1) & (larger > 0), (outside - inside) / np.where(larger > 0, larger, 1), 0.0)
    return np.asarray(found.mean(axis=0), dtype=np.float64)


def _of_neighbours(
    values: np.ndarray, orders: np.ndarray, near: np.ndarray, statistic: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> np.ndarray:
    """(1 + permutation,) statistic of the values as they are, and as each order shuffles them."""
    rows = np.vstack([values, values[orders]])
    batch = max(1, stats.BATCH_BYTES // (8 * near.size))
    return np.concatenate([statistic(rows[start : start + batch], near) for start in range(0, len(rows), batch)])


def _order(apart: np.ndarray) -> np.ndarray:
    """(scan, scan) positions by distance, each scan first in its own row."""
    apart = np.array(apart, dtype=np.float64)
    np.fill_diagonal(apart, -1.0)
    return np.argsort(apart, axis=1, kind="stable")


def _sorting(found: Sequence[np.ndarray]) -> Sorting:
    """From one array (1 + permutation,) per map, the observed value first."""
    every = np.array(found).T
    # Centre and spread are taken over the observed and the shuffled alike, so that under the null they stay exchangeable.
    spread = every.std(axis=0)
    units = (every - every.mean(axis=0)) / np.where(spread > 0, spread, np.inf)
    return Sorting(
        value=every[0],
        chance=every[1:].mean(axis=0),
        p_value=np.array([stats.max_p(unit[:1], unit[1:])[0] for unit in units.T]),
        p_fwe=stats.max_p(units[0], units[1:].max(axis=1)),
    )
