import numpy as np

from nilatent.analysis import stats
from nilatent.analysis.contrast import Comparison, Gradient
from nilatent.analysis.lrcp import lrcp
from nilatent.analysis.lrcp.profile import LrcpConfig, blended, own_p, profile, ranking_score

FAST = LrcpConfig(n_permutations=300, n_permutations_linked=100)


def test_for_a_number_scans_are_exchanged_within_sites_and_the_number_is_a_confound_of_the_centred_test(rng):
    z, site, values = rng.normal(size=(40, 3)), rng.choice(["x", "y"], 40), rng.normal(size=40)
    x = 0.4 * z[:, :2] + 0.3 * values[:, None] + rng.normal(size=(40, 2))
    confounds = (site == "x")[:, None] * 1.0
    asked = Gradient(np.arange(40), values, "mmse", confounds, site, {})
    found = profile(z, x, asked, FAST, unadjusted=confounds)
    orders, centred = (stats.permutations(40, 300, seed=seed, blocks=site) for seed in (0, 1))
    expected = stats.permuted_correlation(x, z, centred, confounds=np.column_stack([confounds, values]))
    np.testing.assert_array_equal(found.centred.p_value, expected.p_value)
    expected = stats.permuted_correlation(found.readout, values, orders, confounds=confounds)
    np.testing.assert_array_equal(found.readout_p, expected.p_fwe[:, 0])
    np.testing.assert_array_equal(found.readout_r, expected.observed[:, 0])
    np.testing.assert_array_equal(
        found.region_p, stats.permuted_correlation(x, values, orders, confounds=confounds).p_fwe[:, 0]
    )


def test_own_p_is_a_test_of_the_called_regions_alone(rng):
    is_case, c = np.arange(60) < 30, rng.normal(size=(60, 1))
    x = rng.normal(size=(60, 6)) - 0.7 * is_case[:, None]
    orders, called = stats.permutations(60, 199, seed=0), np.array([True, False, True, True, False, False])
    direction = np.array([-1, -1, -1, 1, -1, -1.0])
    found = own_p(x, is_case * 1.0, orders, confounds=c, called=called, way=direction)
    expected = stats.permuted_correlation(x[:, called], is_case * 1.0, orders, confounds=c).p_fwe[:, 0]
    np.testing.assert_allclose(found[[0, 2]], expected[:2])
    assert found[3] == 1
    assert np.isnan(found[~called]).all()
    none = own_p(x, is_case * 1.0, orders, confounds=c, called=~called & called, way=direction)
    assert np.isnan(none).all()


def test_own_grey_matter_is_asked_of_the_regions_that_stay_called_over_all_contrasts(rng):
    is_case = np.arange(60) < 30
    x = rng.normal(size=(60, 4)) - np.array([2.0, 0, 0, 0]) * is_case[:, None]
    z = x + 0.1 * rng.normal(size=x.shape)
    comparison = Comparison(np.arange(60), is_case, "A", "B", np.empty((60, 0)), None, {})
    alone, of_many = (profile(z, x, comparison, FAST, unadjusted=comparison.confounds, n_contrasts=n) for n in (1, 50))
    assert np.isfinite(alone.own_p[0])
    assert np.isnan(of_many.own_p).all()
    np.testing.assert_array_equal(alone.blend_p, of_many.blend_p)


def test_the_ranking_score_by_hand():
    np.testing.assert_allclose(ranking_score(np.array([0.81, -1, 0.5]), np.array([0.75, 0.9, 0.4])), [0.45**0.5, 0, 0])


def test_within_groups_scans_are_exchanged_within_groups_only(rng):
    is_case = np.arange(68) < 8
    z, x = rng.normal(size=(2, 68, 1)) * np.where(is_case, 100, 1)[:, None]
    pattern = np.array([-2, -1, -1, 0, 0, 1, 1, 2.0])
    z[:8, 0], x[:8, 0] = pattern * 100, np.array([-1, -2, 1, 0, 0, -1, 1, 2.0]) * 100
    comparison = Comparison(np.arange(68), is_case, "A", "B", np.empty((68, 0)), None, {})
    found = profile(z, x, comparison, FAST, unadjusted=comparison.confounds)
    free = stats.permuted_correlation(x, z, stats.permutations(68, 300, seed=1), confounds=is_case[:, None])
    assert free.p_value[0, 0] < 0.05 < min(found.centred.p_value[0, 0], found.joint_centred_p[0])


def test_the_blend_is_the_weighted_mean_of_unit_residuals(rng):
    x, c = rng.normal(size=(50, 4)), rng.normal(size=(50, 2))
    readout = 0.5 * x + rng.normal(size=x.shape)
    readout[:, 3] = 2.0
    r2 = np.array([0.8, 0.0, -0.3, 0.9])
    found = blended(x, readout, r2, c)

    def unit(values):
        left = (
            values
            - np.column_stack([np.ones(50), c])
            @ np.linalg.lstsq(np.column_stack([np.ones(50), c]), values, rcond=None)[0]
        )
        return left / np.linalg.norm(left)

    np.testing.assert_allclose(found[:, 0], 0.6 * unit(x[:, 0]) + 0.4 * unit(readout[:, 0]), atol=1e-8)
    # What the latents do not know, or say alike of everybody, stays the region itself.
    for region in (1, 2, 3):
        np.testing.assert_allclose(found[:, region], unit(x[:, region]), atol=1e-8)


def test_each_reading_decides_by_its_own_tests(study, rng):
    cohort = study(effect=1.2)
    # Latents that know a few regions and no others.
    cohort.latents["mean"][:] = rng.normal(size=cohort.latents["mean"].shape)
    cohort.latents["mean"][:, 0] = cohort.regions["Region_1"].to_numpy() * 100
    table = {}
    for reading in ("blended", "joint", "linked"):
        config = LrcpConfig(n_permutations=199, n_permutations_linked=99, adjust_global=False, reading=reading)
        found = lrcp(
            cohort.latents, cohort.regions, cohort.scans, cohort.weights, cohort.grid, cohort.mask, config
        ).table.set_index("name")
        table[reading] = found.sort_index()
    decided = {"blended": (None, "p_blend"), "joint": ("p_joint", "p_readout"), "linked": ("p_pair", "p_linked")}
    for reading, (association, difference) in decided.items():
        own = table[reading]
        assert own["p_d"].equals(own[difference].rename("p_d"))
        if association is not None:
            assert own["p_a"].equals(own[association].rename("p_a"))
        np.testing.assert_array_equal(own["p"], np.maximum(own["p_a"], own["p_d"]))
    assert (table["blended"]["p_a"] < table["joint"]["p_a"] - 1e-9).any()
