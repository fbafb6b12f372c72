"""What one training step lowers."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nilatent.models import Autoencoder, Vae
from nilatent.models.losses import elbo, gaussian_kl, gaussian_log_likelihood, optimal_variance, squared_error


class Objective(nn.Module):
    """Loss of a batch, as one module so that a distributed strategy sees one forward pass.

    The noise belongs here and not in the model: the scan to be drawn is clean, the scan that is encoded and the latent
    that is decoded are not. It keeps a correction to PCA from learning the training scans by heart.

    Parameters
    ----------
    model : Autoencoder or Vae
        What is trained.
    variance : float
        Variance of the training scans about their mean image, per voxel: the unit of the autoencoder's loss.
    beta : float
        Weight of the KL, in units of the evidence lower bound.
    sigma : float or None
        Noise SD of the likelihood; None is the optimal one of each batch.
    input_noise : float
        SD of the noise on the scan, in units of the SD about the mean image.
    latent_noise : float
        SD of the noise on the latent.
    """

    def __init__(
        self,
        model: Autoencoder | Vae,
        *,
        variance: float,
        beta: float,
        sigma: float | None,
        input_noise: float,
        latent_noise: float,
    ) -> None:
        super().__init__()
        self.model = model
        self.variance = variance
        self.beta = beta
        self.sigma = sigma
        self.input_noise = input_noise
        self.latent_noise = latent_noise
        self.n_voxels = int(model.anchor.mask.sum())

    def forward(self, x: Float[Tensor, "batch 1 x y z"], generator: torch.Generator) -> Float[Tensor, ""]:
        """Average the loss over the scans of a batch.

        Parameters
        ----------
        x : (batch, 1, x, y, z) Tensor
            Clean scans.
        generator : Generator
            On the device of the scans; the source of every draw.

        Returns
        -------
        Tensor
            Autoencoder: squared error relative to the mean image, so 1 is as good as that. VAE: minus the evidence lower
            bound in nats, divided by the number of voxels for the sake of the gradient's size; `beta` is weighed before.
        """
        noisy = x + self.input_noise * self.variance**0.5 * _normal(x, generator)
        posterior = self.model.encode(noisy)
        z = posterior.sample(generator)
        # Noise for f alone: the anchor's linear part would turn it into an error that f could only shrink towards.
        corrected = self.model.correction(z + self.latent_noise * _normal(z, generator))
        reconstruction = self.model.anchor.reconstruct(z) + corrected
        error = squared_error(x, reconstruction, self.model.anchor.mask)
        if isinstance(self.model, Autoencoder):
            return error.mean() / (self.n_voxels * self.variance)
        fixed = None if self.sigma is None else error.new_tensor(self.sigma**2)
        noise_variance = optimal_variance(error, n_voxels=self.n_voxels) if fixed is None else fixed
        likelihood = gaussian_log_likelihood(error, variance=noise_variance, n_voxels=self.n_voxels)
        bound = elbo(likelihood, gaussian_kl(posterior.mean, posterior.log_var), beta=self.beta)
        return -bound.mean() / self.n_voxels


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)
