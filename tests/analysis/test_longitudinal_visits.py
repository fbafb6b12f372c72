from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from nilatent.analysis.contrast import NotComparableError
from nilatent.analysis.longitudinal.scans import visits_of
from nilatent.analysis.longitudinal.times import with_clock
from nilatent.analysis.longitudinal.visits import LongitudinalConfig
from nilatent.errors import CohortError, SettingError

CONFIG = LongitudinalConfig(covariates=("age", "sex"))


def table(n=20, n_visits=3):
    """Two groups of subjects, one visit a year, rows in no order of time."""
    subject, visit = np.repeat(np.arange(n), n_visits), np.tile(np.arange(n_visits), n)
    scans = pd.DataFrame(
        {
            "subject_id": [f"sub-{one:02d}" for one in subject],
            "session_id": [f"ses-{one + 1}" for one in visit],
            "age": 60.0 + subject + 1.1 * visit,
            "sex": np.where(subject % 3, "F", "M"),
            "group": np.where(subject % 2, "AD", "CN"),
            "site": np.where(subject % 4 < 2, "x", "y"),
        },
        index=pd.Index(
            [f"sub-{one:02d}_ses-{two + 1}" for one, two in zip(subject, visit, strict=True)], name="scan_id"
        ),
    )
    return scans.iloc[::-1]


def test_time_is_since_the_first_visit_and_age_counts_there():
    scans = table()
    found = visits_of(scans, CONFIG)
    assert list(scans.index[found.rows[:3]]) == ["sub-00_ses-1", "sub-00_ses-2", "sub-00_ses-3"]
    np.testing.assert_allclose(found.years[:6], [0, 1.1, 2.2] * 2)
    # The age at the first visit, less its mean; the same at every visit.
    np.testing.assert_allclose(found.level[:6, 0], np.repeat([-9.5, -8.5], 3))
    assert (found.groups, found.contrasts) == (("AD", "CN"), (("AD", "CN"),))
    assert (found.slopes, found.repeated.sum(), list(found.last[:3])) == (True, 20, [False, False, True])


def test_days_and_months_become_years_from_any_origin():
    scans = table().assign(days=lambda one: 365.25 * one["age"] + 1000, months=lambda one: 12 * one["age"])
    for unit in ("days", "months"):
        found = visits_of(scans, LongitudinalConfig(time=unit, unit=unit, covariates=("age",)))
        np.testing.assert_allclose(found.years[:3], [0, 1.1, 2.2])
        np.testing.assert_allclose(found.level[:3, 0], -9.5)


def test_days_and_dates_stand_in_for_an_age_that_stands_still():
    scans = table().assign(days=lambda one: 365.25 * (one["age"] - one.groupby("subject_id")["age"].transform("min")))
    scans["age"] = scans.groupby("subject_id")["age"].transform("min")
    day = pd.Timestamp("2012-05-01") + pd.to_timedelta(scans["days"] + 40 * scans["age"], unit="D")
    dated = scans.drop(columns="days").assign(acq_time=day.dt.strftime("%Y-%m-%dT%H:%M:%S"))
    for told in (scans, dated):
        found = visits_of(told, CONFIG)
        np.testing.assert_allclose(found.years[:6], [0, 1.1, 2.2] * 2, atol=1e-6)
        np.testing.assert_allclose(found.level[:6, 0], np.repeat([-9.5, -8.5], 3))
        assert found.slopes
    # Whole years are known to a year only, and days are not.
    whole = scans.assign(age=(scans["age"] + scans["days"] / 365.25).round())
    np.testing.assert_allclose(visits_of(whole, CONFIG).years[:3], [0, 1.1, 2.2], atol=1e-6)
    assert with_clock(whole, CONFIG).time == "days"
    assert with_clock(table().assign(years=3.0), CONFIG).time == "age"


def test_who_has_no_scan_of_the_baseline_is_older_at_the_first_one():
    scans = table().assign(days=lambda one: 365.25 * (one["age"] - one.groupby("subject_id")["age"].transform("min")))
    scans["age"] = scans.groupby("subject_id")["age"].transform("min")
    late = scans.drop("sub-04_ses-1")
    found = visits_of(late, CONFIG)
    first = dict(zip(found.subject[found.first], found.level[found.first, 0], strict=True))
    assert first["sub-04"] - first["sub-05"] == pytest.approx(-1 + 1.1)
    # From an origin that is not the baseline the earliest visit is.
    found = visits_of(late.assign(days=late["days"] + 900), CONFIG)
    first = dict(zip(found.subject[found.first], found.level[found.first, 0], strict=True))
    assert first["sub-04"] - first["sub-05"] == pytest.approx(-1)
    # An age that moves is that of the visit.
    found = visits_of(table().drop("sub-04_ses-1").assign(when=lambda one: one["age"]), replace(CONFIG, time="when"))
    first = dict(zip(found.subject[found.first], found.level[found.first, 0], strict=True))
    assert first["sub-04"] - first["sub-05"] == pytest.approx(-1 + 1.1)


def test_a_unit_goes_by_the_name_of_the_column_and_a_wrong_one_is_refused():
    scans = table().assign(days=lambda one: 365.25 * one["age"], months=lambda one: 12 * one["age"])
    for name in ("days", "months"):
        np.testing.assert_allclose(visits_of(scans, replace(CONFIG, time=name)).years[:3], [0, 1.1, 2.2])
    with pytest.raises(NotComparableError, match=r"'days' in years subject sub-\d+ was followed for 80\d years"):
        visits_of(scans, replace(CONFIG, time="days", unit="years"))
    dated = scans.assign(seen="2011-03-04")
    with pytest.raises(SettingError, match="'seen' holds dates"):
        visits_of(dated, replace(CONFIG, time="seen", unit="days"))


def test_the_design_is_a_level_and_a_rate_of_every_group_and_what_else_varies():
    found = visits_of(table(), LongitudinalConfig(covariates=("age", "sex", "group"), pace=("age",), site="site"))
    design = found.design()
    # AD, CN, their times, age by time; then age, sex and site, but not the group again.
    assert design.shape[1] == 2 + 2 + 1 + 3
    is_case = found.group == "AD"
    np.testing.assert_allclose(design[:, 0], is_case)
    np.testing.assert_allclose(design[:, 3], np.where(is_case, 0, found.years))
    np.testing.assert_allclose(design[:, 4], found.years * design[:, 5])
    assert set(found.block) == {"x", "y"}


def test_a_covariate_that_is_the_group_does_not_break_the_fit_but_a_pace_that_is_does():
    scans = table().assign(score=lambda one: (one["group"] == "AD").astype(float))
    assert visits_of(scans, LongitudinalConfig(covariates=("score",))).design().shape[1] == 4
    with pytest.raises(NotComparableError, match="pace"):
        visits_of(scans, LongitudinalConfig(pace=("score",))).design()


def test_subjects_with_one_visit_stay_for_the_level():
    scans = table(n=24).drop([f"sub-{one:02d}_ses-{two}" for one in (0, 1) for two in (2, 3)])
    found = visits_of(scans, CONFIG)
    assert found.first.sum() == 24
    assert found.repeated.sum() == 22
    assert found.n_repeated("AD") == 11
    assert list(found.n_times[:2]) == [1, 1]


def test_two_visits_each_give_no_random_slope_nor_do_repeats_of_one_day():
    assert not visits_of(table(n_visits=2), CONFIG).slopes
    scans = table()
    again = scans["session_id"] == "ses-3"
    scans.loc[again, "age"] = scans.loc[again, "age"] - 1.1
    assert not visits_of(scans, CONFIG).slopes


def test_scans_with_gaps_are_left_out_and_listed():
    scans = table()
    scans.loc["sub-03_ses-1", "age"] = np.nan
    scans.loc["sub-05_ses-2", "sex"] = None
    found = visits_of(scans, CONFIG, complete=scans.index != "sub-07_ses-3")
    assert sorted(one for ids in found.left_out.values() for one in ids) == [
        "sub-03_ses-1",
        "sub-05_ses-2",
        "sub-07_ses-3",
    ]
    rows = found.subject == "sub-03"
    np.testing.assert_allclose(found.years[rows], [0, 1.1])
    # Age at the first visit that is there.
    np.testing.assert_allclose(found.level[rows, 0] - found.level[0, 0], 3 + 1.1)


def test_a_group_written_at_one_visit_is_that_of_the_subject():
    scans = table()
    scans.loc[scans["session_id"] != "ses-2", "group"] = None
    assert visits_of(scans, CONFIG).n_repeated("CN") == 10


def test_the_groups_are_those_of_the_contrast_and_large_enough():
    scans = table(n=40)
    number = scans["subject_id"].str[-2:].astype(int)
    scans["group"] = np.select([number < 12, number < 24, number < 36], ["A", "B", "C"], "rare")
    found = visits_of(scans, LongitudinalConfig(contrast="A:C"))
    assert (found.groups, found.contrasts) == (("A", "C"), (("A", "C"),))
    found = visits_of(scans, LongitudinalConfig())
    assert found.groups == ("A", "B", "C")
    assert len(found.contrasts) == 3
    assert sum(map(len, found.left_out.values())) == 4 * 3
    with pytest.raises(SettingError, match="A:none"):
        visits_of(scans, LongitudinalConfig(contrast="A:none"))


def test_without_groups_everybody_is_one():
    for scans in (table().drop(columns="group"), table().assign(group="CN")):
        found = visits_of(scans, CONFIG)
        assert (len(found.groups), found.contrasts) == (1, ())


def test_time_that_runs_backwards_is_refused_where_sessions_have_an_order():
    scans = table()
    scans.loc["sub-04_ses-2", "age"] = 63.9
    with pytest.raises(
        CohortError, match=r"backwards in subject sub-04: 'age' is 64 at session ses-1 and 63.9 at session"
    ):
        visits_of(scans, CONFIG)
    scans["session_id"] = scans["session_id"].map({"ses-1": "post", "ses-2": "pre", "ses-3": "zero"})
    assert visits_of(scans, CONFIG).first.sum() == 20


def test_session_ten_comes_after_session_nine():
    scans = table().assign(session_id=lambda one: one["session_id"].map({"ses-1": "m0", "ses-2": "m9", "ses-3": "m10"}))
    assert visits_of(scans, CONFIG).first.sum() == 20
    back = scans.assign(session_id=lambda one: one["session_id"].map({"m0": "m0", "m9": "m10", "m10": "m9"}))
    with pytest.raises(CohortError, match="backwards"):
        visits_of(back, CONFIG)


def test_a_session_that_stands_twice_is_refused():
    scans = table()
    scans.loc["sub-02_ses-3", "session_id"] = "ses-2"
    with pytest.raises(CohortError, match="Session 'ses-2' of subject sub-02"):
        visits_of(scans, CONFIG)
    scans = table().assign(session_id="")
    assert visits_of(scans, CONFIG).first.sum() == 20
    scans.loc["sub-02_ses-3", "age"] = scans.loc["sub-02_ses-2", "age"]
    with pytest.raises(CohortError, match="twice"):
        visits_of(scans, CONFIG)


def test_a_group_that_changes_within_a_subject_is_refused():
    scans = table()
    scans.loc["sub-06_ses-3", "group"] = "AD"
    with pytest.raises(CohortError, match="sub-06 is in the groups AD, CN"):
        visits_of(scans, CONFIG)


def test_what_says_nothing_of_change_is_refused():
    with pytest.raises(NotComparableError, match="no subject was seen at two different times"):
        visits_of(table(n_visits=1), CONFIG)
    with pytest.raises(NotComparableError, match="no group has 8 subjects"):
        visits_of(table(n=8), CONFIG)
    with pytest.raises(NotComparableError, match="no column 'days'"):
        visits_of(table(), LongitudinalConfig(time="days"))
    with pytest.raises(SettingError, match="is 'later', no number"):
        visits_of(table().assign(when="later"), LongitudinalConfig(time="when"))


@pytest.mark.parametrize(
    "settings",
    [
        {"unit": "weeks"},
        {"horizons": ()},
        {"horizons": (0.0,)},
        {"retest_days": -1.0},
        {"n_redrawn": 5},
        {"n_permutations": 0},
        {"alpha": 0.0},
    ],
)
def test_settings_that_mean_nothing_are_refused(settings):
    with pytest.raises(SettingError, match=f"longitudinal.{next(iter(settings))}"):
        LongitudinalConfig(**settings)
