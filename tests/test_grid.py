import numpy as np
import pytest
from scipy import ndimage

from nilatent.grid import Grid, average_to_grid


@pytest.mark.parametrize("spacing_mm", [2.0, 3.5, 6.0])
@pytest.mark.parametrize("steps", [(1.3, 0.9, 2.0), (-2.0, 2.0, -2.0), (7.0, -8.0, 5.0)])
def test_parallel_axes_give_the_mean_of_dense_samples(
    rng: np.random.Generator, spacing_mm: float, steps: tuple[float, float, float]
) -> None:
    """Against samples taken one by one, flipped and finer or coarser than the grid, over the edges of the image."""
    shape = np.array([int(170 / abs(step)) | 1 for step in steps])
    data = rng.random(shape).astype(np.float32)
    affine = np.diag([*steps, 1.0])
    affine[:3, 3] = np.array([5.0, -20.0, 3.0]) - np.array(steps) * (shape - 1) / 2
    grid = Grid.mni(spacing_mm)
    found = average_to_grid(data, affine, grid)
    n_sub = max(1, int(np.ceil(spacing_mm / np.abs(steps).min() - 1e-6)))
    offsets = (np.arange(n_sub) + 0.5) / n_sub - 0.5
    voxels = np.stack([rng.integers(0, side, 300) for side in grid.shape], axis=1)
    each = np.stack(np.meshgrid(offsets, offsets, offsets, indexing="ij"), axis=-1).reshape(-1, 3)
    points = (voxels[:, None] + each[None]).reshape(-1, 3) @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    to_source = np.linalg.inv(affine)
    sampled = ndimage.map_coordinates(
        data, (points @ to_source[:3, :3].T + to_source[:3, 3]).T, order=1, mode="grid-constant"
    )
    expected = sampled.reshape(300, -1).mean(axis=1)
    assert (expected > 0).sum() > 100
    np.testing.assert_allclose(found[tuple(voxels.T)], expected, atol=1e-5)


def test_a_slight_turn_takes_the_other_way_to_the_same_mean(rng: np.random.Generator) -> None:
    data = ndimage.gaussian_filter(rng.random((61, 71, 59)).astype(np.float32), 3)
    affine = np.diag([3.0, 3.0, 3.0, 1.0])
    affine[:3, 3] = (-90, -120, -80)
    turned = affine.copy()
    turned[0, 1] = 1e-6
    grid = Grid.mni(4.0)
    np.testing.assert_allclose(average_to_grid(data, affine, grid), average_to_grid(data, turned, grid), atol=1e-4)
