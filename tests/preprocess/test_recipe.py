import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from nilatent.cohort import Cohort
from nilatent.errors import CohortError, SettingError
from nilatent.preprocess import job, mosaic, recipe
from nilatent.preprocess.config import RecipeConfig
from nilatent.preprocess.derivative import Prepared
from nilatent.preprocess.recipe import prepare
from nilatent.provenance import hash_file, hash_values, read_json, write_json
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


def stand_in(scan, grid, *, path, work, modulation, normalisation):
    """What the recipe t1 would give of a scan, without an engine: every map another constant."""
    constants = {"gm": 0.6, "wm": 0.3, "csf": 0.1, "t1w": 0.9}
    maps = {name: np.full(grid.shape, value, dtype=np.float32) for name, value in constants.items()}
    ending = "txt" if normalisation == "affine" else "nii.gz"
    moved = np.eye(4)
    moved[:3, 3] = (20, 0, 0)
    transforms = {f"from-T1w_to-MNI152NLin2009aSym_mode-image_xfm.{ending}": "moved\n"}
    notes = {"Modulated": modulation, "Normalisation": normalisation, "Work": work.name, "Path": path.name}
    return Prepared(maps, moved, {"gm_ml": 1.0}, notes, transforms, np.ones(scan.data.shape, dtype=np.uint8))


@pytest.fixture
def heads(tmp_path, monkeypatch):
    """Two raw scans, each with a bright block on its left, for a recipe without engines that runs in this process."""
    grid, paths = Grid.mni(6.0), []
    for number in range(2):
        values = np.full(grid.shape, 1.0 + number, dtype=np.float32)
        values[:13] = 9
        paths.append(tmp_path / "heads" / f"sub-{number}" / "anat" / f"sub-{number}_T1w.nii.gz")
        paths[-1].parent.mkdir(parents=True)
        nib.save(grid.to_image(values), paths[-1])
    inside = recipe.workers.run_jobs
    monkeypatch.setattr(job, "prepare_t1", stand_in)
    monkeypatch.setattr(
        recipe.workers,
        "run_jobs",
        lambda work, jobs, *, n_procs, apart: inside(work, jobs, n_procs=n_procs, apart=not apart),
    )
    return paths


T1 = RecipeConfig(name="t1", spacing_mm=6.0, fwhm_mm=0.0)


def test_intensities_are_modelled_and_grey_matter_stays_beside_them(heads, tmp_path):
    done = prepare(cohort_of(heads), tmp_path / "out", replace(T1, target="t1w"))
    for row in done.scans.itertuples():
        assert array(row.path).max() == pytest.approx(0.9)
        assert array(row.gm_path).max() == pytest.approx(0.6)
    assert "gm_path" not in prepare(cohort_of(heads), tmp_path / "gm", T1).scans


@pytest.mark.parametrize(
    "change",
    [{"spacing_mm": 5.0}, {"fwhm_mm": 4.0}, {"modulation": False}, {"normalisation": "syn"}, {"target": "t1w"}],
)
def test_every_setting_of_the_recipe_asks_for_other_maps(heads, tmp_path, change):
    jobs = [recipe._jobs(cohort_of(heads), tmp_path, config, None)[0] for config in (T1, replace(T1, **change))]
    assert jobs[0].key != jobs[1].key
    assert jobs[0].place.modelled != jobs[1].place.modelled


@pytest.mark.parametrize("name", ["t1", "gm"])
def test_versions_of_the_recipe_and_of_its_engines_ask_for_other_maps(maps, tmp_path, monkeypatch, name):
    config = replace(CONFIG, name=name)

    def keys():
        return recipe._jobs(cohort_of(maps), tmp_path, config, None)[0].key, hash_values(recipe.fingerprint(config))

    before = keys()
    monkeypatch.setattr(recipe, "RECIPE_VERSION", 999)
    newer = keys()
    monkeypatch.setattr(recipe, "engines", lambda recipe_name: {"scipy": f"99 for {recipe_name}"})
    other = keys()
    assert len({*before, *newer, *other}) == 6


def test_what_is_said_of_a_map_beside_it_asks_for_another_map(maps, tmp_path):
    before = prepare(cohort_of(maps), tmp_path / "out", replace(CONFIG, fwhm_mm=8.0))
    for path in maps:
        write_json(path.with_name(path.name.replace(".nii.gz", ".json")), {"SmoothingFWHM": 4})
    after = prepare(cohort_of(maps), tmp_path / "out", replace(CONFIG, fwhm_mm=8.0))
    assert "desc-givenSmooth8_" in before.scans["path"].iloc[0]
    assert "desc-givenSmooth4_" in after.scans["path"].iloc[0]
    np.testing.assert_array_equal(array(after.scans["path"].iloc[0]), array(maps[0]))


def test_maps_smoothed_differently_before_are_refused(maps, tmp_path):
    write_json(maps[0].with_name(maps[0].name.replace(".nii.gz", ".json")), {"SmoothingFWHM": 4})
    with pytest.raises(CohortError, match=r"smoothed differently before: FWHM 4 mm in 1 \(such as sub-0\), 0 mm in 3"):
        prepare(cohort_of(maps), tmp_path / "out", CONFIG)


def test_the_source_is_never_written_over(heads, tmp_path):
    described = tmp_path / "heads" / "dataset_description.json"
    described.write_text("{}")
    with pytest.raises(SettingError, match="is the source itself"):
        prepare(cohort_of(heads), tmp_path / "heads", T1, tables=False)
    assert described.read_text() == "{}"


def test_a_scan_that_fails_leaves_no_map_of_an_earlier_run(heads, tmp_path):
    before = prepare(cohort_of(heads), tmp_path / "out", T1)
    heads[0].write_bytes(b"cut short")
    after = prepare(cohort_of(heads), tmp_path / "out", T1)
    assert list(after.excluded["scan_id"]) == ["sub-0"]
    assert not Path(before.scans.at["sub-0", "path"]).exists()
    assert not list((tmp_path / "out" / "sub-0").rglob("*_probseg.*"))
    assert Path(after.scans.at["sub-1", "path"]).is_file()


def test_one_normalisation_at_a_time_in_a_folder(heads, tmp_path):
    prepare(cohort_of(heads), tmp_path / "out", T1)
    prepare(cohort_of(heads), tmp_path / "out", replace(T1, fwhm_mm=6.0))
    both = [path.name for path in (tmp_path / "out" / "sub-0" / "anat").glob("*GM*.nii.gz")]
    assert len(both) == 2
    prepare(cohort_of(heads), tmp_path / "out", replace(T1, normalisation="syn"))
    left = {path.name for path in (tmp_path / "out" / "sub-0" / "anat").iterdir()}
    assert not {name for name in left if name.endswith("xfm.txt")}
    assert {name for name in left if "label-GM" in name and "Syn" not in name} == set()
    assert len({name for name in left if "label-GM_desc-modulatedSyn_" in name}) == 2


def test_a_picture_that_was_lost_is_made_again(heads, tmp_path):
    done = prepare(cohort_of(heads), tmp_path / "out", T1)
    picture = mosaic.place(Path(done.scans["path"].iloc[0]))
    picture.unlink()
    prepare(cohort_of(heads), tmp_path / "out", T1)
    assert picture.is_file()


def test_no_data_set_is_called_like_a_folder_of_ours(maps, tmp_path):
    cohort = cohort_of(maps, dataset="quality")
    named = cohort.scans.assign(subject_id="quality_" + cohort.scans["subject_id"])
    with pytest.raises(CohortError, match="cannot be called 'quality'"):
        prepare(replace(cohort, scans=named), tmp_path / "out", CONFIG)


def test_a_picture_is_cut_where_the_scan_lies_in_the_template():
    made = stand_in(
        SimpleNamespace(data=np.zeros((3, 3, 3))),
        Grid.mni(6.0),
        path=Path(),
        work=Path(),
        modulation=True,
        normalisation="affine",
    )
    template_point = np.array([1.0, 2.0, 3.0])
    np.testing.assert_allclose(job._to_scan(made)(template_point), [-19.0, 2.0, 3.0])
