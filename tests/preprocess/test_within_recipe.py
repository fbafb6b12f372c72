"""The recipe's way through subject templates, with stand-ins for what takes minutes."""

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from nilatent.cohort import Cohort
from nilatent.errors import ScanError, SettingError
from nilatent.preprocess import derivative, job, recipe
from nilatent.preprocess.config import RecipeConfig
from nilatent.preprocess.derivative import Prepared
from nilatent.preprocess.recipe import prepare
from nilatent.provenance import hash_file, read_json
from nilatent.volumes import Grid, template

CONFIG = RecipeConfig(name="t1", spacing_mm=6.0, fwhm_mm=0.0, within_subject=True)
ALONE, SHARED = 0.6, 0.5


def made(value, grid, notes):
    maps = {"gm": np.full(grid.shape, value, dtype=np.float32)}
    return Prepared(maps, np.eye(4), {"gm_ml": 1.0}, {"Modulated": True} | notes)


def prepare_alone(scan, grid, *, path, work, modulation, normalisation):
    return made(ALONE, grid, {})


def prepare_visit(scan, grid, common, *, path, modulation):
    return made(SHARED, grid, {"WithinSubject": common.n_visits, "SubjectTemplate": common.digest})


def make_template(subject):
    """A template of every visit whose file is not empty; a subject called sub-9 has none."""
    if subject.subject == "sub-9":
        rule = "aligns with the template"
        raise ScanError(f"{subject.mean}: rule '{rule}' is broken", rule=rule)
    good = [visit.scan_id for visit in subject.visits if visit.path.stat().st_size]
    failed = {visit.scan_id for visit in subject.visits} - set(good)
    image = nib.Nifti1Image(np.ones((5, 7, 6), dtype=np.uint8), np.eye(4))
    record = {
        "ToTemplate": np.eye(4),
        "Normalisation": subject.normalisation,
        "Visits": {scan_id: {"ToSubject": np.eye(4), "Correlation": 0.9} for scan_id in good},
        "Failed": {scan_id: {"rule": "readable", "reason": f"{scan_id} is empty"} for scan_id in failed},
    }
    images = {subject.mask: (image, {}), subject.mean: (image, {})}
    derivative.write_files(subject.mean, images, {}, key=subject.key, record=record)


@pytest.fixture
def visits(tmp_path, monkeypatch):
    """Scans sub-1 at two sessions and sub-2 at one, prepared in this process."""
    inside = recipe.workers.run_jobs
    monkeypatch.setattr(job, "prepare_t1", prepare_alone)
    monkeypatch.setattr(job, "prepare_visit", prepare_visit)
    monkeypatch.setattr(recipe.within, "make_template", make_template)
    monkeypatch.setattr(
        recipe.workers,
        "run_jobs",
        lambda work, jobs, *, n_procs, apart: inside(work, jobs, n_procs=n_procs, apart=not apart),
    )
    return [visit(tmp_path, *names) for names in (("sub-1", "ses-1"), ("sub-1", "ses-2"), ("sub-2", "ses-1"))]


def visit(folder, subject, session):
    path = folder / "raw" / subject / session / "anat" / f"{subject}_{session}_T1w.nii.gz"
    path.parent.mkdir(parents=True)
    grid = Grid.mni(6.0)
    values = np.ones(grid.shape, dtype=np.float32)
    values[:13] = 2 + int(session[-1])
    nib.save(grid.to_image(values), path)
    return path


def cohort_of(paths):
    rows = {
        path.name.removesuffix("_T1w.nii.gz"): {
            "subject_id": path.parts[-4],
            "session_id": path.parts[-3],
            "dataset": "one",
            "path": str(path),
            "sha256": hash_file(path),
        }
        for path in paths
    }
    return Cohort(pd.DataFrame.from_dict(rows, orient="index").rename_axis("scan_id"))


def value_of(row):
    return float(nib.load(row["path"]).get_fdata().max())


def stamps(done):
    return {scan_id: Path(path).stat().st_mtime_ns for scan_id, path in done.scans["path"].items()}


def test_visits_share_a_template_and_a_single_scan_has_none(visits, tmp_path):
    done = prepare(cohort_of(visits), tmp_path / "out", CONFIG)
    assert [value_of(row) for _, row in done.scans.iterrows()] == pytest.approx([SHARED, SHARED, ALONE])
    side_cars = [read_json(Path(path.replace(".nii.gz", ".json")))["nilatent"] for path in done.scans["path"]]
    assert [said["Recipe"]["within_subject"] for said in side_cars] == [True, True, False]
    assert side_cars[0]["Scan"]["WithinSubject"] == 2
    again = prepare(cohort_of(visits), tmp_path / "out", CONFIG)
    assert stamps(again) == stamps(done)


def test_a_new_visit_makes_all_visits_of_the_subject_anew_and_no_others(visits, tmp_path):
    coarse = prepare(cohort_of(visits), tmp_path / "out", replace(CONFIG, spacing_mm=5.0))
    before = stamps(prepare(cohort_of(visits), tmp_path / "out", CONFIG))
    more = [*visits, visit(tmp_path, "sub-1", "ses-3")]
    after = stamps(prepare(cohort_of(more), tmp_path / "out", CONFIG))
    assert [after[scan_id] == stamp for scan_id, stamp in before.items()] == [False, False, True]
    # Maps of another resolution that lie by the older template would share the new transforms.
    assert [Path(path).exists() for path in coarse.scans["path"]] == [False, False, True]


def test_without_the_option_visits_are_prepared_alone_and_single_scans_stay(visits, tmp_path):
    before = stamps(prepare(cohort_of(visits), tmp_path / "out", CONFIG))
    done = prepare(cohort_of(visits), tmp_path / "out", replace(CONFIG, within_subject=False))
    assert [value_of(row) for _, row in done.scans.iterrows()] == pytest.approx([ALONE] * 3)
    assert stamps(done)["sub-2_ses-1"] == before["sub-2_ses-1"]


def test_a_visit_that_its_template_lacks_is_excluded_with_the_reason(visits, tmp_path):
    more = [*visits, visit(tmp_path, "sub-1", "ses-3")]
    whole = prepare(cohort_of(more), tmp_path / "out", CONFIG)
    more[1].write_bytes(b"")
    done = prepare(cohort_of(more), tmp_path / "out", CONFIG)
    assert list(done.excluded["scan_id"]) == ["sub-1_ses-2"]
    assert done.excluded["rule"].iloc[0] == "readable"
    assert "sub-1_ses-2 is empty" in done.excluded["reason"].iloc[0]
    assert not Path(whole.scans.at["sub-1_ses-2", "path"]).exists()
    assert value_of(done.scans.loc["sub-1_ses-3"]) == pytest.approx(SHARED)


def test_a_template_that_fails_takes_its_visits_along_and_no_others(visits, tmp_path):
    more = [*visits, visit(tmp_path, "sub-9", "ses-1"), visit(tmp_path, "sub-9", "ses-2")]
    done = prepare(cohort_of(more), tmp_path / "out", CONFIG)
    assert list(done.excluded["scan_id"]) == ["sub-9_ses-1", "sub-9_ses-2"]
    assert set(done.excluded["rule"]) == {"aligns with the template"}
    assert len(done.scans) == 3


def test_the_warp_is_part_of_what_a_template_is_made_of(visits, tmp_path):
    sha256 = cohort_of(visits).scans["sha256"]
    keys = {
        recipe._subjects(recipe._jobs(cohort_of(visits[::order]), tmp_path, config, None), sha256)[0].key
        for order in (1, -1)
        for config in (CONFIG, replace(CONFIG, fwhm_mm=4.0))
    }
    assert len(keys) == 1
    warped = recipe._jobs(cohort_of(visits), tmp_path, replace(CONFIG, normalisation="syn"), None)
    assert recipe._subjects(warped, sha256)[0].key not in keys


def test_maps_have_no_template(tmp_path):
    with pytest.raises(SettingError, match=r"recipe.within_subject .* recipe.name is 'gm'"):
        replace(CONFIG, name="gm")
    grid, path = Grid.mni(6.0), tmp_path / "maps" / "sub-1_space-MNI152_label-GM_probseg.nii.gz"
    path.parent.mkdir()
    nib.save(template("gm", grid), path)
    rows = {"subject_id": "sub-1", "session_id": "", "dataset": "one", "path": str(path), "sha256": hash_file(path)}
    cohort = Cohort(pd.DataFrame([rows], index=pd.Index(["sub-1"], name="scan_id")))
    with pytest.raises(SettingError, match="all of these are maps"):
        prepare(cohort, tmp_path / "out", replace(CONFIG, name="auto"))


def test_files_exchanged_between_sessions_are_moved_as_they_lie(visits, tmp_path):
    def key(paths):
        cohort = cohort_of(paths)
        return recipe._subjects(recipe._jobs(cohort, tmp_path, CONFIG, None), cohort.scans["sha256"])[0].key

    before = key(visits)
    one, two = visits[0].read_bytes(), visits[1].read_bytes()
    visits[0].write_bytes(two)
    visits[1].write_bytes(one)
    assert key(visits) != before
