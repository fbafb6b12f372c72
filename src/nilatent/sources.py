"""Sources: BIDS folders, derivatives, CAT12 folders and tables of paths, each read into the same table of scans."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd

from nilatent.errors import CohortError
from nilatent.provenance import hash_file

MISSING_WORDS = frozenset({"", "n/a", "N/A", "na", "NA", "nan", "NaN", "null", "None", "."})
PATH_COLUMNS = ("path", "image", "t1w", "gm", "filename", "file")
SUBJECT_COLUMNS = ("participant_id", "subject_id", "subject", "sub")
SESSION_COLUMNS = ("session_id", "session", "ses")
SUFFIXES = ("auto", "T1w", "GM")
ENDINGS = (".nii.gz", ".nii")
ENTITY = re.compile(r"(?:^|_)(sub|ses|space|label|desc|run|acq|res)-([A-Za-z0-9]+)")
CAT12_MAP = re.compile(r"^s?\d*m0?wp1(?P<rest>.+)$")


@dataclass(frozen=True, eq=False)
class Source:
    """What one source holds.

    Parameters
    ----------
    name : str
        Letters and digits only.
    scans : DataFrame
        ``scan_id``, ``subject_id``, ``session_id``, ``source_id``, ``path``, ``sha256`` and variables as text.
    problems : list[dict[str, str]]
        Scans that could not be taken: ``scan_id``, ``path``, ``rule``, ``reason``.
    columns : dict[str, Any]
        Data dictionary, where the source has one.
    """

    name: str
    scans: pd.DataFrame
    problems: list[dict[str, str]] = field(default_factory=list)
    columns: dict[str, Any] = field(default_factory=dict)


def read_source(path: Path, *, suffix: str) -> Source:
    """Read one source, whatever its kind.

    Parameters
    ----------
    path : Path
        Folder or table.
    suffix : str
        ``"auto"``, ``"T1w"`` or ``"GM"``.

    Returns
    -------
    Source
        At least one scan.

    Raises
    ------
    CohortError
        When the path does not exist, is of no known kind, or holds no image.
    """
    if suffix not in SUFFIXES:
        raise CohortError(f"The image suffix is one of {', '.join(SUFFIXES)}, got '{suffix}'.")
    if not path.exists():
        raise CohortError(f"There is no source {path}. Name a BIDS folder, a CAT12 folder or a table of paths.")
    source = _read_table_of_paths(path) if path.is_file() else _read_folder(path, suffix)
    if source.scans.empty:
        listed = "".join(f"\n  {row['scan_id']}: {row['reason']}" for row in source.problems[:5])
        raise CohortError(f"{path} gives no scan that can be used.{listed}\nCheck the path and the file names.")
    return source


def read_tsv(path: Path) -> pd.DataFrame:
    """A TSV or CSV as text: byte-order mark, line ends and encoding forgiven.

    Raises
    ------
    CohortError
        When the file is empty, its rows differ in length, or a column name repeats.
    """
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    lines = text.splitlines()
    if not lines:
        raise CohortError(f"{path} is empty. It needs a line of column names and one line per row.")
    separator = "\t" if "\t" in lines[0] or path.suffix == ".tsv" else (";" if ";" in lines[0] else ",")
    header = [name.strip().strip('"') for name in lines[0].split(separator)]
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise CohortError(
            f"{path} has the column '{twice[0]}' twice. Every column name stands once: rename or remove one."
        )
    try:
        table = pd.read_csv(StringIO(text), sep=separator, dtype=str, keep_default_na=False, skipinitialspace=True)
    except pd.errors.ParserError as error:
        raise CohortError(
            f"{path} cannot be read as a table: {error}. Every row has as many cells as the header."
        ) from error
    table.columns = [str(name).strip() for name in table.columns]
    return pd.DataFrame({name: table[name].fillna("").astype(str).str.strip() for name in table.columns})


def _read_table_of_paths(path: Path) -> Source:
    table = read_tsv(path)
    image = _pick(table, PATH_COLUMNS)
    subject = _pick(table, SUBJECT_COLUMNS)
    if image is None or subject is None:
        raise CohortError(
            f"{path} has the columns {', '.join(table.columns)}. A table of paths needs one called path and one called "
            "participant_id."
        )
    session = _pick(table, SESSION_COLUMNS)
    variables = [name for name in table.columns if name not in (image, subject, session)]
    rows, problems = [], []
    for position, record in enumerate(table.to_dict("records")):
        given = record[subject]
        label = _label("sub", given)
        ses = _label("ses", record[session]) if session is not None and record[session] not in MISSING_WORDS else ""
        scan_id = f"{label}_{ses}" if ses else label
        place = f"{path.name}, line {position + 2}"
        if given in MISSING_WORDS:
            problems.append(
                _problem(f"line-{position + 2}", "", "no subject", f"{place} has no {subject}. Fill it in.")
            )
            continue
        file = (path.parent / record[image]).resolve() if record[image] not in MISSING_WORDS else None
        if file is None or not file.is_file():
            reason = f"{place} names the image '{record[image]}', which does not exist. Correct the path (relative to the table)."
            problems.append(_problem(scan_id, str(file or ""), "absent image", reason))
            continue
        extra = {name: record[name] for name in variables}
        rows.append(
            {"scan_id": scan_id, "subject_id": label, "session_id": ses, "source_id": given, "path": file} | extra
        )
    rows, repeated = _first_of_each(rows)
    return Source(_name(path.stem), _frame(rows), problems + repeated)


def _read_folder(folder: Path, suffix: str) -> Source:
    kind, images = _images(folder, suffix)
    if not images:
        raise CohortError(
            f"{folder} holds no T1w image (sub-*/**/anat/*_T1w.nii.gz), no grey-matter map in template space "
            "(*space-MNI*_label-GM_probseg.nii.gz) and no CAT12 map (mri/mwp1*.nii). Name another folder, or a table of paths."
        )
    rows, repeated = _first_of_each([_row_of_image(path, kind) for path in images])
    participants, columns = _participants(folder)
    problems = list(repeated)
    if participants is not None:
        rows, unmatched = _join(rows, participants, folder)
        problems += unmatched
    present = {row["subject_id"] for row in rows} | {problem["scan_id"].split("_")[0] for problem in problems}
    for sub in sorted(path for path in folder.glob("sub-*") if path.is_dir()):
        if sub.name not in present:
            reason = f"{sub} holds no {kind} image. Add it, or remove the folder."
            problems.append(_problem(sub.name, str(sub), "absent image", reason))
    return Source(_name(folder.resolve().name), _frame(rows), problems, columns)


def _images(folder: Path, suffix: str) -> tuple[str, list[Path]]:
    files = sorted(
        path for path in folder.rglob("*.nii*") if path.name.endswith(ENDINGS) and not path.name.startswith(".")
    )
    grey = [path for path in files if "label-GM_probseg" in path.name and "space-MNI" in path.name]
    cat12 = [path for path in files if CAT12_MAP.match(path.name)]
    raw = [path for path in files if re.search(r"_T1w\.nii(\.gz)?$", path.name) and "derivatives" not in path.parts]
    raw = [path for path in raw if "space-" not in path.name]
    if suffix in ("auto", "GM") and (grey or cat12):
        return "grey-matter", grey or cat12
    return "T1w", raw if suffix in ("auto", "T1w") else []


def _row_of_image(path: Path, kind: str) -> dict[str, Any]:
    entities = dict(ENTITY.findall(path.name.split(".")[0]))
    if "sub" not in entities:
        # CAT12 keeps the name of the image it was given, which need not be BIDS.
        match = CAT12_MAP.match(path.name.split(".")[0])
        given = match.group("rest") if match is not None and kind != "T1w" else path.name.split(".")[0]
        label = _label("sub", given)
        return {"scan_id": label, "subject_id": label, "session_id": "", "source_id": given, "path": path.resolve()}
    subject, session = f"sub-{entities['sub']}", f"ses-{entities['ses']}" if "ses" in entities else ""
    scan_id = f"{subject}_{session}" if session else subject
    return {
        "scan_id": scan_id,
        "subject_id": subject,
        "session_id": session,
        "source_id": subject,
        "path": path.resolve(),
    }


def _first_of_each(rows: Iterable[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    kept: dict[str, dict[str, Any]] = {}
    problems = []
    for row in rows:
        if row["scan_id"] in kept:
            reason = (
                f"{row['path']} is a second image of {row['scan_id']}, for which {kept[row['scan_id']]['path']} is used. "
                "Name the one you want in a table of paths, or give each its own session."
            )
            problems.append(_problem(row["scan_id"], str(row["path"]), "second image", reason))
        else:
            kept[row["scan_id"]] = row
    return list(kept.values()), problems


def _participants(folder: Path) -> tuple[pd.DataFrame | None, dict[str, Any]]:
    path = folder / "participants.tsv"
    columns: dict[str, Any] = {}
    if not path.is_file():
        return None, columns
    table = read_tsv(path)
    subject = _pick(table, SUBJECT_COLUMNS)
    if subject is None:
        raise CohortError(f"{path} has the columns {', '.join(table.columns)}. It needs one called participant_id.")
    table = table.rename(columns={subject: "participant_id"})
    table["participant_id"] = [_label("sub", value) for value in table["participant_id"]]
    dictionary = path.with_suffix(".json")
    if dictionary.is_file():
        try:
            columns = json.loads(dictionary.read_text(encoding="utf-8-sig"))
        except ValueError as error:
            raise CohortError(f"{dictionary} is not JSON: {error}. Mend or remove it.") from error
    return table.drop_duplicates(), {str(name): value for name, value in columns.items() if name in table}


def _join(
    rows: list[dict[str, Any]], participants: pd.DataFrame, folder: Path
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    known = {str(key): part for key, part in participants.groupby("participant_id")}
    joined, problems = [], []
    for row in rows:
        own = known.get(row["subject_id"])
        if own is None or len(own) > 1:
            rule = "no row in participants.tsv" if own is None else "several rows in participants.tsv"
            found = "no row" if own is None else f"{len(own)} different rows"
            reason = f"{folder / 'participants.tsv'} has {found} for {row['subject_id']}. Leave exactly one."
            problems.append(_problem(row["scan_id"], str(row["path"]), rule, reason))
            continue
        variables = own.drop(columns="participant_id").iloc[0].to_dict() | _of_session(folder, row)
        joined.append({str(name): value for name, value in variables.items() if name not in row} | row)
    imaged = {row["subject_id"] for row in rows}
    for subject in sorted(set(known) - imaged):
        reason = (
            f"{folder / 'participants.tsv'} lists {subject}, for whom there is no image. Add it, or remove the row."
        )
        problems.append(_problem(subject, "", "absent image", reason))
    return joined, problems


def _of_session(folder: Path, row: Mapping[str, Any]) -> dict[str, str]:
    path = folder / row["subject_id"] / f"{row['subject_id']}_sessions.tsv"
    if not row["session_id"] or not path.is_file():
        return {}
    table = read_tsv(path)
    session = _pick(table, SESSION_COLUMNS)
    if session is None:
        raise CohortError(f"{path} has the columns {', '.join(table.columns)}. It needs one called session_id.")
    own = table[[_label("ses", value) == row["session_id"] for value in table[session]]]
    return {str(key): value for key, value in own.drop(columns=session).iloc[0].items()} if len(own) == 1 else {}


def _pick(table: pd.DataFrame, names: Iterable[str]) -> str | None:
    lower = {str(column).lower(): str(column) for column in table.columns}
    return next((lower[name] for name in names if name in lower), None)


def _label(entity: str, value: str) -> str:
    bare = re.sub(r"[^A-Za-z0-9]", "", str(value).removeprefix(f"{entity}-"))
    return f"{entity}-{bare}"


def _name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]", "", text) or "source"


def _problem(scan_id: str, path: str, rule: str, reason: str) -> dict[str, str]:
    return {"scan_id": scan_id, "path": path, "rule": rule, "reason": reason}


def _frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    frame = pd.DataFrame(rows)
    if not frame.empty:
        frame["sha256"] = [_hash(path) for path in frame["path"]]
        frame["path"] = frame["path"].astype(str)
    return frame


def _hash(path: Path) -> str:
    try:
        return hash_file(path)
    except OSError as error:
        raise CohortError(f"{path} cannot be read: {error.strerror}. Check its permissions.") from error
