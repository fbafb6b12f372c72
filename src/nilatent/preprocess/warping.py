"""Warping: the symmetric diffeomorphic registration of an aligned brain, by ANTs."""

import tempfile
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from nilatent.extras import require
from nilatent.volumes import Grid, template_array

SPACING_MM = 2.0
# Step, width of the update and of the total field in voxels, radius of the local correlation in voxels.
STEP, UPDATE_SIGMA, TOTAL_SIGMA, RADIUS = 0.2, 3, 0, 2
ITERATIONS, SHRINK, SMOOTHING = "40x20x8", "4x2x1", "2x1x0vox"
# The engine counts millimetres towards left and posterior (LPS), a grid towards right and anterior (RAS).
_LPS = np.array([-1.0, -1.0, 1.0])


def register_syn(
    aligned: npt.NDArray[np.float32], *, work: Path
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Warp between a brain and the template (SyN, local correlation, seeded).

    Parameters
    ----------
    aligned : ndarray
        (x, y, z) brain on ``Grid.mni(SPACING_MM)``, already aligned by an affine; background 0.
    work : Path
        Folder for the engine's temporary files; the caller removes it.

    Returns
    -------
    ndarray
        (3, x, y, z) float32, mm (RAS), on the same grid: from a point of the template to its point in the aligned brain.
    ndarray
        (3, x, y, z) float32: from a point of the aligned brain to its point in the template.

    References
    ----------
    Avants et al. (2008). https://doi.org/10.1016/j.media.2007.06.004
    """
    ants = require("ants", extra="prepare")
    grid = Grid.mni(SPACING_MM)
    fixed = template_array("t1", SPACING_MM)
    top = np.percentile(aligned[aligned > 0], 99.8)
    images = [_to_ants(values, grid) for values in (fixed, np.clip(aligned / top, 0, 1).astype(np.float32))]
    names = [ants.internal.get_pointer_string(image) for image in images]
    with tempfile.TemporaryDirectory(dir=work) as folder:
        command = ["--dimensionality", "3", "--metric", f"CC[{names[0]},{names[1]},1,{RADIUS}]"]
        command += ["--transform", f"SyN[{STEP},{UPDATE_SIGMA},{TOTAL_SIGMA}]"]
        command += ["--convergence", f"[{ITERATIONS},1e-6,10]"]
        command += ["--shrink-factors", SHRINK, "--smoothing-sigmas", SMOOTHING]
        command += ["--output", f"{folder}/found_", "--float", "1", "--random-seed", "1"]
        # Given a list, antspyx hands it to antsRegistration as it is, seeded.
        ants.registration(command, None)
        forward, inverse = (_field(Path(folder) / f"found_0{name}.nii.gz") for name in ("Warp", "InverseWarp"))
    return forward, inverse


def _to_ants(data: npt.NDArray[np.float32], grid: Grid) -> Any:
    ants = require("ants", extra="prepare")
    origin = [float(value) for value in _LPS * grid.affine[:3, 3]]
    return ants.from_numpy(data, origin=origin, spacing=[grid.spacing_mm] * 3, direction=np.diag(_LPS))


def _field(path: Path) -> npt.NDArray[np.float32]:
    values = np.asarray(nib.load(path).dataobj, dtype=np.float32)[:, :, :, 0, :]
    return np.ascontiguousarray(np.moveaxis(values * _LPS, -1, 0), dtype=np.float32)


def itk_field(displacement: npt.NDArray[np.float32], affine: npt.NDArray[np.float64]) -> nib.Nifti1Image:
    """A displacement field in ITK's conventions, for ANTs, ITK-SNAP and 3D Slicer.

    Parameters
    ----------
    displacement : ndarray
        (3, x, y, z) mm (RAS), from each point of the image's space to the point where the moved image is looked up.
    affine : ndarray
        (4, 4) of the field.

    Returns
    -------
    Nifti1Image
        (x, y, z, 1, 3) float32 vectors (LPS).
    """
    values = np.moveaxis(displacement, 0, -1)[:, :, :, None, :] * _LPS
    image = nib.Nifti1Image(values.astype(np.float32), affine)
    image.header.set_intent("vector")
    image.header.set_xyzt_units("mm")
    image.set_qform(affine, code="aligned")
    image.set_sform(affine, code="aligned")
    return image


def displacement_of(image: nib.Nifti1Image) -> npt.NDArray[np.float32]:
    """The (3, x, y, z) displacement in mm (RAS) of a field that :func:`itk_field` made."""
    values = np.asarray(image.dataobj, dtype=np.float32)[:, :, :, 0, :]
    return np.ascontiguousarray(np.moveaxis(values * _LPS, -1, 0), dtype=np.float32)
