"""The whole river on one screen: from sources to a report, each stage skipped when nothing it depends on has changed."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from nilatent.analyses import QUESTIONS
from nilatent.config import RunConfig, read_config
from nilatent.errors import SettingError
from nilatent.fold_jobs import FoldJob, train_fold, train_folds
from nilatent.lock import locked
from nilatent.modalities import open_modalities
from nilatent.provenance import atomic
from nilatent.river import River
from nilatent.simulate import SimulationConfig, simulate
from nilatent.study import check_folds, check_joint_splits, nearest
from nilatent.training.devices import is_follower

MIN_SUBJECTS = 20
STAGES = ("split", "model", "latents", "findings", "report")


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a run leaves: the report, how many scans went through, and which did not.

    Parameters
    ----------
    report : Path
        The page.
    n_scans : int
        Scans that were prepared.
    excluded : DataFrame
        Scans left out, with stage, rule and reason.
    without : DataFrame
        Further images that failed, with modality, rule and reason; their scans went on without them.
    """

    report: Path
    n_scans: int
    excluded: pd.DataFrame
    without: pd.DataFrame = field(default_factory=pd.DataFrame)


def run(
    sources: Sequence[Path],
    out: Path,
    config: RunConfig,
    *,
    n_procs: int = 1,
    scheduler: str = "",
    until: str = "report",
    only: Sequence[str] = (),
) -> Outcome:
    """From sources to a report.

    Parameters
    ----------
    sources : Sequence[Path]
        BIDS folders, derivatives, CAT12 folders, tables of paths; none to go on with the cohort that `out` holds.
    out : Path
        Receives every pool; a run that was killed goes on where it stopped, and finished stages are skipped.
    config : RunConfig
        Every setting.
    n_procs : int
        Processes for the preparation; the result does not depend on it.
    scheduler : str
        Address or scheduler file of a dask scheduler, on whose workers scans are prepared and folds trained instead.
    until : str
        Last pool to fill: ``"split"``, ``"model"``, ``"latents"``, ``"findings"`` or ``"report"``.
    only : Sequence[str]
        Names of the analyses to run; none for all.

    Returns
    -------
    Outcome
        Scans that failed are listed in it; the others are in the report.

    Raises
    ------
    NilatentError
        When a source or a setting makes no sense; nothing is computed then.
    """
    check_names(until, only)
    if is_follower():
        return follow(Path(out), config, until=until)
    with locked(Path(out)):
        river = River(Path(out), config)
        cohort = river.cohort(sources)
        prepared = river.prepared(cohort, n_procs=n_procs, scheduler=scheduler)
        volumes = river.volumes(prepared)
        weights, without = river.regions(river.grey(prepared, volumes)), pd.DataFrame()
        if prepared.n_subjects < MIN_SUBJECTS:
            river.nothing_found(f"too few subjects ({prepared.n_subjects}; at least {MIN_SUBJECTS} are needed)")
        else:
            parts = river.parts(prepared)
            check_folds(prepared, volumes, parts, config, river.out)
            without = river.modalities(cohort, prepared, n_procs=n_procs)
            check_joint_splits(open_modalities(river.out, config, prepared), parts, config)
            if until != "split":
                river.model(prepared, volumes, parts)
            if until in ("latents", "findings", "report"):
                river.latents(prepared, volumes, parts)
                river.joint(prepared, parts)
            if until in ("findings", "report"):
                if scheduler:
                    train_folds(river.out, config, scheduler=scheduler)
                river.folds(prepared, volumes, parts)
                river.joint_folds(prepared, parts)
                river.findings(prepared, volumes, parts, weights, only=only)
                river.heads(prepared, volumes, parts, weights)
        if until == "report":
            river.report()
        return Outcome(river.out / "report.html", len(prepared.scans), prepared.excluded, without)


def follow(out: Path, config: RunConfig, *, until: str) -> Outcome:
    """Join the training of a run folder as another process than the first: train and write nothing.

    Parameters
    ----------
    out : Path
        A run folder whose scans are packed and split.
    config : RunConfig
        The same settings as those of the first process.
    until : str
        Must be ``"model"``: all else, remedies included, is the business of one process.

    Raises
    ------
    SettingError
        For any other stage, and with remedies.
    """
    if until != "model" or config.remedy:
        raise SettingError(
            "Several processes share the training alone. Run everything on one machine first (`nilatent run`), and start "
            "`nilatent train OUT` on all of them, without remedy."
        )
    n_scans, excluded = River(out, config).join()
    return Outcome(out / "report.html", n_scans, excluded)


def train_one_fold(out: Path, config: RunConfig, fold: int) -> bool:
    """Train one cross-fitted model of a run folder, side by side with others that train other folds of it.

    Parameters
    ----------
    out : Path
        A run folder that :func:`run` filled until the split.
    config : RunConfig
        Every setting.
    fold : int
        Counted from 0.

    Returns
    -------
    bool
        Whether anything was done; a fold that is finished is left as it is.

    Raises
    ------
    SettingError
        For a fold that there is not, where a run works in the whole folder or another process on the same fold, and for
        several machines or a process that is not the first of several.
    """
    if is_follower() or config.training.num_nodes > 1:
        raise SettingError(
            "A fold is trained by one command on one machine. Leave --num-nodes out, and start `nilatent train OUT --fold K` "
            "once for each fold, not through torchrun or several tasks of srun; --devices may be several."
        )
    out = Path(out).absolute()
    with locked(out, shared=True):
        return train_fold(FoldJob(out, config, fold))


def search_settings(out: Path, config: RunConfig, *, n_procs: int) -> Path:
    """Search settings of the model of a run folder; goes on where it was stopped.

    Parameters
    ----------
    out : Path
        What :func:`run` filled, as far as the split at least.
    config : RunConfig
        Every setting; those of `config.search` say what is tried.
    n_procs : int
        Processes for the preparation, should something have changed.

    Returns
    -------
    Path
        Settings of the model and the training that were chosen, as a TOML file.
    """
    with locked(Path(out)):
        river = River(Path(out), config)
        prepared = river.prepared(river.cohort([]), n_procs=n_procs, scheduler="")
        volumes = river.volumes(prepared)
        river.search(prepared, volumes, river.parts(prepared))
        return river.out / "search" / "winner.toml"


def demonstrate(out: Path, *, n_subjects: int, seed: int, n_procs: int) -> Outcome:
    """Simulate a cohort with planted atrophy in `out` and run the whole river on it.

    Parameters
    ----------
    out : Path
        Receives the simulated BIDS folder as ``simulated/``, ``truth.json``, and what :func:`run` leaves.
    n_subjects : int
        Simulated subjects.
    seed : int
        Seed of the simulation and of the run.
    n_procs : int
        Processes for the simulation and the preparation.
    """
    source = simulate(out / "simulated", SimulationConfig(n_subjects=n_subjects, seed=seed), n_procs=n_procs)
    with atomic(out / "truth.json") as temporary:
        temporary.write_bytes((source / "truth.json").read_bytes())
    asked = {
        "study.group": "group",
        "study.contrast": "patient:control",
        "study.covariates": ["age", "sex"],
        "study.site": "site",
    }
    return run([source], out, read_config(overrides=asked | {"seed": seed}), n_procs=n_procs)


def check_names(until: str, only: Sequence[str]) -> None:
    """Refuse a stage or an analysis that does not exist.

    Raises
    ------
    SettingError
        Names the nearest one there is.
    """
    if until not in STAGES:
        raise SettingError(f"A run goes until one of {', '.join(STAGES)}, got '{until}'.")
    for name in only:
        if name not in QUESTIONS:
            raise SettingError(f"There is no analysis '{name}'.{nearest(name, list(QUESTIONS))}")
