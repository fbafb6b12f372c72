"""The error rate of LRCP where it has not one pair of groups and one model: contrasts, numbers, cross-fitted models."""

import numpy as np
import pytest
from scipy.stats import binomtest

from nilatent.analysis.contrast import Comparison, Gradient
from nilatent.analysis.crossfit import CrossFit
from nilatent.analysis.lrcp.profile import LrcpConfig, Profile, profile
from nilatent.analysis.lrcp.table import over_contrasts

pytestmark = [pytest.mark.slow, pytest.mark.calibration]
N, N_REGIONS, N_LATENT, N_COHORTS = 60, 16, 6, 400


def images(rng):
    """Voxels and regions that share factors."""
    x = rng.normal(size=(N, 4)) @ rng.normal(size=(4, N_REGIONS)) + rng.normal(size=(N, N_REGIONS))
    voxels = np.repeat(x, 4, axis=1) + rng.normal(size=(N, 4 * N_REGIONS))
    return voxels, voxels.reshape(N, N_REGIONS, 4).mean(axis=2)


def components(voxels, seen):
    centred = voxels - voxels[seen].mean(axis=0)
    return centred @ np.linalg.svd(centred[seen], full_matrices=False)[2][:N_LATENT].T


def called(found: Profile) -> bool:
    return bool((np.maximum(found.joint_p, found.readout_p) <= 0.05).any())


def settings(seed):
    return LrcpConfig(n_permutations=199, n_permutations_linked=19, n_folds=5, seed=seed)


def assert_at_most_five_percent(found):
    assert binomtest(int(np.sum(found)), len(found), 0.05, alternative="greater").pvalue > 0.01, np.mean(found)


def test_a_number_without_relation_is_followed_in_at_most_five_percent():
    found = []
    for seed in range(N_COHORTS):
        rng = np.random.default_rng(seed)
        voxels, regions = images(rng)
        age = rng.normal(size=(N, 1))
        # The number depends on age as the regions do, and age is a confound.
        values, regions = rng.normal(size=N) + 2 * age[:, 0], regions + age
        asked = Gradient(np.arange(N), values, "mmse", age, None, {})
        latents = components(voxels + age, np.arange(N))
        found.append(called(profile(latents, regions, asked, settings(seed), unadjusted=age)))
    assert_at_most_five_percent(found)


def test_contrasts_without_effect_are_called_in_at_most_five_percent_beside_one_with_effect():
    found = []
    for seed in range(N_COHORTS):
        rng = np.random.default_rng(seed)
        voxels, _ = images(rng)
        group = np.repeat([0, 1, 2], N // 3)
        # The first group differs in mean and in spread; the other two do not differ.
        voxels[group == 0] = 2 * voxels[group == 0] - 1
        regions, false = voxels.reshape(N, N_REGIONS, 4).mean(axis=2), []
        for case, reference in ((0, 2), (1, 2)):
            rows = np.flatnonzero(np.isin(group, (case, reference)))
            asked = Comparison(rows, group[rows] == case, "A", "B", np.empty((len(rows), 0)), None, {})
            latents = components(voxels, np.arange(N))[rows]
            result = profile(latents, regions[rows], asked, settings(seed), unadjusted=asked.confounds)
            false.append(called(over_contrasts(result, 2)))
        found.append(false[1])
    assert_at_most_five_percent(found)
    assert np.mean(found) < 0.05


@pytest.mark.parametrize("site", [False, True])
def test_cross_fitted_models_call_a_region_in_at_most_five_percent(site):
    found = []
    for seed in range(N_COHORTS):
        rng = np.random.default_rng(seed)
        voxels, _ = images(rng)
        sites = rng.integers(0, 2, N)
        voxels[:, :20] += 2 * site * sites[:, None]
        regions = voxels.reshape(N, N_REGIONS, 4).mean(axis=2)
        # Cases are more frequent at one site where sites differ.
        is_case = rng.uniform(size=N) < np.where(sites & site, 0.7, 0.4)
        folds = rng.permutation(N) % 5
        crossed = CrossFit(tuple(components(voxels, np.flatnonzero(folds != k)) for k in range(5)), folds)
        confounds = sites[:, None] * 1.0 if site else np.empty((N, 0))
        asked = Comparison(np.arange(N), is_case, "A", "B", confounds, sites.astype(str) if site else None, {})
        latents = components(voxels, np.arange(N))
        found.append(called(profile(latents, regions, asked, settings(seed), unadjusted=confounds, crossed=crossed)))
    assert_at_most_five_percent(found)
