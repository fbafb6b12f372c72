import numpy as np
import pytest
import torch

from nilatent.models.aggregate import mmd
from nilatent.training import prior


def posteriors(rng: np.random.Generator, n: int, n_latent: int, *, sd: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Posteriors whose aggregate is normal with this SD, half of its variance within scans."""
    means = np.sqrt(0.5) * sd * rng.standard_normal((n, n_latent))
    return means.astype(np.float32), np.full((n, n_latent), np.log(0.5 * sd**2), dtype=np.float32)


def test_the_discrepancy_is_that_of_the_model_s_own_term(rng: np.random.Generator) -> None:
    means = rng.standard_normal((12, 3)).astype(np.float32)
    found = prior.discrepancy(means, np.full_like(means, -60.0), seed=4)
    z, draws = torch.from_numpy(means), prior._prior(3, seed=4)[: prior.N_PRIOR_DRAWS]
    assert found == pytest.approx(float(mmd(z, z[:0], draws)), abs=1e-5)


def test_the_prior_itself_is_called_far_once_in_a_hundred_times(rng: np.random.Generator) -> None:
    by_chance, tolerated = prior.limits(40, 4, seed=0)
    values = np.array([prior.discrepancy(*posteriors(rng, 40, 4), seed=number) for number in range(150)])
    assert abs(values.mean()) < 4 * values.std() / np.sqrt(len(values))
    assert (values > by_chance).sum() <= 7
    assert (values > by_chance / 3).any()
    narrow = [prior.discrepancy(*posteriors(rng, 250, 4, sd=3**-0.5), seed=number) for number in range(8)]
    assert np.mean(narrow) == pytest.approx(tolerated, rel=0.15)


def test_clusters_are_far_from_the_prior_whatever_their_moments(rng: np.random.Generator) -> None:
    corners = np.array([[1, 1, 1, 1], [-1, -1, -1, -1], [1, -1, 1, -1], [-1, 1, -1, 1]], dtype=float)
    means = (0.95 * corners[np.arange(80) % 4] + 0.1 * rng.standard_normal((80, 4))).astype(np.float32)
    found = prior.distance(means, np.full_like(means, np.log(0.05)), seed=0)
    assert found.value > max(found.by_chance, found.tolerated)
    sound = prior.distance(*posteriors(rng, 80, 4), seed=0)
    assert sound.value < max(sound.by_chance, sound.tolerated)


def test_a_grid_becomes_one_row_per_scan_and_covered_cell() -> None:
    values = np.arange(2 * 3 * 8, dtype=np.float32).reshape(2, 24)
    cells = np.zeros((2, 2, 2), dtype=bool)
    cells[0, 1, 1] = cells[1, 0, 0] = True
    rows = prior.by_channel(values, (3, 2, 2, 2), cells)
    grid = values.reshape(2, 3, 2, 2, 2)
    np.testing.assert_array_equal(rows, [grid[s, :, a, b, c] for s in range(2) for a, b, c in ((0, 1, 1), (1, 0, 0))])
    assert prior.by_channel(values, (24,), None) is values
