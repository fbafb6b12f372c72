from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from nilatent.atlas import RegionWeights
from nilatent.crossfit import errors_of, fit_fold, fold_parts, read_folds, regional_misses_of
from nilatent.encode import reconstructions
from nilatent.errors import LeakageError, SettingError
from nilatent.models import ModelConfig
from nilatent.training.checkpoint import load_model
from nilatent.training.config import TrainConfig
from nilatent.volumes import Grid, Volumes, volumes_in_memory, voxel_pca

SHAPE = (9, 11, 7)
SETTINGS = (ModelConfig(n_latent=2, channels=(4, 4), curve=False), TrainConfig(n_epochs=0))


@pytest.fixture
def parts() -> pd.DataFrame:
    """Fifteen subjects, three of them with a second visit, in three folds."""
    subjects = [f"s{index:02d}" for index in range(15)] + ["s00", "s01", "s02"]
    ids = [f"{subject}_{visit}" for visit, subject in enumerate(subjects)]
    fold = {subject: index % 3 for index, subject in enumerate(subjects[:15])}
    return pd.DataFrame(
        {"subject_id": subjects, "part": "train", "fold": [fold[subject] for subject in subjects]},
        index=pd.Index(ids, name="scan_id"),
    )


@pytest.fixture
def volumes(rng: np.random.Generator, parts: pd.DataFrame) -> Volumes:
    scans = pd.DataFrame({"subject_id": parts["subject_id"], "dataset": "one"}, index=parts.index)
    array = rng.standard_normal((18, 2)) @ rng.standard_normal((2, np.prod(SHAPE)))
    array = array.reshape(18, *SHAPE) + 0.1 * rng.standard_normal((18, *SHAPE))
    return volumes_in_memory(
        array, mask=rng.random(SHAPE) > 0.4, grid=Grid(SHAPE, np.diag([4.0, 4.0, 4.0, 1.0])), scans=scans
    )


def fitted(volumes: Volumes, parts: pd.DataFrame, out: Path) -> None:
    for fold in range(3):
        of_fold = fold_parts(parts, fold, validation_fraction=0.15, seed=0)
        fit_fold(volumes, of_fold, fold, *SETTINGS, out / str(fold), scans=volumes.scans, preparation={}, nuisances=())


def test_every_subject_is_held_out_once_and_whole(parts: pd.DataFrame) -> None:
    folds = [fold_parts(parts, fold, validation_fraction=0.15, seed=0) for fold in range(3)]
    held_out = pd.concat([one[one["part"] == "test"] for one in folds])
    assert sorted(held_out.index) == sorted(parts.index)
    for one in folds:
        assert (one.groupby("subject_id")["part"].nunique() == 1).all()
        assert one.drop_duplicates("subject_id")["part"].value_counts().to_dict() == {
            "train": 8,
            "test": 5,
            "validation": 2,
        }
        assert one.index.equals(parts.index)


def test_order_of_the_rows_decides_nothing_and_the_seed_does(parts: pd.DataFrame) -> None:
    one = fold_parts(parts, 0, validation_fraction=0.15, seed=0)
    other = fold_parts(parts.iloc[::-1], 0, validation_fraction=0.15, seed=0)
    pd.testing.assert_frame_equal(one, other.loc[one.index])
    assert any(not one.equals(fold_parts(parts, 0, validation_fraction=0.15, seed=seed)) for seed in (1, 2))


def test_straddling_and_empty_folds_are_refused(parts: pd.DataFrame) -> None:
    with pytest.raises(SettingError, match="Fold 3 holds 0 of 15"):
        fold_parts(parts, 3, validation_fraction=0.15, seed=0)
    straddling = parts.assign(fold=np.arange(18) % 3)
    straddling.loc["s00_15", "fold"] = 1
    with pytest.raises(LeakageError, match="s00 is in more than one fold"):
        fold_parts(straddling, 0, validation_fraction=0.15, seed=0)


def test_errors_are_those_of_a_pca_that_has_not_seen_the_subject(
    volumes: Volumes, parts: pd.DataFrame, tmp_path: Path
) -> None:
    fitted(volumes, parts, tmp_path)
    latents, errors = read_folds(tmp_path, 3, reduce=lambda one: one)
    assert sorted(errors.index) == sorted(parts.index)
    for fold in range(3):
        of_fold = fold_parts(parts, fold, validation_fraction=0.15, seed=0)
        pca = voxel_pca(volumes, volumes.rows(list(of_fold.index[of_fold["part"] == "train"])), 2, seed=0)
        ids = list(of_fold.index[of_fold["part"] == "test"])
        x = volumes.masked(volumes.rows(ids))
        naive = ((x - pca.reconstruct(x)) ** 2).mean(axis=1)
        np.testing.assert_allclose(errors.loc[ids, "error"], naive, rtol=1e-3)
        assert (errors.loc[ids, "fold"] == fold).all()
        seen = latents[fold]["subject_in_training"].to_series()
        assert not seen[ids].any()
        assert seen.drop(ids).all()
    model = load_model(tmp_path / "0" / "model")
    some = volumes.rows(list(errors.index[errors["fold"] == 0]))
    again = errors_of(model, volumes, some[::-1], 0, scans=volumes.scans)
    np.testing.assert_allclose(again["error"], errors.loc[again.index, "error"], rtol=1e-5)


def test_regional_errors_are_means_over_the_voxels_of_a_region(
    volumes: Volumes, parts: pd.DataFrame, tmp_path: Path
) -> None:
    fitted(volumes, parts, tmp_path)
    model = load_model(tmp_path / "0" / "model")
    rows = np.array([7, 2, 11])
    n_voxels = int(volumes.mask.sum())
    cover = np.zeros((3, n_voxels))
    cover[0, : n_voxels // 3], cover[1, n_voxels // 3 :], cover[2, 4:9] = 1, 1, [0.5, 1, 1, 1, 0.25]
    names = ["first", "rest", "few"]
    nothing = pd.DataFrame(columns=["label", "name", "n_voxels", "reason"])
    weights = RegionWeights(csr_matrix(cover), np.arange(1, 4), names, nothing)
    found = regional_misses_of(model, volumes, rows, weights, scans=volumes.scans, squared=True)
    whole = errors_of(model, volumes, rows, 0, scans=volumes.scans)
    assert list(found.index) == list(volumes.scans.index[rows])
    share = (n_voxels // 3) / n_voxels
    np.testing.assert_allclose(share * found["first"] + (1 - share) * found["rest"], whole["error"], rtol=1e-6)
    _, drawn = next(reconstructions(model, volumes, rows[:1], scans=volumes.scans))
    missed = (volumes.masked(rows[:1])[0] - drawn[0]) ** 2
    np.testing.assert_allclose(found["few"].iloc[0], np.average(missed[4:9], weights=[0.5, 1, 1, 1, 0.25]), rtol=1e-5)


def test_signed_misses_are_regional_means_minus_those_of_the_reconstruction(
    volumes: Volumes, parts: pd.DataFrame, tmp_path: Path
) -> None:
    fitted(volumes, parts, tmp_path)
    model = load_model(tmp_path / "0" / "model")
    n_voxels = int(volumes.mask.sum())
    cover = np.zeros((1, n_voxels))
    cover[0, : n_voxels // 4] = 1
    nothing = pd.DataFrame(columns=["label", "name", "n_voxels", "reason"])
    weights = RegionWeights(csr_matrix(cover), np.array([1]), ["part"], nothing)
    rows = np.array([3, 0])
    found = regional_misses_of(model, volumes, rows, weights, scans=volumes.scans, squared=False)
    _, drawn = next(reconstructions(model, volumes, rows, scans=volumes.scans))
    naive = (volumes.masked(rows) - drawn)[:, : n_voxels // 4].mean(axis=1)
    np.testing.assert_allclose(found["part"], naive, atol=1e-6)
    assert (found["part"] < 0).any() or (found["part"] > 0).any()


def test_an_error_by_a_model_that_has_seen_the_subject_is_refused(
    volumes: Volumes, parts: pd.DataFrame, tmp_path: Path
) -> None:
    fitted(volumes, parts, tmp_path)
    path = tmp_path / "1" / "errors.tsv"
    path.write_text(path.read_text() + "s00_0\ts00\t1\t0.5\n")
    with pytest.raises(LeakageError, match="more than one fold"):
        read_folds(tmp_path, 3, reduce=lambda one: one)
    first = tmp_path / "0" / "errors.tsv"
    first.write_text("".join(line for line in first.open() if not line.startswith("s00_0\t")))
    with pytest.raises(LeakageError, match="fold 1 has seen the subject of s00_0"):
        read_folds(tmp_path, 3, reduce=lambda one: one)
