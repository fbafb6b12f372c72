import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from nilatent.preprocess import rigid
from nilatent.volumes import Grid, template_array

GRID = Grid.mni(4.0)
CORNERS = np.array([(x, y, z, 1.0) for x in (-60, 60) for y in (-90, 60) for z in (-40, 70)]).T


def movement(angles, shift):
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    matrix[:3, 3] = shift
    return matrix


def lower_half_brighter(brain):
    """Another contrast: fluid bright, white matter dark, in no straight line."""
    scaled = brain / brain.max()
    return np.where(brain > 0, 1.1 - scaled**0.6, 0).astype(np.float32)


@pytest.mark.parametrize("contrast", [np.array, lower_half_brighter])
def test_a_movement_is_found_back_across_contrasts_and_voxel_sizes(rng, contrast):
    brain = template_array("t1", 4.0)
    moved = movement([9.0, -7.0, 12.0], [14.0, -6.0, 8.0])
    # The same head in other voxels: each holds what the brain has where the movement puts it.
    shape, affine = (51, 49, 65), np.diag([4.5, 5.0, 3.5, 1.0])
    affine[:3, 3] = (moved @ [0, -18, 8, 1])[:3] - affine[:3, :3] @ (np.array(shape) / 2)
    there = np.linalg.inv(moved @ GRID.affine) @ affine
    other = ndimage.affine_transform(contrast(brain), there[:3, :3], there[:3, 3], output_shape=shape, order=1)
    other = np.where(other > 0, np.maximum(other + rng.normal(0, 0.01, shape), 1e-3), 0).astype(np.float32)
    found = rigid.register_rigid(brain, GRID.affine, other, affine)
    assert np.degrees(Rotation.from_matrix(found[:3, :3] @ moved[:3, :3].T).magnitude()) < 0.1
    np.testing.assert_allclose(found @ CORNERS, moved @ CORNERS, atol=0.15)
    np.testing.assert_allclose(found[:3, :3] @ found[:3, :3].T, np.eye(3), atol=1e-12)
    # Neither image is the reference.
    back = rigid.register_rigid(other, affine, brain, GRID.affine, start=np.linalg.inv(found))
    np.testing.assert_allclose(back @ found @ CORNERS, CORNERS, atol=0.01)


def test_the_slope_of_both_directions_is_their_finite_difference(rng):
    brain = template_array("t1", 6.0)
    cost = rigid._both_ways(brain, Grid.mni(6.0).affine, brain[::-1], Grid.mni(6.0).affine, spacing_mm=6.0)
    at = movement([3.0, 4.0, -5.0], [2.0, 1.0, -3.0])
    _, slope = cost(at)
    direction = np.zeros((4, 4))
    direction[:3] = rng.normal(0, 1, (3, 4)) * [0.01, 0.01, 0.01, 1.0]
    ahead, behind = (cost(at + sign * 1e-3 * direction)[0] for sign in (1, -1))
    assert (slope * direction[:3]).sum() == pytest.approx((ahead - behind) / 2e-3, rel=0.05)


def test_the_middle_turns_nothing_and_does_not_depend_on_who_was_first(rng):
    led = [movement(rng.uniform(-20, 20, 3), rng.uniform(-30, 30, 3)) for _ in range(3)]
    centre = np.array([5.0, -20.0, 10.0])
    middle = rigid.to_middle(led, centre)
    back = np.linalg.inv(np.stack(middle))
    assert Rotation.from_matrix(back[:, :3, :3]).mean().magnitude() < 1e-9
    # Seen from another image, the same three lie about the same middle.
    other = movement([30, -10, 15], [4, 8, -40])
    again = rigid.to_middle([other @ one for one in led], (other @ np.append(centre, 1))[:3])
    np.testing.assert_allclose(again, middle, atol=1e-9)
    # The brain's centre is where the visits have it on average.
    found = np.append(centre, 1) @ np.linalg.inv(led).mean(axis=0).T
    np.testing.assert_allclose(middle[0] @ np.linalg.inv(led[0]) @ np.append(centre, 1), found, atol=1e-9)


def test_an_average_weighs_every_image_alike_and_holds_them_whole(rng):
    brain = template_array("t1", 6.0)
    images = [(brain, Grid.mni(6.0).affine), (50 * brain, movement([0, 0, 90], [30, 0, 0]) @ Grid.mni(6.0).affine)]
    back = [np.eye(4), np.linalg.inv(movement([0, 0, 90], [30, 0, 0]))]
    shape, affine = rigid.space_around(images, [np.eye(4), np.eye(4)])
    for values, placed in images:
        voxels = np.argwhere(values > 0) @ placed[:3, :3].T + placed[:3, 3] - affine[:3, 3]
        assert (voxels > 0).all()
        assert (voxels < np.array(shape) - 1).all()
    one, two = rigid.resampled(images, back, brain.shape, Grid.mni(6.0).affine)
    np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-4)
    assert np.median(one[one > 0]) == pytest.approx(1)
