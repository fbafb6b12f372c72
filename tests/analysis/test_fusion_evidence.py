import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from nilatent.analysis.fusion.evidence import SURE, average, evidence, fit_stack, loss, scores_of


@pytest.mark.parametrize(("kind", "n_levels"), [("binary", 2), ("multi-class", 4), ("ordinal", 4)])
def test_evidence_and_back(rng, kind, n_levels):
    scores = rng.dirichlet(np.ones(n_levels), size=30) * 0.99 + 0.01 / n_levels
    said = evidence(scores, kind)
    assert said.shape == (30, n_levels - (kind != "multi-class"))
    np.testing.assert_allclose(scores_of(said, kind), scores, atol=1e-12)


def test_evidence_is_log_odds_and_bounded():
    said = evidence(np.array([[0.2, 0.8], [1.0, 0.0]]), "binary")
    np.testing.assert_allclose(said[0], np.log(4))
    np.testing.assert_allclose(said[1], np.log(SURE / (1 - SURE)))
    np.testing.assert_array_equal(evidence(np.array([[3.0], [-1.0]]), "continuous"), [[3.0], [-1.0]])
    passed = evidence(np.array([[0.2, 0.3, 0.5]]), "ordinal")
    np.testing.assert_allclose(passed, [[np.log(0.8 / 0.2), 0.0]])


def test_average_is_over_the_modalities_there_are(rng):
    said = rng.standard_normal((20, 3, 2))
    said[3, 1] = said[5, :2] = np.nan
    expected = [np.mean([one for one in scan if np.isfinite(one).all()], axis=0) for scan in said]
    np.testing.assert_allclose(average(said), expected)


def test_weights_of_numbers_are_least_squares_of_at_least_nothing(rng):
    said = rng.standard_normal((200, 3, 1))
    y = 5 + 0.7 * said[:, 0, 0] + 0.4 * said[:, 1, 0] - 0.6 * said[:, 2, 0] + 0.1 * rng.standard_normal(200)
    stack = fit_stack(said, y, "continuous", n_levels=0)
    assert stack.weights[2] == 0
    x = np.column_stack([said[:, :2, 0], np.ones(200)])
    by_hand = np.linalg.lstsq(x, y, rcond=None)[0]
    np.testing.assert_allclose(stack.weights[:2], by_hand[:2])
    np.testing.assert_allclose(stack.say(said)[:, 0], x @ by_hand)


def test_logistic_weights_are_those_of_an_independent_fit(rng):
    said = rng.standard_normal((150, 2, 1))
    y = (said[:, 0, 0] + 0.5 * said[:, 1, 0] + rng.logistic(size=150) > 0.3).astype(int)
    stack = fit_stack(said, y, "binary", n_levels=2)
    by_hand = LogisticRegression(C=1.0, tol=1e-10, max_iter=1000).fit(said[:, :, 0], y)
    np.testing.assert_allclose(stack.weights, by_hand.coef_[0], atol=1e-3)
    np.testing.assert_allclose(stack.intercept, by_hand.intercept_, atol=1e-3)


@pytest.mark.parametrize("kind", ["binary", "multi-class", "ordinal"])
def test_sound_evidence_has_a_weight_near_one_and_its_opposite_none(rng, kind):
    n_levels = 2 if kind == "binary" else 3
    scores = rng.dirichlet(np.ones(n_levels), size=3000)
    y = (scores.cumsum(axis=1) < rng.uniform(size=(3000, 1))).sum(axis=1)
    said = np.stack([evidence(scores, kind), -evidence(scores[rng.permutation(3000)], kind)], axis=1)
    stack = fit_stack(said, y, kind, n_levels=n_levels)
    assert stack.weights[0] == pytest.approx(1, abs=0.12)
    assert stack.weights[1] == pytest.approx(0, abs=0.06)
    told = scores_of(stack.say(said), kind)
    np.testing.assert_allclose(told.mean(axis=0), np.bincount(y) / 3000, atol=0.01)
    upside_down = np.stack([-said[:, 0], said[:, 0]], axis=1)
    assert fit_stack(upside_down, y, kind, n_levels=n_levels).weights[0] == 0


def test_classes_told_apart_wholly_leave_finite_weights():
    y = np.repeat([0, 1], 20)
    stack = fit_stack((20.0 * y - 10)[:, None, None], y, "binary", n_levels=2)
    assert 0 < stack.weights[0] < 3


def test_loss_is_squared_error_or_minus_log_probability(rng):
    scores = rng.dirichlet(np.ones(3), size=(4, 5))
    y = rng.integers(0, 3, 5)
    expected = [[-np.log(scores[draw, scan, y[scan]]) for scan in range(5)] for draw in range(4)]
    np.testing.assert_allclose(loss(scores, y, "multi-class"), expected)
    np.testing.assert_allclose(loss(np.array([[1.0], [4.0]]), np.array([3.0, 3.0]), "continuous"), [4, 1])
    assert loss(np.array([[1.0, 0.0]]), np.array([1]), "binary")[0] == pytest.approx(-np.log(SURE))
