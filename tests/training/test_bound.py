import math
from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import multivariate_normal, norm

from nilatent.models import Model, ModelConfig, Posterior, Vae, build
from nilatent.training.bound import bound
from nilatent.training.start import linear_start
from nilatent.training.validation import posteriors
from nilatent.volumes import Grid, Volumes, VoxelPca, volumes_in_memory, voxel_pca

SHAPE = (5, 7, 3)
VAE = ModelConfig(name="vae", n_latent=2, channels=(4, 8))
HELD_OUT = np.arange(30, 41)


@pytest.fixture
def volumes(rng: np.random.Generator) -> Volumes:
    """Scans of a linear-Gaussian world: two causes and noise."""
    array = 0.1 * rng.standard_normal((41, *SHAPE)) + np.tensordot(
        rng.standard_normal((41, 2)), rng.standard_normal((2, *SHAPE)) * 0.3, axes=1
    )
    ids = pd.Index([f"s{index}" for index in range(41)], name="scan_id")
    scans = pd.DataFrame({"subject_id": ids, "dataset": "one"}, index=ids)
    mask = rng.random(SHAPE) > 0.3
    return volumes_in_memory(array, mask=mask, grid=Grid(SHAPE, np.diag([4.0, 4.0, 4.0, 1.0])), scans=scans)


@pytest.fixture
def pca(volumes: Volumes) -> VoxelPca:
    return voxel_pca(volumes, np.arange(30), 2, seed=0)


def noise_of(pca: VoxelPca) -> float:
    """Noise variance at the maximum likelihood of probabilistic PCA."""
    return pca.residual_variance * pca.mean.size / (pca.mean.size - 2)


def built(config: ModelConfig, volumes: Volumes, pca: VoxelPca) -> Model:
    torch.manual_seed(0)
    return build(config, mask=torch.from_numpy(np.asarray(volumes.mask)), start=linear_start(pca))


def exact_likelihood(volumes: Volumes, pca: VoxelPca) -> float:
    """Mean log-likelihood of the held-out scans under the linear-Gaussian model, from its covariance."""
    noise = noise_of(pca)
    weights = pca.components.T.astype(float) * np.sqrt(pca.sd.astype(float) ** 2 - noise)
    covariance = weights @ weights.T + noise * np.eye(pca.mean.size)
    found = multivariate_normal(pca.mean.astype(float), covariance).logpdf(volumes.masked(HELD_OUT).astype(float))
    return float(np.mean(found))


def expected_bound(module: Model, config: ModelConfig, volumes: Volumes, monkeypatch: pytest.MonkeyPatch) -> float:
    """The bound without the chance of its draw: a square has the same mean over these four points as over the posterior."""
    found = []
    for corner in product((-1.0, 1.0), repeat=2):
        point = torch.tensor(corner)
        monkeypatch.setattr(
            Posterior, "sample", lambda self, _, point=point: self.mean + (0.5 * self.log_var).exp() * point
        )
        found.append(bound(module, config, volumes, HELD_OUT, batch_size=4, seed=0))
    return float(np.mean(found))


def test_at_the_start_the_bound_is_the_likelihood(
    volumes: Volumes, pca: VoxelPca, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(VAE, sigma=math.sqrt(noise_of(pca)))
    found = expected_bound(built(config, volumes, pca), config, volumes, monkeypatch)
    assert found == pytest.approx(exact_likelihood(volumes, pca), rel=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_with_another_posterior_the_bound_is_lower_by_its_distance(
    volumes: Volumes, pca: VoxelPca, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    config = replace(VAE, sigma=math.sqrt(noise_of(pca)))
    module = built(config, volumes, pca)
    assert isinstance(module, Vae)
    true = next(iter(posteriors(module, volumes, HELD_OUT, batch_size=11)))[3]
    torch.manual_seed(seed)
    with torch.no_grad():
        for head in (module.mean_head, module.log_var_head):
            head.bias.add_(0.3 * torch.randn(2))
            head.weight.add_(0.01 * torch.randn_like(head.weight))
    false = next(iter(posteriors(module, volumes, HELD_OUT, batch_size=11)))[3]
    ratio = (false.log_var - true.log_var).exp()
    apart = 0.5 * (ratio + (false.mean - true.mean).square() / true.log_var.exp() - 1 - ratio.log()).sum(dim=1)
    found = expected_bound(module, config, volumes, monkeypatch)
    exact = exact_likelihood(volumes, pca)
    assert found < exact
    assert exact - found == pytest.approx(float(apart.mean()), rel=1e-2)


def test_one_draw_per_scan_is_right_on_average(volumes: Volumes, pca: VoxelPca) -> None:
    config = replace(VAE, sigma=math.sqrt(noise_of(pca)))
    module = built(config, volumes, pca)
    found = [bound(module, config, volumes, HELD_OUT, batch_size=11, seed=seed) for seed in range(60)]
    error = np.std(found) / math.sqrt(60)
    assert 0 < error < 0.1
    assert abs(np.mean(found) - exact_likelihood(volumes, pca)) < 4 * error


@pytest.mark.parametrize("config", [VAE, replace(VAE, likelihood="laplace"), replace(VAE, likelihood="voxel")])
def test_batches_change_nothing(volumes: Volumes, pca: VoxelPca, config: ModelConfig) -> None:
    module = built(config, volumes, pca)
    one, some, all_ = (bound(module, config, volumes, HELD_OUT, batch_size=size, seed=3) for size in (1, 4, 11))
    assert one == pytest.approx(all_, rel=1e-5)
    assert some == pytest.approx(all_, rel=1e-5)
    assert bound(module, config, volumes, HELD_OUT, batch_size=11, seed=4) != all_


def test_the_noise_is_the_most_likely_one_over_all_scans(
    volumes: Volumes, pca: VoxelPca, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Posterior, "sample", lambda self, _: self.mean)
    module = built(VAE, volumes, pca)
    posterior = next(iter(posteriors(module, volumes, HELD_OUT, batch_size=11)))[3]
    kl = 0.5 * (posterior.mean**2 + posterior.log_var.exp() - 1 - posterior.log_var).sum(dim=1).mean().item()
    with torch.no_grad():
        drawn = module.decode(posterior.mean)[:, 0].numpy()[:, volumes.mask]
    left = volumes.masked(HELD_OUT).astype(float) - drawn
    gaussian = norm(0, math.sqrt(np.square(left).mean())).logpdf(left).sum(axis=1).mean()
    laplace = (-np.abs(left) / np.abs(left).mean() - np.log(2 * np.abs(left).mean())).sum(axis=1).mean()
    assert bound(module, VAE, volumes, HELD_OUT, batch_size=4, seed=0) == pytest.approx(gaussian - kl, rel=1e-4)
    sharp = replace(VAE, likelihood="laplace")
    assert bound(module, sharp, volumes, HELD_OUT, batch_size=4, seed=0) == pytest.approx(laplace - kl, rel=1e-4)
    # A fixed sigma is the SD of either noise: that of a Laplace distribution is 2 ** 0.5 times its scale.
    fixed = replace(sharp, sigma=0.2)
    scale = 0.2 / math.sqrt(2)
    laplace = (-np.abs(left) / scale - np.log(2 * scale)).sum(axis=1).mean()
    assert bound(module, fixed, volumes, HELD_OUT, batch_size=4, seed=0) == pytest.approx(laplace - kl, rel=1e-4)
    other = replace(VAE, sigma=0.2)
    gaussian = norm(0, 0.2).logpdf(left).sum(axis=1).mean()
    assert bound(module, other, volumes, HELD_OUT, batch_size=4, seed=0) == pytest.approx(gaussian - kl, rel=1e-4)


def test_noise_of_every_voxel_is_that_of_the_decoder(
    volumes: Volumes, pca: VoxelPca, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(VAE, likelihood="voxel")
    module = built(config, volumes, pca)
    assert isinstance(module, Vae)
    same = replace(VAE, sigma=math.sqrt(pca.residual_variance))
    # Before the first step it is the same in every voxel.
    found, fixed = (bound(module, one, volumes, HELD_OUT, batch_size=4, seed=0) for one in (config, same))
    assert found == pytest.approx(fixed, rel=1e-5)
    with torch.no_grad():
        module.mirror.last.bias[1] += 1.0
    assert bound(module, config, volumes, HELD_OUT, batch_size=4, seed=0) < found


def test_beta_is_one_whatever_the_model_was_trained_with(volumes: Volumes, pca: VoxelPca) -> None:
    module = built(VAE, volumes, pca)
    found = [bound(module, replace(VAE, beta=beta), volumes, HELD_OUT, batch_size=11, seed=0) for beta in (1.0, 50.0)]
    assert found[0] == found[1]


def test_conditions_are_told(volumes: Volumes, rng: np.random.Generator) -> None:
    c = rng.standard_normal((41, 1)).astype(np.float32)
    array = np.asarray(volumes.data, dtype=float) + c[:, :, None, None]
    told = volumes_in_memory(array, mask=volumes.mask, grid=volumes.grid, scans=volumes.scans)
    config = replace(VAE, condition=("age",))
    module = built(config, told, voxel_pca(told, np.arange(30), 2, seed=0, conditions=c))
    right, wrong = (bound(module, config, told, HELD_OUT, batch_size=11, seed=0, conditions=given) for given in (c, -c))
    assert right > wrong + 10


def test_an_autoencoder_has_none(volumes: Volumes, pca: VoxelPca) -> None:
    config = ModelConfig(n_latent=2, channels=(4, 8))
    assert math.isnan(bound(built(config, volumes, pca), config, volumes, HELD_OUT, batch_size=11, seed=0))
