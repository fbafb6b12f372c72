"""Leak audit, features: latents and regions that know the site, or were scaled before the split."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr

from nilatent.analysis import stats
from nilatent.analysis.contrast import MIN_SUBJECTS, first_scans, level_words
from nilatent.analysis.held_out import parts
from nilatent.analysis.leaks.row import CLEAN, FOUND, NOT_CHECKED, Check
from nilatent.analysis.site_signal import LINEAR, call_labels, judge

SITE = "site in the"
SCALED = "scaled over all scans:"
ALPHA = 0.05
# Of a site with fewer subjects some fold has none to learn from.
MIN_PER_SITE = 5
# Columns of mean 0 and SD 1 over exactly these scans do not come about by chance, which would miss by 1 / sqrt(n).
EXACT = 1e-4
MOST = 0.9


def site_told(
    scans: pd.DataFrame,
    split: pd.DataFrame,
    *,
    site: str,
    latents: xr.Dataset | None,
    folds: Sequence[xr.Dataset],
    regions: pd.DataFrame | None,
    n_permutations: int,
    seed: int,
) -> list[Check]:
    """Whether a linear classifier tells the site of held-out scans; one row for latents and one for regions."""
    made = list(folds) if len(folds) else [latents] if latents is not None else []
    tables = {
        "latents": [_latents(one, scans) for one in made],
        "regions": [] if regions is None else [regions.loc[scans.index].to_numpy(dtype=np.float64)],
    }
    checks = []
    for name, arrays in tables.items():
        reason = _reason(scans, split, site, arrays, name)
        checks.append(
            Check(f"{SITE} {name}", NOT_CHECKED, reason)
            if reason
            else _told(f"{SITE} {name}", arrays, scans, split, site, n_permutations=n_permutations, seed=seed)
        )
    return checks


def _latents(made: xr.Dataset, scans: pd.DataFrame) -> np.ndarray:
    return np.asarray(made["mean"].sel(scan=scans.index.to_numpy()).values, dtype=np.float64).reshape(len(scans), -1)


def _reason(scans: pd.DataFrame, split: pd.DataFrame, site: str, arrays: list[np.ndarray], name: str) -> str:
    """Why it cannot be checked; empty when it can."""
    if not site or site not in scans:
        return f"the cohort has no column '{site}'" if site else "no site was named"
    if not arrays:
        return f"there are no {name}"
    if "fold" not in split or split["fold"].nunique() < 2:
        return "the split has no folds"
    rows = _rows(scans, site)
    n_sites = level_words(scans[site]).iloc[rows].nunique()
    if n_sites < 2 or len(rows) < MIN_SUBJECTS:
        return f"{n_sites} sites have {MIN_PER_SITE} subjects or more, and {len(rows)} subjects are there"
    if len(arrays) > 1 and len(arrays) != split["fold"].nunique():
        return f"{len(arrays)} models do not fit {split['fold'].nunique()} folds"
    return ""


def _rows(scans: pd.DataFrame, site: str) -> np.ndarray:
    """First scans of the subjects at sites with enough of them."""
    first = first_scans(scans)
    words = level_words(scans[site]).iloc[first]
    counts = words.map(words.value_counts())
    return np.asarray(first[(counts >= MIN_PER_SITE).to_numpy()])


def _told(
    name: str,
    arrays: list[np.ndarray],
    scans: pd.DataFrame,
    split: pd.DataFrame,
    site: str,
    *,
    n_permutations: int,
    seed: int,
) -> Check:
    rows = _rows(scans, site)
    words, folds = level_words(scans[site]).to_numpy()[rows].astype(str), split["fold"].to_numpy()[rows]
    called = np.full(len(rows), "", dtype=object)
    if np.unique(folds, return_counts=True)[1].max() < 2:
        return Check(name, NOT_CHECKED, "no fold holds out two subjects, so labels cannot be shuffled within folds")
    numbers = np.unique(split["fold"])
    for train, test in parts(folds):
        array = arrays[0] if len(arrays) == 1 else arrays[int(np.searchsorted(numbers, folds[test[0]]))]
        if len(np.unique(words[train])) < 2:
            return Check(name, NOT_CHECKED, "the training scans of a fold are of one site")
        called[test] = call_labels(array[rows[train]], words[train], array[rows[test]], model=LINEAR)
    orders = stats.permutations(len(rows), n_permutations, seed=seed, blocks=folds.astype(str))
    found = judge(called.astype(str), words, orders)
    n_sites = len(np.unique(words))
    said = (
        f"The site of held-out scans ({n_sites} sites) is told in {found.accuracy:.0%}, balanced; chance is "
        f"{found.chance:.0%} (p = {found.p_value:.2g})."
    )
    if found.p_value > ALPHA:
        return Check(name, CLEAN, said, n=len(rows))
    return Check(
        name,
        FOUND,
        said,
        n=len(rows),
        advice="Name the site, so that it is adjusted for; look at `harmonise`; distrust a group difference that goes with site.",
    )


def scaled_over_all(scans: pd.DataFrame, *, latents: xr.Dataset | None, regions: pd.DataFrame | None) -> list[Check]:
    """Whether features have mean 0 and SD 1 over exactly the scans of the cohort, which nobody could know before the split."""
    tables = {
        "latents": None if latents is None else _latents(latents, scans),
        "regions": None if regions is None else regions.loc[scans.index].to_numpy(dtype=np.float64),
    }
    checks = []
    for name, values in tables.items():
        check = f"{SCALED} {name}"
        if values is None or len(values) < MIN_SUBJECTS:
            reason = f"there are no {name}" if values is None else f"{len(values)} scans are too few to say"
            checks.append(Check(check, NOT_CHECKED, reason))
            continue
        exact = scaled_columns(values)
        said = f"{int(exact.sum())} of {len(exact)} columns have mean 0 and SD 1 over the {len(values)} scans of the cohort."
        if exact.mean() < MOST:
            checks.append(Check(check, CLEAN, said))
            continue
        advice = "Hand in values as they were measured: scales are learnt inside the training part, fold by fold."
        checks.append(Check(check, FOUND, said, n=int(exact.sum()), advice=advice))
    return checks


def scaled_columns(values: np.ndarray) -> np.ndarray:
    """(column,) bool: mean 0 and SD 1, by either convention, to four digits."""
    sd = [values.std(axis=0, ddof=ddof) for ddof in (0, 1)]
    unit = np.minimum(np.abs(sd[0] - 1), np.abs(sd[1] - 1)) < EXACT
    return np.asarray(unit & (np.abs(values.mean(axis=0)) < EXACT))
