"""Further: the images of other modalities that belong to the scans of a source, by BIDS suffix or by column."""

import difflib
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from nilatent.errors import CohortError, SettingError
from nilatent.images import ENDINGS, ENTITY, bids_label, how_to_fetch, is_file, nifti_files, spelled
from nilatent.map_names import TISSUES, WARPED, in_template, of_tissue, read_map_name
from nilatent.provenance import hash_file
from nilatent.sources import Source
from nilatent.tables import MISSING_WORDS, RESERVED, image_column, pick

NOTE_COLUMNS = ("scan_id", "modality", "path", "rule", "reason")
# What the recipe t1 makes of a raw scan itself: under these names nothing is looked for beside such a scan.
MADE = ("GM", "WM", "CSF", "T1w")
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
# `image_quality` is a measure of every prepared scan.
TAKEN = ("quality",)


@dataclass(frozen=True, eq=False)
class Further:
    """What one source holds beside the images that are modelled.

    Parameters
    ----------
    source : Source
        Its scans have a column ``image_<name>`` for every modality: an absolute path, or NaN.
    notes : list[dict[str, str]]
        What was passed over: ``scan_id``, ``modality``, ``path``, ``rule``, ``reason``. The scans themselves stay.
    offered : set[str]
        Suffixes of a folder or columns of a table, from which a name could have been chosen.
    """

    source: Source
    notes: list[dict[str, str]] = field(default_factory=list)
    offered: set[str] = field(default_factory=set)


def check_modalities(images: Mapping[str, str]) -> None:
    """Refuse names that make no column, and two names for the same images.

    Raises
    ------
    SettingError
        Names the modality.
    """
    named: dict[str, str] = {}
    for name, wanted in images.items():
        if not NAME.fullmatch(name) or name in TAKEN or name.endswith("_sha256"):
            raise SettingError(
                f"A modality is named by letters, digits and _, first a letter, and not '{TAKEN[0]}'; got '{name}'."
            )
        if not wanted.strip():
            raise SettingError(f"The modality '{name}' names no images. Give a BIDS suffix or a column, such as FLAIR.")
        if wanted in named:
            raise SettingError(f"The modalities '{named[wanted]}' and '{name}' are both '{wanted}'. Leave one out.")
        named[wanted] = name


def read_further(source: Source, place: Path, images: Mapping[str, str]) -> Further:
    """Find the images of further modalities of every scan of a source.

    Parameters
    ----------
    source : Source
        From :func:`nilatent.sources.read_source`; left as it is.
    place : Path
        The folder or table it was read from.
    images : Mapping[str, str]
        Name of a modality to the BIDS suffix (of a folder) or the column (of a table) of its images.

    Returns
    -------
    Further
        The source with a column of paths for each modality; a table's columns of paths are no variables any more.

    Raises
    ------
    CohortError
        When two columns of a table differ in case only.

    Notes
    -----
    A folder is searched for ``sub-*_<suffix>.nii[.gz]`` of the same subject and session, anywhere below it but in
    ``derivatives`` and ``sourcedata``. Of several, scans that are maps in template space take one in template space first,
    raw scans a raw one; then the one with the fewest entities, then the first by name (``run-2`` before ``run-10``). ``GM``,
    ``WM`` and ``CSF`` of a scan that is a tissue map is the map of that tissue beside it, named alike (``mwp2`` beside
    ``mwp1``). Under the names of :data:`MADE` nothing is looked for beside a raw scan, which the recipe makes them from.
    """
    if not images:
        return Further(source)
    scans = source.scans.rename(
        # A source's own variable of such a name is kept, and is no image of ours.
        columns={
            image_column(name): f"source_{image_column(name)}"
            for name, wanted in images.items()
            if wanted != image_column(name)
        }
    )
    of_table = place.is_file()
    columns = {name: pick(scans, [wanted.lower()], place) if of_table else None for name, wanted in images.items()}
    columns = {name: column if column not in RESERVED else None for name, column in columns.items()}
    lying, strays = ({}, []) if of_table else _by_scan(place)
    notes = [_stray(path, name) for path in strays for name, wanted in images.items() if _suffix(path) == wanted]
    found: dict[str, list[object]] = {image_column(name): [] for name in images}
    for row in scans.to_dict("records"):
        own = Path(str(row["path"]))
        beside = lying.get((str(row["subject_id"]), str(row["session_id"])), [])
        for name, wanted in images.items():
            column = columns[name]
            if column is not None:
                path, note = _of_cell(str(row[column]), place)
            elif wanted in MADE and not _is_map(own):
                path, note = None, None
            elif wanted in TISSUES.values():
                path, note = _of_tissue(own, wanted)
            else:
                path, note = _of_suffix(beside, wanted, own)
            found[image_column(name)].append(np.nan if path is None else str(path.absolute()))
            if note is not None:
                notes.append({"scan_id": str(row["scan_id"]), "modality": name} | note)
    offered = {str(name) for name in scans if name not in RESERVED} if of_table else _suffixes(lying)
    left = scans.drop(columns=[column for column in columns.values() if column is not None])
    added = pd.DataFrame(found, index=left.index, dtype=object)
    return Further(replace(source, scans=pd.concat([left, added], axis=1)), notes, offered)


def _is_map(path: Path) -> bool:
    return read_map_name(path.name) is not None


def _note(path: Path | str, rule: str, reason: str) -> dict[str, str]:
    return {"path": str(path), "rule": rule, "reason": reason}


def _of_cell(cell: str, table: Path) -> tuple[Path | None, dict[str, str] | None]:
    if cell in MISSING_WORDS:
        return None, None
    path = spelled(table.parent.absolute() / cell)
    if cell.startswith("~") and not is_file(path):
        path = spelled(Path(cell))
    if is_file(path):
        return path, None
    step = how_to_fetch(path) or "Correct the path (relative to the table), or write n/a."
    return None, _note(path, "absent image", f"{table.name} names the image '{cell}', which does not exist. {step}")


def _of_tissue(own: Path, tissue: str) -> tuple[Path | None, dict[str, str] | None]:
    """The map of another tissue beside a map, named alike."""
    name = of_tissue(own.name, tissue)
    if name is None:
        return None, _note(own, "map of a known tissue", f"{own.name} does not say how its {tissue} map is called.")
    bare = name.removesuffix(".gz").removesuffix(".nii")
    places = [own.with_name(name), *(own.with_name(f"{bare}{ending}") for ending in ENDINGS)]
    return next((path for path in places if is_file(path)), None), None


def _of_suffix(beside: Sequence[Path], suffix: str, own: Path) -> tuple[Path | None, dict[str, str] | None]:
    fitting = [path for path in beside if _suffix(path) == suffix and path.absolute() != own.absolute()]
    # An image moved to yet another space is neither raw nor comparable between subjects.
    usable = [path for path in fitting if in_template(path.name) or "_space-" not in path.name]
    if not usable:
        return None, None
    first, *others = sorted(usable, key=lambda path: _order(path, in_template(path.name) == _is_map(own)))
    if not others:
        return first, None
    listed = ", ".join(path.name for path in others)
    reason = f"{first.name} is taken, not {listed}. For another, name the files in a table of paths."
    return first, _note(first, "several images", reason)


def _order(path: Path, like_own: bool) -> tuple[bool, int, list[tuple[int, str]], str]:
    parts = re.findall(r"\d+|\D+", path.name)
    natural = [(int(part), "") if part.isdigit() else (-1, part) for part in parts]
    return not like_own, path.name.count("_"), natural, str(path)


def _suffix(path: Path) -> str:
    return path.name.split(".")[0].rsplit("_", 1)[-1]


def _by_scan(folder: Path) -> tuple[dict[tuple[str, str], list[Path]], list[Path]]:
    """Images of a folder that are named after subject and session, by these; and those that stand in the folder of another."""
    found: dict[tuple[str, str], list[Path]] = defaultdict(list)
    strays = []
    for path in nifti_files(folder):
        parts = path.relative_to(folder).parts
        name = WARPED.sub("", path.name)
        named = dict(ENTITY.findall(name.split(".")[0]))
        placed = dict(entity for part in parts[:-1] for entity in ENTITY.findall(part))
        # Other prefixes are those of tools that moved the image to a space nobody names.
        if not name.startswith("sub-") or "sub" not in named or "derivatives" in parts:
            continue
        if any(named.get(entity, label) != label for entity, label in placed.items()):
            strays.append(path)
            continue
        entities = placed | named
        session = bids_label("ses", entities["ses"]) if "ses" in entities else ""
        found[bids_label("sub", entities["sub"]), session].append(path)
    return found, strays


def _stray(path: Path, modality: str) -> dict[str, str]:
    reason = f"{path} stands in the folder of another subject or session than it is named after. Move or rename it."
    return {"scan_id": path.name.split("_")[0], "modality": modality} | _note(path, "folder and name disagree", reason)


def _suffixes(lying: Mapping[tuple[str, str], Sequence[Path]]) -> set[str]:
    return {_suffix(path) for paths in lying.values() for path in paths}


def complete(
    scans: pd.DataFrame, images: Mapping[str, str], offered: set[str]
) -> tuple[pd.DataFrame, list[dict[str, str]]]:
    """Hash the further images of a whole cohort, and take out those that cannot be what they are named as.

    Parameters
    ----------
    scans : DataFrame
        Columns ``scan_id``, ``path``, ``sha256`` and ``image_<name>`` of every modality.
    images : Mapping[str, str]
        As for :func:`read_further`.
    offered : set[str]
        What could have been named, for the message.

    Returns
    -------
    DataFrame
        With ``image_<name>_sha256`` too; NaN in both where a scan has no such image. Modalities that the recipe makes of
        every scan have no columns.
    list[dict[str, str]]
        Images that cannot be read, and images whose bytes are also those of another image of the cohort: one of the two
        is not what it is called, and nobody can say which, so neither is taken as a further image.

    Raises
    ------
    CohortError
        When no scan has an image of a modality.
    """
    notes: list[dict[str, str]] = []
    ids = [str(scan_id) for scan_id in scans["scan_id"]]
    # Every file of the cohort by the hash of its bytes, the modelled images among them.
    owners: dict[str, list[str]] = defaultdict(list)
    for path, digest in zip(scans["path"], scans["sha256"], strict=True):
        owners[str(digest)].append(str(path))
    hashed: dict[str, list[tuple[str, str]]] = {}
    for name in images:
        hashed[name] = []
        for scan_id, given in zip(ids, scans[image_column(name)], strict=True):
            path, digest, note = ("", "", None) if pd.isna(given) else _hashed(Path(str(given)))
            hashed[name].append((path, digest))
            notes += [] if note is None else [{"scan_id": scan_id, "modality": name} | note]
            if digest:
                owners[digest].append(path)
    raw = any(not _is_map(Path(str(path))) for path in scans["path"])
    for name, files in hashed.items():
        kept = [(path, digest) if digest and len(owners[digest]) == 1 else ("", "") for path, digest in files]
        for scan_id, (path, digest) in zip(ids, files, strict=True):
            if digest and len(owners[digest]) > 1:
                notes.append({"scan_id": scan_id, "modality": name} | _twice(path, owners[digest]))
        column = image_column(name)
        if any(path for path, _ in kept):
            paths, digests = (pd.Series(part, index=scans.index, dtype=object) for part in zip(*kept, strict=True))
            found = {column: paths.mask(paths == "", np.nan), f"{column}_sha256": digests.mask(digests == "", np.nan)}
            scans = scans.assign(**found)
        elif raw and images[name] in MADE:
            scans = scans.drop(columns=column)
        else:
            raise _absent(name, images[name], offered, [note for note in notes if note["modality"] == name])
    return scans, notes


def _hashed(path: Path) -> tuple[str, str, dict[str, str] | None]:
    try:
        return str(path), hash_file(path), None
    except OSError as error:
        step = how_to_fetch(path) or "Fetch the file, or check its permissions."
        return "", "", _note(path, "unreadable image", f"{path} cannot be read: {error.strerror}. {step}")


def _twice(path: str, owners: Sequence[str]) -> dict[str, str]:
    other = next((owner for owner in owners if owner != path), path)
    reason = (
        f"{path} has the same bytes as {other}. Put the right image in its place, or write n/a in a table of paths."
    )
    if other == path:
        reason = f"{path} is named {len(owners)} times. Leave it to the one scan and modality it belongs to."
    return _note(path, "same bytes", reason)


def _absent(name: str, wanted: str, offered: set[str], notes: Sequence[Mapping[str, str]]) -> CohortError:
    there = {word.casefold(): word for word in sorted(offered)}
    near = [there[word] for word in difflib.get_close_matches(wanted.casefold(), there, n=3, cutoff=0.5)]
    hint = (
        f"Did you mean {' or '.join(near)}?" if near else f"There are: {', '.join([*there.values()][:20]) or 'none'}."
    )
    listed = "".join(f"\n  {note['scan_id']}: {note['reason']}" for note in notes[:5])
    return CohortError(
        f"No scan has an image of the modality '{name}': '{wanted}' was looked for as the suffix of a file "
        f"(sub-*_{wanted}.nii.gz) in folders, and as a column in tables. {hint}{listed}"
    )
