"""Bids: what a derivative data set says of itself: description, participants, table of measures."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from nilatent.provenance import atomic, versions, write_json
from nilatent.tables import image_columns, read_described

BIDS_VERSION = "1.11.1"
# Lists of the study that stand beside the scans and are no part of BIDS.
NOT_BIDS = ("scans.tsv", "scans.json", "excluded.tsv", "notes.tsv", "quality.tsv", "quality.json", "provenance.json")
# Pictures, findings and transforms, for which BIDS has no names yet; a validator matches a folder without its slash only.
NO_BIDS_NAME = ("quality.html", "quality", "figures", "findings", "*_xfm.*")
MISSING = "n/a"
# What a data dictionary says to a reader, without what only a machine would check.
MEANINGS = ("LongName", "Description", "Levels", "Units", "TermURL")
# Bias field, registrations, brain extraction, tissues, template: in the order of the recipe t1.
REFERENCES = tuple(
    f"https://doi.org/{doi}"
    for doi in (
        "10.1109/TMI.2010.2046908",
        "10.1109/TMI.2003.809072",
        "10.1016/j.media.2007.06.004",
        "10.1016/j.compbiomed.2024.108845",
        "10.1016/j.neuroimage.2004.05.007",
        "10.1016/j.neuroimage.2005.02.018",
        "10.1016/j.neuroimage.2010.07.033",
    )
)
README = """# Scans prepared by nilatent

Every scan of this folder lies on one grid in MNI space (MNI152NLin2009aSym), voxel by voxel comparable.

- `sub-*/[ses-*/]anat/*_label-GM_*_probseg.nii.gz` (WM, CSF): tissue maps. `desc-` says what was done to them: `modulated`
  (multiplied by the volume change, so that sums are volumes of the subject), `unmodulated`, `given` (made by another
  tool), and `Smooth8` for a Gaussian of 8 mm full width at half maximum.
- `*_desc-preproc_T1w.nii.gz`: T1 intensities, corrected for shading, 0 outside the brain.
- `*_space-orig_dseg.nii.gz`: tissue labels in the space of the scan; `*_dseg.tsv` names them.
- `*_xfm.*`: how the scan was moved to the template, as ANTs reads it.
- `.json` beside each image: its source, what it is, and how it was made.
- `quality.tsv`, `quality.json` (here, or a folder higher when several data sets were prepared together): measures of
  every scan; `participants.tsv`: who was scanned, as the source says.

`Sources` are BIDS URIs. Where a source states no DOI, `DatasetLinks` names it without saying where it is: write the
place of your copy there.
"""


def bids_root(path: Path) -> Path:
    """The folder that an image's source path is relative to: the one that holds ``sub-*``, otherwise its own."""
    first = next((i for i, part in enumerate(path.parts[:-1]) if part.startswith("sub-")), len(path.parts) - 1)
    return Path(*path.parts[:first])


def write_description(root: Path, *, sources: Mapping[str, Path], engines: Mapping[str, str]) -> None:
    """Write ``dataset_description.json``, ``README`` and ``.bidsignore`` of a derivative.

    Parameters
    ----------
    root : Path
        Folder of the derivative data set.
    sources : Mapping[str, Path]
        Name of a source, as BIDS URIs give it, to the folder it lies in. The folder itself is not written.
    engines : Mapping[str, str]
        Package to version, nilatent among them.

    Notes
    -----
    ``DatasetLinks`` must give every name of a BIDS URI: by the DOI that the source states, by a relative path when the
    derivative lies inside the source, and otherwise by a name that says nothing of this machine.
    """
    stated = {name: _doi(folder) for name, folder in sources.items()}
    links = {name: _link(name, folder, root, stated[name]) for name, folder in sources.items()}
    made = {name: engines[name] for name in sorted(engines, key=lambda name: (name != "nilatent", name))}
    described = {
        "Name": "nilatent: prepared scans",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": name, "Version": version} for name, version in made.items()],
        # Maps of an earlier run keep their names.
        "DatasetLinks": _known_links(root) | links,
        "ReferencesAndLinks": list(REFERENCES),
    }
    dois = [{"DOI": doi, "URL": f"https://doi.org/{doi}"} for doi in stated.values() if doi]
    write_json(root / "dataset_description.json", described | ({"SourceDatasets": dois} if dois else {}))
    _write_text(root / ".bidsignore", _ignored())
    if not any(path.name != "README" for path in root.glob("README*")):
        _write_text(root / "README", README)


def write_study(out: Path, names: Sequence[str]) -> None:
    """Describe a folder that holds several derivatives, each in the folder of its name."""
    described = {
        "Name": "nilatent: several prepared data sets",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "study",
        "GeneratedBy": [{"Name": "nilatent", "Version": versions().get("nilatent", "unknown")}],
    }
    write_json(out / "dataset_description.json", described)
    _write_text(out / ".bidsignore", _ignored(*(f"/{name}" for name in names)))
    if not any(path.name != "README" for path in out.glob("README*")):
        _write_text(
            out / "README", f"# Data sets prepared by nilatent\n\n{_bullets(names)}\n{README.split(chr(10), 2)[2]}"
        )


def _ignored(*more: str) -> str:
    return "".join(f"{name}\n" for name in (*NOT_BIDS, *NO_BIDS_NAME, *more))


def _bullets(names: Sequence[str]) -> str:
    return "".join(f"- `{name}/`: a BIDS derivative that stands on its own\n" for name in names)


def _write_text(path: Path, text: str) -> None:
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _description(folder: Path) -> dict[str, Any]:
    """What a source says of itself; nothing when it does not, or not as JSON."""
    try:
        return read_described(folder / "dataset_description.json")
    except (OSError, ValueError):
        return {}


def _doi(folder: Path) -> str:
    found = re.search(r"10\.\d{4,9}/\S+", str(_description(folder).get("DatasetDOI", "")))
    return found.group() if found else ""


def _link(name: str, folder: Path, root: Path, doi: str) -> str:
    if doi:
        return f"https://doi.org/{doi}"
    inside, source = root.absolute(), folder.absolute()
    if inside != source and inside.is_relative_to(source):
        return "/".join([".."] * len(inside.relative_to(source).parts))
    return f"urn:nilatent:source:{name}"


def _known_links(root: Path) -> dict[str, str]:
    known = _description(root).get("DatasetLinks", {})
    return dict(known) if isinstance(known, dict) else {}


def write_participants(root: Path, people: pd.DataFrame, dictionary: Mapping[str, Any]) -> None:
    """Write ``participants.tsv`` and, for what changes between a subject's sessions, ``sub-*/sub-*_sessions.tsv``.

    Parameters
    ----------
    root : Path
        Folder of the derivative data set; subjects that are listed there and not in `people` stay listed.
    people : DataFrame
        A row per scan: ``participant_id`` (``sub-01``), ``session_id`` (empty if none) and the source's variables. Further
        images of the scans are none of a person's variables and are left out.
    dictionary : Mapping[str, Any]
        What the columns mean, in the form of a BIDS side-car.
    """
    images = [name for column in image_columns(people) for name in (column, f"{column}_sha256")]
    people = people.drop(columns=images)
    known = people.set_index(["participant_id", "session_id"]).dropna(axis=1, how="all").map(_text)
    subjects = known.groupby(level="participant_id", sort=True)
    varying = list(known.columns[(subjects.nunique() > 1).any()])
    table = subjects.first().drop(columns=varying)
    path = root / "participants.tsv"
    if path.is_file():
        earlier = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False, index_col="participant_id")
        table = pd.concat([table, earlier[~earlier.index.isin(table.index)]]).fillna(MISSING).sort_index()
    _write_table(path, table, dictionary, index="participant_id")
    for subject, rows in subjects if varying else ():
        sessions = rows.droplevel("participant_id")[varying]
        if "" not in sessions.index:
            _write_table(root / str(subject) / f"{subject}_sessions.tsv", sessions, dictionary, index="session_id")


def _text(value: Any) -> str:
    """A value as a table holds it: a whole number without a point, for codes that are described as whole numbers."""
    if pd.isna(value):
        return MISSING
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def _write_table(path: Path, table: pd.DataFrame, dictionary: Mapping[str, Any], *, index: str) -> None:
    with atomic(path) as temporary:
        table.to_csv(temporary, sep="\t", index_label=index, lineterminator="\n")
    write_json(path.with_suffix(".json"), {name: _meaning(name, set(table[name]), dictionary) for name in table})


def _meaning(name: Any, values: set[str], dictionary: Mapping[str, Any]) -> dict[str, Any]:
    """What the source says of a column, so that it is true of these values.

    Sources describe levels as ``M`` and write ``m``, or limit ages to 89 and go on to 96; a validator calls either an
    error. Every value is a level here, and limits that nobody checked are left out.
    """
    given = dictionary.get(str(name))
    described = {key: given[key] for key in MEANINGS if key in given} if isinstance(given, dict) else {}
    levels = described.get("Levels")
    if isinstance(levels, dict):
        alike = {str(level).casefold(): text for level, text in levels.items()}
        more = {value: alike.get(value.casefold(), value) for value in sorted(values - {MISSING, *levels})}
        described["Levels"] = levels | more
    else:
        described.pop("Levels", None)
    return {"Description": "As given by the source"} | described


def write_quality(folder: Path, table: pd.DataFrame, dictionary: Mapping[str, Any]) -> None:
    """Write ``quality.tsv`` (a row per scan) and ``quality.json`` (what the columns mean)."""
    with atomic(folder / "quality.tsv") as temporary:
        table.to_csv(temporary, sep="\t", index_label="scan_id", na_rep="n/a")
    write_json(folder / "quality.json", {name: dictionary[name] for name in table.columns if name in dictionary})
