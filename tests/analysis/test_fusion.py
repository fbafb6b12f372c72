from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from nilatent.analysis.fusion import FusionConfig, fusion
from nilatent.analysis.fusion.ways import AVERAGE, EARLY, INSIDE, JOINT, PRESENT, PRESENT_SINGLE, SINGLE, STACKED
from nilatent.analysis.prediction import PredictionConfig, prediction
from nilatent.analysis.prediction.sets import FeatureSet
from nilatent.analysis.stats import fdr
from nilatent.errors import LeakageError, SettingError
from nilatent.finding import read_finding, write_finding

N = 80
FOLDS = np.arange(N) % 4
FAST = FusionConfig(targets=("score",), n_inner=3, n_draws=99, n_bootstrap=200)


@pytest.fixture
def scans(rng):
    """What two modalities see in part: a score of two causes, an age of the first, and a group of neither."""
    f, g = rng.standard_normal((2, N))
    index = pd.Index([f"s{i:02d}" for i in range(N)], name="scan_id")
    return pd.DataFrame(
        {
            "subject_id": index,
            "f": f,
            "g": g,
            "score": f + g + 0.3 * rng.standard_normal(N),
            "age": 70 + 5 * f + rng.standard_normal(N),
            "group": rng.permutation(np.repeat(["AD", "CN"], N // 2)),
        },
        index=index,
    )


@pytest.fixture
def sets(rng, scans):
    def seen(cause, wide):
        return np.column_stack([scans[cause] + 0.3 * rng.standard_normal(N), rng.standard_normal((N, wide))])

    return [
        FeatureSet("image", (seen("f", 3),), None, False),
        FeatureSet("blood", (seen("g", 1),), None, False),
    ]


def way(found, name, target="score"):
    table = found.table
    return table[(table["target"] == target) & (table["way"] == name)].iloc[0]


def modality(found, name, target="score"):
    table = found.table
    return table[(table["target"] == target) & (table["way"] == SINGLE) & (table["features"] == name)].iloc[0]


def test_two_causes_in_two_modalities_are_told_better_together(scans, sets):
    found = fusion(sets, None, scans, FOLDS, FAST)
    assert found.answer.startswith("Together they tell more than the best single modality: score (")
    for name in (EARLY, STACKED):
        row = way(found, name)
        assert row["value"] > way(found, INSIDE)["value"] + 0.2
        assert row["difference"] == pytest.approx(row["value"] - way(found, INSIDE)["value"])
        assert row["q_difference"] <= 0.05
        assert 0 < row["difference_low"] < row["difference"] < row["difference_high"]
    for name in ("image", "blood"):
        row = modality(found, name)
        assert row["conditional"] > 0.2
        assert row["p_conditional"] <= 0.05
        assert 0 < row["weight"] < 2
    assert "What the others lack of score is carried by" in found.answer
    assert found.table["value"].head(2).tolist() == [way(found, EARLY)["value"], way(found, STACKED)["value"]]
    assert modality(found, "image")["folds_chosen"] + modality(found, "blood")["folds_chosen"] == 4


def test_no_gain_is_said_first(scans, sets):
    found = fusion(sets, None, scans, FOLDS, replace(FAST, targets=("age",)))
    assert found.answer.startswith(
        "That several modalities together tell more than the best single one is not shown: age"
    )
    assert "is carried by image" in found.answer
    assert "not shown of blood" in found.answer
    assert way(found, INSIDE, "age")["features"] == "image (4 of 4 folds)"
    assert way(found, INSIDE, "age")["value"] == modality(found, "image", "age")["value"]


def test_what_tells_nothing_is_called_so(scans, sets):
    found = fusion(sets, None, scans, FOLDS, replace(FAST, targets=("group",)))
    assert "neither told from chance" in found.answer
    assert way(found, EARLY, "group")["chance"] == 0.5


def test_single_rows_are_those_of_the_prediction(scans, sets):
    config = replace(FAST, targets=("score", "age"))
    found = fusion(sets, None, scans, FOLDS, config)
    settings = PredictionConfig(
        targets=config.targets, n_inner=3, n_permutations=0, n_bootstrap=200, adjust_head_size=False
    )
    other = prediction(sets, scans, FOLDS, settings).table
    for _, row in other.iterrows():
        mine = modality(found, row["features"], row["target"])
        assert mine[["value", "low", "high"]].tolist() == pytest.approx(row[["value", "low", "high"]].tolist())


def test_joint_latents_are_judged_beside_and_their_absence_is_said(scans, sets):
    joint = FeatureSet("both", (np.hstack([one.by_fold[0] for one in sets]),), None, False)
    row = way(fusion(sets, joint, scans, FOLDS, FAST), JOINT)
    assert row["features"] == "both"
    assert row["value"] > 0.5
    assert row["against"] == INSIDE
    joint.by_fold[0][:5] = np.nan
    fewer = fusion(sets, joint, scans, FOLDS, FAST).table.set_index("way")
    assert (fewer.loc[[SINGLE, EARLY, JOINT], "n_scans"] == N - 5).all()
    without = fusion(sets, None, scans, FOLDS, FAST)
    assert np.isnan(way(without, JOINT)["value"])
    assert way(without, JOINT)["note"] == "not run: no model of all modalities together was handed in"
    assert any(caveat.startswith("No joint latents for score") for caveat in without.caveats)


def test_scans_that_lack_a_modality_are_counted_and_told_from_the_other(rng, scans, sets):
    x = sets[1].by_fold[0].copy()
    x[rng.choice(N, 15, replace=False)] = np.nan
    found = fusion([sets[0], replace(sets[1], by_fold=(x,))], None, scans, FOLDS, FAST)
    table = found.table.set_index("way")
    assert (table.loc[[SINGLE, EARLY, AVERAGE, STACKED, INSIDE], "n_scans"] == N - 15).all()
    assert table.loc[[PRESENT, PRESENT_SINGLE], "n_scans"].tolist() == [N, N]
    assert table.loc[PRESENT, "note"] == "of 80 scans 15 lack a modality"
    assert table.loc[PRESENT, "against"] == PRESENT_SINGLE
    assert found.n_scans == N
    assert found.settings["modalities"] == {"image": N, "blood": N - 15}
    assert len(found.settings["left_out"]["score"]["a feature is missing"]) == 15
    row = found.table.index[found.table["way"] == PRESENT][0]
    assert np.isfinite(found.data["called"].values[row]).all()
    assert PRESENT not in set(fusion(sets, None, scans, FOLDS, FAST).table["way"])


def test_rates_are_over_all_differences_of_the_table(scans, sets):
    table = fusion(sets, None, scans, FOLDS, replace(FAST, targets=("score", "age"))).table
    compared = table[table["p_difference"].notna()]
    assert compared["way"].value_counts().to_dict() == {EARLY: 2, AVERAGE: 2, STACKED: 2}
    np.testing.assert_allclose(compared["q_difference"], fdr(compared["p_difference"].to_numpy()))
    assert table.loc[~table.index.isin(compared.index), "q_difference"].isna().all()
    single = table[table["way"] == SINGLE]
    assert len(single) == 4
    np.testing.assert_allclose(single["q_conditional"], fdr(single["p_conditional"].to_numpy()))


def test_a_modality_that_defines_the_target_takes_no_part(scans, sets):
    config = replace(FAST, targets=("age", "score"), barred={"image": "age, f"})
    three = [*sets, FeatureSet("gait", (sets[0].by_fold[0][:, 1:],), None, False)]
    joint = FeatureSet("joint", (sets[0].by_fold[0],), None, False)
    found = fusion(three, joint, scans, FOLDS, config)
    of_age = found.table[found.table["target"] == "age"]
    assert set(of_age.loc[of_age["way"] == SINGLE, "features"]) == {"blood", "gait"}
    assert of_age["value"].max() < 0.3
    assert found.settings["refused"] == {"age from image": "it defines what is predicted"}
    assert way(found, JOINT, "age")["note"].startswith("not run: the joint latents know image")
    assert way(found, JOINT, "score")["value"] > 0.2
    alone = fusion(sets, None, scans, FOLDS, replace(config, targets=("age",)))
    assert "1 modality may tell it, and two at least are needed" in alone.not_run


def test_the_target_is_never_among_the_features(scans, sets):
    table = FeatureSet("table", (scans[["age", "g"]].to_numpy(),), None, False, columns=("age", "g"))
    config = replace(FAST, targets=("age",))
    found = fusion([sets[0], table], sets[1], scans, FOLDS, config)
    assert modality(found, "table", "age")["value"] < 0.3
    assert way(found, JOINT, "age")["note"].startswith("not run: the joint latents know table")
    renamed = FeatureSet("renamed", (scans[["age"]].to_numpy() * 12,), None, False)
    told = fusion([*sets, renamed], None, scans, FOLDS, config)
    assert "the target under another name" in told.settings["refused"]["age from renamed"]
    assert "renamed" not in set(told.table["features"])
    only = FeatureSet("only", (scans[["age"]].to_numpy(),), None, False, columns=("age",))
    told = fusion([*sets, only], None, scans, FOLDS, config)
    assert told.settings["refused"]["age from only"] == "it holds nothing but what is predicted"


def test_an_encoder_that_saw_who_is_judged_is_refused(scans, sets):
    seen = FOLDS[None] != np.arange(4)[:, None]
    fusion([replace(sets[0], seen=seen), sets[1]], None, scans, FOLDS, FAST)
    seen[2, 2] = True
    with pytest.raises(LeakageError, match="s02"):
        fusion([replace(sets[0], seen=seen), sets[1]], None, scans, FOLDS, FAST)
    with pytest.raises(LeakageError, match="s02"):
        fusion(sets, replace(sets[0], name="joint", seen=seen), scans, FOLDS, FAST)


def test_what_cannot_be_asked_is_not_run(scans, sets):
    assert "two at least" in fusion(sets[:1], None, scans, FOLDS, FAST).not_run
    assert "no column 'x'" in fusion(sets, None, scans, FOLDS, replace(FAST, targets=("x",))).not_run
    nobody = replace(sets[1], by_fold=(np.full((N, 2), np.nan),))
    assert "two at least" in fusion([sets[0], nobody], None, scans, FOLDS, FAST).not_run
    few = sets[1].by_fold[0].copy()
    few[12:] = np.nan
    assert "too few" in fusion([sets[0], replace(sets[1], by_fold=(few,))], None, scans, FOLDS, FAST).not_run
    constant = replace(sets[1], by_fold=(np.ones((N, 2)),))
    assert "no feature of 'blood' is left" in fusion([sets[0], constant], None, scans, FOLDS, FAST).not_run


def test_settings_that_name_nothing_are_refused(scans, sets):
    for barred, message in ({"blod": "score"}, "no modality"), ({"blood": "score, scor"}, "'scor'"):
        with pytest.raises(SettingError, match=message):
            fusion(sets, None, scans, FOLDS, replace(FAST, barred=barred))
    with pytest.raises(SettingError, match="'stage'"):
        fusion(sets, None, scans, FOLDS, replace(FAST, ordinal={"stage": "a,b"}))
    for change in ({"n_inner": 1}, {"n_draws": 9}, {"n_bootstrap": 9}, {"seed": -1}, {"alpha": 1.0}):
        with pytest.raises(SettingError, match=next(iter(change))):
            replace(FAST, **change)
    with pytest.raises(SettingError, match="once"):
        FusionConfig(targets=("a", "a"))


def test_subjects_with_several_scans_stay_together(scans, sets):
    scans["subject_id"] = [f"p{i // 2}" for i in range(N)]
    scans["session_id"] = np.tile(["1", "2"], N // 2)
    folds = np.arange(N) // 2 % 4
    found = fusion(sets, None, scans, folds, FAST)
    assert found.n_subjects == N // 2
    assert (found.table["n_subjects"] == N // 2).all()
    scans["session_id"] = np.tile(["2", "1"], N // 2)
    later = fusion(sets, None, scans, folds, FAST).table
    # What a modality carries is judged by the first session, all else by all of them.
    assert later["value"].equals(found.table["value"])
    single = later["way"] == SINGLE
    assert (later.loc[single, "conditional"] != found.table.loc[single, "conditional"]).all()
    with pytest.raises(LeakageError, match="p0"):
        fusion(sets, None, scans, FOLDS, FAST)


def test_the_same_again_and_back_from_disk(tmp_path, scans, sets):
    found, again = (fusion(sets, None, scans, FOLDS, FAST) for _ in range(2))
    pd.testing.assert_frame_equal(found.table, again.table)
    write_finding(found, tmp_path)
    back = read_finding(tmp_path)
    pd.testing.assert_frame_equal(back.table, found.table, check_dtype=False)
    np.testing.assert_array_equal(back.data["score"], found.data["score"])
    row = found.table.index[found.table["way"] == EARLY][0]
    np.testing.assert_array_equal(found.data["truth"].values[row], scans["score"])
    missed = np.square(scans["score"] - found.data["called"].values[row]).sum()
    rest = np.array([scans["score"][fold != FOLDS].mean() for fold in FOLDS])
    plain = np.square(scans["score"] - rest).sum()
    assert found.table.loc[row, "value"] == pytest.approx(1 - missed / plain)
    single = found.table.index[found.table["way"] == SINGLE]
    np.testing.assert_allclose(found.data["weight"].values[single].mean(axis=1), found.table.loc[single, "weight"])
    other = fusion(sets, None, scans, FOLDS, replace(FAST, seed=5)).table
    assert (other["low"] != found.table["low"]).any()
