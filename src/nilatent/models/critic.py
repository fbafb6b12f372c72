"""The critic of an adversarial training: it learns to tell scans from reconstructions, patch by patch."""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from nilatent.models.blocks import CHANNELS_PER_GROUP
from nilatent.models.spatial_vae import fold

CHANNELS = (16, 32)
SLOPE = 0.2
PATCH = 4
"""Voxels from the centre of one patch to that of the next; each patch sees 26 voxels along each axis."""


class Critic(nn.Module):
    """Strided convolutions from a volume to one judgement per patch: near 1 for a scan, near 0 for a reconstruction.

    GroupNorm looks at one scan at a time: a judgement does not depend on the batch or on ``training``, and there is no
    state beside the weights.

    Parameters
    ----------
    mask : (x, y, z) Tensor
        1 inside, 0 outside. Patches count by the share of the mask in their middle; those outside do not count.

    References
    ----------
    Isola, Zhu, Zhou & Efros 2017, Image-to-image translation with conditional adversarial networks.
    doi:10.1109/CVPR.2017.632
    """

    def __init__(self, *, mask: Float[Tensor, "x y z"]) -> None:
        super().__init__()
        fine, coarse = CHANNELS
        self.stem = nn.Conv3d(8, fine, 3, padding=1)
        self.down = nn.Conv3d(fine, coarse, 3, stride=2, padding=1, bias=False)
        self.down_norm = nn.GroupNorm(coarse // CHANNELS_PER_GROUP, coarse)
        self.middle = nn.Conv3d(coarse, coarse, 3, padding=1, bias=False)
        self.middle_norm = nn.GroupNorm(coarse // CHANNELS_PER_GROUP, coarse)
        self.last = nn.Conv3d(coarse, 1, 3, padding=1)
        self.weight: Tensor
        share = functional.avg_pool3d(_filled(mask)[None, None], PATCH)[0, 0]
        self.register_buffer("weight", share / share.sum(), persistent=False)

    def forward(self, x: Float[Tensor, "batch 1 x y z"]) -> Float[Tensor, "batch 1 a b c"]:
        """Judge the patches of volumes that are standardised and zero outside the mask."""
        features = functional.leaky_relu(self.stem(fold(x, (2, 2, 2))), SLOPE)
        features = functional.leaky_relu(self.down_norm(self.down(features)), SLOPE)
        features = functional.leaky_relu(self.middle_norm(self.middle(features)), SLOPE)
        judged: Tensor = self.last(features)
        return judged.float()


def critic_error(
    scan: Float[Tensor, "batch 1 a b c"], drawn: Float[Tensor, "batch 1 a b c"], weight: Float[Tensor, "a b c"]
) -> Float[Tensor, " batch"]:
    """Squared error of the critic: 0 when every scan is judged 1 and every reconstruction 0, 1/4 when it cannot tell.

    Parameters
    ----------
    scan, drawn : (batch, 1, a, b, c) Tensor
        Its judgements of scans and of reconstructions.
    weight : (a, b, c) Tensor
        Weights of the patches, with sum 1.

    References
    ----------
    Mao et al. 2017, Least squares generative adversarial networks. doi:10.1109/ICCV.2017.304
    """
    return 0.5 * (_weighed((scan - 1.0).square(), weight) + _weighed(drawn.square(), weight))


def fooling_error(drawn: Float[Tensor, "batch 1 a b c"], weight: Float[Tensor, "a b c"]) -> Float[Tensor, " batch"]:
    """Squared error of reconstructions that shall pass for scans: 0 when every one is judged 1, 1/2 when 0.

    Parameters and reference as in :func:`critic_error`.
    """
    return 0.5 * _weighed((drawn - 1.0).square(), weight)


def _weighed(values: Tensor, weight: Tensor) -> Float[Tensor, " batch"]:
    return (values * weight).flatten(1).sum(dim=1)


def _filled(mask: Float[Tensor, "x y z"]) -> Float[Tensor, "a b c"]:
    missing = [-side % PATCH for side in mask.shape]
    return functional.pad(mask, (0, missing[2], 0, missing[1], 0, missing[0]))
