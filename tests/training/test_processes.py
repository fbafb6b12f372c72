"""Several processes train as one does."""

import dataclasses
import os
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from nilatent.errors import SettingError
from nilatent.models import ModelConfig
from nilatent.training import devices
from nilatent.training.config import TrainConfig, settled
from nilatent.training.devices import ProcessError, is_follower
from nilatent.training.loop import DivergenceError, train
from nilatent.volumes import Volumes

Cohort = tuple[Volumes, pd.DataFrame]
VAE = ModelConfig(name="vae", n_latent=2, channels=(4, 8, 8), info_lambda=10.0, curve=False)
SPATIAL = ModelConfig(name="spatial_vae", latent_grid=3, latent_channels=2, channels=(4, 8), adversarial_from=0.0)
# The last of five batches has seven scans: three pieces, so one process has one more than the other.
ALONE = TrainConfig(n_epochs=3, micro_batch=3, device="cpu", learning_rate=4e-3)
BOTH = dataclasses.replace(ALONE, devices=2)
FIGURES = ["train_loss", "validation_mse", "validation_fvu", "validation_elbo", "best_epoch", "kl"]


def now(folder: Path) -> dict[str, np.ndarray]:
    state = load_file(folder / "resume.safetensors")
    return {name: value.numpy() for name, value in state.items() if ".now." in name or name == "past"}


def compare(curved: Cohort, folder: Path, model: ModelConfig, alone: TrainConfig, both: TrainConfig) -> None:
    one = train(*curved, model, alone, folder / "one")
    two = train(*curved, model, both, folder / "two")
    pd.testing.assert_frame_equal(one.history[FIGURES], two.history[FIGURES], rtol=1e-4)
    assert one.history["train_loss"].iloc[1:].std() > 1e-3
    expected, found = now(folder / "one"), now(folder / "two")
    assert set(expected) == set(found)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=1e-5, err_msg=name)


def test_two_processes_follow_the_same_curve(curved: Cohort, tmp_path: Path) -> None:
    before, n_threads = dict(os.environ), torch.get_num_threads()
    compare(curved, tmp_path, VAE, ALONE, BOTH)
    assert dict(os.environ) == before
    assert torch.get_num_threads() == n_threads
    assert not torch.distributed.is_initialized()


@pytest.mark.slow
def test_two_processes_and_a_critic_follow_the_same_curve(curved: Cohort, tmp_path: Path) -> None:
    compare(curved, tmp_path, SPATIAL, ALONE, BOTH)


@pytest.mark.slow
def test_one_process_goes_on_with_what_two_began(curved: Cohort, tmp_path: Path) -> None:
    def stop(row: dict[str, int | float]) -> None:
        if row["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(*curved, VAE, BOTH, tmp_path / "broken", on_epoch=stop)
    epochs: list[float] = []
    train(*curved, VAE, ALONE, tmp_path / "broken", on_epoch=lambda row: epochs.append(row["epoch"]))
    train(*curved, VAE, ALONE, tmp_path / "whole")
    assert epochs == [3]
    expected, found = now(tmp_path / "whole"), now(tmp_path / "broken")
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_all_processes_stop_where_the_loss_is_not_finite(curved: Cohort, tmp_path: Path) -> None:
    volumes, parts = curved
    with pytest.raises(DivergenceError, match="epoch 1"):
        train(volumes, parts, VAE, dataclasses.replace(BOTH, input_noise=float("inf")), tmp_path)
    assert not torch.distributed.is_initialized()


class Unreadable:
    """Comes to nothing on its way to another process."""

    def __reduce__(self) -> tuple[object, ...]:
        return (int, ("no number",))


@pytest.mark.slow
def test_a_process_that_cannot_begin_is_not_waited_for() -> None:
    job = partial(print, Unreadable())
    with pytest.raises(ProcessError, match=r"could not be started .code 1.*__main__"), devices._companions(job, 2):
        pass


@pytest.mark.parametrize(
    ("given", "follows"), [({}, False), ({"RANK": "0"}, False), ({"RANK": "1"}, True), ({"SLURM_PROCID": "3"}, True)]
)
def test_all_but_the_first_process_follow(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], follows: bool
) -> None:
    for name in ("RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert is_follower() == follows


def test_mapped_volumes_travel_as_their_place(curved: Cohort, tmp_path: Path) -> None:
    volumes, _ = curved
    np.save(tmp_path / "volumes.npy", volumes.data)
    mapped = dataclasses.replace(volumes, data=np.load(tmp_path / "volumes.npy", mmap_mode="r"))
    packed = devices._packed(mapped)
    assert packed[1].data.nbytes == 0
    opened = devices._opened(packed)
    np.testing.assert_array_equal(opened.data, volumes.data)
    assert opened.scans is volumes.scans
    assert isinstance(opened.data, np.memmap)
    # A part of a map does not know where it begins, and travels as numbers.
    part = dataclasses.replace(mapped, data=mapped.data[5:], scans=mapped.scans.iloc[5:])
    assert devices._packed(part) is part
    assert devices._packed(3) == 3
    assert devices._opened(3) == 3


def test_the_number_of_devices_does_not_weigh_in_the_result() -> None:
    assert settled(BOTH) == settled(ALONE)
    assert settled(dataclasses.replace(ALONE, checkpointing=True)) == settled(ALONE)
    assert settled(TrainConfig(devices=2)) == settled(TrainConfig(micro_batch=4)) != settled(TrainConfig())


def test_several_machines_are_started_by_others(
    curved: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SettingError, match=r"num_nodes is 2.*torchrun --nnodes 2 --nproc-per-node 1"):
        train(*curved, VAE, dataclasses.replace(ALONE, num_nodes=2), tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(SettingError, match=r"4 processes were started.*is 2\. Give"):
        train(*curved, VAE, BOTH, tmp_path)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"devices": 0}, "training.devices is 0"),
        ({"num_nodes": 0}, "training.num_nodes is 0"),
        ({"micro_batch": -1}, "training.micro_batch is -1"),
        ({"micro_batch": 9}, "micro_batch is 9, more than training.batch_size, 8"),
        ({"devices": 3, "num_nodes": 3}, "batch_size is 8, which leaves some of the 9 devices"),
    ],
)
def test_shares_that_cannot_be_are_refused(setting: dict[str, int], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        TrainConfig(**setting)  # type: ignore[arg-type]
