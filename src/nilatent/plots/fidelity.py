"""Fidelity: synthetic brains beside real ones, how far they are apart, how near training scans, and what is learnt from them."""

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from nilatent.finding import Finding
from nilatent.plots import brain, style

PLANES: tuple[brain.Plane, ...] = ("axial", "coronal")
KINDS = {
    "unseen scans": "real,\nunseen",
    "reconstructions": "the same,\nreconstructed",
    "samples": "synthetic,\nfrom the\nlatents",
    "samples of PCA": "synthetic,\nfrom PCA",
}
FEATURES = ("regional means", "deep features")
HALVES = "two halves of the unseen scans"
BARS = {
    HALVES: "two halves of unseen scans",
    "training scans": "training scans",
    "reconstructions": "reconstructions",
    "samples": "synthetic",
    "samples of the prior": "synthetic, of the prior",
    "samples of PCA": "synthetic, of PCA",
    "mean image": "mean image",
}
COLOURS = {
    "samples": style.BLUE,
    "samples of the prior": style.GROUP_COLOURS[5],
    "samples of PCA": style.ORANGE,
    "reconstructions": style.GROUP_COLOURS[2],
}
NEAREST = {
    "training": ("training scans among themselves", style.QUIET),
    "unseen": ("unseen scans, reconstructed", style.GROUP_COLOURS[2]),
    "samples": ("synthetic", style.BLUE),
}
Q = 0.05
LABELS_INCHES = brain.BAR_INCHES + 1.0

COLUMN_NAMES = {
    "comparison": ("what", "Compared with unseen scans, but for samples against reconstructions"),
    "features": ("by", "Regional means, or deep features of a network that was not trained with the model"),
    "mmd2": ("MMD²", "Maximum mean discrepancy, Gaussian kernel, unbiased: 0 for one distribution; lower is better"),
    "mmd2_se": ("SE", "Jackknife over scans and images; of two halves the SD over splits"),
    "mmd2_p": ("p", "Permutation: could both be of one distribution?"),
    "mmd2_high": ("95 % below", "MMD² of two random halves of the unseen scans stays below it in 95 % of splits"),
    "kid": ("KID", "As MMD², with a polynomial kernel of degree 3"),
    "kid_se": ("SE of KID", "Jackknife over scans and images"),
    "kid_p": ("p of KID", "Permutation"),
    "auc": ("AUC", "With which a classifier tells them from unseen scans by regional means; 0.5 cannot"),
    "coverage": ("coverage", "Share of unseen scans with an image nearer than their fifth real neighbour"),
    "density": ("density", "1 where images lie as densely as scans; above 1 they crowd near the average"),
    "spread": ("variance", "Total variance over voxels, as a share of that of the unseen scans"),
    "n_real": ("n scans", "One per subject"),
    "n_images": ("n images", ""),
}
MAPS: dict[str, tuple[str, tuple[float, float] | None]] = {}


@mpl.rc_context(style.STYLE)
def draw(finding: Finding) -> Figure:
    """Discrepancy by regional means and deep features, nearest training scans, regional means and spread, and usefulness.

    Parameters
    ----------
    finding
        Of `fidelity`.

    Returns
    -------
    Figure
        Without copy check or usefulness these panels say so.
    """
    if finding.table.empty:
        return style.message("No image was judged.")
    drawn = style.figure(style.WIDEST_INCHES, 9.0)
    grid = drawn.subplots(3, 2)
    for axes, features in zip(grid[0], FEATURES, strict=True):
        _bars(axes, finding.table[finding.table["features"] == features], features)
    _nearest(grid[1, 0], finding)
    _useful(grid[1, 1], finding)
    _regions(grid[2, 0], finding, part="mean", words="mean grey matter of a region")
    _regions(grid[2, 1], finding, part="sd", words="SD over brains")
    return drawn


@mpl.rc_context(style.STYLE)
def draw_strip(finding: Finding) -> Figure:
    """Real unseen scans, the same reconstructed, and synthetic ones: same slices, same scale, each named.

    Parameters
    ----------
    finding
        Of `fidelity`: data variables `axial` (kind, shown, x, y) and `coronal` (kind, shown, x, z).

    Returns
    -------
    Figure
        One row per kind; synthetic brains are nobody's and stand under no scan.
    """
    data = finding.data
    if "axial" not in data:
        return style.message("No image was kept.")
    cuts = {(kind, plane): _cuts(data[plane].sel(kind=kind).values, plane) for kind in KINDS for plane in PLANES}
    n_shown = data.sizes["shown"]
    columns = [(plane, number) for plane in PLANES for number in range(n_shown)]
    first = [cuts[next(iter(KINDS)), plane][number] for plane, number in columns]
    width, height = (max(sizes) for sizes in zip(*(brain.size(one) for one in first), strict=True))
    panel = brain.Cut(np.empty((0, 0)), (0.0, width, 0.0, height), "axial", None)
    drawn, panels = brain.mosaic([panel] * len(columns), n_rows=len(KINDS), beside_inches=LABELS_INCHES)
    norm = Normalize(0.0, max(float(np.max(data[plane].values)) for plane in PLANES) or 1.0, clip=True)
    for row, (kind, words) in zip(panels, KINDS.items(), strict=True):
        for axes, (plane, number) in zip(row, columns, strict=True):
            brain.show(axes, cuts[kind, plane][number], norm=norm, colour_map="gray")
            brain.in_panel(axes, cuts[kind, plane][number], width=width, height=height)
        row[0].set_ylabel(words, fontsize=7.5)
    brain.colour_bar(drawn, list(panels.flat), norm, "gray", brain.VOXEL)
    return drawn


def _cuts(values: np.ndarray, plane: brain.Plane) -> list[brain.Cut]:
    edges = (0.0, float(values.shape[1]), 0.0, float(values.shape[2]))
    return [brain.Cut(one.T.astype(float), edges, plane, None) for one in values]


def _bars(axes: Axes, table: pd.DataFrame, features: str) -> None:
    rows = table.set_index("comparison")
    shown = [name for name in BARS if name in rows.index]
    heights = np.arange(len(shown))
    values = rows.loc[shown, "mmd2"].to_numpy(float)
    errors = rows.loc[shown, "mmd2_se"].to_numpy(float)
    colours = [COLOURS.get(name, style.QUIET) for name in shown]
    axes.barh(heights, values, height=0.62, color=colours, lw=0)
    axes.hlines(heights, values - 1.96 * errors, values + 1.96 * errors, color=style.INK, lw=1.2)
    floor = rows["mmd2_high"].to_numpy(float)[rows.index == HALVES]
    axes.axvline(floor[0], color=style.QUIET, lw=1.0, ls=(0, (4, 3)))
    axes.axvline(0, color=style.INK, lw=0.8)
    axes.set_yticks(heights, [BARS[name] for name in shown])
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("MMD² from unseen scans (0: one distribution)\ndashed: 95 % of random halves stay below")
    axes.set_title(f"By {features}")


def _nearest(axes: Axes, finding: Finding) -> None:
    data = finding.data
    axes.set_title("How near the nearest training scan is")
    if "samples_ratio" not in data:
        _absent(axes, "Not judged: too few training subjects.")
        return
    edges = [float(edge) for edge in np.linspace(0, 1, 41)]
    for name, (words, colour) in NEAREST.items():
        values = data[f"{name}_ratio"].values
        weights = np.full(len(values), 1 / len(values))
        filled = name == "training"
        axes.hist(
            values, edges, weights=weights, color=colour, histtype="stepfilled" if filled else "step",
            alpha=0.45 if filled else 1.0, lw=0 if filled else 1.6, label=f"{words} ({len(values)})",
        )  # fmt: skip
    axes.set_xlim(0, 1)
    axes.set_xlabel("distance to the nearest subject, relative to the next ten\n(towards 0: a copy)")
    axes.set_ylabel("share")
    # Room for the legend above what it names.
    axes.set_ylim(0, 1.45 * axes.get_ylim()[1])
    axes.legend(loc="upper left")


def _useful(axes: Axes, finding: Finding) -> None:
    data = finding.data
    axes.set_title("Learnt from, judged on unseen real scans")
    if "use_auc" not in data:
        _absent(axes, f"Not judged: {finding.settings.get('utility_not_run', '')}")
        return
    names = [str(name) for name in data["trained_on"].values]
    heights = np.arange(len(names))
    axes.hlines(heights, data["use_auc_low"], data["use_auc_high"], color=style.BLUE, lw=1.6)
    axes.scatter(data["use_auc"], heights, s=32, color=style.BLUE, lw=0, zorder=3)
    axes.axvline(0.5, color=style.QUIET, lw=0.8)
    axes.set_yticks(heights, [style.plain(name, width=28) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(0, 1.02)
    axes.set_xlabel("area under the curve\n(0.5 is chance), 95 % interval")


def _absent(axes: Axes, words: str) -> None:
    axes.set_axis_off()
    axes.text(0.0, 0.5, style.plain(words), va="center", wrap=True, transform=axes.transAxes)


def _regions(axes: Axes, finding: Finding, *, part: str, words: str) -> None:
    data = finding.data
    real, drawn = data[f"region_real_{part}"].values, data[f"region_{part}"].values
    called = data["region_q"].values <= Q
    ends = [float(min(real.min(), drawn.min())), float(max(real.max(), drawn.max()))]
    axes.plot(ends, ends, color=style.QUIET, lw=0.8)
    for chosen, colour, label in ((~called, style.BLUE, "alike"), (called, style.ORANGE, f"otherwise (q ≤ {Q:g})")):
        if chosen.any():
            named = f"{label}: {int(chosen.sum())} regions"
            axes.scatter(real[chosen], drawn[chosen], s=14, color=colour, alpha=0.75, lw=0, label=named)
    axes.set_xlabel(f"{words}: unseen scans")
    axes.set_ylabel("synthetic")
    axes.set_title("Regional means" if part == "mean" else "Spread of regional means")
    axes.legend(loc="upper left", handletextpad=0.1)
