import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from nilatent.preprocess import registration
from nilatent.volumes import Grid, template


def test_itk_text_maps_template_points_to_the_subject_in_lps(rng):
    to_template = np.eye(4)
    to_template[:3] += rng.normal(0, 0.2, (3, 4))
    lines = registration.itk_text(to_template).splitlines()
    numbers = np.array(lines[3].removeprefix("Parameters: ").split(), dtype=float)
    point = rng.normal(0, 50, 3)
    there = numbers[:9].reshape(3, 3) @ (point * [-1, -1, 1]) + numbers[9:]
    back = to_template @ np.append(there * [-1, -1, 1], 1)
    np.testing.assert_allclose(back[:3], point, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("degrees", [8.0, -35.0])
def test_a_moved_template_is_brought_back(tmp_path, degrees):
    pytest.importorskip("ants")
    grid = Grid.mni(2.0)
    moved = np.eye(4)
    moved[:3, :3] = Rotation.from_euler("xyz", [degrees, degrees / 4, 5], degrees=True).as_matrix() @ np.diag(
        [0.9, 1.05, 0.95]
    )
    moved[:3, 3] = (60, -30, 20)
    data = template("t1", grid).get_fdata(dtype=np.float32)
    mask = template("mask", grid).get_fdata(dtype=np.float32)
    found, correlation = registration.register_affine(data, moved @ grid.affine, data, mask, grid=grid, work=tmp_path)
    corners = np.array([(x, y, z, 1) for x in (-60, 60) for y in (-90, 60) for z in (-40, 70)]).T
    np.testing.assert_allclose(found @ moved @ corners, corners, atol=1.0)
    assert correlation > 0.96
    assert not list(tmp_path.iterdir())
