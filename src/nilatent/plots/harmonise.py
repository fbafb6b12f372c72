"""Harmonisation: the features that sites shift most, before and after, and how well the site is told of held-out scans."""

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from nilatent.finding import Finding
from nilatent.plots import style

N_SITES = 30
STATE_COLOURS = {"before": style.ORANGE, "after": style.BLUE}

COLUMN_NAMES = {
    "measures": ("measures", "What was harmonised"),
    "what": ("what", "Column that is told from the measures: the site, or a covariate that was kept"),
    "measure": (
        "measure",
        "Balanced accuracy, fresh scans: the classifier learnt from harmonised scans that ComBat was not fitted on, which are "
        "fewer. Share of variance: what lies between sites once kept covariates are removed, median over features; 0 is none. "
        "Spread of SDs: how far sites' SDs lie apart, in doublings. Pattern and size of slopes: effect of the covariate on the "
        "features after harmonisation, against its effect within sites before",
    ),
    "model": ("classifier", "Linear sees means; non-linear sees spread and what features do together too"),
    "before": ("before", "On held-out scans"),
    "after": ("after", "On held-out scans, harmonised by what training scans say"),
    "chance": ("chance", "What shuffled labels give on average"),
    "limit": ("95 % of chance", "What shuffled labels exceed in one of twenty draws"),
    "p_before": ("p before", "One-sided, by permutation within folds"),
    "p_after": ("p after", "One-sided, by permutation within folds"),
    "from_kept": ("kept alone", "Balanced accuracy of the site from the kept covariates alone: so much may stay"),
    "n_scans": ("scans", "Judged: one per subject"),
}


@mpl.rc_context(style.STYLE)
def draw(finding: Finding) -> Figure:
    """Values by site of the features with most site in them, and balanced accuracy of the site before and after.

    Parameters
    ----------
    finding
        Of `harmonise`: data `site`, `shown_before` and `shown_after` (shown, scan); rows of the table with the balanced
        accuracy of the site.

    Returns
    -------
    Figure
        One row per feature shown, before on the left, and bars below.
    """
    if finding.table.empty or "shown" not in finding.data.dims:
        return style.message("There is no harmonisation to show.")
    of_site = finding.table["what"].eq(finding.settings["site"]) & finding.table["measure"].str.startswith(
        "balanced accuracy"
    )
    bars = finding.table[of_site]
    names = [str(name) for name in finding.data["shown"].values]
    heights = [0.35 + 1.25 * len(names), 0.75 + 0.36 * len(bars)]
    drawn = style.figure(7.6, sum(heights) + 0.3)
    upper, lower = drawn.subfigures(2, 1, height_ratios=heights, squeeze=False)[:, 0]
    grid = upper.subplots(len(names), 2, squeeze=False, sharex=True, sharey="row")
    sites = finding.data["site"].values.astype(str)
    for number, (name, row) in enumerate(zip(names, grid, strict=True)):
        for axes, state in zip(row, STATE_COLOURS, strict=True):
            _boxes(axes, finding.data[f"shown_{state}"].values[number], sites, colour=STATE_COLOURS[state])
            axes.set_title(f"{style.plain(name, width=44)}, {state}")
        row[0].set_ylabel("SD before")
    n_sites = len(set(sites))
    said = "site (held-out scans)" if n_sites <= N_SITES else f"first {N_SITES} of {n_sites} sites (held-out scans)"
    for axes in grid[-1]:
        axes.set_xlabel(said)
    _bars(lower.subplots(), bars)
    return drawn


def _boxes(axes: Axes, values: np.ndarray, sites: np.ndarray, *, colour: str) -> None:
    """Median, quarters and range of each site."""
    names = sorted(set(sites))[:N_SITES]
    known = np.isfinite(values)
    axes.axhline(0.0, color=style.QUIET, lw=0.8)
    axes.boxplot(
        [values[known & (sites == name)] for name in names],
        widths=0.6,
        whis=(5, 95),
        patch_artist=True,
        showfliers=False,
        boxprops={"facecolor": colour, "edgecolor": "none"},
        medianprops={"color": style.INK, "lw": 1.0},
        whiskerprops={"color": style.QUIET, "lw": 0.8},
        capprops={"visible": False},
    )
    axes.set_xticks(range(1, len(names) + 1), [style.plain(name, width=9) for name in names], rotation=90, fontsize=6.5)
    axes.tick_params(axis="x", length=0)


def _bars(axes: Axes, rows: pd.DataFrame) -> None:
    """Two bars per classifier, with chance and what kept covariates alone give."""
    fresh = rows["measure"].str.contains("fresh")
    labels = [
        f"{row['measures']}, {row['model']}{', fresh' if new else ''}"
        for (_, row), new in zip(rows.iterrows(), fresh, strict=True)
    ]
    for height, (_, row) in enumerate(rows.iterrows()):
        for offset, (state, colour) in zip((-0.19, 0.19), STATE_COLOURS.items(), strict=True):
            axes.barh(height + offset, row[state], height=0.34, color=colour, lw=0)
        axes.plot([row["limit"]] * 2, [height - 0.42, height + 0.42], color=style.INK, lw=1.2, ls=":")
        axes.plot([row["chance"]] * 2, [height - 0.42, height + 0.42], color=style.INK, lw=1.2)
        if np.isfinite(row["from_kept"]):
            axes.plot(row["from_kept"], height, marker="D", ms=5, color=style.INK, mfc="white", ls="none")
    axes.set_yticks(range(len(labels)), [style.plain(label, width=34) for label in labels])
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.set_xlim(0.0, 1.0)
    axes.set_xlabel("balanced accuracy of the site, held-out scans")
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=style.QUIET, alpha=0.25, lw=0.6)
    handles: list[Artist] = [Patch(color=colour) for colour in STATE_COLOURS.values()]
    handles += [
        Line2D([], [], color=style.INK, lw=1.2),
        Line2D([], [], color=style.INK, lw=1.2, ls=":"),
        Line2D([], [], color=style.INK, marker="D", ms=5, mfc="white", ls="none"),
    ]
    names = [*STATE_COLOURS, "chance", "95 % of chance", "kept covariates alone"]
    axes.figure.legend(handles, names, loc="outside upper left", ncols=5, handlelength=1.2, columnspacing=1.2)
