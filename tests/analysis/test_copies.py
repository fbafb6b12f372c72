from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom, kstest

from nilatent.analysis import copies
from nilatent.analysis.copies import are_copies, check_copies, fit_copy_rule, tail_p
from nilatent.analysis.latent_space import LatentSpace
from nilatent.errors import LatentsError
from nilatent.latents import Frame

N_VOXELS = 200


def sound(rng, *, n_train=60, n_unseen=30, q=6, noise=0.5):
    """A linear model: scans are a pattern of q numbers, which the encoder knows, plus noise that nobody draws."""
    n = n_train + n_unseen
    z, patterns = rng.normal(size=(n, q)), rng.normal(size=(q, N_VOXELS))
    scans = (z @ patterns + noise * np.sqrt(q) * rng.normal(size=(n, N_VOXELS))).astype(np.float32)
    names = np.array([f"s{number:03d}" for number in range(n)])
    space = LatentSpace(
        scans=pd.Index(names), subjects=names, values=z, frame=Frame(np.zeros(q), np.eye(q)), variance=np.zeros((n, q)),
        names=tuple(f"z{number}" for number in range(q)), training=np.arange(n) < n_train,
        unseen=np.arange(n) >= n_train, has_prior=True, told=(),
        draw_latents=lambda latents, _: iter([(latents @ patterns).astype(np.float32)]),
    )  # fmt: skip
    return space, scans


def drawn(space, latents):
    return np.concatenate(list(space.draw_latents(latents, None)))


def check(space, scans, samples):
    rule = fit_copy_rule(space, lambda rows: scans[rows])
    unseen = np.flatnonzero(space.unseen)
    return check_copies(rule, samples, scans[unseen], drawn(space, space.values[unseen]))


@pytest.mark.parametrize(("held", "same"), [(60, True), (20, False)])
def test_scans_that_are_read_block_by_block_give_what_all_at_once_give(rng, monkeypatch, held, same):
    space, scans = sound(rng)
    # A second scan of the last subject: 61 scans of 60 subjects.
    space = replace(space, training=np.arange(90) < 61, unseen=np.arange(90) > 60)
    space.subjects[60] = space.subjects[59]
    samples = np.concatenate([drawn(space, rng.normal(size=(20, 6))), scans[[7, 41]]])
    whole = check(space, scans, samples)
    monkeypatch.setattr(copies, "MAX_HELD", held)
    monkeypatch.setattr(copies, "BLOCK", 13)
    blocks = check(space, scans, samples)
    # The scan that is nearest is found among all, whoever says what is normal.
    np.testing.assert_array_equal(blocks.samples.row[-2:], [7, 41])
    assert blocks.flagged[-2:].all()
    np.testing.assert_allclose(blocks.samples.distance, whole.samples.distance, rtol=1e-4)
    assert blocks.elsewhere == whole.elsewhere
    assert len(blocks.training_ratio) == held
    assert np.allclose(blocks.samples.p, whole.samples.p, atol=0.02) == same


def test_every_training_scan_is_drawn_once_however_many_there_are(rng, monkeypatch):
    space, scans = sound(rng)
    n_drawn = []

    def draw(latents, said):
        n_drawn.append(len(latents))
        return space.draw_latents(latents, said)

    monkeypatch.setattr(copies, "MAX_HELD", 20)
    monkeypatch.setattr(copies, "BLOCK", 13)
    rule = fit_copy_rule(replace(space, draw_latents=draw), lambda rows: scans[rows])
    for _ in range(2):
        assert rule.flag(scans[[7, 41]]).all()
    assert sum(n_drawn) == 60


def test_ratio_is_that_of_a_naive_search(rng):
    space, scans = sound(rng, n_train=20, n_unseen=2)
    # Two scans of one subject are one neighbour, and no scan is a neighbour of its own subject.
    subjects = space.subjects.copy()
    subjects[7] = subjects[3]
    space = replace(space, subjects=subjects)
    rule = fit_copy_rule(space, lambda rows: scans[rows], n_neighbours=5)
    reconstructed = drawn(space, space.values)

    def naive(image, gallery, left_out=""):
        of_subject = {}
        for row in range(20):
            if subjects[row] != left_out:
                apart = np.linalg.norm(image - gallery[row])
                of_subject[subjects[row]] = min(apart, of_subject.get(subjects[row], np.inf))
        nearest = sorted(of_subject.values())[:6]
        return nearest[0] / np.median(nearest[1:])

    names, firsts = np.unique(subjects[:20], return_index=True)
    for gallery, images in ((rule.scans, scans), (rule.reconstructions, reconstructed)):
        expected = [naive(reconstructed[row], images, name) for name, row in zip(names, firsts, strict=True)]
        np.testing.assert_allclose(np.exp(-gallery.closeness), np.sort(expected)[::-1], rtol=1e-4)
    image = drawn(space, rng.normal(size=(1, 6)))
    judged = rule.judge(image)
    pairs = ((scans, rule.scans), (reconstructed, rule.reconstructions))
    p = [tail_p(np.array([naive(image[0], images)]), gallery.closeness)[0] for images, gallery in pairs]
    assert judged.p[0] == pytest.approx(min(1, 2 * min(p)), rel=1e-3)
    nearest = np.linalg.norm((reconstructed[:20] - image), axis=1)
    assert judged.distance[0] == pytest.approx(nearest.min() / np.sqrt(N_VOXELS), rel=1e-4)


def test_p_of_an_exponential_tail_is_uniform_and_its_rank_above(rng):
    found = []
    for _ in range(400):
        closeness = np.sort(rng.exponential(size=40))
        found.append(tail_p(np.exp(-rng.exponential(size=1)), closeness)[0])
    assert kstest(found, "uniform").pvalue > 0.01
    closeness = np.sort(rng.exponential(size=40))
    grid = np.linspace(0.001, 1, 300)
    assert (np.diff(tail_p(grid, closeness)) >= -1e-12).all()
    assert tail_p(np.array([np.exp(-closeness[5])]), closeness)[0] == pytest.approx(36 / 41)


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_samples_of_a_sound_model_are_flagged_at_the_nominal_rate_and_never_called_copies(rng, noise):
    flagged, unseen, n = 0, 0, 0
    for _ in range(20):
        space, scans = sound(rng, noise=noise)
        found = check(space, scans, drawn(space, rng.normal(size=(100, 6))))
        assert not are_copies([found.samples], [found.flagged])
        assert not are_copies([found.unseen], [found.unseen_flagged])
        flagged, unseen, n = flagged + found.flagged.sum(), unseen + found.unseen_flagged.sum(), n + 100
    # Each cohort has one threshold, so the counts vary more than those of independent samples.
    assert flagged / n < 0.025
    assert unseen / 600 < 0.03
    assert flagged > 0


@pytest.mark.parametrize("noise", [0.02, 0.1])
def test_training_scans_with_a_little_noise_are_caught_and_named(rng, noise):
    space, scans = sound(rng)
    samples = scans[:40] + (noise * scans.std() * rng.normal(size=(40, N_VOXELS))).astype(np.float32)
    found = check(space, scans, samples)
    assert found.flagged.all()
    np.testing.assert_array_equal(found.samples.row, np.arange(40))
    assert are_copies([found.samples], [found.flagged])


def test_a_density_of_one_narrow_component_per_training_scan_is_caught(rng):
    space, scans = sound(rng, noise=1.0)
    samples = drawn(space, space.values[rng.integers(60, size=100)] + 0.02 * rng.normal(size=(100, 6)))
    found = check(space, scans, samples)
    assert found.flagged.mean() > 0.9
    assert are_copies([found.samples], [found.flagged])
    # Five copies among a hundred are five copies.
    mixed = check(space, scans, np.concatenate([samples[:5], drawn(space, rng.normal(size=(95, 6)))]))
    assert mixed.flagged[:5].all()
    assert are_copies([mixed.samples], [mixed.flagged])


def test_a_decoder_that_draws_training_scans_for_unseen_ones_is_caught(rng):
    space, scans = sound(rng, q=3)

    def snap(latents, _told):
        apart = np.linalg.norm(latents[:, None] - space.values[None, :60], axis=2)
        yield scans[apart.argmin(axis=1)] + np.float32(0.01) * latents[:, :1].astype(np.float32)

    space = replace(space, draw_latents=snap)
    found = check(space, scans, drawn(space, rng.normal(size=(300, 3))))
    assert are_copies([found.samples], [found.flagged])
    assert are_copies([found.unseen], [found.unseen_flagged])
    assert found.elsewhere == 1.0
    assert found.membership > 0.9
    assert found.membership_p < 1e-4


def test_a_decoder_that_draws_one_image_copies_nobody(rng):
    space, scans = sound(rng)
    space = replace(space, draw_latents=lambda latents, _: iter([np.ones((len(latents), N_VOXELS), np.float32)]))
    found = check(space, scans, drawn(space, rng.normal(size=(50, 6))))
    assert not found.flagged.any()
    assert (found.samples.p == 1).all()


def test_membership_is_even_where_training_left_no_trace(rng):
    areas = []
    for _ in range(30):
        space, scans = sound(rng)
        areas.append(check(space, scans, drawn(space, rng.normal(size=(40, 6)))).membership)
    assert abs(np.mean(areas) - 0.5) < 0.05


def test_scans_twice_under_two_names_do_not_blind_the_rule(rng):
    space, scans = sound(rng)
    space.values[1] = space.values[0]
    scans[1] = scans[0]
    samples = scans[10:20] + (0.02 * scans.std() * rng.normal(size=(10, N_VOXELS))).astype(np.float32)
    assert check(space, scans, samples).flagged.all()
    closeness = np.sort(0.1 * rng.exponential(size=40))
    twice = np.append(closeness[:-4], [9.0] * 4)
    assert tail_p(np.array([0.1]), closeness)[0] < 0.001
    assert tail_p(np.array([0.1]), twice)[0] < 0.01


def test_alpha_neighbours_and_units_matter_as_they_should(rng):
    space, scans = sound(rng, n_train=40)
    images = drawn(space, rng.normal(size=(300, 6)))
    rule = fit_copy_rule(space, lambda rows: scans[rows], alpha=0.2)
    assert binom.sf(rule.flag(images).sum(), 300, 0.01) < 1e-3
    fewer = fit_copy_rule(space, lambda rows: scans[rows], alpha=0.2, n_neighbours=2)
    assert (fewer.judge(images).ratio != rule.judge(images).ratio).any()
    louder = replace(space, draw_latents=lambda latents, _: iter([100 * drawn(space, latents)]))
    scaled = fit_copy_rule(louder, lambda rows: 100 * scans[rows], alpha=0.2)
    np.testing.assert_array_equal(scaled.flag(100 * images), rule.flag(images))
    one_by_one = np.concatenate([rule.flag(image[None]) for image in images[:20]])
    np.testing.assert_array_equal(one_by_one, rule.flag(images[:20]))


@pytest.mark.slow
def test_a_network_that_was_trained_too_long_without_noise_is_caught_and_its_sound_sister_is_not(rng, tmp_path):
    from scipy.ndimage import gaussian_filter

    from nilatent.analysis.density import fit_density
    from nilatent.encode import encode
    from nilatent.models import ModelConfig
    from nilatent.spaces import space_of
    from nilatent.training.checkpoint import load_model
    from nilatent.training.loop import TrainConfig, train
    from nilatent.volumes import Grid, volumes_in_memory

    shape, n, mask = (15, 17, 13), 40, np.zeros((15, 17, 13), dtype=bool)
    mask[2:-2, 2:-2, 2:-2] = True
    array = np.clip(0.5 + 2 * np.stack([gaussian_filter(rng.normal(size=shape), 1.5) for _ in range(n)]), 0, 1)
    index = pd.Index([f"sub-{number:02d}" for number in range(n)], name="scan_id")
    scans = pd.DataFrame({"subject_id": index, "dataset": "one"}, index=index)
    volumes = volumes_in_memory(array, mask=mask, grid=Grid(shape, np.diag([4.0, 4.0, 4.0, 1.0])), scans=scans)
    parts = pd.DataFrame(
        {"subject_id": index, "part": ["train"] * 24 + ["validation"] * 4 + ["test"] * 12}, index=index
    )
    x = volumes.masked(np.arange(n))

    def judged(model_config, train_config, folder, *, narrow):
        train(volumes, parts, model_config, train_config, folder)
        model = load_model(folder)
        space = space_of(model, encode(model, volumes, parts), n_components=4)
        places = fit_density(space, kind="gaussian", seed=0).sample(60, rng=rng)
        if narrow:
            z = space.coordinates[space.training]
            places = z[rng.integers(len(z), size=60)] + 0.05 * z.std(axis=0) * rng.normal(size=(60, z.shape[1]))
        found = check(space, x, np.concatenate(list(space.draw(places))))
        return are_copies([found.samples], [found.flagged])

    by_heart = ModelConfig(name="autoencoder", n_latent=16, channels=(8, 16), anchor="none")
    for_long = TrainConfig(
        n_epochs=150, patience=10**6, learning_rate=3e-3, input_noise=0.0, latent_noise=0.0, weight_decay=0.0
    )
    assert judged(by_heart, for_long, tmp_path / "by_heart", narrow=True)
    sound_model = ModelConfig(name="vae", n_latent=4, channels=(4, 8))
    assert not judged(sound_model, TrainConfig(n_epochs=20), tmp_path / "sound", narrow=False)


def test_what_the_decoder_is_told_is_handed_on(rng):
    space, scans = sound(rng)
    asked = []

    def draw(latents, told):
        asked.append(told)
        return space.draw_latents(latents, None)

    told_of = replace(space, told=("age",), draw_latents=draw)
    with pytest.raises(LatentsError, match="is told age"):
        fit_copy_rule(told_of, lambda rows: scans[rows])
    table = pd.DataFrame({"age": np.arange(90.0)}, index=space.scans)
    fit_copy_rule(told_of, lambda rows: scans[rows], told=table)
    np.testing.assert_array_equal(asked[0]["age"], np.arange(60.0))


def test_too_few_subjects_other_masks_and_gaps_are_refused(rng):
    space, scans = sound(rng, n_train=11)
    with pytest.raises(LatentsError, match="11 training subjects"):
        fit_copy_rule(space, lambda rows: scans[rows])
    space, scans = sound(rng, n_train=12)
    with pytest.raises(LatentsError, match="shapes agree"):
        fit_copy_rule(space, lambda rows: scans[rows, :-1])
    rule = fit_copy_rule(space, lambda rows: scans[rows])
    for bad in (scans[:, :-1], np.full((1, N_VOXELS), np.nan, np.float32)):
        with pytest.raises(LatentsError, match="are finite and"):
            rule.flag(bad)
