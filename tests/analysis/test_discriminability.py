import numpy as np
import pytest
from sklearn.linear_model import LinearRegression

from nilatent.analysis import discriminability as disc
from nilatent.analysis import stats


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
