"""Companion: one further image of a prepared scan, and what it takes to bring it to the grid."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from nilatent.errors import ScanError
from nilatent.preprocess import derivative, gm, intensity, quality, resampling, warping
from nilatent.preprocess.coregistration import Coregistration, coregister, covered, information_gain
from nilatent.preprocess.job import TISSUE_NAMES
from nilatent.preprocess.space import Scan, load_scan
from nilatent.provenance import hash_file, read_json
from nilatent.volumes import Grid, template_array

MIN_COVERED = 0.9
# Right fits of sharp contrasts reach .58 and more, of a blurred one .26; wrong fits, noise and a sphere at most .11.
MIN_GAIN = 0.15
# To the template there is only the affine or warp of another tool: rightly placed images lose -.16 and more, and images
# that lie 15 mm off -.43 and less.
MIN_GAIN_IN_TEMPLATE = -0.3
TEMPLATE_MM = 2.0
SAME_AFFINE_MM = 1e-3
PERCENTILES = "percentiles 0.5 to 99.5 of the brain scaled to [0, 1]"


@dataclass(frozen=True)
class Companion:
    """One further image to bring to the grid.

    Parameters
    ----------
    scan_id, modality : str
        Row of the cohort and name of the modality.
    path : Path
        The image.
    kind : {"raw", "template"}
        In the subject's own space, or in template space as its name says.
    tissue : str
        ``"GM"``, ``"WM"``, ``"CSF"``, or empty for all that is no tissue map.
    units : str
        Unit of the values, which are kept then; empty when they are scaled.
    t1, side_car : Path
        The scan that was prepared, and the side-car of its prepared map.
    target : Path
        Where the image goes.
    source : str
        The image as the side-car names it, without the folder it lies in.
    spacing_mm, fwhm_mm : float
        Voxel size of the grid, and width of the smoothing, 0 for none.
    key : str
        Hash of all that the result depends on.
    """

    scan_id: str
    modality: str
    path: Path
    kind: str
    tissue: str
    units: str
    t1: Path
    side_car: Path
    target: Path
    source: str
    spacing_mm: float
    fwhm_mm: float
    key: str


def read_record(side_car: Path) -> dict[str, Any]:
    """What the recipe wrote of a prepared scan.

    Raises
    ------
    ScanError
        When the side-car is missing or damaged.
    """
    try:
        record = dict(read_json(side_car)["nilatent"])
        whole = isinstance(record["Outputs"], dict) and np.shape(record["ToTemplate"]) == (4, 4)
        found = "" if whole else "it does not say what was written and how the scan was moved"
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        record, found = {}, f"{type(error).__name__}: {error}"
    if found:
        raise _broken(side_car, "side-car of a prepared scan", found, "Prepare the scan again.")
    return record


def output(side_car: Path, record: Mapping[str, Any], part: str) -> tuple[Path, str]:
    """A file that the recipe wrote, by a part of its name, and its hash.

    Raises
    ------
    ScanError
        When there is none, or it is not the one that was written.
    """
    names = [name for name in record["Outputs"] if part in name and name.endswith(".nii.gz")]
    rule, step = "prepared file as it was written", "Prepare the scan again."
    if len(names) != 1:
        raise _broken(side_car, rule, f"it lists {len(names)} files with {part} in their name", step)
    path, digest = side_car.with_name(names[0]), str(record["Outputs"][names[0]])
    if not path.is_file() or hash_file(path) != digest:
        raise _broken(path, rule, "its content has changed" if path.is_file() else "it is not there", step)
    return path, digest


def bring(companion: Companion) -> None:
    """Bring the image to the grid and write it, its side-car last; a ``ScanError`` leaves nothing behind."""
    grid = Grid.mni(companion.spacing_mm)
    scan = load_scan(companion.path)
    if companion.tissue:
        values, notes = _tissue_map(companion, scan, grid)
    elif companion.kind == "template":
        values, notes = _in_template(companion, scan, grid)
    else:
        values, notes = _raw(companion, scan, grid)
    image = {companion.target: (grid.to_image(values), _described(companion))}
    derivative.write_files(companion.target, image, {}, key=companion.key, record=notes)


def _described(companion: Companion) -> dict[str, Any]:
    """The BIDS fields of the side-car."""
    fields: dict[str, Any] = {
        "Sources": [companion.source],
        "SpatialReference": derivative.SPATIAL_REFERENCE,
        "Resolution": f"{companion.spacing_mm:g} mm isotropic",
        "SkullStripped": True,
    }
    if companion.tissue:
        before = gm.stated_fwhm(companion.path)
        text = f"{TISSUE_NAMES[companion.tissue.lower()]} map, normalised elsewhere"
        return fields | {"Description": text, "SmoothingFWHM": before or companion.fwhm_mm}
    if companion.units:
        return fields | {
            "Description": f"{companion.modality}, its values kept, 0 outside the brain",
            "Units": companion.units,
        }
    return fields | {"Description": f"{companion.modality}, {PERCENTILES}", "Units": "arbitrary"}


def _tissue_map(companion: Companion, scan: Scan, grid: Grid) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
    path, name = companion.path, companion.tissue.lower()
    if companion.kind == "raw":
        found = "its name says the subject's own space, or a rigid move, which keeps the head's size"
        step = "Give the map normalised to the template, such as mwp2*, mwc2* or space-MNI152*_label-WM."
        raise _broken(path, "lies in template space", found, step)
    low, high = float(scan.data.min()), float(np.percentile(scan.data, gm.GM_PERCENTILE))
    if low < gm.GM_LOWEST or not gm.GM_LEAST <= high <= gm.GM_HIGHEST:
        found = f"values run from {low:.3g} to {high:.3g} (percentile {gm.GM_PERCENTILE:g})"
        step = f"A map has 0 to between {gm.GM_LEAST:g} and {gm.GM_HIGHEST:g}: give a probability or modulated map."
        raise _broken(path, "range of a tissue map", found, step)
    here = np.eye(4)
    share = resampling.share_inside(scan.data.shape, scan.affine, template_array(name, grid.spacing_mm) > 0.5, grid)
    if share < gm.MIN_BRAIN_COVERED:
        found = f"its field of view holds {share:.0%} of the template's tissue"
        raise _broken(path, "field of view covers the brain", found, "Give a map normalised to MNI space.")
    values = resampling.resample(np.maximum(scan.data, 0), scan.affine, grid, to_grid=here, modulate=False)
    inside = template_array("mask", grid.spacing_mm) > 0.5
    alike = {
        other: quality.correlation(values, template_array(other, grid.spacing_mm), inside) for other in TISSUE_NAMES
    }
    if alike[name] < gm.MIN_GM_CORRELATION:
        listed = ", ".join(f"{other} {value:.2f}" for other, value in alike.items())
        found = f"its correlations with the tissues of the template are {listed}"
        step = f"Give the {companion.tissue} map normalised to MNI space, at least {gm.MIN_GM_CORRELATION} is needed."
        raise _broken(path, f"shows {companion.tissue} in template space", found, step)
    smoothed = resampling.smooth(values, fwhm_mm=companion.fwhm_mm, spacing_mm=grid.spacing_mm)
    return smoothed, {"TemplateCorrelation": alike[name], "Modulated": gm.MODULATED[gm.modulation(path)]}


def _in_template(companion: Companion, scan: Scan, grid: Grid) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
    inside, affine = template_array("mask", TEMPLATE_MM) > 0.5, Grid.mni(TEMPLATE_MM).affine
    brain = np.where(inside, template_array("t1", TEMPLATE_MM), 0).astype(np.float32)
    placed = (_shown(scan.data), scan.affine, brain, affine)
    here = np.eye(4)
    fit = Coregistration(here, information_gain(*placed, to_brain=here), covered(scan.data, *placed[1:], to_brain=here))
    step = "Give an image normalised to the MNI152 template of adults, or the raw one."
    _check(companion, fit, least=MIN_GAIN_IN_TEMPLATE, rule="lies in template space", step=step)
    values = _masked(companion, scan, inside, affine, here)
    return resampling.resample(values, scan.affine, grid, to_grid=here, modulate=False), _measures(fit)


def _raw(companion: Companion, scan: Scan, grid: Grid) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
    record = read_record(companion.side_car)
    if record.get("Recipe", {}).get("name") != "t1":
        found = "the scan was prepared from a map, so the way from this image to the template is not known"
        step = "Give an image in template space (space-MNI* in its name), or T1 scans with the recipe t1."
        raise _broken(companion.path, "has a T1 scan to lie on", found, step)
    brain, inside, affine = _brain_of(companion, record)
    fit = coregister(_shown(scan.data), scan.affine, brain, affine)
    step = "Look at it: whose it is, its orientation, whether it shows the whole brain. Or name it n/a in a table of paths."
    _check(companion, fit, least=MIN_GAIN, rule="fits the T1 scan of its subject", step=step)
    values = _masked(companion, scan, inside, affine, fit.to_brain)
    to_template = np.asarray(record["ToTemplate"], dtype=np.float64)
    notes = _measures(fit) | {"ToT1": fit.to_brain, "ToTemplate": to_template @ fit.to_brain}
    field = f"_from-T1w_to-{derivative.SPACE}_mode-image_xfm"
    if not any(field in name and name.endswith(".nii.gz") for name in record["Outputs"]):
        moved = resampling.resample(values, scan.affine, grid, to_grid=notes["ToTemplate"], modulate=False)
        return moved, notes
    notes["ToTemplate"] = "the movement to the T1 scan, and then the warp of that"
    image = nib.load(output(companion.side_car, record, field)[0])
    to_scan = warping.displacement_of(image)
    # The field leads from the template to the T1 scan at once, so that the space before the warp is that of the scan.
    warp = resampling.Warp(to_scan, to_scan, Grid(to_scan.shape[1:], np.asarray(image.affine)))
    return resampling.resample_warped([values], scan.affine, grid, to_grid=fit.to_brain, warp=warp, modulate=[False])[
        0
    ], notes


def _brain_of(
    companion: Companion, record: Mapping[str, Any]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_], npt.NDArray[np.float64]]:
    """Intensities of the T1 brain, its mask, and their affine."""
    path, _ = output(companion.side_car, record, "_space-orig_dseg")
    labels = nib.as_closest_canonical(nib.load(path))
    t1 = load_scan(companion.t1)
    if labels.shape != t1.data.shape or not np.allclose(labels.affine, t1.affine, atol=SAME_AFFINE_MM):
        found = f"it has another shape or affine than {path.name}, which was made from it"
        raise _broken(companion.t1, "same geometry as when it was prepared", found, "Prepare the scan again.")
    inside = np.asarray(labels.dataobj) > 0
    # Exact zeros inside would count as outside.
    return np.where(inside, np.maximum(t1.data, 1e-6), 0).astype(np.float32), inside, t1.affine


def _shown(data: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The image as a registration takes it: not below 0, whatever its values mean, and 0 where it is."""
    low = float(data.min())
    return data if low >= 0 else np.where(data != 0, data - low, 0).astype(np.float32)


def _masked(
    companion: Companion,
    scan: Scan,
    inside: npt.NDArray[np.bool_],
    affine: npt.NDArray[np.float64],
    to_brain: npt.NDArray[np.float64],
) -> npt.NDArray[np.float32]:
    """The image in its own voxels, 0 outside the brain: its values when they have a unit, otherwise scaled to [0, 1]."""
    share = resampling.look_up(inside.astype(np.float32), affine, scan.data.shape, to_brain @ scan.affine, order=1)
    brain = share > 0.5
    if companion.units:
        return np.where(brain, scan.data, 0).astype(np.float32)
    return intensity.scale_percentiles(scan.data, brain)


def _check(companion: Companion, fit: Coregistration, *, least: float, rule: str, step: str) -> None:
    if fit.covered < MIN_COVERED:
        found = f"it has values in {fit.covered:.0%} of the brain, at least {MIN_COVERED:.0%} are needed"
        raise _broken(companion.path, "covers the brain", found, step)
    if fit.gain < least:
        found = f"shifted by 8 mm it loses {fit.gain:.0%} of its mutual information, at least {least:.0%} are needed"
        raise _broken(companion.path, rule, found, step)


def _measures(fit: Coregistration) -> dict[str, Any]:
    return {"InformationGain": fit.gain, "BrainCovered": fit.covered}


def _broken(path: Path, rule: str, value: str, next_step: str) -> ScanError:
    return ScanError(f"{path}: rule '{rule}' is broken: {value}. {next_step}", rule=rule)
