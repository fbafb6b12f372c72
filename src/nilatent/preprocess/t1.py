"""Recipe t1: from a raw T1-weighted head, or a stripped brain, to tissue maps and intensities in MNI space."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from nilatent.errors import ScanError
from nilatent.preprocess import intensity, quality, registration, resampling, tissue, warping
from nilatent.preprocess.derivative import SPACE, Prepared
from nilatent.preprocess.space import Scan
from nilatent.volumes import Grid, template, template_array

BRAIN_ML = (600.0, 2300.0)
CROP_MARGIN_MM = 8.0
# On whole heads a mask cut at this distance from the template brain loses at most 0.2 ml of true brain; at 3 mm, 20 ml.
STRIP_MARGIN_MM = 7.0
# Well below any rightly placed brain, well above one that lies somewhere else.
MIN_T1_CORRELATION = 0.3
TISSUES = ("gm", "wm", "csf")


def prepare_t1(
    scan: Scan, grid: Grid, *, path: Path, work: Path, modulation: bool = True, normalisation: str = "affine"
) -> Prepared:
    """Strip, correct, register and segment one scan, and bring its tissues to the grid in one interpolation.

    Parameters
    ----------
    scan : Scan
        Whole head or stripped brain.
    grid : Grid
        Output grid.
    path : Path
        File of the scan, for messages.
    work : Path
        Folder for the engines' temporary files; the caller removes it.
    modulation : bool
        Multiply the tissue maps by the volume change, so that volume is preserved.
    normalisation : {"affine", "syn"}
        How the brain is moved to the template.

    Returns
    -------
    Prepared
        Maps ``gm``, ``wm``, ``csf`` (not yet smoothed) and ``t1w`` (intensities in [0, 1], 0 outside the brain).

    Raises
    ------
    ScanError
        When no brain of a plausible size is found, or it does not align with the template.
    """
    brain = find_brain(scan, path=path)
    start, _ = registration.register_affine(brain.values, brain.affine)
    if not brain.stripped:
        # A mask that came with the scan was someone's choice and stays.
        brain = brain.inside(refined_mask(brain.mask, brain.affine, start))
    to_template, t1_correlation = registration.refine_affine(brain.values, brain.affine, start)
    check_aligned(path, t1_correlation)
    with tempfile.TemporaryDirectory(dir=work) as scratch:
        warp = warp_of(brain.values, brain.affine, to_template, work=Path(scratch)) if normalisation == "syn" else None
    placed = Placed(to_template, warp, t1_correlation)
    return on_template(scan, brain, placed, grid, modulation=modulation)


@dataclass(frozen=True, eq=False)
class Brain:
    """The brain of a scan in a box around it, corrected for shading.

    Parameters
    ----------
    values : ndarray
        (x, y, z) float32 intensities; background 0.
    mask : ndarray
        (x, y, z) bool.
    affine : ndarray
        (4, 4) of the box.
    box : tuple[slice, slice, slice]
        Where it lies in the scan.
    field : ndarray
        (x, y, z) float32, the bias field that the scan was divided by.
    stripped : bool
        Whether the mask came with the scan.
    n_found : int
        Voxels of the mask as it was found.
    """

    values: npt.NDArray[np.float32]
    mask: npt.NDArray[np.bool_]
    affine: npt.NDArray[np.float64]
    box: tuple[slice, slice, slice]
    field: npt.NDArray[np.float32]
    stripped: bool
    n_found: int

    def inside(self, mask: npt.NDArray[np.bool_]) -> "Brain":
        """The same brain within another mask of the box."""
        return replace(self, mask=mask, values=np.where(mask, self.values, 0).astype(np.float32))


@dataclass(frozen=True, eq=False)
class Placed:
    """Where a brain lies in the template: the affine, the warp after it (or None), and the correlation that they reach."""

    to_template: npt.NDArray[np.float64]
    warp: resampling.Warp | None
    t1_correlation: float


def find_brain(scan: Scan, *, path: Path, mask: npt.NDArray[np.bool_] | None = None) -> Brain:
    """The brain of a scan: the mask that came with it, else the one given, else deepbet's; then the bias field inside it.

    Parameters
    ----------
    scan : Scan
        Whole head or stripped brain.
    path : Path
        File of the scan, for messages.
    mask : ndarray, optional
        (x, y, z) bool, of a whole head whose brain is known already.

    Raises
    ------
    ScanError
        When no brain of a plausible size is found.
    """
    found = tissue.stripped_mask(scan.data, scan.voxel_ml)
    stripped = found is not None
    if found is None:
        found = mask if mask is not None else tissue.brain_mask(scan.data, scan.affine)
    n_found = int(found.sum())
    _check_brain(path, n_found * scan.voxel_ml, oriented_by=scan.oriented_by)
    box, affine = resampling.box_around(found, scan.affine, margin_mm=CROP_MARGIN_MM)
    inside, head = found[box], np.ascontiguousarray(scan.data[box])
    field = intensity.bias_field(head, inside, scan.voxel_mm)
    values = np.where(inside, head / field, 0).astype(np.float32)
    return Brain(values, inside, affine, box, field, stripped, n_found)


def on_template(scan: Scan, brain: Brain, placed: Placed, grid: Grid, *, modulation: bool) -> Prepared:
    """Segment a placed brain and bring its tissues to the grid in one interpolation.

    Parameters
    ----------
    scan : Scan
        The scan that the brain was found in.
    brain : Brain
        Its brain, within its last mask.
    placed : Placed
        Where it lies in the template.
    grid : Grid
        Output grid.
    modulation : bool
        Multiply the tissue maps by the volume change.

    Returns
    -------
    Prepared
        As :func:`prepare_t1`.
    """
    # Through the affine with SyN too: priors through the warp agreed no better with manual grey matter (three scans), and
    # so the tissues of a scan do not depend on how it is normalised.
    priors = resampling.pull([template(name) for name in TISSUES], brain.values.shape, brain.affine, placed.to_template)
    parts = tissue.segment(brain.values, brain.mask, priors, scan.voxel_mm)
    images = dict(zip(TISSUES, parts, strict=True))
    images |= {"t1w": intensity.scale_percentiles(brain.values, brain.mask), "mask": brain.mask.astype(np.float32)}
    maps = _on_grid(images, brain.affine, grid, placed.to_template, warp=placed.warp, modulation=modulation)
    measures = _measures(scan, brain, placed, parts, aligned=maps.pop("mask"), grid=grid)
    measures |= quality.gm_measures(maps["gm"], grid)
    notes = {
        "StrippedBefore": brain.stripped,
        "BrainExtraction": "none" if brain.stripped else "deepbet",
        "BrainExtractionCutMl": float(brain.n_found - brain.mask.sum()) * scan.voxel_ml,
        "Modulated": modulation,
        "Normalisation": "affine" if placed.warp is None else "syn",
    }
    transforms = _transforms(brain.values.shape, brain.affine, placed.to_template, placed.warp)
    labels = _labels(parts, brain.mask, brain.box, scan.data.shape)
    return Prepared(maps, placed.to_template, measures, notes, transforms, labels)


def _measures(
    scan: Scan,
    brain: Brain,
    placed: Placed,
    parts: tuple[npt.NDArray[np.float32], ...],
    *,
    aligned: npt.NDArray[np.float32],
    grid: Grid,
) -> dict[str, float]:
    contrast, white = quality.tissue_contrast(brain.values, parts[0], parts[1])
    volumes = {
        f"{name}_ml": float(part.sum(dtype=np.float64)) * scan.voxel_ml
        for name, part in zip(TISSUES, parts, strict=True)
    }
    return volumes | {
        "head_size_factor": 1 / resampling.volume_change(placed.to_template),
        "tiv_ml": float(brain.mask.sum()) * scan.voxel_ml,
        "t1_correlation": placed.t1_correlation,
        "mask_dice": quality.dice(aligned > 0.5, template_array("mask", grid.spacing_mm) > 0.5),
        "bias_range": intensity.bias_range(brain.field, brain.mask),
        "noise_ratio": intensity.noise(brain.values, parts[1] > 0.5) / white,
        "tissue_contrast": contrast,
    }


def check_aligned(path: Path, t1_correlation: float) -> None:
    """Refuse a brain whose correlation with the template says that it lies somewhere else."""
    if t1_correlation < MIN_T1_CORRELATION:
        value = (
            f"aligned, it correlates {t1_correlation:.2f} with the template, at least {MIN_T1_CORRELATION} is needed"
        )
        step = "Look at the scan: orientation, cuts, lesions or contrast."
        raise _broken(path, "aligns with the template", value, step)


def refined_mask(
    mask: npt.NDArray[np.bool_], affine: npt.NDArray[np.float64], to_template: npt.NDArray[np.float64]
) -> npt.NDArray[np.bool_]:
    """The mask without what lies far outside the template brain (eyes, neck, dura), its holes filled."""
    near = resampling.pull([_near_template()], mask.shape, affine, to_template)[0] > 0.5
    return np.asarray(ndimage.binary_fill_holes(mask & near))


@cache
def _near_template() -> nib.Nifti1Image:
    whole = template("mask")
    coarse = whole.slicer[::2, ::2, ::2]
    away_mm = ndimage.distance_transform_edt(np.asarray(coarse.dataobj) < 0.5, sampling=coarse.header.get_zooms())
    return nib.Nifti1Image((away_mm <= STRIP_MARGIN_MM).astype(np.float32), coarse.affine)


def warp_of(
    brain: npt.NDArray[np.float32],
    affine: npt.NDArray[np.float64],
    to_template: npt.NDArray[np.float64],
    *,
    work: Path,
) -> resampling.Warp:
    """SyN's warp between a brain, moved by its affine, and the template."""
    grid = Grid.mni(warping.SPACING_MM)
    aligned = resampling.resample(brain, affine, grid, to_grid=to_template, modulate=False)
    return resampling.Warp(*warping.register_syn(aligned, work=work), grid)


def _on_grid(
    images: Mapping[str, npt.NDArray[np.float32]],
    affine: npt.NDArray[np.float64],
    grid: Grid,
    to_template: npt.NDArray[np.float64],
    *,
    warp: resampling.Warp | None,
    modulation: bool,
) -> dict[str, npt.NDArray[np.float32]]:
    """Every image on the grid in one interpolation; tissues keep their volume when modulated."""
    modulated = [modulation and name in TISSUES for name in images]
    if warp is not None:
        moved = resampling.resample_warped(
            list(images.values()), affine, grid, to_grid=to_template, warp=warp, modulate=modulated
        )
        return dict(zip(images, moved, strict=True))
    return {
        name: resampling.resample(image, affine, grid, to_grid=to_template, modulate=keeps_volume)
        for (name, image), keeps_volume in zip(images.items(), modulated, strict=True)
    }


def _transforms(
    shape: tuple[int, ...],
    affine: npt.NDArray[np.float64],
    to_template: npt.NDArray[np.float64],
    warp: resampling.Warp | None,
) -> dict[str, str | nib.Nifti1Image]:
    """Both directions, by the end of their file names."""
    there, back = f"from-T1w_to-{SPACE}_mode-image_xfm", f"from-{SPACE}_to-T1w_mode-image_xfm"
    if warp is None:
        backward = np.asarray(np.linalg.inv(to_template), dtype=np.float64)
        return {f"{there}.txt": registration.itk_text(to_template), f"{back}.txt": registration.itk_text(backward)}
    # The way back has a field over the brain and its margin, about as coarse as the warp itself.
    voxel_mm = np.linalg.norm(affine[:3, :3], axis=0)
    step = np.maximum(1.0, warping.SPACING_MM / voxel_mm)
    coarse_shape = tuple(int(np.ceil((side - 1) / by)) + 1 for side, by in zip(shape, step, strict=True))
    coarse = affine @ np.diag([*step, 1.0])
    forward, inverse = resampling.displacements(coarse_shape, coarse, to_template, warp)
    return {
        f"{there}.nii.gz": warping.itk_field(forward, warp.grid.affine),
        f"{back}.nii.gz": warping.itk_field(inverse, coarse),
    }


def _labels(
    parts: tuple[npt.NDArray[np.float32], ...],
    mask: npt.NDArray[np.bool_],
    box: tuple[slice, slice, slice],
    shape: tuple[int, ...],
) -> npt.NDArray[np.uint8]:
    labels = np.zeros(shape, dtype=np.uint8)
    labels[box] = np.where(mask, np.argmax(parts, axis=0) + 1, 0)
    return labels


def _check_brain(path: Path, volume_ml: float, *, oriented_by: str) -> None:
    if not BRAIN_ML[0] <= volume_ml <= BRAIN_ML[1]:
        found = f"the brain found in it has {volume_ml:.0f} ml, expected {BRAIN_ML[0]:.0f} to {BRAIN_ML[1]:.0f}"
        step = "Check that it is a T1 scan of a whole head and its voxel size is right."
        if oriented_by == "nothing":
            # deepbet knows heads the right way up.
            step = (
                "Its header does not say which way up it lies (no sform, no qform): set one, or convert the scan again."
            )
        raise _broken(path, "brain volume", found, step)


def _broken(path: Path, rule: str, value: str, next_step: str) -> ScanError:
    return ScanError(f"{path}: rule '{rule}' is broken: {value}. {next_step}", rule=rule)
