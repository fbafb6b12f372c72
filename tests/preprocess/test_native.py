import json

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from scipy.spatial.transform import Rotation

from nilatent.cohort import Cohort
from nilatent.errors import GridError, ScanError
from nilatent.preprocess import native, registration, resampling, warping
from nilatent.preprocess.derivative import SPACE
from nilatent.preprocess.space import load_scan
from nilatent.provenance import hash_file
from nilatent.volumes import Grid

SHAPE = (61, 57, 47)


def stored(kind):
    """Affine of an original: oblique and stored left to right, with voxels of three sizes."""
    turn = Rotation.from_euler("xyz", [20, -10, 15] if "oblique" in kind else [0, 0, 0], degrees=True).as_matrix()
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-3.0 if "LAS" in kind else 3.0, 3.6, 4.2])
    affine[:3, 3] = -affine[:3, :3] @ (np.array(SHAPE) - 1) / 2 + (7, -12, 9)
    return affine


def to_template():
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", [6, 4, -8], degrees=True).as_matrix() @ np.diag([1.1, 1.05, 1.15])
    matrix[:3, 3] = (-6, 4, -5)
    return matrix


def ball_of(shape, affine, centre, radius_mm):
    points = np.einsum("ij,j...->i...", affine[:3, :3], np.indices(shape)) + affine[:3, 3, None, None, None]
    return np.clip(radius_mm - np.linalg.norm(points - np.reshape(centre, (3, 1, 1, 1)), axis=0), 0, 3) / 3


def centre_mm(image):
    values = image.get_fdata()
    voxel = (np.indices(values.shape).reshape(3, -1) * values.ravel()).sum(axis=1) / values.sum()
    return image.affine[:3, :3] @ voxel + image.affine[:3, 3]


def write_side_car(folder, affine, *, field=None):
    there = f"sub-01_from-{SPACE}_to-T1w_mode-image_xfm"
    if field is None:
        path = folder / f"{there}.txt"
        path.write_text(registration.itk_text(np.linalg.inv(to_template())), encoding="ascii")
    else:
        path = folder / f"{there}.nii.gz"
        nib.save(warping.itk_field(*field), path)
    side_car = folder / "sub-01_desc-preproc_T1w.json"
    scan = {"StoredShape": list(SHAPE), "StoredAffine": affine.tolist()}
    record = {"Scan": scan, "ToTemplate": to_template().tolist(), "Outputs": {path.name: hash_file(path)}}
    side_car.write_text(json.dumps({"nilatent": record}), encoding="ascii")
    return side_car


@pytest.mark.parametrize("kind", ["RAS", "LAS", "LAS oblique"])
@pytest.mark.parametrize("labels", [False, True])
def test_a_blob_of_the_subject_goes_to_the_template_and_back(tmp_path, kind, labels):
    affine = stored(kind)
    place = np.array([-28.0, 15.0, 20.0])  # left, front, top
    blob = ball_of(SHAPE, affine, place, 18).astype(np.float32)
    grid = Grid.mni(2.0)
    there = resampling.resample(blob, affine, grid, to_grid=to_template(), modulate=False)
    image = grid.to_image(there > 0.5 if labels else there, dtype=np.uint8 if labels else np.float32)
    back = native.to_native(image, write_side_car(tmp_path, affine), labels=labels)
    assert back.shape == SHAPE
    np.testing.assert_allclose(back.affine, affine)
    assert nib.aff2axcodes(back.affine)[0] == ("L" if "LAS" in kind else "R")
    assert back.get_data_dtype() == (np.uint8 if labels else np.float32)
    # Half of the smallest voxel side; mirrored, it would be 56 mm off.
    np.testing.assert_allclose(centre_mm(back), place, atol=1.5)


def test_a_warped_map_comes_back_by_the_field_beside_the_side_car(tmp_path):
    affine = stored("LAS oblique")
    grid = Grid.mni(4.0)
    forward = np.zeros((3, *grid.shape), dtype=np.float32)
    forward[0], forward[1] = 5, -7
    warp = resampling.Warp(forward, -forward, grid)
    blob = ball_of(SHAPE, affine, (-28, 15, 20), 18).astype(np.float32)
    (there,) = resampling.resample_warped([blob], affine, grid, to_grid=to_template(), warp=warp, modulate=[False])
    _, field = resampling.displacements(SHAPE, affine, to_template(), warp)
    side_car = write_side_car(tmp_path, affine, field=(field, affine))
    back = native.to_native(grid.to_image(there), side_car)
    np.testing.assert_allclose(centre_mm(back), (-28, 15, 20), atol=1.5)


def test_a_map_elsewhere_is_refused(tmp_path):
    grid = Grid.mni(4.0)
    away = grid.affine.copy()
    away[0, 3] += 150
    side_car = write_side_car(tmp_path, stored("RAS"))
    with pytest.raises(GridError, match="not in template space"):
        native.to_native(nib.Nifti1Image(np.ones(grid.shape, np.float32), away), side_car)
    # A map whose header says nothing about its space, or something else, is taken by where it lies.
    unnamed = nib.Nifti1Image(np.ones(grid.shape, np.float32), grid.affine)
    unnamed.set_sform(grid.affine, code="scanner")
    assert native.to_native(unnamed, side_car).shape == SHAPE
    with pytest.raises(GridError, match="three dimensions"):
        native.to_native(nib.Nifti1Image(np.ones((*grid.shape, 2), np.float32), grid.affine), side_car)


def test_what_was_changed_since_is_refused(tmp_path):
    image = Grid.mni(4.0).to_image(np.ones(Grid.mni(4.0).shape))
    side_car = write_side_car(tmp_path, stored("RAS"))
    original = tmp_path / "original.nii.gz"
    nib.save(nib.Nifti1Image(np.ones(SHAPE, np.float32), stored("LAS")), original)
    with pytest.raises(GridError, match="another shape or affine"):
        native.to_native(image, side_car, original=original)
    whole = side_car.read_text()
    record = json.loads(whole)
    record["nilatent"]["ToTemplate"][0][3] += 1
    side_car.write_text(json.dumps(record))
    with pytest.raises(ScanError, match="ToTemplate"):
        native.to_native(image, side_car)
    side_car.write_text('{"nilatent": {}}')
    with pytest.raises(ScanError, match="side-car of a prepared scan"):
        native.to_native(image, side_car)
    side_car.write_text(whole)
    transform = next(tmp_path.glob("*xfm.txt"))
    transform.write_text(transform.read_text() + "\n")
    with pytest.raises(ScanError, match="content has changed"):
        native.to_native(image, side_car)
    transform.unlink()
    with pytest.raises(ScanError, match="not there"):
        native.to_native(image, side_car)


def test_a_map_goes_back_to_every_scan_and_the_changed_one_is_listed(tmp_path):
    grid = Grid.mni(4.0)
    blob = ball_of(grid.shape, grid.affine, (-28.0, 15.0, 20.0), 18).astype(np.float32)
    nib.save(grid.to_image(blob), tmp_path / "effect.nii.gz")
    affine, rows, raw = stored("LAS oblique"), {}, {}
    for scan in ("sub-01", "sub-02", "sub-03"):
        (tmp_path / scan).mkdir()
        side_car = write_side_car(tmp_path / scan, affine)
        rows[scan] = {"subject_id": scan, "path": str(side_car).replace(".json", ".nii.gz")}
        raw[scan] = {"subject_id": scan, "path": str(tmp_path / scan / "raw.nii.gz")}
        shape = SHAPE if scan != "sub-02" else (9, 9, 9)
        nib.save(nib.Nifti1Image(np.zeros(shape, np.uint8), affine), tmp_path / scan / "raw.nii.gz")
    (tmp_path / "sub-03" / "raw.nii.gz").write_bytes(b"cut short")
    prepared, originals = (Cohort(pd.DataFrame.from_dict(table, orient="index")) for table in (rows, raw))
    done = native.write_native(prepared, tmp_path / "effect.nii.gz", tmp_path / "back", originals=originals)
    assert list(done.scans.index) == ["sub-01"]
    assert list(done.excluded["scan_id"]) == ["sub-02", "sub-03"]
    expected = native.to_native(grid.to_image(blob), tmp_path / "sub-01" / "sub-01_desc-preproc_T1w.json")
    np.testing.assert_array_equal(nib.load(done.scans.at["sub-01", "path"]).get_fdata(), expected.get_fdata())
    assert sorted(path.name for path in (tmp_path / "back").iterdir()) == ["sub-01_space-orig_effect.nii.gz"]
    with pytest.raises(GridError, match="cannot be read"):
        native.write_native(prepared, tmp_path / "sub-03" / "raw.nii.gz", tmp_path / "back")


def test_names_with_dots_stay_apart(tmp_path):
    grid = Grid.mni(4.0)
    side_car = write_side_car(tmp_path, stored("RAS"))
    row = {"subject_id": "sub-01", "path": str(side_car).replace(".json", ".nii.gz")}
    prepared = Cohort(pd.DataFrame.from_dict({"sub-01": row}, orient="index"))
    for level, name in enumerate(("thr_0.05.nii.gz", "thr_0.01.nii.gz", "thr_0.001.nii"), start=1):
        nib.save(grid.to_image(np.full(grid.shape, level, np.float32)), tmp_path / name)
        native.write_native(prepared, tmp_path / name, tmp_path / "back")
    names = [f"sub-01_space-orig_thr_{threshold}.nii.gz" for threshold in ("0.05", "0.01", "0.001")]
    assert sorted(path.name for path in (tmp_path / "back").iterdir()) == sorted(names)
    assert [nib.load(tmp_path / "back" / name).get_fdata().max() for name in names] == pytest.approx([1, 2, 3])


@pytest.mark.parametrize("dtype", [np.int64, np.uint64])
def test_labels_in_64_bits_come_back_in_32_and_larger_ones_are_refused(tmp_path, dtype):
    grid = Grid.mni(4.0)
    labels = np.full(grid.shape, 7, dtype)
    # No 32-bit float holds this number.
    labels[:, : grid.shape[1] // 2] = 2**24 + 1
    side_car = write_side_car(tmp_path, stored("LAS"))
    back = native.to_native(nib.Nifti1Image(labels, grid.affine, dtype=dtype), side_car, labels=True)
    assert back.get_data_dtype() == np.int32
    assert set(np.unique(back.dataobj)) <= {0, 7, 2**24 + 1}
    assert {7, 2**24 + 1} <= set(np.unique(back.dataobj))
    labels[0, 0, 0] = 2**31
    nib.save(nib.Nifti1Image(labels, grid.affine, dtype=dtype), tmp_path / "labels.nii.gz")
    row = {"subject_id": "sub-01", "path": str(side_car).replace(".json", ".nii.gz")}
    prepared = Cohort(pd.DataFrame.from_dict({"sub-01": row}, orient="index"))
    with pytest.raises(GridError, match="run from 7 to 2147483648, they must fit 32-bit integers"):
        native.write_native(prepared, tmp_path / "labels.nii.gz", tmp_path / "back", labels=True)


@pytest.mark.parametrize(("unit", "by"), [("meter", 1000.0), ("micron", 0.001), ("mm", 1.0)])
def test_an_original_in_another_unit_is_the_one_that_was_prepared(tmp_path, rng, unit, by):
    image = Grid.mni(4.0).to_image(np.ones(Grid.mni(4.0).shape))
    original = nib.Nifti1Image(rng.random(SHAPE).astype(np.float32), np.diag([1 / by] * 3 + [1]) @ stored("LAS"))
    original.header.set_xyzt_units(unit)
    nib.save(original, tmp_path / "original.nii.gz")
    scan = load_scan(tmp_path / "original.nii.gz")
    np.testing.assert_allclose(scan.stored_affine, stored("LAS"), rtol=1e-5)
    side_car = write_side_car(tmp_path, scan.stored_affine)
    back = native.to_native(image, side_car, original=tmp_path / "original.nii.gz")
    np.testing.assert_allclose(back.affine, stored("LAS"), rtol=1e-5)
