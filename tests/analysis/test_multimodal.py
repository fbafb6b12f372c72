from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge

from nilatent.analysis.multimodal import JOINT, RIVAL, SHARED, Fold, Told, multimodal, present, simply_told, source_sets
from nilatent.analysis.multimodal.judged import MEAN, best_of, paired
from nilatent.analysis.multimodal.simple import Spoken
from nilatent.errors import LeakageError, SettingError
from nilatent.finding import read_finding, write_finding

N, N_FOLDS = 48, 3
IDS = pd.Index([f"s{i:02d}" for i in range(N)], name="scan_id")
BALANCE = {"n_values": 9, "weight": 1.0, "noise_sd": 0.5, "nats_per_percent": 0.045, "shared_nats": 1.0}
QUICK = {"n_bootstrap": 200, "n_flips": 200}


def folds_of(subjects=IDS, *, names=("gm", "wm", "scores")):
    made = []
    codes = pd.factorize(subjects)[0]
    for number in range(N_FOLDS):
        part = np.where(codes % N_FOLDS == number, "test", np.where(codes % 7 == 6, "validation", "train"))
        result = {
            "summary": "a model",
            "n_shared": 1,
            "best_epoch": number,
            "sharing_gain": 0.2,
            "balance": dict.fromkeys(names, BALANCE),
        }
        made.append(Fold(pd.DataFrame({"subject_id": subjects, "part": part}, index=IDS), result, {"gm": 3, "wm": 3}))
    return made


def kinds_of(rng, *, shared=1.0):
    """Two kinds of volumes and a table; one cause is in all of them, and each has larger ones of its own."""
    cause = shared * rng.standard_normal(N)
    made = {}
    for name, width in (("gm", 9), ("wm", 7)):
        own = 1.5 * rng.standard_normal((N, 2)) @ rng.standard_normal((2, width))
        made[name] = np.outer(cause, rng.uniform(1, 2, width)) + own + 0.3 * rng.standard_normal((N, width)) + 4
    words = np.where(cause + 0.5 * rng.standard_normal(N) > 0, "patient", "control")
    made["scores"] = pd.DataFrame({"bdi": 10 + 3 * cause + rng.standard_normal(N), "group": words}, index=IDS)
    return made


def model_says(kinds, folds, *, penalty=30.0, scale=1.0, harm=False):
    """A stand-in for joint models: ridge on training scans, its predictions drawn out by a factor."""
    coded = {
        name: np.column_stack([one["bdi"] - 10, one["group"] == "patient"]).astype(float)
        if isinstance(one, pd.DataFrame)
        else one
        for name, one in kinds.items()
    }
    coded = {
        name: np.nan_to_num(one - np.nanmean(one, axis=0)) + np.nanmean(one, axis=0) for name, one in coded.items()
    }
    told = []
    for target, y in coded.items():
        for sources in [*source_sets(list(kinds), target), *([(target,)] if y.shape[1] > 2 else [])]:
            x, drawn = np.hstack([coded[name] for name in sources]), np.full(y.shape, np.nan)
            for fold in folds:
                train, test = fold.rows("train"), fold.rows("test")
                mean = y[train].mean(axis=0)
                own = Ridge(penalty).fit(x[train], y[train]).predict(x[test]) - mean
                drawn[test] = mean + scale * own * (-1.0 if harm and len(sources) > 1 else 1.0)
            if y.shape[1] == 2:
                p = np.clip(drawn[:, 1], 0.05, 0.95)
                cells = {"bdi": drawn[:, 0] + 10, "group=patient": p, "group=control": 1 - p}
                told.append(Told(target, sources, JOINT, pd.DataFrame(cells, index=IDS)))
            else:
                error = np.where(present(kinds[target]), np.square(y - drawn).sum(axis=1), np.nan)
                told += [
                    Told(target, sources, way, error) for way in ((JOINT, SHARED) if sources == (target,) else (JOINT,))
                ]
    return told


@pytest.fixture(scope="session")
def study():
    """Kinds, folds, what a model says, and the finding: read by many tests, changed by none."""
    rng = np.random.default_rng(3)
    kinds, folds = kinds_of(rng, shared=2.0), folds_of()
    told = model_says(kinds, folds)
    return kinds, folds, told, multimodal(kinds, told, folds, **QUICK)


@pytest.fixture
def pair(rng):
    """Two kinds of volumes, without a table."""
    kinds = {name: one for name, one in kinds_of(rng, shared=2.0).items() if name != "scores"}
    return kinds, folds_of(names=("gm", "wm"))


def line(found, target, sources, way=JOINT, scans="all of these"):
    table = found.table
    chosen = (
        (table["target"] == target) & (table["sources"] == sources) & (table["way"] == way) & (table["scans"] == scans)
    )
    assert chosen.sum() == 1
    return table[chosen].iloc[0]


def test_shares_are_sums_of_errors_of_unseen_scans_over_those_of_the_training_mean(study, tmp_path):
    kinds, folds, told, found = study
    mean = np.zeros(N)
    for fold in folds:
        usual = kinds["gm"][fold.rows("train")].mean(axis=0)
        mean[fold.rows("test")] = np.square(kinds["gm"][fold.rows("test")] - usual).sum(axis=1)
    said = next(one.said for one in told if (one.target, one.sources) == ("gm", ("wm", "scores")))
    row = line(found, "gm", "wm + scores")
    assert np.isclose(row["unexplained"], said.sum() / mean.sum())
    assert row["low"] < row["unexplained"] < row["high"] < 1
    rival = line(found, "gm", "wm + scores", RIVAL)
    assert np.isclose(row["difference"], row["unexplained"] - rival["unexplained"])
    assert row["difference_low"] < row["difference"] < row["difference_high"]
    single = line(found, "gm", "wm + scores", rival["note"].split()[0])
    if "in 3 of 3" in rival["note"]:
        assert single["unexplained"] == rival["unexplained"]
    # Components are as many as the latents; a number is told in its own units.
    drawn, usual, sd, bdi = np.zeros((N, 9)), np.zeros(N), np.zeros(N), kinds["scores"]["bdi"].to_numpy()
    for fold in folds:
        pca = PCA(3).fit(kinds["gm"][fold.rows("train")])
        drawn[fold.rows("test")] = pca.inverse_transform(pca.transform(kinds["gm"][fold.rows("test")]))
        usual[fold.rows("test")], sd[fold.rows("test")] = bdi[fold.rows("train")].mean(), bdi[fold.rows("train")].std()
    itself = line(found, "gm", "itself", "PCA of equal size")["unexplained"]
    assert np.isclose(itself, np.square(drawn - kinds["gm"]).sum() / mean.sum())
    cells = next(one.said for one in told if (one.target, one.sources) == ("scores", ("gm",)))
    share = np.square((cells["bdi"] - bdi) / sd).sum() / np.square((usual - bdi) / sd).sum()
    assert np.isclose(line(found, "scores: bdi", "gm")["unexplained"], share)
    # The commonest level of the training scans, and its share, are what a category is compared with.
    words, p = kinds["scores"]["group"].to_numpy(), np.zeros(N)
    for fold in folds:
        share = (words[fold.rows("train")] == "patient").mean()
        p[fold.rows("test")] = np.where(words == "patient", share, 1 - share)[fold.rows("test")]
    cells = next(one.said for one in told if (one.target, one.sources) == ("scores", ("gm", "wm")))
    chance = np.where(words == "patient", cells["group=patient"], cells["group=control"])
    row = line(found, "scores: group", "gm + wm")
    assert np.isclose(row["unexplained"], np.log(chance).sum() / np.log(p).sum())
    assert np.isclose(row["accuracy"], (chance > 0.5).mean())
    assert np.isclose(row["base_rate"], (p > 0.5).mean())
    assert set(found.table["way"]) >= {"PLS", "logistic", "PCA of equal size", SHARED}
    write_finding(found, tmp_path)
    again = read_finding(tmp_path)
    pd.testing.assert_frame_equal(again.table, found.table, check_dtype=False)
    assert found.data.identical(again.data)


def test_a_model_that_overshoots_is_said_to_be_worse_first(pair):
    kinds, folds = pair
    found = multimodal(kinds, model_says(kinds, folds, scale=2.5), folds, **QUICK)
    assert found.answer.startswith("The joint model predicts worse than the best simple regression: gm from wm (")
    assert "may be age" in " ".join(found.caveats)
    assert "In 1 of 3 models the networks added nothing" in " ".join(found.caveats)


def test_a_model_that_knows_the_truth_is_said_to_be_better(pair):
    kinds, folds = pair
    told = [
        replace(one, said=0.1 * one.said) if isinstance(one.said, np.ndarray) else one
        for one in model_says(kinds, folds)
    ]
    found = multimodal(kinds, told, folds, **QUICK)
    row = line(found, "gm", "wm")
    assert row["q_difference"] < 0.05
    assert row["difference"] < 0
    assert found.answer.startswith("The joint model predicts better than the best simple regression: gm from wm (")
    assert "and so shared: gm" in found.answer


def test_more_that_harms_is_said(study):
    kinds, folds, _, good = study
    bad = multimodal(kinds, model_says(kinds, folds, harm=True), folds, alpha=0.1, **QUICK)
    assert "Looking at more kinds was nowhere shown to harm." in good.answer
    assert "it harms: gm from wm + scores rather than" in bad.answer
    one = good.data
    gm = np.flatnonzero(one["step_target"].values == "gm")
    names = zip(one["step_fewer"].values[gm], one["step_more"].values[gm], strict=True)
    steps = dict(zip(names, one["step_change"].values[gm], strict=True))
    assert set(steps) == {("", "wm"), ("", "scores"), ("wm", "wm + scores"), ("scores", "wm + scores")}
    assert np.isclose(steps["", "wm"] + steps["wm", "wm + scores"], line(good, "gm", "wm + scores")["unexplained"] - 1)


def test_scans_that_lack_something_take_part_where_they_can(rng):
    kinds, folds = kinds_of(rng), folds_of()[:1]
    test, number = folds[0].rows("test"), np.arange(N)
    no_wm, no_scores, no_bdi = number < 6, (number >= 9) & (number < 13), (number >= 9) & (number < 16)
    kinds["wm"][no_wm] = np.nan
    kinds["scores"].loc[no_scores] = None
    kinds["scores"].loc[no_bdi, "bdi"] = np.nan
    found = multimodal(kinds, model_says(kinds, folds), folds, **QUICK)
    for target, sources, scans, lacking in (
        ("gm", "wm + scores", "all of these", no_wm | no_scores),
        ("gm", "wm + scores", "any of these", no_wm & no_scores),
        ("gm", "wm", "all of these", no_wm),
        ("wm", "gm + scores", "all of these", no_wm | no_scores),
        ("scores: bdi", "gm + wm", "all of these", no_wm | no_bdi),
        ("scores: group", "gm + wm", "all of these", no_wm | no_scores),
    ):
        assert line(found, target, sources, scans=scans)["n_scans"] == (test & ~lacking).sum()


def test_too_few_people_to_learn_from_are_said(pair):
    kinds, folds = pair
    kinds["wm"][11:] = np.nan
    found = multimodal(kinds, model_says(kinds, folds), folds, **QUICK)
    row = line(found, "gm", "wm")
    assert "people to learn from" in row["note"]
    assert np.isnan(row["unexplained"])
    assert found.data["step_change"].size == 0


def test_too_few_people_to_judge_by_are_not_judged(pair):
    kinds, folds = pair
    rare = folds[0].parts.assign(
        part=np.where(np.arange(N) < 8, "test", folds[0].parts["part"].replace("test", "train"))
    )
    found = multimodal(kinds, model_says(kinds, [replace(folds[0], parts=rare)]), [replace(folds[0], parts=rare)])
    assert found.not_run == "only 8 unseen people to judge by; 10 are needed"


def test_the_rival_has_the_smallest_error_inside_and_is_no_line_of_the_training_part():
    drawn = np.zeros((1, 1))
    others = {"ridge": Spoken(drawn, 2.0), "PLS": Spoken(drawn, 1.0), "ridge, training part only": Spoken(drawn, 0.5)}
    assert best_of(others)[0] == "PLS"


def test_regressions_learn_from_validation_scans_too(study):
    kinds, folds, _, _ = study
    new, moved = folds[0].rows("test"), kinds["gm"] + 50.0 * folds[0].rows("validation")[:, None]
    one, other = (simply_told(kinds | {"gm": gm}, "gm", ("wm",), folds[0], new, seed=0) for gm in (kinds["gm"], moved))
    share = folds[0].rows("validation").sum() / folds[0].rows("train", "validation").sum()
    assert np.isclose((other - one).mean(), 50 * share, rtol=0.5)


def test_people_are_the_unit(rng):
    """The same scans twice tell no more than once."""
    ours, theirs, base = rng.exponential(1, (3, 30)) + np.array([[1.0], [1.2], [2.0]])
    people = np.arange(30).astype(str)
    once = paired(ours, theirs, base, people, n_folds=5, seed=0)
    twice = paired(*np.repeat([ours, theirs, base], 2, axis=1), np.repeat(people, 2), n_folds=5, seed=0)
    assert np.isclose(once.difference, twice.difference)
    assert np.allclose([once.low, once.high, once.p_value], [twice.low, twice.high, twice.p_value])
    assert np.isclose(once.difference, (ours - theirs).sum() / base.sum())
    alone = paired(ours, theirs, base, people, n_folds=1, seed=0)
    assert np.isclose((once.high - once.low) / (alone.high - alone.low), np.sqrt(1 + 5 / 4))
    assert once.p_value > alone.p_value
    assert paired(base * (1 + 1e-7), base, base, people, n_folds=1, seed=0).p_value == 1.0
    sure = paired(base - 0.5, base, base, people, n_folds=1, seed=0, n_flips=999)
    assert sure.p_value == 0.001


def test_repeated_scans_of_a_person_stay_together(pair):
    subjects = pd.Index(np.repeat([f"p{i:02d}" for i in range(N // 2)], 2))
    folds, kinds = folds_of(subjects, names=("gm", "wm")), pair[0]
    found = multimodal(kinds, model_says(kinds, folds), folds, **QUICK)
    assert (found.n_scans, found.n_subjects) == (N, N // 2)
    assert (found.table["n_subjects"] == N // 2).all()


def test_what_is_refused(study):
    kinds, folds, told, _ = study
    leaky = folds[0].parts.copy()
    leaky["subject_id"] = [*leaky["subject_id"][:-1], leaky["subject_id"].iloc[0]]
    leaky.iloc[-1, 1] = "train" if leaky.iloc[0, 1] == "test" else "test"
    with pytest.raises(LeakageError, match="of fold 0 and in another"):
        multimodal(kinds, told, [replace(folds[0], parts=leaky)])
    with pytest.raises(LeakageError, match="test part of 2 folds"):
        multimodal(kinds, told, [folds[0], folds[0]])
    with pytest.raises(SettingError, match="other scans than the first"):
        multimodal(kinds, told, [folds[0], replace(folds[1], parts=folds[1].parts.iloc[::-1])])
    with pytest.raises(SettingError, match="47 rows for 48 scans"):
        multimodal(kinds | {"gm": kinds["gm"][1:]}, told, folds)
    with pytest.raises(SettingError, match="told nothing of gm of scan s00 from wm"):
        multimodal(kinds, [one for one in told if one.sources != ("wm",)], folds)
    with pytest.raises(SettingError, match="Give two kinds"):
        multimodal({"gm": kinds["gm"]}, told, folds)


@pytest.mark.slow
@pytest.mark.parametrize("shared", [0.0, 3.0])
def test_what_is_shared_is_found_and_what_is_not_is_not(rng, shared):
    """Of cohorts whose kinds have nothing in common, no more than one in twenty is said to share something."""
    n_cohorts = 60
    said = 0
    for _ in range(n_cohorts):
        kinds, folds = kinds_of(rng, shared=shared), folds_of(names=("gm", "wm"))
        del kinds["scores"]
        found = multimodal(kinds, model_says(kinds, folds), folds, **QUICK)
        said += "and so shared" in found.answer
    assert said >= 0.95 * n_cohorts if shared else said <= 0.05 * n_cohorts + 2 * np.sqrt(n_cohorts * 0.05 * 0.95)


def test_seed_and_settings_are_used(pair):
    kinds, folds = pair
    told = model_says(kinds, folds)
    one, other = (multimodal(kinds, told, folds, seed=seed, **QUICK) for seed in (0, 1))
    assert np.isclose(line(one, "gm", "wm")["unexplained"], line(other, "gm", "wm")["unexplained"])
    assert line(one, "gm", "wm")["low"] != line(other, "gm", "wm")["low"]
    assert MEAN not in set(one.table["way"])
    strict = multimodal(kinds, told, folds, alpha=0.5, smoothing_mm=8.0, **QUICK)
    wide, narrow = (line(found, "gm", "wm") for found in (one, strict))
    for name in ("", "difference_"):
        assert narrow[f"{name}high"] - narrow[f"{name}low"] < 0.6 * (wide[f"{name}high"] - wide[f"{name}low"])
    assert "smoothed by 8 mm" in " ".join(strict.caveats)
