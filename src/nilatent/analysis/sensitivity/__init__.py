"""Decoder sensitivity: which regions a latent, or a direction in the latent space, moves.

The effect of a direction u on a region is [Dec(m + k u) - Dec(m - k u)] / 2k, averaged over the region, with m the mean of the
training scans and k u two of their standard deviations. What the decoder draws is held against scans that no model has seen.
The array cores are :mod:`nilatent.analysis.sensitivity.decoder` and :mod:`nilatent.analysis.sensitivity.people`.

References
----------
Haufe et al. 2014, doi:10.1016/j.neuroimage.2013.10.067. Freedman & Lane 1983, doi:10.1080/07350015.1983.10509354.
"""

from collections.abc import Sequence
from dataclasses import asdict

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from nilatent.analysis.contrast import MIN_SUBJECTS
from nilatent.analysis.latent_space import LatentSpace
from nilatent.analysis.sensitivity.effects import (
    SCORES,
    Effect,
    Model,
    SensitivityConfig,
    column_effect,
    read_model,
    score_agreement,
    score_effects,
)
from nilatent.analysis.sensitivity.table import COLUMNS, arrays, region_table, strips
from nilatent.analysis.sensitivity.words import answer, caveats
from nilatent.atlas import RegionWeights
from nilatent.errors import CohortError
from nilatent.finding import Finding, not_run
from nilatent.progress import track
from nilatent.provenance import file_stems
from nilatent.volumes import Grid

__all__ = ["COLUMNS", "NAME", "QUESTION", "SensitivityConfig", "sensitivity"]

NAME = "sensitivity"
QUESTION = "Which brain regions change when the latent description of a brain moves, such as from control to patient?"
# Directions in the order of the table.
ORDER = ("group", "covariate", "discriminant", "pls", "component", "latent")


def sensitivity(
    study: LatentSpace,
    spaces: Sequence[LatentSpace],
    regions: pd.DataFrame,
    scans: pd.DataFrame,
    weights: RegionWeights,
    grid: Grid,
    mask: npt.NDArray[np.bool_],
    config: SensitivityConfig,
    *,
    lrcp: pd.DataFrame | None = None,
    label: str = "",
) -> Finding:
    """Which regions every direction of a latent space moves, and whether unseen scans bear it out.

    Parameters
    ----------
    study : LatentSpace
        Of the study's own model, whose single latents and components are described.
    spaces : Sequence of LatentSpace
        One per cross-fitted model, over which the effects of columns are joined; without cross-fitting the study's alone. No
        model was told of a column while it was trained.
    regions : DataFrame
        Index scan_id, one column per region in the order of `weights`: true means of what the decoder draws.
    scans : DataFrame
        Index scan_id; ``subject_id`` and the columns named in `config`.
    weights : RegionWeights
        The atlas inside the mask of the images.
    grid, mask : Grid, ndarray
        Grid and (x, y, z) mask of the images.
    config : SensitivityConfig
        Settings.
    lrcp : DataFrame, optional
        Table of LRCP, whose association, rank, grade and p are joined by region.
    label : str
        What to call this work when its progress is shown; empty shows none.

    Returns
    -------
    Finding
        Table by direction and region; arrays by direction; one map of the effect per unit for each main direction. Or "not
        run" with the reason.

    Raises
    ------
    CohortError
        When the spaces, regions and scans do not belong together.
    SettingError
        When a setting names what does not exist.
    """
    _check(study, spaces, regions, scans, weights)
    n_training = len(set(study.subjects[study.training]))
    if n_training < MIN_SUBJECTS:
        reason = f"too few: {n_training} training subjects say how latents vary; at least {MIN_SUBJECTS} are needed"
        return not_run(NAME, QUESTION, reason)
    if not (study.coordinates[study.training].std(axis=0) > 0).any():
        return not_run(
            NAME, QUESTION, "all training scans have the same latents; look at the diagnosis of the training"
        )
    own = read_model(study, scans, weights, config)
    models = [own] if len(spaces) == 1 else [read_model(space, scans, weights, config) for space in spaces]
    names, refused = _asked(own, models)
    effects = [
        column_effect(models, name, scans, regions, weights, config)
        for name in (track(names, total=len(names), label=label) if label else names)
    ]
    effects = sorted(effects + score_effects(own, scans, regions, weights, config), key=_place)
    by_space = {kind: np.array([score_agreement(one, scans, regions, kind) for one in models]) for kind in SCORES}
    # What a column defines is drawn by all models, and percentages of it are of what they draw in the middle.
    table = region_table(effects, weights, np.mean([one.decoder.mean for one in models], axis=0), lrcp)
    shown = [one for one in effects if one.image.size]
    data = xr.merge([arrays(effects, table, weights, by_space=by_space), strips(own, shown, grid, mask)])
    return Finding(
        name=NAME,
        question=QUESTION,
        answer=answer(effects, np.asarray(weights.names), config),
        table=table,
        data=data,
        settings=asdict(config) | {"n_models": len(models), "n_training": n_training, "refused": refused},
        caveats=caveats(
            effects,
            refused,
            by_space,
            config,
            n_models=len(models),
            n_training=n_training,
            head_size="head_size_factor" in scans
            and bool(scans["head_size_factor"].notna().any())
            and "head_size_factor" not in config.covariates,
        ),
        n_scans=len(study.scans),
        n_subjects=len(set(study.subjects)),
        maps=_maps(shown, grid, mask),
    )


def _size_is_loose(scans: pd.DataFrame, config: SensitivityConfig) -> bool:
    """Head size is known and not held."""
    name = "head_size_factor"
    return name in scans and bool(scans[name].notna().any()) and name not in config.covariates


def _check(
    study: LatentSpace,
    spaces: Sequence[LatentSpace],
    regions: pd.DataFrame,
    scans: pd.DataFrame,
    weights: RegionWeights,
) -> None:
    if not spaces or any(set(space.scans) != set(study.scans) for space in spaces):
        raise CohortError("The latent spaces do not hold the same scans. Encode the cohort with every model.")
    if list(regions.columns) != list(weights.names):
        raise CohortError("The columns of the regions are not those of the atlas. Compute the regions again.")
    for what, table in (("regions", regions), ("cohort", scans)):
        absent = study.scans.difference(table.index)
        if len(absent) or not table.index.is_unique:
            raise CohortError(
                f"The {what} lack scans of the latent space, or hold some twice ({len(absent)} absent). Take those of the run."
            )


def _asked(own: Model, models: Sequence[Model]) -> tuple[list[str], dict[str, str]]:
    """Directions that columns define in the study's model and in all others, and why others are none."""
    refused = dict(own.refused)
    for model in models:
        refused |= {
            name: f"not in every model: {reason}" for name, reason in model.refused.items() if name in own.found
        }
    names = [one.name for one in own.found.values() if one.kind not in SCORES and one.name not in refused]
    return names, refused


def _place(one: Effect) -> int:
    return ORDER.index(one.direction.kind)


def _maps(shown: Sequence[Effect], grid: Grid, mask: npt.NDArray[np.bool_]) -> dict[str, nib.Nifti1Image]:
    """Effect per unit in every voxel, of each main direction; under the plain name that which heads the table."""
    stems = file_stems(one.direction.name for one in shown)
    images = {}
    for one in shown:
        values = np.zeros(grid.shape, dtype=np.float32)
        values[mask] = one.image
        images[f"effect_{stems[one.direction.name]}"] = grid.to_image(values)
    return {"effect": next(iter(images.values()))} | images
