"""LRCP: the regions that head the table, with both ingredients side by side."""

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nilatent.finding import Finding
from nilatent.plots import style

N_REGIONS = 20
GRADE_COLOURS = {"strong": style.BLUE, "class-mediated": "#E69F00", "none": "#b3bac2"}
GRADE_HATCHES = {"strong": "", "class-mediated": "///", "none": ""}

COLUMN_NAMES = {
    "name": ("region", ""),
    "rank": ("rank", "By the ranking score, which orders the table and decides nothing"),
    "grade": ("grade", "strong: both tests hold and the association holds within groups; class-mediated: only pooled"),
    "direction": ("grey matter", "Direction of what the latents carry of the region"),
    "a": ("|a|", "Association: largest absolute correlation of the region with a latent"),
    "p_a": ("p of a", "Family-wise over regions and latents"),
    "bal_acc": ("bal. accuracy", "How well what the latents carry of the region separates the groups; 0.5 is chance"),
    "p_d": ("p of bal. acc.", "Family-wise over regions"),
    "p": ("p", "The larger of the two: both must hold"),
    "a_centred": ("|a| within groups", "Association after group means are removed"),
    "p_centred": ("p within groups", "Family-wise over regions and latents"),
    "r2_latents": ("R² of all latents", "Cross-validated; does not depend on the basis of the latents"),
    "bal_acc_linked": ("bal. acc., linked", "Classifier on the latents linked to the region"),
    "auc_region": ("AUC of region", "What the region's own grey matter separates, without any model"),
    "p_region": ("p of region", "Family-wise over regions: plain regional analysis"),
    "badge": ("bound", "Agnostic validation"),
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
        Of `lrcp`: table columns `name`, `a`, `bal_acc`, `grade` and `rank`.

    Returns
    -------
    Figure
        One bar per region and ingredient, best on top, coloured by grade.
    """
    table = finding.table
    if table.empty:
        return style.message("There is no region to show.")
    top = table.sort_values("rank").head(N_REGIONS)
    names = [style.plain(name, width=34) for name in top["name"]]
    grades = [str(grade) for grade in top["grade"]]
    drawn = style.figure(7.6, 0.9 + 0.235 * len(top))
    left, right = drawn.subplots(1, 2, sharey=True)
    _bars(left, list(top["a"]), grades, start=0.0)
    _bars(right, list(top["bal_acc"]), grades, start=0.5)
    left.set_yticks(range(len(names)), names)
    left.set_ylim(len(names) - 0.4, -0.6)
    left.set_xlabel("association |a| (correlation)" if (top["a"] >= 0).all() else "association a (correlation)")
    right.set_xlabel("balanced accuracy (0.5 is chance)")
    right.set_xlim(right=1.0)
    present = [grade for grade in GRADE_COLOURS if grade in grades]
    handles = [
        mpl.patches.Patch(facecolor=GRADE_COLOURS[g], hatch=GRADE_HATCHES[g], edgecolor="white") for g in present
    ]
    drawn.legend(handles, [f"grade: {grade}" for grade in present], loc="outside upper left", ncols=3, handlelength=1.2)
    return drawn


def _bars(axes: Axes, values: list[float], grades: list[str], *, start: float) -> None:
    """Horizontal bars from `start`; a value on the other side grows the other way."""
    for height, (value, grade) in enumerate(zip(values, grades, strict=True)):
        colour, hatch = GRADE_COLOURS.get(grade, style.QUIET), GRADE_HATCHES.get(grade, "")
        axes.barh(height, value - start, left=start, height=0.68, color=colour, hatch=hatch, edgecolor="white", lw=0)
    axes.axvline(start, color=style.INK, lw=0.8)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=style.QUIET, alpha=0.25, lw=0.6)
