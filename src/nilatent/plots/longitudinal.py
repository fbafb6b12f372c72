"""Change over time: courses of groups, differences in rate, drawn rates beside measured ones, and errors of forecasts."""

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nilatent.finding import Finding
from nilatent.plots import brain, style

N_COLUMNS = 3
N_MEASURES = 12
DIFFERENCE, RATE, ERROR, REGIONS = "difference in rate", "rate", "error of forecast", "regions"
REPEATABILITY = "repeatability"
UNITS = {
    "regions": "regional mean",
    "decoded regions": "decoded regional mean",
    "directions": "place along it",
    "latents": "latent",
}
"""Kinds of measures to what stands beside the axis of their values."""

COLUMN_NAMES = {
    "what": ("what", "Rate: change per year; repeatability: intraclass correlation; errors are of held-out subjects"),
    "kind": ("of", "Decoded regions are those of reconstructions by a model that has not seen the subject"),
    "measure": ("measure", "Region, latent direction, or way to forecast"),
    "group": ("group", "Of a difference first the group, then its reference"),
    "value": ("value", "Rates in units of the measure per year"),
    "low": ("from", "95 % interval"),
    "high": ("to", "95 % interval"),
    "percent": ("%", "Of the mean of the group at the first visit, per year; of an error: of that it is compared with"),
    "p": ("p", "Of a difference by the likelihood ratio, of a rate by Student's t"),
    "p_permutation": ("p by permutation", "Subjects permuted between groups, slopes weighted by their precision"),
    "p_fwe": ("p, family-wise", "By permutation, over all measures of the kind"),
    "q": ("q", "False discovery rate over the measures of the kind"),
    "drawn": ("drawn", "The same rate in the images of the average subject of the group"),
    "drawn_low": ("drawn, from", "95 % interval over subjects, given the decoders"),
    "drawn_high": ("drawn, to", "95 % interval over subjects, given the decoders"),
    "random": ("random effects", "What differs between subjects in the model"),
    "n_subjects": ("subjects", "Of a rate: seen at two times or more"),
    "n_scans": ("scans", ""),
}


def _change_label(finding: Finding) -> str:
    group = finding.data["group"].values[0]
    return f"drawn {brain.VOXEL_CHANGE} per {finding.data.attrs['step']} in {group}"


def _difference_label(finding: Finding) -> str:
    pair = str(finding.settings["contrasts"][0]).replace(":", " less ")
    return f"drawn {brain.VOXEL_CHANGE} per {finding.data.attrs['step']}, {pair}"


MAPS = {"difference": (_difference_label, None), "change": (_change_label, None)}
"""Map of the finding to the label of its colour bar, said by the finding, and its limits (None: from the map)."""


@mpl.rc_context(style.STYLE)
def draw(finding: Finding) -> Figure:
    """Courses of the measures that tell most, with every visit; rates, drawn and measured; forecasts; repeatability.

    Parameters
    ----------
    finding
        Of `longitudinal`.

    Returns
    -------
    Figure
        Panels of what the finding does not hold are left out.
    """
    data, table = finding.data, finding.table
    if table.empty or "curve" not in data:
        return style.message("No change over time was measured.")
    n_shown = data.sizes["shown"]
    below = [
        _rates,
        *([_drawn] if "drawn_rate" in data else []),
        *([_errors] if (table["what"] == ERROR).any() else []),
    ]
    n_rows = -(-n_shown // N_COLUMNS)
    repeated = bool((table["what"] == REPEATABILITY).any())
    heights = [2.5 * n_rows, 3.6, *([1.7] if repeated else [])]
    drawn = style.figure(style.WIDEST_INCHES, sum(heights))
    above, under, *last = drawn.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    grid = above.subplots(n_rows, N_COLUMNS, squeeze=False)
    for number, axes in enumerate(grid.flat):
        if number < n_shown:
            _course(axes, finding, number)
        else:
            axes.set_axis_off()
    grid[0, 0].legend(loc="best", handletextpad=0.4)
    for axes, panel in zip(under.subplots(1, len(below), squeeze=False)[0], below, strict=True):
        panel(axes, finding)
    for figure in last:
        _repeatability(figure.subplots(), finding)
    return drawn


def _looks(finding: Finding) -> dict[str, tuple[str, str]]:
    """Colour and marker of every group."""
    return style.looks([str(group) for group in finding.data["group"].values])


def _course(axes: Axes, finding: Finding, shown: int) -> None:
    data = finding.data
    years, group = data["visit_years"].values, data["visit_group"].values
    subject, value = data["visit_subject"].values, data["visit_value"].values[shown]
    for number, (name, (colour, _)) in enumerate(_looks(finding).items()):
        rows = np.flatnonzero((group == name) & np.isfinite(value))
        # A gap after every subject lifts the pen.
        breaks = np.flatnonzero(np.diff(subject[rows])) + 1
        lines = [np.insert(one[rows], breaks, np.nan) for one in (years, value)]
        axes.plot(*lines, color=colour, lw=0.5, alpha=0.3, marker=".", ms=1.5, mew=0)
        curve = data["curve"].values[shown, number]
        axes.fill_between(data["curve_years"], curve[:, 1], curve[:, 2], color=colour, alpha=0.25, lw=0)
        axes.plot(data["curve_years"], curve[:, 0], color=colour, lw=2, label=style.plain(name, width=20))
    measure, kind = (str(data[name].values[shown]) for name in ("shown_measure", "shown_kind"))
    axes.set_title(style.plain(measure, width=30), fontsize=9)
    axes.set_ylabel(UNITS[kind], fontsize=8)
    axes.set_xlabel(f"{data.attrs['step']}s since the first visit", fontsize=8)


def _rates(axes: Axes, finding: Finding) -> None:
    table = finding.table
    what = DIFFERENCE if (table["what"] == DIFFERENCE).any() else RATE
    rows = table[(table["what"] == what) & (table["kind"] == REGIONS)]
    rows = rows[rows["group"] == rows["group"].iloc[0]].head(N_MEASURES)
    heights = np.arange(len(rows))
    axes.hlines(heights, rows["low"], rows["high"], color=style.BLUE, lw=1.4)
    sure = (rows["p_fwe"] <= finding.settings["alpha"]).to_numpy(dtype=bool)
    for chosen, face in ((sure, style.BLUE), (~sure, "white")):
        axes.scatter(rows["value"][chosen], heights[chosen], s=24, color=face, edgecolor=style.BLUE, lw=1, zorder=3)
    axes.axvline(0, color=style.QUIET, lw=0.8)
    axes.set_yticks(heights, [style.plain(name, width=22) for name in rows["measure"]], fontsize=7.8)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.locator_params(axis="x", nbins=4)
    axes.set_xlabel(f"regional mean per {finding.data.attrs['step']}, 95 % interval")
    pair = str(rows["group"].iloc[0]).replace(":", " less ")
    filled = "\nfilled: family-wise significant" if what == DIFFERENCE else ""
    axes.set_title(f"{'Difference in rate' if what == DIFFERENCE else 'Rate'}: {style.plain(pair, width=24)}{filled}")


def _drawn(axes: Axes, finding: Finding) -> None:
    data = finding.data
    measured = data["rate"].sel(estimate="value").values
    drawn, low, high = (data["drawn_rate"].sel(estimate=end).values for end in ("value", "low", "high"))
    for number, (name, (colour, marker)) in enumerate(_looks(finding).items()):
        axes.vlines(measured[:, number], low[:, number], high[:, number], color=colour, lw=0.5, alpha=0.35)
        label = style.plain(name, width=20)
        axes.scatter(
            measured[:, number], drawn[:, number], s=10, color=colour, marker=marker, alpha=0.7, lw=0, label=label
        )
    ends = [min(np.nanmin(measured), np.nanmin(drawn)), max(np.nanmax(measured), np.nanmax(drawn))]
    axes.plot(ends, ends, color=style.QUIET, lw=0.8)
    axes.locator_params(axis="x", nbins=4)
    axes.set_xlabel(f"measured, per {data.attrs['step']}")
    axes.set_ylabel(f"drawn, per {data.attrs['step']}")
    axes.set_title("Rates of regions:\nimages of the average subject")
    axes.legend(loc="best", handletextpad=0.1)


def _repeatability(axes: Axes, finding: Finding) -> None:
    rows = finding.table[finding.table["what"] == REPEATABILITY]
    kinds = list(rows["kind"].unique())
    for height, kind in enumerate(kinds):
        value = rows.loc[rows["kind"] == kind, "value"]
        axes.plot(value, np.full(len(value), height), "|", color=style.BLUE, ms=9, mew=0.8, alpha=0.6)
        axes.plot(value.median(), height, "o", color=style.ORANGE, ms=5)
    axes.set_yticks(range(len(kinds)), kinds)
    axes.set_ylim(len(kinds) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(min(0.9, np.floor(10 * float(rows["value"].min())) / 10), 1.002)
    axes.set_xlabel("share of variance between subjects")
    axes.set_title("Repeatability of every measure (intraclass correlation by its mixed model); dots: medians")


def _errors(axes: Axes, finding: Finding) -> None:
    table = finding.table
    rows: pd.DataFrame = table[(table["what"] == ERROR) & (table["kind"] == REGIONS)]
    heights = np.arange(len(rows))
    axes.hlines(heights, rows["low"], rows["high"], color=style.INK, lw=1.4)
    latent = rows["measure"].str.contains("latent").to_numpy(dtype=bool)
    axes.scatter(rows["value"], heights, s=26, c=np.where(latent, style.ORANGE, style.QUIET), zorder=3)
    # Names lie above their lines, so that the panel keeps its width.
    for height, name in zip(heights, rows["measure"], strict=True):
        axes.annotate(
            style.plain(name),
            (0, height),
            xycoords=("axes fraction", "data"),
            xytext=(2, 6),
            textcoords="offset points",
            fontsize=7.8,
        )
    axes.set_yticks([])
    axes.locator_params(axis="x", nbins=5)
    axes.set_ylim(len(rows) - 0.4, -0.8)
    axes.set_xlabel("mean error over regions, 95 % interval")
    axes.set_title("Last visit foreseen from the first,\nheld-out subjects")
