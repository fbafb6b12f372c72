"""External cohort: what the frozen head said of whom, how right that was, and how far the cohort lies from the study."""

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nilatent.finding import Finding
from nilatent.plots import style

NOT_KNOWN = "not known"

COLUMN_NAMES = {
    "part": (
        "part",
        "Prediction: how right the frozen head is here; domain shift: how far the cohort lies from the study",
    ),
    "measure": ("measure", ""),
    "value": ("value", "Every subject counts once"),
    "low": ("95 % from", "Exact for shares; empty where there is no interval"),
    "high": ("to", ""),
    "n": ("subjects", ""),
    "study": ("in the study", "The same measure on held-out subjects of the study"),
    "note": ("note", ""),
}


@mpl.rc_context(style.STYLE)
def draw(finding: Finding) -> Figure:
    """Scores by what is known, ROC and calibration where there are two classes, and the shift of every latent.

    Parameters
    ----------
    finding
        Of `external`: data `score` (scan, output), `known`, `judged`, `mean_difference` (latent), and with two classes
        `roc_false`, `roc_true`, `told`, `share`, `share_low`, `share_high`.

    Returns
    -------
    Figure
        Two panels, or four with two known classes.
    """
    data = finding.data
    if "score" not in data or data.sizes["scan"] == 0:
        return style.message("There is no prediction to show.")
    two = "roc_true" in data
    drawn = style.figure(7.6, 5.6 if two else 2.9)
    panels = drawn.subplots(2, 2).ravel() if two else drawn.subplots(1, 2)
    if data.attrs["kind"] == "continuous":
        _numbers(panels[0], data)
    else:
        _scores(panels[0], data)
    if two:
        _roc(panels[1], data)
        _calibration(panels[2], data)
    _moved(panels[-1], data)
    return drawn


def _scores(axes: Axes, data: xr.Dataset) -> None:
    """A strip of points per known class: the probability of the last class, or of the class that is right."""
    levels = [str(level) for level in data["output"].values]
    known = data["known"].values
    for row, level in enumerate([*levels, NOT_KNOWN]):
        mine = np.isnan(known) if level == NOT_KNOWN else known == row
        score = data["score"].values[mine, -1]
        colour = style.QUIET if level == NOT_KNOWN else style.GROUP_COLOURS[row % len(style.GROUP_COLOURS)]
        marker = style.GROUP_MARKERS[row % len(style.GROUP_MARKERS)]
        axes.scatter(score, row + 0.6 * style.spread(len(score)), s=14, color=colour, marker=marker, lw=0, alpha=0.8)
    shown = [*levels, NOT_KNOWN] if np.isnan(known).any() else levels
    axes.set_yticks(range(len(shown)), [style.plain(level, width=18) for level in shown])
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xlim(-0.03, 1.03)
    if np.isfinite(data.attrs["threshold"]):
        axes.axvline(data.attrs["threshold"], color=style.INK, lw=0.8, ls="--")
        axes.set_title("scores; dashed: frozen threshold")
    axes.set_xlabel(f"probability of '{style.plain(levels[-1], width=18)}'")
    axes.tick_params(axis="y", length=0)


def _numbers(axes: Axes, data: xr.Dataset) -> None:
    predicted, known = data["score"].values[:, 0], data["known"].values
    if np.isnan(known).all():
        axes.scatter(predicted, style.spread(len(predicted)), s=14, color=style.QUIET, lw=0)
        axes.set_yticks([])
    else:
        axes.axline((float(np.nanmean(known)),) * 2, slope=1, color=style.QUIET, lw=0.8, ls="--")
        axes.scatter(predicted, known, s=14, color=style.BLUE, lw=0, alpha=0.8)
        axes.set_ylabel("known")
    axes.set_xlabel(f"predicted {style.plain(data.attrs['target'], width=18)}")


def _roc(axes: Axes, data: xr.Dataset) -> None:
    axes.plot([0, 1], [0, 1], color=style.QUIET, lw=0.8, ls="--")
    axes.plot(data["roc_false"], data["roc_true"], color=style.BLUE, lw=1.6)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel="1 − specificity", ylabel="sensitivity", title="ROC")


def _calibration(axes: Axes, data: xr.Dataset) -> None:
    told, share = data["told"].values, data["share"].values
    spread = [share - data["share_low"].values, data["share_high"].values - share]
    axes.plot([0, 1], [0, 1], color=style.QUIET, lw=0.8, ls="--")
    axes.errorbar(told, share, yerr=np.abs(spread), fmt="o", ms=4, color=style.BLUE, elinewidth=1.0)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel="probability told", ylabel="share of cases")
    axes.set_title("calibration, exact intervals")


def _moved(axes: Axes, data: xr.Dataset) -> None:
    moved = np.sort(data["mean_difference"].values)
    axes.axhline(0, color=style.INK, lw=0.8)
    axes.vlines(np.arange(len(moved)), 0, moved, color=style.ORANGE, lw=max(0.3, min(3.0, 180 / len(moved))))
    limit = max(1.0, float(np.abs(moved).max()) * 1.08)
    axes.set(
        ylim=(-limit, limit), xlabel="latents, sorted", ylabel="mean here − study (SD)", title="shift of the latents"
    )
    axes.set_xticks([])
