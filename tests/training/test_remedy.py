import dataclasses
import functools
from pathlib import Path

import pandas as pd
import pytest

from nilatent.models import ModelConfig
from nilatent.provenance import read_json
from nilatent.training import remedy
from nilatent.training.config import TrainConfig
from nilatent.training.loop import DivergenceError, load_model, train
from nilatent.training.remedy import (
    BY_HEART_FVU,
    MAX_RESTARTS,
    REMEDIES,
    _next,
    _ordered,
    overfit_check,
    train_with_remedies,
)
from nilatent.volumes import Volumes

Cohort = tuple[Volumes, pd.DataFrame]
PLAIN = ModelConfig(n_latent=2, channels=(4, 8, 8), anchor="none")


@pytest.fixture(autouse=True)
def _short_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remedy, "BY_HEART_STEPS", 40)


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
    assert record["by_heart"]["fvu"] > 0.9
    assert "cannot learn 8 scans by heart" in record["by_heart"]["sentence"]
    assert trained.model_config.anchor == "pca"
    assert trained.training["learning_rate"] == pytest.approx(1e-9 / 3)
    assert trained.result["validation_fvu"] < 0.5 * before.result["validation_fvu"]


def test_a_collapsed_posterior_is_rescued(curved: Cohort, tmp_path: Path) -> None:
    heavy = dataclasses.replace(PLAIN, name="vae", beta=5000.0)
    config = TrainConfig(n_epochs=12, learning_rate=1e-2, patience=50)
    trained = train_with_remedies(*curved, heavy, config, tmp_path)
    record = read_json(tmp_path / "attempts.json")
    assert "posterior collapse" in record["attempts"][0]["failures"]
    assert not set(record["attempts"][record["chosen"]]["failures"]) & set(REMEDIES)
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


def test_a_network_is_asked_whether_it_can_learn_eight_scans_by_heart(curved: Cohort, tmp_path: Path) -> None:
    anchored = dataclasses.replace(PLAIN, anchor="pca", name="vae", beta=5000.0)
    able = overfit_check(*curved, anchored, TrainConfig(learning_rate=1e-2), tmp_path / "able")
    unable = overfit_check(*curved, anchored, TrainConfig(learning_rate=1e-9), tmp_path / "unable")
    # Its anchor would know the eight at once, and its beta would let it learn nothing: neither is what is asked.
    assert able < BY_HEART_FVU
    assert unable > 0.9


def test_an_able_network_keeps_its_rate_and_the_last_restart_takes_the_anchor() -> None:
    first = [change for _, change in _ordered("mean local minimum", able=False, last=False)]
    able = [change for _, change in _ordered("mean local minimum", able=True, last=False)]
    assert (first[0], able[-1]) == (remedy.slower, remedy.slower)
    for failure in ("mean local minimum", "posterior collapse"):
        assert _ordered(failure, able=False, last=True)[0][1] is remedy.anchored


def test_an_anchor_that_the_scans_cannot_give_is_passed_over() -> None:
    settings = (dataclasses.replace(PLAIN, n_latent=30), TrainConfig())
    order = functools.partial(_ordered, able=True, last=True)
    enough = _next(("mean local minimum",), settings, set(), order, n_left=31)
    few = _next(("mean local minimum",), settings, set(), order, n_left=30)
    assert enough is not None
    assert few is not None
    assert (enough[0][0].start, few[0][0].start) == ("pca", "none")


def test_a_divergence_is_mended(curved: Cohort, tmp_path: Path) -> None:
    """Noise so small that its square is zero: a lower rate does not help, the most likely noise does."""
    broken = dataclasses.replace(PLAIN, name="vae", anchor="pca", sigma=1e-25)
    trained = train_with_remedies(*curved, broken, TrainConfig(n_epochs=1), tmp_path)
    attempts = read_json(tmp_path / "attempts.json")["attempts"]
    assert ["divergence" in one["failures"] for one in attempts] == [True, True, False]
    assert trained.model_config.sigma is None
    assert trained.training["learning_rate"] == pytest.approx(1e-3 / 3)


def test_a_divergence_that_nothing_mends_is_said(curved: Cohort, tmp_path: Path) -> None:
    with pytest.raises(DivergenceError, match="epoch 1"):
        train_with_remedies(*curved, PLAIN, TrainConfig(n_epochs=1, learning_rate=1e30, warmup_epochs=0.0), tmp_path)
    assert len(read_json(tmp_path / "attempts.json")["attempts"]) == MAX_RESTARTS + 1
    assert load_model(tmp_path).best_epoch == 0
