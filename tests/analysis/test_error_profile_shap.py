from itertools import combinations
from math import comb

import numpy as np
import pandas as pd
import pytest
from scipy.stats import friedmanchisquare
from sklearn.ensemble import GradientBoostingRegressor
from sklearn.linear_model import LinearRegression

from nilatent.analysis import stats
from nilatent.analysis.error_profile import shap as shap_values
from nilatent.analysis.error_profile.classes import class_difference, groups_of, own_models
from nilatent.analysis.error_profile.models import Problem, dealt_folds, left_over, parts_of, ridge_weights
from nilatent.errors import NilatentError


def shapley(predict, x, background):
    """From the definition: the mean over all orders of what a feature adds, others drawn from the background."""
    n = len(x)

    def value(members):
        rows = background.copy()
        rows[:, list(members)] = x[list(members)]
        return predict(rows).mean()

    return [
        sum(
            (value((*rest, j)) - value(rest)) / (n * comb(n - 1, size))
            for size in range(n)
            for rest in combinations([k for k in range(n) if k != j], size)
        )
        for j in range(n)
    ]


@pytest.fixture
def problem(rng) -> Problem:
    x = rng.normal(size=(60, 12))
    x[:, 7] = x[:, 6] + 0.1 * rng.normal(size=60)
    levels = np.arange(60) % 3
    null = np.column_stack([x.mean(axis=1), levels[:, None] == [1, 2]]).astype(float)
    return Problem(x[:, 4] + 0.3 * rng.normal(size=60) + levels, x, null, levels, levels)


@pytest.fixture
def parts(problem):
    return parts_of(problem, dealt_folds(problem.blocks, 4, seed=0))


def test_linear_shap_is_the_closed_form_and_the_definition(rng):
    x, background, weights = rng.normal(size=(5, 4)), 3 + rng.normal(size=(30, 4)), rng.normal(size=4)
    phi = shap_values.linear_shap(weights, x, background)
    np.testing.assert_allclose(phi, [shapley(lambda rows: rows @ weights, row, background) for row in x])


def test_linear_shap_is_that_of_the_shap_package_told_to_use_all_rows(rng):
    shap = shap_values.shap_package()
    background = rng.normal(size=(250, 4)) ** 3
    x, model = rng.normal(size=(5, 4)), LinearRegression().fit(background, background @ [1, 2, 3, 4])
    told = shap.maskers.Independent(background, max_samples=len(background))
    ours = shap_values.linear_shap(model.coef_, x, background)
    np.testing.assert_allclose(ours, shap.LinearExplainer(model, told).shap_values(x), atol=1e-9)
    assert np.abs(ours - shap.LinearExplainer(model, background).shap_values(x)).max() > 1e-3


def test_tree_shap_is_the_definition_over_all_rows_of_the_background(rng):
    background = rng.normal(size=(150, 3))
    y = background[:, 0] * background[:, 1] + rng.normal(size=150)
    model = GradientBoostingRegressor(n_estimators=20, max_depth=3, random_state=0).fit(background, y)
    x = rng.normal(size=(4, 3))
    phi, base = shap_values.tree_shap(model, x, background)
    np.testing.assert_allclose(phi, [shapley(model.predict, row, background) for row in x], atol=1e-6)
    assert base == pytest.approx(model.predict(background).mean(), abs=1e-6)


def test_contributions_that_do_not_add_up_are_an_error():
    phi, predicted = np.array([[0.1, 0.2]]), np.array([0.8])
    shap_values.check_additivity(phi, 0.5, predicted, model="trees")
    for base in (0.5001, np.nan):
        with pytest.raises(NilatentError, match=r"'trees' miss.*1e-05"):
            shap_values.check_additivity(phi, base, predicted, model="trees")


def test_each_scan_is_explained_by_the_model_that_has_not_seen_it(problem, parts):
    phi = shap_values.held_out_shap(parts, problem.log_error, "ridge", seed=0)
    for part in parts:
        weights = ridge_weights(part, left_over(part, problem.log_error[:, None]))[:, 0]
        np.testing.assert_allclose(phi[part.test], part.x_test * weights, atol=1e-9)


@pytest.mark.parametrize("model", ["ridge", "trees"])
def test_the_region_that_drives_the_error_contributes_most(problem, parts, model):
    found = shap_values.contributions(problem, [parts], model, seed=0)
    assert np.abs(found.phi).mean(axis=0).argmax() == 4
    assert (found.by_fold[0].argmax(axis=1) == 4).all()
    np.testing.assert_allclose(found.by_seed[0], np.abs(found.phi).mean(axis=0))
    held_out = found.phi[parts[1].test]
    np.testing.assert_allclose(found.by_fold[0, 1], np.abs(held_out).mean(axis=0))


def test_kendall_w_is_friedmans_statistic(rng):
    values = np.round(rng.normal(size=(5, 9)), 1)
    expected = friedmanchisquare(*values.T).statistic / (5 * 8)
    assert shap_values.kendall_w(values) == pytest.approx(expected)
    assert shap_values.kendall_w(np.tile(np.arange(4.0), (3, 1))) == pytest.approx(1)
    assert np.isnan(shap_values.kendall_w(values[:1]))


def test_jaccard_of_the_top_regions_by_hand():
    importance = np.array([[9, 8, 7, 1, 0.5], [9, 8, 0, 7, 0], [1, 0, 0, 0, 0]])
    # {0,1,2} and {0,1,3}: 2/4; {0,1,2} and {0}: 1/3; {0,1,3} and {0}: 1/3.
    assert shap_values.top_jaccard(importance, top=3) == pytest.approx((1 / 2 + 1 / 3 + 1 / 3) / 3)
    assert np.isnan(shap_values.top_jaccard(importance))


def test_stability_is_high_with_an_effect_and_lower_for_shuffled_errors(problem, parts):
    again = parts_of(problem, dealt_folds(problem.blocks, 4, seed=1))
    found = shap_values.contributions(problem, [parts, again], "ridge", seed=0)
    orders = stats.permutations(60, 20, seed=0, blocks=problem.blocks)
    said = shap_values.stability(problem, [parts, again], found, "ridge", orders, seed=0)
    assert said["w_folds"] == pytest.approx(np.mean([shap_values.kendall_w(one) for one in found.by_fold]))
    assert said["w_seeds"] == pytest.approx(shap_values.kendall_w(found.by_seed))
    assert said["jaccard_seeds"] == pytest.approx(shap_values.top_jaccard(found.by_seed))
    assert 0 <= said["w_folds_shuffled"] <= 1


def test_correlated_regions_form_a_cluster_and_their_contributions_are_summed(problem, parts):
    cluster = shap_values.clusters(parts, threshold=0.9)
    assert cluster[6] == cluster[7]
    assert len(np.unique(cluster)) == 11
    np.testing.assert_array_equal(np.unique(cluster), np.arange(1, 12))
    assert (shap_values.clusters(parts, threshold=0.01) == 1).all()
    phi = np.arange(24.0).reshape(2, 12)
    summed = shap_values.cluster_shap(phi, cluster)
    np.testing.assert_allclose(summed[:, cluster[6] - 1], phi[:, 6] + phi[:, 7])
    np.testing.assert_allclose(summed.sum(axis=1), phi.sum(axis=1))


def test_opposite_regions_share_a_cluster(rng):
    x = rng.normal(size=(60, 3))
    x[:, 2] = -x[:, 0] + 0.1 * rng.normal(size=60)
    flipped = Problem(rng.normal(size=60), x, np.zeros((60, 0)), np.zeros(60, int), np.zeros(60, int))
    found = shap_values.clusters(parts_of(flipped, dealt_folds(flipped.blocks, 4, seed=0)), threshold=0.8)
    np.testing.assert_array_equal(found, [1, 2, 1])


def test_a_class_difference_is_found_in_size_and_in_sign(problem, rng):
    group = np.repeat(["A", "B", ""], [28, 28, 4])
    phi = rng.normal(size=(60, 12))
    phi[:28, 3] *= 6
    phi[:28, 8] += 3
    p_size, p_sign = class_difference(phi, group, problem, blocks=None, n_permutations=199, seed=0)
    assert p_size[3] == p_sign[8] == 1 / 200
    assert p_sign[3] > 0.05
    # The scans that belong to neither class play no part.
    phi[56:] = 1e3
    again = class_difference(phi, group, problem, blocks=None, n_permutations=199, seed=0)
    np.testing.assert_array_equal(again, (p_size, p_sign))


def test_a_class_difference_that_is_one_between_sites_is_none(problem, rng):
    site = np.repeat([0, 1], 30)
    group = np.where((site == 1) ^ (np.arange(60) % 15 == 0), "A", "B")
    phi = rng.normal(size=(60, 12))
    phi[:, 3] += 3 * site
    within = Problem(problem.log_error, problem.regions, site[:, None].astype(float), problem.levels, site)
    p_sign = {
        (name, blocks is None): class_difference(phi, group, one, blocks=blocks, n_permutations=99, seed=0)[1][3]
        for name, one in (("free", problem), ("site removed", within))
        for blocks in (None, site)
    }
    assert p_sign.pop(("free", True)) <= 0.01
    assert min(p_sign.values()) > 0.05


def test_small_groups_take_no_part():
    scans = pd.DataFrame({"group": np.repeat(["A", "B", "C", None], [10, 9, 3, 4])})
    null = np.arange(26.0)[:, None]
    found = groups_of(scans, "group", null)
    assert (found.small, found.names, found.compared) == (["C"], ["A", "B"], True)
    assert not groups_of(scans, "group", (scans["group"] == "A").to_numpy(dtype=float)[:, None]).compared
    assert groups_of(scans.iloc[8:], "group", null[8:]).names == []
    assert groups_of(scans, "nothing", null).names == []


def test_the_model_of_a_class_finds_what_drives_the_error_in_it_alone(rng):
    x, levels = rng.normal(size=(90, 6)), np.arange(90) % 3
    group = np.repeat(["A", "B", "C"], [40, 38, 12])
    log_error = np.where(group == "A", 2 * x[:, 1], 0.0) + rng.normal(size=90)
    null = (levels[:, None] == [1, 2]).astype(float)
    problem = Problem(log_error, x, null, levels, levels)
    found = own_models(problem, group, n_folds=5, n_permutations=199, alpha=0.05, seed=0)
    assert set(found) == {"A", "B"}
    assert found["A"].p_gate == 2 / 200
    assert found["A"].mean_abs_phi.argmax() == 1
    assert found["B"].p_gate > 0.05
    assert np.isnan(found["B"].mean_abs_phi).all()
