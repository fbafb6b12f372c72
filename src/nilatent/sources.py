"""Sources: BIDS folders, derivatives, CAT12 folders and tables of paths, each read into the same table of scans."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from nilatent.errors import CohortError, ScanError
from nilatent.images import ENTITY, bare_label, bids_label, how_to_fetch, is_file, nifti_files
from nilatent.map_names import MODULATIONS, MapName, read_map_name
from nilatent.provenance import hash_file
from nilatent.tables import MISSING_WORDS, RESERVED, pick, read_tsv

PATH_COLUMNS = ("path", "image", "t1w", "gm", "filename", "file")
SUBJECT_COLUMNS = ("participant_id", "subject_id", "subject", "sub")
SESSION_COLUMNS = ("session_id", "session", "ses")
SUFFIXES = ("auto", "T1w", "GM")
# Entities that tell scans apart, not kinds of image; a name outside BIDS has none, and is all subject.
SCAN_ENTITY = re.compile(r"(?:^|_)(?:sub|ses|run|acq|rec|ce)-[^_]+")
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
    if not path.exists():
        raise CohortError(f"There is no source {path}. Name a BIDS folder, a CAT12 folder or a table of paths.")
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
    variables = [name for name in table.columns if name not in (image, subject, session)]
    rows, problems = [], []
    for line, record in zip(table.index, table.to_dict("records"), strict=True):
        place = f"{path.name}, line {line}"
        given = record[subject]
        label = "" if given in MISSING_WORDS else bids_label("sub", given)
        if not label:
            reason = f"{place} has '{given}' as {subject}. Write one with Latin letters and digits."
            problems.append(_problem(f"line-{line}", "", "no subject", reason))
            continue
        ses = "" if session is None or record[session] in MISSING_WORDS else bids_label("ses", record[session])
        scan_id = f"{label}_{ses}" if ses else label
        file = path.parent.absolute() / record[image]
        if record[image] in MISSING_WORDS or not is_file(file):
            step = how_to_fetch(file) or "Correct the path (relative to the table)."
            reason = f"{place} names the image '{record[image]}', which does not exist. {step}"
            problems.append(_problem(scan_id, str(file), "absent image", reason))
            continue
        extra = {_own_name(name): record[name] for name in variables}
        rows.append(
            {"scan_id": scan_id, "subject_id": label, "session_id": ses, "source_id": given, "path": file} | extra
        )
    return _source(path, path.stem, rows, problems, {})


def _read_folder(folder: Path, suffix: str) -> Source:
    kind, images = _images(folder, suffix)
    if not images:
        raise CohortError(
            f"{folder} holds no T1w image (sub-*/**/anat/*_T1w.nii.gz) and no grey-matter map in template space "
            "(*space-MNI*_label-GM_probseg.nii.gz, CAT12's and deepmriprep's mwp1*, SPM's mwc1*; p1*, c1* and label-GM without "
            "space- lie in the subject's own space). Name another folder, or a table of paths."
        )
    rows, problems = [], []
    for path, said in images.items():
        try:
            rows.append(_row_of_image(path, folder, said))
        except ScanError as error:
            problems.append(_problem(path.name.split(".")[0], str(path), error.rule, str(error)))
    rows, others = _one_variant(rows)
    problems += others
    participants, columns = _participants(folder)
    if participants is not None:
        rows, unmatched = _join(rows, participants, folder)
        problems += unmatched
    present = {row["subject_id"] for row in rows} | {problem["scan_id"].split("_")[0] for problem in problems}
    for sub in sorted(path for path in folder.glob("sub-*") if path.is_dir()):
        if bids_label("sub", sub.name) not in present:
            reason = f"{sub} holds no {kind} image. Add it, or remove the folder."
            problems.append(_problem(bids_label("sub", sub.name), str(sub), "absent image", reason))
    return _source(folder, folder.resolve().name, rows, problems, columns)


def _source(
    place: Path, name: str, rows: list[dict[str, Any]], problems: list[dict[str, str]], columns: dict[str, Any]
) -> Source:
    _check_subjects(rows, place)
    rows, repeated = _first_of_each(rows)
    hashed, unreadable = _hashed(rows)
    frame = pd.DataFrame(hashed)
    return Source(re.sub(r"[^A-Za-z0-9]", "", name) or "source", frame, problems + repeated + unreadable, columns)


def _images(folder: Path, suffix: str) -> tuple[str, dict[Path, MapName | None]]:
    """The kind of image and every image of it, with what its name says when it is a map."""
    named = {path: read_map_name(path.name) for path in nifti_files(folder)}
    grey = {path: said for path, said in named.items() if said is not None and said.is_grey}
    if suffix in ("auto", "GM") and grey:
        return "grey-matter", dict(grey)
    stems = {path.name.split(".")[0] for path in named}
    raw = [path for path, said in named.items() if _is_raw(path, folder, said, stems)]
    return "T1w", dict.fromkeys(raw if suffix in ("auto", "T1w") else [])


def _is_raw(path: Path, folder: Path, said: MapName | None, stems: set[str]) -> bool:
    if not re.search(r"_T1w\.nii(\.gz)?$", path.name) or "space-" in path.name:
        return False
    # What SPM and CAT12 make of sub-01_T1w.nii is called p1sub-01_T1w.nii or wmsub-01_T1w.nii.
    made = "sub-" in path.name and not path.name.startswith("sub-")
    if said is not None:
        made = made or said.in_template or said.source in stems or path.parent.name == "mri"
    return not made and "derivatives" not in path.relative_to(folder).parts


def _row_of_image(path: Path, folder: Path, said: MapName | None) -> dict[str, Any]:
    stem = path.name.split(".")[0]
    # SPM and CAT12 put a prefix before the name of the image they were given, which need not be a BIDS name.
    given = said.source if said is not None else stem
    named = dict(ENTITY.findall(given))
    if (oasis := OASIS.match(given)) is not None:
        named, given = {"ses": oasis.group(2)}, oasis.group(1)
    placed = dict(found for part in path.relative_to(folder).parts[:-1] for found in ENTITY.findall(part))
    for entity in named.keys() & placed.keys():
        if named[entity] != placed[entity]:
            raise ScanError(
                f"{path} stands in the folder {entity}-{placed[entity]} and is called {entity}-{named[entity]}. "
                "Find out whose it is, and move or rename it.",
                rule="folder and name disagree",
            )
    entities = placed | named
    source_id = f"sub-{entities['sub']}" if "sub" in entities else re.sub(r"_T1w$", "", given, flags=re.IGNORECASE)
    subject = bids_label("sub", source_id)
    if not subject:
        raise ScanError(f"{path} has no letter or digit to name a subject by. Rename it.", rule="no subject")
    session = bids_label("ses", entities["ses"]) if "ses" in entities else ""
    return {
        "scan_id": f"{subject}_{session}" if session else subject,
        "subject_id": subject,
        "session_id": session,
        "source_id": source_id,
        "path": path.absolute(),
        "variant": said.kind if said is not None else SCAN_ENTITY.sub("", stem) if "sub" in named else "_T1w",
        "rank": said.rank if said is not None else (len(MODULATIONS), False),
    }


def _one_variant(rows: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Rows of one kind of image only (one space, one resolution, one prefix): that of most scans, then the better one."""
    if not rows:
        return [], []
    counted = Counter(variant for _, variant in {(row["scan_id"], row["variant"]) for row in rows})
    ranks = {row["variant"]: row["rank"] for row in rows}
    chosen = min(counted, key=lambda variant: (-counted[variant], ranks[variant], len(variant), variant))
    tied = sorted(variant for variant, times in counted.items() if times == counted[chosen] and variant != chosen)
    if tied:
        others = ", ".join(f"'{variant.strip('_')}'" for variant in tied)
        Console(stderr=True).print(
            f"{rows[0]['path'].parent}: as many scans have maps of the kind {others} as of '{chosen.strip('_')}', which is "
            "taken. For another, name the files in a table of paths.",
            highlight=False,
            markup=False,
        )
    kept = [row for row in rows if row["variant"] == chosen]
    named = {row["scan_id"] for row in kept}
    problems = []
    for row in rows:
        if row["scan_id"] not in named:
            named.add(row["scan_id"])
            reason = (
                f"{row['path']} is another kind of image ('{row['variant'].strip('_')}') than most scans of the folder "
                f"have ('{chosen.strip('_')}'). Make that kind for this scan too, or name the files in a table of paths."
            )
            problems.append(_problem(row["scan_id"], str(row["path"]), "other kind of image", reason))
    return [{key: value for key, value in row.items() if key not in ("variant", "rank")} for row in kept], problems


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


def _participants(folder: Path) -> tuple[pd.DataFrame | None, dict[str, Any]]:
    path = folder / "participants.tsv"
    columns: Any = {}
    if not path.is_file():
        return None, columns
    table = read_tsv(path)
    subject = pick(table, SUBJECT_COLUMNS, path)
    if subject is None:
        raise CohortError(f"{path} has the columns {', '.join(table.columns)}. It needs one called participant_id.")
    table = table[~table[subject].isin(list(MISSING_WORDS))]
    # The whole identifier is compared, not its letters and digits: 1.0 and 1-0 are not subject 10.
    table = table.assign(**{subject: [bare_label("sub", value) for value in table[subject]]})
    dictionary = path.with_suffix(".json")
    if dictionary.is_file():
        try:
            columns = json.loads(dictionary.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError, RecursionError) as error:
            raise CohortError(f"{dictionary} is not JSON: {error}. Mend or remove it.") from error
        if not isinstance(columns, dict):
            raise CohortError(f"{dictionary} is not a JSON object of columns. Mend or remove it.")
    known = {_own_name(str(name)): value for name, value in columns.items() if name in table and name != subject}
    return table.drop_duplicates().rename(columns={subject: "participant_id"}), known


def _join(
    rows: list[dict[str, Any]], participants: pd.DataFrame, folder: Path
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    place = folder / "participants.tsv"
    session = pick(participants, SESSION_COLUMNS, place)
    known = {str(key): part for key, part in participants.groupby("participant_id")}
    joined, problems, imaged = [], [], set()
    for row in rows:
        subject = bare_label("sub", row["source_id"])
        imaged.add(subject)
        try:
            variables = _only_row(known.get(subject, participants.iloc[:0]), row, session, place)
            of_session = _of_session(folder, row)
        except ScanError as error:
            problems.append(_problem(row["scan_id"], str(row["path"]), error.rule, str(error)))
            continue
        variables.pop("participant_id")
        joined.append({_own_name(name): value for name, value in (variables | of_session).items()} | row)
    for subject in sorted(set(known) - imaged):
        label = bids_label("sub", subject) or f"sub-{subject}"
        reason = f"{place} lists {label}, for whom there is no image. Add it, or remove the row."
        problems.append(_problem(label, "", "absent image", reason))
    return joined, problems


def _only_row(table: pd.DataFrame, row: Mapping[str, Any], session: str | None, place: Path) -> dict[str, str]:
    """The one row of a table that is this scan's; where the table has sessions, the row of the scan's session."""
    if session is not None and row["session_id"]:
        wanted = row["session_id"]
        table = table[[value in MISSING_WORDS or bids_label("ses", value) == wanted for value in table[session]]]
    if len(table) != 1:
        rule = f"{'no row' if table.empty else 'several rows'} in {place.name}"
        found = "no row" if table.empty else f"{len(table)} different rows"
        raise ScanError(f"{place} has {found} for {row['scan_id']} ({row['source_id']}). Leave exactly one.", rule=rule)
    only = {str(name): str(value) for name, value in table.iloc[0].items()}
    return {name: value for name, value in only.items() if name != session}


def _of_session(folder: Path, row: Mapping[str, Any]) -> dict[str, str]:
    path = folder / row["source_id"] / f"{row['source_id']}_sessions.tsv"
    if not row["session_id"] or not path.is_file():
        return {}
    table = read_tsv(path).drop_duplicates()
    session = pick(table, SESSION_COLUMNS, path)
    if session is None:
        raise CohortError(f"{path} has the columns {', '.join(table.columns)}. It needs one called session_id.")
    return _only_row(table, row, session, path)


def _own_name(column: str) -> str:
    return f"source_{column}" if column in RESERVED else column


def _problem(scan_id: str, path: str, rule: str, reason: str) -> dict[str, str]:
    return {"scan_id": scan_id, "path": path, "rule": rule, "reason": reason}


def _hashed(rows: Iterable[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    hashed, problems = [], []
    for row in rows:
        try:
            hashed.append(row | {"sha256": hash_file(row["path"]), "path": str(row["path"])})
        except OSError as error:
            step = how_to_fetch(row["path"]) or "Fetch the file, or check its permissions."
            reason = f"{row['path']} cannot be read: {error.strerror}. {step}"
            problems.append(_problem(row["scan_id"], str(row["path"]), "unreadable image", reason))
    return hashed, problems
