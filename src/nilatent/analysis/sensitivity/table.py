"""Table and arrays of the decoder's sensitivity: effects by direction and region, with names on every axis."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr
from scipy.stats import spearmanr

from nilatent.analysis.sensitivity.decoder import images_of
from nilatent.analysis.sensitivity.effects import SCORES, Effect, Model
from nilatent.atlas import RegionWeights
from nilatent.errors import SettingError
from nilatent.volumes import Grid

COLUMNS = (
    "direction", "kind", "unit", "region", "label", "effect", "effect_percent", "low", "high", "p", "p_regional", "baseline",
    "unseen", "p_unseen", "fold_low", "fold_high",
)  # fmt: skip
LRCP_COLUMNS = {"rank": "lrcp_rank", "a": "lrcp_a", "grade": "lrcp_grade", "p": "lrcp_p"}
# Regions of the table of each single latent or component; all are in the arrays.
N_TOP = 5
STEPS = (-2.0, -1.0, 0.0, 1.0, 2.0)


def region_table(
    effects: Sequence[Effect], weights: RegionWeights, mean: np.ndarray, lrcp: pd.DataFrame | None
) -> pd.DataFrame:
    """One row per direction and region: every region of what a column defines, the largest of latents and components.

    Parameters
    ----------
    effects : Sequence of Effect
        In the order of the table.
    weights : RegionWeights
        The atlas.
    mean : ndarray
        (region,) regional means of the image in the middle; percentages are of these.
    lrcp : DataFrame or None
        Table of LRCP, joined by region and, where it has several, by contrast.

    Raises
    ------
    SettingError
        When the table of LRCP does not name the regions of the atlas.
    """
    parts = [_of_direction(one, weights, mean) for one in effects]
    table = pd.concat(parts, ignore_index=True)[list(COLUMNS)]
    return table if lrcp is None else _joined(table, lrcp, set(weights.names))


def _of_direction(one: Effect, weights: RegionWeights, mean: np.ndarray) -> pd.DataFrame:
    several = len(one.by_model) > 1
    blank = np.full(len(one.effect), np.nan)
    part = pd.DataFrame(
        {
            "direction": one.direction.name,
            "kind": one.direction.kind,
            "unit": one.direction.unit,
            "region": list(weights.names),
            "label": weights.labels,
            "effect": one.effect,
            "effect_percent": 100 * np.divide(one.effect, mean, out=blank.copy(), where=mean > 0),
            "low": one.effect - one.half_width,
            "high": one.effect + one.half_width,
            "p": one.p,
            "p_regional": one.p_regional,
            # Slopes of several models' unseen scans would together be those of the scans that made the effect.
            "unseen": one.unseen[0] if len(one.unseen) == 1 and not several else blank,
            "p_unseen": one.p_unseen,
            "baseline": one.baseline,
            "fold_low": one.by_model.min(axis=0) if several else blank,
            "fold_high": one.by_model.max(axis=0) if several else blank,
        }
    )
    part = part.assign(size=part["effect"].abs()).sort_values(["p", "size", "label"], ascending=[True, False, True])
    part = part.drop(columns="size")
    return part.head(N_TOP) if one.direction.kind in SCORES else part


def _joined(table: pd.DataFrame, lrcp: pd.DataFrame, regions: set[str]) -> pd.DataFrame:
    contrasts = lrcp["contrast"].astype(str) if "contrast" in lrcp else None
    known = set(lrcp["name"].astype(str))
    strange = sorted(known - regions) or sorted(regions - known)
    if strange:
        raise SettingError(
            f"Region {strange[0]} is in the table of LRCP or of the atlas alone. Run LRCP on this atlas."
        )
    part = lrcp.rename(columns={"name": "region"} | LRCP_COLUMNS)
    part = part[["region", *(name for name in LRCP_COLUMNS.values() if name in part)]]
    if contrasts is None or contrasts.nunique() == 1:
        return table.merge(part, on="region", how="left", validate="many_to_one")
    # Of several contrasts each belongs to the directions between its two groups, and to no other.
    of_pair = table["direction"].str.partition(":")[2].where(table["kind"].isin(["group", "discriminant"]), "")
    return (
        table.assign(contrast=of_pair)
        .merge(part.assign(contrast=contrasts), on=["region", "contrast"], how="left", validate="many_to_one")
        .drop(columns="contrast")
    )


def lrcp_correlation(table: pd.DataFrame, name: str, *, by: str) -> float:
    """Rank correlation over all regions of the size of a direction's effect and a column of LRCP; NaN without one.

    Parameters
    ----------
    table : DataFrame
        Of :func:`region_table`.
    name : str
        Of the direction.
    by : str
        ``"lrcp_a"``, or ``"lrcp_rank"`` of which the first counts as the largest.
    """
    part = table[(table["direction"] == name) & ~table["kind"].isin(SCORES)]
    part = part[part[by].notna()] if by in part else part.head(0)
    if len(part) == 0 or part[by].nunique() < 2 or part["effect"].abs().nunique() < 2:
        return float("nan")
    return float(spearmanr(part["effect"].abs(), -part[by] if by == "lrcp_rank" else part[by].abs()).statistic)


def arrays(
    effects: Sequence[Effect], table: pd.DataFrame, weights: RegionWeights, *, by_space: dict[str, np.ndarray]
) -> xr.Dataset:
    """Effects by direction and region, and what unseen scans say of every direction.

    ``claim`` and ``unseen`` (direction, judge, region) belong together judge by judge: what one model says, and the slopes of
    its own unseen scans.

    Parameters
    ----------
    effects, table, weights
        As in and of :func:`region_table`.
    by_space : dict[str, ndarray]
        Kind of score to (model,) median rank correlation with the unseen scans of each model.
    """
    pair = ("direction", "region")
    by_region = ("effect", "half_width", "p", "p_regional", "p_unseen", "baseline")
    stacked = {name: (pair, np.array([getattr(one, name) for one in effects])) for name in by_region}
    n_judges = max(len(one.unseen) for one in effects)
    judged = {name: np.full((len(effects), n_judges, len(weights.names)), np.nan) for name in ("claim", "unseen")}
    for row, one in enumerate(effects):
        judged["claim"][row, : len(one.claim)] = one.claim
        judged["unseen"][row, : len(one.unseen)] = one.unseen
    names = [one.direction.name for one in effects]
    single = {
        "kind": [one.direction.kind for one in effects],
        "unit": [one.direction.unit for one in effects],
        "departure": [one.departure for one in effects],
        "carried": [one.carried for one in effects],
        "agreement": [one.agrees.r for one in effects],
        "agreement_p": [one.agrees.p for one in effects],
        "baseline_agreement": [one.baseline_agrees.r for one in effects],
        "n_unseen": [one.n_unseen for one in effects],
        "n_subjects": [one.direction.n_subjects for one in effects],
        "n_left_out": [one.direction.n_left_out for one in effects],
        "lrcp_a_correlation": [lrcp_correlation(table, name, by="lrcp_a") for name in names],
        "lrcp_rank_correlation": [lrcp_correlation(table, name, by="lrcp_rank") for name in names],
    }
    return xr.Dataset(
        stacked
        | {name: (("direction", "judge", "region"), values) for name, values in judged.items()}
        | {name: ("direction", np.array(values)) for name, values in single.items()}
        | {f"agreement_{kind}": ("model", values) for kind, values in by_space.items()},
        coords={"direction": names, "region": np.asarray(weights.names, dtype=str)},
    )


def strips(study: Model, shown: Sequence[Effect], grid: Grid, mask: np.ndarray) -> xr.Dataset:
    """Slices of the images that a direction draws, and of their change, through the voxel that changes most.

    Parameters
    ----------
    study : Model
        Draws.
    shown : Sequence of Effect
        Directions with an image per voxel.
    grid, mask : Grid, ndarray
        Of the images.

    Returns
    -------
    Dataset
        ``axial`` (shown, step, x, y) and ``coronal`` (shown, step, x, z), NaN outside the mask; the same of the change
        against the middle as ``axial_change`` and ``coronal_change``; places in mm.
    """
    affine = grid.affine
    places = {axis: affine[k, 3] + affine[k, k] * np.arange(grid.shape[k]) for k, axis in enumerate("xyz")}
    parts = []
    for one in shown:
        step = study.found[one.direction.name].step
        images = np.array(list(images_of(study.space, study.decoder.centre + np.outer(STEPS, step))), dtype=np.float32)
        volumes = np.full((len(STEPS), *grid.shape), np.nan, dtype=np.float32)
        volumes[:, mask] = images
        changes = volumes - volumes[STEPS.index(0.0)]
        _, y, z = np.argwhere(mask)[np.abs(one.image).argmax()]
        parts.append(
            xr.Dataset(
                {
                    "axial": (("step", "x", "y"), volumes[:, :, :, z]),
                    "coronal": (("step", "x", "z"), volumes[:, :, y, :]),
                    "axial_change": (("step", "x", "y"), changes[:, :, :, z]),
                    "coronal_change": (("step", "x", "z"), changes[:, :, y, :]),
                    "axial_mm": places["z"][z],
                    "coronal_mm": places["y"][y],
                    "shown_unit": one.direction.unit,
                },
                coords={"step": list(STEPS), **places},
            )
        )
    return xr.concat(parts, dim=pd.Index([one.direction.name for one in shown], name="shown"))
