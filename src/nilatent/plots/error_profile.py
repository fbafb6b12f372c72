"""Error profile: what each region contributes to the predicted error, by class and scan by scan; or that the gate is closed."""

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from nilatent.finding import Finding
from nilatent.plots import style

N_REGIONS = 20
N_BINS = 80
LIMIT_SD = 2.0
MODEL_NAMES = {"ridge": "ridge regression", "trees": "boosted trees"}

COLUMN_NAMES = {
    "name": ("region", ""),
    "rank": ("rank", "By mean |SHAP|; the order itself is not tested"),
    "mean_abs_phi": (
        "mean |SHAP|",
        "Mean size of the region's contribution to the predicted log error of held-out scans",
    ),
    "signed_mean": ("mean SHAP", "Near zero over all scans by construction; see the classes"),
    "direction": ("direction", "Whether more or less grey matter of the region goes with a larger predicted error"),
    "cluster": ("cluster", "Regions whose grey matter is correlated share a number"),
    "cluster_mean_abs_phi": ("cluster's mean |SHAP|", "Of the summed contributions of the cluster, scan by scan"),
    "p_class_size": ("p, size by class", "Whether |SHAP| differs between classes; family-wise over regions"),
    "p_class_sign": ("p, sign by class", "Whether SHAP differs between classes; family-wise over regions"),
    "mean_abs_phi_ridge": ("mean |SHAP|, ridge", "Of the other model"),
    "mean_abs_phi_trees": ("mean |SHAP|, trees", "Of the other model"),
    "label": ("label", "Number in the atlas"),
}
MAPS = {
    "mean_abs_phi": ("mean |SHAP| (log error)", None),
    "signed_effect": ("mean |SHAP|, signed (+: error grows with GM)", None),
}
"""Map of the finding to the label of its colour bar and its limits (None: from the values)."""


@mpl.rc_context(style.STYLE)
def draw(finding: Finding) -> Figure:
    """Contributions of the twenty regions that rank first; with the gate closed, why there are none.

    Parameters
    ----------
    finding
        Of `error_profile`.

    Returns
    -------
    Figure
        Left, mean size of the contribution as bars, with a mark per class; right, one point per held-out scan.
    """
    if "r2" not in finding.data:
        return style.message("There is no error profile to show.")
    if finding.table.empty:
        return _closed(finding.data)
    top = finding.table.sort_values("rank").head(N_REGIONS)
    data = finding.data.sel(region=top["name"].astype(str).to_numpy())
    names = [style.plain(name, width=30) for name in top["name"]]
    drawn = style.figure(8.4, 1.3 + 0.27 * len(top))
    left, right = drawn.subplots(1, 2, sharey=True, width_ratios=(1.0, 1.25))
    _bars(left, data, top["mean_abs_phi"].to_numpy())
    _swarm(right, data["phi"].values, data["x"].values)
    left.set_yticks(range(len(names)), names)
    left.set_ylim(len(names) - 0.4, -0.6)
    for axes in (left, right):
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
    bar = drawn.colorbar(_colours(), ax=right, aspect=40, pad=0.02, extend="both")
    bar.set_label("grey matter of the region (SD, null model removed)")
    bar.outline.set_visible(False)
    if left.get_legend_handles_labels()[0]:
        drawn.legend(loc="outside upper left", ncols=4, handletextpad=0.3)
    return drawn


def _bars(axes: Axes, data: xr.Dataset, size: np.ndarray) -> None:
    axes.barh(range(len(size)), size, height=0.66, color=style.QUIET, alpha=0.45, lw=0, label="all scans")
    classes = [str(name) for name in data["class"].values]
    for name, (colour, marker) in style.looks(classes).items():
        values = data["class_mean_abs_phi"].sel({"class": name}).values
        axes.scatter(
            values, range(len(size)), s=20, color=colour, marker=marker, label=style.plain(name, width=20), zorder=3
        )
    axes.set_xlim(left=0)
    axes.set_xlabel("mean |SHAP| (log error)")
    axes.grid(axis="x", color=style.QUIET, alpha=0.25, lw=0.6)


def _colours() -> ScalarMappable:
    return ScalarMappable(Normalize(-LIMIT_SD, LIMIT_SD), style.SIGNED_MAP)


def _swarm(axes: Axes, phi: np.ndarray, x: np.ndarray) -> None:
    """One row of points per region; points that would cover one another are stacked away from the row's middle."""
    edges = np.linspace(phi.min(), phi.max() + 1e-12, N_BINS + 1)
    deepest = max(int(np.bincount(np.digitize(column, edges)).max()) for column in phi.T)
    size = float(np.clip(3000 / len(phi), 3, 14))
    for row, (column, shade) in enumerate(zip(phi.T, x.T, strict=True)):
        heights = row + stacked(np.digitize(column, edges)) * 0.8 / max(deepest, 8)
        colours = _colours().to_rgba(shade)
        axes.scatter(column, heights, s=size, c=colours, edgecolors=style.QUIET, linewidths=0.25, zorder=3)
    axes.axvline(0, color=style.INK, lw=0.8)
    axes.locator_params(axis="x", nbins=5)
    axes.set_xlabel("SHAP value of each scan (log error)")
    axes.grid(axis="y", color=style.QUIET, alpha=0.25, lw=0.6)


def stacked(bins: Sequence[int] | np.ndarray) -> np.ndarray:
    """Place of each point among those of its bin, in turn above and below the middle: 0, 1, -1, 2, -2, ..."""
    bins = np.asarray(bins)
    order = np.argsort(bins, kind="stable")
    starts = np.searchsorted(bins[order], bins[order])
    turn = np.arange(len(bins)) - starts
    places = np.empty(len(bins))
    places[order] = np.where(turn % 2, 1, -1) * ((turn + 1) // 2)
    return places


def _closed(data: xr.Dataset) -> Figure:
    """What null model and regions explain, model by model; the picture in place of attributions that would mean nothing."""
    models = [str(name) for name in data["model"].values]
    drawn = style.figure(6.4, 1.3 + 0.55 * len(models))
    axes = drawn.add_subplot()
    for height, name in enumerate(models):
        one = data.sel(model=name)
        for offset, value, colour, label in (
            (-0.18, float(one["r2_null"]), style.QUIET, "null model"),
            (0.18, float(one["r2"]), style.BLUE, "null model and regions"),
        ):
            axes.barh(height + offset, value, height=0.32, color=colour, lw=0, label=label if height == 0 else None)
        axes.annotate(
            f"p = {float(one['p_gate']):.2g}",
            (max(float(one["r2_null"]), float(one["r2"]), 0), height),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
        )
    axes.set_yticks(range(len(models)), [MODEL_NAMES.get(name, style.plain(name)) for name in models])
    axes.set_ylim(len(models) - 0.4, -0.6)
    axes.axvline(0, color=style.INK, lw=0.8)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.margins(x=0.15)
    axes.set_xlabel("R² of the log error, out of fold")
    axes.set_title("Gate closed: regions add nothing significant, so none is named")
    drawn.legend(loc="outside lower center", ncols=2, handlelength=1.2)
    return drawn
