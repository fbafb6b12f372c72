"""Prediction: how well each feature set does, ROC and calibration curves, and who is called what."""

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nilatent.finding import Finding
from nilatent.plots import style

SITE = "what the features know of the site"
MEASURE_LABELS = {
    "balanced_accuracy": "balanced accuracy",
    "kendall_tau": "Kendall's tau between true and called level",
    "r2": "R² against the training mean",
}
HEAD_LABELS = {"linear": "linear", "svm": "SVM", "trees": "trees", "network": "network"}
MOST_PANELS = 12

COLUMN_NAMES = {
    "target": ("target", "What is predicted"),
    "kind": ("kind", "binary, multi-class, ordinal or continuous"),
    "question": ("question", "The prediction itself, or what the features know of the site"),
    "features": ("features", "From what it is predicted"),
    "baseline": ("baseline", "Whether the features are ones that the others have to beat"),
    "head_size": ("head size", "Features as they are, or without head size and total grey matter"),
    "head": ("head", "linear (L2 logistic, ridge), svm, trees or network"),
    "n_scans": ("scans", ""),
    "n_subjects": ("subjects", ""),
    "main": ("measure", "The measure that is tested and compared"),
    "value": ("value", "Of that measure, on held-out scans"),
    "low": ("from", "Lower end of the bootstrap interval over subjects"),
    "high": ("to", "Upper end of the bootstrap interval over subjects"),
    "chance": ("chance", "What the measure is without any information"),
    "p": ("p", "Against shuffled labels, with the whole nested procedure repeated"),
    "n_permutations": ("shuffles", "Fewer than asked where the answer was clear earlier"),
    "badge": ("bound", "Whether the worst-case error stays below guessing"),
    "against": ("against", "The baseline that does best on the same target"),
    "difference": ("difference", "To that baseline; above 0 is better"),
    "difference_low": ("difference from", "Bootstrap interval over subjects"),
    "difference_high": ("difference to", "Bootstrap interval over subjects"),
    "p_difference": ("p of difference", "Two-sided, by swapping the predictions of the two within subjects"),
    "balanced_accuracy": ("balanced accuracy", "Mean share of each class that is called as such"),
    "auc": ("AUC", "Area under the ROC curve; of several classes the mean of each against the others"),
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
    "c_index": ("C", "Harrell's: share of comparable pairs in which the earlier event had the higher risk"),
    "calibration_error": ("calibration error", "Mean distance of probability and share of cases, over bins"),
    "calibration_intercept": ("calibration intercept", "0 is perfect"),
    "calibration_slope": ("calibration slope", "1 is perfect; below 1 the probabilities are too extreme"),
    "by_class": ("share found of each class", "With bootstrap intervals, and how many scans there are"),
}


@mpl.rc_context(style.STYLE)
def draw(finding: Finding) -> Figure:
    """The main measure of every feature set with its interval, target by target.

    Parameters
    ----------
    finding
        Of `prediction`: table columns `target`, `question`, `features`, `baseline`, `head_size`, `head`, `main`, `value`,
        `low`, `high` and `chance`.

    Returns
    -------
    Figure
        One panel per target, the site last; a dashed line is chance, open marks are without head size.
    """
    table = finding.table
    if table.empty:
        return style.message("There is no prediction to show.")
    names = list(dict.fromkeys(zip(table["target"], table["question"], strict=True)))[:MOST_PANELS]
    heads = list(dict.fromkeys(table["head"]))
    sets = list(dict.fromkeys(table["features"]))
    looks = style.looks(heads)
    height = 0.42 + 0.16 * max(len(heads) - 1, 0)
    drawn = style.figure(7.6, (0.75 + height * len(sets)) * len(names) + 0.35)
    panels = drawn.subplots(len(names), 1, squeeze=False)[:, 0]
    for axes, (target, question) in zip(panels, names, strict=True):
        part = table[(table["target"] == target) & (table["question"] == question)]
        _forest(axes, part, sets, looks)
        asked = f"{target}: {SITE}" if question == SITE else str(target)
        axes.set_title(style.plain(asked, width=80))
    lines = [_mark(looks[head], HEAD_LABELS.get(head, head)) for head in heads] if len(heads) > 1 else []
    lines += [_mark((style.INK, "o"), "as it is")]
    if (table["head_size"] != "as it is").any():
        lines += [_mark((style.INK, "o"), "without head size", filled=False)]
    drawn.legend(handles=lines, loc="outside upper right", ncols=len(lines), handletextpad=0.3)
    return drawn


def _mark(look: tuple[str, str], name: str, *, filled: bool = True) -> mpl.lines.Line2D:
    colour, marker = look
    return mpl.lines.Line2D(
        [], [], color=colour, marker=marker, ls="", ms=5, label=name, markerfacecolor=colour if filled else "white"
    )


def _forest(axes: Axes, part: pd.DataFrame, sets: list[str], looks: dict[str, tuple[str, str]]) -> None:
    heads = [head for head in looks if head in set(part["head"])]
    present = [name for name in sets if name in set(part["features"])]
    ways = list(dict.fromkeys(part["head_size"]))
    n_marks = len(heads) * len(ways)
    offsets = np.linspace(-1, 1, n_marks) * min(0.28, 0.12 * (n_marks - 1)) if n_marks > 1 else np.zeros(1)
    for _, row in part.iterrows():
        number = heads.index(row["head"]) * len(ways) + ways.index(row["head_size"])
        height = present.index(row["features"]) + offsets[number]
        colour, marker = looks[row["head"]]
        filled = row["head_size"] == "as it is"
        axes.plot([row["low"], row["high"]], [height, height], color=colour, lw=1.4, alpha=0.9 if filled else 0.55)
        axes.plot(row["value"], height, marker, color=colour, ms=5, markerfacecolor=colour if filled else "white")
    axes.axvline(float(part["chance"].iloc[0]), color=style.QUIET, lw=0.9, ls="--")
    axes.set_yticks(range(len(present)), [style.plain(name, width=36) for name in present])
    of_baseline = part.groupby("features")["baseline"].first()
    for name, text in zip(present, axes.get_yticklabels(), strict=True):
        text.set_fontweight("regular" if of_baseline[name] else "bold")
    axes.set_ylim(len(present) - 0.5, -0.5)
    axes.set_xlabel(MEASURE_LABELS.get(str(part["main"].iloc[0]), str(part["main"].iloc[0])))
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color=style.QUIET, alpha=0.25, lw=0.6)


def _shown(table: pd.DataFrame, kinds: tuple[str, ...]) -> pd.DataFrame:
    """Rows of the predictions themselves, as they are, by the first head."""
    head = table["head"].iloc[0] if len(table) else ""
    of_prediction = (table["question"] != SITE) & (table["head_size"] == "as it is") & (table["head"] == head)
    return table[of_prediction & table["kind"].isin(kinds)]


@mpl.rc_context(style.STYLE)
def draw_curves(finding: Finding) -> Figure:
    """ROC and calibration curves of the two-class targets.

    Parameters
    ----------
    finding
        Of `prediction`: data `found`, `found_low`, `found_high` (row, false_alarms), `bin_predicted`, `bin_observed` and
        `bin_count` (row, bin).

    Returns
    -------
    Figure
        A line of two panels per target: ROC of each set, with the bootstrap band of those that are no baselines; and share
        of cases against probability, the size of a mark growing with the scans in its bin.
    """
    part = _shown(finding.table, ("binary",)) if len(finding.table) else finding.table
    if part.empty:
        return style.message("No target has two classes, so there are no curves to show.")
    targets = list(dict.fromkeys(part["target"]))[:MOST_PANELS]
    looks = style.looks(list(dict.fromkeys(part["features"])))
    drawn = style.figure(7.6, 3.5 * len(targets) + 0.45)
    grid = drawn.subplots(len(targets), 2, squeeze=False)
    for (left, right), target in zip(grid, targets, strict=True):
        numbers = part.index[part["target"] == target].tolist()
        for number in numbers:
            look, band = looks[part.loc[number, "features"]], not part.loc[number, "baseline"]
            _curves(left, right, finding, number, look, band=band)
        case = str(finding.data["level_name"].values[numbers[0], 1])
        left.set_title(style.plain(target, width=40))
        left.set_xlabel("share of false alarms")
        left.set_ylabel(style.plain(f"share of {case} found", width=40))
        right.set_xlabel(style.plain(f"predicted probability of {case}", width=46))
        right.set_ylabel(style.plain(f"observed share of {case}", width=46))
        for axes in (left, right):
            axes.plot([0, 1], [0, 1], color=style.QUIET, lw=0.9, ls="--", zorder=0)
            axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    handles = [
        mpl.lines.Line2D([], [], color=colour, marker=marker, ms=4, label=style.plain(name, width=36))
        for name, (colour, marker) in looks.items()
    ]
    drawn.legend(handles=handles, loc="outside upper left", ncols=min(len(handles), 3))
    return drawn


def _curves(left: Axes, right: Axes, finding: Finding, number: int, look: tuple[str, str], *, band: bool) -> None:
    data = finding.data.isel(row=number)
    colour, marker = look
    alarms = data["false_alarms"].values
    left.plot(alarms, data["found"].values, color=colour, lw=1.8 if band else 1.0, alpha=1.0 if band else 0.8)
    if band:
        left.fill_between(alarms, data["found_low"].values, data["found_high"].values, color=colour, alpha=0.18, lw=0)
    filled = data["bin_count"].values > 0
    x, y, count = (data[name].values[filled] for name in ("bin_predicted", "bin_observed", "bin_count"))
    right.plot(x, y, color=colour, lw=1.4 if band else 0.8, alpha=1.0 if band else 0.6)
    right.scatter(x, y, s=8 + 60 * count / count.sum(), color=colour, marker=marker, alpha=1.0 if band else 0.6, lw=0)


@mpl.rc_context(style.STYLE)
def draw_calls(finding: Finding) -> Figure:
    """Who is called what: confusion tables of classes, and predicted against true numbers.

    Parameters
    ----------
    finding
        Of `prediction`: data `confusion` (row, level, called_level), `level_name`, `truth` and `called` (row, scan).

    Returns
    -------
    Figure
        One panel per target and feature set that is no baseline (all sets when every one is).
    """
    kinds = ("binary", "multi-class", "ordinal", "continuous")
    part = _shown(finding.table, kinds) if len(finding.table) else finding.table
    if part.empty:
        return style.message("There are no predictions to show.")
    part = part[~part["baseline"]] if (~part["baseline"]).any() else part
    part = part.iloc[:MOST_PANELS]
    n_columns = min(3, len(part))
    n_lines = -(-len(part) // n_columns)
    drawn = style.figure(2.7 * n_columns + 0.3, 2.9 * n_lines + 0.1)
    panels = drawn.subplots(n_lines, n_columns, squeeze=False).ravel()
    for axes in panels[len(part) :]:
        axes.set_axis_off()
    for axes, number in zip(panels, part.index.tolist(), strict=False):
        row = part.loc[number]
        axes.set_title(style.plain(f"{row['target']}, {row['features']}", width=36))
        if row["kind"] == "continuous":
            _numbers(axes, finding, number)
        else:
            _confusion(axes, finding, number)
    return drawn


def _numbers(axes: Axes, finding: Finding, number: int) -> None:
    truth, called = finding.data["truth"].values[number], finding.data["called"].values[number]
    axes.scatter(truth, called, s=14, color=style.BLUE, alpha=0.75, lw=0)
    ends = [np.nanmin([truth, called]), np.nanmax([truth, called])]
    axes.plot(ends, ends, color=style.QUIET, lw=0.9, ls="--", zorder=0)
    axes.set_xlabel("true")
    axes.set_ylabel("predicted, held out")


def _confusion(axes: Axes, finding: Finding, number: int) -> None:
    names = [name for name in finding.data["level_name"].values[number] if name]
    k = len(names)
    counts = finding.data["confusion"].values[number, :k, :k]
    shares = finding.data["confusion_share"].values[number, :k, :k]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="equal")
    for line in range(k):
        for column in range(k):
            dark = shares[line, column] > 0.65
            text = f"{counts[line, column]:.0f}\n{100 * shares[line, column]:.0f} %"
            axes.text(
                column, line, text, ha="center", va="center", fontsize=7.5, color="white" if dark else style.CELL_INK
            )
    labels = [style.plain(name, width=12) for name in names]
    axes.set_xticks(range(k), labels, rotation=45 if k > 3 else 0, ha="right" if k > 3 else "center")
    axes.set_yticks(range(k), labels)
    axes.set_xlabel("called, held out")
    axes.set_ylabel("true")
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(length=0)
