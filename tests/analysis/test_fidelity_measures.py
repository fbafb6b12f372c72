import numpy as np
import pytest
from scipy.stats import kstest

from nilatent.analysis.fidelity import measures as measures


def naive(real, other, kernel, *, paired=False):
    """Mean over pairs of different rows, one by one."""
    n, m = len(real), len(other)
    within = np.mean([kernel(real[i], real[j]) for i in range(n) for j in range(n) if i != j])
    without = np.mean([kernel(other[i], other[j]) for i in range(m) for j in range(m) if i != j])
    between = np.mean([kernel(real[i], other[j]) for i in range(n) for j in range(m) if not (paired and i == j)])
    return within + without - 2 * between


def kernels(scale):
    def gaussian(a, b):
        return np.exp(-np.square(scale(a) - scale(b)).sum() / (2 * scale.bandwidth**2))

    def polynomial(a, b):
        return (scale(a) @ scale(b) / len(a) + 1) ** 3

    return gaussian, polynomial


def pair_of(real, other, scale, *, paired=False):
    return measures.pair(scale(real), scale(other), bandwidth=scale.bandwidth, paired=paired)


def scaled(rng, n_features=4):
    return measures.scale_of(rng.normal(2, 3, (30, n_features)), each=True)


@pytest.mark.parametrize(("n", "m", "paired"), [(5, 9, False), (6, 6, True)])
def test_both_discrepancies_are_those_of_a_naive_double_sum(rng, n, m, paired):
    scale, real, other = scaled(rng), rng.normal(2, 3, (n, 4)), rng.normal(3, 4, (m, 4))
    found = measures.apart([pair_of(real, other, scale, paired=paired)], n_permutations=9, seed=0)
    expected = [naive(real, other, kernel, paired=paired) for kernel in kernels(scale)]
    np.testing.assert_allclose(found.value, expected)


@pytest.mark.parametrize("paired", [False, True])
def test_leaving_a_row_out_is_computing_without_it(rng, paired):
    scale, real, other = scaled(rng), rng.normal(2, 3, (6, 4)), rng.normal(3, 4, (6, 4))
    found = measures.apart([pair_of(real, other, scale, paired=paired)], n_permutations=9, seed=0)
    (gaussian, _), gone = kernels(scale), np.delete(np.arange(6), 2)
    if paired:
        expected = naive(real[gone], other[gone], gaussian, paired=True)
    else:
        expected = naive(real[gone], other, gaussian)
        assert found.left_out[0][8, 0] == pytest.approx(naive(real, other[gone], gaussian))
    assert found.left_out[0][2, 0] == pytest.approx(expected)
    assert len(found.left_out[0]) == (6 if paired else 12)


def test_estimates_are_without_bias_at_unequal_sizes(rng):
    scale = measures.scale_of(rng.normal(size=(200, 5)), each=True)
    draws = [
        measures.apart([pair_of(rng.normal(size=(6, 5)), rng.normal(size=(40, 5)), scale)], n_permutations=1, seed=0)
        for _ in range(600)
    ]
    values = np.array([one.value for one in draws])
    assert (np.abs(values.mean(axis=0)) < 3 * values.std(axis=0) / np.sqrt(600)).all()


def null_p(rng, *, paired, shift=0.0):
    pairs = []
    scale = measures.scale_of(rng.normal(size=(30, 3)), each=True)
    for n in (8, 5):
        real, other = rng.normal(size=(n, 3)), shift + rng.normal(size=(n if paired else 20, 3))
        if paired:
            # A pair has much in common, and either could be the scan.
            common = 2 * rng.normal(size=(n, 3))
            real, other = real + common, other + common
        pairs.append(pair_of(real, other, scale, paired=paired))
    return measures.apart(pairs, n_permutations=99, seed=int(rng.integers(2**31))).p


@pytest.mark.parametrize("paired", [False, True])
def test_p_is_uniform_when_both_sets_are_of_one_distribution(rng, paired):
    p = np.array([null_p(rng, paired=paired) for _ in range(300)])
    for column in p.T:
        # Steps of a hundredth are spread out before they are compared with a continuous distribution.
        assert kstest(column - rng.uniform(0, 0.01, len(column)), "uniform").pvalue > 0.005
        assert (column <= 0.05).mean() < 0.09


@pytest.mark.parametrize(("paired", "shift"), [(False, 1.2), (True, 3.0)])
def test_a_shift_is_found(rng, paired, shift):
    p = np.array([null_p(rng, paired=paired, shift=shift) for _ in range(20)])
    assert (p <= 0.05).mean() > 0.8


def test_spaces_are_averaged_with_their_unseen_scans_as_weights(rng):
    scale = scaled(rng)
    pairs = [pair_of(rng.normal(size=(n, 4)), rng.normal(1, 1, (7, 4)), scale) for n in (4, 12)]
    alone = [measures.apart([one], n_permutations=9, seed=0).value for one in pairs]
    both = measures.apart(pairs, n_permutations=9, seed=0)
    np.testing.assert_allclose(both.value, 0.25 * alone[0] + 0.75 * alone[1])


def test_the_jackknife_error_is_that_of_repeated_cohorts(rng):
    scale = measures.scale_of(rng.normal(size=(100, 3)), each=True)

    def once():
        real = rng.normal(size=(30, 3))
        sets = [rng.normal(0.7, 1, (40, 3)), rng.normal(0.4, 1, (40, 3))]
        return [measures.apart([pair_of(real, one, scale)], n_permutations=1, seed=0) for one in sets]

    found = [once() for _ in range(150)]
    differences = np.array([(a.value - b.value)[0] for a, b in found])
    told = np.mean([measures.standard_error(a, b)[0] for a, b in found])
    assert 0.8 < told / differences.std() < 1.35
    alone = np.mean([measures.standard_error(a)[0] for a, _ in found])
    assert 0.8 < alone / np.std([a.value[0] for a, _ in found]) < 1.35


def test_the_error_of_two_spaces_alike_is_that_of_one_by_the_root_of_two(rng):
    scale, real, other = scaled(rng), rng.normal(2, 3, (9, 4)), rng.normal(3, 3, (12, 4))
    one, two = (measures.apart([pair_of(real, other, scale)] * n, n_permutations=1, seed=0) for n in (1, 2))
    np.testing.assert_allclose(measures.standard_error(two), measures.standard_error(one) / np.sqrt(2))
    # Against itself only the images differ, which count twice.
    against = measures.standard_error(one, one)
    assert (against < np.sqrt(2) * measures.standard_error(one)).all()
    assert (against > 0).all()


def test_two_halves_differ_by_chance_around_zero(rng):
    scale = measures.scale_of(rng.normal(size=(40, 3)), each=True)
    drawn = measures.halves(
        [rng.normal(size=(11, 3)), rng.normal(size=(8, 3))], [scale.bandwidth] * 2, n_splits=3000, seed=1
    )
    assert drawn.shape == (3000, 2)
    assert abs(drawn[:, 0].mean()) < 4 * drawn[:, 0].std() / np.sqrt(3000)
    assert drawn[:, 0].std() > 0.01


def places(real, other, *, k):
    return measures.coverage_and_density(real, other, k=k, subsets=[np.arange(len(other))])


def test_coverage_and_density_of_one_distribution_are_as_expected(rng):
    found = np.array([places(rng.normal(size=(30, 4)), rng.normal(size=(30, 4)), k=5) for _ in range(200)])
    assert found[:, 0].mean() == pytest.approx(measures.expected_coverage(30, 30, k=5), abs=0.01)
    assert found[:, 1].mean() == pytest.approx(1, abs=0.05)
    real = np.arange(6.0)[:, None]
    # Balls of radius 2 around 0, ..., 5 (3 and 4 see neighbours at 1 and 1: k = 2 gives 1, at the ends 2).
    coverage, density = places(real, np.array([[0.5], [9.0]]), k=2)
    assert coverage == pytest.approx(2 / 6)
    assert density == pytest.approx(2 / (2 * 2))
    apart = measures.coverage_and_density(real, np.array([[0.5], [9.0]]), k=2, subsets=[np.array([0]), np.array([1])])
    np.testing.assert_allclose(apart, [1 / 6, 0.5])


def test_a_feature_that_hardly_varies_stays_quiet_unless_each_counts(rng):
    x = rng.normal(size=(50, 3)) * [1, 1, 1e-3]
    assert scale_spread(x, each=True)[2] == pytest.approx(1)
    assert scale_spread(x, each=False)[2] < 0.01
    flat = np.column_stack([x[:, 0], np.full(50, 3.0)])
    assert np.isfinite(measures.scale_of(flat, each=True)(flat)).all()


def test_the_bandwidth_is_the_median_over_all_pairs(rng):
    x = rng.normal(size=(9, 3))
    scale = measures.scale_of(x, each=True)
    apart = [np.linalg.norm(scale(x)[i] - scale(x)[j]) for i in range(9) for j in range(i)]
    assert scale.bandwidth == pytest.approx(np.median(apart))


def scale_spread(x, *, each):
    return measures.scale_of(x, each=each)(x).std(axis=0, ddof=1)
