"""LRCP: the regions that head the table with both ingredients side by side, and the profile of single latents."""

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nilatent.finding import Finding
from nilatent.plots import style

N_REGIONS = 20
GRADE_COLOURS = {"strong": style.BLUE, "class-mediated": "#E69F00", "target-mediated": "#E69F00", "none": "#b3bac2"}
GRADE_HATCHES = {"strong": "", "class-mediated": "///", "target-mediated": "///", "none": ""}

COLUMN_NAMES = {
    "name": ("region", ""),
    "contrast": ("contrast", "Groups that are compared; the second is the reference"),
    "rank": ("rank", "By the ranking score, which orders the table and decides nothing"),
    "grade": (
        "grade",
        "strong: both tests hold and the association holds within groups; class-mediated: only pooled. For a number: at "
        "equal values of it, and target-mediated",
    ),
    "direction": ("grey matter", "Direction of what the latents carry of the region"),
    "a": (
        "|a|",
        "Association: largest absolute correlation of the region with a latent; with cross-fitted models, correlation of "
        "the region with its readout",
    ),
    "p_a": ("p of a", "Family-wise over regions and contrasts"),
    "bal_acc": ("bal. accuracy", "How well what the latents carry of the region separates the groups; 0.5 is chance"),
    "p_d": ("p of separation", "Family-wise over regions and contrasts"),
    "r_target": ("r with target", "Correlation of what the latents carry of the region with the number, out of fold"),
    "r2_target": ("R² of target", "Share of the number's variance predicted from it, out of fold"),
    "p": ("p", "The larger of the two: both must hold"),
    "q": ("q", "False discovery rate over regions and contrasts, of both tests by region"),
    "p_own": (
        "p of own GM",
        "Grey matter of the region itself, family-wise over the regions found: it has to bear the call out",
    ),
    "a_centred": ("|a| within groups", "Association after group means, or the number, are removed"),
    "p_centred": ("p within groups", "Family-wise over regions and contrasts"),
    "r2_latents": ("R² of all latents", "Cross-validated; does not depend on the basis of the latents"),
    "latent_weighted": (
        "weighted |a|",
        "Mean over latents of |a| times how well the latent by itself separates, out of sample; 0 is nothing",
    ),
    "bal_acc_linked": ("bal. acc., linked", "Classifier on the latents linked to the region"),
    "auc_region": ("AUC of region", "What the region's own grey matter separates, without any model"),
    "r_region": ("r of region", "Correlation of the region's own grey matter with the number, without any model"),
    "p_region": ("p of region", "Family-wise over regions and contrasts: plain regional analysis"),
    "badge": ("bound", "Whether the worst-case error of the region's classifier stays below chance"),
    "label": ("label", "Number in the atlas"),
}
MAPS = {
    "minus_log10_p": ("−log10 p, family-wise (1.3 is p = 0.05)", (0.0, 3.0)),
    "a": ("association |a| (correlation)", None),
}
"""Map of the finding to the label of its colour bar and its limits (None: from zero to the largest)."""


@mpl.rc_context(style.STYLE)
def draw(finding: Finding) -> Figure:
    """Association and discriminability of the twenty regions that rank first.

    Parameters
    ----------
    finding
        Of `lrcp`: table columns `name`, `a`, `bal_acc` (or `r_target` of a number), `grade` and `rank`; with several
        contrasts `contrast`.

    Returns
    -------
    Figure
        One bar per region and ingredient, best on top, coloured by grade; a row of panels per contrast.
    """
    table = finding.table
    if table.empty:
        return style.message("There is no region to show.")
    parts = _parts(table)
    tallest = max(len(part) for _, part in parts)
    drawn = style.figure(7.6, (0.55 + 0.235 * tallest) * len(parts) + 0.35)
    grid = drawn.subplots(len(parts), 2, sharex="col", squeeze=False)
    number = "r_target" in table
    for (contrast, part), (left, right) in zip(parts, grid, strict=True):
        _row(part, left, right, number=number)
        if contrast:
            left.set_title(style.plain(contrast, width=60))
    left, right = grid[-1]
    left.set_xlabel("association |a| (correlation)" if (table["a"] >= 0).all() else "association a (correlation)")
    right.set_xlabel("correlation of the readout with the number" if number else "balanced accuracy (0.5 is chance)")
    if not number:
        right.set_xlim(right=1.0)
    shown = {str(grade) for _, part in parts for grade in part["grade"]}
    present = [grade for grade in GRADE_COLOURS if grade in shown]
    handles = [
        mpl.patches.Patch(facecolor=GRADE_COLOURS[g], hatch=GRADE_HATCHES[g], edgecolor="white") for g in present
    ]
    drawn.legend(handles, [f"grade: {grade}" for grade in present], loc="outside upper left", ncols=4, handlelength=1.2)
    return drawn


def _parts(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Contrast and its best regions, best first."""
    ordered = table.sort_values("rank")
    if "contrast" not in table:
        return [("", ordered.head(N_REGIONS))]
    names = list(dict.fromkeys(table["contrast"].astype(str)))
    share = max(5, N_REGIONS // len(names))
    return [(name, ordered[ordered["contrast"] == name].head(share)) for name in sorted(names)]


def _row(part: pd.DataFrame, left: Axes, right: Axes, *, number: bool) -> None:
    names = [style.plain(name, width=34) for name in part["name"]]
    grades = [str(grade) for grade in part["grade"]]
    _bars(left, list(part["a"]), grades, start=0.0)
    _bars(right, list(part["r_target" if number else "bal_acc"]), grades, start=0.0 if number else 0.5)
    left.set_yticks(range(len(names)), names)
    right.set_yticks([])
    for axes in (left, right):
        axes.set_ylim(len(names) - 0.4, -0.6)


def _bars(axes: Axes, values: list[float], grades: list[str], *, start: float) -> None:
    """Horizontal bars from `start`; a value on the other side grows the other way."""
    for height, (value, grade) in enumerate(zip(values, grades, strict=True)):
        colour, hatch = GRADE_COLOURS.get(grade, style.QUIET), GRADE_HATCHES.get(grade, "")
        axes.barh(height, value - start, left=start, height=0.68, color=colour, hatch=hatch, edgecolor="white", lw=0)
    axes.axvline(start, color=style.INK, lw=0.8)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=style.QUIET, alpha=0.25, lw=0.6)


@mpl.rc_context(style.STYLE)
def draw_profile(finding: Finding) -> Figure:
    """The profile: correlation of every region with every latent.

    Parameters
    ----------
    finding
        Of `lrcp`: data `a` (region, latent) and `q_a`, with several contrasts a dimension `contrast` more; table columns
        `name`, `rank` and `grade`.

    Returns
    -------
    Figure
        Regions in the order of the table from the top, names of called ones in bold; a dot where q is at most 0.05. One panel
        per contrast.
    """
    if finding.table.empty or "a" not in finding.data:
        return style.message("There is no profile to show.")
    regions = list(dict.fromkeys(finding.table.sort_values("rank")["name"].astype(str)))
    called = set(finding.table.loc[finding.table["grade"] != "none", "name"].astype(str))
    data = finding.data[["a", "q_a"]].sel(region=regions)
    panels = data["contrast"].values.tolist() if "contrast" in data.dims else [""]
    n_latent = data.sizes["latent"]
    width = min(style.WIDEST_INCHES, 2.6 + len(panels) * max(1.6, 0.13 * n_latent))
    drawn = style.figure(width, 1.3 + 0.115 * len(regions))
    grid = drawn.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    limit = float(np.nanmax(np.abs(data["a"].values)))
    small = style.SMALLEST_POINTS * max(1.0, width / style.COLUMN_INCHES)
    for axes, contrast in zip(grid, panels, strict=True):
        shown = data.sel(contrast=contrast) if contrast else data
        image = axes.imshow(
            shown["a"].values, cmap=style.SIGNED_MAP, vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest"
        )
        rows, columns = np.nonzero(shown["q_a"].values <= 0.05)
        axes.scatter(columns, rows, s=2.5, color=style.INK, lw=0)
        step = -(-n_latent // 16)
        axes.set_xticks(range(0, n_latent, step), shown["latent"].values[::step].tolist(), rotation=90, fontsize=small)
        axes.set_xlabel("latent")
        if contrast:
            axes.set_title(style.plain(contrast, width=30))
        for spine in axes.spines.values():
            spine.set_visible(False)
    grid[0].set_yticks(range(len(regions)), [style.plain(name, width=34) for name in regions], fontsize=small)
    for name, text in zip(regions, grid[0].get_yticklabels(), strict=True):
        text.set_fontweight("bold" if name in called else "regular")
    bar = drawn.colorbar(image, ax=list(grid), shrink=0.35, aspect=18, anchor=(0.0, 1.0))
    bar.set_label("correlation a")
    bar.outline.set_visible(False)
    return drawn
