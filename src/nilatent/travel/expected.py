"""What a regional regression on the training scans expects where a column changes: the yardstick of what a decoder draws.

A regional regression is a direction in the space of the regional means, so the same functions fit it, on the same scans.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from nilatent.analysis.contrast import NotComparableError
from nilatent.analysis.counterfactual.shift import shift
from nilatent.analysis.directions import Direction, fitted_directions
from nilatent.analysis.latent_space import LatentSpace
from nilatent.latents import Frame
from nilatent.pools import Pools
from nilatent.spaces import head_size


def regional_space(room: LatentSpace, pools: Pools) -> LatentSpace | None:
    """The same scans in the space of their regional means, in which a direction is a regional regression."""
    if pools.config.recipe.target != "gm":
        return None
    regions = pools.regions.loc[room.scans]
    n_regions = regions.shape[1]
    return replace(
        room,
        values=regions.to_numpy(dtype=np.float64),
        frame=Frame(np.zeros(n_regions), np.eye(n_regions)),
        variance=np.zeros(regions.shape),
        names=tuple(map(str, regions)),
        has_prior=False,
        told=(),
    )


def expected_of(room: LatentSpace, pools: Pools, one: Direction, units: float) -> "pd.Series[float] | None":
    """What a regional regression on the training scans expects of a covariate or a group."""
    regional, study = regional_space(room, pools), pools.config.study
    if regional is None or one.kind not in ("covariate", "group"):
        return None
    found = fitted_directions(
        regional,
        pools.prepared.scans,
        group=study.group,
        contrast=study.contrast,
        covariates=(*study.covariates, *head_size(pools)),
        site=study.site,
    )[0]
    step = next(other.step for other in found if other.name == one.name and other.kind == one.kind)
    return pd.Series(units * step, index=list(regional.names))


def expected_change(
    room: LatentSpace, pools: Pools, row: int, changes: Mapping[str, str], *, held: Sequence[str]
) -> "pd.Series[float] | None":
    """The change of regional means of a scan whose columns change; None where the training scans do not carry it.

    Parameters
    ----------
    room, pools, row, changes, held
        As for the counterfactual: space, run, number of the scan, changes, and columns that are held.
    """
    regional = regional_space(room, pools)
    if regional is None:
        return None
    scans, site = pools.prepared.scans, pools.config.study.site
    try:
        step, _ = shift(regional, scans, np.array([row]), changes, others=held, site=site)
    except NotComparableError:
        # A conditional decoder may be told what too few training scans carry.
        return None
    return pd.Series(step[0], index=list(regional.names))
