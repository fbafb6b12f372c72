"""Evidence lower bound on scans that do not move the weights."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from nilatent.models import Autoencoder, Model, ModelConfig, Posterior, Vae
from nilatent.models.losses import (
    absolute_error,
    gaussian_kl,
    gaussian_log_likelihood,
    laplace_log_likelihood,
    squared_error,
    voxel_log_likelihood,
)
from nilatent.training.validation import Rows, Told, exact, posteriors
from nilatent.volumes import Volumes

# Of the Laplace distribution: its SD by its mean absolute deviation.
SD_BY_SCALE = 2.0**0.5


def bound(
    module: Model,
    model_config: ModelConfig,
    volumes: Volumes,
    rows: Rows,
    *,
    batch_size: int,
    seed: int,
    conditions: Told = None,
) -> float:
    """Evidence lower bound in nats per scan, with beta 1 whatever the model was trained with.

    Parameters
    ----------
    module, volumes, rows, batch_size, conditions
        As in :func:`nilatent.training.validation.posteriors`.
    model_config : ModelConfig
        Names the likelihood. A fixed sigma is used as it is; otherwise the noise is the most likely one over all these
        scans together, not batch by batch, so that the bound does not depend on the batches.
    seed : int
        Of one draw per scan from its posterior, the same in every epoch and in batches of any size.

    Returns
    -------
    float
        Mean over the scans; NaN for an autoencoder, which has no likelihood.
    """
    if isinstance(module, Autoencoder):
        return math.nan
    mask, n_voxels = module.anchor.mask, int(module.anchor.mask.sum())
    laplace = model_config.name == "spatial_vae" or model_config.likelihood == "laplace"
    generator = torch.Generator(mask.device).manual_seed(seed)
    errors, divergences, likelihoods = [], [], []
    for _, x, c, posterior in posteriors(module, volumes, rows, batch_size=batch_size, conditions=conditions):
        with exact():
            z = _drawn(posterior, generator)
            divergences.append(gaussian_kl(posterior.mean, posterior.log_var).sum(dim=1))
            noise = module.correction_and_noise(z, c)[1] if isinstance(module, Vae) else None
            if noise is not None:
                likelihoods.append(voxel_log_likelihood(x, module.decode(z, c), noise, mask))
                continue
            errors.append((absolute_error if laplace else squared_error)(x, module.decode(z, c), mask))
    if not likelihoods:
        error = torch.cat(errors)
        usual = (error.mean() / n_voxels).clamp_min(torch.finfo(torch.float32).tiny)
        if laplace:
            scale = usual if model_config.sigma is None else usual.new_tensor(model_config.sigma / SD_BY_SCALE)
            likelihoods = [laplace_log_likelihood(error, scale=scale, n_voxels=n_voxels)]
        else:
            variance = usual if model_config.sigma is None else usual.new_tensor(model_config.sigma**2)
            likelihoods = [gaussian_log_likelihood(error, variance=variance, n_voxels=n_voxels)]
    return float((torch.cat(likelihoods) - torch.cat(divergences)).mean())


def _drawn(posterior: Posterior, generator: torch.Generator) -> Float[Tensor, "batch latent"]:
    """One draw per scan, by itself: torch draws other numbers for a batch of another size."""
    apart = zip(posterior.mean[:, None], posterior.log_var[:, None], strict=True)
    return torch.cat([Posterior(mean, log_var).sample(generator) for mean, log_var in apart])
