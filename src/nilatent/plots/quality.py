"""Quality of the prepared scans: one strip per measure, with the scans that stand out."""

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nilatent.plots import style

COLUMN_NAMES = {
    "scan_id": ("scan", ""),
    "dataset": ("data set", ""),
    "recipe": ("recipe", "t1: from a raw scan; gm: from a map that existed"),
    "flags": (
        "stands out in",
        "Measures far from the other scans of its data set by median absolute deviation, or beyond an absolute limit",
    ),
    "farthest_z": ("farthest z", "Largest distance from the median of the data set on the bad side, in robust SD"),
    "homogeneity": (
        "homogeneity",
        "Mean correlation of the grey-matter map with those of the other scans of its data set",
    ),
    "template_correlation": ("GM correlation", "Of the grey-matter map with the template's, at 4 mm"),
    "t1_correlation": ("T1 correlation", "Of the aligned brain with the template's"),
    "subject_correlation": ("own correlation", "Of the brain with the average of the same person's other scans"),
    "mask_dice": ("mask Dice", "Overlap of the aligned brain mask with the template's"),
    "outside_fraction": ("GM outside brain", "Share of the grey matter outside the template's brain mask"),
    "aligned_size": ("aligned size", "Volume of the brain mask after alignment by the template's; 1 when they agree"),
    "gm_fraction": ("GM by brain", "Grey-matter volume by the volume of the brain mask"),
    "wm_fraction": ("WM by brain", "White-matter volume by the volume of the brain mask"),
    "image_quality": (
        "image quality (%)",
        "From noise to contrast and resolution, on the scale of CAT12's weighted image quality, with our noise estimate",
    ),
    "noise_to_contrast": ("noise to contrast", "Noise SD by the difference of white and grey"),
    "tissue_contrast": ("tissue contrast", "White minus grey mean intensity, by white"),
    "bias_range": ("bias range", "95th by 5th percentile of the bias field"),
    "resolution_mm": ("resolution (mm)", "Root mean square of the voxel's sides"),
    "tiv_ml": ("brain mask (mL)", "Volume of the brain mask in the scan's own space"),
    "head_size_factor": ("head size factor", "Volume of the head relative to the template"),
    "gm_ml": ("GM (mL)", "Grey-matter volume in the scan's own space"),
    "wm_ml": ("WM (mL)", "White-matter volume in the scan's own space"),
    "csf_ml": ("CSF (mL)", "Fluid volume inside the brain mask"),
    "noise_ratio": ("noise ratio", "Noise SD by mean white-matter intensity"),
}
"""Column of `quality.tsv` to its name on the page and in the figure, and its explanation."""

WORST_FIRST = dict.fromkeys(("outside_fraction", "bias_range", "noise_to_contrast", "resolution_mm"), "high")
"""Measures whose highest values are looked at first; of the others the lowest. They are those that are bad when high."""

STRIPS_PER_ROW = 3


@mpl.rc_context(style.STYLE)
def draw(quality: pd.DataFrame) -> Figure:
    """Every scan on every measure.

    Parameters
    ----------
    quality : (scan, column) DataFrame
        `prepared/quality.tsv`: the measures, and `flags` (text, empty when none), the measures a scan stands out in.

    Returns
    -------
    Figure
        One strip per measure that varies; a scan that stands out in a measure is an orange square there.
    """
    known = [name for name in COLUMN_NAMES if name in quality and pd.api.types.is_numeric_dtype(quality[name])]
    shown = [name for name in known if quality[name].nunique() > 1]
    if not shown:
        return style.message("No quality measure varies between the scans.")
    outliers = quality["flags"].fillna("").astype(str).str.split(", ")
    n_rows = -(-len(shown) // STRIPS_PER_ROW)
    drawn = style.figure(8.6, 0.2 + 0.85 * n_rows)
    grid = drawn.subplots(n_rows, STRIPS_PER_ROW, squeeze=False).ravel()
    for axes, name in zip(grid, shown, strict=False):
        _strip(axes, quality[name], outliers.map(lambda names, name=name: name in names), COLUMN_NAMES[name][0])
    for axes in grid[len(shown) :]:
        axes.set_axis_off()
    return drawn


def _strip(axes: Axes, values: pd.Series, flagged: pd.Series, label: str) -> None:
    heights = pd.Series(style.spread(len(values)), values.index)
    for chosen, colour, marker, size in ((~flagged, style.BLUE, "o", 12), (flagged, style.ORANGE, "s", 20)):
        axes.scatter(values[chosen], heights[chosen], s=size, c=colour, marker=marker, alpha=0.75, lw=0)
    axes.set_ylim(-0.9, 0.9)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.locator_params(axis="x", nbins=5)
    axes.set_xlabel(style.plain(label, width=40))
