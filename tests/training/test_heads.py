from dataclasses import dataclass, replace

import numpy as np
import pytest

from nilatent.errors import SettingError
from nilatent.training.heads import HeadConfig, fit_network, fit_predict, inner_part

GRID = (2, 5, 6, 5)
QUICK = HeadConfig(n_epochs=15, patience=15)


@dataclass(frozen=True)
class Asked:
    kind: str = "binary"
    levels: tuple[str, ...] = ("control", "patient")


def planted(
    rng: np.random.Generator, n: int = 60, *, n_classes: int = 2, strength: float = 3.0
) -> tuple[np.ndarray, np.ndarray]:
    """Noise on the grid; a class stands out in one cell and its neighbour."""
    y = rng.permutation(np.arange(n) % n_classes)
    maps = rng.standard_normal((n, *GRID))
    maps[:, 1, 3, 4, 2] += strength * y
    maps[:, 1, 3, 3, 2] -= strength * y
    return maps.reshape(n, -1), y


def test_a_planted_local_pattern_is_learned(rng: np.random.Generator) -> None:
    x, y = planted(rng, 120, strength=5.0)
    scores = fit_predict(GRID, QUICK, seed=0)(x[:80], y[:80], x[80:], Asked())
    assert scores.shape == (40, 2)
    np.testing.assert_allclose(scores.sum(axis=1), 1.0, atol=1e-6)
    assert np.mean(scores.argmax(axis=1) == y[80:]) > 0.85


def test_noise_gives_chance(rng: np.random.Generator) -> None:
    right = []
    for seed in range(3):
        x, y = planted(rng, 120, strength=0.0)
        scores = fit_predict(GRID, replace(QUICK, n_epochs=6), seed=seed)(x[:60], y[:60], x[60:], Asked())
        right.append(np.mean((scores[:, 1] > scores[:, 0]) == y[60:]) if np.ptp(scores) > 0 else 0.5)
    assert abs(np.mean(right) - 0.5) < 0.17


def test_a_number_is_learned_in_its_own_units(rng: np.random.Generator) -> None:
    age = 60.0 + 8.0 * rng.standard_normal(120)
    maps = rng.standard_normal((120, *GRID))
    maps[:, 0, 1:3, 2:4, 3:5] += (age[:, None, None, None] - 60.0) / 4.0
    x = maps.reshape(120, -1)
    found = fit_predict(GRID, QUICK, seed=0)(x[:80], age[:80], x[80:], Asked("continuous", ()))
    assert found.shape == (40, 1)
    assert np.corrcoef(found[:, 0], age[80:])[0, 1] > 0.7
    assert abs(found.mean() - 60.0) < 5.0


def test_the_same_seed_gives_the_same_and_another_another(rng: np.random.Generator) -> None:
    x, y = planted(rng, 40)
    quick = replace(QUICK, n_epochs=3, patience=3)
    first, again, other = (fit_predict(GRID, quick, seed=seed)(x, y, x, Asked()) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-4


def test_what_is_said_of_a_scan_does_not_depend_on_other_test_scans(rng: np.random.Generator) -> None:
    x, y = planted(rng, 44, strength=6.0)
    fitted = fit_predict(GRID, replace(QUICK, n_epochs=8), seed=0)
    together = fitted(x[:40], y[:40], x[40:], Asked())
    beside = np.vstack([x[41:42], 1e3 * x[40:41]])
    np.testing.assert_allclose(fitted(x[:40], y[:40], beside, Asked())[0], together[1], atol=1e-6)
    assert np.ptp(together) > 1e-3


def test_inputs_are_standardised_by_the_scans_that_move_the_weights(rng: np.random.Generator) -> None:
    x, y = planted(rng, 40)
    x = 7.0 + 3.0 * x
    quick = replace(QUICK, n_epochs=1)
    head = fit_network(x, y, grid=GRID, kind="binary", levels=("a", "b"), config=quick, seed=0)
    names = np.arange(40).astype(str)
    outer = x[~inner_part(y, names, classes=True, fraction=quick.validation_fraction, seed=0)]
    np.testing.assert_allclose(head.centre, outer.mean(axis=0))
    per_channel = np.sqrt(np.square(outer - outer.mean(axis=0)).reshape(len(outer), 2, -1).mean(axis=(0, 2)))
    np.testing.assert_allclose(head.scale[[0, -1]], per_channel)
    assert len(np.unique(head.scale)) == 2


def test_the_unit_of_the_latents_does_not_matter(rng: np.random.Generator) -> None:
    x, y = planted(rng, 40)
    fitted = fit_predict(GRID, replace(QUICK, n_epochs=3), seed=0)
    np.testing.assert_allclose(
        fitted(100.0 * x + 5.0, y, 100.0 * x[:4] + 5.0, Asked()), fitted(x, y, x[:4], Asked()), atol=1e-4
    )


def test_the_inner_part_is_of_whole_subjects_and_of_every_class(rng: np.random.Generator) -> None:
    subjects = np.repeat(np.arange(30), 2).astype(str)
    y = np.repeat(np.where(np.arange(30) < 4, 2, np.arange(30) % 2), 2)
    marks = inner_part(y, subjects, classes=True, fraction=0.2, seed=0)
    assert not set(subjects[marks]) & set(subjects[~marks])
    assert set(y[marks]) == set(y[~marks]) == {0, 1, 2}
    assert marks.sum() == 2 * (3 + 3 + 1)
    other = inner_part(y, subjects, classes=True, fraction=0.2, seed=1)
    assert (marks != other).any()


def test_the_inner_part_of_a_number_spans_its_range(rng: np.random.Generator) -> None:
    y = rng.permutation(100).astype(float)
    marks = inner_part(y, np.arange(100).astype(str), classes=False, fraction=0.2, seed=0)
    assert marks.sum() == 20
    assert np.histogram(y[marks], bins=4, range=(0, 100))[0].tolist() == [5, 5, 5, 5]


def test_a_class_of_one_subject_is_refused(rng: np.random.Generator) -> None:
    x, _ = planted(rng, 10)
    y = np.array([1] + [0] * 9)
    with pytest.raises(SettingError, match="two subjects of every class"):
        fit_network(x, y, grid=GRID, kind="binary", levels=("a", "b"), config=QUICK, seed=0)


def test_latents_of_another_grid_are_refused(rng: np.random.Generator) -> None:
    x, y = planted(rng, 10)
    with pytest.raises(SettingError, match="do not lie on the grid"):
        fit_network(x[:, 1:], y, grid=GRID, kind="binary", levels=("a", "b"), config=QUICK, seed=0)


@pytest.mark.parametrize(
    "wrong", [{"gamma": -1.0}, {"channels": (6,)}, {"validation_fraction": 1.0}, {"device": "tpu"}, {"n_epochs": 0}]
)
def test_settings_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(SettingError, match=next(iter(wrong))):
        HeadConfig(**wrong)


@pytest.mark.parametrize(
    "change", [{"weighted": False}, {"gamma": 0.0}, {"weight_decay": 5.0}, {"input_noise": 0.0}, {"batch_size": 4}]
)
def test_every_setting_counts(change: dict[str, object], rng: np.random.Generator) -> None:
    x, _ = planted(rng, 40)
    y = (np.arange(40) < 10).astype(int)
    x.reshape(-1, *GRID)[:, 0, 2, 2, 2] += 4.0 * y
    quick = replace(QUICK, n_epochs=2, patience=2)
    found = [fit_predict(GRID, config, seed=0)(x, y, x, Asked()) for config in (quick, replace(quick, **change))]
    assert np.abs(found[0] - found[1]).max() > 1e-5


@pytest.mark.slow
def test_class_weights_raise_the_sensitivity_for_a_rare_class(rng: np.random.Generator) -> None:
    sensitivity = {True: [], False: []}
    for seed in range(2):
        y = (rng.random(400) < 0.08).astype(int)
        maps = rng.standard_normal((400, *GRID))
        maps[:, 1, 3, 3:5, 2] += 1.2 * y[:, None]
        x = maps.reshape(400, -1)
        for helped in (True, False):
            config = replace(QUICK, weighted=helped)
            scores = fit_predict(GRID, config, seed=seed)(x[:250], y[:250], x[250:], Asked())
            sensitivity[helped].append(np.mean(scores.argmax(axis=1)[y[250:] == 1] == 1))
    assert np.mean(sensitivity[True]) > np.mean(sensitivity[False]) + 0.2


def test_a_subject_whose_class_changes_counts_with_the_later_one(rng: np.random.Generator) -> None:
    subjects, y = np.repeat(np.arange(30), 2).astype(str), np.tile([0, 1], 30)
    marks = inner_part(y, subjects, classes=True, fraction=0.2, seed=0)
    assert not set(subjects[marks]) & set(subjects[~marks])
    assert marks.sum() == 12
