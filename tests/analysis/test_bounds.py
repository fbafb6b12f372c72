from fractions import Fraction
from math import ceil, comb, log, sqrt

import numpy as np
import pytest
from scipy.stats import binom

from nilatent.analysis import bounds
from nilatent.analysis.bounds import badge, badges, exact_limit, mean_bound, upper_bound
from nilatent.errors import SettingError

VECTORS = [
    (50, 1, 0.1921, 0.1921, 0.5330),
    (100, 2, 0.2036, 0.2120, 0.4470),
    (200, 10, 0.3098, 0.3340, 0.5240),
    (400, 1, 0.0679, 0.0679, 0.2143),
    (400, 16, 0.2859, 0.3078, 0.4660),
    (400, 64, 0.4677, 0.5228, 0.7625),
    (800, 116, 0.4541, 0.5059, 0.7309),
]
# sarlib 0.0.5 (PyPI), igp, igp_approx and vapnik bounds at eta = 0.05, called with the features as rows.
ORACLE = [
    (50, 1, 0.192065, 0.192065, 0.533030),
    (100, 2, 0.203642, 0.211981, 0.447003),
    (200, 10, 0.309803, 0.334021, 0.523981),
    (400, 16, 0.285914, 0.307801, 0.465982),
    (800, 116, 0.454060, 0.505942, 0.730929),
]


def choose(n, k):
    return comb(n, k) if 0 <= k <= n else 0


def dichotomies(n, d):
    return 2 * sum(choose(n - 1, k) for k in range(d))


def boundary(n, d):
    return 2 * sum(choose(n, z) * sum(choose(n - 1 - z, k - 1) for k in range(1, d - z + 1)) for z in range(min(d, n)))


@pytest.mark.parametrize(("n", "d", "general", "edge", "vapnik"), VECTORS)
def test_the_vectors_of_the_methods(n, d, general, edge, vapnik):
    found = [upper_bound(0, n=n, d=d, method=name) for name in ("general", "boundary", "vapnik")]
    np.testing.assert_allclose(found, [general, edge, vapnik], atol=6e-5)


@pytest.mark.parametrize(("n", "d", "general", "edge", "vapnik"), ORACLE)
def test_the_formulas_agree_with_an_independent_package(n, d, general, edge, vapnik):
    found = [upper_bound(0.1, n=n, d=d, method=name) for name in ("general", "boundary", "vapnik")]
    np.testing.assert_allclose(np.array(found) - 0.1, [general, edge, vapnik], atol=6e-7)


@pytest.mark.parametrize(
    ("n", "theta2", "delta"), [(100, 1, 0.2712), (200, 5, 0.1838), (400, 1, 0.1099), (800, 20, 0.0964)]
)
def test_the_pac_bayes_vectors_of_the_methods(n, theta2, delta):
    found = upper_bound(0.2, n=n, d=16, theta2=theta2)
    np.testing.assert_allclose(found - 0.2, delta, atol=6e-5)
    assert upper_bound(0.2, n=n, d=1, theta2=theta2, method="pac_bayes") == found


@pytest.mark.parametrize("n", [1, 2, 3, 17, 60, 400])
@pytest.mark.parametrize("d", [1, 2, 3, 8, 33, 120])
def test_counts_are_those_of_exact_integers(n, d):
    np.testing.assert_allclose(bounds.log_dichotomies(n, d), log(dichotomies(n, d)), rtol=1e-11)
    np.testing.assert_allclose(bounds.log_boundary_dichotomies(n, d), log(boundary(n, d)), rtol=1e-11)


def test_large_counts_do_not_overflow():
    found = upper_bound(0, n=20_000, d=6000, method="general")
    exact = Fraction(0)
    term = 1
    for k in range(6000):
        exact += 2 * term
        term = term * (19_999 - k) // (k + 1)
    np.testing.assert_allclose(found, sqrt((log(int(exact)) - log(0.05)) / 40_000), rtol=1e-9)
    assert np.isfinite(upper_bound(0, n=1500, d=600, method="boundary"))


def test_every_split_is_counted_once_d_reaches_n():
    np.testing.assert_allclose(bounds.log_dichotomies(12, 12), 12 * log(2))
    assert bounds.log_dichotomies(12, 40) == bounds.log_dichotomies(12, 12)


def test_pac_bayes_is_the_best_of_its_grid():
    def naive(error, n, theta2, eta, l_max, dropout):
        grid = [0.6 + 0.1 * i for i in range(95)]
        cost = (1 - dropout) / 2 * theta2 + log(95 / eta)
        return min((error + lam * l_max / n * cost) / (1 - 1 / (2 * lam)) for lam in grid)

    for case in [(0.1, 50, 3.0, 0.05, 1.0, 0.5), (0.4, 300, 10.0, 0.2, 2.5, 0.1), (0.0, 900, 0.0, 0.01, 1.0, 0.0)]:
        error, n, theta2, eta, l_max, dropout = case
        found = upper_bound(error, n=n, d=9, theta2=theta2, eta=eta, l_max=l_max, dropout=dropout)
        np.testing.assert_allclose(found, naive(*case), rtol=1e-9)


def test_the_bound_is_chosen_by_the_weights_alone():
    chosen = {d: bounds.chosen_method(d) for d in (1, 2, 3, 4, 7, 8, 200)}
    assert chosen == {1: "general", 2: "general", 3: "general", 4: "general", 7: "general"} | dict.fromkeys(
        (8, 200), "pac_bayes"
    )
    assert upper_bound(0.2, n=90, d=7) == upper_bound(0.2, n=90, d=7, method="general")
    with pytest.raises(SettingError, match="needs theta2"):
        upper_bound(0.2, n=90, d=8)


def test_bounds_tighten_with_scans_and_widen_with_weights_and_certainty():
    for name in ("general", "boundary", "vapnik", "pac_bayes"):
        middle = upper_bound(0.2, n=100, d=4, theta2=2, method=name)
        assert upper_bound(0.2, n=200, d=4, theta2=2, method=name) < middle
        assert upper_bound(0.2, n=100, d=4, theta2=2, method=name, eta=0.01) > middle
        assert upper_bound(0.3, n=100, d=4, theta2=2, method=name) > middle
        if name != "pac_bayes":
            assert upper_bound(0.2, n=100, d=5, theta2=2, method=name) > middle


def test_vapnik_never_certifies_where_its_bracket_falls_again():
    falling = abs(100 * (log(2 * 18 / 100) + 1) - log(0.05 / 4)) / 18
    assert sqrt(falling) < 0.6, "the published formula would certify a rule of 99 weights on 18 scans"
    assert upper_bound(0, n=18, d=99, method="vapnik") > 1.4


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"eta": 0.0}, "eta is 0.0"),
        ({"eta": 1.0}, "eta is 1.0"),
        ({"n": 0}, "n = 0"),
        ({"n": 10.5}, "n = 10.5"),
        ({"d": 0}, "d = 0"),
        ({"error": -0.1}, "error is -0.1"),
        ({"error": np.nan}, "error is nan"),
        ({"method": "tight"}, "no bound 'tight'"),
        ({"d": 9, "theta2": -1.0}, "theta2 is -1"),
        ({"d": 9, "theta2": np.nan}, "theta2 is nan"),
        ({"d": 9, "theta2": 1.0, "dropout": 1.0}, "dropout is 1"),
        ({"d": 9, "theta2": 1.0, "l_max": 0.0}, "l_max is 0"),
    ],
)
def test_values_out_of_range_are_refused(change, said):
    values = {"error": 0.2, "n": 50, "d": 2} | change
    with pytest.raises(SettingError, match=said):
        upper_bound(values.pop("error"), **values)


def test_the_mean_bound_is_the_mean_of_error_plus_delta(rng):
    errors, sizes = rng.uniform(0, 0.4, 10), np.arange(40, 60, 2)
    by_hand = np.mean(
        [e + sqrt(log(dichotomies(int(n), 2) / 0.1) / (2 * n)) for e, n in zip(errors, sizes, strict=True)]
    )
    np.testing.assert_allclose(mean_bound(errors, sizes, d=2, eta=0.1), by_hand)


def test_the_pac_bayes_mean_takes_delta_at_the_mean_error(rng):
    errors, sizes, norms, largest = rng.uniform(0, 0.6, 5), np.full(5, 90), rng.uniform(1, 4, 5), rng.uniform(1, 3, 5)
    pairs = zip(norms, largest, strict=True)
    by_hand = np.mean([upper_bound(errors.mean(), n=90, d=9, theta2=t, l_max=m) for t, m in pairs])
    found = mean_bound(errors, sizes, d=9, theta2=norms, l_max=largest)
    np.testing.assert_allclose(found, by_hand)
    fold_by_fold = [
        upper_bound(e, n=90, d=9, theta2=t, l_max=m) for e, t, m in zip(errors, norms, largest, strict=True)
    ]
    assert found > np.mean(fold_by_fold)


def test_resubstitution_is_refused_with_its_reason():
    with pytest.raises(SettingError, match=r"resubstitution.*in-sample PLS.*at least two folds"):
        badge(np.array([0.1]), np.array([100]), d=2)


def test_errors_and_sizes_must_fit():
    with pytest.raises(SettingError, match="one each per fold"):
        mean_bound(np.zeros(5), np.full(4, 50), d=2)
    with pytest.raises(SettingError, match="one each per fold"):
        mean_bound(np.zeros(5), np.full(5, 50), d=9, theta2=np.ones(4))
    with pytest.raises(SettingError, match="missing or negative"):
        mean_bound(np.array([0.1, np.nan]), np.full(2, 50), d=2)


def test_the_badge_follows_the_worst_case_and_chance():
    delta = upper_bound(0, n=90, d=2)
    sizes = np.full(10, 90)
    assert badge(np.full(10, 0.499 - delta), sizes, d=2) == "bound-validated"
    assert badge(np.full(10, 0.501 - delta), sizes, d=2) == "inconclusive"
    assert badge(np.full(10, 0.499 - delta), sizes, d=2, eta=0.01) == "inconclusive"
    assert badge(np.full(10, 0.1), sizes, d=9, theta2=np.full(10, 1.0)) == "bound-validated"
    both = badges(np.column_stack([np.full(10, 0.1), np.full(10, 0.45)]), sizes, d=2, eta=0.05)
    assert both.tolist() == ["bound-validated", "inconclusive"]


def test_the_exact_limit_is_where_so_few_misses_become_unlikely():
    for misses, trials, eta in [(0, 20, 0.05), (7, 40, 0.05), (39, 40, 0.2)]:
        limit = exact_limit(misses, trials, eta=eta)
        np.testing.assert_allclose(binom.cdf(misses, trials, limit), eta, rtol=1e-9)
    assert exact_limit(40, 40) == 1.0
    with pytest.raises(SettingError, match="5 misses in 4 trials"):
        exact_limit(5, 4)


def test_no_cut_on_a_line_is_better_in_truth_than_its_bound(rng):
    # Labels that follow nothing: every rule has true error 1/2, the best of all cuts looks better by chance.
    n, n_cohorts = 60, 400
    sides = rng.choice([-1, 1], size=(n_cohorts, n))
    walk = np.concatenate([np.zeros((n_cohorts, 1)), sides.cumsum(axis=1)], axis=1)
    best = 0.5 - np.abs(2 * walk - walk[:, -1:]).max(axis=1) / (2 * n)
    missed = np.mean(best + (upper_bound(0, n=n, d=2)) < 0.5)
    assert missed <= binom.ppf(0.99, n_cohorts, 0.05) / n_cohorts
    assert 2 * n == round(np.exp(bounds.log_dichotomies(n, 2))), "two sides of n - 1 gaps, and all alike"
    assert ceil(best.min() * n) < n / 2
