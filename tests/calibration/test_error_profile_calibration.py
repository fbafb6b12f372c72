"""Calibration of the error profile on array-level factor-model cohorts: no image, no training, the error is built on top."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from scipy.stats import binomtest, kstest

from nilatent.analysis.error_profile import ErrorProfileConfig, gain_of, prepared
from nilatent.analysis.error_profile import classes as classes
from nilatent.analysis.error_profile import shap as shap_values
from nilatent.analysis.error_profile.gain import Gain, holm
from nilatent.analysis.error_profile.models import Problem

PLANTED = 5
N_MODELS = 5


@dataclass(frozen=True, eq=False)
class Cohort:
    problem: Problem
    is_case: np.ndarray
    site: np.ndarray


def cohort(
    seed: int,
    *,
    n: int = 60,
    n_regions: int = 16,
    effect: float = 0.0,
    total: float = 0.5,
    bend: float = 0.0,
    age_effect: float = 0.0,
    site_effect: float = 0.0,
    cases: float = 0.5,
    group_effect: float = 0.0,
    uneven: float = 0.0,
) -> Cohort:
    """Regions share a size factor and network factors; the log error follows total grey matter, its model's level, noise.

    With an age effect, age acts on regions, group and error; with a site effect, so does the site. A group effect lowers
    half of the regions in cases. `bend` bends the relation to total grey matter, `uneven` makes the noise grow with it;
    `effect` is that of the planted region, in SD of the noise.
    """
    rng = np.random.default_rng([seed, n, n_regions])
    age, site = rng.normal(size=n), rng.integers(0, 3, size=n)
    leaning = age_effect * age + site_effect * (site - 1) + rng.normal(size=n)
    is_case = np.argsort(np.argsort(leaning)) < round(cases * n)
    x = rng.normal(size=(n, 1)) + rng.normal(size=(n, 4)) @ rng.normal(size=(4, n_regions)) * 0.5
    x += rng.normal(size=(n, n_regions)) + 0.7 * age_effect * age[:, None]
    x += site_effect * rng.normal(size=(3, n_regions))[site]
    x[np.ix_(is_case, np.arange(n_regions) % 2 == 0)] -= group_effect
    gm = x.mean(axis=1)
    gm = (gm - gm.mean()) / gm.std()
    levels = rng.permutation(np.arange(n) % N_MODELS)
    # The logarithm of a sum of squares, as of a residual image: skewed to the left, not Gaussian.
    noise = np.log(rng.chisquare(12, size=n) / 12) * np.exp(uneven * gm)
    log_error = total * gm + bend * gm**2 + 0.3 * rng.normal(size=N_MODELS)[levels] + noise
    log_error += 0.5 * age_effect * age + 0.7 * site_effect * rng.normal(size=3)[site]
    own = x[:, PLANTED] - gm * (x[:, PLANTED] @ gm) / n
    log_error += effect * noise.std() * (own - own.mean()) / own.std()
    columns = [
        gm[:, None],
        gm[:, None] ** 2,
        age[:, None],
        age[:, None] ** 2,
        levels[:, None] == np.arange(1, N_MODELS),
    ]
    blocks = levels
    if site_effect:
        columns.append(site[:, None] == [1, 2])
        blocks = levels * 3 + site
    null = np.hstack([np.asarray(column, dtype=float) for column in columns])
    return Cohort(Problem(log_error, x, null, levels, np.unique(blocks, return_inverse=True)[1]), is_case, site)


def gains_of(made: Cohort, seed: int, *, models: tuple[str, ...] = ("ridge",), n_permutations: int = 99) -> list[Gain]:
    config = ErrorProfileConfig(
        models=models, n_permutations=n_permutations, n_permutations_trees=39, n_stop=5, n_repeats=1, seed=seed
    )
    partitions, orders = prepared(made.problem, config)
    return [gain_of(made.problem, partitions, model, orders, config) for model in models]


def ridge_p(seed: int, **condition: float) -> float:
    return gains_of(cohort(seed, **condition), seed)[0].p_value


def explained(seed: int, **condition: float) -> tuple[bool, int, bool]:
    """Whether the gate opens, the rank of the planted region, and whether any region is said to differ between classes."""
    made = cohort(seed, **condition)
    config = ErrorProfileConfig(models=("ridge",), n_permutations=99, n_repeats=1, seed=seed)
    partitions, orders = prepared(made.problem, config)
    gain = gain_of(made.problem, partitions, "ridge", orders, config)
    phi = shap_values.contributions(made.problem, partitions, "ridge", seed=seed).phi
    size = np.abs(phi).mean(axis=0)
    group = np.where(made.is_case, "AD", "CN")
    p_values = classes.class_difference(phi, group, made.problem, blocks=None, n_permutations=99, seed=seed)
    return gain.p_value <= 0.05, 1 + int((size > size[PLANTED]).sum()), bool((np.array(p_values) <= 0.05).any())


def assert_at_most_five_percent(found: Sequence[bool]) -> None:
    rate = binomtest(int(np.sum(found)), len(found), 0.05, alternative="greater")
    assert rate.pvalue > 0.01, f"{np.sum(found)} of {len(found)} null cohorts"


def assert_uniform(p_values: Sequence[float], n_permutations: int) -> None:
    # A permutation p-value is a multiple of 1 / (1 + B); spreading it over its step makes it continuous.
    spread = np.array(p_values) - np.random.default_rng(0).uniform(0, 1 / (1 + n_permutations), len(p_values))
    assert kstest(spread, "uniform").pvalue > 0.001


def test_the_gate_opens_in_at_most_five_percent_of_null_cohorts():
    p_values = [ridge_p(seed, n=30, n_regions=12) for seed in range(100)]
    assert_at_most_five_percent([p <= 0.05 for p in p_values])
    assert_uniform(p_values, 99)


def test_the_planted_region_opens_the_gate_and_stands_first():
    found = [explained(seed, n=120, effect=0.8) for seed in range(8)]
    assert [(opened, rank) for opened, rank, _ in found] == [(True, 1)] * 8


NULLS = {
    "n60": {},
    "n200": {"n": 200},
    "n200, 116 regions": {"n": 200, "n_regions": 116},
    "n60, 60 regions": {"n_regions": 60},
    "bent": {"bend": 0.5},
    "site confounded": {"site_effect": 1.0},
    "site confounded, n200": {"site_effect": 1.0, "n": 200},
    "age confounded": {"age_effect": 1.0},
    "age confounded, n200": {"age_effect": 1.0, "n": 200},
    "unequal groups": {"cases": 0.2, "group_effect": 1.0},
    "unequal groups, n200": {"cases": 0.2, "group_effect": 1.0, "n": 200},
    "uneven noise": {"uneven": 0.4},
}


@pytest.mark.slow
@pytest.mark.calibration
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("condition", NULLS.values(), ids=NULLS.keys())
def test_the_gate_holds_its_level(condition):
    p_values = [ridge_p(seed, **condition) for seed in range(1000)]
    assert_at_most_five_percent([p <= 0.05 for p in p_values])
    assert_uniform(p_values, 99)


@pytest.mark.slow
@pytest.mark.calibration
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("condition", [{}, {"bend": 0.5}], ids=["null", "bent"])
def test_two_models_behind_one_gate_hold_its_level(condition):
    opened = []
    for seed in range(100):
        gains = gains_of(cohort(seed, **condition), seed, models=("ridge", "trees"))
        opened.append(bool((holm([gain.p_value for gain in gains]) <= 0.05).any()))
    assert_at_most_five_percent(opened)


@pytest.mark.slow
@pytest.mark.calibration
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("condition", [{}, {"cases": 0.2}, {"n": 200}], ids=["n60", "unequal", "n200"])
def test_no_class_difference_is_claimed_where_the_region_acts_alike(condition):
    found = [explained(seed, effect=1.0, **condition) for seed in range(500)]
    assert_at_most_five_percent([differs for opened, _, differs in found if opened])
