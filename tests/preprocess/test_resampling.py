from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

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
    (back,) = resampling.pull([grid.to_image(there)], data.shape, affine, to_grid)
    core = np.s_[4:-4, 4:-4, 4:-4]
    assert np.corrcoef(back[core].ravel(), data[core].ravel())[0, 1] > 0.98


def test_share_inside_counts_the_field_of_view(rng):
    grid = Grid.mni(6.0)
    everywhere = np.ones(grid.shape, dtype=bool)
    half = (16, min(32, grid.shape[1]), 32)
    expected = min(1, np.prod(half) / everywhere.size)
    assert resampling.share_inside(half, grid.affine, everywhere, grid) == pytest.approx(expected, abs=0.01)


def wavy_warp(grid):
    """Forward waves of a few millimetres, and their inverse by fixed-point iteration at the nodes."""
    nodes = (
        np.einsum("ij,j...->i...", grid.affine[:3, :3], np.indices(grid.shape)) + grid.affine[:3, 3, None, None, None]
    )

    def forward(x):
        return np.stack([3 * np.sin(x[1] / 25), 2 * np.cos(x[2] / 20) + x[0] / 30, 2 * np.sin(x[0] / 30)])

    inverse = np.zeros_like(nodes)
    for _ in range(30):
        inverse = -forward(nodes + inverse)
    return resampling.Warp(forward(nodes).astype(np.float32), inverse.astype(np.float32), grid), forward


def ball_of(shape, affine, centre, radius_mm):
    points = np.einsum("ij,j...->i...", affine[:3, :3], np.indices(shape)) + affine[:3, 3, None, None, None]
    return np.clip(radius_mm - np.linalg.norm(points - np.reshape(centre, (3, 1, 1, 1)), axis=0), 0, 3) / 3


def test_the_jacobian_of_the_whole_mapping_keeps_the_volume(rng):
    warp, _ = wavy_warp(Grid.mni(4.0))
    # Waves keep most of the volume; a stretch by six per cent along each axis does not.
    x, y, z = np.indices(warp.grid.shape) * 4.0
    warp = replace(warp, forward=(warp.forward + 0.06 * np.stack([x - 80, y - 80, z - 80])).astype(np.float32))
    affine = np.diag([2.0, 2.5, 3.0, 1])
    affine[:3, 3] = (-70, -100, -70)
    data = ball_of((71, 81, 51), affine, (5, -20, 10), 40).astype(np.float32)
    to_grid = np.diag([1.1, 0.95, 1.0, 1])
    grid = Grid.mni(4.0)
    kept, plain = resampling.resample_warped(
        [data, data], affine, grid, to_grid=to_grid, warp=warp, modulate=[True, False]
    )
    volume_ml = data.sum() * 0.015
    assert kept.sum() * grid.voxel_ml == pytest.approx(volume_ml, rel=0.01)
    assert plain.max() == pytest.approx(1, abs=1e-5)
    assert plain.sum() * grid.voxel_ml < 0.95 * volume_ml


def test_a_warped_map_is_found_where_the_forward_warp_says(rng):
    grid = Grid.mni(4.0)
    warp, forward = wavy_warp(grid)
    place = np.array([20.0, -30.0, 15.0])
    subject = (place + forward(place)) / [1.1, 0.95, 1.0] - [4, 5, 6]
    to_grid = np.diag([1.1, 0.95, 1.0, 1])
    to_grid[:3, 3] = to_grid[:3, :3] @ (4, 5, 6)
    affine = np.diag([2.0, 2, 2, 1])
    affine[:3, 3] = (-80, -110, -70)
    data = ball_of((81, 91, 81), affine, subject, 12).astype(np.float32)
    (moved,) = resampling.resample_warped([data], affine, grid, to_grid=to_grid, warp=warp, modulate=[False])
    found = grid.affine[:3, :3] @ (np.indices(grid.shape).reshape(3, -1) * moved.ravel()).sum(axis=1) / moved.sum()
    np.testing.assert_allclose(found + grid.affine[:3, 3], place, atol=0.7)


def test_without_displacement_a_warp_changes_nothing(rng):
    grid = Grid.mni(6.0)
    still = np.zeros((3, *grid.shape), dtype=np.float32)
    warp = resampling.Warp(still, still, grid)
    affine = random_affine(rng) @ np.diag([3.0, 3, 3, 1])
    affine[:3, 3] -= 30
    data, to_grid = blob(rng), random_affine(rng)
    expected = resampling.resample(data, affine, grid, to_grid=to_grid, modulate=True)
    (moved,) = resampling.resample_warped([data], affine, grid, to_grid=to_grid, warp=warp, modulate=[True])
    np.testing.assert_allclose(moved, expected, atol=1e-4)


def test_looking_up_through_the_inverse_warp_undoes_the_forward_one():
    grid = Grid.mni(4.0)
    warp, _ = wavy_warp(grid)
    affine = np.diag([4.0, 4, 4, 1])
    affine[:3, 3] = (-76, -110, -70)
    data = ball_of((39, 47, 39), affine, (30, -50, 5), 15).astype(np.float32)
    (there,) = resampling.resample_warped([data], affine, grid, to_grid=np.eye(4), warp=warp, modulate=[False])

    _, to_template = resampling.displacements(data.shape, affine, np.eye(4), warp)

    def shift_mm(field):
        back = resampling.look_up(there, grid.affine, data.shape, affine, order=1, displacement=field)
        centres = [
            (np.indices(values.shape).reshape(3, -1) * values.ravel()).sum(axis=1) / values.sum()
            for values in (back, data)
        ]
        return 4 * np.linalg.norm(centres[0] - centres[1])

    assert shift_mm((to_template, affine)) < 0.5
    assert shift_mm(None) > 2


def test_displacements_lead_there_and_back():
    grid = Grid.mni(4.0)
    warp, _ = wavy_warp(grid)
    to_template = np.diag([1.1, 0.95, 1.0, 1])
    to_template[:3, 3] = (3, -4, 5)
    affine = np.diag([5.0, 5, 5, 1])
    affine[:3, 3] = (-30, -60, -30)
    to_scan, to_grid = resampling.displacements((13, 15, 11), affine, to_template, warp)
    voxel = (4, 7, 6)
    point = affine[:3, :3] @ voxel + affine[:3, 3]
    there = point + to_grid[(slice(None), *voxel)]
    in_grid = (there - grid.affine[:3, 3]) / grid.spacing_mm
    back = there + [ndimage.map_coordinates(part, in_grid[:, None], order=1)[0] for part in to_scan]
    np.testing.assert_allclose(back, point, atol=0.1)


def test_look_up_keeps_label_types_and_ends_where_the_field_ends(rng):
    grid = Grid.mni(6.0)
    labels = rng.integers(0, 400, grid.shape).astype(np.int16)
    same = resampling.look_up(labels, grid.affine, grid.shape, grid.affine, order=0)
    assert same.dtype == np.int16
    np.testing.assert_array_equal(same, labels)
    field = np.zeros((3, 3, 4, 5), dtype=np.float32)
    field[0] = 6.0
    moved = resampling.look_up(labels, grid.affine, grid.shape, grid.affine, order=0, displacement=(field, grid.affine))
    np.testing.assert_array_equal(moved[:3, :4, :5], labels[1:4, :4, :5])
    assert not moved[3:].any()
    assert not moved[:, 4:].any()
