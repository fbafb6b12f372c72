import numpy as np
import pytest
from scipy import stats

from nilatent.simulate import SimulationConfig
from nilatent.simulate.people import GM_LOST_PER_YEAR, amplitudes_of, draw_people, group_of, visits_of_people

N = 300


def people(**settings):
    return draw_people(SimulationConfig(**({"n_subjects": N} | settings)), template_ml=1900.0)


def test_any_first_people_hold_each_group_in_its_share():
    config = SimulationConfig(group_fraction=0.4, advanced_fraction=0.1)
    groups = np.array([group_of(config, index) for index in range(500)])
    for name, share in {"control": 0.6, "patient": 0.3, "advanced": 0.1}.items():
        counted = np.cumsum(groups == name)
        assert np.abs(counted - share * np.arange(1, 501)).max() <= 1.5


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_one_group_may_have_everyone(share):
    scans, _ = people(group_fraction=share, n_subjects=20)
    assert set(scans["group"]) == {"patient" if share else "control"}


def test_a_person_is_the_same_among_few_and_many():
    few, few_planted = people(n_subjects=7)
    many, many_planted = people(n_subjects=60)
    assert few.equals(many.iloc[:7])
    assert few_planted.equals(many_planted.iloc[:7])


def test_seeds_give_other_people():
    assert not people(seed=1)[0]["age"].equals(people(seed=2)[0]["age"])


def test_age_sex_and_site_do_not_follow_the_group_unless_confounded():
    scans, _ = people()
    sick = scans["group"] == "patient"
    assert stats.ttest_ind(scans.loc[sick, "age"], scans.loc[~sick, "age"]).pvalue > 0.01
    assert abs((scans["site"] == "site1")[sick].mean() - (scans["site"] == "site1")[~sick].mean()) < 0.15


def test_confounded_by_age():
    scans, _ = people(confounded="age")
    sick = scans["group"] == "patient"
    assert scans.loc[sick, "age"].mean() - scans.loc[~sick, "age"].mean() == pytest.approx(8, abs=2)


@pytest.mark.parametrize("n_sites", [2, 5])
def test_confounded_by_site(n_sites):
    scans, _ = people(confounded="site", n_sites=n_sites)
    upper = scans["site"].str.removeprefix("site").astype(int) > n_sites // 2
    sick = scans["group"] == "patient"
    assert upper[sick].mean() == pytest.approx(0.85, abs=0.08)
    assert upper[~sick].mean() == pytest.approx(0.15, abs=0.08)
    assert scans["site"].nunique() == n_sites


def test_the_score_falls_with_disease_within_patients():
    scans, planted = people()
    sick = scans["group"] == "patient"
    assert np.corrcoef(scans["severity"][sick], planted["atrophy"][sick])[0, 1] < -0.6
    assert scans["severity"].between(0, 30).all()
    assert scans["severity"][~sick].mean() == pytest.approx(29, abs=0.3)


def test_disease_varies_within_patients_and_has_mean_one():
    scans, planted = people()
    disease = planted["disease"][scans["group"] == "patient"]
    assert disease.mean() == pytest.approx(1, abs=0.08)
    assert disease.std() > 0.2
    assert disease.between(0.4, 1.6).all()
    assert (planted["disease"][scans["group"] == "control"] == 0).all()


def test_class_mediated_disease_has_no_variance_within_a_class():
    scans, planted = people(class_mediated=True)
    assert (planted["atrophy"][scans["group"] == "patient"] == 1).all()
    assert scans["severity"][scans["group"] == "patient"].std() > 0


def test_the_rare_stage_is_more_severe():
    scans, planted = people(advanced_fraction=0.1)
    by_group = planted.groupby(scans["group"])["disease"].mean()
    assert by_group["advanced"] / by_group["patient"] == pytest.approx(1.5, rel=0.15)


def test_null_leaves_the_clinic_and_takes_the_brain():
    scans, planted = people()
    null_scans, null_planted = people(null=True)
    assert scans.equals(null_scans)
    assert (null_planted["atrophy"] == 0).all()
    assert null_planted["gm_factor"].equals(planted["gm_factor"])


def test_under_the_null_group_p_values_of_total_grey_matter_are_uniform():
    p_values = []
    for seed in range(120):
        scans, planted = people(null=True, n_subjects=30, seed=seed)
        total = planted["head_size"] * planted["gm_factor"] * (1 - planted["atrophy"])
        sick = scans["group"] == "patient"
        p_values.append(stats.ttest_ind(total[sick], total[~sick]).pvalue)
    assert stats.kstest(p_values, "uniform").pvalue > 0.01


def test_men_have_larger_heads_and_grey_matter_falls_with_age():
    scans, planted = people()
    assert scans.groupby("sex")["intracranial_ml"].mean().diff()["M"] == pytest.approx(190, abs=60)
    slope = np.polyfit(scans["age"], np.log(planted["gm_factor"]), 1)[0]
    assert slope == pytest.approx(-GM_LOST_PER_YEAR, abs=0.0012)


def test_sessions_follow_each_persons_slope():
    scans, planted = people(n_sessions=3, n_subjects=20, interval_years=2.0)
    assert scans.index[:2].tolist() == ["sub-001_ses-01", "sub-001_ses-02"]
    for subject, rows in scans.groupby("subject_id"):
        hidden = planted.loc[rows.index]
        np.testing.assert_allclose(rows["age"] - rows["years"], rows["age"].iloc[0], atol=0.011)
        slope = np.polyfit(rows["years"], hidden["disease"], 1)[0]
        assert slope == pytest.approx(hidden["disease_per_year"].iloc[0], abs=1e-3)
        assert subject == hidden["subject_id"].iloc[0]
    slopes = planted["disease_per_year"][scans["group"] == "patient"]
    assert slopes.between(0.05, 0.2).all()
    assert slopes.nunique() == 10


def test_missed_visits_leave_the_others_as_they_were():
    settings = {"n_sessions": 4, "n_subjects": 200, "seed": 3}
    (all_scans, all_planted), (scans, planted) = people(**settings), people(missed_fraction=0.3, **settings)
    assert scans.equals(all_scans.loc[scans.index])
    assert planted.equals(all_planted.loc[scans.index])
    assert (scans["years"] == 0).sum() == 200
    assert 1 - (len(scans) - 200) / 600 == pytest.approx(0.3, abs=0.06)
    assert (people(missed_fraction=1.0, **settings)[0]["session_id"] == "ses-01").all()


def test_visits_carry_the_tables_in_order():
    scans, planted = people(n_sessions=2, n_subjects=12, n_sites=3)
    visits = [visit for one in visits_of_people(scans, planted) for visit in one]
    assert [f"site{visit.site + 1}" for visit in visits] == scans["site"].tolist()
    for name in ("atrophy", "head_size", "gm_factor"):
        assert [getattr(visit, name) for visit in visits] == planted[name].tolist()


def test_amplitudes_of_the_causes_are_planted_once_per_person():
    settings = {"n_subjects": 5, "n_sessions": 2}
    _, without = people(**settings)
    scans, planted = people(n_causes=3, **settings)
    columns = ["cause_1", "cause_2", "cause_3"]
    assert [name for name in planted if name.startswith("cause_")] == columns
    assert planted.drop(columns=columns).equals(without)
    assert scans.equals(people(**settings)[0])
    expected = [amplitudes_of(SimulationConfig(n_causes=3), index) for index in range(5)]
    np.testing.assert_array_equal(planted[columns], np.repeat(expected, 2, axis=0))
    assert len(np.unique(planted[columns])) == 15


def test_heads_of_patients_may_be_small():
    (scans, _), (small, _) = people(), people(patient_head_size=0.8)
    sick = scans["group"] == "patient"
    np.testing.assert_allclose(small["intracranial_ml"] / scans["intracranial_ml"], np.where(sick, 0.8, 1.0), atol=1e-3)


def test_who_is_quick_enough_is_progressive_and_the_time_is_that_of_the_planted_course():
    scans, planted = people(follow_up_years=5.0)
    assert not {"course", "course_years"} & set(people()[0])
    sick = scans["group"] == "patient"
    assert scans.loc[~sick, ["course", "course_years"]].isna().all(axis=None)
    years = (1.65 - planted["disease"]) / planted["disease_per_year"]
    np.testing.assert_array_equal(scans.loc[sick, "course"] == "progressive", (years <= 5)[sick])
    np.testing.assert_allclose(scans.loc[sick, "course_years"], np.minimum(years, 5)[sick], atol=1e-3)
    assert 0.2 < (scans.loc[sick, "course"] == "progressive").mean() < 0.8


def test_the_course_is_seen_from_each_visit():
    scans, planted = people(follow_up_years=5.0, n_sessions=2, interval_years=2.0)
    sick = scans["group"] == "patient"
    first, second = (scans[sick & (scans["session_id"] == name)] for name in ("ses-01", "ses-02"))
    both = (
        first.set_index("subject_id")["course"].eq("progressive")
        & second.set_index("subject_id")["course_years"].notna()
    )
    left = first.set_index("subject_id")["course_years"] - second.set_index("subject_id")["course_years"]
    passed = second.set_index("subject_id")["years"]
    np.testing.assert_allclose(left[both], passed[both], atol=2e-3)
    beyond = planted.loc[sick, "disease"] >= 1.65
    assert beyond.any()
    assert scans.loc[sick, "course_years"][beyond].isna().all()
