import dataclasses

import pandas as pd
import pytest

from nilatent.cohort import Cohort
from nilatent.errors import SettingError
from nilatent.parts import SplitConfig, draw_folds, split


def made(n_subjects=40, n_sessions=1, **variables):
    rows = [
        {
            "scan_id": f"sub-{subject:03d}_ses-{session}",
            "subject_id": f"sub-{subject:03d}",
            "session_id": f"ses-{session}",
        }
        for subject in range(n_subjects)
        for session in range(n_sessions)
    ]
    scans = pd.DataFrame(rows).set_index("scan_id")
    known = {"dataset": "made", "path": "/x", "sha256": "", "source_id": scans["subject_id"]}
    return Cohort(scans.assign(**(known | variables)))


def test_no_subject_stands_on_two_sides():
    parts = split(made(30, n_sessions=3), SplitConfig())
    assert (parts.groupby("subject_id")[["part", "fold"]].nunique() == 1).all().all()
    assert len(parts) == 90


@pytest.mark.parametrize(("validation", "test"), [(0.15, 0.2), (0.3, 0.1), (0.05, 0.5)])
def test_every_stratum_gives_its_share_to_within_one_subject(rng, validation, test):
    cohort = made(97, site=rng.choice(["a", "b", "c"], 97), sex=rng.choice(["M", "F", None], 97))
    config = SplitConfig(validation_fraction=validation, test_fraction=test, stratify=("site", "sex"))
    table = split(cohort, config).join(cohort.scans[["site", "sex"]].fillna("-"))
    assert abs((table["part"] == "validation").sum() - validation * 97) < 2
    for _, stratum in table.groupby(["site", "sex"]):
        counts = stratum["part"].value_counts()
        assert abs(counts.get("test", 0) - test * len(stratum)) < 1
        assert abs(counts.get("validation", 0) - validation * len(stratum)) < 2
        folds = stratum["fold"].value_counts().reindex(range(5), fill_value=0)
        assert folds.max() - folds.min() <= 1


def test_numbers_are_stratified_by_quartile(rng):
    cohort = made(80, age=rng.permutation(80).astype(float))
    table = split(cohort, SplitConfig(stratify=("age",), test_fraction=0.25)).join(cohort.scans["age"])
    quarter = table["age"] // 20
    assert (pd.crosstab(quarter, table["part"])["test"] == 5).all()


def test_split_depends_on_the_seed_and_not_on_the_order_of_rows(rng):
    cohort = made(40, n_sessions=2, score=rng.random(80))
    config = SplitConfig(stratify=("score",))
    first = split(cohort, config)
    shuffled = dataclasses.replace(cohort, scans=cohort.scans.sample(frac=1, random_state=1))
    pd.testing.assert_frame_equal(split(shuffled, config).loc[first.index], first)
    assert not split(cohort, dataclasses.replace(config, seed=1))["part"].equals(first["part"])


@pytest.mark.parametrize(
    "change",
    [{"validation_fraction": 0.3}, {"test_fraction": 0.4}, {"n_folds": 3}, {"stratify": ("site",)}, {"seed": 5}],
)
def test_every_setting_of_the_split_has_an_effect(rng, change):
    cohort = made(40, site=rng.choice(["a", "b"], 40))
    plain = SplitConfig()
    assert not split(cohort, plain).equals(split(cohort, dataclasses.replace(plain, **change)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"test_fraction": 0.0}, "test_fraction"),
        ({"test_fraction": 0.9, "validation_fraction": 0.1}, "sum to under 1"),
        ({"validation_fraction": float("nan")}, "validation_fraction"),
        ({"n_folds": 1}, "n_folds"),
        ({"n_folds": 99}, "40 subjects"),
        ({"stratify": ("sote",)}, "'sote'.*site"),
        ({"stratify": "site"}, "tuple"),
        ({"seed": -1}, "seed"),
        ({"train_on": ("mad",)}, "no data set 'mad'. There are: made"),
    ],
)
def test_split_refuses_nonsense(change, words):
    with pytest.raises(SettingError, match=words):
        split(made(40, site="a"), dataclasses.replace(SplitConfig(), **change))


def test_split_refuses_a_cohort_too_small_for_three_parts():
    with pytest.raises(SettingError, match="too few"):
        split(made(3), SplitConfig(n_folds=2))


def test_a_model_may_learn_from_some_data_sets_alone(rng):
    cohort = made(60, n_sessions=2, dataset=pd.Series(["ixi", "clinic", "hcp"]).repeat(40).to_numpy())
    parts = split(cohort, SplitConfig(train_on=("ixi", "hcp"), test_fraction=0.25)).join(cohort.scans["dataset"])
    assert set(parts.loc[parts["dataset"] == "clinic", "part"]) == {"test"}
    healthy = parts[parts["dataset"] != "clinic"].drop_duplicates("subject_id")
    assert healthy["part"].value_counts().to_dict() == {"train": 24, "test": 10, "validation": 6}
    assert parts.loc[parts["dataset"] == "clinic", "fold"].nunique() == 5
    whole = split(cohort, SplitConfig(train_on=("clinic", "hcp", "ixi")))
    pd.testing.assert_frame_equal(whole, split(cohort, SplitConfig()))


def test_folds_drawn_anew_share_every_stratum_and_keep_subjects_whole(rng):
    cohort = made(43, n_sessions=2, group=rng.choice(["a", "b"], 86))
    parts = split(cohort, SplitConfig(test_fraction=0.2, stratify=("group",)))
    test = cohort.scans[parts["part"] == "test"]
    # The folds of the split are no folds of its test part.
    assert parts.loc[test.index, "fold"].nunique() < 3
    folds = draw_folds(test, n_folds=3, stratify=("group",), seed=0)
    assert set(folds) == {0, 1, 2}
    assert (folds.groupby(test["subject_id"]).nunique() == 1).all()
    sizes = folds[~test["subject_id"].duplicated()].value_counts()
    assert sizes.max() - sizes.min() <= 1
    assert not folds.equals(draw_folds(test, n_folds=3, stratify=("group",), seed=1))
