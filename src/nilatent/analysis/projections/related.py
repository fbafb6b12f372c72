"""What the components of every map are related to: columns of the cohort, and grey matter by region."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from nilatent.analysis import stats
from nilatent.analysis.contrast import confound_matrix, level_words
from nilatent.analysis.projections.made import LATENTS, Part, ShownMap
from nilatent.analysis.projections.maps import AXES, NAMES
from nilatent.analysis.projections.quality import Shuffling
from nilatent.progress import track

MIN_SUBJECTS, MIN_OUTSIDE = 20, 10


@dataclass(frozen=True, eq=False)
class Relations:
    """Relations of the components of all maps.

    Parameters
    ----------
    table : DataFrame
        One row per component.
    region_r, region_p : ndarray
        (component, region) correlation, and its p-value family-wise over the components and regions of the map; NaN where
        one of both does not vary.
    region_names : list[str]
        Regions that vary.
    unrelated : list[str]
        Columns that are absent, constant, mostly missing, or cannot be shuffled within sites.
    """

    table: pd.DataFrame
    region_r: np.ndarray
    region_p: np.ndarray
    region_names: list[str]
    unrelated: list[str]


def relate(
    maps: Sequence[ShownMap],
    regions: pd.DataFrame,
    scans: pd.DataFrame,
    columns: Sequence[str],
    part: Part,
    shuffling: Shuffling,
) -> Relations:
    """Relate every component of every map.

    Parameters
    ----------
    maps : Sequence[ShownMap]
        At least one.
    regions, scans : DataFrame
        (scan, region) grey matter and (scan, column) cohort, rows as in the maps.
    columns : Sequence[str]
        Columns of the cohort; some may be absent.
    part : Part
        Who is related: the first session of each subject, for PLS of those outside the training part.
    shuffling : Shuffling
        How p-values are made.

    Returns
    -------
    Relations
        R^2 and p of each column, family-wise over the components of a map; correlations with regions.
    """
    values = regions.to_numpy(dtype=np.float64)
    kept = np.flatnonzero(stats.varying(values[part.first]))
    names = [str(name) for name in regions.columns[kept]]
    tables, region_r, region_p = [], [], []
    for shown in track(maps, total=len(maps), label="projections, related"):
        rows = np.intersect1d(part.first, part.outside) if shown.method == "pls" else part.first
        scores, table = shown.scores[rows], _rows(shown, len(rows))
        n_least = MIN_OUTSIDE if shown.method == "pls" else MIN_SUBJECTS
        for column in [name for name in columns if name in scans]:
            found = _shares(scores, scans.iloc[rows], column, shuffling, n_least=n_least)
            if found is not None:
                table[f"r2_{column}"], table[f"p_{column}"] = found
        r, p = _correlations(values[np.ix_(rows, kept)], scores, shuffling, n_least=n_least)
        tables.append(_with_region(table, r, p, names))
        region_r.append(r)
        region_p.append(p)
    joined = pd.concat(tables, ignore_index=True)
    related = [column for column in columns if f"r2_{column}" in joined]
    shares = [f"{kind}_{column}" for column in related for kind in ("r2", "p")]
    fixed = [str(name) for name in joined if name not in shares]
    return Relations(
        joined[[*fixed, *shares]],
        np.vstack(region_r),
        np.vstack(region_p),
        names,
        [column for column in columns if column not in related],
    )


def _rows(shown: ShownMap, n_subjects: int) -> pd.DataFrame:
    end = "" if shown.space == LATENTS else f" of {shown.space}"
    n_components = shown.scores.shape[1]
    return pd.DataFrame(
        {
            "component": [f"{AXES[shown.method]}{position + 1}{end}" for position in range(n_components)],
            "space": shown.space,
            "method": NAMES[shown.method],
            "n_subjects": n_subjects,
            "explained": shown.explained[:n_components],
            "explained_heldout": shown.explained_heldout[:n_components],
        }
    )


def _shares(
    scores: np.ndarray, scans: pd.DataFrame, column: str, shuffling: Shuffling, *, n_least: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """R^2 and family-wise p of every component, or None where the column does not vary or is mostly missing."""
    site = shuffling.site
    predictors = confound_matrix(scans, [column], levels=[site, shuffling.group])
    complete = np.isfinite(predictors).all(axis=1)
    if complete.sum() < n_least or not stats.varying(predictors[complete]).any():
        return None
    # Elsewhere scans are shuffled within site only, so that a scanner difference cannot pass for one of age or group.
    blocks = level_words(scans[site]).astype(str).to_numpy()[complete] if site and site != column else None
    if (blocks is not None and pd.Series(blocks).value_counts().max() < 2) or not stats.varying(scores[complete]).all():
        return None
    orders = stats.permutations(int(complete.sum()), shuffling.n_permutations, seed=shuffling.seed, blocks=blocks)
    return stats.permuted_r2(scores[complete], predictors[complete], orders)


def _correlations(
    regions: np.ndarray, scores: np.ndarray, shuffling: Shuffling, *, n_least: int
) -> tuple[np.ndarray, np.ndarray]:
    """(component, region) correlation and family-wise p; NaN where there is none."""
    r, p = np.full((2, scores.shape[1], regions.shape[1]), np.nan)
    if len(scores) < n_least:
        return r, p
    left, right = np.flatnonzero(stats.varying(regions)), np.flatnonzero(stats.varying(scores))
    if len(left) and len(right):
        orders = stats.permutations(len(scores), shuffling.n_permutations, seed=shuffling.seed)
        found = stats.permuted_correlation(regions[:, left], scores[:, right], orders)
        r[np.ix_(right, left)], p[np.ix_(right, left)] = found.observed.T, found.p_fwe.T
    return r, p


def _with_region(table: pd.DataFrame, r: np.ndarray, p: np.ndarray, names: Sequence[str]) -> pd.DataFrame:
    """The table with the region that each component goes with most."""
    size = np.where(np.isfinite(r), np.abs(r), -1.0)
    best = size.argmax(axis=1)
    rows, said = np.arange(len(r)), size.max(axis=1) >= 0
    return table.assign(
        region=[names[at] if known else "" for at, known in zip(best, said, strict=True)],
        region_r=r[rows, best],
        region_p=p[rows, best],
    )
