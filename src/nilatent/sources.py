"""Sources: BIDS folders, derivatives, CAT12 folders and tables of paths, each read into the same table of scans."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from nilatent.choice import one_image, one_kind, problem
from nilatent.errors import CohortError, ScanError
from nilatent.images import (
    MAX_IMAGE_BYTES,
    MAX_LABEL,
    bare_label,
    bids_label,
    entities,
    how_to_fetch,
    is_file,
    name_fault,
    nifti_files,
    spelled,
    stem_of,
)
from nilatent.map_names import MODULATIONS, MapName, read_map_name
from nilatent.participants import SESSION_COLUMNS, SUBJECT_COLUMNS, TAKEN, join_participants, read_participants
from nilatent.provenance import hash_file
from nilatent.tables import MISSING_WORDS, own_names, pick, read_tsv

PATH_COLUMNS = ("path", "image", "t1w", "gm", "filename", "file")
SUFFIXES = ("auto", "T1w", "GM")
# Entities that tell scans apart, not kinds of image; a name outside BIDS has none, and is all subject.
SCAN_ENTITY = re.compile(r"(?:^|_)(?:sub|ses|run|acq|rec|ce)-[^_]+", re.IGNORECASE)
RAW_NAME = re.compile(r"(?:^|_)T1w\.nii(\.gz)?$", re.IGNORECASE)
IMAGE_ENDING = re.compile(r"\.(nii|nii\.gz|mgz|mgh|img|hdr|mnc|dcm|nrrd)$", re.IGNORECASE)
# OASIS writes subject and session in one word.
OASIS = re.compile(r"^(OAS\d_\d{4})_(MR\d+)")


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
        When the path does not exist, is of no known kind, holds no image, or writes two subjects so alike that they
        could be one.
    """
    if suffix not in SUFFIXES:
        raise CohortError(f"The image suffix is one of {', '.join(SUFFIXES)}, got '{suffix}'.")
    path = spelled(path)
    if not path.exists():
        step = how_to_fetch(path) or "Name a BIDS folder, a CAT12 folder or a table of paths."
        raise CohortError(f"There is no source {path}. {step}")
    if fault := name_fault(path.absolute()):
        raise CohortError(fault)
    if path.is_file() and IMAGE_ENDING.search(path.name):
        raise CohortError(
            f"{path} is one image. Name the folder that holds the images, or a table with the columns participant_id and path."
        )
    source = _read_table_of_paths(path) if path.is_file() else _read_folder(path, suffix)
    if source.scans.empty:
        listed = "".join(f"\n  {row['scan_id']}: {row['reason']}" for row in source.problems[:5])
        raise CohortError(f"{path} gives no scan that can be used.{listed}\nCheck the path and the file names.")
    return source


def _read_table_of_paths(path: Path) -> Source:
    table = read_tsv(path)
    image, subject = pick(table, PATH_COLUMNS, path), pick(table, SUBJECT_COLUMNS, path)
    if image is None or subject is None:
        raise CohortError(
            f"{path} has the columns {', '.join(table.columns)}. A table of paths needs one called path and one called "
            "participant_id."
        )
    session = pick(table, SESSION_COLUMNS, path)
    given = [str(name) for name in table.columns if name not in (image, subject, session)]
    names = own_names(given, TAKEN)
    rows: list[tuple[int, dict[str, Any]]] = []
    problems = []
    for line, cells in zip(table.index, table.to_dict("records"), strict=True):
        record = {str(name): str(cell) for name, cell in cells.items()}
        try:
            row = _row_of_record(record, (subject, session, image), path, int(line))
        except ScanError as error:
            scan_id, file = _named(record, (subject, session, image), path, int(line))
            problems.append(problem(scan_id, file, error.rule, str(error)))
            continue
        rows.append((int(line), row | {names[name]: record[name] for name in given}))
    _check_subjects([row for _, row in rows], path)
    kept, repeated = _one_row(rows, path)
    return _source(path.stem, kept, problems + repeated, {})


def _named(record: Mapping[str, str], columns: tuple[str, str | None, str], table: Path, line: int) -> tuple[str, str]:
    """Identifier and file of a row that cannot be used, as far as it names them."""
    subject, session, image = columns
    label = "" if record[subject] in MISSING_WORDS else bids_label("sub", record[subject])
    if not label:
        return f"line-{line}", ""
    ses = "" if session is None or record[session] in MISSING_WORDS else bids_label("ses", record[session])
    return f"{label}_{ses}" if ses else label, str(table.parent.absolute() / record[image])


def _row_of_record(
    record: Mapping[str, str], columns: tuple[str, str | None, str], table: Path, line: int
) -> dict[str, Any]:
    subject, session, image = columns
    place, given, cell = f"{table.name}, line {line}", record[subject], record[image]
    label = "" if given in MISSING_WORDS else bids_label("sub", given)
    if not label:
        raise ScanError(
            f"{place} has '{given}' as {subject}. Write one with Latin letters and digits.", rule="no subject"
        )
    ses = "" if session is None or record[session] in MISSING_WORDS else bids_label("ses", record[session])
    _check_labels(label, ses, place)
    file = spelled(table.parent.absolute() / cell)
    if cell.startswith("~") and not is_file(file):
        file = spelled(Path(cell))
    if cell in MISSING_WORDS or not is_file(file):
        found = "which is a folder" if cell not in MISSING_WORDS and _is_folder(file) else "which does not exist"
        step = how_to_fetch(file) or "Correct the path (relative to the table)."
        raise ScanError(f"{place} names the image '{cell}', {found}. {step}", rule="absent image")
    if fault := name_fault(file):
        raise ScanError(f"{place}: {fault}", rule="name of the file")
    scan_id = f"{label}_{ses}" if ses else label
    return {"scan_id": scan_id, "subject_id": label, "session_id": ses, "source_id": given, "path": file}


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def _one_row(rows: list[tuple[int, dict[str, Any]]], path: Path) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """One row of every scan; of rows that contradict one another none."""
    scans: dict[str, list[tuple[int, dict[str, Any]]]] = defaultdict(list)
    for line, row in rows:
        scans[row["scan_id"]].append((line, row))
    kept, problems = [], []
    for scan_id, mine in scans.items():
        (line, first), *others = mine
        differing = {name for _, row in others for name in row if row[name] != first[name]}
        if differing - {"source_id"}:
            name = min(differing - {"source_id"}, key=list(first).index)
            values = ", ".join(f"'{row[name]}' in line {at}" for at, row in mine[:5])
            reason = (
                f"{path.name} has {len(mine)} rows for {scan_id} that differ, such as in {name}: {values}. Leave one, or give "
                "each its own session (a column session_id)."
            )
            problems.append(problem(scan_id, first["path"], "several rows", reason))
            continue
        kept.append(first)
        for at, row in others:
            reason = f"{path.name}, line {at}, says the same of {scan_id} as line {line}. Remove one of them."
            problems.append(problem(scan_id, row["path"], "repeated row", reason))
    return kept, problems


def _check_labels(subject: str, session: str, place: str) -> None:
    for label in (subject.removeprefix("sub-"), session.removeprefix("ses-")):
        if len(label) > MAX_LABEL:
            raise ScanError(
                f"{place} has the label '{label[:20]}...' of {len(label)} letters and digits; file names hold labels of up to "
                f"{MAX_LABEL}. Shorten it.",
                rule="length of a label",
            )


def _read_folder(folder: Path, suffix: str) -> Source:
    unlisted: list[str] = []
    found = nifti_files(folder, unlisted=unlisted)
    for line in unlisted:
        _say(f"{line}. What lies in it is not taken: check its permissions.")
    faults = {path: fault for path in found if (fault := name_fault(path.absolute()))}
    kind, images = _images(folder, suffix, [path for path in found if path not in faults])
    if not images:
        raise CohortError(
            f"{folder} holds no T1w image (sub-*/**/anat/*_T1w.nii.gz) and no grey-matter map in template space "
            "(*space-MNI*_label-GM_probseg.nii.gz, CAT12's and deepmriprep's mwp1*, SPM's mwc1*; p1*, c1* and label-GM without "
            "space- lie in the subject's own space). Name another folder, or a table of paths."
        )
    problems = [
        problem(
            re.sub(r"\s+", " ", _shown(stem_of(path.name))),
            re.sub(r"\s+", " ", _shown(path)),
            "name of the file",
            fault,
        )
        for path, fault in faults.items()
    ]
    rows = []
    for path, said in images.items():
        try:
            rows.append(_row_of_image(path, folder, said))
        except ScanError as error:
            problems.append(problem(stem_of(path.name), path, error.rule, str(error)))
    rows, others = one_kind(rows)
    _check_subjects(rows, folder)
    rows, passed_over = one_image(rows)
    problems += others + passed_over
    participants = read_participants(folder)
    if participants is not None:
        rows, unmatched = join_participants(rows, participants, folder)
        # A scan that was left out above has a row all the same.
        listed = {problem["scan_id"] for problem in problems}
        problems += [row for row in unmatched if row["path"] or row["scan_id"] not in listed]
    present = {row["subject_id"] for row in rows} | {problem["scan_id"].split("_")[0] for problem in problems}
    for sub in sorted(path for path in folder.glob("sub-*") if path.is_dir()):
        if bids_label("sub", sub.name) not in present:
            reason = f"{sub} holds no {kind} image. Add it, or remove the folder."
            problems.append(problem(bids_label("sub", sub.name), _shown(sub), "absent image", reason))
    columns = participants.columns if participants is not None else {}
    return _source(folder.resolve().name, rows, problems, columns)


def _shown(text: Path | str) -> str:
    """A path or name as any file can hold it."""
    return str(text).encode("utf-8", "backslashreplace").decode()


def _say(line: str) -> None:
    Console(stderr=True, soft_wrap=True, highlight=False, markup=False).print(_shown(line), style="yellow")


def _source(name: str, rows: list[dict[str, Any]], problems: list[dict[str, str]], columns: dict[str, Any]) -> Source:
    hashed, unreadable = _hashed(rows)
    frame = pd.DataFrame(hashed)
    return Source(re.sub(r"[^A-Za-z0-9]", "", name) or "source", frame, problems + unreadable, columns)


def _images(folder: Path, suffix: str, found: Iterable[Path]) -> tuple[str, dict[Path, MapName | None]]:
    """The kind of image and every image of it, with what its name says when it is a map."""
    named = {path: read_map_name(path.name) for path in found}
    grey = {path: said for path, said in named.items() if said is not None and said.is_grey}
    stems = {stem_of(path.name) for path in named}
    raw = [path for path, said in named.items() if _is_raw(path, folder, said, stems)]
    if suffix in ("auto", "GM") and grey:
        if suffix == "auto" and raw:
            _say(
                f"{folder}: {len(grey)} grey-matter maps are taken, and {len(raw)} T1w images are not. To prepare these instead, "
                'set study.image = "T1w".'
            )
        return "grey-matter", dict(grey)
    return "T1w", dict.fromkeys(raw if suffix in ("auto", "T1w") else [])


def _is_raw(path: Path, folder: Path, said: MapName | None, stems: set[str]) -> bool:
    if RAW_NAME.search(path.name) is None or "space-" in path.name:
        return False
    # What SPM and CAT12 make of sub-01_T1w.nii is called p1sub-01_T1w.nii or wmsub-01_T1w.nii.
    made = "sub-" in path.name and not path.name.startswith("sub-")
    if said is not None:
        made = made or said.in_template or said.source in stems or path.parent.name == "mri"
    return not made and "derivatives" not in path.relative_to(folder).parts


def _row_of_image(path: Path, folder: Path, said: MapName | None) -> dict[str, Any]:
    stem = stem_of(path.name)
    # SPM and CAT12 put a prefix before the name of the image they were given, which need not be a BIDS name.
    given = said.source if said is not None else stem
    named = entities(given)
    if (oasis := OASIS.match(given)) is not None:
        named, given = {"ses": oasis.group(2)}, oasis.group(1)
    placed = {key: label for part in path.relative_to(folder).parts[:-1] for key, label in entities(part).items()}
    for entity in named.keys() & placed.keys():
        if named[entity] != placed[entity]:
            raise ScanError(
                f"{path} stands in the folder {entity}-{placed[entity]} and is called {entity}-{named[entity]}. "
                "Find out whose it is, and move or rename it.",
                rule="folder and name disagree",
            )
    both = placed | named
    source_id = f"sub-{both['sub']}" if "sub" in both else re.sub(r"_T1w$", "", given, flags=re.IGNORECASE)
    subject = bids_label("sub", source_id)
    if not subject:
        raise ScanError(f"{path} has no letter or digit to name a subject by. Rename it.", rule="no subject")
    session = bids_label("ses", both["ses"]) if "ses" in both else ""
    _check_labels(subject, session, str(path))
    return {
        "scan_id": f"{subject}_{session}" if session else subject,
        "subject_id": subject,
        "session_id": session,
        "source_id": source_id,
        "path": path.absolute(),
        "variant": said.kind
        if said is not None
        else SCAN_ENTITY.sub("", stem).casefold()
        if "sub" in named
        else "_t1w",
        "rank": said.rank if said is not None else (len(MODULATIONS), False),
    }


def _check_subjects(rows: Iterable[Mapping[str, Any]], place: Path) -> None:
    known: dict[str, str] = {}
    for row in rows:
        given = bare_label("sub", row["source_id"])
        label = row["subject_id"].removeprefix("sub-").casefold()
        alike = known.setdefault(label.lstrip("0") if label.isdigit() else label, given)
        if alike != given:
            raise CohortError(
                f"{place} has the subjects '{alike}' and '{given}', which could be one person: only letters and digits "
                "count, and neither case nor leading zeros tell subjects apart. Write one person in one way, and two "
                "persons differently."
            )


def _hashed(rows: Iterable[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    hashed, problems = [], []
    for row in rows:
        path = row["path"]
        try:
            size = path.stat().st_size
            if size > MAX_IMAGE_BYTES:
                reason = (
                    f"{path} has {size} bytes; no scan has more than {MAX_IMAGE_BYTES}. Look what it is, and convert the scan "
                    "again."
                )
                problems.append(problem(row["scan_id"], path, "plausible size", reason))
                continue
            hashed.append(row | {"sha256": hash_file(path), "path": str(path)})
        except OSError as error:
            step = how_to_fetch(path) or "Fetch the file, or check its permissions."
            reason = f"{path} cannot be read: {error.strerror}. {step}"
            problems.append(problem(row["scan_id"], path, "unreadable image", reason))
    return hashed, problems
