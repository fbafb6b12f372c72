import numpy as np
import pytest

from nilatent.analysis import stats
from nilatent.analysis.reconstruction.table import concordance, interval, ratio, resample


def test_resampling_gives_the_intervals_of_the_shared_statistics(rng):
    top, bottom = rng.normal(size=(2, 12)) + 3
    subjects = ["a", "a", "b", "c", "d", "e", "f", "f", "f", "g", "h", "i"]
    sums, samples = resample(np.stack([top, bottom], axis=1), subjects, seed=3)
    low, high = interval(ratio(samples[:, 0], samples[:, 1]))
    expected = stats.bootstrap_ratio(top, bottom, subjects, seed=3)
    assert (float(ratio(sums[0], sums[1])), float(low), float(high)) == pytest.approx(expected)
    assert float(interval(ratio(samples[:, 0], samples[:, 1]), level=0.5)[0]) > float(low)


def test_one_subject_has_no_interval(rng):
    _, samples = resample(rng.normal(size=(4, 2)), ["a"] * 4, seed=0)
    assert np.isnan(interval(samples)).all()


def test_what_is_not_a_number_stays_so_and_alone(rng):
    values = rng.normal(size=(6, 2))
    values[2, 0] = np.nan
    sums, samples = resample(values, list("abcdef"), seed=0)
    low, _ = interval(samples)
    assert np.isnan([sums[0], low[0]]).all()
    assert np.isfinite([sums[1], low[1]]).all()


@pytest.mark.parametrize(("slope", "shift"), [(1, 0), (1, 2), (0.5, 0), (-1, 0), (0, 1)])
def test_concordance_equals_lins_definition(rng, slope, shift):
    x = rng.normal(size=50) * 3
    y = slope * x + shift + (0.1 * rng.normal(size=50) if slope not in (0, 1) else 0)
    covariance = np.cov(x, y, ddof=0)
    expected = 2 * covariance[0, 1] / (covariance[0, 0] + covariance[1, 1] + (x.mean() - y.mean()) ** 2)
    sums = np.array([50, x.sum(), y.sum(), (x * x).sum(), (y * y).sum(), (x * y).sum()])
    assert float(concordance(sums)) == pytest.approx(expected, abs=1e-9)
    assert (slope, shift) != (1, 0) or float(concordance(sums)) == pytest.approx(1)
