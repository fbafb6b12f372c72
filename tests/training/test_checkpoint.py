from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from nilatent.models import ModelConfig
from nilatent.training.checkpoint import (
    ModelError,
    Progress,
    TrainedModel,
    keep,
    load_model,
    read_tensors,
    resume,
    write_tensors,
)
from nilatent.training.loop import TrainConfig, train
from nilatent.volumes import Volumes

Cohort = tuple[Volumes, pd.DataFrame]


@pytest.fixture
def trained(curved: Cohort, tmp_path: Path) -> TrainedModel:
    config = ModelConfig(name="vae", n_latent=2, channels=(4, 8), sigma=0.1)
    return train(*curved, config, TrainConfig(n_epochs=1), tmp_path / "model")


def test_a_model_folder_is_complete(trained: TrainedModel, curved: Cohort, tmp_path: Path) -> None:
    volumes, parts = curved
    again = load_model(tmp_path / "model")
    assert again.model_config == trained.model_config
    assert again.content_hash == trained.content_hash
    assert again.grid.shape == volumes.grid.shape
    np.testing.assert_array_equal(again.mask, volumes.mask)
    assert set(again.training_subjects) == set(parts.loc[parts["part"] == "train", "subject_id"])
    assert set(again.validation_subjects) == set(parts.loc[parts["part"] == "validation", "subject_id"])
    assert again.training["learning_rate"] == TrainConfig().learning_rate
    for name, value in trained.module.state_dict().items():
        assert torch.equal(value, again.module.state_dict()[name])


def test_other_weights_are_another_model(trained: TrainedModel, tmp_path: Path) -> None:
    with torch.no_grad():
        next(trained.module.parameters()).add_(1.0)
    write_tensors(tmp_path / "model" / "weights.safetensors", trained.module.state_dict(), {"format_version": 1})
    assert load_model(tmp_path / "model").content_hash != trained.content_hash


@pytest.mark.parametrize("file", ["config.toml", "weights.safetensors", "subjects.tsv"])
def test_an_incomplete_folder_is_refused(trained: TrainedModel, tmp_path: Path, file: str) -> None:
    (tmp_path / "model" / file).unlink()
    with pytest.raises(ModelError, match=f"lacks {file}.*nilatent train"):
        load_model(tmp_path / "model")


def test_another_format_is_refused(trained: TrainedModel, tmp_path: Path) -> None:
    path = tmp_path / "model" / "config.toml"
    path.write_text(path.read_text().replace("format_version = 1", "format_version = 99"))
    with pytest.raises(ModelError, match="model format 99"):
        load_model(tmp_path / "model")


def test_tensors_and_values_come_back_from_one_file_whatever_their_layout(tmp_path: Path) -> None:
    tensor = torch.randn(2, 3, 4, 5, 6).to(memory_format=torch.channels_last_3d)
    write_tensors(tmp_path / "a.safetensors", {"t": tensor}, {"key": "k", "number": 1.5})
    found = read_tensors(tmp_path / "a.safetensors", key="k")
    assert found is not None
    assert torch.equal(found[0]["t"], tensor)
    assert found[1]["number"] == 1.5
    assert read_tensors(tmp_path / "a.safetensors", key="other") is None
    assert read_tensors(tmp_path / "absent.safetensors", key="k") is None


def test_best_and_present_weights_and_moments_come_back_apart(tmp_path: Path) -> None:
    module, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    best = {name: parameter.detach() + 1.0 for name, parameter in module.named_parameters()}
    optimiser, fresh = torch.optim.AdamW(module.parameters()), torch.optim.AdamW(other.parameters())
    module(torch.ones(1, 2)).sum().backward()
    optimiser.step()
    keep(tmp_path, "k", Progress(best, ({"epoch": 0, "best_epoch": 0},)), module=module, optimiser=optimiser)
    found = resume(tmp_path, "k", module=other, optimiser=fresh)
    assert found is not None
    for name, parameter in other.named_parameters():
        assert torch.equal(found.best[name], best[name])
        assert torch.equal(parameter, module.get_parameter(name))
        for moment, value in optimiser.state[module.get_parameter(name)].items():
            assert torch.equal(fresh.state[parameter][moment], value)
    assert resume(tmp_path, "other", module=other, optimiser=fresh) is None
