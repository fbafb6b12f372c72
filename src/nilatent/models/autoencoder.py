"""Autoencoder with a vector latent."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nilatent.models.anchor import NoAnchor, PcaAnchor
from nilatent.models.blocks import Mirror, Posterior, Trunk, join

POINT_LOG_VAR = -40.0
"""Log-variance of a point: an SD of 2e-9, under the resolution of float32 at unit scale, and still finite on disk."""


class Autoencoder(nn.Module):
    """Anchor plus network: ``encode(x) = anchor.project(x) + g(x)`` and ``decode(z) = anchor.reconstruct(z) + f(z)``.

    With a PCA anchor the last layers of f and g start at zero: before the first step the model *is* PCA. Each of the four
    takes the conditions c too, where there are any.

    Parameters
    ----------
    anchor : NoAnchor or PcaAnchor
        Start of the model; it also holds the mask.
    channels : tuple
        Channels per level of the network.
    n_smooth : int
        Doublings of f that are interpolation; see :class:`nilatent.models.blocks.Mirror`.
    n_condition : int
        Numbers that say a scan's conditions.
    """

    def __init__(
        self, *, anchor: NoAnchor | PcaAnchor, channels: tuple[int, ...], n_smooth: int, n_condition: int = 0
    ) -> None:
        super().__init__()
        shape = (anchor.mask.shape[0], anchor.mask.shape[1], anchor.mask.shape[2])
        n_latent = len(anchor.log_var)
        self.latent_shape: tuple[int, ...] = (n_latent,)
        self.n_condition = n_condition
        self.anchor = anchor
        self.trunk = Trunk(shape=shape, channels=channels)
        self.mean_head = nn.Linear(self.trunk.n_features + n_condition, n_latent)
        self.mirror = Mirror(shape=shape, channels=channels, n_latent=n_latent + n_condition, n_smooth=n_smooth)
        if isinstance(anchor, PcaAnchor):
            start_at_zero(self.mean_head)
            start_at_zero(self.mirror.last)

    def encode(self, x: Float[Tensor, "batch 1 x y z"], c: Float[Tensor, "batch condition"] | None = None) -> Posterior:
        """Encode each scan, as a posterior without width; deterministic, one scan at a time."""
        features = join(self.trunk(self.anchor.standardise(x, c)), c, n_condition=self.n_condition)
        mean = self.anchor.project(x, c) + self.mean_head(features).float()
        return Posterior(mean=mean, log_var=torch.full_like(mean, POINT_LOG_VAR))

    def decode(
        self, z: Float[Tensor, "batch latent"], c: Float[Tensor, "batch condition"] | None = None
    ) -> Float[Tensor, "batch 1 x y z"]:
        """Decode each latent to a volume, in the units of the scans, zero outside the mask."""
        return self.anchor.reconstruct(z, c) + self.correction(z, c)

    def correction(
        self, z: Float[Tensor, "batch latent"], c: Float[Tensor, "batch condition"] | None = None
    ) -> Float[Tensor, "batch 1 x y z"]:
        """Compute f(z), what the network adds to the anchor, in the units of the scans, zero outside the mask."""
        drawn: Tensor = self.mirror(join(z, c, n_condition=self.n_condition))
        return self.anchor.scale * self.anchor.mask * drawn


def start_at_zero(layer: nn.Linear | nn.Conv3d | nn.ConvTranspose3d) -> None:
    """Set a last layer to zero, so that the network before it adds nothing until it has learned to."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
