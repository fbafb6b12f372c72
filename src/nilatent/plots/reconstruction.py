"""Reconstruction: what is left unexplained beside the baselines, and the scans to look at."""

import matplotlib as mpl
import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from nilatent.finding import Finding
from nilatent.plots import brain, style

METHODS = {"model": ("#0072B2", "o"), "pca": ("#D55E00", "s"), "mean image": (style.QUIET, "D")}
PLANES: tuple[brain.Plane, ...] = ("axial", "coronal")
KINDS = {"original": "original", "model": "reconstruction", "error": "error"}
ERROR_MAP = "berlin"
"""Diverging about black, so that no error looks like the empty panel."""

COLUMN_NAMES = {
    "stratum": ("scans", "All held-out scans, or those of one data set or group"),
    "part": ("part", "test: held out; train: seen by the model"),
    "method": ("method", "PCA and the mean image are fitted on the training scans"),
    "n_scans": ("n scans", ""),
    "n_subjects": ("n persons", ""),
    "fvu": ("FVU", "Fraction of variance left unexplained: squared error relative to the mean image; lower is better"),
    "fvu_low": ("95 % from", "Bootstrap interval of FVU over persons"),
    "fvu_high": ("to", "Bootstrap interval of FVU over persons"),
    "mse": ("MSE", "Mean squared error inside the mask; lower is better"),
    "mse_sd": ("SD of MSE", "Over scans"),
    "mae": ("MAE", "Mean absolute error inside the mask; lower is better"),
    "psnr": ("PSNR (dB)", "Peak signal-to-noise ratio; higher is better"),
    "ssim": ("SSIM", "Structural similarity in three dimensions; higher is better"),
    "ssim_sd": ("SD of SSIM", "Over scans"),
    "gm_error_percent": ("GM error (%)", "Mean absolute error of total grey matter"),
}
MAPS = {
    "fvu": ("variance left unexplained (FVU)", (0.0, 1.2)),
    "mae": ("mean absolute error (grey-matter fraction)", None),
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
    cuts = {
        (kind, plane): [
            brain.Cut(values.T, (0.0, float(values.shape[0]), 0.0, float(values.shape[1])), plane, None)
            for values in data[f"{kind}_{plane}"].values
        ]
        for plane in PLANES
        for kind in KINDS
    }
    drawn, panels = brain.mosaic(
        [cuts["original", plane][0] for plane in PLANES for _ in KINDS], n_rows=data.sizes["case"]
    )
    largest = max(float(np.max(data[f"{kind}_{plane}"].values)) for kind in ("original", "model") for plane in PLANES)
    farthest = max(float(np.max(np.abs(data[f"error_{plane}"].values))) for plane in PLANES)
    amount, signed = Normalize(0.0, largest or 1.0), Normalize(-(farthest or 1.0), farthest or 1.0)
    for column, (kind, plane) in enumerate((kind, plane) for plane in PLANES for kind in KINDS):
        panels[0, column].set_title(KINDS[kind], fontsize=8.5, pad=3)
        looks = (signed, ERROR_MAP) if kind == "error" else (amount, "gray")
        for axes, shown in zip(panels[:, column], cuts[kind, plane], strict=True):
            brain.show(axes, shown, norm=looks[0], colour_map=looks[1])
    for axes, case, scan in zip(panels[:, 0], data["case"].values, data["case_scan"].values, strict=True):
        axes.set_ylabel(f"{style.plain(case)}\n{style.plain(scan, width=22)}", fontsize=8)
    every = list(panels.flat)
    brain.colour_bar(drawn, every, amount, "gray", "grey-matter fraction")
    brain.colour_bar(drawn, every, signed, ERROR_MAP, "reconstruction − original")
    return drawn
