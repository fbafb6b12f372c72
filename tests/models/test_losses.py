import math

import numpy as np
import pytest
import torch
from torch.distributions import Laplace, MultivariateNormal, Normal, kl_divergence

from nilatent.models.losses import (
    LOG_VAR_RANGE,
    VARIANCE_FLOOR,
    absolute_error,
    capacity,
    elbo,
    free_bits,
    gaussian_kl,
    gaussian_log_likelihood,
    laplace_log_likelihood,
    optimal_scale,
    optimal_variance,
    squared_error,
    voxel_log_likelihood,
)


def test_kl_is_that_of_torch() -> None:
    mean, log_var = torch.randn(5, 3), torch.randn(5, 3)
    expected = kl_divergence(Normal(mean, (0.5 * log_var).exp()), Normal(0.0, 1.0))
    torch.testing.assert_close(gaussian_kl(mean, log_var), expected)


def test_kl_stays_finite_beyond_the_clamp() -> None:
    wide = gaussian_kl(torch.zeros(1, 2), torch.tensor([[-1e4, 1e4]]))
    at_the_edge = gaussian_kl(torch.zeros(1, 2), torch.tensor([LOG_VAR_RANGE]))
    torch.testing.assert_close(wide, at_the_edge)


def test_squared_error_is_summed_inside_the_mask_alone(rng: np.random.Generator) -> None:
    x, y = rng.random((2, 3, 1, 4, 5, 6)).astype(np.float32)
    mask = rng.random((4, 5, 6)) > 0.5
    expected = [((x[i, 0] - y[i, 0])[mask] ** 2).sum() for i in range(3)]
    found = squared_error(torch.from_numpy(x), torch.from_numpy(y), torch.from_numpy(mask).float())
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)


def test_likelihood_is_the_sum_of_normal_densities(rng: np.random.Generator) -> None:
    difference = rng.standard_normal((2, 7))
    expected = [sum(-0.5 * math.log(2 * math.pi * 0.3) - d * d / 0.6 for d in row) for row in difference]
    error = torch.from_numpy((difference**2).sum(axis=1)).float()
    found = gaussian_log_likelihood(error, variance=torch.tensor(0.3), n_voxels=7)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("factor", [0.8, 1.25])
def test_optimal_variance_makes_the_batch_most_likely(factor: float) -> None:
    error = torch.tensor([3.0, 5.0])
    best = optimal_variance(error, n_voxels=10)
    at_best = gaussian_log_likelihood(error, variance=best, n_voxels=10).mean()
    assert at_best > gaussian_log_likelihood(error, variance=best * factor, n_voxels=10).mean()


def test_laplace_likelihood_is_the_sum_of_laplace_densities() -> None:
    x, y = torch.randn(2, 3, 1, 4, 5, 6)
    mask = (torch.rand(4, 5, 6) > 0.5).float()
    density = Laplace(y, 0.4).log_prob(x) * mask
    error = absolute_error(x, y, mask)
    found = laplace_log_likelihood(error, scale=torch.tensor(0.4), n_voxels=int(mask.sum()))
    torch.testing.assert_close(found, density.flatten(1).sum(dim=1), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("factor", [0.8, 1.25])
def test_optimal_scale_makes_the_batch_most_likely(factor: float) -> None:
    error = torch.tensor([3.0, 5.0])
    best = optimal_scale(error, n_voxels=10)
    at_best = laplace_log_likelihood(error, scale=best, n_voxels=10).mean()
    assert at_best > laplace_log_likelihood(error, scale=best * factor, n_voxels=10).mean()


def test_voxel_likelihood_is_the_sum_of_normal_densities_with_their_own_variance() -> None:
    x, y, variance = torch.randn(2, 1, 4, 5, 6), torch.randn(2, 1, 4, 5, 6), torch.rand(2, 1, 4, 5, 6) + 0.1
    mask = (torch.rand(4, 5, 6) > 0.5).float()
    density = Normal(y, variance.sqrt()).log_prob(x) * mask
    torch.testing.assert_close(voxel_log_likelihood(x, y, variance, mask), density.flatten(1).sum(dim=1))
    at_the_floor = voxel_log_likelihood(x, x, torch.full_like(x, VARIANCE_FLOOR), mask)
    torch.testing.assert_close(voxel_log_likelihood(x, x, torch.zeros_like(x), mask), at_the_floor)


def test_free_bits_leave_quiet_latents_alone() -> None:
    kl = torch.tensor([[0.1, 2.0], [0.3, 4.0]], requires_grad=True)
    total = free_bits(kl, floor=0.5)
    assert total.item() == pytest.approx(0.5 + 3.0)
    total.backward()
    torch.testing.assert_close(kl.grad, torch.tensor([[0.0, 0.5], [0.0, 0.5]]))


def test_capacity_pulls_from_both_sides() -> None:
    kl = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert float(capacity(kl, target=5.0)) == 0.0
    assert float(capacity(kl, target=7.0)) == float(capacity(kl, target=3.0)) == 2.0


def test_elbo_weighs_the_kl_once_per_scan_whatever_the_voxels() -> None:
    likelihood, kl = torch.tensor([-10.0, -20.0]), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    torch.testing.assert_close(elbo(likelihood, kl, beta=0.5), torch.tensor([-11.5, -23.5]))


def test_elbo_of_probabilistic_pca_is_its_exact_likelihood(rng: np.random.Generator) -> None:
    from nilatent.models import LinearStart, PcaAnchor

    n_voxels, noise = 3 * 4 * 2, 0.2
    basis = np.linalg.qr(rng.standard_normal((n_voxels, 2)))[0].T.astype(np.float32).copy()
    start = LinearStart(
        mean=torch.zeros(n_voxels),
        components=torch.from_numpy(basis),
        sd=torch.tensor([2.0, 1.0]),
        residual_variance=0.1,
        slopes=torch.zeros(0, n_voxels),
    )
    anchor = PcaAnchor(mask=torch.ones(3, 4, 2, dtype=torch.bool), start=start, noise_variance=noise)
    x = torch.randn(5, 1, 3, 4, 2)
    mean, log_var = anchor.project(x), anchor.log_var.expand(5, 2)
    # The expectation over the posterior, in closed form: the error at its mean plus what its width adds.
    error = squared_error(x, anchor.reconstruct(mean), anchor.mask) + (anchor.gain**2 * log_var.exp()).sum(dim=1)
    likelihood = gaussian_log_likelihood(error, variance=torch.tensor(noise), n_voxels=n_voxels)
    bound = elbo(likelihood, gaussian_kl(mean, log_var), beta=1.0)
    loading = anchor.components.T * anchor.gain
    exact = MultivariateNormal(torch.zeros(n_voxels), loading @ loading.T + noise * torch.eye(n_voxels))
    torch.testing.assert_close(bound, exact.log_prob(x.flatten(1)), rtol=1e-4, atol=1e-3)
