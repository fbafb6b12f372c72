"""Normative deviation: how far groups lie out, which measure tells them apart, whether z is calibrated, and where."""

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nilatent.finding import Finding
from nilatent.plots import style

N_REGIONS = 10
KIND_NAMES = {"regions": "regions", "errors": "error of reconstruction", "latents": "latents"}
LEGEND_GROUPS = 8

Looks = dict[str, tuple[str, str]]
"""Colour and marker of a group."""

COLUMN_NAMES = {
    "scan_id": ("scan", ""),
    "group": ("group", ""),
    "reference": (
        "reference",
        "Whether the scan belongs to those that say what is expected; it is judged by the others",
    ),
    "deviates": ("deviates", "Whether q is at most the level that was asked"),
    "p": ("p", "The smallest p of latents, regions and errors, times their number"),
    "q": ("q", "False discovery rate over scans, those of the reference apart from the others"),
    "mahalanobis": ("latent distance", "Root mean square over latent directions, in SD of a prediction"),
    "p_latents": ("p of latents", "From a prediction of the distances of held-out reference scans"),
    "p_rank": ("p by rank", "Share of held-out reference scans that lie at least as far; assumes nothing"),
    "n_extreme": ("regions beyond 1.96", "Seen"),
    "n_expected": ("expected", "Regions beyond 1.96 in a scan like the reference, on average"),
    "p_extreme": ("p of their number", "Share of held-out reference scans with as many"),
    "mean_z": ("mean z", "Over regions; below 0: less grey matter than expected all over"),
    "region": ("region", "The one that deviates most"),
    "region_z": ("its z", "Standard normal in a new reference subject"),
    "p_regions": ("p of regions", "Family-wise over regions"),
    "mean_error_z": ("mean z of error", "Over regions; above 0: reconstructed worse than expected"),
    "error_region": ("region of error", "The one whose error deviates most"),
    "error_region_z": ("its z (error)", "Of the logarithm of the error"),
    "p_error": ("p of errors", "Family-wise over regions"),
    "note": ("note", "Why a scan was not judged"),
}


def _mean_label(finding: Finding) -> str:
    groups = finding.data["case_group"].values
    return f"mean z of {groups[0]}" if len(groups) == 1 else "mean z, of the group farthest from 0"


MAPS = {"mean_z": (_mean_label, None)}
"""Map of the finding to the label of its colour bar, said by the finding, and its limits (None: from the map)."""


@mpl.rc_context(style.STYLE)
def draw(finding: Finding) -> Figure:
    """Deviation by group, areas under the curve side by side, calibration of z, and the regions that deviate most.

    Parameters
    ----------
    finding
        Of `normative`.

    Returns
    -------
    Figure
        Without a case group, the panels of groups alone are left out.
    """
    if finding.table.empty or "z" not in finding.data:
        return style.message("No scan was judged.")
    compared = "auc" in finding.data
    drawn = style.figure(style.WIDEST_INCHES, 6.4 if compared else 3.2)
    grid = drawn.subplots(2 if compared else 1, 2, squeeze=False)
    table = finding.table
    of_reference = set(table.loc[table["reference"], "group"])
    looks = style.looks(sorted(set(table["group"]), key=lambda name: (name not in of_reference, name)))
    _groups(grid[0, 0], finding, looks)
    _calibration(grid[0, 1], finding)
    if compared:
        _areas(grid[1, 0], finding, looks)
        _regions(grid[1, 1], finding, looks)
    return drawn


@mpl.rc_context(style.STYLE)
def draw_place(finding: Finding, scan_id: str) -> Figure:
    """Where a scan lies among the reference scans, each judged by a model that was not fitted on it.

    Parameters
    ----------
    finding
        Of `normative`.
    scan_id
        The scan.

    Returns
    -------
    Figure
        One strip per measure: reference scans as dots, this scan as a diamond.
    """
    table = finding.table
    one = table[table["scan_id"] == scan_id]
    measures = {
        "mahalanobis": "latent distance",
        "largest_z": "largest |z| of a region",
        "mean_error_z": "mean z of error",
    }
    shown = {name: words for name, words in measures.items() if len(one) and np.isfinite(one[name].iloc[0])}
    if not shown:
        return style.message("This scan was not judged.")
    height = 0.6 + 0.8 * len(shown)
    drawn = style.figure(6.4, height)
    # Strips have no labels at their sides, so their places are known: to measure them takes most of the time of a page.
    drawn.set_layout_engine("none")
    places = {"left": 0.02, "right": 0.98, "top": 1 - 0.3 / height, "bottom": 0.45 / height, "hspace": 1.5}
    axes = drawn.subplots(len(shown), 1, squeeze=False, gridspec_kw=places)[:, 0]
    others = table[table["reference"] & (table["scan_id"] != scan_id)]
    for place, (name, words) in zip(axes, shown.items(), strict=True):
        values = others[name].dropna().to_numpy()
        place.scatter(values, style.spread(len(values)), s=14, color=style.QUIET, alpha=0.6, lw=0, label="reference")
        place.scatter(one[name], [0], s=70, marker="D", color=style.ORANGE, lw=0, label="this scan", zorder=3)
        place.set_ylim(-0.9, 0.9)
        place.set_yticks([])
        place.spines["left"].set_visible(False)
        place.set_xlabel(words, labelpad=1)
    axes[0].legend(loc="lower right", bbox_to_anchor=(1.0, 0.95), ncols=2, handletextpad=0.2)
    return drawn


def _groups(axes: Axes, finding: Finding, looks: Looks) -> None:
    table = finding.table
    measure, words = "mahalanobis", "latent distance (in SD, root mean square)"
    if table[measure].isna().all():
        measure, words = "rms_z", "root mean square of regional z (about 1 is expected)"
    table = table[table[measure].notna()]
    names = [name for name in looks if (table["group"] == name).any()]
    for height, name in enumerate(names):
        part = table[table["group"] == name]
        values = part[measure].to_numpy()
        offsets = 0.6 * style.spread(len(values))
        colour, marker = looks[name]
        axes.scatter(values, height + offsets, s=16, color=colour, marker=marker, alpha=0.75, lw=0)
        called = part["deviates"].to_numpy(dtype=bool)
        axes.scatter(values[called], (height + offsets)[called], s=60, facecolor="none", edgecolor=style.INK, lw=1.0)
        axes.plot([np.median(values)] * 2, [height - 0.38, height + 0.38], color=style.INK, lw=1.4)
    labels = [f"{style.plain(name, width=22)}\n(n = {int((table['group'] == name).sum())})" for name in names]
    axes.set_yticks(range(len(names)), labels)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel(words)
    axes.set_title("Deviation by group, reference held out; ringed: deviates")


def _calibration(axes: Axes, finding: Finding) -> None:
    data = finding.data
    expected = data["qq_expected"].values
    axes.plot(expected, expected, color=style.QUIET, lw=1.0)
    for (name, (colour, marker)), row in zip(
        style.looks(list(map(str, data["kind"].values))).items(), range(data.sizes["kind"]), strict=True
    ):
        words = f"{KIND_NAMES.get(name, name)} (SD {float(data['reference_sd'][row]):.2f})"
        seen = data["qq_seen"].values[row]
        axes.plot(expected, seen, ls="none", marker=marker, ms=3, color=colour, alpha=0.8, mew=0, label=words)
    axes.legend(loc="upper left", handletextpad=0.1)
    axes.set_xlabel("z expected of a standard normal")
    axes.set_ylabel("z seen")
    axes.set_title("Held-out reference scans")


def _areas(axes: Axes, finding: Finding, looks: Looks) -> None:
    data = finding.data
    measures, groups = list(map(str, data["measure"].values)), list(map(str, data["case_group"].values))[:LEGEND_GROUPS]
    step = 0.7 / len(groups)
    for number, group in enumerate(groups):
        one, (colour, marker) = data.sel(case_group=group), looks[group]
        heights = np.arange(len(measures)) + (number - (len(groups) - 1) / 2) * step
        axes.hlines(heights, one["auc_low"], one["auc_high"], color=colour, lw=1.4)
        axes.scatter(
            one["auc"], heights, s=28, color=colour, marker=marker, label=style.plain(group, width=24), zorder=3
        )
    axes.axvline(0.5, color=style.QUIET, lw=0.8)
    axes.set_yticks(range(len(measures)), measures)
    axes.set_ylim(len(measures) - 0.5, -0.5)
    axes.set_xlim(0, 1)
    axes.set_xlabel("area under the curve (0.5 is chance), 95 % interval")
    axes.set_title("Cases against held-out reference")
    if len(groups) > 1:
        axes.legend(loc="lower left")


def _regions(axes: Axes, finding: Finding, looks: Looks) -> None:
    mean = finding.data["mean_z"]
    groups = list(map(str, mean["case_group"].values))[:LEGEND_GROUPS]
    largest = np.abs(mean.values).max(axis=0)
    first = np.argsort(-np.nan_to_num(largest), kind="stable")[:N_REGIONS]
    step = 0.7 / len(groups)
    for number, group in enumerate(groups):
        heights = np.arange(len(first)) + (number - (len(groups) - 1) / 2) * step
        colour = looks[group][0]
        axes.barh(heights, mean.sel(case_group=group).values[first], height=0.9 * step, color=colour, lw=0, label=group)
    axes.axvline(0, color=style.INK, lw=0.8)
    axes.set_yticks(range(len(first)), [style.plain(name, width=28) for name in mean["region"].values[first]])
    axes.set_ylim(len(first) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("mean z of the group (0 is expected)")
    axes.set_title("Regions that deviate most" + (f": {style.plain(groups[0], width=24)}" if len(groups) == 1 else ""))
    if len(groups) > 1:
        axes.legend([style.plain(group, width=24) for group in groups], loc="best")
