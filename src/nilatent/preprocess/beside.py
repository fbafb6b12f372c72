"""Beside: further images of prepared scans, brought to the same grid, each in one interpolation."""

import re
from collections.abc import Mapping
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from nilatent.cohort import Cohort
from nilatent.errors import CohortError, MissingExtraError, ScanError, SettingError
from nilatent.further import MADE, NOTE_COLUMNS
from nilatent.grid import GM_PRIOR_IN_MASK
from nilatent.lock import locked
from nilatent.map_names import ENDING, TEMPLATE_SPACE, in_template, read_map_name
from nilatent.preprocess import bids, derivative, gm, workers
from nilatent.preprocess.companion import Companion, bring, output, read_record
from nilatent.preprocess.config import RecipeConfig
from nilatent.preprocess.job import SURVIVES, engines
from nilatent.progress import follow
from nilatent.provenance import DiskError, hash_file, hash_values, is_full, sweep
from nilatent.tables import image_column, read_described
from nilatent.volumes import Grid, brain_mask, template_array

# Raised when the same settings give other numbers.
BESIDE_VERSION = 1
TISSUES = ("GM", "WM", "CSF")
# Where the recipe t1 leaves what it makes of a scan.
OWN_NAMES = {"GM": "_label-GM_", "WM": "_label-WM_", "CSF": "_label-CSF_", "T1w": "_desc-preproc_T1w"}
# Units of BIDS that are none.
ARBITRARY = re.compile(r"arb(itrary)?\.?( units?)?|a\.?u\.?|n/?a|", re.IGNORECASE)


class _Kind(NamedTuple):
    """What an image is: ``"raw"`` or in ``"template"`` space, its tissue or nothing, the unit of its values or nothing."""

    space: str
    tissue: str
    units: str


@dataclass(frozen=True)
class _Modality:
    """What is asked for: the arguments of :func:`prepare_beside` that hold for every scan."""

    name: str
    source: str
    out: Path
    config: RecipeConfig

    @property
    def column(self) -> str:
        return image_column(self.name)


def mask_of(source: str, grid: Grid) -> npt.NDArray[np.bool_]:
    """Voxels in which a modality is modelled: where the template can have the tissue, or the brain for all else.

    Parameters
    ----------
    source : str
        Suffix or column of the modality; ``"GM"``, ``"WM"`` and ``"CSF"``, in any case, are tissues.
    grid : Grid
        The grid.

    Returns
    -------
    ndarray
        (x, y, z) bool, from the template alone, so that no scan shapes it.

    Examples
    --------
    >>> from nilatent.volumes import Grid
    >>> bool(mask_of("WM", Grid.mni(6.0)).sum() < mask_of("FLAIR", Grid.mni(6.0)).sum())
    True
    """
    if source.upper() in TISSUES:
        return np.asarray(template_array(source.lower(), grid.spacing_mm) > GM_PRIOR_IN_MASK)
    return brain_mask(grid)


def prepare_beside(
    cohort: Cohort,
    prepared: Cohort,
    name: str,
    source: str,
    out: Path,
    config: RecipeConfig,
    *,
    n_procs: int = 1,
) -> tuple[Cohort, pd.DataFrame]:
    """The images of one further modality on the grid of the prepared scans.

    Parameters
    ----------
    cohort : Cohort
        As read, with the paths of the original images; ``image_<name>`` names the further ones.
    prepared : Cohort
        The same scans after the recipe; those that it left out get no further image either.
    name, source : str
        The modality, and the suffix or column of its images.
    out : Path
        Receives the images of this modality with their side-cars. What is there of the same image, the same prepared scan,
        the same settings and versions is not done again.
    config : RecipeConfig
        The grid, and the smoothing of tissue maps.
    n_procs : int
        Images side by side; the numbers do not depend on it.

    Returns
    -------
    Cohort
        The scans that have such an image, with its ``path`` and ``sha256``.
    DataFrame
        Images that failed: ``scan_id``, ``modality``, ``path``, ``rule``, ``reason``.

    Raises
    ------
    CohortError
        When no scan has a usable image, or the images are not of one kind: different tissues, modulations, smoothness or
        units.
    SettingError
        When the modality is the modelled image itself, or another process works in the folder.

    Notes
    -----
    Images in template space, as their file name or the name of their column says, are resampled as they lie. All others are
    registered to the T1 scan of their subject (:func:`~nilatent.preprocess.coregistration.coregister`), and movement,
    affine and warp of that scan are composed. Outside the brain is 0. Tissue maps are smoothed like those of the recipe,
    nothing else is. Intensities are scaled to [0, 1] between percentiles 0.5 and 99.5 of the brain, unless the side-cars of
    the images state ``Units`` other than arbitrary ones: then the numbers mean something and are kept.
    """
    if n_procs < 1:
        raise SettingError(f"n_procs is at least 1, got {n_procs}.")
    modality = _Modality(name, source, Path(out).absolute(), config)
    column = modality.column
    given = cohort.scans.reindex(prepared.scans.index)
    given = given[given[column].notna()] if column in given else given.iloc[:0]
    own, failures = _made_by_recipe(prepared, modality, but=list(given.index))
    kinds = _kinds(given, modality)
    _check_one_kind(modality, given, kinds, own)
    jobs = [_job(str(scan), row, prepared, modality, kinds[str(scan)]) for scan, row in given.iterrows()]
    hashes = {str(scan): str(digest) for scan, digest in given[f"{column}_sha256"].items()} if jobs else {}
    failures += _bring_all(jobs, hashes, modality.out, n_procs=n_procs)
    failed = {failure["scan_id"] for failure in failures}
    made = own | {job.scan_id: (job.target, hash_file(job.target)) for job in jobs if job.scan_id not in failed}
    kept = [scan for scan in prepared.scans.index if scan in made]
    if not kept:
        listed = "".join(f"\n  {failure['scan_id']}: {failure['reason']}" for failure in failures[:5])
        raise CohortError(
            f"No scan has a usable image of the modality '{name}' ({source}). Mend the images, or leave it out.{listed}"
        )
    scans = prepared.scans.loc[kept]
    scans = scans.assign(path=[str(made[scan][0]) for scan in kept], sha256=[made[scan][1] for scan in kept])
    return replace(prepared, scans=scans), pd.DataFrame(failures, columns=list(NOTE_COLUMNS))


def _made_by_recipe(
    prepared: Cohort, modality: _Modality, *, but: list[Any]
) -> tuple[dict[str, tuple[Path, str]], list[dict[str, str]]]:
    """Maps that the recipe t1 left beside the modelled ones, checked against the hashes it wrote."""
    found: dict[str, tuple[Path, str]] = {}
    failures: list[dict[str, str]] = []
    if modality.source not in MADE:
        return found, failures
    for scan, row in prepared.scans.drop(index=but).iterrows():
        if row["recipe"] != "t1":
            continue
        if modality.source.lower() == modality.config.target:
            raise SettingError(
                f"The modality '{modality.name}' ({modality.source}) is the modelled image itself. Leave it out."
            )
        side_car = derivative.side_car_of(Path(str(row["path"])))
        try:
            file, digest = output(side_car, read_record(side_car), OWN_NAMES[modality.source])
            found[str(scan)] = (file, digest)
        except ScanError as error:
            failures.append(_listed(str(scan), modality.name, side_car, error.rule, str(error)))
    return found, failures


def _kinds(given: pd.DataFrame, modality: _Modality) -> dict[str, _Kind]:
    """What the names and the side-cars of the images say, by scan."""
    source = modality.source
    said = TEMPLATE_SPACE.search(source) is not None and "unknown" not in source.lower()
    kinds = {}
    for scan, path in given[modality.column].items() if len(given) else ():
        file = Path(str(path))
        map_name = read_map_name(file.name)
        named = map_name.tissue if map_name is not None and map_name.tissue in TISSUES else ""
        tissue = source.upper() if source.upper() in TISSUES else named
        normalised = said or in_template(file.name) or (tissue != "" and map_name is None)
        kinds[str(scan)] = _Kind("template" if normalised else "raw", tissue, "" if tissue else _units(file))
    return kinds


def _units(path: Path) -> str:
    """The unit that the side-car of an image states, or that of the data set for its suffix; empty for arbitrary ones."""
    stem = ENDING.sub("", path.name)
    places = [
        path.with_name(f"{stem}.json"),
        *(folder / f"{stem.rsplit('_', 1)[-1]}.json" for folder in path.parents[:5]),
    ]
    for place in places:
        try:
            units = str(read_described(place)["Units"]).strip()
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
        return "" if ARBITRARY.fullmatch(units) else units
    return ""


def _check_one_kind(
    modality: _Modality,
    given: pd.DataFrame,
    kinds: Mapping[str, _Kind],
    own: Mapping[str, tuple[Path, str]],
) -> None:
    """Refuse images that a model would tell apart by how they were made."""
    paths = {str(scan): Path(str(path)) for scan, path in given[modality.column].items()} if len(given) else {}
    for what, of in (
        ("tissues", [kind.tissue for kind in kinds.values()]),
        ("units", [kind.units for kind in kinds.values()]),
        ("spaces", [kind.space for kind in kinds.values()]),
    ):
        found: dict[str, list[str]] = {}
        for scan, word in zip(kinds, of, strict=True):
            found.setdefault(word, []).append(scan)
        if len(found) > 1:
            listed = ", ".join(
                f"{word or 'none'} in {len(scans)} (such as {scans[0]})" for word, scans in found.items()
            )
            raise CohortError(
                f"The images of the modality '{modality.name}' are of different {what}: {listed}. A model would learn that "
                "difference. Give images of one kind."
            )
    if not any(kind.tissue for kind in kinds.values()):
        if own and kinds:
            raise CohortError(
                f"{len(kinds)} scans have an image of the modality '{modality.name}' of their own (such as {next(iter(kinds))}), "
                f"and {len(own)} take what the recipe makes. A model would learn that difference. Give it for all, or for none."
            )
        return
    here = "all" if modality.config.modulation else "none"
    gm.check_alike({scan: gm.modulation(path) for scan, path in paths.items()} | dict.fromkeys(own, here))
    gm.check_smoothing({scan: gm.stated_fwhm(path) for scan, path in paths.items()} | dict.fromkeys(own, 0.0))


def _job(scan: str, row: pd.Series, prepared: Cohort, modality: _Modality, kind: _Kind) -> Companion:
    config, column = modality.config, modality.column
    path, t1, dataset = Path(str(row[column])), Path(str(row["path"])), str(row["dataset"])
    side_car = derivative.side_car_of(Path(str(prepared.scans.at[scan, "path"])))
    fwhm_mm = config.fwhm_mm if kind.tissue and not gm.stated_fwhm(path) else 0.0
    recorded: Mapping[str, Any] = {}
    if kind.space == "raw":
        try:
            recorded = read_record(side_car)
        except ScanError:
            recorded = {}  # The job says so, as of any scan that fails.
    subject = str(row["subject_id"]).removeprefix(f"{dataset}_")
    root = modality.out / dataset if subject != row["subject_id"] else modality.out
    label = re.sub(r"[^A-Za-z0-9]", "", modality.source)
    smoothed = f"Smooth{derivative.number_label(fwhm_mm)}" if fwhm_mm else ""
    place = derivative.Place(root, subject, str(row["session_id"]), config.spacing_mm, "gm", f"given{smoothed}")
    plain = place.map("t1w").name.replace("_desc-preproc_T1w", f"_desc-preproc_{label}")
    target = place.map(kind.tissue.lower()) if kind.tissue else place.folder / plain
    depends = [row[f"{column}_sha256"], kind, config.spacing_mm, fwhm_mm, BESIDE_VERSION, engines("gm")]
    depends += [gm.stated(path) if kind.tissue else {}]
    depends += [{part: recorded.get(part) for part in ("Key", "ToTemplate", "Outputs")}]
    uri = f"bids:{dataset}:{path.relative_to(bids.bids_root(path)).as_posix()}"
    return Companion(
        scan, modality.name, path, *kind, t1, side_car, target, uri, config.spacing_mm, fwhm_mm, hash_values(depends)
    )


def _bring_all(jobs: list[Companion], hashes: Mapping[str, str], out: Path, *, n_procs: int) -> list[dict[str, str]]:
    """Do what is not done yet; gives the images that failed, of which nothing stays."""
    if not jobs:
        return []
    with locked(out):
        sweep(out)
        sources = {job.source.split(":")[1]: bids.bids_root(job.path) for job in jobs}
        # First of all: also when this folder lies inside a source, its images are known as ours.
        bids.write_description(out, sources=sources, engines=engines("gm"))
        todo = [job for job in jobs if not derivative.is_whole(derivative.side_car_of(job.target), job.key)]
        apart = any(job.kind == "raw" for job in todo)
        failed = follow(
            workers.run_jobs(bring, todo, n_procs=n_procs, apart=apart),
            total=len(todo),
            kept=len(jobs) - len(todo),
            label=jobs[0].modality,
            reason=lambda job, error: f"{job.scan_id}: {_failure(job, error)['reason']}",
        )
        failed += _changed(todo, hashes, {job.scan_id for job, _ in failed})
        for job, _ in failed:
            derivative.remove_outputs(derivative.side_car_of(job.target), keep=set())
    failures = {job.scan_id: _failure(job, error) for job, error in failed}
    return [failures[job.scan_id] for job in jobs if job.scan_id in failures]


def _changed(
    done: list[Companion], hashes: Mapping[str, str], failed: set[str]
) -> list[tuple[Companion, BaseException]]:
    """Images that are no longer those that were read with the cohort."""
    found: list[tuple[Companion, BaseException]] = []
    for job in (job for job in done if job.scan_id not in failed):
        try:
            derivative.check_unchanged(job.path, hashes[job.scan_id])
        except (ScanError, OSError) as error:
            found.append((job, error))
    return found


def _failure(job: Companion, error: BaseException) -> dict[str, str]:
    if isinstance(error, MissingExtraError | SettingError | DiskError):
        raise error
    if is_full(error):
        raise DiskError(
            f"{job.scan_id}: {error}. What was finished is kept; make room and run the same command again."
        ) from error
    if isinstance(error, ScanError):
        return _listed(job.scan_id, job.modality, job.path, error.rule, str(error))
    if isinstance(error, BrokenExecutor):
        reason = (
            f"{job.path}: the process that registered it was ended from outside or by lack of memory. Lower n_procs."
        )
        return _listed(job.scan_id, job.modality, job.path, SURVIVES, reason)
    reason = f"{job.path}: {type(error).__name__}: {error}. Look at the image; if it is sound, report this message."
    return _listed(job.scan_id, job.modality, job.path, "engine succeeds", reason)


def _listed(scan: str, modality: str, path: Path, rule: str, reason: str) -> dict[str, str]:
    return dict(zip(NOTE_COLUMNS, (scan, modality, str(path), rule, reason), strict=True))
