from dataclasses import replace

import numpy as np
import pytest

from nilatent.analysis.fusion import importance as fusion_importance
from nilatent.analysis.fusion.config import FusionConfig
from nilatent.analysis.fusion.cv import blocks_of, say
from nilatent.analysis.fusion.evidence import scores_of
from nilatent.analysis.fusion.importance import CROSSED, LIKE, _averaged, _lost, alike, decision, importances
from nilatent.analysis.prediction.sets import FeatureSet
from nilatent.analysis.prediction.targets import Target

FAST = FusionConfig(n_draws=199, n_bootstrap=200, n_inner=3)


def parts(sets, y, kind="continuous", *, n_folds=4, levels=()):
    n = len(y)
    target = Target("t", kind, np.arange(n), y, levels, {}, "t")
    folds = np.arange(n) % n_folds
    blocks = [blocks_of(FeatureSet("x", (x,), None, False), target, folds, np.arange(n)) for x in sets]
    early = {
        fold: say([block[fold] for block in blocks], target, np.arange(n), n_inner=3, seed=0) for fold in blocks[0]
    }
    return blocks, early, target


def carried(sets, y, kind="continuous", *, config=FAST, first=None, levels=()):
    blocks, early, target = parts(sets, y, kind, levels=levels)
    first = np.ones(len(y), dtype=bool) if first is None else first
    return importances(blocks, early, target, np.arange(len(y)), first, config)


def shared_and_private(rng, n=120, *, own=1.0):
    """Two modalities that see one cause together; the second sees another one by itself."""
    f, g = rng.standard_normal((2, n))
    first = np.column_stack([f, rng.standard_normal((n, 3))]) + 0.3 * rng.standard_normal((n, 4))
    second = first @ rng.standard_normal((4, 4)) / 2 + 0.7 * rng.standard_normal((n, 4))
    second = np.column_stack([second, g])
    return first, second, f + own * g + 0.5 * rng.standard_normal(n)


def test_parts_of_a_decision_add_up_to_what_the_head_says(rng):
    first, second, y = shared_and_private(rng, 40)
    y = np.digitize(y, [-0.5, 0.5])
    blocks, early, target = parts([first, second], y, "multi-class", levels=("a", "b", "c"), n_folds=2)
    made = decision([part[1] for part in blocks], early[1], np.arange(40), np.ones(40, dtype=bool), FAST)
    np.testing.assert_array_equal(made.rows, early[1].test)
    said = scores_of(made.added.sum(axis=0) + made.intercept, target.kind)
    np.testing.assert_allclose(said, early[1].scores, atol=1e-10)
    assert made.added.shape == made.expected.shape == (2, 20, 3)


def test_the_regression_keeps_subjects_whole(rng):
    first, second, y = shared_and_private(rng, 40)
    blocks, early, _ = parts([first, second], y, n_folds=2)
    mine, everyone = [part[0] for part in blocks], np.ones(40, dtype=bool)
    each = decision(mine, early[0], np.arange(40), everyone, FAST)
    pairs = decision(mine, early[0], np.arange(40) // 4, everyone, FAST)
    np.testing.assert_array_equal(each.added, pairs.added)
    assert (each.expected != pairs.expected).any()


def test_what_the_others_say_wholly_carries_nothing_by_itself(rng):
    x = rng.standard_normal((80, 3))
    mixed = 2 * x[:, ::-1]
    y = x.sum(axis=1) + 0.3 * rng.standard_normal(80)
    for one in carried([x, mixed], y):
        assert abs(one.conditional.value) < 0.01
        assert one.marginal.value > 0.1


def test_what_is_private_is_found_and_a_noisy_copy_is_not(rng):
    first, second, y = shared_and_private(rng)
    both = carried([first, second], y)
    assert both[1].conditional.value > 0.2
    assert both[1].conditional.p_value <= 0.01
    assert both[1].conditional.low > 0
    first, second, y = shared_and_private(rng, own=0.0)
    copy = carried([first, second], y)[1]
    assert copy.marginal.value > copy.conditional.value + 0.03
    assert copy.marginal.p_value <= 0.05 < copy.conditional.p_value
    assert copy.conditional.low < 0.05


def test_importance_of_classes(rng):
    first, second, y = shared_and_private(rng, 100, own=1.5)
    both = carried([first, second], (y > 0).astype(int), "binary", levels=("a", "b"))
    assert both[1].conditional.p_value <= 0.05
    assert 0.1 < both[1].conditional.value < 1


def test_what_the_only_cause_carries_is_what_it_explains(rng):
    x, noise = rng.standard_normal((400, 1)), rng.standard_normal((400, 1))
    found = carried([x, noise], x[:, 0] + 0.5 * rng.standard_normal(400))
    assert found[0].marginal.value == pytest.approx(0.8, rel=0.1)
    assert found[0].conditional.value == pytest.approx(0.8, rel=0.15)
    assert found[1].marginal.value == pytest.approx(0, abs=0.02)


def test_lost_is_per_loss_of_knowing_nothing(rng):
    lost, totals, scale = rng.normal(0.3, 1, 30), rng.normal(9, 6, 500), rng.uniform(1, 2, 30)
    weights = rng.multinomial(30, np.full(30, 1 / 30), size=400).astype(float)
    found = _lost(lost, totals, scale, weights, replace(FAST, alpha=0.1))
    assert found.value == pytest.approx(lost.sum() / scale.sum())
    low, high = np.quantile(weights @ lost / (weights @ scale), [0.05, 0.95])
    assert found.low == pytest.approx(found.value + CROSSED * (low - found.value))
    assert found.high == pytest.approx(found.value + CROSSED * (high - found.value))
    wide = totals.mean() + CROSSED * (totals - totals.mean())
    assert found.p_value == (1 + (wide <= 0).sum()) / 501


def test_the_mean_is_over_draws_of_others(rng):
    orders = np.array([[0, 1, 2, 3], [1, 0, 2, 3], [2, 0, 1, 3]])
    scores = rng.standard_normal((3, 4, 2))
    means = _averaged(scores, orders)
    np.testing.assert_allclose(means[0], scores[1:, 0].mean(axis=0))
    np.testing.assert_allclose(means[2], scores[2, 2])
    np.testing.assert_allclose(means[3], scores[:, 3].mean(axis=0))


def test_scans_are_exchanged_with_those_of_whom_the_others_say_alike(rng):
    rest = rng.standard_normal((23, 1))
    strata = alike(rest)
    assert np.bincount(strata).min() >= LIKE
    assert len(np.unique(strata)) == 23 // LIKE
    assert (np.diff(strata[np.argsort(rest[:, 0])]) >= 0).all()
    assert (alike(rest[:4]) == 0).all()
    wide = np.column_stack([0.1 * rng.standard_normal(23), 5 * rest[:, 0]])
    assert set(map(tuple, [alike(wide), strata.max() - alike(wide)])) & {tuple(strata)}


def test_what_a_straight_line_misses_is_shared_still_where_the_others_say_alike(rng, monkeypatch):
    f = rng.standard_normal((240, 1))
    bent = np.tanh(3 * f) + 0.1 * rng.standard_normal((240, 1))
    y = np.tanh(3 * f[:, 0]) + 0.3 * rng.standard_normal(240)
    alike_ = carried([f, bent], y)[1].conditional.value
    monkeypatch.setattr(fusion_importance, "LIKE", 10**6)
    assert alike_ < carried([f, bent], y)[1].conditional.value / 2


def test_only_the_scans_by_which_subjects_are_judged_count(rng):
    first, second, y = shared_and_private(rng, 80)
    chosen = np.arange(80) % 5 > 0
    some = carried([first, second], y, first=chosen)
    spoilt, early, target = parts([first, second], y)
    assert some != carried([first, second], y)
    moved = [
        {fold: replace(block, x_test=np.where(chosen[block.test][:, None], block.x_test, 99.0)) for fold, block in
         part.items()}
        for part in spoilt
    ]  # fmt: skip
    assert importances(moved, early, target, np.arange(80), chosen, FAST) == some


def test_draws_follow_the_seed(rng):
    first, second, y = shared_and_private(rng, 60)
    once, again = carried([first, second], y), carried([first, second], y)
    assert once == again
    for change in ({"seed": 1}, {"n_inner": 6}, {"n_draws": 99}):
        other = carried([first, second], y, config=replace(FAST, **change))
        assert other[0].conditional.value != once[0].conditional.value
    low = [one.conditional.low for one in carried([first, second], y, config=replace(FAST, alpha=0.5))]
    assert all(narrow > one.conditional.low for narrow, one in zip(low, once, strict=True))


@pytest.mark.slow
def test_a_noisy_copy_is_called_important_no_more_often_than_stated(rng):
    """The shared cause is the whole truth: false positives within their binomial bound, intervals that hold 0, power beside."""
    copies, shared, held = [], [], []
    for _ in range(120):
        first, second, y = shared_and_private(rng, 60, own=0.0)
        copy = carried([first, second], y, config=replace(FAST, n_draws=99))[1]
        copies.append(copy.conditional.p_value <= 0.05)
        shared.append(copy.marginal.p_value <= 0.05)
        held.append(copy.conditional.low <= 0 <= copy.conditional.high)
    assert np.mean(copies) <= 0.10
    assert np.mean(shared) > 0.2
    assert np.mean(held) >= 0.89
