"""Recipe t1: from a raw T1-weighted head, or a stripped brain, to tissue maps and intensities in MNI space."""

import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from nilatent.errors import ScanError
from nilatent.preprocess import intensity, quality, registration, resampling, tissue
from nilatent.preprocess.derivative import SPACE, Prepared
from nilatent.preprocess.space import Scan
from nilatent.volumes import Grid, template, template_array

BRAIN_ML = (600.0, 2300.0)
CROP_MARGIN_MM = 8.0
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
    found = tissue.stripped_mask(scan.data, scan.voxel_ml)
    stripped = found is not None
    whole = found if found is not None else tissue.brain_mask(scan.data, scan.affine)
    _check_brain(path, float(whole.sum()) * scan.voxel_ml)
    box, affine = resampling.box_around(whole, scan.affine, margin_mm=CROP_MARGIN_MM)
    mask, head = whole[box], np.ascontiguousarray(scan.data[box])
    field = intensity.bias_field(head, mask, scan.voxel_mm)
    brain = np.where(mask, head / field, 0).astype(np.float32)
    with tempfile.TemporaryDirectory(dir=work) as scratch:
        to_template, t1_correlation = registration.register_affine(
            brain,
            affine,
            template_array("t1", registration.SPACING_MM),
            template_array("mask", registration.SPACING_MM),
            grid=Grid.mni(registration.SPACING_MM),
            work=Path(scratch),
        )
        if t1_correlation < MIN_T1_CORRELATION:
            value = f"aligned, it correlates {t1_correlation:.2f} with the template, at least {MIN_T1_CORRELATION} is needed"
            step = "Look at the scan: orientation, cuts, lesions or contrast."
            raise _broken(path, "aligns with the template", value, step)
        priors = [resampling.pull(template(name), brain.shape, affine, to_template) for name in TISSUES]
        parts = tissue.segment(brain, mask, priors, scan.voxel_mm, work=Path(scratch))
    maps = {
        name: resampling.resample(part, affine, grid, to_grid=to_template, modulate=modulation)
        for name, part in zip(TISSUES, parts, strict=True)
    }
    scaled = intensity.scale_percentiles(brain, mask)
    maps["t1w"] = resampling.resample(scaled, affine, grid, to_grid=to_template, modulate=False)
    aligned = resampling.resample(mask.astype(np.float32), affine, grid, to_grid=to_template, modulate=False)
    contrast, white = quality.tissue_contrast(brain, parts[0], parts[1])
    volumes = {
        f"{name}_ml": float(part.sum(dtype=np.float64)) * scan.voxel_ml
        for name, part in zip(TISSUES, parts, strict=True)
    }
    measures = volumes | {
        "head_size_factor": 1 / resampling.volume_change(to_template),
        "tiv_ml": float(mask.sum()) * scan.voxel_ml,
        "t1_correlation": t1_correlation,
        "mask_dice": quality.dice(aligned > 0.5, template_array("mask", grid.spacing_mm) > 0.5),
        "bias_range": intensity.bias_range(field, mask),
        "noise_ratio": intensity.noise(brain, parts[1] > 0.5) / white,
        "tissue_contrast": contrast,
    }
    measures |= quality.gm_measures(maps["gm"], grid)
    notes = {
        "StrippedBefore": stripped,
        "BrainExtraction": "none" if stripped else "deepbet",
        "Modulated": modulation,
        "Normalisation": normalisation,
    }
    transforms = {f"from-T1w_to-{SPACE}_mode-image_xfm.txt": registration.itk_text(to_template)}
    return Prepared(maps, to_template, measures, notes, transforms, _labels(parts, mask, box, scan.data.shape))


def _labels(
    parts: tuple[npt.NDArray[np.float32], ...],
    mask: npt.NDArray[np.bool_],
    box: tuple[slice, slice, slice],
    shape: tuple[int, ...],
) -> npt.NDArray[np.uint8]:
    labels = np.zeros(shape, dtype=np.uint8)
    labels[box] = np.where(mask, np.argmax(parts, axis=0) + 1, 0)
    return labels


def _check_brain(path: Path, volume_ml: float) -> None:
    if not BRAIN_ML[0] <= volume_ml <= BRAIN_ML[1]:
        found = f"the brain found in it has {volume_ml:.0f} ml, expected {BRAIN_ML[0]:.0f} to {BRAIN_ML[1]:.0f}"
        step = "Check that it is a T1 scan of a whole head and its voxel size is right."
        raise _broken(path, "brain volume", found, step)


def _broken(path: Path, rule: str, value: str, next_step: str) -> ScanError:
    return ScanError(f"{path}: rule '{rule}' is broken: {value}. {next_step}", rule=rule)
