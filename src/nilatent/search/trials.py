"""Trials: the study in its journal, one training after another, and the rule that stops the hopeless ones early."""

import json
import math
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from nilatent.errors import NilatentError, SettingError
from nilatent.extras import require
from nilatent.models import ModelConfig
from nilatent.provenance import hash_values, plain
from nilatent.search.config import Measure, SearchConfig
from nilatent.search.figures import curve_of, figures_of, hopeless, read_history
from nilatent.search.space import Range, Space, given, settings, shown
from nilatent.training.config import TrainConfig, kl_is_whole
from nilatent.training.loop import train
from nilatent.volumes import Volumes

NAME = "search"
# No trial is stopped before this share of its epochs.
GRACE = 1 / 3
# The best quarter is what the importance of a setting is judged by: fewer than three trials would be anecdotes.
BEST_SHARE = 0.25
MIN_FOR_IMPORTANCE = 12
# What a trial leaves; its weights would fill the disk, and the chosen settings are trained again.
KEPT = ("config.toml", "history.tsv", "result.json")
FAILURES = (NilatentError, MemoryError, torch.cuda.OutOfMemoryError)
STATES = {"COMPLETE": "finished", "PRUNED": "stopped early", "FAIL": "failed"}


class _HopelessError(Exception):
    """A trial is not worth going on with; the text says why."""


@dataclass(frozen=True, eq=False)
class Task:
    """What every training of a search is given; no test scan is in it.

    Parameters
    ----------
    volumes : Volumes
        The scans.
    parts : DataFrame
        Index ``scan_id``, columns ``subject_id`` and ``part``: training and validation scans only.
    scans : DataFrame or None
        Columns that the model is told, of the same scans.
    model_config, train_config
        The settings as given.
    config : SearchConfig
        Of the search.
    space : dict
        What is searched.
    measures : tuple[Measure, ...]
        What counts as better.
    folder : Path
        Of the search.
    """

    volumes: Volumes
    parts: pd.DataFrame
    scans: pd.DataFrame | None
    model_config: ModelConfig
    train_config: TrainConfig
    config: SearchConfig
    space: Space
    measures: tuple[Measure, ...]
    folder: Path

    def settings(self, drawn: dict[str, Any]) -> tuple[ModelConfig, TrainConfig]:
        """Settings of a draw."""
        return settings(drawn, self.model_config, self.train_config, self.config)

    @property
    def key(self) -> str:
        """Says which search this is: everything but the number of trials and of further seeds."""
        asked = {name: value for name, value in plain(self.config).items() if name not in ("n_trials", "n_seeds")}
        used = self.parts["part"].to_dict()
        told = None if self.scans is None else self.scans.astype(str).to_csv()
        return hash_values([asked, self.model_config, self.train_config, self.volumes.content_hash, used, told])


@contextmanager
def quiet() -> Iterator[None]:
    """Without optuna's own words, and with its verbosity put back."""
    logging = require("optuna", extra="search").logging
    before = logging.get_verbosity()
    logging.set_verbosity(logging.WARNING)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def open_study(task: Task) -> tuple[Any, list[Any]]:
    """The study in ``journal.log``, one JSON value a line, and the trials that were running when it was last left.

    Parameters
    ----------
    task : Task
        The caller holds its folder, so that no other process writes there.

    Returns
    -------
    tuple
        The study, whose first trial is the settings as given, and trials to go on with.

    Raises
    ------
    SettingError
        When the folder holds a search of other settings or scans.
    """
    optuna = require("optuna", extra="search")
    journal = task.folder / "journal.log"
    _mend(journal)
    # This lock, unlike the one by a symbolic link, works on every disk and system.
    lock = optuna.storages.journal.JournalFileOpenLock(str(journal))
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(journal), lock_obj=lock))
    directions = ["minimize" if measure.sign > 0 else "maximize" for measure in task.measures]
    study = optuna.create_study(storage=storage, study_name=NAME, directions=directions, load_if_exists=True)
    key = study.user_attrs.get("key")
    if key is None:
        shutil.rmtree(task.folder / "trials", ignore_errors=True)
        study.set_user_attr("key", task.key)
    elif key != task.key:
        raise SettingError(
            f"{task.folder} holds a search with other settings or other scans. Delete it to search anew, or put back the "
            "settings it was begun with; only n_trials and n_seeds may change."
        )
    if not study.get_trials(deepcopy=False):
        study.enqueue_trial(given(task.space))
    left = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,))
    known = storage.get_study_id_from_name(NAME)
    ids = [storage.get_trial_id_from_study_id_trial_number(known, trial.number) for trial in left]
    return study, [optuna.trial.Trial(study, one) for one in ids]


def _mend(journal: Path) -> None:
    """Take away what a kill may have left: a lock that nobody holds, and half a line at the end."""
    journal.with_name(journal.name + ".lock").unlink(missing_ok=True)
    if journal.is_file():
        with journal.open("rb+") as file:
            content = file.read()
            file.truncate(content.rfind(b"\n") + 1)


def run_trials(task: Task, study: Any, left: list[Any]) -> Iterator[pd.Series]:
    """Run trials until there are as many as asked for.

    Parameters
    ----------
    task : Task
        What they are given.
    study, left
        From :func:`open_study`.

    Yields
    ------
    Series
        Row of the table of each trial, as it ends.
    """
    waiting = list(left)
    while waiting or len(finished(study)) < task.config.n_trials:
        trial = waiting.pop(0) if waiting else study.ask()
        _run(task, study, trial)
        yield table(task, study).loc[trial.number]


def finished(study: Any, *states: str) -> list[Any]:
    """Trials that have ended, in any of :data:`STATES` or in those named."""
    wanted = states or tuple(STATES)
    return [trial for trial in study.get_trials(deepcopy=False) if trial.state.name in wanted]


def _draw(task: Task, study: Any, trial: Any) -> dict[str, Any]:
    """Values of a trial; those it had before an interruption stay."""
    sampler = require("optuna", extra="search").samplers.TPESampler
    drawn: dict[str, Any] = {}
    for name, values in task.space.items():
        # A seed for each draw, so that a search that was interrupted goes on with the draws it would have made.
        seed = int(hash_values([task.config.seed, trial.number, name])[:8], 16)
        study.sampler = sampler(seed=seed, multivariate=False, constant_liar=False)
        if isinstance(values, Range):
            drawn[name] = trial.suggest_float(name, values.low, values.high, log=values.log)
        else:
            drawn[name] = trial.suggest_categorical(name, values.values)
    return drawn


def _run(task: Task, study: Any, trial: Any) -> None:
    state = require("optuna", extra="search").trial.TrialState
    place = task.folder / "trials" / f"{trial.number:04d}"
    model_config, config = task.settings(_draw(task, study, trial))
    others = [np.array(one.user_attrs["curve"], dtype=float) for one in finished(study, "COMPLETE")]

    def watch(row: dict[str, int | float]) -> None:
        epoch = int(row["epoch"])
        if GRACE * config.n_epochs <= epoch < config.n_epochs and kl_is_whole(config, epoch):
            reason = hopeless(curve_of(task.measures, read_history(place, model_config)), others, task.measures)
            if reason:
                raise _HopelessError(f"Stopped after epoch {epoch} of {config.n_epochs}: {reason}.")

    ended, reason, found = state.COMPLETE, "", []
    try:
        trained = train(task.volumes, task.parts, model_config, config, place, scans=task.scans, on_epoch=watch)
        found = [one["failure"] for one in trained.result["verdicts"] if one["state"] == "found"]
    except _HopelessError as stopped:
        ended, reason = state.PRUNED, str(stopped)
    except FAILURES as error:
        ended, reason = state.FAIL, _first_sentence(str(error).replace(str(place), place.name)) or type(error).__name__
    history = read_history(place, model_config)
    values = [float(value) for value in curve_of(task.measures, history)[-1]] if len(history) else []
    if ended == state.COMPLETE and not all(map(math.isfinite, values)):
        ended, reason = state.FAIL, f"Its {task.measures[0].words} is not finite."
    if ended == state.PRUNED and len(values) == 1:
        # From this the sampler learns how bad the trial was; with several objectives it takes no such report.
        trial.report(values[0], step=int(history["epoch"].iloc[-1]))
    about = {"figures": figures_of(history), "curve": curve_of(task.measures, history).tolist(), "reason": reason}
    for name, value in (about | {"failures": found}).items():
        trial.set_user_attr(name, json.loads(json.dumps(value)))
    study.tell(trial, values if ended == state.COMPLETE else None, state=ended)
    for path in place.glob("*"):
        if path.is_file() and path.name not in KEPT:
            path.unlink()


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=\.)\s+(?=[A-Z])", text, maxsplit=1)[0]


def table(task: Task, study: Any) -> pd.DataFrame:
    """One row per trial that has ended, whatever its end.

    Returns
    -------
    DataFrame
        Index the trial's number; columns ``trial``, ``state``, the settings that are searched, the figures of the weights
        that were kept, ``failures`` (what its diagnosis found) and ``reason`` (why it did not finish).
    """
    rows = []
    for trial in finished(study):
        drawn = {name: trial.params[name] for name in task.space}
        about = trial.user_attrs
        rows.append(
            {"trial": trial.number, "state": STATES[trial.state.name]}
            | shown(drawn, *task.settings(drawn))
            | {name: math.nan if value is None else value for name, value in about["figures"].items()}
            | {"failures": ", ".join(about["failures"]), "reason": about["reason"]}
        )
    return pd.DataFrame(rows).set_index("trial", drop=False).rename_axis(None)


def importances(task: Task, study: Any) -> dict[str, float]:
    """Share of each setting in what tells the best quarter of the finished trials, by the first objective, from all.

    Returns
    -------
    dict
        Name to share, summing to 1, largest first; empty with fewer than a dozen finished trials.

    References
    ----------
    Watanabe, Bansal & Hutter 2023, PED-ANOVA. doi:10.48550/arXiv.2304.10255
    """
    if len(finished(study, "COMPLETE")) < MIN_FOR_IMPORTANCE:
        return {}
    importance = require("optuna", extra="search").importance
    sign = task.measures[0].sign
    with warnings.catch_warnings():
        # It warns that a target is taken to be good when low, which the sign sees to, and that it may still change.
        warnings.simplefilter("ignore")
        found = importance.get_param_importances(
            study,
            evaluator=importance.PedAnovaImportanceEvaluator(target_quantile=BEST_SHARE),
            target=lambda trial: sign * trial.values[0],
        )
    return {str(name): float(value) for name, value in found.items()}
