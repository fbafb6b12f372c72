"""What projections say in words: the answer, and what the reader must not conclude."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

from nilatent.analysis.projections.made import LATENTS
from nilatent.analysis.projections.maps import NAMES, Method
from nilatent.analysis.projections.quality import OUTSIDE

ALPHA = 0.05


def site_clusters(table: pd.DataFrame, quality: xr.Dataset, site: str) -> list[str]:
    """Where the latents separate sites: components that the site explains, and maps on which neighbours share it."""
    found = []
    if f"p_{site}" in table:
        rows = table[(table["space"] == LATENTS) & (table["method"] != NAMES["pls"]) & (table[f"p_{site}"] <= ALPHA)]
        found += [f"{name} (R2 {r2:.2f})" for name, r2 in zip(rows["component"], rows[f"r2_{site}"], strict=True)]
    for row in _by_neighbours(quality, site):
        if row.space == LATENTS and row.p_fwe <= ALPHA:
            found.append(f"neighbours in {row.words} (purity {row.purity:.2f}, {row.chance:.2f} by chance)")
    return found


def answer(table: pd.DataFrame, quality: xr.Dataset, *, group: str, target: str, clusters: list[str]) -> str:
    """The finding in a few sentences, with its numbers; `target` is what PLS was told."""
    parts = [
        _shares(table),
        _faithful(quality),
        _related(table, group),
        _by_group(quality, group),
        _told(quality, target),
    ]
    if clusters:
        parts.append(f"Failure: scans cluster by site on {', '.join(clusters)}.")
    return " ".join(part for part in parts if part)


def caveats(
    clusters: list[str],
    not_made: Mapping[tuple[str, Method], str],
    *,
    site: str,
    target: str,
    unrelated: list[str],
    methods: list[str],
    counts: Mapping[str, int],
) -> tuple[str, ...]:
    """What the reader must not conclude.

    Parameters
    ----------
    clusters : list[str]
        Where sites are separated.
    not_made : Mapping
        Space and method to the reason why there is no map.
    site, target : str
        Columns of the site and of what PLS is told.
    unrelated : list[str]
        Columns that could not be related.
    methods : list[str]
        Methods of which there is a map.
    counts : Mapping[str, int]
        ``scans``, ``first`` sessions, ``seen`` by the model, ``outside`` the training part.
    """
    lines = []
    if clusters:
        lines.append(
            f"Failure: the latents separate the levels of '{site}' on {', '.join(clusters)}. Any comparison across it mixes "
            "scanner with brain; name it with --site, and harmonise before pooling. Components and neighbours are tested "
            "at 5 % each."
        )
    lines.append(
        "Components are directions of largest variance, not biological factors; a visible cluster is not a disease entity."
    )
    if {"tsne", "umap"} & set(methods):
        lines.append(
            "On t-SNE and UMAP only neighbours mean something: sizes of clusters, gaps and far distances do not, and where the "
            "map repeats badly neither does its arrangement."
        )
        lines.append(
            "Scans outside the training part are placed, not fitted, which alone moves them: t-SNE tends to put them further in "
            "than their like in training, UMAP further out. Compare placed scans with placed ones."
        )
    if "pls" in methods:
        lines.append(
            f"PLS was told '{target}' of training scans, and separates these even if '{target}' has nothing to do with the "
            f"brain: only the {counts['outside']} other scans are shown and judged."
        )
    lines.append(
        f"{counts['seen']} of {counts['scans']} scans are of subjects the model was fitted on; neither model nor maps knew "
        "the rest."
    )
    if counts["scans"] > counts["first"]:
        lines.append(f"p-values use the first session of each subject ({counts['first']} of {counts['scans']} scans).")
    if unrelated:
        lines.append(f"Not in the cohort, constant, or mostly missing, and so not related: {', '.join(unrelated)}.")
    return (*lines, *_not_made(not_made))


def _shares(table: pd.DataFrame) -> str:
    pcs = table[(table["space"] == LATENTS) & (table["method"] == NAMES["pca"])]
    if pcs.empty:
        return ""
    share = pcs[["explained", "explained_heldout"]].head(2).sum(min_count=1)
    held = "" if np.isnan(share["explained_heldout"]) else f" ({share['explained_heldout']:.0%} in held-out scans)"
    return f"The first two components hold {share['explained']:.0%} of the variance of the latents{held}."


def _faithful(quality: xr.Dataset) -> str:
    values = quality["trustworthiness"].values[:, 0]
    rows = zip(quality["space"].values, quality["method"].values, values, strict=True)
    said = [f"{method} {value:.2f}" for space, method, value in rows if space == LATENTS and np.isfinite(value)]
    if not said:
        return ""
    return f"Neighbours on a map are neighbours in the latents with trustworthiness {', '.join(said)} (0.50 is chance)."


def _related(table: pd.DataFrame, group: str) -> str:
    # PLS is judged on other scans, and has a sentence of its own.
    table = table[(table["space"] == LATENTS) & (table["method"] != NAMES["pls"])]
    found = []
    for column in [str(name) for name in table if str(name).startswith("r2_")]:
        variable = column.removeprefix("r2_")
        tested = table[table[f"p_{variable}"].notna()]
        if tested.empty:
            continue
        best = tested.sort_values(f"p_{variable}", kind="stable").iloc[0]
        p = best[f"p_{variable}"]
        if p <= ALPHA:
            found.append(f"{variable} with {best['component']} (R2 {best[column]:.2f}, p = {p:.2g})")
        elif variable == group:
            found.append(f"{variable} with none (smallest p = {p:.2g})")
    return f"Related, family-wise over the components of a map: {'; '.join(found) or 'nothing that was measured'}."


def _by_group(quality: xr.Dataset, group: str) -> str:
    rows = _by_neighbours(quality, group)
    said = []
    for space in dict.fromkeys(row.space for row in rows):
        best = min((row for row in rows if row.space == space), key=lambda row: row.p_fwe)
        number = f"{best.purity:.2f} in {best.words}, {best.chance:.2f} by chance, p = {best.p_fwe:.2g}"
        said.append(f"{space} {number}")
    return f"Share of neighbours of the same {group}, at best: {'; '.join(said)}." if said else ""


def _told(quality: xr.Dataset, target: str) -> str:
    rows = [row for row in _by_neighbours(quality, target, judged=OUTSIDE) if row.words == NAMES["pls"]]
    if not rows:
        return ""
    are_levels = bool(quality["are_levels"].values[list(quality["variable"].values).index(target)])
    measure = f"share of neighbours of the same {target}" if are_levels else f"R2 of {target} on that of neighbours"
    said = "; ".join(f"{row.space} {row.purity:.2f}, {row.chance:.2f} by chance, p = {row.p_value:.2g}" for row in rows)
    n_judged = int(quality["n_judged"].values[OUTSIDE])
    return f"PLS, told {target} of training scans, on the {n_judged} other subjects, {measure}: {said}."


@dataclass(frozen=True)
class _Row:
    """How one map sorts scans by one variable."""

    space: str
    words: str
    purity: float
    chance: float
    p_value: float
    p_fwe: float


def _by_neighbours(quality: xr.Dataset, variable: str, *, judged: int = 0) -> list[_Row]:
    """The maps that are judged by this variable."""
    names = list(quality["variable"].values)
    if variable not in names:
        return []
    numbers = [
        quality[f"purity{end}"].values[:, judged, names.index(variable)] for end in ("", "_chance", "_p", "_fwe")
    ]
    rows = zip(quality["space"].values, quality["method"].values, *numbers, strict=True)
    return [
        _Row(str(space), str(method), *map(float, values)) for space, method, *values in rows if np.isfinite(values[0])
    ]


def _not_made(not_made: Mapping[tuple[str, Method], str]) -> list[str]:
    """One line per method and reason."""
    spaces: dict[tuple[Method, str], list[str]] = {}
    for (space, method), reason in not_made.items():
        spaces.setdefault((method, reason), []).append(space)
    return [
        f"{NAMES[method]} of {', '.join(named)} was not run: {reason.rstrip('.')}."
        for (method, reason), named in spaces.items()
    ]
