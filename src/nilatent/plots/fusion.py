"""Fusion: how well each kind of measurement does alone and together, and what each of them carries."""

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nilatent.finding import Finding
from nilatent.plots import style

MEASURE_LABELS = {
    "balanced_accuracy": "balanced accuracy",
    "kendall_tau": "Kendall's tau between true and called level",
    "r2": "R² against the training mean",
}
SINGLE, INSIDE = "single", "best single, chosen inside"
OF_WHAT_IS_THERE = ("late fusion of what is there", "best single of what is there")
LOOKS = {"alone": (style.BLUE, "o"), "best alone, chosen inside": (style.INK, "D"), "together": (style.ORANGE, "s")}
MOST_PANELS = 12

COLUMN_NAMES = {
    "target": ("target", "What is predicted"),
    "kind": ("kind", "binary, multi-class, ordinal or continuous"),
    "way": ("way", "One kind of measurement alone, or how several are used together"),
    "features": ("from", "The measurements that take part; of the best single one, in how many folds each was chosen"),
    "n_scans": ("scans", "Those that have every kind of measurement, or, at the end, at least one"),
    "n_subjects": ("subjects", ""),
    "main": ("measure", "The measure that is compared"),
    "value": ("value", "Of that measure, on held-out scans"),
    "low": ("from value", "Lower end of the bootstrap interval over subjects"),
    "high": ("to value", "Upper end of the bootstrap interval over subjects"),
    "chance": ("chance", "What the measure is without any information"),
    "against": ("against", "What fusion has to beat, on the same scans"),
    "difference": ("difference", "To it; above 0 fusion is better"),
    "difference_low": ("difference from", "Bootstrap interval over subjects"),
    "difference_high": ("difference to", "Bootstrap interval over subjects"),
    "p_difference": (
        "p of difference",
        "Two-sided, by swapping the predictions of the two within subjects, widened for folds that share training scans",
    ),
    "q_difference": ("q of difference", "False discovery rate over all differences of this table"),
    "conditional": (
        "carries alone",
        "Share of the variance (numbers) or of the log loss (classes) that early fusion loses when only that is known of it "
        "which the others say of it",
    ),
    "conditional_low": ("carries from", "Interval over held-out subjects"),
    "conditional_high": ("carries to", "Interval over held-out subjects"),
    "p_conditional": ("p of carrying", "That draws from what the others say do as well; one-sided"),
    "q_conditional": ("q of carrying", "False discovery rate over all modalities and targets of this table"),
    "marginal": (
        "with what it shares",
        "The same when nothing is known of it, also not what it shares with the others",
    ),
    "marginal_low": ("shared from", "Interval over held-out subjects"),
    "marginal_high": ("shared to", "Interval over held-out subjects"),
    "p_marginal": ("p of shared", "That it does as well when it is permuted; one-sided"),
    "weight": ("weight", "In weighted late fusion, mean over folds; at least 0"),
    "folds_chosen": ("folds chosen", "In how many outer folds it was the best single one on inner folds"),
    "balanced_accuracy": ("balanced accuracy", "Mean share of each class that is called as such"),
    "auc": ("AUC", "Area under the ROC curve within folds; of several classes the mean of each against the others"),
    "sensitivity": ("sensitivity", "Share of the second level (the case) that is found"),
    "specificity": ("specificity", "Share of the first level that is left alone"),
    "f1": ("F1", "Of the case; of several classes their mean"),
    "mcc": ("MCC", "Matthews correlation of truth and call"),
    "brier": ("Brier", "Mean squared error of the probabilities; smaller is better"),
    "kendall_tau": ("Kendall's tau", "Tau-b of true and called level"),
    "level_error": ("level error", "Mean number of levels by which the call is off"),
    "level_error_constant": ("level error of the median", "The same when the training median is always called"),
    "mae": ("MAE", "Mean absolute error, in the unit of the target"),
    "mae_constant": ("MAE of the mean", "The same when the training mean is always said"),
    "r2": ("R²", "Share of the squared error of the training mean that is saved; below 0 is worse than it"),
    "r": ("r", "Correlation of truth and prediction, held out"),
    "note": ("note", "Why a way was not run, or what it rests on"),
}


@mpl.rc_context(style.STYLE)
def draw(finding: Finding) -> Figure:
    """Every way of telling a target with its interval, and beside it what each kind of measurement carries.

    Parameters
    ----------
    finding
        Of `fusion`: table columns `target`, `way`, `features`, `main`, `value`, `low`, `high`, `chance`, `kind`, and of
        single ways `conditional`, `marginal` and their intervals.

    Returns
    -------
    Figure
        A line of two panels per target. Left, a dashed line is chance, and open marks rest on more scans, of which some lack
        a kind of measurement. Right, filled bars are what it carries beyond the others, open bars include what it shares.
    """
    table = finding.table
    if table.empty:
        return style.message("There is no fusion to show.")
    targets = list(dict.fromkeys(table["target"]))[:MOST_PANELS]
    shown = {target: table[(table["target"] == target) & table["value"].notna()] for target in targets}
    heights = [0.26 * len(part) + 0.75 for part in shown.values()]
    drawn = style.figure(8.6, sum(heights) + 0.4)
    grid = drawn.subplots(len(targets), 2, squeeze=False, height_ratios=heights, width_ratios=(1.25, 1.0))
    for (left, right), (target, part) in zip(grid, shown.items(), strict=True):
        _forest(left, part)
        left.set_title(style.plain(target, width=60))
        _bars(right, part[part["way"] == SINGLE])
    marks: list[mpl.artist.Artist] = [_mark(*look, name) for name, look in LOOKS.items()]
    if table["way"].isin(OF_WHAT_IS_THERE).any():
        marks.append(_mark(style.INK, "o", "also scans that lack something", filled=False))
    marks += [_patch(filled=True, name="beyond the others"), _patch(filled=False, name="with what it shares")]
    drawn.legend(handles=marks, loc="outside upper left", ncols=3, handletextpad=0.4)
    return drawn


def _look(way: str) -> tuple[str, str]:
    names = {SINGLE: "alone", INSIDE: "best alone, chosen inside", OF_WHAT_IS_THERE[1]: "best alone, chosen inside"}
    return LOOKS[names.get(way, "together")]


def _mark(colour: str, marker: str, name: str, *, filled: bool = True) -> mpl.lines.Line2D:
    inside = colour if filled else "white"
    return mpl.lines.Line2D([], [], color=colour, marker=marker, ls="", ms=5, label=name, markerfacecolor=inside)


def _patch(*, filled: bool, name: str) -> mpl.patches.Patch:
    return mpl.patches.Patch(facecolor=style.BLUE if filled else "none", edgecolor=style.BLUE, label=name)


def _forest(axes: Axes, part: pd.DataFrame) -> None:
    labels = []
    for height, (_, row) in enumerate(part.iterrows()):
        colour, marker = _look(row["way"])
        filled = row["way"] not in OF_WHAT_IS_THERE
        axes.plot([row["low"], row["high"]], [height, height], color=colour, lw=1.4, alpha=0.9 if filled else 0.55)
        axes.plot(row["value"], height, marker, color=colour, ms=5, markerfacecolor=colour if filled else "white")
        labels.append(row["features"] if row["way"] == SINGLE else row["way"])
    axes.axvline(float(part["chance"].iloc[0]), color=style.QUIET, lw=0.9, ls="--")
    axes.set_yticks(range(len(part)), [style.plain(name, width=36) for name in labels])
    for text, way in zip(axes.get_yticklabels(), part["way"], strict=True):
        text.set_fontweight("regular" if _look(way) == LOOKS["alone"] else "bold")
    axes.set_ylim(len(part) - 0.5, -0.5)
    axes.set_xlabel(MEASURE_LABELS.get(str(part["main"].iloc[0]), str(part["main"].iloc[0])))
    _quiet(axes)


def _bars(axes: Axes, part: pd.DataFrame) -> None:
    for name, offset, filled in (("conditional", -0.2, True), ("marginal", 0.2, False)):
        for number, (_, row) in enumerate(part.iterrows()):
            height = number + offset
            inside = style.BLUE if filled else "none"
            axes.barh(height, row[name], height=0.34, facecolor=inside, edgecolor=style.BLUE, lw=1.0)
            axes.plot([row[f"{name}_low"], row[f"{name}_high"]], [height, height], color=style.INK, lw=1.0)
    axes.axvline(0.0, color=style.QUIET, lw=0.9)
    axes.set_yticks(range(len(part)), [style.plain(name, width=30) for name in part["features"]])
    axes.set_ylim(len(part) - 0.5, -0.5)
    of_number = part["kind"].iloc[0] == "continuous"
    axes.set_xlabel(f"share of the {'variance' if of_number else 'log loss'} lost without it")
    _quiet(axes)


def _quiet(axes: Axes) -> None:
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color=style.QUIET, alpha=0.25, lw=0.6)
