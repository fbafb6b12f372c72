"""Leak audit, images: the same scan under two names, to the byte or nearly."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from nilatent.analysis.leaks.row import CLEAN, FOUND, NOT_CHECKED, Check, examples
from nilatent.volumes import Volumes

Pair = tuple[int, int]
"""Positions of two scans in the cohort."""

# Correlation of two scans once the mean of all is removed. On 49 real adults two persons reach 0.35, and a copy that was
# moved by 0.1 voxel, rounded to 8 bits or given 2 % noise stays above 0.96.
NEAR = 0.9
# Simulated or coarse images can vary in few ways, so that different ones are alike: a copy must stand out of the others too.
OUTSTANDING_SD = 8.0
MIN_SCANS = 5
MAX_VOXELS = 20_000
BATCH = 64
# Scans of a block: a block against a block is all that is held.
BLOCK = 256
# Scans among which the usual correlation of two is found.
MAX_USUAL = 2000
SAME = "same image twice"
SIMILAR = "nearly the same image twice"


def copies(scans: pd.DataFrame) -> list[Pair]:
    """Pairs of scans whose files have the same bytes, each with the first of its kind."""
    if "sha256" not in scans:
        return []
    pairs = []
    hashes = scans["sha256"].fillna("").astype(str).to_numpy()
    for one in pd.unique(hashes[hashes != ""]):
        rows = np.flatnonzero(hashes == one)
        pairs += [(int(rows[0]), int(row)) for row in rows[1:]]
    return pairs


def near_copies(scans: pd.DataFrame, volumes: Volumes | None, regions: pd.DataFrame | None) -> list[Pair]:
    """Pairs of scans that are nearly the same image, or have the same regional values; the most alike first."""
    if len(scans) < MIN_SCANS:
        return []
    alike: dict[Pair, float] = {}
    if volumes is not None:
        alike |= _correlated(_thinned(volumes, scans), len(scans))
    if regions is not None:
        values = regions.loc[scans.index].to_numpy(dtype=np.float64)
        alike |= dict.fromkeys(_equal(values), 1.0)
    return sorted(alike, key=lambda pair: (-alike[pair], pair))


@dataclass(frozen=True, eq=False)
class _Thinned:
    """Evenly spaced voxels of scans, read when they are asked for: of all at once they would be most of what a check needs.

    Parameters
    ----------
    volumes : Volumes
        The scans.
    rows : ndarray
        (scan,) rows of the volumes.
    step : int
        Every so manieth voxel of the mask.
    """

    volumes: Volumes
    rows: np.ndarray
    step: int

    def __call__(self, some: np.ndarray) -> np.ndarray:
        """(scan, voxel) float32 of some of the scans, by position."""
        starts = range(0, len(some), BATCH)
        parts = [self.volumes.masked(self.rows[some[start : start + BATCH]])[:, :: self.step] for start in starts]
        return np.concatenate(parts)


def _thinned(volumes: Volumes, scans: pd.DataFrame) -> _Thinned:
    step = max(1, int(np.ceil(int(volumes.mask.sum()) / MAX_VOXELS)))
    return _Thinned(volumes, volumes.rows(list(scans.index)), step)


def _correlated(values: Callable[[np.ndarray], np.ndarray], n: int) -> dict[Pair, float]:
    """Pairs of scans whose correlation, once the mean scan is removed, is high and stands out, with that correlation.

    All pairs are looked at, a block against a block; what is usual is the median over all pairs of at most 2,000 scans.

    Parameters
    ----------
    values : Callable
        Positions of scans to (scan, voxel).
    n : int
        How many there are.
    """
    blocks = [np.arange(start, min(start + BLOCK, n)) for start in range(0, n, BLOCK)]
    mean = np.sum([values(block).sum(axis=0, dtype=np.float64) for block in blocks], axis=0) / n
    size, norm = np.empty(n), np.empty(n)
    for block in blocks:
        found = values(block)
        norm[block] = np.linalg.norm(found, axis=1)
        size[block] = np.linalg.norm(_about(found, mean), axis=1)
    known = np.flatnonzero(size > 1e-6 * max(float(norm.max()), 1e-30))
    if len(known) < 2:
        return {}

    def unit(some: np.ndarray) -> np.ndarray:
        return np.asarray(_about(values(some), mean) / size[some][:, None].astype(np.float32))

    chosen = known
    if len(known) > MAX_USUAL:
        chosen = np.sort(np.random.default_rng(0).choice(known, MAX_USUAL, replace=False))
    usual = np.concatenate([np.arctanh(r) for _, _, r in _pairs(unit, chosen)])
    middle = np.median(usual)
    spread = 1.4826 * np.median(np.abs(usual - middle))
    alike: dict[Pair, float] = {}
    for first, second, r in _pairs(unit, known):
        near = np.flatnonzero((r > NEAR) & (np.arctanh(r) > middle + OUTSTANDING_SD * spread))
        alike |= {(int(first[at]), int(second[at])): float(r[at]) for at in near}
    return alike


def _about(values: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Rows without the mean row, and each without its own mean."""
    left = values - mean.astype(np.float32)
    return np.asarray(left - left.mean(axis=1, keepdims=True))


def _pairs(
    unit: Callable[[np.ndarray], np.ndarray], chosen: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """First and second scan of every pair, and their correlation, a block of pairs at a time."""
    blocks = [chosen[start : start + BLOCK] for start in range(0, len(chosen), BLOCK)]
    for number, block in enumerate(blocks):
        one = unit(block)
        for other in blocks[number:]:
            r = np.clip(one @ (one if other is block else unit(other)).T, -1 + 1e-7, 1 - 1e-7)
            at, to = np.triu_indices(len(block), 1) if other is block else np.indices(r.shape).reshape(2, -1)
            yield block[at], other[to], r[at, to]


def _equal(values: np.ndarray) -> list[Pair]:
    """Pairs of rows with the same values to seven digits, each with the first of its kind."""
    scale = np.abs(values).max(axis=0)
    rounded = np.round(values / np.where(scale > 0, scale, 1.0), 7)
    codes = np.unique(rounded, axis=0, return_inverse=True)[1].ravel()
    pairs = []
    for code in np.flatnonzero(np.bincount(codes) > 1):
        rows = np.flatnonzero(codes == code)
        pairs += [(int(rows[0]), int(row)) for row in rows[1:]]
    return pairs


def same_image(scans: pd.DataFrame, pairs: list[Pair], split: pd.DataFrame) -> Check:
    """Files with the same bytes."""
    elsewhere = "reading a cohort leaves out files with the bytes of another scan"
    known = "sha256" in scans and scans["sha256"].fillna("").astype(str).ne("").any()
    if not known:
        return Check(SAME, NOT_CHECKED, "the cohort has no hashes of its files", elsewhere=elsewhere)
    return _of_pairs(SAME, scans, pairs, split, elsewhere=elsewhere, kind="the same bytes")


def similar_image(
    scans: pd.DataFrame,
    pairs: list[Pair],
    split: pd.DataFrame,
    volumes: Volumes | None,
    regions: pd.DataFrame | None,
) -> Check:
    """Images that correlate as no two persons do, or have the same regional values."""
    if volumes is None and regions is None:
        return Check(SIMILAR, NOT_CHECKED, "neither volumes nor regions were given")
    if len(scans) < MIN_SCANS:
        return Check(SIMILAR, NOT_CHECKED, f"{len(scans)} scans are too few to say what is unusually alike")
    subjects = scans["subject_id"].to_numpy()
    # Sessions of one person are meant to look alike.
    others = [pair for pair in pairs if subjects[pair[0]] != subjects[pair[1]]]
    return _of_pairs(SIMILAR, scans, others, split, elsewhere="", kind="nearly the same image")


def _of_pairs(
    name: str, scans: pd.DataFrame, pairs: list[Pair], split: pd.DataFrame, *, elsewhere: str, kind: str
) -> Check:
    if not pairs:
        return Check(name, CLEAN, f"No two of {len(scans)} scans have {kind}.", elsewhere=elsewhere)
    ids, subjects = scans.index.astype(str), scans["subject_id"].to_numpy()
    two = [pair for pair in pairs if subjects[pair[0]] != subjects[pair[1]]]
    apart = sum(_apart(split, pair) for pair in pairs)
    return Check(
        name,
        FOUND,
        f"{len(pairs)} pairs of scans have {kind}, {len(two)} of them under two subjects; {apart} stand on both sides of a "
        "split.",
        n=len(pairs),
        examples=examples(f"{ids[i]} = {ids[j]}" for i, j in [*two, *(pair for pair in pairs if pair not in two)]),
        advice="Look at both. Remove one, or put the right image in its place; one person needs one subject id. Then split "
        "and train again.",
        elsewhere=elsewhere,
    )


def _apart(split: pd.DataFrame, pair: Pair) -> bool:
    """The two scans are in different folds, or one is in the test part and the other is not."""
    first, second = split.iloc[pair[0]], split.iloc[pair[1]]
    in_test = (first["part"] == "test") != (second["part"] == "test")
    return bool(in_test or ("fold" in split and first["fold"] != second["fold"]))
