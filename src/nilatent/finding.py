"""Finding: what one analysis found, in words, tables, arrays and maps; its reader and writer."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import pandas as pd
import xarray as xr

from nilatent.errors import FindingError
from nilatent.provenance import atomic, plain, read_json, write_json

FORMAT_VERSION = 1


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
        answer=f"Not run: {reason}.",
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
    """
    table, data, head = folder / "table.tsv", folder / "data.nc", folder / "finding.json"
    with atomic(table) as temporary:
        finding.table.to_csv(temporary, sep="\t", index=False, na_rep="n/a")
    with atomic(data) as temporary:
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
            "not_run": finding.not_run,
        },
    )
    return [table, data, *images, head]


def read_finding(folder: Path) -> Finding:
    """Read what :func:`write_finding` wrote.

    Raises
    ------
    FindingError
        When files are missing or the format is of another version.
    """
    folder = Path(folder)
    try:
        head = read_json(folder / "finding.json")
        if head["format_version"] != FORMAT_VERSION:
            raise FindingError(
                f"{folder} has finding format {head['format_version']}, this nilatent reads {FORMAT_VERSION}. "
                "Run the analysis again with this version."
            )
        text = (folder / "table.tsv").read_text(encoding="utf-8")
        table = pd.read_csv(folder / "table.tsv", sep="\t", na_values=["n/a"]) if text.strip() else pd.DataFrame()
        with xr.open_dataset(folder / "data.nc", engine="h5netcdf") as stored:
            data = stored.load()
        maps = {name: nib.load(folder / f"{name}.nii.gz") for name in head["maps"]}
    except FileNotFoundError as error:
        raise FindingError(
            f"{error.filename} is missing, so the finding is incomplete. Run `nilatent analyse {folder.name}` again."
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
