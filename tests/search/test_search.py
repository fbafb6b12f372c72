import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nilatent.config import read_config
from nilatent.errors import SettingError
from nilatent.finding import read_finding, write_finding
from nilatent.models import ModelConfig
from nilatent.search import SearchConfig, search, trials
from nilatent.training.config import TrainConfig
from nilatent.volumes import Volumes

Cohort = tuple[Volumes, pd.DataFrame]
Pretend = Callable[..., None]
VAE = ModelConfig(name="vae", n_latent=1, channels=(4, 4))
SHORT = TrainConfig(n_epochs=1, warmup_epochs=0.0)
SIZES = SearchConfig(n_trials=5, n_latent=(3, 6), width=("given",), seed=1)


@pytest.fixture
def one_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the further seeds are not what is tested."""
    monkeypatch.setattr("nilatent.search.config.MIN_SEEDS", 1)


def test_the_number_of_causes_is_found(caused: Cohort, tmp_path: Path) -> None:
    finding = search(*caused, VAE, SHORT, SIZES, tmp_path)
    table = finding.table
    assert set(table["n_latent"]) == {1, 3, 6}
    assert set(table.loc[table["chosen"], "n_latent"]) == {3}
    assert "better than the noise of seeds explains" in finding.answer
    assert "with every seed, so only other scans" in finding.answer, "at its start the FVU hangs on no seed"
    assert (finding.n_scans, finding.n_subjects) == (30, 30)
    assert {path.name for path in (tmp_path / "trials" / "0000").iterdir()} == set(trials.KEPT)
    # Training had no part in it, so the other settings of that trial, which chance drew, are not handed on.
    row = table[table["chosen"]].iloc[0]
    assert (row["best_epoch"], row["learning_rate"] == SHORT.learning_rate) == (0, False)
    found = read_config(tmp_path / "winner.toml")
    assert (found.model, found.training) == (dataclasses.replace(VAE, n_latent=3), SHORT)
    assert "training had no part in this: n_latent" in finding.answer


@pytest.mark.usefixtures("one_seed")
def test_test_scans_never_enter(caused: Cohort, tmp_path: Path) -> None:
    """Scans of the test part are no numbers at all: whoever looks at one gets no number out."""
    volumes, parts = caused
    spoilt = volumes.data.copy()
    spoilt[(parts["part"] == "test").to_numpy()] = np.nan
    model = dataclasses.replace(VAE, condition=("age",))
    age = pd.DataFrame({"age": np.linspace(20, 80, len(parts))}, index=parts.index)
    told = age.where(parts["part"] != "test")
    config = dataclasses.replace(SIZES, n_trials=2, n_seeds=1)
    before = search(volumes, parts, model, SHORT, config, tmp_path / "one", scans=age)
    other = dataclasses.replace(volumes, data=spoilt)
    after = search(other, parts, model, SHORT, config, tmp_path / "two", scans=told)
    pd.testing.assert_frame_equal(before.table.drop(columns="seconds"), after.table.drop(columns="seconds"))
    assert before.data.equals(after.data)
    assert np.isfinite(before.data["validation_fvu_by_seed"]).all()
    assert (tmp_path / "one" / "winner.toml").read_text() == (tmp_path / "two" / "winner.toml").read_text()


@pytest.mark.usefixtures("one_seed")
def test_a_training_that_is_interrupted_is_resumed(
    caused: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SearchConfig(n_trials=2, n_seeds=1, n_latent=(3,), width=("given",), kl_warmup=(0.0, 0.0))
    training = TrainConfig(n_epochs=3, learning_rate=1e-2)
    bare = dataclasses.replace(VAE, anchor="none")
    undisturbed = search(*caused, bare, training, config, tmp_path / "one")
    asked = iter([False, False, True])

    def interrupt(*given: object) -> str:
        if next(asked):
            raise KeyboardInterrupt
        return ""

    with monkeypatch.context() as patch:
        patch.setattr(trials, "hopeless", interrupt)
        with pytest.raises(KeyboardInterrupt):
            search(*caused, bare, training, config, tmp_path / "two")
    left = pd.read_csv(tmp_path / "two" / "trials" / "0001" / "history.tsv", sep="\t")
    again = search(*caused, bare, training, config, tmp_path / "two")
    assert list(left["epoch"]) == [0, 1]
    after = pd.read_csv(tmp_path / "two" / "trials" / "0001" / "history.tsv", sep="\t")
    pd.testing.assert_frame_equal(after.head(2), left, check_like=True)
    pd.testing.assert_frame_equal(again.table.drop(columns="seconds"), undisturbed.table.drop(columns="seconds"))


def test_winner_toml_gives_the_settings_of_the_winner(caused: Cohort, pretended: Pretend, tmp_path: Path) -> None:
    pretended(lambda _, config: abs(math.log10(config.learning_rate / 5e-3)))
    model = ModelConfig(name="vae", n_latent=4, likelihood="laplace", sigma=0.1)
    training = TrainConfig(n_epochs=8, weight_decay=0.01, seed=3)
    finding = search(*caused, model, training, SearchConfig(n_trials=12, n_epochs=4), tmp_path)
    row = finding.table[finding.table["chosen"]].iloc[0]
    found = read_config(tmp_path / "winner.toml", overrides={"seed": 9})
    assert row["trial"] > 0
    assert found.model == dataclasses.replace(
        model,
        channels=tuple(map(int, row["channels"].split("-"))),
        n_latent=int(row["n_latent"]),
        **{name: float(row[name]) for name in ("beta", "info_alpha", "info_lambda")},
    )
    assert found.training == dataclasses.replace(
        training,
        n_epochs=4,
        seed=9,
        learning_rate=float(row["learning_rate"]),
        kl_warmup_epochs=float(row["kl_warmup_epochs"]),
    )
    assert not found.n_latent_auto
    assert any("at most 4 epochs, a run for 8" in caveat for caveat in finding.caveats)


def test_further_seeds_are_those_that_no_trial_had(caused: Cohort, pretended: Pretend, tmp_path: Path) -> None:
    def figure(_: ModelConfig, config: TrainConfig) -> float:
        return config.seed + abs(math.log10(config.learning_rate / 5e-3)) * (1 + config.seed / 100)

    pretended(figure)
    training = TrainConfig(n_epochs=2, seed=5)
    finding = search(*caused, ModelConfig(name="vae", n_latent=4), training, SearchConfig(n_trials=9), tmp_path)
    values = finding.data["validation_fvu_by_seed"]
    assert list(values["seed"].values) == [6, 7, 8]
    gain = finding.table["validation_fvu"].iloc[0] - finding.table["validation_fvu"].min()
    expected = gain / 1.05 * np.array([1.06, 1.07, 1.08])
    np.testing.assert_allclose(values.sel(settings="given") - values.sel(settings="chosen"), expected)
    assert "better than the noise of seeds explains" in finding.answer


def test_settings_as_given_are_kept_when_none_is_better(caused: Cohort, pretended: Pretend, tmp_path: Path) -> None:
    pretended(lambda _, config: abs(math.log10(config.learning_rate / 1e-3)))
    model = ModelConfig(name="vae", n_latent=4)
    finding = search(*caused, model, TrainConfig(n_epochs=2), SearchConfig(n_trials=6), tmp_path)
    assert "nothing that was tried is preferred to them" in finding.answer
    assert list(finding.data["settings"].values) == ["given"]
    assert read_config(tmp_path / "winner.toml").model == model


def test_front_and_best_so_far(caused: Cohort, pretended: Pretend, tmp_path: Path) -> None:
    pretended(lambda model, config: abs(math.log10(config.learning_rate / 5e-3)) / model.n_latent)
    finding = search(*caused, ModelConfig(n_latent=4), TrainConfig(n_epochs=2), SearchConfig(n_trials=12), tmp_path)
    table = finding.table
    done = table[table["state"] == "finished"]
    for row in table.itertuples():
        no_worse = done[(done["validation_fvu"] <= row.validation_fvu) & (done["n_values"] <= row.n_values)]
        beaten = ((no_worse["validation_fvu"] < row.validation_fvu) | (no_worse["n_values"] < row.n_values)).any()
        assert row.on_front == (row.state == "finished" and not beaten)
    front = pd.read_csv(tmp_path / "front.tsv", sep="\t")
    assert list(front["trial"]) == list(table.loc[table["on_front"], "trial"])
    assert table["chosen"].sum() == 1
    assert table.loc[table["chosen"], "on_front"].all()
    best = np.minimum.accumulate(table["validation_fvu"].where(table["state"] == "finished", np.inf))
    np.testing.assert_array_equal(finding.data["best_so_far"], best)


def test_the_finding_comes_back_from_disk(caused: Cohort, pretended: Pretend, tmp_path: Path) -> None:
    pretended(lambda _, config: config.learning_rate)
    finding = search(*caused, VAE, SHORT, dataclasses.replace(SIZES, n_trials=3), tmp_path / "search")
    write_finding(finding, tmp_path / "finding")
    again = read_finding(tmp_path / "finding")
    pd.testing.assert_frame_equal(again.table, finding.table, check_dtype=False)
    assert again.data.equals(finding.data)
    assert any("best of 3 on the same 8 validation scans" in caveat for caveat in again.caveats)


def test_what_a_search_cannot_vary_or_stop_is_refused(caused: Cohort, tmp_path: Path) -> None:
    for setting, match in (({"devices": 2}, "make 2 processes"), ({"start_from": "model"}, "start_from is set")):
        with pytest.raises(SettingError, match=match):
            search(*caused, VAE, dataclasses.replace(SHORT, **setting), SIZES, tmp_path)


def test_too_many_latents_are_refused_before_anything(caused: Cohort, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="22 latents are asked for"):
        search(*caused, VAE, SHORT, SearchConfig(n_latent=(22,)), tmp_path / "search")
    assert not (tmp_path / "search").exists()
