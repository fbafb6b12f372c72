"""Blur: energy of detail kept and the share of it that is right, band by band, above slices of one scan and its drawings."""

import textwrap

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from nilatent.finding import Finding
from nilatent.plots import brain, style

LOOKS = {
    "reconstruction": (style.BLUE, "o"),
    "PCA of equal size": (style.ORANGE, "s"),
    "PCA of all training scans": (style.GROUP_COLOURS[4], "D"),
    "mean image": (style.QUIET, "v"),
    "samples of the density": (style.GROUP_COLOURS[2], "^"),
    "samples of the prior": (style.GROUP_COLOURS[3], "P"),
}
PANELS = {
    "detail_kept": "energy of the detail, by that of scans",
    "coherence": "coherence with the scan's own detail",
    "explained": "share of the scan's detail explained",
}
COLUMN_NAMES = {
    "approach": ("drawn", ""),
    "band": ("detail", "Size: half a wavelength"),
    "scan_share": ("share of scans", "Of what scans have beyond the mean image, how much lies in this band"),
    "energy_kept": ("energy kept", "Of whole images, the mean image included: 1 is as much as in scans"),
    "detail_kept": (
        "detail kept",
        "Energy beyond the mean image, by that of scans: 1 is as much, whether right or not",
    ),
    "detail_kept_low": ("95 % from", "Bootstrap over subjects"),
    "detail_kept_high": ("to", "Bootstrap over subjects"),
    "coherence": ("coherence", "Correlation of the detail with the scan's own, beyond the mean image"),
    "explained": ("explained", "Share of the energy of the scan's detail; below 0 is worse than the mean image"),
    "explained_low": ("95 % from", "Bootstrap over subjects"),
    "explained_high": ("to", "Bootstrap over subjects"),
}
WIDTH, CHARTS_INCHES = 8.5, 3.5


@mpl.rc_context(style.STYLE)
def draw(finding: Finding) -> Figure:
    """Detail kept, coherence and share explained by band, and an axial slice of one scan beside what was drawn.

    Parameters
    ----------
    finding
        Of `blur`.

    Returns
    -------
    Figure
        Three charts over one row of slices, all marked L and R.
    """
    data = finding.data
    if "detail_kept" not in data:
        return style.message("Detail was not measured.")
    pictures = [str(name) for name in data["picture"].values]
    left, right, bottom, top = (float(edge) for edge in data["extent_mm"].values)
    slice_inches = (WIDTH - brain.BAR_INCHES) / len(pictures) * (top - bottom) / (right - left)
    drawn = style.figure(WIDTH, CHARTS_INCHES + slice_inches + 0.5)
    charts, slices = np.asarray(drawn.subfigures(2, 1, height_ratios=[CHARTS_INCHES, slice_inches + 0.5]))
    panels = charts.subplots(1, len(PANELS), sharex=True)
    for axes, (measure, words) in zip(panels, PANELS.items(), strict=True):
        _chart(axes, finding, measure)
        axes.set_title(words)
    handles, labels = panels[0].get_legend_handles_labels()
    charts.legend(handles, labels, loc="outside lower center", ncols=3)
    norm = Normalize(0.0, float(data["slices"].sel(picture="scan").max()) or 1.0, clip=True)
    shown_in = list(slices.subplots(1, len(pictures), squeeze=False)[0])
    for axes, name in zip(shown_in, pictures, strict=True):
        values = data["slices"].sel(picture=name).values.T
        shown = brain.Cut(values, (left, right, bottom, top), "axial", float(data["position_mm"]))
        brain.show(axes, shown, norm=norm, colour_map="gray")
        axes.set_title(
            textwrap.fill(style.plain(f"scan {data['example'].item()}" if name == "scan" else name, width=26), 14),
            fontsize=7.5,
        )
    brain.colour_bar(slices, shown_in, norm, "gray", brain.VOXEL, wrap=14)
    return drawn


def _chart(axes: Axes, finding: Finding, measure: str) -> None:
    data = finding.data
    names = [name for name in LOOKS if name in data["approach"].values]
    names = [name for name in names if np.isfinite(data[measure].sel(approach=name)).all()]
    bands = [str(name) for name in data["band"].values]
    for number, name in enumerate(names):
        one, (colour, marker) = data.sel(approach=name), LOOKS[name]
        places = np.arange(len(bands)) + 0.12 * (number - (len(names) - 1) / 2)
        axes.vlines(places, one[f"{measure}_low"], one[f"{measure}_high"], color=colour, lw=1.4)
        axes.plot(places, one[measure], color=colour, lw=0.8, alpha=0.6)
        axes.scatter(places, one[measure], s=22, color=colour, marker=marker, lw=0, zorder=3, label=name)
    for height in (0.0, 1.0):
        axes.axhline(height, color=style.QUIET, lw=0.8, ls=":")
    left = [f"{100 * float(share):.0f} %" for share in data["passed"].values]
    words = [band.replace(" than ", "\nthan\n").replace(" to ", " to\n") for band in bands]
    axes.set_xticks(range(len(bands)), [f"{band}\n({share})" for band, share in zip(words, left, strict=True)])
    axes.tick_params(axis="x", length=0, labelsize=7.3)
    axes.set_xlabel("size of detail (left by smoothing before)", fontsize=8)
    axes.grid(axis="y", color=style.QUIET, alpha=0.25, lw=0.6)
