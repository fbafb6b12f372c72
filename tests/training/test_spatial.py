"""The loss of a batch of the spatial VAE, computed once more from the model's own outputs and the densities of torch."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Laplace, Normal, kl_divergence

from nilatent.models.anchor import LinearStart, NoAnchor
from nilatent.models.config import ModelConfig
from nilatent.models.critic import Critic, fooling_error
from nilatent.models.perceptual import perceptual_error
from nilatent.models.spatial_vae import SpatialVae
from nilatent.training.config import TrainConfig
from nilatent.training.spatial import CriticObjective, SpatialObjective, critic_is_on

SHAPE = (15, 17, 13)
QUIET = TrainConfig(input_noise=0.0, latent_noise=0.0)
BASE = ModelConfig(name="spatial_vae", latent_grid=3, latent_channels=2, perceptual=0.0)
VARIANCE = 0.1


@pytest.fixture
def scans(rng: np.random.Generator) -> Tensor:
    return torch.from_numpy(rng.random((2, 1, *SHAPE)).astype(np.float32))


def model_of(config: ModelConfig) -> SpatialVae:
    torch.manual_seed(0)
    mask = torch.ones(SHAPE, dtype=torch.bool)
    mask[:3] = False
    n_voxels = int(mask.sum())
    start = LinearStart(
        mean=torch.rand(n_voxels),
        components=torch.zeros(1, n_voxels),
        sd=torch.ones(1),
        residual_variance=VARIANCE,
        slopes=torch.zeros(0, n_voxels),
    )
    anchor = NoAnchor(mask=mask, start=start, n_latent=config.n_values, around_mean_image=True)
    model = SpatialVae(anchor=anchor, channels=(4, 8), grid=config.latent_grid, latent_channels=config.latent_channels)
    with torch.no_grad():
        model.mirror.last.weight.normal_(std=0.1)
    return model


def loss_of(
    config: ModelConfig, scans: Tensor, *, training: TrainConfig = QUIET, kl_weight: float = 1.0
) -> tuple[Tensor, SpatialObjective]:
    objective = SpatialObjective(model_of(config), config, training, variance=VARIANCE)
    return objective(scans, torch.Generator().manual_seed(7), kl_weight=kl_weight), objective


def critic_of(model: SpatialVae) -> Critic:
    torch.manual_seed(1)
    return Critic(mask=model.anchor.mask)


@pytest.mark.parametrize("sigma", [None, 0.4])
@pytest.mark.parametrize("perceptual", [0.0, 2.0])
def test_all_terms_but_the_critic(scans: Tensor, sigma: float | None, perceptual: float) -> None:
    config = dataclasses.replace(BASE, sigma=sigma, beta=3.0, perceptual=perceptual)
    loss, objective = loss_of(config, scans, kl_weight=0.5)
    model, inside = objective.model, objective.model.anchor.mask > 0
    generator = torch.Generator().manual_seed(7)
    torch.randn(scans.shape, generator=generator)
    posterior = model.encode(scans)
    drawn = model.decode(posterior.sample(generator))
    scale = (scans - drawn)[:, :, inside].abs().mean() if sigma is None else torch.tensor(sigma / 2**0.5)
    likelihood = Laplace(drawn, scale).log_prob(scans)[:, :, inside].flatten(1).mean(dim=1)
    kl = kl_divergence(Normal(posterior.mean, (0.5 * posterior.log_var).exp()), Normal(0.0, 1.0)).sum(dim=1)
    seen = perceptual * perceptual_error(scans, drawn, model.anchor.mask) / scale
    expected = (1.5 * kl / inside.sum() - likelihood + seen).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)
    assert objective.drawn is not None
    assert not objective.drawn.requires_grad
    torch.testing.assert_close(objective.drawn, drawn)


def test_the_pull_of_the_fit_is_the_sign_of_the_error_by_its_scale(scans: Tensor) -> None:
    loss, objective = loss_of(dataclasses.replace(BASE, beta=0.0), scans)
    (pull,) = torch.autograd.grad(loss, objective.model.mirror.last.weight)
    drawn = objective.model.decode(_sampled(objective, scans))
    off = (drawn - scans) * objective.model.anchor.mask
    slope = off.sign() / off.abs().sum()
    (expected,) = torch.autograd.grad(drawn, objective.model.mirror.last.weight, grad_outputs=slope)
    torch.testing.assert_close(pull, expected, rtol=1e-3, atol=1e-5)


def _sampled(objective: SpatialObjective, scans: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    torch.randn(scans.shape, generator=generator)
    return objective.model.encode(scans).sample(generator)


def test_the_critic_pulls_in_its_own_direction_and_as_strongly_as_its_weight_says(scans: Tensor) -> None:
    config = dataclasses.replace(BASE, adversarial=0.2)
    _, objective = loss_of(config, scans)
    model, critic = objective.model, critic_of(objective.model)
    last, place = model.mirror.last.weight, model.mirror.place
    without = torch.autograd.grad(objective(scans, torch.Generator().manual_seed(7)), (last, place))
    with_critic = objective(scans, torch.Generator().manual_seed(7), critic=critic)
    pulled = torch.autograd.grad(with_critic, (last, place))
    drawn = model.decode(_sampled(objective, scans))
    disbelief = fooling_error(critic(model.anchor.standardise(drawn)), critic.weight).mean()
    own = torch.autograd.grad(disbelief, (last, place), retain_graph=True)
    off = (drawn - scans) * model.anchor.mask
    strength = torch.autograd.grad(off.abs().sum() / off.abs().sum().detach(), last)[0].norm()
    gain = 0.2 * strength / own[0].norm()
    for together, alone, naive in zip(pulled, without, own, strict=True):
        torch.testing.assert_close(together - alone, gain * naive, rtol=1e-2, atol=1e-5)
    assert all(parameter.grad is None for parameter in critic.parameters())


def test_checkpointing_changes_no_gradient(scans: Tensor) -> None:
    _, objective = loss_of(dataclasses.replace(BASE, perceptual=1.0), scans)
    critic, gradients = critic_of(objective.model), []
    for objective.model.checkpointing in (False, True):
        objective.zero_grad()
        objective(scans, torch.Generator().manual_seed(7), critic=critic).backward()
        gradients.append([parameter.grad.clone() for parameter in objective.parameters() if parameter.grad is not None])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(again, plain)


def test_the_critic_moves_only_itself_and_sees_nothing_outside_the_mask(scans: Tensor) -> None:
    model = model_of(BASE)
    critic = critic_of(model)
    objective = CriticObjective(critic, model)
    drawn = model.decode(torch.randn(2, 54)).detach()
    loss = objective(scans, drawn)
    loss.backward()
    assert all(parameter.grad is not None for parameter in critic.parameters())
    assert {name.split(".")[0] for name, _ in objective.named_parameters()} == {"critic"}
    assert set(objective.state_dict()) == {f"critic.{name}" for name in critic.state_dict()}
    spoiled = torch.where(model.anchor.mask > 0, scans, torch.tensor(50.0))
    assert torch.equal(objective(spoiled, drawn), loss)
    assert not torch.equal(objective(drawn, scans), loss)


@pytest.mark.parametrize(
    "change",
    [{"beta": 2.0}, {"sigma": 0.3}, {"perceptual": 1.0}, {"latent_channels": 3}, {"latent_grid": 4}],
    ids=str,
)
def test_every_setting_of_the_model_changes_the_loss(scans: Tensor, change: dict[str, float]) -> None:
    assert not torch.equal(loss_of(dataclasses.replace(BASE, **change), scans)[0], loss_of(BASE, scans)[0])


def test_the_noise_on_the_scans_changes_the_loss_and_that_on_latent_vectors_does_not(scans: Tensor) -> None:
    noisy, quiet = dataclasses.replace(QUIET, input_noise=0.5), loss_of(BASE, scans)[0]
    assert not torch.equal(loss_of(BASE, scans, training=noisy)[0], quiet)
    assert torch.equal(loss_of(BASE, scans, training=noisy)[0], loss_of(BASE, scans, training=noisy)[0])
    assert torch.equal(loss_of(BASE, scans, training=dataclasses.replace(QUIET, latent_noise=0.5))[0], quiet)


def test_the_critic_is_on_after_its_share_of_the_epochs() -> None:
    config, training = dataclasses.replace(BASE, adversarial_from=0.25), TrainConfig(n_epochs=8)
    assert [critic_is_on(config, training, epoch) for epoch in range(1, 9)] == [False] * 2 + [True] * 6
    assert not critic_is_on(dataclasses.replace(BASE, adversarial=0.0), training, 8)
    assert not critic_is_on(dataclasses.replace(BASE, adversarial_from=1.0), training, 8)


def test_half_precision_stays_finite(scans: Tensor) -> None:
    objective = SpatialObjective(model_of(BASE), dataclasses.replace(BASE, perceptual=1.0), QUIET, variance=VARIANCE)
    critic = critic_of(objective.model)
    with torch.autocast("cpu", torch.bfloat16):
        loss = objective(scans, torch.Generator().manual_seed(7), critic=critic)
    exact = objective(scans, torch.Generator().manual_seed(7), critic=critic)
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in objective.parameters())
    torch.testing.assert_close(loss, exact, rtol=0.05, atol=0.05)


def test_a_few_steps_with_all_four_terms_draw_better_than_the_mean_image(rng: np.random.Generator) -> None:
    axes = np.meshgrid(*[np.linspace(-1, 1, side) for side in SHAPE], indexing="ij")
    at = rng.uniform(-0.5, 0.5, size=4)[:, None, None, None]
    x = torch.from_numpy(np.exp(-((axes[0] - at) ** 2 + axes[1] ** 2 + 0.0 * axes[2]) / 0.2).astype(np.float32))[
        :, None
    ]
    config = dataclasses.replace(BASE, perceptual=1.0, beta=0.1, latent_grid=6)
    objective = SpatialObjective(model_of(config), config, QUIET, variance=0.02)
    model, generator = objective.model, torch.Generator().manual_seed(0)
    with torch.no_grad():
        model.anchor.centre.copy_((x.mean(dim=0)[0] * model.anchor.mask).view_as(model.anchor.centre))
        model.mirror.last.weight.zero_()
    critic = CriticObjective(critic_of(model), model)
    steps = [torch.optim.AdamW(part.parameters(), lr=5e-3) for part in (model, critic)]

    def error() -> float:
        with torch.no_grad():
            return float(((model.decode(model.encode(x).mean) - x) * model.anchor.mask).square().mean())

    before = error()
    for _ in range(20):
        loss = objective(x, generator, critic=critic.critic)
        steps[0].zero_grad()
        loss.backward()
        steps[0].step()
        assert objective.drawn is not None
        judged = critic(x, objective.drawn)
        steps[1].zero_grad()
        judged.backward()
        steps[1].step()
    assert error() < 0.6 * before
