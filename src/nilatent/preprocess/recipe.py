"""Recipes: from each scan of a cohort to a checked grey-matter map on one grid, side by side and in any number of runs."""

import importlib.metadata
import tempfile
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd

from nilatent.cohort import Cohort, exclude
from nilatent.errors import CohortError, MissingExtraError, ScanError, SettingError
from nilatent.preprocess import derivative, quality, resampling, space, workers
from nilatent.preprocess.gm import is_map, prepare_map
from nilatent.preprocess.t1 import prepare_t1
from nilatent.progress import track
from nilatent.provenance import hash_values, versions
from nilatent.volumes import Grid

RECIPES = ("auto", "t1", "gm")
# Raised when the same settings give other numbers, so that maps of an older recipe are made again.
RECIPE_VERSION = 2
TARGETS = ("gm", "t1w")
NORMALISATIONS = ("affine", "syn")
FWHM_LIMIT_MM = 12.0
TISSUE_NAMES = {"gm": "Grey-matter", "wm": "White-matter", "csf": "Cerebrospinal-fluid"}
ENGINES = {"t1": ("antspyx", "deepbet", "nilearn"), "gm": ("nilearn",)}
COVARIATES = ("head_size_factor", "tiv_ml", "gm_ml", "wm_ml", "csf_ml")


@dataclass(frozen=True)
class RecipeConfig:
    """How scans become maps.

    Parameters
    ----------
    name : {"auto", "t1", "gm"}
        ``"t1"``: raw T1 heads or stripped brains. ``"gm"``: grey-matter maps in MNI space. ``"auto"``: by file name, scan
        by scan (``label-GM``, CAT12's ``mwp1``, SPM's ``mwc1`` are maps, all else is T1).
    spacing_mm : float
        Voxel size of the output, 1 to 6.
    fwhm_mm : float
        Gaussian smoothing of tissue maps in template space, 0 to 12; maps that were smoothed before are not smoothed again.
    modulation : bool
        Recipe ``"t1"``: multiply tissue maps by the volume change, so that volume is preserved. Maps that exist are taken
        as they are.
    normalisation : {"affine", "syn"}
        Recipe ``"t1"``: how a brain is moved to the template; ``"syn"`` adds a symmetric diffeomorphic registration, as
        VBM does, and takes longer.
    target : {"gm", "t1w"}
        The image that is modelled: the grey-matter map, or T1 intensities scaled to [0, 1] inside the brain. Recipe
        ``"t1"`` writes both.
    """

    name: str = "auto"
    spacing_mm: float = 4.0
    fwhm_mm: float = 8.0
    modulation: bool = True
    normalisation: str = "affine"
    target: str = "gm"

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        if self.name not in RECIPES:
            raise SettingError(f"recipe.name is one of {', '.join(RECIPES)}, got '{self.name}'.")
        if self.normalisation not in NORMALISATIONS:
            raise SettingError(
                f"recipe.normalisation is one of {', '.join(NORMALISATIONS)}, got '{self.normalisation}'."
            )
        if self.target not in TARGETS:
            raise SettingError(f"recipe.target is one of {', '.join(TARGETS)}, got '{self.target}'.")
        if not 0 <= self.fwhm_mm <= FWHM_LIMIT_MM:
            raise SettingError(
                f"recipe.fwhm_mm is between 0 and {FWHM_LIMIT_MM:g}, got {self.fwhm_mm}. 8 is usual for VBM."
            )
        Grid.mni(self.spacing_mm)


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
    scratch : Path
        Folder for temporary files, removed by the parent process.
    """

    scan_id: str
    path: Path
    config: RecipeConfig
    place: derivative.Place
    source: str
    key: str
    scratch: Path


def prepare(cohort: Cohort, out: Path, config: RecipeConfig, *, n_procs: int = 1) -> Cohort:
    """Grey-matter maps of every scan on one MNI grid, with the measures of each.

    Parameters
    ----------
    cohort : Cohort
        Scans to prepare; left as it is.
    out : Path
        Receives a BIDS derivative: maps, side-cars, transforms, ``quality.tsv``. With several data sets, one folder each.
        Scans that are already there with the same image, settings and version are not done again.
    config : RecipeConfig
        Settings.
    n_procs : int
        Scans side by side: a process of one thread each for T1 scans, a thread each for maps that exist. The numbers do
        not depend on it.

    Returns
    -------
    Cohort
        ``path`` and ``sha256`` are the prepared map's; new columns ``recipe``, the measures of ``quality.MEASURES`` and
        ``quality_flags``. Scans that failed are in ``excluded`` with stage, rule and reason.

    Raises
    ------
    SettingError
        For fewer than one process.
    CohortError
        When two scans would be written to the same file.
    MissingExtraError
        When a recipe needs an engine that is not installed.
    """
    if n_procs < 1:
        raise SettingError(f"n_procs is at least 1, got {n_procs}.")
    out = Path(out)
    with tempfile.TemporaryDirectory(prefix="nilatent-") as scratch:
        jobs = _jobs(cohort, out, config, Path(scratch))
        # First of all, so that maps of a run that was killed are known as ours too.
        for root in {job.place.root for job in jobs} | {out}:
            derivative.write_description(root)
        todo = [job for job in jobs if not derivative.is_done(job.place, job.key)]
        # The engines read their thread count when they are loaded, so they are never loaded into this process.
        apart = any(job.config.name == "t1" for job in todo)
        outcomes = workers.run_jobs(prepare_scan, todo, n_procs=n_procs, apart=apart)
        tracked = track(outcomes, total=len(todo), label="prepare")
        failures = {job.scan_id: _failure(job, error) for job, error in tracked if error is not None}
    ordered = [failures[job.scan_id] for job in jobs if job.scan_id in failures]
    prepared = _with_results(exclude(cohort, ordered), [job for job in jobs if job.scan_id not in failures])
    shown = ["dataset", "recipe", *(name for name in quality.MEASURES if name in prepared.scans), "quality_flags"]
    table = prepared.scans[shown].rename(columns={"quality_flags": "flags"}).fillna({"flags": ""})
    derivative.write_quality(out, table, prepared.columns | {"flags": prepared.columns["quality_flags"]})
    return prepared


def _jobs(cohort: Cohort, out: Path, config: RecipeConfig, scratch: Path) -> list[Job]:
    several = cohort.scans["dataset"].nunique() > 1
    jobs = []
    for scan_id, row in cohort.scans.iterrows():
        path, dataset = Path(row["path"]), str(row["dataset"])
        name = config.name if config.name != "auto" else ("gm" if is_map(path) else "t1")
        settings = replace(config, name=name)
        key = hash_values([row["sha256"], settings, RECIPE_VERSION, _engines(name)]) if row["sha256"] else ""
        subject = str(row["subject_id"]).removeprefix(f"{dataset}_")
        root = out / dataset if several else out
        place = _place(root, subject, str(row["session_id"]), settings)
        first = next((i for i, part in enumerate(path.parts) if part.startswith("sub-")), len(path.parts) - 1)
        source = f"bids:{dataset}:{'/'.join(path.parts[first:])}"
        jobs.append(Job(str(scan_id), path, settings, place, source, key, scratch))
    targets: dict[Path, str] = {}
    for job in jobs:
        if job.place.modelled in targets:
            raise CohortError(
                f"Scans {targets[job.place.modelled]} and {job.scan_id} would both be written to {job.place.modelled.name}. "
                "Give each scan its own subject_id and session_id."
            )
        targets[job.place.modelled] = job.scan_id
    return jobs


def _place(root: Path, subject: str, session: str, config: RecipeConfig) -> derivative.Place:
    made = "given" if config.name == "gm" else "modulated" if config.modulation else "unmodulated"
    smooth = f"Smooth{derivative.number_label(config.fwhm_mm)}" if config.fwhm_mm else ""
    return derivative.Place(root, subject, session, config.spacing_mm, config.target, made + smooth)


@cache
def _engines(recipe: str) -> dict[str, str]:
    found = {"nilatent": versions().get("nilatent", "unknown")}
    for name in ENGINES[recipe]:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            # The recipe itself will say what to install, if it comes to need it.
            found[name] = "absent"
    return found


def _failure(job: Job, error: BaseException) -> dict[str, str]:
    if isinstance(error, MissingExtraError | SettingError):
        raise error
    if isinstance(error, ScanError):
        rule, reason = error.rule, str(error)
    elif isinstance(error, BrokenExecutor):
        rule = "worker survives"
        reason = (
            f"{job.path}: the process that prepared it was ended from outside or by lack of memory, also when it ran alone. "
            "Free memory, lower n_procs, or leave the scan out."
        )
    else:
        rule = "engine succeeds"
        reason = f"{job.path}: {type(error).__name__}: {error}. Look at the scan; if it is sound, report this message."
    return {"scan_id": job.scan_id, "stage": "prepare", "rule": rule, "reason": reason}


def _with_results(cohort: Cohort, jobs: list[Job]) -> Cohort:
    records = {job.scan_id: derivative.read_record(job.place) for job in jobs}
    scans = cohort.scans.copy()
    own = [name for name in (*quality.MEASURES, "recipe", "quality_flags") if name in scans]
    scans = scans.rename(columns={name: f"source_{name}" for name in own})
    scans["path"] = [str(job.place.modelled) for job in jobs]
    if any(job.config.target != "gm" for job in jobs):
        scans["gm_path"] = [str(job.place.map("gm")) for job in jobs]
    scans["sha256"] = [records[job.scan_id]["Outputs"][job.place.modelled.name] for job in jobs]
    scans["recipe"] = [job.config.name for job in jobs]
    measured = pd.DataFrame([records[job.scan_id]["Measures"] for job in jobs], index=scans.index, dtype=float)
    for name in quality.MEASURES:
        if name in measured or name in COVARIATES:
            scans[name] = measured.get(name, np.nan)
    present = [name for name in quality.MEASURES if name in scans]
    flags = quality.outlier_flags(scans[present], scans["dataset"])
    scans["quality_flags"] = flags.mask(flags == "", np.nan)
    columns = {f"source_{name}" if name in own else name: value for name, value in cohort.columns.items()}
    return replace(cohort, scans=scans, columns=columns | _dictionary(present))


def _dictionary(measures: list[str]) -> dict[str, Any]:
    described: dict[str, Any] = {
        "recipe": {"Description": "How the map was made: t1 from a raw scan, gm from a map that existed"},
        "quality_flags": {
            "Description": "Measures by which the scan stands out in its data set (modified z score over "
            f"{quality.OUTLIER_LIMIT}); looked at, not left out"
        },
    }
    for name in measures:
        unit, text, _ = quality.MEASURES[name]
        described[name] = {"Description": text} | ({"Units": unit} if unit else {})
    return described


def prepare_scan(job: Job) -> None:
    """Do one scan and write its files, the side-car last; a ``ScanError`` leaves nothing behind."""
    config, grid = job.config, Grid.mni(job.config.spacing_mm)
    scan = space.load_scan(job.path)
    if config.name == "t1":
        made = prepare_t1(
            scan,
            grid,
            path=job.path,
            work=job.scratch,
            modulation=config.modulation,
            normalisation=config.normalisation,
        )
    else:
        made = prepare_map(scan, grid, path=job.path)
    if config.target not in made.maps:
        rule = "has the image to model"
        raise ScanError(
            f"{job.path}: rule '{rule}' is broken: a map has no T1 intensities. Give T1 scans, or set recipe.target to gm.",
            rule=rule,
        )
    record = {
        "Recipe": config,
        "Engines": _engines(config.name),
        "Measures": {name: value for name, value in made.measures.items() if np.isfinite(value)},
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
    derivative.write_scan(job.place, _images(job, made, scan, grid), transforms, key=job.key, record=record)


def _images(
    job: Job, made: derivative.Prepared, scan: space.Scan, grid: Grid
) -> dict[Path, tuple[nib.Nifti1Image, dict[str, Any]]]:
    """Every image of a scan with the BIDS fields of its side-car."""
    on_grid = {
        "Sources": [job.source],
        "SpatialReference": derivative.SPACE,
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
            fields = on_grid | {
                "Description": f"{TISSUE_NAMES[name]} map{sum_means if made.notes.get('Modulated') else ''}",
                "SmoothingFWHM": made.notes.get("SmoothedBefore", fwhm_mm),
            }
            values = resampling.smooth(values, fwhm_mm=fwhm_mm, spacing_mm=grid.spacing_mm)
        images[job.place.map(name)] = (grid.to_image(values), fields)
    if made.tissues is not None:
        fields = {"Sources": [job.source], "SpatialReference": "orig", "Description": "Most probable tissue"}
        images[job.place.tissues] = (space.as_stored(made.tissues, scan), fields)
    return images
