from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from nilatent.models import LinearStart, ModelConfig, NoAnchor, PcaAnchor, build

NOISE = 0.3
Pca = dict[str, Tensor]


@pytest.fixture
def mask(pca: Pca) -> Tensor:
    return pca["mask"]


@pytest.fixture
def start(pca: Pca, rng: np.random.Generator) -> LinearStart:
    """A start with two conditions and a rotation."""
    known = {name: value for name, value in pca.items() if name != "mask"}
    slopes = rng.standard_normal((2, int(pca["mask"].sum()))).astype(np.float32)
    turned = np.linalg.qr(rng.standard_normal((3, 3)))[0].astype(np.float32)
    known |= {"slopes": torch.from_numpy(slopes), "sd": torch.tensor([3.0, 2.0, 0.4])}
    return LinearStart(**known, rotation=torch.from_numpy(turned.copy()))


@pytest.fixture
def told(rng: np.random.Generator) -> Tensor:
    return torch.from_numpy(rng.standard_normal((4, 2)).astype(np.float32))


def parts(start: LinearStart) -> tuple[np.ndarray, ...]:
    """Mean, components (voxel, latent), variances, slopes and rotation in double precision."""
    assert start.rotation is not None
    values = (start.mean, start.components.T, start.sd.square(), start.slopes, start.rotation)
    return tuple(value.double().numpy() for value in values)


def inside(volume: Tensor, mask: Tensor) -> np.ndarray:
    return volume[:, 0].double().numpy()[:, mask.numpy()]


def test_a_probabilistic_start_gives_the_posterior_of_its_model(
    start: LinearStart, mask: Tensor, scans: Tensor, told: Tensor
) -> None:
    mean, u, variance, slopes, r = parts(start)
    anchor = PcaAnchor(mask=mask, start=start, noise_variance=NOISE)
    # x = mean + c slopes + w z + noise; the third component has less variance than the noise and no weight.
    w = u * np.sqrt(np.maximum(variance - NOISE, 0)) @ r.T
    precision = np.eye(3) + w.T @ w / NOISE
    deviation = inside(scans, mask) - mean - told.numpy() @ slopes
    expected = np.linalg.solve(precision, w.T @ deviation.T / NOISE).T
    found = anchor.project(scans, told)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(anchor.log_var, -np.log(np.diag(precision)), rtol=1e-5, atol=1e-6)
    drawn = inside(anchor.reconstruct(found, told), mask)
    np.testing.assert_allclose(drawn, mean + told.numpy() @ slopes + expected @ w.T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("noise", [0.0, NOISE])
def test_a_rotation_turns_the_latents_and_leaves_the_drawings(
    start: LinearStart, mask: Tensor, scans: Tensor, told: Tensor, noise: float
) -> None:
    turned = PcaAnchor(mask=mask, start=start, noise_variance=noise)
    plain = PcaAnchor(mask=mask, start=replace(start, rotation=None), noise_variance=noise)
    z, before = turned.project(scans, told), plain.project(scans, told)
    assert start.rotation is not None
    torch.testing.assert_close(z, before @ start.rotation.T, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(z, before, atol=0.01)
    torch.testing.assert_close(turned.reconstruct(z, told), plain.reconstruct(before, told), rtol=1e-4, atol=1e-4)


def test_without_a_rotation_the_width_is_that_of_each_component(start: LinearStart, mask: Tensor) -> None:
    anchor = PcaAnchor(mask=mask, start=replace(start, rotation=None), noise_variance=NOISE)
    expected = np.log(NOISE / np.maximum(parts(start)[2], NOISE))
    np.testing.assert_allclose(anchor.log_var, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("anchor", ["pca", "mean"])
def test_what_the_network_sees_is_free_of_the_conditions(
    start: LinearStart, mask: Tensor, scans: Tensor, told: Tensor, anchor: str
) -> None:
    mean, _, variance, slopes, _ = parts(start)
    made = (
        PcaAnchor(mask=mask, start=start, noise_variance=0.0)
        if anchor == "pca"
        else NoAnchor(mask=mask, start=start, n_latent=3, around_mean_image=True)
    )
    spread = np.sqrt(variance.sum() / len(mean) + start.residual_variance)
    expected = (inside(scans, mask) - mean - told.numpy() @ slopes) / spread
    found = made.standardise(scans, told)
    np.testing.assert_allclose(inside(found, mask), expected, rtol=1e-4, atol=1e-4)
    assert not found[:, 0, ~mask].any()


def test_around_the_mean_image_a_model_starts_as_that_of_scans_with_the_same_conditions(
    start: LinearStart, mask: Tensor, told: Tensor, rng: np.random.Generator
) -> None:
    mean, _, _, slopes, _ = parts(start)
    anchor = NoAnchor(mask=mask, start=start, n_latent=5, around_mean_image=True)
    z = torch.from_numpy(rng.standard_normal((4, 5)).astype(np.float32))
    drawn = anchor.reconstruct(z, told)
    np.testing.assert_allclose(inside(drawn, mask), mean + told.numpy() @ slopes, rtol=1e-4, atol=1e-4)
    assert not drawn[:, 0, ~mask].any()
    np.testing.assert_allclose(inside(anchor.reconstruct(z), mask), np.tile(mean, (4, 1)), rtol=1e-5)


def test_from_nothing_conditions_are_left_to_the_network(
    start: LinearStart, mask: Tensor, scans: Tensor, told: Tensor
) -> None:
    mean, _, variance, _, _ = parts(start)
    anchor = NoAnchor(mask=mask, start=start, n_latent=3, around_mean_image=False)
    spread = np.sqrt(mean.var() + variance.sum() / len(mean) + start.residual_variance)
    expected = (inside(scans, mask) - mean.mean()) / spread
    np.testing.assert_allclose(inside(anchor.standardise(scans, told), mask), expected, rtol=1e-4, atol=1e-4)
    drawn = anchor.reconstruct(torch.zeros(4, 3), told)
    np.testing.assert_allclose(inside(drawn, mask), mean.mean(), rtol=1e-5)
    assert not anchor.project(scans, told).any()


@pytest.mark.parametrize("anchor", ["pca", "mean"])
def test_before_the_first_step_a_model_with_conditions_is_its_closed_form(
    start: LinearStart, mask: Tensor, scans: Tensor, told: Tensor, anchor: str
) -> None:
    config = ModelConfig(n_latent=3, channels=(4, 8, 8), anchor=anchor, condition=("age", "sex"))
    torch.manual_seed(0)
    model = build(config, mask=mask, start=start)
    mean, u, _, slopes, _ = parts(start)
    usual = mean + told.numpy() @ slopes
    expected = usual + (inside(scans, mask) - usual) @ u @ u.T if anchor == "pca" else usual
    with torch.no_grad():
        drawn = model.anchor.reconstruct(model.encode(scans, told).mean, told)
        if anchor == "pca":
            drawn = model.decode(model.encode(scans, told).mean, told)
    np.testing.assert_allclose(inside(drawn, mask), expected, rtol=1e-3, atol=1e-3)
