"""Counterfactuals: regions that would change most surely, whether unseen scans agree, and one scan now and changed."""

import matplotlib as mpl
import nibabel as nib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from nilatent.finding import Finding
from nilatent.plots import brain, style

N_REGIONS = 12
TOTAL = "total grey matter"
POSITIONS_MM = (-36.0, -24.0, -12.0, 0.0, 12.0, 24.0, 40.0)
LABEL_INCHES = 2.0
DIFFERENCE_MAP = "berlin"
"""Diverging about black, so that no change looks like the empty panel, and sides and positions are read on both."""

COLUMN_NAMES = {
    "change": ("change", ""),
    "region": ("region", ""),
    "percent": ("change (%)", "Expected by the model, of the mean of the scans it is asked of"),
    "percent_low": ("95 % from", "Bootstrap over subjects, the pattern fitted again"),
    "percent_high": ("to", "Bootstrap over subjects, the pattern fitted again"),
    "ml": ("change (ml)", "Of the whole region"),
    "ml_low": ("95 % from (ml)", ""),
    "ml_high": ("to (ml)", ""),
    "regression_percent": ("regional regression (%)", "The slope of the region itself on the same training scans"),
    "regression_low": ("95 % from (regression)", ""),
    "regression_high": ("to (regression)", ""),
    "cross_section_percent": ("cross-section (%)", "Slope among all unseen scans together, times the change"),
    "effect": ("change (unit of the maps)", "Of the total: millilitres"),
    "effect_low": ("95 % from (unit)", ""),
    "effect_high": ("to (unit)", ""),
}


@mpl.rc_context(style.STYLE)
def draw(finding: Finding) -> Figure:
    """Regions that change most surely with their intervals, and effects against the slopes of unseen scans, change by change.

    Parameters
    ----------
    finding
        Of `counterfactual`.

    Returns
    -------
    Figure
        One row per change.
    """
    if finding.table.empty:
        return style.message("Nothing was asked of the scans.")
    asked = list(map(str, finding.data["change"].values))
    drawn = style.figure(style.WIDEST_INCHES, 3.9 * len(asked))
    for row, change in zip(drawn.subplots(len(asked), 2, squeeze=False), asked, strict=True):
        _regions(row[0], finding.table[finding.table["change"] == change], change)
        _agreement(row[1], finding, change)
    return drawn


def _regions(axes: Axes, table: pd.DataFrame, change: str) -> None:
    shown = table.head(N_REGIONS + 1)
    heights = np.arange(len(shown), dtype=float)
    axes.barh(heights, shown["percent"], height=0.62, color=style.BLUE, alpha=0.55, lw=0, label="model")
    axes.hlines(heights, shown["percent_low"], shown["percent_high"], color=style.BLUE, lw=1.4)
    axes.hlines(heights + 0.26, shown["regression_low"], shown["regression_high"], color=style.ORANGE, lw=0.9)
    axes.scatter(
        shown["regression_percent"],
        heights + 0.26,
        s=16,
        color=style.ORANGE,
        marker="s",
        lw=0,
        label="regional regression",
    )
    axes.axvline(0, color=style.INK, lw=0.8)
    axes.set_yticks(heights, [style.plain(name, width=26) for name in shown["region"]])
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("expected change (% of the mean), 95 % interval")
    axes.set_title(style.plain(f"{change[:1].upper()}{change[1:]}: regions that change most surely", width=60))
    axes.legend(loc="upper center", bbox_to_anchor=(0.4, -0.16), ncols=2, handletextpad=0.3)


def _agreement(axes: Axes, finding: Finding, change: str) -> None:
    data = finding.data.sel(change=change)
    slope = data["fold_slope_relative"].values.ravel()
    rows = (
        ("fold_regression_relative", "regional regression", "regression_rho", style.ORANGE, "s"),
        ("fold_effect_relative", "model", "rho", style.BLUE, "o"),
    )
    if not np.isfinite(slope).any():
        axes.set_axis_off()
        axes.text(0, 0.5, "Too few unseen scans to ask whether they agree.")
        return
    axes.axhline(0, color=style.QUIET, lw=0.8)
    axes.axvline(0, color=style.QUIET, lw=0.8)
    for variable, words, name, colour, marker in rows:
        label = f"{words}: rank correlation {float(data[name]):.2f} (p = {float(data[f'{name}_p']):.2g})"
        values = data[variable].values.ravel()
        axes.scatter(values, slope, s=9, color=colour, marker=marker, alpha=0.4, lw=0, label=label)
    axes.set_xlabel("expected change, less the mean region's (%)")
    axes.set_ylabel("change among unseen scans, likewise (%)")
    n_folds = int(np.isfinite(data["fold_slope_relative"].values).any(axis=-1).sum())
    axes.set_title(f"Held-out check: a dot per region{'' if n_folds == 1 else ' and model'}")
    axes.legend(loc="upper center", bbox_to_anchor=(0.45, -0.16), handletextpad=0.1)


@mpl.rc_context(style.STYLE)
def draw_example(finding: Finding, *, number: int = 0) -> Figure:
    """One scan now, changed, and the difference; below, the mean difference of all scans.

    Parameters
    ----------
    finding
        Of `counterfactual`; maps ``now_*``, ``changed_*`` and ``difference_*``.
    number
        Of the change, in the order of the finding.

    Returns
    -------
    Figure
        Axial slices; the two rows of differences have a colour scale each.
    """
    stems = finding.settings.get("stems", [])
    if number >= len(stems) or f"now_{stems[number]}" not in finding.maps:
        return style.message("There is no image of this change.")
    now, changed, mean = (finding.maps[f"{name}_{stems[number]}"] for name in ("now", "changed", "difference"))
    values = [np.asarray(image.dataobj, dtype=np.float32) for image in (now, changed, mean)]
    rows = [values[0], values[1], values[1] - values[0], values[2]]
    change, scan = (str(finding.data[name].values[number]) for name in ("change", "example"))
    n_scans = _count(finding, number)
    labels = [
        f"{style.plain(scan, width=20)}\nas drawn now",
        style.plain(change),
        "difference",
        f"mean difference\n(n = {n_scans})",
    ]
    return _strip(rows, labels, now)


def _count(finding: Finding, number: int) -> int:
    return int(np.isfinite(finding.data["scan_effect_ml"].values[number]).sum())


def _strip(rows: list[np.ndarray], labels: list[str], like: nib.Nifti1Image) -> Figure:
    affine = brain.affine_of(like)
    first = [brain.cut(rows[0], affine, plane="axial", position_mm=place) for place in POSITIONS_MM]
    drawn, panels = brain.mosaic(first, n_rows=len(rows), beside_inches=LABEL_INCHES)
    tissue = Normalize(0.0, float(np.quantile(rows[0][rows[0] > 0], 0.995)) if (rows[0] > 0).any() else 1.0, clip=True)
    for line, values, label, signed in zip(panels, rows, labels, (False, False, True, True), strict=True):
        largest = float(np.quantile(np.abs(values[values != 0]), 0.998)) if (values != 0).any() else 1.0
        norm = Normalize(-largest, largest, clip=True) if signed else tissue
        colours = DIFFERENCE_MAP if signed else "gray"
        for axes, place in zip(line, POSITIONS_MM, strict=True):
            shown = brain.cut(values, affine, plane="axial", position_mm=place)
            brain.show(axes, shown, norm=norm, colour_map=colours)
        line[0].set_ylabel(label, fontsize=7.5)
        brain.colour_bar(
            drawn, list(line), norm, colours, "change of GM fraction" if signed else "GM fraction", wrap=12
        )
    return drawn
