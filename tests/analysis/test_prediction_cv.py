from dataclasses import replace

import numpy as np
import pytest

from nilatent.analysis.prediction.cv import label_orders, nested_cv, outer_parts, permuted_p
from nilatent.analysis.prediction.heads import fit_linear
from nilatent.analysis.prediction.measures import main_measure
from nilatent.analysis.prediction.sets import FeatureSet
from nilatent.analysis.prediction.targets import Target
from nilatent.errors import SettingError

N = 60
FOLDS = np.arange(N) % 5
PEOPLE = np.arange(N).astype(str)


def binary(y):
    return Target("sex", "binary", np.arange(len(y)), np.asarray(y), ("F", "M"), {}, "sex")


def plain(x, **changes):
    return replace(FeatureSet("x", (np.asarray(x, dtype=float),), None, baseline=False), **changes)


def told_by(parts, target, head="linear", labels=None, **changes):
    labels = target.y[:, None] if labels is None else labels
    return nested_cv(parts, labels, target, subjects=PEOPLE, head=head, n_inner=3, seed=0, **changes)


def test_every_scan_is_judged_by_the_head_of_the_others(rng):
    y = rng.permutation(np.arange(N) % 2)
    by_fold = tuple(rng.standard_normal((N, 4)) + y[:, None] for _ in range(5))
    target = binary(y)
    told = told_by(outer_parts(plain(by_fold[0], by_fold=by_fold), target, FOLDS), target)
    for fold in range(5):
        train, test = fold != FOLDS, fold == FOLDS
        x = by_fold[fold]
        head = fit_linear(
            x[train], y[train], kind="binary", levels=("F", "M"), subjects=PEOPLE[train], seed=0, n_inner=3
        )
        np.testing.assert_allclose(told.scores[test, 0], head.scores(x[test]), atol=1e-9)
        np.testing.assert_array_equal(told.called[test, 0], head.call(x[test]))
        assert (told.folds[test] == fold).all()


@pytest.mark.parametrize("learnt", ["scaling", "head size", "site"])
def test_nothing_is_learnt_from_held_out_scans(rng, learnt):
    # A scan of the same fold that is out of all bounds must not move what is said of the others.
    y = rng.permutation(np.arange(N) % 2)
    x, size = rng.standard_normal((N, 6)), rng.standard_normal((N, 1))
    site = np.where(np.arange(N) % 3 == 0, "a", "b")
    settings = {"head_size": size} if learnt == "head size" else {"site": site} if learnt == "site" else {}
    target = binary(y)
    before = told_by(outer_parts(plain(x), target, FOLDS, **settings), target)
    x[5] += 1e4
    size[5] -= 50
    after = told_by(outer_parts(plain(x), target, FOLDS, **settings), target)
    others = (FOLDS[5] == FOLDS) & (np.arange(N) != 5)
    np.testing.assert_allclose(after.scores[others], before.scores[others], atol=1e-9)
    np.testing.assert_array_equal(after.called[others], before.called[others])
    elsewhere = FOLDS[5] != FOLDS
    assert np.abs(after.scores[elsewhere] - before.scores[elsewhere]).max() > 0.01


def test_head_size_is_removed_with_the_slopes_of_the_training_scans(rng):
    size = rng.standard_normal((N, 2))
    x = size @ rng.standard_normal((2, 3)) + 0.1 * rng.standard_normal((N, 3))
    x = np.column_stack([x, size @ [1.0, 2.0]])
    target = binary(np.arange(N) % 2)
    for part in outer_parts(plain(x), target, FOLDS, head_size=size):
        train = np.column_stack([np.ones(len(part.train)), size[part.train]])
        slopes = np.linalg.lstsq(train, x[part.train], rcond=None)[0]
        test = np.column_stack([np.ones(len(part.test)), size[part.test]])
        np.testing.assert_allclose(part.x_test[:, :3], (x[part.test] - test @ slopes)[:, :3], atol=1e-10)
        # What head size explains wholly is gone, not blown up to unit variance.
        assert (part.x_test[:, 3] == 0).all()


def test_harmonisation_keeps_covariates_and_leaves_columns_of_the_cohort(rng):
    site = np.where(rng.uniform(size=N) < 0.5, "a", "b")
    x = rng.standard_normal((N, 5)) + 3 * (site == "a")[:, None]
    target = binary(rng.permutation(np.arange(N) % 2))
    parts = outer_parts(plain(x), target, FOLDS, site=site)
    apart = [
        abs(part.x_test[site[part.test] == "a"].mean() - part.x_test[site[part.test] == "b"].mean()) for part in parts
    ]
    assert np.mean(apart) < 1
    columns = plain(x, columns=("a", "b", "c", "d", "e"))
    for part in outer_parts(columns, target, FOLDS, site=site):
        np.testing.assert_array_equal(part.x_test, x[part.test])
    age = np.where(site == "a", 1.0, 0.0)[:, None] + rng.standard_normal((N, 1))
    kept = outer_parts(plain(x + 2 * age), target, FOLDS, site=site, keep=age)[0]
    lost = outer_parts(plain(x + 2 * age), target, FOLDS, site=site)[0]
    assert np.abs(kept.x_test - lost.x_test).max() > 0.05


def test_a_feature_of_the_column_that_is_predicted_takes_no_part(rng):
    x = rng.standard_normal((N, 2))
    target = binary(np.arange(N) % 2)
    part = outer_parts(plain(x, columns=("sex", "age")), target, FOLDS)[0]
    np.testing.assert_array_equal(part.x_test, x[part.test][:, 1:])
    with pytest.raises(SettingError, match="no feature of 'x' is left"):
        outer_parts(plain(x, columns=("sex", "sex")), target, FOLDS)


@pytest.mark.parametrize("head", ["linear", "svm", pytest.param("trees", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["binary", "multi-class", "ordinal", "continuous"])
def test_every_head_finds_what_is_planted_in_every_kind(rng, head, kind):
    y = rng.permutation(np.arange(N) % 3) if kind in ("multi-class", "ordinal") else rng.permutation(np.arange(N) % 2)
    y = rng.standard_normal(N) if kind == "continuous" else y
    levels = {"binary": ("a", "b"), "continuous": ()}.get(kind, ("a", "b", "c"))
    target = Target("t", kind, np.arange(N), y, levels, {}, "t")
    x = rng.standard_normal((N, 4))
    x[:, 0] += 4 * y
    if kind == "multi-class":
        x[:, 1] += 4 * (y == 1)
    told = told_by(outer_parts(plain(x), target, FOLDS), target, head)
    assert main_measure(target, y[:, None], told)[0] > 0.6
    if kind != "continuous":
        np.testing.assert_allclose(told.scores.sum(axis=2), 1)
        assert ((told.scores >= 0) & (told.scores <= 1)).all()
    shuffled = rng.permutation(y)
    null = told_by(outer_parts(plain(x), target, FOLDS), target, head, labels=shuffled[:, None])
    assert main_measure(target, shuffled[:, None], null)[0] < 0.7


def test_columns_of_labels_at_once_are_each_alone(rng):
    target = binary(rng.permutation(np.arange(N) % 2))
    parts = outer_parts(plain(rng.standard_normal((N, 5))), target, FOLDS)
    orders = label_orders(target, PEOPLE, n_permutations=9, seed=0, blocks=None)
    together = told_by(parts, target, labels=target.y[orders].T)
    for number, order in enumerate(orders):
        alone = told_by(parts, target, labels=target.y[order][:, None])
        np.testing.assert_allclose(together.column(number).scores, alone.scores, atol=1e-7)
        np.testing.assert_array_equal(together.column(number).called, alone.called)


def test_a_network_is_called_with_the_training_scans_alone(rng):
    y = np.arange(N) % 2
    target, x = binary(y), rng.standard_normal((N, 3))
    handed = []

    def network(train_x, train_y, test_x, asked):
        handed.append((train_x, train_y))
        assert asked is target
        share = np.clip(test_x[:, :1], 0.1, 0.9)
        return np.hstack([1 - share, share])

    told = told_by(outer_parts(plain(x), target, FOLDS), target, "network", network=network)
    np.testing.assert_array_equal(told.called[:, 0], np.clip(x[:, 0], 0.1, 0.9) > 0.5)
    for fold, (train_x, train_y) in enumerate(handed):
        np.testing.assert_array_equal(train_x, x[fold != FOLDS])
        np.testing.assert_array_equal(train_y, y[fold != FOLDS])
    with pytest.raises(SettingError, match="finite ones of"):
        told_by(outer_parts(plain(x), target, FOLDS), target, "network", network=lambda *_: np.ones(3))


def test_labels_move_with_their_subjects_and_stay_within_sites(rng):
    subjects = np.repeat(np.arange(20), 2)
    y, site = np.repeat(np.arange(20) % 2, 2), np.repeat(np.where(np.arange(20) < 8, "a", "b"), 2)
    target = binary(y)
    orders = label_orders(target, subjects, n_permutations=50, seed=0, blocks=site)
    labels = y[orders]
    assert (labels[:, ::2] == labels[:, 1::2]).all()
    assert (site[orders] == site).all()
    assert len(np.unique(labels, axis=0)) > 30
    free = label_orders(target, subjects, n_permutations=50, seed=0, blocks=None)
    assert (site[free] != site).any()


def test_values_that_change_within_subjects_are_exchanged_in_order():
    subjects = np.array(["a", "b", "b", "c", "c", "d"])
    ages = np.array([50.0, 60, 61, 70, 71, 80])
    target = Target("age", "continuous", np.arange(6), ages, (), {}, "age")
    drawn = ages[label_orders(target, subjects, n_permutations=40, seed=1, blocks=None)]
    assert {tuple(row[1:3]) for row in drawn} == {(60, 61), (70, 71)}
    assert {(row[0], row[5]) for row in drawn} == {(50, 80), (80, 50)}


def test_the_p_value_is_that_of_all_shuffles_or_stops_with_the_same_rule(rng):
    y, orders = np.arange(12.0), np.array([rng.permutation(12) for _ in range(90)])
    calls = []

    def judge(labels):
        calls.append(labels.shape[1])
        return labels[0]

    drawn = orders[:, 0].astype(float)
    p_value, n_drawn = permuted_p(8.0, judge, y, orders, n_stop=0)
    assert (p_value, n_drawn) == ((1 + (drawn >= 8).sum()) / 91, 90)
    p_value, n_drawn = permuted_p(8.0, judge, y, orders, n_stop=5)
    assert n_drawn == np.flatnonzero(drawn >= 8)[4] + 1
    assert p_value == 5 / n_drawn
    assert sum(calls) < 180
    assert permuted_p(12.0, judge, y, orders, n_stop=5) == (1 / 91, 90)


def first_label(labels):
    return labels[0].astype(float)


def test_shares_of_several_threads_change_no_number(rng):
    y, orders = np.arange(12.0), np.array([rng.permutation(12) for _ in range(25)])
    alone = permuted_p(9.0, first_label, y, orders, n_stop=4)
    assert permuted_p(9.0, first_label, y, orders, n_stop=4, n_jobs=2) == alone
