"""Decoder sensitivity: the regions that directions move, what unseen scans say of them, and the images along the way."""

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from nilatent.finding import Finding
from nilatent.plots import brain, style

N_REGIONS = 10
# Directions with bars, and with strips of slices, in the order of the table.
N_BARS, N_STRIPS = 3, 4
KINDS = ("group", "covariate")
STRIP_KINDS = (*KINDS, "component")
PLANES: tuple[brain.Plane, ...] = ("axial", "coronal")

COLUMN_NAMES = {
    "direction": ("direction", "A latent, a component, or what a column of the cohort defines"),
    "kind": ("kind", "group, covariate, discriminant or pls: of a column; component or latent: of the latents alone"),
    "unit": ("per", "What one unit of the direction is"),
    "region": ("region", ""),
    "label": ("label", "Number in the atlas"),
    "effect": ("effect", "Change of the drawn regional mean per unit of the direction"),
    "effect_percent": ("effect (%)", "Of the regional mean that is drawn in the middle"),
    "low": ("low", "95 % interval of the regression over subjects"),
    "high": ("high", "95 % interval of the regression over subjects"),
    "p": ("p", "Family-wise over regions; the column is shuffled over training subjects"),
    "p_regional": ("p, plain", "The same for the regions' own means: plain regional analysis"),
    "unseen": ("unseen scans", "Slope of the true regional mean in scans that the one model has not seen"),
    "p_unseen": ("p, unseen", "Of a latent or component: family-wise over regions and directions of the kind"),
    "baseline": ("regression", "Slope of the true regional mean in training scans, without any model"),
    "fold_low": ("lowest model", "Smallest effect over cross-fitted models"),
    "fold_high": ("highest model", "Largest effect over cross-fitted models"),
    "lrcp_rank": ("LRCP rank", ""),
    "lrcp_a": ("LRCP |a|", "Association of region and latents"),
    "lrcp_grade": ("LRCP grade", ""),
    "lrcp_p": ("LRCP p", ""),
}


def _effect_label(finding: Finding) -> str:
    first = finding.data.isel(shown=0)
    return f"{first['shown'].item()}: {brain.VOXEL_CHANGE} per {first['shown_unit'].item()}"


MAPS = {"effect": (_effect_label, None)}
"""Map of the finding to the label of its colour bar, said by the finding, and its limits (None: from the map)."""


@mpl.rc_context(style.STYLE)
def draw(finding: Finding) -> Figure:
    """The regions that groups and covariates move most, beside what unseen scans say of all regions.

    Parameters
    ----------
    finding
        Of `sensitivity`.

    Returns
    -------
    Figure
        A row per direction: bars with intervals, filled where the region is called, and a diamond for regional regression without
        a model; and what every model says of each region against its own unseen scans. Without such directions, of others.
    """
    data = finding.data
    if finding.table.empty or "effect" not in data:
        return style.message("No direction was found.")
    kinds = data["kind"].values
    names = [str(name) for name, kind in zip(data["direction"].values, kinds, strict=True) if kind in KINDS]
    names = (names or list(map(str, data["direction"].values)))[:N_BARS]
    drawn = style.figure(style.WIDEST_INCHES, 0.35 + 2.75 * len(names))
    grid = drawn.subplots(len(names), 2, squeeze=False, gridspec_kw={"width_ratios": [1.5, 1.0]})
    for (left, right), name in zip(grid, names, strict=True):
        one = data.sel(direction=name)
        _bars(left, one, alpha=float(finding.settings["alpha"]))
        _against_unseen(right, one)
    drawn.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower left", handletextpad=0.1)
    return drawn


@mpl.rc_context(style.STYLE)
def draw_strips(finding: Finding) -> Figure:
    """Slices of the images that are drawn along the main directions, and their change against the middle.

    Parameters
    ----------
    finding
        Of `sensitivity`: data `axial` and `coronal` (shown, step, ...), and the same of the change.

    Returns
    -------
    Figure
        Two rows per direction, axial slices on the left and coronal ones on the right, from two units down to two up.
    """
    data = finding.data
    if "axial" not in data:
        return style.message("No direction was drawn.")
    kinds = data["kind"].to_series()
    names = [name for name in data["shown"].to_series() if kinds[name] in STRIP_KINDS][:N_STRIPS]
    places = [(plane, step) for plane in PLANES for step in data["step"].values]
    first = data.sel(shown=names[0])
    drawn, panels = brain.mosaic([_cut(first, *place) for place in places], n_rows=2 * len(names))
    for name, images, changes in zip(names, panels[::2], panels[1::2], strict=True):
        one = data.sel(shown=name)
        amount = Normalize(0.0, max(float(one[plane].max()) for plane in PLANES) or 1.0)
        largest = max(float(np.abs(one[f"{plane}_change"]).max()) for plane in PLANES) or 1.0
        signed = Normalize(-largest, largest)
        for (plane, step), above, below in zip(places, images, changes, strict=True):
            brain.show(above, _cut(one, plane, step), norm=amount, colour_map="gray", position=step == places[0][1])
            shown = _cut(one, plane, step, suffix="_change")
            brain.show(below, shown, norm=signed, colour_map=style.SIGNED_MAP, position=False)
            # The first line stays free for the name of the direction.
            words = f"{step:+g}".replace("-", "−") if step else "middle"
            above.set_title(f"\n{words}", fontsize=7.5, loc="center", pad=2)
        title = f"{style.plain(name, width=60)}: steps of {style.plain(str(one['shown_unit'].item()), width=40)}"
        # Wider than its panel, so the layout must not measure it.
        place = {"xycoords": "axes fraction", "textcoords": "offset points", "fontsize": 8}
        images[0].annotate(title, (0, 1), (0, 11), **place).set_in_layout(False)
        brain.colour_bar(drawn, list(images), amount, "gray", brain.VOXEL, wrap=10)
        brain.colour_bar(drawn, list(changes), signed, style.SIGNED_MAP, brain.VOXEL_CHANGE, wrap=10)
    return drawn


def _bars(axes: Axes, one: xr.Dataset, *, alpha: float) -> None:
    effect, half = one["effect"].values, np.nan_to_num(one["half_width"].values)
    first = np.argsort(-np.abs(effect), kind="stable")[:N_REGIONS]
    called = one["p"].values[first] <= alpha
    heights = np.arange(len(first))
    colours = [style.BLUE if sure else "none" for sure in called]
    axes.barh(heights, effect[first], height=0.66, color=colours, edgecolor=style.BLUE, lw=0.9)
    axes.hlines(heights, effect[first] - half[first], effect[first] + half[first], color=style.INK, lw=1.0)
    plain = one["baseline"].values[first]
    axes.scatter(plain, heights, s=22, marker="D", color=style.ORANGE, lw=0, zorder=3, label="regional regression")
    axes.axvline(0, color=style.INK, lw=0.8)
    axes.set_yticks(heights, [style.plain(name, width=28) for name in one["region"].values[first]])
    axes.set_ylim(len(first) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(f"effect per unit: {style.plain(str(one['unit'].item()), width=40)}")
    filled = f"; filled: p ≤ {alpha:g} (family-wise)" if np.isfinite(one["p"].values).any() else ""
    axes.set_title(f"{style.plain(str(one['direction'].item()), width=34)}{filled}")


def _against_unseen(axes: Axes, one: xr.Dataset) -> None:
    if not np.isfinite(one["unseen"].values).any():
        axes.set_axis_off()
        axes.text(0.0, 0.5, "too few unseen scans", va="center")
        return
    axes.axhline(0, color=style.QUIET, lw=0.6)
    axes.axvline(0, color=style.QUIET, lw=0.6)
    axes.scatter(one["claim"], one["unseen"], s=10, color=style.BLUE, alpha=0.5, lw=0)
    axes.set_xlabel("what a decoder says, per unit")
    axes.set_ylabel("slope in its unseen scans")
    agreement, plain = float(one["agreement"]), float(one["baseline_agreement"])
    axes.set_title(f"Rank correlation {agreement:.2f}\n(p = {float(one['agreement_p']):.2g}; regression {plain:.2f})")


def _cut(one: xr.Dataset, plane: brain.Plane, step: float, *, suffix: str = "") -> brain.Cut:
    """A slice as `imshow` takes it, with its edges in mm."""
    values = one[f"{plane}{suffix}"].sel(step=step)
    across, up = values.dims
    edges = []
    for axis in (across, up):
        mm = one[axis].values
        half = (mm[1] - mm[0]) / 2
        edges += [float(mm[0] - half), float(mm[-1] + half)]
    return brain.Cut(values.values.T, (edges[0], edges[1], edges[2], edges[3]), plane, float(one[f"{plane}_mm"]))
