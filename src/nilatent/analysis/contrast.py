"""Which scans are compared and with which confounds: one per subject, two groups; or why they cannot be compared."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from nilatent.analysis import stats
from nilatent.errors import SettingError

MIN_SUBJECTS, MIN_PER_GROUP = 20, 8
MIN_DEGREES = 10
REFERENCE_WORDS = ("cn", "hc", "nc", "control", "controls", "healthy", "healthy control", "normal", "td", "0")


class NotComparableError(SettingError):
    """The cohort does not hold what the comparison needs; the message is the reason."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two groups, one scan per subject, nothing missing.

    Parameters
    ----------
    rows : ndarray
        (n,) positions in the table of scans.
    is_case : ndarray
        (n,) bool: the first group of the contrast.
    case, reference : str
        Names of the two groups.
    confounds : ndarray
        (n, confound) values, site as 0/1 columns.
    blocks : ndarray or None
        (n,) site, within which permutations stay.
    left_out : dict[str, list[str]]
        Reason to identifiers of the scans that were left out.
    """

    rows: np.ndarray
    is_case: np.ndarray
    case: str
    reference: str
    confounds: np.ndarray
    blocks: np.ndarray | None
    left_out: dict[str, list[str]]

    @property
    def label(self) -> str:
        """The contrast as it is written on the command line."""
        return f"{self.case}:{self.reference}"


def level_words(values: pd.Series) -> pd.Series:
    """Levels of a column as text, NaN where missing; 1.0 and "1" are one level, the code "01" is another."""
    numbers = pd.to_numeric(values, errors="coerce")
    text = values.astype("string").str.strip()
    # Beyond 2**53 neighbours share one float, so two codes would become one level.
    whole = numbers.notna() & (numbers % 1 == 0) & (numbers.abs() < 2**53)
    whole &= ~text.str.match(r"[+-]?0\d", na=False).astype(bool)
    text = text.mask(whole, numbers.where(whole, 0).astype("int64").astype("string"))
    return text.astype(object).where(text.notna() & (text != ""), np.nan)


def first_scans(scans: pd.DataFrame) -> np.ndarray:
    """Positions of the first session of each subject, in table order.

    Scans of one subject are not exchangeable with scans of others, so permutation tests use one scan per subject.
    """
    sessions = scans["session_id"].astype(str) if "session_id" in scans else pd.Series("", index=scans.index)
    # Numbers in the label are compared as numbers, or ses-10 would come before ses-2.
    counted = sessions.str.replace(r"\d+", lambda digits: digits.group().zfill(12), regex=True)
    order = pd.DataFrame({"subject": scans["subject_id"].to_numpy(), "session": counted.to_numpy()})
    first = order.reset_index().sort_values(["session", "index"]).drop_duplicates("subject")["index"]
    return np.sort(first.to_numpy())


def confound_matrix(scans: pd.DataFrame, columns: Sequence[str], *, levels: Sequence[str] = ()) -> np.ndarray:
    """Columns of the cohort as confounds: numbers as they are, words as one 0/1 column per level but the first.

    Parameters
    ----------
    scans : DataFrame
        The cohort.
    columns : Sequence[str]
        Names of columns.
    levels : Sequence[str]
        Columns whose numbers are codes, such as the site, and are treated as words.

    Returns
    -------
    ndarray
        (scan, confound) float64; NaN where a value is missing.

    Raises
    ------
    SettingError
        When a column does not exist.
    """
    parts = [np.empty((len(scans), 0))]
    for column in columns:
        if column not in scans:
            raise SettingError(
                f"Column '{column}' is not in the cohort, which has {', '.join(map(str, scans.columns))}. "
                "Name one of these, or rename it with --column."
            )
        values = scans[column]
        is_number = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
        if is_number and column not in levels:
            parts.append(values.to_numpy(dtype=np.float64)[:, None])
            continue
        codes, names = pd.factorize(level_words(values), sort=True)
        dummies = np.full((len(scans), max(len(names) - 1, 1)), np.nan)
        dummies[codes >= 0] = np.eye(len(names), len(names) - 1, k=-1)[codes[codes >= 0]] if len(names) > 1 else 0
        parts.append(dummies)
    return np.hstack(parts)


def compare_groups(
    scans: pd.DataFrame, *, group: str, contrast: str = "", covariates: Sequence[str] = (), site: str = ""
) -> Comparison:
    """Choose the scans of a contrast.

    Parameters
    ----------
    scans : DataFrame
        Index scan_id; ``subject_id``, optionally ``session_id``, and the columns named here.
    group : str
        Column of the groups.
    contrast : str
        ``"A:B"``, A against the reference B. May be empty when there are exactly two groups.
    covariates : Sequence[str]
        Columns removed as confounds; a scan with a missing value is left out and listed.
    site : str
        Column of the site, removed as a confound, and the block within which permutations stay; empty for none.

    Returns
    -------
    Comparison
        The first session of each subject.

    Raises
    ------
    NotComparableError
        When the cohort cannot answer: no group column, too few subjects, or groups that equal a confound.
    SettingError
        When a covariate, the site or a level of the contrast does not exist.
    """
    if group not in scans:
        raise NotComparableError("no group column")
    words = level_words(scans[group])
    case, reference = _levels(words, contrast, group)
    sites = [site] if site else []
    confounds = confound_matrix(scans, [*covariates, *sites], levels=sites)
    left_out: dict[str, list[str]] = {}
    in_contrast = words.isin([case, reference]).to_numpy()
    complete = np.isfinite(confounds).all(axis=1)
    _list(left_out, f"no value or another group in column '{group}'", scans.index[~in_contrast])
    _list(left_out, "missing value in a confound", scans.index[in_contrast & ~complete])
    usable = np.flatnonzero(in_contrast & complete)
    if len(usable) == 0:
        raise NotComparableError(f"too few: no scan of {case} or {reference} has every confound")
    rows = usable[first_scans(scans.iloc[usable])]
    _list(left_out, "a later session of the same subject", scans.index[np.setdiff1d(usable, rows)])
    is_case = (words.iloc[rows] == case).to_numpy(dtype=bool)
    confounds = confounds[rows]
    _check(is_case, confounds, case, reference)
    blocks = level_words(scans[site]).to_numpy()[rows].astype(str) if site else None
    return Comparison(rows, is_case, case, reference, confounds, blocks, left_out)


def _list(left_out: dict[str, list[str]], reason: str, scan_ids: pd.Index) -> None:
    if len(scan_ids):
        left_out[reason] = [str(scan_id) for scan_id in scan_ids]


def _levels(words: pd.Series, contrast: str, group: str) -> tuple[str, str]:
    levels = sorted(words.dropna().unique())
    listed = ", ".join(f"{level} ({int((words == level).sum())})" for level in levels)
    if contrast:
        case, colon, reference = (part.strip() for part in contrast.partition(":"))
        if not colon or case == reference or not {case, reference} <= set(levels):
            raise SettingError(
                f"The contrast '{contrast}' does not name two different groups of column '{group}', which holds "
                f"{listed or 'nothing'}. Write it as A:B, with B the reference."
            )
        return case, reference
    if len(levels) > 2:
        raise NotComparableError(
            f"column '{group}' holds {len(levels)} groups, {listed}; choose two with --contrast A:B"
        )
    if len(levels) < 2:
        raise NotComparableError(f"too few: column '{group}' holds {listed or 'no value'}, and two groups are needed")
    known = [level for level in levels if level.lower() in REFERENCE_WORDS]
    reference = known[0] if len(known) == 1 else levels[1]
    return (levels[0] if reference == levels[1] else levels[1]), reference


def _check(is_case: np.ndarray, confounds: np.ndarray, case: str, reference: str) -> None:
    n_case, n_reference = int(is_case.sum()), int((~is_case).sum())
    if len(is_case) < MIN_SUBJECTS or min(n_case, n_reference) < MIN_PER_GROUP:
        raise NotComparableError(
            f"too few: {n_case} {case} and {n_reference} {reference}; at least {MIN_SUBJECTS} subjects are needed, "
            f"{MIN_PER_GROUP} of each group"
        )
    rank = stats.confound_basis(confounds, len(is_case)).shape[1]
    if len(is_case) - rank - 1 < MIN_DEGREES:
        raise NotComparableError(f"too few: {len(is_case)} subjects for {rank - 1} confounds")
    if not stats.varying(is_case.astype(float), confounds)[0]:
        raise NotComparableError(
            f"the confounds tell {case} from {reference} without error, so no effect of the group can be separated from "
            "them; drop the confound that equals the group"
        )
