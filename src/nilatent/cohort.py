"""Cohort: one row per scan with its image and its subject's variables; reader, writer, exclusions and the split."""

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from nilatent import further, sources
from nilatent.errors import CohortError
from nilatent.provenance import atomic, hash_values, read_json, write_json
from nilatent.tables import MISSING_WORDS, RESERVED, image_columns, read_tsv
from nilatent.variables import check_age, check_units, nearly_numbers, sex, typed

EXCLUDED_COLUMNS = ("scan_id", "path", "stage", "rule", "reason")
DESCRIPTIONS = {
    "subject_id": "Subject; every scan of a subject shares it",
    "session_id": "Session, empty when there is one only",
    "dataset": "Source the scan came from",
    "path": "Image file",
    "sha256": "Hash of the image file's bytes",
    "source_id": "Subject as the source writes it",
    "age": "Age in years",
    "sex": "Sex, M or F; empty when other or unknown",
}


# Columns that hold paths, beside those of further images: written relative to the folder of the table, read as absolute.
PLACES = ("path", "gm_path")
# Named on the terminal; all others stand in notes.tsv.
NOTES_SHOWN = 5


@dataclass(frozen=True, eq=False)
class Cohort:
    """Scans and what is known about them.

    Parameters
    ----------
    scans : DataFrame
        Index ``scan_id`` (unique, safe as a file name); columns ``subject_id``, ``session_id``, ``dataset``, ``path``,
        ``sha256``, ``source_id`` and the variables of the sources; for every further modality ``image_<name>`` and
        ``image_<name>_sha256``, NaN where a scan has no such image.
    excluded : DataFrame
        Scans that were left out: ``scan_id``, ``path``, ``stage``, ``rule``, ``reason``.
    columns : dict[str, dict]
        Data dictionary of the columns, in the form of a BIDS side-car.
    notes : DataFrame
        Further images that were passed over, whose scans stay: ``scan_id``, ``modality``, ``path``, ``rule``, ``reason``.
    """

    scans: pd.DataFrame
    excluded: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(EXCLUDED_COLUMNS)))
    columns: dict[str, Any] = field(default_factory=dict)
    notes: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(further.NOTE_COLUMNS)))

    def __post_init__(self) -> None:
        """Refuse a scan that stands twice: rows could no longer be joined by scan."""
        twice = self.scans.index[self.scans.index.duplicated()]
        if len(twice):
            raise CohortError(f"Scan {twice[0]} stands twice in the cohort. Every scan has one row: remove the other.")

    @property
    def content_hash(self) -> str:
        """Hash of every row, the same before and after writing; the files' place does not enter, their bytes do."""
        table = typed(self.scans.drop(columns=_places(self.scans)).reset_index())
        return hash_values([list(table.columns), table.astype(str).to_numpy().tolist()])

    @property
    def n_subjects(self) -> int:
        """Number of different subjects."""
        return int(self.scans["subject_id"].nunique())


def _places(scans: pd.DataFrame) -> list[str]:
    return [*(name for name in PLACES if name in scans), *image_columns(scans)]


def read_cohort(
    paths: Sequence[Path],
    *,
    suffix: str = "auto",
    column_aliases: Mapping[str, str] | None = None,
    images: Mapping[str, str] | None = None,
) -> Cohort:
    """One cohort from any number of sources, all equal.

    Parameters
    ----------
    paths : Sequence[Path]
        BIDS folders, BIDS derivatives, CAT12 folders, or tables (TSV, CSV) with a column ``path`` and a column
        ``participant_id``.
    suffix : str
        Which image of a folder: ``"T1w"``, ``"GM"`` (grey-matter maps in template space), or ``"auto"``: grey-matter
        maps where there are any, otherwise T1w.
    column_aliases : Mapping[str, str], optional
        Our name to the source's, such as ``{"sex": "gender"}``; used by the sources that lack our name.
    images : Mapping[str, str], optional
        Name of a further modality to the BIDS suffix (in folders) or the column (in tables) of its images, such as
        ``{"flair": "FLAIR"}``; see :func:`nilatent.further.read_further`. A scan or a source may lack any. ``WM`` and
        ``CSF`` of raw T1 scans are made by the recipe, so that these have no columns.

    Returns
    -------
    Cohort
        With one source, scans are called ``sub-01`` or ``sub-01_ses-02``; with several, the name of the source stands
        in front. Absent images, subjects without a row of variables and copies of another scan are in ``excluded``.

    Raises
    ------
    CohortError
        When a source cannot be read at all or holds no image, an alias names no column, an age is no number of years,
        a sex is neither of the known words, two sources give a column in different units, or no scan has an image of a
        further modality.
    SettingError
        When a further modality has a name of which no column can be made, or two are the same images.
    """
    if not paths:
        raise CohortError("No source was given. Name a BIDS folder, a CAT12 folder or a table of paths.")
    wanted = images if images is not None else {}
    further.check_modalities(wanted)
    read = [sources.read_source(Path(path), suffix=suffix) for path in paths]
    beside = [further.read_further(source, Path(path), wanted) for source, path in zip(read, paths, strict=True)]
    found = [one.source for one in beside]
    aliases = column_aliases if column_aliases is not None else {}
    _check_aliases(found, aliases)
    tables, excluded, notes = [], [], []
    columns: dict[str, Any] = {}
    for source, noted, name in zip(found, beside, _unique_names([source.name for source in found]), strict=True):
        prefix = f"{name}_" if len(found) > 1 else ""
        renames = _renames(source.scans, aliases)
        own_columns = {renames.get(column, column): value for column, value in source.columns.items()}
        table = source.scans.rename(columns=renames).assign(dataset=name)
        check_age(table, own_columns, name)
        if "sex" in table:
            table["sex"] = sex(table, own_columns, name)
        table["subject_id"] = prefix + table["subject_id"]
        table["scan_id"] = prefix + table["scan_id"]
        tables.append(table)
        excluded += [row | {"scan_id": prefix + row["scan_id"], "stage": "read"} for row in source.problems]
        notes += [note | {"scan_id": prefix + note["scan_id"]} for note in noted.notes]
        check_units(columns, own_columns, name)
        columns = own_columns | columns
    offered = {word for one in beside for word in one.offered}
    table, more = further.complete(pd.concat(tables, ignore_index=True), wanted, offered)
    known = pd.DataFrame([*notes, *more], columns=list(further.NOTE_COLUMNS))
    _show(
        [f"{note.scan_id}, {note.modality}: {note.reason}" for note in known.itertuples()], "in notes.tsv of the cohort"
    )
    cohort = Cohort(typed(table).set_index("scan_id"), _excluded(excluded), columns, known)
    _show(nearly_numbers(cohort.scans), "columns")
    return _without_copies(cohort)


def _show(lines: Sequence[str], where: str) -> None:
    """Say in yellow what was passed over, or taken otherwise than it may have been meant."""
    console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    for line in lines[:NOTES_SHOWN]:
        console.print(line, style="yellow")
    if len(lines) > NOTES_SHOWN:
        console.print(f"and {len(lines) - NOTES_SHOWN} more {where}", style="yellow")


def _unique_names(names: Sequence[str]) -> list[str]:
    unique: list[str] = []
    for name in names:
        # Case apart is not enough: the names become folders, and some disks do not see case.
        taken = {other.casefold() for other in unique}
        numbered = (name if number == 1 else f"{name}{number}" for number in range(1, len(names) + 1))
        unique.append(next(candidate for candidate in numbered if candidate.casefold() not in taken))
    return unique


def _check_aliases(found: Sequence[sources.Source], aliases: Mapping[str, str]) -> None:
    known = {str(column) for source in found for column in source.scans}
    for ours, theirs in aliases.items():
        if ours in RESERVED:
            raise CohortError(f"'{ours}' is filled by the reader and takes no alias. Rename '{theirs}' in the source.")
        if theirs not in known:
            raise CohortError(
                f"No source has a column '{theirs}' to call '{ours}'. The columns are: {', '.join(sorted(known))}."
            )


def _renames(table: pd.DataFrame, aliases: Mapping[str, str]) -> dict[str, str]:
    renames = {theirs: ours for ours, theirs in aliases.items() if ours not in table and theirs in table}
    for name in {"age", "sex"} - set(table) - set(renames.values()):
        # Age in one source and age in another would be two half-empty columns.
        other = [str(column) for column in table if str(column).lower() == name and column not in renames]
        renames |= {other[0]: name} if len(other) == 1 else {}
    return renames


def _without_copies(cohort: Cohort) -> Cohort:
    """Leave out what has the bytes of another scan: the later one, or all where one data set gives them to two people."""
    scans = cohort.scans
    failures = []
    for _, alike in scans[scans["sha256"].duplicated(keep=False)].groupby("sha256", sort=False):
        # Nobody can say whose it is, and either row would have the variables of the wrong person.
        of_two = bool((alike.groupby("dataset")["subject_id"].nunique() > 1).any())
        step = "It cannot be an image of both: put" if of_two else "Put"
        for scan_id, row in alike.iloc[0 if of_two else 1 :].iterrows():
            other = alike.index[1] if scan_id == alike.index[0] else alike.index[0]
            reason = (
                f"The file {row['path']} has the same bytes as scan {other}. {step} the right image in its place, or remove "
                "the row."
            )
            failures.append({"scan_id": str(scan_id), "stage": "read", "rule": "duplicated scan", "reason": reason})
    left = exclude(cohort, failures)
    if left.scans.empty:
        raise CohortError(f"No scan is left. {failures[0]['scan_id']}: {failures[0]['reason']}")
    return left


def _excluded(rows: Sequence[Mapping[str, str]]) -> pd.DataFrame:
    return pd.DataFrame([dict(row) for row in rows], columns=list(EXCLUDED_COLUMNS)).fillna("")


def exclude(cohort: Cohort, failures: Sequence[Mapping[str, str]]) -> Cohort:
    """A cohort without some scans, which are listed with their reason.

    Parameters
    ----------
    cohort : Cohort
        Left as it is.
    failures : Sequence[Mapping[str, str]]
        Each with ``scan_id``, ``stage``, ``rule`` and ``reason``.

    Returns
    -------
    Cohort
        The rest, and a longer list of excluded scans.
    """
    ids = [row["scan_id"] for row in failures]
    absent = [scan_id for scan_id in ids if scan_id not in cohort.scans.index]
    if absent:
        raise CohortError(
            f"Scan {absent[0]} is not in the cohort, so it cannot be excluded. The scans are sub-*[_ses-*]."
        )
    rows = [dict(row) | {"path": str(cohort.scans.at[row["scan_id"], "path"])} for row in failures]
    if not rows:
        return cohort
    excluded = pd.concat([cohort.excluded, _excluded(rows)], ignore_index=True)
    return replace(cohort, scans=cohort.scans.drop(index=ids), excluded=excluded)


def select(cohort: Cohort, subjects: Sequence[str] = (), *, sessions: Sequence[str] = ()) -> Cohort:
    """The scans of some subjects or sessions only.

    Parameters
    ----------
    cohort : Cohort
        Left as it is.
    subjects, sessions : Sequence[str]
        With or without ``sub-`` and ``ses-``; none for all.

    Returns
    -------
    Cohort
        Fewer rows; the list of excluded scans keeps those that were asked for only.

    Raises
    ------
    CohortError
        When a label names no subject or session (the nearest are offered), or no scan is of both.
    """
    parted = [str(scan).partition("_ses-") for scan in cohort.excluded["scan_id"]]
    owners, rest = (
        pd.Series(words, index=cohort.excluded.index, dtype=str)
        for words in ([owner for owner, _, _ in parted], [f"ses-{label}" if label else "" for _, _, label in parted])
    )
    own = _named(subjects, {*cohort.scans["subject_id"], *owners}, "subject", "sub-")
    at = _named(sessions, {*cohort.scans["session_id"], *rest} - {""}, "session", "ses-")
    scans = cohort.scans
    wanted = (scans["subject_id"].isin(own) | (not own)) & (scans["session_id"].isin(at) | (not at))
    # A subject without any image is listed without a session: its absence is news for every session.
    listed = (owners.isin(own) | (not own)) & (rest.isin([*at, ""]) | (not at))
    if not (wanted.any() or listed.any()):
        raise CohortError(f"No scan is of {', '.join(own)} and of {', '.join(at)}. Ask for labels that go together.")
    kept = scans[wanted]
    notes = cohort.notes[cohort.notes["scan_id"].isin(kept.index)]
    return replace(cohort, scans=kept, excluded=cohort.excluded[listed], notes=notes)


def _named(labels: Sequence[str], known: Collection[str], kind: str, prefix: str) -> list[str]:
    names = [label if label in known or label.startswith(prefix) else f"{prefix}{label}" for label in labels]
    for name in (name for name in names if name not in known):
        if not known:
            raise CohortError(f"There is no {kind} '{name}': no scan of the cohort has a {kind}. Leave the label out.")
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5) or sorted(known)[:3]
        raise CohortError(f"There is no {kind} '{name}' among {len(known)}. Did you mean {' or '.join(near)}?")
    return names


def write_cohort(cohort: Cohort, folder: Path) -> list[Path]:
    """Write ``scans.tsv``, ``excluded.tsv`` and ``scans.json`` (the data dictionary); returns the paths.

    Images inside the folder are written relative to it, so that a folder that was moved or copied keeps its own. Notes, if
    any, stand beside them in ``notes.tsv``.
    """
    paths = [folder / "scans.tsv", folder / "excluded.tsv", folder / "scans.json"]
    places = {name: [_relative(path, folder) for path in cohort.scans[name]] for name in _places(cohort.scans)}
    with atomic(paths[0]) as temporary:
        cohort.scans.assign(**places).to_csv(temporary, sep="\t", index_label="scan_id", na_rep="n/a")
    write_excluded(cohort, paths[1])
    described = {name: {"Description": DESCRIPTIONS.get(str(name), "As given by the source")} for name in cohort.scans}
    for name in image_columns(cohort.scans):
        described[name] = {
            "Description": f"Image of the modality {name.removeprefix('image_')}, empty where there is none"
        }
        described[f"{name}_sha256"] = {"Description": "Hash of that file's bytes"}
    write_json(paths[2], described | cohort.columns)
    _write_notes(cohort, folder / "notes.tsv")
    return paths


def _write_notes(cohort: Cohort, path: Path) -> None:
    if cohort.notes.empty:
        path.unlink(missing_ok=True)
        return
    with atomic(path) as temporary:
        cohort.notes.to_csv(temporary, sep="\t", index=False, na_rep="n/a")


def write_excluded(cohort: Cohort, path: Path) -> None:
    """Write the list of excluded scans only."""
    with atomic(path) as temporary:
        cohort.excluded.to_csv(temporary, sep="\t", index=False, na_rep="n/a")


def _relative(path: object, folder: Path) -> str:
    if pd.isna(path):  # type: ignore[call-overload]
        return ""
    place, root = Path(str(path)).absolute(), Path(folder).absolute()
    return place.relative_to(root).as_posix() if place.is_relative_to(root) else str(place)


def load_cohort(folder: Path) -> Cohort:
    """Read what :func:`write_cohort` wrote.

    Raises
    ------
    CohortError
        When a file is missing or is not what was written.
    """
    folder = Path(folder)
    missing = [name for name in ("scans.tsv", "excluded.tsv", "scans.json") if not (folder / name).is_file()]
    if missing:
        raise CohortError(
            f"{folder} lacks {', '.join(missing)}, so it is not a cohort. Run `nilatent run` or `prepare`."
        )
    scans = read_tsv(folder / "scans.tsv").reset_index(drop=True)
    absent = [name for name in RESERVED if name not in scans]
    if absent:
        raise CohortError(
            f"{folder / 'scans.tsv'} lacks the column {absent[0]}. Run `nilatent run` or `prepare` again."
        )
    for name in _places(scans):
        # Joined to the folder, no path would be the folder itself.
        scans[name] = ["" if path in MISSING_WORDS else str(folder / path) for path in scans[name]]
    excluded = read_tsv(folder / "excluded.tsv").reset_index(drop=True)
    noted = folder / "notes.tsv"
    notes = {"notes": read_tsv(noted).reset_index(drop=True)} if noted.is_file() else {}
    try:
        columns = read_json(folder / "scans.json")
    except ValueError as error:
        raise CohortError(
            f"{folder / 'scans.json'} is not JSON: {error}. Run `nilatent run` or `prepare` again."
        ) from error
    return Cohort(typed(scans).set_index("scan_id"), excluded, columns, **notes)
