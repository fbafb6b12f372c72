"""Deep features of volumes from a fixed random network: a yardstick that no model under test was trained with."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from nilatent.models.blocks import CHANNELS_PER_GROUP

CHANNELS = (8, 32, 64)
POOLED_SIDE = 10
NOTE = (
    "a network of three strided 3D convolutions with random orthogonal kernels (seed {seed}), normalised per scan and never "
    "trained, whose features are averaged over neighbourhoods"
)

Features = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]


class RandomFeatures(nn.Module):
    """A convolution network with random orthogonal kernels, drawn once from a seed and never trained.

    Every level halves the grid: convolution without bias, group normalisation of the scan by itself, rectification. Its
    features are the responses averaged over neighbourhoods, about ten along each axis. The distance between averaged
    random features compares the distributions of small patches in two images: it sees blur and noise where pixels
    are only compared with pixels.

    Parameters
    ----------
    channels : tuple
        Channels per level, multiples of four.
    seed : int
        Of the kernels; the same seed gives the same network on every machine, up to rounding.

    References
    ----------
    Amir & Weiss (2021), Understanding and Simplifying Perceptual Distances. https://doi.org/10.1109/CVPR46437.2021.01205
    Saxe, McClelland & Ganguli (2014), Exact solutions to the nonlinear dynamics of learning in deep linear neural
    networks (orthogonal kernels). https://doi.org/10.48550/arXiv.1312.6120
    """

    def __init__(self, *, channels: tuple[int, ...] = CHANNELS, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        for level, (before, width) in enumerate(pairwise((1, *channels))):
            # The full grid is looked at once, with a stride: there every voxel costs most.
            size = 5 if level == 0 else 3
            kernel = nn.init.orthogonal_(torch.empty(width, before, size, size, size), generator=generator)
            self.register_buffer(f"kernel_{level}", kernel)

    def forward(self, x: Float[Tensor, "batch 1 x y z"]) -> Float[Tensor, "batch feature"]:
        """Features of all levels, each level with the same weight in a squared distance."""
        found = []
        for kernel in self.buffers():
            x = functional.conv3d(x, kernel, stride=2, padding=kernel.shape[-1] // 2)
            x = functional.relu(functional.group_norm(x, x.shape[1] // CHANNELS_PER_GROUP))
            window = [max(round(side / POOLED_SIDE), 1) for side in x.shape[2:]]
            level = functional.avg_pool3d(x, window, ceil_mode=True, count_include_pad=False).flatten(1)
            found.append(level / level.shape[1] ** 0.5)
        return torch.cat(found, dim=1)


def image_features(
    mask: npt.NDArray[np.bool_], *, seed: int = 0, device: str = "cpu", batch_size: int = 4
) -> tuple[Features, str]:
    """A function from masked scans to deep features, and the words that name its network.

    Parameters
    ----------
    mask : ndarray
        (x, y, z) bool; a volume is zero outside it.
    seed : int
        Of the network's kernels.
    device : str
        Where it is computed.
    batch_size : int
        Scans at a time; it changes speed and memory only.

    Returns
    -------
    tuple[callable, str]
        (scan, voxel in mask) float32 to (scan, feature) float32, and a description for settings and caveats.
    """
    network = RandomFeatures(seed=seed).to(device)
    inside = torch.from_numpy(np.asarray(mask, dtype=bool))

    def features(scans: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        found = []
        with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            for start in range(0, len(scans), batch_size):
                some = torch.from_numpy(np.ascontiguousarray(scans[start : start + batch_size], dtype=np.float32))
                volumes = torch.zeros(len(some), 1, *inside.shape)
                volumes[:, 0, inside] = some
                found.append(network(volumes.to(device)).cpu().numpy())
        return np.concatenate(found)

    return features, NOTE.format(seed=seed)
