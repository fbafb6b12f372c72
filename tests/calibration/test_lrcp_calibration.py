"""LRCP on array-level cohorts: p-values are uniform under the null, and the conjunction holds its family-wise level."""

import numpy as np
import pytest
from scipy.stats import binomtest, kstest
from tests.calibration.cohorts import Cohort, Condition, make_cohort
from tests.calibration.studies import LEVEL, STUDIES, UNTOLD
from tests.calibration.table import any_region

from nilatent.analysis import discriminability as disc
from nilatent.analysis import stats
from nilatent.analysis.lrcp import LrcpConfig, lrcp

SMALL = Condition(n=30, n_regions=12, n_latent=4, planted=(3,), neighbours=0.0)
N_PERMUTATIONS = 99


def arrays(made: Cohort) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Latents, regions, who is a case, and confounds."""
    x = made.regions.to_numpy()
    is_case = (made.scans["group"] == "patient").to_numpy()
    return made.latents["mean"].values.astype(float), x, is_case, np.column_stack([made.scans["age"], x.mean(axis=1)])


def assert_at_most_five_percent(found: list[bool]) -> None:
    rate = binomtest(int(np.sum(found)), len(found), 0.05, alternative="greater")
    assert rate.pvalue > 0.01, f"{np.sum(found)} of {len(found)} null cohorts"


def assert_uniform(p_values: list[float], n_permutations: int) -> None:
    # A permutation p-value is a multiple of 1 / (1 + B); spreading it over its step makes it continuous.
    spread = np.array(p_values) - np.random.default_rng(0).uniform(0, 1 / (1 + n_permutations), len(p_values))
    assert kstest(spread, "uniform").pvalue > 0.001


def readout_p(seed: int) -> tuple[float, bool]:
    """p of one region by itself, and whether any region reaches family-wise p <= .05."""
    latents, regions, is_case, confounds = arrays(make_cohort(SMALL, seed))
    folds = disc.label_free_folds(len(latents), 5, seed=seed)
    scores, _ = disc.readout_scores(latents, regions, confounds, folds)
    orders = stats.permutations(len(latents), N_PERMUTATIONS, seed=seed)
    test = stats.permuted_correlation(scores, disc.balanced_targets(is_case), orders, confounds=confounds)
    return float(test.p_value[0, 0]), bool((test.p_fwe <= 0.05).any())


def test_any_region_is_discriminable_in_at_most_five_percent_of_null_cohorts():
    results = [readout_p(seed) for seed in range(100)]
    assert_at_most_five_percent([positive for _, positive in results])
    assert_uniform([p for p, _ in results], N_PERMUTATIONS)


def test_association_is_uniform_when_latents_are_shuffled_across_subjects():
    p_values, joint = [], []
    for seed in range(200):
        latents, regions, *_ = arrays(make_cohort(SMALL, seed))
        latents = latents[np.random.default_rng(seed).permutation(len(latents))]
        orders = stats.permutations(len(latents), N_PERMUTATIONS, seed=seed + 10_000)
        p_values.append(float(stats.permuted_correlation(regions, latents, orders).p_fwe.min()))
        joint.append(float(stats.permuted_share(regions, latents, orders, penalty=0.1).p_fwe.min()))
    for found in (p_values, joint):
        assert_uniform(found, N_PERMUTATIONS)
        assert_at_most_five_percent([p <= 0.05 for p in found])


def test_the_planted_regions_stand_at_the_head_of_the_table():
    condition = Condition(n=120, n_regions=40, n_latent=20, planted=(3, 21), effect=2.5)
    config = LrcpConfig(covariates=("age",), n_permutations=N_PERMUTATIONS, n_permutations_linked=N_PERMUTATIONS)
    for seed in range(3):
        made = make_cohort(condition, seed)
        found = lrcp(made.latents, made.regions, made.scans, made.weights, made.grid, made.mask, config).table
        assert set(found["label"].iloc[:2]) == {4, 22}
        assert (found["grade"].iloc[:2] == "strong").all()


def study_rows(study: str, condition: str, n_cohorts: int) -> list[dict[str, float]]:
    """Rows of other seeds than those of the table, so that both together say more than either."""
    return [STUDIES[study].measure(condition, 10_000 + seed) for seed in range(n_cohorts)]


@pytest.mark.slow
@pytest.mark.calibration
@pytest.mark.parametrize("condition", LEVEL)
def test_the_conjunction_holds_its_level(condition):
    rows = study_rows("regions", condition, 100)
    for method in ("lrcp", "lent", "joint", "linked", "roi"):
        assert_at_most_five_percent([bool(any_region(row, method)) for row in rows])


@pytest.mark.slow
@pytest.mark.calibration
@pytest.mark.parametrize("condition", UNTOLD)
def test_a_confound_that_nobody_was_told_of_shows(condition):
    """Otherwise the confounded conditions would pass whatever the analysis does with confounds."""
    rows = study_rows("regions", condition, 20)
    assert np.mean([any_region(row, "lrcp") for row in rows]) > 0.5


@pytest.mark.slow
@pytest.mark.calibration
def test_what_is_class_mediated_gets_the_weaker_grade():
    seen, mediated = (
        study_rows("grades", condition, 20) for condition in ("the model sees the regions", "class-mediated")
    )
    strong_share = [
        sum(row["strong"] for row in rows) / sum(row["lrcp_planted"] for row in rows) for rows in (seen, mediated)
    ]
    assert strong_share[0] > 0.9
    assert strong_share[1] < 0.3
