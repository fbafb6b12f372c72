"""How the model learned: loss, variance left unexplained, what the latents carry, and what went wrong in which epoch."""

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nilatent.plots import style

VARIATIONAL = {
    "kl": "KL, validation (nats per scan)",
    "active_share": "share of active latents",
    "beta_eff": "weight of the KL in force",
    "shuffle_ratio": "error ratio, latents swapped",
}
"""Columns of a variational model's history and the titles of their panels."""

N_COLUMNS = 3
PANEL_INCHES, ROW_INCHES, STRIP_INCHES = 2.9, 0.24, 0.75


@mpl.rc_context(style.STYLE)
def draw(history: pd.DataFrame, *, best_epoch: int | None) -> Figure:
    """Loss on the training scans, variance left unexplained on the validation scans beside PCA of equal size, and failures.

    Parameters
    ----------
    history : (epoch, column) DataFrame
        `epoch`, `train_loss`, `validation_fvu`, `pca_fvu`; where present `failures`, names joined by a comma or ``none``; and
        for a variational model `kl`, `active_share`, `beta_eff` and `shuffle_ratio`.
    best_epoch
        The epoch whose weights were kept; None when it is not known.

    Returns
    -------
    Figure
        One panel per measure; below them, where failures are known, a strip with one row per failure and a mark in every
        epoch in which it was found.
    """
    if history.empty:
        return style.message("The history holds no epoch.")
    variational = "kl" in history and history["kl"].notna().any()
    measures = [name for name in VARIATIONAL if variational and name in history and history[name].notna().any()]
    failures = _failures(history)
    n_columns = min(2 + len(measures), N_COLUMNS)
    n_rows = -(-(2 + len(measures)) // n_columns)
    heights = [PANEL_INCHES] * n_rows
    if failures is not None:
        heights.append(STRIP_INCHES + ROW_INCHES * max(failures.shape[1], 1))
    drawn = style.figure(8.6, sum(heights))
    grid = drawn.add_gridspec(len(heights), n_columns, height_ratios=heights)
    panels = [drawn.add_subplot(grid[place // n_columns, place % n_columns]) for place in range(2 + len(measures))]
    _curve(panels[0], history, "train_loss", "loss, training scans", best_epoch=None)
    _curve(panels[1], history, "validation_fvu", "unexplained variance, validation", best_epoch=best_epoch)
    panels[1].axhline(history["pca_fvu"].iloc[0], color=style.ORANGE, lw=1.2, ls="--", label="PCA of equal size")
    panels[1].legend()
    for axes, name in zip(panels[2:], measures, strict=True):
        _curve(axes, history, name, VARIATIONAL[name], best_epoch=None)
        if name == "active_share":
            axes.set_ylim(-0.05, 1.05)
        if name == "shuffle_ratio":
            axes.axhline(1.0, color=style.QUIET, lw=1.0, ls=":", label="latents ignored")
            axes.legend()
    if failures is not None:
        _strip(drawn.add_subplot(grid[-1, :]), history["epoch"].to_numpy(), failures, best_epoch=best_epoch)
    return drawn


def _failures(history: pd.DataFrame) -> pd.DataFrame | None:
    """(epoch, failure) bool, in the order in which they were first found; None where the history does not say."""
    if "failures" not in history:
        return None
    found = [set(str(names).split(", ")) if isinstance(names, str) else set() for names in history["failures"]]
    names = list(dict.fromkeys(name for one in history["failures"].dropna() for name in str(one).split(", ")))
    kept = [name for name in names if name != "none"]
    return pd.DataFrame({name: [name in one for one in found] for name in kept}, index=history.index)


def _strip(axes: Axes, epochs: np.ndarray, failures: pd.DataFrame, *, best_epoch: int | None) -> None:
    names = list(failures) or ["none found"]
    for row, name in enumerate(names):
        there = failures[name].to_numpy() if name in failures else np.zeros(len(epochs), dtype=bool)
        axes.plot(epochs[~there], np.full((~there).sum(), row), ".", color=style.QUIET, ms=2.5)
        axes.plot(epochs[there], np.full(there.sum(), row), "s", color=style.ORANGE, ms=5)
    if best_epoch is not None:
        axes.axvline(best_epoch, color=style.BLUE, lw=1.2, label=f"kept: epoch {best_epoch}")
        axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.1)
    axes.set_yticks(range(len(names)), [style.plain(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_title("failures found after each epoch")
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _curve(axes: Axes, history: pd.DataFrame, column: str, title: str, *, best_epoch: int | None) -> None:
    known = history[history[column].notna()]
    axes.plot(
        known["epoch"], known[column], color=style.BLUE, lw=1.5, marker="o" if len(known) < 4 else "", label="model"
    )
    kept = history[history["epoch"] == best_epoch]
    if len(kept):
        axes.scatter(kept["epoch"], kept[column], s=42, c=style.BLUE, zorder=3, lw=0, label=f"kept: epoch {best_epoch}")
    axes.set_title(title)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", color=style.QUIET, alpha=0.25, lw=0.6)
