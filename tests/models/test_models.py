from collections.abc import Callable

import numpy as np
import pytest
import torch

from nilatent.errors import SettingError
from nilatent.models import ANCHORS, MODELS, Model, ModelConfig
from nilatent.models.autoencoder import POINT_LOG_VAR

Make = Callable[..., Model]
Pca = dict[str, torch.Tensor]
each_model = pytest.mark.parametrize(
    ("name", "anchor"),
    [
        (name, anchor)
        for name in MODELS
        for anchor in ANCHORS
        if anchor != ("pca" if name == "spatial_vae" else "local")
    ],
)
each_name = pytest.mark.parametrize("name", ["autoencoder", "vae"])


@each_model
def test_a_batch_is_its_scans_one_by_one(make: Make, scans: torch.Tensor, name: str, anchor: str) -> None:
    model = make(name, anchor, shaken=True)
    together, alone = model.encode(scans), [model.encode(scan[None]) for scan in scans]
    torch.testing.assert_close(together.mean, torch.cat([each.mean for each in alone]), rtol=0, atol=1e-5)
    torch.testing.assert_close(together.log_var, torch.cat([each.log_var for each in alone]), rtol=0, atol=1e-5)
    drawn = torch.cat([model.decode(each.mean) for each in alone])
    torch.testing.assert_close(model.decode(together.mean), drawn, rtol=0, atol=1e-5)


@each_model
def test_training_mode_means_nothing(make: Make, scans: torch.Tensor, name: str, anchor: str) -> None:
    model = make(name, anchor, shaken=True)
    learning, judging = model.train().encode(scans).mean, model.eval().encode(scans).mean
    assert torch.equal(learning, judging)
    assert torch.equal(model.train().decode(learning), model.eval().decode(judging))


@each_model
def test_nothing_outside_the_mask_is_seen_or_drawn(
    make: Make, pca: Pca, scans: torch.Tensor, name: str, anchor: str
) -> None:
    model = make(name, anchor, shaken=True)
    spoiled = torch.where(pca["mask"], scans, torch.tensor(100.0))
    torch.testing.assert_close(model.encode(spoiled).mean, model.encode(scans).mean, rtol=0, atol=0)
    assert model.decode(model.encode(scans).mean)[:, :, ~pca["mask"]].abs().max() == 0


def _inside(volume: torch.Tensor, pca: Pca) -> np.ndarray:
    return volume[:, 0, pca["mask"]].detach().double().numpy()


def test_an_anchored_autoencoder_starts_as_pca(make: Make, pca: Pca, scans: torch.Tensor) -> None:
    model, x = make("autoencoder", "pca"), _inside(scans, pca)
    mean, basis = pca["mean"].double().numpy(), pca["components"].double().numpy()
    scores = (x - mean) @ basis.T
    posterior = model.encode(scans)
    np.testing.assert_allclose(posterior.mean.detach(), scores / pca["sd"].numpy(), atol=1e-5)
    np.testing.assert_allclose(_inside(model.decode(posterior.mean), pca), mean + scores @ basis, atol=1e-5)
    assert (posterior.log_var == POINT_LOG_VAR).all()


def test_an_anchored_vae_starts_as_probabilistic_pca(make: Make, pca: Pca, scans: torch.Tensor) -> None:
    model, x = make("vae", "pca"), _inside(scans, pca)
    mean, basis = pca["mean"].double().numpy(), pca["components"].double().numpy()
    n_voxels = len(mean)
    noise = 0.01 * n_voxels / (n_voxels - 3)
    eigenvalue = pca["sd"].double().numpy() ** 2
    loading = basis.T * np.sqrt(eigenvalue - noise)
    precision = loading.T @ loading + noise * np.eye(3)
    posterior = model.encode(scans)
    expected = np.linalg.solve(precision, loading.T @ (x - mean).T).T
    np.testing.assert_allclose(posterior.mean.detach(), expected, atol=1e-5)
    np.testing.assert_allclose(
        posterior.log_var[0].detach(), np.log(noise * np.diag(np.linalg.inv(precision))), atol=1e-5
    )
    np.testing.assert_allclose(_inside(model.decode(posterior.mean), pca), mean + expected @ loading.T, atol=1e-5)


@each_name
def test_a_zero_start_can_still_learn(make: Make, scans: torch.Tensor, name: str) -> None:
    model = make(name, "pca")
    (model.decode(model.encode(scans).mean) - scans).square().sum().backward()
    for layer in (model.mean_head, model.mirror.last):
        assert layer.weight.abs().max() == 0
        assert layer.weight.grad is not None
        assert layer.weight.grad.abs().max() > 0


@each_model
def test_half_precision_leaves_the_linear_part_exact(make: Make, scans: torch.Tensor, name: str, anchor: str) -> None:
    model = make(name, anchor)
    with torch.autocast("cpu", torch.bfloat16):
        half = model.anchor.reconstruct(model.anchor.project(scans))
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, model.anchor.reconstruct(model.anchor.project(scans)), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"name": "vea"}, "model.name is 'vea'"),
        ({"anchor": "ica"}, "model.anchor is 'ica'"),
        ({"n_latent": 0}, "model.n_latent is 0"),
        ({"channels": (8, 10)}, "multiple of 4"),
        ({"name": "vae", "beta": -1.0}, "model.beta is -1.0"),
        ({"name": "vae", "sigma": 0.0}, "model.sigma is 0.0"),
        ({"name": "vae", "sigma": 1.0, "likelihood": "voxel"}, "every voxel"),
        ({"name": "vae", "likelihood": "poisson"}, "gaussian, laplace, voxel"),
        ({"name": "vae", "term": "mi"}, "kl, tc, free-bits, capacity"),
        ({"name": "vae", "term": "free-bits"}, "free_bits is 0.0"),
        ({"name": "vae", "capacity": 2.0}, "only with it"),
        ({"name": "vae", "info_alpha": 0.5, "info_lambda": 0.4}, "at least 1"),
        ({"name": "vae", "info_lambda": 5.0, "term": "tc"}, "goes with 'kl' only"),
        ({"beta": 2.0}, "concerns vae and spatial_vae only"),
        ({"info_lambda": 2.0}, "concerns vae only"),
        ({"name": "spatial_vae", "n_latent": 8}, "concerns autoencoder and vae only"),
        ({"name": "spatial_vae", "anchor": "pca"}, "those of a latent vector"),
        ({"anchor": "local"}, "those of a spatial_vae"),
        ({"name": "spatial_vae", "latent_grid": 1}, "at least 2"),
        ({"name": "spatial_vae", "adversarial_from": 1.5}, "share of the epochs"),
        ({"perceptual": 2.0}, "concerns spatial_vae only"),
        ({"condition": ("age", "age")}, "each column once"),
        ({"align_weight": 2.0}, "model.align is empty"),
        ({"channels": (4,)}, "two to 10 levels"),
        ({"channels": (4,) * 11}, "is 11 levels; give two to 10"),
        ({"channels": (4, 6)}, "each a multiple of 4"),
        ({"name": "vae", "beta": float("nan")}, "beta is nan; it is a finite number"),
        ({"name": "vae", "sigma": float("inf")}, "sigma is inf; it is a finite number"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        ModelConfig(**settings)  # type: ignore[arg-type]
