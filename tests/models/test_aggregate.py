import itertools
import math

import pytest
import torch
from scipy import integrate
from torch.distributions import MultivariateNormal, Normal

from nilatent.models.aggregate import SCALES, decomposition, kernel, mmd


def test_the_three_parts_add_up_to_the_divergence_of_the_draw() -> None:
    mean, log_var = torch.randn(6, 3), torch.randn(6, 3)
    z = mean + (0.5 * log_var).exp() * torch.randn(6, 3)
    own = Normal(mean, (0.5 * log_var).exp()).log_prob(z).sum(dim=1)
    expected = own - Normal(0.0, 1.0).log_prob(z).sum(dim=1)
    torch.testing.assert_close(sum(decomposition(z, mean, log_var, n_scans=50)), expected)


def test_total_correlation_is_that_of_a_normal_with_that_correlation() -> None:
    """Posterior means that correlate by .8, and little width: TC = -log(1 - r^2) / 2."""
    torch.manual_seed(1)
    correlation, width = 0.8, 0.3
    shared = torch.tensor([[1.0, correlation], [correlation, 1.0]]) - width**2 * torch.eye(2)
    mean = MultivariateNormal(torch.zeros(2), shared).sample((3000,))
    log_var = torch.full_like(mean, 2 * math.log(width))
    z = mean + width * torch.randn_like(mean)
    information, total, dimension_wise = decomposition(z, mean, log_var, n_scans=3000)
    assert total.mean() == pytest.approx(-0.5 * math.log(1 - correlation**2), abs=0.04)
    assert dimension_wise.mean() == pytest.approx(0, abs=0.04)
    # Aggregate entropy minus that of one posterior.
    expected = 0.5 * math.log(1 - correlation**2) - 2 * math.log(width)
    assert information.mean() == pytest.approx(expected, abs=0.08)


def test_part_of_the_scans_estimates_the_density_of_all_without_bias() -> None:
    """The mean over all batches of three that hold scan 0 is the density among all five scans."""
    mean, log_var, z = torch.randn(5, 2), torch.randn(5, 2), torch.randn(5, 2)
    densities = Normal(mean, (0.5 * log_var).exp()).log_prob(z[0]).sum(dim=1).exp()
    found = []
    for pair in itertools.combinations(range(1, 5), 2):
        chosen = [0, *pair]
        information, _, _ = decomposition(z[chosen], mean[chosen], log_var[chosen], n_scans=5)
        found.append((densities[0].log() - information[0]).exp())
    torch.testing.assert_close(torch.stack(found).mean(), densities.mean())


def test_kernel_is_its_definition() -> None:
    one, two = torch.randn(2, 3), torch.randn(4, 3)
    expected = sum(s * 6 / (s * 6 + float(((one[1] - two[2]) ** 2).sum())) for s in SCALES)
    assert float(kernel(one, two, n_latent=3)[1, 2]) == pytest.approx(expected, rel=1e-5)


def expected_kernel(shift: float, n_latent: int) -> float:
    """E k(a, b) for a, b independent normal with unit variance whose means differ by `shift` in all.

    k is a Laplace transform: c / (c + t) is the integral of c exp(-u (c + t)), and |a - b|^2 / 2 is noncentral chi-square.
    """
    total = 0.0
    for scale in SCALES:
        c = scale * 2 * n_latent

        def inside(u: float, c: float = c) -> float:
            spread = 1 + 4 * u
            return c * math.exp(-c * u - u * shift**2 / spread) * spread ** (-n_latent / 2)

        total += integrate.quad(inside, 0, math.inf)[0]
    return total


@pytest.mark.parametrize("shift", [0.0, 0.7, 2.0])
def test_mmd_of_two_normals_is_its_closed_form(shift: float) -> None:
    torch.manual_seed(2)
    n_latent = 3
    z, prior = torch.randn(2000, n_latent), torch.randn(2000, n_latent)
    z[:, 0] += shift
    expected = 2 * expected_kernel(0.0, n_latent) - 2 * expected_kernel(shift, n_latent)
    assert float(mmd(z, z[:0], prior)) == pytest.approx(expected, abs=0.02)
    assert (expected > 0.05) == (shift > 0)


def test_mmd_is_unbiased_in_small_batches() -> None:
    """Twelve draws a time, half of them past: the mean over many times is zero, as for a plug-in mean it is not."""
    torch.manual_seed(3)
    values = torch.stack([mmd(torch.randn(6, 2), torch.randn(6, 2), torch.randn(12, 2)) for _ in range(800)])
    assert abs(float(values.mean())) < 4 * float(values.std()) / math.sqrt(800)
    assert float(values.min()) < 0


def test_mmd_gradient_is_that_of_the_plain_estimate() -> None:
    z, prior = torch.randn(7, 2, dtype=torch.double), torch.randn(9, 2, dtype=torch.double)
    ours, plain = z.clone().requires_grad_(), z.clone().requires_grad_()
    mmd(ours, z[:0], prior).backward()
    values = kernel(plain, plain, n_latent=2)
    off = (values.sum() - values.diagonal().sum()) / (7 * 6)
    (off - 2 * kernel(plain, prior, n_latent=2).mean()).backward()
    torch.testing.assert_close(ours.grad, plain.grad)


def test_past_draws_do_not_thin_the_gradient() -> None:
    torch.manual_seed(4)
    z, past, prior = torch.randn(300, 2) + 1, torch.randn(900, 2) + 1, torch.randn(600, 2)
    pulls = []
    for queue in (past[:0], past):
        moving = z.clone().requires_grad_()
        mmd(moving, queue, prior).backward()
        pulls.append(moving.grad.sum(dim=0))
    torch.testing.assert_close(pulls[1], pulls[0], rtol=0.1, atol=0.01)
