from pathlib import Path

import numpy as np
import pytest

from nilatent.errors import ScanError
from nilatent.preprocess import mosaic

# A scan in an oblique place of its own: 4 mm voxels, turned by 20 degrees, and shifted.
ANGLE = np.deg2rad(20)
AFFINE = np.eye(4)
AFFINE[:3, :3] = 4 * np.array([[np.cos(ANGLE), -np.sin(ANGLE), 0], [np.sin(ANGLE), np.cos(ANGLE), 0], [0, 0, 1]])
AFFINE[:3, 3] = (-90, -170, -110)
TO_TEMPLATE = np.diag([1.1, 0.9, 1.05, 1.0])
TO_TEMPLATE[:3, 3] = (3, -6, 9)
SHAPE = (61, 71, 59)


def positions():
    voxels = np.indices(SHAPE).reshape(3, -1)
    there = TO_TEMPLATE @ AFFINE @ np.vstack([voxels, np.ones(voxels.shape[1])])
    return there[:3].reshape(3, *SHAPE)


@pytest.fixture(scope="module")
def ramps():
    """A scan whose intensity is a plane in template space, with one bright voxel at the right, front, top."""
    x, y, z = positions()
    return (1000 + x + 2 * y + 3 * z).astype(np.float32), (x > 20).astype(np.uint8) + (y > 0)


def test_slices_are_the_scan_at_template_positions(ramps):
    data, tissues = ramps
    made = mosaic.scan_mosaic(data, AFFINE, tissues, to_scan=mosaic.affine_points(TO_TEMPLATE))
    low = np.percentile(data[::4, ::4, ::4], 1)
    high = 1.15 * np.percentile(data[::4, ::4, ::4][tissues[::4, ::4, ::4] > 0], 99.5)
    for plane in ("axial", "coronal", "sagittal"):
        cut = made[f"{plane}_scan"].rename({f"{plane}_mm": {"axial": "z", "coronal": "y", "sagittal": "x"}[plane]})
        expected = (1000 + cut["x"] + 2 * cut["y"] + 3 * cut["z"] - low) / (high - low) * 255
        inside = (abs(cut["x"]) < 50) & (abs(cut["y"]) < 50) & (abs(cut["z"]) < 50)
        assert float(abs(cut.astype(float) - expected.transpose(*cut.dims)).where(inside).max()) < 0.51


def test_tissues_keep_their_labels_and_their_side(ramps):
    data, tissues = ramps
    made = mosaic.scan_mosaic(data, AFFINE, tissues, to_scan=mosaic.affine_points(TO_TEMPLATE))
    axial = made["axial_tissue"].sel(axial_mm=0.0, method="nearest")
    assert set(np.unique(axial)) <= {0, 1, 2}
    # Labels change within half a voxel of 4 mm of where they change in the scan.
    assert (axial.sel(x=slice(24, 60), y=slice(4, 50)) == 2).all()
    assert (axial.sel(x=slice(-60, 16), y=slice(-60, -4)) == 0).all()


def test_between_fluid_and_background_there_is_no_other_tissue():
    tissues = np.zeros(SHAPE, dtype=np.uint8)
    tissues[20:45, 20:50, 20:40] = 3
    data = np.ones(SHAPE, dtype=np.float32)
    made = mosaic.scan_mosaic(data, AFFINE, tissues, to_scan=mosaic.affine_points(TO_TEMPLATE))
    for plane in mosaic.PLANES:
        assert set(np.unique(made[f"{plane}_tissue"])) == {0, 3}


def test_the_way_back_decides_what_is_seen(ramps):
    data, tissues = ramps
    right = mosaic.scan_mosaic(data, AFFINE, tissues, to_scan=mosaic.affine_points(TO_TEMPLATE))
    moved = mosaic.scan_mosaic(
        data,
        AFFINE,
        tissues,
        to_scan=lambda points: mosaic.affine_points(TO_TEMPLATE)(points + np.array([10.0, 0.0, 0.0])),
    )
    one = right["axial_scan"].sel(x=slice(-30, 30), y=slice(-30, 30)).to_numpy().astype(float)
    other = moved["axial_scan"].sel(x=slice(-40, 20), y=slice(-30, 30)).to_numpy().astype(float)
    assert np.abs(one - other).max() <= 1


def test_a_field_of_the_affine_is_the_affine(rng):
    grid = np.diag([4.0, 4.0, 4.0, 1.0])
    grid[:3, 3] = (-90, -126, -72)
    nodes = np.moveaxis(np.indices((46, 55, 46)), 0, -1) @ grid[:3, :3].T + grid[:3, 3]
    back = mosaic.affine_points(TO_TEMPLATE)
    field = np.moveaxis(back(nodes.reshape(-1, 3)).reshape(nodes.shape) - nodes, -1, 0)
    points = rng.uniform(-60, 60, (500, 3))
    np.testing.assert_allclose(mosaic.field_points(field, grid)(points), back(points), atol=1e-4)
    far = np.array([[400.0, 0.0, 0.0]])
    assert np.isfinite(mosaic.field_points(field, grid)(far)).all()


def test_a_map_is_grey_where_it_exceeds_a_half():
    grid = np.diag([4.0, 4.0, 4.0, 1.0])
    grid[:3, 3] = (-100, -140, -90)
    data = np.zeros((50, 60, 50), dtype=np.float32)
    data[25:, 30:, 20:] = 0.9
    made = mosaic.scan_mosaic(data, grid, None, to_scan=lambda points: points)
    tissue = made["axial_tissue"].sel(axial_mm=20.0)
    assert (tissue.sel(x=slice(4, 80), y=slice(-14, 80)) == 1).all()
    assert (tissue.sel(x=slice(-80, -8)) == 0).all()
    assert int(made["axial_scan"].sel(axial_mm=20.0, x=40, y=40)) == round(0.9 * 255)
    assert int(made["axial_scan"].sel(axial_mm=-20.0, x=40, y=40)) == 0


def test_an_even_scan_and_an_empty_brain_give_a_picture_too():
    data = np.zeros(SHAPE, dtype=np.float32)
    made = mosaic.scan_mosaic(data, AFFINE, np.zeros(SHAPE, dtype=np.uint8), to_scan=mosaic.affine_points(TO_TEMPLATE))
    assert all(int(made[name].max()) == 0 for name in made.data_vars)


def test_the_template_is_where_the_template_is():
    made = mosaic.template_mosaic()
    assert int(made["axial_tissue"].sel(axial_mm=0.0, x=0, y=-80)) == 1
    assert int(made["axial_tissue"].sel(axial_mm=20.0, x=26, y=-20)) == 2
    assert int(made["sagittal_tissue"].sel(sagittal_mm=8.0, y=-120, z=90)) == 0


def test_there_and_back_again_with_the_same_bytes(ramps, tmp_path):
    data, tissues = ramps
    made = mosaic.scan_mosaic(data, AFFINE, tissues, to_scan=mosaic.affine_points(TO_TEMPLATE))
    for name in ("one.nc", "two.nc"):
        mosaic.write_mosaic(made, tmp_path / name)
    assert mosaic.read_mosaic(tmp_path / "one.nc").identical(made)
    assert (tmp_path / "one.nc").read_bytes() == (tmp_path / "two.nc").read_bytes()


@pytest.mark.parametrize("damage", ["missing", "cut", "text", "other"])
def test_a_file_that_is_no_mosaic_is_named(ramps, tmp_path, damage):
    path = tmp_path / "x_mosaic.nc"
    if damage == "text":
        path.write_text("no netCDF")
    elif damage != "missing":
        made = mosaic.scan_mosaic(ramps[0], AFFINE, ramps[1], to_scan=mosaic.affine_points(TO_TEMPLATE))
        mosaic.write_mosaic(made.isel(axial_mm=[0]) if damage == "other" else made, path)
        if damage == "cut":
            path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ScanError, match=r"x_mosaic\.nc: rule 'has a mosaic' is broken: .*Prepare the scan again"):
        mosaic.read_mosaic(path)


def test_scans_have_a_place_each():
    prepared = Path("out/sub-01/ses-02/anat/sub-01_ses-02_space-MNI_res-2_label-GM_probseg.nii.gz")
    assert mosaic.place(prepared) == Path("out/sub-01/ses-02/figures/sub-01_ses-02_mosaic.nc")
