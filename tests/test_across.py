import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from tests.joint_run import N_WITHOUT_WM, write_run

from nilatent.across import predict_across
from nilatent.crossfit import fold_parts
from nilatent.errors import LeakageError, SettingError
from nilatent.pools import read_split
from nilatent.volumes import open_volumes

FOLDS = 2


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "out"
    write_run(out, np.random.default_rng(3), folds=FOLDS)
    return out


def read(folder: Path, name: str = "summary.tsv") -> pd.DataFrame:
    return pd.read_csv(folder / name, sep="\t", index_col="scan_id")


def test_every_scan_is_predicted_by_the_model_that_has_not_seen_it(run, tmp_path):
    found = read(predict_across(run, "wm", out=tmp_path / "out"))
    parts = read_split(run)
    assert list(found.index) == list(parts.index)
    assert [f"folds/{fold}/multimodal" for fold in parts["fold"]] == list(found["model"])
    assert not found["seen"].any()
    # Those that lack the images are predicted too, and nobody knows how well.
    assert found["fvu"].isna().sum() == N_WITHOUT_WM
    assert found["path"].notna().all()
    assert found["fvu"].median() < 0.6
    assert set(found["from"]) == {"gm, scores", "gm"}


def test_errors_are_those_of_the_files_against_the_mean_of_training_scans(run, tmp_path):
    folder = predict_across(run, "wm", use=["gm"], scans=["sub-20"], out=tmp_path / "out")
    found, volumes, parts = read(folder), open_volumes(run / "modalities" / "wm"), read_split(run)
    fold = fold_parts(parts, parts.loc["sub-20", "fold"], validation_fraction=0.15, seed=0)
    training = volumes.scans.index.intersection(fold.index[fold["part"] == "train"])
    mean = volumes.masked(volumes.rows(list(training))).mean(axis=0)
    path = folder / found.loc["sub-20", "path"]
    drawn = nib.load(path).get_fdata()
    truth = volumes.masked(volumes.rows(["sub-20"]))[0]
    naive = np.square(drawn[volumes.mask] - truth).sum() / np.square(mean - truth).sum()
    assert found.loc["sub-20", "fvu"] == pytest.approx(naive, rel=1e-3)
    assert (drawn[~volumes.mask] == 0).all()
    assert path.name == "sub-20_space-MNI152NLin2009aSym_res-4_label-WM_desc-modulatedPredicted_probseg.nii.gz"
    said = json.loads((path.parent / path.name.replace(".nii.gz", ".json")).read_text())
    assert said["Predicted"]
    assert said["nilatent"]["From"] == "gm"
    assert said["nilatent"]["SubjectSeenByModel"] is False
    assert said["nilatent"]["Model"]["Folder"] == found.loc["sub-20", "model"]


def test_a_table_is_predicted_in_its_units_and_what_it_shares_alone(run, tmp_path):
    folder = predict_across(run, "scores", use=["gm", "wm"], out=tmp_path / "out")
    told, truth = read(folder, "predicted.tsv"), read(run / "prepared", "scans.tsv")
    assert list(told.columns) == ["score", "mood"]
    assert told["score"].corr(truth["score"]) > 0.7
    assert told["score"].mean() == pytest.approx(truth["score"].mean(), abs=4)
    found = read(folder)
    assert found["fvu"].isna().sum() == 1
    total = found.sum(numeric_only=True)
    spread = np.square((told - truth[["score", "mood"]]) / truth[["score", "mood"]].std(ddof=0)).sum().sum()
    assert total["squared_error"] == pytest.approx(spread, rel=0.2)
    assert total["squared_error"] < 0.9 * total["squared_error_of_mean"]


def test_scans_without_anything_to_predict_from_are_said_to_be_so(run, tmp_path):
    found = read(predict_across(run, "gm", use=["wm"], out=tmp_path / "out"))
    bare = found["from"] == "nothing: not predicted"
    assert bare.sum() == N_WITHOUT_WM
    assert found.loc[bare, "path"].isna().all()
    assert found.loc[~bare, "fvu"].notna().all()


def test_without_folds_scans_of_the_training_are_marked(run, tmp_path):
    own = shutil.copytree(run, tmp_path / "own")
    (own / "study.toml").write_text((own / "study.toml").read_text().replace(f"folds = {FOLDS}\n", "folds = 0\n"))
    found = read(predict_across(own, "gm"))
    part = read_split(own)["part"]
    assert (found["seen"] == part.isin(("train", "validation"))).all()
    assert (own / "generated" / "gm_from_wm-scores" / "summary.tsv").is_file()


def test_a_model_that_has_seen_its_fold_is_refused(run, tmp_path):
    own = shutil.copytree(run, tmp_path / "own")
    shutil.rmtree(own / "folds" / "0")
    shutil.copytree(own / "folds" / "1", own / "folds" / "0")
    with pytest.raises(LeakageError, match="folds/0/multimodal has seen the subject of sub-"):
        predict_across(own, "gm")
    assert not (own / "generated").exists()


def test_the_same_again_writes_nothing_and_something_else_is_refused(run, tmp_path):
    out = tmp_path / "out"
    predict_across(run, "scores", scans=["sub-07"], out=out)
    before = (out / "summary.tsv").stat().st_mtime_ns
    predict_across(run, "scores", scans=["sub-07"], out=out)
    assert (out / "summary.tsv").stat().st_mtime_ns == before
    with pytest.raises(SettingError, match="another prediction, and nothing is overwritten"):
        predict_across(run, "scores", scans=["sub-08"], out=out)
    with pytest.raises(SettingError, match="something else"):
        predict_across(run, "scores", out=run / "volumes")


@pytest.mark.parametrize(
    ("target", "asked", "words"),
    [
        ("vm", {}, "no modality 'vm'. There are: gm, wm, scores"),
        ("wm", {"use": ["score"]}, "no modality 'score'. Did you mean 'scores'"),
        ("wm", {"use": ["wm", "gm"]}, "--from names 'wm', which is to be predicted"),
        ("wm", {"scans": ["sub-99"]}, "no scan 'sub-99'"),
    ],
)
def test_what_cannot_be_is_refused_in_words(run, target, asked, words):
    with pytest.raises(SettingError, match=words):
        predict_across(run, target, **asked)


def test_a_run_of_one_modality_is_told_how_to_have_more(run, tmp_path):
    own = shutil.copytree(run, tmp_path / "own")
    text = (own / "study.toml").read_text().replace('wm = "WM"', "")
    start = text.index("[study.tables]")
    (own / "study.toml").write_text(text[:start] + text[text.index("[recipe]") :])
    with pytest.raises(SettingError, match="names no modality beside"):
        predict_across(own, "gm")
