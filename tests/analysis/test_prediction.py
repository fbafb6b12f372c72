from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from nilatent.analysis.contrast import confound_matrix
from nilatent.analysis.prediction import PredictionConfig, prediction
from nilatent.analysis.prediction.sets import FeatureSet, covariate_set
from nilatent.errors import LeakageError, SettingError
from nilatent.finding import read_finding, write_finding

N = 80
FOLDS = np.arange(N) % 5
FAST = PredictionConfig(targets=("group",), n_permutations=39, n_bootstrap=100, n_inner=3)


@pytest.fixture
def scans(rng):
    index = pd.Index([f"s{i:02d}" for i in range(N)], name="scan_id")
    severe = rng.permutation(np.arange(N) % 4)
    return pd.DataFrame(
        {
            "subject_id": index,
            "group": np.where(rng.permutation(N) < 36, "AD", "CN"),
            "sex": np.where(rng.uniform(size=N) < 0.5, "F", "M"),
            "age": rng.normal(70, 6, N),
            "stage": np.array(["CN", "sMCI", "pMCI", "AD"])[severe],
            "site": rng.choice(["x", "y"], N),
            "head_size_factor": rng.normal(1, 0.1, N),
            "gm_ml": rng.normal(600, 40, N),
        },
        index=index,
    )


def features(rng, signal, *, name="latents", baseline=False, strength=1.5, n_features=4):
    x = rng.standard_normal((N, n_features))
    x[:, 0] += strength * signal
    return FeatureSet(name, (x,), None, baseline)


def run(sets, scans, config=FAST, folds=FOLDS, **changes):
    return prediction(sets, scans, folds, config, **changes)


def rows(found, **where):
    table = found.table
    for column, value in where.items():
        table = table[table[column] == value]
    return table


def test_a_planted_effect_is_found_and_beats_a_baseline_without_it(rng, scans):
    is_case = (scans["group"] == "AD").to_numpy()
    sets = [features(rng, is_case, strength=3), features(rng, 0 * is_case, name="regions", baseline=True)]
    found = run(sets, scans)
    latents = rows(found, features="latents", head_size="as it is").iloc[0]
    assert latents["value"] > 0.75
    assert latents["low"] > 0.6
    assert latents["p"] == 1 / 40
    assert latents["against"] == "regions"
    assert latents["difference"] == pytest.approx(latents["value"] - rows(found, features="regions").iloc[0]["value"])
    assert latents["p_difference"] < 0.01
    assert found.answer.startswith("The latents beat the best baseline: group (balanced accuracy")
    assert rows(found, features="regions").iloc[0]["p"] > 0.05
    assert rows(found, features="regions").iloc[0]["n_permutations"] <= 39


def test_the_first_sentence_says_that_latents_do_not_beat_the_baseline(rng, scans):
    is_case = (scans["group"] == "AD").to_numpy()
    sets = [features(rng, 0 * is_case), features(rng, is_case, name="regions", baseline=True, strength=3)]
    found = run(sets, scans)
    assert found.answer.startswith("The latents predict worse than the best baseline: group")
    same = replace(sets[1], name="latents", baseline=False)
    found = run([same, sets[1]], scans)
    assert found.answer.startswith("The latents do not beat the best baseline: group")
    assert rows(found, features="latents").iloc[0]["p_difference"] == 1


def test_an_effect_of_head_size_goes_away_with_head_size(rng, scans):
    scans["head_size_factor"] += 0.4 * (scans["sex"] == "M")
    x = rng.standard_normal((N, 5)) + 12 * scans[["head_size_factor"]].to_numpy()
    found = run([FeatureSet("latents", (x,), None, False)], scans, replace(FAST, targets=("sex",)))
    plain, without = (rows(found, head_size=way).iloc[0] for way in ("as it is", "without head size"))
    assert plain["value"] > 0.85
    assert without["value"] < 0.7
    assert found.settings["head_size_columns"] == ("head_size_factor", "gm_ml")
    alone = run(
        [FeatureSet("latents", (x,), None, False)], scans, replace(FAST, targets=("sex",), adjust_head_size=False)
    )
    assert alone.table["head_size"].tolist() == ["as it is"]
    scans.loc["s05", "head_size_factor"] = np.nan
    unknown = run([FeatureSet("latents", (x,), None, False)], scans, replace(FAST, targets=("sex",)))
    assert any("known of 80 of 80" in caveat or "known of 79 of 80" in caveat for caveat in unknown.caveats)


def test_several_targets_of_every_kind_and_back_from_disk(rng, scans, tmp_path):
    level = pd.Index(["CN", "sMCI", "pMCI", "AD"]).get_indexer(scans["stage"])
    x = np.column_stack([level + rng.standard_normal(N), scans["age"] + rng.standard_normal(N), rng.standard_normal(N)])
    config = replace(FAST, targets=("stage", "age", "group"), ordinal={"stage": "CN,sMCI,pMCI,AD"}, n_permutations=9)
    found = run([FeatureSet("latents", (x,), None, False), covariate_set(scans, ["age", "sex"])], scans, config)
    stage, age = (
        rows(found, target=name, features="latents", head_size="as it is").iloc[0] for name in ("stage", "age")
    )
    assert (stage["main"], age["main"]) == ("kendall_tau", "r2")
    assert stage["value"] > 0.4
    assert stage["level_error"] < stage["level_error_constant"]
    assert age["value"] > 0.8
    assert age["mae"] < age["mae_constant"]
    assert rows(found, target="age", features="covariates").iloc[0]["value"] < 0.2
    assert stage["by_class"].count("[") == 4
    write_finding(found, tmp_path)
    again = read_finding(tmp_path)
    pd.testing.assert_frame_equal(again.table, found.table, check_dtype=False)
    np.testing.assert_array_equal(again.data["score"], found.data["score"])


@pytest.mark.parametrize("heads", [("linear",), pytest.param(("linear", "svm"), marks=pytest.mark.slow)])
def test_latents_are_compared_with_the_best_baseline_of_the_same_question(rng, scans, heads):
    at, age = (scans["sex"] == "M").to_numpy(), (scans["age"] - 70).to_numpy() / 6
    scans["head_size_factor"] += 0.3 * at
    sets = [
        features(rng, at, strength=1.0),
        features(rng, scans["head_size_factor"].to_numpy(), name="regions", baseline=True, strength=20),
        features(rng, age, name="tissue", baseline=True, strength=0.8),
    ]
    found = run(sets, scans, replace(FAST, targets=("sex", "age"), n_permutations=0, heads=heads))
    against = []
    for _, row in rows(found, features="latents").iterrows():
        rivals = rows(found, target=row["target"], head_size=row["head_size"], head=row["head"], baseline=True)
        best = rivals.loc[rivals["value"].idxmax()]
        assert (row["against"], row["value"] - row["difference"]) == (best["features"], pytest.approx(best["value"]))
        against.append(row["against"])
    assert set(against) == {"regions", "tissue"}


def test_arrays_hold_what_the_table_says(rng, scans):
    scans.loc["s07", "group"] = np.nan
    is_case = (scans["group"] == "AD").to_numpy()
    found = run([features(rng, is_case)], scans, replace(FAST, targets=("group", "age")))
    data, table = found.data, found.table
    assert data.sizes["row"] == len(table) == 4
    for number, row in table.iterrows():
        truth, called = data["truth"].values[number], data["called"].values[number]
        assert np.isnan(truth).sum() == (row["target"] == "group")
        if row["kind"] == "binary":
            confusion = data["confusion"].values[number]
            assert confusion[1, 1] == np.nansum((truth == 1) & (called == 1))
            np.testing.assert_allclose(np.diag(confusion) / confusion.sum(axis=1), data["recall"].values[number])
            area = np.trapezoid(data["found"].values[number], data["false_alarms"].values)
            assert abs(area - row["auc"]) < 0.02
            assert data["bin_count"].values[number].sum() == 79
        else:
            np.testing.assert_array_equal(data["score"].values[number, :, 0], called)
        position = data["measure"].values.tolist().index(row["main"])
        assert data["value"].values[number, position] == row["value"]
        assert data["low"].values[number, position] == row["low"]
    assert any("no value of group: 1 scans" in caveat for caveat in found.caveats)
    assert found.settings["left_out"]["group"] == {"no value of group": ["s07"]}


def test_an_encoder_that_saw_test_subjects_is_refused(rng, scans):
    seen = np.array([fold != FOLDS for fold in range(5)])
    x = tuple(rng.standard_normal((N, 3)) for _ in range(5))
    latents = FeatureSet("latents", x, seen, False)
    assert not run([latents], scans, replace(FAST, n_permutations=0)).not_run
    with pytest.raises(LeakageError, match="has seen subject s00"):
        run([replace(latents, seen=~seen)], scans)
    scans.loc["s01", "subject_id"] = "s00"
    with pytest.raises(LeakageError, match="2 folds"):
        run([replace(latents, seen=None)], scans)


def test_a_target_hidden_in_a_covariate_is_not_judged(rng, scans):
    scans["diagnosis"] = scans["group"].map({"AD": 7, "CN": 3})
    config = replace(FAST, targets=("group", "age"), n_permutations=0)
    scans["birth"] = 2020 - scans["age"]
    sets = [features(rng, 0), covariate_set(scans, ["sex", "diagnosis", "birth"])]
    found = run(sets, scans, config)
    assert rows(found, features="covariates").empty
    assert "feature diagnosis is the target under another name" in found.settings["refused"]["group from covariates"]
    assert "feature birth" in found.settings["refused"]["age from covariates"]
    assert any("Not judged: group from covariates" in caveat for caveat in found.caveats)


def test_the_site_is_predicted_from_the_same_features(rng, scans):
    at_x = (scans["site"] == "x").to_numpy()
    config = replace(FAST, site="site")
    found = run([features(rng, at_x, strength=3)], scans, config)
    known = rows(found, target="site", head_size="as it is").iloc[0]
    assert known["question"] == "what the features know of the site"
    assert known["value"] > 0.8
    assert known["p"] == 1 / 40
    assert "The site is told from the latents with a balanced accuracy of" in found.answer
    harmonised = run([features(rng, at_x, strength=3)], scans, replace(config, harmonise=True, covariates=("age",)))
    assert rows(harmonised, target="site", head_size="as it is").iloc[0]["value"] > 0.8


def test_harmonisation_takes_a_site_out_that_hides_the_effect(rng, scans):
    at_x, is_case = (scans["site"] == "x").to_numpy(), (scans["group"] == "AD").to_numpy()
    x = rng.standard_normal((N, 2)) + 12 * at_x[:, None]
    x[:, 0] += 2.5 * is_case
    sets = [FeatureSet("latents", (x[:, :1],), None, False), FeatureSet("two", (x,), None, False)]
    config = replace(FAST, site="site", n_permutations=0, adjust_head_size=False)
    hidden, shown = (
        rows(run(sets, scans, replace(config, harmonise=how)), features="latents", target="group").iloc[0]["value"]
        for how in (False, True)
    )
    assert shown > 0.8
    assert hidden < shown - 0.05


def test_labels_are_shuffled_within_sites(rng, scans):
    # Group and site go together: what the features know of the site must not pass for knowledge of the group.
    scans["site"] = np.where((scans["group"] == "AD") ^ (rng.uniform(size=N) < 0.2), "x", "y")
    at_x = (scans["site"] == "x").to_numpy()
    latents = features(rng, at_x, strength=4)
    config = replace(FAST, adjust_head_size=False)
    assert rows(run([latents], scans, config), target="group").iloc[0]["p"] == 1 / 40
    assert rows(run([latents], scans, replace(config, site="site")), target="group").iloc[0]["p"] > 0.05


def test_conversion_has_harrells_c(rng, scans):
    risk = rng.standard_normal(N)
    scans["conversion"] = np.where(risk + 0.5 * rng.standard_normal(N) > 0, "pMCI", "sMCI")
    scans["years"] = np.exp(-risk) + 0.2 * rng.uniform(size=N)
    config = replace(FAST, targets=("conversion",), times={"conversion": "years"}, ordinal={"conversion": "sMCI,pMCI"})
    found = run([features(rng, risk)], scans, config)
    assert found.table.iloc[0]["c_index"] > 0.7
    with pytest.raises(SettingError, match="no column 'months' of the time"):
        run([features(rng, risk)], scans, replace(config, times={"conversion": "months"}))


def test_the_share_found_of_a_rare_third_stage(rng, scans):
    stage = np.repeat([0, 1, 2], [40, 30, 10])
    scans["stage3"] = np.array(["early", "mid", "late"])[stage]
    config = replace(FAST, targets=("stage3",), ordinal={"stage3": "early,mid,late"}, adjust_head_size=False)
    found = run([features(rng, stage, strength=2.0)], scans, config)
    recall, low, high = (found.data[name].values[0] for name in ("recall", "recall_low", "recall_high"))
    assert recall[2] > 0.6
    assert high[2] - low[2] > high[0] - low[0]
    assert f"late {recall[2]:.2f} [{low[2]:.2f}, {high[2]:.2f}] of 10" in found.table["by_class"].iloc[0]


def test_sessions_of_a_subject_stay_together_and_are_no_independent_scans(rng, scans):
    scans["subject_id"] = np.repeat([f"p{i}" for i in range(40)], 2)
    scans["group"] = np.repeat(np.where(np.arange(40) % 2, "AD", "CN"), 2)
    folds = np.repeat(np.arange(40) // 2 % 5, 2)
    x = np.repeat(rng.standard_normal((40, 30)), 2, axis=0) + 0.05 * rng.standard_normal((N, 30))
    found = run([FeatureSet("latents", (x,), None, False)], scans, folds=folds)
    assert (found.n_scans, found.n_subjects) == (80, 40)
    assert found.table.iloc[0]["p"] > 0.05
    assert found.table.iloc[0]["badge"] == "not assessed"


def test_the_network_judges_sets_with_a_grid(rng, scans):
    is_case = (scans["group"] == "AD").to_numpy()

    def network(train_x, train_y, test_x, target):
        apart = train_x[train_y == 1].mean(axis=0) - train_x[train_y == 0].mean(axis=0)
        share = 1 / (1 + np.exp(-(test_x - train_x.mean(axis=0)) @ apart))
        return np.column_stack([1 - share, share])

    spatial = replace(features(rng, is_case, n_features=8), grid=(1, 2, 2, 2))
    regions = features(rng, 0, name="regions", baseline=True)
    config = replace(FAST, heads=("linear", "network"), adjust_head_size=False)
    found = run([spatial, regions], scans, config, network=network)
    assert found.table[["features", "head"]].to_numpy().tolist() == [
        ["latents", "linear"], ["latents", "network"], ["regions", "linear"],
    ]  # fmt: skip
    row = rows(found, head="network").iloc[0]
    assert row["value"] > 0.7
    assert (np.isnan(row["p"]), row["badge"], row["against"]) == (True, "not assessed", "regions")
    with pytest.raises(SettingError, match="no network was handed in"):
        run([spatial], scans, config)


def test_the_same_seed_gives_the_same_finding_and_settings_matter(rng, scans):
    is_case = (scans["group"] == "AD").to_numpy()
    sets = [features(rng, is_case, strength=0.7)]
    first, again = run(sets, scans), run(sets, scans)
    pd.testing.assert_frame_equal(first.table, again.table)
    other = run(sets, scans, replace(FAST, seed=1))
    assert (other.table["low"] != first.table["low"]).any()
    wide = run(sets, scans, replace(FAST, alpha=0.5))
    assert (wide.table["high"] < first.table["high"]).all()
    more = run(sets, scans, replace(FAST, n_inner=5))
    assert (more.data["score"] != first.data["score"]).any()
    whole = run(sets, scans, replace(FAST, n_stop=0))
    assert (whole.table["n_permutations"] == 39).all()


def test_what_cannot_be_asked_is_not_run(rng, scans):
    found = run([features(rng, 0)], scans, replace(FAST, targets=("iq",)))
    assert found.not_run == "iq: no column 'iq'"
    with pytest.raises(SettingError):
        run([features(rng, 0)], scans, replace(FAST, site="hospital"))


def test_confounds_of_the_cohort_are_the_covariates(scans):
    np.testing.assert_array_equal(
        covariate_set(scans, ["sex", "age"]).by_fold[0], confound_matrix(scans, ["sex", "age"])
    )


@pytest.mark.slow
@pytest.mark.calibration
def test_shuffled_labels_are_predicted_at_chance():
    n, accuracies, areas, p_values = 40, [], [], []
    config = PredictionConfig(targets=("group",), n_permutations=39, n_stop=0, n_bootstrap=100, n_inner=3)
    for seed in range(200):
        rng = np.random.default_rng(seed)
        index = pd.Index([f"s{i:02d}" for i in range(n)], name="scan_id")
        group = rng.permutation(np.repeat(["CN", "AD"], [24, 16]))
        shuffled = pd.DataFrame({"subject_id": index, "group": group}, index=index)
        noise = FeatureSet("latents", (rng.standard_normal((n, 5)),), None, baseline=False)
        row = prediction([noise], shuffled, rng.permutation(np.arange(n) % 5), config).table.iloc[0]
        accuracies.append(row["value"])
        areas.append(row["auc"])
        p_values.append(row["p"])
    for values in (accuracies, areas):
        assert abs(np.mean(values) - 0.5) < 1.96 * np.std(values) / np.sqrt(200)
    # 5 % of 200, with the binomial interval of 99 %; ties of the accuracy make the test a little strict.
    assert np.sum(np.array(p_values) <= 0.05) <= 18


def test_where_labels_cannot_change_places_nothing_is_tested(rng, scans):
    is_case = (scans["group"] == "AD").to_numpy()
    scans["site"] = np.where(is_case, "x", "y")
    found = run([features(rng, is_case, strength=6)], scans, replace(FAST, site="site"))
    row = rows(found, target="group", head_size="as it is").iloc[0]
    assert row["value"] > 0.9
    assert np.isnan(row["p"])
    assert "Not tested against chance: group" in found.answer


@pytest.mark.parametrize("constant", [0.1, 1.7, 1234.567])
def test_a_constant_feature_is_not_taken_for_the_target(rng, scans, constant):
    is_case = (scans["group"] == "AD").to_numpy()
    one = features(rng, is_case, strength=3)
    x = np.column_stack([one.by_fold[0], np.full(N, constant)])
    found = run([FeatureSet("regions", (x,), None, True)], scans)
    assert rows(found, head_size="as it is")["value"].iloc[0] > 0.7
    assert not found.settings["refused"]


def test_with_harmonisation_a_scan_without_site_or_covariate_is_left_out_alone(rng, scans):
    is_case = (scans["group"] == "AD").to_numpy()
    scans.loc[scans.index[3], "age"], scans.loc[scans.index[5], "site"] = np.nan, None
    config = replace(FAST, site="site", covariates=("age",), harmonise=True)
    found = run([features(rng, is_case, strength=3)], scans, config)
    assert (rows(found, target="group")["n_scans"] == N - 2).all()


def test_few_numbers_are_numbers_when_it_is_said(rng, scans):
    scans["mmse"] = rng.integers(24, 31, N).astype(float)
    x = scans[["mmse"]].to_numpy() + 0.5 * rng.standard_normal((N, 2))
    sets = [FeatureSet("latents", (x,), None, False)]
    plain = replace(FAST, targets=("mmse",), n_permutations=0, adjust_head_size=False)
    assert set(run(sets, scans, plain).table["kind"]) == {"multi-class"}
    told = run(sets, scans, replace(plain, numbers=("mmse",))).table.iloc[0]
    assert (told["kind"], told["r2"] > 0.7) == ("continuous", True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"times": {"conversion": "age"}}, "times names 'conversion', which is no target"),
        ({"times": {"group": "years"}}, "no column 'years'"),
        ({"ordinal": {"stag": "a,b,c"}}, "names 'stag'"),
        ({"numbers": ("mmse",)}, "names 'mmse'"),
    ],
)
def test_names_that_are_nothing_are_refused_before_anything_is_fitted(rng, scans, change, words):
    with pytest.raises(SettingError, match=words):
        run([features(rng, np.zeros(N))], scans, replace(FAST, **change))


def test_head_size_is_not_predicted_without_itself(rng, scans):
    x = scans[["gm_ml"]].to_numpy() + rng.standard_normal((N, 2))
    found = run([FeatureSet("latents", (x,), None, False)], scans, replace(FAST, targets=("gm_ml",)))
    assert set(found.table["head_size"]) == {"as it is"}
