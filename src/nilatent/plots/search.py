"""Search: every trial in the order it was run and on its two figures, and the settings chosen held against seeds."""

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nilatent.finding import Finding
from nilatent.plots import style

STATES = {"finished": (style.BLUE, "o"), "stopped early": (style.QUIET, "v"), "failed": (style.ORANGE, "x")}
FIGURES = {
    "validation_elbo": "ELBO at beta 1, validation (nats per scan)",
    "validation_fvu": "variance left unexplained, validation (FVU)",
    "active_share": "share of active latents",
    "n_values": "values in the latent",
}
"""Column to the label of its axis."""
SETTINGS = {"width": "channels", "kl_warmup": "KL warm-up"}
SEEDS_SUFFIX = "_by_seed"

COLUMN_NAMES = {
    "trial": ("trial", "0 is the settings as given"),
    "state": ("state", "stopped early: worse than the median of the finished trials at that epoch"),
    "chosen": ("chosen", ""),
    "on_front": ("on the front", "No finished trial is better in one figure and no worse in the other"),
    "validation_elbo": ("ELBO", "Evidence lower bound on validation scans at beta 1, nats per scan; higher is better"),
    "validation_fvu": ("FVU", "Fraction of validation variance left unexplained; lower is better"),
    "pca_fvu": ("FVU of PCA", "With as many components as latents, same scans"),
    "n_active": ("active", "Latents that are active"),
    "active_share": ("share active", ""),
    "n_values": ("latent values", ""),
    "learning_rate": ("learning rate", "Peak"),
    "beta": ("beta", ""),
    "n_latent": ("n latent", ""),
    "latent_channels": ("latent channels", ""),
    "channels": ("channels", "Per level"),
    "kl_warmup_epochs": ("KL warm-up", "Epochs over which the weight of the KL rises"),
    "info_alpha": ("info alpha", ""),
    "info_lambda": ("info lambda", ""),
    "best_epoch": ("epoch kept", "0 is the start"),
    "n_epochs": ("epochs", "Trained"),
    "seconds": ("seconds", "In epochs"),
    "failures": ("failures found", "By the diagnosis of the training"),
    "reason": ("reason", "Why it did not finish"),
}


@mpl.rc_context(style.STYLE)
def draw(finding: Finding) -> Figure:
    """Trials in the order they were run, and on the two figures whose front is marked.

    Parameters
    ----------
    finding
        Of `search`: table columns `trial`, `state`, `on_front`, `chosen` and those named in its settings; data variables
        `best_so_far` and `importance`.

    Returns
    -------
    Figure
        A third panel has the importance of each setting, where there were trials enough to tell.
    """
    if finding.table.empty:
        return style.message("No trial was run.")
    importance = finding.data["importance"]
    n_panels = 3 if importance.size else 2
    drawn = style.figure(style.WIDEST_INCHES * n_panels / 3, 3.3)
    panels = drawn.subplots(1, n_panels)
    _order(panels[0], finding)
    _front(panels[1], finding)
    if importance.size:
        _importance(panels[2], finding)
    handles, labels = panels[0].get_legend_handles_labels()
    more = [pair for pair in zip(*panels[1].get_legend_handles_labels(), strict=True) if pair[1] not in labels]
    drawn.legend(
        [*handles, *(handle for handle, _ in more)],
        [*labels, *(label for _, label in more)],
        loc="outside upper left",
        ncols=6,
        handletextpad=0.3,
    )
    return drawn


def _order(axes: Axes, finding: Finding) -> None:
    column = finding.settings["objective"][0]
    _trials(axes, finding, "trial", column)
    axes.step(
        finding.data["trial"], finding.data["best_so_far"], where="post", color=style.INK, lw=1.0, label="best so far"
    )
    failed = finding.table[finding.table["state"] == "failed"]
    # What failed may have no figure: it stands at the foot of the panel, where every trial has its place.
    axes.scatter(
        failed["trial"],
        np.full(len(failed), 0.02),
        s=26,
        marker=STATES["failed"][1],
        color=STATES["failed"][0],
        transform=axes.get_xaxis_transform(),
        label="failed" if len(failed) else None,
    )
    axes.set_xlabel("trial (0: settings as given)")
    axes.set_ylabel(FIGURES[column])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _front(axes: Axes, finding: Finding) -> None:
    across, up = finding.settings["front"]
    _trials(axes, finding, across, up)
    front = finding.table[finding.table["on_front"]].sort_values([across, up])
    axes.plot(front[across], front[up], color=style.INK, lw=1.0, ls="--", marker="o", ms=9, mfc="none", label="front")
    axes.set_xlabel(FIGURES[across])
    axes.set_ylabel(FIGURES[up])


def _trials(axes: Axes, finding: Finding, across: str, up: str) -> None:
    table = finding.table
    for state in ("finished", "stopped early"):
        rows = table[table["state"] == state]
        colour, marker = STATES[state]
        if len(rows):
            axes.scatter(rows[across], rows[up], s=22, c=colour, marker=marker, lw=0, zorder=3, label=state)
    for rows, marker, label in (
        (table[(table["trial"] == 0) & (table["state"] == "finished")], "s", "settings as given"),
        (table[table["chosen"]], "*", "chosen"),
    ):
        axes.scatter(
            rows[across], rows[up], s=120, c="none", edgecolors=style.ORANGE, marker=marker, zorder=4, label=label
        )
    axes.grid(color=style.QUIET, alpha=0.25, lw=0.6)


def _importance(axes: Axes, finding: Finding) -> None:
    importance = finding.data["importance"]
    names = [SETTINGS.get(str(name), str(name).replace("_", " ")) for name in importance["setting"].values]
    axes.barh(range(len(names)), importance.values, height=0.68, color=style.BLUE, lw=0)
    axes.set_yticks(range(len(names)), [style.plain(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel("importance for the best quarter")
    axes.tick_params(axis="y", length=0)


@mpl.rc_context(style.STYLE)
def draw_seeds(finding: Finding) -> Figure:
    """Settings chosen and settings as given, each trained with the same further seeds; a line joins the same seed.

    Parameters
    ----------
    finding
        Of `search`: data variables that end in `_by_seed`, each (settings, seed).

    Returns
    -------
    Figure
        One panel per figure.
    """
    names = [str(name) for name in finding.data if str(name).endswith(SEEDS_SUFFIX)]
    if not names:
        return style.message("No further seed was trained.")
    drawn = style.figure(2.9 * len(names), 3.1)
    for axes, name in zip(drawn.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        values = finding.data[name]
        # Given stands on the left, as it was there first.
        labels = sorted(map(str, values["settings"].values), key=lambda label: label != "given")
        heights = values.sel(settings=labels).values
        axes.plot(range(len(labels)), heights, color=style.BLUE, marker="o", ms=5, lw=1.0)
        axes.set_xticks(range(len(labels)), labels)
        axes.set_xlim(-0.4, len(labels) - 0.6)
        axes.set_ylabel(FIGURES[name.removesuffix(SEEDS_SUFFIX)])
        axes.grid(axis="y", color=style.QUIET, alpha=0.25, lw=0.6)
    return drawn
