from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nilatent.cohort import Cohort, exclude
from nilatent.config import read_config
from nilatent.errors import SettingError
from nilatent.grid import Grid
from nilatent.study import check_folds, check_joint_splits, check_study, listed_exclusions, stratified
from nilatent.variables import typed
from nilatent.volumes import Volumes, volumes_in_memory


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
        ({"study.tables.scores": ["diagnosi"]}, "--table scores diagnosi: there is no column 'diagnosi'. Did you mean"),
        ({"study.tables.scores": []}, "--table scores has the columns none"),
        ({"study.tables.scores": ["diagnosis", "diagnosis"]}, "Name at least one, and each once"),
        ({"study.tables.gm": ["diagnosis"]}, "--table gm: 'gm' is the modelled image already"),
        ({"study.tables.latents": ["diagnosis"]}, "'latents' is what the model says of it already"),
        ({"study.tables.wm": ["diagnosis"], "study.modalities.WM": "WM"}, "'wm' is the name of a modality already"),
        ({"study.modalities": {"flair-1": "FLAIR"}}, "cannot be named 'flair-1'. Use letters"),
        ({"study.modalities.type": "FLAIR"}, "cannot be named 'type'"),
        ({"study.modalities.flair": ""}, "--modality flair= names no images"),
        ({"study.modalities.flair": "FLAIR"}, "read without these images. Name the sources"),
    ],
)
def test_study_that_the_cohort_cannot_answer_is_refused(cohort: Cohort, asked: dict[str, object], words: str):
    with pytest.raises(SettingError, match=words):
        check_study(cohort, read_config(overrides=asked))


def test_study_that_the_cohort_can_answer_passes(cohort: Cohort):
    check_study(cohort, read_config(overrides={"study.group": "diagnosis", "study.contrast": "AD:CN"}))


def test_modalities_that_the_cohort_has_pass(cohort: Cohort):
    there = replace(cohort, scans=cohort.scans.assign(image_flair=["1", np.nan, "3"]))
    asked = {"study.modalities": {"flair": "FLAIR", "wm": "WM"}, "study.tables.scores": ["diagnosis"]}
    check_study(there, read_config(overrides=asked))
    # T1 intensities are modelled beside grey matter as well as the other way round.
    check_study(there, read_config(overrides={"recipe.target": "t1w", "study.modalities.gm": "GM"}))


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
        with pytest.raises(SettingError, match=r"--table body bmi: scan sub-.* has '[?2]"):
            check_study(cohort, read_config(overrides={"study.tables.body": ["bmi"]}))


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


def many(rng: np.random.Generator, n_scans: int) -> tuple[pd.DataFrame, Volumes]:
    ids = [f"sub-{i:02d}" for i in range(n_scans)]
    scans = pd.DataFrame({"subject_id": ids, "dataset": "one", "scanner": ["rare"] + ["usual"] * (n_scans - 1)})
    scans.index = pd.Index(ids, name="scan_id")
    grid = Grid((7, 9, 8), np.diag([4.0, 4.0, 4.0, 1.0]))
    mask = np.ones(grid.shape, dtype=bool)
    return scans, volumes_in_memory(rng.random((n_scans, *grid.shape)), mask=mask, grid=grid, scans=scans)


def test_folds_that_could_not_be_are_refused_before_anything_is_trained(tmp_path: Path, rng: np.random.Generator):
    scans, volumes = many(rng, 24)
    parts = scans.assign(part="train", fold=np.arange(24) % 2)

    def check(**asked: object) -> None:
        config = read_config(overrides={"folds": 2} | {key.replace("__", "."): value for key, value in asked.items()})
        check_folds(Cohort(scans), volumes, parts, config, tmp_path)

    check(model__n_latent=4)
    with pytest.raises(SettingError, match="Fold 0 of 2 leaves 8 scans"):
        check(model__n_latent=8)
    with pytest.raises(SettingError, match="scanner = usual"):
        check(model__n_latent=4, model__condition=["scanner"])


def test_modalities_that_a_fold_cannot_learn_are_refused_before_anything_is_trained(rng: np.random.Generator):
    scans, volumes = many(rng, 40)
    parts = scans.assign(part=np.repeat(["train", "validation", "test"], [28, 6, 6]), fold=np.arange(40) % 4)
    config = read_config(overrides={"folds": 4, "study.tables.scores": ["a"], "multimodal.n_latent": 5})
    whole = {"gm": volumes, "scores": scans.assign(a=rng.random(40), b=1.0)[["a", "b"]]}
    with pytest.raises(SettingError, match="scores: b is known of 28 training scans and has 1 values"):
        check_joint_splits(whole, parts, config)
    scores = whole["scores"][["a"]]
    check_joint_splits({}, parts, config)
    check_joint_splits({"gm": volumes, "scores": scores}, parts, config)
    # Enough for the study's own split, too few once a fold is held out.
    words = pd.Series("usual", index=scans.index).mask(parts["fold"] == 1, "rare").where(parts["part"] == "train")
    with pytest.raises(SettingError, match=r"Fold 1 of 4: scores: word.* 1 values.*Fewer folds"):
        check_joint_splits({"gm": volumes, "scores": scores.assign(word=words)}, parts, config)
    wide = read_config(overrides={"multimodal.n_latent": 28})
    with pytest.raises(SettingError, match="smaller than the number of training scans of 'gm', 28"):
        check_joint_splits({"gm": volumes, "scores": scores}, parts, wide)
