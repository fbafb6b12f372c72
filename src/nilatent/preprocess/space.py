"""Space: load a scan in RAS orientation and refuse what cannot be a brain scan."""

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from nilatent.errors import ScanError

VOXEL_MM = (0.4, 6.0)
MIN_EXTENT_MM = 100.0
# About three times a 0.5 mm whole head; a header that claims more is damaged, and reading it would fill the memory.
MAX_VOXELS = 400_000_000
MAX_SHEAR = 0.02
_UNREADABLE = (ImageFileError, HeaderDataError, OSError, EOFError, zlib.error, ValueError, TypeError, OverflowError)


@dataclass(frozen=True, eq=False)
class Scan:
    """One 3D image in RAS orientation.

    Parameters
    ----------
    data : ndarray
        (x, y, z) float32, finite.
    affine : ndarray
        (4, 4) voxel indices to millimetres; the axes may be oblique.
    stored_axes : str
        Orientation on disk, such as ``"LAS"``.
    stored_shape : tuple[int, int, int]
        Voxels along the axes on disk.
    stored_affine : ndarray
        (4, 4) affine on disk.
    oriented_by : str
        ``"sform"``, ``"qform"``, or ``"nothing"`` when the header has neither and left and right are only assumed.
    """

    data: npt.NDArray[np.float32]
    affine: npt.NDArray[np.float64]
    stored_axes: str
    stored_shape: tuple[int, ...]
    stored_affine: npt.NDArray[np.float64]
    oriented_by: str

    @property
    def voxel_mm(self) -> npt.NDArray[np.float64]:
        """(3,) voxel sides in millimetres."""
        return np.asarray(np.linalg.norm(self.affine[:3, :3], axis=0))

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in millilitres."""
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000


def load_scan(path: Path) -> Scan:
    """Read an image as RAS float32 and refuse what cannot be a brain scan.

    Parameters
    ----------
    path : Path
        NIfTI file (or another format that nibabel reads).

    Returns
    -------
    Scan
        Reoriented by flips and axis swaps only; no value is interpolated.

    Raises
    ------
    ScanError
        Names the file, the rule, the value found and the next step.
    """
    path = Path(path)
    if not path.is_file():
        raise _refusal(path, "file exists", "there is no such file", "Restore it, or take the row out of the cohort.")
    if path.stat().st_size == 0:
        raise _refusal(path, "file not empty", "it has 0 bytes", "Copy or convert it again.")
    try:
        image = nib.load(path)
        shape, matrix = tuple(image.shape), np.asarray(image.affine, dtype=float)
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error
    _check_header(path, shape, matrix, image.get_data_dtype())
    try:
        image = nib.as_closest_canonical(image.slicer[..., 0] if len(shape) == 4 else image)
        data = np.asarray(image.get_fdata(dtype=np.float32, caching="unchanged"))
    except (*_UNREADABLE, MemoryError) as error:
        raise _unreadable(path, error) from error
    _check_values(path, data)
    stored = "".join(str(axis) for axis in nib.aff2axcodes(matrix))
    return Scan(data, np.asarray(image.affine, dtype=float), stored, shape[:3], matrix, _oriented_by(image))


def _refusal(path: Path, rule: str, value: str, next_step: str) -> ScanError:
    return ScanError(f"{path}: rule '{rule}' is broken: {value}. {next_step}", rule=rule)


def _unreadable(path: Path, error: BaseException) -> ScanError:
    return _refusal(
        path,
        "readable",
        f"{type(error).__name__}: {error}",
        "The file is damaged or cut short; copy or convert it again.",
    )


def _check_header(path: Path, shape: tuple[int, ...], affine: npt.NDArray[np.float64], dtype: np.dtype) -> None:
    if len(shape) != 3 and not (len(shape) == 4 and shape[3] == 1):
        raise _refusal(path, "three dimensions", f"the shape is {shape}", "Give one 3D volume (average or pick one).")
    if min(shape) < 1 or np.prod(np.asarray(shape, dtype=float)) > MAX_VOXELS:
        raise _refusal(
            path,
            "plausible size",
            f"the header claims the shape {shape}",
            "The header is damaged; convert the scan again.",
        )
    if dtype.fields is not None or dtype.kind not in "iufb":
        raise _refusal(path, "one number per voxel", f"the data type is {dtype}", "Save the scan as a scalar image.")
    step = "Correct the header (sform, qform, pixdim), or convert the scan again."
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-6:
        raise _refusal(path, "usable affine", f"the affine is {affine[:3].tolist()}", step)
    sides = np.linalg.norm(affine[:3, :3], axis=0)
    if sides.min() < VOXEL_MM[0] or sides.max() > VOXEL_MM[1]:
        found = (
            f"the voxel is {' x '.join(f'{side:.3g}' for side in sides)} mm, allowed are {VOXEL_MM[0]} to {VOXEL_MM[1]}"
        )
        raise _refusal(path, "voxel size", found, step)
    extent = sides * np.asarray(shape[:3])
    if extent.min() < MIN_EXTENT_MM:
        found = f"it covers {' x '.join(f'{side:.0f}' for side in extent)} mm, at least {MIN_EXTENT_MM:.0f} are needed"
        raise _refusal(path, "extent", found, "Give a scan that covers the whole brain.")
    axes = affine[:3, :3] / sides
    shear = np.abs(axes.T @ axes - np.eye(3)).max()
    if shear > MAX_SHEAR:
        found = f"two axes are off the right angle (cosine {shear:.3f}, allowed {MAX_SHEAR})"
        raise _refusal(path, "right-angled axes", found, "Resample the scan to a grid without shear.")


def _check_values(path: Path, data: npt.NDArray[np.float32]) -> None:
    n_bad = data.size - int(np.count_nonzero(np.isfinite(data)))
    if n_bad:
        found = f"{n_bad} of {data.size} voxels are NaN or infinite"
        raise _refusal(path, "finite values", found, "Repair or convert the scan again.")
    low, high = float(data.min()), float(data.max())
    if low == high:
        raise _refusal(path, "not constant", f"every voxel is {low:g}", "The image is empty; give the real scan.")


def _oriented_by(image: nib.spatialimages.SpatialImage) -> str:
    header = image.header
    if not isinstance(header, nib.Nifti1Header):
        return "header"
    if int(header["sform_code"]) > 0:
        return "sform"
    return "qform" if int(header["qform_code"]) > 0 else "nothing"


def as_stored(values: npt.NDArray[Any], scan: Scan) -> nib.Nifti1Image:
    """An image of values in the scan's RAS space, with the axes, the shape and the affine of the scan's file.

    Parameters
    ----------
    values : ndarray
        (x, y, z) as ``scan.data``.
    scan : Scan
        Says how the file is stored.
    """
    to_ras = nib.io_orientation(scan.stored_affine)
    back = nib.orientations.ornt_transform(nib.io_orientation(np.eye(4)), to_ras)
    stored = nib.orientations.apply_orientation(values, back)
    return nib.Nifti1Image(np.ascontiguousarray(stored), scan.stored_affine)
