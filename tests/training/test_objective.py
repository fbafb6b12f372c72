"""The loss of a batch, computed once more from the model's own outputs and the densities of torch."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Laplace, Normal, kl_divergence

from nilatent.models import LinearStart, ModelConfig, Posterior, Vae, build
from nilatent.models.aggregate import decomposition, mmd
from nilatent.training.config import TrainConfig, kl_is_whole, kl_weight
from nilatent.training.objective import N_PRIOR_DRAWS, Objective

SHAPE = (15, 17, 13)
QUIET = TrainConfig(input_noise=0.0, latent_noise=0.0)
BASE = ModelConfig(name="vae", n_latent=3, channels=(4, 8, 8), anchor="none")


@pytest.fixture
def scans(rng: np.random.Generator) -> Tensor:
    return torch.from_numpy(rng.random((5, 1, *SHAPE)).astype(np.float32))


def model_of(config: ModelConfig) -> Vae:
    torch.manual_seed(0)
    mask = torch.ones(SHAPE, dtype=torch.bool)
    mask[:3] = False
    n_voxels = int(mask.sum())
    components = torch.linalg.qr(torch.randn(n_voxels, 3))[0].T.contiguous()
    start = LinearStart(
        mean=torch.rand(n_voxels),
        components=components,
        sd=torch.ones(3),
        residual_variance=0.1,
        slopes=torch.zeros(0, n_voxels),
    )
    model = build(config, mask=mask, start=start)
    assert isinstance(model, Vae)
    return model


def loss_of(
    config: ModelConfig, scans: Tensor, *, kl_weight: float = 1.0
) -> tuple[Tensor, Vae, Posterior, Tensor, Tensor]:
    """The objective's value, and the model, posterior, draw and prior draws it saw."""
    model = model_of(config)
    objective = Objective(model, config, QUIET, variance=0.1, n_scans=20)
    with torch.no_grad():
        loss = objective(scans, torch.Generator().manual_seed(7), kl_weight=kl_weight)
        generator = torch.Generator().manual_seed(7)
        torch.randn(scans.shape, generator=generator)
        posterior = model.encode(scans)
        z = posterior.sample(generator)
        torch.randn(z.shape, generator=generator)
        prior = torch.randn(N_PRIOR_DRAWS, 3, generator=generator)
    return loss * objective.n_voxels, model, posterior, z, prior


def kl_of(posterior: Posterior) -> Tensor:
    return kl_divergence(Normal(posterior.mean, (0.5 * posterior.log_var).exp()), Normal(0.0, 1.0))


def gaussian(model: Vae, scans: Tensor, z: Tensor, sd: Tensor | float) -> Tensor:
    inside = model.anchor.mask > 0
    return (Normal(model.decode(z), sd).log_prob(scans) * inside).flatten(1).sum(dim=1)


@pytest.mark.parametrize("sigma", [None, 0.4])
def test_gaussian(scans: Tensor, sigma: float | None) -> None:
    loss, model, posterior, z, _ = loss_of(dataclasses.replace(BASE, sigma=sigma, beta=3.0), scans, kl_weight=0.5)
    inside = model.anchor.mask > 0
    error = (scans - model.decode(z))[:, :, inside].square().mean().sqrt()
    expected = 1.5 * kl_of(posterior).sum(dim=1) - gaussian(model, scans, z, error if sigma is None else sigma)
    torch.testing.assert_close(loss, expected.mean(), rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("sigma", [None, 0.4])
def test_laplace(scans: Tensor, sigma: float | None) -> None:
    loss, model, posterior, z, _ = loss_of(dataclasses.replace(BASE, likelihood="laplace", sigma=sigma), scans)
    drawn, inside = model.decode(z), model.anchor.mask > 0
    scale = (scans - drawn)[:, :, inside].abs().mean() if sigma is None else torch.tensor(sigma / 2**0.5)
    assert sigma is None or Laplace(0.0, scale).stddev == pytest.approx(sigma)
    likelihood = (Laplace(drawn, scale).log_prob(scans) * inside).flatten(1).sum(dim=1)
    torch.testing.assert_close(loss, (kl_of(posterior).sum(dim=1) - likelihood).mean(), rtol=1e-4, atol=1e-2)


def test_a_variance_for_every_voxel(scans: Tensor) -> None:
    loss, model, posterior, z, _ = loss_of(dataclasses.replace(BASE, likelihood="voxel"), scans)
    _, variance = model.correction_and_noise(z)
    assert variance is not None
    assert variance.std() > 0
    expected = kl_of(posterior).sum(dim=1) - gaussian(model, scans, z, variance.sqrt())
    torch.testing.assert_close(loss, expected.mean(), rtol=1e-4, atol=1e-2)


def test_the_voxel_variance_starts_at_what_the_components_leave(scans: Tensor) -> None:
    model = model_of(dataclasses.replace(BASE, likelihood="voxel", anchor="pca"))
    _, variance = model.correction_and_noise(torch.randn(2, 3))
    assert variance is not None
    torch.testing.assert_close(variance, torch.full_like(variance, 0.1))


def test_total_correlation_alone_is_weighed(scans: Tensor) -> None:
    loss, model, posterior, z, _ = loss_of(dataclasses.replace(BASE, sigma=0.4, term="tc", beta=5.0), scans)
    parts = decomposition(z, posterior.mean, posterior.log_var, n_scans=20)
    expected = parts[0] + 5.0 * parts[1] + parts[2] - gaussian(model, scans, z, 0.4)
    torch.testing.assert_close(loss, expected.mean(), rtol=1e-4, atol=1e-2)


def test_free_bits_and_capacity(scans: Tensor) -> None:
    floor = dataclasses.replace(BASE, sigma=0.4, term="free-bits", free_bits=0.2, beta=2.0)
    loss, model, posterior, z, _ = loss_of(floor, scans)
    likelihood, kl = gaussian(model, scans, z, 0.4).mean(), kl_of(posterior)
    torch.testing.assert_close(loss, 2.0 * kl.mean(dim=0).clamp(min=0.2).sum() - likelihood, rtol=1e-4, atol=1e-2)
    loss, *_ = loss_of(dataclasses.replace(BASE, sigma=0.4, term="capacity", capacity=8.0), scans, kl_weight=0.5)
    expected = (kl.sum(dim=1).mean() - 4.0).abs() - likelihood
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-2)


def test_info_vae(scans: Tensor) -> None:
    config = dataclasses.replace(BASE, sigma=0.4, info_alpha=0.25, info_lambda=100.0)
    loss, model, posterior, z, prior = loss_of(config, scans)
    distance = mmd(z, z[:0], prior)
    expected = 0.75 * kl_of(posterior).sum(dim=1).mean() + 99.25 * distance - gaussian(model, scans, z, 0.4).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-2)


def test_the_queue_holds_the_last_draws(scans: Tensor) -> None:
    objective = Objective(model_of(BASE), dataclasses.replace(BASE, info_lambda=2.0), QUIET, variance=0.1, n_scans=20)
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        objective(scans, generator)
        # All parts of a batch are compared with the same past.
        before = objective.past
        objective.remember(objective.latents)
    assert objective.past.shape == (256, 3)
    torch.testing.assert_close(objective.past, torch.cat([before, objective.latents])[-256:], rtol=0, atol=0)
    assert not objective.past.requires_grad


def test_without_a_distance_to_the_prior_nothing_is_remembered(scans: Tensor) -> None:
    objective = Objective(model_of(BASE), BASE, QUIET, variance=0.1, n_scans=20)
    objective(scans, torch.Generator().manual_seed(0))
    objective.remember(objective.latents)
    assert len(objective.past) == 0


@pytest.mark.parametrize("change", [{}, {"likelihood": "voxel"}, {"info_lambda": 10.0}])
def test_what_is_computed_again_has_the_same_gradient(scans: Tensor, change: dict[str, object]) -> None:
    config = dataclasses.replace(BASE, **change)  # type: ignore[arg-type]
    found, kept = [], []
    for checkpointing in (False, True):
        settings = TrainConfig(checkpointing=checkpointing)
        objective = Objective(model_of(config), config, settings, variance=0.1, n_scans=20)
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda one, sizes=sizes: sizes.append(one.numel()) or one, lambda one: one
        ):
            loss = objective(scans, torch.Generator().manual_seed(0))
        loss.backward()
        found.append([parameter.grad for parameter in objective.parameters()])
        kept.append(sum(sizes))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert kept[1] < 0.6 * kept[0]


def test_an_epoch_is_whole_when_every_step_of_it_was() -> None:
    for config in (
        TrainConfig(n_epochs=10, kl_warmup_epochs=2.5),
        TrainConfig(n_epochs=10, kl_warmup_epochs=1.0, kl_cycles=4),
        TrainConfig(n_epochs=9, kl_warmup_epochs=0.5, kl_cycles=3),
        TrainConfig(n_epochs=3),
    ):
        for epoch in range(1, config.n_epochs + 1):
            steps = [kl_weight(config, epoch - 1 + step / 40) for step in range(40)]
            assert kl_is_whole(config, epoch) == (min(steps) == 1.0), (config, epoch)
