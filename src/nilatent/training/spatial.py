"""What one training step of a spatial VAE lowers, and what its critic lowers in turn."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nilatent.models.config import ModelConfig
from nilatent.models.critic import Critic, critic_error, fooling_error
from nilatent.models.losses import absolute_error, gaussian_kl, laplace_log_likelihood, optimal_scale
from nilatent.models.perceptual import perceptual_error
from nilatent.models.spatial_vae import SpatialVae
from nilatent.training.bound import SD_BY_SCALE
from nilatent.training.config import TrainConfig

CRITIC_BETAS = (0.5, 0.9)
"""Of the critic's own AdamW: it follows a moving target, and a long memory of old gradients would lag behind."""
MAX_AMPLIFICATION = 1e4
"""A critic that has nothing left to say is not made louder than this."""


def critic_is_on(model_config: ModelConfig, config: TrainConfig, epoch: int) -> bool:
    """Whether the critic judges and learns in an epoch, counted from 1.

    Parameters
    ----------
    model_config : ModelConfig
        Weight of the adversarial term, and the share of the epochs before it.
    config : TrainConfig
        Number of epochs.
    epoch : int
        Which epoch.
    """
    return model_config.adversarial > 0 and epoch > model_config.adversarial_from * config.n_epochs


class SpatialObjective(nn.Module):
    """Loss of a batch: reconstruction, perceptual and adversarial term and KL, as one module with one forward pass.

    Parameters
    ----------
    model : SpatialVae
        What is trained.
    model_config : ModelConfig
        Weights of the terms.
    config : TrainConfig
        Noise.
    variance : float
        Variance of the training scans about their mean image, per voxel: the unit of the noise.

    Attributes
    ----------
    drawn : Tensor or None
        The reconstructions of the last batch, without their history: what the critic learns from next.
    """

    def __init__(self, model: SpatialVae, model_config: ModelConfig, config: TrainConfig, *, variance: float) -> None:
        super().__init__()
        self.model = model
        self.model_config = model_config
        self.variance = variance
        self.input_noise = config.input_noise
        self.n_voxels = int(model.anchor.mask.sum())
        self.drawn: Tensor | None = None

    def forward(
        self,
        x: Float[Tensor, "batch 1 x y z"],
        generator: torch.Generator,
        c: Float[Tensor, "batch condition"] | None = None,
        *,
        kl_weight: float = 1.0,
        critic: Critic | None = None,
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
        kl_weight : float
            Share of the KL's weight that is in force, from :func:`nilatent.training.config.kl_weight`.
        critic : Critic, optional
            Judges the reconstructions once it is on; its own weights get no gradient here.

        Returns
        -------
        Tensor
            Minus the evidence lower bound in nats under Laplace noise, divided by the number of voxels for the sake of the
            gradient's size (`beta` is weighed before), plus the perceptual error in units of the scale of that noise, plus
            the adversarial term. The fit's absolute error is in the same units, so the weights compare with it.
        """
        noisy = x + self.input_noise * self.variance**0.5 * _normal(x, generator)
        posterior = self.model.encode(noisy, c)
        z = posterior.sample(generator)
        drawn = self.model.decode(z, c)
        self.drawn = drawn.detach()
        mask, sigma = self.model.anchor.mask, self.model_config.sigma
        error = absolute_error(x, drawn, mask)
        scale = optimal_scale(error, n_voxels=self.n_voxels) if sigma is None else error.new_tensor(sigma / SD_BY_SCALE)
        likelihood = laplace_log_likelihood(error, scale=scale, n_voxels=self.n_voxels).mean()
        divergence = gaussian_kl(posterior.mean, posterior.log_var).sum(dim=1).mean()
        loss = (kl_weight * self.model_config.beta * divergence - likelihood) / self.n_voxels
        if self.model_config.perceptual > 0:
            loss = loss + self.model_config.perceptual * (perceptual_error(x, drawn, mask) / scale).mean()
        if critic is not None:
            loss = loss + self.model_config.adversarial * self._fooling(drawn, -likelihood / self.n_voxels, critic)
        return loss

    def _fooling(self, drawn: Tensor, fit: Tensor, critic: Critic) -> Float[Tensor, ""]:
        """The critic's disbelief, weighed so that it pulls at the last layer as strongly as the fit does.

        A critic has no unit: its slope may grow a hundredfold while it learns. Held to the pull of the fit it can neither
        take over nor fall silent.

        References
        ----------
        Esser, Rombach & Ommer 2021, Taming transformers for high-resolution image synthesis, equation 7.
        doi:10.1109/CVPR46437.2021.01268
        """
        seen = drawn.detach().requires_grad_()
        disbelief = fooling_error(critic(self.model.anchor.standardise(seen)), critic.weight).mean()
        (slope,) = torch.autograd.grad(disbelief, seen)
        last = self.model.mirror.last.weight
        (own,) = torch.autograd.grad(fit, last, retain_graph=True)
        (theirs,) = torch.autograd.grad(drawn, last, grad_outputs=slope, retain_graph=True)
        gain = (own.norm() / theirs.norm().clamp_min(torch.finfo(torch.float32).tiny)).clamp(max=MAX_AMPLIFICATION)
        # The slope at the reconstructions is known by now, so nothing has to go through the critic a second time.
        weighed: Tensor = gain * (disbelief.detach() + ((drawn - drawn.detach()) * slope).sum())
        return weighed


class CriticObjective(nn.Module):
    """Loss of the critic on a batch of scans and their reconstructions.

    Parameters
    ----------
    critic : Critic
        What is trained.
    model : SpatialVae
        Its anchor standardises the volumes; it is no part of this module.
    """

    def __init__(self, critic: Critic, model: SpatialVae) -> None:
        super().__init__()
        self.critic = critic
        self.standardise = model.anchor.standardise

    def forward(self, x: Float[Tensor, "batch 1 x y z"], drawn: Float[Tensor, "batch 1 x y z"]) -> Float[Tensor, ""]:
        """Average the critic's error over the scans of a batch.

        Parameters
        ----------
        x, drawn : (batch, 1, x, y, z) Tensor
            Scans and their reconstructions, the latter without history.
        """
        judged = self.critic(torch.cat([self.standardise(x), self.standardise(drawn)]))
        return critic_error(judged[: len(x)], judged[len(x) :], self.critic.weight).mean()


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)
