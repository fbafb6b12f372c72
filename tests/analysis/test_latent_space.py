from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from nilatent.analysis.latent_space import LatentSpace
from nilatent.errors import LatentsError
from nilatent.latents import Frame

N, VALUES, COORDINATES = 8, 6, 2


def linear(latents: np.ndarray, told: pd.DataFrame | None) -> Iterator[np.ndarray]:
    """Twice the latents, plus what it is told, three rows at a time."""
    added = np.zeros(len(latents)) if told is None else told["age"].to_numpy()
    for start in range(0, len(latents), 3):
        yield (2 * latents + added[:, None])[start : start + 3].astype(np.float32)


@pytest.fixture
def space(rng: np.random.Generator) -> LatentSpace:
    """Two coordinates describe six values."""
    axes = np.linalg.qr(rng.normal(size=(VALUES, COORDINATES)))[0].T
    return LatentSpace(
        scans=pd.Index([f"scan-{i}" for i in range(N)], name="scan_id"),
        subjects=np.array([f"sub-{i // 2}" for i in range(N)]),
        values=rng.normal(size=(N, VALUES)),
        frame=Frame(rng.normal(size=VALUES), axes),
        variance=np.ones((N, COORDINATES)),
        names=("z000", "z001"),
        training=np.arange(N) < 4,
        unseen=np.arange(N) >= 6,
        has_prior=True,
        told=("age",),
        draw_latents=linear,
    )


def drawn(batches: Iterator[np.ndarray]) -> np.ndarray:
    return np.concatenate(list(batches))


def test_coordinates_are_projections_about_the_centre(space: LatentSpace) -> None:
    expected = [[(value - space.frame.centre) @ axis for axis in space.frame.axes] for value in space.values]
    np.testing.assert_allclose(space.coordinates, expected)
    assert space.coordinates.dtype == np.float64


def test_a_place_is_drawn_at_its_latents(space: LatentSpace, rng: np.random.Generator) -> None:
    places = rng.normal(size=(7, COORDINATES))
    latents = space.frame.centre + sum(places[:, [k]] * space.frame.axes[k] for k in range(COORDINATES))
    np.testing.assert_allclose(drawn(space.draw(places)), 2 * latents, rtol=1e-5)
    # What no coordinate describes is that of the centre, and not that of any scan.
    np.testing.assert_allclose(space.frame.coordinates(drawn(space.draw(places)) / 2), places, atol=1e-5)


def test_a_scan_that_is_not_moved_stays_itself(space: LatentSpace) -> None:
    rows = np.array([5, 0, 5])
    stayed = drawn(space.moved(rows, np.zeros((3, COORDINATES))))
    np.testing.assert_allclose(stayed, 2 * space.values[rows], rtol=1e-5)


def test_a_step_moves_the_coordinates_and_nothing_else(space: LatentSpace, rng: np.random.Generator) -> None:
    rows, steps = np.array([1, 6, 2, 2]), rng.normal(size=(4, COORDINATES))
    moved = drawn(space.moved(rows, steps)) / 2
    np.testing.assert_allclose(space.frame.coordinates(moved), space.coordinates[rows] + steps, atol=1e-5)
    across = np.eye(VALUES) - space.frame.axes.T @ space.frame.axes
    np.testing.assert_allclose(moved @ across, space.values[rows] @ across, atol=1e-5)


def test_what_is_told_reaches_the_decoder(space: LatentSpace) -> None:
    told = pd.DataFrame({"age": [1.0, 10.0]})
    places, rows = np.zeros((2, COORDINATES)), np.array([0, 1])
    for with_it, without in (
        (space.draw(places, told), space.draw(places)),
        (space.moved(rows, places, told), space.moved(rows, places)),
    ):
        difference = drawn(with_it) - drawn(without)
        np.testing.assert_allclose(difference, np.repeat([[1.0], [10.0]], VALUES, axis=1), atol=1e-5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"subjects": np.array(["sub-0"] * (N - 1))},
        {"values": np.zeros((N - 1, VALUES))},
        {"variance": np.ones((N, COORDINATES + 1))},
        {"variance": np.ones((N + 1, COORDINATES))},
        {"names": ("z000",)},
        {"training": np.zeros(N + 1, dtype=bool)},
        {"unseen": np.zeros(N - 1, dtype=bool)},
        {"frame": Frame(np.zeros(VALUES), np.eye(VALUES)[:3])},
        {"frame": Frame(np.zeros(4), np.eye(4)[:2])},
    ],
)
def test_parts_that_do_not_fit_together_are_refused(space: LatentSpace, wrong: dict[str, object]) -> None:
    with pytest.raises(LatentsError, match="one row per scan"):
        replace(space, **wrong)


def test_a_subject_in_training_and_unseen_is_refused(space: LatentSpace) -> None:
    with pytest.raises(LatentsError, match="both in training and unseen"):
        replace(space, unseen=np.arange(N) == 3, training=np.arange(N) == 2)
