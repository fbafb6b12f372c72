import gzip

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from nilatent.errors import ScanError
from nilatent.preprocess import space

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


def test_a_voxel_has_the_volume_of_its_sides_in_millilitres(tmp_path, rng):
    turn = Rotation.from_euler("xyz", [20, -10, 15], degrees=True).as_matrix()
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-5.0, 4.0, 6.0])
    scan = space.load_scan(save(tmp_path / "scan.nii.gz", blob(rng), affine))
    assert scan.voxel_ml == pytest.approx(0.12)
    assert sorted(scan.voxel_mm) == pytest.approx([4, 5, 6])
