import json
import os
import re

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nilatent.errors import CohortError
from nilatent.sources import read_source
from nilatent.tables import read_tsv


def image(path, content=None):
    """A file with bytes of its own: readers of sources look at names and bytes, not at voxels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if content is not None else str(path).encode())
    return path


def table(path, *rows, sep="\t"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(sep.join(row) + "\n" for row in rows), encoding="utf-8")
    return path


def raw(root, *scans):
    for scan in scans:
        sub, _, rest = scan.partition("_")
        place = root / sub / rest.split("_")[0] if rest.startswith("ses-") else root / sub
        image(place / "anat" / f"{scan}_T1w.nii.gz")
    return root


def read(path, suffix="auto"):
    source = read_source(path, suffix=suffix)
    return source.scans.set_index("scan_id"), {problem["scan_id"]: problem for problem in source.problems}


# BIDS raw


def test_bids_scans_carry_the_row_of_their_subject(tmp_path):
    raw(tmp_path, "sub-01", "sub-02")
    table(tmp_path / "participants.tsv", ["participant_id", "age"], ["sub-02", "60"], ["01", "20"])
    scans, problems = read(tmp_path)
    assert scans["age"].to_dict() == {"sub-01": "20", "sub-02": "60"}
    assert problems == {}


def test_every_session_is_a_scan_with_its_own_variables(tmp_path):
    raw(tmp_path, "sub-01_ses-1", "sub-01_ses-2", "sub-02_ses-1")
    table(tmp_path / "participants.tsv", ["participant_id", "age"], ["sub-01", "20"], ["sub-02", "60"])
    table(tmp_path / "sub-01" / "sub-01_sessions.tsv", ["session_id", "age"], ["ses-2", "25"], ["1", "21"])
    scans, _ = read(tmp_path)
    assert scans["age"].to_dict() == {"sub-01_ses-1": "21", "sub-01_ses-2": "25", "sub-02_ses-1": "60"}
    assert list(scans["subject_id"]) == ["sub-01", "sub-01", "sub-02"]


@pytest.mark.parametrize("rows", [[["ses-2", "25"]], [["ses-1", "21"], ["ses-1", "22"], ["ses-2", "25"]]])
def test_a_session_without_one_row_does_not_get_the_age_of_another(tmp_path, rows):
    raw(tmp_path, "sub-01_ses-1", "sub-01_ses-2")
    table(tmp_path / "sub-01" / "sub-01_sessions.tsv", ["session_id", "age"], *rows)
    table(tmp_path / "participants.tsv", ["participant_id", "age"], ["sub-01", "20"])
    scans, problems = read(tmp_path)
    assert scans["age"].to_dict() == {"sub-01_ses-2": "25"}
    assert "sub-01_sessions.tsv" in problems["sub-01_ses-1"]["rule"]


def test_participants_with_a_session_column_join_by_session(tmp_path):
    raw(tmp_path, "sub-01_ses-1", "sub-01_ses-2", "sub-01_ses-3")
    rows = [["sub-01", "2", "25"], ["sub-01", "ses-1", "21"]]
    table(tmp_path / "participants.tsv", ["participant_id", "session", "age"], *rows)
    scans, problems = read(tmp_path)
    assert scans["age"].to_dict() == {"sub-01_ses-1": "21", "sub-01_ses-2": "25"}
    assert "no row" in problems["sub-01_ses-3"]["rule"]


def test_what_does_not_fit_together_is_named_and_the_rest_goes_on(tmp_path):
    raw(tmp_path, "sub-01", "sub-02", "sub-03", "sub-04")
    (tmp_path / "sub-05" / "anat").mkdir(parents=True)
    rows = [["sub-01", "20"], ["sub-03", "30"], ["sub-03", "31"], ["sub-04", "40"], ["sub-04", "40"], ["sub-06", "1"]]
    table(tmp_path / "participants.tsv", ["participant_id", "age"], *rows)
    scans, problems = read(tmp_path)
    assert list(scans.index) == ["sub-01", "sub-04"]
    rules = {scan: problem["rule"] for scan, problem in problems.items()}
    assert rules == {
        "sub-02": "no row in participants.tsv",
        "sub-03": "several rows in participants.tsv",
        "sub-05": "absent image",
        "sub-06": "absent image",
    }
    assert all("sub-0" in problem["reason"] and ". " in problem["reason"] for problem in problems.values())


def test_of_several_runs_the_first_is_used_and_the_others_are_listed(tmp_path):
    raw(tmp_path, "sub-01_run-2", "sub-01_run-1", "sub-02")
    scans, problems = read(tmp_path)
    assert scans.at["sub-01", "path"].endswith("run-1_T1w.nii.gz")
    assert problems["sub-01"]["rule"] == "second image"
    assert problems["sub-01"]["path"].endswith("run-2_T1w.nii.gz")


@pytest.mark.parametrize("given", ["1", "1.0", "0-1", "sub-0-1", "10"])
def test_participants_join_by_the_whole_identifier(tmp_path, given):
    raw(tmp_path, "sub-10", "sub-01", "sub-02")
    table(tmp_path / "participants.tsv", ["participant_id", "age"], [given, "99"], ["sub-02", "20"])
    scans, _ = read(tmp_path)
    assert scans["age"].to_dict() == {"sub-02": "20"} | ({"sub-10": "99"} if given == "10" else {})


def test_the_prefix_of_an_identifier_is_read_in_any_case_and_floats_as_numbers(tmp_path):
    raw(tmp_path, "sub-7", "sub-A1")
    table(tmp_path / "participants.tsv", ["participant_id", "age"], ["7.0", "20"], ["Sub-A1", "30"])
    assert read(tmp_path)[0]["age"].to_dict() == {"sub-7": "20", "sub-A1": "30"}


@pytest.mark.parametrize(("one", "other"), [("sub-1", "sub-01"), ("sub-a1", "sub-A1"), ("sub-C-1", "sub-C1")])
def test_subjects_that_could_be_one_person_are_refused(tmp_path, one, other):
    raw(tmp_path, one, other)
    with pytest.raises(CohortError, match=r"could be one person"):
        read(tmp_path)


def test_a_label_with_a_dash_keeps_all_of_it(tmp_path):
    raw(tmp_path, "sub-CC-001", "sub-CC-002")
    table(tmp_path / "participants.tsv", ["participant_id", "age"], ["sub-CC-001", "1"], ["CC-002", "2"])
    scans, problems = read(tmp_path)
    assert scans["age"].to_dict() == {"sub-CC001": "1", "sub-CC002": "2"}
    assert problems == {}


def test_an_image_in_the_folder_of_another_subject_is_left_out(tmp_path):
    raw(tmp_path, "sub-01")
    image(tmp_path / "sub-02" / "anat" / "sub-03_T1w.nii.gz")
    scans, problems = read(tmp_path)
    assert list(scans.index) == ["sub-01"]
    assert {problem["rule"] for problem in problems.values()} == {"folder and name disagree", "absent image"}


def test_own_columns_of_a_source_do_not_replace_those_of_the_cohort(tmp_path):
    raw(tmp_path, "sub-01")
    table(tmp_path / "participants.tsv", ["participant_id", "dataset", "path", "sha256"], ["sub-01", "OASIS", "x", "y"])
    row = read(tmp_path)[0].loc["sub-01"]
    assert (row["source_dataset"], row["source_path"], row["source_sha256"]) == ("OASIS", "x", "y")
    assert row["path"].endswith("T1w.nii.gz")
    assert len(row["sha256"]) == 64


def test_symbolic_links_are_followed_and_broken_ones_named(tmp_path):
    store = image(tmp_path / "store" / "blob-without-suffix")
    root = tmp_path / "bids"
    raw(tmp_path / "elsewhere", "sub-01")
    root.mkdir()
    (root / "sub-01").symlink_to(tmp_path / "elsewhere" / "sub-01")
    for sub, target in [("sub-02", store), ("sub-03", tmp_path / "not-fetched")]:
        (root / sub / "anat").mkdir(parents=True)
        (root / sub / "anat" / f"{sub}_T1w.nii.gz").symlink_to(target)
    (root / "loop").symlink_to(root)
    scans, problems = read(root)
    assert list(scans.index) == ["sub-01", "sub-02"]
    assert scans.at["sub-02", "path"].endswith("sub-02_T1w.nii.gz")
    assert problems["sub-03"]["rule"] == "unreadable image"


def test_raw_images_are_found_below_a_folder_called_derivatives_but_not_in_its_own(tmp_path):
    root = raw(tmp_path / "derivatives" / "stripped", "sub-01")
    raw(root / "derivatives" / "other", "sub-02")
    raw(root / "sourcedata", "sub-03")
    assert list(read(root)[0].index) == ["sub-01"]


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "data dictionary: Expecting"), ("[]", "no JSON object"), ("[" * 10_000, "nested more than 64 levels deep")],
    ids=["no JSON", "no object", "deep"],
)
def test_a_broken_data_dictionary_is_refused(tmp_path, text, message):
    raw(tmp_path, "sub-01")
    table(tmp_path / "participants.tsv", ["participant_id"], ["sub-01"])
    (tmp_path / "participants.json").write_text(text)
    with pytest.raises(CohortError, match=message):
        read(tmp_path)


def test_the_data_dictionary_of_the_columns_is_kept(tmp_path):
    raw(tmp_path, "sub-01")
    table(tmp_path / "participants.tsv", ["participant_id", "mmse"], ["sub-01", "30"])
    (tmp_path / "participants.json").write_text(json.dumps({"mmse": {"Units": "points"}, "gone": {}}))
    assert read_source(tmp_path, suffix="auto").columns == {"mmse": {"Units": "points"}}


# Derivatives and CAT12


def derivative(root, sub, space="MNI152NLin2009cAsym", extra=""):
    return image(root / sub / "anat" / f"{sub}_space-{space}{extra}_label-GM_probseg.nii.gz")


def test_grey_matter_maps_win_over_t1w_unless_told_otherwise(tmp_path):
    raw(tmp_path, "sub-01")
    derivative(tmp_path, "sub-01")
    image(tmp_path / "sub-01" / "anat" / "sub-01_label-GM_probseg.nii.gz")
    image(tmp_path / "sub-01" / "anat" / "sub-01_space-MNI152_desc-x_T1w.nii.gz")
    for suffix, ending in [("auto", "probseg"), ("GM", "probseg"), ("T1w", "T1w")]:
        scans, problems = read(tmp_path, suffix)
        assert scans.at["sub-01", "path"].endswith(f"{ending}.nii.gz")
        assert ("space-MNI" in scans.at["sub-01", "path"]) == (suffix != "T1w")
        assert problems == {}


def test_two_kinds_that_all_scans_have_are_told_apart_aloud(tmp_path, capsys):
    for sub in ("sub-01", "sub-02"):
        for kind in ("modulated", "modulatedSmooth8"):
            image(tmp_path / sub / "anat" / f"{sub}_space-MNI152_label-GM_desc-{kind}_probseg.nii.gz")
    scans, problems = read(tmp_path)
    assert problems == {}
    assert "desc-modulated_" in scans.at["sub-01", "path"]
    told = " ".join(capsys.readouterr().err.split())
    assert "desc-modulatedSmooth8_probseg' as of" in told
    assert "which is taken" in told
    (tmp_path / "sub-02" / "anat" / "sub-02_space-MNI152_label-GM_desc-modulatedSmooth8_probseg.nii.gz").unlink()
    read(tmp_path)
    assert capsys.readouterr().err == ""


def test_maps_of_two_spaces_are_not_mixed_in_one_cohort(tmp_path):
    for sub in ("sub-01", "sub-02", "sub-03"):
        derivative(tmp_path, sub, "MNI152NLin6Asym")
    derivative(tmp_path, "sub-01")
    derivative(tmp_path, "sub-04")
    scans, problems = read(tmp_path)
    assert all("NLin6Asym" in path for path in scans["path"])
    assert list(scans.index) == ["sub-01", "sub-02", "sub-03"]
    assert {scan: problem["rule"] for scan, problem in problems.items()} == {"sub-04": "other kind of image"}


def test_cat12_sessions_belong_to_one_subject(tmp_path):
    for session in ("1", "2"):
        image(tmp_path / "mri" / f"mwp1sub-01_ses-{session}_T1w.nii")
    table(tmp_path / "participants.tsv", ["participant_id", "age"], ["sub-01", "20"])
    scans, _ = read(tmp_path)
    assert list(scans.index) == ["sub-01_ses-1", "sub-01_ses-2"]
    assert set(scans["subject_id"]) == {"sub-01"}
    assert set(scans["age"]) == {"20"}


def test_cat12_maps_of_names_outside_bids_join_by_the_name(tmp_path):
    image(tmp_path / "mri" / "mwp1IXI012-HH-1211_T1w.nii")
    image(tmp_path / "mri" / "mwp1IXI013-HH-1212.nii")
    image(tmp_path / "mri" / "p1IXI013-HH-1212.nii")
    image(tmp_path / "mri" / "mwp2IXI013-HH-1212.nii")
    rows = [["IXI012-HH-1211", "38"], ["IXI013-HH-1212", "46"]]
    table(tmp_path / "participants.tsv", ["participant_id", "age"], *rows)
    scans, problems = read(tmp_path)
    assert scans["age"].to_dict() == {"sub-IXI012HH1211": "38", "sub-IXI013HH1212": "46"}
    assert problems == {}


def test_cat12_prefixes_are_not_mixed(tmp_path):
    for name in ("mwp1a", "m0wp1a", "smwp1a", "mwp1b", "m0wp1b", "smwp1b", "m0wp1c"):
        image(tmp_path / "mri" / f"{name}.nii")
    scans, problems = read(tmp_path)
    assert [path.rsplit("/")[-1][:5] for path in scans["path"]] == ["m0wp1"] * 3
    assert problems == {}
    (tmp_path / "mri" / "m0wp1c.nii").rename(tmp_path / "mri" / "s6mwp1c.nii")
    scans, problems = read(tmp_path)
    assert [path.rsplit("/")[-1] for path in scans["path"]] == ["mwp1a.nii", "mwp1b.nii"]
    assert list(problems) == ["sub-c"]


# Tables of paths


def test_a_table_names_images_relative_to_itself(tmp_path):
    image(tmp_path / "näch ste" / "größe 1.nii.gz")
    far = image(tmp_path / "far.nii")
    (tmp_path / "link.nii").symlink_to(far)
    rows = [
        ["a", "näch ste/größe 1.nii.gz"],
        ["b", str(far)],
        ["c", "../t/../link.nii"],
        ["d", "gone.nii"],
        ["e", "n/a"],
    ]
    scans, problems = read(
        table(tmp_path / "t" / "scans.tsv", ["subject", "Path"], ["a", f"../{rows[0][1]}"], *rows[1:])
    )
    assert list(scans.index) == ["sub-a", "sub-b", "sub-c"]
    assert all(os.path.isfile(path) and os.path.isabs(path) for path in scans["path"])  # noqa: PTH113, PTH117
    assert {scan: problem["rule"] for scan, problem in problems.items()} == dict.fromkeys(
        ["sub-d", "sub-e"], "absent image"
    )
    assert "line 5" in problems["sub-d"]["reason"]


def test_a_table_may_use_commas_or_semicolons_and_name_sessions(tmp_path):
    for name in "abc":
        image(tmp_path / f"{name}.nii")
    for sep in ",;":
        rows = [
            ["participant_id", "session", "path", "note"],
            ["1", "1.0", "a.nii", '"x, y; z"'],
            ["1", "2", "b.nii", ""],
        ]
        scans, _ = read(table(tmp_path / "t.csv", *rows, ["2", "n/a", "c.nii", "n/a"], sep=sep))
        assert list(scans.index) == ["sub-1_ses-1", "sub-1_ses-2", "sub-2"]
        assert list(scans["note"]) == ["x, y; z", "", "n/a"]


def test_a_table_keeps_its_own_ids_out_of_the_cohorts(tmp_path):
    image(tmp_path / "a.nii")
    rows = [["participant_id", "path", "subject_id", "scan_id", "session_id"], ["1", "a.nii", "X", "Y", "3"]]
    scans, _ = read(table(tmp_path / "t.tsv", *rows))
    row = scans.loc["sub-1_ses-3"]
    assert (row["subject_id"], row["source_subject_id"], row["source_scan_id"]) == ("sub-1", "X", "Y")


def test_a_row_without_a_usable_subject_is_named_by_its_line(tmp_path):
    for name in "abc":
        image(tmp_path / f"{name}.nii")
    path = table(
        tmp_path / "t.tsv", ["id", "sub", "path"], ["", "n/a", "a.nii"], ["", "Ж", "b.nii"], ["", "1", "c.nii"]
    )
    scans, problems = read(path)
    assert list(scans.index) == ["sub-1"]
    assert list(problems) == ["line-2", "line-3"]


@pytest.mark.parametrize("ids", [("1", "01"), ("a-1", "a1"), ("A", "a"), ("Ä1", "Ö1"), ("1.0", "01")])
def test_a_table_with_subjects_that_could_be_one_person_is_refused(tmp_path, ids):
    for name in "ab":
        image(tmp_path / f"{name}.nii")
    with pytest.raises(CohortError, match="could be one person"):
        read(table(tmp_path / "t.tsv", ["subject_id", "path"], [ids[0], "a.nii"], [ids[1], "b.nii"]))


def test_one_subject_written_with_and_without_prefix_is_one_subject(tmp_path):
    for name in "ab":
        image(tmp_path / f"{name}.nii")
    rows = [["subject", "ses", "path"], ["sub-01", "1", "a.nii"], ["01", "2", "b.nii"]]
    assert set(read(table(tmp_path / "t.tsv", *rows))[0]["subject_id"]) == {"sub-01"}


def test_of_rows_of_one_scan_equal_ones_count_once_and_others_not_at_all(tmp_path):
    for name in "abc":
        image(tmp_path / f"{name}.nii")
    rows = [["1", "a.nii", "5"], ["1", "b.nii", "5"], ["2", "c.nii", "5"], ["sub-2", "c.nii", "5"]]
    scans, problems = read(table(tmp_path / "t.tsv", ["subject", "path", "age"], *rows))
    assert list(scans.index) == ["sub-2"]
    assert {scan: problem["rule"] for scan, problem in problems.items()} == {
        "sub-1": "several rows",
        "sub-2": "repeated row",
    }
    rows[1] = ["1", "a.nii", "6"]
    _, problems = read(table(tmp_path / "t.tsv", ["subject", "path", "age"], *rows))
    assert "differ, such as in age: '5' in line 2, '6' in line 3" in problems["sub-1"]["reason"]


@pytest.mark.parametrize("columns", [["path", "age"], ["subject", "age"], ["subject", "path", "Path"]])
def test_a_table_without_one_column_for_path_and_subject_is_refused(tmp_path, columns):
    with pytest.raises(CohortError, match="columns"):
        read(table(tmp_path / "t.tsv", columns, ["1"] * len(columns)))


def test_a_source_that_is_none_is_refused_in_words(tmp_path):
    raw(tmp_path / "bids", "sub-01")
    (tmp_path / "empty").mkdir()
    absent = table(tmp_path / "t.tsv", ["subject", "path"], ["1", "gone.nii"])
    for path, suffix, words in [
        (tmp_path / "nowhere", "auto", "There is no source"),
        (tmp_path / "empty", "auto", "holds no T1w image"),
        (tmp_path / "bids", "GM", "holds no T1w image"),
        (tmp_path / "bids", "T2w", "suffix is one of"),
        (absent, "auto", "no scan that can be used.\n  sub-1: t.tsv, line 2"),
    ]:
        with pytest.raises(CohortError, match=words):
            read(path, suffix)


# Tables as people save them


def test_read_tsv_forgives_marks_line_ends_blank_lines_and_spaces(tmp_path):
    path = tmp_path / "t.tsv"
    text = '\n\na\t b \t\r\n1 \t"x\ty"\t\r\n\t\t\r\n2\tn/a\r3\tGröße\t\t\n'
    for encoded in ("\ufeff" + text).encode(), text.encode(), text.encode("latin-1"), text.encode("utf-16"):
        path.write_bytes(encoded)
        read = read_tsv(path)
        assert read.to_dict("list") == {"a": ["1", "2", "3"], "b": ["x\ty", "n/a", "Größe"]}
    assert list(read.index) == [4, 6, 7]


def test_read_tsv_keeps_codes_as_text(tmp_path):
    assert read_tsv(table(tmp_path / "t.tsv", ["a", "b"], ["007", "1e5"])).iloc[0].tolist() == ["007", "1e5"]


@pytest.mark.parametrize("rows", [[["1", "2", "3"]], [["1", "2", "3"], ["4", "5", "6"]], [["1"]], [["1", "2"], ["3"]]])
def test_read_tsv_refuses_rows_that_would_shift_against_the_header(tmp_path, rows):
    with pytest.raises(CohortError, match=r"line \d, has \d cells and the header 2"):
        read_tsv(table(tmp_path / "t.tsv", ["a", "b"], *rows))


def test_read_tsv_refuses_a_column_twice_but_not_two_quoted_names_alike_up_to_a_tab(tmp_path):
    with pytest.raises(CohortError, match="'a' twice"):
        read_tsv(table(tmp_path / "t.tsv", ["a", "b", " a "], ["1", "2", "3"]))
    assert list(read_tsv(table(tmp_path / "t.tsv", ['"a\tb"', '"a\tc"'], ["1", "2"]))) == ["a\tb", "a\tc"]


def test_read_tsv_names_the_nameless_index_that_spreadsheets_write(tmp_path):
    assert list(read_tsv(table(tmp_path / "t.csv", ["", "a"], ["0", "1"], sep=","))) == ["unnamed_1", "a"]


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xff\xfea", b'a\tb\n1\t"2\n3\t4\n', b'a\n"1"2\n'])
def test_read_tsv_refuses_what_is_no_table(tmp_path, content):
    (tmp_path / "t.tsv").write_bytes(content)
    with pytest.raises(CohortError, match=r"t\.tsv"):
        read_tsv(tmp_path / "t.tsv")


cells = st.text(alphabet='ab1.\t\n\r",; \x00\x85\u2028é', max_size=6)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.one_of(st.binary(max_size=60), st.lists(cells, max_size=9).map(lambda some: "\t".join(some).encode()))
)
def test_read_tsv_gives_a_table_of_text_or_says_why_not(tmp_path, content):
    for name in ("t.tsv", "t.csv"):
        (tmp_path / name).write_bytes(content)
        try:
            found = read_tsv(tmp_path / name)
        except CohortError:
            continue
        assert isinstance(found, pd.DataFrame)
        assert found.columns.is_unique
        assert all(isinstance(cell, str) and cell == cell.strip() for cell in found.to_numpy().ravel())


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(cells, cells), min_size=1, max_size=5))
def test_read_tsv_reads_what_pandas_writes(tmp_path, rows):
    rows = [[cell.replace("\x00", "").replace("\r", "") for cell in row] for row in rows]
    written = pd.DataFrame(rows, columns=["a", "b"])
    written.to_csv(tmp_path / "t.tsv", sep="\t", index=False, lineterminator="\n")
    stripped = [[re.sub("\n+", " ", cell).strip() for cell in row] for row in rows]
    found = read_tsv(tmp_path / "t.tsv")
    assert found.to_numpy().tolist() == [row for row in stripped if any(row)]


def test_our_own_maps_inside_a_source_are_not_its_scans(tmp_path):
    raw(tmp_path, "sub-01", "sub-02")
    made = tmp_path / "derivatives" / "out" / "prepared"
    image(made / "sub-01" / "anat" / "sub-01_space-MNI152NLin2009aSym_res-4_label-GM_probseg.nii.gz")
    (made / "dataset_description.json").write_text(json.dumps({"GeneratedBy": [{"Name": "nilatent"}]}))
    scans, problems = read(tmp_path)
    assert list(scans.index) == ["sub-01", "sub-02"]
    assert scans["path"].str.endswith("_T1w.nii.gz").all()
    assert not problems
    (made / "dataset_description.json").write_text(json.dumps({"GeneratedBy": [{"Name": "fMRIPrep"}]}))
    assert list(read(tmp_path)[0].index) == ["sub-01"]
    assert list(read(made)[0].index) == ["sub-01"]


# Maps by the names of their tools


def files_below(root, *names):
    for name in names:
        image(root / name)
    return root


@pytest.mark.parametrize(
    ("names", "kept"),
    [
        (["mri/mwp1sub-01_T1w.nii", "mri/wp1sub-01_T1w.nii", "mri/smwp1sub-01_T1w.nii"], "mwp1sub-01_T1w.nii"),
        (["a/mwc1sub-01.nii", "a/wc1sub-01.nii", "a/c1sub-01.nii", "a/mwc2sub-01.nii"], "mwc1sub-01.nii"),
        (["sub-01/mwp1sub-01.nii.gz", "sub-01/s6mwp1sub-01.nii.gz", "sub-01/mwp2sub-01.nii.gz"], "mwp1sub-01.nii.gz"),
        (["mri/rp1sub-01_T1w_affine.nii", "mri/rp1sub-01_T1w_rigid.nii"], "rp1sub-01_T1w_affine.nii"),
        (
            [
                "t1/sub-01_T1w_segm-graymatter_space-Ixi549Space_modulated-off_probability.nii.gz",
                "t1/sub-01_T1w_segm-graymatter_space-Ixi549Space_modulated-on_probability.nii.gz",
                "t1/sub-01_T1w_segm-graymatter_probability.nii.gz",
            ],
            "sub-01_T1w_segm-graymatter_space-Ixi549Space_modulated-on_probability.nii.gz",
        ),
        (["struc/sub-01_struc_GM_to_template_GM_mod.nii.gz"], "sub-01_struc_GM_to_template_GM_mod.nii.gz"),
    ],
    ids=["CAT12", "SPM", "deepmriprep", "affine", "Clinica", "FSL-VBM"],
)
def test_of_several_kinds_of_map_the_volumes_that_were_not_smoothed_are_used(tmp_path, names, kept):
    scans, problems = read(files_below(tmp_path, *names))
    assert list(scans.index) == ["sub-01"]
    assert scans.at["sub-01", "path"].endswith(f"/{kept}")
    assert problems == {}


def test_oasis_maps_have_a_subject_and_a_session(tmp_path):
    ending = "mpr_anon_fslswapdim_bet.nii.gz"
    names = [f"OAS2_0001_MR{visit}/mwrc{tissue}OAS2_0001_MR{visit}_{ending}" for visit in (1, 2) for tissue in (1, 2)]
    scans, problems = read(files_below(tmp_path, *names))
    assert list(scans.index) == ["sub-OAS20001_ses-MR1", "sub-OAS20001_ses-MR2"]
    assert set(scans["subject_id"]) == {"sub-OAS20001"}
    assert scans["path"].str.contains("mwrc1").all()
    assert problems == {}


def test_the_sessions_of_longitudinal_cat12_maps_belong_to_one_subject(tmp_path):
    names = [f"sub-01/ses-{visit}/anat/mwp1rsub-01_ses-{visit}_T1w.nii" for visit in (1, 2)]
    scans, _ = read(files_below(tmp_path, *names))
    assert list(scans.index) == ["sub-01_ses-1", "sub-01_ses-2"]
    assert set(scans["subject_id"]) == {"sub-01"}


def test_what_spm_and_cat12_made_of_a_raw_scan_is_no_raw_scan(tmp_path):
    made = [
        "mri/p1sub-01_T1w.nii",
        "mri/wmsub-01_T1w.nii",
        "mri/p0sub-01_T1w.nii",
        "mri/c1IXI012_T1w.nii",
        "sub-02_T1w.nii",
    ]
    scans, problems = read(files_below(tmp_path, "sub-01/anat/sub-01_T1w.nii", "IXI012_T1w.nii", *made))
    assert sorted(path.rsplit("/")[-1] for path in scans["path"]) == [
        "IXI012_T1w.nii",
        "sub-01_T1w.nii",
        "sub-02_T1w.nii",
    ]
    assert problems == {}
    scans, _ = read(files_below(tmp_path / "people", "p1anna_T1w.nii", "p2berta_T1w.nii"))
    assert list(scans.index) == ["sub-p1anna", "sub-p2berta"]


def test_only_maps_in_the_subjects_own_space_are_no_source(tmp_path):
    files_below(
        tmp_path,
        "mri/p1a.nii",
        "sub-01/anat/sub-01_label-GM_probseg.nii.gz",
        "sub-01/anat/sub-01_space-T1w_label-GM_probseg.nii",
    )
    with pytest.raises(CohortError, match="lie in the subject's own space"):
        read(tmp_path)


def test_a_link_whose_file_was_not_fetched_says_how_to_fetch_it(tmp_path):
    raw(tmp_path, "sub-01")
    (tmp_path / "sub-02" / "anat").mkdir(parents=True)
    link = tmp_path / "sub-02" / "anat" / "sub-02_T1w.nii.gz"
    link.symlink_to("../../.git/annex/objects/Xx/MD5E-s1.nii.gz/MD5E-s1.nii.gz")
    _, problems = read(tmp_path)
    assert "datalad get sub-02_T1w.nii.gz" in problems["sub-02"]["reason"]
    rows = [
        ["subject", "path"],
        ["1", "sub-01/anat/sub-01_T1w.nii.gz"],
        ["2", "sub-02/anat/sub-02_T1w.nii.gz"],
        ["3", "x" * 400],
    ]
    _, problems = read(table(tmp_path / "t.tsv", *rows))
    assert "datalad get sub-02_T1w.nii.gz" in problems["sub-2"]["reason"]
    assert "Correct the path" in problems["sub-3"]["reason"]
