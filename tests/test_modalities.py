import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tests.joint_run import N_SCANS, N_WITHOUT_WM, write_run

from nilatent.analysis.prediction.sets import check_sets
from nilatent.cohort import load_cohort
from nilatent.config import read_config
from nilatent.crossfit import fold_parts
from nilatent.errors import LeakageError
from nilatent.feature_sets import image_sets, joint_set
from nilatent.latents import read_latents
from nilatent.modalities import joint_stages, modality_names, modality_stages, open_modalities, told
from nilatent.pools import read_split, scores_of
from nilatent.volumes import open_volumes

FOLDS = 2


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    out = tmp_path_factory.mktemp("run") / "out"
    return out, write_run(out, np.random.default_rng(4), folds=FOLDS)


def pools_of(out: Path, **asked):
    """What feature sets look at."""
    config, parts = read_config(out / "study.toml", overrides=asked), read_split(out)
    split = config.split
    return SimpleNamespace(
        out=out,
        config=config,
        parts=parts,
        prepared=load_cohort(out / "prepared"),
        fold_parts=lambda fold: fold_parts(parts, fold, validation_fraction=split.validation_fraction, seed=split.seed),
    )


def test_names_and_stages_follow_the_study():
    assert modality_names(read_config()) == ()
    assert joint_stages(read_config(overrides={"folds": 3})) == []
    some = {"study.modalities.flair": "FLAIR", "study.tables.scores": ["BDI"], "recipe.target": "t1w"}
    assert modality_names(read_config(overrides=some)) == ("t1w", "flair", "scores")
    assert modality_stages(read_config(overrides=some)) == ["modality flair"]
    assert joint_stages(read_config(overrides=some)) == ["multimodal"]
    assert joint_stages(read_config(overrides=some | {"folds": 2})) == ["fold 0 multimodal", "fold 1 multimodal"]


def test_modalities_are_those_of_the_folder(made):
    pools = pools_of(made[0])
    found = open_modalities(made[0], pools.config, pools.prepared)
    assert list(found) == ["gm", "wm", "scores"]
    assert len(found["wm"].scans) == N_SCANS - N_WITHOUT_WM
    assert list(found["scores"].columns) == ["score", "mood"]
    assert open_modalities(made[0], read_config(), pools.prepared) == {}
    words = told(found, pools.parts, n_models=3)
    assert f"wm ({N_SCANS - N_WITHOUT_WM} of {N_SCANS} scans" in words
    assert "scores (39 of 40 scans, 2 columns)" in words
    assert words.startswith("3 models")


def test_joint_latents_of_held_out_scans_know_the_shared_cause(made):
    out, shared = made
    pools, parts = pools_of(out), read_split(out)
    scans, folds = pools.prepared.scans, parts["fold"].to_numpy()
    joint = joint_set(pools, scans, n_folds=FOLDS)
    check_sets([joint], scans, folds)
    for fold in range(FOLDS):
        held_out = folds == fold
        assert abs(np.corrcoef(joint.of_fold(fold)[held_out, 0], shared[held_out])[0, 1]) > 0.8
    assert "wm (35 of 40 scans), scores (39 of 40 scans)" in read_latents(out / "multimodal").attrs["caveat"]
    # The other way round each model has seen whom it describes.
    with pytest.raises(LeakageError, match=r"'joint \(gm, wm, scores\)' of fold"):
        check_sets([joint], scans, 1 - folds)
    # Without folds the study's own model describes all, and may be asked about its test part alone.
    test = (parts["part"] == "test").to_numpy()
    own, single = pools_of(out, folds=0), np.arange(len(scans)) % 3
    check_sets([joint_set(own, scans[test], n_folds=3)], scans[test], np.arange(test.sum()) % 3)
    with pytest.raises(LeakageError):
        check_sets([joint_set(own, scans, n_folds=3)], scans, single)
    plain = pools_of(out)
    plain.config = read_config()
    assert joint_set(plain, scans, n_folds=FOLDS) is None


def test_components_of_further_images_are_fitted_on_the_training_scans_of_the_fold(made):
    out, _ = made
    pools, parts = pools_of(out), read_split(out)
    scans, folds = pools.prepared.scans, parts["fold"].to_numpy()
    latents = [read_latents(out / "folds" / str(fold) / "multimodal") for fold in range(FOLDS)]
    (wm,) = image_sets(pools, scans, latents)
    check_sets([wm], scans, folds)
    assert wm.name == "wm"
    assert (wm.finite == np.r_[np.zeros(N_WITHOUT_WM, dtype=bool), np.ones(N_SCANS - N_WITHOUT_WM, dtype=bool)]).all()
    volumes = open_volumes(out / "modalities" / "wm")
    for fold in range(FOLDS):
        of_fold, width = pools.fold_parts(fold), latents[fold].sizes["latent"]
        x = volumes.masked(np.arange(len(volumes.scans))).astype(np.float64)
        train = (of_fold["part"] == "train").loc[volumes.scans.index].to_numpy()
        x -= x[train].mean(axis=0)
        naive = x @ np.linalg.svd(x[train], full_matrices=False)[2][:width].T
        np.testing.assert_allclose(np.abs(wm.of_fold(fold)[wm.finite]), np.abs(naive), atol=1e-2)
        assert (wm.seen[fold] == (of_fold["part"] == "train")).all()
    with pytest.raises(LeakageError):
        check_sets([wm], scans, 1 - folds)
    # Without folds one model stands for all, and the scans that it has not seen are judged.
    single = pools_of(out, folds=0)
    test = scans[(parts["part"] == "test").to_numpy()]
    (alone,) = image_sets(single, test, [read_latents(out / "multimodal")] * 3)
    check_sets([alone], test, np.arange(len(test)) % 3)
    width = latents[0].sizes["latent"]
    wanted = scores_of(volumes, width, parts, seed=0).reindex(test.index).to_numpy()
    np.testing.assert_array_equal(alone.of_fold(2), wanted)


def test_a_joint_fold_that_is_missing_is_an_error(made, tmp_path):
    own = shutil.copytree(made[0], tmp_path / "own")
    shutil.rmtree(own / "folds" / "1")
    with pytest.raises(Exception, match="latents"):
        joint_set(pools_of(own), load_cohort(own / "prepared").scans, n_folds=FOLDS)
