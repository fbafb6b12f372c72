"""Layers of a few channels, computed from the usual weights in the form in which a processor is quick.

A processor multiplies eight or sixteen numbers at a time, across channels; a layer with one input or one output channel leaves
it nearly idle. Here several voxels become several channels. The results are those of the plain layers up to rounding, and other
devices compute the plain layers.
"""

from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

NORM_EPSILON = 1e-5
# Fewer channels than this, and torch's own gradient of the normalisation is slow in channels-last memory.
ENOUGH_CHANNELS = 32
# Voxels side by side that are taken as one long row, so that a factor per channel becomes a factor per number of the row.
LONGEST_ROW = 64
CHANNELS_LAST = torch.channels_last_3d
QUICK = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]


class NormSilu(nn.Module):
    """GroupNorm, then SiLU.

    Parameters
    ----------
    n_groups, width : int
        As of :class:`torch.nn.GroupNorm`, and with its weights.
    """

    def __init__(self, n_groups: int, width: int) -> None:
        super().__init__()
        self.n_groups = n_groups
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Float[Tensor, "batch channel x y z"]) -> Float[Tensor, "batch channel x y z"]:
        """Normalise each group of channels of each scan, and bend."""
        if _plain(x) or x.shape[1] >= ENOUGH_CHANNELS:
            return functional.silu(functional.group_norm(x, self.n_groups, self.weight, self.bias, NORM_EPSILON))
        # In single precision also between layers in half precision, as moments need it.
        near = x.float().contiguous(memory_format=CHANNELS_LAST)
        bent: Tensor = _NormSilu.apply(near, self.weight, self.bias, self.n_groups)  # type: ignore[no-untyped-call]
        return bent


class _NormSilu(torch.autograd.Function):
    """Torch's own forward pass, and a gradient that walks along the memory; it keeps only the input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, n_groups: int) -> Tensor:
        batch, width = x.shape[:2]
        n_voxels = x[0, 0].numel()
        normed, mean, scale = torch.native_group_norm(x, weight, bias, batch, width, n_voxels, n_groups, NORM_EPSILON)
        ctx.save_for_backward(x, mean, scale, weight, bias)
        return functional.silu(normed, inplace=True)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        kept: tuple[Tensor, ...] = ctx.saved_tensors
        x, mean, scale, weight, bias = kept
        batch, width, *sides = x.shape
        n_groups = mean.shape[1]
        n_voxels = x[0, 0].numel()
        row = max(length for length in range(1, LONGEST_ROW + 1) if n_voxels % length == 0)

        def long(per_channel: Tensor) -> Tensor:
            return per_channel.repeat(1, row)[:, None]

        def each(per_group: Tensor) -> Tensor:
            return per_group.repeat_interleave(width // n_groups, dim=1)

        def total(rows: Tensor) -> Tensor:
            return torch.sum(rows.view(batch, n_voxels, width), dim=1)

        def group_mean(per_channel: Tensor) -> Tensor:
            return each((per_channel * weight).view(batch, n_groups, -1).mean(dim=2)) / n_voxels

        values = x.movedim(1, -1).reshape(batch, n_voxels // row, row * width)
        mean, scale = each(mean), each(scale)
        slope = scale * weight
        buffer = torch.addcmul(long(bias - mean * slope), values, long(slope))
        bent = torch.ops.aten.silu_backward(gradient.movedim(1, -1).reshape(values.shape), buffer)
        along_bias = total(bent)
        along_weight = scale * (total(torch.mul(bent, values, out=buffer)) - mean * along_bias)
        # The part of the gradient that would only move the group's mean, or only stretch it, is taken out.
        stretch = -(scale**2) * group_mean(along_weight)
        shift = -scale * group_mean(along_bias) - stretch * mean
        torch.addcmul(long(shift), values, long(stretch), out=buffer)
        buffer.addcmul_(bent, long(slope))
        back = buffer.view(batch, *sides, width).movedim(-1, 1)
        return back, along_weight.sum(dim=0), along_bias.sum(dim=0), None


def convolve(layer: nn.Conv3d, x: Float[Tensor, "batch channel x y z"]) -> Float[Tensor, "batch out a b c"]:
    """Apply a convolution; on a processor a single small volume goes the quick way too.

    Torch takes a slow routine for one volume of few numbers, and returns it in another memory order, so that the next layers
    wait as well: a single decoded volume took twice its time. The quick routine has no gradient of its own; where one is
    needed the layer is applied as it is.

    Parameters
    ----------
    layer : nn.Conv3d
        Padded with zeros.
    x : (batch, channel, x, y, z) Tensor
        Volumes of any sides.
    """
    is_single = len(x) == 1 and x.dtype == layer.weight.dtype == torch.float32
    if _plain(x) or not is_single or torch.is_grad_enabled() or torch.is_autocast_enabled(x.device.type) or not QUICK:
        drawn: Tensor = layer(x)
        return drawn
    quick: Tensor = torch.ops.aten.mkldnn_convolution(
        x, layer.weight, layer.bias, layer.padding, layer.stride, layer.dilation, layer.groups
    )
    return quick


def halve(x: Float[Tensor, "batch 1 x y z"], weight: Float[Tensor, "out 1 k k k"]) -> Float[Tensor, "batch out a b c"]:
    """Convolve one channel with stride 2, two neighbours at a time: ``conv3d(x, weight, stride=2, padding=k // 2)``.

    Parameters
    ----------
    x : (batch, 1, x, y, z) Tensor
        Volumes of any sides.
    weight : (out, 1, k, k, k) Tensor
        Kernel of odd size.
    """
    n_out, half = len(weight), weight.shape[-1] // 2
    if _plain(x):
        return functional.conv3d(x, weight, stride=2, padding=half)
    # Two kernels, one for each of two neighbours along z; they are twice the channels, which lie as the neighbours do.
    pair = torch.cat([functional.pad(weight, (0, 2)), functional.pad(weight, (2, 0))])
    n_z = (x.shape[-1] + 1) // 2
    filled = functional.pad(x, (0, -x.shape[-1] % 4)) if x.shape[-1] % 4 else x
    pairs = functional.conv3d(
        filled.to(memory_format=CHANNELS_LAST), pair.to(memory_format=CHANNELS_LAST), stride=(2, 2, 4), padding=half
    )
    batch, _, a, b, c = pairs.shape
    rows = pairs.movedim(1, -1).reshape(batch, a, b, 2 * c, n_out)
    return rows[:, :, :, :n_z].movedim(-1, 1)


def to_few(
    x: Float[Tensor, "batch channel x y z"], weight: Float[Tensor, "out channel 3 3 3"], bias: Float[Tensor, " out"]
) -> Float[Tensor, "batch out x y z"]:
    """Convolve to very few channels, eight neighbours at a time: ``conv3d(x, weight, bias, padding=1)``.

    Parameters
    ----------
    x : (batch, channel, x, y, z) Tensor
        Volumes of any sides.
    weight, bias : (out, channel, 3, 3, 3) and (out,) Tensor
        Of the plain convolution.
    """
    if _plain(x):
        return functional.conv3d(x, weight, bias, padding=1)
    places = [(i, j, k) for i in (0, 1) for j in (0, 1) for k in (0, 1)]
    blocks = torch.cat([functional.pad(weight, (k, 1 - k, j, 1 - j, i, 1 - i)) for i, j, k in places])
    sides = x.shape[2:]
    odd = [side % 2 for side in sides]
    filled = functional.pad(x, (0, odd[2], 0, odd[1], 0, odd[0])) if any(odd) else x
    drawn = _unblock(functional.conv3d(filled, blocks, bias.repeat(8), stride=2, padding=1))
    return drawn[:, :, : sides[0], : sides[1], : sides[2]]


def double_to_few(
    x: Float[Tensor, "batch channel x y z"], weight: Float[Tensor, "channel out 4 4 4"], bias: Float[Tensor, " out"]
) -> Float[Tensor, "batch out a b c"]:
    """Double the grid into very few channels: ``conv_transpose3d(x, weight, bias, stride=2, padding=1)``.

    Parameters
    ----------
    x : (batch, channel, x, y, z) Tensor
        Volumes of any sides.
    weight, bias : (channel, out, 4, 4, 4) and (out,) Tensor
        Of the plain transposed convolution.
    """
    if _plain(x):
        return functional.conv_transpose3d(x, weight, bias, stride=2, padding=1)
    n_in, n_out = weight.shape[:2]
    # Between two voxels of the coarse grid, along each axis, lie two of the fine one, and they depend on no other.
    taps = weight.view(n_in, n_out, 2, 2, 2, 2, 2, 2).flip(2, 4, 6).permute(3, 5, 7, 1, 0, 2, 4, 6)
    drawn = functional.conv3d(x, taps.reshape(8 * n_out, n_in, 2, 2, 2), bias.repeat(8), padding=1)
    return _unblock(drawn)[:, :, 1:-1, 1:-1, 1:-1]


def _unblock(blocks: Tensor) -> Tensor:
    """Channels (place in a block of 2 x 2 x 2, out) to voxels."""
    batch, channels, a, b, c = blocks.shape
    split = blocks.movedim(1, -1).reshape(batch, a, b, c, 2, 2, 2, channels // 8)
    return split.permute(0, 7, 1, 4, 2, 5, 3, 6).reshape(batch, channels // 8, 2 * a, 2 * b, 2 * c)


def interpolate(x: Float[Tensor, "batch channel x y z"]) -> Float[Tensor, "batch channel a b c"]:
    """Double the grid by trilinear interpolation, zero beyond it; one product of matrices per axis.

    Unlike torch's own trilinear routine its gradient is deterministic on a GPU. In single precision, because half precision
    leaves steps between voxels.
    """
    with torch.autocast(x.device.type, enabled=False):
        first, second, third = (_doubling(side).to(x.device) for side in x.shape[2:])
        batch, channels, n_x, n_y, n_z = x.shape
        rows = x.float().reshape(batch * channels * n_x, n_y, n_z) @ third.T
        planes = (second @ rows).view(batch * channels, n_x, 4 * n_y * n_z)
        return (first @ planes).view(batch, channels, 2 * n_x, 2 * n_y, 2 * n_z)


@cache
def _doubling(side: int) -> Tensor:
    """(2 side, side) weights of linear interpolation at a quarter and three quarters between voxels."""
    near = 0.75 * torch.eye(side).repeat_interleave(2, dim=0)
    left = torch.diag(torch.full((side - 1,), 0.25), -1).repeat_interleave(2, dim=0)
    right = torch.diag(torch.full((side - 1,), 0.25), 1).repeat_interleave(2, dim=0)
    left[1::2], right[0::2] = 0.0, 0.0
    return near + left + right


def _plain(x: Tensor) -> bool:
    return x.device.type != "cpu"
