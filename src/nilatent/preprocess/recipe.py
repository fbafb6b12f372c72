"""Recipes: from each scan of a cohort to a checked grey-matter map on one grid, side by side and in any number of runs."""

import shutil
import tempfile
from collections.abc import Callable, Generator
from concurrent.futures import BrokenExecutor
from contextlib import closing
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from nilatent.cohort import DESCRIPTIONS, Cohort, exclude
from nilatent.errors import CohortError, MissingExtraError, ScanError, SettingError
from nilatent.lock import locked
from nilatent.preprocess import bids, cluster, derivative, homogeneity, mosaic, quality, within, workers
from nilatent.preprocess.config import RecipeConfig
from nilatent.preprocess.gm import check_alike, check_smoothing, is_map, modulation, stated, stated_fwhm
from nilatent.preprocess.job import ENGINES, PASSING, RECIPE_VERSION, SURVIVES, Job, engines, prepare_scan
from nilatent.progress import follow
from nilatent.provenance import DiskError, hash_values, is_full, sweep
from nilatent.tables import RESERVED, own_names

Work = TypeVar("Work", Job, within.SubjectJob)

# A folder of the derivative that is no data set; see nilatent.report.quality.
TAKEN = "quality"
COVARIATES = ("head_size_factor", "tiv_ml", "gm_ml", "wm_ml", "csf_ml")


def prepare(
    cohort: Cohort,
    out: Path,
    config: RecipeConfig,
    *,
    n_procs: int = 1,
    scheduler: str = "",
    tables: bool = True,
) -> Cohort:
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
    scheduler : str
        Address or scheduler file of a dask scheduler, whose workers do the scans instead, one at a time each. The numbers
        do not depend on it either.
    tables : bool
        Write what is said of the cohort as a whole (``quality.tsv``) and keep the folder to ourselves meanwhile. False for
        a part of a cohort: parts may then be prepared in one folder at the same time, and a last call for all of it
        finds them done and writes the tables.

    Returns
    -------
    Cohort
        ``path`` and ``sha256`` are the prepared map's; new columns ``recipe``, the measures of ``quality.MEASURES`` and
        ``quality_flags``. Scans that failed are in ``excluded`` with stage, rule and reason.

    Raises
    ------
    SettingError
        For fewer than one process, a folder in which another process prepares, or a cluster that cannot be used.
    CohortError
        When two scans would be written to the same file.
    MissingExtraError
        When a recipe needs an engine that is not installed.
    DiskError
        When a disk is full: a cohort that lost scans by it would be another one. What was finished is kept.
    """
    if n_procs < 1:
        raise SettingError(f"n_procs is at least 1, got {n_procs}.")
    out = Path(out).absolute()
    with locked(out, shared=not tables), tempfile.TemporaryDirectory(prefix="nilatent-") as scratch:
        if tables:
            sweep(out)
        jobs = _jobs(cohort, out, config, None if scheduler else Path(scratch))
        given = "all" if config.modulation else "none"
        check_alike({job.scan_id: modulation(job.path) if job.config.name == "gm" else given for job in jobs})
        check_smoothing({job.scan_id: stated_fwhm(job.path) for job in jobs if job.config.name == "gm"})
        _check_not_the_source(jobs)
        # First of all, so that maps of a run that was killed are known as ours too.
        _describe(jobs, out)
        failures: dict[str, dict[str, str]] = {}
        with cluster.mark(out) as mark:
            if config.within_subject:
                made = partial(_outcomes, mark=mark, n_procs=n_procs, scheduler=scheduler)
                jobs, failures = _through_templates(jobs, cohort.scans["sha256"], made)
            todo = [job for job in jobs if job.scan_id not in failures and not _is_done(job)]
            with closing(_outcomes(prepare_scan, todo, mark=mark, n_procs=n_procs, scheduler=scheduler)) as outcomes:
                failed = follow(
                    outcomes,
                    total=len(todo),
                    kept=len(jobs) - len(todo) - len(failures),
                    label="prepare",
                    reason=lambda job, error: f"{job.scan_id}: {_failure(job, error)['reason']}",
                )
        failures |= {job.scan_id: _failure(job, error) for job, error in failed}
        for job in jobs:
            # What an earlier run made of it was made of another image or otherwise, and would be read as a good map.
            if job.scan_id in failures:
                derivative.remove(job.place)
        ordered = [failures[job.scan_id] for job in jobs if job.scan_id in failures]
        prepared = _with_results(exclude(cohort, ordered), [job for job in jobs if job.scan_id not in failures])
        if tables:
            _write_tables(prepared, out)
            _write_participants(cohort, jobs)
        elif len(todo) > len(failed):
            # Tables of the whole cohort that were written before say nothing of what was done now.
            for name in (*bids.NOT_BIDS, "quality.html"):
                (out / name).unlink(missing_ok=True)
            shutil.rmtree(out / "quality", ignore_errors=True)
    return prepared


def try_again(listed: Path, record: Path) -> None:
    """Take a finished preparation for unfinished where another try may save a scan: its worker died, or its image changed.

    Parameters
    ----------
    listed : Path
        Table of what failed, with the column ``rule``; without it the preparation was not finished.
    record : Path
        Record of the stage, which is removed then. Scans that are done stay done.
    """
    if not listed.is_file() or pd.read_csv(listed, sep="\t", dtype=str)["rule"].isin(PASSING).any():
        record.unlink(missing_ok=True)


def fingerprint(config: RecipeConfig) -> dict[str, Any]:
    """Everything beside the scans that the maps of a cohort depend on: settings, version of the recipes, engines."""
    made = {"version": RECIPE_VERSION, "engines": {name: engines(name) for name in ENGINES}}
    return {"recipe": _known(config)} | made


def _known(config: RecipeConfig) -> dict[str, Any]:
    """The settings as maps know them that were made before scans could be prepared within subjects."""
    return {name: value for name, value in asdict(config).items() if name != "within_subject" or value}


def _is_done(job: Job) -> bool:
    return derivative.is_done(job.place, job.key) and mosaic.place(job.place.modelled).is_file()


def _check_not_the_source(jobs: list[Job]) -> None:
    for job in jobs:
        if bids.bids_root(job.path).resolve() == job.place.root.resolve():
            raise SettingError(
                f"{job.place.root} is the source itself, whose dataset_description.json and README would be overwritten. Give "
                f"another folder, such as {job.place.root / 'derivatives' / 'nilatent'}."
            )


def _outcomes(
    work: Callable[[Work], None], todo: list[Work], *, mark: Path, n_procs: int, scheduler: str
) -> Generator[tuple[Work, BaseException | None, float], None, None]:
    images: list[Path] = [job.path if isinstance(job, Job) else job.visits[0].path for job in todo]
    if scheduler:
        visible = (mark, *[path for path in images if path.is_file()][:1])
        demands = cluster.Demands(
            workers.ENVIRONMENT,
            "ants",
            cluster.installed(sorted({name for names in ENGINES.values() for name in names} | {"nilatent"})),
            visible,
        )
        return cluster.run_on_cluster(work, todo, scheduler=scheduler, demands=demands)
    # The engines read their thread count when they are loaded, so they are never loaded into this process.
    apart = any(not isinstance(job, Job) or job.config.name == "t1" for job in todo)
    return workers.run_jobs(work, todo, n_procs=n_procs, apart=apart)


def _through_templates(
    jobs: list[Job],
    sha256: pd.Series,
    outcomes: Callable[
        [Callable[[within.SubjectJob], None], list[within.SubjectJob]],
        Generator[tuple[within.SubjectJob, BaseException | None, float], None, None],
    ],
) -> tuple[list[Job], dict[str, dict[str, str]]]:
    """The jobs with what their subject's template gives them, and the scans that failed on the way to it."""
    if not any(job.config.name == "t1" for job in jobs):
        raise SettingError(
            "recipe.within_subject makes templates of T1 scans, and all of these are maps, which are taken as they are. Give "
            "the T1 scans, or set recipe.within_subject = false."
        )
    subjects = _subjects(jobs, sha256)
    todo = [subject for subject in subjects if not within.is_made(subject)]
    with closing(outcomes(within.make_template, todo)) as made:
        kept = len(subjects) - len(todo)
        broken = dict(
            follow(made, total=len(todo), kept=kept, label="within-subject templates", reason=_template_failure)
        )
    failures, shared = dict[str, dict[str, str]](), dict[str, within.Shared]()
    by_id = {job.scan_id: job for job in jobs}
    for subject in subjects:
        if subject in broken:
            failures |= {visit.scan_id: _failure(by_id[visit.scan_id], broken[subject]) for visit in subject.visits}
            continue
        shared |= within.shared(subject)
        for scan_id, (rule, reason) in within.failed_visits(subject).items():
            failures[scan_id] = _failure(by_id[scan_id], ScanError(reason, rule=rule))
    return [_sharing(job, shared[job.scan_id]) if job.scan_id in shared else job for job in jobs], failures


def _subjects(jobs: list[Job], sha256: pd.Series) -> list[within.SubjectJob]:
    """Subjects with two or more T1 scans that could be hashed."""
    visits: dict[tuple[Path, str], list[Job]] = {}
    for job in jobs:
        if job.config.name == "t1" and job.key:
            visits.setdefault((job.place.root, job.place.subject), []).append(job)
    subjects = []
    for (root, subject), mine in visits.items():
        if len(mine) < within.MIN_VISITS:
            continue
        normalisation, hashes = mine[0].config.normalisation, [str(sha256[job.scan_id]) for job in mine]
        # By scan too: exchange two files, or rename a session, and the movements that are kept by scan are another's.
        images = sorted((job.scan_id, digest) for job, digest in zip(mine, hashes, strict=True))
        key = hash_values(["within", images, normalisation, RECIPE_VERSION, engines("t1")])
        named = tuple(
            within.Visit(job.scan_id, job.path, digest, job.source) for job, digest in zip(mine, hashes, strict=True)
        )
        subjects.append(within.SubjectJob(root / subject / "anat", subject, named, normalisation, key, mine[0].scratch))
    return subjects


def _sharing(job: Job, shared: within.Shared) -> Job:
    # By the template itself and not by its visits: one of them may have failed today and be readable tomorrow.
    settings = replace(job.config, within_subject=True)
    return replace(job, config=settings, shared=shared, key=hash_values([job.key, shared.digest]))


def _template_failure(subject: within.SubjectJob, error: BaseException) -> str:
    return f"{subject.subject}: {type(error).__name__}: {error}"


def _describe(jobs: list[Job], out: Path) -> None:
    roots = {job.place.root for job in jobs}
    for root in roots:
        mine = [job for job in jobs if job.place.root == root]
        found = {name: version for job in mine for name, version in engines(job.config.name).items()}
        sources = {job.source.split(":")[1]: bids.bids_root(job.path) for job in mine}
        bids.write_description(root, sources=sources, engines=found)
    if out not in roots:
        bids.write_study(out, sorted(root.name for root in roots))


def _write_participants(cohort: Cohort, jobs: list[Job]) -> None:
    ours = {*RESERVED, *quality.MEASURES, "recipe", "quality_flags"}
    people = cohort.scans[[name for name in cohort.scans if name not in ours]]
    for root in {job.place.root for job in jobs}:
        mine = {job.scan_id: job.place for job in jobs if job.place.root == root}
        named = {
            "participant_id": [place.subject for place in mine.values()],
            "session_id": [place.session for place in mine.values()],
        }
        bids.write_participants(root, people.loc[list(mine)].assign(**named), cohort.columns)


def _write_tables(prepared: Cohort, out: Path) -> None:
    shown = ["dataset", "recipe", *(name for name in quality.MEASURES if name in prepared.scans), "quality_flags"]
    table = prepared.scans[shown].rename(columns={"quality_flags": "flags"}).fillna({"flags": ""})
    # A cohort that was read back describes its own columns too; the table says the same of them either way.
    own = {name: {"Description": DESCRIPTIONS[name]} for name in table if name in DESCRIPTIONS}
    bids.write_quality(out, table, prepared.columns | own | {"flags": prepared.columns["quality_flags"]})


def _jobs(cohort: Cohort, out: Path, config: RecipeConfig, scratch: Path | None) -> list[Job]:
    jobs = []
    for scan_id, row in cohort.scans.iterrows():
        path, dataset = Path(row["path"]), str(row["dataset"])
        name = config.name if config.name != "auto" else ("gm" if is_map(path) else "t1")
        # Only a scan that is moved through its subject's template is prepared otherwise.
        settings = replace(config, name=name, within_subject=False)
        said = stated(path) if name == "gm" else {}
        key = (
            hash_values([row["sha256"], _known(settings), RECIPE_VERSION, engines(name), said]) if row["sha256"] else ""
        )
        subject = str(row["subject_id"]).removeprefix(f"{dataset}_")
        # By the name and not by the number of data sets, so that a part of the cohort goes where all of it would.
        root = out / dataset if subject != row["subject_id"] else out
        if root != out and root.name.casefold() == TAKEN:
            raise CohortError(
                f"A data set cannot be called '{TAKEN}', the name of a folder of {out}. Rename {dataset}."
            )
        place = _place(root, subject, str(row["session_id"]), settings, path)
        source = f"bids:{dataset}:{path.relative_to(bids.bids_root(path)).as_posix()}"
        jobs.append(Job(str(scan_id), path, settings, place, source, key, scratch, sha256=str(row["sha256"])))
    targets: dict[Path, str] = {}
    for job in jobs:
        if job.place.modelled in targets:
            raise CohortError(
                f"Scans {targets[job.place.modelled]} and {job.scan_id} would both be written to {job.place.modelled.name}. "
                "Give each scan its own subject_id and session_id."
            )
        targets[job.place.modelled] = job.scan_id
    return jobs


def _place(root: Path, subject: str, session: str, config: RecipeConfig, path: Path) -> derivative.Place:
    made = "given" if config.name == "gm" else "modulated" if config.modulation else "unmodulated"
    made += "Syn" if config.name == "t1" and config.normalisation == "syn" else ""
    before = stated_fwhm(path) if config.name == "gm" else 0.0
    fwhm_mm = before if before else config.fwhm_mm
    # Named by what the map is, not by what was asked for.
    smooth = "Smoothed" if isinstance(fwhm_mm, str) else f"Smooth{derivative.number_label(fwhm_mm)}" if fwhm_mm else ""
    return derivative.Place(root, subject, session, config.spacing_mm, config.target, made + smooth)


def _failure(job: Job, error: BaseException) -> dict[str, str]:
    if isinstance(error, MissingExtraError | SettingError | DiskError):
        raise error
    if is_full(error):
        raise DiskError(
            f"{job.scan_id}: {error}: the disk of the results or of temporary files ({tempfile.gettempdir()}) is full. What was "
            "finished is kept; make room, or name a larger place for temporary files (TMPDIR), and run the same command again."
        ) from error
    if isinstance(error, ScanError):
        # A step knows the array it was given, not the file.
        named = str(job.path) in str(error)
        rule, reason = error.rule, str(error) if named else f"{job.path}: {error}"
    elif isinstance(error, BrokenExecutor):
        rule = SURVIVES
        reason = (
            f"{job.path}: the process that prepared it was ended from outside or by lack of memory, also when it was tried "
            "again. Free memory, lower n_procs, give the workers of the cluster more, or leave the scan out."
        )
    else:
        rule = "engine succeeds"
        reason = f"{job.path}: {type(error).__name__}: {error}. Look at the scan; if it is sound, report this message."
    return {"scan_id": job.scan_id, "stage": "prepare", "rule": rule, "reason": reason}


def _with_results(cohort: Cohort, jobs: list[Job]) -> Cohort:
    records = {job.scan_id: derivative.read_record(job.place) for job in jobs}
    scans = cohort.scans.copy()
    names = own_names(scans.columns, (*quality.MEASURES, "recipe", "quality_flags"))
    scans = scans.rename(columns=names)
    scans["path"] = [str(job.place.modelled) for job in jobs]
    if any(job.config.target != "gm" for job in jobs):
        scans["gm_path"] = [str(job.place.map("gm")) for job in jobs]
    scans["sha256"] = [records[job.scan_id]["Outputs"][job.place.modelled.name] for job in jobs]
    scans["recipe"] = [job.config.name for job in jobs]
    measured = pd.DataFrame([records[job.scan_id]["Measures"] for job in jobs], index=scans.index, dtype=float)
    measured["homogeneity"] = homogeneity.homogeneity([job.place.map("gm") for job in jobs], scans["dataset"])
    for name in quality.MEASURES:
        if name in measured or name in COVARIATES:
            scans[name] = measured.get(name, np.nan)
    present = [name for name in quality.MEASURES if name in scans]
    flags = quality.outlier_flags(scans[present], scans["dataset"])
    scans["quality_flags"] = flags.mask(flags == "", np.nan)
    columns = {names.get(name, name): value for name, value in cohort.columns.items()}
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
