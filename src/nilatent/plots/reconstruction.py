"""Reconstruction: what is left unexplained beside the baselines, and the scans to look at."""

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from nilatent.finding import Finding
from nilatent.plots import brain, style

METHODS = {"model": (style.BLUE, "o"), "pca": (style.ORANGE, "s"), "mean image": (style.QUIET, "D")}
PLANES: tuple[brain.Plane, ...] = ("axial", "coronal")
KINDS = {"original": "original", "model": "reconstruction", "error": "error"}
ERROR_MAP = "berlin"
"""Diverging about black, so that no error looks like the empty panel."""
ERROR_QUANTILE = 0.998
LABELS_INCHES = 2 * brain.BAR_INCHES + 0.4

COLUMN_NAMES = {
    "stratum": ("scans", "All held-out scans, or those of one data set or group"),
    "part": ("part", "test: held out; train: seen by the model"),
    "method": ("method", "PCA and the mean image are fitted on the training scans"),
    "fvu": ("FVU", "Fraction of variance left unexplained: squared error relative to the mean image; lower is better"),
    "fvu_low": ("95 % from", "Bootstrap interval of FVU over persons"),
    "fvu_high": ("to", "Bootstrap interval of FVU over persons"),
    "mse": ("MSE", "Mean squared error inside the mask; lower is better"),
    "mae": ("MAE", "Mean absolute error inside the mask; lower is better"),
    "psnr": ("PSNR (dB)", "Peak signal-to-noise ratio; higher is better"),
    "ssim": ("SSIM", "Structural similarity in three dimensions; higher is better"),
    "gm_error_percent": ("GM error (%)", "Mean absolute error of total grey matter"),
    "n_scans": ("n scans", ""),
    "n_subjects": ("n persons", ""),
    "mse_sd": ("SD of MSE", "Over scans"),
    "ssim_sd": ("SD of SSIM", "Over scans"),
}
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
    drawn = style.figure(7.2, 1.05 + 0.42 * len(strata))
    axes = drawn.add_subplot()
    for index, (method, (colour, marker)) in enumerate(METHODS.items()):
        rows = held[held["method"] == method].set_index("stratum").reindex(strata)
        height = np.arange(len(strata)) + 0.2 * (index - 1)
        axes.hlines(height, rows["fvu_low"], rows["fvu_high"], color=colour, lw=1.6)
        axes.scatter(rows["fvu"], height, s=30, c=colour, marker=marker, zorder=3, label=method, lw=0)
    axes.axvline(1.0, color=style.QUIET, lw=0.8, ls=":")
    axes.set_yticks(range(len(strata)), [style.plain(name, width=32) for name in strata])
    axes.set_ylim(len(strata) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color=style.QUIET, alpha=0.25, lw=0.6)
    axes.set_xlabel("variance left unexplained (FVU): 0 keeps everything, 1 is the mean image")
    drawn.legend(loc="outside upper left", ncols=3, handletextpad=0.2)
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
        axes.set_ylabel(f"{style.plain(case)}\n{style.plain(scan, width=22)}", fontsize=8)
    every = list(panels.flat)
    unit = "T1 intensity" if finding.settings.get("target") == "t1w" else "grey-matter fraction"
    brain.colour_bar(drawn, every, amount, "gray", unit)
    brain.colour_bar(drawn, every, signed, ERROR_MAP, "reconstruction − original", extend="both")
    return drawn


def _cuts(data: xr.Dataset, kind: str, plane: brain.Plane) -> list[brain.Cut]:
    """Slices of every case in voxels; where original and reconstruction are both empty, the error is no number."""
    values = data[f"{kind}_{plane}"].values.astype(float)
    if kind == "error":
        empty = (data[f"original_{plane}"].values == 0) & (data[f"model_{plane}"].values == 0)
        values = np.where(empty, np.nan, values)
    edges = (0.0, float(values.shape[1]), 0.0, float(values.shape[2]))
    return [brain.Cut(case.T, edges, plane, None) for case in values]
