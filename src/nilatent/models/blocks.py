"""Parts that the models share: the posterior, the strided convolution trunk and its mirror."""

from dataclasses import dataclass
from itertools import pairwise
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from nilatent.models.layers import NormSilu, double_to_few, halve, interpolate, to_few

CHANNELS_PER_GROUP = 4


@dataclass(frozen=True, eq=False)
class Posterior:
    """What an encoder says about each scan.

    Parameters
    ----------
    mean, log_var : (batch, latent) Tensor
        Moments of independent normal distributions. A model that gives points has a log-variance of
        :data:`nilatent.models.autoencoder.POINT_LOG_VAR`.
    """

    mean: Tensor
    log_var: Tensor

    def sample(self, generator: torch.Generator) -> Float[Tensor, "batch latent"]:
        """One draw per scan; the only place in the models that draws."""
        noise = torch.randn(self.mean.shape, generator=generator, device=self.mean.device, dtype=self.mean.dtype)
        return self.mean + (0.5 * self.log_var).exp() * noise


def join(
    values: Float[Tensor, "batch value"], c: Float[Tensor, "batch condition"] | None, *, n_condition: int
) -> Float[Tensor, "batch joined"]:
    """Append the conditions to the values of each scan.

    Raises
    ------
    ValueError
        When the conditions are not as many as the model was built for; it would otherwise read one thing for another.
    """
    given = 0 if c is None else c.shape[1]
    if given != n_condition:
        raise ValueError(f"The model takes {n_condition} conditions of each scan and was given {given}.")
    return values if c is None else torch.cat([values, c.to(values)], dim=1)


def pyramid(shape: tuple[int, int, int], n_levels: int) -> list[tuple[int, ...]]:
    """Volume shapes from the full grid down, each side halved and rounded up.

    Examples
    --------
    >>> pyramid((15, 17, 13), 2)
    [(15, 17, 13), (8, 9, 7), (4, 5, 4)]
    """
    shapes: list[tuple[int, ...]] = [tuple(shape)]
    for _ in range(n_levels):
        shapes.append(tuple((side + 1) // 2 for side in shapes[-1]))
    return shapes


class Trunk(nn.Module):
    """Strided 3D convolutions from a volume to a flat vector of features.

    Every level halves each side and rounds up (an odd side is padded by the convolution itself), so any grid fits.
    GroupNorm looks at one scan at a time: a scan's features do not depend on its batch or on ``training``.

    Parameters
    ----------
    shape : tuple
        Grid, three sides in voxels.
    channels : tuple
        Channels per level, multiples of four.
    """

    def __init__(self, *, shape: tuple[int, int, int], channels: tuple[int, ...]) -> None:
        super().__init__()
        self.layers = nn.ModuleDict()
        before = 1
        for level, width in enumerate(channels):
            # A wide first kernel with stride 2 looks at the full grid only once, where every voxel costs most.
            size = 5 if level == 0 else 3
            # Every third name stays free: the weights keep the names by which model folders know them.
            self.layers[str(3 * level)] = nn.Conv3d(before, width, size, stride=2, padding=size // 2, bias=False)
            self.layers[str(3 * level + 1)] = NormSilu(width // CHANNELS_PER_GROUP, width)
            before = width
        self.n_features = channels[-1] * prod(pyramid(shape, len(channels))[-1])

    def forward(self, x: Float[Tensor, "batch 1 x y z"]) -> Float[Tensor, "batch feature"]:
        """Features of each volume."""
        features: Tensor = halve(x, self.layers["0"].get_parameter("weight"))
        for name, layer in self.layers.items():
            features = features if name == "0" else layer(features)
        return features.flatten(1)


class Mirror(nn.Module):
    """The way back from a latent vector to a volume: a linear map to the coarsest grid, then transposed convolutions.

    Parameters
    ----------
    shape : tuple
        Grid, three sides in voxels.
    channels : tuple
        Channels per level as in :class:`Trunk`, full resolution first.
    n_latent : int
        Length of the latent vector.
    n_smooth : int
        How many of the last doublings are plain trilinear interpolation (zero beyond the grid).
        0 draws the finest detail; 1 or 2 cannot,
        which keeps a correction to a linear decoder smooth and small.
    n_out : int
        Channels of the volume.
    """

    def __init__(
        self, *, shape: tuple[int, int, int], channels: tuple[int, ...], n_latent: int, n_smooth: int, n_out: int = 1
    ) -> None:
        super().__init__()
        self.shapes = pyramid(shape, len(channels))[::-1]
        self.n_smooth = n_smooth
        self.coarse = (channels[-1], *self.shapes[0])
        self.linear = nn.Linear(n_latent, prod(self.coarse))
        # The last doubling ends in the channels of the volume: it is the last layer's, or the first of the interpolations.
        widths = channels[max(n_smooth, 1) - 1 :][::-1]
        self.ups = nn.ModuleList()
        for before, width in pairwise(widths):
            up = nn.ConvTranspose3d(before, width, 4, stride=2, padding=1, bias=False)
            self.ups.append(nn.Sequential(up, NormSilu(width // CHANNELS_PER_GROUP, width)))
        self.last: nn.Conv3d | nn.ConvTranspose3d = (
            nn.Conv3d(widths[-1], n_out, 3, padding=1)
            if n_smooth > 0
            else nn.ConvTranspose3d(widths[-1], n_out, 4, stride=2, padding=1)
        )

    def forward(self, z: Float[Tensor, "batch latent"]) -> Float[Tensor, "batch out x y z"]:
        """One volume per latent vector."""
        volume = functional.silu(self.linear(z)).reshape(len(z), *self.coarse)
        level = 0
        for up in self.ups:
            level += 1
            volume = crop(up(volume), self.shapes[level])
        last = double_to_few if self.n_smooth == 0 else to_few
        volume = last(volume, self.last.get_parameter("weight"), self.last.get_parameter("bias"))
        for shape in self.shapes[level + 1 :]:
            if self.n_smooth > 0:
                volume = interpolate(volume)
            volume = crop(volume, shape)
        return volume.float()


def crop(volume: Float[Tensor, "batch channel a b c"], shape: tuple[int, ...]) -> Float[Tensor, "batch channel x y z"]:
    """Keep the first voxels along each axis, as many as the finer grid has; the rest was padding."""
    return volume[:, :, : shape[0], : shape[1], : shape[2]]
