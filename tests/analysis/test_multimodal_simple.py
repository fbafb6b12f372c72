import numpy as np
import pandas as pd
import pytest
from sklearn.cross_decomposition import PLSRegression
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression, Ridge

from nilatent.analysis.multimodal import simple

N = 40
NAMES = np.array([f"s{i:02d}" for i in range(N)])
KNOWN = np.arange(N) < 28


@pytest.fixture
def x(rng):
    return rng.standard_normal((N, 9)) * np.linspace(3, 0.5, 9) + 5


@pytest.fixture
def y(rng, x):
    return x[:, :3] @ rng.standard_normal((3, 6)) + 2 * rng.standard_normal((N, 6)) - 4


def test_ridge_is_that_of_a_library(x, y):
    for penalty, drawn in simple.ridge_path(x[KNOWN], y[KNOWN], x[~KNOWN]).items():
        direct = Ridge(alpha=penalty * KNOWN.sum()).fit(x[KNOWN], y[KNOWN]).predict(x[~KNOWN])
        np.testing.assert_allclose(drawn, direct, rtol=1e-6, atol=1e-8)


def test_partial_least_squares_with_few_axes_is_the_beginning_of_many(x, y):
    told = simple.pls_path(x[KNOWN], y[KNOWN], x[~KNOWN])
    assert list(told) == [1.0, 2.0, 4.0, 8.0]
    for n_axes, drawn in told.items():
        direct = PLSRegression(int(n_axes), scale=False, max_iter=2000).fit(x[KNOWN], y[KNOWN]).predict(x[~KNOWN])
        np.testing.assert_allclose(drawn, direct, rtol=1e-3, atol=1e-3)
    few = simple.pls_path(x[KNOWN, :2], y[KNOWN], x[~KNOWN, :2])
    np.testing.assert_array_equal(few[2.0], few[8.0])
    constant = simple.pls_path(x[KNOWN], np.ones((28, 2)), x[~KNOWN])
    np.testing.assert_array_equal(constant[1.0], np.ones((12, 2)))


def test_logistic_regression_is_that_of_a_library_and_knows_levels_it_has_not_met(x, rng):
    words = rng.integers(0, 3, N)
    y = (words[:, None] == np.arange(4)).astype(float)
    for penalty, drawn in simple.logistic_path(x[KNOWN], y[KNOWN], x[~KNOWN]).items():
        model = LogisticRegression(C=1 / (penalty * 28), max_iter=5000, tol=1e-8).fit(x[KNOWN], words[KNOWN])
        np.testing.assert_allclose(drawn[:, :3], model.predict_proba(x[~KNOWN]), atol=1e-4)
        assert (drawn[:, 3] == 0).all()
    np.testing.assert_allclose(
        simple.log_loss(np.eye(2), np.array([[0.25, 0.75], [1.0, 0.0]])), [np.log(4), np.log(1e6)]
    )


def test_components_are_those_of_the_training_scans(y):
    pca = PCA(2).fit(y[KNOWN])
    drawn = simple.components(y, KNOWN, ~KNOWN, n_components=2)
    np.testing.assert_allclose(drawn, pca.inverse_transform(pca.transform(y[~KNOWN])), atol=1e-8)


def test_settings_are_chosen_on_left_out_people_of_the_training_scans(x, y, rng):
    args = ((x - x.mean(axis=0), np.zeros((N, 0))), y)
    found = simple.chosen(simple.RIDGE, *args, KNOWN, ~KNOWN, NAMES, seed=0)
    path = simple.ridge_path(args[0][0][KNOWN], y[KNOWN], args[0][0][~KNOWN])
    assert any(np.array_equal(found.drawn, one) for one in path.values())
    # What is told plays no part, neither its truth nor its features.
    other = y.copy()
    other[~KNOWN] = 1e3
    again = simple.chosen(simple.RIDGE, args[0], other, KNOWN, ~KNOWN, NAMES, seed=0)
    np.testing.assert_array_equal(again.drawn, found.drawn)
    # Copies of the same people would choose the weakest penalty, were they not left out together.
    noise = rng.standard_normal((20, 30))
    twice, answer = (np.repeat(one, 2, axis=0) for one in (noise, rng.standard_normal((20, 1))))
    own = np.ones(N, dtype=bool)
    chosen = [
        simple.chosen(simple.RIDGE, (twice, np.zeros((N, 0))), answer, own, own, people, seed=0).inner_error
        for people in (NAMES, np.repeat(NAMES[:20], 2))
    ]
    assert chosen[0] < 0.5 * chosen[1]


def test_a_table_beside_volumes_has_the_weight_that_tells_most(rng):
    cause = rng.standard_normal((N, 1))
    noise, y = rng.standard_normal((N, 40)) / np.sqrt(40), cause + 0.1 * rng.standard_normal((N, 1))
    many = np.repeat(cause, 10, axis=1) / np.sqrt(10) + 0.3 * rng.standard_normal((N, 10))
    for volumes, table, weight in ((noise, cause, 1.0), (many, noise, 0.1)):
        found = simple.chosen(simple.RIDGE, (volumes, table), y, KNOWN, ~KNOWN, NAMES, seed=0)
        paths = {
            one: simple.ridge_path(x[KNOWN], y[KNOWN], x[~KNOWN])
            for one in simple.TABLE_WEIGHTS
            for x in [np.hstack([volumes, one * table])]
        }
        assert [
            one for one, path in paths.items() if any(np.array_equal(found.drawn, drawn) for drawn in path.values())
        ] == [weight]


def test_features_are_made_of_training_scans_and_what_is_missing_is_at_their_mean(rng, x):
    table = pd.DataFrame({"score": rng.normal(20, 5, N), "site": rng.choice(["a", "b", "c"], N)}, index=NAMES)
    table.loc[NAMES[[0, 30]], "score"] = np.nan
    table.loc[NAMES[31], "site"] = None
    volumes = x.copy()
    volumes[[1, 32]] = np.nan
    kinds = {"gm": volumes, "scores": table}
    of_volumes, of_tables = simple.features(kinds, ("gm", "scores"), KNOWN)
    assert of_volumes.shape == (N, 9)
    assert of_tables.shape == (N, 3)
    known = np.flatnonzero(KNOWN & np.isfinite(volumes).all(axis=1))
    assert np.allclose(of_volumes[known].mean(axis=0), 0)
    assert np.isclose(np.square(of_volumes[known]).sum(axis=1).mean(), 1)
    assert (of_volumes[[1, 32]] == 0).all()
    assert of_tables[0, 0] == 0
    assert (of_tables[31, 1:] == 0).all()
    assert np.isclose(np.corrcoef(of_tables[~np.isin(np.arange(N), [0, 30]), 0], table["score"].dropna())[0, 1], 1)
    other = table.copy()
    other.loc[NAMES[~KNOWN], "score"] = 99.0
    other.loc[NAMES[~KNOWN], "site"] = "elsewhere"
    changed = {"gm": np.where(KNOWN[:, None], volumes, 99.0), "scores": other}
    for one, same in zip(simple.features(changed, ("gm", "scores"), KNOWN), (of_volumes, of_tables), strict=True):
        np.testing.assert_array_equal(one[KNOWN], same[KNOWN])
