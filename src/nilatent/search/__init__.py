"""Search: other settings of model and training, judged on the validation scans alone and held against the noise of seeds."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tomli_w
import xarray as xr

from nilatent.errors import SettingError
from nilatent.finding import Finding
from nilatent.lock import locked
from nilatent.models import ModelConfig
from nilatent.progress import track
from nilatent.provenance import atomic, plain
from nilatent.search.config import FVU, SIZE, Measure, SearchConfig, measures_of
from nilatent.search.front import compromise, on_front
from nilatent.search.seeds import run_seeds
from nilatent.search.space import SIZES, given, space
from nilatent.search.trials import Task, finished, importances, open_study, quiet, run_trials, table
from nilatent.search.words import QUESTION, answer, caveats, trial_line
from nilatent.training.config import TrainConfig
from nilatent.volumes import Volumes

__all__ = ["QUESTION", "SearchConfig", "search"]


def search(
    volumes: Volumes,
    parts: pd.DataFrame,
    model_config: ModelConfig,
    train_config: TrainConfig,
    config: SearchConfig,
    folder: Path,
    *,
    scans: pd.DataFrame | None = None,
) -> Finding:
    """Search settings of a model, or go on with a search that was stopped.

    Parameters
    ----------
    volumes : Volumes
        The scans.
    parts : DataFrame
        Index ``scan_id``, columns ``subject_id`` and ``part``. Rows of the test part are dropped before anything else.
    model_config, train_config
        The settings as given: the first trial, and what the rest is held against.
    config : SearchConfig
        What is tried.
    folder : Path
        Receives ``journal.log`` (the study of optuna, one JSON value a line), ``trials.tsv`` (one row per trial, whatever its
        end), ``front.tsv`` (those beaten by none), ``winner.toml`` (the settings chosen, for `nilatent run --config`),
        ``seeds.tsv``, and the trainings in ``trials/`` and ``seeds/``. A search that was killed goes on there: trials that
        had ended are kept, and the one that was running is resumed within its epoch.
    scans : DataFrame, optional
        Index ``scan_id``: columns of the cohort that `model_config` names.

    Returns
    -------
    Finding
        ``search``: table of trials; data with the importance of each setting and the figures of the further seeds.

    Raises
    ------
    SettingError
        When a setting makes no sense, the folder holds another search, or no trial could be finished.
    MissingExtraError
        When optuna is not installed.

    Notes
    -----
    The suggestions follow from the seed, the number of the trial and the trials that ended before it, so a search that was
    interrupted goes on as if it had not been, and one with more trials begins like the shorter one. The same settings give
    the same figures to the last bit on one machine only, and from the first difference on, suggestions may differ too.
    """
    _check_alone(train_config)
    kept = parts[parts["part"].isin(("train", "validation"))][["subject_id", "part"]]
    task = Task(
        volumes=volumes,
        parts=kept,
        scans=_told(scans, list(kept.index), model_config),
        model_config=model_config,
        train_config=train_config,
        config=config,
        space=space(model_config, train_config, config, n_train=int((kept["part"] == "train").sum())),
        measures=measures_of(config, model_config),
        folder=Path(folder),
    )
    with quiet(), locked(task.folder):
        study, left = open_study(task)
        n_left = max(config.n_trials - len(finished(study)), len(left))
        for _ in track(run_trials(task, study, left), total=n_left, label="search", note=trial_line):
            _write(table(task, study), task.folder / "trials.tsv")
        trials = marked(table(task, study), task.measures)
        if not trials["chosen"].any():
            raise SettingError(
                f"None of {len(trials)} trials could be finished; the first: {trials['reason'].iloc[0]} All are in "
                f"{task.folder / 'trials.tsv'}. Mend the cause, delete the folder and search again."
            )
        drawn = _drawn(study, task, trials)
        _write_winner(task, drawn.get("chosen", drawn["given"]))
        seeds = pd.DataFrame(track(run_seeds(task, drawn), total=len(drawn) * config.n_seeds, label="seeds"))
        _write(trials, task.folder / "trials.tsv")
        _write(trials[trials["on_front"]], task.folder / "front.tsv")
        _write(seeds, task.folder / "seeds.tsv")
        return _finding(task, trials, seeds, importances(task, study))


def _check_alone(train_config: TrainConfig) -> None:
    if train_config.n_processes > 1:
        raise SettingError(
            f"training.devices and training.num_nodes make {train_config.n_processes} processes; a search trains in one, so that "
            "it can stop a trial. Set both to 1."
        )
    if train_config.start_from:
        raise SettingError(
            "training.start_from is set, which fixes the network that a search would vary. Search without it."
        )


def _told(scans: pd.DataFrame | None, kept: list[str], model_config: ModelConfig) -> pd.DataFrame | None:
    """Columns that the model is told, of the scans that are used; others could make a search another one for nothing."""
    names = [*model_config.condition, *([model_config.align] if model_config.align else [])]
    if scans is None or not names:
        return None
    return scans.loc[kept, [name for name in dict.fromkeys(names) if name in scans]]


def marked(trials: pd.DataFrame, measures: tuple[Measure, ...]) -> pd.DataFrame:
    """The table with ``on_front`` and ``chosen``.

    Parameters
    ----------
    trials : DataFrame
        One row per trial.
    measures : tuple[Measure, ...]
        What counts as better.

    Returns
    -------
    DataFrame
        On the front is a finished trial that no other beats in both figures of :func:`front_of`. Chosen is the best by the
        one objective, or the front's nearest to the best of both; a tie goes to the earlier trial, so to the settings given.
    """
    done = trials[trials["state"] == "finished"]
    front, chosen = pd.Series(False, index=trials.index), pd.Series(False, index=trials.index)
    if len(done):
        front[done.index] = on_front(_costs(done, front_of(measures)))
        chosen[done.index[compromise(_costs(done, measures))]] = True
    return trials.assign(on_front=front, chosen=chosen)


def front_of(measures: tuple[Measure, ...]) -> tuple[Measure, ...]:
    """The two figures whose front is shown: the objectives, or for the bound alone FVU and what it costs in latents."""
    return measures if len(measures) == 2 else (FVU, SIZE)


def _costs(trials: pd.DataFrame, measures: tuple[Measure, ...]) -> Any:
    return np.stack([measure.sign * trials[measure.column].to_numpy(float) for measure in measures], axis=1)


def _drawn(study: Any, task: Task, trials: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Draws that further seeds are run for: the one chosen and the one given, once when they are the same.

    Where the start was kept, only the size of the latent can have told: what else was drawn had no part in the figures and
    is left as given, or chance settings would be handed on as if they had been found.
    """
    row = trials[trials["chosen"]].iloc[0]
    as_given = given(task.space)
    chosen = dict(next(trial.params for trial in finished(study) if trial.number == row["trial"]))
    if row["best_epoch"] == 0:
        chosen = as_given | {name: chosen[name] for name in SIZES if name in chosen}
    return {"given": as_given} if chosen == as_given else {"chosen": chosen, "given": as_given}


def _write(frame: pd.DataFrame, path: Path) -> None:
    with atomic(path) as temporary:
        frame.to_csv(temporary, sep="\t", index=False, na_rep="n/a")


def _write_winner(task: Task, drawn: dict[str, Any]) -> None:
    """Every setting of the model and of its training: those left out would follow a preset, and not the trial."""
    model_config, config = task.settings(drawn)
    tables = {"model": plain(model_config), "training": plain(config)}
    # The seed is no setting to be found by a search.
    del tables["training"]["seed"]
    present = {name: {key: value for key, value in one.items() if value is not None} for name, one in tables.items()}
    with atomic(task.folder / "winner.toml") as temporary:
        temporary.write_text(tomli_w.dumps(present), encoding="utf-8")


def _finding(task: Task, trials: pd.DataFrame, seeds: pd.DataFrame, importance: dict[str, float]) -> Finding:
    first = task.measures[0]
    done = trials["state"] == "finished"
    best = (first.sign * trials[first.column].where(done)).cummin().ffill() * first.sign
    data = xr.Dataset(
        {
            "best_so_far": ("trial", best.to_numpy(float)),
            "importance": ("setting", np.array(list(importance.values()), dtype=float)),
        },
        coords={"trial": trials["trial"].to_numpy(), "setting": np.array(list(importance), dtype=str)},
    )
    for column in sorted(
        {measure.column for measure in (FVU, *task.measures, *front_of(task.measures))} - {SIZE.column}
    ):
        by_seed = seeds.pivot(index="settings", columns="seed", values=column).astype(float)
        data[f"{column}_by_seed"] = (("settings", "seed"), by_seed.to_numpy())
        data = data.assign_coords(settings=by_seed.index.to_numpy(str), seed=by_seed.columns.to_numpy(int))
    return Finding(
        name="search",
        question=QUESTION,
        answer=answer(trials, seeds, task.measures),
        table=trials.reset_index(drop=True),
        data=data,
        settings={
            "search": plain(task.config),
            "searched": list(task.space),
            "objective": [measure.column for measure in task.measures],
            "front": [measure.column for measure in front_of(task.measures)],
            "model": plain(task.model_config),
            "training": plain(task.train_config),
        },
        caveats=caveats(task, trials, importance),
        n_scans=len(task.parts),
        n_subjects=int(task.parts["subject_id"].nunique()),
    )
