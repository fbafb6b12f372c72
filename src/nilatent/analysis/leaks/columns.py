"""Leak audit, columns: sites that are groups, and covariates that are the target under another name."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import spearmanr
from sklearn.model_selection import KFold, cross_val_predict
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from nilatent.analysis.contrast import MIN_SUBJECTS, first_scans, level_words
from nilatent.analysis.leaks.row import CLEAN, FOUND, NOT_CHECKED, Check, examples

SITE_GROUP = "site and group"
HIDDEN = "target in a covariate"
ENTANGLED = 0.8
"""Cramer's V from which site and group can no longer be told apart."""
TOLD = 0.95
"""Balanced accuracy, or explained share of a number, from which a covariate is the target under another name."""
# A number with no more values than this is a code.
MAX_CODES = 5
N_FOLDS = 5


def cramers_v(first: np.ndarray, second: np.ndarray) -> float:
    """Association of two columns of labels, in [0, 1], corrected so that many small sites do not look like an association.

    References
    ----------
    Bergsma 2013, doi:10.1016/j.jkss.2012.10.002.
    """
    table = pd.crosstab(first, second).to_numpy(dtype=np.float64)
    n, (rows, columns) = table.sum(), table.shape
    if min(rows, columns) < 2:
        return 0.0
    expected = np.outer(table.sum(axis=1), table.sum(axis=0)) / n
    phi2 = max(0.0, float((np.square(table - expected) / expected).sum() / n) - (rows - 1) * (columns - 1) / (n - 1))
    fewest = min(rows - (rows - 1) ** 2 / (n - 1), columns - (columns - 1) ** 2 / (n - 1)) - 1
    return float(np.sqrt(phi2 / fewest)) if fewest > 0 else 0.0


def site_is_group(scans: pd.DataFrame, *, group: str, site: str) -> Check:
    """How far the site says the group."""
    absent = next((name for name in (group, site) if not name or name not in scans), None)
    if absent is not None:
        return Check(
            SITE_GROUP, NOT_CHECKED, f"the cohort has no column '{absent}'" if absent else "no site or no group named"
        )
    table = scans.iloc[first_scans(scans)]
    groups, sites = level_words(table[group]), level_words(table[site])
    both = (groups.notna() & sites.notna()).to_numpy()
    if groups[both].nunique() < 2 or sites[both].nunique() < 2:
        return Check(SITE_GROUP, NOT_CHECKED, "there is one site or one group only")
    v = cramers_v(groups[both].to_numpy(), sites[both].to_numpy())
    per_site = groups[both].groupby(sites[both].to_numpy()).nunique()
    single = per_site.index[per_site == 1]
    said = f"Cramer's V of site and group is {v:.2f}; {len(single)} of {len(per_site)} sites have one group only."
    if v < ENTANGLED and len(single) < len(per_site):
        return Check(SITE_GROUP, CLEAN, said)
    return Check(
        SITE_GROUP,
        FOUND,
        said,
        n=len(single),
        examples=examples(map(str, single)),
        advice="No analysis can tell the group from the scanner here. Compare within sites that have both groups.",
        elsewhere="group comparisons are not run where site and covariates tell the groups without error",
    )


def hidden_targets(scans: pd.DataFrame, *, covariates: Sequence[str], targets: Sequence[str], seed: int) -> list[Check]:
    """Covariates that are a target under another name; one row per target.

    A target that is itself named as a covariate is no secret: who adjusts for covariates leaves it out or refuses.
    """
    named = list(dict.fromkeys(name for name in targets if name))
    if not named or not covariates:
        return [Check(HIDDEN, NOT_CHECKED, "no target was named" if not named else "no covariates were named")]
    table = scans.iloc[first_scans(scans)]
    others = {target: [column for column in covariates if column != target] for target in named}
    return [_of_target(table, target, columns, seed=seed) for target, columns in others.items()]


def _of_target(table: pd.DataFrame, target: str, covariates: Sequence[str], *, seed: int) -> Check:
    name = f"{HIDDEN} ({target})"
    if not covariates:
        return Check(name, NOT_CHECKED, "there is no other covariate")
    absent = [column for column in (target, *covariates) if column not in table]
    if absent:
        return Check(name, NOT_CHECKED, f"the cohort has no column '{absent[0]}'")
    known = table[table[target].notna()]
    if len(known) < MIN_SUBJECTS or known[target].nunique() < 2:
        return Check(
            name, NOT_CHECKED, f"{len(known)} subjects have a value, or all the same; {MIN_SUBJECTS} are needed"
        )
    told = {column: told_by(known[column], known[target], seed=seed) for column in covariates}
    worst = max(told, key=lambda column: told[column])
    measure = "share of its variance" if _is_number(known[target]) else "balanced accuracy"
    hidden = [column for column in sorted(told, key=lambda column: -told[column]) if told[column] >= TOLD]
    if not hidden:
        return Check(
            name, CLEAN, f"Of {len(told)} covariates {worst} says most of {target} ({measure} {told[worst]:.2f})."
        )
    return Check(
        name,
        FOUND,
        f"{len(hidden)} of {len(told)} covariates say {target} almost without error ({measure} {told[worst]:.2f}).",
        n=len(hidden),
        examples=examples(f"{column} ({told[column]:.2f})" for column in hidden),
        advice="Leave these out. Adjusted for, they take the target away; predicted with, they are the target.",
        elsewhere="comparisons adjusted for such a covariate are not run where it says the target without error",
    )


def told_by(covariate: "pd.Series[str]", target: "pd.Series[str]", *, seed: int = 0) -> float:
    """How well one column says another, cross-validated: balanced accuracy of levels, or explained share of a number.

    A missing value is a value too: what is n/a for one group only says the group.

    Parameters
    ----------
    covariate, target : Series
        (subject,) values; the target has none missing.
    seed : int
        Draws the folds.

    Returns
    -------
    float
        At most 1; about the share of chance when the covariate says nothing.
    """
    x = _columns(covariate)
    folds = KFold(N_FOLDS, shuffle=True, random_state=seed)
    if _is_number(target):
        y = target.to_numpy(dtype=np.float64)
        finite = np.isfinite(y)
        x, y, covariate = x[finite], y[finite], covariate[finite]
        predicted = cross_val_predict(DecisionTreeRegressor(min_samples_leaf=2, random_state=0), x, y, cv=folds)
        share = 1 - float(np.square(y - predicted).sum() / np.square(y - y.mean()).sum())
        numbers = x[:, 0] if _is_number(covariate) else np.zeros(len(y))
        # A tree sees a number in steps; a recoding in the same or the opposite order is seen by ranks.
        rho = float(spearmanr(numbers, y).statistic) if len(np.unique(numbers)) > 1 else 0.0
        return max(share, rho**2)
    labels = level_words(target).to_numpy().astype(str)
    called = cross_val_predict(DecisionTreeClassifier(class_weight="balanced", random_state=0), x, labels, cv=folds)
    return float(np.mean([np.mean(called[labels == level] == level) for level in np.unique(labels)]))


def _is_number(values: "pd.Series[str]") -> bool:
    return (
        pd.api.types.is_numeric_dtype(values)
        and not pd.api.types.is_bool_dtype(values)
        and values.nunique() > MAX_CODES
    )


def _columns(values: "pd.Series[str]") -> np.ndarray:
    """(subject, column) a number, or one 0/1 column per level; a missing number lies below all others, a missing level is 0."""
    if _is_number(values):
        numbers = values.to_numpy(dtype=np.float64)
        numbers = np.where(np.isfinite(numbers), numbers, np.nan)
        below = np.nanmin(numbers) - (np.nanmax(numbers) - np.nanmin(numbers)) - 1
        return np.where(np.isnan(numbers), below, numbers)[:, None]
    words = level_words(values)
    levels = words.dropna().unique()
    return np.column_stack([np.zeros(len(words)), *(words.to_numpy() == level for level in levels)]).astype(np.float64)
