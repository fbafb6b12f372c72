"""Trainings that are broken on purpose: what is wrong with each is found and said; good ones are left alone."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nilatent.models import ModelConfig
from nilatent.training.config import TrainConfig
from nilatent.training.loop import DivergenceError, TrainedModel, load_model, train
from nilatent.volumes import Volumes

Cohort = tuple[Volumes, pd.DataFrame]
PLAIN = ModelConfig(n_latent=2, channels=(4, 8, 8), anchor="none")
GRID = ModelConfig(name="spatial_vae", channels=(8, 8), latent_grid=6, latent_channels=2, adversarial=0.0)
QUICK = TrainConfig(n_epochs=12, learning_rate=1e-2, patience=50)
FIGURES = {
    "attainable_share",
    "gap",
    "shuffle_ratio",
    "active_share",
    "prior_distance",
    "high_frequency",
    "nuisance_r2",
}


def states(trained: TrainedModel) -> dict[str, str]:
    return {verdict["failure"]: verdict["state"] for verdict in trained.result["verdicts"]}


def found(trained: TrainedModel) -> set[str]:
    return {failure for failure, state in states(trained).items() if state == "found"}


@pytest.mark.parametrize("name", ["autoencoder", "vae"])
def test_a_good_training_is_quiet(curved: Cohort, tmp_path: Path, name: str) -> None:
    good = dataclasses.replace(PLAIN, name=name, anchor="pca")
    trained = train(*curved, good, TrainConfig(n_epochs=6), tmp_path)
    assert found(trained) == set()
    assert set(trained.history["failures"]) == {"none"}
    assert set(trained.history) >= FIGURES
    assert trained.history["prior_distance"].isna().all() == (name == "autoencoder")


@pytest.mark.slow
def test_a_good_grid_is_quiet(curved: Cohort, tmp_path: Path) -> None:
    trained = train(*curved, GRID, TrainConfig(n_epochs=20, learning_rate=3e-3, patience=50), tmp_path)
    assert found(trained) == set()
    # It starts as the mean image, and the history says when it left it.
    assert "mean local minimum" in trained.history["failures"].iloc[0]
    assert trained.history["failures"].iloc[-1] == "none"


def test_the_mean_local_minimum_is_found(curved: Cohort, tmp_path: Path) -> None:
    trained = train(*curved, PLAIN, TrainConfig(n_epochs=1, learning_rate=1e-9), tmp_path)
    assert states(trained)["mean local minimum"] == "found"
    assert states(trained)["blur"] == "not assessed"


def test_a_collapse_is_found(curved: Cohort, tmp_path: Path) -> None:
    trained = train(*curved, dataclasses.replace(PLAIN, name="vae", beta=5000.0), QUICK, tmp_path)
    assert {"mean local minimum", "posterior collapse"} <= found(trained)
    last = trained.history.iloc[-1]
    assert "posterior collapse" in last["failures"]
    assert last["active_share"] == 0.0
    assert last["shuffle_ratio"] == pytest.approx(1.0, abs=0.01)


@pytest.mark.slow
def test_the_collapse_of_a_grid_is_found(curved: Cohort, tmp_path: Path) -> None:
    trained = train(*curved, dataclasses.replace(GRID, beta=5000.0), QUICK, tmp_path)
    assert "posterior collapse" in found(trained)


def test_a_divergence_leaves_the_best_state_and_names_the_batch(
    curved: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = dataclasses.replace(PLAIN, name="vae", anchor="pca", curve=False)
    monkeypatch.setattr("nilatent.training.step.learning_rate", lambda _, epoch: 1e-3 if epoch <= 2.0 else 1e30)
    with pytest.raises(DivergenceError, match="epoch 3, batch 2"):
        train(*curved, model, TrainConfig(n_epochs=4), tmp_path)
    kept = load_model(tmp_path)
    assert kept.history["epoch"].tolist() == [0, 1, 2]
    assert kept.best_epoch == 2
    assert kept.result["validation_fvu"] == pytest.approx(kept.history["validation_fvu"].iloc[2])
    assert kept.result["validation_fvu"] < kept.history["validation_fvu"].iloc[0]
    told = next(one for one in kept.result["verdicts"] if one["failure"] == "divergence")
    assert (told["state"], "epoch 3, batch 2" in told["sentence"], "sub-" in told["sentence"]) == ("found", True, True)


@pytest.mark.slow
def test_learning_by_heart_is_found_and_stopped(curved: Cohort, tmp_path: Path, rng: np.random.Generator) -> None:
    volumes, parts = curved
    noisy = np.asarray(volumes.data, dtype=np.float32)
    noisy += 0.1 * rng.standard_normal(noisy.shape).astype(np.float32)
    few = parts[parts["part"] != "train"].index.union(parts.index[parts["part"] == "train"][:19])
    bare = TrainConfig(
        n_epochs=120,
        learning_rate=1e-2,
        warmup_epochs=0.0,
        patience=300,
        weight_decay=0.0,
        input_noise=0.0,
        latent_noise=0.0,
    )
    wide = dataclasses.replace(PLAIN, channels=(16, 16, 16))
    trained = train(dataclasses.replace(volumes, data=noisy.astype(np.float16)), parts.loc[few], wide, bare, tmp_path)
    assert states(trained)["over-fitting"] == "stopped"
    assert "over-fitting" in trained.history["failures"].iloc[-1]
    assert trained.history["failures"].iloc[trained.best_epoch] == "none"


def test_a_leaking_site_is_found_until_the_model_is_told_it(
    leaking: tuple[Volumes, pd.DataFrame, pd.DataFrame], tmp_path: Path
) -> None:
    volumes, parts, scans = leaking
    model, config = dataclasses.replace(PLAIN, anchor="pca", n_latent=3), TrainConfig(n_epochs=1)
    leaked = train(volumes, parts, model, config, tmp_path / "leaked", scans=scans)
    assert found(leaked) == {"nuisance latents"}
    told = dataclasses.replace(model, condition=("site",))
    assert states(train(volumes, parts, told, config, tmp_path / "told", scans=scans))["nuisance latents"] == "absent"
    other = train(volumes, parts, model, config, tmp_path / "other", scans=scans, nuisances=("age",))
    assert states(other)["nuisance latents"] == "absent"
