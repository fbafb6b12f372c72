"""Derivative: where the files of a prepared scan lie, when they count as done, and how they are written."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import pandas as pd

from nilatent.provenance import atomic, hash_file, read_json, versions, write_json

SPACE = "MNI152NLin2009aSym"
BIDS_VERSION = "1.9.0"
# Lists of the study that stand beside the scans and are no part of BIDS.
NOT_BIDS = ("scans.tsv", "scans.json", "excluded.tsv", "quality.tsv", "quality.json", "provenance.json")


@dataclass(frozen=True)
class Place:
    """Where one scan's files go.

    Parameters
    ----------
    root : Path
        Folder of the derivative data set.
    subject, session : str
        ``"sub-01"`` and ``"ses-02"`` (or ``""``).
    spacing_mm : float
        Voxel size, for the entity ``res-``.
    """

    root: Path
    subject: str
    session: str
    spacing_mm: float

    @property
    def folder(self) -> Path:
        """Holds the scan's files."""
        return self.root / self.subject / self.session / "anat" if self.session else self.root / self.subject / "anat"

    @property
    def _stem(self) -> str:
        return "_".join(part for part in (self.subject, self.session) if part)

    @property
    def gm(self) -> Path:
        """The grey-matter map."""
        resolution = f"{self.spacing_mm:g}".replace(".", "p")
        return self.folder / f"{self._stem}_space-{SPACE}_res-{resolution}_label-GM_probseg.nii.gz"

    @property
    def side_car(self) -> Path:
        """Written last: where it is and carries the key, the scan is done."""
        return self.gm.with_name(self.gm.name.replace(".nii.gz", ".json"))

    @property
    def transform(self) -> Path:
        """The affine in ITK's text format."""
        return self.folder / f"{self._stem}_from-T1w_to-{SPACE}_mode-image_xfm.txt"


def is_done(place: Place, key: str) -> bool:
    """Whether the scan's files are all there, unchanged, and were made under this key; an empty key is never done."""
    if not key or not place.side_car.is_file():
        return False
    try:
        record = read_json(place.side_car)["nilatent"]
        outputs: Mapping[str, str] = record["Outputs"]
        known = record["Key"]
    except (ValueError, KeyError, TypeError):
        return False
    return bool(known == key) and all(
        (place.folder / name).is_file() and hash_file(place.folder / name) == digest for name, digest in outputs.items()
    )


def write_scan(
    place: Place,
    gm: nib.Nifti1Image,
    transform: str,
    *,
    key: str,
    described: Mapping[str, Any],
    record: Mapping[str, Any],
) -> None:
    """Write map, transform and side-car, each atomically, the side-car last.

    Parameters
    ----------
    place : Place
        Where.
    gm : Nifti1Image
        The map on the grid.
    transform : str
        ITK text, or ``""`` when the map was in template space already.
    key : str
        Hash of image, settings and versions.
    described : Mapping[str, Any]
        BIDS fields of the side-car.
    record : Mapping[str, Any]
        Measures and settings, kept under ``nilatent``.
    """
    place.side_car.unlink(missing_ok=True)
    with atomic(place.gm) as temporary:
        nib.save(gm, temporary)
    written = [place.gm]
    if transform:
        with atomic(place.transform) as temporary:
            temporary.write_text(transform, encoding="ascii")
        written.append(place.transform)
    outputs = {path.name: hash_file(path) for path in written}
    write_json(place.side_car, {**described, "nilatent": {**record, "Key": key, "Outputs": outputs}})


def read_record(place: Place) -> dict[str, Any]:
    """What :func:`write_scan` kept under ``nilatent``."""
    record: dict[str, Any] = read_json(place.side_car)["nilatent"]
    return record


def write_description(root: Path) -> None:
    """Write ``dataset_description.json`` of a derivative, and what a BIDS validator should pass over."""
    write_json(
        root / "dataset_description.json",
        {
            "Name": "nilatent: prepared grey-matter maps",
            "BIDSVersion": BIDS_VERSION,
            "DatasetType": "derivative",
            "GeneratedBy": [{"Name": "nilatent", "Version": versions().get("nilatent", "unknown")}],
        },
    )
    with atomic(root / ".bidsignore") as temporary:
        temporary.write_text("".join(f"{name}\n" for name in NOT_BIDS), encoding="ascii")


def write_quality(folder: Path, table: pd.DataFrame, dictionary: Mapping[str, Any]) -> None:
    """Write ``quality.tsv`` (a row per scan) and ``quality.json`` (what the columns mean)."""
    with atomic(folder / "quality.tsv") as temporary:
        table.to_csv(temporary, sep="\t", index_label="scan_id", na_rep="n/a")
    write_json(folder / "quality.json", {name: dictionary[name] for name in table.columns if name in dictionary})
