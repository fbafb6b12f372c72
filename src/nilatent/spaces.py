"""Latent spaces of a run folder: one per cross-fitted model, or that of the study's own."""

from functools import partial
from pathlib import Path

import numpy as np
import xarray as xr

from nilatent.analysis.counterfactual.change import holds_head_size
from nilatent.analysis.latent_space import LatentSpace
from nilatent.generate import images
from nilatent.latents import frame_of, is_grid, read_latents
from nilatent.pools import Pools, n_components
from nilatent.training.checkpoint import TrainedModel, load_model


def study_space(pools: Pools) -> LatentSpace:
    """The latent space of the study's own model."""
    return _space(pools, pools.out)


def fold_spaces(pools: Pools) -> list[LatentSpace]:
    """The latent space of every cross-fitted model; without cross-fitting that of the study's own model alone."""
    folds = range(pools.config.folds)
    return [_space(pools, pools.out / "folds" / str(fold)) for fold in folds] or [study_space(pools)]


def _space(pools: Pools, folder: Path) -> LatentSpace:
    model, latents = load_model(folder / "model"), read_latents(folder)
    return space_of(model, latents, n_components=n_components(pools.parts), seed=pools.config.seed)


def head_size(pools: Pools) -> tuple[str, ...]:
    """The column of head size that is held beside the study's covariates: groups that differ in it differ in every region.

    None where a scan lacks it, or a covariate is head size by another name.
    """
    config, scans = pools.config.counterfactual, pools.prepared.scans
    name = config.head_size
    known = name in scans and not holds_head_size(pools.config.study.covariates, config)
    return (name,) if known and bool(scans[name].notna().all()) else ()


def space_of(model: TrainedModel, latents: xr.Dataset, *, n_components: int, seed: int = 0) -> LatentSpace:
    """The latent space of a model.

    Parameters
    ----------
    model : TrainedModel
        The model.
    latents : Dataset
        Of all scans, by this model.
    n_components : int
        Coordinates of latents on a grid, whose cells are too many to be described by few scans.
    seed : int
        Draws the scans on which these are fitted, where there are more than 2000.
    """
    frame = frame_of(latents, n_components=n_components, seed=seed)
    grid, part = is_grid(latents), latents["part"].values
    # In blocks of scans: maps of latents are as large as images.
    blocks = np.array_split(latents["log_var"].values, max(latents.sizes["scan"] // 64, 1))
    variance = np.concatenate([np.exp(some.astype(np.float64)) @ np.square(frame.axes).T for some in blocks])
    named = [f"z{number:03d}" for number in range(len(frame.axes))] if grid else latents["latent"].values
    return LatentSpace(
        scans=latents.indexes["scan"],
        subjects=latents["subject"].values.astype(str),
        values=latents["mean"].values,
        frame=frame,
        variance=variance if model.model_config.name != "autoencoder" else np.zeros_like(variance),
        names=tuple(map(str, named)),
        training=part == "train",
        unseen=~latents["subject_in_training"].values & (part == "test"),
        has_prior=model.model_config.name != "autoencoder",
        told=model.model_config.condition,
        draw_latents=partial(images, model),
    )
