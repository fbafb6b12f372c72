"""Calibration of LRCP on array-level factor-model cohorts: no image, no training, the latents are PCA of voxels."""

from dataclasses import dataclass

import numpy as np
import pytest
from scipy.stats import binomtest, kstest

from nilatent.analysis import discriminability as disc
from nilatent.analysis import stats
from nilatent.analysis.contrast import Comparison
from nilatent.analysis.lrcp import LrcpConfig, Profile, profile, ranking_score

PLANTED = (3, 11)


@dataclass(frozen=True, eq=False)
class Cohort:
    latents: np.ndarray
    regions: np.ndarray
    is_case: np.ndarray
    confounds: np.ndarray


def cohort(
    seed: int,
    *,
    n: int = 40,
    n_regions: int = 16,
    n_latent: int = 6,
    effect: float = 0.0,
    age_effect: float = 0.0,
    cases: float = 0.5,
) -> Cohort:
    """Regions share a size factor and network factors; with an age effect, age acts on regions and on the group."""
    rng = np.random.default_rng([seed, n, n_regions])
    age = rng.normal(size=n)
    is_case = np.argsort(np.argsort(age_effect * age + rng.normal(size=n))) < round(cases * n)
    x = rng.normal(size=(n, 1)) + rng.normal(size=(n, 4)) @ rng.normal(size=(4, n_regions)) * 0.5
    x += rng.normal(size=(n, n_regions)) + 0.7 * age_effect * age[:, None]
    x[np.ix_(is_case, PLANTED)] -= effect
    voxels = np.repeat(x, 4, axis=1) + rng.normal(size=(n, 4 * n_regions))
    voxels -= voxels.mean(axis=0)
    latents = voxels @ np.linalg.svd(voxels, full_matrices=False)[2][:n_latent].T
    regions = voxels.reshape(n, n_regions, 4).mean(axis=2)
    confounds = np.column_stack([age, regions.mean(axis=1)])
    return Cohort(latents, regions, is_case, confounds)


def profiled(made: Cohort, seed: int, *, n_permutations: int = 99) -> Profile:
    rows = np.arange(len(made.latents))
    comparison = Comparison(rows, made.is_case, "A", "B", made.confounds, None, {})
    config = LrcpConfig(n_permutations=n_permutations, n_permutations_linked=n_permutations, n_folds=5, seed=seed)
    return profile(made.latents, made.regions, comparison, config, unadjusted=made.confounds[:, :1])


def any_positive(result: Profile) -> tuple[bool, bool]:
    """Whether any region is called, in the joint and in the linked reading."""
    joint, linked = np.maximum(result.joint_p, result.readout_p), np.maximum(p_pair(result), result.linked.p_fwe)
    return bool((joint <= 0.05).any()), bool((linked <= 0.05).any())


def p_pair(result: Profile) -> np.ndarray:
    return result.pooled.p_fwe.min(axis=1)


def readout_p(made: Cohort, seed: int) -> tuple[float, bool]:
    """p of one region by itself, and whether any region reaches family-wise p <= .05."""
    folds = disc.label_free_folds(len(made.latents), 5, seed=seed)
    scores, _ = disc.readout_scores(made.latents, made.regions, made.confounds, folds)
    orders = stats.permutations(len(made.latents), 99, seed=seed)
    targets = disc.balanced_targets(made.is_case)
    test = stats.permuted_correlation(scores, targets, orders, confounds=made.confounds)
    return float(test.p_value[0, 0]), bool((test.p_fwe <= 0.05).any())


def assert_at_most_five_percent(found: list[bool]) -> None:
    rate = binomtest(int(np.sum(found)), len(found), 0.05, alternative="greater")
    assert rate.pvalue > 0.01, f"{np.sum(found)} of {len(found)} null cohorts"


def assert_uniform(p_values: list[float], n_permutations: int) -> None:
    # A permutation p-value is a multiple of 1 / (1 + B); spreading it over its step makes it continuous.
    spread = np.array(p_values) - np.random.default_rng(0).uniform(0, 1 / (1 + n_permutations), len(p_values))
    assert kstest(spread, "uniform").pvalue > 0.001


def test_any_region_is_discriminable_in_at_most_five_percent_of_null_cohorts():
    results = [readout_p(cohort(seed, n=30, n_regions=12), seed) for seed in range(200)]
    assert_at_most_five_percent([positive for _, positive in results])
    assert_uniform([p for p, _ in results], 99)


def test_association_is_uniform_when_latents_are_shuffled_across_subjects():
    p_values, joint = [], []
    for seed in range(200):
        made = cohort(seed, n=30, n_regions=12, n_latent=4)
        latents = made.latents[np.random.default_rng(seed).permutation(30)]
        orders = stats.permutations(30, 99, seed=seed + 10_000)
        p_values.append(float(stats.permuted_correlation(made.regions, latents, orders).p_fwe.min()))
        joint.append(float(stats.permuted_r2(made.regions, latents, orders, penalty=0.1)[1].min()))
    for found in (p_values, joint):
        assert_uniform(found, 99)
        assert_at_most_five_percent([p <= 0.05 for p in found])


def test_the_planted_regions_stand_at_the_head_of_the_table():
    for seed in range(5):
        result = profiled(cohort(seed, n=120, n_regions=40, n_latent=20, effect=1.8), seed)
        assert set(np.argsort(-ranking_score(result.r2, result.readout_acc))[:2]) == set(PLANTED)
        assert (result.readout_p[list(PLANTED)] <= 0.05).all()


@pytest.mark.slow
@pytest.mark.calibration
@pytest.mark.parametrize(
    "condition",
    [
        {},
        {"n": 100},
        {"age_effect": 1.0, "n": 60},
        {"cases": 0.25, "n": 60},
        {"n_regions": 60, "n_latent": 16, "n": 60},
    ],
    ids=["n40", "n100", "age confounded", "unequal groups", "60 regions"],
)
def test_the_conjunction_holds_its_level(condition):
    found = [any_positive(profiled(cohort(seed, **condition), seed, n_permutations=199)) for seed in range(1000)]
    assert_at_most_five_percent([readout for readout, _ in found])
    assert_at_most_five_percent([linked for _, linked in found])
