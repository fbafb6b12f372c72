import numpy as np
import pytest
from scipy import stats

from nilatent.analysis.normative.latent import auc_interval, conformal_p, mahalanobis, predicted_p
from nilatent.analysis.normative.reference import Predictors, deviations


def distances(rng, n, *, n_new=200, n_columns=8, **settings):
    values = rng.normal(size=(n + n_new, n_columns)) @ rng.normal(size=(n_columns, n_columns))
    none = [Predictors(np.empty((rows, 0)), None) for rows in (n, n_new)]
    found = deviations(values[:n], none[0], values[n:], none[1])
    return values, mahalanobis(found, **settings)


def test_of_many_reference_scans_it_is_the_distance_of_mahalanobis(rng):
    values, found = distances(rng, 5000)
    away = values[5000:] - values[:5000].mean(axis=0)
    naive = np.einsum("ij,jk,ik->i", away, np.linalg.inv(np.cov(values[:5000].T)), away)
    np.testing.assert_allclose(found, np.sqrt(naive / 8), rtol=0.05)


def test_first_components_are_the_widest(rng):
    wide = rng.normal(size=(400, 1)) @ np.ones((1, 6)) + 0.1 * rng.normal(size=(400, 6))
    new = np.vstack([np.full(6, 5.0), np.tile([1.0, -1.0], 3)])
    none = [Predictors(np.empty((rows, 0)), None) for rows in (400, 2)]
    found = deviations(wide, none[0], new, none[1])
    along, across = mahalanobis(found, n_components=1)
    assert along == pytest.approx(5, rel=0.15)
    assert across < 1
    assert mahalanobis(found)[1] > 3


def test_flat_latents_count_for_nothing(rng):
    values = rng.normal(size=(60, 3))
    none = [Predictors(np.empty((rows, 0)), None) for rows in (50, 10)]
    alone = mahalanobis(deviations(values[:50], none[0], values[50:], none[1]))
    values = np.column_stack([values, np.zeros(60)])
    np.testing.assert_allclose(mahalanobis(deviations(values[:50], none[0], values[50:], none[1])), alone)
    flat = deviations(np.zeros((50, 2)), none[0], np.ones((10, 2)), none[1])
    assert np.isnan(mahalanobis(flat)).all()


def test_conformal_p_counts_reference_scans_that_lie_as_far(rng):
    scores, subjects = rng.normal(size=40), np.arange(40)
    held_out = np.arange(40) < 25
    found = conformal_p(scores, held_out, subjects)
    assert found[30] == pytest.approx((1 + (scores[:25] >= scores[30]).sum()) / 26)
    others = np.delete(scores[:25], 3)
    assert found[3] == pytest.approx((1 + (others >= scores[3]).sum()) / 25)
    assert np.isnan(conformal_p(scores, np.arange(40) < 9, subjects)).all()
    scores[7] = np.nan
    assert np.isnan(conformal_p(scores, held_out, subjects)[7])


def test_nobody_is_compared_with_themselves(rng):
    scores, subjects = rng.normal(size=20), np.arange(20)
    subjects[15] = 2
    scores[2] = scores[15] = 9.0
    held_out = np.arange(20) < 12
    assert conformal_p(scores, held_out, subjects)[15] == pytest.approx(1 / 12)
    assert predicted_p(np.exp(scores), held_out, subjects, tail="normal")[15] < 0.001


@pytest.mark.parametrize("n", [12, 60])
def test_predicted_p_of_a_distance_is_uniform(rng, n):
    found = []
    for _ in range(80):
        scores = np.exp(rng.normal(size=n + 20))
        found.append(predicted_p(scores, np.arange(n + 20) < n, np.arange(n + 20), tail="normal")[n:])
    assert stats.kstest(np.concatenate(found), "uniform").statistic < 0.05


@pytest.mark.parametrize(("n", "heavy"), [(15, 0), (60, 0), (15, 4), (60, 4)])
def test_predicted_p_of_the_largest_deviation_holds_its_rate_with_heavy_tails_too(rng, n, heavy):
    found = []
    for _ in range(80):
        z = rng.standard_t(heavy, size=(n + 20, 60)) if heavy else rng.normal(size=(n + 20, 60))
        largest = np.abs(z).max(axis=1)
        found.append(predicted_p(largest, np.arange(n + 20) < n, np.arange(n + 20), tail="gumbel")[n:])
    assert (np.concatenate(found) <= 0.05).mean() < 0.065
    assert (np.concatenate(found) <= 0.01).mean() < 0.02


def test_predicted_p_is_that_of_a_new_value_against_few(rng):
    scores = np.exp(rng.normal(2, 0.3, size=16))
    logs, held_out = np.log(scores), np.arange(16) < 15
    t_value = (logs[15] - logs[:15].mean()) / (logs[:15].std(ddof=1) * np.sqrt(16 / 15))
    found = predicted_p(scores, held_out, np.arange(16), tail="normal")[15]
    assert found == pytest.approx(stats.t.sf(t_value, 14))
    # At the mean of a Gumbel distribution.
    scores[15] = np.exp(logs[:15].mean())
    found = predicted_p(scores, held_out, np.arange(16), tail="gumbel")[15]
    assert found == pytest.approx(1 - np.exp(-np.exp(-np.euler_gamma)))


def test_predicted_p_is_small_for_what_is_far(rng):
    scores = np.append(np.abs(rng.normal(3, 0.3, size=40)), [3.0, 12.0])
    for tail in ("normal", "gumbel"):
        usual, far = predicted_p(scores, np.arange(42) < 40, np.arange(42), tail=tail)[40:]
        assert usual > 0.2
        assert far < 1e-4
    assert np.isnan(predicted_p(scores, np.arange(42) < 9, np.arange(42), tail="normal")).all()


def test_area_and_p_are_those_of_mann_and_whitney(rng):
    cases, reference = rng.normal(1, 1, 15), rng.normal(size=25)
    area, low, high, p = auc_interval(cases, reference)
    assert area == pytest.approx((cases[:, None] > reference).mean())
    assert p == pytest.approx(stats.mannwhitneyu(cases, reference).pvalue)
    assert low < area < high
    narrow = auc_interval(cases, reference, level=0.5)
    assert low < narrow[1] < narrow[2] < high


def test_interval_of_an_area_of_one_is_no_point():
    area, low, high, _ = auc_interval(np.arange(10) + 20.0, np.arange(10.0))
    assert (area, high) == (1, pytest.approx(1))
    assert 0.6 < low < 0.9
    area, low, high, _ = auc_interval(np.arange(10) - 20.0, np.arange(10.0))
    assert (area, low) == (0, 0)
    assert 0.1 < high < 0.4


@pytest.mark.parametrize("apart", [0.0, 1.5])
def test_interval_covers_the_area(rng, apart):
    truth = stats.norm.cdf(apart / np.sqrt(2))
    found = [auc_interval(rng.normal(apart, 1, 14), rng.normal(size=30))[1:3] for _ in range(300)]
    assert 0.92 <= np.mean([low <= truth <= high for low, high in found]) <= 0.99


@pytest.mark.parametrize("sign", [1, -1])
def test_an_area_within_a_hair_of_its_end_has_limits(sign):
    cases, reference = sign * (np.arange(900.0) + 1000), sign * np.arange(900.0)
    cases[0] = reference[-1]
    area, low, high, _ = auc_interval(cases, reference)
    assert 0 <= low <= area <= high <= 1
    assert high - low < 0.1
