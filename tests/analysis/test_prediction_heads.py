import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge

from nilatent.analysis.prediction.heads import (
    CLASS_PENALTIES,
    NUMBER_PENALTIES,
    LinearHead,
    calls,
    fit_linear,
    fit_linear_many,
    probabilities,
)
from nilatent.analysis.prediction.inner import (
    balanced_weights,
    best_threshold,
    encode,
    inner_folds,
    subject_ranks,
)
from nilatent.analysis.prediction.solver import make_design
from nilatent.errors import SettingError


def fit(x, y, kind="binary", levels=("CN", "AD"), **changes):
    settings = {"subjects": np.arange(len(x)), "seed": 0, "n_inner": 5} | changes
    return fit_linear(x, y, kind=kind, levels=levels, **settings)


def planted(rng, *, n=120, share=0.3, effect=1.5, n_features=6):
    y = (rng.uniform(size=n) < share).astype(int)
    x = rng.standard_normal((n, n_features))
    x[:, 0] += effect * y
    return 10 + 3 * x, y


def test_a_binary_head_is_the_weighted_logistic_fit_set_back_to_the_shares(rng):
    x, y = planted(rng)
    head = fit(x, y)
    standard = (x - x.mean(axis=0)) / x.std(axis=0) / np.sqrt(6)
    oracle = LogisticRegression(C=1 / (head.penalty * len(y)), class_weight="balanced", tol=1e-10).fit(standard, y)
    odds = oracle.decision_function(standard) + np.log(y.mean() / (1 - y.mean()))
    np.testing.assert_allclose(head.scores(x)[:, 1], 1 / (1 + np.exp(-odds)), atol=1e-4)
    np.testing.assert_allclose(head.scores(x).sum(axis=1), 1)
    np.testing.assert_array_equal(head.call(x), head.scores(x)[:, 1] >= head.threshold)
    assert head.n_train == 120


def test_the_penalty_is_the_best_on_inner_held_out_scans(rng):
    x, y = planted(rng, n=80, n_features=30, effect=0.8)
    head = fit(x, y, seed=3)
    folds = inner_folds(y, *subject_ranks(np.arange(80), seed=3), n_inner=5)
    standard = (x - x.mean(axis=0)) / x.std(axis=0) / np.sqrt(30)
    weight = np.where(y == 1, 0.5 / y.sum(), 0.5 / (1 - y).sum())
    losses = []
    for penalty in CLASS_PENALTIES:
        loss = 0.0
        for fold in range(5):
            train, test = folds != fold, folds == fold
            fitted = LogisticRegression(C=1 / (penalty * train.sum()), class_weight="balanced", max_iter=5000, tol=1e-8)
            odds = fitted.fit(standard[train], y[train]).decision_function(standard[test])
            loss += (weight[test] * np.logaddexp(0, np.where(y[test] == 1, -odds, odds))).sum()
        losses.append(loss)
    assert head.penalty == CLASS_PENALTIES[int(np.argmin(losses))]
    assert int(np.argmin(losses)) > 0


def test_probabilities_of_a_rare_class_are_calibrated_on_average(rng):
    x, y = planted(rng, n=400, share=0.1, effect=1.0)
    scores = fit(x, y).scores(x)
    assert abs(scores[:, 1].mean() - y.mean()) < 0.03


def test_a_number_is_a_ridge_with_a_penalty_from_inner_folds(rng):
    x = rng.standard_normal((60, 8))
    y = 50 + 4 * x[:, 0] + rng.standard_normal(60)
    head = fit(x, y, kind="continuous", levels=())
    standard = (x - x.mean(axis=0)) / x.std(axis=0) / np.sqrt(8)
    folds = inner_folds(None, *subject_ranks(np.arange(60), seed=0), n_inner=5)
    missed = [
        sum(
            np.square(
                y[folds == k]
                - Ridge(alpha=penalty * (folds != k).sum())
                .fit(standard[folds != k], y[folds != k])
                .predict(standard[folds == k])
            ).sum()
            for k in range(5)
        )
        for penalty in NUMBER_PENALTIES
    ]
    assert head.penalty == NUMBER_PENALTIES[int(np.argmin(missed))]
    oracle = Ridge(alpha=head.penalty * 60).fit(standard, y)
    np.testing.assert_allclose(head.call(x), oracle.predict(standard), rtol=1e-8)
    np.testing.assert_array_equal(head.scores(x)[:, 0], head.call(x))


def test_ordered_levels_are_cumulative_cuts(rng):
    y = rng.integers(0, 4, 200)
    x = rng.standard_normal((200, 5))
    x[:, 0] += 1.2 * y
    head = fit(x, y, kind="ordinal", levels=("a", "b", "c", "d"))
    assert head.coefficients.shape == (3, 5)
    scores = head.scores(x)
    standard = (x - x.mean(axis=0)) / x.std(axis=0) / np.sqrt(5)
    cut = (y > 1).astype(int)
    oracle = LogisticRegression(C=1 / (head.penalty * 200), class_weight="balanced", tol=1e-10).fit(standard, cut)
    odds = oracle.decision_function(standard) + np.log(cut.mean() / (1 - cut.mean()))
    np.testing.assert_allclose(scores[:, 2:].sum(axis=1), 1 / (1 + np.exp(-odds)), atol=5e-3)
    assert np.abs(head.call(x) - y).mean() < 0.8


def test_cuts_that_contradict_each_other_leave_nothing_between():
    told = probabilities(np.array([[-1.0, 2.0]]), "ordinal")[0]
    assert told[1] == 0
    np.testing.assert_allclose(told.sum(), 1)


def test_a_rare_class_is_called_when_its_probability_grew_most():
    scores = np.array([[0.7, 0.2, 0.1], [0.9, 0.05, 0.05]])
    assert calls(scores, "multi-class", threshold=np.nan, prior=np.array([0.8, 0.18, 0.02])).tolist() == [2, 2]
    assert calls(scores, "multi-class", threshold=np.nan, prior=np.array([0.5, 0.5, 0.0])).tolist() == [0, 0]


@pytest.mark.parametrize("kind", ["binary", "multi-class", "ordinal", "continuous"])
def test_many_columns_at_once_are_each_alone(rng, kind):
    levels = {"binary": ("a", "b"), "continuous": ()}.get(kind, ("a", "b", "c"))
    x, subjects = rng.standard_normal((45, 12)), rng.integers(0, 30, 45)
    base = rng.standard_normal(45) if kind == "continuous" else np.arange(45) % len(levels)
    targets = np.column_stack([rng.permutation(base) for _ in range(7)])
    settings = {"kind": kind, "levels": levels, "subjects": subjects, "seed": 2, "n_inner": 4}
    together = fit_linear_many(make_design(x), targets, **settings)
    for column, head in zip(targets.T, together, strict=True):
        alone = fit_linear(x, column, **settings)
        np.testing.assert_allclose(head.coefficients, alone.coefficients, atol=1e-7)
        np.testing.assert_allclose(head.intercept, alone.intercept, atol=1e-7)
        assert (head.penalty, head.prior.tolist()) == (alone.penalty, alone.prior.tolist())
        np.testing.assert_allclose(head.threshold, alone.threshold, atol=1e-7)


def test_inner_folds_keep_subjects_whole_and_deal_every_class(rng):
    subjects = np.repeat(np.arange(40), 2)
    y = np.repeat(rng.permutation(np.repeat([0, 1, 2], [24, 11, 5])), 2)
    folds = inner_folds(y, *subject_ranks(subjects, seed=1), n_inner=5)
    assert (folds[::2] == folds[1::2]).all()
    counts = np.array([[((y == code) & (folds == fold)).sum() // 2 for fold in range(5)] for code in range(3)])
    assert (np.ptp(counts, axis=1) <= 1).all()
    assert counts[2].tolist() == [1] * 5
    assert (inner_folds(y, *subject_ranks(subjects, seed=2), n_inner=5) != folds).any()


def test_the_inner_folds_of_repeated_subjects_matter(rng):
    # Twins of a scan in the other inner folds would make the smallest penalty look best.
    half = rng.standard_normal((30, 60))
    x, y = np.repeat(half, 2, axis=0), np.repeat(np.arange(30) % 2, 2)
    whole = fit(x, y, subjects=np.repeat(np.arange(30), 2)).penalty
    split = fit(x, y, subjects=np.arange(60)).penalty
    assert split < whole


def test_the_threshold_is_the_middle_of_those_within_one_standard_error(rng):
    for _ in range(20):
        y = np.arange(24) % 3 == 0
        score = np.round(rng.uniform(size=24) + 0.6 * y, 1)
        levels = np.unique(score)
        rates = [((score[y] >= cut).mean(), (score[~y] < cut).mean()) for cut in levels[1:]]
        best = max(rates, key=sum)
        error = np.sqrt(best[0] * (1 - best[0]) / y.sum() + best[1] * (1 - best[1]) / (~y).sum())
        near = [sum(rate) >= sum(best) - error - 1e-9 for rate in rates]
        middles = (levels[1:] + levels[:-1]) / 2
        assert best_threshold(score, y.astype(int)) == pytest.approx(np.median(middles[near]))


def test_separated_classes_are_cut_between_them():
    assert best_threshold(np.array([0.1, 0.2, 0.3, 0.8]), np.array([0, 0, 0, 1])) == pytest.approx(0.55)


def test_a_score_that_says_nothing_is_cut_in_the_middle():
    assert best_threshold(np.full(10, 0.7), np.arange(10) % 2) == 0.7
    assert best_threshold(np.arange(10.0)[::-1], np.repeat([0, 1], 5)) == 4.5


def test_weights_give_every_present_class_the_same_share():
    y = np.array([[0], [0], [0], [1], [2]])
    weights = balanced_weights(y, np.array([[True], [True], [True], [True], [False]]))
    np.testing.assert_allclose(weights[:, 0], [1 / 6, 1 / 6, 1 / 6, 1 / 2, 0])


def test_codes_as_outputs():
    y = np.array([0, 1, 2])
    assert encode(y, "multi-class", 3).tolist() == np.eye(3).tolist()
    assert encode(y, "ordinal", 3).tolist() == [[0, 0], [1, 0], [1, 1]]


@pytest.mark.parametrize("kind", ["binary", "multi-class", "ordinal"])
def test_a_shuffle_that_leaves_a_class_without_scans_is_survived(rng, kind):
    levels = ("a", "b") if kind == "binary" else ("a", "b", "c")
    y = np.zeros((30, 2), dtype=int)
    y[:15, 1] = 1
    heads = fit_linear_many(
        make_design(rng.standard_normal((30, 4))),
        y,
        kind=kind,
        levels=levels,
        subjects=np.arange(30),
        seed=0,
        n_inner=5,
    )
    scores = heads[0].scores(rng.standard_normal((5, 4)))
    assert np.isfinite(scores).all()
    assert (scores[:, 0] > 0.9).all()


def test_what_cannot_be_fitted_is_refused(rng):
    x = rng.standard_normal((20, 3))
    with pytest.raises(SettingError, match="one class only"):
        fit(x, np.zeros(20, dtype=int))
    with pytest.raises(SettingError, match="one each per scan"):
        fit(x, np.arange(19) % 2)
    with pytest.raises(SettingError, match="inner folds"):
        fit(x, np.arange(20) % 2, n_inner=1)
    head = fit(x, np.arange(20) % 2)
    assert isinstance(head, LinearHead)
    with pytest.raises(SettingError, match="fitted on 3 features"):
        head.scores(x[:, :2])
