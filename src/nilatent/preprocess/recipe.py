"""Recipes: from each scan of a cohort to a checked grey-matter map on one grid, side by side and in any number of runs."""

import importlib.metadata
import re
import tempfile
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from nilatent.cohort import Cohort, exclude
from nilatent.errors import CohortError, MissingExtraError, ScanError, SettingError
from nilatent.preprocess import derivative, intensity, quality, registration, space, tissue, workers
from nilatent.progress import track
from nilatent.provenance import hash_values, read_json, versions
from nilatent.volumes import Grid, template

RECIPES = ("auto", "t1", "gm")
# Raised when the same settings give other numbers, so that maps of an older recipe are made again.
RECIPE_VERSION = 1
FWHM_LIMIT_MM = 12.0
GM_NAME = re.compile(r"label-GM|(?:^|_)s?\d*m?0?w[pc]1")
SMOOTHED_NAME = re.compile(r"(?:^|_)s\d*m?0?w[pc]1|desc-\w*[sS]mooth")
BRAIN_ML = (600.0, 2300.0)
CROP_MARGIN_MM = 8.0
# Values of a grey-matter map; modulation takes a few voxels above 1, interpolation a few below 0.
GM_LOWEST, GM_HIGHEST, GM_PERCENTILE = -0.1, 2.0, 99.9
MIN_BRAIN_COVERED, COVERAGE_SPACING_MM = 0.95, 4.0
# Well below any rightly placed brain or map, well above one that lies somewhere else.
MIN_GM_CORRELATION = 0.35
MIN_T1_CORRELATION = 0.3
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
        Gaussian smoothing in template space, 0 to 12; maps that were smoothed before are not smoothed again.
    modulation : bool
        Recipe ``"t1"``: multiply by the volume change of the affine, so that volume is preserved. Maps that exist are
        taken as they are.
    """

    name: str = "auto"
    spacing_mm: float = 4.0
    fwhm_mm: float = 8.0
    modulation: bool = True

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        if self.name not in RECIPES:
            raise SettingError(f"recipe.name is one of {', '.join(RECIPES)}, got '{self.name}'.")
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


@dataclass(frozen=True, eq=False)
class Prepared:
    """What a recipe makes of one scan.

    Parameters
    ----------
    gm : ndarray
        (x, y, z) float32 on the grid, not yet smoothed.
    to_template : ndarray
        (4, 4) millimetres of the scan to millimetres of the template.
    measures : dict[str, float]
        Keys of ``quality.MEASURES``.
    notes : dict[str, Any]
        What was found out about the scan, for the side-car.
    """

    gm: npt.NDArray[np.float32]
    to_template: npt.NDArray[np.float64]
    measures: dict[str, float]
    notes: dict[str, Any]


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
        name = config.name if config.name != "auto" else ("gm" if GM_NAME.search(path.name) else "t1")
        settings = replace(config, name=name)
        key = hash_values([row["sha256"], settings, RECIPE_VERSION, _engines(name)]) if row["sha256"] else ""
        subject = str(row["subject_id"]).removeprefix(f"{dataset}_")
        root = out / dataset if several else out
        place = derivative.Place(root, subject, str(row["session_id"]), config.spacing_mm)
        first = next((i for i, part in enumerate(path.parts) if part.startswith("sub-")), len(path.parts) - 1)
        source = f"bids:{dataset}:{'/'.join(path.parts[first:])}"
        jobs.append(Job(str(scan_id), path, settings, place, source, key, scratch))
    targets: dict[Path, str] = {}
    for job in jobs:
        if job.place.gm in targets:
            raise CohortError(
                f"Scans {targets[job.place.gm]} and {job.scan_id} would both be written to {job.place.gm.name}. "
                "Give each scan its own subject_id and session_id."
            )
        targets[job.place.gm] = job.scan_id
    return jobs


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
    scans["path"] = [str(job.place.gm) for job in jobs]
    scans["sha256"] = [records[job.scan_id]["Outputs"][job.place.gm.name] for job in jobs]
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
    grid = Grid.mni(job.config.spacing_mm)
    scan = space.load_scan(job.path)
    result = _t1(scan, job, grid) if job.config.name == "t1" else _gm(scan, job, grid)
    fwhm_mm = 0.0 if result.notes.get("SmoothedBefore") else job.config.fwhm_mm
    described = {
        "Description": "Grey-matter map, modulated: its sum times the voxel volume is the grey-matter volume"
        if result.notes.get("Modulated")
        else "Grey-matter map",
        "Sources": [job.source],
        "SpatialReference": derivative.SPACE,
        "Resolution": f"{job.config.spacing_mm:g} mm isotropic",
        "SkullStripped": True,
        "SmoothingFWHM": result.notes.get("SmoothedBefore", fwhm_mm),
    }
    record = {
        "Recipe": job.config,
        "Engines": _engines(job.config.name),
        "Measures": {name: value for name, value in result.measures.items() if np.isfinite(value)},
        "ToTemplate": result.to_template,
        "Scan": {"StoredAxes": scan.stored_axes, "OrientedBy": scan.oriented_by, "VoxelMm": scan.voxel_mm}
        | result.notes,
    }
    moved = job.config.name == "t1"
    transform = registration.itk_text(result.to_template) if moved else ""
    image = grid.to_image(space.smooth(result.gm, fwhm_mm=fwhm_mm, spacing_mm=grid.spacing_mm))
    derivative.write_scan(job.place, image, transform, key=job.key, described=described, record=record)


@cache
def _template(name: str, spacing_mm: float) -> npt.NDArray[np.float32]:
    return np.asarray(template(name, Grid.mni(spacing_mm)).get_fdata(dtype=np.float32))


def _broken(job: Job, rule: str, value: str, next_step: str) -> ScanError:
    return ScanError(f"{job.path}: rule '{rule}' is broken: {value}. {next_step}", rule=rule)


def _gm(scan: space.Scan, job: Job, grid: Grid) -> Prepared:
    low, high = float(scan.data.min()), float(np.percentile(scan.data, GM_PERCENTILE))
    if low < GM_LOWEST or not 0 < high <= GM_HIGHEST:
        found = f"values run from {low:.3g} to {high:.3g} (percentile {GM_PERCENTILE:g}), expected 0 to {GM_HIGHEST:g}"
        step = "Give a grey-matter probability or modulated map (divide percentages by 100), or use the recipe t1."
        raise _broken(job, "range of a grey-matter map", found, step)
    step = "Give a map normalised to MNI space, or prepare the T1 scan with the recipe t1."
    covered = space.share_inside(scan, _template("gm", COVERAGE_SPACING_MM) > 0.5, Grid.mni(COVERAGE_SPACING_MM))
    if covered < MIN_BRAIN_COVERED:
        found = f"its field of view covers {covered:.0%} of the template's grey matter, at least {MIN_BRAIN_COVERED:.0%} needed"
        raise _broken(job, "field of view covers the brain", found, step)
    same = np.eye(4)
    gm = space.resample(np.maximum(scan.data, 0), scan.affine, grid, to_grid=same, modulate=False)
    measures = _gm_measures(gm, grid) | {"gm_ml": float(gm.sum(dtype=np.float64)) * grid.voxel_ml}
    correlation = measures["template_correlation"]
    if correlation < MIN_GM_CORRELATION:
        found = f"its correlation with the template's grey matter is {correlation:.2f}, at least {MIN_GM_CORRELATION} needed"
        raise _broken(job, "lies in MNI space", found, step)
    notes = {"SmoothedBefore": before} if (before := _smoothed_before(job.path)) else {}
    return Prepared(gm, same, measures, notes)


def _smoothed_before(path: Path) -> float | str:
    """FWHM in mm that the map's side-car states, ``"unknown"`` when only its name says so, 0 when nothing does."""
    side_car = path.with_name(path.name.split(".")[0] + ".json")
    try:
        stated = float(read_json(side_car)["SmoothingFWHM"]) if side_car.is_file() else 0.0
    except (ValueError, KeyError, TypeError):
        stated = 0.0
    if stated > 0:
        return stated
    return "unknown" if SMOOTHED_NAME.search(path.name) else 0.0


def _gm_measures(gm: npt.NDArray[np.float32], grid: Grid) -> dict[str, float]:
    inside = _template("mask", grid.spacing_mm) > 0.5
    return {
        "template_correlation": quality.correlation(gm, _template("gm", grid.spacing_mm), inside),
        "outside_fraction": quality.outside_fraction(gm, _template("mask", grid.spacing_mm) > 0),
    }


def _t1(scan: space.Scan, job: Job, grid: Grid) -> Prepared:
    found = tissue.stripped_mask(scan.data, scan.voxel_ml)
    stripped = found is not None
    whole = found if found is not None else tissue.brain_mask(scan.data, scan.affine)
    _check_brain(job, float(whole.sum()) * scan.voxel_ml)
    head, box = space.crop(scan, whole, margin_mm=CROP_MARGIN_MM)
    mask = whole[box]
    field = intensity.bias_field(head.data, mask, head.voxel_mm)
    brain = replace(head, data=np.where(mask, head.data / field, 0).astype(np.float32))
    with tempfile.TemporaryDirectory(dir=job.scratch) as work:
        to_template, t1_correlation = registration.register_affine(
            brain.data,
            brain.affine,
            _template("t1", registration.SPACING_MM),
            _template("mask", registration.SPACING_MM),
            grid=Grid.mni(registration.SPACING_MM),
            work=Path(work),
        )
        if t1_correlation < MIN_T1_CORRELATION:
            value = f"aligned, it correlates {t1_correlation:.2f} with the template, at least {MIN_T1_CORRELATION} is needed"
            raise _broken(
                job, "aligns with the template", value, "Look at the scan: orientation, cuts, lesions or contrast."
            )
        priors = [space.pull(template(name), brain, to_template) for name in ("gm", "wm", "csf")]
        parts = tissue.segment(brain.data, mask, priors, head.voxel_mm, work=Path(work))
    gm = space.resample(parts[0], head.affine, grid, to_grid=to_template, modulate=job.config.modulation)
    aligned = space.resample(mask.astype(np.float32), head.affine, grid, to_grid=to_template, modulate=False)
    contrast, white = quality.tissue_contrast(brain.data, parts[0], parts[1])
    volumes = [float(part.sum(dtype=np.float64)) * head.voxel_ml for part in parts]
    measures = {
        "head_size_factor": 1 / space.volume_change(to_template),
        "tiv_ml": float(mask.sum()) * head.voxel_ml,
        "gm_ml": volumes[0],
        "wm_ml": volumes[1],
        "csf_ml": volumes[2],
        "t1_correlation": t1_correlation,
        "mask_dice": quality.dice(aligned > 0.5, _template("mask", grid.spacing_mm) > 0.5),
        "bias_range": intensity.bias_range(field, mask),
        "noise_ratio": intensity.noise(brain.data, parts[1] > 0.5) / white,
        "tissue_contrast": contrast,
    }
    notes = {"StrippedBefore": stripped, "BrainExtraction": "none" if stripped else "deepbet"}
    return Prepared(gm, to_template, measures | _gm_measures(gm, grid), notes | {"Modulated": job.config.modulation})


def _check_brain(job: Job, volume_ml: float) -> None:
    if not BRAIN_ML[0] <= volume_ml <= BRAIN_ML[1]:
        found = f"the brain found in it has {volume_ml:.0f} ml, expected {BRAIN_ML[0]:.0f} to {BRAIN_ML[1]:.0f}"
        raise _broken(
            job, "brain volume", found, "Check that it is a T1 scan of a whole head and its voxel size is right."
        )
