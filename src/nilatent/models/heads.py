"""A small residual network that reads a target from latents on a grid, and the loss that looks at the hard cases."""

from itertools import pairwise
from math import prod

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nilatent.models.autoencoder import start_at_zero
from nilatent.models.blocks import pyramid
from nilatent.models.spatial_vae import Residual

COARSEST = 3
"""A grid is halved until none of its sides is longer; what is left keeps its place in the brain."""


class ResidualHead(nn.Module):
    """Latent maps to one number per class, or to one number.

    A convolution, then residual blocks with a halving between them until the grid is coarse, then a linear map that knows
    where each feature lies. Normalisation looks at one scan at a time: what is said of a scan does not depend on its batch.

    Parameters
    ----------
    grid : tuple
        (channel, x, y, z) of a scan's latents; sides of any length, odd ones too.
    n_out : int
        Classes, or 1 for a number.
    channels : tuple
        Width per level, multiples of four; a grid of more levels repeats the last.

    Notes
    -----
    The linear map starts at zero: before the first step every class is as likely as every other.
    """

    def __init__(self, *, grid: tuple[int, int, int, int], n_out: int, channels: tuple[int, ...] = (16, 32)) -> None:
        super().__init__()
        shape = (grid[1], grid[2], grid[3])
        n_halvings = (-(-max(shape) // COARSEST) - 1).bit_length()
        widths = [channels[min(level, len(channels) - 1)] for level in range(n_halvings + 1)]
        self.grid = grid
        self.stem = nn.Conv3d(grid[0], widths[0], 3, padding=1)
        self.levels = nn.ModuleList([Residual(widths[0], n_condition=0)])
        self.halvings = nn.ModuleList()
        for before, width in pairwise(widths):
            self.halvings.append(nn.Conv3d(before, width, 3, stride=2, padding=1))
            self.levels.append(Residual(width, n_condition=0))
        self.readout = nn.Linear(widths[-1] * prod(pyramid(shape, n_halvings)[-1]), n_out)
        start_at_zero(self.readout)

    def forward(self, z: Float[Tensor, "batch channel x y z"]) -> Float[Tensor, "batch out"]:
        """Logit of each class, or the number."""
        features: Tensor = self.levels[0](self.stem(z), None)
        for halve, level in zip(self.halvings, self.levels[1:], strict=True):
            features = level(halve(features), None)
        read: Tensor = self.readout(features.flatten(1))
        return read


def focal_loss(
    logits: Float[Tensor, "batch class"],
    y: Int[Tensor, " batch"],
    *,
    class_weights: Float[Tensor, " class"],
    gamma: float,
) -> Float[Tensor, " batch"]:
    """Cross-entropy of each scan, weighed by its class and by how wrong it still is.

    Parameters
    ----------
    logits : (batch, class) Tensor
        Before the softmax.
    y : (batch,) Tensor
        Class of each scan, from 0.
    class_weights : (class,) Tensor
        Above 0; ones leave the classes as they are.
    gamma : float
        At least 0. A scan whose class has the probability p counts with the weight (1 - p) to this power; 0 is
        cross-entropy.

    Returns
    -------
    (batch,) Tensor
        ``-w (1 - p)^gamma log p`` in nats.

    References
    ----------
    Lin et al. 2017, Focal loss for dense object detection. doi:10.1109/ICCV.2017.324

    Examples
    --------
    >>> even = torch.zeros(1, 2)
    >>> round(float(focal_loss(even, torch.tensor([1]), class_weights=torch.ones(2), gamma=2.0)), 4)
    0.1733
    """
    log_p = logits.log_softmax(dim=1).gather(1, y[:, None])[:, 0]
    # Of a scan that is certain the power below 1 has no finite slope.
    doubt = (-torch.expm1(log_p)).clamp_min(torch.finfo(log_p.dtype).tiny)
    return -class_weights[y] * doubt**gamma * log_p
