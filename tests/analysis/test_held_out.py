import numpy as np
import pytest
from sklearn.linear_model import LinearRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from nilatent.analysis import bounds, held_out, stats
from nilatent.analysis.discriminability import PENALTY, balanced_targets, label_free_folds
from nilatent.analysis.held_out import balanced_errors, certify_calls, cubv, prediction_p, region_calls, sam
from nilatent.errors import LeakageError, SettingError


@pytest.fixture
def unequal():
    """35 cases, 14 references, ten folds."""
    return np.arange(49) < 35, label_free_folds(49, 10, seed=3)


def cohort(rng, n, d, *, effect=0.0):
    is_case = rng.permutation(np.arange(n) < n // 2)
    return rng.normal(size=(n, d)) + effect * is_case[:, None], is_case, label_free_folds(n, 10, seed=1)


@pytest.mark.parametrize("constant", [0.0, 1.0, 0.5])
def test_a_constant_classifier_is_never_certified_at_35_to_14(unequal, constant):
    is_case, folds = unequal
    raw = (constant != is_case).mean()
    if constant == 1:
        # What the raw error of all 49 scans would have said.
        assert bounds.upper_bound(raw, n=49, d=1) == pytest.approx(0.480, abs=5e-4)
    for d in (1, 2, 5):
        for eta in (0.05, 0.5, 0.999):
            made = certify_calls(np.full(49, constant), is_case, folds, d=d, eta=eta)
            assert made.error == pytest.approx(0.5)
            assert not made.holds
    assert bounds.badge(balanced_errors(np.full((49, 1), constant), is_case, folds)[:, 0], np.full(10, 24), d=1) == (
        "inconclusive"
    )


def test_the_mean_of_the_shares_is_the_pooled_balanced_error(rng, unequal):
    is_case, folds = unequal
    called = rng.integers(0, 2, size=(49, 3)).astype(float)
    for column, errors in zip(called.T, balanced_errors(called, is_case, folds).T, strict=True):
        assert errors.mean() == pytest.approx(1 - balanced_accuracy_score(is_case, column > 0.5))


def test_the_n_of_the_bounds_is_twice_the_smaller_group_of_the_training_part(unequal):
    is_case, folds = unequal
    by_hand = [2 * (14 - (~is_case[folds == fold]).sum()) for fold in range(10)]
    np.testing.assert_array_equal(held_out.effective_sizes(is_case, folds), by_hand)


def test_a_certificate_by_hand(rng, unequal):
    is_case, folds = unequal
    called = is_case.astype(float)
    called[[0, 1, 40]] = 1 - called[[0, 1, 40]]
    made = certify_calls(called, is_case, folds, d=2, eta=0.1)
    error = (2 / 35 + 1 / 14) / 2
    sizes = held_out.effective_sizes(is_case, folds)
    deltas = [bounds.upper_bound(0, n=int(n), d=2, eta=0.1) for n in sizes]
    assert made.error == pytest.approx(error)
    assert made.bound == pytest.approx(error + np.mean(deltas))
    assert made.n_eff == sizes.mean()
    limits = [bounds.exact_limit(2, 35, eta=0.05), bounds.exact_limit(1, 14, eta=0.05)]
    assert made.limit == pytest.approx(np.mean(limits))
    assert made.holds == (made.bound < 0.5)


def test_cubv_is_the_support_vector_machine_fitted_fold_by_fold(rng):
    features, is_case, folds = cohort(rng, 80, 3, effect=0.8)
    confounds = features[:, :1] + 5 * rng.standard_cauchy(size=(80, 1))
    called, norms = np.empty(80), []
    for fold in range(10):
        train, test = folds != fold, folds == fold
        x = features - LinearRegression().fit(confounds[train], features[train]).predict(confounds)
        machine = SVC(kernel="linear", C=1.0, class_weight="balanced")
        made = make_pipeline(StandardScaler(), machine).fit(x[train], is_case[train])
        called[test] = made.predict(x[test])
        norms.append((machine.coef_**2).sum() + (machine.intercept_**2).sum())
    found = cubv(features, is_case, folds, confounds=confounds, eta=0.2)
    assert found == certify_calls(called, is_case, folds, d=4, eta=0.2)
    wide, *_ = cohort(rng, 80, 9)
    sizes = held_out.effective_sizes(is_case, folds)
    made = cubv(wide, is_case, folds)
    assert made.bound > bounds.mean_bound(np.full(10, made.error), sizes, d=10, theta2=np.zeros(10))


def test_cubv_finds_an_effect_in_many_scans_and_not_in_few(rng):
    features, is_case, folds = cohort(rng, 600, 8, effect=0.8)
    assert cubv(features, is_case, folds).holds
    few = np.concatenate([np.flatnonzero(is_case)[:15], np.flatnonzero(~is_case)[:15]])
    made = cubv(features[few], is_case[few], label_free_folds(30, 10, seed=0))
    assert made.error < 0.4
    assert not made.holds


def test_scale_sign_and_order_change_nothing(rng):
    features, is_case, folds = cohort(rng, 60, 3, effect=0.7)
    order = rng.permutation(60)
    changed = (features * [-5, 0.001, 300] + [7, 0, -2])[order]
    assert cubv(changed, is_case[order], folds[order]).error == cubv(features, is_case, folds).error
    orders = stats.permutations(60, 99, seed=0)
    one = prediction_p(features, balanced_targets(is_case), folds, orders)
    assert prediction_p(features * [-5, 0.001, 300], balanced_targets(is_case), folds, orders) == one


def test_a_confound_is_removed_inside_the_fold(rng):
    age = rng.normal(size=(400, 1))
    is_case = age[:, 0] + 0.5 * rng.normal(size=400) > 0
    features = age + 0.3 * rng.normal(size=(400, 2))
    folds, orders = label_free_folds(400, 10, seed=0), stats.permutations(400, 99, seed=0)
    assert cubv(features, is_case, folds).holds
    assert not cubv(features, is_case, folds, confounds=age).holds
    assert region_errors(features, is_case, None, folds).max() < 0.25
    assert region_errors(features, is_case, age, folds).min() > 0.4
    targets = balanced_targets(is_case)
    assert prediction_p(features, targets, folds, orders) == 0.01
    assert prediction_p(features, targets, folds, orders, confounds=age) > 0.05


def region_errors(scores, is_case, confounds, folds):
    return balanced_errors(region_calls(scores, is_case, confounds, folds), is_case, folds).mean(axis=0)


def test_held_out_scans_do_not_shape_the_rule_that_judges_them(rng):
    # Moving one held-out scan far away must change the calls of no other scan of its fold.
    features, is_case, folds = cohort(rng, 60, 2, effect=0.5)
    confounds = rng.normal(size=(60, 1))
    moved = features.copy()
    mates = np.flatnonzero(folds == folds[0])[1:]
    moved[0] += 1e3
    before = region_calls(features, is_case, confounds, folds)
    np.testing.assert_array_equal(region_calls(moved, is_case, confounds, folds)[mates], before[mates])


def test_the_permutation_p_is_that_of_a_plain_loop(rng):
    features, is_case, folds = cohort(rng, 40, 4, effect=0.1)
    confounds, orders = rng.normal(size=(40, 2)), stats.permutations(40, 60, seed=2)
    basis = np.linalg.qr(np.column_stack([np.ones(40), confounds]))[0]

    def free(column):
        return column - basis @ (basis.T @ column)

    def statistic(target):
        predicted = np.empty(40)
        for fold in range(10):
            train, test = folds != fold, folds == fold
            design = np.column_stack([np.ones(40), confounds])
            x = features - design @ np.linalg.lstsq(design[train], features[train])[0]
            x = x / np.sqrt((x[train] ** 2).mean(axis=0))
            gram = x[train].T @ x[train] + train.sum() * PENALTY * np.eye(4)
            predicted[test] = x[test] @ np.linalg.solve(gram, x[train].T @ target[train])
        return predicted @ target / np.linalg.norm(predicted) / np.linalg.norm(target)

    residual = free(balanced_targets(is_case))
    observed = statistic(residual)
    reached = sum(statistic(free(residual[order])) >= observed - 1e-9 for order in orders)
    found = prediction_p(features, balanced_targets(is_case), folds, orders, confounds=confounds)
    assert found == pytest.approx((1 + reached) / 61)
    assert 1 / 61 < found < 1


def test_a_prediction_that_is_always_wrong_is_not_significant(rng):
    features, is_case, folds = cohort(rng, 60, 1, effect=3.0)
    orders = stats.permutations(60, 99, seed=0)
    assert prediction_p(features, balanced_targets(is_case), folds, orders) == 0.01
    # Within each fold the feature points the other way than in all others.
    turned = features * np.where(folds == 0, -1, 1)[:, None]
    two = np.where(folds < 5, 0, 1)
    swapped = (features - features.mean()) * np.where(two == 0, -1, 1)[:, None]
    assert prediction_p(turned, balanced_targets(is_case), folds, orders) == 0.01
    assert prediction_p(swapped, balanced_targets(is_case), two, orders) > 0.9


def test_one_fold_and_split_subjects_are_refused(rng):
    features, is_case, _ = cohort(rng, 30, 2)
    one, orders = np.zeros(30, dtype=int), stats.permutations(30, 9, seed=0)
    for call in (
        lambda: cubv(features, is_case, one),
        lambda: sam(features, is_case, one),
        lambda: prediction_p(features, balanced_targets(is_case), one, orders),
        lambda: certify_calls(is_case, is_case, one, d=2),
    ):
        with pytest.raises(SettingError, match="resubstitution"):
            call()
    with pytest.raises(LeakageError, match="Subject 4 has scans in 2 folds"):
        held_out.check_folds(np.arange(30) % 5, np.r_[np.arange(4), [4, 4], np.arange(5, 29)])
    held_out.check_folds(np.repeat(np.arange(5), 2), np.repeat(np.arange(5), 2))
    with pytest.raises(SettingError, match="holds one group only"):
        cubv(features, is_case, is_case.astype(int))


def test_the_map_is_the_certificate_of_every_region(rng):
    scores, is_case, folds = cohort(rng, 300, 6)
    scores[is_case, 2] += 2.0
    made = sam(scores, is_case, folds, eta=0.1)
    called = region_calls(scores, is_case, None, folds)
    for region in range(6):
        one = certify_calls(called[:, region], is_case, folds, d=2, eta=0.1)
        assert (made.error[region], made.bound[region], made.holds[region], made.limit[region]) == (
            one.error,
            one.bound,
            one.holds,
            one.limit,
        )
    assert made.holds.tolist() == [False, False, True, False, False, False]
    np.testing.assert_allclose(made.sam_z, -(made.error - made.error.mean()) / made.error.std(ddof=1))
    assert made.n_eff == held_out.effective_sizes(is_case, folds).mean()


def test_region_calls_take_the_nearer_mean(rng, unequal):
    is_case, folds = unequal
    scores = rng.normal(size=(49, 2)) - 2 * is_case[:, None]
    called = region_calls(scores, is_case, None, folds)
    for scan in range(49):
        train = folds != folds[scan]
        cases, references = scores[train & is_case].mean(axis=0), scores[train & ~is_case].mean(axis=0)
        nearer = np.abs(scores[scan] - cases) < np.abs(scores[scan] - references)
        np.testing.assert_array_equal(called[scan], nearer)
    np.testing.assert_array_equal(region_calls(np.ones((49, 1)), is_case, None, folds), np.full((49, 1), 0.5))


def test_why_resubstitution_is_refused():
    # No effect at all. In the scans it was fitted on, one PLS component is certified in every cohort; held out, in none.
    in_sample, out_of_sample = [], []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        x, is_case, folds = cohort(rng, 200, 200)
        sides = np.where(is_case, 1.0, -1.0)
        score = x @ (x.T @ sides)
        in_sample.append(bounds.upper_bound(float(((score > 0) != is_case).mean()), n=200, d=2) < 0.5)
        called = np.empty(200)
        for fold in range(10):
            train, test = folds != fold, folds == fold
            called[test] = x[test] @ (x[train].T @ sides[train]) > 0
        out_of_sample.append(certify_calls(called, is_case, folds, d=2).holds)
    assert (np.mean(in_sample), np.mean(out_of_sample)) == (1.0, 0.0)


def test_why_resubstitution_is_refused_for_pac_bayes_too():
    in_sample = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        x, is_case, _ = cohort(rng, 400, 64)
        machine = SVC(kernel="linear", C=0.01).fit(x, is_case)
        error, theta2 = float((machine.predict(x) != is_case).mean()), float((machine.coef_**2).sum())
        in_sample.append(bounds.upper_bound(error, n=400, d=65, theta2=theta2) < 0.5)
    assert np.mean(in_sample) >= 0.9
