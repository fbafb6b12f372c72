from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from nilatent.cohort import Cohort, exclude
from nilatent.config import read_config
from nilatent.errors import SettingError
from nilatent.study import check_study, listed_exclusions, stratified
from nilatent.variables import typed


@pytest.fixture
def cohort() -> Cohort:
    scans = pd.DataFrame(
        {
            "subject_id": ["sub-a", "sub-a", "sub-b"],
            "dataset": "one",
            "path": ["1", "2", "3"],
            "diagnosis": ["AD", "AD", "CN"],
        },
        index=pd.Index(["sub-a_ses-1", "sub-a_ses-2", "sub-b"], name="scan_id"),
    )
    return Cohort(scans)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"study.group": "diagnosi"}, "--group: there is no column 'diagnosi'. Did you mean 'diagnosis'"),
        ({"study.site": "centre"}, "--site: there is no column 'centre'"),
        ({"study.covariates": ["agee"]}, "--covariates agee"),
        ({"study.contrast": "AD:CN"}, "needs --group"),
        ({"split.train_on": ["onw"]}, "--train-on: there is no data set 'onw'. Did you mean 'one'"),
        ({"study.group": "diagnosis", "study.contrast": "AD:CM"}, "no value 'CM'. There are: AD, CN"),
        ({"study.group": "diagnosis", "study.contrast": "AD"}, "joined by a colon"),
        ({"study.group": "diagnosis", "study.contrast": "AD:AD"}, "two different values"),
    ],
)
def test_study_that_the_cohort_cannot_answer_is_refused(cohort: Cohort, asked: dict[str, object], words: str):
    with pytest.raises(SettingError, match=words):
        check_study(cohort, read_config(overrides=asked))


def test_study_that_the_cohort_can_answer_passes(cohort: Cohort):
    check_study(cohort, read_config(overrides={"study.group": "diagnosis", "study.contrast": "AD:CN"}))


def test_groups_written_as_numbers_are_called_as_they_were_written(cohort: Cohort):
    cohort.scans["arm"] = [1.0, 1.0, 0.0]
    check_study(cohort, read_config(overrides={"study.group": "arm", "study.contrast": "1:0"}))


def test_exclusions_take_scans_and_whole_subjects_with_their_reason(cohort: Cohort, tmp_path: Path):
    file = tmp_path / "out.tsv"
    file.write_text("scan_id\nsub-a\tmoved\nsub-b\n")
    left = exclude(cohort, listed_exclusions(cohort, file))
    assert left.scans.empty
    assert list(left.excluded["reason"]) == ["moved", "moved", "Listed in out.tsv."]


def test_exclusion_of_nobody_is_refused(cohort: Cohort, tmp_path: Path):
    (tmp_path / "out.tsv").write_text("sub-c\n")
    with pytest.raises(SettingError, match="line 1: 'sub-c' is no scan and no subject"):
        listed_exclusions(cohort, tmp_path / "out.tsv")
    with pytest.raises(SettingError, match="no file"):
        listed_exclusions(cohort, tmp_path / "absent.tsv")


def test_split_is_stratified_by_group_and_sex_unless_told_otherwise(cohort: Cohort):
    config = read_config(overrides={"study.group": "diagnosis"})
    assert stratified(config, cohort).stratify == ("diagnosis",)
    assert stratified(read_config(overrides={"split.stratify": ["dataset"]}), cohort).stratify == ("dataset",)


@pytest.mark.parametrize(
    ("cells", "accepted"),
    [
        (["20", "21", "?"], False),
        (["20,5", "21,5", "19,5"], False),
        (["20", "21", "n/a"], True),
        (["x", "y", "20"], True),
        (["001", "002", "003"], True),
    ],
)
def test_a_stray_word_does_not_turn_a_covariate_into_categories(cohort: Cohort, cells: list[str], accepted: bool):
    cohort = replace(cohort, scans=typed(cohort.scans.assign(bmi=cells)))
    if accepted:
        check_study(cohort, read_config(overrides={"study.covariates": ["bmi"]}))
    else:
        with pytest.raises(SettingError, match=r"--covariates bmi: scan sub-.* has '[?2]"):
            check_study(cohort, read_config(overrides={"study.covariates": ["bmi"]}))


def test_exclusions_in_an_older_encoding_are_read(cohort: Cohort, tmp_path: Path):
    (tmp_path / "out.txt").write_bytes("sub-b\tmüde\n".encode("latin-1"))
    assert [row["reason"] for row in listed_exclusions(cohort, tmp_path / "out.txt")] == ["müde"]


@pytest.mark.parametrize(
    "asked", [{"study.covariates": ["age", "age"]}, {"study.covariates": ["age", "s"], "study.site": "s"}]
)
def test_a_column_named_twice_is_refused(cohort: Cohort, asked: dict[str, object]):
    named = replace(cohort, scans=cohort.scans.assign(age=[1.0, 2.0, 3.0], s="x"))
    with pytest.raises(SettingError, match="is named twice among"):
        check_study(named, read_config(overrides=asked))
