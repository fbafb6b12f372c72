"""What a run folder is asked: every analysis with its settings and the pools it rests on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import pandas as pd
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
from nilatent.analysis.regional import read_regions
from nilatent.atlas import RegionWeights
from nilatent.cohort import Cohort
from nilatent.config import MAX_AUTO_LATENT, SCANS_PER_LATENT, RunConfig
from nilatent.crossfit import errors_of, read_folds
from nilatent.encode import reconstructions
from nilatent.finding import Finding
from nilatent.latents import compact, is_grid, read_latents
from nilatent.models import SpatialVae
from nilatent.models.features import image_features
from nilatent.training.checkpoint import TrainedModel, load_model
from nilatent.volumes import Volumes, gm_mask, voxel_pca

QUESTIONS = {
    "reconstruction": RECONSTRUCTION_QUESTION,
    "projections": PROJECTIONS_QUESTION,
    "lrcp": LRCP_QUESTION,
    "error_profile": ERROR_PROFILE_QUESTION,
    "agnostic": AGNOSTIC_QUESTION,
}
BATCH = 64
STUDY_MODEL = -1
"""Fold of errors that the study's own model made on its test part."""


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


@dataclass(frozen=True, eq=False)
class Pools:
    """The pools of a run folder that analyses read.

    Parameters
    ----------
    out : Path
        The run folder.
    config : RunConfig
        Every setting.
    prepared : Cohort
        The scans.
    volumes : Volumes
        What the model was trained on.
    parts : DataFrame
        Split of the study.
    weights : RegionWeights
        The atlas in the mask of grey matter.
    of_mask : RegionWeights
        The atlas in the mask of the volumes, which is wider for T1 intensities.
    """

    out: Path
    config: RunConfig
    prepared: Cohort
    volumes: Volumes
    parts: pd.DataFrame
    weights: RegionWeights
    of_mask: RegionWeights

    @cached_property
    def latents(self) -> xr.Dataset:
        """Latents as vectors; those on a grid as their principal components over the training scans."""
        return self._vectors(read_latents(self.out), self.parts)

    @cached_property
    def regions(self) -> pd.DataFrame:
        """Mean grey matter, (scan, region)."""
        return read_regions(self.out).values

    @cached_property
    def judged(self) -> xr.Dataset:
        """The latents that labels may be asked of: all, or those of unseen scans where a label made them."""
        if not self.latents.attrs.get("supervised"):
            return self.latents
        return self.latents.isel(scan=~self.latents["subject_in_training"].values)

    def blind(self) -> list[xr.Dataset]:
        """Latents of every cross-fitted model, where labels may be asked of all scans; none otherwise."""
        if self.config.folds == 0 or self.latents.attrs.get("supervised"):
            return []
        place, vectors = self.out / "folds", partial(self._vectors, parts=self.parts)
        return read_folds(place, self.config.folds, reduce=vectors)[0]

    def errors(self) -> pd.DataFrame:
        """Errors of every scan by the model that has not seen its subject; without folds those of the study's test part."""
        if self.config.folds:
            place = self.out / "folds"
            return read_folds(place, self.config.folds, reduce=lambda one: one.drop_vars(["mean", "log_var"]))[1]
        unseen = ~self.latents["subject_in_training"].values & (self.latents["part"].values == "test")
        rows = self.volumes.rows(list(self.latents["scan"].values[unseen]))
        model = load_model(self.out / "model")
        return errors_of(model, self.volumes, rows, STUDY_MODEL, scans=self.prepared.scans)

    def voxel_scores(self) -> pd.DataFrame:
        """Scores of all scans on principal components of the voxels, as many as latents, fitted on the training scans."""
        training = self.volumes.rows(list(self.parts.index[self.parts["part"] == "train"]))
        n_latent = self.latents.sizes["latent"]
        pca = voxel_pca(self.volumes, training, n_latent, seed=self.config.seed, at_most=True)
        n_scans = len(self.volumes.scans)
        scores = [
            pca.scores(self.volumes.masked(np.arange(n_scans)[start : start + BATCH]))
            for start in range(0, n_scans, BATCH)
        ]
        names = [f"PC{number + 1}" for number in range(len(pca.sd))]
        return pd.DataFrame(np.concatenate(scores), index=self.volumes.scans.index, columns=names)

    def of_judged(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Regions and rows of the cohort of the scans in :attr:`judged`, in its order."""
        chosen = self.judged["scan"].values
        return self.regions.loc[chosen], self.prepared.scans.loc[chosen]

    def _vectors(self, latents: xr.Dataset, parts: pd.DataFrame) -> xr.Dataset:
        if not is_grid(latents):
            return latents
        n_train = int((parts["part"] == "train").sum())
        n_components = max(2, min(MAX_AUTO_LATENT, n_train // SCANS_PER_LATENT))
        return compact(latents, n_components=n_components, seed=self.config.seed)


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
