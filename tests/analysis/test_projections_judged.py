import numpy as np
import pytest
from scipy.spatial import procrustes as scipy_procrustes
from scipy.stats import binomtest, kstest
from sklearn.manifold import trustworthiness as sklearn_trustworthiness
from sklearn.metrics import silhouette_score

from nilatent.analysis import stats
from nilatent.analysis.projections import judged as judged
from nilatent.analysis.projections import made


def naive_purity(values, codes, k):
    shares = []
    for i, row in enumerate(values):
        away = np.linalg.norm(values - row, axis=1)
        away[i] = np.inf
        shares.append((codes[np.argsort(away)[:k]] == codes[i]).mean())
    return np.mean([np.mean(np.array(shares)[codes == level]) for level in np.unique(codes)])


def naive_r2(values, numbers, k):
    left = []
    for i, row in enumerate(values):
        away = np.linalg.norm(values - row, axis=1)
        away[i] = np.inf
        left.append(numbers[i] - numbers[np.argsort(away)[:k]].mean())
    return 1 - np.square(left).sum() / np.square(numbers - numbers.mean()).sum()


def test_trustworthiness_and_continuity_equal_scikit_learn(rng):
    truth, shown = rng.normal(size=(40, 5)), rng.normal(size=(40, 2))
    shown[:, 0] = truth[:, 0]
    apart, on_map = judged.distances(truth), judged.distances(shown)
    assert judged.trustworthiness(apart, on_map, k=6) == pytest.approx(
        sklearn_trustworthiness(truth, shown, n_neighbors=6)
    )
    assert judged.trustworthiness(on_map, apart, k=6) == pytest.approx(
        sklearn_trustworthiness(shown, truth, n_neighbors=6)
    )
    assert judged.trustworthiness(apart, apart, k=6) == 1


def test_procrustes_equals_scipy_and_ignores_what_it_should(rng):
    one, other = rng.normal(size=(20, 2)), rng.normal(size=(20, 2))
    assert judged.procrustes(one, other) == pytest.approx(scipy_procrustes(one, other)[2])
    turn = np.array([[0.6, -0.8], [-0.8, -0.6]])
    assert judged.procrustes(one, 3 * one @ turn + 5) == pytest.approx(0, abs=1e-12)
    assert np.isnan(judged.procrustes(one, np.ones((20, 2))))


def test_shared_neighbours_go_from_chance_to_all(rng):
    one, other = judged.distances(rng.normal(size=(200, 2))), judged.distances(rng.normal(size=(200, 2)))
    assert judged.shared_neighbours(one, one, k=10) == 1
    assert judged.shared_neighbours(one, other, k=10) == pytest.approx(10 / 199, abs=0.02)


def test_purity_and_silhouette_equal_their_definitions_also_when_shuffled(rng):
    values, codes = rng.normal(size=(30, 2)), np.repeat([0, 1, 2], [5, 10, 15])
    values[codes == 2] += 1
    orders, apart = stats.permutations(30, 50, seed=1), judged.distances(values)
    pure = judged.purity([apart], codes, orders, k=4)
    assert pure.value[0] == pytest.approx(naive_purity(values, codes, 4))
    assert pure.chance[0] == pytest.approx(np.mean([naive_purity(values, codes[order], 4) for order in orders]))
    apart_by = judged.silhouette([apart], codes, orders)
    assert apart_by.value[0] == pytest.approx(silhouette_score(values, codes), abs=1e-5)
    expected = np.array([silhouette_score(values, codes[order]) for order in orders])
    assert apart_by.chance[0] == pytest.approx(expected.mean(), abs=1e-5)
    assert apart_by.p_value[0] == (1 + (expected >= apart_by.value[0] - 1e-6).sum()) / 51


def test_neighbour_r2_equals_its_definition_also_when_shuffled(rng):
    values, numbers = rng.normal(size=(30, 2)), rng.normal(size=30) + 70
    numbers += values[:, 0]
    orders = stats.permutations(30, 50, seed=1)
    found = judged.neighbour_r2([judged.distances(values)], numbers, orders, k=4)
    shuffled = np.array([naive_r2(values, numbers[order], 4) for order in orders])
    assert found.value[0] == pytest.approx(naive_r2(values, numbers, 4))
    assert found.chance[0] == pytest.approx(shuffled.mean())
    assert found.p_value[0] == (1 + (shuffled >= found.value[0]).sum()) / 51


def test_chance_is_one_over_the_levels_however_unequal(rng):
    codes = np.repeat([0, 1], [90, 10])
    found = judged.purity(
        [judged.distances(rng.normal(size=(100, 2)))], codes, stats.permutations(100, 200, seed=0), k=10
    )
    assert found.chance[0] == pytest.approx(0.5, abs=0.03)


def test_a_planted_cluster_is_found_on_the_map_that_shows_it(rng):
    codes = np.arange(40) % 2
    shows, hides = rng.normal(size=(40, 2)), rng.normal(size=(40, 2))
    shows[codes == 1] += 2
    maps, orders = [judged.distances(hides), judged.distances(shows)], stats.permutations(40, 199, seed=0)
    for found in (judged.purity(maps, codes, orders, k=4), judged.silhouette(maps, codes, orders)):
        assert found.p_fwe[1] == 1 / 200
        assert found.p_value[0] > 0.05
        assert (found.p_fwe >= found.p_value).all()


def test_what_follows_the_site_is_nothing_within_sites(rng):
    site = np.arange(60) % 2
    group = np.where(rng.random(60) < 0.85, site, 1 - site)
    apart = [judged.distances(rng.normal(size=(60, 2)) + 4 * site[:, None])]
    free, kept = (stats.permutations(60, 199, seed=0, blocks=blocks) for blocks in (None, site))
    for measure in (
        lambda orders: judged.purity(apart, group, orders, k=6),
        lambda o: judged.silhouette(apart, group, o),
    ):
        assert measure(free).p_value[0] == 1 / 200
        assert measure(kept).p_value[0] > 0.05
        assert measure(kept).chance[0] > measure(free).chance[0]
    assert judged.purity(apart, site, kept, k=6).p_value[0] == 1


def test_p_values_of_null_labels_are_uniform_and_hold_over_maps():
    single, family = {"purity": [], "r2": [], "silhouette": []}, []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        maps = [judged.distances(rng.normal(size=(30, 2))) for _ in range(10)]
        codes, orders = rng.permutation(np.repeat([0, 1], [10, 20])), stats.permutations(30, 99, seed=seed + 500)
        results = {
            "purity": judged.purity(maps[:1], codes, orders, k=3),
            "r2": judged.neighbour_r2(maps[:1], rng.normal(size=30), orders, k=3),
            "silhouette": judged.silhouette(maps, codes, orders),
        }
        for name, found in results.items():
            single[name].append(found.p_value[0])
        family.append(min(results["silhouette"].p_fwe) <= 0.05)
    spread = np.random.default_rng(0).uniform(0, 0.01, 200)
    for name in ("r2", "silhouette"):
        assert kstest(np.array(single[name]) - spread, "uniform").pvalue > 0.001
    # Purity has ties, which make its p-values larger than uniform ones, never smaller.
    assert binomtest(int(np.sum(np.array(single["purity"]) <= 0.05)), 200, 0.05, alternative="greater").pvalue > 0.01
    assert binomtest(int(np.sum(family)), 200, 0.05).pvalue > 0.01


def test_neighbours_of_ties_and_small_cohorts():
    assert [judged.n_neighbours(n) for n in (10, 49, 1000)] == [3, 4, 10]
    near = judged.nearest(judged.distances(np.zeros((5, 2))), k=2)
    assert (near[0] == [1, 2]).all()
    assert not (near == np.arange(5)[:, None]).any()


def test_of_very_many_scans_some_say_whether_a_map_repeats(rng, monkeypatch):
    one = rng.normal(size=(80, 2))
    other = one + 0.3 * rng.normal(size=(80, 2))
    monkeypatch.setattr(made, "MAX_FIT_SCANS", 40)
    some = np.linspace(0, 79, 40).round().astype(int)
    distance, overlap, chance = made._repeated(one, other)
    apart = [judged.distances(places[some]) for places in (one, other)]
    assert (distance, overlap) == (judged.procrustes(one, other), judged.shared_neighbours(*apart, k=4))
    assert chance == pytest.approx(4 / 39)
