from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from nilatent.encode import encode, image_scale, reconstructions
from nilatent.errors import GridError, LatentsError
from nilatent.models import MODELS, ModelConfig
from nilatent.training.checkpoint import ModelError, TrainedModel, load_model
from nilatent.training.loop import TrainConfig, train
from nilatent.volumes import Grid, Volumes, volumes_in_memory, voxel_pca

SHAPE = (15, 17, 13)
CONFIGS = {
    "autoencoder": ModelConfig(name="autoencoder", n_latent=3, channels=(4, 8, 8)),
    "vae": ModelConfig(name="vae", n_latent=3, channels=(4, 8, 8)),
    "spatial_vae": ModelConfig(name="spatial_vae", latent_grid=3, latent_channels=2, channels=(4, 8)),
}
PREPARATION = {"recipe": {"fwhm_mm": 8.0}, "engines": {"gm": {"numpy": "2"}}}


def cohort(array: np.ndarray, parts: list[str], mask: np.ndarray) -> tuple[Volumes, pd.DataFrame]:
    ids = pd.Index([f"sub-{index // 2:02d}_ses-{index % 2}" for index in range(len(array))], name="scan_id")
    scans = pd.DataFrame({"subject_id": [scan[:6] for scan in ids], "dataset": "one"}, index=ids)
    grid = Grid(SHAPE, np.diag([4.0, 4.0, 4.0, 1.0]))
    volumes = volumes_in_memory(array, mask=mask, grid=grid, scans=scans)
    return volumes, pd.DataFrame({"subject_id": scans["subject_id"], "part": parts}, index=ids)


@pytest.fixture(scope="module")
def data() -> tuple[Volumes, pd.DataFrame]:
    """Two sessions of twelve people: eight in training, two in validation, two held out."""
    rng = np.random.default_rng(0)
    array = rng.random((24, 1, 1, 1)) + 0.3 * rng.random((24, *SHAPE))
    return cohort(array, ["train"] * 16 + ["validation"] * 4 + ["test"] * 4, rng.random(SHAPE) > 0.4)


def shaken(model: TrainedModel) -> TrainedModel:
    """Off its start, so that the network has a say."""
    with torch.no_grad():
        for parameter in model.module.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    return model


@pytest.fixture(scope="module")
def folders(data: tuple[Volumes, pd.DataFrame], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each model at its start."""
    made = {name: tmp_path_factory.mktemp(name) for name in CONFIGS}
    for name, config in CONFIGS.items():
        train(*data, config, TrainConfig(n_epochs=0), made[name], preparation=PREPARATION)
    return made


@pytest.fixture(params=list(CONFIGS))
def model(request: pytest.FixtureRequest, folders: dict[str, Path]) -> TrainedModel:
    return shaken(load_model(folders[request.param]))


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_every_model_is_tested() -> None:
    assert set(CONFIGS) == set(MODELS)


def test_a_row_is_the_same_alone_and_in_any_batch(model: TrainedModel, data: tuple[Volumes, pd.DataFrame]) -> None:
    one, many = (encode(model, *data, batch_size=size) for size in (1, 24))
    for name in ("mean", "log_var"):
        np.testing.assert_allclose(one[name], many[name], rtol=0, atol=1e-5)
    assert np.ptp(many["mean"].values, axis=0).max() > 0.1


def test_a_row_is_the_same_in_any_order(
    model: TrainedModel, data: tuple[Volumes, pd.DataFrame], rng: np.random.Generator
) -> None:
    volumes, parts = data
    order = rng.permutation(24)
    scans = volumes.scans.iloc[order]
    shuffled = replace(volumes, data=np.asarray(volumes.data)[order], scans=scans)
    expected = encode(model, volumes, parts).sel(scan=list(scans.index))
    found = encode(model, shuffled, parts, batch_size=5)
    np.testing.assert_allclose(found["mean"], expected["mean"], rtol=0, atol=1e-5)
    assert list(found["scan"].values) == list(scans.index)


@pytest.mark.usefixtures("threads")
def test_a_row_is_the_same_on_any_number_of_threads(model: TrainedModel, data: tuple[Volumes, pd.DataFrame]) -> None:
    found = []
    for n_threads in (1, 2, 3):
        torch.set_num_threads(n_threads)
        found.append(encode(model, *data)["mean"].values)
    np.testing.assert_allclose(found[1], found[0], rtol=0, atol=1e-5)
    np.testing.assert_allclose(found[2], found[0], rtol=0, atol=1e-5)


def test_whoever_moved_the_weights_or_chose_the_epoch_is_marked(
    model: TrainedModel, data: tuple[Volumes, pd.DataFrame]
) -> None:
    latents = encode(model, *data)
    np.testing.assert_array_equal(latents["subject_in_training"], [True] * 20 + [False] * 4)
    assert latents.attrs["model_hash"] == model.content_hash
    assert latents.attrs["volumes_hash"] == data[0].content_hash


def test_a_new_session_of_a_known_subject_is_not_new(model: TrainedModel, data: tuple[Volumes, pd.DataFrame]) -> None:
    volumes, parts = data
    later = parts.assign(part=["test"] * 24)
    np.testing.assert_array_equal(encode(model, volumes, later)["subject_in_training"], [True] * 20 + [False] * 4)


def test_reconstructions_are_decoded_means_inside_the_mask(
    model: TrainedModel, data: tuple[Volumes, pd.DataFrame]
) -> None:
    volumes, parts = data
    rows = np.array([7, 3, 11])
    chunks = list(reconstructions(model, volumes, rows, batch_size=2))
    assert [list(chunk[0]) for chunk in chunks] == [[7, 3], [11]]
    means = torch.from_numpy(encode(model, volumes, parts)["mean"].values[rows])
    with torch.no_grad():
        expected = model.module.decode(means)[:, 0].numpy()[:, volumes.mask]
    np.testing.assert_allclose(np.concatenate([chunk[1] for chunk in chunks]), expected, rtol=0, atol=1e-5)


def test_scans_in_another_space_are_refused(
    model: TrainedModel, data: tuple[Volumes, pd.DataFrame], rng: np.random.Generator
) -> None:
    volumes, parts = data
    elsewhere = replace(volumes, grid=Grid(SHAPE, np.diag([3.0, 3.0, 3.0, 1.0])))
    with pytest.raises(GridError, match="expected 15x17x13 at 4 mm"):
        encode(model, elsewhere, parts)
    masked_otherwise = replace(volumes, mask=rng.random(SHAPE) > 0.5)
    with pytest.raises(GridError, match="has a mask of"):
        next(reconstructions(model, masked_otherwise, np.array([0])))


def test_a_scan_without_a_part_is_refused(model: TrainedModel, data: tuple[Volumes, pd.DataFrame]) -> None:
    volumes, parts = data
    with pytest.raises(LatentsError, match="sub-11_ses-1 has no row in the split"):
        encode(model, volumes, parts.iloc[:-1])


def test_image_scale_of_the_linear_start_is_the_sd_of_the_components(
    data: tuple[Volumes, pd.DataFrame], folders: dict[str, Path]
) -> None:
    trained = load_model(folders["autoencoder"])
    volumes, parts = data
    pca = voxel_pca(volumes, volumes.rows(list(parts.index[parts["part"] == "train"])), 3, seed=0)
    found = image_scale(trained, encode(trained, *data)["mean"].values)
    np.testing.assert_allclose(found, pca.sd / np.sqrt(volumes.mask.sum()), rtol=1e-4)


@pytest.mark.parametrize("name", ["autoencoder", "vae"])
def test_image_scale_is_the_slope_of_the_decoder(
    data: tuple[Volumes, pd.DataFrame], folders: dict[str, Path], name: str
) -> None:
    model = shaken(load_model(folders[name]))
    mean = encode(model, *data)["mean"].values
    centre, step = torch.from_numpy(mean.mean(axis=0)), float(mean[:, 1].std())
    ends = [centre + torch.tensor([0.0, sign * step, 0.0]) for sign in (-1, 1)]
    with torch.no_grad():
        low, high = (model.module.decode(end[None]).numpy()[0, 0][data[0].mask] for end in ends)
    expected = np.sqrt(np.mean((high - low) ** 2)) / (2 * step)
    np.testing.assert_allclose(image_scale(model, mean)[1], expected, rtol=1e-4)


def test_a_latent_grid_keeps_its_shape_and_has_no_scale(
    data: tuple[Volumes, pd.DataFrame], folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = shaken(load_model(folders["spatial_vae"]))
    monkeypatch.setattr("nilatent.encode.draw", lambda *_: pytest.fail("two volumes were decoded for each value"))
    latents = encode(model, *data)
    assert latents.attrs["latent_shape"] == [2, 3, 3, 3]
    assert (latents["image_scale"].values == 1).all()
    with torch.no_grad():
        x = torch.from_numpy(np.asarray(data[0].data[5:6], dtype=np.float32))[:, None]
        maps = model.module.encode(x).mean.reshape(2, 3, 3, 3)
    found = float(latents["mean"].sel(scan="sub-02_ses-1", latent="c1_x01_y02_z00"))
    assert found == pytest.approx(float(maps[1, 1, 2, 0]), abs=1e-6)
    assert found != 0


def test_scans_that_were_prepared_otherwise_are_refused_or_marked(
    model: TrainedModel, data: tuple[Volumes, pd.DataFrame]
) -> None:
    other = {"recipe": {"fwhm_mm": 4.0}, "engines": {"gm": {"numpy": "2"}}}
    with pytest.raises(ModelError, match=r"recipe\.fwhm_mm 8\.0 in training, 4\.0 here"):
        encode(model, *data, preparation=other)
    assert "4.0 here" in encode(model, *data, preparation=other, allow_other_preparation=True).attrs["caveat"]
    assert "caveat" not in encode(model, *data, preparation=PREPARATION).attrs
    assert "not known how these scans" in encode(model, *data).attrs["caveat"]


def test_a_scan_of_the_training_is_known_under_another_name(
    model: TrainedModel, data: tuple[Volumes, pd.DataFrame]
) -> None:
    volumes, parts = data
    ids = pd.Index([f"new-{scan}" for scan in volumes.scans.index], name="scan_id")
    subjects = np.array([f"new-{subject}" for subject in volumes.scans["subject_id"]])
    renamed = replace(volumes, scans=volumes.scans.set_axis(ids).assign(subject_id=subjects))
    latents = encode(model, renamed, parts.set_axis(ids).assign(subject_id=subjects, part="test"))
    np.testing.assert_array_equal(latents["subject_in_training"], [True] * 20 + [False] * 4)
    assert "seen under another name" in latents.attrs["seen"]


def test_a_column_that_shaped_the_latents_is_named(
    data: tuple[Volumes, pd.DataFrame], tmp_path: Path, rng: np.random.Generator
) -> None:
    volumes, parts = data
    scans = volumes.scans.assign(score=rng.random(24))
    config = replace(CONFIGS["vae"], align="score")
    trained = train(*data, config, TrainConfig(n_epochs=0), tmp_path, scans=scans)
    assert encode(trained, volumes, parts).attrs["supervised"] == "score"
