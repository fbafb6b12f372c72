import numpy as np
import pytest

from nilatent.preprocess import resampling
from nilatent.volumes import Grid

SHAPE = (23, 27, 21)


def blob(rng):
    """A smooth, lopsided, positive blob away from the edges."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, side) for side in SHAPE), indexing="ij")
    return (np.exp(-6 * ((x + 0.2) ** 2 + y**2 + (z - 0.1) ** 2)) + 0.01 * rng.random(SHAPE)).astype(np.float32)


def random_affine(rng):
    affine = np.eye(4)
    affine[:3, :3] += rng.normal(0, 0.08, (3, 3))
    affine[:3, 3] = rng.normal(0, 4, 3)
    return affine


@pytest.mark.parametrize("spacing_mm", [3.0, 6.0])
def test_modulated_resampling_keeps_the_volume(rng, spacing_mm):
    # Finer than the grid, so that taking the nearest points would lose most of what is there.
    data = np.zeros((61, 73, 67), dtype=np.float32)
    data[18:44, 20:51, 21:45] = rng.random((26, 31, 24)) > 0.8
    affine = np.diag([2.0, 2, 2, 1])
    affine[:3, 3] = (-60, -90, -62)
    to_grid = random_affine(rng)
    grid = Grid.mni(spacing_mm)
    moved = resampling.resample(data, affine, grid, to_grid=to_grid, modulate=True)
    assert moved.sum() * grid.voxel_ml == pytest.approx(data.sum() * 0.008, rel=0.01)
    plain = resampling.resample(data, affine, grid, to_grid=to_grid, modulate=False)
    np.testing.assert_allclose(plain, moved * resampling.volume_change(to_grid), rtol=1e-5)


def test_resampling_does_not_alias(rng):
    """A checkerboard finer than the grid becomes its mean, not a pattern."""
    data = (np.indices((96, 96, 96)).sum(axis=0) % 2).astype(np.float32)
    affine = np.eye(4)
    affine[:3, 3] = (-48, -65, -43)
    moved = resampling.resample(data, affine, Grid.mni(4.0), to_grid=np.eye(4), modulate=True)
    inside = resampling.resample(np.ones_like(data), affine, Grid.mni(4.0), to_grid=np.eye(4), modulate=True) > 0.999
    assert inside.sum() > 1000
    np.testing.assert_allclose(moved[inside], 0.5, atol=0.02)


def test_a_map_on_the_grid_comes_back_unchanged(rng):
    grid = Grid.mni(6.0)
    data = rng.random(grid.shape).astype(np.float32)
    np.testing.assert_array_equal(resampling.resample(data, grid.affine, grid, to_grid=np.eye(4), modulate=False), data)


def test_crop_moves_the_affine(rng):
    data = blob(rng)
    affine = random_affine(rng) @ np.diag([6.0, 6, 6, 1])
    box, moved = resampling.box_around(data > 0.6, affine, margin_mm=6.0)
    corner = [piece.start for piece in box]
    assert data[box].size < data.size
    assert data[box].max() == data.max()
    np.testing.assert_allclose(moved @ (0, 0, 0, 1), affine @ (*corner, 1))


def test_smoothing_has_the_width_it_says():
    data = np.zeros((41, 41, 41), dtype=np.float32)
    data[20, 20, 20] = 1
    moved = resampling.smooth(data, fwhm_mm=12.0, spacing_mm=2.0)
    # Half of the maximum lies half a width, three voxels, from the centre.
    assert moved[23, 20, 20] / moved[20, 20, 20] == pytest.approx(0.5, rel=0.01)
    assert moved.sum() == pytest.approx(1, rel=1e-3)
    np.testing.assert_array_equal(resampling.smooth(data, fwhm_mm=0.0, spacing_mm=2.0), data)


def test_pull_is_the_way_back_of_resample(rng):
    grid = Grid.mni(6.0)
    data = blob(rng)
    to_grid = random_affine(rng)
    affine = np.diag([6.0, 6, 6, 1])
    affine[:3, 3] = (-66, -90, -58)
    there = resampling.resample(data, affine, grid, to_grid=to_grid, modulate=False)
    back = resampling.pull(grid.to_image(there), data.shape, affine, to_grid)
    core = np.s_[4:-4, 4:-4, 4:-4]
    assert np.corrcoef(back[core].ravel(), data[core].ravel())[0, 1] > 0.98


def test_share_inside_counts_the_field_of_view(rng):
    grid = Grid.mni(6.0)
    everywhere = np.ones(grid.shape, dtype=bool)
    half = (16, min(32, grid.shape[1]), 32)
    expected = min(1, np.prod(half) / everywhere.size)
    assert resampling.share_inside(half, grid.affine, everywhere, grid) == pytest.approx(expected, abs=0.01)
