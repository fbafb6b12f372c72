import re
import unicodedata
from pathlib import Path

import pandas as pd
import pytest

from nilatent.cohort import load_cohort, read_cohort, select, write_cohort
from nilatent.errors import CohortError, SettingError


def image(path, content=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((content or str(path)).encode())
    return path


def raw(root, *names):
    """A raw BIDS folder of two subjects with T1w scans, and some further files by their names."""
    for name in ("sub-01_T1w", "sub-02_T1w", *names):
        entities = dict(re.findall(r"(sub|ses)-([^_]+)", name))
        folder = root.joinpath(*(f"{key}-{value}" for key, value in entities.items()), "anat")
        image(folder / f"{name}.nii.gz")
    return root


def table(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")
    return path


def names(cohort, column):
    return {scan: path if pd.isna(path) else Path(path).name for scan, path in cohort.scans[column].items()}


def test_a_suffix_finds_the_image_of_the_same_subject_and_session(tmp_path):
    raw(tmp_path, "sub-03_ses-1_T1w", "sub-03_ses-2_T1w", "sub-03_ses-2_FLAIR", "sub-02_T2w", "sub-01_acq-x_FLAIR")
    image(tmp_path / "derivatives" / "sub-02" / "anat" / "sub-02_FLAIR.nii.gz")
    image(tmp_path / "sub-02" / "anat" / "sub-02_space-T1w_FLAIR.nii.gz")
    cohort = read_cohort([tmp_path], images={"flair": "FLAIR"})
    found = cohort.scans["image_flair"].dropna()
    assert {scan: Path(path).name for scan, path in found.items()} == {
        "sub-01": "sub-01_acq-x_FLAIR.nii.gz",
        "sub-03_ses-2": "sub-03_ses-2_FLAIR.nii.gz",
    }
    assert cohort.scans["image_flair_sha256"].notna().equals(cohort.scans["image_flair"].notna())
    assert len(cohort.scans) == 4
    assert cohort.notes.empty


def test_of_several_the_simplest_then_first_is_taken_and_the_others_are_named(tmp_path, capsys):
    raw(tmp_path, "sub-01_run-10_pet", "sub-01_run-2_pet", "sub-02_acq-a_pet", "sub-02_pet", "sub-02_space-MNI152_pet")
    cohort = read_cohort([tmp_path], images={"pet": "pet"})
    assert names(cohort, "image_pet") == {"sub-01": "sub-01_run-2_pet.nii.gz", "sub-02": "sub-02_pet.nii.gz"}
    notes = cohort.notes.set_index("scan_id")
    assert set(notes["rule"]) == {"several images"}
    assert "run-10" in notes.at["sub-01", "reason"]
    assert "acq-a" in notes.at["sub-02", "reason"]
    assert "space-MNI152" in notes.at["sub-02", "reason"]
    assert "sub-01, pet" in capsys.readouterr().err


def test_beside_maps_an_image_in_template_space_goes_first_and_beside_raw_scans_a_raw_one(tmp_path):
    image(tmp_path / "sub-01" / "anat" / "sub-01_space-MNI152_label-GM_probseg.nii.gz")
    raw(tmp_path, "sub-01_FLAIR", "sub-01_space-MNI152_desc-x_FLAIR", "sub-02_space-MNI152_FLAIR", "sub-02_run-1_FLAIR")
    image(tmp_path / "sub-01" / "anat" / "s6wsub-01_T2w.nii")
    image(tmp_path / "sub-01" / "anat" / "rsub-01_T2w.nii")
    maps = read_cohort([tmp_path], images={"flair": "FLAIR", "t2": "T2w"})
    assert names(maps, "image_t2") == {"sub-01": "s6wsub-01_T2w.nii"}
    assert names(maps, "image_flair") == {"sub-01": "sub-01_space-MNI152_desc-x_FLAIR.nii.gz"}
    scans = read_cohort([tmp_path], suffix="T1w", images={"flair": "FLAIR"})
    assert names(scans, "image_flair") == {"sub-01": "sub-01_FLAIR.nii.gz", "sub-02": "sub-02_run-1_FLAIR.nii.gz"}


def test_tissues_of_maps_lie_beside_them_and_those_of_raw_scans_are_left_to_the_recipe(tmp_path):
    maps = tmp_path / "cat12"
    for scan in ("sub-1", "sub-2"):
        image(maps / "mri" / f"mwp1{scan}_T1w.nii")
    image(maps / "mri" / "mwp2sub-1_T1w.nii")
    image(maps / "mri" / "mwp2sub-2_T1w.nii.gz")
    image(maps / "mri" / "mwp3sub-2_T1w.nii")
    cohort = read_cohort([maps, raw(tmp_path / "raw")], images={"white": "WM", "csf": "CSF"})
    white = names(cohort, "image_white")
    assert white["cat12_sub-1"] == "mwp2sub-1_T1w.nii"
    assert white["cat12_sub-2"] == "mwp2sub-2_T1w.nii.gz"
    assert pd.isna([white["raw_sub-01"], white["raw_sub-02"], cohort.scans.at["cat12_sub-1", "image_csf"]]).all()
    raw(tmp_path / "raw", "sub-01_run-2_T1w")
    alone = read_cohort([tmp_path / "raw"], images={"white": "WM", "t1": "T1w"})
    assert not [name for name in alone.scans if "image_" in name]
    assert alone.notes.empty


def test_a_column_of_a_table_names_images_and_is_no_variable(tmp_path):
    for name in ("a", "b", "c", "fa", "own"):
        image(tmp_path / "scans" / f"{name}.nii")
    rows = [["path", "participant_id", "FA", "image_fa"], ["scans/a.nii", "1", "scans/fa.nii", "7"]]
    rows += [["scans/b.nii", "2", "n/a", "8"], ["scans/c.nii", "3", "scans/gone.nii", "9"]]
    cohort = read_cohort([table(tmp_path / "table.tsv", *rows)], images={"fa": "fa"})
    found = cohort.scans["image_fa"]
    assert found["sub-1"] == str(tmp_path / "scans" / "fa.nii")
    assert found[["sub-2", "sub-3"]].isna().all()
    assert "FA" not in cohort.scans
    assert list(cohort.scans["source_image_fa"]) == [7, 8, 9]
    assert cohort.notes[["scan_id", "modality", "rule"]].to_numpy().tolist() == [["sub-3", "fa", "absent image"]]


def test_a_cell_may_begin_at_home_and_write_accents_in_another_way(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for number, name in enumerate(
        ("scans/a.nii", "scans/b.nii", "home/fa.nii", unicodedata.normalize("NFC", "scans/é.nii"))
    ):
        image(tmp_path / name, str(number))
    rows = [["path", "participant_id", "FA"], ["scans/a.nii", "1", "~/fa.nii"]]
    table(tmp_path / "all.tsv", *rows, ["scans/b.nii", "2", unicodedata.normalize("NFD", "scans/é.nii")])
    cohort = read_cohort([tmp_path / "all.tsv"], suffix="T1w", images={"fa": "FA"})
    assert [path.startswith(str(tmp_path)) for path in cohort.scans["image_fa"]] == [True, True]
    assert names(cohort, "image_fa") == {"sub-1": "fa.nii", "sub-2": unicodedata.normalize("NFC", "é.nii")}


def test_images_with_the_bytes_of_another_are_taken_for_neither(tmp_path):
    raw(tmp_path, "sub-01_FLAIR", "sub-02_FLAIR", "sub-03_T1w", "sub-03_FLAIR", "sub-04_T1w", "sub-04_FLAIR")
    for scan, bytes_ in {"sub-01": "same", "sub-02": "same"}.items():
        image(tmp_path / scan / "anat" / f"{scan}_FLAIR.nii.gz", bytes_)
    own = tmp_path / "sub-03" / "anat" / "sub-03_T1w.nii.gz"
    image(tmp_path / "sub-03" / "anat" / "sub-03_FLAIR.nii.gz", own.read_text())
    cohort = read_cohort([tmp_path], images={"flair": "FLAIR"})
    assert list(cohort.scans["image_flair"].dropna().index) == ["sub-04"]
    assert list(cohort.scans["image_flair_sha256"].dropna().index) == ["sub-04"]
    notes = cohort.notes.set_index("scan_id")
    assert list(notes["rule"]) == ["same bytes"] * 3
    assert "sub-02_FLAIR" in notes.at["sub-01", "reason"]
    assert "sub-01_FLAIR" in notes.at["sub-02", "reason"]
    assert "sub-03_T1w" in notes.at["sub-03", "reason"]


def test_a_modality_that_no_scan_has_is_refused_with_the_nearest_name(tmp_path):
    raw(tmp_path / "raw", "sub-01_FLAIR", "sub-02_T2w")
    with pytest.raises(CohortError, match=r"'flare': 'FLARE' .* Did you mean FLAIR"):
        read_cohort([tmp_path / "raw"], images={"flare": "FLARE"})
    with pytest.raises(CohortError, match=r"There are: FLAIR, T1w, T2w"):
        read_cohort([tmp_path / "raw"], images={"x": "zzzz"})
    image(tmp_path / "maps" / "mri" / "mwp1sub-1.nii")
    with pytest.raises(CohortError, match="'WM' was looked for"):
        read_cohort([tmp_path / "maps"], images={"white": "WM"})
    # Grey matter of grey matter would be the modelled image twice.
    with pytest.raises(CohortError, match="is named 2 times"):
        read_cohort([tmp_path / "maps"], images={"grey": "GM"})


@pytest.mark.parametrize(
    "images", [{"a-b": "FLAIR"}, {"quality": "FLAIR"}, {"1": "FLAIR"}, {"a": "FLAIR", "b": "FLAIR"}, {"a": " "}]
)
def test_names_that_make_no_modality_are_refused(tmp_path, images):
    with pytest.raises(SettingError, match="modalit"):
        read_cohort([raw(tmp_path, "sub-01_FLAIR")], images=images)


def test_an_image_in_the_folder_of_another_is_noted_and_not_taken(tmp_path):
    raw(tmp_path, "sub-02_FLAIR")
    image(tmp_path / "sub-01" / "anat" / "sub-02_run-1_FLAIR.nii.gz")
    cohort = read_cohort([tmp_path], images={"flair": "FLAIR"})
    assert [path.endswith("sub-02/anat/sub-02_FLAIR.nii.gz") for path in cohort.scans["image_flair"].dropna()] == [True]
    assert list(cohort.notes["rule"]) == ["folder and name disagree"]


def test_images_and_notes_come_back_from_disk_and_hash_by_their_bytes(tmp_path):
    raw(tmp_path / "a", "sub-01_FLAIR", "sub-01_run-2_FLAIR")
    cohort = read_cohort([tmp_path / "a"], images={"flair": "FLAIR"})
    write_cohort(cohort, tmp_path / "a")
    written = (tmp_path / "a" / "scans.tsv").read_text()
    assert str(tmp_path) not in written
    back = load_cohort(tmp_path / "a")
    pd.testing.assert_frame_equal(back.scans, cohort.scans)
    pd.testing.assert_frame_equal(back.notes, cohort.notes)
    assert back.content_hash == cohort.content_hash
    assert select(back, ["02"]).notes.empty
    image(tmp_path / "a" / "sub-01" / "anat" / "sub-01_FLAIR.nii.gz", "other")
    assert read_cohort([tmp_path / "a"], images={"flair": "FLAIR"}).content_hash != cohort.content_hash
    # Without notes, those of an earlier time do not stay.
    write_cohort(select(cohort, ["02"]), tmp_path / "a")
    assert not (tmp_path / "a" / "notes.tsv").exists()
