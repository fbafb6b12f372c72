import numpy as np
import pytest

from nilatent.errors import ScanError
from nilatent.preprocess import registration, resampling, t1, warping
from nilatent.preprocess.derivative import SPACE
from nilatent.volumes import Grid, template

THERE, BACK = f"from-T1w_to-{SPACE}_mode-image_xfm", f"from-{SPACE}_to-T1w_mode-image_xfm"


def test_the_strip_loses_what_lies_far_from_the_template_and_its_holes():
    grid = Grid.mni(4.0)
    # A scan whose space is 5 mm to the right of the template's, over a larger field.
    affine = np.diag([4.0, 4, 4, 1])
    affine[:3, 3] = (-103, -140, -120)
    to_template = np.eye(4)
    to_template[0, 3] = -5
    brain = resampling.pull([template("mask", grid)], (54, 62, 58), affine, to_template)[0] > 0.5
    dirty = brain.copy()
    dirty[20:34, 20:34, 3:9] = True  # neck
    dirty[26, 30, 30] = False
    found = t1._refined_mask(dirty, affine, to_template)
    assert found[brain].all()
    assert not found[20:34, 20:34, 3:9].any()
    outside_ml = (found & ~brain).sum() * 0.064
    assert outside_ml < 0.02 * brain.sum() * 0.064


def test_tissues_alone_are_modulated(rng):
    grid = Grid.mni(6.0)
    affine = np.diag([5.0, 5, 5, 1])
    affine[:3, 3] = (-60, -80, -50)
    data = np.zeros((25, 25, 23), dtype=np.float32)
    data[6:18, 6:18, 6:16] = 1
    to_template = np.diag([1.2, 1.1, 1.0, 1])
    images = {"gm": data, "t1w": data}
    moved = t1._on_grid(images, affine, grid, to_template, warp=None, modulation=True)
    np.testing.assert_allclose(moved["gm"] * 1.32, moved["t1w"], rtol=1e-5)
    plain = t1._on_grid(images, affine, grid, to_template, warp=None, modulation=False)
    np.testing.assert_array_equal(plain["gm"], moved["t1w"])


def test_transforms_of_an_affine_are_inverses_of_each_other(rng):
    to_template = np.eye(4)
    to_template[:3] += rng.normal(0, 0.2, (3, 4))
    written = t1._transforms((9, 9, 9), np.eye(4), to_template, None)
    assert written == {
        f"{THERE}.txt": registration.itk_text(to_template),
        f"{BACK}.txt": registration.itk_text(np.asarray(np.linalg.inv(to_template))),
    }


def test_transforms_with_a_warp_cover_the_scan_and_lead_to_the_template():
    grid = Grid.mni(6.0)
    forward = np.zeros((3, *grid.shape), dtype=np.float32)
    forward[1] = 4
    warp = resampling.Warp(forward, -forward, grid)
    to_template = np.diag([1.1, 1.0, 0.9, 1])
    affine = np.diag([1.0, 1.5, 3.0, 1])
    affine[:3, 3] = (-20, -30, -10)
    written = t1._transforms((41, 33, 15), affine, to_template, warp)
    assert set(written) == {f"{THERE}.nii.gz", f"{BACK}.nii.gz"}
    back = written[f"{BACK}.nii.gz"]
    last = back.affine @ (*np.array(back.shape[:3]) - 1, 1)
    assert (last[:3] >= (affine @ (40, 32, 14, 1))[:3] - 1e-6).all()
    point = back.affine @ (3, 4, 5, 1)
    moved = point[:3] + warping.displacement_of(back)[:, 3, 4, 5]
    np.testing.assert_allclose(moved, (to_template @ point)[:3] - (0, 4, 0), atol=1e-4)
    there = written[f"{THERE}.nii.gz"]
    on_grid = there.affine @ (7, 8, 9, 1)
    in_scan = np.linalg.inv(to_template) @ (on_grid + np.array([0, 4, 0, 0]))
    found = on_grid[:3] + warping.displacement_of(there)[:, 7, 8, 9]
    np.testing.assert_allclose(found, in_scan[:3], atol=1e-3)


def test_a_brain_of_no_human_size_is_refused(tmp_path):
    with pytest.raises(ScanError, match="brain volume"):
        t1._check_brain(tmp_path / "scan.nii", 300.0)
