from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from nilatent.analysis.contrast import NotComparableError
from nilatent.analysis.prediction.config import PredictionConfig
from nilatent.analysis.prediction.targets import make_target, make_targets
from nilatent.errors import SettingError

N = 60
FOLDS = np.arange(N) % 5
ALL = np.ones(N, dtype=bool)


@pytest.fixture
def scans(rng):
    index = pd.Index([f"s{i:02d}" for i in range(N)], name="scan_id")
    return pd.DataFrame(
        {
            "subject_id": index,
            "group": np.repeat(["AD", "CN", "MCI"], 20),
            "sex": np.tile(["M", "F"], 30),
            "age": rng.normal(70, 5, N),
            "stage": np.tile([3, 1, 2, 0], 15),
            "rare": np.where(np.arange(N) < 4, "yes", "no"),
            "same": "one",
            "site": np.tile([1, 2, 3], 20),
        },
        index=index,
    )


def make(scans, column, **changes):
    config = changes.pop("config", PredictionConfig())
    settings = {"name": column, "config": config, "usable": ALL} | changes
    return make_target(scans, FOLDS, column, **settings)


def test_kinds_follow_the_values(scans):
    assert make(scans, "age").kind == "continuous"
    assert (make(scans, "sex").kind, make(scans, "sex").levels) == ("binary", ("F", "M"))
    assert (make(scans, "group").kind, make(scans, "group").levels) == ("multi-class", ("CN", "AD", "MCI"))
    assert make(scans, "stage").kind == "multi-class"
    many = scans.assign(site=np.arange(N) // 2 % 15)
    assert make(many, "site").kind == "continuous"
    with pytest.raises(NotComparableError, match="fewer than the 5 folds"):
        make(many, "site", config=PredictionConfig(site="site"))


def test_codes_are_positions_among_the_levels(scans):
    found = make(scans, "stage", config=PredictionConfig(ordinal={"stage": "0,1,2,3"}))
    assert (found.kind, found.levels) == ("ordinal", ("0", "1", "2", "3"))
    assert found.y.tolist() == scans["stage"].tolist()
    turned = make(scans, "stage", config=PredictionConfig(ordinal={"stage": "3,2,1,0"}))
    assert turned.y.tolist() == (3 - scans["stage"]).tolist()
    sex = make(scans, "sex", config=PredictionConfig(ordinal={"sex": "M,F"}))
    assert (sex.kind, sex.levels) == ("binary", ("M", "F"))
    sex = make(scans, "sex")
    assert [sex.levels[code] for code in sex.y] == scans["sex"].tolist()
    np.testing.assert_array_equal(make(scans, "age").y, scans["age"])


def test_a_contrast_keeps_two_groups_and_the_second_named_is_the_reference(scans):
    found = make(scans, "group", name="AD:MCI")
    assert (found.kind, found.levels, found.column) == ("binary", ("MCI", "AD"), "group")
    assert found.rows.tolist() == [*range(20), *range(40, 60)]
    assert found.y.tolist() == [1] * 20 + [0] * 20
    assert found.left_out == {"no value of AD:MCI": [f"s{i}" for i in range(20, 40)]}


def test_targets_are_the_group_sex_and_age_or_those_asked_for(scans):
    found, refused = make_targets(scans, FOLDS, PredictionConfig(), usable=ALL)
    assert ([target.name for target in found], refused) == (["group", "sex", "age"], {})
    config = PredictionConfig(contrast="AD:CN, MCI:CN")
    found, _ = make_targets(scans, FOLDS, config, usable=ALL)
    assert [target.name for target in found] == ["AD:CN", "MCI:CN", "sex", "age"]
    found, refused = make_targets(scans, FOLDS, replace(config, targets=("age", "rare", "same", "iq")), usable=ALL)
    assert [target.name for target in found] == ["age"]
    assert "4 subjects are 'yes'" in refused["rare"]
    assert "constant" in refused["same"]
    assert refused["iq"] == "no column 'iq'"


def test_scans_without_a_value_or_a_feature_are_left_out_and_listed(scans):
    scans.loc["s03", "age"] = np.nan
    usable = ALL.copy()
    usable[[3, 7]] = False
    found = make(scans, "age", usable=usable)
    assert len(found.rows) == N - 2
    assert found.left_out == {"no value of age": ["s03"], "a feature is missing": ["s07"]}


def test_what_cannot_be_learnt_is_refused(scans):
    with pytest.raises(NotComparableError, match="at least 20"):
        make(scans, "age", usable=np.arange(N) < 19)
    with pytest.raises(NotComparableError, match="'age' is constant"):
        make(scans.assign(age=7.0 + 0 * np.arange(N)), "age", config=PredictionConfig(ordinal={"x": "a,b,c"}))
    with pytest.raises(NotComparableError, match="one and the same fold"):
        make_target(
            scans,
            np.where(np.arange(N) < 30, 0, 1),
            "age",
            name="age",
            config=PredictionConfig(),
            usable=np.arange(N) < 30,
        )
    gathered = scans.assign(rare=np.where(FOLDS == 0, "yes", "no"))
    with pytest.raises(NotComparableError, match="when fold 0 is held out"):
        make(gathered, "rare")


def test_subjects_and_not_scans_are_counted(scans):
    scans = scans.assign(subject_id=np.repeat([f"p{i}" for i in range(15)], 4))
    with pytest.raises(NotComparableError, match="15 subjects"):
        make_target(scans, np.repeat(np.arange(15) % 5, 4), "age", name="age", config=PredictionConfig(), usable=ALL)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n_inner": 1}, "n_inner is 1"),
        ({"n_permutations": -1}, "n_permutations"),
        ({"n_stop": -1}, "n_stop"),
        ({"n_bootstrap": 10}, "n_bootstrap"),
        ({"n_jobs": 0}, "n_jobs"),
        ({"seed": -1}, "seed"),
        ({"alpha": 1.0}, "alpha"),
        ({"heads": ("linear", "forest")}, "heads"),
        ({"heads": ()}, "heads"),
        ({"ordinal": {"stage": "a"}}, "ordinal"),
        ({"ordinal": {"stage": "a,b,a"}}, "ordinal"),
        ({"harmonise": True}, "no site is named"),
    ],
)
def test_settings_out_of_range_are_refused(changes, words):
    with pytest.raises(SettingError, match=words):
        PredictionConfig(**changes)
