"""Projections: where the scans lie on the first components, and what these components follow."""

from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from nilatent.errors import FindingError
from nilatent.finding import Finding
from nilatent.plots import style

NOT_GIVEN = "not given"
MAX_LEVELS = 30
"""A column of text with more different values is a name or a note, not a property."""
FEW_NUMBERS = 5
"""A column of so few different numbers is a code, shown as levels."""
ALPHA = 0.05
SYMBOLS = {
    "o": "circle",
    "s": "square",
    "^": "triangle-up",
    "D": "diamond",
    "v": "triangle-down",
    "P": "cross",
    "X": "x",
    "*": "star",
}
COLUMN_NAMES = {
    "component": ("component", ""),
    "explained": ("variance, training", "Share of the variance of the latents of the training scans"),
    "explained_heldout": ("variance, held out", "Share of the variance of the latents of held-out scans"),
    "r2_*": ("R² of *", "Share of the component that the variable explains, over first sessions"),
    "p_*": ("p of *", "By permutation, family-wise over components"),
}


@mpl.rc_context(style.STYLE)
def draw(finding: Finding) -> Figure:
    """Every scan on the first two components of the latents; rings mark held-out scans.

    Parameters
    ----------
    finding
        Of `projections`: data `scores` (scan, component) with `part` and `scan_<group>`; table `component`, `explained`.

    Returns
    -------
    Figure
        Scatter by group, or by data set without one.
    """
    if finding.table.empty:
        return style.message("There is no component to show.")
    scores, part = finding.data["scores"].values, finding.data["part"].values
    groups = _groups(finding.data, str(finding.settings.get("group", "")))
    second = scores[:, 1] if scores.shape[1] > 1 else np.zeros(len(scores))
    drawn = style.figure(6.4, 4.4)
    axes = drawn.add_subplot()
    for label, (colour, marker) in style.looks(sorted(set(groups))).items():
        for held_out, strength, edge in ((False, 0.45, 0.0), (True, 1.0, 0.8)):
            rows = (groups == label) & ((part == "test") == held_out)
            axes.scatter(
                scores[rows, 0],
                second[rows],
                s=24,
                c=colour,
                marker=marker,
                alpha=strength,
                lw=edge,
                edgecolor=style.INK,
            )
        axes.scatter([], [], s=24, c=colour, marker=marker, lw=0, label=style.plain(label, width=28))
    if (part == "test").any():
        axes.scatter([], [], s=24, c="none", edgecolor=style.INK, lw=0.8, label="ringed: held out")
    axes.set_xlabel(_axis_label(finding.table, 0))
    axes.set_ylabel(_axis_label(finding.table, 1) if scores.shape[1] > 1 else "")
    drawn.legend(loc="outside upper left", ncols=4, handletextpad=0.1, columnspacing=1.2)
    return drawn


@mpl.rc_context(style.STYLE)
def draw_relations(finding: Finding) -> Figure:
    """Share of each component (R²) that each variable explains; a star where p, family-wise over components, is at most 0.05.

    Parameters
    ----------
    finding
        Of `projections`: table `component`, and `r2_*`, `p_*` per variable.

    Returns
    -------
    Figure
        Grid of variables by components.
    """
    table = finding.table
    variables = [str(name).removeprefix("r2_") for name in table if str(name).startswith("r2_")]
    if not variables:
        return style.message("No variable of the cohort could be related to the components.")
    r2 = table[[f"r2_{name}" for name in variables]].to_numpy(dtype=float).T
    p = table[[f"p_{name}" for name in variables]].to_numpy(dtype=float).T
    norm = Normalize(0.0, max(0.3, float(np.nanmax(r2))))
    drawn = style.figure(1.6 + 0.6 * len(table), 0.6 + 0.36 * len(variables))
    axes = drawn.add_subplot()
    axes.imshow(r2, norm=norm, cmap="Blues", aspect="auto")
    for (row, column), value in np.ndenumerate(r2):
        # The cells keep their light paper on a dark page, so this ink must not follow the theme.
        ink = "#ffffff" if norm(value) > 0.6 else "#102a43"
        star = "*" if p[row, column] <= ALPHA else ""
        axes.text(column, row, f"{value:.2f}{star}", ha="center", va="center", fontsize=8, color=ink)
    axes.set_xticks(range(len(table)), [style.plain(name) for name in table["component"]])
    axes.set_yticks(range(len(variables)), [style.plain(name, width=28) for name in variables])
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return drawn


def _groups(data: xr.Dataset, group: str) -> np.ndarray:
    for name in (group, "dataset"):
        stored = f"scan_{name}".replace("/", "_")
        if name and stored in data:
            words = data[stored].values.astype(str)
            return np.array([NOT_GIVEN if word in ("", "n/a", "nan") else word for word in words])
    return np.full(data.sizes["scan"], "all scans")


def _axis_label(table: pd.DataFrame, position: int) -> str:
    row = table.iloc[position]
    return f"{style.plain(row['component'])} ({row['explained']:.0%} of variance)"


def scatter(finding: Finding, columns: pd.DataFrame) -> dict[str, Any]:
    """Values of the interactive scatter: axes to choose from, and columns to colour by.

    Parameters
    ----------
    finding
        Of `projections`.
    columns : (scan, column) DataFrame
        Index scan_id; what is known of every scan, in the order of choice.

    Returns
    -------
    dict
        Plain values for JSON; missing ones are None.

    Raises
    ------
    FindingError
        When a scan of the finding is not in `columns`.
    """
    scans = [str(scan) for scan in finding.data["scan"].values]
    absent = [scan for scan in scans if scan not in columns.index]
    if absent:
        raise FindingError(
            f"scan {absent[0]} ({len(absent)} in all) of finding {finding.name} is not in the cohort. "
            "Run `nilatent analyse projections` again."
        )
    scores = finding.data["scores"].values
    axes = [
        {"label": f"{row['component']} ({row['explained']:.0%} of variance)", "values": _numbers(scores[:, position])}
        for position, (_, row) in enumerate(finding.table.iterrows())
    ]
    made = [_colouring(str(name), columns.loc[scans][name]) for name in columns]
    useful = [column for column in made if column is not None]
    everything = {"name": "all scans", "numeric": False, "values": ["scan"] * len(scans), "levels": _levels(["scan"])}
    return {"scan": scans, "axes": axes, "columns": useful or [everything]}


def _colouring(name: str, values: pd.Series) -> dict[str, Any] | None:
    """A column as a choice of colour, or None where it would say nothing."""
    n_different = values.nunique()
    numeric = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
    if n_different < 2 or (not numeric and n_different > MAX_LEVELS):
        return None
    if numeric and n_different > FEW_NUMBERS:
        return {"name": name, "numeric": True, "values": _numbers(values.to_numpy(dtype=float)), "levels": []}
    text = [NOT_GIVEN if pd.isna(value) else f"{value:g}" if numeric else str(value) for value in values]
    return {"name": name, "numeric": False, "values": text, "levels": _levels(sorted(set(text)))}


def _levels(names: list[str]) -> list[dict[str, str]]:
    return [
        {"name": name, "colour": colour, "symbol": SYMBOLS[marker]}
        for name, (colour, marker) in style.looks(names).items()
    ]


def _numbers(values: np.ndarray) -> list[float | None]:
    # Six digits place a dot; more would only make the page heavier.
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in values]
