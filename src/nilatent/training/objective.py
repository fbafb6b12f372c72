"""What one training step lowers."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nilatent.models import Autoencoder, ModelConfig, Posterior, Vae
from nilatent.models.aggregate import decomposition, mmd
from nilatent.models.losses import (
    absolute_error,
    capacity,
    free_bits,
    gaussian_kl,
    gaussian_log_likelihood,
    laplace_log_likelihood,
    optimal_scale,
    optimal_variance,
    squared_error,
    voxel_log_likelihood,
)
from nilatent.training.bound import SD_BY_SCALE
from nilatent.training.config import TrainConfig

# Draws of earlier batches, and of the prior, that a batch is compared with: a handful of scans says little of all.
QUEUE_LENGTH = 256
N_PRIOR_DRAWS = 512


class Objective(nn.Module):
    """Loss of a batch, as one module so that a distributed strategy sees one forward pass.

    The noise belongs here and not in the model: the scan to be drawn is clean, the scan that is encoded and the latent
    that is decoded are not. It keeps a correction to PCA from learning the training scans by heart.

    Parameters
    ----------
    model : Autoencoder or Vae
        What is trained.
    model_config : ModelConfig
        Likelihood and capacity term.
    config : TrainConfig
        Noise.
    variance : float
        Variance of the training scans about their mean image, per voxel: the unit of the autoencoder's loss.
    n_scans : int
        Training scans.

    Attributes
    ----------
    latents : Tensor
        (batch, latent) draws of the last batch, without their history.
    past : Tensor
        (draw, latent) queue of earlier draws, see :meth:`remember`.
    """

    def __init__(
        self, model: Autoencoder | Vae, model_config: ModelConfig, config: TrainConfig, *, variance: float, n_scans: int
    ) -> None:
        super().__init__()
        self.model = model
        self.model_config = model_config
        self.variance = variance
        self.input_noise = config.input_noise
        self.latent_noise = config.latent_noise
        self.n_scans = n_scans
        self.n_voxels = int(model.anchor.mask.sum())
        self.checkpointing = config.checkpointing
        self.latents = torch.zeros(0, model_config.n_latent)
        self.past: Tensor
        self.register_buffer("past", torch.zeros(0, model_config.n_latent), persistent=False)

    def forward(
        self,
        x: Float[Tensor, "batch 1 x y z"],
        generator: torch.Generator,
        c: Float[Tensor, "batch condition"] | None = None,
        score: Float[Tensor, " batch"] | None = None,
        *,
        kl_weight: float = 1.0,
    ) -> Float[Tensor, ""]:
        """Average the loss over the scans of a batch.

        Parameters
        ----------
        x : (batch, 1, x, y, z) Tensor
            Clean scans.
        generator : Generator
            On the device of the scans; the source of every draw.
        c : (batch, condition) Tensor, optional
            What the model is told of each scan.
        score : (batch,) Tensor, optional
            Standardised score that the first latent shall be, NaN where it is not known.
        kl_weight : float
            Share of the capacity term's weight that is in force, from :func:`nilatent.training.config.kl_weight`.

        Returns
        -------
        Tensor
            Autoencoder: squared error relative to the mean image, so 1 is as good as that. VAE: minus the evidence lower
            bound in nats, divided by the number of voxels for the sake of the gradient's size; `beta` is weighed before. A
            loss that is a mean over scans has the same gradient when it is computed in parts and weighed by their sizes; a
            most likely sigma, the MMD and the total correlation are those of the scans given.
        """
        noisy = x + self.input_noise * self.variance**0.5 * _normal(x, generator)
        posterior = Posterior(*self._run(self._moments, noisy, c))
        z = posterior.sample(generator)
        self.latents = z.detach()
        # Noise for f alone: the anchor's linear part would turn it into an error that f could only shrink towards.
        shaken = z + self.latent_noise * _normal(z, generator)
        if isinstance(self.model, Autoencoder):
            drawn = self.model.anchor.reconstruct(z, c) + self._run(self.model.correction, shaken, c)
            error = squared_error(x, drawn, self.model.anchor.mask)
            # Of Gaussian noise with the variance about the mean image, twice the nats per voxel: so is the pull.
            return (error.mean() / self.variance + 2.0 * self._pull(posterior, score)) / self.n_voxels
        added, noise = self._run(self.model.correction_and_noise, shaken, c)
        likelihood = self._log_likelihood(x, self.model.anchor.reconstruct(z, c) + added, noise)
        cost = self._capacity(z, posterior, kl_weight) + self._distance_to_prior(z, generator)
        return (cost + self._pull(posterior, score) - likelihood.mean()) / self.n_voxels

    def _moments(self, x: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        posterior = self.model.encode(x, c)
        return posterior.mean, posterior.log_var

    def _run(self, part: Callable[..., Any], *inputs: Tensor | None) -> Any:
        """Run the encoder or the decoder; with checkpointing, once more in the backward pass rather than keep it all."""
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(part, *inputs, use_reentrant=False, preserve_rng_state=False)
        return part(*inputs)

    def _pull(self, posterior: Posterior, score: Tensor | None) -> Tensor | float:
        """Nats per scan that the score costs when its mean is the first latent; scans without a score cost none."""
        if score is None:
            return 0.0
        known = score.isfinite()
        off = (posterior.mean[:, 0] - score.nan_to_num()).square() + posterior.log_var[:, 0].exp()
        return 0.5 * self.model_config.align_weight * (off * known).mean()

    def _log_likelihood(self, x: Tensor, drawn: Tensor, noise: Tensor | None) -> Float[Tensor, " batch"]:
        mask, sigma = self.model.anchor.mask, self.model_config.sigma
        if noise is not None:
            return voxel_log_likelihood(x, drawn, noise, mask)
        if self.model_config.likelihood == "laplace":
            error = absolute_error(x, drawn, mask)
            scale = (
                optimal_scale(error, n_voxels=self.n_voxels) if sigma is None else error.new_tensor(sigma / SD_BY_SCALE)
            )
            return laplace_log_likelihood(error, scale=scale, n_voxels=self.n_voxels)
        error = squared_error(x, drawn, mask)
        variance = optimal_variance(error, n_voxels=self.n_voxels) if sigma is None else error.new_tensor(sigma**2)
        return gaussian_log_likelihood(error, variance=variance, n_voxels=self.n_voxels)

    def _capacity(self, z: Tensor, posterior: Posterior, weight: float) -> Float[Tensor, ""]:
        """What the latents' capacity costs, in nats per scan, weighed."""
        config, kl = self.model_config, gaussian_kl(posterior.mean, posterior.log_var)
        if config.term == "tc":
            parts = decomposition(z, posterior.mean, posterior.log_var, n_scans=self.n_scans)
            information, total_correlation, dimension_wise = (part.mean() for part in parts)
            return weight * (information + config.beta * total_correlation + dimension_wise)
        if config.term == "free-bits":
            return weight * config.beta * free_bits(kl, floor=config.free_bits)
        if config.term == "capacity":
            # The target rises and the weight does not: at the start the latents may carry nothing.
            return config.beta * capacity(kl, target=weight * config.capacity)
        return weight * config.beta * (1.0 - config.info_alpha) * kl.sum(dim=1).mean()

    @property
    def distance_weight(self) -> float:
        """Weight of the MMD between the latents of all scans and the prior; 0 for all but an Info-VAE."""
        return self.model_config.info_alpha + self.model_config.info_lambda - 1.0

    def _distance_to_prior(self, z: Tensor, generator: torch.Generator) -> Tensor | float:
        if self.distance_weight == 0.0:
            return 0.0
        prior = torch.randn(N_PRIOR_DRAWS, z.shape[1], generator=generator, device=z.device, dtype=z.dtype)
        return self.distance_weight * mmd(z, self.past, prior)

    def remember(self, latents: Float[Tensor, "batch latent"]) -> None:
        """Put the draws of a batch at the end of the queue with which later batches are compared."""
        if self.distance_weight != 0.0:
            self.past = torch.cat([self.past, latents])[-QUEUE_LENGTH:]


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)
