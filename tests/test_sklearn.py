import pickle
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_val_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.utils import estimator_checks

from nilatent.cohort import Cohort
from nilatent.errors import GridError, SettingError
from nilatent.sklearn import BrainAutoencoder
from nilatent.training.checkpoint import load_model
from nilatent.training.config import TrainConfig

SHAPE = (15, 17, 13)
AFFINE = np.diag([4.0, 4.0, 4.0, 1.0])
QUICK = {"n_latent": 3, "channels": (4, 4), "n_epochs": 2}


@pytest.fixture(scope="module")
def mask() -> np.ndarray:
    axes = np.meshgrid(*[np.linspace(-1, 1, side) for side in SHAPE], indexing="ij")
    return sum(axis**2 for axis in axes) < 0.9


@pytest.fixture(scope="module")
def maps(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Twenty-four maps made of three patterns, and a group that follows the first."""
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((24, 3))
    patterns = np.array([np.roll(np.linspace(-1, 1, SHAPE[0])[:, None, None], 3 * k, axis=0) for k in range(3)])
    array = np.einsum("nk,kxyz->nxyz", scores, np.broadcast_to(patterns, (3, SHAPE[0], 1, 1)))
    array = np.broadcast_to(array, (24, *SHAPE)) * np.array([1.0, 0.5, 0.25]).sum() + 0.05 * rng.standard_normal(
        (24, *SHAPE)
    )
    return array.astype(np.float32) * mask, (scores[:, 0] > 0).astype(int)


@pytest.fixture(scope="module")
def mask_img(mask: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mask") / "mask.nii.gz"
    nib.save(nib.Nifti1Image(mask.astype(np.uint8), AFFINE), path)
    return path


@pytest.fixture(scope="module")
def paths(maps: tuple[np.ndarray, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("maps")
    made = [folder / f"map-{number:02d}.nii.gz" for number in range(len(maps[0]))]
    for path, volume in zip(made, maps[0], strict=True):
        nib.save(nib.Nifti1Image(volume, AFFINE), path)
    return made


@pytest.fixture(scope="module")
def x(maps: tuple[np.ndarray, np.ndarray], mask: np.ndarray) -> np.ndarray:
    return maps[0][:, mask]


@pytest.fixture
def encoder(mask_img: Path) -> BrainAutoencoder:
    return BrainAutoencoder(**QUICK, mask_img=mask_img)


@pytest.fixture(scope="module")
def fitted(mask_img: Path, x: np.ndarray) -> BrainAutoencoder:
    return BrainAutoencoder(**QUICK, mask_img=mask_img).fit(x)


def test_a_clone_has_the_settings_and_nothing_learned(fitted: BrainAutoencoder) -> None:
    copy = clone(fitted)
    assert copy.get_params() == fitted.get_params()
    assert not hasattr(copy, "model_files_")


def test_settings_are_read_and_set(encoder: BrainAutoencoder) -> None:
    encoder.set_params(n_latent=5, anchor="mean")
    assert encoder.get_params()["n_latent"] == 5
    assert encoder.get_params()["anchor"] == "mean"
    with pytest.raises(ValueError, match="Invalid parameter"):
        encoder.set_params(latents=5)


def test_nothing_is_given_before_it_is_fitted(encoder: BrainAutoencoder, x: np.ndarray) -> None:
    for call in (encoder.transform, encoder.inverse_transform, encoder.score):
        with pytest.raises(NotFittedError):
            call(x)
    with pytest.raises(NotFittedError):
        encoder.get_feature_names_out()
    with pytest.raises(NotFittedError):
        encoder.save(Path("nowhere"))


def test_latents_tell_what_the_maps_are_made_of(
    fitted: BrainAutoencoder, x: np.ndarray, maps: tuple[np.ndarray, np.ndarray]
) -> None:
    z = fitted.transform(x)
    assert z.shape == (24, 3)
    assert z.dtype == np.float64
    drawn = fitted.inverse_transform(z)
    assert drawn.shape == x.shape
    left = np.square(x - drawn).mean()
    assert left < 0.05 * np.square(x - x.mean(axis=0)).mean()
    assert fitted.score(x) == pytest.approx(-left, rel=1e-4)


def test_arrays_paths_images_and_a_cohort_are_the_same_maps(
    fitted: BrainAutoencoder, x: np.ndarray, paths: list[Path], encoder: BrainAutoencoder
) -> None:
    expected = fitted.transform(x)
    scans = pd.DataFrame({"subject_id": [path.name for path in paths], "path": [str(path) for path in paths]})
    for given in (paths, [str(path) for path in paths], [nib.load(path) for path in paths], Cohort(scans)):
        np.testing.assert_allclose(fitted.transform(given), expected, atol=1e-5)
    of_paths = encoder.fit(paths)
    np.testing.assert_allclose(of_paths.transform(x), expected, atol=1e-5)
    images = of_paths.inverse_transform(expected[:2])
    assert [image.shape for image in images] == [SHAPE, SHAPE]
    np.testing.assert_allclose(images[0].affine, AFFINE)


def test_maps_on_another_grid_are_brought_to_the_mask(
    fitted: BrainAutoencoder, maps: tuple[np.ndarray, np.ndarray]
) -> None:
    fine = np.repeat(np.repeat(np.repeat(maps[0][0], 2, axis=0), 2, axis=1), 2, axis=2)
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = -1.0
    found = fitted.transform([nib.Nifti1Image(fine, affine)])
    np.testing.assert_allclose(found, fitted.transform([nib.Nifti1Image(maps[0][0], AFFINE)]), atol=0.02)


def test_a_row_is_the_same_alone_and_among_others(fitted: BrainAutoencoder, x: np.ndarray) -> None:
    alone = np.vstack([fitted.transform(row[None]) for row in x[:5]])
    np.testing.assert_allclose(alone, fitted.transform(x)[:5], atol=1e-5)


def test_fitting_again_forgets_and_the_same_seed_repeats(encoder: BrainAutoencoder, x: np.ndarray) -> None:
    first = encoder.set_params(n_epochs=1).fit(x).transform(x)
    other = encoder.fit(x[:12] * 2.0).transform(x)
    np.testing.assert_array_equal(encoder.fit(x).transform(x), first)
    assert np.abs(other - first).max() > 0.01
    assert np.abs(encoder.set_params(random_state=1).fit(x).transform(x) - first).max() > 1e-4


def test_it_survives_the_way_to_another_process(fitted: BrainAutoencoder, x: np.ndarray) -> None:
    assert all(isinstance(content, bytes) for content in fitted.model_files_.values())
    back = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(back.transform(x), fitted.transform(x))


@pytest.mark.slow
def test_a_search_in_two_processes_finds_the_best(encoder: BrainAutoencoder, x: np.ndarray) -> None:
    search = GridSearchCV(encoder, {"n_latent": [1, 3]}, cv=2, n_jobs=2).fit(x)
    assert search.best_params_ == {"n_latent": 3}
    assert search.transform(x[:2]).shape == (2, 3)


def test_a_pipeline_is_cross_validated_on_paths(
    encoder: BrainAutoencoder, paths: list[Path], maps: tuple[np.ndarray, np.ndarray]
) -> None:
    pipeline = make_pipeline(encoder, LogisticRegression())
    scores = cross_val_score(pipeline, paths, maps[1], cv=GroupKFold(3), groups=np.arange(24) // 2)
    assert scores.mean() > 0.8


def test_subjects_are_whole_in_the_inner_split(
    encoder: BrainAutoencoder, x: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def stop(volumes: object, parts: pd.DataFrame, *_: object) -> None:
        seen.append(parts)
        raise InterruptedError

    monkeypatch.setattr("nilatent.sklearn.train", stop)
    pipeline = Pipeline([("encode", encoder)])
    with pytest.raises(InterruptedError):
        pipeline.fit(x, encode__groups=np.repeat(np.arange(12), 2))
    assert (seen[0].groupby("subject_id")["part"].nunique() == 1).all()
    assert seen[0].groupby("subject_id").size().eq(2).all()
    assert set(seen[0]["part"]) == {"train", "validation"}


def test_how_it_trains_is_passed_on(encoder: BrainAutoencoder, x: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def stop(_volumes: object, _parts: object, _model: object, config: TrainConfig, _folder: Path) -> None:
        seen.append(config)
        raise InterruptedError

    monkeypatch.setattr("nilatent.sklearn.train", stop)
    asked = {"n_epochs": 7, "patience": 3, "batch_size": 5, "learning_rate": 0.02, "device": "cpu"}
    with pytest.raises(InterruptedError):
        encoder.set_params(**asked, random_state=9).fit(x)
    assert seen[0] == TrainConfig(**asked, seed=9)


def test_names_follow_the_latents_also_into_tables(fitted: BrainAutoencoder, x: np.ndarray) -> None:
    assert list(fitted.get_feature_names_out()) == ["z000", "z001", "z002"]
    table = clone(fitted).set_output(transform="pandas").fit(x).transform(x)
    assert list(table.columns) == ["z000", "z001", "z002"]


def test_the_model_can_be_saved_for_the_rest_of_the_program(
    fitted: BrainAutoencoder, x: np.ndarray, mask: np.ndarray, tmp_path: Path
) -> None:
    fitted.save(tmp_path / "model")
    model = load_model(tmp_path / "model")
    np.testing.assert_array_equal(model.mask, mask)
    assert len(model.seen.scans) == 24


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"model": "spatial_vae"}, "gives rows of latents"),
        ({"validation_fraction": 1.0}, "validation_fraction"),
        ({"spacing_mm": 2.0}, "one of the two"),
        ({"batch_size": 0}, "batch_size"),
        ({"anchor": "no"}, "anchor"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused_when_fitted(
    encoder: BrainAutoencoder, x: np.ndarray, wrong: dict[str, object], error: str
) -> None:
    with pytest.raises(SettingError, match=error):
        encoder.set_params(**wrong).fit(x)


def test_maps_that_do_not_fit_are_refused(
    encoder: BrainAutoencoder, fitted: BrainAutoencoder, x: np.ndarray, paths: list[Path]
) -> None:
    with pytest.raises(GridError, match="voxels inside the mask"):
        fitted.transform(x[:, :-1])
    with pytest.raises(GridError, match="three axes"):
        fitted.transform([nib.Nifti1Image(np.zeros((*SHAPE, 2), np.float32), AFFINE)])
    with pytest.raises(SettingError, match="groups were given"):
        encoder.fit(x, groups=[1, 2])
    with pytest.raises(SettingError, match=r"of shape \(2, 2\)"):
        fitted.inverse_transform(np.zeros((2, 2)))


@pytest.mark.parametrize(
    "change",
    [
        {"model": "vae"},
        {"anchor": "mean"},
        {"channels": (8, 8)},
        {"n_epochs": 0},
        {"batch_size": 4},
        {"learning_rate": 1e-2},
        {"validation_fraction": 0.4},
    ],
)
def test_every_setting_counts(mask_img: Path, x: np.ndarray, change: dict[str, object]) -> None:
    """From nothing, where every epoch is kept that is better."""
    usual = QUICK | {"anchor": "none", "mask_img": mask_img, "n_epochs": 1}
    found = [BrainAutoencoder(**settings).fit(x).transform(x) for settings in (usual, usual | change)]
    assert np.abs(found[0] - found[1]).max() > 1e-6


@pytest.mark.parametrize(
    "check",
    [
        estimator_checks.check_estimator_cloneable,
        estimator_checks.check_estimator_repr,
        estimator_checks.check_estimator_tags_renamed,
        estimator_checks.check_estimators_unfitted,
        estimator_checks.check_do_not_raise_errors_in_init_or_set_params,
        estimator_checks.check_get_params_invariance,
        estimator_checks.check_mixin_order,
        estimator_checks.check_no_attributes_set_in_init,
        estimator_checks.check_parameters_default_constructible,
        estimator_checks.check_set_params,
        estimator_checks.check_valid_tag_types,
    ],
    ids=lambda check: check.__name__,
)
def test_scikit_learns_own_checks_that_need_no_made_up_features(check: object) -> None:
    """The others hand in a few columns, which are no brain."""
    check("BrainAutoencoder", BrainAutoencoder())
