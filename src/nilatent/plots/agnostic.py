"""Agnostic validation: each rule's held-out error, how bad it can be at most, and what guessing gives."""

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nilatent.finding import Finding
from nilatent.plots import style

N_REGIONS = 20
OWN_FEATURES = "own grey matter"
COLUMN_NAMES = {
    "test": ("test", "CUBV: classifier; SAR: regression; SAM: one region"),
    "target": ("question", "Contrast of two groups, or the column that is predicted"),
    "features": ("from", "What the rule is fitted on"),
    "name": ("region", "Of SAM"),
    "error": ("error", "Held out: balanced error, or for SAR the loss in SD of the target"),
    "bound": ("at most", "Worst case: error plus delta, with probability 1 − eta"),
    "threshold": ("guessing", "0.5, or the loss of the training mean"),
    "p": ("p", "By permutation; of regions family-wise"),
    "badge": (
        "badge",
        "bound-validated: worst case better than guessing and p small; else inconclusive, which is no absence",
    ),
    "limit": ("exact limit", "Exact binomial limit of the held-out balanced error"),
    "delta": ("delta", "Margin for all that a rule of this kind could have fitted"),
    "d": ("weights", "Fitted weights, the threshold counted as one"),
    "method": ("bound", "Chosen by the number of weights, before the data"),
    "n_eff": ("n", "Scans of the training part; with groups, twice the smaller one"),
    "sam_z": ("z among regions", "Which region stands out from the others; no test against chance"),
    "label": ("label", "Number in the atlas"),
}
MAPS = {"worst_case_accuracy": ("balanced accuracy in the worst case (above 0.5 is validated)", (0.0, 1.0))}
"""Map of the finding to the label of its colour bar and its limits."""


@mpl.rc_context(style.STYLE)
def draw(finding: Finding) -> Figure:
    """Held-out error, worst case and guessing, for every rule and for the twenty regions with the lowest worst case.

    Parameters
    ----------
    finding
        Of `agnostic`: table columns `test`, `target`, `features`, `name`, `error`, `bound`, `threshold` and `badge`.

    Returns
    -------
    Figure
        A dot for the error, a line to the worst case, a dashed mark for guessing; blue where the badge is given. A line that
        leaves the panel ends above an error of 1, where a bound says nothing.
    """
    table = finding.table
    if table.empty:
        return style.message("There is no certificate to show.")
    parts = [
        (table[table["test"] == "CUBV"], "balanced error"),
        (table[table["test"] == "SAR"], "loss (SD of the target)"),
        (_regions(table), "balanced error, region by region (own grey matter)"),
    ]
    shown = [(rows, words) for rows, words in parts if len(rows)]
    drawn = style.figure(7.6, 0.6 + sum(0.62 + 0.235 * len(rows) for rows, _ in shown))
    panels = drawn.subplots(len(shown), 1, squeeze=False, height_ratios=[2 + len(rows) for rows, _ in shown])[:, 0]
    for axes, (rows, words) in zip(panels, shown, strict=True):
        _panel(axes, rows, words)
    drawn.legend(handles=_key(), loc="outside upper left", ncols=4, handlelength=1.4)
    return drawn


def _regions(table: pd.DataFrame) -> pd.DataFrame:
    own = table[(table["test"] == "SAM") & (table["features"] == OWN_FEATURES)]
    return own.sort_values(["bound", "label"]).head(N_REGIONS)


def _panel(axes: Axes, rows: pd.DataFrame, words: str) -> None:
    several = rows["target"].nunique() > 1 or rows["name"].eq("").all()
    labels = []
    for height, (_, row) in enumerate(rows.iterrows()):
        validated = row["badge"] == "bound-validated"
        colour = style.BLUE if validated else style.QUIET
        axes.plot([row["error"], row["bound"]], [height, height], color=colour, lw=1.6, solid_capstyle="butt")
        axes.plot(row["error"], height, "o", color=colour, ms=5)
        axes.plot(row["bound"], height, "|", color=colour, ms=9, mew=1.6)
        axes.plot([row["threshold"]] * 2, [height - 0.45, height + 0.45], color=style.ORANGE, lw=1.2, ls=(0, (2, 1)))
        what = row["name"] or row["features"]
        labels.append(style.plain(f"{row['target']}, {what}" if several else what, width=40))
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.set_xlim(0, 1 if (rows["test"] != "SAR").all() else None)
    axes.set_xlabel(words)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=style.QUIET, alpha=0.25, lw=0.6)


def _key() -> list[mpl.lines.Line2D]:
    line = mpl.lines.Line2D
    return [
        line([], [], color=style.QUIET, marker="o", ms=5, lw=1.6, label="held-out error to worst case"),
        line([], [], color=style.ORANGE, lw=1.2, ls=(0, (2, 1)), label="guessing"),
        line([], [], color=style.BLUE, marker="o", ms=5, lw=1.6, label="bound-validated"),
    ]
