import os
from dataclasses import replace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from nilatent.cohort import Cohort
from nilatent.errors import CohortError, SettingError
from nilatent.preprocess.config import RecipeConfig
from nilatent.preprocess.recipe import prepare
from nilatent.provenance import hash_file, read_json
from nilatent.volumes import Grid, template

CONFIG = RecipeConfig(name="gm", spacing_mm=6.0, fwhm_mm=0.0)


def cohort_of(paths, dataset="one"):
    rows = {
        path.name.split(".")[0].split("_")[0]: {
            "subject_id": path.name.split(".")[0].split("_")[0],
            "session_id": "",
            "dataset": dataset,
            "path": str(path),
            "sha256": hash_file(path) if path.is_file() else "",
            "age": 30.0,
        }
        for path in paths
    }
    return Cohort(pd.DataFrame.from_dict(rows, orient="index").rename_axis("scan_id"))


@pytest.fixture
def maps(tmp_path, rng):
    """Four maps on the grid, each a template that grew or shrank here and there."""
    grid = Grid.mni(6.0)
    grey = template("gm", grid).get_fdata(dtype=np.float32)
    paths = []
    for number in range(4):
        factor = 1 + 0.5 * ndimage.gaussian_filter(rng.normal(size=grid.shape), 2)
        paths.append(tmp_path / "maps" / f"sub-{number}_space-MNI152_label-GM_probseg.nii.gz")
        paths[-1].parent.mkdir(exist_ok=True)
        nib.save(grid.to_image(np.clip(grey * factor, 0, 1.5)), paths[-1])
    return paths


def array(path):
    return nib.load(path).get_fdata(dtype=np.float32)


def test_maps_on_the_grid_are_taken_as_they_are(maps, tmp_path):
    done = prepare(cohort_of(maps), tmp_path / "out", replace(CONFIG, name="auto"))
    assert done.excluded.empty
    assert set(done.scans["recipe"]) == {"gm"}
    for before, row in zip(maps, done.scans.itertuples(), strict=True):
        np.testing.assert_array_equal(array(row.path), array(before))
        assert row.sha256 == hash_file(row.path)
        assert row.gm_ml == pytest.approx(array(before).sum() * 0.216, rel=1e-5)
        assert row.template_correlation > 0.8
        assert row.age == 30


def test_finer_maps_keep_their_volume(maps, tmp_path):
    fine = tmp_path / "sub-9_label-GM.nii.gz"
    grey = template("gm")
    nib.save(grey, fine)
    done = prepare(cohort_of([fine]), tmp_path / "out", CONFIG)
    volume = float(grey.get_fdata(dtype=np.float32).sum()) / 1000
    assert array(done.scans["path"].iloc[0]).sum() * 0.216 == pytest.approx(volume, rel=0.005)


def test_smoothing_is_done_once_only(maps, tmp_path):
    smoothing = replace(CONFIG, fwhm_mm=12.0)
    plain = prepare(cohort_of(maps), tmp_path / "plain", CONFIG)
    once = prepare(cohort_of(maps), tmp_path / "once", smoothing)
    twice = prepare(replace(plain, scans=once.scans.drop(columns="recipe")), tmp_path / "twice", smoothing)
    one = [array(done.scans["path"].iloc[0]) for done in (plain, once, twice)]
    assert np.abs(np.diff(one[1])).sum() < 0.8 * np.abs(np.diff(one[0])).sum()
    np.testing.assert_array_equal(one[1], one[2])
    renamed = tmp_path / "sub-5_smwp1.nii.gz"
    nib.save(nib.load(maps[0]), renamed)
    again = prepare(cohort_of([renamed]), tmp_path / "named", smoothing)
    np.testing.assert_array_equal(array(again.scans["path"].iloc[0]), one[0])


def test_any_number_at_once_gives_the_same_bytes(maps, tmp_path):
    one, two = (prepare(cohort_of(maps), tmp_path / str(n), CONFIG, n_procs=n) for n in (1, 2))
    pd.testing.assert_frame_equal(one.scans.drop(columns="path"), two.scans.drop(columns="path"))
    files = sorted(path.relative_to(tmp_path / "1") for path in (tmp_path / "1").rglob("*") if path.is_file())
    assert len(files) >= 2 * len(maps) + 3
    for file in files:
        assert (tmp_path / "1" / file).read_bytes() == (tmp_path / "2" / file).read_bytes(), file


def stamps(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("sub-*.*")}


def test_a_second_run_does_only_what_is_missing_or_changed(maps, tmp_path):
    out = tmp_path / "out"
    first = prepare(cohort_of(maps), out, CONFIG)
    before = stamps(out)
    again = prepare(cohort_of(maps), out, CONFIG)
    assert stamps(out) == before
    pd.testing.assert_frame_equal(first.scans, again.scans)
    lost = first.scans["path"].iloc[1]
    os.truncate(lost, 100)
    nib.save(Grid.mni(6.0).to_image(array(maps[2]) * 0.9), maps[2])
    mended = prepare(cohort_of(maps), out, CONFIG)
    changed = {path.name[:5] for path, stamp in stamps(out).items() if stamp != before[path]}
    assert changed == {"sub-1", "sub-2"}
    assert hash_file(lost) == first.scans["sha256"].iloc[1]
    assert mended.scans["gm_ml"].iloc[2] == pytest.approx(0.9 * first.scans["gm_ml"].iloc[2], rel=1e-5)


@pytest.mark.parametrize("change", [{"fwhm_mm": 4.0}, {"spacing_mm": 5.0}])
def test_other_settings_give_other_maps(maps, tmp_path, change):
    out = tmp_path / "out"
    first = prepare(cohort_of(maps[:1]), out, CONFIG).scans.iloc[0]
    other = prepare(cohort_of(maps[:1]), out, replace(CONFIG, **change)).scans.iloc[0]
    assert first["sha256"] != other["sha256"]


def test_bad_scans_are_listed_and_the_others_finish(maps, tmp_path):
    grid = Grid.mni(6.0)
    good = array(maps[0])
    bad = {
        "sub-21": (np.stack([good, good], axis=-1), "three dimensions"),
        "sub-22": (np.where(good > 0.3, np.nan, good), "finite values"),
        "sub-23": (np.full_like(good, 0.5), "not constant"),
        "sub-24": (good * 100, "range of a grey-matter map"),
        "sub-25": (good[:, ::-1], "lies in MNI space"),
        "sub-26": (good[:, :20], "field of view covers the brain"),
    }
    paths = [*maps]
    for name, (data, _) in bad.items():
        paths.append(tmp_path / f"{name}_label-GM.nii.gz")
        nib.save(nib.Nifti1Image(data.astype(np.float32), grid.affine), paths[-1])
    whole = maps[0].read_bytes()
    for name, content in {"sub-27": b"", "sub-28": whole[: len(whole) // 2]}.items():
        paths.append(tmp_path / f"{name}_label-GM.nii.gz")
        paths[-1].write_bytes(content)
    paths.append(tmp_path / "sub-29_label-GM.nii.gz")
    expected = {name: rule for name, (_, rule) in bad.items()}
    expected |= {"sub-27": "file not empty", "sub-28": "readable", "sub-29": "file exists"}
    done = prepare(cohort_of(paths), tmp_path / "out", CONFIG, n_procs=2)
    assert list(done.scans.index) == ["sub-0", "sub-1", "sub-2", "sub-3"]
    listed = done.excluded.set_index("scan_id")
    assert listed["rule"].to_dict() == expected
    assert set(listed["stage"]) == {"prepare"}
    for name, row in listed.iterrows():
        assert name in row["reason"]
        assert row["reason"].count(". ") >= 1


def test_side_car_says_what_was_done_without_naming_the_machine(maps, tmp_path):
    done = prepare(cohort_of(maps), tmp_path / "out", CONFIG)
    side_car = done.scans["path"].iloc[0].replace(".nii.gz", ".json")
    record = read_json(side_car)
    assert record["SmoothingFWHM"] == 0
    assert record["Sources"] == ["bids:one:sub-0_space-MNI152_label-GM_probseg.nii.gz"]
    assert str(tmp_path) not in (tmp_path / "out" / "quality.tsv").read_text() + str(record)
    description = read_json(tmp_path / "out" / "dataset_description.json")
    assert description["GeneratedBy"][0]["Name"] == "nilatent"
    table = pd.read_csv(tmp_path / "out" / "quality.tsv", sep="\t")
    np.testing.assert_allclose(table["gm_ml"], done.scans["gm_ml"])
    assert set(read_json(tmp_path / "out" / "quality.json")) >= {"gm_ml", "flags", "recipe"}


def test_several_data_sets_have_a_folder_each(maps, tmp_path):
    parts = [cohort_of(maps[:2], "alpha").scans, cohort_of(maps[:2], "beta").scans]
    for table in parts:
        table.index = table["dataset"] + "_" + table.index
        table["subject_id"] = table["dataset"] + "_" + table["subject_id"]
    done = prepare(Cohort(pd.concat(parts).rename_axis("scan_id")), tmp_path / "out", CONFIG)
    assert sorted(path.parent.name for path in (tmp_path / "out").glob("*/sub-0")) == ["alpha", "beta"]
    assert (tmp_path / "out" / "beta" / "dataset_description.json").is_file()
    assert len(done.scans) == 4


def test_two_scans_for_one_file_are_refused(maps, tmp_path):
    cohort = cohort_of(maps[:2])
    with pytest.raises(CohortError, match="sub-0 and sub-1 would both"):
        prepare(replace(cohort, scans=cohort.scans.assign(subject_id="sub-0")), tmp_path / "out", CONFIG)


def test_a_column_of_the_source_is_not_overwritten(maps, tmp_path):
    cohort = cohort_of(maps)
    done = prepare(replace(cohort, scans=cohort.scans.assign(gm_ml=1.0)), tmp_path / "out", CONFIG)
    assert (done.scans["source_gm_ml"] == 1).all()
    assert (done.scans["gm_ml"] > 100).all()


@pytest.mark.parametrize("bad", [{"name": "t2"}, {"fwhm_mm": -1.0}, {"fwhm_mm": 13.0}, {"spacing_mm": 0.5}])
def test_settings_out_of_range_are_refused(bad):
    with pytest.raises(SettingError):
        RecipeConfig(**bad)


def test_no_process_is_refused(maps, tmp_path):
    with pytest.raises(SettingError, match="at least 1, got 0"):
        prepare(cohort_of(maps), tmp_path / "out", CONFIG, n_procs=0)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_stripped_brain_becomes_the_templates_grey_matter(tmp_path, rng):
    """The template, turned, shrunk, stored back to front, shaded and noisy, comes out as the template's own map."""
    pytest.importorskip("ants")
    brain = template("t1", Grid.mni(2.0))
    data = brain.get_fdata(dtype=np.float32)
    shade = np.exp(np.linspace(-0.3, 0.3, data.shape[1]))[None, :, None]
    noisy = np.where(data > 0.05, data * shade * 800 + rng.normal(0, 8, data.shape), 0).astype(np.float32)
    small = np.diag([0.9, 0.95, 0.92, 1.0])
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(0.15), -np.sin(0.15)], [np.sin(0.15), np.cos(0.15)]]
    image = nib.Nifti1Image(
        noisy[::-1],
        turn @ small @ brain.affine @ nib.affines.from_matvec(np.diag([-1, 1, 1]), [data.shape[0] - 1, 0, 0]),
    )
    path = tmp_path / "sub-01_T1w.nii.gz"
    nib.save(image, path)
    config = RecipeConfig(spacing_mm=4.0, fwhm_mm=0.0)
    done = prepare(cohort_of([path]), tmp_path / "out", config)
    row = done.scans.iloc[0]
    assert row["head_size_factor"] == pytest.approx(np.linalg.det(small), rel=0.03)
    assert row["t1_correlation"] > 0.95
    assert row["template_correlation"] > 0.8
    found = array(row["path"])
    assert found.sum() * 0.064 == pytest.approx(row["gm_ml"], rel=0.01)
    flipped = np.corrcoef(found.ravel(), template("gm", Grid.mni(4.0)).get_fdata().ravel())[0, 1]
    assert flipped > 0.85
    plain = prepare(cohort_of([path]), tmp_path / "plain", replace(config, modulation=False)).scans.iloc[0]
    ratio = array(plain["path"]).sum() / found.sum()
    assert ratio == pytest.approx(1 / row["head_size_factor"], rel=1e-3)
