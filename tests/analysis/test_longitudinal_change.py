from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from nilatent.analysis.longitudinal.change import change, degrees, permuted_difference
from nilatent.analysis.longitudinal.visits import Visits
from nilatent.analysis.mixed import fit_mixed
from nilatent.analysis.stats import permutations


def followed(rng, n=40, *, groups=("AD", "CN"), visits=(1, 5), level=0, pace=0):
    """Subjects with uneven visits, some of them with one; covariates drawn at random."""
    counts = np.full(n, visits[0]) if visits[0] == visits[1] else rng.integers(*visits, n)
    number = np.repeat(np.arange(n), counts)
    years = np.concatenate([np.r_[0.0, np.arange(1, count) + rng.uniform(-0.3, 0.3, count - 1)] for count in counts])
    first = np.r_[True, np.diff(number) > 0]
    names = np.array(groups)[np.arange(n) % len(groups)]
    pairs = tuple((one, groups[-1]) for one in groups[:-1])
    held = [rng.normal(size=(n, wide)) for wide in (level, pace)]
    held = [one - one.mean(axis=0) for one in held]
    return Visits(
        rows=np.arange(len(number)),
        subject=np.array([f"s{one:03d}" for one in number]),
        years=years,
        group=names[number],
        groups=tuple(sorted(groups)),
        contrasts=pairs,
        level=held[0][number],
        pace=held[1][number],
        block=np.full(len(number), ""),
        left_out={},
    ), first


def outcome(rng, visits, *, rates, slope=0.1, noise=0.2, n=1):
    """(visit, measure) with a rate per group, own levels and own slopes."""
    number = visits.number
    n_subjects = number.max() + 1
    own = rng.normal(size=(2, n_subjects, n)) * np.array([1.0, slope])[:, None, None]
    rate = np.array([rates[one] for one in visits.group])
    return (
        5
        + own[0][number]
        + (rate[:, None] + own[1][number]) * visits.years[:, None]
        + noise * rng.normal(size=(len(number), n))
    )


def test_rates_and_differences_are_those_of_the_mixed_model(rng):
    visits, first = followed(rng, groups=("AD", "MCI", "CN"), n=60, level=2, pace=1)
    y = outcome(rng, visits, rates={"AD": -0.4, "MCI": -0.2, "CN": 0.0}, n=2)
    found = change(y, visits, n_permutations=20, seed=0)
    design, free = visits.design(), degrees(visits)
    assert free == visits.repeated.sum() - 3 - 1
    for measure in range(2):
        fit = fit_mixed(y[:, measure], design, visits.years, visits.subject)
        np.testing.assert_allclose(found.level[measure], fit.coefficients[:3], rtol=1e-5)
        np.testing.assert_allclose(found.rate[measure, :, 0], fit.coefficients[3:6], rtol=1e-4)
        error = np.sqrt(fit.covariance[4, 4])
        np.testing.assert_allclose(
            found.rate[measure, 1, 1:], stats.t(free, fit.coefficients[4], error).interval(0.95), rtol=1e-4
        )
        assert found.p_rate[measure, 1] == pytest.approx(
            2 * stats.t(free).sf(abs(fit.coefficients[4]) / error), rel=1e-3
        )
        # Groups are sorted: AD, CN, MCI; contrasts are AD and MCI less CN.
        np.testing.assert_allclose(
            found.difference[measure, :, 0], fit.coefficients[[3, 5]] - fit.coefficients[4], rtol=1e-4
        )
        own = fit.coefficients[3:6][np.searchsorted(visits.groups, visits.group[first])] + fit.subject_effects[:, 1]
        np.testing.assert_allclose(
            found.subject_rate[measure], own + visits.pace[first, 0] * fit.coefficients[6], rtol=1e-3
        )


def test_the_likelihood_ratio_is_that_of_a_model_with_one_rate_for_both(rng):
    visits, _ = followed(rng, groups=("AD", "MCI", "CN"), n=60, level=1)
    y = outcome(rng, visits, rates={"AD": -0.15, "MCI": 0.0, "CN": 0.0})
    found = change(y, visits, n_permutations=20, seed=0)
    # Dummies and products, as one would write it by hand: the rate of AD is that of CN.
    member = np.column_stack([visits.group == one for one in ("AD", "MCI")]).astype(float)
    whole = np.column_stack([np.ones(len(y)), member, visits.years, member * visits.years[:, None], visits.level])
    fits = [
        fit_mixed(y[:, 0], x, visits.years, visits.subject, restricted=False)
        for x in (whole, np.delete(whole, 4, axis=1))
    ]
    naive = stats.chi2(1).sf(2 * (fits[0].log_likelihood - fits[1].log_likelihood))
    assert found.p_ratio[0, 0] == pytest.approx(naive, rel=1e-4)


def test_with_equal_visits_the_permuted_statistic_is_the_t_of_the_slopes(rng):
    visits, first = followed(rng, visits=(3, 3), n=24)
    visits = replace(visits, years=np.tile([0.0, 1.0, 2.0], 24))
    y = outcome(rng, visits, rates={"AD": -0.2, "CN": 0.0})[:, 0]
    null = fit_mixed(y, np.column_stack([np.ones(72), visits.years]), visits.years, visits.subject)
    orders = permutations(24, 50, seed=1)
    seen, draws = permuted_difference(y, visits, ("AD", "CN"), null, orders)
    slope = (y[2::3] - y[::3]) / 2
    case = visits.group[first] == "AD"

    def correlation(values):
        t = stats.ttest_ind(values[case], values[~case]).statistic
        return abs(t) / np.sqrt(t**2 + 22)

    assert seen == pytest.approx(correlation(slope))
    np.testing.assert_allclose(draws, [correlation(slope[order]) for order in orders], rtol=1e-5)


def test_uneven_visits_count_by_their_precision_and_pace_is_held(rng):
    visits, _ = followed(rng, n=30, pace=1)
    y = outcome(rng, visits, rates={"AD": 0.0, "CN": 0.0})[:, 0]
    null = fit_mixed(y, np.column_stack([np.ones(len(y)), visits.years]), visits.years, visits.subject)
    several = np.flatnonzero(visits.repeated)
    orders = permutations(len(several), 30, seed=1)
    seen, draws = permuted_difference(y, visits, ("AD", "CN"), null, orders)
    slopes, weights = [], []
    for one in several:
        rows = visits.subject == visits.subject[one]
        fitted, covariance = (
            np.polyfit(visits.years[rows], y[rows], 1),
            np.square(visits.years[rows] - visits.years[rows].mean()),
        )
        slopes.append(fitted[0])
        weights.append(1 / (null.random[1, 1] + null.residual_variance / covariance.sum()))
    root = np.sqrt(weights)
    held = root[:, None] * np.column_stack([np.ones(len(several)), visits.pace[several]])
    take = np.eye(len(several)) - held @ np.linalg.pinv(held)
    member, left = take @ (root * (visits.group[several] == "AD")), take @ (root * slopes)
    assert seen == pytest.approx(abs(cosine(member, left)))
    naive = [abs(cosine(member, take @ left[order])) for order in orders]
    np.testing.assert_allclose(draws, naive, rtol=1e-6)


def cosine(one, other):
    return one @ other / np.linalg.norm(one) / np.linalg.norm(other)


def test_subjects_are_permuted_within_sites_and_not_at_all_where_sites_are_groups(rng):
    visits, _ = followed(rng, visits=(3, 3), n=24)
    visits = replace(visits, years=np.tile([0.0, 1.0, 2.0], 24))
    y = outcome(rng, visits, rates={"AD": -0.5, "CN": 0.0}, noise=0.05, slope=0.05)
    apart = replace(visits, block=visits.group)
    found = change(y, apart, n_permutations=50, seed=0)
    assert np.isnan(found.p_permutation).all()
    assert np.isnan(found.p_fwe).all()
    assert found.p_ratio[0, 0] < 1e-4
    # With one case and one control at the only mixed site, half of the orders are the order seen.
    few = replace(visits, block=np.where(visits.number < 2, "both", visits.group))
    assert change(y, few, n_permutations=400, seed=0).p_permutation[0, 0] == pytest.approx(0.5, abs=0.1)


def test_one_planted_difference_among_many_measures_is_found_family_wise(rng):
    visits, _ = followed(rng, n=60, visits=(2, 5))
    y = outcome(rng, visits, rates={"AD": 0.0, "CN": 0.0}, n=8)
    y[:, 3] -= 0.4 * visits.years * (visits.group == "AD")
    found = change(y, visits, n_permutations=500, seed=0)
    assert found.p_fwe[3, 0] < 0.01
    assert found.p_fwe[:, 0].argmin() == 3
    assert (found.p_fwe >= found.p_permutation - 1e-12).all()
    assert found.difference[3, 0, 0] == pytest.approx(-0.4, abs=0.15)


def test_measures_that_do_not_vary_are_not_judged(rng):
    visits, _ = followed(rng)
    y = outcome(rng, visits, rates={"AD": -0.2, "CN": 0.0}, n=2)
    alone = change(y, visits, n_permutations=100, seed=0)
    with_flat = change(np.column_stack([y, np.full(len(y), 0.3)]), visits, n_permutations=100, seed=0)
    assert with_flat.fits[2] is None
    for name in ("rate", "p_rate", "difference", "p_ratio", "p_permutation", "p_fwe"):
        np.testing.assert_allclose(getattr(with_flat, name)[:2], getattr(alone, name), rtol=1e-6)
        assert np.isnan(getattr(with_flat, name)[2]).all()


def test_a_rate_that_depends_on_age_is_no_difference_of_groups_once_age_is_named(rng):
    visits, first = followed(rng, n=80, visits=(3, 4))
    age = (rng.normal(size=80) + (visits.group[first] == "AD"))[visits.number]
    age -= age[first].mean()
    y = outcome(rng, visits, rates={"AD": 0.0, "CN": 0.0}) - 0.2 * (age * visits.years)[:, None]
    blind = change(y, replace(visits, level=age[:, None]), n_permutations=200, seed=0)
    named = change(y, replace(visits, level=age[:, None], pace=age[:, None]), n_permutations=200, seed=0)
    assert blind.p_permutation[0, 0] < 0.01
    assert named.p_permutation[0, 0] > 0.05
    assert abs(named.difference[0, 0, 0]) < 0.1


def test_what_only_shifts_levels_makes_no_rates(rng):
    visits, first = followed(rng, n=40, visits=(2, 5))
    y = outcome(rng, visits, rates={"AD": -0.1, "CN": 0.1})
    shift = (10 * rng.normal(size=40))[visits.number]
    level = (shift - shift[first].mean())[:, None]
    plain = change(y, replace(visits, level=level), n_permutations=100, seed=0)
    moved = change(y + shift[:, None], replace(visits, level=level), n_permutations=100, seed=0)
    np.testing.assert_allclose(moved.difference, plain.difference, rtol=1e-4)
    np.testing.assert_allclose(moved.p_permutation, plain.p_permutation)


@pytest.mark.slow
def test_under_the_null_no_more_than_a_twentieth_is_called_and_intervals_cover(rng):
    ratio, permuted, covered, family = [], [], [], []
    for number in range(200):
        visits, _ = followed(rng, n=40, level=1)
        y = outcome(rng, visits, rates={"AD": -0.1, "CN": -0.1}, n=3)
        found = change(y, visits, n_permutations=199, seed=number)
        ratio.append(found.p_ratio[0, 0] <= 0.05)
        permuted.append(found.p_permutation[0, 0] <= 0.05)
        family.append(found.p_fwe.min() <= 0.05)
        covered.append(found.difference[0, 0, 1] <= 0 <= found.difference[0, 0, 2])
    for called in (permuted, family):
        assert stats.binomtest(sum(called), 200, 0.05).pvalue > 0.01
    assert stats.binomtest(sum(ratio), 200, 0.05, alternative="less").pvalue > 0.001
    assert stats.binomtest(sum(covered), 200, 0.95).pvalue > 0.01


def test_a_covariate_that_changes_between_visits_is_held_in_the_slopes_too(rng):
    visits, _ = followed(rng, n=40, visits=(2, 5))
    y = outcome(rng, visits, rates={"AD": 0.0, "CN": 0.0})
    # A score that follows time in one group only, and shifts the measure.
    score = visits.years * (visits.group == "AD") + 0.3 * rng.normal(size=len(y))
    held = replace(visits, level=(score - score.mean())[:, None])
    found = change(y + 2 * score[:, None], held, n_permutations=200, seed=0)
    plain = change(y, held, n_permutations=200, seed=0)
    assert found.p_permutation[0, 0] == pytest.approx(plain.p_permutation[0, 0], abs=0.05)
    assert change(y + 2 * score[:, None], visits, n_permutations=200, seed=0).p_permutation[0, 0] < 0.01
