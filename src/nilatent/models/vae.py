"""Variational autoencoder with a vector latent."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nilatent.models.anchor import NoAnchor, PcaAnchor
from nilatent.models.autoencoder import start_at_zero
from nilatent.models.blocks import Mirror, Posterior, Trunk, join
from nilatent.models.losses import LOG_VAR_RANGE

NOISE_RANGE = (-10.0, 10.0)
"""Range of the logarithm of a voxel's noise variance relative to where it starts."""


class Vae(nn.Module):
    """Anchor plus network, with a posterior of its own width for every scan and latent.

    ``encode(x)`` has mean ``anchor.project(x) + g(x)`` and log-variance ``anchor.log_var + h(x)``; ``decode(z)`` is
    ``anchor.reconstruct(z) + f(z)``. With a PCA anchor the last layers of f, g and h start at zero: before the
    first step the model is probabilistic PCA with its exact posterior.

    Parameters
    ----------
    anchor : NoAnchor or PcaAnchor
        Start of the model; it also holds the mask.
    channels : tuple
        Channels per level of the network.
    n_smooth : int
        Doublings of f that are interpolation; see :class:`nilatent.models.blocks.Mirror`.
    voxel_noise : float
        0: the noise of the likelihood is not the decoder's business. Above 0: the decoder gives a noise variance for
        every voxel too, which starts at this value, in squared units of the scans.
    n_condition : int
        Numbers that say a scan's conditions; encoder and decoder take them.
    """

    def __init__(
        self,
        *,
        anchor: NoAnchor | PcaAnchor,
        channels: tuple[int, ...],
        n_smooth: int,
        voxel_noise: float = 0.0,
        n_condition: int = 0,
    ) -> None:
        super().__init__()
        shape = (anchor.mask.shape[0], anchor.mask.shape[1], anchor.mask.shape[2])
        n_latent = len(anchor.log_var)
        self.latent_shape: tuple[int, ...] = (n_latent,)
        self.n_condition = n_condition
        self.anchor = anchor
        self.trunk = Trunk(shape=shape, channels=channels)
        self.mean_head = nn.Linear(self.trunk.n_features + n_condition, n_latent)
        self.log_var_head = nn.Linear(self.trunk.n_features + n_condition, n_latent)
        n_out = 2 if voxel_noise > 0 else 1
        self.mirror = Mirror(
            shape=shape, channels=channels, n_latent=n_latent + n_condition, n_smooth=n_smooth, n_out=n_out
        )
        if voxel_noise > 0:
            self.voxel_noise: Tensor
            self.register_buffer("voxel_noise", torch.tensor(voxel_noise, dtype=torch.float32))
        if isinstance(anchor, PcaAnchor):
            start_at_zero(self.mean_head)
            start_at_zero(self.log_var_head)
            start_at_zero(self.mirror.last)

    def encode(self, x: Float[Tensor, "batch 1 x y z"], c: Float[Tensor, "batch condition"] | None = None) -> Posterior:
        """Encode each scan as its posterior; deterministic, one scan at a time."""
        features = join(self.trunk(self.anchor.standardise(x, c)), c, n_condition=self.n_condition)
        mean = self.anchor.project(x, c) + self.mean_head(features).float()
        log_var = self.anchor.log_var + self.log_var_head(features).float()
        return Posterior(mean=mean, log_var=log_var.clamp(*LOG_VAR_RANGE))

    def decode(
        self, z: Float[Tensor, "batch latent"], c: Float[Tensor, "batch condition"] | None = None
    ) -> Float[Tensor, "batch 1 x y z"]:
        """Decode each latent to a volume, in the units of the scans, zero outside the mask."""
        return self.anchor.reconstruct(z, c) + self.correction(z, c)

    def correction(
        self, z: Float[Tensor, "batch latent"], c: Float[Tensor, "batch condition"] | None = None
    ) -> Float[Tensor, "batch 1 x y z"]:
        """Compute f(z), what the network adds to the anchor, in the units of the scans, zero outside the mask."""
        return self.correction_and_noise(z, c)[0]

    def correction_and_noise(
        self, z: Float[Tensor, "batch latent"], c: Float[Tensor, "batch condition"] | None = None
    ) -> tuple[Float[Tensor, "batch 1 x y z"], Float[Tensor, "batch 1 x y z"] | None]:
        """Compute f(z), and the noise variance of every voxel when the decoder has one, in one pass."""
        drawn: Tensor = self.mirror(join(z, c, n_condition=self.n_condition))
        added = self.anchor.scale * self.anchor.mask * drawn[:, :1]
        if drawn.shape[1] == 1:
            return added, None
        return added, self.voxel_noise * drawn[:, 1:].clamp(*NOISE_RANGE).exp()
