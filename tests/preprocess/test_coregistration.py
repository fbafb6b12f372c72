import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from nilatent.preprocess.coregistration import coregister, covered, information_gain
from nilatent.volumes import Grid, template_array

CORNERS = np.array([(x, y, z, 1) for x in (-60, 60) for y in (-90, 60) for z in (-40, 70)]).T


@pytest.fixture(scope="module")
def brain():
    """The template's brain and its affine, at 3 mm."""
    inside = template_array("mask", 3.0) > 0.5
    return np.where(inside, template_array("t1", 3.0), 0).astype(np.float32), Grid.mni(3.0).affine


def another(brain, affine, rng, *, angles, shift_mm):
    """The head again: other contrast, place, voxels and noise, something bright below it, and the way back to the brain."""
    head = np.where(brain > 0, 1.2 - brain, 0).astype(np.float32)
    head[10:40, 10:30, :8] = 1.5
    there = np.eye(4)
    there[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    there[:3, 3] = shift_mm
    own = np.diag([2.6, 3.1, 4.3, 1.0])
    own[:3, 3] = (there @ [-90, -125, -80, 1])[:3]
    to_head = np.linalg.inv(there @ affine) @ own
    moved = ndimage.affine_transform(head, to_head[:3, :3], to_head[:3, 3], output_shape=(71, 67, 41), order=1)
    return np.abs(moved + rng.normal(0, 0.03, moved.shape)).astype(np.float32), own, np.linalg.inv(there)


def test_a_moved_image_of_another_contrast_is_found(brain, rng):
    moving, affine, truth = another(*brain, rng, angles=(9, -6, 12), shift_mm=(14, -9, 11))
    found = coregister(moving, affine, *brain)
    apart = (found.to_brain - truth) @ np.linalg.inv(truth) @ CORNERS
    assert np.linalg.norm(apart[:3], axis=0).max() < 0.6
    np.testing.assert_allclose(np.linalg.det(found.to_brain[:3, :3]), 1, atol=1e-9)
    assert found.gain > 0.3
    assert found.covered > 0.95


def test_the_gain_tells_a_right_place_from_a_wrong_one_and_from_no_brain(brain, rng):
    moving, affine, truth = another(*brain, rng, angles=(0, 0, 0), shift_mm=(0, 0, 0))
    assert information_gain(moving, affine, *brain, to_brain=truth) > 0.3
    away = truth.copy()
    away[1, 3] += 15
    assert information_gain(moving, affine, *brain, to_brain=away) < 0
    noise = ndimage.gaussian_filter(rng.random(moving.shape), 1.5).astype(np.float32)
    assert coregister(noise, affine, *brain).gain < 0.1


def test_what_an_image_does_not_show_is_not_covered(brain):
    data, affine = brain
    half = data.copy()
    middle = int(np.argwhere(data > 0)[:, 0].mean())
    half[:middle] = 0
    share = (data[middle:] > 0).sum() / (data > 0).sum()
    assert covered(half, affine, data, affine, to_brain=np.eye(4)) == pytest.approx(share, abs=0.02)
    outside = np.eye(4)
    outside[0, 3] = 400
    assert covered(data, affine, data, affine, to_brain=outside) == 0
