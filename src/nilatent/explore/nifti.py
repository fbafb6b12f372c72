"""Volumes as the bytes of NIfTI files, in memory: a browser draws them, and what is saved opens anywhere."""

import struct

import nibabel as nib
import numpy as np
import numpy.typing as npt

from nilatent.grid import Grid

__all__ = ["nifti_bytes"]

HEADER_BYTES = 352
TOP_CODE = 32767
SLOPE_AT = 112
"""Byte of the header at which the calibration begins: two floats, slope and intercept."""


def nifti_bytes(volume: npt.NDArray[np.floating], grid: Grid, *, description: str, exact: bool) -> bytes:
    """A NIfTI-1 file of a volume.

    Parameters
    ----------
    volume : ndarray
        (x, y, z).
    grid : Grid
        Of the volume.
    description : str
        Up to 79 characters of the header that say what it is.
    exact : bool
        Single precision, for files that are kept; else 16-bit integers that stand for multiples of the largest value over
        32767, which is stated in the header as `scl_slope`. Half the bytes, and an error below 2e-5 of the largest value.

    Returns
    -------
    bytes
        Not compressed: on the same machine compressing takes longer than sending.
    """
    values, slope = np.asarray(volume, dtype="<f4"), 1.0
    if not exact:
        slope = float(np.float32(np.abs(values).max(initial=0.0) / TOP_CODE)) or 1.0
        values = np.rint(values / slope).clip(-TOP_CODE, TOP_CODE).astype("<i2")
    header = nib.Nifti1Header(endianness="<")
    header.set_data_shape(grid.shape)
    header.set_data_dtype(values.dtype)
    header.set_sform(grid.affine, code="mni")
    header.set_qform(grid.affine, code="mni")
    header.set_xyzt_units("mm")
    header["vox_offset"] = HEADER_BYTES
    header["magic"] = b"n+1"
    header["descrip"] = description.encode("ascii", "replace")[:79]
    # nibabel leaves the scaling to whoever writes the file.
    block = bytearray(header.binaryblock)
    struct.pack_into("<ff", block, SLOPE_AT, slope, 0.0)
    return bytes(block) + bytes(HEADER_BYTES - len(block)) + values.tobytes(order="F")
