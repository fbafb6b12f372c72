from dataclasses import replace

import numpy as np
import pytest

from nilatent.analysis.fusion.cv import blocks_of, say, side_by_side
from nilatent.analysis.fusion.ways import alone, told_of
from nilatent.analysis.prediction.cv import nested_cv, outer_parts
from nilatent.analysis.prediction.sets import FeatureSet
from nilatent.analysis.prediction.solver import make_design
from nilatent.analysis.prediction.targets import Target
from nilatent.errors import SettingError

N = 45
FOLDS = np.arange(N) % 3
SUBJECTS = np.array([f"p{i}" for i in range(N)])
EVERY = np.arange(N)


def target_of(y, kind="continuous", levels=()):
    return Target("t", kind, np.arange(len(y)), y, levels, {}, "t")


def feature_set(x, name="x"):
    return FeatureSet(name, (x,), None, False)


def heads(sets, target, *, seed=0, folds=FOLDS, subjects=SUBJECTS):
    blocks = [blocks_of(one, target, folds, EVERY) for one in sets]
    return {fold: say([block[fold] for block in blocks], target, subjects, n_inner=3, seed=seed) for fold in blocks[0]}


def test_one_block_is_the_design_of_the_prediction(rng):
    x = rng.standard_normal((20, 4))
    one, other = side_by_side([x]), make_design(x)
    np.testing.assert_array_equal(one.rotated, other.rotated)
    np.testing.assert_array_equal(one.axes, other.axes)


def test_every_block_has_the_same_share_of_the_variance(rng):
    narrow, wide = rng.standard_normal((60, 2)) * 100, rng.standard_normal((60, 80)) + 7
    design = side_by_side([narrow, wide])
    both = np.hstack([narrow, wide])
    standard = (both - design.centre) / design.scale
    np.testing.assert_allclose(design.rotated, standard @ design.axes.T, atol=1e-10)
    np.testing.assert_allclose(design.variance, np.square(design.rotated).mean(axis=0))
    # The same inner products as of blocks that each have a mean squared length of one half.
    by_hand = standard[:, :2] @ standard[:, :2].T / (2 * 2) + standard[:, 2:] @ standard[:, 2:].T / (2 * 80)
    np.testing.assert_allclose(design.rotated @ design.rotated.T, by_hand, atol=1e-10)
    assert np.square(standard[:, :2]).sum(axis=1).mean() / 4 == pytest.approx(0.5)


def test_a_constant_block_has_no_share(rng):
    x = rng.standard_normal((30, 3))
    together, alone_ = side_by_side([np.full((30, 2), 0.1), x]), make_design(x)
    np.testing.assert_allclose(together.rotated @ together.rotated.T, alone_.rotated @ alone_.rotated.T, atol=1e-12)
    np.testing.assert_array_equal(together.axes[:, :2], 0)
    with pytest.raises(SettingError, match="No feature varies"):
        side_by_side([np.ones((30, 2)), np.zeros((30, 1))])
    with pytest.raises(SettingError, match="missing"):
        side_by_side([np.full((30, 2), np.nan), x])


@pytest.mark.parametrize("kind", ["continuous", "binary"])
def test_early_fusion_is_the_single_modality_when_the_other_is_constant(rng, kind):
    x = rng.standard_normal((N, 3))
    y = x[:, 0] + rng.standard_normal(N)
    target = target_of((y > 0).astype(int), kind, ("a", "b")) if kind == "binary" else target_of(y)
    early = say(
        [
            blocks_of(feature_set(x), target, FOLDS, EVERY)[0],
            replace(
                blocks_of(feature_set(x), target, FOLDS, EVERY)[0], x_train=np.ones((30, 2)), x_test=np.ones((15, 2))
            ),
        ],
        target,
        SUBJECTS,
        n_inner=3,
        seed=0,
    )
    single = heads([feature_set(x)], target)[0]
    np.testing.assert_allclose(early.scores, single.scores, atol=1e-5)
    np.testing.assert_allclose(early.inner, single.inner, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "levels"), [("continuous", ()), ("binary", ("a", "b")), ("multi-class", ("a", "b", "c"))]
)
def test_single_modalities_are_told_as_in_the_prediction(rng, kind, levels):
    x = rng.standard_normal((N, 4))
    drawn = x[:, 0] + rng.standard_normal(N)
    y = drawn if kind == "continuous" else np.argsort(np.argsort(drawn)) * len(levels) // N
    target, subjects, folds = target_of(y, kind, levels), SUBJECTS[EVERY // 3], EVERY // 3 % 3
    told = told_of(
        alone(heads([feature_set(x)], target, seed=4, folds=folds, subjects=subjects), target), target, folds
    )
    parts = outer_parts(feature_set(x), target, folds)
    other = nested_cv(parts, y[:, None], target, subjects=subjects, head="linear", n_inner=3, seed=4)
    np.testing.assert_allclose(told.scores, other.scores)
    np.testing.assert_array_equal(told.called, other.called)
    np.testing.assert_array_equal(told.constant, other.constant)
    np.testing.assert_array_equal(told.folds, other.folds)


def test_inner_heads_have_not_seen_the_scan_nor_its_label(rng):
    x = rng.standard_normal((N, 3))
    y = x[:, 0] + rng.standard_normal(N)
    before = heads([feature_set(x)], target_of(y))[0]
    apart = before.train[before.dealt == 1]
    moved = y.copy()
    moved[apart] += 50 * rng.standard_normal(len(apart))
    after = heads([feature_set(x)], target_of(moved))[0]
    np.testing.assert_array_equal(after.inner[before.dealt == 1], before.inner[before.dealt == 1])
    assert (after.inner[before.dealt != 1] != before.inner[before.dealt != 1]).all()
    assert (after.scores != before.scores).any()


def test_inner_folds_keep_subjects_whole_and_follow_the_settings(rng):
    y = rng.standard_normal(N)
    block = blocks_of(feature_set(rng.standard_normal((N, 2))), target_of(y), FOLDS, EVERY)[0]
    people = np.array([f"p{i // 6}" for i in range(N)])
    said = say([block], target_of(y), people, n_inner=4, seed=0)
    assert said.dealt.max() == 3
    for person in np.unique(people[said.train]):
        assert len(np.unique(said.dealt[people[said.train] == person])) == 1
    assert (say([block], target_of(y), people, n_inner=4, seed=1).dealt != said.dealt).any()


def test_blocks_are_placed_among_all_scans_of_the_target(rng):
    x, y = rng.standard_normal((N, 2)), rng.standard_normal(N)
    some = np.flatnonzero(np.arange(N) % 4 > 0)
    blocks = blocks_of(feature_set(x), target_of(y), FOLDS, some)
    assert sorted(np.concatenate([block.test for block in blocks.values()])) == some.tolist()
    for fold, block in blocks.items():
        assert (FOLDS[block.test] == fold).all()
        assert sorted([*block.train, *block.test]) == some.tolist()
        np.testing.assert_array_equal(block.x_train, x[block.train])
        np.testing.assert_array_equal(block.x_test, x[block.test])
    with pytest.raises(SettingError, match="one and the same fold"):
        blocks_of(feature_set(x), target_of(y), FOLDS, np.flatnonzero(FOLDS == 1))
