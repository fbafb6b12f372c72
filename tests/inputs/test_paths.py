"""Paths as people have them: spaces, quotes, scripts, dashes, links, home, and names that no table can hold."""

import itertools
import os
import sys
import unicodedata
from pathlib import Path

import pytest
from tests.inputs.front import front, write_map

from nilatent.cohort import load_cohort, read_cohort
from nilatent.errors import CohortError
from nilatent.images import MAX_LABEL, nifti_files, spelled

WHOLE, PARTS = unicodedata.normalize("NFC", "Größe é"), unicodedata.normalize("NFD", "Größe é")
FOLDERS = [
    "with space",
    'quo\'te "double"',
    WHOLE,
    PARTS,
    "数据 🧠👩‍🔬",
    "-rf",
    "--help",
    "a;b|c&d $(x) `y` %s {0} [b] *?",
    "tab\there",
    "\u202eright to left",
    "x" * 200,
    "dots.nii.gz",
    "back\\slash",
]


def table(path: Path, *rows: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    quoted = [[f'"{cell.replace(chr(34), chr(34) * 2)}"' for cell in row] for row in rows]
    path.write_text("".join("\t".join(row) + "\n" for row in quoted), encoding="utf-8")
    return path


@pytest.mark.slow
def test_every_folder_a_disk_can_hold_goes_through_to_the_volumes(tmp_path):
    """All of them in one table, which itself lies in such a folder, and so does the output."""
    home = tmp_path / f"{WHOLE} 'of' \"all\" 🧠"
    rows = [["participant_id", "path", "age"]]
    for number, name in enumerate(FOLDERS):
        write_map(home / name / f"mwp1 {number}'\".nii", number)
        rows.append([str(number), f"{name}/mwp1 {number}'\".nii", str(20 + number)])
    passed = front([table(home / "-the table.tsv", *rows)], tmp_path / "-out 'é' 脳 🧠" / "ünd mehr", page=True)
    assert list(passed.prepared.scans["age"]) == [20.0 + number for number in range(len(FOLDERS))]
    assert passed.listed.empty
    assert all(Path(path).is_file() for path in passed.cohort.scans["path"])


def test_bids_folders_below_odd_names_go_through(tmp_path, monkeypatch):
    root = tmp_path / "daten 'x' é" / "--weird BIDS"
    for number in (1, 2):
        name = f"sub-0{number}_space-MNI152_label-GM_probseg.nii"
        write_map(root / f"sub-0{number}" / "ses-a b" / "anat" / name, number)
    table(root / "participants.tsv", ["participant_id", "site"], ["sub-01", PARTS], ["sub-02", "北京 🧠"])
    monkeypatch.chdir(root.parent)
    passed = front([Path("--weird BIDS")], Path("-o"))
    assert list(passed.prepared.scans.index) == ["sub-01_ses-ab", "sub-02_ses-ab"]
    assert list(passed.prepared.scans["site"]) == [PARTS, "北京 🧠"]
    assert (root.parent / "-o" / "volumes" / "volumes.npy").is_file()


@pytest.mark.parametrize(("written", "stored"), [(WHOLE, PARTS), (PARTS, WHOLE)])
def test_letters_with_accents_are_found_in_either_spelling(tmp_path, written, stored):
    write_map(tmp_path / stored / f"{stored} 1.nii", 1)
    rows = [["participant_id", "path"], ["1", f"{written}/{stored} 1.nii"], ["2", f"{written}/gone.nii"]]
    cohort = read_cohort([table(tmp_path / "t.tsv", *rows)])
    assert list(cohort.scans.index) == ["sub-1"]
    assert Path(cohort.scans["path"].iloc[0]).is_file()
    assert list(cohort.excluded["rule"]) == ["absent image"]
    write_map(tmp_path / written / f"{stored} 1.nii", 2)
    assert f"/{written}/" in read_cohort([tmp_path / "t.tsv"]).scans["path"].iloc[0]


def test_participants_are_joined_in_either_spelling_of_their_accents(tmp_path):
    write_map(tmp_path / f"mwp1{PARTS.replace(' ', '')}7.nii", 1)
    table(tmp_path / "participants.tsv", ["participant_id", "age"], [f"{WHOLE.replace(' ', '')}7", "30"])
    cohort = read_cohort([tmp_path])
    assert list(cohort.scans["age"]) == [30.0]
    assert cohort.excluded.empty


def test_home_and_relative_paths_are_places(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    write_map(tmp_path / "home" / "maps" / "a.nii", 1)
    write_map(tmp_path / "study" / "~" / "b.nii", 2)
    rows = [
        ["participant_id", "path"],
        ["1", "~/maps/a.nii"],
        ["2", "~/b.nii"],
        ["3", "~nobody-here/c.nii"],
        ["4", "./"],
    ]
    path = table(tmp_path / "home" / "t.tsv", *rows)
    cohort = read_cohort([Path("~/t.tsv")])
    assert cohort.scans["path"].to_dict() == {"sub-1": str(tmp_path / "home" / "maps" / "a.nii")}
    reasons = cohort.excluded.set_index("scan_id")["reason"]
    assert list(reasons.index) == ["sub-2", "sub-3", "sub-4"]
    assert "which is a folder" in reasons["sub-4"]
    path.rename(tmp_path / "study" / "t.tsv")
    assert [Path(place).parent.name for place in read_cohort([tmp_path / "study" / "t.tsv"]).scans["path"]] == [
        "maps",
        "~",
    ]
    monkeypatch.chdir(tmp_path / "study")
    with pytest.raises(CohortError, match="There is no source"):
        read_cohort([Path("~nobody-here")])
    assert len(read_cohort([Path("../study/./t.tsv")]).scans) == 2


def test_links_to_files_and_folders_are_followed_and_those_that_lead_nowhere_listed(tmp_path):
    store = tmp_path / "store"
    write_map(store / "blob", 1)
    write_map(store / "folder" / "mwp1b.nii", 2)
    root = tmp_path / "mri"
    root.mkdir()
    (root / "mwp1a.nii").symlink_to("../store/blob")
    (root / "linked").symlink_to(store / "folder")
    (root / "mwp1gone.nii").symlink_to("../.git/annex/objects/gone")
    (root / "mwp1loop.nii").symlink_to("mwp1loop.nii")
    (root / "back").symlink_to(root)
    (root / "self").symlink_to("self")
    (tmp_path / "source").symlink_to(root)
    passed = front([tmp_path / "source"], tmp_path / "out")
    assert sorted(passed.prepared.scans.index) == ["sub-a", "sub-b"]
    assert passed.listed.to_dict() == {"sub-gone": "unreadable image", "sub-loop": "unreadable image"}
    reasons = passed.prepared.excluded.set_index("scan_id")["reason"]
    assert "datalad get mwp1gone.nii" in reasons["sub-gone"]
    assert "leads to itself" in reasons["sub-loop"]
    (tmp_path / "ring").symlink_to("ring")
    with pytest.raises(CohortError, match=r"There is no source .*leads to itself"):
        read_cohort([tmp_path / "ring"])


def test_folders_that_link_to_one_another_end_in_words_and_not_in_a_day(tmp_path):
    levels = [tmp_path / f"level{number:02d}" for number in range(30)]
    for place in levels:
        place.mkdir()
    for place, below in itertools.pairwise(levels):
        for name in ("left", "right"):
            (place / name).symlink_to(below)
    write_map(levels[-1] / "mwp1a.nii", 1)
    with pytest.raises(CohortError, match="over more than 64 ways"):
        nifti_files(levels[0])


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_names_that_no_table_can_hold_are_listed_and_the_rest_goes_on(tmp_path):
    good = write_map(tmp_path / "mwp1good.nii", 1)
    for number, name in enumerate([b"mwp1latin\xe9.nii", b"mwp1line\nbreak.nii"]):
        Path(os.fsdecode(bytes(tmp_path) + b"/" + name)).write_bytes(good.read_bytes() + bytes(number + 1))
    passed = front([tmp_path], tmp_path / "out")
    assert list(passed.prepared.scans.index) == ["sub-good"]
    assert list(passed.listed) == ["name of the file"] * 2
    assert r"latin\xe9" in " ".join(passed.prepared.excluded["reason"])
    odd = Path(os.fsdecode(bytes(tmp_path) + b"/f\xe9"))
    write_map(odd / "mwp1a.nii", 3)
    with pytest.raises(CohortError, match=r"f\\xe9 has bytes in its name that are no UTF-8"):
        read_cohort([odd])


def test_a_label_too_long_for_the_names_of_our_files_is_listed_and_the_longest_goes_through(tmp_path):
    long, longer = "a" * MAX_LABEL, "b" * (MAX_LABEL + 1)
    rows = [
        ["participant_id", "session", "path"],
        [long, long, "1.nii"],
        [longer, "1", "2.nii"],
        ["1", longer, "3.nii"],
    ]
    for number in (1, 2, 3):
        write_map(tmp_path / f"{number}.nii", number)
    passed = front([table(tmp_path / "t.tsv", *rows)], tmp_path / "out")
    assert list(passed.prepared.scans["subject_id"]) == [f"sub-{long}"]
    assert list(passed.listed) == ["length of a label"] * 2
    # What the other recipe calls its files is a little longer, and every file is first written under a longer name.
    ending = "space-MNI152NLin2009aSym_res-1p25_label-CSF_desc-unmodulatedSynSmooth12p5_probseg.nii.gz"
    assert len(f".4194304-00000000.partial.sub-{long}_ses-{long}_{ending}") <= 255


def test_spellings_are_tried_a_few_times_only(tmp_path):
    assert spelled(tmp_path / "/".join(["é"] * 40)) == tmp_path / "/".join(["é"] * 40)


def test_what_was_read_under_an_odd_name_comes_back_from_disk(tmp_path):
    root = tmp_path / "tab\there 'é' 🧠"
    write_map(root / "mwp1 a.nii", 1)
    passed = front([root], root / "out")
    assert load_cohort(root / "out" / "cohort").content_hash == passed.cohort.content_hash
    assert len(read_cohort([root]).scans) == 1
