import numpy as np
import pytest
from scipy.special import expit
from sklearn.linear_model import LogisticRegression, Ridge

from nilatent.analysis.prediction.solver import fit_logistic, fit_ridge, make_design
from nilatent.errors import SettingError


def standard(x):
    return (x - x.mean(axis=0)) / x.std(axis=0) / np.sqrt(x.shape[1])


@pytest.mark.parametrize(("n", "p"), [(30, 4), (20, 70)])
def test_rotated_features_keep_all_products_of_the_standardised_ones(rng, n, p):
    x = rng.standard_normal((n, p)) * rng.uniform(1, 9, p) + 5
    design = make_design(x)
    np.testing.assert_allclose(design.rotated @ design.rotated.T, standard(x) @ standard(x).T, atol=1e-10)
    np.testing.assert_allclose(design.rotate(x), design.rotated, atol=1e-8)
    np.testing.assert_allclose(np.square(design.rotated).sum(axis=1).mean(), 1, rtol=1e-8)
    np.testing.assert_allclose(design.variance, np.square(design.rotated).mean(axis=0), rtol=1e-8)


def test_a_constant_feature_takes_no_part(rng):
    x = rng.standard_normal((25, 3))
    with_constant = np.insert(x, 1, 7.3, axis=1)
    plain, design = make_design(x), make_design(with_constant)
    np.testing.assert_allclose(np.abs(design.rotated), np.abs(plain.rotated), atol=1e-10)
    np.testing.assert_array_equal(np.abs(design.axes[:, 1]) < 1e-12, True)


@pytest.mark.parametrize("penalty", [1e-3, 0.03, 1.0])
def test_logistic_weights_are_those_of_scikit_learn(rng, penalty):
    n = 60
    x = rng.standard_normal((n, 5)) @ rng.standard_normal((5, 5))
    y = (x[:, 0] + rng.standard_normal(n) > 0.8).astype(float)
    weights = rng.uniform(0, 1, n)
    weights[:7] = 0
    weights /= weights.sum()
    design = make_design(x)
    found = fit_logistic(design, y[:, None, None], weights[:, None], np.array([penalty]))[:, 0, 0]
    oracle = LogisticRegression(C=1 / penalty, tol=1e-10, max_iter=10_000).fit(design.rotated, y, sample_weight=weights)
    np.testing.assert_allclose(found, [*oracle.coef_[0], oracle.intercept_[0]], atol=2e-4)


def test_several_classes_are_one_softmax(rng):
    n = 90
    x = rng.standard_normal((n, 4))
    y = (x[:, :3] + rng.standard_normal((n, 3))).argmax(axis=1)
    design = make_design(x)
    shown = (y[:, None] == np.arange(3)).astype(float)
    found = fit_logistic(design, shown[:, None], np.full((n, 1), 1 / n), np.array([0.02]))[:, 0]
    oracle = LogisticRegression(C=1 / (0.02 * n), tol=1e-10, max_iter=10_000).fit(design.rotated, y)
    np.testing.assert_allclose(found[:-1].T, oracle.coef_, atol=1e-4)
    centred = found[-1] - found[-1].mean()
    np.testing.assert_allclose(centred, oracle.intercept_ - oracle.intercept_.mean(), atol=1e-3)


def test_columns_beside_each_other_change_nothing(rng):
    n, many = 40, 23
    design = make_design(rng.standard_normal((n, 6)))
    y = rng.integers(0, 2, (n, many, 1)).astype(float)
    weights = rng.uniform(0, 1, (n, many))
    weights /= weights.sum(axis=0)
    penalty = np.logspace(-4, 0, many)
    together = fit_logistic(design, y, weights, penalty)
    alone = [fit_logistic(design, y[:, [i]], weights[:, [i]], penalty[[i]])[:, 0] for i in range(many)]
    np.testing.assert_allclose(together, np.stack(alone, axis=1), atol=1e-9)


def test_the_gradient_vanishes_at_the_solution(rng):
    n = 35
    design = make_design(rng.standard_normal((n, 100)))
    y = rng.integers(0, 2, n).astype(float)
    w = fit_logistic(design, y[:, None, None], np.full((n, 1), 1 / n), np.array([1e-4]))[:, 0, 0]
    left = expit(design.rotated @ w[:-1] + w[-1]) - y
    np.testing.assert_allclose(design.rotated.T @ left / n + 1e-4 * w[:-1], 0, atol=1e-5)
    np.testing.assert_allclose(left.mean(), 0, atol=1e-5)


def test_ridge_weights_are_those_of_scikit_learn(rng):
    n, rows = 40, np.arange(5, 33)
    x, y = rng.standard_normal((n, 7)), rng.standard_normal((n, 3)) + 4
    design = make_design(x)
    weights, level = fit_ridge(design, y, np.array([0.01, 2.0]), rows=rows)
    for number, penalty in enumerate((0.01, 2.0)):
        oracle = Ridge(alpha=penalty * len(rows)).fit(design.rotated[rows], y[rows])
        np.testing.assert_allclose(weights[number].T, oracle.coef_, rtol=1e-6)
        np.testing.assert_allclose(level[number], oracle.intercept_, rtol=1e-6)


def test_features_without_values_are_refused():
    with pytest.raises(SettingError, match="missing"):
        make_design(np.array([[1.0, np.nan], [2.0, 3.0]]))
    with pytest.raises(SettingError, match="No feature varies"):
        make_design(np.ones((5, 2)))
