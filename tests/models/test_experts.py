import numpy as np
import pytest
import torch

from nilatent.errors import SettingError
from nilatent.models.experts import Experts, Mixture, combine, modality_sets

KINDS = ("poe", "moe", "mopoe")


@pytest.fixture
def experts(rng):
    """Three modalities of five scans with two latents; one knows a sum of the latents alone."""
    mean, log_var = (torch.from_numpy(rng.standard_normal((5, 3, 2))) for _ in range(2))
    found = Experts.independent(mean, log_var)
    precision = found.precision.clone()
    precision[:, 2] = torch.tensor([[1.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    return Experts(found.pull, precision)


def everything(n_scans=5, n_modalities=3):
    return torch.ones(n_scans, n_modalities, dtype=torch.bool)


def test_product_of_gaussians():
    """Two experts and the prior, one latent: precisions add up, and means are weighed by them."""
    mean, variance = torch.tensor([[[2.0], [-1.0]]]), torch.tensor([[[0.5], [0.25]]])
    posterior = combine(Experts.independent(mean, variance.log()), everything(1, 2), kind="poe").moments()
    precision = 1.0 + 1.0 / 0.5 + 1.0 / 0.25
    assert posterior.mean.item() == pytest.approx((2.0 / 0.5 - 1.0 / 0.25) / precision)
    assert posterior.log_var.exp().item() == pytest.approx(1.0 / precision)


def test_product_on_a_line(experts):
    """The density of the product is the product of the densities, up to a constant."""
    mixture = combine(experts, everything(), kind="poe")
    points = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for scan in range(5):
        covariance = torch.linalg.inv(mixture.root[scan, 0] @ mixture.root[scan, 0].T)
        whole = torch.distributions.MultivariateNormal(mixture.mean[scan, 0], covariance).log_prob(points)
        parts = -0.5 * points.square().sum(dim=1)
        for pull, precision in zip(experts.pull[scan], experts.precision[scan], strict=True):
            parts = parts + points @ pull - 0.5 * torch.einsum("ni,ij,nj->n", points, precision, points)
        assert torch.allclose(whole - whole[0], parts - parts[0])


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_present_is_the_prior(experts, kind):
    mixture = combine(experts, torch.zeros(5, 3, dtype=torch.bool), kind=kind)
    posterior = mixture.moments()
    assert torch.equal(posterior.mean, torch.zeros(5, 2, dtype=torch.float64))
    assert torch.allclose(posterior.log_var, torch.zeros(5, 2, dtype=torch.float64))
    assert torch.allclose(mixture.kl(), torch.zeros(5, dtype=torch.float64))


@pytest.mark.parametrize("kind", KINDS)
def test_one_modality_says_the_same_in_all_kinds(experts, kind):
    present = torch.tensor([[False, True, False]]).expand(5, 3)
    found = combine(experts, present, kind=kind).moments()
    precision = torch.diagonal(experts.precision[:, 1], dim1=1, dim2=2) + 1.0
    assert torch.allclose(found.mean, experts.pull[:, 1] / precision)
    assert torch.allclose(found.log_var, -precision.log())


def test_mixture_of_experts_has_the_moments_of_its_parts(experts):
    present = torch.tensor([[True, False, True]]).expand(5, 3)
    alone = [combine(experts, present & (torch.arange(3) == place), kind="poe").moments() for place in (0, 2)]
    found = combine(experts, present, kind="moe").moments()
    mean = (alone[0].mean + alone[1].mean) / 2
    square = sum(one.log_var.exp() + one.mean.square() for one in alone) / 2
    assert torch.allclose(found.mean, mean)
    assert torch.allclose(found.log_var.exp(), square - mean.square())


def test_mixture_of_products_mixes_the_products_of_all_sets(experts):
    present = torch.tensor([[True, True, False]]).expand(5, 3)
    sets = [torch.tensor(one) for one in ([True, False, False], [False, True, False], [True, True, False])]
    products = [combine(experts, present & one, kind="poe").moments().mean for one in sets]
    assert torch.allclose(combine(experts, present, kind="mopoe").moments().mean, sum(products) / 3)


@pytest.mark.parametrize("kind", KINDS)
def test_an_absent_modality_may_hold_anything(experts, kind):
    present = torch.tensor([[True, False, True]]).expand(5, 3)
    broken = Experts(experts.pull.clone(), experts.precision.clone())
    broken.pull[:, 1], broken.precision[:, 1] = float("nan"), float("inf")
    expected, found = (combine(one, present, kind=kind) for one in (experts, broken))
    assert torch.equal(expected.moments().mean, found.moments().mean)
    assert torch.equal(expected.kl(), found.kl())


@pytest.mark.parametrize("kind", KINDS)
def test_scans_do_not_see_one_another(experts, kind, rng):
    present = torch.from_numpy(rng.random((5, 3)) > 0.4)
    together = combine(experts, present, kind=kind).moments()
    for scan in range(5):
        alone = Experts(experts.pull[scan : scan + 1], experts.precision[scan : scan + 1])
        assert torch.allclose(
            combine(alone, present[scan : scan + 1], kind=kind).moments().mean[0], together.mean[scan]
        )


def test_divergence_is_that_of_two_gaussians(experts):
    mixture = combine(experts, everything(), kind="poe")
    for scan, kl in enumerate(mixture.kl()):
        covariance = torch.linalg.inv(mixture.root[scan, 0] @ mixture.root[scan, 0].T)
        one = torch.distributions.MultivariateNormal(mixture.mean[scan, 0], covariance)
        prior = torch.distributions.MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double())
        assert torch.allclose(kl, torch.distributions.kl_divergence(one, prior))


def test_divergence_of_a_mixture_is_the_mean_of_its_parts_by_weight(experts):
    mixture = combine(experts, torch.tensor([[True, False, True]]).expand(5, 3), kind="moe")
    parts = [
        Mixture(torch.ones(5, 1).double(), mixture.mean[:, [place]], mixture.root[:, [place]]).kl() for place in (0, 2)
    ]
    assert torch.allclose(mixture.kl(), (parts[0] + parts[1]) / 2)


def test_draws_have_the_moments_of_the_posterior():
    root = torch.tensor([[1.0, 0.0], [2.0, 0.5]]).double()
    mean = torch.tensor([1.0, -2.0]).double()
    many = Mixture(torch.ones(100000, 1).double(), mean.expand(100000, 1, 2), root.expand(100000, 1, 2, 2))
    drawn = many.draws(torch.Generator().manual_seed(0))[:, 0]
    covariance = torch.linalg.inv(root @ root.T)
    assert torch.allclose(drawn.mean(dim=0), mean, atol=0.1)
    assert np.allclose(np.cov(drawn.numpy().T), covariance.numpy(), rtol=0.03)
    assert torch.allclose(many.moments().log_var[0].exp(), covariance.diagonal())


def test_unknown_kinds_and_too_many_sets_are_refused():
    with pytest.raises(SettingError, match=r"experts is 'product'"):
        modality_sets(2, kind="product")
    with pytest.raises(SettingError, match=r"127 components"):
        modality_sets(7, kind="mopoe")
