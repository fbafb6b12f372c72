import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import balanced_accuracy_score

from nilatent.analysis import stats
from nilatent.analysis.site_signal import LINEAR, MODELS, NON_LINEAR, call_labels, judge, judge_numbers
from nilatent.errors import SettingError


def test_balanced_accuracy_and_chance_agree_with_a_plain_loop(rng):
    truth = rng.choice(["a", "b", "c"], 90, p=[0.6, 0.3, 0.1])
    called = np.where(rng.random(90) < 0.4, truth, rng.choice(["a", "b", "c"], 90))
    folds = np.arange(90) % 3
    orders = stats.permutations(90, 300, seed=1, blocks=folds)
    found = judge(called, truth, orders)
    drawn = [balanced_accuracy_score(truth[order], called) for order in orders]
    assert found.accuracy == pytest.approx(balanced_accuracy_score(truth, called))
    assert found.chance == pytest.approx(np.mean(drawn))
    assert found.limit == pytest.approx(np.quantile(drawn, 0.95))
    assert found.p_value == pytest.approx((1 + np.sum(np.array(drawn) >= found.accuracy - 1e-9)) / 301)


def test_correlation_agrees_with_a_plain_loop(rng):
    truth = rng.normal(50, 10, 60)
    predicted = 0.2 * truth + rng.normal(0, 10, 60)
    orders = stats.permutations(60, 200, seed=2)
    found = judge_numbers(predicted, truth, orders)
    drawn = np.array([np.corrcoef(predicted, truth[order])[0, 1] for order in orders])
    assert found.accuracy == pytest.approx(np.corrcoef(predicted, truth)[0, 1])
    assert found.p_value == pytest.approx((1 + np.sum(drawn >= found.accuracy)) / 201)
    assert judge_numbers(np.full(60, 3.0), truth, orders).p_value == 1.0


def test_p_is_uniform_without_a_relation(rng):
    orders = stats.permutations(40, 99, seed=3)
    p_values = [judge(rng.choice(list("abc"), 40), rng.choice(list("abc"), 40), orders).p_value for _ in range(400)]
    hits = binomtest(int(np.sum(np.array(p_values) <= 0.1)), 400, 0.1)
    assert hits.proportion_ci(0.99).low <= 0.1
    assert hits.statistic < 0.15


def test_the_linear_model_sees_means_and_the_other_spreads_too(rng):
    site = np.repeat(["a", "b"], 100)
    shifted, spread = rng.normal(size=(2, 200, 20))
    shifted[100:] += 0.8
    spread[100:] *= 2.0
    train = np.arange(200) % 2 == 0
    share = {
        (what, model): np.mean(call_labels(x[train], site[train], x[~train], model=model) == site[~train])
        for what, x in (("shift", shifted), ("spread", spread))
        for model in MODELS
    }
    assert share["shift", LINEAR] > 0.9
    assert share["spread", LINEAR] < 0.65
    assert share["spread", NON_LINEAR] > 0.9


def test_refuses_one_label_and_unknown_models():
    with pytest.raises(SettingError, match="one label only"):
        call_labels(np.zeros((3, 2)), ["a", "a", "a"], np.zeros((1, 2)))
    with pytest.raises(SettingError, match="no model 'forest'"):
        call_labels(np.zeros((2, 2)), ["a", "b"], np.zeros((1, 2)), model="forest")
