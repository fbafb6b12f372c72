"""How the model learned: loss, and variance left unexplained on the validation scans, with the epoch that was kept."""

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nilatent.plots import style


@mpl.rc_context(style.STYLE)
def draw(history: pd.DataFrame, *, best_epoch: int | None) -> Figure:
    """Loss on the training scans, and variance left unexplained on the validation scans beside PCA of equal size.

    Parameters
    ----------
    history : (epoch, column) DataFrame
        `epoch`, `train_loss`, `validation_fvu`, `pca_fvu` and, for a variational model, `kl`.
    best_epoch
        The epoch whose weights were kept; None when it is not known.

    Returns
    -------
    Figure
        One panel per measure.
    """
    if history.empty:
        return style.message("The history holds no epoch.")
    variational = "kl" in history and history["kl"].notna().any()
    drawn = style.figure(8.6, 2.9)
    panels = drawn.subplots(1, 3 if variational else 2)
    _curve(panels[0], history, "train_loss", "loss, training scans", best_epoch=None)
    _curve(panels[1], history, "validation_fvu", "variance left unexplained, validation", best_epoch=best_epoch)
    panels[1].axhline(history["pca_fvu"].iloc[0], color=style.ORANGE, lw=1.2, ls="--", label="PCA of equal size")
    panels[1].legend()
    if variational:
        _curve(panels[2], history, "kl", "KL, validation (nats per scan)", best_epoch=None)
    return drawn


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
