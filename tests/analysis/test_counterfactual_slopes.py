import numpy as np
import pandas as pd
import pytest

from nilatent.analysis.contrast import NotComparableError
from nilatent.analysis.counterfactual.slopes import (
    agreement,
    pattern,
    people_of,
    permutation_p,
    permuted_columns,
    rank_correlation,
    slopes_of,
)
from nilatent.errors import CohortError

SLOPES = np.linspace(-0.004, 0.002, 15)


@pytest.fixture
def cohort(rng):
    n = 50
    names = pd.Index([f"scan-{i:02d}" for i in range(n)], name="scan_id")
    age, sex = rng.uniform(20, 80, n), rng.choice(["F", "M"], n)
    scans = pd.DataFrame({"subject_id": names, "age": age, "sex": sex, "site": rng.choice(["a", "b"], n)}, index=names)
    y = 0.5 + np.outer(age, SLOPES) + 0.1 * (sex == "M")[:, None] + 0.02 * rng.normal(size=(n, 15))
    return pd.DataFrame(y, index=names, columns=[f"r{i:02d}" for i in range(15)]), scans


def naive_slopes(regions, scans):
    design = np.column_stack([np.ones(len(scans)), scans["age"], scans["sex"] == "M"])
    return np.linalg.lstsq(design, regions.loc[scans.index].to_numpy(), rcond=None)[0][1]


def test_slopes_are_those_of_a_regression_on_the_first_scan_of_each_subject(cohort):
    regions, scans = cohort
    again = scans.head(8).rename(index=lambda name: f"{name}_2").assign(session_id="2")
    scans = scans.assign(session_id="1")
    both = pd.concat([again, scans])
    measured = pd.concat([regions, regions.head(8).rename(index=lambda name: f"{name}_2") + 5])
    found = slopes_of(measured, both, "age", others=("sex",))
    np.testing.assert_allclose(found, naive_slopes(regions, scans), rtol=1e-8)
    assert list(found.index) == list(regions)
    unadjusted = slopes_of(measured, both, "age")
    assert not np.allclose(unadjusted, found, rtol=1e-4)


def test_slopes_of_two_levels_are_the_first_minus_the_second(cohort):
    regions, scans = cohort
    found = slopes_of(regions, scans, "sex", others=("age",), levels=("M", "F"))
    np.testing.assert_allclose(found, 0.1, atol=0.03)
    np.testing.assert_allclose(slopes_of(regions, scans, "sex", others=("age",), levels=("F", "M")), -found)


def test_weights_count_people_as_often(rng):
    x, confounds, y = rng.normal(size=12), rng.normal(size=(12, 2)) * [1, 1e4], rng.normal(size=(12, 3))
    counts = rng.integers(0, 4, 12).astype(float)
    rows = np.repeat(np.arange(12), counts.astype(int))
    expected = pattern(x[rows], confounds[rows], y[rows])
    np.testing.assert_allclose(pattern(x, confounds, y, weights=counts), expected)
    assert not np.allclose(pattern(x, confounds, y), expected)
    assert np.isnan(pattern(confounds[:, 0] * 3 + 1, confounds, y)).all()


def test_agreement_is_that_of_slopes_fitted_again_with_every_shuffled_column(cohort):
    regions, scans = cohort
    effect = SLOPES + np.tile([0.001, -0.001, 0.0005], 5)
    found = agreement(effect, regions, scans, "age", others=("sex",), n_permutations=200, seed=3)
    np.testing.assert_allclose(found.slopes, naive_slopes(regions, scans), rtol=1e-8)
    people = people_of(scans, "age", others=("sex",))
    draws = permuted_columns(people, 200, seed=3)
    ranks = [
        pd.Series(effect).corr(pd.Series(naive_slopes(regions, scans.assign(age=column))), method="spearman")
        for column in draws.T
    ]
    assert found.rho == pytest.approx(ranks[0])
    assert found.p_value == pytest.approx((1 + np.sum(np.array(ranks[1:]) >= ranks[0] - 1e-9)) / 201)
    assert found.p_value < 0.02
    assert found.n_subjects == 50
    turned = agreement(-effect, regions, scans, "age", others=("sex",), n_permutations=200, seed=3)
    assert turned.rho == pytest.approx(-found.rho)
    assert turned.p_value > 0.9


def test_permutations_stay_within_sites_and_depend_on_the_seed(cohort):
    _, scans = cohort
    people = people_of(scans, "age", site="site")
    first, again, other = (permuted_columns(people, 20, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    for site in ("a", "b"):
        rows = (scans["site"] == site).to_numpy()
        np.testing.assert_allclose(np.sort(first[rows], axis=0), np.tile(np.sort(first[rows, :1], axis=0), 21))


@pytest.mark.slow
def test_p_of_agreement_is_uniform_where_regions_share_noise(rng):
    """Regions that rise and fall together: correlations over regions are large by chance, their permutation p is not."""
    effect, rejected, large = np.linspace(-1, 1, 30), 0, 0
    names = [f"s{i}" for i in range(24)]
    for seed in range(200):
        shared = rng.normal(size=(24, 2)) @ np.vstack([np.linspace(-1, 1, 30), np.ones(30)])
        regions = pd.DataFrame(shared + 0.1 * rng.normal(size=(24, 30)), index=names)
        scans = pd.DataFrame({"subject_id": names, "age": rng.uniform(20, 80, 24)}, index=names)
        found = agreement(effect, regions, scans, "age", n_permutations=99, seed=seed)
        rejected += found.p_value <= 0.1
        large += abs(found.rho) > 0.5
    assert large > 120
    assert 8 <= rejected <= 33


def test_ranks_of_ties_and_of_flat_effects():
    right = np.array([[1.0, 2, 2, 5], [4, 3, 2, 1]])
    left = np.array([[1.0, 2, 3, 4]])
    expected = [pd.Series(left[0]).corr(pd.Series(row), method="spearman") for row in right]
    np.testing.assert_allclose(rank_correlation(left, right), expected)
    assert np.isnan(rank_correlation(np.ones((1, 4)), right)).all()
    assert permutation_p(np.array([0.5, 0.5, 0.1, 0.9])) == pytest.approx(3 / 4)
    assert np.isnan(permutation_p(np.array([np.nan, 0.1])))


def test_what_does_not_fit_is_refused(cohort):
    regions, scans = cohort
    with pytest.raises(CohortError, match="14,"):
        agreement(SLOPES[1:], regions, scans, "age")
    with pytest.raises(CohortError, match="scan-03"):
        slopes_of(regions.drop("scan-03"), scans, "age")
    with pytest.raises(NotComparableError, match="too few"):
        slopes_of(regions, scans.head(12), "age")
