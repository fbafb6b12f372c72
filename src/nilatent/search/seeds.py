"""Further seeds: the settings chosen beside the settings given, so that a gain is held against the noise of seeds."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from nilatent.search.config import Measure
from nilatent.search.figures import figures_of, read_history
from nilatent.search.trials import FAILURES, Task
from nilatent.training.loop import train

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """Chosen settings less given settings, over seeds that both were trained with.

    Parameters
    ----------
    mean, low, high : float
        Mean and its 95 % interval by Student's t; the interval is NaN with fewer than two seeds.
    n_seeds : int
        Seeds with which both trainings ended well.
    """

    mean: float
    low: float
    high: float
    n_seeds: int

    def better(self, measure: Measure) -> bool:
        """Whether the interval lies wholly on the good side of nothing."""
        return self.high < 0 if measure.sign > 0 else self.low > 0

    def worse(self, measure: Measure) -> bool:
        """Whether it lies wholly on the bad side."""
        return self.low > 0 if measure.sign > 0 else self.high < 0


def run_seeds(task: Task, draws: dict[str, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Train settings with seeds that no trial had.

    Parameters
    ----------
    task : Task
        What every training is given.
    draws : dict
        ``"chosen"``, ``"given"`` or both, to the draw of their settings.

    Yields
    ------
    dict
        ``settings``, ``seed``, the figures, and ``reason`` when a training failed. The models stay in ``seeds/``; a
        training that is finished, or was killed, is taken up where it stands.
    """
    for number in range(task.config.n_seeds):
        for name, drawn in draws.items():
            model_config, config = task.settings(drawn)
            seed = config.seed + 1 + number
            place, reason = task.folder / "seeds" / f"{name}-{seed}", ""
            try:
                train(task.volumes, task.parts, model_config, replace(config, seed=seed), place, scans=task.scans)
            except FAILURES as error:
                reason = str(error).replace(str(place), place.name)
            made = figures_of(pd.DataFrame() if reason else read_history(place, model_config))
            yield {"settings": name, "seed": seed} | made | {"reason": reason}


def difference(seeds: pd.DataFrame, column: str) -> Difference:
    """Paired difference of a figure between the settings chosen and the settings given.

    Parameters
    ----------
    seeds : DataFrame
        Rows of :func:`run_seeds`.
    column : str
        The figure.
    """
    by_seed = seeds.pivot(index="seed", columns="settings", values=column).astype(float).dropna()
    differences = (by_seed["chosen"] - by_seed["given"]).to_numpy()
    n_seeds = len(differences)
    if n_seeds < 2:
        return Difference(float(differences.mean()) if n_seeds else math.nan, math.nan, math.nan, n_seeds)
    half = (
        float(stats.t.ppf(0.5 + CONFIDENCE / 2, n_seeds - 1)) * float(np.std(differences, ddof=1)) / math.sqrt(n_seeds)
    )
    mean = float(differences.mean())
    return Difference(mean, mean - half, mean + half, n_seeds)
