"""What the history of a training says of a trial: its figures, and whether it is worth going on with."""

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from nilatent.models import ModelConfig
from nilatent.search.config import Measure
from nilatent.search.front import dominated

# Before so many trials are finished their median says little.
MIN_FINISHED = 5
FIGURES = (
    "validation_fvu",
    "pca_fvu",
    "validation_elbo",
    "kl",
    "n_active",
    "active_share",
    "n_values",
    "best_epoch",
    "n_epochs",
    "seconds",
)


def hopeless(
    curve: npt.NDArray[np.float64], others: list[npt.NDArray[np.float64]], measures: tuple[Measure, ...]
) -> str:
    """Why a trial need not go on; empty when it should.

    The median rule of optuna, which has it for one objective only, and for several a second condition: the first figure of
    what the trial would leave now is worse than the median of the finished trials at this epoch, and one of those is
    nowhere worse and somewhere better.

    Parameters
    ----------
    curve : ndarray
        (epoch, objective) what the trial would have left after each epoch, the start included.
    others : list[ndarray]
        The same of the finished trials; one that ended before this epoch stays as it ended.
    measures : tuple[Measure, ...]
        Of the columns.

    Returns
    -------
    str
        A reason in words, without the epoch.
    """
    if len(others) < MIN_FINISHED:
        return ""
    signs = np.array([measure.sign for measure in measures])
    here = curve[-1]
    then = np.array([one[min(len(curve), len(one)) - 1] for one in others])
    median = float(np.median(then[:, 0]))
    if not (here[0] - median) * signs[0] > 0 or not dominated(here * signs, then * signs):
        return ""
    told = f"its {measures[0].words} was {here[0]:.6g}, the median of {len(others)} finished trials at that epoch {median:.6g}"
    if len(measures) == 1:
        return told
    return f"{told}, and one of them was no worse in its {measures[1].words} either"


def read_history(place: Path, model_config: ModelConfig) -> pd.DataFrame:
    """History of a training with what follows from it, in ``history.tsv`` of its folder; empty when there is none.

    Returns
    -------
    DataFrame
        One row per epoch, the start included; beside its own columns ``n_values`` and ``active_share``.
    """
    path = place / "history.tsv"
    if not path.is_file():
        return pd.DataFrame()
    history = pd.read_csv(path, sep="\t", na_values=["n/a"])
    history["n_values"] = model_config.n_values
    return history


def curve_of(measures: tuple[Measure, ...], history: pd.DataFrame) -> npt.NDArray[np.float64]:
    """Figures of the weights that are kept after each epoch: what a trial would leave if it ended there.

    Returns
    -------
    ndarray
        (epoch, objective), the start included.
    """
    if history.empty:
        return np.zeros((0, len(measures)))
    kept = history.set_index("epoch").loc[history["best_epoch"]]
    return np.asarray(kept[[measure.column for measure in measures]].to_numpy(float))


def figures_of(history: pd.DataFrame) -> dict[str, float | None]:
    """Figures of the weights that are kept at the end of a history; none where there is no history."""
    if history.empty:
        return dict.fromkeys(FIGURES)
    last = history.iloc[-1]
    kept = history[history["epoch"] == last["best_epoch"]].iloc[0]
    found: dict[str, float] = {name: float(kept[name]) for name in FIGURES if name in kept}
    found |= {"best_epoch": float(last["best_epoch"]), "n_epochs": float(last["epoch"])}
    found["seconds"] = float(history["seconds"].sum())
    return {name: value if math.isfinite(value) else None for name, value in found.items()}
