import numpy as np
import pytest

from nilatent.analysis.combat import ADJUSTED, ONE_SUBJECT, UNSEEN, fit_combat
from nilatent.analysis.contrast import NotComparableError
from nilatent.errors import SettingError

SIZES = (30, 12, 5, 40)


def naive_combat(values, site, keep, new, new_site, new_keep, rounds=3000):
    """Parametric ComBat with covariates, scan by scan and feature by feature, in the letters of Johnson et al. 2007."""
    names = sorted(set(site))
    n, n_features = values.shape
    x = np.array([[float(s == name) for name in names] + list(k) for s, k in zip(site, keep, strict=True)])
    beta = np.linalg.solve(x.T @ x, x.T @ values)
    share = np.array([np.sum(site == name) / n for name in names])
    alpha = share @ beta[: len(names)]
    sigma = np.sqrt(np.square(values - x @ beta).sum(axis=0) / n)
    z = (values - alpha - keep @ beta[len(names) :]) / sigma
    out = np.empty_like(new)
    for name in names:
        own = z[site == name]
        n_i = len(own)
        gamma_hat = [own[:, g].sum() / n_i for g in range(n_features)]
        delta_hat = [np.square(own[:, g] - gamma_hat[g]).sum() / (n_i - 1) for g in range(n_features)]
        gamma_bar, v_bar = np.mean(gamma_hat), np.mean(delta_hat)
        tau2 = np.square(gamma_hat - gamma_bar).sum() / (n_features - 1)
        s2 = np.square(delta_hat - v_bar).sum() / (n_features - 1)
        lam, theta = (v_bar**2 + 2 * s2) / s2, (v_bar**3 + v_bar * s2) / s2
        for g in range(n_features):
            gamma, delta = gamma_hat[g], delta_hat[g]
            for _ in range(rounds):
                gamma = (n_i * tau2 * gamma_hat[g] + delta * gamma_bar) / (n_i * tau2 + delta)
                delta = (theta + 0.5 * np.square(own[:, g] - gamma).sum()) / (n_i / 2 + lam - 1)
            for row in np.flatnonzero(new_site == name):
                mean = alpha[g] + new_keep[row] @ beta[len(names) :, g]
                out[row, g] = sigma[g] / np.sqrt(delta) * ((new[row, g] - mean) / sigma[g] - gamma) + mean
    return out


def simulated(rng, sizes=SIZES, n_features=6, *, n_new=3):
    """Values of scans at sites, with age and sex, followed by those of new scans of the same sites."""
    n_sites = len(sizes)
    codes = np.concatenate([np.repeat(np.arange(n_sites), sizes), np.repeat(np.arange(n_sites), n_new)])
    keep = np.column_stack([rng.normal(40, 10, len(codes)) + 2 * codes, rng.integers(0, 2, len(codes))])
    shift, spread = rng.normal(0, 2, (n_sites, n_features)), np.exp(rng.normal(0, 0.3, (n_sites, n_features)))
    slopes = rng.normal(0, [[0.05], [0.5]], (2, n_features))
    values = 100 + 3 * (keep @ slopes + shift[codes] + spread[codes] * rng.normal(size=(len(codes), n_features)))
    return values, np.array([f"site {code}" for code in codes]), keep, sum(sizes)


def test_agrees_with_the_published_formula(rng):
    values, site, keep, n = simulated(rng)
    learnt = fit_combat(values[:n], site[:n], keep[:n])
    expected = naive_combat(values[:n], site[:n], keep[:n], values, site, keep)
    harmonised, flags = learnt.apply(values, site, keep)
    assert (flags == ADJUSTED).all()
    np.testing.assert_allclose(harmonised, expected, rtol=0, atol=1e-6 * values.std())


def test_does_not_depend_on_the_units_of_values_and_covariates(rng):
    values, site, keep, n = simulated(rng)
    plain, _ = fit_combat(values[:n], site[:n], keep[:n]).apply(values, site, keep)
    scaled, moved = 1e-4 * values - 7, 365.25 * keep + 3
    again, _ = fit_combat(scaled[:n], site[:n], moved[:n]).apply(scaled, site, moved)
    np.testing.assert_allclose(again, 1e-4 * plain - 7, atol=1e-8)


def test_sites_agree_after_and_slopes_stay(rng):
    values, site, keep, n = simulated(rng, sizes=(400, 400), n_features=5, n_new=2000)
    harmonised, _ = fit_combat(values[:n], site[:n], keep[:n]).apply(values[n:], site[n:], keep[n:])

    def of_sites(table):
        design = np.column_stack([site[n:] == "site 0", site[n:] == "site 1", keep[n:]]).astype(float)
        found = np.linalg.lstsq(design, table, rcond=None)[0]
        left = table - design @ found
        return found, [left[site[n:] == name].std(axis=0) for name in ("site 0", "site 1")]

    before, spread_before = of_sites(values[n:])
    after, spread_after = of_sites(harmonised)
    gap_before, gap_after = (np.abs(found[0] - found[1]).max() / 3 for found in (before, after))
    assert gap_before > 1
    assert gap_after < 0.3
    assert np.abs(np.log(spread_before[0] / spread_before[1])).max() > 0.2
    assert np.abs(np.log(spread_after[0] / spread_after[1])).max() < 0.12
    np.testing.assert_allclose(after[2:], before[2:], atol=0.25)


def test_new_scans_change_nothing_of_each_other(rng):
    values, site, keep, n = simulated(rng)
    learnt = fit_combat(values[:n], site[:n], keep[:n])
    together, _ = learnt.apply(values, site, keep)
    for row in (0, n, n + 5):
        alone, _ = learnt.apply(values[[row]], site[[row]], keep[[row]])
        np.testing.assert_allclose(alone[0], together[row])


def test_unseen_and_one_subject_sites_are_left_as_they_are(rng):
    values, site, keep, n = simulated(rng)
    subjects = np.array([f"sub-{row}" for row in range(len(site))], dtype=object)
    lonely = site[:n] == "site 2"
    subjects[:n][lonely] = "the same person"
    learnt = fit_combat(values[:n], site[:n], keep[:n], subjects=subjects[:n])
    without = fit_combat(values[:n][~lonely], site[:n][~lonely], keep[:n][~lonely])
    assert learnt.alone == ("site 2",)
    assert "site 2" not in learnt.sites
    np.testing.assert_array_equal(learnt.shift, without.shift)
    names = np.array(["site 0", "site 2", "nowhere"])
    harmonised, flags = learnt.apply(values[:3], names, keep[:3])
    assert flags.tolist() == [ADJUSTED, ONE_SUBJECT, UNSEEN]
    np.testing.assert_array_equal(harmonised[1:], values[1:3])
    assert not np.allclose(harmonised[0], values[0])


def test_a_feature_without_spread_within_sites_is_moved_by_the_mean_alone(rng):
    values, site, keep, n = simulated(rng)
    values[:, 0], values[:, 1] = 5.0, np.where(site == "site 1", 4.0, 2.0)
    harmonised, _ = fit_combat(values[:n], site[:n], keep[:n]).apply(values, site, keep)
    np.testing.assert_allclose(harmonised[:, 0], 5.0)
    np.testing.assert_allclose(harmonised[:, 1], values[:n, 1].mean())
    others = fit_combat(values[:n, 2:], site[:n], keep[:n]).apply(values[:, 2:], site, keep)[0]
    np.testing.assert_allclose(harmonised[:, 2:], others)


def test_one_feature_is_not_shrunk(rng):
    values, site, _, n = simulated(rng, n_features=1)
    harmonised, _ = fit_combat(values[:n], site[:n]).apply(values[:n], site[:n])
    means = [harmonised[site[:n] == name].mean() for name in np.unique(site)]
    spreads = [harmonised[site[:n] == name].std(ddof=1) for name in np.unique(site)]
    np.testing.assert_allclose(means, values[:n].mean())
    np.testing.assert_allclose(spreads, spreads[0])


def test_small_sites_are_shrunk_more_than_large_ones(rng):
    values, site, keep, n = simulated(rng, sizes=(4, 400, 200), n_features=200)
    learnt = fit_combat(values[:n], site[:n], keep[:n])
    spread = np.log(learnt.variance).std(axis=1)
    own = (values[:n] - learnt.centre - (keep[:n] - learnt.keep_mean) @ learnt.slopes) / learnt.scale
    raw = np.array([np.log(own[site[:n] == name].var(axis=0, ddof=1)).std() for name in learnt.sites])
    assert spread[0] / raw[0] < 0.75 < 0.9 < spread[1] / raw[1]


def test_a_kept_covariate_that_equals_the_site_is_refused(rng):
    values, site, keep, n = simulated(rng)
    scanner = (site == "site 3").astype(float)
    for column in (scanner, scanner + keep[:, 1]):
        with pytest.raises(NotComparableError, match="explain a kept covariate"):
            fit_combat(values[:n], site[:n], np.column_stack([keep, column])[:n])
    twice = fit_combat(values[:n], site[:n], np.column_stack([keep, keep[:, 0], np.ones(len(keep))])[:n])
    once = fit_combat(values[:n], site[:n], keep[:n])
    np.testing.assert_allclose(twice.shift, once.shift, atol=1e-8)


def test_a_level_that_training_lacks_is_left_in(rng):
    values, site, keep, n = simulated(rng)
    keep[:n, 1] = 0.0
    learnt = fit_combat(values[:n], site[:n], keep[:n])
    np.testing.assert_allclose(learnt.slopes[1], 0.0, atol=1e-9)
    harmonised = [
        learnt.apply(values[n:], site[n:], np.column_stack([keep[n:, 0], np.full(len(values) - n, level)]))[0]
        for level in (0.0, 1.0)
    ]
    np.testing.assert_allclose(*harmonised)


def test_refuses_what_it_cannot_learn_from(rng):
    values, site, keep, n = simulated(rng)
    with pytest.raises(NotComparableError, match="1 of 1 sites"):
        fit_combat(values, np.full(len(values), "one"))
    with pytest.raises(NotComparableError, match="0 of"):
        fit_combat(values, np.arange(len(values)).astype(str))
    with pytest.raises(NotComparableError, match="too few: 8 scans"):
        fit_combat(values[:8], ["a", "b"] * 4, keep[:8])
    with pytest.raises(SettingError, match="Row 1 has no site"):
        fit_combat(values[:3], ["a", None, "b"])
    with pytest.raises(SettingError, match="What is kept has a missing"):
        fit_combat(values, site, np.where(np.arange(len(keep))[:, None] == 2, np.nan, keep))
    with pytest.raises(SettingError, match="Hand in the same columns"):
        fit_combat(values[:n], site[:n], keep[:n]).apply(values, site)
    with pytest.raises(SettingError, match="subjects were given"):
        fit_combat(values, site, keep, subjects=["x"])
