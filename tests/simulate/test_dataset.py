import gzip
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from nilatent.cohort import read_cohort
from nilatent.errors import SettingError
from nilatent.simulate import SimulationConfig, simulate, simulate_maps
from nilatent.simulate.dataset import scan_path
from nilatent.volumes import Grid

SMALL = SimulationConfig(spacing_mm=6.0, n_subjects=4, n_sessions=2)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="session")
def dataset(tmp_path_factory) -> Path:
    return simulate(tmp_path_factory.mktemp("simulated") / "cohort", SMALL)


def test_processes_do_not_change_a_byte(dataset, tmp_path):
    assert contents(simulate(tmp_path / "two", SMALL, n_procs=2)) == contents(dataset)


def test_another_seed_gives_other_scans(dataset, tmp_path):
    other = contents(simulate(tmp_path / "other", SimulationConfig(spacing_mm=6.0, n_subjects=4, n_sessions=2, seed=1)))
    same = [name for name, raw in contents(dataset).items() if name.endswith("probseg.nii.gz") and other[name] == raw]
    assert same == []


def test_compressed_files_carry_no_time_and_no_name(dataset):
    scans = sorted(dataset.rglob("*.nii.gz"))
    assert scans
    for path in scans:
        header = path.read_bytes()[:10]
        assert header[3] == 0, "flags: a name or comment follows"
        assert header[4:8] == b"\0\0\0\0", "modification time"
        gzip.decompress(path.read_bytes())


def test_a_killed_simulation_is_finished_to_the_same_bytes(dataset, tmp_path):
    out = simulate(tmp_path / "killed", SMALL)
    scans = sorted(out.rglob("*probseg.nii.gz"))
    scans[0].write_bytes(scans[0].read_bytes()[:50])
    scans[2].unlink()
    scans[5].with_name(scans[5].name.replace(".nii.gz", ".json")).unlink()
    (out / "truth.json").unlink()
    (scans[1].parent / ".123.partial.map.nii.gz").write_bytes(b"half")
    untouched = scans[7].stat().st_mtime_ns
    assert contents(simulate(out, SMALL)) == contents(dataset)
    assert scans[7].stat().st_mtime_ns == untouched


def test_a_folder_of_another_simulation_or_other_files_is_refused(dataset, tmp_path):
    with pytest.raises(SettingError, match="another n_sites, seed"):
        simulate(dataset, SimulationConfig(spacing_mm=6.0, n_subjects=4, n_sessions=2, seed=5, n_sites=3))
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(SettingError, match="needs an empty folder"):
        simulate(tmp_path, SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(SettingError, match="n_procs is at least 1, got 0"):
        simulate(tmp_path / "none", SMALL, n_procs=0)


def test_disk_and_memory_hold_the_same_maps(dataset):
    cohort = simulate_maps(SMALL)
    for scan_id, expected in zip(cohort.scans.index, cohort.maps, strict=True):
        (path,) = dataset.rglob(f"{scan_id}_*probseg.nii.gz")
        image = nib.load(path)
        cohort.grid.check_same(image.shape, image.affine, place=scan_id)
        np.testing.assert_array_equal(image.get_fdata(dtype=np.float32), expected)
    for name, expected in cohort.truth_maps.items():
        np.testing.assert_array_equal(
            nib.load(dataset / "truth" / f"{name}.nii.gz").get_fdata(dtype=np.float32), expected
        )


def test_it_is_read_as_a_cohort_with_its_sessions(dataset):
    cohort = read_cohort([dataset])
    expected = simulate_maps(SMALL).scans
    assert cohort.excluded.empty
    assert sorted(cohort.scans.index) == sorted(expected.index)
    found = cohort.scans.loc[expected.index]
    np.testing.assert_allclose(found["age"].astype(float), expected["age"])
    assert found["group"].tolist() == expected["group"].tolist()
    np.testing.assert_allclose(found["severity"].astype(float), expected["severity"])
    assert "MNI152NLin2009aSym_res-6_label-GM_probseg" in found["path"].iloc[0]


def test_everything_says_simulated(dataset):
    description = json.loads((dataset / "dataset_description.json").read_text())
    assert "Simulated" in description["Name"]
    assert description["DatasetType"] == "derivative"
    assert description["GeneratedBy"][0]["Name"] == "nilatent simulate"
    assert "SIMULATED" in (dataset / "README").read_text()
    side_cars = sorted((dataset / "sub-001").rglob("anat/*.json"))
    assert side_cars
    assert all(json.loads(path.read_text())["Simulated"] for path in side_cars)


def test_tables_are_described_and_truth_names_regions(dataset):
    participants = pd.read_csv(dataset / "participants.tsv", sep="\t")
    described = json.loads((dataset / "participants.json").read_text())
    assert set(participants.columns) == {"participant_id", *described}
    assert len(participants) == 4
    truth = json.loads((dataset / "truth.json").read_text())
    assert truth["groups"] == {"control": 2, "patient": 2}
    assert [region["name"] for region in truth["regions"]] == list(SMALL.regions)
    assert truth["regions"][0]["label"] == 4101
    assert Grid.from_dict(truth["grid"]).shape == Grid.mni(6.0).shape
    hidden = pd.read_csv(dataset / "truth" / "scans.tsv", sep="\t").set_index("scan_id")
    np.testing.assert_allclose(hidden["atrophy"], simulate_maps(SMALL).planted["atrophy"], rtol=1e-8)


def test_names_are_bids_labels_at_any_spacing():
    path = scan_path(Path("out"), SimulationConfig(spacing_mm=1.5), "sub-001", "ses-02")
    name = "sub-001_ses-02_space-MNI152NLin2009aSym_res-1p5_label-GM_probseg.nii.gz"
    assert path == Path("out/sub-001/ses-02/anat") / name
    raw = scan_path(Path("out"), SimulationConfig(kind="t1"), "sub-001", "")
    assert raw == Path("out/sub-001/anat/sub-001_T1w.nii.gz")


def test_tables_of_sessions_are_described_beside_each(dataset):
    for subject in sorted(dataset.glob("sub-*")):
        table = pd.read_csv(subject / f"{subject.name}_sessions.tsv", sep="\t")
        described = json.loads((subject / f"{subject.name}_sessions.json").read_text())
        assert list(table) == ["session_id", *described] == ["session_id", "age", "severity", "years"]


def test_what_it_is_made_from_is_stated(dataset):
    description = json.loads((dataset / "dataset_description.json").read_text())
    assert description["SourceDatasets"][0]["DOI"] in (dataset / "README").read_text()
    side_car = json.loads(next((dataset / "sub-001").rglob("*probseg.json")).read_text())
    assert side_car["SpatialReference"] == description["SourceDatasets"][0]["URL"]
