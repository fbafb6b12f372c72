from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from nilatent.encode import encode, reconstructions
from nilatent.errors import LatentsError, SettingError
from nilatent.generate import images
from nilatent.models import ModelConfig
from nilatent.spaces import space_of
from nilatent.training.checkpoint import TrainedModel, load_model
from nilatent.training.loop import TrainConfig, train
from nilatent.volumes import Grid, Volumes, volumes_in_memory

SHAPE, N = (15, 17, 13), 24
CONFIGS = {
    "autoencoder": ModelConfig(name="autoencoder", n_latent=3, channels=(4, 8, 8)),
    "vae": ModelConfig(name="vae", n_latent=3, channels=(4, 8, 8)),
    "spatial_vae": ModelConfig(name="spatial_vae", latent_grid=3, latent_channels=2, channels=(4, 8)),
    "told": ModelConfig(name="vae", n_latent=3, channels=(4, 8, 8), condition=("age", "sex")),
}


@pytest.fixture(scope="module")
def data() -> tuple[Volumes, pd.DataFrame, pd.DataFrame]:
    """Volumes, split and table of two sessions of twelve people: eight train, two validate, two are held out."""
    rng = np.random.default_rng(0)
    ids = pd.Index([f"sub-{index // 2:02d}_ses-{index % 2}" for index in range(N)], name="scan_id")
    scans = pd.DataFrame({"subject_id": [scan[:6] for scan in ids], "dataset": "one"}, index=ids)
    scans["age"], scans["sex"] = rng.uniform(20, 80, N), np.where(np.arange(N) % 3, "F", "M")
    array = rng.random((N, 1, 1, 1)) + 0.3 * rng.random((N, *SHAPE))
    array += 0.005 * scans["age"].to_numpy()[:, None, None, None]
    grid = Grid(SHAPE, np.diag([4.0, 4.0, 4.0, 1.0]))
    volumes = volumes_in_memory(array, mask=rng.random(SHAPE) > 0.4, grid=grid, scans=scans)
    parts = ["train"] * 16 + ["validation"] * 4 + ["test"] * 4
    return volumes, pd.DataFrame({"subject_id": scans["subject_id"], "part": parts}, index=ids), scans


@pytest.fixture(scope="module")
def models(
    data: tuple[Volumes, pd.DataFrame, pd.DataFrame], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, TrainedModel]:
    """Each model off its start, so that the network has a say."""
    volumes, parts, scans = data
    made: dict[str, TrainedModel] = {}
    for name, config in CONFIGS.items():
        folder = Path(tmp_path_factory.mktemp(name))
        train(volumes, parts, config, TrainConfig(n_epochs=0), folder, scans=scans)
        made[name] = load_model(folder)
        with torch.no_grad():
            for parameter in made[name].module.parameters():
                parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    return made


@pytest.fixture(params=list(CONFIGS))
def model(request: pytest.FixtureRequest, models: dict[str, TrainedModel]) -> TrainedModel:
    return models[request.param]


def latents_for(model: TrainedModel, rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.normal(size=(n, int(np.prod(model.module.latent_shape))))


def drawn(model: TrainedModel, latents: np.ndarray, told: pd.DataFrame | None = None, **settings: int) -> np.ndarray:
    return np.concatenate(list(images(model, latents, told, **settings)))


def test_an_image_is_what_the_decoder_gives_inside_the_mask(model: TrainedModel, rng: np.random.Generator) -> None:
    latents = latents_for(model, rng, 3)
    with torch.no_grad():
        c = torch.zeros((3, model.conditions.n_values)) if model.conditions.n_values else None
        volumes = model.module.decode(torch.from_numpy(latents.astype(np.float32)), c).numpy()[:, 0]
    np.testing.assert_allclose(drawn(model, latents), volumes[:, model.mask], atol=1e-5)
    assert np.ptp(drawn(model, latents), axis=0).max() > 0.05


def test_an_image_is_the_same_alone_and_in_any_batch(model: TrainedModel, rng: np.random.Generator) -> None:
    latents = latents_for(model, rng, 11)
    batches = list(images(model, latents, batch_size=4))
    assert [len(batch) for batch in batches] == [4, 4, 3]
    assert {batch.dtype for batch in batches} == {np.dtype(np.float32)}
    np.testing.assert_allclose(np.concatenate(batches), drawn(model, latents, batch_size=1), atol=1e-5)


def test_latents_of_scans_draw_their_reconstructions(
    models: dict[str, TrainedModel], data: tuple[Volumes, pd.DataFrame, pd.DataFrame]
) -> None:
    volumes, parts, scans = data
    for name, model in models.items():
        told = scans if name == "told" else None
        latents = encode(model, volumes, parts, scans=told)["mean"].values
        expected = np.concatenate([x for _, x in reconstructions(model, volumes, np.arange(N), scans=told)])
        np.testing.assert_allclose(drawn(model, latents, told), expected, atol=1e-5)


def test_what_a_decoder_is_told_changes_the_image(models: dict[str, TrainedModel], rng: np.random.Generator) -> None:
    model, latents = models["told"], rng.normal(size=(1, 3)).repeat(3, axis=0)
    told = pd.DataFrame({"age": [30.0, 70.0, 70.0], "sex": ["F", "F", "M"]})
    young, old, man = drawn(model, latents, told)
    for one, other in ((young, old), (old, man)):
        assert np.abs(one - other).max() > 1e-3


def test_wrong_latents_and_tables_are_refused(model: TrainedModel, rng: np.random.Generator) -> None:
    latents = latents_for(model, rng, 2)
    for wrong in (latents[:, 1:], latents[0], np.where(np.arange(2)[:, None] == 1, np.nan, latents)):
        with pytest.raises(LatentsError, match="draws from finite latents"):
            drawn(model, wrong)
    if model.conditions.n_values:
        with pytest.raises(LatentsError, match="2 latents came with 1 rows"):
            drawn(model, latents, pd.DataFrame({"age": [1.0], "sex": ["F"]}))
        with pytest.raises(SettingError, match="'X'"):
            drawn(model, latents, pd.DataFrame({"age": [1.0, 2.0], "sex": ["F", "X"]}))


def test_a_space_knows_what_its_model_has_seen(
    models: dict[str, TrainedModel], data: tuple[Volumes, pd.DataFrame, pd.DataFrame]
) -> None:
    volumes, parts, scans = data
    for name, model in models.items():
        latents = encode(model, volumes, parts, scans=scans if name == "told" else None)
        space = space_of(model, latents, n_components=2)
        assert list(space.scans) == list(scans.index)
        np.testing.assert_array_equal(space.training, parts["part"] == "train")
        # Neither scans of the validation part, which chose the epoch, nor those of training.
        np.testing.assert_array_equal(space.unseen, parts["part"] == "test")
        assert space.has_prior == (name != "autoencoder")
        assert (space.variance > 0).all() == (name != "autoencoder")
        assert space.told == (("age", "sex") if name == "told" else ())
        assert space.coordinates.shape == (N, 2 if name == "spatial_vae" else 3)
        np.testing.assert_array_equal(space.values, latents["mean"].values)


def test_the_variance_of_a_coordinate_is_that_of_its_latents(
    models: dict[str, TrainedModel], data: tuple[Volumes, pd.DataFrame, pd.DataFrame]
) -> None:
    volumes, parts, _ = data
    vector, grid = (encode(models[name], volumes, parts) for name in ("vae", "spatial_vae"))
    expected = np.exp(vector["log_var"].values.astype(float))
    np.testing.assert_allclose(space_of(models["vae"], vector, n_components=2).variance, expected, rtol=1e-6)
    space = space_of(models["spatial_vae"], grid, n_components=2)
    variance = np.exp(grid["log_var"].values.astype(float))
    for k in range(2):
        np.testing.assert_allclose(space.variance[:, k], (space.frame.axes[k] ** 2 * variance).sum(axis=1), rtol=1e-6)


def test_a_grid_is_described_by_components_of_its_training_scans(
    models: dict[str, TrainedModel], data: tuple[Volumes, pd.DataFrame, pd.DataFrame]
) -> None:
    volumes, parts, _ = data
    latents = encode(models["spatial_vae"], volumes, parts)
    reference = space_of(models["spatial_vae"], latents, n_components=2).frame
    shifted = latents.copy(deep=True)
    shifted["mean"][16:] += 100
    other = space_of(models["spatial_vae"], shifted, n_components=2).frame
    np.testing.assert_array_equal(other.axes, reference.axes)
    np.testing.assert_array_equal(other.centre, reference.centre)


def test_a_scan_that_is_not_moved_draws_its_reconstruction(
    models: dict[str, TrainedModel], data: tuple[Volumes, pd.DataFrame, pd.DataFrame]
) -> None:
    volumes, parts, _ = data
    for name in ("autoencoder", "spatial_vae"):
        latents = encode(models[name], volumes, parts)
        space = space_of(models[name], latents, n_components=2)
        rows = np.array([3, 20])
        stayed = np.concatenate(list(space.moved(rows, np.zeros((2, len(space.names))))))
        expected = np.concatenate([x for _, x in reconstructions(models[name], volumes, rows)])
        np.testing.assert_allclose(stayed, expected, atol=1e-5)
