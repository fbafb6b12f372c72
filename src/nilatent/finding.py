"""Finding: what one analysis found, in words, tables, arrays and maps; its reader and writer."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import xarray as xr
from nibabel.filebasedimages import ImageFileError

from nilatent.errors import FindingError
from nilatent.netcdf import read_netcdf
from nilatent.provenance import HEAD_BYTES, atomic, hash_file, plain, read_json, reserve, write_json

FORMAT_VERSION = 1
RECORD = "provenance.json"


@dataclass(frozen=True, eq=False)
class Finding:
    """The narrow neck between analyses, plots and report.

    Parameters
    ----------
    name : str
        Stem of the analysis, such as ``"lrcp"``.
    question : str
        One sentence a clinician understands.
    answer : str
        One or two sentences in words, with numbers, written by the analysis.
    table : DataFrame
        What a reader would paste into a paper.
    data : Dataset
        Arrays that a figure needs; a plot computes nothing.
    maps : dict[str, Nifti1Image]
        Volumes by name; written as ``<name>.nii.gz``.
    settings : dict
        Resolved settings of the analysis.
    caveats : tuple[str, ...]
        What the reader must not conclude.
    n_scans, n_subjects : int
        How many the numbers rest on.
    not_run : str
        Reason why the analysis was not run; empty when it was.
    """

    name: str
    question: str
    answer: str
    table: pd.DataFrame
    data: xr.Dataset
    settings: dict[str, Any]
    caveats: tuple[str, ...]
    n_scans: int
    n_subjects: int
    maps: dict[str, nib.Nifti1Image] = field(default_factory=dict)
    not_run: str = ""


def not_run(name: str, question: str, reason: str) -> Finding:
    """A finding that says why its analysis was not run."""
    return Finding(
        name=name,
        question=question,
        answer=f"Not run: {reason.rstrip('.')}.",
        table=pd.DataFrame(),
        data=xr.Dataset(),
        settings={},
        caveats=(),
        n_scans=0,
        n_subjects=0,
        not_run=reason,
    )


def write_finding(finding: Finding, folder: Path) -> list[Path]:
    """Write a finding as ``finding.json``, ``table.tsv``, ``data.nc`` and one NIfTI per map.

    Parameters
    ----------
    finding : Finding
        What to write.
    folder : Path
        Usually ``findings/<name>``; created.

    Returns
    -------
    list[Path]
        The files written, ``finding.json`` last.

    Raises
    ------
    FindingError
        When the table would not come back as it is: its index holds text, or a column name repeats.
    """
    frame = finding.table
    if not frame.columns.is_unique or not (frame.empty or pd.api.types.is_integer_dtype(frame.index.dtype)):
        raise FindingError(
            f"The table of {finding.name} has the columns {list(frame.columns)} and an index of {frame.index.dtype}. Only "
            "columns are written, each under its own name: reset_index() first."
        )
    table, data, head = folder / "table.tsv", folder / "data.nc", folder / "finding.json"
    # Without its head a finding does not open: one that is half new and half old must not.
    head.unlink(missing_ok=True)
    # The record of the stage, if there is one, speaks of the files that were here before.
    (folder / RECORD).unlink(missing_ok=True)
    with atomic(table) as temporary:
        finding.table.to_csv(temporary, sep="\t", index=False, na_rep="n/a")
    with atomic(data) as temporary:
        reserve(temporary, finding.data.nbytes + HEAD_BYTES)
        finding.data.to_netcdf(temporary, engine="h5netcdf")
    images = []
    for name, image in finding.maps.items():
        images.append(folder / f"{name}.nii.gz")
        with atomic(images[-1]) as temporary:
            nib.save(image, temporary)
    write_json(
        head,
        {
            "format_version": FORMAT_VERSION,
            "name": finding.name,
            "question": finding.question,
            "answer": finding.answer,
            "settings": plain(finding.settings),
            "caveats": list(finding.caveats),
            "n_scans": finding.n_scans,
            "n_subjects": finding.n_subjects,
            "maps": sorted(finding.maps),
            "column_kinds": {str(name): _kind(frame[name]) for name in frame},
            "not_run": finding.not_run,
        },
    )
    return [table, data, *images, head]


def _kind(column: "pd.Series[Any]") -> str:
    """What the cells are, because a TSV does not say: the text 007 must not come back as 7."""
    if any(isinstance(value, str) for value in column):
        return "text"
    if all(isinstance(value, bool | np.bool_) for value in column.dropna()):
        return "bool" if len(column.dropna()) else "float"
    if pd.api.types.is_integer_dtype(column.dtype) and not column.hasnans:
        return "int"
    return "float" if pd.api.types.is_numeric_dtype(column.dtype) else "text"


def read_finding(folder: Path) -> Finding:
    """Read what :func:`write_finding` wrote.

    Raises
    ------
    FindingError
        When files are missing or damaged, not those that the record of the stage beside them knows, or the format is of
        another version.
    """
    folder = Path(folder)
    try:
        known = _known(folder)
        _check(folder, "finding.json", known)
        head = read_json(folder / "finding.json")
        if head["format_version"] != FORMAT_VERSION:
            raise FindingError(
                f"{folder} has finding format {head['format_version']}, this nilatent reads {FORMAT_VERSION}. "
                "Run the analysis again with this version."
            )
        if any(Path(name).name != name for name in head["maps"]):
            raise ValueError("a map has a path for a name")
        for name in ("table.tsv", "data.nc", *(f"{name}.nii.gz" for name in head["maps"])):
            _check(folder, name, known)
        table = _read_table(folder / "table.tsv", head["column_kinds"])
        data = read_netcdf(folder / "data.nc")
        maps = {name: nib.load(folder / f"{name}.nii.gz") for name in head["maps"]}
    except FileNotFoundError as error:
        missing = error.filename if error.filename is not None else str(error)
        raise FindingError(
            f"{missing} is missing, so the finding is incomplete. Run `nilatent analyse {folder.name}` again."
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, ImageFileError) as error:
        raise FindingError(
            f"{folder} is damaged: {error}. Delete it and run `nilatent analyse {folder.name}` again."
        ) from error
    return Finding(
        name=head["name"],
        question=head["question"],
        answer=head["answer"],
        table=table,
        data=data,
        maps=maps,
        settings=head["settings"],
        caveats=tuple(head["caveats"]),
        n_scans=head["n_scans"],
        n_subjects=head["n_subjects"],
        not_run=head["not_run"],
    )


def _known(folder: Path) -> dict[str, str]:
    """Hashes of the files as they were written; none for a finding that no stage has sealed."""
    record = folder / RECORD
    return dict(read_json(record).get("outputs", {})) if record.is_file() else {}


def _check(folder: Path, name: str, known: dict[str, str]) -> None:
    if name in known and hash_file(folder / name) != known[name]:
        raise ValueError(f"{name} is not as it was written")


def _read_table(path: Path, kinds: dict[str, str]) -> pd.DataFrame:
    if not kinds:
        path.stat()
        return pd.DataFrame()
    # NA and None can be the names of groups; only n/a is a gap.
    table = pd.read_csv(path, sep="\t", dtype=object, keep_default_na=False, na_values=["n/a"])
    for name, kind in kinds.items():
        if kind == "bool":
            marks = table[name].map({"True": True, "False": False})
            table[name] = marks if marks.isna().any() else marks.astype(bool)
        elif kind != "text":
            # Python reads a decimal number exactly; not every parser of pandas does, to the last bit.
            table[name] = table[name].astype(int) if kind == "int" else table[name].astype(float)
    return table
