from dataclasses import replace

import numpy as np
import pytest

from nilatent.analysis.fusion import ways as fusion_ways
from nilatent.analysis.fusion.cv import blocks_of, say
from nilatent.analysis.fusion.evidence import fit_stack, scores_of
from nilatent.analysis.fusion.ways import alone, averaged, best_inside, inner_skill, stacked, told_of, unknowing
from nilatent.analysis.prediction.measures import auc
from nilatent.analysis.prediction.sets import FeatureSet
from nilatent.analysis.prediction.targets import Target

N = 60
FOLDS = np.arange(N) % 3
SUBJECTS = np.arange(N)


def target_of(y, kind="continuous", levels=()):
    return Target("t", kind, np.arange(len(y)), y, levels, {}, "t")


def heads(x, target, has=None):
    rows = np.arange(N) if has is None else np.flatnonzero(has)
    blocks = blocks_of(FeatureSet("x", (x,), None, False), target, FOLDS, rows)
    return {fold: say([block], target, SUBJECTS, n_inner=3, seed=0) for fold, block in blocks.items()}


@pytest.fixture
def cohort(rng):
    """A target from two independent causes, each seen by one modality, and a modality that sees neither."""
    f, g = rng.standard_normal((2, N))
    seen = [np.column_stack([cause + 0.3 * rng.standard_normal(N), rng.standard_normal(N)]) for cause in (f, g)]
    return [*seen, rng.standard_normal((N, 3))], f + g + 0.3 * rng.standard_normal(N)


@pytest.mark.parametrize("kind", ["continuous", "binary"])
def test_the_average_of_one_modality_twice_is_that_modality(cohort, kind):
    (x, _, _), y = cohort
    target = target_of((y > 0).astype(int), kind, ("a", "b")) if kind == "binary" else target_of(y)
    single = heads(x, target)
    told = told_of(alone(single, target), target, FOLDS)
    twice = told_of(averaged([single, single], target, range(3)), target, FOLDS)
    np.testing.assert_allclose(twice.scores, told.scores, atol=1e-12)
    np.testing.assert_array_equal(twice.constant, told.constant)
    if kind == "continuous":
        np.testing.assert_allclose(twice.called, told.called)


def test_late_fusion_tells_more_than_either_cause_and_noise_has_no_weight(cohort):
    sets, y = cohort
    target = target_of(y)
    said = [heads(x, target) for x in sets]
    missed = {}
    for name, pieces in {
        "first": alone(said[0], target),
        "second": alone(said[1], target),
        "average": averaged(said, target, range(3)),
        "weighted": stacked(said, target, range(3))[0],
    }.items():
        missed[name] = np.square(y - told_of(pieces, target, FOLDS).called[:, 0]).mean()
    assert missed["weighted"] < missed["average"] < min(missed["first"], missed["second"])
    weights = stacked(said, target, range(3))[1]
    assert weights.shape == (3, 3)
    assert (weights[:, :2] > 0.6).all()
    assert (weights[:, 2] < 0.5).all()


def test_thresholds_come_from_the_training_part(cohort):
    sets, y = cohort
    # A tenth are cases: called at one half, nearly none would be found.
    target = target_of((y > np.quantile(y, 0.85)).astype(int), "binary", ("a", "b"))
    said = [heads(x, target) for x in sets[:2]]
    for pieces in (averaged(said, target, range(3)), stacked(said, target, range(3))[0]):
        told = told_of(pieces, target, FOLDS)
        found = told.called[target.y == 1, 0].mean()
        assert found > (told.scores[target.y == 1, 0, 1] > 0.5).mean()
        assert auc(told.scores[:, 0, 1], target.y == 1, np.ones((1, N)), FOLDS)[0] > 0.85


def test_the_threshold_of_weighted_evidence_is_judged_by_weights_of_other_scans(cohort, monkeypatch):
    sets, y = cohort
    target = target_of((y > 0).astype(int), "binary", ("a", "b"))
    said = [heads(x, target) for x in sets]
    given = []
    monkeypatch.setattr(fusion_ways, "best_threshold", lambda score, _: given.append(score) or 0.5)
    stacked(said, target, [0])
    known = np.stack([one[0].inner for one in said], axis=1)
    labels, dealt = target.y[said[0][0].train], said[0][0].dealt
    for inner in range(3):
        stack = fit_stack(known[dealt != inner], labels[dealt != inner], "binary", n_levels=2)
        by_hand = scores_of(stack.say(known[dealt == inner]), "binary")[:, 1]
        np.testing.assert_allclose(given[0][dealt == inner], by_hand)


def test_a_modality_that_is_missing_takes_no_part(cohort, rng):
    sets, y = cohort
    target, has = target_of(y), rng.uniform(size=N) < 0.7
    whole, part = heads(sets[0], target), heads(np.where(has[:, None], sets[1], np.nan), target, has)
    told = told_of(averaged([whole, part], target, range(3)), target, FOLDS).called[:, 0]
    first = told_of(alone(whole, target), target, FOLDS).called[:, 0]
    second = told_of(alone(part, target), target, FOLDS).called[:, 0]
    np.testing.assert_allclose(told[~has], first[~has])
    np.testing.assert_allclose(told[has], ((first + second) / 2)[has])
    assert np.isnan(second[~has]).all()


def test_the_best_single_one_is_chosen_inside_and_the_next_best_stands_in(cohort, rng):
    (good, _, noise), y = cohort
    target, has = target_of(y), rng.uniform(size=N) < 0.7
    weak, best = heads(noise, target), heads(np.where(has[:, None], good, np.nan), target, has)
    pieces, chosen = best_inside([weak, best], target, range(3))
    assert chosen.tolist() == [1, 1, 1]
    told = told_of(pieces, target, FOLDS).called[:, 0]
    np.testing.assert_array_equal(told[has], told_of(alone(best, target), target, FOLDS).called[has, 0])
    np.testing.assert_array_equal(told[~has], told_of(alone(weak, target), target, FOLDS).called[~has, 0])


def test_the_choice_does_not_look_at_held_out_labels(cohort):
    sets, y = cohort
    target = target_of(y)
    said = [heads(x, target) for x in sets]
    chosen = best_inside(said, target, range(3))[1]
    for fold in range(3):
        moved = y.copy()
        moved[fold == FOLDS] = 1e3 * np.arange(N // 3)
        other = [heads(x, replace(target, y=moved)) for x in sets]
        assert best_inside(other, replace(target, y=moved), range(3))[1][fold] == chosen[fold]


def test_inner_skill_is_the_share_of_the_loss_that_is_saved(cohort):
    (x, _, noise), y = cohort
    target = target_of(y)
    said = heads(x, target)[0]
    known = y[said.train]
    by_hand = 1 - np.square(known - said.inner[:, 0]).sum() / np.square(known - known.mean()).sum()
    assert inner_skill(said, target) == pytest.approx(by_hand)
    assert inner_skill(heads(noise, target)[0], target) < by_hand
    classes = target_of((y > 0).astype(int), "binary", ("a", "b"))
    said = heads(x, classes)[0]
    y = classes.y[said.train]
    told = 1 / (1 + np.exp(-said.inner[:, 0]))
    by_hand = -np.log(np.where(y == 1, told, 1 - told)).sum()
    shares = (np.bincount(y) + 0.5) / (len(y) + 1)
    assert inner_skill(said, classes) == pytest.approx(1 - by_hand / -np.log(shares[y]).sum())


def test_knowing_nothing_says_the_mean_or_the_shares():
    assert unknowing(np.array([1.0, 4.0]), np.array([0.0, 2.0]), target_of(np.zeros(2))).tolist() == [0, 9]
    classes = target_of(np.zeros(2), "binary", ("a", "b"))
    found = unknowing(np.array([0, 1]), np.array([0, 0, 0, 1]), classes)
    np.testing.assert_allclose(found, -np.log([3.5 / 5, 1.5 / 5]))
