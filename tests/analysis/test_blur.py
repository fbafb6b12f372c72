from collections.abc import Iterator
from functools import partial

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from nilatent.analysis import blur as shell
from nilatent.analysis.blur import blur
from nilatent.analysis.blur.bands import SD_OF_FWHM, Bands
from nilatent.analysis.density import fit_density
from nilatent.analysis.latent_space import LatentSpace
from nilatent.errors import CohortError, SettingError
from nilatent.finding import Finding
from nilatent.latents import Frame
from nilatent.volumes import Grid, Volumes, volumes_in_memory, voxel_pca

SHAPE, WIDE, N = (13, 15, 11), 3, 40
FINE = "finer than 8 mm"


def volumes_of(images: np.ndarray, mask: np.ndarray, subjects: np.ndarray) -> Volumes:
    scans = pd.DataFrame(
        {"subject_id": subjects, "dataset": "one"},
        index=pd.Index([f"scan-{number:02d}" for number in range(len(images))], name="scan_id"),
    )
    array = np.zeros((len(images), *SHAPE))
    array[:, mask] = images
    return volumes_in_memory(array, mask=mask, grid=Grid(SHAPE, np.diag([4.0, 4.0, 4.0, 1.0])), scans=scans)


class World:
    """Scans of three smooth causes and a texture of their own; a decoder that knows the causes."""

    def __init__(self, rng: np.random.Generator, *, texture: float = 0.4, subjects: np.ndarray | None = None) -> None:
        self.mask = np.ones(SHAPE, dtype=bool)
        self.mask[:2] = False
        smooth = [ndimage.gaussian_filter(rng.normal(size=SHAPE), 2.0) for _ in range(WIDE)]
        self.causes = np.stack([cause[self.mask] / cause[self.mask].std() for cause in smooth])
        self.mean = 5 + ndimage.gaussian_filter(rng.normal(size=SHAPE), 1.0)[self.mask]
        self.z = rng.normal(size=(N, WIDE))
        self.texture = texture * rng.normal(size=(N, int(self.mask.sum())))
        subjects = np.array([f"sub-{number:02d}" for number in range(N)]) if subjects is None else subjects
        self.volumes = volumes_of(self.mean + self.z @ self.causes + self.texture, self.mask, subjects)
        self.subjects = subjects
        self.training = np.arange(N) < 26
        self.told: list[pd.DataFrame | None] = []

    def decode(self, z: np.ndarray) -> np.ndarray:
        return self.mean + z @ self.causes

    def space(self, draw=None, **changed: object) -> LatentSpace:
        def drawn(z: np.ndarray, told: pd.DataFrame | None) -> Iterator[np.ndarray]:
            self.told.append(told)
            for start in range(0, len(z), 7):
                yield (draw or self.decode)(z[start : start + 7]).astype(np.float32)

        given = {
            "scans": self.volumes.scans.index,
            "subjects": self.subjects,
            "values": self.z,
            "frame": Frame(np.zeros(WIDE), np.eye(WIDE)),
            "variance": np.zeros((N, WIDE)),
            "names": ("z000", "z001", "z002"),
            "training": self.training,
            "unseen": ~self.training,
            "has_prior": False,
            "told": (),
            "draw_latents": drawn,
        }
        return LatentSpace(**(given | changed))

    def look(self, *spaces: LatentSpace, **changed: object) -> Finding:
        return blur(spaces, self.volumes, self.volumes.scans, **({"fwhm_mm": 0.0, "seed": 0} | changed))


@pytest.fixture(autouse=True)
def one_gaussian(monkeypatch: pytest.MonkeyPatch) -> None:
    """How a mixture is chosen is tested where that is done, and takes seconds."""
    monkeypatch.setattr("nilatent.analysis.blur.drawing.fit_density", partial(fit_density, kind="gaussian"))


@pytest.fixture
def world(rng: np.random.Generator) -> World:
    return World(rng)


def of(found: Finding, approach: str, measure: str) -> np.ndarray:
    return found.data[measure].sel(approach=approach).values


def test_bands_add_up_to_the_image(world: World, rng: np.random.Generator) -> None:
    images = rng.normal(size=(3, int(world.mask.sum()))).astype(np.float32)
    np.testing.assert_allclose(Bands(world.mask, 4.0)(images).sum(axis=1), images, atol=1e-5)


def test_a_constant_has_no_detail_even_at_the_border(world: World) -> None:
    found = Bands(world.mask, 4.0)(np.full((1, int(world.mask.sum())), 7.0, dtype=np.float32))
    np.testing.assert_allclose(found[0, :-1], 0, atol=1e-5)
    np.testing.assert_allclose(found[0, -1], 7, atol=1e-5)


def test_what_lies_beyond_the_mask_counts_for_nothing(rng: np.random.Generator) -> None:
    small, large = np.zeros((9, 9, 9), dtype=bool), np.zeros((20, 22, 24), dtype=bool)
    inside = rng.random((9, 9, 9)) > 0.3
    small[inside], large[5:14, 6:15, 7:16] = True, inside
    image = rng.normal(size=(1, int(inside.sum()))).astype(np.float32)
    np.testing.assert_allclose(Bands(small, 4.0)(image), Bands(large, 4.0)(image), atol=1e-5)


def test_a_wave_lies_in_the_band_of_its_length() -> None:
    mask = np.ones((24, 24, 24), dtype=bool)
    for size, band in ((1.4, 0), (2.8, 1), (5.6, 2), (40, 3)):
        wave = np.cos(np.pi * np.arange(24) / size)[:, None, None] * np.ones((24, 24, 24))
        energy = np.square(Bands(mask, 4.0)(wave[mask][None].astype(np.float32))[0]).mean(axis=1)
        assert energy[band] > 0.6 * energy.sum()


def test_half_of_a_wave_at_the_edge_is_left() -> None:
    mask = np.ones((64, 9, 9), dtype=bool)
    wave = np.cos(np.pi * np.arange(64) / 4.0)[:, None, None] * np.ones((64, 9, 9))
    finer = Bands(mask, 4.0)(wave[mask][None].astype(np.float32))[0, :2].sum(axis=0).reshape(mask.shape)
    np.testing.assert_allclose(finer[20:44], 0.5 * wave[20:44], atol=0.01)


def test_what_preparation_lets_through_is_what_smoothing_leaves_of_noise(rng: np.random.Generator) -> None:
    mask = np.ones((30, 30, 30), dtype=bool)
    noise = rng.normal(size=(4, *mask.shape))
    smoothed = np.stack([ndimage.gaussian_filter(one, 8.0 * SD_OF_FWHM / 4.0, mode="wrap") for one in noise])
    bands = Bands(mask, 4.0)
    energy = [np.square(bands(one[:, mask].astype(np.float32))).mean(axis=(0, 2)) for one in (smoothed, noise)]
    np.testing.assert_allclose(bands.passed(8.0)[:3], (energy[0] / energy[1])[:3], rtol=0.25, atol=0.003)
    np.testing.assert_allclose(bands.passed(0.0), 1)


def test_an_empty_mask_is_refused() -> None:
    with pytest.raises(SettingError, match="at least one voxel"):
        Bands(np.zeros((3, 3, 3), dtype=bool), 4.0)


def test_a_perfect_decoder_keeps_all_and_a_mean_image_nothing(world: World) -> None:
    by_latents = {tuple(z): image for z, image in zip(world.z, world.volumes.masked(np.arange(N)), strict=True)}
    nothing = np.zeros(int(world.mask.sum()))
    found = world.look(world.space(lambda z: np.stack([by_latents.get(tuple(one), nothing) for one in z])))
    for measure in ("energy_kept", "detail_kept", "coherence", "explained"):
        np.testing.assert_allclose(of(found, "reconstruction", measure), 1, atol=1e-6)
    for measure in ("detail_kept", "coherence", "explained"):
        np.testing.assert_allclose(of(found, "mean image", measure), 0, atol=1e-6)


def test_measures_are_those_of_a_naive_reckoning(world: World) -> None:
    found = world.look(world.space())
    rows = np.flatnonzero(~world.training)
    bands, x = Bands(world.mask, 4.0), world.volumes.masked(np.arange(N))
    mean = x[world.training].mean(axis=0)
    scan, drawn = (bands((one - mean).astype(np.float32)) for one in (x[rows], world.decode(world.z[rows])))
    for band in range(4):
        a, b = scan[:, band].ravel(), drawn[:, band].ravel()
        assert of(found, "reconstruction", "detail_kept")[band] == pytest.approx((b @ b) / (a @ a), rel=1e-4)
        assert of(found, "reconstruction", "coherence")[band] == pytest.approx(
            (a @ b) / np.sqrt((a @ a) * (b @ b)), rel=1e-4
        )
        expected = 1 - ((a - b) @ (a - b)) / (a @ a)
        assert of(found, "reconstruction", "explained")[band] == pytest.approx(expected, rel=1e-3)
    total = np.square(scan).sum(axis=(0, 2))
    np.testing.assert_allclose(found.data["scan_share"], total / total.sum(), rtol=1e-4)


def test_invented_detail_has_energy_and_explains_nothing(world: World, rng: np.random.Generator) -> None:
    invented = 0.4 * rng.normal(size=(N, int(world.mask.sum())))
    plain, sharp = world.look(world.space()), world.look(world.space(lambda z: world.decode(z) + invented[: len(z)]))
    kept, drawn = (of(one, "reconstruction", "detail_kept")[0] for one in (plain, sharp))
    assert kept < 0.3 < 0.8 < drawn
    assert of(sharp, "reconstruction", "explained")[0] < of(plain, "reconstruction", "explained")[0] - 0.5
    assert of(sharp, "reconstruction", "coherence")[0] < 0.5 * of(plain, "reconstruction", "coherence")[0]
    assert "is drawn and is not that of the scan" in sharp.answer
    assert sharp.answer.startswith("The model draws less right detail than PCA")


def test_a_decoder_that_is_pca_is_said_to_be_no_better(world: World) -> None:
    pca = voxel_pca(world.volumes, np.flatnonzero(world.training), WIDE, seed=0)
    scores = pca.scores(world.volumes.masked(np.arange(N)))
    same = world.space(lambda z: pca.mean + z @ pca.components, values=scores)
    found = world.look(same)
    expected = of(found, "PCA of equal size", "explained")
    np.testing.assert_allclose(of(found, "reconstruction", "explained"), expected, atol=1e-4)
    assert found.answer.startswith("The model draws no more right detail than PCA of equal size.")


def test_pca_of_all_scans_says_what_more_latents_would_bring(rng: np.random.Generator) -> None:
    world = World(rng, texture=0.05)
    narrow = world.space(
        lambda z: world.mean + z @ world.causes[:1],
        values=world.z[:, :1],
        frame=Frame(np.zeros(1), np.eye(1)),
        variance=np.zeros((N, 1)),
        names=("z000",),
    )
    found = world.look(narrow)
    equal, largest = (of(found, f"PCA of {size}", "explained")[3] for size in ("equal size", "all training scans"))
    assert equal < 0.8 < 0.95 < largest
    assert "would come back with more latents" in found.answer


def test_samples_have_the_energy_of_their_population(world: World) -> None:
    found = world.look(world.space(has_prior=True))
    for name in ("samples of the density", "samples of the prior"):
        assert of(found, name, "detail_kept")[3] == pytest.approx(1, abs=0.45)
        assert np.isnan(of(found, name, "coherence")).all()
    doubled = world.look(world.space(lambda z: world.mean + 2 * (z @ world.causes)))
    assert of(doubled, "samples of the density", "detail_kept")[3] > 2.5


def test_energies_of_folds_are_added_up(world: World) -> None:
    first, second = np.arange(N) % 2 == 0, np.arange(N) % 2 == 1
    folds = [world.space(training=one, unseen=other) for one, other in ((first, second), (second, first))]
    found = world.look(*folds)
    assert found.n_scans == N
    apart = [world.look(fold) for fold in folds]
    x, bands = world.volumes.masked(np.arange(N)), Bands(world.mask, 4.0)
    weight = [np.square(bands(x[unseen] - x[~unseen].mean(axis=0))).sum(axis=(0, 2)) for unseen in (second, first)]
    expected = sum(of(one, "PCA of equal size", "explained") * w for one, w in zip(apart, weight, strict=True))
    np.testing.assert_allclose(of(found, "PCA of equal size", "explained"), expected / sum(weight), rtol=1e-3)


def test_a_subject_counts_once_with_its_first_scan(rng: np.random.Generator) -> None:
    subjects = np.array([f"sub-{number // 2:02d}" for number in range(N)])
    found = (world := World(rng, subjects=subjects)).look(world.space())
    assert found.n_scans == found.n_subjects == 7


def test_only_unseen_scans_are_judged_and_only_training_scans_learned_from(world: World) -> None:
    found = world.look(world.space(unseen=np.arange(N) >= 30))
    assert found.n_scans == 10
    assert found.settings["n_train"] == 26


def test_the_decoder_is_told_what_it_is_to_be_told(world: World, rng: np.random.Generator) -> None:
    scans = world.volumes.scans.assign(age=rng.normal(50, 5, N))
    blur([world.space(told=("age",))], world.volumes, scans, fwhm_mm=0.0, seed=0)
    rows = np.flatnonzero(~world.training)
    assert all(told is not None for told in world.told)
    np.testing.assert_array_equal(world.told[0]["age"], scans["age"].iloc[rows])
    np.testing.assert_array_equal(world.told[1]["age"], np.repeat(scans["age"].iloc[rows], 2))


def test_the_interval_holds_the_share_and_narrows_with_subjects(world: World) -> None:
    few, many = world.look(world.space(unseen=np.arange(N) >= 34)), world.look(world.space())
    for found in (few, many):
        low, value, high = (of(found, "reconstruction", f"explained{end}")[1] for end in ("_low", "", "_high"))
        assert low < value < high
    widths = [
        of(found, "reconstruction", "energy_kept_high") - of(found, "reconstruction", "energy_kept_low")
        for found in (few, many)
    ]
    assert widths[1].sum() < widths[0].sum()


def test_it_is_the_same_again_and_the_seed_matters(world: World) -> None:
    one, same, other = (world.look(world.space(), seed=seed) for seed in (0, 0, 1))
    pd.testing.assert_frame_equal(one.table, same.table)
    sampled = [of(found, "samples of the density", "detail_kept")[3] for found in (one, other)]
    assert sampled[0] != sampled[1]


def test_smoothing_of_the_preparation_is_said(world: World) -> None:
    assert "smoothing by 8 mm" in world.look(world.space(), fwhm_mm=8.0).answer
    assert "smoothing" not in world.look(world.space()).answer


def test_many_scans_are_judged_by_lot(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shell, "MAX_JUDGED", 6)
    assert world.look(world.space()).n_scans == 6


def test_too_few_are_not_judged(world: World) -> None:
    assert "4 unseen" in world.look(world.space(unseen=np.arange(N) >= 36)).not_run
    assert "8 training" in world.look(world.space(training=np.arange(N) < 8, unseen=np.arange(N) >= 30)).not_run


def test_scans_without_detail_are_not_judged(world: World) -> None:
    world.volumes = volumes_of(np.ones((N, int(world.mask.sum()))), world.mask, world.subjects)
    with pytest.raises(SettingError, match="span fewer") as refused:
        world.look(world.space())
    assert "copies" in str(refused.value)


def test_spaces_of_other_cross_fittings_are_refused(world: World) -> None:
    with pytest.raises(CohortError, match="unseen in two latent spaces"):
        world.look(world.space(), world.space())
    with pytest.raises(CohortError, match="No latent space"):
        world.look()
