"""Quality of the prepared scans: one strip per measure, with the scans that stand out."""

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nilatent.plots import style

COLUMN_NAMES = {
    "scan_id": ("scan", ""),
    "dataset": ("data set", ""),
    "flags": ("stands out in", "Measures far from the rest of the cohort, by median absolute deviation"),
}
"""Column of `quality.tsv` to its name on the page, its explanation, and so its axis."""

MAX_STRIPS = 9
STRIPS_PER_ROW = 3


@mpl.rc_context(style.STYLE)
def draw(quality: pd.DataFrame) -> Figure:
    """Every scan on every measure.

    Parameters
    ----------
    quality : (scan, column) DataFrame
        `prepared/quality.tsv`: `scan_id`, numeric measures and, where given, `flags` (text, empty when none).

    Returns
    -------
    Figure
        One strip per measure; flagged scans are orange squares, the worst of them named.
    """
    numeric = [name for name in quality.select_dtypes("number") if quality[name].notna().any()]
    shown = [name for name in numeric if quality[name].nunique() > 1][:MAX_STRIPS]
    if not shown:
        return style.message("No quality measure varies between the scans.")
    flags = quality["flags"].fillna("").astype(str) if "flags" in quality else pd.Series("", quality.index)
    n_rows = -(-len(shown) // STRIPS_PER_ROW)
    drawn = style.figure(8.4, 0.25 + 0.95 * n_rows)
    grid = drawn.subplots(n_rows, STRIPS_PER_ROW, squeeze=False).ravel()
    for axes, name in zip(grid, shown, strict=False):
        _strip(axes, quality[name], flags.str.contains(str(name), regex=False), COLUMN_NAMES.get(str(name), (name,))[0])
    for axes in grid[len(shown) :]:
        axes.set_axis_off()
    return drawn


def _strip(axes: Axes, values: pd.Series, flagged: pd.Series, label: str) -> None:
    heights = pd.Series(style.spread(len(values)), values.index)
    for chosen, colour, marker, size in ((~flagged, "#0072B2", "o", 12), (flagged, "#D55E00", "s", 20)):
        axes.scatter(values[chosen], heights[chosen], s=size, c=colour, marker=marker, alpha=0.75, lw=0)
    axes.set_ylim(-0.9, 0.9)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.locator_params(axis="x", nbins=5)
    axes.set_xlabel(style.plain(label, width=40))
