"""Networks: tensors in, tensors out; they know nothing of scans and subjects."""

import torch
from jaxtyping import Bool
from torch import Tensor

from nilatent.errors import SettingError
from nilatent.models.anchor import LinearStart, LocalAnchor, LocalStart, NoAnchor, PcaAnchor
from nilatent.models.autoencoder import Autoencoder
from nilatent.models.blocks import Posterior
from nilatent.models.config import ANCHORS, ModelConfig
from nilatent.models.curve import no_curve
from nilatent.models.losses import VARIANCE_FLOOR
from nilatent.models.spatial_vae import SpatialVae, cell_of_voxels
from nilatent.models.vae import Vae

Model = Autoencoder | Vae | SpatialVae
MODELS: dict[str, type[Autoencoder] | type[Vae] | type[SpatialVae]] = {
    "autoencoder": Autoencoder,
    "vae": Vae,
    "spatial_vae": SpatialVae,
}

__all__ = [
    "ANCHORS",
    "MODELS",
    "Autoencoder",
    "LinearStart",
    "LocalAnchor",
    "LocalStart",
    "Model",
    "ModelConfig",
    "NoAnchor",
    "PcaAnchor",
    "Posterior",
    "SpatialVae",
    "Vae",
    "build",
    "empty_start",
]


def build(config: ModelConfig, *, mask: Bool[Tensor, "x y z"], start: LinearStart) -> Model:
    """Build a model at its start.

    Parameters
    ----------
    config : ModelConfig
        Which model.
    mask : (x, y, z) Tensor
        True inside.
    start : LinearStart
        What linear statistics know of the training scans.

    Returns
    -------
    Autoencoder, Vae or SpatialVae
        Its random initial weights come from torch's global generator: fork and seed it outside.
    """
    n_condition = len(start.slopes)
    anchor = _anchor(config, mask=mask, start=start)
    if config.name == "spatial_vae":
        if isinstance(anchor, PcaAnchor):
            raise SettingError(
                "A spatial_vae starts from components of blocks, from the mean image or from nothing, not from components of "
                "whole scans."
            )
        return SpatialVae(
            anchor=anchor,
            channels=config.channels,
            grid=config.latent_grid,
            latent_channels=config.latent_channels,
            n_condition=n_condition,
        )
    n_smooth = 1 if config.start == "pca" else 0
    if config.name == "autoencoder":
        return Autoencoder(anchor=anchor, channels=config.channels, n_smooth=n_smooth, n_condition=n_condition)
    # What the start leaves unexplained, voxel by voxel the same; never zero, which would say that there is no such noise.
    left = max(start.residual_variance if config.start == "pca" else start.variance, VARIANCE_FLOOR)
    voxel_noise = left if config.likelihood == "voxel" else 0.0
    return Vae(
        anchor=anchor, channels=config.channels, n_smooth=n_smooth, voxel_noise=voxel_noise, n_condition=n_condition
    )


def _anchor(config: ModelConfig, *, mask: Bool[Tensor, "x y z"], start: LinearStart) -> NoAnchor | PcaAnchor:
    if config.start == "local":
        cell = cell_of_voxels(mask, config.latent_grid)
        return LocalAnchor(mask=mask, start=start, cell=cell, beta=config.beta)
    if config.start != "pca":
        return NoAnchor(mask=mask, start=start, n_latent=config.n_values, around_mean_image=config.start == "mean")
    n_latent, n_voxels = start.components.shape
    # Maximum likelihood spreads what is left over the dimensions that are left, not over all voxels.
    noise = start.residual_variance * n_voxels / (n_voxels - n_latent) if config.name == "vae" else 0.0
    return PcaAnchor(mask=mask, start=start, noise_variance=noise)


def empty_start(
    config: ModelConfig, *, mask: Bool[Tensor, "x y z"], n_condition: int, n_centres: int = 1, n_images: int = 0
) -> LinearStart:
    """A start of the right sizes, whose numbers are about to be replaced by those of a stored model.

    The curve's sizes, `n_centres` and `n_images`, are those that training found; the settings do not tell them.
    """
    n_voxels = int(mask.sum())
    n_components = config.n_values if config.start == "pca" else 1
    return LinearStart(
        mean=torch.zeros(n_voxels),
        components=torch.zeros(n_components, n_voxels),
        sd=torch.ones(n_components),
        residual_variance=0.0,
        slopes=torch.zeros(n_condition, n_voxels),
        curve=no_curve(n_components, n_voxels, n_centres=n_centres, n_images=n_images),
        local=_empty_local(config, n_voxels) if config.start == "local" else None,
    )


def _empty_local(config: ModelConfig, n_voxels: int) -> LocalStart:
    n_channels, n_cells = config.latent_channels, config.latent_grid**3
    return LocalStart(torch.zeros(n_channels, n_voxels), torch.ones(n_channels, n_cells), residual_variance=0.0)
