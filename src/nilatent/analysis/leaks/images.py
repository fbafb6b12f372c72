"""Leak audit, images: the same scan under two names, to the byte or nearly."""

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
        alike |= _correlated(_thinned(volumes, scans))
    if regions is not None:
        values = regions.loc[scans.index].to_numpy(dtype=np.float64)
        alike |= dict.fromkeys(_equal(values), 1.0)
    return sorted(alike, key=lambda pair: (-alike[pair], pair))


def _thinned(volumes: Volumes, scans: pd.DataFrame) -> np.ndarray:
    """(scan, voxel) evenly spaced voxels of the mask, float32."""
    rows = volumes.rows(list(scans.index))
    step = max(1, int(np.ceil(int(volumes.mask.sum()) / MAX_VOXELS)))
    return np.concatenate(
        [volumes.masked(rows[start : start + BATCH])[:, ::step] for start in range(0, len(rows), BATCH)]
    )


def _correlated(values: np.ndarray) -> dict[Pair, float]:
    """Pairs of rows whose correlation, once the mean row is removed, is high and stands out, with that correlation."""
    left = values - values.mean(axis=0)
    left -= left.mean(axis=1, keepdims=True)
    size = np.linalg.norm(left, axis=1, keepdims=True)
    known = np.flatnonzero(size[:, 0] > 1e-6 * max(float(np.linalg.norm(values, axis=1).max()), 1e-30))
    unit = left[known] / size[known]
    first, second = np.triu_indices(len(known), 1)
    if not len(first):
        return {}
    found = np.clip((unit @ unit.T)[first, second], -1 + 1e-7, 1 - 1e-7)
    scores = np.arctanh(found)
    middle = np.median(scores)
    spread = 1.4826 * np.median(np.abs(scores - middle))
    chosen = (found > NEAR) & (scores > middle + OUTSTANDING_SD * spread)
    return {
        (int(known[i]), int(known[j])): float(r)
        for i, j, r in zip(first[chosen], second[chosen], found[chosen], strict=True)
    }


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
    elsewhere = "reading a cohort leaves the second of two files with the same bytes out"
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
