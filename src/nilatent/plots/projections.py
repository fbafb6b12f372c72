"""Projections: where the scans lie on each map, what its components follow, and how far it can be believed."""

import textwrap
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from nilatent.errors import FindingError
from nilatent.finding import Finding
from nilatent.plots import style

NOT_GIVEN = "not given"
MAX_LEVELS = 30
"""A column of text with more different values is a name or a note, not a property."""
FEW_NUMBERS = 5
"""A column of so few different numbers is a code, shown as levels."""
ALPHA = 0.05
CROWDED = 11
"""Columns of a grid whose heads still fit side by side in print."""
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
MAIN_SPACE, MAIN_METHOD = "latents", "PCA"
COLUMN_NAMES = {
    "component": ("component", "PC by variance; PLS told the group of training scans; t-SNE and UMAP by neighbours"),
    "method": ("method", ""),
    "space": ("of", "The latents, and two baselines: regional means, and principal components of the voxels"),
    "n_subjects": ("subjects", "PLS: those outside the training part alone"),
    "explained": ("variance, training", "Share of the variance of training scans"),
    "explained_heldout": ("variance, held out", "Share of the variance of held-out scans"),
    "r2_*": ("R² of *", "Share of the component that the variable explains, over first sessions"),
    "p_*": ("p of *", "By permutation within sites, family-wise over the components of the map"),
    "region": ("region", "The region whose grey matter the component follows most"),
    "region_r": ("r of region", "Correlation of the component with that region"),
    "region_p": ("p of region", "By permutation, family-wise over the regions and components of the map"),
}


@mpl.rc_context(style.STYLE)
def draw(finding: Finding) -> Figure:
    """Every scan on the first two dimensions of each map of the latents; rings mark held-out scans.

    Parameters
    ----------
    finding
        Of `projections`: data `scores` (scan, component) with `part` and `scan_<group>`; table `component`, `explained`,
        `space`, `method`.

    Returns
    -------
    Figure
        One scatter per method, by group, or by data set without one.
    """
    if finding.table.empty:
        return style.message("There is no component to show.")
    return _scatters(finding, [MAIN_SPACE], size=4.4)


@mpl.rc_context(style.STYLE)
def draw_spaces(finding: Finding) -> Figure:
    """The same maps of the latents and of what needs no model: regional means, and principal components of the voxels.

    Parameters
    ----------
    finding
        As in :func:`draw`.

    Returns
    -------
    Figure
        One row per space, one column per method.
    """
    if "space" not in finding.table or finding.table["space"].nunique() < 2:
        return style.message("There is no baseline to compare with.")
    return _scatters(finding, list(dict.fromkeys(finding.table["space"])), size=2.6)


@mpl.rc_context(style.STYLE)
def draw_relations(finding: Finding) -> Figure:
    """Share of each component (R²) that each variable explains; a star where p, family-wise over components, is at most 0.05.

    Parameters
    ----------
    finding
        Of `projections`: table `component`, and `r2_*`, `p_*` per variable; of the latents alone where there are others.

    Returns
    -------
    Figure
        Grid of components by variables.
    """
    table = finding.table
    table = table[table["space"] == MAIN_SPACE] if "space" in table else table
    variables = [str(name).removeprefix("r2_") for name in table if str(name).startswith("r2_")]
    if not variables or table.empty:
        return style.message("No variable of the cohort could be related to the components.")
    values = table[[f"r2_{name}" for name in variables]].to_numpy(dtype=float)
    p = table[[f"p_{name}" for name in variables]].to_numpy(dtype=float)
    drawn = style.figure(min(1.2 + 0.95 * len(variables), style.WIDEST_INCHES), 0.7 + 0.26 * len(table))
    axes = drawn.add_subplot()
    heads = [_wrapped(name) for name in variables]
    # A component is explained by several variables at most once over: shades are those of a share.
    shade = values / max(0.3, float(np.nanmax(values, initial=0.0)))
    _grid(axes, values, shade, p, rows=[style.plain(name) for name in table["component"]], columns=heads)
    return drawn


@mpl.rc_context(style.STYLE)
def draw_quality(finding: Finding) -> Figure:
    """How far each map can be believed, and whether neighbours share what is known; a star where p, over maps, is at most 0.05.

    Parameters
    ----------
    finding
        Of `projections`: data `trustworthiness`, `continuity` (map, judged), `overlap`, `procrustes` (map), `purity` and
        `silhouette` with `_chance` and `_fwe` (map, judged, variable), `space`, `method`, `variable`, `are_levels`.

    Returns
    -------
    Figure
        Grid of maps by measures; those of PLS are of the scans outside the training part.
    """
    data = finding.data
    if "trustworthiness" not in data or not data.sizes["map"]:
        return style.message("The quality of these maps was not measured.")
    names, values, shade, p = _measures(data)
    rows = [
        style.plain(f"{method} of {space}" + (", others only" if method == "PLS" else ""))
        for space, method in zip(data["space"].values, data["method"].values, strict=True)
    ]
    drawn = style.figure(min(2.1 + 0.8 * len(names), style.WIDEST_INCHES), 1.2 + 0.26 * len(rows))
    axes = drawn.add_subplot()
    _grid(axes, values, shade, p, rows=rows, columns=names)
    spaces = data["space"].values
    for border in np.flatnonzero(spaces[1:] != spaces[:-1]):
        axes.axhline(border + 0.5, color=style.INK, lw=0.8)
    return drawn


def _measures(data: xr.Dataset) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
    """Heads, and (map, measure) values, shades in [0, 1] and p-values (NaN without one)."""
    # PLS knows the training scans, so its numbers are those of the others.
    set_of = (data["method"].values == "PLS").astype(int)
    at = np.arange(data.sizes["map"])
    names, values, shades, p = [], [], [], []
    for name, head in (("trustworthiness", "trust-\nworthy"), ("continuity", "con-\ntinuous")):
        found = data[name].values[at, set_of]
        names.append(head)
        values.append(found)
        shades.append(2 * found - 1)
        p.append(np.full(len(at), np.nan))
    for name, head, best in (("overlap", "shared\nwhen\nrefitted", 1.0), ("procrustes", "moved\nwhen\nrefitted", 0.0)):
        names.append(head)
        values.append(data[name].values)
        shades.append(1 - np.abs(best - data[name].values))
        p.append(np.full(len(at), np.nan))
    for what, head in (("purity", "neigh-\nbours:\n"), ("silhouette", "silhouette:\n")):
        for column, variable in enumerate(data["variable"].values):
            found, chance = (data[f"{what}{end}"].values[at, set_of, column] for end in ("", "_chance"))
            if np.isfinite(found).any():
                amount = " (R²)" if what == "purity" and not data["are_levels"].values[column] else ""
                names.append(head + _wrapped(f"{variable}{amount}"))
                values.append(found)
                shades.append((found - chance) / (1 - chance))
                p.append(data[f"{what}_fwe"].values[at, set_of, column])
    return names, np.array(values).T, np.array(shades).T, np.array(p).T


def _wrapped(name: object) -> str:
    return textwrap.fill(style.plain(name, width=30).replace("_", " "), 12)


def _grid(
    axes: Axes, values: np.ndarray, shade: np.ndarray, p: np.ndarray, *, rows: list[str], columns: list[str]
) -> None:
    """Numbers on shaded cells, starred where p is small; an empty cell where there is no number."""
    norm = Normalize(0.0, 1.0)
    axes.imshow(shade, norm=norm, cmap="Blues", aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        if not np.isfinite(value):
            continue
        ink = "#ffffff" if shade[row, column] > 0.6 else style.CELL_INK
        star = "*" if p[row, column] <= ALPHA else ""
        # Adding zero makes a minus zero plain.
        text = f"{round(value, 2) + 0.0:.2f}{star}".replace("-", "\u2212")
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color=ink)
    crowded = len(columns) > CROWDED
    axes.set_xticks(range(len(columns)), columns, rotation=90 if crowded else 0)
    axes.set_yticks(range(len(rows)), rows)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _scatters(finding: Finding, spaces: list[str], *, size: float) -> Figure:
    """Scatter of each map of some spaces, a row per space; `size` in inches."""
    table = finding.table
    # A finding of PCA alone says neither space nor method.
    of = table["space"] if "space" in table else pd.Series(MAIN_SPACE, index=table.index)
    by = table["method"] if "method" in table else pd.Series(MAIN_METHOD, index=table.index)
    methods = list(dict.fromkeys(by[of.isin(spaces)]))
    if not methods:
        return style.message("There is no map to show.")
    groups = _groups(finding.data, str(finding.settings.get("group", "")))
    looks = style.looks(sorted(set(groups)))
    alone, small = len(methods) == 1 and len(spaces) == 1, len(spaces) > 1
    n_columns = len(methods) if small else min(2, len(methods))
    n_rows = len(spaces) if small else -(-len(methods) // n_columns)
    size = min(size, style.WIDEST_INCHES / (1.15 * n_columns))
    drawn = style.figure(6.4 if alone else 1.15 * size * n_columns, 4.4 if alone else 0.8 * size * n_rows)
    panels = [(space, method) for space in spaces for method in methods]
    held_out = finding.data["part"].values == "test"
    for position, (space, method) in enumerate(panels):
        axes = drawn.add_subplot(n_rows, n_columns, position + 1)
        shown = np.flatnonzero((of == space) & (by == method))
        _dots(axes, finding.data["scores"].values[:, shown[:2]], groups, held_out, looks, size=10 if small else 24)
        if small:
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_title(_title(method) if position < n_columns else "")
            axes.set_ylabel(style.plain(space) if position % n_columns == 0 else "")
        else:
            axes.set_title("" if alone else _title(method))
            _label(axes, table.iloc[shown[:2]])
    _legend(drawn, looks, any_held_out=bool(held_out.any()))
    return drawn


def _dots(
    axes: Axes,
    scores: np.ndarray,
    groups: np.ndarray,
    held_out: np.ndarray,
    looks: dict[str, tuple[str, str]],
    *,
    size: float,
) -> None:
    if scores.shape[1] == 0:
        axes.text(0.5, 0.5, "not run", ha="center", va="center", transform=axes.transAxes)
        return
    second = scores[:, 1] if scores.shape[1] > 1 else np.zeros(len(scores))
    placed = np.isfinite(scores[:, 0])
    for label, (colour, marker) in looks.items():
        for of_test, strength, edge in ((False, 0.45, 0.0), (True, 1.0, 0.8)):
            rows = placed & (groups == label) & (held_out == of_test)
            x, y = scores[rows, 0], second[rows]
            axes.scatter(x, y, s=size, c=colour, marker=marker, alpha=strength, lw=edge, edgecolor=style.INK)


def _title(method: str) -> str:
    return style.plain(method) + (", scans outside training" if method == "PLS" else "")


def _label(axes: Axes, table: pd.DataFrame) -> None:
    names = [_axis_label(table, position) for position in range(len(table))]
    axes.set_xlabel(names[0])
    axes.set_ylabel(names[1] if len(names) > 1 else "")
    if not np.isfinite(table["explained"].to_numpy(dtype=float)).all():
        # The units of a map by neighbours mean nothing.
        axes.set_xticks([])
        axes.set_yticks([])


def _legend(drawn: Figure, looks: dict[str, tuple[str, str]], *, any_held_out: bool) -> None:
    handles = [
        Line2D([], [], ls="", marker=marker, ms=5, color=colour, label=style.plain(label, width=28))
        for label, (colour, marker) in looks.items()
    ]
    if any_held_out:
        ring = Line2D([], [], ls="", marker="o", ms=5, mfc="none", mec=style.INK, mew=0.8, label="ringed: held out")
        handles.append(ring)
    drawn.legend(handles=handles, loc="outside upper left", ncols=4, handletextpad=0.1, columnspacing=1.2)


def _groups(data: xr.Dataset, group: str) -> np.ndarray:
    for name in (group, "dataset"):
        stored = f"scan_{name}".replace("/", "_")
        if name and stored in data:
            words = data[stored].values.astype(str)
            return np.array([NOT_GIVEN if word in ("", "n/a", "nan") else word for word in words])
    return np.full(data.sizes["scan"], "all scans")


def _axis_label(table: pd.DataFrame, position: int) -> str:
    row = table.iloc[position]
    if not np.isfinite(row["explained"]):
        return style.plain(row["component"])
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
        {"label": _choice(finding.table, position), "values": _numbers(scores[:, position])}
        for position in _offered(finding.table)
    ]
    made = [_colouring(str(name), columns.loc[scans][name]) for name in columns]
    useful = [column for column in made if column is not None]
    everything = {"name": "all scans", "numeric": False, "values": ["scan"] * len(scans), "levels": _levels(["scan"])}
    return {"scan": scans, "axes": axes, "columns": useful or [everything]}


def _offered(table: pd.DataFrame) -> list[int]:
    """Rows of the components of the latents, and of the first two of each map of a baseline."""
    if "space" not in table:
        return list(range(len(table)))
    of_map = table.groupby(["space", "method"], sort=False).cumcount()
    return [int(row) for row in np.flatnonzero((table["space"] == MAIN_SPACE) | (of_map < 2))]


def _choice(table: pd.DataFrame, position: int) -> str:
    row = table.iloc[position]
    notes = [f"{row['explained']:.0%} of variance"] if np.isfinite(row["explained"]) else []
    notes += ["scans outside training"] if "method" in table and row["method"] == "PLS" else []
    return f"{row['component']} ({', '.join(notes)})" if notes else str(row["component"])


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
