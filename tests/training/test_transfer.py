"""A trained model as the start of another training."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file

from nilatent.encode import encode
from nilatent.errors import GridError, LeakageError, SettingError
from nilatent.models import ModelConfig
from nilatent.training.checkpoint import TrainedModel
from nilatent.training.config import TrainConfig
from nilatent.training.diagnostics import fvu
from nilatent.training.loop import train
from nilatent.training.transfer import part_of
from nilatent.training.validation import baselines, validate
from nilatent.volumes import Grid, Volumes, volumes_in_memory, voxel_pca

Cohort = tuple[Volumes, pd.DataFrame]
VAE = ModelConfig(name="vae", n_latent=2, channels=(4, 8, 8))
FIRST = TrainConfig(n_epochs=2, learning_rate=4e-3)


def of_others(cohort: Cohort, rows: slice) -> Cohort:
    """Some of the scans, as people whom the first training has not met: other names, and another brightness."""
    volumes, parts = cohort
    ids = [f"other-{index}" for index in range(len(parts))][rows]
    index = pd.Index(ids, name="scan_id")
    scans = pd.DataFrame({"subject_id": ids, "dataset": "two"}, index=index)
    data = np.asarray(volumes.data, dtype=np.float32)[rows] * 1.1
    part = ["train", "train", "train", "validation", "test"] * (len(ids) // 5)
    return (
        volumes_in_memory(data, mask=volumes.mask, grid=volumes.grid, scans=scans),
        pd.DataFrame({"subject_id": ids, "part": part}, index=index),
    )


@pytest.fixture
def source(curved: Cohort, tmp_path: Path) -> TrainedModel:
    return train(*curved, VAE, FIRST, tmp_path / "source")


def again(tmp_path: Path, **settings: object) -> TrainConfig:
    return dataclasses.replace(FIRST, start_from=str(tmp_path / "source"), **settings)  # type: ignore[arg-type]


def test_training_starts_as_the_source_with_its_anchor(source: TrainedModel, curved: Cohort, tmp_path: Path) -> None:
    volumes, parts = of_others(curved, slice(0, 40))
    trained = train(volumes, parts, VAE, again(tmp_path), tmp_path / "new")
    rows = {part: volumes.rows(list(parts.index[parts["part"] == part])) for part in ("train", "validation")}
    pca = voxel_pca(volumes, rows["train"], 2, seed=0)
    trivial = baselines(pca, volumes, rows["validation"])
    start = validate(source.module, volumes, rows["validation"], batch_size=4)
    first = trained.history.iloc[0]
    assert first["validation_fvu"] == pytest.approx(fvu(start.fit, trivial["mean_image"]), rel=1e-4)
    # The baseline is of the new scans.
    assert first["pca_fvu"] == pytest.approx(fvu(trivial["pca"], trivial["mean_image"]), rel=1e-4)
    assert trained.training["start_from"] == source.content_hash
    for name, value in source.module.anchor.state_dict().items():
        np.testing.assert_array_equal(trained.module.anchor.state_dict()[name], value)


@pytest.mark.parametrize("frozen", ["encoder", "decoder"])
def test_what_is_frozen_stays_to_the_bit(source: TrainedModel, curved: Cohort, tmp_path: Path, frozen: str) -> None:
    train(*of_others(curved, slice(0, 40)), VAE, again(tmp_path, freeze=(frozen,)), tmp_path / "new")
    state = load_file(tmp_path / "new" / "resume.safetensors")
    moved = {
        name: not np.array_equal(state[f"model.now.{name}"], value.detach())
        for name, value in source.module.named_parameters()
    }
    assert {part_of(name) for name in moved} == {"encoder", "decoder"}
    for name, has_moved in moved.items():
        assert has_moved == (part_of(name) != frozen), name


def test_a_start_that_is_not_bettered_is_kept_and_said(source: TrainedModel, curved: Cohort, tmp_path: Path) -> None:
    volumes, parts = of_others(curved, slice(0, 40))
    trained = train(volumes, parts, VAE, again(tmp_path, learning_rate=1e-9), tmp_path / "new")
    assert trained.best_epoch == 0
    assert trained.result["summary"] == "The model that training started from; training added nothing."
    for name, value in source.module.named_parameters():
        np.testing.assert_array_equal(trained.module.get_parameter(name).detach(), value.detach())


def test_whom_the_source_has_seen_may_not_be_held_out(source: TrainedModel, curved: Cohort, tmp_path: Path) -> None:
    """Subjects of the first training, both of its parts, are in the test part of the second."""
    volumes, parts = curved
    shuffled = parts.assign(part="test")
    fresh = parts.index[parts["part"] == "test"]
    shuffled.loc[fresh[:8], "part"] = "train"
    shuffled.loc[fresh[8:], "part"] = "validation"
    with pytest.raises(LeakageError, match=r"48 subjects of the validation or test part are known"):
        train(volumes, shuffled, VAE, again(tmp_path), tmp_path / "new")


def test_whom_the_source_has_seen_is_known_in_any_later_cohort(
    source: TrainedModel, curved: Cohort, tmp_path: Path
) -> None:
    """None of them is in the cohort of the second training."""
    trained = train(*of_others(curved, slice(48, 58)), VAE, again(tmp_path), tmp_path / "new")
    volumes, parts = curved
    known = encode(trained, volumes, parts)["subject_in_training"].to_numpy()
    np.testing.assert_array_equal(known, parts["part"] != "test")


def test_the_old_training_part_may_not_judge(source: TrainedModel, curved: Cohort, tmp_path: Path) -> None:
    volumes, parts = curved
    swapped = parts.replace({"part": {"train": "validation", "validation": "train"}})
    with pytest.raises(LeakageError, match=r"39 subjects of the validation or test part are known.*sub-000"):
        train(volumes, swapped, VAE, again(tmp_path), tmp_path / "new")
    # Under other names the same scans are known, too.
    ids = [f"renamed-{index}" for index in range(len(parts))]
    renamed = swapped.assign(subject_id=ids).set_axis(pd.Index(ids, name="scan_id"))
    scans = volumes.scans.assign(subject_id=ids).set_axis(renamed.index)
    with pytest.raises(LeakageError, match=r"39 subjects.*renamed-0"):
        train(dataclasses.replace(volumes, scans=scans), renamed, VAE, again(tmp_path), tmp_path / "new")


def test_another_grid_or_mask_is_refused_with_the_reason(source: TrainedModel, curved: Cohort, tmp_path: Path) -> None:
    volumes, parts = curved
    finer = dataclasses.replace(volumes, grid=Grid(volumes.grid.shape, np.diag([2.0, 2.0, 2.0, 1.0])))
    with pytest.raises(GridError, match=r"15x17x13 voxels of 4 mm .* 15x17x13 of 2 mm .*spacing_mm = 4"):
        train(finer, parts, VAE, again(tmp_path), tmp_path / "new")
    other = dataclasses.replace(volumes, mask=~volumes.mask)
    with pytest.raises(GridError, match=r"mask of .* voxels.*Pack the scans with its mask"):
        train(other, parts, VAE, again(tmp_path), tmp_path / "new")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"n_latent": 3}, r"has n_latent = 2 \(asked for: 3\)\. A training that starts"),
        ({"channels": (4, 8), "name": "autoencoder"}, r"name = 'vae' .*, channels = \(4, 8, 8\)"),
        ({"anchor": "mean"}, "anchor = 'pca'"),
        ({"likelihood": "voxel"}, "likelihood = 'gaussian'"),
        ({"condition": ("age",)}, r"condition = \(\)"),
    ],
)
def test_another_network_is_refused_by_name(
    source: TrainedModel, curved: Cohort, tmp_path: Path, change: dict[str, object], words: str
) -> None:
    with pytest.raises(SettingError, match=words):
        train(*curved, dataclasses.replace(VAE, **change), again(tmp_path), tmp_path / "new")  # type: ignore[arg-type]


def test_a_model_is_not_trained_over_itself(source: TrainedModel, curved: Cohort, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="would overwrite it"):
        train(*curved, VAE, again(tmp_path), tmp_path / "source")


def test_the_same_network_may_be_trained_for_something_else(
    source: TrainedModel, curved: Cohort, tmp_path: Path
) -> None:
    other = dataclasses.replace(VAE, beta=4.0, likelihood="laplace")
    assert train(*curved, other, again(tmp_path, n_epochs=0), tmp_path / "new").model_config == other


def test_another_source_is_another_training(source: TrainedModel, curved: Cohort, tmp_path: Path) -> None:
    """Where a model lies does not matter, and what it is does."""
    cohort = of_others(curved, slice(0, 40))
    train(*cohort, VAE, again(tmp_path), tmp_path / "new")
    before = load_file(tmp_path / "new" / "resume.safetensors")
    train(*curved, VAE, dataclasses.replace(FIRST, seed=1, learning_rate=1e-2), tmp_path / "source")
    train(*cohort, VAE, again(tmp_path), tmp_path / "new")
    after = load_file(tmp_path / "new" / "resume.safetensors")
    assert any(not np.array_equal(before[name], after[name]) for name in before)


def test_freezing_that_makes_no_sense_is_refused(curved: Cohort, tmp_path: Path) -> None:
    for parts in (("encoder", "decoder"), ("anchor",)):
        with pytest.raises(SettingError, match=f"training.freeze is {', '.join(parts)}"):
            TrainConfig(freeze=parts)
    spatial = ModelConfig(name="spatial_vae", latent_grid=3, latent_channels=2, channels=(4, 8))
    with pytest.raises(SettingError, match=r"adversarial is 0\.05: the critic teaches the decoder"):
        train(*curved, spatial, TrainConfig(n_epochs=1, freeze=("decoder",)), tmp_path)
