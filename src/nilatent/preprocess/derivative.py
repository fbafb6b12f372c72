"""Derivative: where the files of a prepared scan lie, when they count as done, and how they are written."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from nilatent.errors import ScanError
from nilatent.provenance import atomic, hash_file, read_json, write_json

SPACE = "MNI152NLin2009aSym"
# The page of the template itself: nothing that is read at run time.
SPATIAL_REFERENCE = "https://www.bic.mni.mcgill.ca/ServicesAtlases/ICBM152NLin2009"
UNCHANGED = "image stays the same"
# Values of the tissue labels; BIDS gives the same numbers to the same tissues.
TISSUE_TABLE = """index\tname\tabbreviation
0\tBackground\tBG
1\tGray Matter\tGM
2\tWhite Matter\tWM
3\tCerebrospinal Fluid\tCSF
"""


@dataclass(frozen=True, eq=False)
class Prepared:
    """What a recipe makes of one scan.

    Parameters
    ----------
    maps : dict[str, ndarray]
        (x, y, z) float32 on the grid, not yet smoothed: ``gm`` always; ``wm``, ``csf`` and ``t1w`` when made from a scan.
    to_template : ndarray
        (4, 4) millimetres of the scan to millimetres of the template.
    measures : dict[str, float]
        Keys of ``quality.MEASURES``.
    notes : dict[str, Any]
        What was found out about the scan, for the side-car.
    transforms : dict[str, str or Nifti1Image]
        End of the file name (``"from-T1w_to-MNI152NLin2009aSym_mode-image_xfm.txt"``) to text or displacement field.
    tissues : ndarray or None
        (x, y, z) uint8 in the scan's own space (RAS): 0 background, 1 grey, 2 white, 3 fluid.
    """

    maps: dict[str, npt.NDArray[np.float32]]
    to_template: npt.NDArray[np.float64]
    measures: dict[str, float]
    notes: dict[str, Any]
    transforms: dict[str, str | nib.Nifti1Image] = field(default_factory=dict)
    tissues: npt.NDArray[np.uint8] | None = None


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
    target : {"gm", "t1w"}
        The image that is modelled.
    description : str
        How tissue maps were made, for the entity ``desc-``: ``"modulatedSmooth8"``.
    """

    root: Path
    subject: str
    session: str
    spacing_mm: float
    target: str
    description: str

    @property
    def folder(self) -> Path:
        """Holds the scan's files."""
        return self.root / self.subject / self.session / "anat" if self.session else self.root / self.subject / "anat"

    @property
    def stem(self) -> str:
        """Subject and session, as every file name starts."""
        return "_".join(part for part in (self.subject, self.session) if part)

    def map(self, name: str) -> Path:
        """Map in template space: ``"gm"``, ``"wm"``, ``"csf"`` or ``"t1w"``."""
        space = f"space-{SPACE}_res-{number_label(self.spacing_mm)}"
        kind = "desc-preproc_T1w" if name == "t1w" else f"label-{name.upper()}_desc-{self.description}_probseg"
        return self.folder / f"{self.stem}_{space}_{kind}.nii.gz"

    @property
    def modelled(self) -> Path:
        """The map that the cohort points to."""
        return self.map(self.target)

    @property
    def side_car(self) -> Path:
        """Written last: where it is and carries the key, the scan is done."""
        return side_car_of(self.modelled)

    @property
    def tissues(self) -> Path:
        """Tissue labels in the scan's own space."""
        return self.folder / f"{self.stem}_space-orig_dseg.nii.gz"

    @property
    def tissue_table(self) -> Path:
        """What the tissue labels stand for."""
        return self.folder / f"{self.stem}_space-orig_dseg.tsv"

    def transform(self, ending: str) -> Path:
        """A transform by the end of its name."""
        return self.folder / f"{self.stem}_{ending}"


def number_label(value: float) -> str:
    """A number as a BIDS label: 1.5 becomes 1p5."""
    return f"{value:g}".replace(".", "p")


def side_car_of(image: Path) -> Path:
    """The ``.json`` beside an image."""
    return image.with_name(image.name.replace(".nii.gz", ".json"))


def is_done(place: Place, key: str) -> bool:
    """Whether the scan's files are all there, unchanged, and were made under this key; an empty key is never done."""
    return is_whole(place.side_car, key)


def is_whole(side_car: Path, key: str) -> bool:
    """Whether the files that a side-car lists are all there, unchanged, and were made under this key."""
    if not key or not side_car.is_file():
        return False
    try:
        record = read_json(side_car)["nilatent"]
        outputs: Mapping[str, str] = record["Outputs"]
        files = {side_car.parent / name: digest for name, digest in outputs.items()}
        return bool(record["Key"] == key) and all(
            path.is_file() and hash_file(path) == digest for path, digest in files.items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        # Whatever a damaged side-car holds, its scan is done again.
        return False


def check_unchanged(path: Path, sha256: str) -> None:
    """Refuse what was made of an image that is no longer the one that was read with the cohort; an empty hash is none.

    Raises
    ------
    ScanError
        Names the image.
    """
    if sha256 and hash_file(path) != sha256:
        raise ScanError(
            f"{path}: rule '{UNCHANGED}' is broken: it has changed since the cohort was read. Let whatever writes there finish, "
            "and run the same command again.",
            rule=UNCHANGED,
        )


def remove(place: Place) -> None:
    """Remove what was written of a scan under this name: the maps that its side-car lists, and the side-car."""
    remove_outputs(place.side_car, keep=set())


def remove_outputs(side_car: Path, *, keep: set[str]) -> None:
    """Remove the files that a side-car lists but for some, and the side-cars of those; then the side-car itself."""
    try:
        listed = [Path(str(name)).name for name in read_json(side_car)["nilatent"]["Outputs"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        listed = []
    for name in listed:
        if name not in keep:
            (side_car.parent / name).unlink(missing_ok=True)
            side_car_of(side_car.parent / name).unlink(missing_ok=True)
    side_car.unlink(missing_ok=True)


def _remove_outdated(place: Place, names: set[str], moved_by: tuple[object, object]) -> None:
    """Remove this map's older files, and those of the scan that were moved otherwise: they share its transforms."""
    remove_outputs(place.side_car, keep=names)
    for side_car in place.folder.glob(f"{place.stem}_space-{SPACE}_*.json"):
        try:
            found = read_json(side_car)["nilatent"]
            other = (found["Recipe"]["normalisation"], found.get("Scan", {}).get("SubjectTemplate")) != moved_by
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue
        if other:
            remove_outputs(side_car, keep=names)


def write_scan(
    place: Place,
    images: Mapping[Path, tuple[nib.Nifti1Image, Mapping[str, Any]]],
    transforms: Mapping[Path, str | nib.Nifti1Image],
    *,
    key: str,
    record: Mapping[str, Any],
) -> None:
    """Write a scan's images and transforms in place of its older ones, the side-car of the modelled map last.

    Parameters
    ----------
    place : Place
        Where.
    images : Mapping[Path, tuple[Nifti1Image, Mapping[str, Any]]]
        Path to image and the BIDS fields of its side-car; the modelled map must be among them.
    transforms : Mapping[Path, str or Nifti1Image]
        Path to text or displacement field.
    key : str
        Hash of image, settings and versions.
    record : Mapping[str, Any]
        Measures and settings, kept under ``nilatent`` in the side-car of the modelled map.
    """
    normalisation = getattr(record.get("Recipe"), "normalisation", None)
    moved_by = (normalisation, record.get("Scan", {}).get("SubjectTemplate"))
    _remove_outdated(place, {path.name for path in (*transforms, *images)}, moved_by)
    write_files(place.modelled, images, transforms, key=key, record=record)


def write_files(
    last: Path,
    images: Mapping[Path, tuple[nib.Nifti1Image, Mapping[str, Any]]],
    transforms: Mapping[Path, str | nib.Nifti1Image],
    *,
    key: str,
    record: Mapping[str, Any],
) -> None:
    """Write images and transforms with their side-cars, each atomically.

    Parameters
    ----------
    last : Path
        The image whose side-car is written at the end, with the key and the hashes of all files.
    images, transforms, key, record
        As :func:`write_scan`.
    """
    for path, content in transforms.items():
        with atomic(path) as temporary:
            if isinstance(content, str):
                temporary.write_text(content, encoding="ascii")
            else:
                nib.save(content, temporary)
    for path, (image, described) in images.items():
        image.header.set_xyzt_units("mm")
        with atomic(path) as temporary:
            nib.save(image, temporary)
        if path != last:
            write_json(side_car_of(path), described)
    outputs = {path.name: hash_file(path) for path in (*transforms, *images)}
    described = images[last][1]
    write_json(side_car_of(last), {**described, "nilatent": {**record, "Key": key, "Outputs": outputs}})


def read_record(place: Place) -> dict[str, Any]:
    """What :func:`write_scan` kept under ``nilatent``."""
    record: dict[str, Any] = read_json(place.side_car)["nilatent"]
    return record
