import warnings

import numpy as np
import pytest
from scipy import optimize, stats

from nilatent.analysis.mixed import deletion_steps, fit_mixed, likelihood_ratio
from nilatent.errors import SettingError


def cohort(rng, n=40, *, level=1.0, slope=0.3, noise=0.5, together=0.0, visits=(1, 5)):
    """Uneven and missing visits of subjects in two groups, with the subjects' own levels and slopes."""
    counts = rng.integers(*visits, n)
    counts[:4] = 3
    subject = np.repeat(np.arange(n), counts)
    years = np.concatenate([np.r_[0.0, np.sort(rng.uniform(0.5, 4, count - 1))] for count in counts])
    member = (subject % 2).astype(float)
    own = rng.multivariate_normal([0, 0], [[level**2, together], [together, slope**2]], n)
    y = 5 + member - 0.4 * years - 0.2 * member * years + own[subject, 0] + own[subject, 1] * years
    y += noise * rng.normal(size=len(subject))
    fixed = np.column_stack([np.ones(len(y)), member, years, member * years])
    return y, fixed, years, subject, own


def naive_deviance(parameters, y, fixed, years, subject, *, restricted):
    """Minus twice the log-likelihood, from the covariance matrix of all visits written out."""
    factor, variance = np.array([[parameters[0], 0.0], [parameters[1], parameters[2]]]), np.exp(parameters[3])
    z = np.column_stack([np.ones(len(y)), years])
    covariance = z @ factor @ factor.T @ z.T * (subject[:, None] == subject) + variance * np.eye(len(y))
    inverse = np.linalg.inv(covariance)
    information = fixed.T @ inverse @ fixed
    beta = np.linalg.solve(information, fixed.T @ inverse @ y)
    left = y - fixed @ beta
    deviance = len(y) * np.log(2 * np.pi) + np.linalg.slogdet(covariance)[1] + left @ inverse @ left
    if restricted:
        deviance += np.linalg.slogdet(information)[1] - fixed.shape[1] * np.log(2 * np.pi)
    return deviance, beta, np.linalg.inv(information)


@pytest.mark.parametrize("restricted", [True, False])
def test_the_fit_is_the_maximum_of_the_likelihood_written_out(rng, restricted):
    y, fixed, years, subject, _ = cohort(rng, 20)
    found = fit_mixed(y, fixed, years, subject, restricted=restricted)
    root = np.linalg.cholesky(found.random)
    at = np.array([root[0, 0], root[1, 0], root[1, 1], np.log(found.residual_variance)])
    deviance, beta, covariance = naive_deviance(at, y, fixed, years, subject, restricted=restricted)
    assert found.log_likelihood == pytest.approx(-deviance / 2, abs=1e-8)
    np.testing.assert_allclose(found.coefficients, beta, rtol=1e-8)
    np.testing.assert_allclose(found.covariance, covariance, rtol=1e-6)
    around = [at + step for step in 0.02 * np.vstack([np.eye(4), -np.eye(4)])]
    naive = [naive_deviance(one, y, fixed, years, subject, restricted=restricted)[0] for one in around]
    assert min(naive) > deviance


def test_subject_effects_are_the_expectation_given_what_was_seen(rng):
    y, fixed, years, subject, _ = cohort(rng, 12)
    found = fit_mixed(y, fixed, years, subject)
    for number, one in enumerate(np.unique(subject)):
        rows = subject == one
        z = np.column_stack([np.ones(rows.sum()), years[rows]])
        inverse = np.linalg.inv(z @ found.random @ z.T + found.residual_variance * np.eye(rows.sum()))
        naive = found.random @ z.T @ inverse @ (y[rows] - fixed[rows] @ found.coefficients)
        np.testing.assert_allclose(found.subject_effects[number], naive, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("slopes", [True, False])
def test_a_subject_moves_the_effects_by_what_they_are_without_it(rng, slopes):
    y, fixed, years, subject, _ = cohort(rng, 14)
    # A column that one subject alone tells of.
    fixed = np.column_stack([fixed, subject == 3])
    found = fit_mixed(y, fixed, years + 3, subject, slopes=slopes)
    steps = deletion_steps(y, fixed, years + 3, subject, fit=found)
    z = np.column_stack([np.ones(len(y)), years + 3])[:, : 2 if slopes else 1]
    covariance = z @ found.random @ z.T * (subject[:, None] == subject) + found.residual_variance * np.eye(len(y))
    for one in range(14):
        rest, columns = subject != one, slice(None, 4 if one == 3 else 5)
        inverse = np.linalg.inv(covariance[np.ix_(rest, rest)])
        x = fixed[rest, columns]
        naive = found.coefficients[columns] - np.linalg.solve(x.T @ inverse @ x, x.T @ inverse @ y[rest])
        np.testing.assert_allclose(steps[one, columns], naive, rtol=1e-5, atol=1e-9)
    assert steps[3, 4] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("restricted", [True, False])
@pytest.mark.parametrize("slopes", [True, False])
def test_statsmodels_agrees_where_it_converges(rng, restricted, slopes):
    from statsmodels.regression.mixed_linear_model import MixedLM

    y, fixed, years, subject, _ = cohort(rng, 60, slope=1.0, noise=0.3, visits=(3, 6))
    random = np.column_stack([np.ones(len(y)), years])[:, : 2 if slopes else 1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = MixedLM(y, fixed, subject, exog_re=random).fit(reml=restricted, method=["bfgs", "cg"])
    assert theirs.converged
    found = fit_mixed(y, fixed, years, subject, restricted=restricted, slopes=slopes)
    assert found.log_likelihood == pytest.approx(theirs.llf, abs=1e-4)
    np.testing.assert_allclose(found.coefficients, theirs.fe_params, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(np.sqrt(np.diag(found.covariance)), theirs.bse_fe, rtol=1e-2)
    np.testing.assert_allclose(found.random, theirs.cov_re, rtol=0.02, atol=1e-3)
    assert found.residual_variance == pytest.approx(theirs.scale, rel=0.01)


def test_no_start_of_a_general_search_finds_a_better_fit(rng):
    for _ in range(4):
        y, fixed, years, subject, _ = cohort(rng, 12, level=rng.choice([0, 0.1, 2]), slope=rng.choice([0, 0.1, 1]))
        ours = -2 * fit_mixed(y, fixed, years, subject).log_likelihood
        start = rng.normal(size=4)
        other = optimize.minimize(
            lambda at, data=(y, fixed, years, subject): naive_deviance(at, *data, restricted=True)[0],
            start,
            method="Nelder-Mead",
            options={"maxiter": 250},
        )
        assert ours <= other.fun + 1e-6


@pytest.mark.parametrize("slopes", [True, False])
def test_neither_units_nor_origins_nor_order_matter(rng, slopes):
    y, fixed, years, subject, _ = cohort(rng)
    found = fit_mixed(y, fixed, years, subject, slopes=slopes)
    order = rng.permutation(len(y))
    mixed_up = fit_mixed(y[order], fixed[order], years[order], subject[order], slopes=slopes)
    np.testing.assert_allclose(mixed_up.coefficients, found.coefficients, rtol=1e-6)
    np.testing.assert_allclose(mixed_up.subject_effects, found.subject_effects, atol=1e-5)
    large = fit_mixed(1e5 * y, fixed, years, subject, slopes=slopes)
    np.testing.assert_allclose(large.coefficients, 1e5 * found.coefficients, rtol=1e-6)
    np.testing.assert_allclose(large.random, 1e10 * found.random, rtol=1e-4, atol=1e5)
    assert large.log_likelihood == pytest.approx(found.log_likelihood - (len(y) - 4) * np.log(1e5))
    days = fit_mixed(y, fixed, 365.25 * years + 40, subject, slopes=slopes)
    assert days.log_likelihood == pytest.approx(found.log_likelihood)
    if slopes:
        assert days.random[1, 1] * 365.25**2 == pytest.approx(found.random[1, 1], rel=1e-4)
        # The level of a subject on day 0 lies 40 days before its first visit.
        back = np.array([1.0, -40 / 365.25])
        assert days.random[0, 0] == pytest.approx(back @ found.random @ back, rel=1e-4)


def test_a_search_from_beside_another_fit_comes_to_the_same(rng):
    y, fixed, years, subject, _ = cohort(rng)
    near = fit_mixed(y, fixed, years, subject, restricted=False)
    alone, beside = (fit_mixed(y, fixed, years, subject, near=one) for one in (None, near))
    assert beside.log_likelihood == pytest.approx(alone.log_likelihood, abs=1e-7)


def test_a_random_slope_that_is_not_there_is_called_singular(rng):
    y, fixed, years, subject, _ = cohort(rng, 40, slope=0.0, visits=(2, 5))
    y = y - 0.5 * years * (subject - subject.mean()) / 1e4
    flat = [fit_mixed(y + 0.01 * rng.normal(size=len(y)), fixed, years, subject).singular for _ in range(8)]
    assert any(flat)
    assert not fit_mixed(*cohort(rng, 40, slope=1.0, visits=(3, 5))[:4]).singular


def test_likelihood_ratio_is_that_of_two_fits(rng):
    y, fixed, years, subject, _ = cohort(rng)
    whole = fit_mixed(y, fixed, years, subject, restricted=False)
    statistic, p, smaller = likelihood_ratio(y, fixed[:, :2], years, subject, whole=whole)
    naive = fit_mixed(y, fixed[:, :2], years, subject, restricted=False)
    assert smaller.log_likelihood == pytest.approx(naive.log_likelihood, abs=1e-6)
    assert statistic == pytest.approx(2 * (whole.log_likelihood - naive.log_likelihood), abs=1e-5)
    assert p == pytest.approx(stats.chi2.sf(statistic, 2))


def test_intervals_are_those_of_students_t_with_the_degrees_given(rng):
    found = fit_mixed(*cohort(rng)[:4])
    contrast = np.array([0.0, 0.0, 1.0, 0.5])
    value, low, high = found.interval(contrast, degrees=9, level=0.9)
    error = np.sqrt(contrast @ found.covariance @ contrast)
    assert value == pytest.approx(found.coefficients[2] + found.coefficients[3] / 2)
    assert [low, high] == pytest.approx(list(stats.t(9, value, error).interval(0.9)))
    between = stats.t(found.n_subjects - 4, value, error).interval(0.95)
    assert found.interval(contrast)[1:] == pytest.approx(between)


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda y, x, t, s: (np.where(np.arange(len(y)) == 3, np.nan, y), x, t, s), "no finite numbers"),
        (lambda y, x, t, s: (y, np.column_stack([x, x[:, 1] - 2 * x[:, 0]]), t, s), "rank 4"),
        (lambda y, x, t, _: (y, x, t, np.arange(len(y))), "two visits"),
    ],
)
def test_what_cannot_be_fitted_is_refused(rng, break_it, words):
    with pytest.raises(SettingError, match=words):
        fit_mixed(*break_it(*cohort(rng)[:4]))


@pytest.mark.slow
def test_intervals_of_a_group_difference_cover_and_slopes_are_recovered(rng):
    covered, bias, agreement = [], [], []
    for _ in range(200):
        y, fixed, years, subject, own = cohort(rng, 60, together=0.1)
        found = fit_mixed(y, fixed, years, subject)
        value, low, high = found.interval(np.array([0.0, 0, 0, 1]))
        covered.append(low <= -0.2 <= high)
        bias.append(value + 0.2)
        agreement.append(np.corrcoef(found.subject_effects[:, 1], own[:, 1])[0, 1])
    assert stats.binomtest(sum(covered), 200, 0.95).pvalue > 0.01
    assert abs(np.mean(bias)) < 3 * np.std(bias) / np.sqrt(200)
    assert np.mean(agreement) > 0.5
