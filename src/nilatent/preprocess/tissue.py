"""Tissue: is the skull still there, where is the brain, and how much of each voxel is grey, white or fluid."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from nilatent.extras import require

# A stripped scan has an exact background around a piece of the size of a brain; a whole head has three litres or more.
STRIPPED_ML = (500.0, 2300.0)
ATROPOS_ITERATIONS = 5
ATROPOS_MRF = 0.1
PRIOR_WEIGHT = 0.25


def stripped_mask(data: npt.NDArray[np.float32], voxel_ml: float) -> npt.NDArray[np.bool_] | None:
    """Brain mask of a scan whose skull was already removed, or None when the head is still there.

    Parameters
    ----------
    data : ndarray
        (x, y, z) intensities.
    voxel_ml : float
        Volume of a voxel in millilitres.

    Returns
    -------
    ndarray or None
        (x, y, z) bool: the largest piece above the background, holes filled, when it has the size of a brain.
    """
    background = float(data[0, 0, 0])
    above = data > background
    if not STRIPPED_ML[0] <= above.sum() * voxel_ml <= STRIPPED_ML[1]:
        return None
    mask = ndimage.binary_fill_holes(_largest(above))
    volume = float(mask.sum()) * voxel_ml
    return np.asarray(mask) if STRIPPED_ML[0] <= volume <= STRIPPED_ML[1] else None


def _largest(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    labels, n = ndimage.label(mask)
    if n <= 1:
        return mask
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.asarray(labels == sizes.argmax())


def brain_mask(data: npt.NDArray[np.float32], affine: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Brain mask of a whole head by deepbet, on the processor.

    Parameters
    ----------
    data : ndarray
        (x, y, z) float32 in RAS orientation.
    affine : ndarray
        (4, 4) of the scan.

    Returns
    -------
    ndarray
        (x, y, z) bool.

    References
    ----------
    Fisch et al. (2024). https://doi.org/10.1016/j.compbiomed.2024.108845
    """
    _, mask, _ = _deepbet().run(nib.Nifti1Image(data, affine))
    return np.asarray(mask.dataobj) > 0


@cache
def _deepbet() -> Any:
    torch = require("torch", extra="prepare")
    torch.set_num_threads(1)
    return require("deepbet", extra="prepare").BrainExtraction(no_gpu=True)


def segment(
    brain: npt.NDArray[np.float32],
    mask: npt.NDArray[np.bool_],
    priors: Sequence[npt.NDArray[np.float32]],
    voxel_mm: npt.NDArray[np.float64],
    *,
    work: Path,
) -> tuple[npt.NDArray[np.float32], ...]:
    """Tissue posteriors by a Gaussian mixture with a Markov random field and spatial priors (Atropos).

    Parameters
    ----------
    brain : ndarray
        (x, y, z) bias-corrected intensities.
    mask : ndarray
        (x, y, z) bool, the brain.
    priors : Sequence[ndarray]
        (x, y, z) prior of each tissue in [0, 1], already in the subject's space.
    voxel_mm : ndarray
        (3,) voxel sides.
    work : Path
        Folder for the engine's temporary files; the caller removes it.

    Returns
    -------
    tuple[ndarray, ...]
        (x, y, z) float32 posterior of each tissue, in the order of the priors; they sum to 1 inside the mask and are 0
        outside.

    References
    ----------
    Avants et al. (2011). https://doi.org/10.1007/s12021-011-9109-y
    """
    ants = require("ants", extra="prepare")
    spacing = [float(side) for side in voxel_mm]

    def image(array: npt.NDArray[Any]) -> Any:
        return ants.from_numpy(np.ascontiguousarray(array, dtype=np.float32), spacing=spacing)

    total = np.maximum(np.sum(priors, axis=0), 1e-6)
    floor = [np.where(mask, np.maximum(prior / total, 0.01), 0) for prior in priors]
    with _temporary_files_in(work):
        found = ants.atropos(
            a=image(np.where(mask, brain, 0)),
            x=image(mask),
            i=[image(prior) for prior in floor],
            m=f"[{ATROPOS_MRF},1x1x1]",
            c=f"[{ATROPOS_ITERATIONS},0]",
            priorweight=PRIOR_WEIGHT,
        )
    posteriors = [np.where(mask, part.numpy(), 0).astype(np.float32) for part in found["probabilityimages"]]
    whole = np.maximum(np.sum(posteriors, axis=0), 1e-6)
    return tuple(np.asarray(part / whole, dtype=np.float32) for part in posteriors)


@contextmanager
def _temporary_files_in(folder: Path) -> Iterator[None]:
    # Atropos names its files with tempfile.mktemp and leaves them; this is the one way to say where.
    before = tempfile.tempdir
    tempfile.tempdir = str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before
