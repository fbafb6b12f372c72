import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from scipy.spatial.transform import Rotation

from nilatent.cohort import Cohort
from nilatent.errors import CohortError, SettingError
from nilatent.preprocess import beside, bids, companion, derivative, resampling, warping, workers
from nilatent.preprocess.beside import mask_of, prepare_beside
from nilatent.preprocess.config import RecipeConfig
from nilatent.preprocess.coregistration import Coregistration
from nilatent.preprocess.intensity import scale_percentiles
from nilatent.provenance import hash_file, read_json
from nilatent.volumes import Grid, brain_mask, gm_mask, template_array

CONFIG = RecipeConfig(spacing_mm=6.0)
GRID = Grid.mni(6.0)
TO_TEMPLATE = np.array([[1.1, 0.02, 0, 3], [0, 1.05, 0.1, -8], [0, -0.1, 1.12, 4], [0, 0, 0, 1.0]])
TO_T1 = np.eye(4)
TO_T1[:3, :3] = Rotation.from_euler("xyz", (4, -3, 6), degrees=True).as_matrix()
TO_T1[:3, 3] = (5, -4, 2)


def save(path, data, affine):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(np.asarray(data), affine)
    image.set_sform(affine, code="scanner")
    nib.save(image, path)
    return path


def box(shape, voxel_mm):
    affine = np.diag([*voxel_mm, 1.0])
    affine[:3, 3] = -np.asarray(voxel_mm) * (np.asarray(shape) - 1) / 2
    return affine


def a_t1(tmp_path, rng, *, scan="sub-1", warp_mm=None, **recipe):
    """A scan as the recipe t1 leaves it: the scan, its labels, its maps and its side-car, of 5 mm voxels."""
    shape, affine = (31, 37, 33), box((31, 37, 33), (5.0, 5.0, 5.0))
    place = derivative.Place(tmp_path / "prepared", scan, "", 6.0, "gm", "modulatedSmooth8")
    away = np.linalg.norm(np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")), axis=0)
    t1 = save(tmp_path / "raw" / scan / "anat" / f"{scan}_T1w.nii.gz", rng.random(shape).astype(np.float32), affine)
    save(place.tissues, (away < 0.8).astype(np.uint8), affine)
    for name in ("gm", "wm", "csf", "t1w"):
        nib.save(GRID.to_image(rng.random(GRID.shape)), place.map(name))
    files = [place.tissues, *(place.map(name) for name in ("gm", "wm", "csf", "t1w"))]
    if warp_mm is not None:
        nodes = np.stack(np.meshgrid(*[np.arange(side) for side in GRID.shape], indexing="ij"), axis=-1)
        points = nodes @ GRID.affine[:3, :3].T + GRID.affine[:3, 3]
        back = np.linalg.inv(TO_TEMPLATE)
        field = np.moveaxis((points + warp_mm) @ back[:3, :3].T + back[:3, 3] - points, -1, 0).astype(np.float32)
        files.append(place.transform(f"from-T1w_to-{derivative.SPACE}_mode-image_xfm.nii.gz"))
        nib.save(warping.itk_field(field, GRID.affine), files[-1])
    record = {
        "Recipe": {"name": "t1"} | recipe,
        "Key": "k",
        "ToTemplate": TO_TEMPLATE.tolist(),
        "Outputs": {path.name: hash_file(path) for path in files},
    }
    place.side_car.write_text(json.dumps({"nilatent": record}))
    return t1, place


def cohorts(rows, *, recipe="t1"):
    """Cohort as read and after the recipe: scan to (original, prepared map, further image or None)."""
    known = {"session_id": "", "dataset": "one", "recipe": recipe}
    scans = pd.DataFrame(
        [
            known
            | {"scan_id": scan, "subject_id": scan, "path": str(original), "sha256": hash_file(original)}
            | {"image_x": str(image) if image else np.nan, "image_x_sha256": hash_file(image) if image else np.nan}
            for scan, (original, _, image) in rows.items()
        ]
    ).set_index("scan_id")
    prepared = scans.assign(path=[str(path) for _, path, _ in rows.values()])
    return Cohort(scans.drop(columns="recipe")), Cohort(prepared)


def array(cohort, scan):
    return nib.load(cohort.scans.at[scan, "path"]).get_fdata(dtype=np.float32)


def _in_threads(run_jobs, work, jobs, *, n_procs, apart):
    return run_jobs(work, jobs, n_procs=n_procs, apart=False)


@pytest.fixture
def found(monkeypatch):
    """The registration has found a known movement, with a gain that a test may change."""
    fit = {"gain": 0.5, "covered": 1.0}
    monkeypatch.setattr(companion, "coregister", lambda *_: Coregistration(TO_T1, **fit))
    # Worker processes would not know of it.
    monkeypatch.setattr(workers, "run_jobs", partial(_in_threads, workers.run_jobs))
    return fit


def flair(tmp_path, rng, *, scan="sub-1", units=""):
    shape = (41, 45, 27)
    path = tmp_path / "raw" / scan / "anat" / f"{scan}_FLAIR.nii.gz"
    save(path, (rng.random(shape) * 90 + 20).astype(np.float32), box(shape, (4.2, 4.6, 6.0)))
    if units:
        path.with_name(f"{scan}_FLAIR.json").write_text(json.dumps({"Units": units}))
    return path


def masked(path, place):
    """The image in its own voxels, where the labels of the T1 scan show brain."""
    image, labels = nib.load(path), nib.load(place.tissues)
    share = resampling.look_up(
        (np.asarray(labels.dataobj) > 0).astype(np.float32), labels.affine, image.shape, TO_T1 @ image.affine, order=1
    )
    return image.get_fdata(dtype=np.float32), image.affine, share > 0.5


@pytest.mark.parametrize("warp_mm", [None, (0.0, 7.0, -5.0)])
def test_movement_affine_and_warp_are_one_interpolation(tmp_path, rng, found, warp_mm):
    t1, place = a_t1(tmp_path, rng, warp_mm=warp_mm)
    image = flair(tmp_path, rng)
    made, failed = prepare_beside(
        *cohorts({"sub-1": (t1, place.modelled, image)}), "x", "FLAIR", tmp_path / "x", CONFIG
    )
    data, affine, inside = masked(image, place)
    # A warp that looks up every point elsewhere moves the image the other way.
    to_grid = TO_TEMPLATE @ TO_T1
    to_grid[:3, 3] -= warp_mm if warp_mm is not None else 0
    expected = resampling.resample(scale_percentiles(data, inside), affine, GRID, to_grid=to_grid, modulate=False)
    np.testing.assert_allclose(array(made, "sub-1"), expected, atol=2e-3 if warp_mm else 1e-6)
    assert expected.max() > 0.4
    assert failed.empty
    assert made.scans.at["sub-1", "sha256"] == hash_file(Path(made.scans.at["sub-1", "path"]))
    record = read_json(derivative.side_car_of(Path(made.scans.at["sub-1", "path"])))
    assert record["Sources"] == ["bids:one:sub-1/anat/sub-1_FLAIR.nii.gz"]
    np.testing.assert_allclose(record["nilatent"]["ToT1"], TO_T1)
    assert str(tmp_path) not in json.dumps(record)


def test_an_image_that_changed_since_the_cohort_was_read_is_left_out(tmp_path, rng, found):
    rows = {}
    for scan in ("sub-1", "sub-2"):
        t1, place = a_t1(tmp_path, rng, scan=scan)
        rows[scan] = (t1, place.modelled, flair(tmp_path, rng, scan=scan))
    read = cohorts(rows)
    flair(tmp_path, rng, scan="sub-2")
    made, failed = prepare_beside(*read, "x", "FLAIR", tmp_path / "x", CONFIG)
    assert list(made.scans.index) == ["sub-1"]
    assert failed[["scan_id", "rule"]].to_numpy().tolist() == [["sub-2", derivative.UNCHANGED]]
    assert not list((tmp_path / "x").rglob("sub-2_*"))
    made, failed = prepare_beside(*cohorts(rows), "x", "FLAIR", tmp_path / "x", CONFIG)
    assert list(made.scans.index) == ["sub-1", "sub-2"]


def test_values_with_a_unit_are_kept_and_units_are_not_mixed(tmp_path, rng, found):
    rows = {}
    for scan in ("sub-1", "sub-2"):
        t1, place = a_t1(tmp_path, rng, scan=scan)
        rows[scan] = (t1, place.modelled, flair(tmp_path, rng, scan=scan, units="SUVR"))
    made, _ = prepare_beside(*cohorts(rows), "x", "FLAIR", tmp_path / "x", CONFIG)
    data, affine, inside = masked(rows["sub-2"][2], place)
    kept = resampling.resample(
        np.where(inside, data, 0).astype(np.float32), affine, GRID, to_grid=TO_TEMPLATE @ TO_T1, modulate=False
    )
    np.testing.assert_allclose(array(made, "sub-2"), kept, rtol=1e-5)
    flair(tmp_path, rng, units="Bq/mL")
    with pytest.raises(CohortError, match=r"different units: Bq/mL in 1 \(such as sub-1\), SUVR in 1"):
        prepare_beside(*cohorts(rows), "x", "FLAIR", tmp_path / "x", CONFIG)
    for scan in rows:
        flair(tmp_path, rng, scan=scan, units="arbitrary")
    scaled, _ = prepare_beside(*cohorts(rows), "x", "FLAIR", tmp_path / "x", CONFIG)
    assert array(scaled, "sub-1").max() <= 1


def test_a_bad_fit_is_listed_leaves_nothing_and_the_others_go_on(tmp_path, rng, found):
    rows = {}
    for scan in ("sub-1", "sub-2", "sub-3"):
        t1, place = a_t1(tmp_path, rng, scan=scan)
        rows[scan] = (t1, place.modelled, flair(tmp_path, rng, scan=scan) if scan != "sub-3" else None)
    both, _ = prepare_beside(*cohorts(rows), "x", "FLAIR", tmp_path / "x", CONFIG)
    assert list(both.scans.index) == ["sub-1", "sub-2"]
    found["gain"] = 0.1
    flair(tmp_path, rng, scan="sub-2")
    one, failed = prepare_beside(*cohorts(rows), "x", "FLAIR", tmp_path / "x", CONFIG)
    assert list(one.scans.index) == ["sub-1"]
    assert failed[["scan_id", "modality", "rule"]].to_numpy().tolist() == [
        ["sub-2", "x", "fits the T1 scan of its subject"]
    ]
    assert "loses 10%" in failed.at[0, "reason"]
    assert not Path(both.scans.at["sub-2", "path"]).exists()
    found |= {"gain": 0.5, "covered": 0.7}
    with pytest.raises(CohortError, match=r"No scan has a usable image .*\n  sub-2: .*values in 70% of the brain"):
        prepare_beside(*cohorts({"sub-2": rows["sub-2"]}), "x", "FLAIR", tmp_path / "x", CONFIG)


def test_what_is_done_is_done_again_only_when_something_it_depends_on_changed(tmp_path, rng, found):
    t1, place = a_t1(tmp_path, rng)
    rows = {"sub-1": (t1, place.modelled, flair(tmp_path, rng))}

    def made(config=CONFIG):
        cohort, _ = prepare_beside(*cohorts(rows), "x", "FLAIR", tmp_path / "x", config)
        path = Path(cohort.scans.at["sub-1", "path"])
        return path, path.stat().st_mtime_ns

    path, first = made()
    assert made() == (path, first)
    path.write_bytes(b"")
    _, second = made()
    assert second > first
    flair(tmp_path, rng)
    _, third = made()
    assert third > second
    record = json.loads(place.side_car.read_text())
    record["nilatent"]["ToTemplate"][0][3] += 1
    place.side_car.write_text(json.dumps(record))
    _, fourth = made()
    assert fourth > third
    assert made(replace(CONFIG, spacing_mm=5.0))[0] != path


def test_maps_of_the_recipe_are_taken_unless_they_were_changed(tmp_path, rng):
    rows = {}
    for scan in ("sub-1", "sub-2"):
        t1, place = a_t1(tmp_path, rng, scan=scan)
        rows[scan] = (t1, place.modelled, None)
    white, _ = prepare_beside(*cohorts(rows), "white", "WM", tmp_path / "white", CONFIG)
    assert white.scans.at["sub-2", "path"] == str(place.map("wm"))
    t1w, _ = prepare_beside(*cohorts(rows), "t1", "T1w", tmp_path / "t1", CONFIG)
    assert t1w.scans.at["sub-2", "path"] == str(place.map("t1w"))
    with pytest.raises(SettingError, match="modelled image itself"):
        prepare_beside(*cohorts(rows), "grey", "GM", tmp_path / "grey", CONFIG)
    shutil.copy(place.map("csf"), place.map("wm"))
    white, failed = prepare_beside(*cohorts(rows), "white", "WM", tmp_path / "white", CONFIG)
    assert list(white.scans.index) == ["sub-1"]
    assert "its content has changed" in failed.at[0, "reason"]


def tissue(tmp_path, name, values, scan="sub-1"):
    grey = save(tmp_path / "maps" / f"mwp1{scan}.nii.gz", template_array("gm", 6.0), GRID.affine)
    return grey, grey, save(tmp_path / "maps" / name, values, GRID.affine)


def test_white_matter_is_smoothed_as_grey_matter_and_other_tissues_are_refused(tmp_path, rng):
    white = np.asarray(template_array("wm", 6.0) * rng.uniform(0.8, 1.0, GRID.shape), dtype=np.float32)
    rows = {"sub-1": tissue(tmp_path, "mwp2sub-1.nii.gz", white)}
    made, _ = prepare_beside(*cohorts(rows, recipe="gm"), "x", "WM", tmp_path / "x", CONFIG)
    np.testing.assert_allclose(array(made, "sub-1"), resampling.smooth(white, fwhm_mm=8.0, spacing_mm=6.0), atol=1e-6)
    assert "label-WM_desc-givenSmooth8" in made.scans.at["sub-1", "path"]
    before = {"sub-1": tissue(tmp_path, "s6mwp2sub-1.nii.gz", white)}
    made, _ = prepare_beside(*cohorts(before, recipe="gm"), "x", "WM", tmp_path / "y", CONFIG)
    np.testing.assert_allclose(array(made, "sub-1"), white, atol=1e-6)
    rows["sub-2"] = tissue(tmp_path, "mwp2sub-2.nii.gz", template_array("gm", 6.0), "sub-2")
    rows["sub-3"] = tissue(tmp_path, "mwp2sub-3.nii.gz", white * 100, "sub-3")
    made, failed = prepare_beside(*cohorts(rows, recipe="gm"), "x", "WM", tmp_path / "x", CONFIG)
    assert list(made.scans.index) == ["sub-1"]
    assert list(failed["rule"]) == ["shows WM in template space", "range of a tissue map"]
    own = {"sub-2": tissue(tmp_path, "p2sub-2.nii.gz", white, "sub-2")}
    with pytest.raises(CohortError, match="lies in template space"):
        prepare_beside(*cohorts(own, recipe="gm"), "x", "WM", tmp_path / "x", CONFIG)


def test_maps_made_in_two_ways_are_not_mixed(tmp_path):
    white = template_array("wm", 6.0)
    rows = {"sub-1": tissue(tmp_path, "mwp2sub-1.nii.gz", white)}
    rows["sub-2"] = tissue(tmp_path, "wp2sub-2.nii.gz", white * 0.9, "sub-2")
    with pytest.raises(CohortError, match="modulated differently"):
        prepare_beside(*cohorts(rows, recipe="gm"), "x", "WM", tmp_path / "x", CONFIG)
    rows["sub-2"] = tissue(tmp_path, "s6mwp2sub-2.nii.gz", white * 0.9, "sub-2")
    with pytest.raises(CohortError, match="smoothed differently"):
        prepare_beside(*cohorts(rows, recipe="gm"), "x", "WM", tmp_path / "x", CONFIG)
    rows["sub-2"] = tissue(tmp_path, "mwp3sub-2.nii.gz", white * 0.9, "sub-2")
    with pytest.raises(CohortError, match="different tissues"):
        prepare_beside(*cohorts(rows, recipe="gm"), "x", "maps", tmp_path / "x", CONFIG)


def test_raw_warped_and_our_own_images_are_not_one_modality():
    named = SimpleNamespace(name="x", column="image_x")
    kinds = {f"sub-{n}": beside._Kind(tissue="", units="", space=space) for n, space in enumerate(("raw", "template"))}
    with pytest.raises(CohortError, match="different spaces"):
        beside._check_one_kind(named, pd.DataFrame(), kinds, {})
    with pytest.raises(CohortError, match="take what the recipe makes"):
        beside._check_one_kind(named, pd.DataFrame(), {"sub-0": kinds["sub-0"]}, {"sub-9": (Path("own"), "")})


def test_an_image_in_template_space_stays_where_it_is(tmp_path, rng):
    grey = tissue(tmp_path, "unused.nii.gz", template_array("wm", 6.0))[0]
    record = {"Recipe": {"name": "gm"}, "Outputs": {}, "ToTemplate": np.eye(4).tolist()}
    derivative.side_car_of(grey).write_text(json.dumps({"nilatent": record}))
    fine = Grid.mni(3.0)
    mask = (template_array("mask", 2.0) > 0.5).astype(np.float32)
    inside = resampling.look_up(mask, Grid.mni(2.0).affine, fine.shape, fine.affine, order=1) > 0.5
    contrast = ((1.3 - template_array("t1", 3.0)) * 300 + rng.random(fine.shape)).astype(np.float32)
    name = tmp_path / "maps" / "sub-1_space-MNI152NLin6Asym_FLAIR.nii.gz"
    rows = {"sub-1": (grey, grey, save(name, contrast, fine.affine))}
    made, _ = prepare_beside(*cohorts(rows, recipe="gm"), "x", "FLAIR", tmp_path / "x", CONFIG)
    scaled = resampling.resample(
        scale_percentiles(contrast, inside), fine.affine, GRID, to_grid=np.eye(4), modulate=False
    )
    np.testing.assert_allclose(array(made, "sub-1"), scaled, atol=1e-5)
    # The same bytes said to be raw: without a T1 scan nobody knows where they lie.
    rows["sub-1"] = (grey, grey, Path(shutil.copy(name, tmp_path / "maps" / "sub-1_FLAIR.nii.gz")))
    with pytest.raises(CohortError, match="prepared from a map"):
        prepare_beside(*cohorts(rows, recipe="gm"), "x", "FLAIR", tmp_path / "x", CONFIG)
    # The name of the column may say it too.
    assert len(prepare_beside(*cohorts(rows, recipe="gm"), "x", "flair_mni", tmp_path / "x", CONFIG)[0].scans) == 1
    away = fine.affine.copy()
    away[1, 3] += 20
    rows["sub-1"] = (grey, grey, save(name, contrast, away))
    with pytest.raises(CohortError, match=r"lies in template space|covers the brain"):
        prepare_beside(*cohorts(rows, recipe="gm"), "x", "FLAIR", tmp_path / "x", CONFIG)
    rows["sub-1"] = (grey, grey, save(name, np.stack([contrast] * 2, axis=-1), fine.affine))
    with pytest.raises(CohortError, match="three dimensions"):
        prepare_beside(*cohorts(rows, recipe="gm"), "x", "FLAIR", tmp_path / "x", CONFIG)


def test_tissues_are_modelled_where_they_can_be_and_all_else_in_the_brain():
    np.testing.assert_array_equal(mask_of("GM", GRID), gm_mask(GRID))
    np.testing.assert_array_equal(mask_of("wm", GRID), template_array("wm", 6.0) > 0.05)
    np.testing.assert_array_equal(mask_of("FLAIR", GRID), brain_mask(GRID))


def test_further_images_are_no_variables_of_people(tmp_path):
    people = pd.DataFrame(
        [{"participant_id": "sub-1", "session_id": "", "image_x": "/a/x.nii", "image_x_sha256": "0", "image_mood": "7"}]
    )
    bids.write_participants(tmp_path, people, {})
    assert (tmp_path / "participants.tsv").read_text() == "participant_id\timage_mood\nsub-1\t7\n"
