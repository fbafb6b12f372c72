from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression

from nilatent.analysis import stats
from nilatent.analysis.error_profile import gain as gaining
from nilatent.analysis.error_profile import models as models
from nilatent.analysis.error_profile.models import Problem


@pytest.fixture
def problem(rng) -> Problem:
    n, levels = 40, np.arange(40) % 4
    gm, site = rng.normal(size=n), rng.integers(0, 2, size=n)
    x = 5 + gm[:, None] + rng.normal(size=(n, 6))
    null = np.column_stack([gm, site, levels[:, None] == [1, 2, 3]]).astype(float)
    log_error = gm + site + 3.0 * levels + 0.8 * x[:, 2] + 0.5 * rng.normal(size=n)
    return Problem(log_error, x, null, levels, levels * 2 + site)


def folds_of(problem: Problem) -> list[models.Part]:
    return models.parts_of(problem, models.dealt_folds(problem.blocks, 4, seed=0))


def ridge_by_hand(design, penalised, y, penalty):
    """Null columns free, regions penalised, all in one system of normal equations."""
    both = np.hstack([np.ones((len(y), 1)), design, penalised])
    ridge = np.diag([0.0] * (1 + design.shape[1]) + [penalty] * penalised.shape[1])
    return np.linalg.solve(both.T @ both + ridge, both.T @ y), both


def test_null_model_and_regions_are_fitted_on_the_training_scans_only(problem):
    for part in folds_of(problem):
        fitted = LinearRegression().fit(problem.null[part.train], problem.regions[part.train])
        left = problem.regions - fitted.predict(problem.null)
        scale = left[part.train].std(axis=0)
        np.testing.assert_allclose(part.x_train, left[part.train] / scale, atol=1e-9)
        np.testing.assert_allclose(part.x_test, left[part.test] / scale, atol=1e-9)
        told = LinearRegression().fit(problem.null[part.train], problem.log_error[part.train])
        expected = told.predict(problem.null[part.test])
        np.testing.assert_allclose(part.null @ problem.log_error[part.train], expected, atol=1e-9)
        means = [
            problem.log_error[part.train][problem.levels[part.train] == level].mean()
            for level in problem.levels[part.test]
        ]
        np.testing.assert_allclose(part.level @ problem.log_error[part.train], means)


def test_the_ridge_is_the_one_that_leaves_one_scan_out_best(problem):
    part = folds_of(problem)[0]
    y, design = problem.log_error[part.train], problem.null[part.train]
    missed = []
    for penalty in models.PENALTIES:
        total = 0.0
        for i in range(len(y)):
            others = np.arange(len(y)) != i
            weights, _ = ridge_by_hand(design[others], part.x_train[others], y[others], penalty * len(y))
            total += float(y[i] - np.hstack([1, design[i], part.x_train[i]]) @ weights) ** 2
        missed.append(total)
    best = models.PENALTIES[int(np.argmin(missed))]
    weights, _ = ridge_by_hand(design, part.x_train, y, best * len(y))
    found = models.ridge_weights(part, models.left_over(part, problem.log_error[:, None]))
    np.testing.assert_allclose(found[:, 0], weights[-6:], atol=1e-9)


def test_many_targets_at_once_are_one_by_one(problem, rng):
    part, targets = folds_of(problem)[1], rng.normal(size=(40, 5))
    together = models.ridge_weights(part, models.left_over(part, targets))
    for column in range(5):
        alone = models.ridge_weights(part, models.left_over(part, targets[:, [column]]))
        np.testing.assert_allclose(together[:, [column]], alone, atol=1e-12)


@pytest.mark.parametrize("model", ["ridge", "trees"])
def test_r2_is_around_the_training_mean_of_each_model(problem, model):
    parts = folds_of(problem)
    null, full, share = gaining.scores([parts], problem.log_error[:, None], model, seed=0)
    squares = np.zeros(3)
    for part in parts:
        y, told = problem.log_error, LinearRegression().fit(problem.null[part.train], problem.log_error[part.train])
        mean = np.array([y[part.train][problem.levels[part.train] == k].mean() for k in problem.levels[part.test]])
        residuals = models.left_over(part, y[:, None])
        if model == "ridge":
            added = part.x_test @ models.ridge_weights(part, residuals)[:, 0]
        else:
            added = models.grown_trees(part, residuals[:, 0], seed=0).predict(part.x_test)
        predicted = told.predict(problem.null[part.test])
        for i, guess in enumerate((mean, predicted, predicted + added)):
            squares[i] += np.square(y[part.test] - guess).sum()
    expected = [1 - squares[1] / squares[0], 1 - squares[2] / squares[0], 1 - squares[2] / squares[1]]
    np.testing.assert_allclose([null[0], full[0], share[0]], expected, atol=1e-9)


def test_scores_are_means_over_partitions(problem):
    first, second = (models.parts_of(problem, models.dealt_folds(problem.blocks, 4, seed=seed)) for seed in (0, 1))
    y = problem.log_error[:, None]
    apart = [np.array(gaining.scores([parts], y, "ridge", seed=0)) for parts in (first, second)]
    np.testing.assert_allclose(gaining.scores([first, second], y, "ridge", seed=0), np.mean(apart, axis=0))


def test_shuffled_errors_keep_the_null_model_and_stay_within_blocks(problem):
    orders = stats.permutations(40, 20, seed=0, blocks=problem.blocks)
    fitted = LinearRegression().fit(problem.null, problem.log_error).predict(problem.null)
    residuals = gaining.shuffled(problem, orders) - fitted[:, None]
    own = problem.log_error - fitted
    for block in np.unique(problem.blocks):
        rows = problem.blocks == block
        np.testing.assert_allclose(np.sort(residuals[rows], axis=0), np.sort(own[rows])[:, None].repeat(20, axis=1))
    np.testing.assert_allclose(gaining.shuffled(problem, np.arange(40)[None])[:, 0], problem.log_error)


def test_every_block_is_dealt_out_evenly():
    blocks = np.repeat([0, 1, 2], [10, 7, 8])
    folds = models.dealt_folds(blocks, 5, seed=0)
    assert np.ptp(np.bincount(folds)) == 0
    for block in range(3):
        assert np.ptp(np.bincount(folds[blocks == block], minlength=5)) <= 1
    assert (models.dealt_folds(blocks, 5, seed=1) != folds).any()


def test_the_test_rows_never_reach_the_fit(problem, rng):
    part = folds_of(problem)[0]
    changed = problem.log_error.copy()
    changed[part.test] = rng.normal(size=len(part.test)) * 100
    before, after = (models.left_over(part, values[:, None]) for values in (problem.log_error, changed))
    np.testing.assert_array_equal(models.ridge_weights(part, before), models.ridge_weights(part, after))
    np.testing.assert_array_equal(
        models.grown_trees(part, before[:, 0], seed=0).predict(part.x_test),
        models.grown_trees(part, after[:, 0], seed=0).predict(part.x_test),
    )


def test_p_of_an_effect_is_the_smallest_and_the_trees_stop_early_without_one(problem, rng):
    parts, orders = [folds_of(problem)], stats.permutations(40, 59, seed=0, blocks=problem.blocks)
    assert gaining.gain_test(problem, parts, "ridge", orders, n_stop=1, seed=0).p_value == 1 / 60
    null = replace(problem, log_error=rng.normal(size=40))
    parts = [models.parts_of(null, models.dealt_folds(null.blocks, 2, seed=0))]
    found = gaining.gain_test(null, parts, "trees", orders, n_stop=2, seed=0)
    assert found.n_permutations < 59
    assert found.p_value == 2 / found.n_permutations
    assert found.badge == "inconclusive"


def test_a_strong_effect_is_validated_by_the_bound(rng):
    x, levels = rng.normal(size=(400, 6)), np.arange(400) % 4
    null = (levels[:, None] == [1, 2, 3]).astype(float)
    strong = Problem(2 * x[:, 1] + 0.1 * rng.normal(size=400), x, null, levels, levels)
    orders = stats.permutations(400, 9, seed=0, blocks=levels)
    assert gaining.gain_test(strong, [folds_of(strong)], "ridge", orders, n_stop=1, seed=0).badge == "bound-validated"


def test_holm_by_hand():
    np.testing.assert_allclose(gaining.holm([0.04, 0.01, 0.03]), [0.06, 0.03, 0.06])
    np.testing.assert_allclose(gaining.holm([0.7, 0.6]), [1.0, 1.0])
    assert gaining.holm([]).shape == (0,)


def test_a_region_that_the_null_model_holds_contributes_nothing(problem):
    regions = problem.regions.copy()
    regions[:, 0] = 2 * problem.null[:, 0] + 1
    for part in folds_of(replace(problem, regions=regions)):
        assert not part.x_train[:, 0].any()
        assert not part.x_test[:, 0].any()
