from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from nilatent.analysis.prediction.sets import (
    FeatureSet,
    check_sets,
    covariate_set,
    latent_set,
    region_set,
    volume_set,
)
from nilatent.errors import CohortError, LeakageError, SettingError
from nilatent.latents import make_latents

N = 20
FOLDS = np.arange(N) // 2 % 4


@pytest.fixture
def scans(rng):
    index = pd.Index([f"s{i:02d}" for i in range(N)], name="scan_id")
    subjects = np.repeat([f"p{i}" for i in range(N // 2)], 2)
    return pd.DataFrame({"subject_id": subjects, "age": rng.normal(70, 5, N), "sex": ["F", "M"] * 10}, index=index)


def encoded(rng, scans, fold, shape=(3,)):
    seen = fold != FOLDS
    values = rng.standard_normal((N, int(np.prod(shape))))
    part = np.where(seen, np.where(np.arange(N) // 2 % 5 == 0, "validation", "train"), "test")
    return make_latents(
        values, values, scan=list(scans.index), subject=list(scans["subject_id"]), subject_in_training=list(seen),
        part=list(part), model_hash="m", volumes_hash="v", latent_shape=shape,
    )  # fmt: skip


def test_latents_of_cross_fitted_models_pass(rng, scans):
    models = [encoded(rng, scans, fold).isel(scan=rng.permutation(N)) for fold in range(4)]
    found = latent_set(models, scans)
    check_sets([found], scans, FOLDS)
    assert found.grid == ()
    for fold in range(4):
        np.testing.assert_allclose(found.of_fold(fold), models[fold].sel(scan=list(scans.index))["mean"].values)
    assert latent_set([encoded(rng, scans, 0, (2, 1, 3, 2))] * 4, scans).grid == (2, 1, 3, 2)


def test_an_encoder_that_saw_test_subjects_is_a_leak(rng, scans):
    models = [encoded(rng, scans, (fold + 1) % 4) for fold in range(4)]
    with pytest.raises(LeakageError, match="fold 0 come from a model that has seen subject p0"):
        check_sets([latent_set(models, scans)], scans, FOLDS)


def test_another_scan_of_the_subject_is_a_leak_too(rng, scans):
    found = latent_set([encoded(rng, scans, fold) for fold in range(4)], scans)
    seen = found.seen.copy()
    seen[1, 3] = True
    with pytest.raises(LeakageError, match="subject p1"):
        check_sets([replace(found, seen=seen)], scans, FOLDS)


def test_a_subject_in_two_folds_is_a_leak(scans):
    with pytest.raises(LeakageError, match="p0 has scans in 2 folds"):
        check_sets([FeatureSet("x", (np.ones((N, 1)),), None, True)], scans, np.arange(N) % 4)


def test_supervised_latents_and_missing_scans_are_refused(rng, scans):
    models = [encoded(rng, scans, fold) for fold in range(4)]
    with pytest.raises(CohortError, match="lacks scan s00"):
        latent_set([*models[:3], models[3].isel(scan=slice(1, None))], scans)
    models[2].attrs["supervised"] = "group"
    with pytest.raises(CohortError, match="Labels shaped"):
        latent_set(models, scans)


def test_shapes_that_do_not_fit_are_refused(scans):
    plain = FeatureSet("x", (np.ones((N, 2)),), None, True)
    for wrong, words in (
        (replace(plain, by_fold=(np.ones((N, 2)),) * 3), "every fold"),
        (replace(plain, by_fold=(np.ones((N - 1, 2)),)), "every fold"),
        (replace(plain, seen=np.zeros((2, N), dtype=bool)), "'seen'"),
        (replace(plain, columns=("a",)), "1 columns for 2"),
    ):
        with pytest.raises(SettingError, match=words):
            check_sets([wrong], scans, FOLDS)
    with pytest.raises(SettingError, match="name of its own"):
        check_sets([plain, plain], scans, FOLDS)
    with pytest.raises(SettingError, match="without a gap"):
        check_sets([plain], scans, FOLDS + 1)


def test_baselines_are_columns_of_the_cohort(scans):
    found = covariate_set(scans, ["age", "sex"])
    assert found.columns == ("age", "sex")
    np.testing.assert_allclose(found.by_fold[0][:, 0], scans["age"])
    np.testing.assert_array_equal(found.by_fold[0][:, 1], scans["sex"] == "M")
    assert volume_set(scans) is None
    known = scans.assign(gm_ml=np.arange(N) + 500.0, csf_ml=np.r_[np.nan, np.ones(N - 1)])
    assert volume_set(known).columns == ("gm_ml",)
    regions = pd.DataFrame({"a": np.arange(N)}, index=scans.index[::-1])
    np.testing.assert_array_equal(region_set(regions, scans).by_fold[0][:, 0], np.arange(N)[::-1])


def test_a_scan_without_a_feature_is_not_usable():
    values = np.ones((4, 2))
    values[2, 1] = np.nan
    assert FeatureSet("x", (np.ones((4, 2)), values), None, True).finite.tolist() == [True, True, False, True]
