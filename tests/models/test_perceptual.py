from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from nilatent.models.perceptual import (
    N_BANDS,
    band_error,
    bands,
    double,
    edge_error,
    edges,
    halve,
    high_frequency_energy,
    perceptual_error,
)

SHAPE = (15, 17, 13)


@pytest.fixture
def mask(rng: np.random.Generator) -> Tensor:
    axes = np.meshgrid(*[np.linspace(-1, 1, side) for side in SHAPE], indexing="ij")
    return torch.from_numpy((sum(axis**2 for axis in axes) < 0.9) & (rng.random(SHAPE) > 0.05)).float()


@pytest.fixture
def scans(rng: np.random.Generator) -> Tensor:
    return torch.from_numpy(rng.random((3, 1, *SHAPE)).astype(np.float32))


def blurred(volume: Tensor, mask: Tensor) -> Tensor:
    finest, _ = bands(volume, mask, n_bands=1)[0]
    return volume - finest


def test_the_same_costs_nothing_and_a_constant_its_half(scans: Tensor, mask: Tensor) -> None:
    assert torch.equal(perceptual_error(scans, scans.clone(), mask), torch.zeros(3))
    torch.testing.assert_close(perceptual_error(scans, scans + 0.5, mask), torch.full((3,), 0.25), rtol=0, atol=1e-5)
    torch.testing.assert_close(band_error(scans, scans + 0.5, mask), torch.full((3,), 0.5), rtol=0, atol=1e-5)


def test_what_is_outside_the_mask_does_not_count(scans: Tensor, mask: Tensor) -> None:
    spoiled = torch.where(mask > 0, scans, torch.tensor(100.0))
    other = scans.flip(2)
    for measure in (band_error, edge_error, perceptual_error):
        torch.testing.assert_close(measure(spoiled, other, mask), measure(scans, other, mask), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(high_frequency_energy(spoiled, mask), high_frequency_energy(scans, mask))


def test_each_scan_has_its_own_value(scans: Tensor, mask: Tensor) -> None:
    other = scans.flip(0)
    alone = [perceptual_error(a[None], b[None], mask)[0] for a, b in zip(scans, other, strict=True)]
    torch.testing.assert_close(perceptual_error(scans, other, mask), torch.stack(alone))


def test_a_smooth_error_costs_as_much_as_its_mean_and_so_does_noise(mask: Tensor) -> None:
    ramp = torch.linspace(0.5, 1.0, 15)[:, None, None].expand(1, 1, *SHAPE)
    noise = torch.randn(1, 1, *SHAPE, generator=torch.Generator().manual_seed(0))
    for error in (ramp, noise):
        ratio = band_error(error, torch.zeros_like(error), mask) * mask.sum() / (error * mask).abs().sum()
        assert 0.9 < ratio.item() < 1.6


def test_the_further_a_picture_is_shifted_the_more_it_costs(mask: Tensor) -> None:
    axes = torch.meshgrid(*[torch.arange(side, dtype=torch.float32) for side in SHAPE], indexing="ij")
    ball = torch.sigmoid(4.0 - (axes[0] - 7).square() - (axes[1] - 8).square() - (axes[2] - 6).square())[None, None]
    costs = [perceptual_error(ball, ball.roll(step, dims=2), mask).item() for step in range(4)]
    assert costs == sorted(costs)
    assert costs[1] > 0.2 * costs[3]


def test_the_pyramid_adds_up_to_the_volume(scans: Tensor) -> None:
    whole = torch.ones(SHAPE)
    found = bands(scans, whole, n_bands=N_BANDS)
    assert [tuple(band.shape[2:]) for band, _ in found] == [(15, 17, 13), (8, 9, 7), (4, 5, 4), (2, 3, 2), (1, 2, 1)]
    volume = found[-1][0]
    for finer, weight in found[-2::-1]:
        coarse = halve(weight)
        volume = finer + double(volume * coarse, finer.shape[2:]) / double(coarse, finer.shape[2:])
    torch.testing.assert_close(volume, scans)


def test_smoothing_takes_the_four_nearest_voxels_of_each_axis() -> None:
    line = torch.arange(6.0)[:, None, None].expand(6, 4, 4)
    # At the far end one voxel of the four is missing, and in the middle of the others nothing is.
    middle = halve(line)[1, 0, 0] / halve(torch.ones(6, 4, 4))[1, 0, 0]
    assert middle.item() == pytest.approx((1 + 3 * 2 + 3 * 3 + 4) / 8)
    step = torch.zeros(3, 2, 2)
    step[1] = 1.0
    torch.testing.assert_close(double(step, torch.Size((6, 4, 4)))[:, 1, 1] * 8, torch.tensor([0.0, 1, 3, 3, 1, 0]) / 4)


@pytest.mark.parametrize("axis", [2, 3, 4])
def test_edges_are_as_strong_whichever_way_they_run(mask: Tensor, axis: int) -> None:
    scan = torch.zeros(1, 1, *SHAPE)
    scan.narrow(axis, 0, 6).fill_(2.0)
    assert edges(scan).max() == 2.0
    assert (edges(scan) > 1).sum() == 14 * 16 * 12 / (SHAPE[axis - 2] - 1)
    torch.testing.assert_close(edge_error(scan, 2.0 - scan, mask), torch.zeros(1), rtol=0, atol=1e-6)
    assert edge_error(scan, blurred(scan, mask), mask) > edge_error(scan, scan + 0.5, mask) + 0.01


def test_the_finest_detail_orders_blur_and_noise(mask: Tensor, scans: Tensor) -> None:
    once = blurred(scans, mask)
    twice = blurred(once, mask)
    energies = [high_frequency_energy(volume, mask) for volume in (twice, once, scans, 2.0 * scans)]
    for less, more in pairwise(energies):
        assert (less < 0.9 * more).all()
    torch.testing.assert_close(energies[3], 4.0 * energies[2])
    torch.testing.assert_close(high_frequency_energy(scans + 7.0, mask), energies[2], rtol=1e-3, atol=1e-6)


def test_the_slope_is_finite_where_both_agree(scans: Tensor, mask: Tensor) -> None:
    flat = torch.zeros_like(scans).requires_grad_()
    perceptual_error(scans * 0.0, flat, mask).sum().backward()
    assert flat.grad is not None
    assert flat.grad.isfinite().all()


def test_it_is_measured_in_single_precision(scans: Tensor, mask: Tensor) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        half = perceptual_error(scans, scans.flip(2), mask)
    torch.testing.assert_close(half, perceptual_error(scans, scans.flip(2), mask), rtol=0, atol=0)
