"""Participants: the rows of participants.tsv and of the sessions' tables, joined to the images of a BIDS folder."""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from nilatent.choice import problem
from nilatent.errors import CohortError, ScanError
from nilatent.images import bare_label, bids_label
from nilatent.tables import MISSING_WORDS, RESERVED, own_names, pick, read_described, read_tsv

SUBJECT_COLUMNS = ("participant_id", "subject_id", "subject", "sub")
SESSION_COLUMNS = ("session_id", "session", "ses")
# What the cohort fills itself, and what would be taken for the place of a file: a source's own is kept as `source_<name>`.
TAKEN = (*RESERVED, "gm_path")
DIFFERENCES_SHOWN = 3


@dataclass(frozen=True, eq=False)
class Participants:
    """The table of participants of a folder.

    Parameters
    ----------
    table : DataFrame
        Text; ``participant_id`` without ``sub-``, the index counts the lines of the file. Equal rows stand once.
    problems : list[dict[str, str]]
        Rows without an identifier.
    columns : dict[str, Any]
        Data dictionary.
    """

    table: pd.DataFrame
    problems: list[dict[str, str]]
    columns: dict[str, Any]


def read_participants(folder: Path) -> Participants | None:
    """Read ``participants.tsv`` and its data dictionary; None when there is none.

    Raises
    ------
    CohortError
        When either cannot be read, or the table has no column of identifiers.
    """
    path = folder / "participants.tsv"
    if not path.is_file():
        _name_others(folder)
        return None
    table = read_tsv(path)
    subject = pick(table, SUBJECT_COLUMNS, path)
    if subject is None:
        raise CohortError(f"{path} has the columns {', '.join(table.columns)}. It needs one called participant_id.")
    nameless = table[subject].isin(list(MISSING_WORDS))
    problems = [
        problem(
            f"line-{line}", "", "no subject", f"{path}, line {line}, has no {subject}. Write it, or remove the row."
        )
        for line in table.index[nameless]
    ]
    table = table[~nameless]
    # The whole identifier is compared, not its letters and digits: 1.0 and 1-0 are not subject 10.
    table = table.assign(**{subject: [bare_label("sub", value) for value in table[subject]]})
    dictionary = path.with_suffix(".json")
    columns: dict[str, Any] = {}
    if dictionary.is_file():
        try:
            columns = read_described(dictionary)
        except (OSError, ValueError) as error:
            raise CohortError(
                f"{dictionary} cannot be read as a data dictionary: {error}. Mend or remove it."
            ) from error
    names = own_names(table.columns, TAKEN)
    known = {names[name]: value for name, value in columns.items() if name in table and name != subject}
    return Participants(table.drop_duplicates().rename(columns={subject: "participant_id"}), problems, known)


def _name_others(folder: Path) -> None:
    """Say which table of participants was not read because it is called otherwise."""
    others = sorted(path.name for path in folder.iterdir() if re.match(r"participants\b.*\.\w+$", path.name, re.I))
    others = [name for name in others if not name.endswith(".json")]
    if others:
        Console(stderr=True, soft_wrap=True, highlight=False, markup=False).print(
            f"{folder} has no participants.tsv, so the scans have no variables. {', '.join(others)} was not read: save it as "
            "text parted by tabs, with the name participants.tsv.",
            style="yellow",
        )


def join_participants(
    rows: list[dict[str, Any]], participants: Participants, folder: Path
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """The variables of every image's subject and session.

    Parameters
    ----------
    rows : list[dict[str, Any]]
        Images, with ``scan_id``, ``source_id``, ``session_id`` and ``path``.
    participants : Participants
        From :func:`read_participants`.
    folder : Path
        The source, in which tables of sessions may lie.

    Returns
    -------
    list[dict[str, Any]]
        The images that have one row.
    list[dict[str, str]]
        Images without one row, and rows without an image.
    """
    table, place = participants.table, folder / "participants.tsv"
    session = pick(table, SESSION_COLUMNS, place)
    names = own_names(table.columns, TAKEN)
    lines: dict[str, list[int]] = defaultdict(list)
    alike: dict[str, list[str]] = defaultdict(list)
    for position, key in enumerate(table["participant_id"]):
        if key not in lines:
            alike[_folded(key)].append(key)
        lines[key].append(position)
    joined, problems, imaged = [], list(participants.problems), set()
    for row in rows:
        subject = bare_label("sub", row["source_id"])
        imaged.add(subject)
        try:
            mine = table.iloc[lines.get(subject, [])]
            if mine.empty:
                raise _no_row(place, row, alike[_folded(subject)])
            variables = _only_row(mine, row, session, place)
            of_session = _of_session(folder, row)
        except (ScanError, CohortError) as error:
            rule = error.rule if isinstance(error, ScanError) else "table of sessions"
            problems.append(problem(row["scan_id"], row["path"], rule, str(error)))
            continue
        variables.pop("participant_id")
        joined.append({names[name]: value for name, value in variables.items()} | of_session | row)
    for subject in sorted(set(lines) - imaged):
        label = bids_label("sub", subject) or f"sub-{subject}"
        line = table.index[lines[subject][0]]
        reason = f"{place}, line {line}, lists {label}, for whom there is no image. Add it, or remove the row."
        problems.append(problem(label, "", "absent image", reason))
    return joined, problems


def _folded(label: str) -> str:
    """What is left of an identifier when case, leading zeros and marks between letters do not count."""
    return re.sub(r"[^a-z0-9]", "", label.casefold()).lstrip("0")


def _no_row(place: Path, row: Mapping[str, Any], near: list[str]) -> ScanError:
    step = "Add it, or take the image away."
    if near:
        step = (
            f"It has '{near[0]}', which differs in case, leading zeros or marks only: write both alike (spreadsheets drop "
            "leading zeros)."
        )
    return ScanError(
        f"{place} has no row for {row['scan_id']} ({row['source_id']}). {step}", rule=f"no row in {place.name}"
    )


def _only_row(table: pd.DataFrame, row: Mapping[str, Any], session: str | None, place: Path) -> dict[str, str]:
    """The one row of a table that is this scan's; where the table has sessions, the row of the scan's session."""
    if session is not None and row["session_id"]:
        wanted = row["session_id"]
        table = table[[value in MISSING_WORDS or bids_label("ses", value) == wanted for value in table[session]]]
    if table.empty:
        raise ScanError(
            f"{place} has no row for {row['scan_id']} ({row['source_id']}). Add one for this session.",
            rule=f"no row in {place.name}",
        )
    if len(table) > 1:
        raise ScanError(
            f"{place} has {len(table)} different rows for {row['scan_id']} ({row['source_id']}): lines "
            f"{', '.join(map(str, table.index[:5]))} differ in {_differences(table)}. Leave exactly one.",
            rule=f"several rows in {place.name}",
        )
    only = {str(name): str(value) for name, value in table.iloc[0].items()}
    return {name: value for name, value in only.items() if name != session}


def _differences(table: pd.DataFrame) -> str:
    differing = [str(name) for name in table if table[name].nunique() > 1]
    shown = [f"{name} ('{table[name].iloc[0]}', '{table[name].iloc[1]}')" for name in differing[:DIFFERENCES_SHOWN]]
    return ", ".join(shown) + (f" and {len(differing) - len(shown)} more" if len(differing) > len(shown) else "")


def _of_session(folder: Path, row: Mapping[str, Any]) -> dict[str, str]:
    path = folder / row["source_id"] / f"{row['source_id']}_sessions.tsv"
    if not row["session_id"] or not path.is_file():
        return {}
    table = read_tsv(path).drop_duplicates()
    session = pick(table, SESSION_COLUMNS, path)
    if session is None:
        raise CohortError(f"{path} has the columns {', '.join(table.columns)}. It needs one called session_id.")
    names = own_names(table.columns, TAKEN)
    return {names[name]: value for name, value in _only_row(table, row, session, path).items()}
