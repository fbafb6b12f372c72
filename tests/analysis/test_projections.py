import numpy as np
import pandas as pd
import pytest
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression

from nilatent.analysis.projections import principal_components, projections
from nilatent.errors import CohortError
from nilatent.finding import read_finding, write_finding


def run(study, **options):
    return projections(study.latents, study.regions, study.scans, **({"n_permutations": 199} | options))


def test_components_equal_scikit_learn_fitted_on_training_scans(rng):
    z, train = rng.normal(size=(30, 5)) * [5, 4, 3, 2, 1], np.arange(20)
    scores, distance = principal_components(z, train, z[:, 0], n_components=3)
    expected = PCA(3).fit(z[train]).transform(z)
    np.testing.assert_allclose(np.abs(scores), np.abs(expected), atol=1e-9)
    np.testing.assert_allclose(distance, ((z - z[train].mean(axis=0)) ** 2).sum(axis=1))
    assert ((z[train, 0] @ (scores[train] - scores[train].mean(axis=0))) > 0).all()


def test_held_out_scans_do_not_shape_the_components(study):
    cohort = study()
    before = run(cohort).data["scores"].values
    held_out = cohort.latents["part"].values == "test"
    cohort.latents["mean"][held_out] += 100
    after = run(cohort).data["scores"].values
    np.testing.assert_allclose(after[~held_out], before[~held_out], atol=1e-5)


def test_explained_share_and_r2_equal_their_definitions(study):
    cohort = study()
    found = run(cohort, n_components=3)
    z, train = cohort.latents["mean"].values.astype(float), cohort.latents["part"].values == "train"
    pca = PCA(3).fit(z[train])
    np.testing.assert_allclose(found.table["explained"], pca.explained_variance_ratio_, rtol=1e-6)
    scores, age = found.data["scores"].values, cohort.scans[["age"]].to_numpy()
    expected = [LinearRegression().fit(age, score).score(age, score) for score in scores.T]
    np.testing.assert_allclose(found.table["r2_age"], expected, rtol=1e-5)
    np.testing.assert_allclose(
        found.data["region_r"].values[1, 2], np.corrcoef(scores[:, 1], cohort.regions["Region_2"])[0, 1], atol=1e-5
    )


def test_the_units_of_a_latent_do_not_matter_but_its_reach_in_the_image_does(study):
    cohort = study()
    plain = run(cohort).data["scores"].values
    cohort.latents["mean"][:, 1] *= 10
    cohort.latents["image_scale"][1] /= 10
    np.testing.assert_allclose(run(cohort).data["scores"].values, plain, rtol=1e-4, atol=1e-5)
    cohort.latents["image_scale"][1] *= 100
    assert run(cohort).table["explained"].iloc[0] > 0.9


def test_a_cluster_by_site_is_reported_as_a_failure(study):
    cohort = study(n=80)
    assert not any("Failure" in line for line in run(cohort, site="site").caveats)
    cohort.latents["mean"][cohort.scans["site"].to_numpy() == "x"] += 5
    found = run(cohort, site="site", group="group")
    assert found.caveats[0].startswith("Failure: the latents separate the levels of 'site' on PC1")
    assert "Failure" in found.answer
    cohort.scans["dataset"] = cohort.scans["site"]
    assert run(cohort).caveats[0].startswith("Failure: the latents separate the levels of 'dataset'")


def test_a_group_that_follows_the_site_is_not_found_within_sites(study):
    cohort = study(n=80)
    is_x = cohort.scans["site"].to_numpy() == "x"
    cohort.latents["mean"][is_x] += 5
    flip = np.arange(80) % 5 == 0
    cohort.scans["group"] = np.where(is_x ^ flip, 1.0, 2.0)
    assert run(cohort, group="group").table["p_group"].min() <= 0.01
    within = run(cohort, group="group", site="site")
    assert within.table["p_group"].min() > 0.01
    assert set(within.data["scan_group"].values) == {"1", "2"}


def test_a_column_with_a_slash_in_its_name_can_be_written(study, tmp_path):
    cohort = study()
    cohort.scans["M/F"] = cohort.scans["group"]
    write_finding(run(cohort, group="M/F"), tmp_path)
    assert set(read_finding(tmp_path).data["scan_M_F"].values) == set(cohort.scans["group"].astype(str))


def test_what_is_absent_or_constant_is_named_not_related(study):
    cohort = study()
    cohort.scans["sex"] = "F"
    found = run(cohort)
    assert "r2_sex" not in found.table
    assert any(line.endswith("not related: head_size_factor, sex.") for line in found.caveats)


def test_settings_have_their_effect(study):
    cohort = study()
    assert len(run(cohort, n_components=2).table) == 2
    assert "r2_age" not in run(cohort, covariates=[]).table
    assert run(cohort, n_permutations=9).table["p_age"].min() >= 0.1
    assert not run(cohort, seed=1).table["p_age"].equals(run(cohort).table["p_age"])


def test_repeated_sessions_enter_the_scores_but_not_the_p_values(study):
    cohort = study()
    cohort.scans["subject_id"] = [f"sub-{i // 2}" for i in range(60)]
    found = run(cohort)
    assert (found.n_scans, found.n_subjects) == (60, 30)
    assert any("first session of each subject (30 of 60 scans)" in line for line in found.caveats)


def test_small_cohorts_and_other_scans_are_refused(study):
    assert run(study(n=16)).not_run.startswith("too few: 16 subjects")
    cohort = study()
    with pytest.raises(CohortError, match="not in latents, regions and cohort alike"):
        projections(cohort.latents, cohort.regions.iloc[1:], cohort.scans)


def test_the_finding_survives_the_disk(study, tmp_path):
    found = run(study(), group="group")
    write_finding(found, tmp_path)
    back = read_finding(tmp_path)
    pd.testing.assert_frame_equal(back.table, found.table, check_dtype=False)
    np.testing.assert_array_equal(back.data["scan_group"].values, found.data["scan_group"].values)
