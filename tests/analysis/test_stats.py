import numpy as np
import pandas as pd
import pytest
from scipy.stats import kstest, pearsonr

from nilatent.analysis import stats
from nilatent.errors import SettingError


def partial_correlation(x, z, c):
    design = np.column_stack([np.ones(len(x)), c])
    left, right = (v - design @ np.linalg.lstsq(design, v, rcond=None)[0] for v in (x, z))
    return pearsonr(left, right).statistic


def test_residuals_are_those_of_least_squares_fitted_on_the_given_rows(rng):
    values, confounds = rng.normal(size=(30, 3)), rng.normal(size=(30, 2)) * [1, 1000] + 50
    rows = np.arange(20)
    design = np.column_stack([np.ones(30), confounds])
    expected = values - design @ np.linalg.lstsq(design[rows], values[rows], rcond=None)[0]
    np.testing.assert_allclose(stats.residualise(values, confounds, fit_rows=rows), expected, atol=1e-9)
    assert np.abs(stats.residualise(values, None).mean(axis=0)).max() < 1e-12


def test_collinear_and_constant_confounds_count_once(rng):
    c = rng.normal(size=(25, 1))
    assert stats.confound_basis(np.hstack([c, 2 * c + 1, np.full((25, 1), 7.0)]), 25).shape == (25, 2)
    assert stats.confound_basis(None, 25).shape == (25, 1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_permuted_correlation_equals_a_loop_of_freedman_lane(rng, dtype):
    x, z, c = rng.normal(size=(24, 3)), rng.normal(size=(24, 2)), rng.normal(size=(24, 2))
    x[:, 0] += z[:, 1]
    orders = stats.permutations(24, 60, seed=1)
    found = stats.permuted_correlation(x, z, orders, confounds=c, dtype=dtype)
    residual = stats.residualise(z, c)
    observed = np.array([[partial_correlation(x[:, r], z[:, j], c) for j in range(2)] for r in range(3)])
    loops = np.array(
        [[[partial_correlation(x[:, r], residual[o, j], c) for j in range(2)] for r in range(3)] for o in orders]
    )
    np.testing.assert_allclose(found.observed, observed, atol=1e-5)
    np.testing.assert_allclose(found.maxima, np.abs(loops).max(axis=(1, 2)), atol=1e-5)
    np.testing.assert_allclose(found.p_value, (1 + (np.abs(loops) >= np.abs(observed)).sum(axis=0)) / 61)
    expected = (1 + (np.abs(loops).max(axis=(1, 2))[:, None, None] >= np.abs(observed)).sum(axis=0)) / 61
    np.testing.assert_allclose(found.p_fwe, expected)


def test_flipped_signs_equal_a_loop_that_residualises_again(rng):
    x, z, c = rng.normal(size=(24, 2)), rng.normal(size=(24, 2)), rng.normal(size=(24, 1)) + 3
    x[:, 0] += z[:, 1]
    flips, orders = rng.choice([-1.0, 1.0], size=(60, 24)), stats.permutations(24, 60, seed=1)
    residual = stats.residualise(z, c)
    for order, given in ((orders, orders), (np.tile(np.arange(24), (60, 1)), None)):
        found = stats.permuted_correlation(x, z, given, confounds=c, flips=flips)
        loops = np.array(
            [
                [[partial_correlation(x[:, r], f * residual[o, j], c) for j in range(2)] for r in range(2)]
                for o, f in zip(order, flips, strict=True)
            ]
        )
        np.testing.assert_allclose(found.maxima, np.abs(loops).max(axis=(1, 2)), atol=1e-5)


@pytest.mark.parametrize("share", [False, True])
def test_single_precision_gives_the_p_values_of_double_precision(rng, share):
    x, z, c = rng.normal(size=(40, 12)), rng.normal(size=(40, 7)), rng.normal(size=(40, 2))
    orders = stats.permutations(40, 999, seed=4)
    test = stats.permuted_share if share else stats.permuted_correlation
    found = [test(x, z, orders, confounds=c, dtype=dtype) for dtype in (np.float32, np.float64)]
    for name in ("p_value", "p_fwe"):
        single, double = (getattr(one, name) for one in found)
        # Two statistics may fall on other sides of one another by rounding, but no more than that.
        assert np.abs(single - double).max() <= 1 / 1000


def test_progress_is_shown_when_the_work_is_named(rng, monkeypatch):
    seen = []
    monkeypatch.setattr(stats, "track", lambda items, *, total, label: seen.append((total, label)) or items)
    monkeypatch.setattr(stats, "BATCH_BYTES", 2_000)
    x, orders = rng.normal(size=(20, 3)), stats.permutations(20, 50, seed=2)
    quiet = stats.permuted_correlation(x, x, orders)
    named = stats.permuted_correlation(x, x, orders, label="lrcp")
    assert len(seen) == 1
    assert seen[0][1] == "lrcp"
    assert seen[0][0] > 1
    np.testing.assert_array_equal(quiet.p_value, named.p_value)


def test_orders_and_flips_come_in_equal_numbers(rng):
    x = rng.normal(size=(10, 1))
    for orders, flips in ((None, None), (stats.permutations(10, 5, seed=0), np.ones((6, 10)))):
        with pytest.raises(SettingError, match="orders and flips were given"):
            stats.permuted_correlation(x, x, orders, flips=flips)


def test_the_batch_size_changes_nothing(rng, monkeypatch):
    x, z, orders = rng.normal(size=(20, 3)), rng.normal(size=(20, 4)), stats.permutations(20, 50, seed=2)
    whole = stats.permuted_correlation(x, z, orders)
    r2 = stats.permuted_r2(z, x[:, :2], orders)
    monkeypatch.setattr(stats, "BATCH_BYTES", 7000)
    pieces = stats.permuted_correlation(x, z, orders)
    np.testing.assert_allclose(pieces.maxima, whole.maxima, atol=1e-6)
    np.testing.assert_array_equal(pieces.p_value, whole.p_value)
    np.testing.assert_array_equal(stats.permuted_r2(z, x[:, :2], orders), r2)


def test_the_identity_permutation_ties_with_the_observed_value(rng):
    x, z, c = rng.normal(size=(15, 2)), rng.normal(size=(15, 2)), rng.normal(size=(15, 1))
    same = np.tile(np.arange(15), (9, 1))
    assert (stats.permuted_correlation(x, z, same, confounds=c).p_value == 1).all()


def test_permutations_stay_in_their_block_and_follow_the_seed():
    blocks = np.array(["a", "b", "a", "b", "a", "c"])
    orders = stats.permutations(6, 200, seed=3, blocks=blocks)
    assert (blocks[orders] == blocks).all()
    assert (np.sort(orders, axis=1) == np.arange(6)).all()
    assert len(np.unique(orders, axis=0)) == 12
    np.testing.assert_array_equal(orders, stats.permutations(6, 200, seed=3, blocks=blocks))
    assert (orders != stats.permutations(6, 200, seed=4, blocks=blocks)).any()


def test_draws_that_are_made_a_few_at_a_time_are_those_of_one_call(rng, monkeypatch):
    top, bottom, blocks = rng.random(40), 1 + rng.random(40), rng.integers(3, size=40)
    monkeypatch.setattr(stats, "BATCH_BYTES", 700)
    orders = np.tile(np.arange(40, dtype=np.int32), (50, 1))
    at_once = np.random.default_rng(3)
    for block in range(3):
        # Blocks are numbered as they come.
        rows = np.flatnonzero(pd.factorize(blocks)[0] == block)
        orders[:, rows] = at_once.permuted(orders[:, rows], axis=1)
    np.testing.assert_array_equal(stats.permutations(40, 50, seed=3, blocks=blocks), orders)
    counts = np.random.default_rng(4).multinomial(40, np.full(40, 1 / 40), size=2000)
    found = stats.bootstrap_ratio(top, bottom, np.arange(40), seed=4)
    np.testing.assert_allclose(found[1:], np.quantile((counts @ top) / (counts @ bottom), [0.025, 0.975]), rtol=1e-12)


def test_permuted_r2_equals_least_squares(rng):
    values, predictors = rng.normal(size=(30, 3)), rng.normal(size=(30, 2))
    values[:, 1] += 2 * predictors[:, 0]
    r2, p = stats.permuted_r2(values, predictors, stats.permutations(30, 199, seed=0))
    left = stats.residualise(values, predictors)
    np.testing.assert_allclose(r2, 1 - left.var(axis=0) / values.var(axis=0), rtol=1e-5)
    assert p[1] == 1 / 200
    assert p[0] > 0.05


@pytest.mark.parametrize("penalty", [0.0, 0.3])
def test_permuted_r2_with_confounds_equals_a_loop_of_ridge_fits(rng, penalty):
    values, predictors, c = rng.normal(size=(24, 2)), rng.normal(size=(24, 3)), rng.normal(size=(24, 2))
    values[:, 0] += predictors[:, 2]
    orders = stats.permutations(24, 60, seed=1)
    z = stats.residualise(predictors, c)
    z /= np.linalg.norm(z, axis=0)

    def share(v):
        v = stats.residualise(v, c)[:, 0]
        return v @ z @ np.linalg.solve(z.T @ z + penalty * np.eye(3), z.T @ v) / (v @ v)

    residual = stats.residualise(values, c)
    observed = np.array([share(v) for v in values.T])
    maxima = np.array([max(share(residual[o, 0]), share(residual[o, 1])) for o in orders])
    each = np.array([[share(v[o]) for v in residual.T] for o in orders])
    single = stats.permuted_share(values, predictors, orders, confounds=c, penalty=penalty, dtype=np.float64)
    np.testing.assert_allclose(single.p_value, (1 + (each >= observed).sum(axis=0)) / 61)
    found, p = stats.permuted_r2(values, predictors, orders, confounds=c, penalty=penalty, dtype=np.float64)
    np.testing.assert_allclose(found, observed)
    np.testing.assert_allclose(p, (1 + (maxima[:, None] >= observed).sum(axis=0)) / 61)


def test_p_values_are_uniform_under_the_null_with_a_confound_on_both_sides(rng):
    p = []
    for seed in range(300):
        c = rng.normal(size=(20, 1))
        x, z = c + rng.normal(size=(20, 1)), 2 * c + rng.normal(size=(20, 1))
        orders = stats.permutations(20, 99, seed=seed)
        p.append(stats.permuted_correlation(x, z, orders, confounds=c).p_value[0, 0])
    assert kstest(np.array(p) - rng.uniform(0, 0.01, 300), "uniform").pvalue > 0.01


def test_fdr_equals_the_step_up_rule(rng):
    p = rng.uniform(size=(5, 4)) ** 3
    rank = p.ravel().argsort().argsort() + 1
    raised = p.ravel() * p.size / rank
    expected = [min(1, raised[p.ravel() >= value].min()) for value in p.ravel()]
    np.testing.assert_allclose(stats.fdr(p).ravel(), expected)


def test_parametric_p_equals_pearson(rng):
    x, z = rng.normal(size=18), rng.normal(size=18)
    expected = pearsonr(x, z)
    np.testing.assert_allclose(stats.correlation_p(expected.statistic, degrees=16), expected.pvalue)


def test_bootstrap_covers_the_mean_and_resamples_whole_subjects(rng):
    covered = 0
    for seed in range(200):
        _, low, high = stats.bootstrap_ratio(
            rng.normal(1, 1, 40), np.ones(40), np.arange(40), seed=seed, n_bootstrap=400
        )
        covered += low <= 1 <= high
    assert 178 <= covered <= 199
    values = np.repeat(rng.normal(size=10), 4)
    apart = stats.bootstrap_ratio(values, np.ones(40), np.arange(40), seed=0)
    together = stats.bootstrap_ratio(values, np.ones(40), np.repeat(np.arange(10), 4), seed=0)
    assert together[0] == pytest.approx(apart[0])
    assert together[2] - together[1] > 1.5 * (apart[2] - apart[1])
    assert np.isnan(stats.bootstrap_ratio(values, np.ones(40), np.zeros(40), seed=0)[1])


def test_level_widens_the_interval(rng):
    values = rng.normal(size=30)
    narrow = stats.bootstrap_ratio(values, np.ones(30), np.arange(30), seed=0, level=0.5)
    wide = stats.bootstrap_ratio(values, np.ones(30), np.arange(30), seed=0, level=0.99)
    assert wide[1] < narrow[1] < narrow[0] < narrow[2] < wide[2]


def test_what_cannot_be_tested_is_refused_in_words(rng):
    x, orders = rng.normal(size=(12, 2)), stats.permutations(12, 9, seed=0)
    with pytest.raises(SettingError, match="column 1 is constant"):
        stats.permuted_correlation(x, np.column_stack([x[:, 0], np.full(12, 3.0)]), orders)
    with pytest.raises(SettingError, match="missing or infinite value in row 2"):
        stats.residualise(np.where(np.arange(12) == 2, np.nan, 1.0), None)
    with pytest.raises(SettingError, match="Every exchangeability block"):
        stats.permutations(3, 9, seed=0, blocks=["a", "b", "c"])
    with pytest.raises(SettingError, match="predictors are constant"):
        stats.permuted_r2(x, np.ones((12, 1)), orders)
    assert stats.varying(np.column_stack([x, np.ones(12), x[:, 0] * 2]), x[:, :1]).tolist() == [
        False,
        True,
        False,
        False,
    ]


def test_a_bootstrap_in_pieces_gives_the_bits_of_all_at_once(rng):
    top, bottom = rng.random((2, 3000))
    counts = np.random.default_rng(4).multinomial(3000, np.full(3000, 1 / 3000), size=400)
    for level in np.linspace(0.02, 0.98, 25):
        limits = stats.bootstrap_ratio(top, bottom, np.arange(3000), seed=4, level=level, n_bootstrap=400)[1:]
        expected = np.quantile((counts @ top) / (counts @ bottom), [(1 - level) / 2, (1 + level) / 2])
        assert list(limits) == expected.tolist()
