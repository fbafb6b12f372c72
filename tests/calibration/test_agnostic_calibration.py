"""Agnostic validation on array-level cohorts: badges and p-values under the null, and where an effect is found."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest, kstest
from tests.calibration.cohorts import Condition, make_cohort

from nilatent.analysis.agnostic import AgnosticConfig, agnostic

N_PERMUTATIONS = 99
LEVEL = {
    "n = 60": Condition(n_latent=6),
    "n = 200": Condition(n=200, n_latent=6),
    "n = 60, 15 latents": Condition(),
    "site goes with the group": Condition(n=200, n_latent=6, site_effect=1.0),
    "age goes with the group": Condition(n_latent=6, age_effect=1.0),
    "35 cases, 14 references": Condition(n=49, n_latent=6, cases=35 / 49),
    "143 cases, 57 references": Condition(n=200, n_latent=6, cases=35 / 49),
}
# The same, and nobody told the analysis: here badges must appear, or the conditions above prove nothing.
UNTOLD = Condition(n=300, n_latent=6, n_regions=12, planted=(3,), site_effect=3.0, told=False)


def table(condition: Condition, seed: int) -> pd.DataFrame:
    """Certificates of one cohort, one row per test and kind of features; SAM's row is its best region."""
    made = make_cohort(condition, seed)
    config = AgnosticConfig(
        contrast=made.contrast,
        covariates=made.covariates,
        site=made.site,
        targets=("score",),
        n_permutations=N_PERMUTATIONS,
        seed=seed,
    )
    found = agnostic(made.latents, made.regions, made.scans, made.weights, made.grid, made.mask, config).table
    found = found[found["features"] != "covariates only"].assign(
        holds=found["bound"] < found["threshold"], badge=found["badge"] == "bound-validated"
    )
    return found.groupby(["test", "features"])[["holds", "p", "badge"]].agg(
        {"holds": "max", "p": "min", "badge": "max"}
    )


def tables(condition: Condition, n_cohorts: int) -> pd.DataFrame:
    """(cohort) by test and features: whether the bound holds, p, and whether there is a badge."""
    made = {seed: table(condition, seed) for seed in range(n_cohorts)}
    return pd.concat(made, names=["cohort"]).reset_index()


def assert_at_most_five_percent(found: np.ndarray, what: str) -> None:
    rate = binomtest(int(np.sum(found)), len(found), 0.05, alternative="greater")
    # Some eighty of these share the risk of a false alarm.
    assert rate.pvalue > 0.001, f"{what}: {np.sum(found)} of {len(found)} null cohorts"


def assert_level(rows: pd.DataFrame) -> None:
    for (test, features), chosen in rows.groupby(["test", "features"]):
        what = f"{test} of {features}"
        assert_at_most_five_percent(chosen["badge"].to_numpy(), f"badge, {what}")
        assert_at_most_five_percent(chosen["p"].to_numpy() <= 0.05, f"p, {what}")
        # A permutation p-value is a multiple of 1 / (1 + B); spreading it over its step makes it continuous.
        step = np.random.default_rng(0).uniform(0, 1 / (1 + N_PERMUTATIONS), len(chosen))
        assert kstest(chosen["p"].to_numpy() - step, "uniform").pvalue > 1e-4, what


def test_a_confound_that_nobody_tells_of_is_certified() -> None:
    rows = table(UNTOLD, 0)["badge"]
    assert rows["CUBV"].all()
    assert rows["SAR", "latents"]


def test_an_effect_is_certified_in_many_scans_and_inconclusive_in_few() -> None:
    strong = Condition(n=300, n_latent=6, n_regions=12, planted=tuple(range(6)), effect=2.5)
    assert table(strong, 0)["badge"].loc[[("CUBV", "latents"), ("CUBV", "regions"), ("SAM", "own grey matter")]].all()
    found = table(Condition(n=50, n_latent=6, n_regions=12, planted=(3, 8), effect=1.5), 0)
    assert not found["badge"].any()
    assert (found.loc[["CUBV", "SAM"], "p"] <= 0.05).all()


@pytest.mark.slow
@pytest.mark.calibration
@pytest.mark.parametrize("condition", LEVEL.values(), ids=list(LEVEL))
def test_badges_and_p_values_hold_their_level(condition: Condition) -> None:
    assert_level(tables(condition, 150))
