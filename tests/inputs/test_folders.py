"""BIDS that a validator dislikes and a person understands: which image is taken, and why, is always said."""

import gzip
import json
import os
from pathlib import Path

import pytest
from tests.inputs.front import front, map_bytes, write_map

from nilatent.cohort import Cohort, read_cohort
from nilatent.errors import CohortError
from nilatent.tables import MAX_JSON_LEVELS

MAP = "space-MNI152_label-GM_probseg.nii"


def image(path: Path, content: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((content or str(path)).encode())
    return path


def taken(cohort: Cohort) -> dict[str, str]:
    return {str(scan): Path(path).name for scan, path in cohort.scans["path"].items()}


def rules(cohort: Cohort) -> list[list[str]]:
    return cohort.excluded[["scan_id", "rule"]].to_numpy().tolist()


def test_a_messy_folder_goes_through_to_the_volumes(tmp_path, capsys):
    """No description, sessions for some, spaces, capitals, other files, broken side-cars, derivatives and raw scans."""
    root = tmp_path / "my study"
    write_map(root / "sub-01" / "anat" / f"sub-01_{MAP}", 1)
    write_map(root / "sub-02" / "ses-1" / "anat" / f"sub-02_ses-1_{MAP}", 2)
    write_map(root / "sub-02" / "ses-2" / "old stuff (do not use)" / f"sub-02_ses-2_{MAP.replace('.nii', '.NII')}", 3)
    write_map(root / "derivatives" / "some tool" / "SUB-03" / f"SUB-03_SES-9_{MAP}", 4)
    image(root / "sub-01" / "anat" / "sub-01_T1w.nii.gz")
    image(root / "sub-04" / "anat" / "sub-04_T1w.nii.gz")
    image(root / "sub-01" / "func" / "sub-01_task-rest_events.tsv")
    image(root / "sub-01" / "func" / "sub-01_task-rest_bold.nii.gz")
    image(root / "sub-01" / "anat" / f"sub-01_{MAP}".replace(".nii", ".json"), "{")
    image(root / "dataset_description.json", "[" * 20_000)
    (root / "participants.tsv").write_text("participant_id\tage\n01\t20\nSUB-02\t30\nsub-03\t40\nsub-04\t50\n")
    passed = front([root], tmp_path / "out")
    assert passed.prepared.scans["age"].to_dict() == {
        "sub-01": 20,
        "sub-02_ses-1": 30,
        "sub-02_ses-2": 30,
        "sub-03_ses-9": 40,
    }
    assert passed.prepared.scans.at["sub-03_ses-9", "subject_id"] == "sub-03"
    assert passed.listed.to_dict() == {"sub-04": "absent image"}
    assert (
        "participants.tsv, line 5, lists sub-04, for whom there is no image"
        in passed.prepared.excluded["reason"].iloc[0]
    )
    said = " ".join(capsys.readouterr().err.split())
    assert "4 grey-matter maps are taken, and 2 T1w images are not" in said


def test_of_runs_the_first_and_of_acquisitions_the_usual_one_is_taken(tmp_path):
    for name in (
        "01_acq-a",
        "01_acq-b",
        "02_acq-b",
        "03_acq-b_run-2",
        "03_acq-b_run-10",
        "04",
        "04_rec-norm",
        "05_run-02",
    ):
        image(tmp_path / f"sub-{name[:2]}" / "anat" / f"sub-{name}_T1w.nii")
    cohort = read_cohort([tmp_path])
    assert taken(cohort) == {
        "sub-01": "sub-01_acq-b_T1w.nii",
        "sub-02": "sub-02_acq-b_T1w.nii",
        "sub-03": "sub-03_acq-b_run-2_T1w.nii",
        "sub-04": "sub-04_T1w.nii",
        "sub-05": "sub-05_run-02_T1w.nii",
    }
    reasons = cohort.excluded.set_index("scan_id")["reason"]
    assert list(cohort.excluded["rule"]) == ["second image"] * 3
    assert "sub-01_acq-a_T1w.nii is a second image" in reasons["sub-01"]
    assert "most scans of the folder have 'acq-b'" in reasons["sub-01"]
    assert "it is the first run" in reasons["sub-03"]
    assert "most scans of the folder have 'no acq-, rec- or ce-'" in reasons["sub-04"]


def test_where_nothing_says_which_image_is_meant_none_is_taken(tmp_path):
    for sub in ("01", "02"):
        for name in ("acq-a", "acq-b"):
            image(tmp_path / f"sub-{sub}" / "anat" / f"sub-{sub}_{name}_T1w.nii")
    image(tmp_path / "sub-03" / "anat" / "sub-03_T1w.nii")
    image(tmp_path / "sub-03" / "anat copy" / "sub-03_T1w.nii")
    image(tmp_path / "sub-04" / "anat" / "sub-04_acq-a_T1w.nii")
    image(tmp_path / "sub-05" / "anat" / "sub-05_acq-b_T1w.nii")
    (tmp_path / "participants.tsv").write_text("participant_id\n" + "".join(f"sub-0{n}\n" for n in range(1, 6)))
    cohort = read_cohort([tmp_path])
    assert list(cohort.scans.index) == ["sub-04", "sub-05"]
    assert rules(cohort) == [["sub-01", "several images"], ["sub-02", "several images"], ["sub-03", "several images"]]
    reason = cohort.excluded["reason"].iloc[2]
    assert "anat copy" in reason
    assert "nothing says which is meant. Name the one you want in a table of paths" in reason


def test_a_scan_packed_and_unpacked_counts_once_and_two_scans_of_one_name_not_at_all(tmp_path):
    for sub in ("01", "02"):
        image(tmp_path / f"sub-{sub}_T1w.nii", f"voxels {sub}")
    (tmp_path / "sub-01_T1w.nii.gz").write_bytes(gzip.compress(b"voxels 01"))
    (tmp_path / "sub-02_T1w.nii.gz").write_bytes(gzip.compress(b"voxels xx"))
    (tmp_path / "sub-03_T1w.nii").write_bytes(b"voxels 03")
    (tmp_path / "sub-03_T1w.nii.gz").write_bytes(gzip.compress(b"voxels 03")[:-4])
    long = bytes(2**20)
    (tmp_path / "sub-04_T1w.nii").write_bytes(long + b"1")
    (tmp_path / "sub-04_T1w.nii.gz").write_bytes(gzip.compress(long + b"2"))
    cohort = read_cohort([tmp_path])
    assert taken(cohort) == {"sub-01": "sub-01_T1w.nii"}
    left_out = [[f"sub-0{number}", "several images"] for number in (2, 3, 4)]
    assert rules(cohort) == [["sub-01", "second image"], *left_out]
    assert "both are the same image" in cohort.excluded["reason"].iloc[0]


@pytest.mark.parametrize(
    ("name", "scan"),
    [
        ("sub-01/anat/sub-01_T1W.NII.GZ", "sub-01"),
        ("sub-01/anat/sub-01_t1w.nii", "sub-01"),
        ("SUB-01/SES-2/SUB-01_SES-2_T1w.nii", "sub-01_ses-2"),
        ("sub-01/ses-pre/T1w.nii.gz", "sub-01_ses-pre"),
        ("sub-01/anat/sub-01_acq-1.5T_T1w.nii.gz", "sub-01"),
        ("any depth/of folders/sub-01_T1w.nii", "sub-01"),
        ("patient 7_T1w.nii", "sub-patient7"),
    ],
)
def test_names_outside_bids_are_understood(tmp_path, name, scan):
    image(tmp_path / name)
    image(tmp_path / "sub-99_T1w.nii")
    cohort = read_cohort([tmp_path])
    assert sorted(cohort.scans.index) == sorted([scan, "sub-99"])
    assert cohort.excluded.empty


def test_sessions_written_in_capitals_stay_sessions_of_one_subject(tmp_path):
    for session in ("SES-1", "SES-2"):
        image(tmp_path / f"SUB-01_{session}_T1w.nii")
    assert set(read_cohort([tmp_path]).scans["subject_id"]) == {"sub-01"}


def test_a_broken_table_of_sessions_costs_its_subject_only(tmp_path):
    for sub in ("01", "02"):
        image(tmp_path / f"sub-{sub}" / "ses-1" / f"sub-{sub}_ses-1_T1w.nii")
        (tmp_path / f"sub-{sub}" / f"sub-{sub}_sessions.tsv").write_text("session_id\tage\nses-1\t20\n")
    (tmp_path / "participants.tsv").write_text("participant_id\nsub-01\nsub-02\n")
    (tmp_path / "sub-02" / "sub-02_sessions.tsv").write_text("session_id\tage\nses-1\t20\t30\n")
    cohort = read_cohort([tmp_path])
    assert list(cohort.scans.index) == ["sub-01_ses-1"]
    assert rules(cohort) == [["sub-02_ses-1", "table of sessions"]]
    assert "sub-02_sessions.tsv, line 2, has 3 cells and the header 2" in cohort.excluded["reason"].iloc[0]


DICTIONARIES = {
    "half": '{"age": {"Description": "half a character \\ud800"}}',
    "odd": '{"age": 7, "sex": ["M"], "": null, "score": {"Units": {"a": 1}, "Levels": [1, 2]}}',
    "deep": '{"age": ' + "[" * (MAX_JSON_LEVELS - 2) + "]" * (MAX_JSON_LEVELS - 2) + "}",
    "numbers": '{"age": {"Maximum": 1e999, "Minimum": -0, "Big": 123456789012345678901234567890}}',
    "mark": "\ufeff{}",
}


@pytest.mark.parametrize("name", DICTIONARIES)
def test_odd_dictionaries_go_through_to_the_derivative(tmp_path, name):
    write_map(tmp_path / "in" / f"sub-01_{MAP}", 1)
    (tmp_path / "in" / "participants.tsv").write_text("participant_id\tage\tsex\tscore\nsub-01\t20\tM\t3\n")
    (tmp_path / "in" / "participants.json").write_text(DICTIONARIES[name], encoding="utf-8")
    front([tmp_path / "in"], tmp_path / "out")
    assert "age" in json.loads((tmp_path / "out" / "prepared" / "scans.json").read_text(encoding="utf-8"))


def test_brackets_inside_text_are_no_levels(tmp_path):
    image(tmp_path / "sub-01_T1w.nii")
    (tmp_path / "participants.tsv").write_text("participant_id\tage\nsub-01\t20\n")
    described = {"age": {"Description": '\\"[[[[' * 100}}
    (tmp_path / "participants.json").write_text(json.dumps(described))
    assert read_cohort([tmp_path]).columns == described


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="needs permissions that hold")
def test_a_folder_that_may_not_be_read_is_named(tmp_path, capsys):
    image(tmp_path / "sub-01" / "sub-01_T1w.nii")
    (tmp_path / "sub-02").mkdir(mode=0)
    assert list(read_cohort([tmp_path]).scans.index) == ["sub-01"]
    assert "sub-02 cannot be looked into" in capsys.readouterr().err


def test_the_same_map_for_everyone_is_refused(tmp_path):
    for number in (1, 2):
        image(tmp_path / f"sub-0{number}_{MAP}").write_bytes(map_bytes(1))
    with pytest.raises(CohortError, match=r"No scan is left. sub-01: The file .* has the same bytes as scan sub-02"):
        read_cohort([tmp_path])
