"""Job: one scan of a cohort, and what it takes to prepare it and write its files."""

import importlib.metadata
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from nilatent.errors import ScanError
from nilatent.preprocess import derivative, mosaic, quality, resampling, space, warping
from nilatent.preprocess.config import RecipeConfig
from nilatent.preprocess.gm import prepare_map
from nilatent.preprocess.t1 import prepare_t1
from nilatent.preprocess.within import Shared, prepare_visit
from nilatent.provenance import versions
from nilatent.volumes import Grid

# Raised when the same settings give other numbers, so that maps of an older recipe are made again.
RECIPE_VERSION = 4
SURVIVES = "worker survives"
# Rules that are broken by what passes: a scan that was left out by one is tried again when its sources are named again.
PASSING = (derivative.UNCHANGED, SURVIVES)
TISSUE_NAMES = {"gm": "Grey-matter", "wm": "White-matter", "csf": "Cerebrospinal-fluid"}
# Packages that shape the numbers, and so must be of one version wherever scans of one cohort are prepared.
ENGINES = {
    "t1": ("antspyx", "deepbet", "nibabel", "nilearn", "numpy", "scipy", "torch"),
    "gm": ("nibabel", "nilearn", "numpy", "scipy"),
}


@dataclass(frozen=True)
class Job:
    """One scan to prepare.

    Parameters
    ----------
    scan_id : str
        Row of the cohort.
    path : Path
        The image.
    config : RecipeConfig
        Settings; `name` is resolved to ``"t1"`` or ``"gm"``.
    place : Place
        Where the files go.
    source : str
        The image as the side-car names it, without the folder it lies in.
    key : str
        Hash of image, settings and versions; empty when the image could not be hashed.
    scratch : Path or None
        Folder that the parent process removes at the end; None for the temporary folder of the machine that does the scan.
        What a scan leaves there is removed after it in either case.
    shared : Shared or None
        What the scan takes from its subject's template; None for a scan that is prepared by itself.
    sha256 : str
        Hash of the image when the cohort was read; empty when it is not known.
    """

    scan_id: str
    path: Path
    config: RecipeConfig
    place: derivative.Place
    source: str
    key: str
    scratch: Path | None
    shared: Shared | None = None
    sha256: str = ""


@cache
def engines(recipe: str) -> dict[str, str]:
    """Versions of nilatent and of what a recipe computes with; ``"absent"`` for what is not installed."""
    found = {"nilatent": versions().get("nilatent", "unknown")}
    for name in ENGINES[recipe]:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            # The recipe itself will say what to install, if it comes to need it.
            found[name] = "absent"
    return found


def prepare_scan(job: Job) -> None:
    """Do one scan and write its files, the side-car last; a ``ScanError`` leaves nothing behind."""
    for left_by_a_killed_process in job.place.folder.parent.glob("*/.*.partial.*"):
        left_by_a_killed_process.unlink(missing_ok=True)
    config, grid = job.config, Grid.mni(job.config.spacing_mm)
    scan = space.load_scan(job.path)
    with tempfile.TemporaryDirectory(prefix="scan-", dir=job.scratch) as work:
        if job.shared is not None:
            made = prepare_visit(scan, grid, job.shared, path=job.path, modulation=config.modulation)
        elif config.name == "t1":
            made = prepare_t1(
                scan,
                grid,
                path=job.path,
                work=Path(work),
                modulation=config.modulation,
                normalisation=config.normalisation,
            )
        else:
            made = prepare_map(scan, grid, path=job.path)
    derivative.check_unchanged(job.path, job.sha256)
    if config.target not in made.maps:
        rule = "has the image to model"
        raise ScanError(
            f"{job.path}: rule '{rule}' is broken: a map has no T1 intensities. Give T1 scans, or set recipe.target to gm.",
            rule=rule,
        )
    measures = made.measures | quality.derived(made.measures, scan.voxel_mm)
    record = {
        "Recipe": config,
        "Engines": engines(config.name),
        "Measures": {name: value for name, value in measures.items() if np.isfinite(value)},
        "ToTemplate": made.to_template,
        "Scan": {
            "StoredAxes": scan.stored_axes,
            "StoredShape": scan.stored_shape,
            "StoredAffine": scan.stored_affine,
            "OrientedBy": scan.oriented_by,
            "VoxelMm": scan.voxel_mm,
        }
        | made.notes,
    }
    transforms = {job.place.transform(ending): content for ending, content in made.transforms.items()}
    if made.tissues is not None:
        transforms[job.place.tissue_table] = derivative.TISSUE_TABLE
    # Before the side-car, which says that the scan is done.
    slices = mosaic.scan_mosaic(scan.data, scan.affine, made.tissues, to_scan=_to_scan(made))
    mosaic.write_mosaic(slices, mosaic.place(job.place.modelled))
    derivative.write_scan(job.place, _images(job, made, scan, grid), transforms, key=job.key, record=record)


def _to_scan(made: derivative.Prepared) -> Callable[[mosaic.Points], mosaic.Points]:
    field = made.transforms.get(f"from-T1w_to-{derivative.SPACE}_mode-image_xfm.nii.gz")
    if isinstance(field, nib.Nifti1Image):
        return mosaic.field_points(warping.displacement_of(field), field.affine)
    return mosaic.affine_points(made.to_template)


def _images(
    job: Job, made: derivative.Prepared, scan: space.Scan, grid: Grid
) -> dict[Path, tuple[nib.Nifti1Image, dict[str, Any]]]:
    """Every image of a scan with the BIDS fields of its side-car."""
    on_grid = {
        "Sources": [job.source],
        "SpatialReference": derivative.SPATIAL_REFERENCE,
        "Resolution": f"{job.config.spacing_mm:g} mm isotropic",
        "SkullStripped": True,
    }
    fwhm_mm = 0.0 if made.notes.get("SmoothedBefore") else job.config.fwhm_mm
    images = {}
    for name, values in made.maps.items():
        if name == "t1w":
            fields = on_grid | {"Description": "T1 intensities, percentiles 0.5 to 99.5 of the brain scaled to [0, 1]"}
        else:
            sum_means = ", modulated: its sum times the voxel volume is the volume in the subject's own space"
            elsewhere = f"; normalised elsewhere, to {made.notes['SourceSpace']}" if "SourceSpace" in made.notes else ""
            fields = on_grid | {
                "Description": f"{TISSUE_NAMES[name]} map{sum_means if made.notes.get('Modulated') is True else ''}{elsewhere}",
                "SmoothingFWHM": made.notes.get("SmoothedBefore", fwhm_mm),
            }
            values = resampling.smooth(values, fwhm_mm=fwhm_mm, spacing_mm=grid.spacing_mm)
        images[job.place.map(name)] = (grid.to_image(values), fields)
    if made.tissues is not None:
        fields = {"Sources": [job.source], "SpatialReference": "orig", "Description": "Most probable tissue"}
        images[job.place.tissues] = (space.as_stored(made.tissues, scan), fields)
    return images
