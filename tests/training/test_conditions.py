import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from nilatent.errors import SettingError
from nilatent.models import ModelConfig
from nilatent.training.conditions import Conditions, aligned_rotation, fit_conditions, standardised_score
from nilatent.training.config import TrainConfig
from nilatent.training.loop import train
from nilatent.training.validation import posteriors
from nilatent.volumes import Grid, Volumes, volumes_in_memory, voxel_pca

SHAPE = (9, 11, 7)
TRAINING = [f"s{index}" for index in range(8)]


@pytest.fixture
def scans(rng: np.random.Generator) -> pd.DataFrame:
    """Twelve scans, of which the first eight are for training."""
    ids = pd.Index([f"s{index}" for index in range(12)], name="scan_id")
    sites = ["b", "a", "b", "c", "b", "b", "a", "b", "c", "a", "b", "c"]
    return pd.DataFrame({"age": 60 + 10 * rng.standard_normal(12), "site": sites}, index=ids)


def test_numbers_and_categories_are_coded_as_by_hand(scans: pd.DataFrame) -> None:
    found = fit_conditions(scans, TRAINING, ["site", "age"]).values(scans)
    known = scans.loc[TRAINING]
    for row, (scan, one) in enumerate(scans.iterrows()):
        # b is the commonest in training, so it is the reference and has no column.
        by_hand = [float(one["site"] == level) - (known["site"] == level).mean() for level in ("a", "c")]
        by_hand.append((one["age"] - known["age"].mean()) / known["age"].std(ddof=0))
        assert found is not None
        np.testing.assert_allclose(found[row], by_hand, rtol=1e-5, atol=1e-6, err_msg=str(scan))


def test_nothing_is_learned_from_other_scans(scans: pd.DataFrame) -> None:
    other = scans.copy()
    other.loc["s8":, "age"] = 1e6
    other.loc["s8":, "site"] = "elsewhere"
    names = ["age", "site"]
    assert fit_conditions(scans, TRAINING, names) == fit_conditions(other, TRAINING, names)
    moved = scans.copy()
    moved.loc["s7", "age"] += 1
    assert fit_conditions(scans, TRAINING, names) != fit_conditions(moved, TRAINING, names)


def test_conditions_come_back_from_json(scans: pd.DataFrame) -> None:
    known = fit_conditions(scans, TRAINING, ["site", "age"])
    assert Conditions.from_dict(json.loads(json.dumps(known.to_dict()))) == known
    assert known.n_values == 3
    assert Conditions.from_dict(Conditions().to_dict()) == Conditions()


def test_a_model_that_is_told_nothing_needs_no_table() -> None:
    assert fit_conditions(None, TRAINING, []).values(None) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"age": 60.0}, "All training scans have age = 60, so"),
        ({"site": "b"}, "All training scans have site = b"),
        ({"age": [np.nan] * 2 + [60.0] * 10}, r"age is missing for 2 scans \(s0, s1\)"),
        ({"site": [None] + ["b"] * 11}, r"site is missing for 1 scans \(s0\)"),
    ],
)
def test_columns_that_tell_nothing_or_not_of_all_are_refused(
    scans: pd.DataFrame, change: dict[str, Any], words: str
) -> None:
    with pytest.raises(SettingError, match=words):
        fit_conditions(scans.assign(**change), TRAINING, list(change))


def test_what_a_model_cannot_be_told_is_refused(scans: pd.DataFrame) -> None:
    known = fit_conditions(scans, TRAINING, ["age", "site"])
    with pytest.raises(SettingError, match="site is 'd' for scan s9; the training scans had b, a, c"):
        known.values(scans.assign(site=["b"] * 9 + ["d"] * 3))
    with pytest.raises(SettingError, match=r"age is missing for 1 scans \(s11\)"):
        known.values(scans.assign(age=[60.0] * 11 + [np.nan]))
    with pytest.raises(SettingError, match="age is 'old' for scan s0"):
        known.values(scans.assign(age=["old"] * 12))
    with pytest.raises(SettingError, match="no such column"):
        known.values(scans[["age"]])
    with pytest.raises(SettingError, match="Give the table of scans"):
        known.values(None)
    with pytest.raises(SettingError, match="needs the table of scans"):
        fit_conditions(None, TRAINING, ["age"])


def test_a_score_is_standardised_by_the_training_scans_and_no_other_is_looked_at(scans: pd.DataFrame) -> None:
    some = scans.assign(age=scans["age"].where(scans.index != "s2"))
    order = list(scans.index[::-1])
    found = standardised_score(some, TRAINING, order, "age")
    known = some["age"].loc[TRAINING].to_numpy()
    expected = (known - np.nanmean(known)) / np.nanstd(known)
    np.testing.assert_allclose(found[::-1][:8], expected, rtol=1e-5)
    assert np.isnan(found[::-1][8:]).all()
    other = some.copy()
    other.loc["s8":, "age"] = 1e6
    np.testing.assert_array_equal(standardised_score(other, TRAINING, order, "age"), found)


@pytest.mark.parametrize(
    ("name", "words"), [("mmse", "no such column"), ("site", "holds words"), ("same", "no two different values")]
)
def test_what_is_no_score_is_refused(scans: pd.DataFrame, name: str, words: str) -> None:
    with pytest.raises(SettingError, match=words):
        standardised_score(scans.assign(same=1.0), TRAINING, list(scans.index), name)


def left_out_error(x: np.ndarray, y: np.ndarray, penalty: float) -> float:
    """Squared error of ridge regressions, each fitted without the scan it predicts."""
    total = 0.0
    for out in range(len(y)):
        rest = np.arange(len(y)) != out
        centre, usual = x[rest].mean(axis=0), y[rest].mean(axis=0)
        a = x[rest] - centre
        slopes = np.linalg.solve(a.T @ a + penalty * np.eye(x.shape[1]), a.T @ (y[rest] - usual))
        total += float(np.square(y[out] - usual - (x[out] - centre) @ slopes).sum())
    return total


def test_the_first_aligned_latent_is_the_ridge_rule_of_the_smallest_left_out_error(rng: np.random.Generator) -> None:
    x = rng.standard_normal((20, 4))
    y = (x @ [1.0, -0.5, 0.0, 0.2] + rng.standard_normal(20)).astype(np.float32)
    penalties = np.logspace(-3, 3, 25) * 20
    best = penalties[int(np.argmin([left_out_error(x, y.astype(float), penalty) for penalty in penalties]))]
    a, b = x - x.mean(axis=0), y - y.mean()
    slopes = np.linalg.solve(a.T @ a + best * np.eye(4), a.T @ b)
    found = aligned_rotation(x, y)
    np.testing.assert_allclose(found[0], slopes / np.linalg.norm(slopes), rtol=1e-5)
    np.testing.assert_allclose(found @ found.T, np.eye(4), atol=1e-12)
    np.testing.assert_allclose(found, found.T, atol=1e-12)


def test_a_planted_direction_is_found_whichever_it_is_and_missing_scores_are_passed_over(
    rng: np.random.Generator,
) -> None:
    x = rng.standard_normal((200, 3))
    for planted in (np.array([0.6, 0.0, 0.8]), np.array([1.0, 0, 0]), np.array([-1.0, 0, 0])):
        y = (x @ planted + 0.1 * rng.standard_normal(200)).astype(np.float32)
        y[:20] = np.nan
        assert aligned_rotation(x, y)[0] @ planted > 0.99


def small(array: np.ndarray) -> Volumes:
    ids = pd.Index([f"s{index:02d}" for index in range(len(array))], name="scan_id")
    scans = pd.DataFrame({"subject_id": ids, "dataset": "one"}, index=ids)
    grid = Grid(array.shape[1:], np.diag([4.0, 4.0, 4.0, 1.0]))
    return volumes_in_memory(array, mask=np.ones(array.shape[1:], bool), grid=grid, scans=scans)


def test_slopes_are_the_ridge_regression_of_the_smallest_left_out_error(rng: np.random.Generator) -> None:
    c = rng.standard_normal((18, 2)).astype(np.float32)
    volumes = small(rng.standard_normal((18, 5, 4, 3)) + 0.6 * c[:, :1, None, None])
    rows = np.arange(1, 17)
    found = voxel_pca(volumes, rows, 3, seed=0, conditions=c)
    x, given = volumes.masked(rows).astype(float), c[rows].astype(float)
    penalties = [*np.logspace(-3, 3, 25) * 16, 1e12]
    best = penalties[int(np.argmin([left_out_error(given, x, penalty) for penalty in penalties]))]
    assert penalties[0] < best < penalties[-1]
    a = given - given.mean(axis=0)
    slopes = np.linalg.solve(a.T @ a + best * np.eye(2), a.T @ (x - x.mean(axis=0)))
    np.testing.assert_allclose(found.slopes, slopes, rtol=1e-3, atol=1e-5)
    left = x - x.mean(axis=0) - a @ slopes
    values, axes = np.linalg.svd(left, full_matrices=False)[1:]
    np.testing.assert_allclose(found.sd, values[:3] / np.sqrt(15), rtol=1e-3)
    np.testing.assert_allclose(np.abs(np.sum(found.components * axes[:3], axis=1)), 1, rtol=1e-3)
    # The mean is that of a scan whose conditions are zero.
    np.testing.assert_allclose(found.mean, x.mean(axis=0) - given.mean(axis=0) @ slopes, rtol=1e-3, atol=1e-4)


def test_the_penalty_is_that_of_fits_without_the_scan_also_of_few_scans(rng: np.random.Generator) -> None:
    found, expected = [], []
    for _ in range(12):
        c = rng.standard_normal((6, 1)).astype(np.float32)
        volumes = small(rng.standard_normal((6, 3, 3, 2)) + 0.4 * c[:, :1, None, None])
        x, a = volumes.masked(range(6)).astype(float), c.astype(float) - c.astype(float).mean(axis=0)
        penalties = [*np.logspace(-3, 3, 25) * 6, 6e12]
        best = penalties[int(np.argmin([left_out_error(a, x, penalty) for penalty in penalties]))]
        found.append(np.linalg.norm(voxel_pca(volumes, np.arange(6), 2, seed=0, conditions=c).slopes))
        expected.append(np.linalg.norm(a.T @ (x - x.mean(axis=0)) / ((a**2).sum() + best)))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)


def test_conditions_that_tell_nothing_are_not_heard(rng: np.random.Generator) -> None:
    volumes = small(rng.standard_normal((20, 9, 8, 7)))
    c = rng.standard_normal((20, 1)).astype(np.float32)
    found = voxel_pca(volumes, np.arange(20), 3, seed=0, conditions=c).slopes
    a = c - c.mean(axis=0)
    least_squares = np.linalg.lstsq(a, volumes.masked(range(20)), rcond=None)[0]
    assert np.linalg.norm(found) < 0.2 * np.linalg.norm(least_squares)


@pytest.fixture
def planted(rng: np.random.Generator) -> tuple[Volumes, pd.DataFrame, pd.DataFrame, np.ndarray]:
    """Sixty scans: age makes one blob larger, a score another, and two blobs vary by themselves."""
    axes = np.meshgrid(*[np.linspace(-1, 1, side) for side in SHAPE], indexing="ij")
    places = [(-0.5, 0.3, 0.2), (0.5, -0.4, 0.0), (0.0, 0.5, -0.5), (0.3, 0.4, 0.5)]
    blobs = np.stack([np.exp(-sum((a - p) ** 2 for a, p in zip(axes, place, strict=True)) / 0.1) for place in places])
    weights = rng.standard_normal((60, 4))
    # Causes that happen to go together in few training scans cannot be told apart by anybody.
    weights[:36] = np.linalg.qr(weights[:36] - weights[:36].mean(axis=0))[0] * 6
    weights *= [0.3, 0.25, 0.4, 0.35]
    array = 1 + np.tensordot(weights, blobs, axes=1) + 0.05 * rng.standard_normal((60, *SHAPE))
    volumes = small(array)
    volumes = replace(volumes, mask=sum(axis**2 for axis in axes) < 0.9)
    part = ["train"] * 36 + ["validation"] * 8 + ["test"] * 16
    parts = pd.DataFrame({"subject_id": volumes.scans["subject_id"], "part": part})
    score = weights[:, 1] / 0.25 + 0.3 * rng.standard_normal(60)
    known = volumes.scans.assign(age=60 + 10 * weights[:, 0] / 0.3, score=score)
    return volumes, parts, known, blobs[0] * 0.3


def latents_of(trained: Any, volumes: Volumes, scans: pd.DataFrame) -> np.ndarray:
    conditions = trained.conditions.values(scans)
    rows = np.arange(len(volumes.scans))
    chunks = posteriors(trained.module, volumes, rows, batch_size=60, conditions=conditions)
    return np.concatenate([posterior.mean.numpy() for *_, posterior in chunks])


@pytest.mark.parametrize("name", ["autoencoder", "vae"])
def test_a_told_decoder_draws_the_condition_and_the_latents_leave_it(
    planted: tuple[Volumes, pd.DataFrame, pd.DataFrame, np.ndarray], tmp_path: Path, name: str
) -> None:
    volumes, parts, scans, effect = planted
    config = ModelConfig(name=name, n_latent=4, channels=(4, 8))
    settings = TrainConfig(n_epochs=1)
    told = train(volumes, parts, replace(config, condition=("age",)), settings, tmp_path / "told", scans=scans)
    bare = train(volumes, parts, config, settings, tmp_path / "bare")
    with torch.no_grad():
        z = torch.from_numpy(latents_of(told, volumes, scans)[-3:])
        drawn = [told.module.decode(z, torch.full((3, 1), float(value)))[:, 0] for value in (0, 1)]
    difference = (drawn[1] - drawn[0]).mean(dim=0).numpy()[volumes.mask]
    planted_effect = effect[volumes.mask]
    # One SD of age in training is not quite that of the population, and ridge regression draws less than there is.
    sd = scans.loc[parts["part"] == "train", "age"].std(ddof=0) / 10
    assert np.corrcoef(difference, planted_effect)[0, 1] > 0.95
    assert np.polyfit(sd * planted_effect, difference, 1)[0] == pytest.approx(0.9, abs=0.15)
    held_out = (parts["part"] == "test").to_numpy()
    known = [
        max(abs(np.corrcoef(z[held_out].T, scans["age"][held_out])[-1, :-1]))
        for z in (latents_of(told, volumes, scans), latents_of(bare, volumes, scans))
    ]
    assert known[0] < 0.6 < known[1]


@pytest.mark.slow
def test_from_nothing_a_network_learns_what_it_is_told(
    planted: tuple[Volumes, pd.DataFrame, pd.DataFrame, np.ndarray], tmp_path: Path
) -> None:
    volumes, parts, scans, effect = planted
    config = ModelConfig(n_latent=3, channels=(4, 8), anchor="none", condition=("age",))
    trained = train(
        volumes, parts, config, TrainConfig(n_epochs=20, patience=20, learning_rate=5e-3), tmp_path, scans=scans
    )
    with torch.no_grad():
        z = torch.from_numpy(latents_of(trained, volumes, scans)[-16:])
        drawn = [trained.module.decode(z, torch.full((16, 1), float(value)))[:, 0] for value in (-1, 1)]
    difference = (drawn[1] - drawn[0]).mean(dim=0).numpy()[volumes.mask] / 2
    assert np.corrcoef(difference, effect[volumes.mask])[0, 1] > 0.6


@pytest.mark.parametrize("name", ["autoencoder", "vae"])
def test_an_aligned_latent_follows_the_score_of_people_never_seen(
    planted: tuple[Volumes, pd.DataFrame, pd.DataFrame, np.ndarray], tmp_path: Path, name: str
) -> None:
    volumes, parts, scans, _ = planted
    held_out = (parts["part"] == "test").to_numpy()
    # The score of all others is a lie, so it cannot have been looked at.
    told = scans.assign(score=scans["score"].where(parts["part"] == "train", 1e3))
    found = []
    for align in ("score", ""):
        config = ModelConfig(name=name, n_latent=4, channels=(4, 8), align=align)
        trained = train(volumes, parts, config, TrainConfig(n_epochs=1), tmp_path / (align or "bare"), scans=told)
        first = latents_of(trained, volumes, scans)[:, 0]
        found.append(float(np.corrcoef(first[held_out], scans["score"][held_out])[0, 1]))
    assert found[0] > 0.7
    assert found[0] > abs(found[1]) + 0.2
