from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from nilatent.models.layers import NormSilu, convolve, double_to_few, halve, interpolate, to_few

SHAPES = [(15, 17, 13), (8, 12, 9), (7, 5, 10), (6, 8, 11), (1, 1, 1), (2, 1, 3)]


def _agree(quick: Callable[..., Tensor], plain: Callable[..., Tensor], *tensors: Tensor) -> None:
    """The same values, and the same gradient along every argument."""
    first, second = ([tensor.clone().requires_grad_() for tensor in tensors] for _ in range(2))
    one, other = quick(*first), plain(*second)
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    along = torch.randn(other.shape)
    for got, expected in zip(
        torch.autograd.grad(one, first, along), torch.autograd.grad(other, second, along), strict=True
    ):
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [3, 5])
def test_halving_is_the_plain_strided_convolution(shape: tuple[int, int, int], size: int) -> None:
    _agree(
        halve,
        lambda x, w: functional.conv3d(x, w, stride=2, padding=size // 2),
        *(torch.randn(2, 1, *shape), torch.randn(4, 1, size, size, size)),
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("settings", [{"padding": 1}, {"padding": 1, "stride": (2, 1, 2), "bias": False}], ids=str)
def test_a_single_volume_goes_the_quick_way_and_gets_what_the_layer_gives(
    shape: tuple[int, int, int], settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = nn.Conv3d(8, 12, 3, **settings)
    x = torch.randn(1, 8, *shape)
    expected = layer(x)
    one = convolve(layer, x)
    assert one.requires_grad
    assert torch.equal(one, expected)
    two = torch.cat([x, -x])
    with torch.inference_mode():
        assert torch.equal(convolve(layer, two), layer(two))
        monkeypatch.setattr(nn.Conv3d, "forward", None)
        near = x.contiguous(memory_format=torch.channels_last_3d)
        for given in (x, near):
            torch.testing.assert_close(convolve(layer, given), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("n_out", [1, 2])
def test_convolution_to_few_channels_is_the_plain_one(shape: tuple[int, int, int], n_out: int) -> None:
    _agree(
        to_few,
        lambda x, w, b: functional.conv3d(x, w, b, padding=1),
        *(torch.randn(2, 4, *shape), torch.randn(n_out, 4, 3, 3, 3), torch.randn(n_out)),
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("n_out", [1, 2])
def test_doubling_to_few_channels_is_the_plain_transposed_convolution(shape: tuple[int, int, int], n_out: int) -> None:
    _agree(
        double_to_few,
        lambda x, w, b: functional.conv_transpose3d(x, w, b, stride=2, padding=1),
        *(torch.randn(2, 4, *shape), torch.randn(4, n_out, 4, 4, 4), torch.randn(n_out)),
    )


@pytest.mark.parametrize("width", [4, 8, 32])
@pytest.mark.parametrize("shape", SHAPES[:4])
def test_norm_and_bend_are_torchs(shape: tuple[int, int, int], width: int) -> None:
    layer = NormSilu(width // 4, width)
    plain = nn.GroupNorm(width // 4, width)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(width))
    plain.load_state_dict(layer.state_dict())
    # Far from zero and of different spread, so that the mean and the scale of each group matter.
    x = 3.0 + torch.randn(2, width, *shape) * torch.linspace(0.5, 2.0, width)[:, None, None, None]
    _agree(layer, lambda x: functional.silu(plain(x)), x)
    layer(x).sum().backward()
    functional.silu(plain(x)).sum().backward()
    # A sum over all voxels of terms of order one, in single precision: its rounding grows with their number.
    rounding = 5e-6 * x[:, 0].numel()
    for ours, theirs in zip(layer.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=max(2e-3, rounding))


@pytest.mark.parametrize("shape", SHAPES)
def test_interpolation_is_the_transposed_convolution_with_the_trilinear_kernel(shape: tuple[int, int, int]) -> None:
    line = torch.tensor([0.25, 0.75, 0.75, 0.25])
    kernel = torch.einsum("x,y,z->xyz", line, line, line).expand(2, 1, 4, 4, 4)
    _agree(
        interpolate,
        lambda x: functional.conv_transpose3d(x, kernel, stride=2, padding=1, groups=2),
        torch.randn(3, 2, *shape),
    )


def test_interpolation_is_torchs_trilinear_one_inside_and_keeps_a_constant_there() -> None:
    coarse = torch.randn(1, 1, 4, 5, 6)
    expected = functional.interpolate(coarse, scale_factor=2, mode="trilinear", align_corners=False)
    inner = (slice(None), slice(None), *[slice(1, -1)] * 3)
    torch.testing.assert_close(interpolate(coarse)[inner], expected[inner])
    torch.testing.assert_close(interpolate(torch.full_like(coarse, 2.0))[inner], torch.full_like(expected, 2.0)[inner])


def test_norm_between_layers_in_half_precision_is_computed_in_single() -> None:
    layer, x = NormSilu(1, 4), 100.0 + torch.randn(2, 4, 6, 6, 6)
    half = x.bfloat16()
    torch.testing.assert_close(layer(half), layer(half.float()), rtol=0, atol=0)


@pytest.mark.parametrize("quick", [halve, to_few, double_to_few])
def test_half_precision_gives_the_same_up_to_its_rounding(quick: Callable[..., Tensor]) -> None:
    tensors = {
        halve: (torch.randn(2, 1, 8, 6, 7), torch.randn(4, 1, 5, 5, 5)),
        to_few: (torch.randn(2, 4, 8, 6, 7), torch.randn(1, 4, 3, 3, 3), torch.randn(1)),
        double_to_few: (torch.randn(2, 4, 4, 3, 5), torch.randn(4, 1, 4, 4, 4), torch.randn(1)),
    }[quick]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = quick(*tensors)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), quick(*tensors), rtol=0.05, atol=0.3)
