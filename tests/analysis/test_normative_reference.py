import numpy as np
import pytest
from scipy import stats

from nilatent.analysis.normative import reference as reference
from nilatent.analysis.normative.reference import Predictors, deviations, foreseen, normal_score


def people(rng, n, *, curve=0.0, uneven=0.0, n_columns=30):
    """Age from 20 to 85 and sex, and columns that follow both."""
    age, sex = rng.uniform(20, 85, n), rng.integers(0, 2, n).astype(float)
    decades = (age - 50) / 20
    expected = curve * decades**2 - 0.5 * decades + 0.4 * sex
    values = expected[:, None] + np.exp(uneven * decades[:, None] / 2) * rng.normal(size=(n, n_columns))
    return values, Predictors(sex[:, None], age)


def held_out(rng, n, **kind):
    """z of 200 new scans by n reference scans, and their ages."""
    values, known = people(rng, n + 200, **kind)
    found = deviations(values[:n], known.rows(np.arange(n)), values[n:], known.rows(np.arange(n, n + 200)))
    return found, known.age[n:]


def test_without_predictors_it_is_the_t_of_one_case_against_few_controls(rng):
    values = rng.normal(3, 2, size=(12, 1))
    none = Predictors(np.empty((11, 0)), None)
    found = deviations(values[:11], none, values[11:], Predictors(np.empty((1, 0)), None))
    t_value = (values[11] - values[:11].mean()) / (values[:11].std(ddof=1) * np.sqrt(12 / 11))
    np.testing.assert_allclose(found.units[0], t_value)
    np.testing.assert_allclose(found.z[0], stats.norm.ppf(stats.t.cdf(t_value, 10)))


def test_units_are_those_of_a_prediction_interval(rng):
    """The naive formula: residual over s times the root of one plus the leverage."""
    values, known = people(rng, 25)
    train, new = np.arange(20), np.arange(20, 25)
    found = deviations(values[train], known.rows(train), values[new], known.rows(new))
    design = np.column_stack([np.ones(25), known.plain, known.age])
    inverse = np.linalg.inv(design[train].T @ design[train])
    slopes = inverse @ design[train].T @ values[train]
    s = np.sqrt(np.square(values[train] - design[train] @ slopes).sum(axis=0) / 17)
    leverage = np.einsum("ij,jk,ik->i", design[new], inverse, design[new])
    np.testing.assert_allclose(found.units, (values[new] - design[new] @ slopes) / (s * np.sqrt(1 + leverage)[:, None]))
    np.testing.assert_allclose(found.residuals, (values[train] - design[train] @ slopes) / s * np.sqrt(20 / 17))


def test_a_scan_far_in_age_is_less_surprising(rng):
    values, known = people(rng, 20, n_columns=1)
    far = Predictors(np.zeros((2, 1)), np.array([50.0, 500.0]))
    slope = np.linalg.lstsq(known.linear, values, rcond=None)[0]
    found = deviations(values, known, far.linear @ slope + 3.0, far)
    assert 0 < found.z[1, 0] < 0.5 * found.z[0, 0]


@pytest.mark.parametrize("n", [15, 40, 200])
def test_new_reference_subjects_are_standard_normal(rng, n):
    z = np.concatenate([held_out(rng, n, n_columns=60)[0].z.ravel() for _ in range(20)])
    assert z.mean() == pytest.approx(0, abs=0.06)
    assert z.std() == pytest.approx(1, abs=0.02)
    assert (np.abs(z) > 1.96).mean() == pytest.approx(0.05, abs=0.005)
    assert (np.abs(z) > 3.29).mean() == pytest.approx(0.001, abs=0.0007)


@pytest.mark.parametrize(("n", "at_most"), [(40, 0.065), (200, 0.055)])
@pytest.mark.parametrize("curve", [0.5, 1.0])
def test_with_a_curve_of_age_too(rng, n, at_most, curve):
    z = np.concatenate([held_out(rng, n, curve=curve)[0].z.ravel() for _ in range(20)])
    assert z.std() == pytest.approx(1, abs=0.06 if n == 40 else 0.03)
    assert 0.04 < (np.abs(z) > 1.96).mean() < at_most


def test_the_curve_is_chosen_where_there_is_one_and_takes_the_bias_away(rng):
    found, age = held_out(rng, 200, curve=1.0)
    straight, _ = held_out(rng, 200)
    assert found.curved.mean() > 0.9
    assert straight.curved.mean() < 0.1
    assert abs(found.z[age > 75].mean()) < 0.3
    assert held_out(rng, 28, curve=1.0)[0].curved.sum() == 0


def test_a_spread_that_grows_with_age_is_followed(rng):
    found, age = held_out(rng, 200, uneven=0.8)
    even, _ = held_out(rng, 200)
    assert found.uneven.mean() > 0.9
    assert even.uneven.mean() < 0.1
    assert found.z[age > 70].std() / found.z[age < 35].std() == pytest.approx(1, abs=0.15)


def test_beyond_the_knots_a_curve_goes_on_straight(rng):
    values, known = people(rng, 300, curve=1.0, n_columns=1)
    ahead = Predictors(np.zeros((3, 1)), np.array([90.0, 100.0, 110.0]))
    _, steps = next(iter(reference._curves(known.age, ahead.age)))
    np.testing.assert_allclose(steps[2] - steps[1], steps[1] - steps[0])
    assert deviations(values, known, np.zeros((3, 1)), ahead).curved.all()


def test_a_site_sex_or_age_that_was_not_fitted_is_not_foreseen():
    site = np.repeat(np.eye(3)[:, 1:], 4, axis=0)
    fitted = Predictors(site[:8], np.tile([40.0, 60.0], 4))
    new = Predictors(site[[0, 4, 8]], np.array([90.0, 50.0, 50.0]))
    assert foreseen(fitted, new).tolist() == [True, True, False]
    # The level that has no column of its own is no safer.
    assert foreseen(Predictors(site[4:], None), Predictors(site[[0, 4]], None)).tolist() == [False, True]
    one_age = Predictors(np.empty((8, 0)), np.full(8, 50.0))
    assert foreseen(one_age, Predictors(np.empty((2, 0)), np.array([50.0, 51.0]))).tolist() == [True, False]


def test_units_of_values_and_of_age_change_nothing(rng):
    values, known = people(rng, 120, curve=1.0, uneven=0.5)
    train, new = np.arange(100), np.arange(100, 120)
    days = Predictors(known.plain, known.age * 365.25)
    one = deviations(values[train], known.rows(train), values[new], known.rows(new))
    other = deviations(1e-4 * values[train] + 7, days.rows(train), 1e-4 * values[new] + 7, days.rows(new))
    np.testing.assert_allclose(one.z, other.z, atol=1e-6)


def test_candidates_are_compared_by_the_density_they_give_a_scan_that_was_left_out(rng):
    """The naive way: fit again without each scan, and take the density of its prediction."""
    values, known = people(rng, 12, n_columns=2)
    design, variance = known.linear, np.exp(0.8 * (known.age - 50) / 20)
    model = reference._Model(design, design[:1], variance, variance[:1], curved=False, uneven=True)
    naive = np.empty((12, 2))
    for scan in range(12):
        rest, weights = np.delete(np.arange(12), scan), np.diag(1 / np.delete(variance, scan))
        inverse = np.linalg.inv(design[rest].T @ weights @ design[rest])
        slopes = inverse @ design[rest].T @ weights @ values[rest]
        left = values[rest] - design[rest] @ slopes
        s = np.sqrt(np.diag(weights) @ np.square(left) / 8)
        width = s * np.sqrt(variance[scan] + design[scan] @ inverse @ design[scan])
        naive[scan] = stats.t.logpdf((values[scan] - design[scan] @ slopes) / width, 8) - np.log(width)
    np.testing.assert_allclose(reference._fitted(values, values[:1], model)[1], naive)


def test_columns_are_judged_one_by_one(rng):
    values, known = people(rng, 120, curve=0.4)
    train, new = known.rows(np.arange(100)), known.rows(np.arange(100, 120))
    together = deviations(values[:100], train, values[100:], new)
    alone = [deviations(values[:100, [c]], train, values[100:, [c]], new).z[:, 0] for c in range(30)]
    np.testing.assert_allclose(together.z, np.array(alone).T)


def test_a_constant_column_is_not_judged(rng):
    values, known = people(rng, 60)
    values[:, 3] = 5.0
    found = deviations(values[:50], known.rows(np.arange(50)), values[50:], known.rows(np.arange(50, 60)))
    assert np.isnan(found.z[:, 3]).all()
    assert np.isfinite(np.delete(found.z, 3, axis=1)).all()


def test_a_lone_subject_of_a_site_breaks_nothing(rng):
    values, known = people(rng, 60)
    alone = Predictors(np.column_stack([known.plain, np.arange(60) == 7]), known.age)
    found = deviations(values[:50], alone.rows(np.arange(50)), values[50:], alone.rows(np.arange(50, 60)))
    rest = np.delete(np.arange(50), 7)
    without = deviations(values[rest], known.rows(rest), values[50:], known.rows(np.arange(50, 60)))
    np.testing.assert_allclose(found.z, without.z, rtol=1e-6)


def test_normal_score_is_exact_in_the_tails():
    np.testing.assert_allclose(normal_score(np.array([-2.0, 0.0, 2.0]), 10**9), [-2, 0, 2], atol=1e-6)
    assert normal_score(np.array(60.0), 8) == pytest.approx(-stats.norm.ppf(stats.t.sf(60.0, 8)))
    assert np.isfinite(normal_score(np.array([-1e6, 1e6]), 5000)).all()
