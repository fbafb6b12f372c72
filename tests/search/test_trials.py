import json
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import optuna
import pandas as pd
import pytest

from nilatent.errors import SettingError
from nilatent.finding import Finding
from nilatent.models import ModelConfig
from nilatent.search import SearchConfig, search, trials
from nilatent.search.config import ELBO, FVU, Measure
from nilatent.search.figures import MIN_FINISHED
from nilatent.training.config import TrainConfig
from nilatent.training.loop import DivergenceError
from nilatent.volumes import Volumes

Cohort = tuple[Volumes, pd.DataFrame]
Pretend = Callable[..., None]
VAE, TRAINING = ModelConfig(name="vae", n_latent=4), TrainConfig(n_epochs=6)


def slope(model: ModelConfig, config: TrainConfig) -> float:
    """Best at a learning rate of 0.005 and at beta 1."""
    return abs(math.log10(config.learning_rate / 5e-3)) + abs(math.log10(model.beta))


def run(cohort: Cohort, folder: Path, n_trials: int = 14, objective: str = "elbo", seed: int = 0) -> Finding:
    config = SearchConfig(n_trials=n_trials, objective=objective, seed=seed, kl_warmup=(0.0, 0.0))
    return search(*cohort, VAE, TRAINING, config, folder)


def test_the_search_comes_nearer_to_the_optimum(caused: Cohort, pretended: Pretend, tmp_path: Path) -> None:
    pretended(slope)
    table = run(caused, tmp_path, n_trials=30).table
    chosen = table[table["chosen"]].iloc[0]
    assert chosen["validation_fvu"] == table["validation_fvu"].min()
    assert chosen["validation_fvu"] < 0.3 < table["validation_fvu"].iloc[0]
    late = table["validation_fvu"].iloc[20:].median()
    assert late < table["validation_fvu"].iloc[1:11].median(), "the sampler learns nothing"


def test_trials_stopped_early_are_listed_with_their_reason(caused: Cohort, pretended: Pretend, tmp_path: Path) -> None:
    pretended(slope)
    table = run(caused, tmp_path).table
    stopped = table[table["state"] == "stopped early"]
    assert len(table) == 14
    assert list(table["trial"]) == list(range(14))
    assert 0 < len(stopped) < 9
    assert (stopped["n_epochs"] == 2).all()
    assert stopped["reason"].str.match(r"Stopped after epoch 2 of 6: its validation ELBO .* the median of").all()
    assert not stopped[["on_front", "chosen"]].any(axis=None)
    assert (stopped["trial"] >= MIN_FINISHED).all()
    reported = [line for line in (tmp_path / "journal.log").read_text().splitlines() if '"step":2' in line]
    assert len(reported) == len(stopped), "the sampler is not told how bad they were"
    written = pd.read_csv(tmp_path / "trials.tsv", sep="\t", keep_default_na=False)
    assert list(written["reason"]) == list(table["reason"])


def test_trials_are_stopped_with_two_objectives_too(caused: Cohort, pretended: Pretend, tmp_path: Path) -> None:
    pretended(slope)
    table = run(caused, tmp_path, objective="size").table
    assert (table["state"] == "stopped early").any()
    assert (table.loc[table["n_latent"] == 2, "state"] == "finished").sum() > 1


def test_no_trial_is_stopped_before_the_kl_has_its_weight(caused: Cohort, pretended: Pretend, tmp_path: Path) -> None:
    pretended(slope)
    whole = TrainConfig(n_epochs=6, kl_warmup_epochs=3.0)
    config = SearchConfig(n_trials=14, kl_warmup=(0.5, 0.5))
    table = search(*caused, VAE, whole, config, tmp_path).table
    assert set(table.loc[table["state"] == "stopped early", "n_epochs"]) == {4}


def test_a_trial_that_fails_is_listed_and_the_rest_goes_on(caused: Cohort, pretended: Pretend, tmp_path: Path) -> None:
    def fragile(model: ModelConfig, config: TrainConfig) -> float:
        if config.learning_rate > 2e-3:
            raise DivergenceError("The loss is not finite. It is kept in a folder.")
        return slope(model, config)

    pretended(fragile)
    finding = run(caused, tmp_path, n_trials=8)
    failed = finding.table[finding.table["state"] == "failed"]
    assert 0 < len(failed) < 8
    assert (failed["learning_rate"] > 2e-3).all()
    assert set(failed["reason"]) == {"The loss is not finite."}
    assert failed["validation_fvu"].isna().all()
    assert f"{len(failed)} failed" in finding.answer
    assert set(finding.table.loc[finding.table["state"] == "finished", "failures"]) == {"over-fitting"}


def test_a_figure_that_is_no_number_is_a_failure(caused: Cohort, pretended: Pretend, tmp_path: Path) -> None:
    pretended(lambda _, config: math.nan if config.learning_rate != 1e-3 else 1.0)
    assert list(run(caused, tmp_path, n_trials=3).table["state"]) == ["finished", "failed", "failed"]


def test_when_all_fail_it_says_why(caused: Cohort, pretended: Pretend, tmp_path: Path) -> None:
    pretended(lambda *_: math.nan)
    with pytest.raises(SettingError, match="None of 2 trials could be finished; the first: Its validation ELBO"):
        run(caused, tmp_path, n_trials=2)
    assert len(pd.read_csv(tmp_path / "trials.tsv", sep="\t")) == 2


def test_a_search_that_is_interrupted_goes_on_as_if_not(
    caused: Cohort, pretended: Pretend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted between two epochs of trial 5 and of trial 11, with half a line in the journal and a lock left."""
    pretended(slope)
    undisturbed = run(caused, tmp_path / "one")
    whole = trials.hopeless

    def stop(after: int) -> None:
        calls = iter(range(after))

        def interrupt(*given: object) -> str:
            if next(calls, None) is None:
                raise KeyboardInterrupt
            return whole(*given)  # type: ignore[arg-type]

        monkeypatch.setattr(trials, "hopeless", interrupt)

    for after in (22, 13):
        stop(after)
        with pytest.raises(KeyboardInterrupt):
            run(caused, tmp_path / "two")
        with (tmp_path / "two" / "journal.log").open("a") as journal:
            journal.write('{"op_code":4,"work')
        (tmp_path / "two" / "journal.log.lock").touch()
    monkeypatch.setattr(trials, "hopeless", whole)
    n_lines = len((tmp_path / "two" / "journal.log").read_text().splitlines())
    assert n_lines > 20
    began = time.monotonic()
    again = run(caused, tmp_path / "two")
    assert time.monotonic() - began < 25, "it waited for a lock that nobody holds"
    pd.testing.assert_frame_equal(again.table, undisturbed.table)
    assert not (tmp_path / "two" / "journal.log.lock").exists()


def test_more_trials_may_follow_and_begin_like_fewer(caused: Cohort, pretended: Pretend, tmp_path: Path) -> None:
    pretended(slope)
    few = run(caused, tmp_path / "one", n_trials=7).table
    more = run(caused, tmp_path / "one", n_trials=12).table
    at_once = run(caused, tmp_path / "two", n_trials=12).table
    pd.testing.assert_frame_equal(more, at_once)
    pd.testing.assert_frame_equal(more.head(7)[["trial", "learning_rate"]], few[["trial", "learning_rate"]])
    pd.testing.assert_frame_equal(run(caused, tmp_path / "two", n_trials=12).table, at_once)


def test_the_seed_draws(caused: Cohort, pretended: Pretend, tmp_path: Path) -> None:
    pretended(slope)
    one, two = (run(caused, tmp_path / str(seed), n_trials=3, seed=seed).table for seed in (0, 1))
    assert one["beta"].iloc[0] == two["beta"].iloc[0] == 1.0
    assert (one["beta"].iloc[1:] != two["beta"].iloc[1:]).all()
    assert one.iloc[1:][["beta", "learning_rate"]].nunique().eq(2).all()
    shares = [np.log10(one["beta"].iloc[1:] / 0.1) / 2, np.log10(one["learning_rate"].iloc[1:] / 1e-4) / 2]
    assert (abs(shares[0] - shares[1]) > 1e-6).all(), "two settings share one draw"


def test_another_search_in_the_folder_is_refused(caused: Cohort, pretended: Pretend, tmp_path: Path) -> None:
    pretended(slope)
    run(caused, tmp_path, n_trials=1)
    with pytest.raises(SettingError, match="other settings or other scans"):
        run(caused, tmp_path, n_trials=1, seed=1)
    with pytest.raises(SettingError, match="other settings or other scans"):
        run(caused, tmp_path, n_trials=1, objective="size")


def test_the_journal_is_lines_of_json_and_trials_leave_no_weights(
    caused: Cohort, pretended: Pretend, tmp_path: Path
) -> None:
    pretended(slope)
    run(caused, tmp_path, n_trials=2)
    lines = (tmp_path / "journal.log").read_text().splitlines()
    assert len(lines) > 10
    assert all(isinstance(json.loads(line, parse_constant=pytest.fail), dict) for line in lines)
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {
        *(".nilatent.lock", "journal.log", "trials.tsv", "front.tsv", "seeds.tsv", "winner.toml")
    }


def test_optuna_keeps_its_own_voice(caused: Cohort, pretended: Pretend, tmp_path: Path) -> None:
    pretended(slope)
    before = optuna.logging.get_verbosity()
    run(caused, tmp_path, n_trials=1)
    assert optuna.logging.get_verbosity() == before


def study_of(rng: np.random.Generator, measure: Measure, n_trials: int) -> optuna.Study:
    """The learning rate makes the best trials, beta the worst; low is good, times the sign of the measure."""
    study = optuna.create_study(direction="minimize" if measure.sign > 0 else "maximize")
    ranges = {name: optuna.distributions.FloatDistribution(0, 1) for name in ("learning_rate", "beta")}
    for _ in range(n_trials):
        drawn = {name: float(rng.uniform()) for name in ranges}
        cost = 10.0 if drawn["beta"] > 0.75 else abs(drawn["learning_rate"] - 0.5)
        study.add_trial(optuna.trial.create_trial(params=drawn, distributions=ranges, values=[measure.sign * cost]))
    return study


@pytest.mark.parametrize("measure", [ELBO, FVU])
def test_importance_tells_what_makes_the_best(rng: np.random.Generator, measure: Measure) -> None:
    task = SimpleNamespace(measures=(measure,))
    found = trials.importances(task, study_of(rng, measure, 60))
    assert list(found) == ["learning_rate", "beta"]
    assert found["learning_rate"] > 0.6
    assert sum(found.values()) == pytest.approx(1.0)
    assert trials.importances(task, study_of(rng, measure, 11)) == {}


def test_importance_is_in_the_finding(caused: Cohort, pretended: Pretend, tmp_path: Path) -> None:
    pretended(slope)
    data = run(caused, tmp_path, n_trials=24).data["importance"]
    assert set(data["setting"].values) <= {"learning_rate", "beta", "n_latent", "width", "info_alpha", "info_lambda"}
    assert data.size > 1


def test_old_trainings_are_not_taken_for_those_of_a_new_search(
    caused: Cohort, pretended: Pretend, tmp_path: Path
) -> None:
    pretended(slope)
    run(caused, tmp_path, n_trials=3)
    (tmp_path / "journal.log").unlink()
    pretended(lambda model, _: math.nan if model.beta == 1 else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(caused, tmp_path, n_trials=2)
    assert not (tmp_path / "trials" / "0002").exists()
    shutil.rmtree(tmp_path / "trials")
