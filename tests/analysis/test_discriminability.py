import numpy as np
import pytest
from scipy.stats import pearsonr
from sklearn.linear_model import LinearRegression
from sklearn.metrics import roc_auc_score

from nilatent.analysis import discriminability as disc
from nilatent.analysis import stats
from nilatent.errors import SettingError


@pytest.fixture
def problem(rng):
    z, c = rng.normal(size=(48, 5)), rng.normal(size=(48, 1))
    x = np.column_stack([z[:, 0] + c[:, 0], z @ [0, 1, 1, 0, 0], rng.normal(size=48)]) + 0.1 * rng.normal(size=(48, 3))
    return z, x, c, np.arange(48) < 20, disc.label_free_folds(48, 6, seed=0)


def test_folds_are_even_and_follow_the_seed():
    folds = disc.label_free_folds(23, 5, seed=1)
    assert sorted(np.bincount(folds)) == [4, 4, 5, 5, 5]
    assert (folds != disc.label_free_folds(23, 5, seed=2)).any()


def test_readout_equals_a_regression_fitted_without_the_fold(problem, monkeypatch):
    monkeypatch.setattr(disc, "PENALTIES", [1e-9])
    z, x, c, _, folds = problem
    scores, r2 = disc.readout_scores(z, x, c, folds)
    train, test = folds != 2, folds == 2
    zr, xr = (stats.residualise(v, c, fit_rows=np.flatnonzero(train)) for v in (z, x))
    sd = np.sqrt((xr[train] ** 2).mean(axis=0))
    expected = LinearRegression(fit_intercept=False).fit(zr[train], xr[train] / sd).predict(zr[test])
    np.testing.assert_allclose(scores[test], expected, atol=1e-6)
    assert r2[:2].min() > 0.9
    assert r2[2] < 0.1


def test_readout_does_not_look_at_the_scan_it_predicts(problem):
    z, x, c, _, folds = problem
    before, _ = disc.readout_scores(z, x, c, folds)
    x[folds == 3] += 100
    after, _ = disc.readout_scores(z, x, c, folds)
    np.testing.assert_allclose(after[folds == 3], before[folds == 3])


def test_score_accuracy_by_hand():
    is_case = np.array([True, True, False, False] * 2)
    folds = np.array([0] * 4 + [1] * 4)
    good = np.array([1.0, 1.1, 0.0, 0.1] * 2)
    bad = np.array([1.0, 1.1, 0.0, 0.1, 0.0, 0.1, 1.0, 1.1])
    scores = np.column_stack([good, -good, bad, np.zeros(8)])
    np.testing.assert_allclose(disc.score_accuracy(scores, is_case, folds), [1, 1, 0, 0.5])


def test_a_fold_without_one_class_elsewhere_is_not_called():
    is_case, folds = np.arange(8) < 4, np.arange(8) < 4
    found = disc.score_calls(np.arange(8.0)[:, None], is_case, folds)
    np.testing.assert_array_equal(found, np.full((8, 1), 0.5))


def test_balanced_accuracy_and_targets_weigh_both_classes_alike():
    is_case = np.arange(50) < 35
    assert disc.balanced_accuracy(np.ones((50, 1)), is_case)[0] == pytest.approx(0.5)
    assert disc.balanced_targets(is_case).sum() == pytest.approx(0)


def test_shuffled_targets_are_free_of_confounds_and_begin_with_the_observed(problem):
    _, _, c, is_case, _ = problem
    targets = disc.shuffled_targets(is_case, c, stats.permutations(48, 20, seed=5))
    assert targets.shape == (48, 21)
    assert np.abs(targets.T @ np.column_stack([np.ones(48), c])).max() < 1e-12
    left = stats.residualise(is_case.astype(float), c)[:, 0]
    np.testing.assert_allclose(targets[:, 0], left / np.linalg.norm(left))


def linked_by_loop(z, x, c, targets, folds, region):
    """Out-of-fold ridge on the latents linked to one region, written out."""
    predicted = np.zeros(len(z))
    for fold in np.unique(folds):
        train, test = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        zr = stats.residualise(z, c, fit_rows=train)
        xr = stats.residualise(x, c, fit_rows=train)
        zr, xr = (v / np.sqrt((v[train] ** 2).mean(axis=0)) for v in (zr, xr))
        a = xr[train].T @ zr[train] / len(train)
        q = stats.fdr(stats.correlation_p(a, degrees=len(train) - 2 - c.shape[1]))
        j = (q[region] <= 0.05) & (abs(a[region]) >= 0.2)
        left = zr[train][:, j]
        weights = (
            np.linalg.inv(left.T @ left / len(train) + 0.1 * np.eye(j.sum())) @ left.T @ targets[train] / len(train)
        )
        predicted[test] = zr[test][:, j] @ weights
    return predicted @ targets / np.linalg.norm(predicted) / np.linalg.norm(targets)


def test_linked_permutations_equal_refitting_one_by_one(problem):
    z, x, c, is_case, folds = problem
    orders = stats.permutations(48, 30, seed=5)
    found = disc.linked_test(z, x[:, :2], c, is_case=is_case, folds=folds, orders=orders)
    targets = disc.shuffled_targets(is_case, c, orders)
    loop = np.array([[linked_by_loop(z, x[:, :2], c, t, folds, region) for region in (0, 1)] for t in targets.T])
    expected = (1 + (loop[1:].max(axis=1)[:, None] >= loop[0]).sum(axis=0)) / 31
    np.testing.assert_allclose(found.p_fwe, expected)


def test_linked_finds_the_group_in_its_latent_and_nothing_without_links(problem):
    z, x, c, is_case, folds = problem
    z[is_case, 0] += 3
    x[:, 0] = z[:, 0] + c[:, 0]
    found = disc.linked_test(z, x, c, is_case=is_case, folds=folds, orders=stats.permutations(48, 99, seed=5))
    assert found.bal_acc[0] > 0.85
    assert found.p_fwe[0] == 0.01
    assert found.n_linked[2] < 1
    assert found.p_fwe[2] > 0.5


def test_a_number_is_predicted_like_a_label(problem):
    z, x, c, _, folds = problem
    values, orders = z[:, 1] + c[:, 0], stats.permutations(48, 30, seed=5)
    found = disc.linked_test(z, x[:, :2], c, values=values, folds=folds, orders=orders)
    targets = disc.shuffled_targets(values, c, orders)
    loop = np.array([[linked_by_loop(z, x[:, :2], c, t, folds, region) for region in (0, 1)] for t in targets.T])
    np.testing.assert_allclose(found.r, loop[0])
    np.testing.assert_allclose(found.p_fwe, (1 + (loop[1:].max(axis=1)[:, None] >= loop[0]).sum(axis=0)) / 31)
    assert np.isnan(found.bal_acc).all()
    assert found.r[1] > 0.5
    for both in ({}, {"values": values, "is_case": values > 0}):
        with pytest.raises(SettingError, match="a label or a number"):
            disc.linked_test(z, x, c, folds=folds, orders=orders, **both)


def test_each_fold_looks_at_its_own_latents_only(problem, rng, monkeypatch):
    monkeypatch.setattr(disc, "PENALTIES", (1.0,))
    z, x, c, is_case, folds = problem
    orders = stats.permutations(48, 30, seed=5)
    turned = [z @ np.linalg.qr(rng.normal(size=(5, 5)))[0] for _ in range(6)]
    same = disc.linked_test([z] * 6, x, c, is_case=is_case, folds=folds, orders=orders)
    np.testing.assert_array_equal(
        same.p_fwe, disc.linked_test(z, x, c, is_case=is_case, folds=folds, orders=orders).p_fwe
    )
    one = disc.readout_scores(z, x, c, folds)[0]
    np.testing.assert_allclose(disc.readout_scores([z] * 6, x, c, folds)[0], one)
    other = disc.readout_scores([z] * 3 + [turned[3] * [1, 1, 1, 1, 0]] + [z] * 2, x, c, folds)[0]
    np.testing.assert_allclose(other[folds != 3], one[folds != 3])
    assert np.abs(other[folds == 3] - one[folds == 3]).max() > 0.1


def test_the_penalty_of_a_cross_fitted_model_is_the_one_that_serves_the_others_on_unseen_scans(
    problem, rng, monkeypatch
):
    z, x, c, _, folds = problem
    # Each model describes what it has seen exactly and the rest with noise.
    latents = [np.where((folds == k)[:, None], 0.5 * z + 0.8 * rng.normal(size=z.shape), z) for k in range(6)]
    found, r2 = disc.readout_scores(latents, x, c, folds)
    fixed = []
    for penalty in disc.PENALTIES:
        with monkeypatch.context() as one:
            one.setattr(disc, "PENALTIES", (penalty,))
            fixed.append(disc.readout_scores(latents, x, c, folds)[0])
    truth = np.zeros(x.shape)
    for k in range(6):
        left = stats.residualise(x, c, fit_rows=np.flatnonzero(folds != k))
        truth[folds == k] = (left / np.sqrt((left[folds != k] ** 2).mean(axis=0)))[folds == k]
    wrong = np.array([[np.square(s - truth)[folds == k].sum(axis=0) for s in fixed] for k in range(6)])
    for k in range(6):
        best = (wrong.sum(axis=0) - wrong[k]).argmin(axis=0)
        for region in range(3):
            expected = fixed[best[region]][folds == k, region]
            np.testing.assert_allclose(found[folds == k, region], expected, atol=1e-10)
    assert (r2 > 1 - np.square(fixed[0] - truth).sum(axis=0) / np.square(truth).sum(axis=0)).all()


def test_target_r2_equals_a_line_fitted_without_the_fold(problem):
    z, _, c, _, folds = problem
    values = z[:, 0] + 3 * c[:, 0]
    predicted = np.zeros(48)
    truth = np.zeros(48)
    for fold in range(6):
        train, test = np.flatnonzero(folds != fold), folds == fold
        x, y = (stats.residualise(v, c, fit_rows=train)[:, 0] for v in (z[:, 0] + z[:, 1], values))
        predicted[test], truth[test] = x[test] * (x[train] @ y[train]) / (x[train] @ x[train]), y[test]
    expected = 1 - np.square(truth - predicted).sum() / np.square(truth).sum()
    found = disc.target_r2(np.column_stack([z[:, 0] + z[:, 1], z[:, 2]]), values, c, folds)
    np.testing.assert_allclose(found[0], expected)
    assert found[1] < 0.1 < found[0]


def test_separation_is_the_area_under_the_curve_or_the_correlation(rng):
    scores, is_case = rng.normal(size=(30, 3)).round(1), np.arange(30) < 11
    expected = [2 * roc_auc_score(is_case, column) - 1 for column in scores.T]
    np.testing.assert_allclose(disc.separation(scores, is_case), expected)
    values = scores[:, 0] + rng.normal(size=30)
    expected = [pearsonr(column, values).statistic for column in scores.T]
    np.testing.assert_allclose(disc.separation(scores, values), expected)
    assert (disc.separation(scores, np.ones(30, dtype=bool)) == 0).all()
    assert (disc.separation(np.ones((30, 2)), values) == 0).all()


@pytest.mark.parametrize("number", [False, True])
def test_latent_weighted_is_the_mean_association_by_what_latents_say_out_of_sample(problem, number):
    z, x, c, is_case, folds = problem
    z[is_case, 0] += 2
    target = z[:, 0] + 0.5 * z[:, 2] if number else is_case
    scores = np.zeros((48, 5))
    for fold in range(6):
        train, test = np.flatnonzero(folds != fold), folds == fold
        left = stats.residualise(z, c, fit_rows=train)
        left /= np.sqrt((left[train] ** 2).mean(axis=0))
        for j in range(5):
            scores[test, j] = left[test, j] * np.sign(np.cov(left[train, j], target[train].astype(float))[0, 1])
    says = np.maximum(0, disc.separation(scores, target))
    expected = np.abs(stats.partial_correlation(x, z, c)) @ says / 5
    np.testing.assert_allclose(disc.latent_weighted(z, x, c, target, folds), expected)
    assert says[0] > 0.6


def test_latents_that_say_nothing_weigh_next_to_nothing_although_they_are_associated(rng):
    found = []
    for seed in range(30):
        z = rng.normal(size=(60, 4))
        folds = disc.label_free_folds(60, 5, seed=seed)
        found.append(disc.latent_weighted(z, z[:, :1] + z[:, 1:2], None, np.arange(60) < 30, folds)[0])
    assert np.mean(found) < 0.05


def test_a_fold_of_its_own_model_weighs_by_its_scans(problem, rng):
    z, x, c, is_case, folds = problem
    z[is_case, 0] += 2
    folds = np.where(folds < 2, 0, 1)
    latents = [z, z @ np.diag([1, -3, 2, 1, 1])]
    expected = np.zeros(3)
    for fold, own in enumerate(latents):
        says = disc.latent_weights(own, c, is_case, folds, tested=np.array([fold]))
        expected += (folds == fold).mean() * (np.abs(stats.partial_correlation(x, own, c)) @ says) / 5
    np.testing.assert_allclose(disc.latent_weighted(latents, x, c, is_case, folds), expected)
    flat = [z, np.ones((48, 5))]
    assert (disc.latent_weighted(flat, x, c, is_case, folds) < expected).all()
