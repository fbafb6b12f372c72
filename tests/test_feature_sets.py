import numpy as np
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from nilatent.feature_sets import leading


def test_leading_components_are_those_of_standardised_training_scans(rng):
    x = rng.normal(size=(40, 6)) @ rng.normal(size=(6, 6)) * rng.uniform(0.1, 10, size=6)
    train = np.arange(40) % 4 > 0
    found = leading(x, train, 3)
    scaler = StandardScaler().fit(x[train])
    naive = PCA(3).fit(scaler.transform(x[train])).transform(scaler.transform(x))
    np.testing.assert_allclose(np.abs(found), np.abs(naive), atol=1e-8)


def test_held_out_scans_shape_no_component(rng):
    x, train = rng.normal(size=(30, 5)), np.arange(30) < 20
    other = x.copy()
    other[25] *= 100
    np.testing.assert_array_equal(leading(x, train, 4)[:25], leading(other, train, 4)[:25])


def test_flat_features_and_few_scans_give_fewer_components(rng):
    x = rng.normal(size=(8, 10))
    # Of neither is the standard deviation an exact zero over six scans.
    x[:, 2], x[:, 5] = 0.1, 1.7
    train = np.arange(8) < 6
    found, alone = leading(x, train, 10), leading(np.delete(x, [2, 5], axis=1), train, 10)
    assert found.shape == (8, 5)
    np.testing.assert_allclose(np.abs(found), np.abs(alone), atol=1e-9)
