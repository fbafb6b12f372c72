import dataclasses
from pathlib import Path

import pandas as pd
import pytest

from nilatent.models import ModelConfig
from nilatent.provenance import read_json
from nilatent.training import remedy
from nilatent.training.config import TrainConfig
from nilatent.training.loop import train
from nilatent.training.remedy import MAX_RESTARTS, REMEDIES, train_with_remedies
from nilatent.volumes import Volumes

Cohort = tuple[Volumes, pd.DataFrame]
PLAIN = ModelConfig(n_latent=2, channels=(4, 8, 8), anchor="none")


def test_a_sound_training_is_left_as_it_is(curved: Cohort, tmp_path: Path) -> None:
    model, config = dataclasses.replace(PLAIN, anchor="pca"), TrainConfig(n_epochs=2)
    alone = train(*curved, model, config, tmp_path / "alone")
    trained = train_with_remedies(*curved, model, config, tmp_path / "with")
    assert trained.content_hash == alone.content_hash
    assert len(read_json(tmp_path / "with" / "attempts.json")["attempts"]) == 1


def test_the_mean_local_minimum_is_left(curved: Cohort, tmp_path: Path) -> None:
    """A learning rate of nearly nothing draws the same brain for all; even less does not help, the anchor does."""
    stuck = TrainConfig(n_epochs=2, learning_rate=1e-9)
    before = train(*curved, PLAIN, stuck, tmp_path / "before")
    assert before.result["verdicts"][0]["state"] == "found"
    trained = train_with_remedies(*curved, PLAIN, stuck, tmp_path / "after")
    record = read_json(tmp_path / "after" / "attempts.json")
    assert [one["failures"] for one in record["attempts"]] == [["mean local minimum"]] * 2 + [[]]
    assert [one["change"][:25] for one in record["attempts"]] == [
        "",
        "mean local minimum: a thi",
        "mean local minimum: the m",
    ]
    assert record["chosen"] == 2
    assert trained.model_config.anchor == "pca"
    assert trained.training["learning_rate"] == pytest.approx(1e-9 / 3)
    assert trained.result["validation_fvu"] < 0.5 * before.result["validation_fvu"]


def test_a_collapsed_posterior_is_rescued(curved: Cohort, tmp_path: Path) -> None:
    heavy = dataclasses.replace(PLAIN, name="vae", beta=5000.0)
    config = TrainConfig(n_epochs=12, learning_rate=1e-2, patience=50)
    trained = train_with_remedies(*curved, heavy, config, tmp_path)
    record = read_json(tmp_path / "attempts.json")
    assert "posterior collapse" in record["attempts"][0]["failures"]
    assert record["attempts"][record["chosen"]]["failures"] == []
    assert (trained.history["n_active"].iloc[trained.best_epoch]) >= 1


def test_at_most_three_restarts_and_the_best_is_kept(
    curved: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = tuple((f"seed {number}", remedy.other_seed) for number in range(9))
    monkeypatch.setattr(remedy, "REMEDIES", {"mean local minimum": seeds})
    trained = train_with_remedies(*curved, PLAIN, TrainConfig(n_epochs=1, learning_rate=1e-9), tmp_path)
    record = read_json(tmp_path / "attempts.json")
    figures = [one["validation_fvu"] for one in record["attempts"]]
    assert len(set(figures)) == MAX_RESTARTS + 1 == len(figures)
    assert all(one["failures"] for one in record["attempts"])
    assert figures[record["chosen"]] == min(figures) == trained.result["validation_fvu"]


@pytest.mark.parametrize("failure", sorted(REMEDIES))
def test_every_change_changes_something_or_passes(failure: str) -> None:
    model = dataclasses.replace(PLAIN, name="vae", beta=8.0, sigma=0.2)
    for _, change in REMEDIES[failure]:
        changed = change(model, TrainConfig())
        assert changed is not None
        assert changed != (model, TrainConfig())
        assert change(*changed) != changed or change(*changed) is None
