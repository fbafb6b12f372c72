import numpy as np
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import auc, roc_curve

from nilatent.analysis.prediction.curves import FALSE_ALARMS, calibration, calibration_line, roc
from nilatent.analysis.prediction.measures import auc as pooled_auc
from nilatent.analysis.prediction.measures import subject_weights


def test_the_curve_is_that_of_scikit_learn(rng):
    for values in (rng.standard_normal(90), rng.integers(0, 5, 90).astype(float)):
        is_case = rng.uniform(size=90) < expit(values)
        found, _, _ = roc(values, is_case, np.ones((2, 90)), np.zeros(90))
        alarms, hits, _ = roc_curve(is_case, values, drop_intermediate=False)
        between = ~np.isin(FALSE_ALARMS, alarms)
        expected = np.interp(FALSE_ALARMS, alarms, hits)
        np.testing.assert_allclose(found[between], expected[between], atol=1e-12)
        top = [hits[alarms <= point].max() for point in FALSE_ALARMS[~between]]
        np.testing.assert_allclose(found[~between], top)
        assert abs(np.trapezoid(found, FALSE_ALARMS) - auc(alarms, hits)) < 0.01


def test_the_area_below_the_mean_of_the_folds_is_the_auc_of_the_table(rng):
    is_case, folds = rng.uniform(size=200) < 0.4, rng.integers(0, 4, 200)
    score = is_case + 2 * rng.standard_normal(200) + 3 * folds
    found, _, _ = roc(score, is_case, np.ones((2, 200)), folds)
    area = pooled_auc(score, is_case, np.ones((1, 200)), folds)[0]
    assert abs(np.trapezoid(found, FALSE_ALARMS) - area) < 0.01


def test_the_band_holds_the_curves_of_resampled_subjects(rng):
    is_case, folds = np.arange(60) % 2 == 0, np.arange(60) // 2 % 3
    score = is_case + rng.standard_normal(60)
    weights = subject_weights(np.arange(60), 200, seed=0)
    found, low, high = roc(score, is_case, weights, folds, alpha=0.2)
    curves = []
    for weight in weights:
        rows = np.repeat(np.arange(60), weight.astype(int))
        curves.append(roc(score[rows], is_case[rows], np.ones((1, len(rows))), folds[rows])[0])
    np.testing.assert_allclose([low, high], np.quantile(curves, [0.1, 0.9], axis=0), atol=1e-9)
    assert (low <= found).all()
    assert (found <= high).all()
    assert np.isnan(roc(score, is_case, weights, is_case.astype(int))[0]).all()


def test_probabilities_that_are_right_lie_on_the_diagonal(rng):
    probability = rng.uniform(size=20_000)
    found = calibration(probability, rng.uniform(size=20_000) < probability)
    np.testing.assert_allclose(found.predicted, found.observed, atol=0.05)
    assert found.error < 0.02
    assert abs(found.intercept) < 0.1
    assert abs(found.slope - 1) < 0.1
    assert found.count.sum() == 20_000


def test_probabilities_that_are_too_extreme_have_a_small_slope(rng):
    odds = rng.standard_normal(20_000)
    is_case = rng.uniform(size=20_000) < expit(0.5 * odds + 1)
    found = calibration(expit(odds), is_case)
    np.testing.assert_allclose([found.intercept, found.slope], [1, 0.5], atol=0.06)
    assert found.error > 0.1


def test_the_line_is_a_logistic_regression(rng):
    probability = rng.uniform(0.05, 0.95, 80)
    is_case = rng.uniform(size=80) < probability
    oracle = LogisticRegression(C=1e8, tol=1e-10).fit(logit(probability)[:, None], is_case)
    np.testing.assert_allclose(
        calibration_line(probability, is_case), [oracle.intercept_[0], oracle.coef_[0, 0]], rtol=1e-3
    )


def test_without_overlap_or_spread_there_is_no_line():
    is_case = np.arange(20) >= 10
    assert np.isnan(calibration_line(np.linspace(0.1, 0.9, 20), is_case)).all()
    assert np.isnan(calibration_line(np.full(20, 0.4), is_case)).all()


def test_few_scans_fill_few_bins(rng):
    found = calibration(rng.uniform(size=30), np.arange(30) % 2 == 0)
    assert (found.count > 0).sum() == 2
    assert np.isnan(found.observed[2:]).all()
