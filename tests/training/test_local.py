"""Components of blocks, against one block at a time by scikit-learn and against exact posteriors."""

import tomllib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import tomli_w
import torch
from sklearn.decomposition import PCA

from nilatent.encode import encode
from nilatent.models import LocalAnchor, LocalStart, ModelConfig, NoAnchor, SpatialVae, build
from nilatent.models.spatial_vae import cell_of_voxels
from nilatent.training.checkpoint import load_model
from nilatent.training.local import _components, _layers, local_start
from nilatent.training.loop import TrainConfig, train
from nilatent.training.start import linear_start
from nilatent.volumes import Volumes, voxel_pca

GRID, CHANNELS = 6, 3
Cohort = tuple[Volumes, pd.DataFrame]


def cells_of(volumes: Volumes, grid: int = GRID) -> npt.NDArray[np.integer]:
    return cell_of_voxels(torch.from_numpy(np.asarray(volumes.mask)), grid).numpy()


def started(volumes: Volumes, rows: npt.NDArray[np.integer], told: npt.NDArray[np.float32] | None = None) -> LocalStart:
    known = voxel_pca(volumes, rows, 2, seed=0, conditions=told)
    return local_start(volumes, rows, cells_of(volumes), known=known, n_channels=CHANNELS, n_cells=GRID**3, told=told)


def built(volumes: Volumes, rows: npt.NDArray[np.integer], *, beta: float) -> SpatialVae:
    start = linear_start(voxel_pca(volumes, rows, 2, seed=0), local=started(volumes, rows))
    config = ModelConfig(
        name="spatial_vae", latent_grid=GRID, latent_channels=CHANNELS, channels=(4, 4), beta=beta, adversarial=0.0
    )
    model = build(config, mask=torch.from_numpy(np.asarray(volumes.mask)), start=start)
    assert isinstance(model, SpatialVae)
    return model


def test_each_block_is_a_pca_of_its_own(curved: Cohort) -> None:
    volumes, rows = curved[0], np.arange(40)
    found, cell, x = started(volumes, rows), cells_of(volumes), volumes.masked(rows)
    left = 0.0
    for number in np.unique(cell):
        block = x[:, cell == number].astype(np.float64)
        n_components = min(CHANNELS, block.shape[1])
        pca = PCA(n_components).fit(block)
        weights = found.components[:n_components, cell == number].numpy()
        np.testing.assert_allclose(np.abs(np.sum(weights * pca.components_, axis=1)), 1.0, atol=1e-4)
        np.testing.assert_allclose(found.sd[:n_components, number], np.sqrt(pca.explained_variance_), rtol=1e-4)
        left += np.square(pca.inverse_transform(pca.transform(block)) - block).sum() / 39
    assert found.residual_variance == pytest.approx(left / len(cell), rel=1e-3)


def test_components_are_those_about_the_mean_of_the_scans_used(rng: np.random.Generator) -> None:
    # Of very many scans some are used, whose mean is not quite the mean image.
    x = rng.standard_normal((12, 5))
    for one, other in zip(_components(x, 3), _components(x + 100.0, 3), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_blocks_of_fewer_voxels_have_fewer_components(curved: Cohort) -> None:
    found, cell = started(curved[0], np.arange(40)), cells_of(curved[0])
    sizes = np.bincount(cell, minlength=GRID**3)
    assert ((found.sd > 0).sum(dim=0).numpy() == np.minimum(sizes, CHANNELS)).all()
    assert (sizes == 0).any()


@pytest.mark.parametrize("shape", [(15, 17, 13), (7, 5, 30)])
@pytest.mark.parametrize("grid", [3, 6, 24])
def test_layers_share_no_cell_and_leave_no_voxel_out(shape: tuple[int, int, int], grid: int) -> None:
    cell = cell_of_voxels(torch.from_numpy(np.random.default_rng(0).random(shape) > 0.4), grid).numpy()
    layers = _layers(cell)
    assert [first for first, _ in layers] == [0, *(last for _, last in layers[:-1])]
    assert layers[-1][1] == len(cell)
    held = [set(cell[first:last]) for first, last in layers]
    assert sum(map(len, held)) == len(set().union(*held))
    assert len(layers) > 1


def test_without_a_kl_the_start_draws_what_the_blocks_hold(curved: Cohort) -> None:
    volumes, rows = curved[0], np.arange(40)
    model, local, cell = built(volumes, rows, beta=0.0), started(volumes, rows), cells_of(volumes)
    x = volumes.masked(np.arange(45, 50))
    mean, expected = volumes.masked(rows).mean(axis=0), np.empty_like(x)
    for number in np.unique(cell):
        weights = local.components[:, cell == number].numpy()
        deviation = x[:, cell == number] - mean[cell == number]
        expected[:, cell == number] = mean[cell == number] + deviation @ weights.T @ weights
    with torch.no_grad():
        scan = torch.from_numpy(np.asarray(volumes.data[45:50], dtype=np.float32)[:, None])
        drawn = model.decode(model.encode(scan).mean)
    np.testing.assert_allclose(drawn.numpy()[:, 0, np.asarray(volumes.mask)], expected, atol=2e-4)


def test_the_start_is_the_exact_posterior_of_each_block(curved: Cohort) -> None:
    volumes, rows = curved[0], np.arange(40)
    model, local, cell = built(volumes, rows, beta=1.0), started(volumes, rows), cells_of(volumes)
    n_voxels, n_components = len(cell), int((local.sd > 0).sum())
    noise = local.residual_variance * n_voxels / (n_voxels - n_components)
    with torch.no_grad():
        scan = torch.from_numpy(np.asarray(volumes.data[45:46], dtype=np.float32)[:, None])
        posterior = model.encode(scan)
    mean = posterior.mean.reshape(CHANNELS, -1).numpy()
    width = posterior.log_var.exp().reshape(CHANNELS, -1).numpy()
    centre, x = volumes.masked(rows).mean(axis=0), volumes.masked([45])[0]
    number = int(np.bincount(cell).argmax())
    loading = local.components[:, cell == number].numpy().T * np.sqrt(
        np.maximum(local.sd[:, number].numpy() ** 2 - noise, 0.0)
    )
    precision = np.eye(CHANNELS) + loading.T @ loading / noise
    exact = np.linalg.solve(precision, loading.T @ (x - centre)[cell == number] / noise)
    np.testing.assert_allclose(mean[:, number], exact, atol=1e-3)
    np.testing.assert_allclose(width[:, number], np.diag(np.linalg.inv(precision)), rtol=1e-3)
    empty = np.setdiff1d(np.arange(GRID**3), cell)
    assert (mean[:, empty] == 0).all()
    assert (width[:, empty] == 1).all()


def test_where_there_is_no_component_the_posterior_is_the_prior_even_without_noise(curved: Cohort) -> None:
    model, cell = built(curved[0], np.arange(40), beta=0.0), cells_of(curved[0])
    with torch.no_grad():
        posterior = model.encode(torch.from_numpy(np.asarray(curved[0].data[45:46], dtype=np.float32)[:, None]))
    log_var = posterior.log_var.reshape(CHANNELS, -1).numpy()
    n_components = np.minimum(np.bincount(cell, minlength=GRID**3), CHANNELS)
    absent = np.arange(CHANNELS)[:, None] >= n_components
    assert (log_var[absent] == 0).all()
    assert (log_var[~absent] < -10).all()


def test_what_conditions_explain_is_in_no_block(curved: Cohort, rng: np.random.Generator) -> None:
    volumes, rows = curved[0], np.arange(40)
    told = rng.standard_normal((60, 1)).astype(np.float32)
    array = np.asarray(volumes.data, dtype=np.float32) + 3.0 * told[:, :, None, None] * np.asarray(volumes.mask)
    shifted = Volumes(array, volumes.mask, volumes.grid, volumes.scans, "shifted")
    plain, blind, knowing = started(volumes, rows), started(shifted, rows), started(shifted, rows, told)
    assert blind.sd.square().sum() > 10 * plain.sd.square().sum()
    assert knowing.sd.square().sum() < 1.3 * plain.sd.square().sum()


def test_only_training_scans_shape_the_start(curved: Cohort) -> None:
    volumes, rows = curved[0], np.arange(40)
    array = np.array(volumes.data)
    array[40:] = 0.7
    other = Volumes(array, volumes.mask, volumes.grid, volumes.scans, "other")
    assert torch.equal(started(volumes, rows).components, started(other, rows).components)


def test_a_trained_grid_comes_back_with_its_blocks(curved: Cohort, tmp_path: Path) -> None:
    config = ModelConfig(name="spatial_vae", latent_grid=GRID, latent_channels=CHANNELS, channels=(4, 4))
    trained = train(*curved, config, TrainConfig(n_epochs=2, batch_size=8), tmp_path)
    assert isinstance(trained.module.anchor, LocalAnchor)
    again = encode(load_model(tmp_path), *curved)
    np.testing.assert_array_equal(again["mean"], encode(trained, *curved)["mean"])
    assert trained.history["validation_fvu"].iloc[0] < 0.5


def test_a_grid_of_before_there_were_blocks_is_read_around_the_mean_image(curved: Cohort, tmp_path: Path) -> None:
    config = ModelConfig(name="spatial_vae", latent_grid=GRID, latent_channels=CHANNELS, channels=(4, 4), anchor="mean")
    trained = train(*curved, config, TrainConfig(n_epochs=1, batch_size=8), tmp_path)
    settings = tomllib.loads((tmp_path / "config.toml").read_text())
    assert settings["model"]["anchor"] == "mean"
    settings["model"]["anchor"] = "auto"
    (tmp_path / "config.toml").write_bytes(tomli_w.dumps(settings).encode())
    older = load_model(tmp_path)
    assert type(older.module.anchor) is NoAnchor
    np.testing.assert_array_equal(encode(older, *curved)["mean"], encode(trained, *curved)["mean"])
