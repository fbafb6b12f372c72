"""Variational autoencoder whose latent is a grid: a few maps of the brain, coarse or fine."""

from collections.abc import Callable
from itertools import pairwise
from math import prod

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from nilatent.models.anchor import LocalAnchor, NoAnchor
from nilatent.models.autoencoder import start_at_zero
from nilatent.models.blocks import CHANNELS_PER_GROUP, Posterior, crop
from nilatent.models.layers import NormSilu, convolve
from nilatent.models.losses import LOG_VAR_RANGE

START_LOG_VAR = -3.0
"""Log-variance of the posteriors before the first step: a narrow start, so that the decoder hears the latents at once."""

N_BLOCKS = 2
"""Residual blocks on the latent grid, in the encoder and in the decoder."""

BROKEN_SIDE = 2
"""On processors torch 2.13 gives wrong weight gradients of bfloat16 convolutions whose output has this first side."""

Stride = tuple[int, int, int]


def strides(shape: tuple[int, int, int], grid: int) -> list[Stride]:
    """How the levels halve a volume until a grid covers it, fine to coarse.

    Each axis is halved as often as it needs and no more; a shorter axis waits, so that voxels become as broad as long.

    Parameters
    ----------
    shape : tuple
        Volume, three sides in voxels.
    grid : int
        Cells along each side of the latent grid.

    Examples
    --------
    >>> strides((40, 48, 40), 24)
    [(2, 2, 2)]
    >>> strides((40, 48, 20), 12)
    [(2, 2, 1), (2, 2, 2)]
    """
    times = [max((-(-side // grid) - 1).bit_length(), 0) for side in shape]
    levels = range(max(times))
    return [tuple(2 if level >= max(times) - k else 1 for k in times) for level in levels]  # type: ignore[misc]


def levels(shape: tuple[int, int, int], grid: int) -> list[tuple[int, ...]]:
    """Volume shapes from the full grid down to the part of the latent grid that the volume covers, rounded up.

    Examples
    --------
    >>> levels((15, 17, 13), 6)
    [(15, 17, 13), (8, 9, 7), (4, 5, 4)]
    """
    shapes: list[tuple[int, ...]] = [tuple(shape)]
    for stride in strides(shape, grid):
        shapes.append(tuple(-(-side // by) for side, by in zip(shapes[-1], stride, strict=True)))
    return shapes


def fold(volume: Float[Tensor, "batch channel x y z"], stride: Stride) -> Float[Tensor, "batch folded a b c"]:
    """Turn each block of voxels into channels of one voxel; a volume that does not divide is filled up with zeros."""
    x, y, z = stride
    if stride == (1, 1, 1):
        return volume
    missing = [-side % by for side, by in zip(volume.shape[2:], stride, strict=True)]
    filled = functional.pad(volume, (0, missing[2], 0, missing[1], 0, missing[0]))
    n, channels, a, b, c = filled.shape
    blocks = filled.reshape(n, channels, a // x, x, b // y, y, c // z, z).permute(0, 1, 3, 5, 7, 2, 4, 6)
    folded = blocks.reshape(n, channels * x * y * z, a // x, b // y, c // z)
    return folded.contiguous(memory_format=torch.channels_last_3d)


def unfold(volume: Float[Tensor, "batch folded a b c"], stride: Stride) -> Float[Tensor, "batch channel x y z"]:
    """Turn channels into blocks of voxels: the inverse of :func:`fold`, up to what it filled up."""
    x, y, z = stride
    n, folded, a, b, c = volume.shape
    blocks = volume.reshape(n, folded // (x * y * z), x, y, z, a, b, c).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return blocks.reshape(n, folded // (x * y * z), a * x, b * y, c * z)


class Residual(nn.Module):
    """Two convolutions and a way around them; conditions scale and shift what enters the first.

    GroupNorm looks at one scan at a time: a scan's features do not depend on its batch or on ``training``.

    Parameters
    ----------
    width : int
        Channels, a multiple of four.
    n_condition : int
        Numbers that say a scan's conditions; before the first step they change nothing.
    """

    def __init__(self, width: int, *, n_condition: int) -> None:
        super().__init__()
        self.first_norm = NormSilu(width // CHANNELS_PER_GROUP, width)
        self.first = nn.Conv3d(width, width, 3, padding=1, bias=False)
        self.second_norm = NormSilu(width // CHANNELS_PER_GROUP, width)
        self.second = nn.Conv3d(width, width, 3, padding=1)
        self.told = nn.Linear(n_condition, 2 * width) if n_condition > 0 else None
        if self.told is not None:
            start_at_zero(self.told)

    def forward(
        self, x: Float[Tensor, "batch channel x y z"], c: Float[Tensor, "batch condition"] | None
    ) -> Float[Tensor, "batch channel x y z"]:
        """Add to the features what the convolutions make of them."""
        with dependable(x):
            return self._added(x.float() if x.shape[2] == BROKEN_SIDE else x, c)

    def _added(self, x: Tensor, c: Tensor | None) -> Tensor:
        bent: Tensor = self.first_norm(x)
        if self.told is not None and c is not None:
            gain, shift = self.told(c)[:, :, None, None, None].chunk(2, dim=1)
            bent = bent * (1.0 + gain) + shift
        return x + convolve(self.second, self.second_norm(convolve(self.first, bent)))


class GridTrunk(nn.Module):
    """Strided convolutions from a volume to features on the latent grid.

    Parameters
    ----------
    shape : tuple
        Volume, three sides in voxels.
    grid : int
        Cells along each side of the latent grid.
    channels : tuple
        Channels of the levels, the first after the first halving; the last one goes on for all deeper levels.
    n_condition : int
        Numbers that say a scan's conditions.
    """

    def __init__(self, *, shape: tuple[int, int, int], grid: int, channels: tuple[int, ...], n_condition: int) -> None:
        super().__init__()
        plan = strides(shape, grid) or [(1, 1, 1)]
        widths = level_widths(len(plan), channels)
        # The full grid is seen once, as blocks of voxels in the channels of the first level: a wide strided convolution
        # written as a dense narrow one, which processors run several times faster.
        self.stride = plan[0]
        self.stem = nn.Conv3d(prod(self.stride), widths[0], 3, padding=1)
        self.downs = nn.ModuleList(
            nn.Sequential(
                NormSilu(before // CHANNELS_PER_GROUP, before),
                nn.Conv3d(before, width, 3, stride=stride, padding=1),
            )
            for (before, width), stride in zip(pairwise(widths), plan[1:], strict=True)
        )
        # Convolutions cannot tell where they are; one learned map at the coarsest level tells them.
        self.place = nn.Parameter(torch.zeros(1, widths[-1], *levels(shape, grid)[-1]))
        self.blocks = nn.ModuleList(Residual(widths[-1], n_condition=n_condition) for _ in range(N_BLOCKS))
        self.last = NormSilu(widths[-1] // CHANNELS_PER_GROUP, widths[-1])
        self.n_features = widths[-1]

    def forward(
        self, x: Float[Tensor, "batch 1 x y z"], c: Float[Tensor, "batch condition"] | None, *, checkpointing: bool
    ) -> Float[Tensor, "batch feature a b c"]:
        """Features of each volume on the covered part of the latent grid."""
        features = convolve(self.stem, fold(x, self.stride))
        for down in self.downs:
            features = run(down, features, checkpointing=checkpointing)
        features = features + self.place
        for block in self.blocks:
            features = run(block, features, c, checkpointing=checkpointing)
        drawn: Tensor = run(self.last, features, checkpointing=checkpointing)
        return drawn


class Doubling(nn.Module):
    """From one level of the decoder to the next finer one: narrower, nearest doubling, residual block.

    Parameters
    ----------
    before, width : int
        Channels that come in and go out.
    stride : tuple
        How often each voxel is repeated along each axis.
    shape : tuple
        The finer level, three sides in voxels; what reaches beyond it is cut off.
    n_condition : int
        Numbers that say a scan's conditions.
    """

    def __init__(self, before: int, width: int, *, stride: Stride, shape: tuple[int, ...], n_condition: int) -> None:
        super().__init__()
        self.stride = stride
        self.shape = shape
        self.narrow = nn.Conv3d(before, width, 1)
        self.block = Residual(width, n_condition=n_condition)

    def forward(
        self, features: Float[Tensor, "batch before a b c"], c: Float[Tensor, "batch condition"] | None
    ) -> Float[Tensor, "batch channel x y z"]:
        """Features on the finer level."""
        scale = [float(by) for by in self.stride]
        repeated = functional.interpolate(convolve(self.narrow, features), scale_factor=scale, mode="nearest")
        drawn: Tensor = self.block(crop(repeated, self.shape), c)
        return drawn


class GridMirror(nn.Module):
    """The way back from the latent grid to a volume: residual blocks, and nearest doubling before each.

    No skip connection leads past the latent. The last doubling is made of channels, so that no convolution runs on the
    full grid; it contains nearest doubling and a convolution as a special case, and starts as that.

    Parameters
    ----------
    shape, grid, channels, n_condition
        As in :class:`GridTrunk`.
    latent_channels : int
        Maps of the latent.
    """

    def __init__(
        self,
        *,
        shape: tuple[int, int, int],
        grid: int,
        channels: tuple[int, ...],
        n_condition: int,
        latent_channels: int,
    ) -> None:
        super().__init__()
        plan = strides(shape, grid) or [(1, 1, 1)]
        widths = level_widths(len(plan), channels)
        self.shapes = levels(shape, grid)
        self.stride = plan[0]
        self.first = nn.Conv3d(latent_channels, widths[-1], 3, padding=1)
        self.place = nn.Parameter(torch.zeros(1, widths[-1], *self.shapes[-1]))
        self.blocks = nn.ModuleList(Residual(widths[-1], n_condition=n_condition) for _ in range(N_BLOCKS))
        finer = zip(pairwise(widths[::-1]), plan[:0:-1], self.shapes[-2:0:-1], strict=True)
        self.ups = nn.ModuleList(
            Doubling(before, width, stride=stride, shape=shape, n_condition=n_condition)
            for (before, width), stride, shape in finer
        )
        self.norm = NormSilu(widths[0] // CHANNELS_PER_GROUP, widths[0])
        self.last = nn.Conv3d(widths[0], prod(plan[0]), 3, padding=1)
        with torch.no_grad():
            # Every voxel of a block the same: without a pattern of blocks before the first step.
            self.last.weight.copy_(self.last.weight[:1].expand_as(self.last.weight))

    def forward(
        self,
        z: Float[Tensor, "batch latent a b c"],
        c: Float[Tensor, "batch condition"] | None,
        *,
        checkpointing: bool,
    ) -> Float[Tensor, "batch 1 x y z"]:
        """One volume per latent, on the covered part of the grid."""
        with dependable(z):
            features = convolve(self.first, z) + self.place
        for block in self.blocks:
            features = run(block, features, c, checkpointing=checkpointing)
        for up in self.ups:
            features = run(up, features, c, checkpointing=checkpointing)
        drawn = unfold(convolve(self.last, run(self.norm, features, checkpointing=checkpointing)), self.stride)
        return crop(drawn, self.shapes[0]).float()


class SpatialVae(nn.Module):
    """Variational autoencoder with a latent of `latent_channels` maps on a grid, and a residual network around it.

    The network works on the deviation from the anchor's centre and adds to what the anchor draws: around the mean image it
    starts as the mean image, around components of blocks as those. The volume is filled up at the end of each axis until the
    latent grid covers it. Cells without a voxel of the mask are the prior itself, in every scan, and the decoder does not
    see them.

    Parameters
    ----------
    anchor : NoAnchor or LocalAnchor
        Mask, centre and scale of the volumes, and what the grid's cells are before the first step.
    channels : tuple
        Channels of the levels, the first after the first halving; the last one goes on for all deeper levels.
    grid : int
        Cells along each side of the latent grid, at least 2.
    latent_channels : int
        Maps of the latent.
    n_condition : int
        Numbers that say a scan's conditions; encoder and decoder take them.

    Attributes
    ----------
    latent_shape : tuple
        ``(latent_channels, grid, grid, grid)``; the latents of a scan are this, flat, the last axis fastest.
    checkpointing : bool
        Whether a backward pass computes the features of each level again rather than keep them: the same gradients, less
        memory, more time. Off at first.
    """

    def __init__(
        self,
        *,
        anchor: NoAnchor,
        channels: tuple[int, ...],
        grid: int,
        latent_channels: int,
        n_condition: int = 0,
    ) -> None:
        super().__init__()
        shape = (anchor.mask.shape[0], anchor.mask.shape[1], anchor.mask.shape[2])
        self.latent_shape: tuple[int, ...] = (latent_channels, grid, grid, grid)
        self.checkpointing = False
        self.n_condition = n_condition
        self.anchor = anchor
        self.trunk = GridTrunk(shape=shape, grid=grid, channels=channels, n_condition=n_condition)
        self.mean_head = nn.Conv3d(self.trunk.n_features, latent_channels, 1)
        self.log_var_head = nn.Conv3d(self.trunk.n_features, latent_channels, 1)
        self.mirror = GridMirror(
            shape=shape, grid=grid, channels=channels, n_condition=n_condition, latent_channels=latent_channels
        )
        self.cells: Tensor
        self.register_buffer("cells", covered(anchor.mask, grid), persistent=False)
        with torch.no_grad():
            self.log_var_head.weight.mul_(0.1)
            if self.log_var_head.bias is not None:
                self.log_var_head.bias.fill_(START_LOG_VAR)
        if isinstance(anchor, LocalAnchor):
            start_at_zero(self.mean_head)
            start_at_zero(self.log_var_head)
        if anchor.centre.ndim > 0:
            start_at_zero(self.mirror.last)

    @property
    def n_used(self) -> int:
        """Values of a latent that differ from scan to scan: those of cells with a voxel of the mask."""
        return self.latent_shape[0] * int(self.cells.sum())

    def encode(self, x: Float[Tensor, "batch 1 x y z"], c: Float[Tensor, "batch condition"] | None = None) -> Posterior:
        """Encode each scan as its posterior, flat; deterministic, one scan at a time."""
        self._check(c)
        features = self.trunk(self.anchor.standardise(x, c), c, checkpointing=self.checkpointing)
        mean = self.anchor.project(x, c) + self._flat(self.mean_head(features).float())
        log_var = self.anchor.log_var + self._flat(self.log_var_head(features).float())
        return Posterior(mean=mean, log_var=log_var.clamp(*LOG_VAR_RANGE))

    def decode(
        self, z: Float[Tensor, "batch latent"], c: Float[Tensor, "batch condition"] | None = None
    ) -> Float[Tensor, "batch 1 x y z"]:
        """Decode each flat latent to a volume, in the units of the scans, zero outside the mask."""
        added = self.correction(z, c)
        return self.anchor.reconstruct(z, c) + added

    def correction(
        self, z: Float[Tensor, "batch latent"], c: Float[Tensor, "batch condition"] | None = None
    ) -> Float[Tensor, "batch 1 x y z"]:
        """Compute what the network adds to the anchor, in the units of the scans, zero outside the mask."""
        self._check(c)
        seen = crop(z.reshape(-1, *self.latent_shape) * self.cells, self.trunk.place.shape[2:])
        drawn: Tensor = self.mirror(
            seen.contiguous(memory_format=torch.channels_last_3d), c, checkpointing=self.checkpointing
        )
        return self.anchor.scale * self.anchor.mask * drawn

    def _flat(self, maps: Tensor) -> Float[Tensor, "batch latent"]:
        missing = [side - have for side, have in zip(self.latent_shape[1:], maps.shape[2:], strict=True)]
        filled = functional.pad(maps, (0, missing[2], 0, missing[1], 0, missing[0]))
        return (filled * self.cells).contiguous(memory_format=torch.contiguous_format).flatten(1)

    def _check(self, c: Tensor | None) -> None:
        given = 0 if c is None else c.shape[1]
        if given != self.n_condition:
            raise ValueError(f"The model takes {self.n_condition} conditions of each scan and was given {given}.")


def covered(mask: Float[Tensor, "x y z"], grid: int) -> Float[Tensor, "a b c"]:
    """Cells of a latent grid with at least one voxel of the mask under them: 1, the others 0."""
    shape = (mask.shape[0], mask.shape[1], mask.shape[2])
    by = [prod(steps) for steps in zip((1, 1, 1), *strides(shape, grid), strict=True)]
    missing = [grid * step - side for side, step in zip(shape, by, strict=True)]
    filled = functional.pad(mask, (0, missing[2], 0, missing[1], 0, missing[0]))
    return filled.reshape(grid, by[0], grid, by[1], grid, by[2]).amax(dim=(1, 3, 5))


def cell_of_voxels(mask: Bool[Tensor, "x y z"], grid: int) -> Int[Tensor, " voxel"]:
    """Cell of a latent grid that each voxel inside the mask lies under, the last axis fastest in both.

    Examples
    --------
    >>> cell_of_voxels(torch.ones(4, 2, 2, dtype=torch.bool), 2).tolist()
    [0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 7, 4, 5, 6, 7]
    """
    shape = (mask.shape[0], mask.shape[1], mask.shape[2])
    by = [prod(steps) for steps in zip((1, 1, 1), *strides(shape, grid), strict=True)]
    cells = mask.nonzero() // mask.new_tensor(by, dtype=torch.long)
    return (cells[:, 0] * grid + cells[:, 1]) * grid + cells[:, 2]


def level_widths(n_levels: int, channels: tuple[int, ...]) -> list[int]:
    """Channels of each level, fine to coarse."""
    return [channels[min(level, len(channels) - 1)] for level in range(n_levels)]


def dependable(features: Tensor) -> torch.autocast:
    """Single precision where mixed precision cannot be trusted, as an autocast context."""
    mixed = torch.is_autocast_enabled(features.device.type) and features.shape[2] != BROKEN_SIDE
    return torch.autocast(features.device.type, enabled=mixed)


def run(block: Callable[..., Tensor], *inputs: Tensor | None, checkpointing: bool) -> Tensor:
    """Call a block; with checkpointing, keep its inputs only and compute the rest again in the backward pass."""
    if checkpointing and torch.is_grad_enabled():
        again: Tensor = checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)
        return again
    return block(*inputs)
