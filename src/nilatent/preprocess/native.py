"""Native: a map in template space as the voxels of the subject's own file see it."""

import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.filebasedimages import ImageFileError

from nilatent.cohort import Cohort, exclude
from nilatent.errors import GridError, ScanError
from nilatent.map_names import ENDING
from nilatent.preprocess import registration, resampling, warping
from nilatent.preprocess.derivative import SPACE
from nilatent.preprocess.space import affine_in_mm
from nilatent.progress import track
from nilatent.provenance import atomic, hash_file, read_json
from nilatent.volumes import Grid, template_array

# A map of the whole brain holds all of the template; one that holds less than half lies somewhere else.
MIN_BRAIN_COVERED, COVERAGE_SPACING_MM = 0.5, 4.0
SAME_AFFINE_MM = 1e-3


def write_native(
    prepared: Cohort, path: Path, out: Path, *, labels: bool = False, originals: Cohort | None = None
) -> Cohort:
    """Write a map in template space back in the own space of every scan.

    Parameters
    ----------
    prepared : Cohort
        Prepared scans; their side-cars and transforms lie beside their maps.
    path : Path
        The map, (x, y, z) in template space.
    out : Path
        Receives ``<scan_id>_space-orig_<name of the map>.nii.gz``; dots in the name stay.
    labels : bool
        As in :func:`to_native`.
    originals : Cohort, optional
        The same scans before preparation, to check that their files still have the geometry they had.

    Returns
    -------
    Cohort
        Its paths are the files written; scans for which there is no way back are in ``excluded`` with their reason.

    Raises
    ------
    GridError
        When the map cannot be read, does not lie on the template brain, or its labels do not fit int32.
    """
    image = _read_map(path)
    _check_map(image)
    if labels:
        _labels(image)
    failures, written = [], {}
    for scan_id, prepared_map in track(prepared.scans["path"].items(), total=len(prepared.scans), label="native"):
        known = originals is not None and scan_id in originals.scans.index
        original = Path(str(originals.scans.at[scan_id, "path"])) if known and originals is not None else None
        side_car = Path(str(prepared_map).replace(".nii.gz", ".json"))
        try:
            back = to_native(image, side_car, labels=labels, original=original)
        except (ScanError, GridError) as error:
            rule = error.rule if isinstance(error, ScanError) else "same geometry as when it was prepared"
            failures.append({"scan_id": str(scan_id), "stage": "native", "rule": rule, "reason": str(error)})
            continue
        written[scan_id] = Path(out) / f"{scan_id}_space-orig_{ENDING.sub('', path.name)}.nii.gz"
        with atomic(written[scan_id]) as temporary:
            nib.save(back, temporary)
    left = exclude(prepared, failures)
    return replace(left, scans=left.scans.assign(path=[str(written[scan_id]) for scan_id in left.scans.index]))


def _read_map(path: Path) -> nib.Nifti1Image:
    try:
        image = nib.load(path)
        image.get_fdata(dtype=np.float32)
    except (OSError, EOFError, ValueError, zlib.error, ImageFileError) as error:
        raise GridError(f"{path} cannot be read: {error}. Give a NIfTI map in template space.") from error
    return image


def to_native(
    image: nib.Nifti1Image, side_car: Path, *, labels: bool = False, original: Path | None = None
) -> nib.Nifti1Image:
    """A map in template space on the voxels of the file that the scan was prepared from.

    Parameters
    ----------
    image : Nifti1Image
        (x, y, z) in template space, on any grid that holds the template brain.
    side_car : Path
        JSON file of the prepared map of that scan; the transforms lie beside it.
    labels : bool
        Take the nearest voxel and keep the data type (label images; 64-bit integers become int32, which NIfTI readers
        agree on); otherwise linear interpolation, float32.
    original : Path, optional
        The subject's file, to check that it still has the geometry it had when it was prepared.

    Returns
    -------
    Nifti1Image
        With the shape, the affine and the storage orientation of the subject's file; 0 outside the map. Values keep their
        meaning: a modulated map stays relative to the template's volume.

    Raises
    ------
    GridError
        When the map does not lie on the template brain or its labels do not fit int32, or the original has another
        geometry than it had.
    ScanError
        When the side-car is not one of a prepared scan, or it or a transform was changed since.

    Examples
    --------
    >>> from nilatent.preprocess.native import to_native
    >>> back = to_native(importance, Path("sub-01_space-MNI152NLin2009aSym_res-2_desc-preproc_T1w.json"))  # doctest: +SKIP
    """
    _check_map(image)
    record = _record(side_car)
    scan = record["Scan"]
    shape = tuple(int(side) for side in scan["StoredShape"])
    affine = np.asarray(scan["StoredAffine"], dtype=np.float64)
    to_template = np.asarray(record["ToTemplate"], dtype=np.float64)
    if original is not None:
        _check_original(original, shape, affine)
    back = _transform(side_car, record, to_template)
    array = _labels(image) if labels else image.get_fdata(dtype=np.float32)
    order = 0 if labels else 1
    if back is None:
        values = resampling.look_up(array, image.affine, shape, to_template @ affine, order=order)
    else:
        field = warping.displacement_of(back)
        values = resampling.look_up(
            array, image.affine, shape, affine, order=order, displacement=(field, np.asarray(back.affine))
        )
    native = nib.Nifti1Image(values, affine)
    native.header.set_xyzt_units("mm")
    return native


def _check_map(image: nib.Nifti1Image) -> None:
    if len(image.shape) != 3:
        raise GridError(
            f"A map in template space has three dimensions, this one has the shape {image.shape}. Pick one."
        )
    brain = template_array("mask", COVERAGE_SPACING_MM) > 0.5
    covered = resampling.share_inside(image.shape, image.affine, brain, Grid.mni(COVERAGE_SPACING_MM))
    if covered < MIN_BRAIN_COVERED:
        raise GridError(
            f"The map is not in template space: its grid holds {covered:.0%} of the template brain, at least "
            f"{MIN_BRAIN_COVERED:.0%} is needed. Give a map on the model grid or in {SPACE}."
        )


def _labels(image: nib.Nifti1Image) -> npt.NDArray[Any]:
    """(x, y, z) labels of a type that NIfTI readers agree on."""
    labels = np.asarray(image.dataobj)
    if labels.dtype.kind not in "iu" or labels.dtype.itemsize < 8:
        return labels
    limits, low, high = np.iinfo(np.int32), int(labels.min()), int(labels.max())
    if not limits.min <= low <= high <= limits.max:
        raise GridError(
            f"The labels of the map run from {low} to {high}, they must fit 32-bit integers ({limits.min} to "
            f"{limits.max}). Number them anew, or leave out labels=True if they are no labels."
        )
    return labels.astype(np.int32)


def _record(side_car: Path) -> Mapping[str, Any]:
    rule, step = "side-car of a prepared scan", "Give the JSON file beside the prepared map, or prepare the scan again."
    try:
        record = read_json(side_car)["nilatent"]
        matrix = np.asarray(record["ToTemplate"], dtype=float)
        stored = np.asarray(record["Scan"]["StoredAffine"], dtype=float)
        whole = len(record["Scan"]["StoredShape"]) == 3 and record["Outputs"] is not None
    except (OSError, ValueError, KeyError, TypeError) as error:
        found = f"{type(error).__name__}: {error}"
        raise ScanError(f"{side_car}: rule '{rule}' is broken: {found}. {step}", rule=rule) from error
    if matrix.shape != (4, 4) or stored.shape != (4, 4) or not whole:
        found = "ToTemplate, StoredAffine or StoredShape has another size than an affine or a shape"
        raise ScanError(f"{side_car}: rule '{rule}' is broken: {found}. {step}", rule=rule)
    return dict(record)


def _check_original(path: Path, shape: tuple[int, ...], affine: npt.NDArray[np.float64]) -> None:
    try:
        image = nib.load(path)
    except (OSError, ImageFileError) as error:
        raise GridError(f"{path} cannot be read: {error}. Restore it, or prepare the scan again.") from error
    # The affine that was kept is in millimetres, whatever unit the header states.
    if image.shape[:3] != shape or not np.allclose(affine_in_mm(image), affine, atol=SAME_AFFINE_MM):
        raise GridError(
            f"{path} has another shape or affine than when it was prepared ({'x'.join(map(str, shape))} voxels, origin "
            f"{np.round(affine[:3, 3], 1).tolist()}). Restore it, or prepare the scan again."
        )


def _transform(
    side_car: Path, record: Mapping[str, Any], to_template: npt.NDArray[np.float64]
) -> nib.Nifti1Image | None:
    """The displacement field from the scan to the template, or None where the affine is all; refused when changed."""
    rule, step = "transform as it was written", "Restore the folder, or prepare the scan again."
    ending = f"from-{SPACE}_to-T1w_mode-image_xfm"
    written = [name for name in record["Outputs"] if ending in name]
    for name in written:
        path = side_car.with_name(name)
        if not path.is_file() or hash_file(path) != record["Outputs"][name]:
            found = "it is not there" if not path.is_file() else "its content has changed"
            raise ScanError(f"{path}: rule '{rule}' is broken: {found}. {step}", rule=rule)
        if name.endswith(".nii.gz"):
            return nib.load(path)
        if path.read_text(encoding="ascii") != registration.itk_text(np.asarray(np.linalg.inv(to_template))):
            found = f"ToTemplate in {side_car.name} is not the transform of that file"
            raise ScanError(f"{path}: rule '{rule}' is broken: {found}. {step}", rule=rule)
    return None
