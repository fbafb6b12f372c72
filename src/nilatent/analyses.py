"""What a run folder is asked: every analysis with its settings and the pools it rests on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import xarray as xr

from nilatent.analysis.agnostic import QUESTION as AGNOSTIC_QUESTION
from nilatent.analysis.agnostic import agnostic
from nilatent.analysis.error_profile import QUESTION as ERROR_PROFILE_QUESTION
from nilatent.analysis.error_profile import error_profile
from nilatent.analysis.lrcp import QUESTION as LRCP_QUESTION
from nilatent.analysis.lrcp import lrcp
from nilatent.analysis.projections import QUESTION as PROJECTIONS_QUESTION
from nilatent.analysis.projections import projections
from nilatent.analysis.reconstruction import QUESTION as RECONSTRUCTION_QUESTION
from nilatent.analysis.reconstruction import reconstruction
from nilatent.encode import reconstructions
from nilatent.finding import Finding
from nilatent.models import SpatialVae
from nilatent.models.features import image_features
from nilatent.pools import Pools
from nilatent.training.checkpoint import TrainedModel, load_model
from nilatent.volumes import gm_mask

QUESTIONS = {
    "reconstruction": RECONSTRUCTION_QUESTION,
    "projections": PROJECTIONS_QUESTION,
    "lrcp": LRCP_QUESTION,
    "error_profile": ERROR_PROFILE_QUESTION,
    "agnostic": AGNOSTIC_QUESTION,
}


@dataclass(frozen=True, eq=False)
class Asked:
    """One analysis.

    Parameters
    ----------
    analyse : Callable
        Gives the finding.
    settings : object
        What it depends on beside the pools.
    needs : Sequence[str]
        Stages it rests on.
    """

    analyse: Callable[[], Finding]
    settings: object
    needs: Sequence[str]


def analyses(pools: Pools) -> dict[str, Asked]:
    """Every analysis by its name, in the order of the report; none is run yet."""
    config = pools.config
    common = ["latents", "regions", "volumes", "split", "prepared"]
    study = {"study": config.study, "seed": config.seed}
    crossfit = [f"fold {fold}" for fold in range(config.folds)]
    return {
        "reconstruction": Asked(lambda: _reconstruction(pools), study, [*common, "model"]),
        "projections": Asked(lambda: _projections(pools), study | {"projections": config.projections}, common),
        "lrcp": Asked(lambda: _lrcp(pools), study | {"lrcp": config.lrcp}, [*common, *crossfit]),
        "error_profile": Asked(
            lambda: _error_profile(pools),
            study | {"error_profile": config.error_profile},
            [*common, *(crossfit or ["model"])],
        ),
        "agnostic": Asked(lambda: _agnostic(pools), study | {"agnostic": config.agnostic}, [*common, *crossfit]),
    }


def _reconstruction(pools: Pools) -> Finding:
    config, study = pools.config, pools.config.study
    model = load_model(pools.out / "model")
    rows = pools.volumes.rows(list(pools.parts.index))
    features, network = image_features(pools.volumes.mask)
    return reconstruction(
        pools.volumes,
        reconstructions(model, pools.volumes, rows, scans=pools.prepared.scans),
        pools.parts,
        pools.prepared.scans,
        n_latent=values_used(model),
        seed=config.seed,
        group=study.group,
        site=study.site,
        regions=pools.of_mask,
        features=features,
        features_note=network,
        model_note=model.result["summary"],
        target=config.recipe.target,
    )


def values_used(model: TrainedModel) -> int:
    """Values of a latent that differ from scan to scan: of a grid those of cells with a voxel of the mask."""
    return model.module.n_used if isinstance(model.module, SpatialVae) else model.model_config.n_values


def _projections(pools: Pools) -> Finding:
    study = pools.config.study
    regions, scans = pools.of_judged()
    found = projections(
        pools.judged,
        regions,
        scans,
        pools.config.projections,
        voxel_scores=pools.voxel_scores().loc[pools.judged["scan"].values],
        group=study.group,
        site=study.site,
        seed=pools.config.seed,
    )
    return _with_notes(found, pools.latents)


def _error_profile(pools: Pools) -> Finding:
    grid = pools.volumes.grid
    scans, config = pools.prepared.scans, pools.config.error_profile
    return error_profile(pools.errors(), pools.regions, scans, pools.weights, grid, gm_mask(grid), config)


def _agnostic(pools: Pools) -> Finding:
    regions, scans = pools.of_judged()
    grid, folds = pools.volumes.grid, pools.blind()
    config = pools.config.agnostic
    found = agnostic(pools.judged, regions, scans, pools.weights, grid, gm_mask(grid), config, folds=folds)
    return _with_notes(found, pools.latents)


def _lrcp(pools: Pools) -> Finding:
    regions, scans = pools.of_judged()
    grid = pools.volumes.grid
    config, folds = pools.config.lrcp, pools.blind()
    found = lrcp(pools.judged, regions, scans, pools.weights, grid, gm_mask(grid), config, folds=folds, label="lrcp")
    return _with_notes(found, pools.latents)


def _with_notes(finding: Finding, latents: xr.Dataset) -> Finding:
    """A finding with what the latents themselves say of how far they can be trusted."""
    notes = [str(latents.attrs[name]) for name in ("caveat", "seen", "told", "compact") if latents.attrs.get(name)]
    if latents.attrs.get("supervised"):
        notes.append(
            f"The first latent was pulled to {latents.attrs['supervised']} on training scans, so only scans of subjects that the "
            "model has not seen were analysed."
        )
    return replace(finding, caveats=(*finding.caveats, *notes))
