"""How the model learned: every measure of the history by epoch, with the epoch that was kept."""

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nilatent.plots import style

PARTS = {"train": ("#0072B2", "-"), "validation": ("#D55E00", "-")}
"""Prefix of a column to its line; what follows the underscore is the measure."""
LABELS = {
    "loss": "loss",
    "mse": "mean squared error",
    "fvu": "variance left unexplained (FVU)",
    "kl": "KL (nats)",
}


@mpl.rc_context(style.STYLE)
def draw(history: pd.DataFrame, *, best_epoch: int | None) -> Figure:
    """Curves by epoch, training and validation in one panel per measure.

    Parameters
    ----------
    history : (epoch, column) DataFrame
        `epoch` and columns such as `train_mse`, `validation_mse`, `validation_fvu`.
    best_epoch
        The epoch whose weights were kept; None when it is not known.

    Returns
    -------
    Figure
        One panel per measure.
    """
    measures = {name: label for name, label in LABELS.items() if any(f"{part}_{name}" in history for part in PARTS)}
    if not measures or history.empty:
        return style.message("The history holds no epoch.")
    drawn = style.figure(4.2 * len(measures), 3.0)
    for axes, (measure, label) in zip(drawn.subplots(1, len(measures), squeeze=False)[0], measures.items(), strict=True):
        _curves(axes, history, measure)
        axes.set_title(label)
        axes.set_xlabel("epoch")
        if best_epoch is not None:
            axes.axvline(best_epoch, color=style.QUIET, lw=1.0, ls=":", label=f"kept: epoch {best_epoch}")
        axes.legend()
    return drawn


def _curves(axes: Axes, history: pd.DataFrame, measure: str) -> None:
    for part, (colour, line) in PARTS.items():
        column = f"{part}_{measure}"
        if column in history:
            marker = "o" if history[column].notna().sum() < 3 else ""
            axes.plot(history["epoch"], history[column], line, color=colour, lw=1.5, marker=marker, label=part)
    axes.grid(axis="y", color=style.QUIET, alpha=0.25, lw=0.6)
