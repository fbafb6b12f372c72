"""What kinds of measurement tell of one another: by a joint model and by simple regressions, and how that looks."""

import matplotlib as mpl
import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from nilatent.finding import Finding
from nilatent.plots import brain, style

JOINT, SHARED = "joint model", "joint model, shared latents only"
LOOKS = {
    JOINT: (style.ORANGE, "s", True, JOINT),
    "best simple regression, chosen inside": (style.INK, "D", True, "best simple regression"),
    "ridge, training part only": (style.INK, "D", False, "ridge or logistic, training part only"),
    "logistic, training part only": (style.INK, "D", False, "ridge or logistic, training part only"),
    SHARED: (style.ORANGE, "s", False, SHARED),
    "PCA of equal size": (style.BLUE, "o", True, "PCA of equal size"),
}
MOST_PANELS = 8
APART = 0.2
KINDS = {
    "truth": "scan",
    "joint": "joint model",
    "simple": "regression",
    "joint_error": "joint − scan",
    "simple_error": "regression − scan",
}
PLANES: tuple[brain.Plane, ...] = ("axial", "coronal")
LABELS_INCHES = 1.5
ERROR_QUANTILE = 0.995

COLUMN_NAMES = {
    "target": ("target", "What is told: a kind of volumes, or a column of a table"),
    "kind": ("kind", "volumes, number or category"),
    "sources": ("from", "What is looked at; 'itself' where volumes are drawn from themselves"),
    "scans": ("scans with", "All or any of these kinds"),
    "way": (
        "by",
        "Simple regressions learn from training and validation scans, as the joint model did; which is the best is chosen on "
        "left-out subjects among these",
    ),
    "n_scans": ("scans", "Unseen by any model that tells them"),
    "n_subjects": ("subjects", ""),
    "unexplained": (
        "unexplained",
        "Share of the squared error of the training mean that is left (of a category: of the log loss of the base rate); 1 is as "
        "good as that mean",
    ),
    "low": ("from", "Lower end of the bootstrap interval over subjects"),
    "high": ("to", "Upper end of the bootstrap interval over subjects"),
    "against": ("against", "What the joint model is compared with"),
    "difference": ("difference", "Of the unexplained shares; below 0 the joint model is better"),
    "difference_low": (
        "difference from",
        "Bootstrap interval over subjects, widened for folds that share training scans",
    ),
    "difference_high": (
        "difference to",
        "Bootstrap interval over subjects, widened for folds that share training scans",
    ),
    "p_difference": ("p of difference", "Two-sided, by flipping the signs of subjects, widened likewise"),
    "q_difference": ("q of difference", "False discovery rate over all differences of this table"),
    "p_mean": ("p against the mean", "That it tells as much as the training mean; two-sided, as above"),
    "q_mean": ("q against the mean", "False discovery rate over all such tests of this table"),
    "accuracy": ("accuracy", "Share of scans whose likeliest level is the true one"),
    "base_rate": ("base rate", "The same when the commonest training level is always said"),
    "note": ("note", "Which regression was chosen, or why nothing was judged"),
}


@mpl.rc_context(style.STYLE)
def draw(finding: Finding) -> Figure:
    """What is left unexplained of each target, from all others, from fewer and from itself; and what looking at more changes.

    Parameters
    ----------
    finding
        Of `multimodal`: table columns `target`, `sources`, `scans`, `way`, `unexplained`, `low`, `high`; data variables
        `step_target`, `step_fewer`, `step_more`, `step_change`, `step_low`, `step_high`.

    Returns
    -------
    Figure
        A line of two panels per target. Left, the line at 1 is the mean of the training scans. Right, left of 0 more is
        better, as it is in theory.
    """
    table = finding.table
    if table.empty:
        return style.message("Nothing was told from anything else.")
    judged = table[table["unexplained"].notna() & table["way"].isin(list(LOOKS))]
    targets = list(dict.fromkeys(judged["target"]))[:MOST_PANELS]
    shown = {target: judged[judged["target"] == target] for target in targets}
    heights = [0.42 * len(_rows(part)) + 0.75 for part in shown.values()]
    drawn = style.figure(style.WIDEST_INCHES, sum(heights) + 0.6)
    grid = drawn.subplots(len(targets), 2, squeeze=False, height_ratios=heights, width_ratios=(1.5, 1.0))
    for (left, right), (target, part) in zip(grid, shown.items(), strict=True):
        _forest(left, part)
        left.set_title(style.plain(target, width=60))
        _steps(right, finding.data, target)
    used = {LOOKS[way][3]: LOOKS[way] for part in shown.values() for way in LOOKS if (part["way"] == way).any()}
    marks = [
        mpl.lines.Line2D(
            [], [], color=look[0], marker=look[1], ls="", ms=5, mfc=look[0] if look[2] else "white", label=name
        )
        for name, look in used.items()
    ]
    drawn.legend(handles=marks, loc="outside upper left", ncols=3, handletextpad=0.4)
    return drawn


def _rows(part: pd.DataFrame) -> list[tuple[str, str]]:
    return list(dict.fromkeys(zip(part["sources"], part["scans"], strict=True)))


def _forest(axes: Axes, part: pd.DataFrame) -> None:
    rows = _rows(part)
    for height, (sources, scans) in enumerate(rows):
        same = part[(part["sources"] == sources) & (part["scans"] == scans)]
        ways = [way for way in LOOKS if (same["way"] == way).any()]
        places = height + APART * (np.arange(len(ways)) - (len(ways) - 1) / 2)
        for place, way in zip(places, ways, strict=True):
            colour, marker, filled, _ = LOOKS[way]
            line = same[same["way"] == way].iloc[0]
            axes.plot([line["low"], line["high"]], [place, place], color=colour, lw=1.3, alpha=0.9 if filled else 0.5)
            axes.plot(line["unexplained"], place, marker, color=colour, ms=4.5, mfc=colour if filled else "white")
    axes.axvline(1.0, color=style.QUIET, lw=0.9, ls="--")
    some = {scans for _, scans in rows} - {"all of these"}
    labels = [f"{sources}{f' ({scans})' if some and sources != 'itself' else ''}" for sources, scans in rows]
    axes.set_yticks(range(len(rows)), [style.plain(f"from {name}", width=38) for name in labels])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    category = (part["kind"] == "category").any()
    axes.set_xlabel("share of the base rate's log loss left" if category else "share of variance left unexplained")


def _steps(axes: Axes, data: xr.Dataset, target: str) -> None:
    places = np.flatnonzero(data["step_target"].values == target) if "step_target" in data else np.array([], dtype=int)
    if not len(places):
        axes.set_axis_off()
        return
    low, high, change = (100 * data[f"step_{name}"].values[places] for name in ("low", "high", "change"))
    heights = np.arange(len(places))
    axes.hlines(heights, low, high, color=style.ORANGE, lw=1.3)
    axes.plot(change, heights, "s", color=style.ORANGE, ms=4.5)
    axes.axvline(0.0, color=style.QUIET, lw=0.9, ls="--")
    fewer, more = (data[f"step_{name}"].values[places] for name in ("fewer", "more"))
    names = [f"{before or 'nothing'} → {after}" for before, after in zip(fewer, more, strict=True)]
    axes.set_yticks(heights, [style.plain(name, width=34) for name in names])
    axes.set_ylim(len(places) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    # What is next to nothing shall look it.
    axes.set_xlim(min(1.1 * low.min(), -1.0), max(1.1 * high.max(), 1.0))
    axes.set_xlabel("change of the joint model\nwhen it sees more (points)")


@mpl.rc_context(style.STYLE)
def draw_examples(finding: Finding) -> Figure:
    """Three unseen scans, what the joint model and the best simple regression tell of them, and what both miss.

    Parameters
    ----------
    finding
        Of `multimodal`: data variables `truth_axial` (case, x, y) and the like of :data:`KINDS` and of the coronal plane, with
        the coordinate `case_scan`, and `case_joint` and `case_simple`, their unexplained shares.

    Returns
    -------
    Figure
        One row per scan, all slices marked L and R.
    """
    data = finding.data
    if "truth_axial" not in data:
        return style.message("No volumes were told from anything else.")
    cuts = {(kind, plane): _cuts(data[f"{kind}_{plane}"].values, plane) for plane in PLANES for kind in KINDS}
    width, height = (max(sizes) for sizes in zip(*(brain.size(each[0]) for each in cuts.values()), strict=True))
    panel = brain.Cut(np.empty((0, 0)), (0.0, width, 0.0, height), "axial", None)
    drawn, panels = brain.mosaic([panel] * len(cuts), n_rows=data.sizes["case"], beside_inches=LABELS_INCHES)
    amounts = [data[f"{kind}_{plane}"].values for kind in ("truth", "joint", "simple") for plane in PLANES]
    errors = np.concatenate(
        [np.abs(data[f"{kind}_{plane}"].values).ravel() for kind in list(KINDS)[3:] for plane in PLANES]
    )
    errors = errors[np.isfinite(errors)]
    amount = Normalize(0.0, max(float(values.max()) for values in amounts) or 1.0, clip=True)
    # A handful of voxels would make all other errors look like none.
    farthest = float(np.quantile(errors[errors > 0], ERROR_QUANTILE)) if errors.any() else 1.0
    signed = Normalize(-farthest, farthest, clip=True)
    for column, (kind, plane) in enumerate(cuts):
        panels[0, column].set_title(KINDS[kind].replace(" − ", "\n− "), fontsize=7.5, pad=3)
        norm, colour_map = (signed, style.SIGNED_MAP) if kind.endswith("error") else (amount, "gray")
        for axes, shown in zip(panels[:, column], cuts[kind, plane], strict=True):
            brain.show(axes, shown, norm=norm, colour_map=colour_map)
            brain.in_panel(axes, shown, width=width, height=height)
    for axes, case in zip(panels[:, 0], data["case"].values, strict=True):
        one = data.sel(case=case)
        missed = f"unexplained\n{100 * float(one['case_joint']):.0f} % and {100 * float(one['case_simple']):.0f} %"
        axes.set_ylabel(
            f"{style.plain(case)}\n{style.plain(one['case_scan'].item(), width=20)}\n{missed}", fontsize=7.5
        )
    every, examples = list(panels.flat), finding.settings.get("examples", {})
    told = f"{style.plain(examples.get('target', 'value'))} from {style.plain(examples.get('sources', 'others'))}"
    brain.colour_bar(drawn, every, amount, "gray", f"{told} ({brain.VOXEL})")
    brain.colour_bar(drawn, every, signed, style.SIGNED_MAP, f"told − scan ({brain.VOXEL})", extend="both")
    return drawn


def _cuts(values: np.ndarray, plane: brain.Plane) -> list[brain.Cut]:
    """Slices of every case, in voxels."""
    extent = (0.0, float(values.shape[1]), 0.0, float(values.shape[2]))
    return [brain.Cut(one.T.astype(float), extent, plane, None) for one in values]
