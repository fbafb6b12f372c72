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
from nilatent.training.checkpoint import TrainedModel
from nilatent.training.loop import TrainConfig, train
from nilatent.volumes import Grid, Volumes, volumes_in_memory, voxel_pca

SHAPE = (15, 17, 13)


def cohort(array: np.ndarray, parts: list[str], mask: np.ndarray) -> tuple[Volumes, pd.DataFrame]:
    ids = pd.Index([f"sub-{index // 2:02d}_ses-{index % 2}" for index in range(len(array))], name="scan_id")
    scans = pd.DataFrame({"subject_id": [scan[:6] for scan in ids], "dataset": "one"}, index=ids)
    grid = Grid(SHAPE, np.diag([4.0, 4.0, 4.0, 1.0]))
    volumes = volumes_in_memory(array, mask=mask, grid=grid, scans=scans)
    return volumes, pd.DataFrame({"subject_id": scans["subject_id"], "part": parts}, index=ids)


@pytest.fixture
def data(rng: np.random.Generator) -> tuple[Volumes, pd.DataFrame]:
    """Two sessions of twelve people: eight in training, two in validation, two held out."""
    array = rng.random((24, 1, 1, 1)) + 0.3 * rng.random((24, *SHAPE))
    return cohort(array, ["train"] * 16 + ["validation"] * 4 + ["test"] * 4, rng.random(SHAPE) > 0.4)


@pytest.fixture(params=list(MODELS))
def model(request: pytest.FixtureRequest, data: tuple[Volumes, pd.DataFrame], tmp_path: Path) -> TrainedModel:
    config = ModelConfig(name=request.param, n_latent=3, channels=(4, 8, 8))
    trained = train(*data, config, TrainConfig(n_epochs=1), tmp_path)
    with torch.no_grad():
        # Off the linear start, so that the network has a say whatever epoch was best.
        for parameter in trained.module.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    return trained


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_a_row_is_the_same_alone_and_in_any_batch(model: TrainedModel, data: tuple[Volumes, pd.DataFrame]) -> None:
    one, many = (encode(model, *data, batch_size=size) for size in (1, 24))
    for name in ("mean", "log_var"):
        np.testing.assert_allclose(one[name], many[name], rtol=0, atol=1e-5)
    assert np.ptp(many["mean"].values, axis=0).min() > 0.1


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
    data: tuple[Volumes, pd.DataFrame], tmp_path: Path
) -> None:
    trained = train(*data, ModelConfig(n_latent=3, channels=(4, 8)), TrainConfig(n_epochs=0), tmp_path)
    volumes, parts = data
    pca = voxel_pca(volumes, volumes.rows(list(parts.index[parts["part"] == "train"])), 3, seed=0)
    found = image_scale(trained, encode(trained, *data)["mean"].values)
    np.testing.assert_allclose(found, pca.sd / np.sqrt(volumes.mask.sum()), rtol=1e-4)


def test_image_scale_is_the_slope_of_the_decoder(model: TrainedModel, data: tuple[Volumes, pd.DataFrame]) -> None:
    mean = encode(model, *data)["mean"].values
    centre, step = torch.from_numpy(mean.mean(axis=0)), float(mean[:, 1].std())
    ends = [centre + torch.tensor([0.0, sign * step, 0.0]) for sign in (-1, 1)]
    with torch.no_grad():
        low, high = (model.module.decode(end[None]).numpy()[0, 0][data[0].mask] for end in ends)
    expected = np.sqrt(np.mean((high - low) ** 2)) / (2 * step)
    np.testing.assert_allclose(image_scale(model, mean)[1], expected, rtol=1e-4)
