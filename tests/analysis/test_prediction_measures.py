import numpy as np
import pytest
from scipy.stats import kendalltau
from sklearn import metrics

from nilatent.analysis.prediction.cv import Told
from nilatent.analysis.prediction.measures import (
    MAIN,
    auc,
    from_sums,
    harrell_c,
    interval,
    main_measure,
    measure,
    parts_of_sums,
    recalls,
    subject_weights,
)
from nilatent.analysis.prediction.targets import Target


def a_target(y, kind, n_levels=0):
    return Target("t", kind, np.arange(len(y)), np.asarray(y), tuple("abcd"[:n_levels]), {}, "t")


def told_of(scores, called, constant):
    folds = np.arange(len(called)) // 2 % 4
    return Told(np.asarray(scores)[:, None], np.asarray(called)[:, None], np.asarray(constant)[:, None], folds)


def naive_auc(is_case, score, folds):
    pairs = [
        (score[i] > score[j]) + 0.5 * (score[i] == score[j])
        for i in np.flatnonzero(is_case)
        for j in np.flatnonzero(~is_case)
        if folds[i] == folds[j]
    ]
    return np.mean(pairs)


def drawn(rng, kind, n_levels, n=80):
    if kind == "continuous":
        y = rng.standard_normal(n) * 5 + 60
        called = y + rng.standard_normal(n) * 4
        return a_target(y, kind), told_of(called[:, None], called, np.full(n, y.mean() + 0.3))
    y = rng.integers(0, n_levels, n)
    scores = rng.dirichlet(np.ones(n_levels), n) + 0.3 * (y[:, None] == np.arange(n_levels))
    scores = np.round(scores / scores.sum(axis=1, keepdims=True), 2)
    return a_target(y, kind, n_levels), told_of(scores, scores.argmax(axis=1), np.full(n, 1))


def measured(rng, kind, n_levels=0, **changes):
    target, told = drawn(rng, kind, n_levels)
    return target, told, measure(target, told, subject_weights(np.arange(80), 200, seed=0), **changes)


def test_measures_of_two_classes_are_those_of_scikit_learn(rng):
    target, told, found = measured(rng, "binary", 2)
    y, called, score = target.y, told.called[:, 0], told.scores[:, 0, 1]
    assert found.value == pytest.approx(
        {
            "balanced_accuracy": metrics.balanced_accuracy_score(y, called),
            "auc": naive_auc(y == 1, score, told.folds),
            "sensitivity": metrics.recall_score(y, called),
            "specificity": metrics.recall_score(y, called, pos_label=0),
            "f1": metrics.f1_score(y, called),
            "mcc": metrics.matthews_corrcoef(y, called),
            "brier": np.square(score - y).mean() / 2 + np.square(told.scores[:, 0, 0] - 1 + y).mean() / 2,
        }
    )
    np.testing.assert_allclose(found.recall, [found.value["specificity"], found.value["sensitivity"]])


def test_measures_of_several_classes_are_those_of_scikit_learn(rng):
    target, told, found = measured(rng, "multi-class", 4)
    y, called, scores = target.y, told.called[:, 0], told.scores[:, 0]
    one_by_one = [naive_auc(y == code, scores[:, code], told.folds) for code in range(4)]
    expected = {
        "balanced_accuracy": metrics.balanced_accuracy_score(y, called),
        "auc": np.mean(one_by_one),
        "f1": metrics.f1_score(y, called, average="macro"),
        "mcc": metrics.matthews_corrcoef(y, called),
        "brier": np.square(scores - np.eye(4)[y]).sum(axis=1).mean(),
    }
    assert found.value == pytest.approx(expected)
    np.testing.assert_allclose(found.recall, metrics.recall_score(y, called, average=None))
    assert (found.recall_low < found.recall).all()
    assert (found.recall < found.recall_high).all()


def test_ordered_levels_count_how_far_off_a_call_is(rng):
    target, told, found = measured(rng, "ordinal", 4)
    y, called = target.y, told.called[:, 0]
    assert found.value["level_error"] == pytest.approx(np.abs(y - called).mean())
    assert found.value["level_error_constant"] == pytest.approx(np.abs(y - 1).mean())
    assert found.value["kendall_tau"] == pytest.approx(kendalltau(y, called).statistic)


def test_measures_of_numbers_stand_beside_the_constant(rng):
    target, told, found = measured(rng, "continuous")
    y, called, constant = target.y, told.called[:, 0], told.constant[:, 0]
    assert found.value == pytest.approx(
        {
            "mae": metrics.mean_absolute_error(y, called),
            "mae_constant": metrics.mean_absolute_error(y, constant),
            "r2": 1 - np.square(y - called).sum() / np.square(y - constant).sum(),
            "r": np.corrcoef(y - constant, called - constant)[0, 1],
        }
    )


def test_calls_that_are_all_alike_tell_nothing():
    target = a_target(np.arange(30) % 3, "ordinal", 3)
    same = np.ones(30, dtype=int)
    told = told_of(np.full((30, 3), 1 / 3), same, same)
    found = from_sums(parts_of_sums(target, target.y, same, same).sum(axis=0)[None], "ordinal", 3)
    assert (found["kendall_tau"][0], found["mcc"][0]) == (0, 0)
    assert found["balanced_accuracy"][0] == pytest.approx(1 / 3)
    assert main_measure(target, target.y[:, None], told)[0] == 0


@pytest.mark.parametrize(("kind", "n_levels"), [("binary", 2), ("multi-class", 3), ("ordinal", 4), ("continuous", 0)])
def test_intervals_are_the_measures_of_resampled_subjects(rng, kind, n_levels):
    target, told = drawn(rng, kind, n_levels)
    subjects = np.arange(80) // 2
    weights = subject_weights(subjects, 300, seed=4)
    assert (weights[:, ::2] == weights[:, 1::2]).all()
    assert (weights.sum(axis=1) == 80).all()
    found = measure(target, told, weights, alpha=0.1)
    one_by_one = []
    for weight in weights:
        rows = np.repeat(np.arange(80), weight.astype(int))
        again = Target("t", kind, rows, target.y[rows], target.levels, {}, "t")
        again_told = Told(told.scores[rows], told.called[rows], told.constant[rows], told.folds[rows])
        one_by_one.append(measure(again, again_told, np.ones((1, 80))).value)
    for name in found.value:
        low, high = np.quantile([one[name] for one in one_by_one], [0.05, 0.95])
        assert (found.low[name], found.high[name]) == pytest.approx((low, high))


def test_the_measure_that_is_tested_is_the_one_in_the_table(rng):
    for kind, n_levels in (("binary", 2), ("ordinal", 3), ("continuous", 0)):
        target, told, found = measured(rng, kind, n_levels)
        assert main_measure(target, target.y[:, None], told)[0] == pytest.approx(found.value[MAIN[kind]])


def test_the_area_counts_ties_half_and_weights_as_copies(rng):
    score, is_case = rng.integers(0, 6, 50).astype(float), rng.uniform(size=50) < 0.4
    weights = rng.integers(0, 3, (4, 50)).astype(float)
    one = np.zeros(50, dtype=int)
    for weight, found in zip(weights, auc(score, is_case, weights, one), strict=True):
        assert found == pytest.approx(metrics.roc_auc_score(is_case, score, sample_weight=weight))
    assert np.isnan(auc(score, is_case, is_case[None].astype(float), one)[0])


def test_heads_of_different_folds_are_not_ranked_against_each_other():
    # Each head ranks its scans without an error, and the second says less of all.
    score, is_case, folds = np.array([0.8, 0.9, 0.1, 0.2]), np.array([False, True] * 2), np.array([0, 0, 1, 1])
    assert auc(score, is_case, np.ones((1, 4)), folds)[0] == 1
    time = np.array([5.0, 1, 5, 1])
    assert harrell_c(score, time, is_case, np.ones((1, 4)), folds)[0] == 1
    assert harrell_c(score, time, is_case, np.ones((1, 4)), np.zeros(4))[0] == 0.75


def naive_c(risk, time, event, weight):
    right = pairs = 0.0
    for i in range(len(risk)):
        for j in range(len(risk)):
            first = event[i] and (time[i] < time[j] or (time[i] == time[j] and not event[j]))
            if first and np.isfinite(time[i]) and np.isfinite(time[j]):
                pairs += weight[i] * weight[j]
                right += weight[i] * weight[j] * (1 if risk[i] > risk[j] else 0.5 if risk[i] == risk[j] else 0)
    return right / pairs


def test_harrells_c_is_a_double_loop_over_pairs(rng):
    n = 40
    risk, time = rng.integers(0, 9, n).astype(float), rng.integers(1, 8, n).astype(float)
    event = rng.uniform(size=n) < 0.5
    time[3] = np.nan
    weights = np.vstack([np.ones(n), rng.integers(0, 3, n)])
    expected = [naive_c(risk, time, event, weight) for weight in weights]
    np.testing.assert_allclose(harrell_c(risk, time, event, weights, np.zeros(n)), expected)


def test_times_enter_the_measures_of_two_classes_alone(rng):
    time = rng.uniform(1, 5, 80)
    target, told, found = measured(rng, "binary", 2, time=time)
    expected = harrell_c(told.scores[:, 0, 1], time, target.y == 1, np.ones((1, 80)), told.folds)[0]
    assert found.value["c_index"] == pytest.approx(expected)
    assert "c_index" not in measured(rng, "ordinal", 3, time=time)[2].value


def test_an_interval_needs_draws_that_have_a_value():
    assert np.isnan(interval(np.array([1.0, np.nan, np.nan]), 0.05)[0])
    assert interval(np.arange(101.0), 0.1) == (5, 95)


def test_a_class_that_is_not_drawn_has_no_share():
    target = a_target([0, 0, 1], "binary", 2)
    sums = parts_of_sums(target, target.y, np.array([0, 1, 1]), np.zeros(3))
    np.testing.assert_array_equal(recalls(np.array([[1, 1, 0]]) @ sums, 2), [[0.5, np.nan]])
