"""Recipes: from each scan of a cohort to a checked grey-matter map on one grid, side by side and in any number of runs."""

import re
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pandas as pd
from joblib.externals.loky import ProcessPoolExecutor
from scipy import ndimage

from nilatent.cohort import Cohort, exclude
from nilatent.errors import CohortError, MissingExtraError, ScanError, SettingError
from nilatent.preprocess import intensity, quality, space, tissue
from nilatent.progress import track
from nilatent.provenance import atomic, hash_file, hash_values, read_json, versions, write_json
from nilatent.volumes import Grid, template

RECIPES = ("auto", "t1", "gm")
# Raised when the same settings give other numbers, so that maps of an older recipe are made again.
RECIPE_VERSION = 1
SPACE = "MNI152NLin2009aSym"
FWHM_LIMIT_MM = 12.0
FWHM_BY_SIGMA = float(np.sqrt(8 * np.log(2)))
GM_NAME = re.compile(r"label-GM|(?:^|_)s?\d*m?0?w[pc]1")
SMOOTHED_NAME = re.compile(r"(?:^|_)s\d*m?0?w[pc]1|desc-\w*[sS]mooth")
BRAIN_ML = (600.0, 2300.0)
# Values of a grey-matter map; modulation takes a few voxels above 1, interpolation a few below 0.
GM_LOWEST, GM_HIGHEST, GM_PERCENTILE = -0.1, 2.0, 99.9
MIN_BRAIN_COVERED = 0.95
# Well below any rightly placed map (0.6 and more), well above a brain somewhere else.
MIN_GM_CORRELATION = 0.35
ENGINES = {"t1": ("antspyx", "deepbet", "nilearn"), "gm": ("nilearn",)}
# One thread per process: the result does not depend on how sums are shared out, and processes do not fight for cores.
WORKER_ENVIRONMENT = {
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1",
    "ANTS_RANDOM_SEED": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}


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
        Recipe ``"t1"``: multiply by the volume change of the affine, so that volume is preserved.
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
            raise SettingError(f"recipe.fwhm_mm is between 0 and {FWHM_LIMIT_MM:g}, got {self.fwhm_mm}. 8 is usual for VBM.")
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
    recipe : {"t1", "gm"}
        What to do with it.
    config : RecipeConfig
        Settings.
    stem : Path
        Output folder and the beginning of the file names, such as ``OUT/sub-01/anat/sub-01``.
    source : str
        The image as the side-car names it, without the place where it lies.
    key : str
        Hash of image, settings and versions; empty when the image could not be read.
    scratch : Path
        Folder for temporary files.
    """

    scan_id: str
    path: Path
    recipe: str
    config: RecipeConfig
    stem: Path
    source: str
    key: str
    scratch: Path

    @property
    def map_path(self) -> Path:
        """The prepared map."""
        resolution = f"{self.config.spacing_mm:g}".replace(".", "p")
        name = f"{self.stem.name}_space-{SPACE}_res-{resolution}_label-GM_probseg.nii.gz"
        return self.stem.with_name(name)

    @property
    def side_car(self) -> Path:
        """Written last: where it is and carries the key, the scan is done."""
        return self.map_path.with_name(self.map_path.name.replace(".nii.gz", ".json"))

    @property
    def transform(self) -> Path:
        """Affine in ITK's text format."""
        return self.stem.with_name(f"{self.stem.name}_from-T1w_to-{SPACE}_mode-image_xfm.txt")


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
        Processes side by side, one thread each; the numbers do not depend on it.

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
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="nilatent-") as scratch:
        jobs = _jobs(cohort, out, config, Path(scratch))
        todo = [job for job in jobs if not _is_done(job)]
        apart = n_procs > 1 or any(job.recipe == "t1" for job in todo)
        outcomes = run_jobs(prepare_scan, todo, n_procs=n_procs, apart=apart)
        failures = [
            _failure(job, error)
            for job, error in track(outcomes, total=len(todo), label="prepare")
            if error is not None
        ]
    failed = {row["scan_id"] for row in failures}
    kept = [job for job in jobs if job.scan_id not in failed]
    prepared = _with_results(exclude(cohort, failures), kept)
    _write_tables(prepared, out, {job.stem.parents[_depth(job)] for job in jobs} or {out})
    return prepared


def _depth(job: Job) -> int:
    # <root>/sub-01/[ses-01/]anat/<stem>: the root stands two or three folders above the file's own folder.
    return 3 if job.stem.parent.parent.name.startswith("ses-") else 2


def _jobs(cohort: Cohort, out: Path, config: RecipeConfig, scratch: Path) -> list[Job]:
    several = cohort.scans["dataset"].nunique() > 1
    found = {name: versions().get(name, "") for name in ("nilatent", *ENGINES["t1"])}
    jobs = []
    for scan_id, row in cohort.scans.iterrows():
        path, dataset, session = Path(row["path"]), str(row["dataset"]), str(row["session_id"])
        subject = str(row["subject_id"]).removeprefix(f"{dataset}_")
        root = out / dataset if several else out
        stem = "_".join(part for part in (subject, session) if part)
        recipe = config.name if config.name != "auto" else ("gm" if GM_NAME.search(path.name) else "t1")
        engines = {name: found[name] for name in ENGINES[recipe]}
        settings = replace(config, name=recipe)
        key = hash_values([row["sha256"], settings, RECIPE_VERSION, found["nilatent"], engines]) if row["sha256"] else ""
        parts = path.parts
        first = next((i for i, part in enumerate(parts) if part.startswith("sub-")), len(parts) - 1)
        source = f"bids:{dataset}:{'/'.join(parts[first:])}"
        folder = root / subject / session / "anat" if session else root / subject / "anat"
        jobs.append(Job(str(scan_id), path, recipe, settings, folder / stem, source, key, scratch))
    stems = pd.Series([str(job.stem) for job in jobs], index=[job.scan_id for job in jobs], dtype=object)
    twice = stems[stems.duplicated(keep=False)]
    if len(twice):
        raise CohortError(
            f"Scans {', '.join(map(str, twice.index[:2]))} would both be written to {twice.iloc[0]}*. Give each scan its own "
            "subject_id and session_id."
        )
    return jobs


def _is_done(job: Job) -> bool:
    if not job.key or not job.side_car.is_file():
        return False
    try:
        record = read_json(job.side_car)["nilatent"]
        outputs: Mapping[str, str] = record["Outputs"]
        if record["Key"] != job.key:
            return False
    except (ValueError, KeyError, TypeError):
        return False
    folder = job.stem.parent
    return all((folder / name).is_file() and hash_file(folder / name) == digest for name, digest in outputs.items())


def run_jobs(
    work: Callable[[Job], None], jobs: Sequence[Job], *, n_procs: int, apart: bool
) -> Iterator[tuple[Job, BaseException | None]]:
    """Do every job, whatever happens to some.

    Parameters
    ----------
    work : Callable
        Does one job; its exception is that job's outcome.
    jobs : Sequence[Job]
        What to do.
    n_procs : int
        Jobs at the same time.
    apart : bool
        In worker processes (with one thread each) rather than in this one.

    Yields
    ------
    Job
        In the order they end.
    BaseException or None
        Why it failed, or None. When a worker process dies, the jobs that ran at that moment are each tried once more,
        alone; the one that kills its worker again gets a ``BrokenExecutor``.
    """
    waiting = deque(jobs)
    while waiting:
        running: dict[Future[None], Job] = {}
        suspects: list[Job] = []
        pool = _pool(n_procs, apart=apart)
        try:
            while (waiting and not suspects) or running:
                while waiting and len(running) < n_procs and not suspects:
                    job = waiting.popleft()
                    try:
                        running[pool.submit(work, job)] = job
                    except BrokenExecutor:
                        suspects.append(job)
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    job, error = running.pop(future), future.exception()
                    if isinstance(error, BrokenExecutor):
                        suspects.append(job)
                    else:
                        yield job, error
        finally:
            _close(pool)
        for job in suspects:
            alone = _pool(1, apart=True)
            try:
                yield job, alone.submit(work, job).exception()
            finally:
                _close(alone)


def _pool(n_procs: int, *, apart: bool) -> Executor:
    if not apart:
        return ThreadPoolExecutor(1)
    return ProcessPoolExecutor(n_procs, env=WORKER_ENVIRONMENT)  # type: ignore[no-any-return]


def _close(pool: Executor) -> None:
    if isinstance(pool, ThreadPoolExecutor):
        pool.shutdown(cancel_futures=True)
    else:
        pool.shutdown(wait=True, kill_workers=True)  # type: ignore[call-arg]


def _failure(job: Job, error: BaseException) -> dict[str, str]:
    if isinstance(error, MissingExtraError | SettingError):
        raise error
    if isinstance(error, ScanError):
        rule, reason = error.rule, str(error)
    elif isinstance(error, BrokenExecutor):
        rule = "worker survives"
        reason = (
            f"{job.path}: the process that prepared it was ended twice from outside or by lack of memory. "
            "Free memory, lower n_procs, or leave the scan out."
        )
    else:
        rule = "engine succeeds"
        reason = f"{job.path}: {type(error).__name__}: {error}. Look at the scan; if it is sound, report this message."
    return {"scan_id": job.scan_id, "stage": "prepare", "rule": rule, "reason": reason}


def prepare_scan(job: Job) -> None:
    """Do one scan and write its files, the side-car last.

    Raises
    ------
    ScanError
        When the scan breaks a rule; nothing is left behind.
    """
    grid = Grid.mni(job.config.spacing_mm)
    scan = space.load_scan(job.path)
    result = _t1(scan, job, grid) if job.recipe == "t1" else _gm(scan, job, grid)
    fwhm_mm = 0.0 if result.notes.get("SmoothedBefore") else job.config.fwhm_mm
    _write_scan(job, replace(result, gm=smooth(result.gm, fwhm_mm=fwhm_mm, spacing_mm=grid.spacing_mm)), grid, fwhm_mm)


def smooth(data: npt.NDArray[np.float32], *, fwhm_mm: float, spacing_mm: float) -> npt.NDArray[np.float32]:
    """Gaussian smoothing of a map on a grid.

    Parameters
    ----------
    data : ndarray
        (x, y, z) map.
    fwhm_mm : float
        Full width at half maximum; 0 leaves the map as it is.
    spacing_mm : float
        Voxel size.

    Returns
    -------
    ndarray
        (x, y, z) float32; the sum is kept but for what runs over the edge of the grid.
    """
    if fwhm_mm == 0:
        return data
    sigma = fwhm_mm / FWHM_BY_SIGMA / spacing_mm
    return np.asarray(ndimage.gaussian_filter(data, sigma, mode="constant"), dtype=np.float32)
