"""The simulated cohorts hold what their conditions say, or every table built on them would be wrong."""

from dataclasses import replace

import numpy as np
import pytest
from tests.calibration.calls import counted
from tests.calibration.cohorts import Condition, make_cohort

from nilatent.analysis import stats

LARGE = Condition(n=600, n_regions=12, planted=(2, 9))


def group_gap(cohort) -> np.ndarray:
    """(region,) how much lower cases are than the others."""
    case = (cohort.scans["group"] == "patient").to_numpy()
    x = cohort.regions.to_numpy()
    return x[~case].mean(axis=0) - x[case].mean(axis=0)


def test_only_the_planted_regions_differ_and_by_the_effect():
    harmed, unharmed = make_cohort(replace(LARGE, effect=1.5), 3), make_cohort(LARGE, 3)
    assert group_gap(harmed) - group_gap(unharmed) == pytest.approx(1.5 * np.isin(np.arange(12), (2, 9)))
    assert harmed.planted.nonzero()[0].tolist() == [2, 9]
    assert not unharmed.planted.any()


def test_the_share_of_cases_is_as_asked():
    groups = make_cohort(replace(LARGE, cases=0.25), 0).scans["group"]
    assert (groups == "patient").sum() == 150


@pytest.mark.parametrize("nuisance", ["age", "site"])
def test_a_confound_goes_with_group_and_regions_and_leaves_nothing_once_removed(nuisance):
    cohort = make_cohort(
        replace(LARGE, n=3000, age_effect=1.0 * (nuisance == "age"), site_effect=1.0 * (nuisance == "site")), 1
    )
    case = (cohort.scans["group"] == "patient").to_numpy(float)
    told = cohort.scans["age"].to_numpy() if nuisance == "age" else (cohort.scans["site"] == "second").to_numpy(float)
    raw = np.abs(stats.partial_correlation(cohort.regions.to_numpy(), case[:, None], None))
    clean = np.abs(stats.partial_correlation(cohort.regions.to_numpy(), case[:, None], told[:, None]))
    assert np.corrcoef(case, told)[0, 1] > 0.3
    assert raw.max() > 0.15
    assert clean.max() < 0.08
    assert cohort.site == ("site" if nuisance == "site" else "")


def test_nobody_is_told_when_the_condition_says_so():
    cohort = make_cohort(replace(LARGE, age_effect=1.0, site_effect=1.0, told=False), 0)
    assert (cohort.covariates, cohort.site) == ((), "")


def test_neighbours_correlate_as_asked():
    far, near = (make_cohort(replace(LARGE, n=4000, neighbours=rho), 0).regions.to_numpy() for rho in (0.0, 0.8))
    gained = np.cov(near.T)[5, 6] - np.cov(far.T)[5, 6]
    assert gained == pytest.approx(0.8, abs=0.15)


def test_what_is_class_mediated_goes_with_the_latents_between_groups_and_not_within():
    cohort = make_cohort(replace(LARGE, n=400, n_latent=20, effect=1.5, class_mediated=True), 0)
    case = (cohort.scans["group"] == "patient").to_numpy(float)[:, None]
    x, z = cohort.regions.to_numpy(), cohort.latents["mean"].values
    pooled = np.abs(stats.partial_correlation(x, z, None)).max(axis=1)
    within = np.abs(stats.partial_correlation(x, z, case)).max(axis=1)
    assert pooled[[2, 9]].min() > 0.3
    assert within[[2, 9]].max() < 0.2
    assert np.delete(within, [2, 9]).min() > 0.3


def test_stages_are_graded_and_share_the_latents():
    cohort = make_cohort(replace(LARGE, stages=True, effect=2.0), 0)
    mean = cohort.regions.groupby(cohort.scans["group"]).mean().iloc[:, 2]
    assert list(mean.sort_values(ascending=False).index) == ["CN", "sMCI", "pMCI", "AD"]
    assert len(cohort.scans) == 1200
    assert cohort.contrast == "pMCI:sMCI"


def test_errors_of_reconstruction_tell_of_regions_only_through_their_mean():
    cohort = make_cohort(replace(LARGE, n=3000), 0)
    error, x = np.log(cohort.errors["error"].to_numpy())[:, None], cohort.regions.to_numpy()
    overall = x.mean(axis=1)[:, None]
    assert np.abs(stats.partial_correlation(x, error, None)).min() > 0.1
    assert np.abs(stats.partial_correlation(x, error, overall)).max() < 0.08


def test_a_seed_is_a_cohort():
    one, same, other = (make_cohort(LARGE, seed).regions for seed in (5, 5, 6))
    assert one.equals(same)
    assert not one.equals(other)


def test_planted_and_spared_regions_are_counted_and_what_lies_between_is_not():
    row = counted({"roi": np.array([1, 1, 0, 1, 1])}, np.array([1, 0, 1, 0, 0], bool), np.array([0, 1, 0, 0, 1], bool))
    assert row == {"n_planted": 2, "roi_planted": 1, "roi_other": 2}
