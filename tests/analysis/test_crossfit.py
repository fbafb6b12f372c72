import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from nilatent.analysis import discriminability as disc
from nilatent.analysis import stats
from nilatent.analysis.contrast import Comparison
from nilatent.analysis.crossfit import CrossFit, cross_fit, crossfit_association
from nilatent.analysis.lrcp.profile import LrcpConfig, profile
from nilatent.errors import CohortError
from nilatent.latents import make_latents


def models(rng, n=24, n_models=3, n_latent=2):
    index = pd.Index([f"sub-{i:02d}" for i in range(n)])
    found = []
    for number in range(n_models):
        new = np.arange(n) % n_models == number
        z = rng.normal(size=(n, n_latent))
        found.append(
            make_latents(
                z, np.zeros_like(z), scan=index, subject=index, subject_in_training=~new,
                part=np.where(new, "test", "train"), model_hash="", volumes_hash="",
            )
        )  # fmt: skip
    return found, index


def test_latents_follow_the_scans_and_each_scan_its_model(rng):
    folds, index = models(rng)
    order = rng.permutation(24)
    found = cross_fit([latents.isel(scan=rng.permutation(24)) for latents in folds], index[order])
    np.testing.assert_array_equal(found.folds, order % 3)
    np.testing.assert_array_equal(found.latents[1], folds[1]["mean"].values[order])
    some = found.rows(np.flatnonzero(found.folds != 1))
    np.testing.assert_array_equal(some.folds, (order[found.folds != 1] % 3) // 2)
    np.testing.assert_array_equal(some.latents[1], found.latents[2][found.folds != 1])
    np.testing.assert_array_equal(found.dummies, np.eye(3)[found.folds][:, 1:])


def test_what_is_not_cross_fitted_is_refused_in_words(rng):
    folds, index = models(rng)
    with pytest.raises(CohortError, match="1 cross-fitted model was given"):
        cross_fit(folds[:1], index)
    with pytest.raises(CohortError, match="sub-01 is new to 0 of 2"):
        cross_fit([folds[0], folds[2]], index)
    with pytest.raises(CohortError, match="sub-01 is new to 2 of 4"):
        cross_fit([*folds, folds[1]], index)
    with pytest.raises(CohortError, match="model 1 and the cohort do not hold the same scans"):
        cross_fit([folds[0], folds[1].isel(scan=slice(1, None)), folds[2]], index)
    folds[2].attrs["supervised"] = "group"
    with pytest.raises(CohortError, match="Labels shaped the latents of cross-fitted model 2"):
        cross_fit(folds, index)


def test_the_association_equals_refitting_in_every_permutation(rng):
    n, folds = 30, np.arange(30) % 3
    latents = tuple(rng.normal(size=(n, 4)) for _ in range(3))
    x, c = rng.normal(size=(n, 3)), rng.normal(size=(n, 1))
    x[:, 0] += sum(z[:, 0] * (folds != 9) for z in latents)
    crossed = CrossFit(latents, folds)
    confounds = np.hstack([c, crossed.dummies])
    orders = stats.permutations(n, 50, seed=0, blocks=folds)

    def statistic(values):
        left = stats.residualise(values, confounds)
        left /= np.linalg.norm(left, axis=0)
        total = np.zeros(3)
        for number, z in enumerate(latents):
            train, test = np.flatnonzero(folds != number), folds == number
            own = disc.unit_scale(stats.residualise(z, confounds, fit_rows=train), train)
            # Confounds are out of the regions over all scans, so only that part of the latents that they leave counts.
            seen, new = (stats.residualise(np.where(m[:, None], own, 0), confounds) for m in (~test, test))
            gram = own[train].T @ own[train] / len(train) + 0.1 * np.eye(4)
            total += ((new @ np.linalg.solve(gram, seen.T @ left)) * left).sum(axis=0)
        return total

    residual = stats.residualise(x, confounds)
    residual /= np.linalg.norm(residual, axis=0)
    observed, drawn = statistic(x), np.array([statistic(residual[order]) for order in orders])
    found = crossfit_association(crossed, x, orders, confounds=confounds)
    np.testing.assert_allclose(found.p_value, (1 + (drawn >= observed).sum(axis=0)) / 51)
    np.testing.assert_allclose(found.p_fwe, (1 + (drawn.max(axis=1)[:, None] >= observed).sum(axis=0)) / 51)
    np.testing.assert_allclose(found.share / observed, np.full(3, found.share[0] / observed[0]), rtol=1e-4)


def test_the_association_is_calibrated_and_a_readout_held_fixed_is_not(rng, monkeypatch):
    monkeypatch.setattr(disc, "PENALTIES", (1.0,))
    refitted, fixed = [], []
    for seed in range(250):
        folds = np.arange(40) % 2
        # Models that agree: what one fold learns from the other is what the other learns from it.
        z, x = rng.normal(size=(40, 3)), rng.normal(size=(40, 1))
        crossed = CrossFit((z, 2 * z), folds)
        orders = stats.permutations(40, 99, seed=seed, blocks=folds)
        refitted.append(crossfit_association(crossed, x, orders, confounds=crossed.dummies).p_fwe[0] <= 0.05)
        readout = disc.readout_scores(crossed.latents, x, None, folds)[0]
        left = stats.residualise(x, crossed.dummies)[:, 0]
        fixed.append((1 + (left[orders] @ readout[:, 0] >= left @ readout[:, 0]).sum()) / 100 <= 0.05)
    assert binomtest(sum(refitted), 250, 0.05).pvalue > 0.01
    assert np.mean(fixed) > 0.07


def test_turning_the_latents_of_each_model_changes_nothing_and_pooling_them_would(rng):
    z, folds = rng.normal(size=(60, 3)), np.arange(60) % 3
    x = z @ rng.normal(size=(3, 4)) + 0.5 * rng.normal(size=(60, 4))
    turns = [np.linalg.qr(rng.normal(size=(3, 3)))[0] * rng.uniform(0.1, 9) for _ in range(3)]
    turned = CrossFit(tuple(z @ turn for turn in turns), folds)
    orders = stats.permutations(60, 199, seed=0, blocks=folds)
    found = crossfit_association(turned, x, orders, confounds=turned.dummies)
    assert (found.p_fwe == 1 / 200).all()
    _, r2 = disc.readout_scores(turned.latents, x, None, folds)
    assert r2.min() > 0.6
    pooled = np.stack(turned.latents)[folds, np.arange(60)]
    assert disc.readout_scores(pooled, x, None, disc.label_free_folds(60, 5, seed=0))[1].max() < 0.6


@pytest.fixture
def asked(rng):
    """Regions, latents of four models, and a group that is more frequent in some folds than in others."""
    folds, z = np.arange(120) % 4, rng.normal(size=(120, 3))
    x = z @ rng.normal(size=(3, 5)) + 0.5 * rng.normal(size=(120, 5))
    # What a model has not seen it places elsewhere, each model in its own way.
    shifts = [np.where((folds == k)[:, None], 3 * (k - 1.5) * np.ones(3), 0) for k in range(4)]
    is_case = rng.uniform(size=120) < np.array([0.2, 0.4, 0.6, 0.8])[folds]
    site = rng.choice(["x", "y"], 120)
    comparison = Comparison(np.arange(120), is_case, "A", "B", (site == "x")[:, None] * 1.0, site, {})
    return CrossFit(tuple(z + shift for shift in shifts), folds), z, x, comparison


def test_where_a_model_places_what_it_has_not_seen_is_no_difference_between_groups(asked):
    crossed, z, x, comparison = asked
    config = LrcpConfig(n_permutations=199, n_permutations_linked=99)
    found = profile(z, x, comparison, config, unadjusted=comparison.confounds, crossed=crossed)
    assert found.readout_p.min() > 0.05
    assert found.linked.p_fwe.min() > 0.05
    targets, orders = disc.balanced_targets(comparison.is_case), stats.permutations(120, 199, seed=0)
    without = stats.permuted_correlation(found.readout, targets, orders, confounds=comparison.confounds)
    assert without.p_fwe.max() <= 0.05


def test_permutations_stay_within_fold_and_site_and_for_the_centred_test_within_class(asked):
    crossed, z, x, comparison = asked
    config = LrcpConfig(n_permutations=199, n_permutations_linked=19, seed=3)
    found = profile(z, 0.1 * x + np.random.default_rng(0).normal(size=x.shape), comparison, config,
                    unadjusted=comparison.confounds[:, :0], crossed=crossed)  # fmt: skip
    x = 0.1 * x + np.random.default_rng(0).normal(size=x.shape)
    blocks = [f"{site}/{fold}" for site, fold in zip(comparison.blocks, crossed.folds, strict=True)]
    within = [f"{block}/{case}" for block, case in zip(blocks, comparison.is_case, strict=True)]
    confounds = np.hstack([comparison.confounds, crossed.dummies])
    orders, centred = (stats.permutations(120, 199, seed=s, blocks=b) for s, b in ((3, blocks), (4, within)))
    expected = crossfit_association(crossed, x, orders, confounds=confounds)
    np.testing.assert_array_equal(found.joint_p, expected.p_fwe)
    np.testing.assert_array_equal(found.joint_single_p, expected.p_value)
    assert 0.01 < expected.p_fwe.min() < 1
    with_class = np.column_stack([confounds, comparison.is_case])
    np.testing.assert_array_equal(
        found.joint_centred_p, crossfit_association(crossed, x, centred, confounds=with_class).p_fwe
    )
    np.testing.assert_array_equal(
        found.joint_unadjusted_p, crossfit_association(crossed, x, orders, confounds=crossed.dummies).p_fwe
    )
