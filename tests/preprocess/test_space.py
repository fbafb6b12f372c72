import gzip

import nibabel as nib
import numpy as np
import pytest

from nilatent.errors import ScanError
from nilatent.preprocess import space
from nilatent.volumes import Grid

SHAPE = (23, 27, 21)


def blob(rng):
    """A smooth, lopsided, positive blob away from the edges."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, side) for side in SHAPE), indexing="ij")
    return (np.exp(-6 * ((x + 0.2) ** 2 + y**2 + (z - 0.1) ** 2)) + 0.01 * rng.random(SHAPE)).astype(np.float32)


def save(path, data, affine=None):
    nib.save(nib.Nifti1Image(data, np.diag([6.0, 6, 6, 1]) if affine is None else affine), path)
    return path


@pytest.mark.parametrize("axes", ["RAS", "LAS", "LPS", "PSR", "AIL"])
def test_left_stays_left_whatever_the_storage(tmp_path, rng, axes):
    data = blob(rng)
    data[3, 13, 15] = 9.0
    affine = np.diag([6.0, 6, 6, 1])
    affine[:3, 3] = (-66, -78, -60)
    marker_mm = affine @ (3, 13, 15, 1)
    image = nib.Nifti1Image(data, affine)
    turn = nib.orientations.ornt_transform(nib.io_orientation(affine), nib.orientations.axcodes2ornt(axes))
    nib.save(image.as_reoriented(turn), tmp_path / "scan.nii.gz")
    scan = space.load_scan(tmp_path / "scan.nii.gz")
    found = np.unravel_index(scan.data.argmax(), scan.data.shape)
    assert scan.stored_axes == axes
    assert marker_mm[0] < 0
    np.testing.assert_allclose(scan.affine @ (*found, 1), marker_mm, atol=1e-4)
    np.testing.assert_array_equal(scan.data, data)


def broken(name, path, rng):
    data = blob(rng)
    if name == "file exists":
        return path
    if name == "file not empty":
        path.write_bytes(b"")
    elif name == "readable":
        save(path, data)
        path.write_bytes(path.read_bytes()[:5000])
    elif name == "three dimensions":
        save(path, np.stack([data, data], axis=-1))
    elif name == "finite values":
        save(path, np.where(data > 0.5, np.nan, data).astype(np.float32))
    elif name == "not constant":
        save(path, np.ones_like(data))
    elif name == "voxel size":
        save(path, data, np.diag([6.0, 6.5, 6, 1]))
    elif name == "extent":
        save(path, data, np.diag([4.0, 6, 6, 1]))
    elif name == "right-angled axes":
        affine = np.diag([5.5, 5.5, 5.5, 1])
        affine[0, 1] = 1.5
        save(path, data, affine)
    elif name == "plausible size":
        image = nib.Nifti1Image(data, np.diag([6.0, 6, 6, 1]))
        header = bytearray(image.to_bytes())
        header[42:48] = np.array([30000, 30000, 30000], dtype="<i2").tobytes()
        path.write_bytes(gzip.compress(bytes(header)))
    return path


BROKEN_RULES = """
file exists; file not empty; readable; three dimensions; finite values; not constant; voxel size; extent;
right-angled axes; plausible size
"""


@pytest.mark.parametrize("rule", [rule.strip() for rule in BROKEN_RULES.split(";")])
def test_bad_scan_is_refused_by_rule_and_file(tmp_path, rng, rule):
    path = broken(rule, tmp_path / "scan.nii.gz", rng)
    with pytest.raises(ScanError, match=f"rule '{rule}'") as caught:
        space.load_scan(path)
    assert caught.value.rule == rule
    assert str(path) in str(caught.value)


def test_a_last_axis_of_length_one_is_no_fourth_dimension(tmp_path, rng):
    data = blob(rng)
    assert space.load_scan(save(tmp_path / "scan.nii.gz", data[..., None])).data.shape == SHAPE


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
    moved = space.resample(data, affine, grid, to_grid=to_grid, modulate=True)
    assert moved.sum() * grid.voxel_ml == pytest.approx(data.sum() * 0.008, rel=0.01)
    plain = space.resample(data, affine, grid, to_grid=to_grid, modulate=False)
    np.testing.assert_allclose(plain, moved * space.volume_change(to_grid), rtol=1e-5)


def test_resampling_does_not_alias(rng):
    """A checkerboard finer than the grid becomes its mean, not a pattern."""
    data = (np.indices((96, 96, 96)).sum(axis=0) % 2).astype(np.float32)
    affine = np.eye(4)
    affine[:3, 3] = (-48, -65, -43)
    moved = space.resample(data, affine, Grid.mni(4.0), to_grid=np.eye(4), modulate=True)
    inside = space.resample(np.ones_like(data), affine, Grid.mni(4.0), to_grid=np.eye(4), modulate=True) > 0.999
    assert inside.sum() > 1000
    np.testing.assert_allclose(moved[inside], 0.5, atol=0.02)


def test_a_map_on_the_grid_comes_back_unchanged(rng):
    grid = Grid.mni(6.0)
    data = rng.random(grid.shape).astype(np.float32)
    np.testing.assert_array_equal(space.resample(data, grid.affine, grid, to_grid=np.eye(4), modulate=False), data)


def test_crop_moves_the_affine(rng):
    data = blob(rng)
    affine = random_affine(rng) @ np.diag([6.0, 6, 6, 1])
    part, box = space.crop(space.Scan(data, affine, "RAS", "sform"), data > 0.6, margin_mm=6.0)
    corner = [piece.start for piece in box]
    assert part.data.size < data.size
    np.testing.assert_array_equal(part.data, data[box])
    np.testing.assert_allclose(part.affine @ (0, 0, 0, 1), affine @ (*corner, 1))


def test_smoothing_has_the_width_it_says():
    data = np.zeros((41, 41, 41), dtype=np.float32)
    data[20, 20, 20] = 1
    moved = space.smooth(data, fwhm_mm=12.0, spacing_mm=2.0)
    # Half of the maximum lies half a width, three voxels, from the centre.
    assert moved[23, 20, 20] / moved[20, 20, 20] == pytest.approx(0.5, rel=0.01)
    assert moved.sum() == pytest.approx(1, rel=1e-3)
    np.testing.assert_array_equal(space.smooth(data, fwhm_mm=0.0, spacing_mm=2.0), data)


def test_pull_is_the_way_back_of_resample(rng):
    grid = Grid.mni(6.0)
    data = blob(rng)
    to_grid = random_affine(rng)
    affine = np.diag([6.0, 6, 6, 1])
    affine[:3, 3] = (-66, -90, -58)
    scan = space.Scan(data, affine, "RAS", "sform")
    there = space.resample(data, affine, grid, to_grid=to_grid, modulate=False)
    back = space.pull(grid.to_image(there), scan, to_grid)
    core = np.s_[4:-4, 4:-4, 4:-4]
    assert np.corrcoef(back[core].ravel(), data[core].ravel())[0, 1] > 0.98


def test_share_inside_counts_the_field_of_view(rng):
    grid = Grid.mni(6.0)
    everywhere = np.ones(grid.shape, dtype=bool)
    half = space.Scan(np.zeros((16, 32, 32), dtype=np.float32)[:, : grid.shape[1], :], grid.affine, "RAS", "sform")
    expected = 16 * half.data.shape[1] * 32 / everywhere.size
    assert space.share_inside(half, everywhere, grid) == pytest.approx(min(expected, 1), abs=0.01)
