import numpy as np
import pandas as pd
import pytest

from nilatent.analysis.contrast import (
    NotComparableError,
    compare_groups,
    compare_target,
    confound_matrix,
    contrasts_of,
    first_scans,
    level_words,
)
from nilatent.errors import SettingError


@pytest.fixture
def scans(rng):
    n = 40
    index = pd.Index([f"scan-{i}" for i in range(n)], name="scan_id")
    return pd.DataFrame(
        {
            "subject_id": index,
            "session_id": "",
            "group": np.where(np.arange(n) % 2, "AD", "CN"),
            "age": rng.normal(70, 5, n),
            "sex": np.where(np.arange(n) % 3, "F", "M"),
            "site": np.where(np.arange(n) % 5 < 2, 1.0, 3.0),
        },
        index=index,
    )


def test_session_two_comes_before_session_ten(scans):
    scans.iloc[:2, :2] = [["scan-0", "ses-10"], ["scan-0", "ses-2"]]
    assert first_scans(scans).tolist() == list(range(1, 40))


def test_the_first_session_of_each_subject_is_kept_and_the_rest_listed(scans):
    scans.iloc[3, :2] = ["scan-2", "02"]
    scans.iloc[2, 1] = "01"
    assert first_scans(scans).tolist() == [i for i in range(40) if i != 3]
    scans["group"] = np.where(np.arange(40) < 20, "AD", "CN")
    found = compare_groups(scans, group="group", contrast="AD:CN")
    assert found.left_out == {"a later session of the same subject": ["scan-3"]}
    assert found.is_case.sum() == 19


def test_scans_without_confound_or_group_are_left_out_by_name(scans):
    scans.loc["scan-4", "age"] = np.nan
    scans.loc["scan-5", "group"] = np.nan
    found = compare_groups(scans, group="group", covariates=["age"])
    assert found.left_out == {
        "no value or another group in column 'group'": ["scan-5"],
        "missing value in a confound": ["scan-4"],
    }
    assert (found.case, found.reference, found.label) == ("AD", "CN", "AD:CN")
    np.testing.assert_array_equal(found.confounds[:, 0], scans["age"].drop(["scan-4", "scan-5"]))


def test_numbered_sites_are_levels_and_blocks(scans):
    scans["site"] = np.arange(40) % 3 + 1.0
    found = compare_groups(scans, group="group", site="site")
    assert found.confounds.shape == (40, 2)
    assert set(found.blocks) == {"1", "2", "3"}
    assert confound_matrix(scans, ["site"]).shape == (40, 1)


def test_words_become_one_column_per_level_but_the_first():
    table = pd.DataFrame({"sex": ["F", "M", np.nan, "M"], "flat": "x"})
    np.testing.assert_array_equal(confound_matrix(table, ["sex"])[:, 0], [0, 1, np.nan, 1])
    np.testing.assert_array_equal(confound_matrix(table, ["flat"])[:, 0], [0, 0, 0, 0])
    assert level_words(pd.Series([1.0, np.nan, 0.0])).tolist()[::2] == ["1", "0"]


def test_the_reference_is_the_control_group_unless_named(scans):
    assert compare_groups(scans, group="group", contrast="CN:AD").case == "CN"
    scans["group"] = scans["group"].map({"AD": "zeta", "CN": "control"})
    assert compare_groups(scans, group="group").reference == "control"
    scans["group"] = scans["group"].map({"zeta": "b", "control": "a"})
    assert compare_groups(scans, group="group").label == "a:b"


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        ({}, {"group": "absent"}, "no group column"),
        ({"group": ["a", "b", "c", "d"] * 10}, {"group": "group"}, "choose two with --contrast"),
        ({"group": ["a"] * 40}, {"group": "group"}, "too few: column 'group' holds a"),
        ({"group": ["a"] * 7 + ["b"] * 33}, {"group": "group"}, "too few: 7 a and 33 b"),
        ({"group": ["a", None, "b", None] * 10}, {"group": "group", "contrast": "a:b"}, None),
        ({"site": ["p", "q"] * 20}, {"group": "group", "site": "site"}, "the confounds tell AD from CN without error"),
    ],
)
def test_a_cohort_that_cannot_answer_says_why(scans, change, options, words):
    if words is None:
        assert len(compare_groups(scans.assign(**change), **options).rows) == 20
        return
    with pytest.raises(NotComparableError, match=words):
        compare_groups(scans.assign(**change), **options)


@pytest.mark.parametrize("contrast", ["AD", "AD:AD", "AD:MCI"])
def test_a_contrast_that_names_nothing_is_bad_usage(scans, contrast):
    with pytest.raises(SettingError, match="does not name two different groups") as error:
        compare_groups(scans, group="group", contrast=contrast)
    assert not isinstance(error.value, NotComparableError)
    with pytest.raises(SettingError, match="Column 'weight' is not in the cohort"):
        compare_groups(scans, group="group", covariates=["weight"])


def test_codes_and_long_numbers_stay_apart():
    assert level_words(pd.Series(["01", "1", "1.0"])).tolist() == ["01", "1", "1"]
    assert level_words(pd.Series(["12345678901234567890", "12345678901234567891"])).nunique() == 2


@pytest.mark.parametrize(
    ("groups", "contrast", "expected"),
    [
        (["AD", "CN"], "", ["AD:CN"]),
        (["AD", "CN"], "CN:AD", ["CN:AD"]),
        (["AD", "MCI", "CN"], "", ["AD:CN", "MCI:CN"]),
        (["a", "b", "c"], "", ["a:b", "a:c", "b:c"]),
        (["cn", "hc", "x"], "", ["cn:hc", "cn:x", "hc:x"]),
        (["AD", "MCI", "CN"], "AD:MCI, MCI:CN", ["AD:MCI", "MCI:CN"]),
        (["pain, chronic", "none", "x"], "pain, chronic:none", ["pain, chronic:none"]),
    ],
)
def test_contrasts_are_those_named_or_all_against_the_control_group(groups, contrast, expected):
    scans = pd.DataFrame({"group": groups * 3})
    assert contrasts_of(scans, group="group", contrast=contrast) == expected


@pytest.mark.parametrize(
    ("contrast", "words"),
    [("AD:CN,AD", "does not name two different groups"), ("AD:CN,CN:AD", "compare the same two groups twice")],
)
def test_a_list_of_contrasts_that_says_nothing_new_is_refused(scans, contrast, words):
    with pytest.raises(SettingError, match=words):
        contrasts_of(scans, group="group", contrast=contrast)
    with pytest.raises(NotComparableError, match="no group column"):
        contrasts_of(scans, group="absent", contrast=contrast)


def test_a_number_is_asked_of_the_first_scan_of_each_subject_that_has_it(scans, rng):
    scans["mmse"] = rng.normal(size=40)
    scans.loc["scan-1", "mmse"] = np.nan
    scans.loc["scan-2", "age"] = np.nan
    scans.iloc[4, :2] = ["scan-3", "02"]
    found = compare_target(scans, target="mmse", covariates=["age"], site="site")
    assert found.left_out == {
        "no value in column 'mmse'": ["scan-1"],
        "missing value in a confound": ["scan-2"],
        "a later session of the same subject": ["scan-4"],
    }
    np.testing.assert_array_equal(found.values, scans["mmse"].to_numpy()[found.rows])
    assert (found.label, found.confounds.shape, set(found.blocks)) == ("mmse", (37, 2), {"1", "3"})


@pytest.mark.parametrize(
    ("values", "options", "error", "words"),
    [
        (np.ones(40), {}, NotComparableError, "'mmse' is constant, or the confounds explain it"),
        (
            np.arange(40) % 3,
            {"covariates": ["twice"]},
            NotComparableError,
            "the confounds explain it without remainder",
        ),
        ([1.0] * 10 + [np.nan] * 30, {}, NotComparableError, "too few: 10 subjects with mmse"),
        ([np.nan] * 40, {}, NotComparableError, "too few: no scan with mmse"),
        (["27", "low"] * 20, {}, SettingError, "of scan scan-1 is 'low', not a number"),
        (np.arange(40), {"covariates": ["mmse"]}, SettingError, "is among the covariates"),
        (np.arange(40), {"covariates": ["weight"]}, SettingError, "Column 'weight' is not in the cohort"),
    ],
)
def test_a_number_that_cannot_be_asked_about_says_why(scans, values, options, error, words):
    scans = scans.assign(mmse=values, twice=2.0 * (np.arange(40) % 3))
    with pytest.raises(error, match=words):
        compare_target(scans, target="mmse", **options)
    with pytest.raises(NotComparableError, match="no column 'absent'"):
        compare_target(scans, target="absent")


def test_as_many_confounds_as_subjects_are_refused(scans, rng):
    many = scans.assign(**{f"c{i}": rng.normal(size=40) for i in range(31)}, mmse=rng.normal(size=40))
    covariates = [f"c{i}" for i in range(31)]
    with pytest.raises(NotComparableError, match="too few: 40 subjects for 31 confounds"):
        compare_groups(many, group="group", covariates=covariates)
    with pytest.raises(NotComparableError, match="too few: 40 subjects for 31 confounds"):
        compare_target(many, target="mmse", covariates=covariates)
