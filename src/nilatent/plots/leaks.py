"""Leak audit: every check and its verdict at a glance."""

import matplotlib as mpl
from matplotlib.figure import Figure

from nilatent.finding import Finding
from nilatent.plots import style

LOOKS = {"found": (style.ORANGE, "X"), "clean": (style.BLUE, "o"), "not checked": (style.QUIET, "_")}
"""Verdict to colour and marker; the marker says what the colour says."""

COLUMN_NAMES = {
    "check": ("check", "What was looked for"),
    "verdict": ("verdict", "found, clean, or not checked"),
    "what": ("what was found", "Or why it was not checked"),
    "n": ("number", "Pairs, subjects, scans or columns, as the sentence says"),
    "examples": ("worst examples", ""),
    "advice": ("what to do", ""),
    "elsewhere": ("refused", "Where the same leak is refused by itself; empty when only the audit sees it"),
}


@mpl.rc_context(style.STYLE)
def draw(finding: Finding) -> Figure:
    """One line per check: its name, its verdict by colour and shape, and what was found.

    Parameters
    ----------
    finding
        Of `leaks`: table columns `check`, `verdict` and `what`.
    """
    table = finding.table
    if table.empty:
        return style.message("There is no leak audit to show.")
    drawn = style.figure(7.6, 0.5 + 0.24 * len(table))
    axes = drawn.add_subplot()
    for height, (verdict, what) in enumerate(zip(table["verdict"], table["what"], strict=True)):
        colour, marker = LOOKS[verdict]
        axes.plot(0.0, height, marker=marker, color=colour, ms=7, ls="none")
        axes.text(0.03, height, style.plain(what, width=104), va="center", fontsize=7.5)
    axes.set_yticks(range(len(table)), [style.plain(name, width=40) for name in table["check"]])
    axes.set_ylim(len(table) - 0.4, -0.6)
    axes.set_xlim(-0.02, 1.0)
    axes.set_xticks([])
    axes.tick_params(axis="y", length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    present = [name for name in LOOKS if name in set(table["verdict"])]
    handles = [mpl.lines.Line2D([], [], color=LOOKS[n][0], marker=LOOKS[n][1], ls="none", ms=7) for n in present]
    drawn.legend(handles, present, loc="outside upper left", ncols=3)
    return drawn
