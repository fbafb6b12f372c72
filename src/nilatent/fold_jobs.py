"""Fold jobs: each cross-fitted model as a job of its own, for the workers of a cluster and for arrays of batch jobs."""

from concurrent.futures import BrokenExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch

from nilatent.cohort import load_cohort
from nilatent.config import RunConfig
from nilatent.crossfit import fit_fold, fold_parts
from nilatent.errors import NilatentError, SettingError
from nilatent.extras import require
from nilatent.lock import locked
from nilatent.model_settings import training_of
from nilatent.pools import read_split
from nilatent.preprocess import cluster
from nilatent.progress import follow
from nilatent.provenance import content_hash, is_fresh, seal
from nilatent.volumes import open_volumes

NEEDS = {"volumes": "volumes/", "split": "split.", "prepared": "prepared/"}
"""What a fold rests on: a stage, and where its record begins in the run folder."""
# What shapes the weights beside the code of a fold: in another version the same settings give other numbers.
SHAPING = ("nilatent", "torch", "numpy", "scipy", "lightning-fabric", "safetensors", "xarray")


@dataclass(frozen=True)
class FoldJob:
    """One fold of a run folder.

    Parameters
    ----------
    out : Path
        The run folder, absolute.
    config : RunConfig
        Its settings.
    fold : int
        From 0.
    """

    out: Path
    config: RunConfig
    fold: int


def train_fold(job: FoldJob) -> bool:
    """Train the model of one fold, as :meth:`nilatent.river.River.folds` does, unless it is there already.

    Parameters
    ----------
    job : FoldJob
        Its run folder holds prepared scans, volumes and the split.

    Returns
    -------
    bool
        Whether anything was done. A training that was stopped goes on; a finished fold is found by its record.

    Raises
    ------
    SettingError
        For a fold that the study does not have, a folder that is not filled that far, or one whose fold another process
        trains.

    Examples
    --------
    >>> from nilatent.config import read_config
    >>> train_fold(FoldJob(Path("nowhere"), read_config(overrides={"folds": 5}), 7))
    Traceback (most recent call last):
    nilatent.errors.SettingError: There is no fold 7: the study has 5 folds, counted from 0. Ask for one of them, or set folds.
    """
    out, config, fold = job.out, job.config, job.fold
    if not 0 <= fold < config.folds:
        raise SettingError(
            f"There is no fold {fold}: the study has {config.folds} folds, counted from 0. Ask for one of them, or set folds."
        )
    records = {need: out / f"{place}provenance.json" for need, place in NEEDS.items()}
    absent = [need for need, record in records.items() if not record.is_file()]
    if absent:
        raise SettingError(
            f"{out} lacks {absent[0]}, on which a fold rests. Fill it first: nilatent run SOURCE {out} --until split."
        )
    inputs = {need: content_hash(record) for need, record in records.items()}
    prepared, parts = load_cohort(out / "prepared"), read_split(out)
    split = config.split
    of_fold = fold_parts(parts, fold, validation_fraction=split.validation_fraction, seed=split.seed)
    model_config = training_of(config, out, prepared, of_fold)[0]
    _, settings, beside = training_of(config, out, prepared, parts)
    # The same as in the river, which therefore finds the fold up to date.
    settings |= {"model": model_config, "folds": config.folds, "split": split}
    folder = out / "folds" / str(fold)
    record, stage = folder / "provenance.json", f"fold {fold}"
    with locked(folder):
        if is_fresh(record, stage=stage, settings=settings, inputs=inputs):
            return False
        volumes = open_volumes(out / "volumes")
        written = fit_fold(
            volumes, of_fold, fold, model_config, config.training, folder, remedy=config.remedy, **beside
        )
        seal(record, stage=stage, settings=settings, inputs=inputs, outputs=written, seed=config.seed)
    return True


def train_folds(out: Path, config: RunConfig, *, scheduler: str) -> None:
    """Train the folds of a run folder on the workers of a dask scheduler, one fold at a time in each.

    Parameters
    ----------
    out : Path
        The run folder, on a disk that all workers share.
    config : RunConfig
        Its settings.
    scheduler : str
        Address or scheduler file.

    Raises
    ------
    SettingError
        When the cluster cannot be used, or a fold ended every worker that took it.
    NilatentError
        Of a fold that failed; the others are finished before it is raised.
    """
    out = Path(out).absolute()
    jobs = [FoldJob(out, config, fold) for fold in range(config.folds)]
    if not jobs:
        return
    with cluster.mark(out) as mark:
        demands = cluster.Demands(
            {}, "", cluster.installed(SHAPING), (mark, out / "volumes" / "volumes.npy"), whole_worker=True
        )
        work = cluster.run_on_cluster(_on_worker, jobs, scheduler=scheduler, demands=demands)
        with closing(work) as outcomes:
            failed = follow(
                outcomes,
                total=len(jobs),
                kept=0,
                label="folds",
                reason=lambda job, error: f"fold {job.fold}: {type(error).__name__}: {error}",
            )
    for job, error in failed:
        if isinstance(error, BrokenExecutor):
            raise SettingError(
                f"Fold {job.fold} ended every worker that took it, often for lack of memory. Start the workers with "
                "--memory-limit 0, since mapped volumes count as theirs, or with more memory, and run the same command."
            ) from error
        if isinstance(error, NilatentError):
            raise error
        raise SettingError(
            f"Fold {job.fold} failed on its worker with {type(error).__name__}: {error}. Look at the worker's output; the "
            "other folds are finished."
        ) from error


def _on_worker(job: FoldJob) -> None:
    worker = require("distributed", extra="cluster").get_worker()
    # What dask sets in the environment of its workers is one thread, whatever they were granted.
    torch.set_num_threads(worker.state.nthreads)
    train_fold(job)
