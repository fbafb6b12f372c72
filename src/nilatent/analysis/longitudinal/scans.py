"""Who is followed: the visits of every subject in time order, its group, and what is held; or why nothing can be said."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from nilatent.analysis.contrast import (
    MIN_PER_GROUP,
    NotComparableError,
    confound_matrix,
    contrasts_of,
    level_words,
)
from nilatent.analysis.longitudinal.times import AGE, ages_at_visits, with_clock, years_of
from nilatent.analysis.longitudinal.visits import SAME_TIME, LongitudinalConfig, Visits
from nilatent.errors import CohortError, SettingError

EVERYBODY = "everybody"


def visits_of(scans: pd.DataFrame, config: LongitudinalConfig, *, complete: np.ndarray | None = None) -> Visits:
    """The visits of a cohort in time order.

    Parameters
    ----------
    scans : DataFrame
        Index scan_id; ``subject_id``, ``session_id`` where subjects have several, and the columns named in `config`.
    config : LongitudinalConfig
        Settings.
    complete : ndarray, optional
        (scan,) bool: the scan has all its values; others are left out and listed.

    Returns
    -------
    Visits
        Subjects with one visit are kept, because they say something of the level.

    Raises
    ------
    NotComparableError
        When too few subjects were seen at two different times, or nothing can be told apart.
    CohortError
        When a session of a subject stands twice, time runs backwards from one numbered session to the next, or the group of
        a subject changes.
    SettingError
        When a column or a contrast does not exist, or the time is no number.
    """
    config = with_clock(scans, config)
    time, group = years_of(scans, config), _groups(scans, config)
    _check_sessions(scans, time, config)
    _check_groups(scans, group, config)
    sites = [config.site] if config.site else []
    level, pace = (_held(scans, names, time, config) for names in ([*config.covariates, *sites], config.pace))
    whole = np.isfinite(np.column_stack([time, level[0], pace[0]])).all(axis=1)
    left_out: dict[str, list[str]] = {}
    _list(left_out, f"no '{config.time}', covariate or site", scans.index[~whole])
    _list(
        left_out, f"no value, or none of the contrast, in column '{config.group}'", scans.index[whole & (group == "")]
    )
    whole &= group != ""
    if complete is not None:
        _list(left_out, "a missing measure", scans.index[whole & ~complete])
        whole &= complete
    subject = scans["subject_id"].to_numpy().astype(str)
    rows = np.flatnonzero(whole)
    rows = rows[np.lexsort((time[rows], subject[rows]))]
    if len(rows) == 0:
        raise NotComparableError(
            f"no scan has a '{config.time}', a group and every covariate: "
            + "; ".join(f"{len(ids)} scans: {reason}" for reason, ids in left_out.items())
        )
    subject = subject[rows]
    first = np.r_[True, subject[1:] != subject[:-1]]
    opening = np.flatnonzero(first)[np.cumsum(first) - 1]
    site = level_words(scans[config.site]).to_numpy()[rows].astype(str) if config.site else np.full(len(rows), "")
    found = Visits(
        rows=rows,
        subject=subject,
        years=time[rows] - time[rows][opening],
        group=group[rows],
        groups=tuple(sorted(map(str, set(group[rows])))),
        contrasts=_contrasts(scans.iloc[rows], group[rows], config),
        level=_centred(level[0][rows], level[1], opening),
        pace=_centred(pace[0][rows], np.full(pace[0].shape[1], True), opening),
        # A subject is permuted as a whole: with the site where it was seen first.
        block=site[opening],
        left_out=left_out,
    )
    if not found.repeated.any():
        raise NotComparableError(
            f"no subject was seen at two different times ('{config.time}' of {len(rows)} scans of {found.first.sum()} subjects)"
        )
    return _large_enough(found, scans)


def _contrasts(scans: pd.DataFrame, group: np.ndarray, config: LongitudinalConfig) -> tuple[tuple[str, str], ...]:
    if len(set(group)) < 2 and not config.contrast:
        return ()
    odd = sorted(str(name) for name in set(group) if ":" in str(name))
    if odd:
        raise SettingError(
            f"The group '{odd[0]}' of column '{config.group}' has a colon, which parts the groups of a contrast. Rename it."
        )
    pairs = contrasts_of(scans.assign(**{config.group: group}), group=config.group, contrast=config.contrast)
    return tuple((case, reference) for case, _, reference in (pair.partition(":") for pair in pairs))


def _held(
    scans: pd.DataFrame, names: Sequence[str], time: np.ndarray, config: LongitudinalConfig
) -> tuple[np.ndarray, np.ndarray]:
    """(scan, column) values of covariates, and which of these columns count at the first visit because they are time."""
    parts, at_first = [np.empty((len(scans), 0))], list[bool]()
    for name in names:
        plain = confound_matrix(scans, [name], levels=[config.site] if config.site else [])
        if name == config.time:
            plain = time[:, None]
        elif name == AGE and config.step == "year" and pd.api.types.is_numeric_dtype(scans[AGE]):
            plain = ages_at_visits(scans, time)[:, None]
        parts.append(plain)
        at_first += [name in {config.time, "age"}] * parts[-1].shape[1]
    return np.hstack(parts), np.array(at_first, dtype=bool)


def _centred(values: np.ndarray, at_first: np.ndarray, opening: np.ndarray) -> np.ndarray:
    """Values less their mean over first visits; `opening` is the row of the first visit of each row's subject."""
    held = np.where(at_first, values[opening], values)
    return np.asarray(held - values[np.unique(opening)].mean(axis=0))


def _large_enough(found: Visits, scans: pd.DataFrame) -> Visits:
    small = [group for group in found.groups if found.n_repeated(group) < MIN_PER_GROUP]
    for group in small:
        _list(
            found.left_out,
            f"fewer than {MIN_PER_GROUP} subjects of group '{group}' were seen at two different times",
            scans.index[found.rows[found.group == group]],
        )
    return found.take(np.full(len(found.rows), True), least=MIN_PER_GROUP)


def _groups(scans: pd.DataFrame, config: LongitudinalConfig) -> np.ndarray:
    """(scan,) group of the subject, which may be written at one of its visits only; empty where it is nowhere."""
    if config.group not in scans:
        if config.contrast:
            raise SettingError(f"The contrast '{config.contrast}' wants a column '{config.group}', which is not there.")
        return np.full(len(scans), EVERYBODY)
    words = level_words(scans[config.group])
    if words.isna().all() and not config.contrast:
        return np.full(len(scans), EVERYBODY)
    filled = words.groupby(scans["subject_id"].to_numpy()).transform(lambda one: one.ffill().bfill())
    named = {side.strip() for pair in config.contrast.split(",") for side in pair.partition(":")[::2]}
    if config.contrast and named <= set(words.dropna()):
        filled = filled.where(filled.isin(named))
    return filled.fillna("").to_numpy().astype(str)


def _check_groups(scans: pd.DataFrame, group: np.ndarray, config: LongitudinalConfig) -> None:
    of_subject = pd.Series(group, scans["subject_id"].to_numpy()).groupby(level=0)
    several = of_subject.nunique()
    if (several > 1).any():
        who = several.index[several > 1][0]
        raise CohortError(
            f"Subject {who} is in the groups {', '.join(sorted(set(of_subject.get_group(who))))} of column '{config.group}' at "
            f"different visits ({int((several > 1).sum())} such). A rate belongs to one group: write the group of the first "
            "visit, or who changed as a group of its own, in a column."
        )


def _check_sessions(scans: pd.DataFrame, time: np.ndarray, config: LongitudinalConfig) -> None:
    sessions = (
        scans["session_id"].fillna("").astype(str).to_numpy() if "session_id" in scans else np.full(len(scans), "")
    )
    table = pd.DataFrame({"subject": scans["subject_id"].to_numpy().astype(str), "session": sessions, "time": time})
    table = table.assign(cell=level_words(scans[config.time]).to_numpy())
    twice = table.duplicated(["subject", "session"]) & (
        (table["session"] != "") | (table["time"].notna() & table.duplicated(["subject", "session", "time"]))
    )
    if twice.any():
        row = table[twice].iloc[0]
        raise CohortError(
            f"Session '{row['session']}' of subject {row['subject']} stands twice in the cohort ({int(twice.sum())} such). Give "
            "every scan a session of its own, or leave one out."
        )
    numbers = table["session"].str.extract(r"^(\D*?)(\d+)\D*$")
    # Words such as 'pre' and 'post' have no order; numbers under one word do.
    table = table.assign(word=numbers[0], number=pd.to_numeric(numbers[1]))
    table = table.dropna(subset=["time", "number"]).sort_values(["subject", "word", "number"], kind="stable")
    back = (table["time"].diff() < -SAME_TIME) & (table["subject"] == table["subject"].shift())
    back &= table["word"] == table["word"].shift()
    if back.any():
        later = int(np.flatnonzero(back)[0])
        one, other = table.iloc[later - 1], table.iloc[later]
        raise CohortError(
            f"Time runs backwards in subject {one['subject']}: '{config.time}' is {one['cell']} at session {one['session']} "
            f"and {other['cell']} at session {other['session']} ({int(back.sum())} such). Correct the sessions or the column."
        )


def _list(left_out: dict[str, list[str]], reason: str, scan_ids: Sequence[str] | pd.Index) -> None:
    if len(scan_ids):
        left_out[reason] = [str(scan_id) for scan_id in scan_ids]
