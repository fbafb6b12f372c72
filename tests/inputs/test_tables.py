"""Tables as people save them: each gives the right cohort, or an error with rule, value, place and next step."""

import codecs
import io
import time
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tests.inputs.front import front, write_map

from nilatent.cohort import read_cohort
from nilatent.errors import CohortError, SettingError
from nilatent.tables import EXPORT, read_tsv

# Every line of it has happened: 001 kept, NaN in four spellings, a note with a tab and a line break, accents, a comma.
ROWS = [
    ["participant_id", "Age ", "sex", "code", "score", "note", "scan_id", "path", "", "group"],
    ["sub-001", "20", "M", "007", "1.5", '"tab\there"', "x", "p", "", "patient"],
    ["002 ", "30.5", "f", "010", "n/a", '"two\nlines"', "y", "q", "", "control"],
    [" 003", "NaN", "Female", "3", "NA", "größer", "z", "r", "", " patient"],
    ["sub-004", "", "n/a", "0004", "-2e-1", '"say ""hi"""', "", "", "", "control "],
]


@pytest.fixture
def maps(tmp_path) -> Path:
    for number in range(1, 5):
        write_map(tmp_path / "mri" / f"mwp1sub-00{number}.nii", number)
    return tmp_path / "mri"


def save(
    folder: Path, rows: list[list[str]], *, end: str = "\n", sep: str = "\t", name: str = "participants.tsv"
) -> Path:
    path = folder / name
    path.write_bytes((end.join(sep.join(row) for row in rows) + end).encode())
    return path


def encodings() -> dict[str, bytes]:
    text = "\n".join("\t".join(row) for row in ROWS)
    windows = text.replace("\n", "\r\n")
    return {
        "mark": codecs.BOM_UTF8 + text.encode(),
        "windows": windows.encode(),
        "lone CR": text.replace("\n", "\r").encode(),
        "Latin-1": windows.encode("latin-1"),
        "UTF-16": windows.encode("utf-16"),
        "UTF-16 BE": codecs.BOM_UTF16_BE + text.encode("utf-16-be"),
        "unseen marks": text.replace("sub-004", "\u200bsub-004\ufeff").encode(),
        "blank lines": ("\n\n" + text.replace("sub-004", "\t\t\nsub-004") + "\n\n\t\n").encode(),
    }


def test_one_table_however_it_was_saved_is_one_cohort(maps):
    tables = {}
    for name, content in encodings().items():
        (maps / "participants.tsv").write_bytes(content)
        cohort = read_cohort([maps])
        assert cohort.excluded.empty, name
        tables[name] = cohort.scans
    first = tables["mark"]
    for name, scans in tables.items():
        pd.testing.assert_frame_equal(scans, first, obj=name)
    assert list(first.index) == ["sub-001", "sub-002", "sub-003", "sub-004"]
    np.testing.assert_array_equal(first["age"], [20, 30.5, np.nan, np.nan])
    np.testing.assert_array_equal(first["score"], [1.5, np.nan, np.nan, -0.2])
    assert list(first["code"]) == ["007", "010", "3", "0004"]
    assert list(first["sex"].fillna("")) == ["M", "F", "F", ""]
    assert list(first["note"]) == ["tab\there", "two lines", "größer", 'say "hi"']
    assert list(first["source_scan_id"].fillna("")) == ["x", "y", "z", ""]
    assert list(first["group"]) == ["patient", "control"] * 2
    assert first["path"].str.endswith(".nii").all()


def test_such_a_table_goes_through_to_the_volumes_with_the_study_checked(maps, tmp_path):
    (maps / "participants.tsv").write_bytes(encodings()["Latin-1"])
    passed = front([maps], tmp_path / "out", group="group", contrast="patient:control", covariates=["age", "score"])
    assert list(passed.prepared.scans["code"]) == ["007", "010", "3", "0004"]
    assert list(passed.prepared.scans["note"]) == ["tab\there", "two lines", "größer", 'say "hi"']
    assert passed.volumes.data.shape == (4, 32, 32, 32)


def workbook() -> bytes:
    holder = io.BytesIO()
    with zipfile.ZipFile(holder, "w") as packed:
        packed.writestr("xl/worksheets/sheet1.xml", "<sheet/>")
    return holder.getvalue()


REFUSED = {
    "empty": (b"", "is empty. It needs a line of column names"),
    "blank": (b"\n \t\n", "is empty"),
    "Excel": (workbook(), EXPORT),
    "old Excel": (b"\xd0\xcf\x11\xe0" + bytes(600), EXPORT),
    "packed": (b"\x1f\x8b\x08\x00" + bytes(30), "packed by gzip. Unpack it first"),
    "web page": (b"\n <!DOCTYPE html><title>Log in</title>", "web page"),
    "image": (b"\x5c\x01\x00\x00" + bytes(400), "bytes that no text has. Give a TSV or CSV; images are named in one"),
    "UTF-16 without mark": (
        "participant_id\tage\n".encode("utf-16-le"),
        "UTF-16 without its mark. Save it again as UTF-8",
    ),
    "half UTF-16": (codecs.BOM_UTF16_LE + b"a\0b", "is not whole UTF-16 text"),
    "zero in UTF-16": ("participant_id\tage\n001\t\0\n".encode("utf-16"), "line 2, holds a zero character"),
    "UTF-32": ("participant_id\n".encode("utf-32"), "written in UTF-32. Save it again as UTF-8"),
    "column twice": (
        b"participant_id\tage\tage\n1\t2\t3\n",
        "column 'age' twice, as columns 2 and 3. Every column name",
    ),
    "no identifier": (b"name\tage\nA\t2\n", "has the columns name, age. It needs one called participant_id"),
    "in two cases": (b"participant_id\tParticipant_ID\n1\t2\n", "participant_id and Participant_ID. Keep one"),
    "too many cells": (b"participant_id\tage\n001\t2\t3\n", "line 2, has 3 cells and the header 2. Every row"),
    "too few cells": (b"participant_id\tage\n001\t2\n002\n", "line 3, has 1 cells and the header 2"),
    "open quote": (
        b'participant_id\tnote\n001\t"a\n002\tb\n',
        "cannot be read as a table: unexpected end of data. Look for",
    ),
    "commas": (
        b"participant_id,age\n001,2\n",
        "has the columns participant_id,age. It needs one called participant_id",
    ),
    "decimal comma in age": (b"participant_id\tage\n001\t23,5\n", "has the age '23,5', which is no number of years"),
    "age with unit": (b"participant_id\tage\n001\t23 years\n", "Write years with a decimal point"),
    "sex code": (b"participant_id\tsex\n001\t1\n", "has the sex '1', which is none of m, male"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_table_that_is_none_is_refused_with_its_place_and_the_next_step(maps, name):
    content, words = REFUSED[name]
    (maps / "participants.tsv").write_bytes(content)
    with pytest.raises(CohortError) as caught:
        read_cohort([maps])
    assert words in str(caught.value)
    assert "participants.tsv" in str(caught.value) or "sub-001" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "words"), [("a.xlsx", EXPORT), ("a.nii.gz", "is one image"), ("a.dcm", "is one image")]
)
def test_a_file_that_is_no_table_is_refused_as_a_source(tmp_path, name, words):
    (tmp_path / name).write_bytes(workbook())
    with pytest.raises(CohortError) as caught:
        read_cohort([tmp_path / name])
    assert words in str(caught.value)


def test_a_workbook_beside_the_scans_is_named_and_not_passed_over_in_silence(maps, capsys):
    (maps / "Participants.xlsx").write_bytes(workbook())
    (maps / "participants.json").write_text("{}")
    assert "age" not in read_cohort([maps]).scans
    said = " ".join(capsys.readouterr().err.split())
    assert "Participants.xlsx was not read: save it as text parted by tabs, with the name participants.tsv." in said
    assert "json" not in said


def test_rows_and_scans_without_each_other_are_listed_on_both_sides(maps):
    rows = [["participant_id", "age"], ["sub-001", "20"], ["n/a", "99"], ["2", "30"], ["007", "40"], ["Sub-003", "50"]]
    save(maps, [*rows, ["003", "50"], ["sub-003", "51"]])
    cohort = read_cohort([maps])
    assert list(cohort.scans.index) == ["sub-001"]
    listed = cohort.excluded.set_index("scan_id")
    assert listed["rule"].to_dict() == {
        "line-3": "no subject",
        "sub-002": "no row in participants.tsv",
        "sub-003": "several rows in participants.tsv",
        "sub-004": "no row in participants.tsv",
        "sub-2": "absent image",
        "sub-007": "absent image",
    }
    assert "It has '2', which differs in case, leading zeros" in listed.at["sub-002", "reason"]
    assert "lines 6, 8 differ in age ('50', '51'). Leave exactly one." in listed.at["sub-003", "reason"]
    assert "participants.tsv, line 5, lists sub-007" in listed.at["sub-007", "reason"]


def test_numbers_as_people_write_them_are_never_guessed_and_always_named(maps, tmp_path, capsys):
    columns = {
        "comma": ["1,5", "2.5", "3,25", "4"],
        "thousands": ["1 234", "1'234", "1234", "1.234.567"],
        "percent": ["10%", "20", "30", "40"],
        "sign": ["\u22121", "2", "3", "4"],
        "endless": ["1e999", "2", "3", "4"],
        "excel": ["#N/A", "2", "#NULL!", "4"],
        "words": ["1", "two", "three", "four"],
        "code": ["001", "2", "3", "4"],
    }
    rows = [
        ["participant_id", *columns],
        *([f"00{i + 1}", *(cells[i] for cells in columns.values())] for i in range(4)),
    ]
    save(maps, rows)
    scans = read_cohort([maps]).scans
    said = capsys.readouterr().err
    for name in columns:
        assert pd.api.types.is_numeric_dtype(scans[name]) == (name == "excel"), name
        assert (f"The column '{name}' is read as words" in said) == (name not in ("excel", "words", "code")), name
        assert name == "excel" or list(scans[name]) == columns[name]
    assert "3 of its 4 cells, such as '1 234' of sub-001, are no number as we read them. Write a decimal point" in said
    with pytest.raises(SettingError, match=r"sub-001 has '1,5' where most scans have numbers"):
        front([maps], tmp_path / "out", covariates=["comma"])


def test_columns_named_like_ours_are_kept_under_names_of_their_own(maps, tmp_path):
    ours = ["scan_id", "subject_id", "session_id", "source_id", "dataset", "sha256", "path", "gm_path", "source_path"]
    ours += ["gm_ml", "source_gm_ml", "recipe", "quality_flags", "image_wm", "variant", "rank", "line"]
    rows = [
        ["participant_id", *ours],
        *([f"00{number}", *(f"{name} {number}" for name in ours)] for number in range(1, 5)),
    ]
    save(maps, [row[:3] + row[4:] for row in rows])
    passed = front([maps], tmp_path / "out")
    prepared = passed.prepared.scans
    values = {str(value) for value in prepared.to_numpy().ravel()}
    for name in ours[:2] + ours[3:]:
        assert f"{name} 3" in values, name
    assert prepared.columns.is_unique
    assert list(prepared["source_path"]) == [f"path {number}" for number in range(1, 5)]
    assert list(prepared["source_source_path"]) == [f"source_path {number}" for number in range(1, 5)]
    assert all(Path(path).is_file() for path in prepared["path"])


@pytest.mark.slow
def test_our_own_list_of_scans_can_be_given_as_a_table_again_and_again(maps, tmp_path):
    save(maps, [["participant_id", "age"], *([f"00{number}", str(number)] for number in range(1, 5))])
    sources = [maps]
    for turn in range(3):
        passed = front(sources, tmp_path / f"out{turn}")
        assert list(passed.prepared.scans["age"]) == [1, 2, 3, 4]
        sources = [tmp_path / f"out{turn}" / "prepared" / "scans.tsv"]


@pytest.mark.slow
def test_two_thousand_columns_are_read(maps):
    names = [f"v{number}" for number in range(2000)]
    rows = [
        ["participant_id", *names],
        *([f"00{row}", *(f"{row}.{number}" for number in range(2000))] for row in range(1, 5)),
    ]
    save(maps, rows)
    scans = read_cohort([maps]).scans
    assert scans["v1999"].tolist() == [1.1999, 2.1999, 3.1999, 4.1999]
    assert sum(str(dtype) == "float64" for dtype in scans.dtypes) == 2000


@pytest.mark.slow
def test_a_hundred_thousand_rows_are_read_and_joined_in_a_minute(maps):
    rows = [["participant_id", "age", "site", "sex"]]
    rows += [[f"{number:06d}", str(20 + number % 60), f"s{number % 7}", "MF"[number % 2]] for number in range(100_000)]
    for number in range(0, 100_000, 1000):
        (maps / f"mwp1sub-{number:06d}.nii").write_bytes(str(number).encode())
    started = time.process_time()
    save(maps, rows)
    cohort = read_cohort([maps])
    assert time.process_time() - started < 60
    assert len(cohort.scans) == 100
    assert len(cohort.excluded) == 100_000 - 100 + 4
    assert cohort.scans.loc["sub-099000", "site"] == f"s{99000 % 7}"
    named = [["participant_id", "path", "age"], *([f"{n:06d}", "mwp1sub-000000.nii", "3"] for n in range(1))]
    named += [[f"{number:06d}", f"gone/{number}.nii", "4"] for number in range(1, 100_000)]
    started = time.process_time()
    cohort = read_cohort([save(maps, named, name="paths.tsv")])
    assert time.process_time() - started < 60
    assert (len(cohort.scans), len(cohort.excluded)) == (1, 99_999)


def test_a_line_or_a_file_without_end_is_refused_before_it_is_in_memory(tmp_path, monkeypatch):
    path = save(tmp_path, [["participant_id", "x" * 40]])
    monkeypatch.setattr("nilatent.tables.MAX_LINE", 30)
    with pytest.raises(CohortError, match=r"line 1, has more than 30 characters, the most that a row may have. Look"):
        read_tsv(path)
    monkeypatch.setattr("nilatent.tables.MAX_TABLE_BYTES", 20)
    with pytest.raises(CohortError, match=r"has \d+ bytes; a table may have 20. Keep the columns"):
        read_tsv(path)
