"""What a search found, in words, and what must not be concluded from it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from nilatent.search.config import ELBO, FVU, Measure
from nilatent.search.seeds import Difference, difference
from nilatent.search.space import SETTINGS, SIZES
from nilatent.search.trials import Task

QUESTION = "Are there settings of the model that do better than those given, by more than another seed would?"
FEW_SCANS = 20


def trial_line(row: "pd.Series[Any]") -> str:
    """A trial's end, for whoever watches."""
    told = f"trial {row['trial']} {row['state']}"
    return f"{told}: {row['reason']}" if row["reason"] else f"{told}: validation FVU {number(row['validation_fvu'])}"


def number(value: Any) -> str:
    """A number of four significant digits, or of one decimal from a hundred on, with a true minus sign."""
    if isinstance(value, str):
        return value
    if not math.isfinite(value):
        return "not known"
    text = f"{value:,.1f}" if abs(value) >= 100 and value != round(value) else f"{value:.4g}"
    return (f"{value:,.0f}" if value == round(value) else text).replace("-", "−")


def answer(trials: pd.DataFrame, seeds: pd.DataFrame, measures: Sequence[Measure]) -> str:
    """What was tried, what was chosen, and whether further seeds bear it out.

    Parameters
    ----------
    trials : DataFrame
        Index the trial's number; with ``on_front`` and ``chosen``.
    seeds : DataFrame
        Rows of :func:`nilatent.search.seeds.run_seeds`.
    measures : Sequence[Measure]
        What counted as better.
    """
    return " ".join(filter(None, [_tried(trials), _chosen(trials, measures), _borne_out(seeds, measures)]))


def _tried(trials: pd.DataFrame) -> str:
    counts = trials["state"].value_counts()
    ended = [f"{counts[state]} {state}" for state in ("finished", "stopped early", "failed") if state in counts]
    told = f"Of {len(trials)} trials: {', '.join(ended)}."
    done = trials[trials["state"] == "finished"]
    n_idle = int((done["best_epoch"] == 0).sum())
    return (
        f"{told} In {n_idle} of those finished no epoch was better than the start, which was kept." if n_idle else told
    )


def _chosen(trials: pd.DataFrame, measures: Sequence[Measure]) -> str:
    row, first = trials[trials["chosen"]].iloc[0], trials.loc[0]
    told = ", ".join(f"{measure.words} {number(row[measure.column])}" for measure in measures)
    # Trials that kept the same start share one point.
    n_points = len(trials.loc[trials["on_front"], [measure.column for measure in measures]].drop_duplicates())
    how = (
        f"with the best {measures[0].words}"
        if len(measures) == 1
        else f"the nearest to the best of both on a front of {n_points} {'point' if n_points == 1 else 'points'}"
    )
    if row["trial"] == 0:
        return f"The settings as given are {how} ({told}): nothing that was tried is preferred to them."
    before = ", ".join(number(first[measure.column]) for measure in measures)
    usual = f"they had {before}" if first["state"] == "finished" else f"that trial {first['state']}"
    return f"Chosen is trial {row['trial']}, {how}: {told}; as to the settings as given, {usual}. {_values(row)}"


def _values(row: "pd.Series[Any]") -> str:
    idle = row["best_epoch"] == 0
    values = [f"{name} {number(row[name])}" for name in (SIZES if idle else SETTINGS) if name in row]
    if not idle:
        return f"It has {', '.join(values)}."
    return f"It kept its start, so training had no part in this: {' and '.join(values) or 'nothing'} is taken from it, no more."


def _borne_out(seeds: pd.DataFrame, measures: Sequence[Measure]) -> str:
    judged = [FVU, *(measure for measure in measures if measure is ELBO)]
    return " ".join(_by_seed(seeds, measure) for measure in reversed(judged))


def _by_seed(seeds: pd.DataFrame, measure: Measure) -> str:
    spread = {name: _spread(rows[measure.column].astype(float)) for name, rows in seeds.groupby("settings")}
    n_seeds = seeds["seed"].nunique()
    if "chosen" not in spread:
        return f"With {n_seeds} further seeds their {measure.words} is {spread['given']} (mean ± SD)."
    found = difference(seeds, measure.column)
    return (
        f"With {n_seeds} further seeds each, {measure.words} is {spread['chosen']} against {spread['given']} of the settings as "
        f"given (mean ± SD); {_judged(found, measure)}."
    )


def _judged(found: Difference, measure: Measure) -> str:
    if found.n_seeds < 2:
        return "too few seeds went well with both to compare them"
    # Equal but for rounding: the start is the same with every seed.
    if abs(found.high - found.low) <= 1e-6 * abs(found.mean):
        return f"the difference is {number(found.mean)} with every seed, so only other scans could tell it from chance"
    told = f"the paired difference is {number(found.mean)} (95 % interval {number(found.low)} to {number(found.high)})"
    if found.better(measure):
        return f"{told}, better than the noise of seeds explains"
    if found.worse(measure):
        return f"{told}, worse than the noise of seeds explains"
    return f"{told}, no more than the noise of seeds explains"


def _spread(values: "pd.Series[float]") -> str:
    known = values.dropna()
    if known.empty:
        return "not known"
    sd = known.std(ddof=1) if len(known) > 1 else math.nan
    failed = f" ({len(values) - len(known)} failed)" if len(known) < len(values) else ""
    return f"{number(float(known.mean()))} ± {number(float(sd))}{failed}"


def caveats(task: Task, trials: pd.DataFrame, importance: Mapping[str, float]) -> tuple[str, ...]:
    """What the reader must not conclude."""
    n_validation = int((task.parts["part"] == "validation").sum())
    told = [
        f"The chosen trial's figures are the best of {len(trials)} on the same {n_validation} validation scans, and so flatter "
        "it. The further seeds take the luck of one seed away, but not that of these scans, which they share. Test scans took no "
        "part: only a run with the chosen settings, judged on them, says what they are worth.",
    ]
    if n_validation < FEW_SCANS:
        told.append(f"{n_validation} validation scans are few: which trial comes first may hang on one or two of them.")
    if len(task.measures) == 2:
        told.append(
            "The chosen trial is a compromise, nearest to the best of both figures with each scaled by its range over the "
            "front. Every trial on the front is as defensible."
        )
    n_epochs = task.settings({})[1].n_epochs
    if n_epochs < task.train_config.n_epochs:
        told.append(
            f"Trials were trained for at most {n_epochs} epochs, a run for {task.train_config.n_epochs}: what is best in a short "
            "training need not be in a long one."
        )
    if (trials["state"] == "stopped early").any():
        told.append("Trials that were stopped early have the figures of that moment; they are on no front.")
    if importance:
        told.append(
            "The importance of a setting is a rough figure with so few trials, and says nothing of its direction."
        )
    return tuple(told)
