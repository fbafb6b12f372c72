import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nilatent.cohort import Cohort, exclude, load_cohort, read_cohort, select, write_cohort
from nilatent.errors import CohortError


def bids(root, rows, *, columns=("participant_id", "age", "sex"), dictionary=None):
    for subject, *_ in rows:
        path = root / subject / "anat" / f"{subject}_T1w.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(str(path).encode())
    text = "".join("\t".join(row) + "\n" for row in [columns, *rows])
    (root / "participants.tsv").write_text(text, encoding="utf-8")
    if dictionary is not None:
        (root / "participants.json").write_text(json.dumps(dictionary))
    return root


def made(n_subjects=40, n_sessions=1, **variables):
    rows = [
        {
            "scan_id": f"sub-{subject:03d}_ses-{session}",
            "subject_id": f"sub-{subject:03d}",
            "session_id": f"ses-{session}",
        }
        for subject in range(n_subjects)
        for session in range(n_sessions)
    ]
    scans = pd.DataFrame(rows).set_index("scan_id")
    known = {"dataset": "made", "path": "/x", "sha256": "", "source_id": scans["subject_id"]}
    return Cohort(scans.assign(**known, **variables))


# Reading


def test_one_source_gives_plain_ids_and_typed_variables(tmp_path):
    rows = [["sub-01", "89+", "m", "01"], ["sub-02", "20.5", "FEMALE", "1"], ["sub-03", "n/a", "n/a", "n/a"]]
    cohort = read_cohort([bids(tmp_path / "a", rows, columns=["participant_id", "Age", "sex", "site"])])
    assert list(cohort.scans.index) == ["sub-01", "sub-02", "sub-03"]
    np.testing.assert_array_equal(cohort.scans["age"], [89.0, 20.5, np.nan])
    assert cohort.scans["sex"].tolist()[:2] == ["M", "F"]
    assert cohort.scans["site"].tolist()[:2] == ["01", "1"]
    assert cohort.scans.iloc[2][["sex", "site"]].isna().all()
    assert cohort.n_subjects == 3
    assert cohort.excluded.empty


def test_colliding_subjects_of_several_sources_stay_apart(tmp_path):
    sources = [
        bids(tmp_path / place / name, [["sub-01", str(age), "M"]])
        for age, (place, name) in enumerate([("x", "a"), ("y", "a"), ("x", "a2"), ("x", "A"), ("z", "ä")])
    ]
    cohort = read_cohort(sources)
    assert list(cohort.scans["dataset"]) == ["a", "a2", "a22", "A3", "source"]
    assert list(cohort.scans.index) == [f"{name}_sub-01" for name in cohort.scans["dataset"]]
    assert list(cohort.scans["subject_id"]) == list(cohort.scans.index)
    assert list(cohort.scans["age"]) == [0, 1, 2, 3, 4]
    assert cohort.n_subjects == 5


def test_problems_of_several_sources_carry_the_name_of_theirs(tmp_path):
    one, two = (bids(tmp_path / name, [["sub-01", "1", "M"], ["sub-02", "2", "F"]]) for name in "ab")
    (two / "sub-02" / "anat" / "sub-02_T1w.nii.gz").unlink()
    cohort = read_cohort([one, two])
    assert cohort.excluded[["scan_id", "stage", "rule"]].to_numpy().tolist() == [["b_sub-02", "read", "absent image"]]


def test_aliases_serve_the_sources_that_lack_our_name(tmp_path):
    one = bids(tmp_path / "a", [["sub-01", "20", "m"]], columns=["participant_id", "age", "gender"])
    two = bids(tmp_path / "b", [["sub-01", "30", "F", "x"]], columns=["participant_id", "age", "sex", "gender"])
    cohort = read_cohort([one, two], column_aliases={"sex": "gender"})
    assert list(cohort.scans["sex"]) == ["M", "F"]
    assert cohort.scans["gender"].tolist()[1] == "x"
    assert "sex" not in read_cohort([one]).scans


@pytest.mark.parametrize("aliases", [{"sex": "gendr"}, {"age": "agee"}, {"subject_id": "age"}])
def test_an_alias_that_cannot_work_is_refused(tmp_path, aliases):
    with pytest.raises(CohortError, match=next(iter(aliases.values()))):
        read_cohort([bids(tmp_path / "a", [["sub-01", "20", "m"]])], column_aliases=aliases)


@pytest.mark.parametrize("age", ["400", "-1", "23,5", "P30Y", "20-30", "inf", "1e3"])
def test_an_age_that_is_no_number_of_years_is_refused(tmp_path, age):
    with pytest.raises(CohortError, match=f"sub-02 of a has the age '{age}'"):
        read_cohort([bids(tmp_path / "a", [["sub-01", "20", "m"], ["sub-02", age, "f"]])])


def test_an_age_in_months_is_refused_by_its_data_dictionary(tmp_path):
    source = bids(tmp_path / "a", [["sub-01", "20", "m"]], dictionary={"age": {"Units": "Months"}})
    with pytest.raises(CohortError, match="'months'"):
        read_cohort([source])


def test_units_that_differ_between_sources_are_refused(tmp_path):
    columns = ["participant_id", "tiv"]
    sources = [
        bids(tmp_path / name, [["sub-01", "1"]], columns=columns, dictionary={"tiv": {"Units": unit}})
        for name, unit in [("a", "ml"), ("b", "ML"), ("c", "mm3")]
    ]
    assert read_cohort(sources[:2]).columns["tiv"]["Units"] == "ml"
    with pytest.raises(CohortError, match="c gives 'tiv' in mm3, another source in ml"):
        read_cohort(sources)


def test_sex_is_read_from_words_or_from_codes_that_are_explained(tmp_path):
    rows = [["sub-01", "20", "1"], ["sub-02", "20", "2"], ["sub-03", "20", "9"]]
    levels = {"sex": {"Levels": {"1": "Male", "2": {"Description": "female"}, "9": "unknown"}}}
    sex = read_cohort([bids(tmp_path / "a", rows, dictionary=levels)]).scans["sex"]
    assert sex.fillna("-").tolist() == ["M", "F", "-"]
    (tmp_path / "a" / "participants.json").unlink()
    with pytest.raises(CohortError, match="the sex '1'"):
        read_cohort([tmp_path / "a"])


def test_one_image_under_two_names_is_taken_for_neither_and_one_in_two_data_sets_once(tmp_path):
    root = bids(tmp_path / "a", [["sub-01", "20", "m"], ["sub-02", "30", "f"], ["sub-03", "40", "f"]])
    images = [root / sub / "anat" / f"{sub}_T1w.nii.gz" for sub in ("sub-01", "sub-02", "sub-03")]
    images[1].write_bytes(images[0].read_bytes())
    cohort = read_cohort([root])
    assert list(cohort.scans.index) == ["sub-03"]
    assert cohort.excluded[["scan_id", "rule"]].to_numpy().tolist() == [
        ["sub-01", "duplicated scan"],
        ["sub-02", "duplicated scan"],
    ]
    assert ["sub-02" in cohort.excluded["reason"][0], "sub-01" in cohort.excluded["reason"][1]] == [True, True]
    shutil.copytree(root, tmp_path / "b")
    (tmp_path / "b" / "sub-02" / "anat" / "sub-02_T1w.nii.gz").write_bytes(b"another")
    (root / "sub-02" / "anat" / "sub-02_T1w.nii.gz").write_bytes(b"yet another")
    both = read_cohort([root, tmp_path / "b"])
    assert list(both.scans.index) == ["a_sub-01", "a_sub-02", "a_sub-03", "b_sub-02"]
    images[2].unlink()
    images[1].write_bytes(images[0].read_bytes())
    with pytest.raises(CohortError, match="No scan is left"):
        read_cohort([root])


def test_no_source_is_refused():
    with pytest.raises(CohortError, match="No source"):
        read_cohort([])


@pytest.fixture
def real():
    if "NILATENT_REAL_DATA" not in os.environ:
        pytest.skip("NILATENT_REAL_DATA names no folder")
    return Path(os.environ["NILATENT_REAL_DATA"])


@pytest.mark.real
def test_a_real_bids_cohort_is_read_whole(real, tmp_path):
    cohort = read_cohort([real / "ds002748_depression"], column_aliases={"sex": "gender"})
    assert len(cohort.scans) == cohort.n_subjects == 49
    assert cohort.excluded.empty
    assert cohort.scans["group"].value_counts().to_dict() == {"depr": 35, "control": 14}
    assert cohort.scans["sex"].isin(["M", "F"]).all()
    assert cohort.scans["age"].between(18, 60).all()
    assert cohort.scans.loc["sub-27", ["age", "Edinburgh"]].tolist() == [21, -38]
    write_cohort(cohort, tmp_path)
    assert load_cohort(tmp_path).content_hash == cohort.content_hash


@pytest.mark.real
def test_real_sources_of_two_kinds_make_one_cohort(real, tmp_path):
    people = pd.read_csv(real / "oasis_miccai2012" / "participants.tsv", sep="\t", dtype=str)
    ids = people.iloc[:, 0].str.removeprefix("sub-")
    people["path"] = [str(real / "oasis_miccai2012" / name / f"{name}_T1w_brain.nii.gz") for name in ids]
    people.to_csv(tmp_path / "oasis.tsv", sep="\t", index=False, na_rep="n/a")
    cohort = read_cohort([real / "ds000011_rawheads", tmp_path / "oasis.tsv"])
    assert cohort.scans["dataset"].value_counts().to_dict() == {"oasis": 20, "ds000011rawheads": 5}
    assert cohort.excluded.empty
    assert cohort.scans[["age", "sex"]].notna().all().all()


# Writing


def test_round_trip_keeps_every_value_and_the_hash(tmp_path, rng):
    n = 7
    cohort = made(
        n,
        age=rng.random(n) * 80,
        third=np.full(n, 1 / 3, dtype=np.float32),
        count=range(n),
        passed=[True, False] * 3 + [True],
        code=["007"] * n,
        empty=np.nan,
        note=['a\tb "c"', "n/a", "", " x", "Größe", None, "1"],
        group=pd.Categorical(list("ababaca")),
    )
    cohort.scans["subject_id"] = [f"00{row}" for row in range(n)]
    cohort = exclude(cohort, [{"scan_id": "sub-001_ses-0", "stage": "x", "rule": "y", "reason": "a\tb"}])
    write_cohort(cohort, tmp_path)
    again = load_cohort(tmp_path)
    assert again.content_hash == cohort.content_hash
    assert list(again.scans.index) == list(cohort.scans.index)
    assert again.scans["age"].tolist() == cohort.scans["age"].tolist()
    assert again.scans["subject_id"].tolist()[0] == "000"
    assert again.scans["code"].tolist()[0] == "007"
    assert again.scans["empty"].isna().all()
    assert again.scans["note"].isna().tolist() == [False, True, False, False, True, False]
    assert again.excluded.to_numpy().tolist() == cohort.excluded.to_numpy().tolist()
    write_cohort(again, tmp_path / "twice")
    pd.testing.assert_frame_equal(load_cohort(tmp_path / "twice").scans, again.scans)


def test_round_trip_from_a_source_keeps_sessions_and_dictionary(tmp_path):
    root = bids(tmp_path / "a", [["sub-007", "20", "m"]], dictionary={"age": {"Units": "years"}})
    cohort = read_cohort([root])
    write_cohort(cohort, tmp_path / "out")
    again = load_cohort(tmp_path / "out")
    pd.testing.assert_frame_equal(again.scans, cohort.scans)
    assert again.scans.at["sub-007", "session_id"] == ""
    assert again.columns["age"] == {"Units": "years"}
    assert "Subject" in again.columns["subject_id"]["Description"]


def test_content_hash_sees_values_rows_and_names_but_not_places():
    one = made(4, age=[1.0, 2, 3, 4])
    hashes = [one.content_hash]
    for change in ({"age": [1.0, 2, 3, 5]}, {"sha256": "f"}, {"subject_id": list("abcd")}):
        hashes.append(dataclasses.replace(one, scans=one.scans.assign(**change)).content_hash)
    hashes.append(dataclasses.replace(one, scans=one.scans.rename(columns={"age": "years"})).content_hash)
    hashes.append(dataclasses.replace(one, scans=one.scans.iloc[:3]).content_hash)
    assert len(set(hashes)) == 6
    assert dataclasses.replace(one, scans=one.scans.assign(path="/y")).content_hash == hashes[0]


def test_a_folder_that_is_no_cohort_is_refused(tmp_path):
    write_cohort(made(3), tmp_path)
    (tmp_path / "excluded.tsv").unlink()
    with pytest.raises(CohortError, match=r"lacks excluded\.tsv"):
        load_cohort(tmp_path)
    write_cohort(made(3), tmp_path)
    text = (tmp_path / "scans.tsv").read_text()
    (tmp_path / "scans.tsv").write_text(text.replace("subject_id", "subject"))
    with pytest.raises(CohortError, match="lacks the column subject_id"):
        load_cohort(tmp_path)


def test_a_scan_that_stands_twice_is_refused():
    with pytest.raises(CohortError, match="sub-000_ses-0 stands twice"):
        Cohort(pd.concat([made(2).scans, made(1).scans]))


# Excluding


def test_exclude_moves_rows_and_leaves_the_cohort_as_it_was():
    cohort = made(3)
    failure = {"scan_id": "sub-001_ses-0", "stage": "prepare", "rule": "nan", "reason": "Look at it."}
    less = exclude(cohort, [failure])
    assert len(cohort.scans) == 3
    assert cohort.excluded.empty
    assert list(less.scans.index) == ["sub-000_ses-0", "sub-002_ses-0"]
    assert less.excluded.to_dict("records") == [failure | {"path": "/x"}]
    twice = exclude(less, [failure | {"scan_id": "sub-002_ses-0"}])
    assert len(twice.excluded) == 2
    assert not twice.excluded.isna().any().any()


def test_exclude_refuses_a_scan_that_is_not_there():
    failure = {"scan_id": "sub-9", "stage": "", "rule": "", "reason": ""}
    with pytest.raises(CohortError, match="sub-9"):
        exclude(made(2), [failure])


# Selecting


def test_select_keeps_the_subjects_named_and_their_exclusions():
    failure = {"scan_id": "sub-001_ses-1", "stage": "read", "rule": "nan", "reason": "Look."}
    gone = [failure, failure | {"scan_id": "sub-002_ses-0"}, failure | {"scan_id": "sub-002_ses-1"}]
    cohort = exclude(made(4, n_sessions=2), gone)
    chosen = select(cohort, ["001", "sub-002"])
    assert list(chosen.scans.index) == ["sub-001_ses-0"]
    assert list(chosen.excluded["scan_id"]) == ["sub-001_ses-1", "sub-002_ses-0", "sub-002_ses-1"]
    assert len(cohort.scans) == 5
    for label in ("9", "sub-9"):
        with pytest.raises(CohortError, match="no subject 'sub-9' among 4"):
            select(cohort, [label])


@pytest.mark.parametrize("labels", [(), ("001",)])
def test_select_lists_exclusions_where_no_scan_has_a_session(labels):
    gone = {"scan_id": "sub-001", "path": "", "stage": "read", "rule": "absent image", "reason": "Add."}
    cohort = dataclasses.replace(made(3), excluded=pd.DataFrame([gone]))
    assert list(select(cohort, labels).excluded["scan_id"]) == ["sub-001"]


def test_select_keeps_the_sessions_named_and_names_the_nearest_of_an_unknown_label():
    failure = {"scan_id": "sub-001_ses-1", "stage": "read", "rule": "nan", "reason": "Look."}
    cohort = exclude(made(3, n_sessions=2), [failure])
    absent = pd.DataFrame(
        [{"scan_id": "sub-009", "path": "", "stage": "read", "rule": "absent image", "reason": "Add."}]
    )
    cohort = dataclasses.replace(cohort, excluded=pd.concat([cohort.excluded, absent], ignore_index=True))
    first, second = (select(cohort, sessions=[label]) for label in ("0", "ses-1"))
    assert list(first.scans.index) == ["sub-000_ses-0", "sub-001_ses-0", "sub-002_ses-0"]
    assert list(second.scans.index) == ["sub-000_ses-1", "sub-002_ses-1"]
    assert [list(chosen.excluded["scan_id"]) for chosen in (first, second)] == [
        ["sub-009"],
        ["sub-001_ses-1", "sub-009"],
    ]
    both = select(cohort, ["002"], sessions=["1"])
    assert list(both.scans.index) == ["sub-002_ses-1"]
    assert both.excluded.empty
    pd.testing.assert_frame_equal(select(cohort).scans, cohort.scans)
    with pytest.raises(CohortError, match=r"no session 'ses-2' among 2. Did you mean ses-1 or ses-0"):
        select(cohort, sessions=["2"])
    with pytest.raises(CohortError, match=r"no subject 'sub-0002' among 4. Did you mean sub-002"):
        select(cohort, ["0002"])
    with pytest.raises(CohortError, match=r"No scan is of sub-001 and of ses-1"):
        select(dataclasses.replace(cohort, excluded=cohort.excluded.iloc[:0]), ["001"], sessions=["1"])


def test_a_folder_that_was_copied_keeps_its_own_images(tmp_path):
    cohort = made(2)
    cohort.scans["path"] = [str(tmp_path / "out" / "sub-0" / "a.nii"), str(tmp_path / "elsewhere.nii")]
    write_cohort(cohort, tmp_path / "out")
    shutil.copytree(tmp_path / "out", tmp_path / "moved")
    places = load_cohort(tmp_path / "moved").scans["path"].tolist()
    assert places == [str(tmp_path / "moved" / "sub-0" / "a.nii"), str(tmp_path / "elsewhere.nii")]


def test_a_damaged_dictionary_is_refused_in_words(tmp_path):
    write_cohort(made(2), tmp_path)
    (tmp_path / "scans.json").write_text("{")
    with pytest.raises(CohortError, match="is not JSON"):
        load_cohort(tmp_path)


def test_sessions_are_asked_for_where_there_are_none(tmp_path):
    cohort = Cohort(pd.DataFrame({"subject_id": ["sub-1"], "session_id": [""]}, index=["sub-1"]))
    with pytest.raises(CohortError, match="no scan of the cohort has a session"):
        select(cohort, [], sessions=["07"])
