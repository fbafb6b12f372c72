import numpy as np
import pytest
from scipy.stats import kstest, ttest_1samp, ttest_rel

from nilatent.analysis import stats
from nilatent.analysis.exchange import flipped_mean, sign_flips, whole_blocks
from nilatent.errors import SettingError


def uniform(p_values, n_draws, rng):
    spread = np.array(p_values) - rng.uniform(0, 1 / (1 + n_draws), len(p_values))
    return kstest(spread, "uniform").pvalue > 0.01


def test_signs_are_fair_follow_the_seed_and_are_shared_in_a_block():
    flips = sign_flips(6, 4000, seed=1, blocks=["a", "b", "a", "c", "c", "b"])
    assert set(np.unique(flips)) == {-1.0, 1.0}
    assert abs(flips.mean()) < 0.05
    np.testing.assert_array_equal(flips[:, [0, 1, 3]], flips[:, [2, 5, 4]])
    assert len(np.unique(flips, axis=0)) == 8
    np.testing.assert_array_equal(flips, sign_flips(6, 4000, seed=1, blocks=["a", "b", "a", "c", "c", "b"]))
    assert (flips != sign_flips(6, 4000, seed=2, blocks=["a", "b", "a", "c", "c", "b"])).any()
    assert len(np.unique(sign_flips(3, 500, seed=0), axis=0)) == 8


def test_the_mean_test_equals_a_loop_of_t_tests(rng):
    values = rng.normal(loc=[0, 0.5, 1], size=(15, 3))
    flips = sign_flips(15, 80, seed=3)
    found = flipped_mean(values, flips)
    loop = np.array([np.abs(ttest_1samp(f[:, None] * values, 0).statistic) for f in flips])
    observed = ttest_1samp(values, 0).statistic
    np.testing.assert_allclose(found.t, observed)
    np.testing.assert_allclose(found.mean, values.mean(axis=0))
    np.testing.assert_allclose(found.p_value, (1 + (loop >= np.abs(observed) - 1e-9).sum(axis=0)) / 81)
    largest = loop.max(axis=1)[:, None]
    np.testing.assert_allclose(found.p_fwe, (1 + (largest >= np.abs(observed) - 1e-9).sum(axis=0)) / 81)


def test_differences_give_the_paired_test(rng):
    first, second = rng.normal(size=(2, 20, 2))
    second[:, 1] += 1.5
    found = flipped_mean(second - first, sign_flips(20, 499, seed=0))
    np.testing.assert_allclose(found.t, ttest_rel(second, first).statistic)
    assert found.p_fwe[1] <= 0.01 < found.p_fwe[0]


def test_flipping_is_calibrated_where_variances_differ(rng):
    scale = np.where(np.arange(24) < 4, 10, 1)[:, None]
    p = [flipped_mean(rng.normal(size=(24, 1)) * scale, sign_flips(24, 99, seed=s)).p_value[0] for s in range(300)]
    assert uniform(p, 99, rng)


def test_flips_of_whole_subjects_are_calibrated_where_flips_of_scans_are_not(rng):
    subject, p = np.repeat(np.arange(12), 3), {True: [], False: []}
    for seed in range(300):
        values = rng.normal(size=(12, 1))[subject] + 0.3 * rng.normal(size=(36, 1))
        for whole in p:
            flips = sign_flips(36, 99, seed=seed, blocks=subject if whole else None)
            p[whole].append(flipped_mean(values, flips).p_value[0])
    assert uniform(p[True], 99, rng)
    assert np.mean(np.array(p[False]) <= 0.05) > 0.12


def test_whole_blocks_change_places_with_blocks_of_their_size_only():
    blocks = np.array(["a", "b", "a", "c", "b", "d", "e", "e", "e"])
    orders = whole_blocks(blocks, 300, seed=0)
    assert (np.sort(orders, axis=1) == np.arange(9)).all()
    for order in orders:
        moved = {block: blocks[order[blocks == block]] for block in np.unique(blocks)}
        assert all(len(set(came)) == 1 for came in moved.values())
        assert (np.diff(order[blocks == "a"]) > 0).all()
    assert len(np.unique(orders, axis=0)) == 4
    assert (orders[:, 6:] == [6, 7, 8]).all()
    np.testing.assert_array_equal(orders, whole_blocks(blocks, 300, seed=0))
    assert (orders != whole_blocks(blocks, 300, seed=1)).any()


def test_groups_of_subjects_with_repeated_scans_are_calibrated_by_whole_blocks(rng):
    subject, p = np.repeat(np.arange(16), 3), {True: [], False: []}
    for seed in range(300):
        x = rng.normal(size=(16, 1))[subject] + 0.3 * rng.normal(size=(48, 1))
        group = rng.permutation(16)[subject] < 8
        for whole in p:
            orders = whole_blocks(subject, 99, seed=seed) if whole else stats.permutations(48, 99, seed=seed)
            p[whole].append(stats.permuted_correlation(x, group.astype(float), orders).p_value[0, 0])
    assert uniform(p[True], 99, rng)
    assert np.mean(np.array(p[False]) <= 0.05) > 0.12


def test_what_cannot_be_exchanged_is_refused_in_words(rng):
    with pytest.raises(SettingError, match="two blocks at least"):
        sign_flips(4, 9, seed=0, blocks=["a"] * 4)
    with pytest.raises(SettingError, match="3 labels"):
        sign_flips(4, 9, seed=0, blocks=["a", "b", "c"])
    with pytest.raises(SettingError, match="No two of the 2 blocks"):
        whole_blocks(["a", "a", "b"], 9, seed=0)
    with pytest.raises(SettingError, match="Column 1 is constant"):
        flipped_mean(np.column_stack([rng.normal(size=8), np.ones(8)]), sign_flips(8, 9, seed=0))
