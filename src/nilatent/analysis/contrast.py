"""Which scans are compared and with which confounds: one per subject, two groups or a number; or why they cannot be."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

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


@dataclass(frozen=True, eq=False)
class Gradient:
    """A number of every subject, such as an age or a test score: one scan per subject, nothing missing.

    Parameters
    ----------
    rows : ndarray
        (n,) positions in the table of scans.
    values : ndarray
        (n,) float64 the number.
    target : str
        Name of its column.
    confounds : ndarray
        (n, confound) values, site as 0/1 columns.
    blocks : ndarray or None
        (n,) site, within which permutations stay.
    left_out : dict[str, list[str]]
        Reason to identifiers of the scans that were left out.
    """

    rows: np.ndarray
    values: np.ndarray
    target: str
    confounds: np.ndarray
    blocks: np.ndarray | None
    left_out: dict[str, list[str]]

    @property
    def label(self) -> str:
        """The name of the column."""
        return self.target


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
    of_contrast = words.isin([case, reference]).to_numpy()
    reason = f"no value or another group in column '{group}'"
    rows, confounds, blocks, left_out = _complete(
        scans, of_contrast, reason=reason, covariates=covariates, site=site, what=f"scan of {case} or {reference}"
    )
    is_case = (words.iloc[rows] == case).to_numpy(dtype=bool)
    _check(is_case, confounds, case, reference)
    return Comparison(rows, is_case, case, reference, confounds, blocks, left_out)


def contrasts_of(scans: pd.DataFrame, *, group: str, contrast: str = "") -> list[str]:
    """Contrasts, each as :func:`compare_groups` takes it.

    Parameters
    ----------
    scans : DataFrame
        Holds the column `group`.
    group : str
        Column of the groups.
    contrast : str
        ``"A:B"``, or several with commas between: ``"A:B,C:B"``. Empty: of two groups their contrast; of more, every group
        against the one that is named like a control group, or every pair when none or several are.

    Returns
    -------
    list[str]
        In the order written; of an empty contrast, in the order of the names of the groups.

    Raises
    ------
    NotComparableError
        When there is no group column, or an empty contrast meets fewer than two groups.
    SettingError
        When a contrast does not name two groups of the column, or one is named twice.

    Examples
    --------
    >>> scans = pd.DataFrame({"group": ["AD", "MCI", "CN"]})
    >>> contrasts_of(scans, group="group")
    ['AD:CN', 'MCI:CN']
    >>> contrasts_of(scans, group="group", contrast="AD:MCI, MCI:CN")
    ['AD:MCI', 'MCI:CN']
    """
    if group not in scans:
        raise NotComparableError("no group column")
    words = level_words(scans[group])
    levels = sorted(words.dropna().unique())
    if not contrast and len(levels) > 2:
        known = [level for level in levels if level.lower() in REFERENCE_WORDS]
        if len(known) == 1:
            return [f"{level}:{known[0]}" for level in levels if level != known[0]]
        return [f"{first}:{second}" for first, second in combinations(levels, 2)]
    # The name of a group may hold a comma.
    sides = {side.strip() for side in contrast.partition(":")[::2]}
    parts = [contrast] if sides <= set(levels) else contrast.split(",")
    found = [":".join(_levels(words, part.strip(), group)) for part in parts]
    if len({frozenset(label.split(":")) for label in found}) < len(found):
        raise SettingError(f"The contrasts '{contrast}' compare the same two groups twice. Name each pair once.")
    return found


def compare_target(scans: pd.DataFrame, *, target: str, covariates: Sequence[str] = (), site: str = "") -> Gradient:
    """Choose the scans that have a number.

    Parameters
    ----------
    scans : DataFrame
        Index scan_id; ``subject_id``, optionally ``session_id``, and the columns named here.
    target : str
        Column of numbers; a scan without one is left out and listed.
    covariates : Sequence[str]
        Columns removed as confounds; the target itself must not be among them.
    site : str
        Column of the site, removed as a confound, and the block within which permutations stay; empty for none.

    Returns
    -------
    Gradient
        The first session of each subject that has the number and every confound.

    Raises
    ------
    NotComparableError
        When there is no such column, too few subjects, or the confounds leave nothing of the target.
    SettingError
        When the column holds words, the target is a covariate too, or a covariate or the site does not exist.
    """
    if target not in scans:
        raise NotComparableError(f"no column '{target}'")
    if target in covariates:
        raise SettingError(f"The target '{target}' is among the covariates, which removes it. Name it in one place.")
    numbers = pd.to_numeric(scans[target], errors="coerce")
    words = scans.loc[numbers.isna() & level_words(scans[target]).notna(), target]
    if len(words):
        raise SettingError(
            f"The target '{target}' of scan {words.index[0]} is '{words.iloc[0]}', not a number ({len(words)} in all). "
            "Name it as the group, or write n/a for a missing value."
        )
    known = np.isfinite(numbers.to_numpy(dtype=np.float64))
    rows, confounds, blocks, left_out = _complete(
        scans,
        known,
        reason=f"no value in column '{target}'",
        covariates=covariates,
        site=site,
        what=f"scan with {target}",
    )
    values = numbers.to_numpy(dtype=np.float64)[rows]
    if len(rows) < MIN_SUBJECTS:
        raise NotComparableError(f"too few: {len(rows)} subjects with {target}; at least {MIN_SUBJECTS} are needed")
    _check_degrees(confounds)
    if not stats.varying(values, confounds)[0]:
        raise NotComparableError(
            f"'{target}' is constant, or the confounds explain it without remainder; drop the confound that equals it"
        )
    return Gradient(rows, values, target, confounds, blocks, left_out)


def _complete(
    scans: pd.DataFrame, wanted: np.ndarray, *, reason: str, covariates: Sequence[str], site: str, what: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, dict[str, list[str]]]:
    """Rows, confounds, blocks and who was left out: the first scan of each subject that has all it needs."""
    sites = [site] if site else []
    confounds = confound_matrix(scans, [*covariates, *sites], levels=sites)
    left_out: dict[str, list[str]] = {}
    complete = np.isfinite(confounds).all(axis=1)
    _list(left_out, reason, scans.index[~wanted])
    _list(left_out, "missing value in a confound", scans.index[wanted & ~complete])
    usable = np.flatnonzero(wanted & complete)
    if len(usable) == 0:
        raise NotComparableError(f"too few: no {what} has every confound")
    rows = usable[first_scans(scans.iloc[usable])]
    _list(left_out, "a later session of the same subject", scans.index[np.setdiff1d(usable, rows)])
    blocks = level_words(scans[site]).to_numpy()[rows].astype(str) if site else None
    return rows, confounds[rows], blocks, left_out


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
    _check_degrees(confounds)
    if not stats.varying(is_case.astype(float), confounds)[0]:
        raise NotComparableError(
            f"the confounds tell {case} from {reference} without error, so no effect of the group can be separated from "
            "them; drop the confound that equals the group"
        )


def _check_degrees(confounds: np.ndarray) -> None:
    rank = stats.confound_basis(confounds, len(confounds)).shape[1]
    if len(confounds) - rank - 1 < MIN_DEGREES:
        raise NotComparableError(f"too few: {len(confounds)} subjects for {rank - 1} confounds")
