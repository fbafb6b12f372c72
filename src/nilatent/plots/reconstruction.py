"""Reconstruction: what is left unexplained beside the baselines, and the scans to look at."""

import textwrap

import matplotlib as mpl
import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from nilatent.finding import Finding
from nilatent.plots import brain, style

METHODS = {
    "model": (style.BLUE, "o"),
    "pca": (style.ORANGE, "s"),
    "down-sampling": (style.GROUP_COLOURS[2], "^"),
    "mean image": (style.QUIET, "D"),
}
BESIDE_MODEL = ("model", "pca")
N_REGIONS_SHOWN = 10
FARTHEST_FVU = 1.5
"""A few averages make a blob, whose FVU of 3 or 5 would push all other dots together: it is written at the edge."""
PLANES: tuple[brain.Plane, ...] = ("axial", "coronal")
KINDS = {"original": "original", "model": "reconstruction", "error": "error"}
ERROR_MAP = "berlin"
"""Diverging about black, so that no error looks like the empty panel."""
ERROR_QUANTILE = 0.998
LABELS_INCHES = 2 * brain.BAR_INCHES + 0.65
LABEL_WIDTH = 22

COLUMN_NAMES = {
    "stratum": ("scans", "All held-out scans, or those of one data set, group or site"),
    "part": ("part", "test: held out; train: seen by the model"),
    "method": (
        "method",
        "PCA and the mean image are fitted on the training scans; down-sampling keeps as many averages",
    ),
    "fvu": ("FVU", "Fraction of variance left unexplained: squared error relative to the mean image; lower is better"),
    "fvu_low": ("95 % from", "Bootstrap interval of FVU over persons"),
    "fvu_high": ("to", "Bootstrap interval of FVU over persons"),
    "ssim": ("SSIM", "Structural similarity in three dimensions, inside the mask; higher is better"),
    "ms_ssim": ("MS-SSIM", "Structural similarity at several scales, inside the mask; higher is better"),
    "feature_distance": ("feature distance", "Distance of deep features; 1 is that of a scan from the mean image"),
    "feature_cosine": (
        "feature cosine",
        "Cosine similarity of deep features about their training mean; higher is better",
    ),
    "cosine": ("cosine", "Cosine similarity of the deviations from the mean training image; higher is better"),
    "gm_error_percent": ("GM error (%)", "Mean absolute error of total grey matter"),
    "gm_bias_ml": ("GM bias (ml)", "Total grey matter of the reconstruction minus that of the scan"),
    "gm_ccc": ("GM concordance", "Lin's concordance of total grey matter in scan and reconstruction; 1 is perfect"),
    "mse": ("MSE", "Mean squared error inside the mask; lower is better"),
    "mae": ("MAE", "Mean absolute error inside the mask; lower is better"),
    "psnr": ("PSNR (dB)", "Peak signal-to-noise ratio inside the mask; higher is better"),
    "psnr_whole": ("PSNR, whole (dB)", "On the whole volume, with the background and what the mask cuts off"),
    "ssim_whole": ("SSIM, whole", "On the whole volume, with the background and what the mask cuts off"),
    "ms_ssim_whole": ("MS-SSIM, whole", "On the whole volume, with the background and what the mask cuts off"),
    "n_scans": ("n scans", ""),
    "n_subjects": ("n persons", ""),
    "mse_sd": ("SD of MSE", "Over scans"),
    "ssim_low": ("SSIM 95 % from", "Bootstrap interval over persons"),
    "ssim_high": ("to", "Bootstrap interval of SSIM over persons"),
    "ssim_sd": ("SD of SSIM", "Over scans"),
}
"""Columns of the page; the table on disk holds SD and interval of every measure."""
MAPS = {
    "fvu": ("variance left unexplained (FVU)", (0.0, 1.2)),
    "mae": ("mean absolute error (GM fraction)", None),
}
"""Map of the finding to the label of its colour bar and its limits (None: from zero to the largest)."""


@mpl.rc_context(style.STYLE)
def draw(finding: Finding) -> Figure:
    """Variance left unexplained on held-out scans, model beside baselines.

    Parameters
    ----------
    finding
        Of `reconstruction`: table rows of part `test`, columns `stratum`, `method`, `fvu`, `fvu_low`, `fvu_high`.

    Returns
    -------
    Figure
        One row per stratum; a dot per method with its bootstrap interval.
    """
    held = finding.table[finding.table["part"] == "test"]
    if held.empty:
        return style.message("No held-out scan was reconstructed.")
    strata = list(dict.fromkeys(held["stratum"]))
    drawn = style.figure(7.2, 1.05 + 0.5 * len(strata))
    axes = drawn.add_subplot()
    edge = _edge(held.loc[held["method"] != "down-sampling", ["fvu", "fvu_high"]].to_numpy(float))
    present = [method for method in METHODS if method in set(held["method"])]
    for index, method in enumerate(present):
        rows = held[held["method"] == method].set_index("stratum").reindex(strata)
        height = np.arange(len(strata)) + 0.2 * (index - (len(present) - 1) / 2)
        _dots(axes, rows["fvu"], (rows["fvu_low"], rows["fvu_high"]), height, method, edge=edge)
    # An interval that is wider than the axis runs out of it.
    axes.set_xlim(right=edge)
    axes.axvline(1.0, color=style.QUIET, lw=0.8, ls=":")
    _rows_named(axes, strata, width=32)
    axes.set_xlabel("variance left unexplained (FVU): 0 keeps everything, 1 is the mean image")
    drawn.legend(loc="outside upper left", ncols=4, handletextpad=0.2)
    return drawn


def _dots(
    axes: Axes, values: pd.Series, limits: tuple[pd.Series, pd.Series], height: np.ndarray, method: str, *, edge: float
) -> None:
    """Dots of a method with their intervals; what lies beyond the edge stands there as an arrow, with its value."""
    colour, marker = METHODS[method]
    far = (values > edge).to_numpy(bool)
    low, high = (limit.where(~far) for limit in limits)
    axes.hlines(height, low, high, color=colour, lw=1.6)
    axes.scatter(values.where(~far), height, s=30, c=colour, marker=marker, zorder=3, label=method, lw=0)
    for value, place in zip(values[far], height[far], strict=True):
        axes.scatter(edge, place, s=30, c=colour, marker=">", zorder=3, lw=0, clip_on=False)
        axes.annotate(
            f"{value:.1f}", (edge, place), (-6, 0), textcoords="offset points",
            fontsize=7.5, ha="right", va="center",
        )  # fmt: skip


def _edge(values: np.ndarray) -> float:
    """Right end of the axis: past the largest value that is not far out, and past the mean image."""
    return 1.04 * float(np.max(values[values <= FARTHEST_FVU], initial=1.0))


def _rows_named(axes: Axes, names: list[str], *, width: int) -> None:
    axes.set_yticks(range(len(names)), [style.plain(name, width=width) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color=style.QUIET, alpha=0.25, lw=0.6)


@mpl.rc_context(style.STYLE)
def draw_regions(finding: Finding) -> Figure:
    """Regions that survive best and worst, model beside PCA: variance left unexplained, and correlation of regional means.

    Parameters
    ----------
    finding
        Of `reconstruction`: data variables `region_fvu`, `region_fvu_low`, `region_fvu_high` and `region_correlation`
        (approach, region).

    Returns
    -------
    Figure
        One row per region, best on top, ordered by the model's FVU; of many regions the ten best and the ten worst.
    """
    data = finding.data
    if "region_fvu" not in data:
        return style.message("No region was measured.")
    ordered = data.isel(region=np.argsort(data["region_fvu"].sel(approach="model").values, kind="stable"))
    n_regions = ordered.sizes["region"]
    gap = n_regions > 2 * N_REGIONS_SHOWN
    shown = [*range(N_REGIONS_SHOWN), *range(n_regions - N_REGIONS_SHOWN, n_regions)] if gap else list(range(n_regions))
    ordered = ordered.isel(region=shown)
    drawn = style.figure(7.6, 1.15 + 0.235 * len(shown))
    left, right = drawn.subplots(1, 2, sharey=True)
    edge = _edge(ordered[["region_fvu", "region_fvu_high"]].sel(approach=list(BESIDE_MODEL)).to_array().values)
    for index, method in enumerate(BESIDE_MODEL):
        height = np.arange(len(shown)) + 0.3 * (index - 0.5)
        fvu, low, high = (
            pd.Series(ordered[f"region_fvu{end}"].sel(approach=method).values) for end in ("", "_low", "_high")
        )
        _dots(left, fvu, (low, high), height, method, edge=edge)
        colour, marker = METHODS[method]
        correlation = ordered["region_correlation"].sel(approach=method).values
        right.scatter(correlation, height, s=22, c=colour, marker=marker, lw=0)
    for axes in (left, right):
        _rows_named(axes, [str(name) for name in ordered["region"].values], width=34)
        if gap:
            axes.axhline(N_REGIONS_SHOWN - 0.5, color=style.QUIET, lw=0.8, ls=(0, (4, 3)))
    left.set_xlim(right=edge)
    left.axvline(1.0, color=style.QUIET, lw=0.8, ls=":")
    left.set_xlabel("variance left unexplained (FVU)")
    right.axvline(0.0, color=style.QUIET, lw=0.8, ls=":")
    right.set_xlim(right=1.0)
    right.set_xlabel("correlation of the region's mean")
    drawn.legend(loc="outside upper left", ncols=4, handletextpad=0.2)
    return drawn


@mpl.rc_context(style.STYLE)
def draw_slices(finding: Finding) -> Figure:
    """Original, reconstruction and error of the held-out scans with the lowest, the middle and the highest error.

    Parameters
    ----------
    finding
        Of `reconstruction`: data variables `original_axial`, `model_axial`, `error_axial` (case, x, y) and the same
        for the coronal plane, with the coordinate `case_scan`.

    Returns
    -------
    Figure
        One row per scan, three panels per plane, all marked L and R.
    """
    data = finding.data
    cuts = {(kind, plane): _cuts(data, kind, plane) for plane in PLANES for kind in KINDS}
    columns = list(cuts)
    width, height = (max(sizes) for sizes in zip(*(brain.size(cuts[column][0]) for column in columns), strict=True))
    panel = brain.Cut(np.empty((0, 0)), (0.0, width, 0.0, height), "axial", None)
    drawn, panels = brain.mosaic([panel] * len(columns), n_rows=data.sizes["case"], beside_inches=LABELS_INCHES)
    amounts = [data[f"{kind}_{plane}"].values for kind in ("original", "model") for plane in PLANES]
    errors = np.concatenate([np.abs(data[f"error_{plane}"].values).ravel() for plane in PLANES])
    amount = Normalize(0.0, max(float(values.max()) for values in amounts) or 1.0, clip=True)
    # A handful of voxels would make all other errors look like none.
    farthest = float(np.quantile(errors[errors > 0], ERROR_QUANTILE)) if errors.any() else 1.0
    signed = Normalize(-farthest, farthest, clip=True)
    for column, (kind, plane) in enumerate(columns):
        panels[0, column].set_title(KINDS[kind], fontsize=8.5, pad=3)
        norm, colour_map = (signed, ERROR_MAP) if kind == "error" else (amount, "gray")
        for axes, shown in zip(panels[:, column], cuts[kind, plane], strict=True):
            brain.show(axes, shown, norm=norm, colour_map=colour_map)
            brain.in_panel(axes, shown, width=width, height=height)
    for axes, case, scan in zip(panels[:, 0], data["case"].values, data["case_scan"].values, strict=True):
        mse = f"\nMSE {float(data['case_mse'].sel(case=case)):.2g}" if "case_mse" in data else ""
        axes.set_ylabel(f"{style.plain(case)}\n{_wrapped(str(scan))}{mse}", fontsize=8)
    every = list(panels.flat)
    unit = "T1 intensity" if finding.settings.get("target") == "t1w" else "grey-matter fraction"
    brain.colour_bar(drawn, every, amount, "gray", unit)
    brain.colour_bar(drawn, every, signed, ERROR_MAP, f"reconstruction − original ({unit})", extend="both")
    return drawn


def _wrapped(scan: str) -> str:
    """Id of a scan in lines of at most so many characters, broken after underscores: its end tells scans apart."""
    lines = textwrap.wrap(scan.replace("_", "_ "), LABEL_WIDTH, break_on_hyphens=False)
    return "\n".join(style.plain(line.replace("_ ", "_"), width=LABEL_WIDTH) for line in lines) or style.plain(scan)


def _cuts(data: xr.Dataset, kind: str, plane: brain.Plane) -> list[brain.Cut]:
    """Slices of every case in voxels; where original and reconstruction are both empty, the error is no number."""
    values = data[f"{kind}_{plane}"].values.astype(float)
    if kind == "error":
        empty = (data[f"original_{plane}"].values == 0) & (data[f"model_{plane}"].values == 0)
        values = np.where(empty, np.nan, values)
    edges = (0.0, float(values.shape[1]), 0.0, float(values.shape[2]))
    return [brain.Cut(case.T, edges, plane, None) for case in values]
