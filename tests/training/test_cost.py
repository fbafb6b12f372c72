import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from nilatent.config import read_config
from nilatent.errors import SettingError
from nilatent.models import ModelConfig
from nilatent.training import cost as cost_module
from nilatent.training.config import TrainConfig
from nilatent.training.cost import Cost, LiveBytes, cost_of, memory_of
from nilatent.training.loop import train
from nilatent.training.start import set_up
from nilatent.volumes import Grid, Volumes, volumes_in_memory

Cohort = tuple[Volumes, pd.DataFrame]
VAE = ModelConfig(name="vae", n_latent=2, channels=(4, 8, 8), info_lambda=100.0)
SPATIAL = ModelConfig(name="spatial_vae", latent_grid=3, latent_channels=2, channels=(4, 8))
SIDE = 1000
SQUARE = 4 * SIDE * SIDE


def test_two_products_with_one_matrix_hold_three_matrices_of_gradients() -> None:
    weight = torch.randn(SIDE, SIDE, requires_grad=True)

    def passes(n_rows: int) -> None:
        ((torch.randn(n_rows, SIDE) @ weight).relu() @ weight).sum().backward()
        weight.grad = None

    # The two gradients and their sum; beside them a few rows of numbers for each scan.
    assert memory_of(passes, 1) == pytest.approx(3 * SQUARE, rel=1e-3)
    assert memory_of(passes, 5) - memory_of(passes, 1) == 4 * (memory_of(passes, 2) - memory_of(passes, 1))


def test_what_is_gone_does_not_count() -> None:
    with LiveBytes() as live:
        one = torch.zeros(1000)
        two = one + 1.0
        del one
        three = two[:10]
        one = torch.zeros(500)
    assert live.peak == 2 * 4000
    assert live.alive == 4000 + 2000
    del one, two, three
    assert live.alive == 0


@pytest.mark.parametrize(("seconds", "said"), [(50.0, "50 seconds"), (720.0, "12 minutes"), (9000.0, "2.5 hours")])
def test_the_sentence_names_memory_and_time(seconds: float, said: str) -> None:
    sentence = Cost(1000, 5, 250.0, 1.5, 3.1, 0.1, seconds).sentence
    assert "1,000 weights" in sentence
    assert f"needs about 3.1 GB and at most {said} here" in sentence


@pytest.mark.parametrize("model", [VAE, SPATIAL], ids=["vae", "spatial_vae"])
def test_asking_for_the_cost_changes_nothing(curved: Cohort, tmp_path: Path, model: ModelConfig) -> None:
    config = TrainConfig(n_epochs=2)
    cost = cost_of(*curved, model, config, tmp_path / "asked")
    asked = train(*curved, model, config, tmp_path / "asked")
    assert asked.content_hash == train(*curved, model, config, tmp_path / "plain").content_hash
    assert cost.compression == int(curved[0].mask.sum()) / model.n_values
    # Five batches an epoch, and the validation scans.
    assert cost.total_seconds > 2 * 5 * cost.step_seconds


def test_a_critic_costs_too(curved: Cohort, tmp_path: Path) -> None:
    config = TrainConfig(n_epochs=1)
    with_critic = cost_of(*curved, SPATIAL, config, tmp_path / "with")
    without = cost_of(*curved, dataclasses.replace(SPATIAL, adversarial=0.0), config, tmp_path / "without")
    assert with_critic.n_weights > without.n_weights
    assert with_critic.gflop_per_scan > 1.2 * without.gflop_per_scan


def test_parts_of_a_batch_and_checkpoints_take_less_memory(curved: Cohort, tmp_path: Path) -> None:
    model = ModelConfig(n_latent=2, channels=(16, 8))
    settings = {
        "whole": {},
        "parts": {"micro_batch": 2},
        "again": {"checkpointing": True},
        "processes": {"micro_batch": 2, "devices": 2},
    }
    needs = {
        name: cost_of(*curved, model, TrainConfig(batch_size=16, device="cpu", **setting), tmp_path / name).memory_gb  # type: ignore[arg-type]
        for name, setting in settings.items()
    }
    assert needs["parts"] < 0.4 * needs["whole"]
    assert needs["again"] < 0.9 * needs["whole"]
    assert needs["processes"] == pytest.approx(2 * needs["parts"])


def test_what_does_not_fit_is_refused_before_it_is_tried(
    curved: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost_module, "available", lambda _: 1000)
    told = r"needs about .* GB with 8 scans at a time, and 1e-06 GB are free.*micro_batch to 4.*checkpointing = true.*cpu-small"
    with pytest.raises(SettingError, match=told):
        cost_of(*curved, VAE, TrainConfig(device="cpu"), tmp_path)


def test_free_memory_is_known_here() -> None:
    free = cost_module.available(torch.device("cpu"))
    assert free is None or 10**7 < free < 10**14


@pytest.mark.parametrize(
    ("preset", "most_gb"),
    [
        ("cpu-small", 0.5),
        pytest.param("cpu", 1.0, marks=pytest.mark.slow),
        pytest.param("gpu", 4.0, marks=pytest.mark.slow),
        pytest.param("gpu-large", 24.0, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("name", ["vae", "spatial_vae"])
def test_a_preset_fits_the_machine_it_is_for(tmp_path: Path, preset: str, most_gb: float, name: str) -> None:
    """On a processor, at the preset's own grid; mixed precision where a GPU would take it."""
    settings = read_config(preset=preset)
    grid = Grid.mni(settings.recipe.spacing_mm)
    ids = [f"sub-{index}" for index in range(11)]
    scans = pd.DataFrame({"subject_id": ids, "dataset": "one"}, index=pd.Index(ids, name="scan_id"))
    parts = pd.DataFrame({"subject_id": ids, "part": ["train"] * 10 + ["validation"]}, index=scans.index)
    data = np.zeros((11, *grid.shape), dtype=np.float16)
    data[np.arange(11), :, :, np.arange(11)] = 1.0
    volumes = volumes_in_memory(data, mask=np.ones(grid.shape, dtype=bool), grid=grid, scans=scans)
    precision = "bf16-mixed" if preset.startswith("gpu") else "32-true"
    config = dataclasses.replace(settings.training, device="cpu", precision=precision)
    model = dataclasses.replace(settings.model, name=name, **({"n_latent": 8} if name == "vae" else {}))
    run = set_up(volumes, parts, model, config, tmp_path)
    memory = memory_of(lambda n_scans: cost_module._piece(run, n_scans), config.piece)
    # Never less than the batch itself.
    assert config.piece * volumes.mask.size * 4 < memory
    assert memory * cost_module.SLACK["cpu"] + sum(cost_module._held(run)) < most_gb * 1e9
