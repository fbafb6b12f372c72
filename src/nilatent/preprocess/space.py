"""Space: load a scan in RAS orientation and refuse what cannot be a brain scan."""

import gzip
import re
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.arrayproxy import ArrayProxy
from nibabel.imageglobals import logger as nibabel_logger
from nibabel.spatialimages import SpatialImage

from nilatent.errors import ScanError

# A thousandth is left for the rounding of headers in single precision.
VOXEL_MM, ROUNDING = (0.4, 6.0), 1e-3
EXTENT_MM = (100.0, 700.0)
# A cube of 256 mm at the finest voxel; a header that claims more is damaged, and reading it would fill the memory.
MAX_VOXELS = 640**3
# A slab of these at a time becomes float32, so that no second whole copy in double precision is in memory.
SLAB_VOXELS = 32_000_000
# Header and extensions come before the voxels; nibabel would search all that is claimed for extensions.
MAX_HEADER_BYTES = 16 * 2**20
# Real scans pack to between a half and a fiftieth; one part in five hundred is a file of zeros, or an endless one.
MAX_RATIO = 500
MAX_SHEAR = 0.02
# Sums of squares over a scan stay inside single precision.
INTENSITY_SPREAD = (1e-15, 1e15)
# SPM and FSL take every length for millimetres; these are the units a header may state instead.
UNIT_MM = {"meter": 1000.0, "micron": 0.001}
POINTERS = {
    b"version https://git-lfs": "It is a pointer of Git LFS: run `git lfs pull`.",
    b"/annex/objects/": "It is a pointer of git-annex: run `datalad get` on it.",
}
# Named by the letters that such a file begins with, for none of which nibabel would hold our limits.
OTHER_PACKING = {
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "Zstandard",
    b"PK\3\4": "zip",
    b"7z\xbc\xaf": "7-Zip",
}
SURFACE = re.compile(r"\.gii(\.gz)?$", re.IGNORECASE)
DAMAGED = "The file is damaged or cut short; copy or convert it again."
# nibabel prints what it finds odd in a header without naming the file; the refusal, or the side-car, says it with the name.
_reading: ContextVar[bool] = ContextVar("reading a scan", default=False)
nibabel_logger.addFilter(lambda _: not _reading.get())


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
        (4, 4) affine on disk, in millimetres.
    oriented_by : str
        ``"sform"``, ``"qform"``, or ``"nothing"`` when the header has neither and left and right are only assumed.
    aligned_to : str
        What the header says its millimetres belong to: ``"scanner"``, ``"aligned"``, ``"talairach"``, ``"mni"``, ``""``.
    description : str
        Free text of the header, where SPM writes how an image was made.
    """

    data: npt.NDArray[np.float32]
    affine: npt.NDArray[np.float64]
    stored_axes: str
    stored_shape: tuple[int, ...]
    stored_affine: npt.NDArray[np.float64]
    oriented_by: str
    aligned_to: str = ""
    description: str = ""

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
        NIfTI file (or another format that nibabel reads). Lengths are millimetres, unless the header states metres or
        micrometres and only that makes sense.

    Returns
    -------
    Scan
        Reoriented by flips and axis swaps only; no value is interpolated.

    Raises
    ------
    ScanError
        Names the file, the rule, the value found and the next step. Nothing else is raised, whatever the bytes are, and
        no more memory is used than about three float32 copies of the scan.
    """
    path = Path(path)
    _check_file(path)
    token = _reading.set(True)
    try:
        with np.errstate(all="ignore"):
            return _read(path)
    except ScanError:
        raise
    # nibabel lets through what its parts raise on damaged bytes: KeyError, OverflowError, struct.error, zlib.error and more.
    except Exception as error:
        kind = type(error).__qualname__.replace("error", f"{type(error).__module__}.error")
        raise _refusal(path, "readable", f"{kind}: {error}"[:300], DAMAGED) from error
    finally:
        _reading.reset(token)


def _refusal(path: Path, rule: str, value: str, next_step: str) -> ScanError:
    return ScanError(f"{path}: rule '{rule}' is broken: {value}. {next_step}", rule=rule)


def _check_file(path: Path) -> None:
    try:
        if path.is_symlink() and not path.exists():
            found = "it is a link to a file that is not here"
            raise _refusal(path, "file exists", found, f"Fetch it: run `datalad get {path.name}` in its folder.")
        if not path.is_file():
            found = "it is a folder" if path.is_dir() else "there is no such file"
            raise _refusal(path, "file exists", found, "Restore it, or take the row out of the cohort.")
        if path.stat().st_size == 0:
            raise _refusal(path, "file not empty", "it has 0 bytes", "Copy or convert it again.")
        with path.open("rb") as file:
            start = file.read(2**16)
    except OSError as error:
        raise _refusal(path, "readable", f"{error.strerror}", "Check its permissions, or copy it again.") from error
    for mark, step in POINTERS.items():
        if start.startswith(mark):
            raise _refusal(path, "file is here", f"it holds {len(start)} bytes of text, and no image", step)
    for mark, packing in OTHER_PACKING.items():
        if start.startswith(mark):
            raise _refusal(path, "readable", f"it is packed by {packing}", "Unpack it, or pack it with gzip (.nii.gz).")
    # Flags 8 and 16 announce a name and a comment, each of which a zero byte ends; they would be looked for to the end.
    if start[:2] == b"\x1f\x8b" and len(start) > 3 and start[3] & 24 and start[10:].count(0) < start[3].bit_count():
        raise _refusal(path, "readable", "the head of the gzip file has a name without an end", DAMAGED)
    if SURFACE.search(path.name):
        raise _refusal(
            path, "readable", "it is a GIFTI file, which holds surfaces", "Give a volume, such as a NIfTI file."
        )
    if start[:4] == b"\x89HDF" and not path.name.lower().endswith(".mnc"):
        raise _refusal(path, "readable", "it is an HDF5 file, and no image", "Give a volume, such as a NIfTI file.")
    if len(start) > 131 and start[128:132] == b"DICM":
        raise _refusal(
            path, "readable", "it is a DICOM file", "Convert the series with dcm2niix, and give the NIfTI file."
        )


def _read(path: Path) -> Scan:
    _check_offset(path)
    image = nib.load(path)
    if not isinstance(image, SpatialImage):
        found = f"nibabel reads it as {type(image).__name__}"
        raise _refusal(path, "three dimensions", found, "Give a volume, such as a NIfTI file.")
    shape, matrix = tuple(image.shape), affine_in_mm(image)
    _check_shape(path, shape, image.get_data_dtype())
    _check_geometry(path, shape[:3], matrix)
    oriented_by, aligned_to, description = _header_words(path, image)
    _check_length(image)
    stored = _values(image)
    _check_values(path, stored)
    turn = nib.io_orientation(matrix)
    affine = matrix @ nib.orientations.inv_ornt_aff(turn, shape[:3])
    axes = "".join(str(axis) for axis in nib.aff2axcodes(matrix))
    data = nib.orientations.apply_orientation(stored, turn)
    return Scan(data, affine, axes, shape[:3], matrix, oriented_by, aligned_to, description)


def _check_offset(path: Path) -> None:
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    with gzip.open(path) if packed else path.open("rb") as file:
        start = file.read(560)
    order = "<" if int.from_bytes(start[:4], "little") in (348, 540) else ">"
    size = int.from_bytes(start[:4], "little" if order == "<" else "big")
    fields = {348: (f"{order}f4", 108), 540: (f"{order}i8", 168)}
    if size not in fields or len(start) < size:
        return
    kind, place = fields[size]
    offset = float(np.frombuffer(start, kind, count=1, offset=place)[0])
    if not 0 <= offset <= MAX_HEADER_BYTES:
        raise _refusal(path, "readable", f"the header says that the voxels start at byte {offset:g}", DAMAGED)
    extension = start[size : size + 8]
    if offset > size and len(extension) == 8 and extension[0]:
        n_bytes = int(np.frombuffer(extension, f"{order}i4")[1])
        if not 0 <= n_bytes <= offset:
            raise _refusal(path, "readable", f"the header says that an extension of it has {n_bytes} bytes", DAMAGED)


def affine_in_mm(image: SpatialImage) -> npt.NDArray[np.float64]:
    """Affine of a brain scan in millimetres.

    Parameters
    ----------
    image : SpatialImage
        The scan; its voxels are not read.

    Returns
    -------
    ndarray
        (4, 4), as the header has it; scaled when that states metres or micrometres and these give voxels of a brain scan.
    """
    affine = np.array(image.affine, dtype=float)
    if isinstance(image.header, nib.Nifti1Header):
        factor = UNIT_MM.get(image.header.get_xyzt_units()[0], 1.0)
        sides = np.linalg.norm(affine[:3, :3], axis=0) * factor
        if factor != 1 and _plausible(sides):
            affine[:3] *= factor
    return affine


def _plausible(sides: npt.NDArray[np.float64]) -> bool:
    return bool(VOXEL_MM[0] * (1 - ROUNDING) <= sides.min() and sides.max() <= VOXEL_MM[1] * (1 + ROUNDING))


def _check_shape(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> None:
    if len(shape) < 3 or any(side != 1 for side in shape[3:]):
        raise _refusal(path, "three dimensions", f"the shape is {shape}", "Give one 3D volume (average or pick one).")
    if min(shape) < 1 or np.prod(np.asarray(shape, dtype=float)) > MAX_VOXELS:
        step = "The header is damaged; convert the scan again."
        found = f"the header claims the shape {shape}, allowed are 1 to {MAX_VOXELS} voxels"
        raise _refusal(path, "plausible size", found, step)
    if dtype.fields is not None or dtype.kind not in "iufb":
        raise _refusal(path, "one number per voxel", f"the data type is {dtype}", "Save the scan as a scalar image.")


def _check_geometry(path: Path, shape: tuple[int, ...], affine: npt.NDArray[np.float64]) -> None:
    step = "Correct the header (sform, qform, pixdim), or convert the scan again."
    if not np.isfinite(affine).all() or not 1e-12 < abs(np.linalg.det(affine[:3, :3])) < np.inf:
        raise _refusal(path, "usable affine", f"the affine is {affine[:3].tolist()}", step)
    sides = np.linalg.norm(affine[:3, :3], axis=0)
    if not _plausible(sides):
        found = (
            f"the voxel is {' x '.join(f'{side:.3g}' for side in sides)} mm, allowed are {VOXEL_MM[0]} to {VOXEL_MM[1]}"
        )
        raise _refusal(path, "voxel size", found, step)
    extent = sides * np.asarray(shape)
    if extent.min() < EXTENT_MM[0] or extent.max() > EXTENT_MM[1]:
        covers = " x ".join(f"{side:.0f}" for side in extent)
        found = f"it covers {covers} mm, allowed are {EXTENT_MM[0]:.0f} to {EXTENT_MM[1]:.0f}"
        raise _refusal(path, "extent", found, "Give a scan that covers one whole brain, or correct the voxel size.")
    axes = affine[:3, :3] / sides
    shear = np.abs(axes.T @ axes - np.eye(3)).max()
    if shear > MAX_SHEAR:
        found = f"two axes are off the right angle (cosine {shear:.3f}, allowed {MAX_SHEAR})"
        raise _refusal(path, "right-angled axes", found, "Resample the scan to a grid without shear.")


def _header_words(path: Path, image: SpatialImage) -> tuple[str, str, str]:
    """How the image is oriented, to what, and the header's free text."""
    header = image.header
    if not isinstance(header, nib.Nifti1Header):
        # Analyze has no orientation: every program assumes its own.
        return "nothing" if isinstance(header, nib.AnalyzeHeader) else "header", "", ""
    sform, s_code = header.get_sform(coded=True)
    qform, q_code = header.get_qform(coded=True)
    if s_code > 0 and q_code > 0 and np.linalg.det(sform[:3, :3]) * np.linalg.det(qform[:3, :3]) < 0:
        step = "Find out which is right, and write it into both (fslorient, or set_sform and set_qform of nibabel)."
        raise _refusal(path, "one left and right", "sform and qform of the header contradict each other", step)
    used, code = ("sform", s_code) if s_code > 0 else ("qform", q_code) if q_code > 0 else ("nothing", 0)
    aligned = {1: "scanner", 2: "aligned", 3: "talairach", 4: "mni"}.get(int(code), "")
    return used, aligned, bytes(header["descrip"]).split(b"\0")[0].decode("latin-1")


def _check_length(image: SpatialImage) -> None:
    """Read a compressed file to its end: nibabel stops at the last voxel, before the checksum is compared."""
    holder = image.file_map.get("image")
    if holder is None or holder.filename is None or not isinstance(image.dataobj, ArrayProxy):
        return  # MINC files have a format of their own, with its own checks
    needed = image.dataobj.offset + int(np.prod(image.shape)) * image.get_data_dtype().itemsize
    place = Path(holder.filename)
    with place.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    length = place.stat().st_size
    if packed:
        if needed > MAX_RATIO * length:
            raise EOFError(f"the header claims {needed} bytes, {MAX_RATIO} times what {length} packed bytes may hold")
        length = 0
        with place.open("rb") as file, gzip.open(file) as unpacked:
            # A little more than needed: what follows the voxels is ignored, and may be endless.
            while length <= needed + 2**20 and (chunk := unpacked.read(2**20)):
                length += len(chunk)
            if length > MAX_RATIO * max(file.tell(), 2**16):
                raise EOFError(f"the first {file.tell()} packed bytes are nearly nothing but {length} equal ones")
    if length < needed:
        raise EOFError(f"the header claims {needed} bytes, the file holds {length}")


def _values(image: SpatialImage) -> npt.NDArray[np.float32]:
    """(x, y, z) float32 with the axes as stored."""
    shape = image.shape
    values = np.empty(shape[:3], dtype=np.float32, order="F")
    step = max(1, SLAB_VOXELS // (shape[0] * shape[1]))
    for start in range(0, shape[2], step):
        part = (slice(None), slice(None), slice(start, start + step), *(0 for _ in shape[3:]))
        values[:, :, start : start + step] = image.dataobj[part]
    return values


def _check_values(path: Path, data: npt.NDArray[np.float32]) -> None:
    low, high = float(data.min()), float(data.max())
    if not np.isfinite([low, high]).all():
        n_bad = data.size - int(np.count_nonzero(np.isfinite(data)))
        found = f"{n_bad} of {data.size} voxels are NaN or infinite"
        raise _refusal(
            path, "finite values", found, "Set them to 0 if they are background, else convert the scan again."
        )
    if low == high:
        raise _refusal(path, "not constant", f"every voxel is {low:g}", "The image is empty; give the real scan.")
    if high - low < INTENSITY_SPREAD[0] or max(-low, high) > INTENSITY_SPREAD[1]:
        step = "The scaling of the header (scl_slope, scl_inter) is damaged; correct it or convert the scan again."
        raise _refusal(path, "plausible intensities", f"the values run from {low:.3g} to {high:.3g}", step)


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
