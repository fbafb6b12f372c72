import sys

import numpy as np
import pytest
import xarray as xr
from sklearn.cross_decomposition import PLSRegression
from sklearn.decomposition import PCA

from nilatent.analysis.projections import judged as judged
from nilatent.analysis.projections import maps
from nilatent.analysis.projections.maps import (
    NoMapError,
    explained,
    fit_neighbours,
    fit_pca,
    fit_pls,
    from_arrays,
    place,
    to_arrays,
)
from nilatent.errors import MissingExtraError, SettingError

NEIGHBOUR_METHODS = [
    pytest.param("tsne", id="t-SNE"),
    # The first map of UMAP in a process takes ten seconds of compilation.
    pytest.param("umap", id="UMAP", marks=pytest.mark.slow),
]


@pytest.fixture
def clusters(rng):
    """Three clusters in ten dimensions: (scan, feature) and (scan,) which."""
    which = np.arange(75) % 3
    return rng.normal(size=(75, 10)) + 8 * np.eye(10)[which], which


def test_components_equal_scikit_learn_fitted_on_the_same_scans(rng):
    z = rng.normal(size=(30, 5)) * [5, 4, 3, 2, 1]
    fitted = fit_pca(z[:20], z[:20, 0], n_components=3)
    expected = PCA(3).fit(z[:20])
    scores = place(fitted, z)
    np.testing.assert_allclose(np.abs(scores), np.abs(expected.transform(z)), atol=1e-9)
    np.testing.assert_allclose(explained(fitted, z[:20]), expected.explained_variance_ratio_, rtol=1e-9)
    for direction in (z[:20, 0], -z[:20, 0]):
        signed = place(fit_pca(z[:20], direction, n_components=3), z[:20])
        assert ((direction - direction.mean()) @ signed > 0).all()


@pytest.mark.parametrize("columns", [1, 3])
def test_pls_equals_scikit_learn(rng, columns):
    z, target = rng.normal(size=(40, 6)) * [4, 3, 2, 1, 1, 1] + 7, rng.normal(size=(40, columns)) * [1, 5, 9][:columns]
    fitted = fit_pls(z[:30], target[:30], z[:30, 0], n_components=3)
    size = target[:30].std(axis=0)
    expected = PLSRegression(3, scale=False, tol=1e-12, max_iter=5000).fit(z[:30], target[:30] / size)
    scores = place(fitted, z)
    np.testing.assert_allclose(np.abs(scores), np.abs(expected.transform(z)), atol=1e-4)
    for direction in (z[:30, 0], -z[:30, 0]):
        signed = place(fit_pls(z[:30], target[:30], direction, n_components=3), z[:30])
        assert ((direction - direction.mean()) @ signed > 0).all()
    left = z[30:] - z[:30].mean(axis=0)
    rest = left - scores[30:] @ fitted.loadings
    np.testing.assert_allclose(explained(fitted, z[30:]).sum(), 1 - (rest**2).sum() / (left**2).sum(), atol=1e-9)


def test_pls_finds_the_direction_of_the_groups_where_pca_finds_the_loudest(rng):
    group = np.arange(60) % 2
    z = rng.normal(size=(60, 8)) * [20, 1, 1, 1, 1, 1, 1, 1]
    z[:, 5] += 4 * group
    direction = rng.normal(size=60)
    pls = place(fit_pls(z[:40], group[:40, None], direction[:40], n_components=2), z)
    pca = place(fit_pca(z[:40], direction[:40], n_components=1), z)
    assert max(abs(np.corrcoef(pls[40:, axis], group[40:])[0, 1]) for axis in (0, 1)) > 0.7
    assert abs(np.corrcoef(pca[40:, 0], group[40:])[0, 1]) < 0.4


def test_pls_stops_where_nothing_is_left_and_says_why_there_is_none(rng):
    z, target = rng.normal(size=(20, 1)), rng.normal(size=(20, 1))
    assert len(fit_pls(z, target, z[:, 0], n_components=2).weights) == 1
    with pytest.raises(NoMapError, match="target of PLS is the same"):
        fit_pls(z, np.ones((20, 1)), z[:, 0], n_components=2)
    with pytest.raises(NoMapError, match="no latent covaries"):
        fit_pls(np.ones((20, 3)), target, z[:, 0], n_components=2)


def test_equal_scans_have_no_map(rng):
    with pytest.raises(NoMapError, match="the same values"):
        fit_pca(np.full((20, 3), 0.1, np.float32) + 1e-9 * rng.normal(size=(20, 3)), np.arange(20.0), n_components=2)


@pytest.mark.parametrize("method", NEIGHBOUR_METHODS)
@pytest.mark.parametrize("start", ["components", "random"])
def test_clusters_stay_apart_and_others_join_their_own(clusters, method, start):
    z, which = clusters
    fitted = fit_neighbours(method, z[:60], z[:60, 0], seed=0, start=start)
    everyone = np.vstack([fitted.layout, place(fitted, z[60:])])
    near = judged.nearest(judged.distances(everyone), k=5)
    assert (which[near] == which[:, None]).mean() > 0.97


@pytest.mark.parametrize("method", NEIGHBOUR_METHODS)
def test_a_place_does_not_depend_on_who_else_is_placed(clusters, method):
    z, _ = clusters
    fitted = fit_neighbours(method, z[:60], z[:60, 0], seed=0)
    together = place(fitted, z[60:])
    np.testing.assert_allclose(np.vstack([place(fitted, row[None]) for row in z[60:]]), together, atol=1e-9)
    np.testing.assert_allclose(place(fitted, z[60:][::-1])[::-1], together, atol=1e-9)


@pytest.mark.parametrize("method", NEIGHBOUR_METHODS)
def test_copies_of_training_scans_lie_beside_them(clusters, method):
    z, _ = clusters
    fitted = fit_neighbours(method, z[:60], z[:60, 0], seed=0)
    away = np.linalg.norm(place(fitted, z[:60]) - fitted.layout, axis=1)
    spread = np.linalg.norm(fitted.layout - fitted.layout[::-1], axis=1)
    assert np.median(away) < {"tsne": 0.05, "umap": 0.2}[method] * np.median(spread)


@pytest.mark.parametrize("method", NEIGHBOUR_METHODS)
def test_columns_may_be_flipped_and_moved(clusters, rng, method):
    z, _ = clusters
    turned = (z * rng.choice([-1, 1], 10))[:, rng.permutation(10)]
    layout = fit_neighbours(method, z[:60], z[:60, 0], seed=3).layout
    np.testing.assert_allclose(fit_neighbours(method, turned[:60], z[:60, 0], seed=3).layout, layout, atol=1e-6)


def test_seed_and_start_have_their_effect(clusters):
    z, _ = clusters
    layouts = [
        fit_neighbours("tsne", z, z[:, 0], seed=seed, start=start).layout
        for seed, start in ((0, "components"), (0, "random"), (1, "random"), (1, "random"))
    ]
    assert judged.procrustes(layouts[0], layouts[1]) > 1e-3
    assert judged.procrustes(layouts[1], layouts[2]) > 1e-3
    np.testing.assert_array_equal(layouts[2], layouts[3])


@pytest.mark.parametrize("method", ["pca", "pls", *NEIGHBOUR_METHODS])
def test_a_map_survives_storing(clusters, method, tmp_path):
    z, which = clusters
    if method == "pca":
        fitted = fit_pca(z[:60], z[:60, 0], n_components=3)
    elif method == "pls":
        fitted = fit_pls(z[:60], which[:60, None].astype(float), z[:60, 0], n_components=2)
    else:
        fitted = fit_neighbours(method, z[:60], z[:60, 0], seed=0)
    xr.Dataset(to_arrays(fitted)).to_netcdf(tmp_path / "map.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "map.nc", engine="h5netcdf") as stored:
        back = from_arrays(stored.load(), method)
    np.testing.assert_array_equal(place(back, z[60:]), place(fitted, z[60:]))
    assert from_arrays(xr.Dataset(), method) is None


def test_one_dimension_and_few_scans(rng):
    z = rng.normal(size=(16, 1))
    fitted = fit_neighbours("tsne", z, z[:, 0], seed=0)
    assert fitted.n_neighbours == 5
    assert np.isfinite(fitted.layout).all()
    assert place(fitted, np.zeros((0, 1))).shape == (0, 2)
    with pytest.raises(NoMapError, match="15 training scans, at least 16"):
        fit_neighbours("umap", z[:15], z[:15, 0], seed=0)
    with pytest.raises(SettingError, match="map of 1 features"):
        place(fitted, np.zeros((3, 2)))


def test_a_scan_has_no_more_neighbours_than_three_times_as_many_scans_carry(rng, monkeypatch):
    monkeypatch.setattr(maps, "_fit_tsne", lambda _, begin, **settings: begin if settings else None)
    tables = [rng.normal(size=(n, 2)) for n in (17, 18, 19, 200)]
    assert [fit_neighbours("tsne", z, z[:, 0], seed=0).n_neighbours for z in tables] == [5, 5, 6, 30]


def test_an_absent_package_is_named_with_its_extra(rng, monkeypatch):
    monkeypatch.setitem(sys.modules, "openTSNE", None)
    with pytest.raises(MissingExtraError, match=r"openTSNE.*nilatent\[embed\]"):
        fit_neighbours("tsne", rng.normal(size=(20, 3)), np.arange(20.0), seed=0)
