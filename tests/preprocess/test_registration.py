import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from nilatent.preprocess import registration
from nilatent.volumes import Grid, template, template_array

CORNERS = np.array([(x, y, z, 1) for x in (-60, 60) for y in (-90, 60) for z in (-40, 70)]).T


def affine_of(angles, scale, shift):
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ np.diag(scale)
    matrix[:3, 3] = shift
    return matrix


def test_itk_text_maps_template_points_to_the_subject_in_lps(rng):
    to_template = np.eye(4)
    to_template[:3] += rng.normal(0, 0.2, (3, 4))
    lines = registration.itk_text(to_template).splitlines()
    numbers = np.array(lines[3].removeprefix("Parameters: ").split(), dtype=float)
    point = rng.normal(0, 50, 3)
    there = numbers[:9].reshape(3, 3) @ (point * [-1, -1, 1]) + numbers[9:]
    back = to_template @ np.append(there * [-1, -1, 1], 1)
    np.testing.assert_allclose(back[:3], point, atol=1e-6)


def test_ants_moves_an_image_by_the_text(rng, tmp_path):
    ants = pytest.importorskip("ants")
    data = ndimage.gaussian_filter(rng.random((31, 33, 29)), 2).astype(np.float32)
    affine = affine_of([3, -5, 4], [-4.0, 4.5, 4.0], [70, -80, -40])
    grid = Grid.mni(6.0)
    to_template = affine_of([12, -8, 20], [1.2, 0.9, 1.1], [10, -15, 5])
    (tmp_path / "xfm.txt").write_text(registration.itk_text(to_template), encoding="ascii")
    nib.save(nib.Nifti1Image(data, affine), tmp_path / "moving.nii.gz")
    nib.save(grid.to_image(np.zeros(grid.shape)), tmp_path / "fixed.nii.gz")
    moved = ants.apply_transforms(
        *(ants.image_read(str(tmp_path / f"{name}.nii.gz")) for name in ("fixed", "moving")),
        [str(tmp_path / "xfm.txt")],
    ).numpy()
    there = np.linalg.inv(to_template @ affine) @ grid.affine
    expected = ndimage.affine_transform(data, there[:3, :3], there[:3, 3], output_shape=grid.shape, order=1)
    inside = (moved > 0) & (expected > 0)
    assert inside.mean() > 0.05
    np.testing.assert_allclose(moved[inside], expected[inside], atol=2e-3)


def test_look_up_is_linear_interpolation_with_its_exact_slope(rng):
    image = rng.random((7, 9, 6)).astype(np.float32)
    voxels = rng.uniform(0.2, 4.7, (3, 50))
    values, slopes = registration._look_up(image, voxels)
    np.testing.assert_allclose(values, ndimage.map_coordinates(image, voxels, order=1), atol=1e-5)
    for axis in range(3):
        # Well inside a voxel, the interpolation is linear along each axis.
        centred = voxels.copy()
        centred[axis] = np.floor(centred[axis]) + 0.5
        _, slopes = registration._look_up(image, centred)
        step = np.zeros((3, 1))
        step[axis] = 0.25
        ahead, behind = (ndimage.map_coordinates(image, centred + sign * step, order=1) for sign in (1, -1))
        np.testing.assert_allclose(slopes[axis], (ahead - behind) / 0.5, atol=1e-4)


def test_information_of_whole_bins_is_that_of_the_blurred_histogram(rng):
    bins = rng.integers(0, registration.BINS, 5000)
    values = ((bins + rng.integers(0, 4, 5000)) % registration.BINS).astype(np.float32)
    joint = np.zeros((registration.BINS, registration.BINS + 2))
    for fixed, moving in zip(bins, values.astype(int), strict=True):
        joint[fixed, moving : moving + 3] += np.array([1, 4, 1]) / 6 / len(bins)
    product = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    expected = (joint[joint > 0] * np.log(joint[joint > 0] / product[joint > 0])).sum()
    assert registration._information(bins, values)[0] == pytest.approx(expected, rel=1e-4)


def test_slope_of_the_information_is_its_finite_difference(rng):
    bins = rng.integers(0, registration.BINS, 400)
    values = np.clip(bins + rng.normal(0, 4, 400), 0.1, registration.BINS - 1.1).astype(np.float32)
    _, slope = registration._information(bins, values)
    direction = rng.normal(0, 1, 400).astype(np.float32)
    ahead, behind = (registration._information(bins, values + sign * 0.02 * direction)[0] for sign in (1, -1))
    assert slope @ direction == pytest.approx((ahead - behind) / 0.04, rel=0.02)


def test_a_copy_keeps_its_place_and_its_mean(rng):
    data = ndimage.gaussian_filter(rng.random((41, 37, 45)), 3).astype(np.float32)
    data[:8] = data[-8:] = data[:, :8] = data[:, -8:] = data[:, :, :8] = data[:, :, -8:] = 0
    affine = affine_of([10, -20, 5], [1.0, 1.5, 0.8], [5, 7, -3])
    copy, placed = registration.coarse_copy(data, affine, 3.0)

    def centre(values, where):
        indices = np.indices(values.shape).reshape(3, -1)
        return where[:3, :3] @ (indices * values.ravel()).sum(axis=1) / values.sum() + where[:3, 3]

    np.testing.assert_allclose(centre(copy, placed), centre(data, affine), atol=0.1)
    volumes = [values.sum() * abs(np.linalg.det(where)) for values, where in ((copy, placed), (data, affine))]
    assert volumes[0] == pytest.approx(volumes[1], rel=0.01)


def test_a_moved_template_is_brought_back():
    grid = Grid.mni(4.0)
    moved = affine_of([8.0, 2.0, 5.0], [0.9, 1.05, 0.95], [60, -30, 20])
    start, _ = registration.register_affine(template_array("t1", 4.0), moved @ grid.affine)
    np.testing.assert_allclose(start @ moved @ CORNERS, CORNERS, atol=1.0)
    again, _ = registration.register_affine(template_array("t1", 4.0), moved @ grid.affine)
    np.testing.assert_array_equal(start, again)


@pytest.mark.slow
@pytest.mark.parametrize("angles", [(-35.0, -9.0, 5.0), (10.0, 75.0, -5.0), (170.0, 20.0, 10.0)])
def test_a_turned_template_is_found(angles):
    grid = Grid.mni(2.0)
    moved = affine_of(angles, [0.9, 1.05, 0.95], [60, -30, 20])
    data = np.asarray(template("t1", grid).dataobj)
    start, _ = registration.register_affine(data, moved @ grid.affine)
    found, correlation = registration.refine_affine(data, moved @ grid.affine, start)
    np.testing.assert_allclose(found @ moved @ CORNERS, CORNERS, atol=0.2)
    assert correlation > 0.99
