from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from nilatent.analysis.fidelity import COLUMNS, FidelityConfig, fidelity
from nilatent.analysis.fidelity.draws import first_of, pca_space, reconstructed, sampled
from nilatent.analysis.fidelity.regions import classifier_auc, in_proportion, regions_apart
from nilatent.analysis.latent_space import LatentSpace
from nilatent.atlas import RegionWeights
from nilatent.errors import SettingError
from nilatent.finding import read_finding, write_finding
from nilatent.latents import Frame
from nilatent.volumes import volumes_in_memory

CONFIG = FidelityConfig(n_samples=40, n_permutations=199, n_repeats=1)
Q = 3


def study(rng, grid, *, n=60, n_folds=2, noise=0.01, effect=0.0):
    """Scans that are three patterns of a known model plus noise, the model's latent spaces, and an atlas."""
    shape = grid.shape
    mask = np.zeros(shape, dtype=bool)
    mask[3:-3, 3:-3, 3:-3] = True
    n_voxels = int(mask.sum())
    index = pd.Index([f"sub-{number:03d}" for number in range(n)], name="scan_id")
    is_case = np.arange(n) // 2 % 2 == 0
    z = rng.normal(size=(n, Q)) + effect * is_case[:, None]
    region = np.arange(n_voxels) % 6
    patterns = 0.05 * (rng.normal(size=(Q, 6))[:, region] + 0.2 * rng.normal(size=(Q, n_voxels)))
    array = np.zeros((n, *shape))
    array[:, mask] = 0.5 + z @ patterns + noise * rng.normal(size=(n, n_voxels))
    scans = pd.DataFrame({"subject_id": index, "dataset": "d", "group": np.where(is_case, "AD", "CN")}, index=index)
    volumes = volumes_in_memory(array, mask=mask, grid=grid, scans=scans)
    matrix = sparse.coo_matrix((np.ones(n_voxels), (region, np.arange(n_voxels)))).tocsr()
    weights = RegionWeights(matrix, np.arange(6) + 1, [f"Region_{number}" for number in range(6)], pd.DataFrame())

    def draw(latents, _told):
        yield (0.5 + latents @ patterns).astype(np.float32)

    folds = np.arange(n) % max(n_folds, 2)
    whole = LatentSpace(
        scans=index,
        subjects=index.to_numpy(dtype=str),
        values=z,
        frame=Frame(np.zeros(Q), np.eye(Q)),
        variance=np.zeros((n, Q)),
        names=tuple(f"z{number}" for number in range(Q)),
        training=np.ones(n, dtype=bool),
        unseen=np.zeros(n, dtype=bool),
        has_prior=True,
        told=(),
        draw_latents=draw,
    )
    spaces = [replace(whole, training=folds != fold, unseen=folds == fold) for fold in range(n_folds)]
    return spaces, volumes, scans, weights


def features(images):
    return images[:, ::7]


def run(spaces, volumes, scans, weights, config=CONFIG):
    return fidelity(spaces, volumes, scans, weights, config, features=features, features_note="every seventh voxel")


def row(found, comparison, kind="regional means"):
    table = found.table
    return table[(table["comparison"] == comparison) & (table["features"] == kind)].iloc[0]


def test_samples_of_the_true_model_are_like_unseen_scans_and_no_copies(rng, grid, tmp_path):
    found = run(*study(rng, grid))
    assert row(found, "samples")["mmd2_p"] > 0.01
    assert abs(row(found, "samples")["mmd2"]) < row(found, "two halves of the unseen scans")["mmd2_high"]
    assert row(found, "mean image")["mmd2_p"] == pytest.approx(1 / 200)
    assert row(found, "mean image")["spread"] == 0
    assert row(found, "samples")["spread"] == pytest.approx(1, abs=0.5)
    assert 0.25 < row(found, "samples")["auc"] < 0.75
    assert not found.settings["copies"]
    assert not found.settings["learnt_by_heart"]
    assert tuple(found.table) == COLUMNS
    assert found.n_subjects == 60
    assert "They are no copies" in found.answer
    for kind in ("regional means", "deep features"):
        assert found.table.loc[found.table["features"] == kind, "mmd2"].is_monotonic_increasing
    write_finding(found, tmp_path)
    pd.testing.assert_frame_equal(read_finding(tmp_path).table, found.table, check_dtype=False)


def test_a_decoder_that_draws_too_little_is_told_by_every_measure_and_loses_against_pca(rng, grid):
    spaces, *rest = study(rng, grid)
    dull = [
        replace(one, draw_latents=lambda latents, told, one=one: one.draw_latents(0.2 * latents, told))
        for one in spaces
    ]
    found = run(dull, *rest)
    assert row(found, "samples")["mmd2_p"] < 0.01
    assert row(found, "samples")["mmd2"] > row(found, "samples of PCA")["mmd2"]
    assert row(found, "samples")["spread"] < 0.2
    assert (found.data["region_ratio"] < 0.5).all()
    assert (found.data["region_q"] < 0.05).any()
    assert found.settings["gain_over_pca"]["regions"] > 1.96
    assert "farther from unseen brains than those of PCA" in found.answer


def test_samples_that_are_training_scans_are_called_copies(rng, grid):
    spaces, *rest = study(rng, grid, n_folds=1, n=80)
    held = spaces[0]

    def snap(latents, _told):
        nearest = np.abs(latents[:, None] - held.values[None, held.training]).sum(axis=2).argmin(axis=1)
        yield from held.draw_latents(held.values[held.training][nearest] + 1e-4 * latents, None)

    found = run([replace(held, draw_latents=snap)], *rest)
    assert found.settings["copies"]
    assert found.settings["learnt_by_heart"]
    assert found.settings["flagged"] > 0.9
    assert "They are copies" in found.answer
    assert "learnt training scans by heart" in found.answer


def test_what_synthetic_scans_teach_is_said_or_why_it_was_not_judged(rng, grid):
    spaces, volumes, scans, weights = study(rng, grid, effect=1.5)
    found = run(spaces, volumes, scans, weights)
    assert found.data["use_auc"].to_series()["synthetic scans"] > 0.85
    assert "synthetic scans alone reaches" in found.answer
    alone = run(spaces, volumes, scans.assign(group="CN"), weights, config=replace(CONFIG, n_samples=20))
    assert "use_auc" not in alone.data
    assert "Usefulness was not judged: too few: column 'group' holds CN (60)" in alone.answer


def test_the_same_seed_gives_the_same_numbers_and_another_gives_others(rng, grid):
    cohort, small = study(rng, grid, n=24), replace(CONFIG, n_samples=20, n_permutations=99)
    first, again = run(*cohort, config=small), run(*cohort, config=small)
    pd.testing.assert_frame_equal(first.table, again.table)
    other = run(*cohort, config=replace(small, seed=1, n_samples=30))
    assert row(other, "samples of PCA")["mmd2"] != row(first, "samples of PCA")["mmd2"]
    assert row(first, "samples")["n_images"] == 40
    assert row(other, "samples")["n_images"] == 60


def test_only_the_first_scan_of_an_unseen_subject_counts(rng, grid):
    spaces, *rest = study(rng, grid, n=24)
    subjects = spaces[0].subjects.copy()
    subjects[2] = subjects[0]
    twice = [replace(one, subjects=subjects) for one in spaces]
    found = run(twice, *rest, config=replace(CONFIG, n_samples=20))
    assert found.n_subjects == 23
    assert row(found, "samples")["n_real"] == 23
    np.testing.assert_array_equal(first_of(twice[0], twice[0].unseen)[:3], [0, 4, 6])


def test_of_very_many_subjects_some_are_compared_and_it_is_said(rng, grid, monkeypatch):
    spaces, *rest = study(rng, grid, n=48)
    assert not any("spread over all" in line for line in run(spaces, *rest).caveats)
    monkeypatch.setattr("nilatent.analysis.fidelity.MAX_COMPARED", 14)
    found = run(spaces, *rest)
    assert row(found, "samples")["n_real"] == 2 * 14
    assert sum("14 spread over all are compared" in line for line in found.caveats) == 1


def test_too_few_unseen_subjects_are_a_reason_and_no_number(rng, grid):
    spaces, *rest = study(rng, grid)
    few = [replace(one, unseen=one.unseen & (np.arange(60) < 8)) for one in spaces]
    found = run(few, *rest)
    assert found.not_run.startswith("8 unseen subjects")
    hardly = [replace(one, training=one.training & (np.arange(60) < 12)) for one in spaces]
    assert "too few for a density" in run(hardly, *rest).not_run


def test_without_a_prior_there_are_no_samples_of_it(rng, grid):
    spaces, *rest = study(rng, grid, n=24)
    found = run([replace(one, has_prior=False) for one in spaces], *rest, config=replace(CONFIG, n_samples=20))
    assert "samples of the prior" not in set(found.table["comparison"])
    assert any("no prior" in line for line in found.caveats)


def test_what_a_decoder_is_told_comes_from_training_scans(rng, grid):
    spaces, _, scans, _ = study(rng, grid, n=40)
    scans = scans.assign(age=np.arange(40.0))
    seen = []

    def draw(latents, told):
        seen.append(told["age"].to_numpy())
        return spaces[0].draw_latents(latents, None)

    told = replace(spaces[0], told=("age",), draw_latents=draw)
    sampled(told, scans, 30, kind="gaussian", seed=0)
    assert set(seen[0]) <= set(np.flatnonzero(told.training))
    reconstructed(told, scans, np.array([3, 1]))
    np.testing.assert_array_equal(seen[1], [3, 1])


def test_the_prior_is_drawn_as_it_is_and_the_density_as_the_latents_are(rng, grid):
    spaces, _, scans, _ = study(rng, grid, n=40)
    wide = replace(spaces[0], values=10 * spaces[0].values)
    spread = {kind: sampled(wide, scans, 200, kind=kind, seed=0)[0].var(axis=0).sum() for kind in ("prior", "gaussian")}
    assert 30 < spread["gaussian"] / spread["prior"] < 300


def test_the_yardstick_is_pca_of_the_training_scans_alone(rng, grid):
    spaces, volumes, _, _ = study(rng, grid, noise=0.0)
    linear, pca = pca_space(spaces[0], volumes, seed=0)
    assert linear.values.shape == (60, Q)
    np.testing.assert_allclose(linear.values[linear.training].mean(axis=0), 0, atol=1e-3)
    np.testing.assert_allclose(pca.mean, volumes.masked(np.flatnonzero(linear.training)).mean(axis=0), atol=1e-4)
    again = np.concatenate(list(linear.draw(linear.coordinates)))
    np.testing.assert_allclose(again, volumes.masked(np.arange(60)), atol=5e-3)


def test_regions_are_compared_by_mean_spread_and_distribution(rng):
    real = [rng.normal(size=(10, 2)), rng.normal(size=(20, 2))]
    other = [rng.normal([0, 3], [1, 0.1], (45, 2)), rng.normal([0, 3], [1, 0.1], (45, 2))]
    x, y = in_proportion(real, other)
    assert (len(x), len(y)) == (30, 60)
    np.testing.assert_array_equal(y[:20], other[0][:20])
    found = regions_apart(real, other)
    assert found.q[0] > 0.05 > found.q[1]
    assert found.shift[1] == pytest.approx((y[:, 1].mean() - x[:, 1].mean()) / x[:, 1].std(ddof=1))
    assert found.ratio[1] == pytest.approx(0.1, rel=0.4)


def test_a_classifier_tells_other_images_and_not_the_same(rng):
    def area(shift, *, paired=False):
        real = [rng.normal(size=(20, 3)) for _ in range(2)]
        other = [
            one + shift + 0.1 * rng.normal(size=one.shape) if paired else rng.normal(shift, 1, (40, 3)) for one in real
        ]
        return classifier_auc(real, other, paired=paired, seed=0)

    assert abs(np.mean([area(0) for _ in range(5)]) - 0.5) < 0.12
    assert area(3.0) > 0.95
    assert abs(np.mean([area(0, paired=True) for _ in range(3)]) - 0.5) < 0.15


def test_settings_that_mean_nothing_are_refused():
    for bad in ({"n_samples": 5}, {"n_permutations": 10}, {"n_repeats": 0}, {"alpha": 0.0}):
        with pytest.raises(SettingError, match=next(iter(bad))):
            FidelityConfig(**bad)
