"""The whole way of an external cohort, on small maps: frozen model and head on sources that neither has seen."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from nilatent import external as verb
from nilatent.analysis.prediction.targets import Target
from nilatent.crossfit import errors_of
from nilatent.encode import encode
from nilatent.errors import LeakageError, SettingError
from nilatent.external import PredictConfig, predict
from nilatent.finding import read_finding
from nilatent.grid import Grid, gm_mask, template_array
from nilatent.head import Head, HeadError, read_head, write_head
from nilatent.head_fit import fit_head
from nilatent.latents import write_latents
from nilatent.models import ModelConfig
from nilatent.preprocess.config import RecipeConfig
from nilatent.preprocess.recipe import fingerprint
from nilatent.training.checkpoint import ModelError, load_model
from nilatent.training.loop import TrainConfig, train
from nilatent.training.preparation import how_made
from nilatent.volumes import volumes_in_memory

SPACING = 6.0
RECIPE = RecipeConfig(name="gm", spacing_mm=SPACING, fwhm_mm=0.0)
GRID = Grid.mni(SPACING)


def maps(patient: np.ndarray, seed: int) -> np.ndarray:
    """Grey matter that patients have less of on the left."""
    rng = np.random.default_rng(seed)
    left = np.linspace(-1, 1, GRID.shape[0])[:, None, None] < 0
    size = 1.0 + 0.05 * rng.standard_normal((len(patient), 1, 1, 1))
    noise = 0.02 * rng.standard_normal((len(patient), *GRID.shape))
    return np.clip(template_array("gm", SPACING) * (size - 0.25 * patient[:, None, None, None] * left) + noise, 0, 1)


def source(
    folder: Path, patient: np.ndarray, *, seed: int, first: int = 0, known: bool = True, array: np.ndarray | None = None
) -> Path:
    folder.mkdir()
    rows = []
    for number, values in enumerate(maps(patient, seed) if array is None else array):
        name = f"sub-{first + number:02d}"
        path = folder / f"{name}_space-MNI152NLin2009aSym_label-GM_probseg.nii.gz"
        nib.save(GRID.to_image(values), path)
        rows.append({"participant_id": name, "path": path.name})
    table = pd.DataFrame(rows)
    if known:
        table["group"] = np.where(patient, "patient", "control")
    table.to_csv(folder / "scans.tsv", sep="\t", index=False)
    return folder / "scans.tsv"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with the model and the head of thirty people."""
    folder = tmp_path_factory.mktemp("study")
    patient = np.arange(30) % 2
    ids = pd.Index([f"sub-{number:02d}" for number in range(30)], name="scan_id")
    scans = pd.DataFrame({"subject_id": ids, "dataset": "study"}, index=ids)
    volumes = volumes_in_memory(maps(patient, 0), mask=gm_mask(GRID), grid=GRID, scans=scans)
    part = ["train"] * 14 + ["validation"] * 4 + ["test"] * 12
    parts = pd.DataFrame({"subject_id": ids, "part": part}, index=ids)
    made = how_made(
        fingerprint(RECIPE), ["gm"] * 30, [f"{scan}_space-MNI152NLin2009aSym_label-GM_probseg.nii.gz" for scan in ids]
    )
    config = ModelConfig(n_latent=3, channels=(4, 8))
    model = train(volumes, parts, config, TrainConfig(n_epochs=0), folder / "model", preparation=made)
    latents = encode(model, volumes, parts, preparation=made)
    write_latents(latents, folder)
    target = Target("patient:control", "binary", np.arange(30), patient, ("control", "patient"), {}, "group")
    errors = errors_of(model, volumes, np.arange(18, 30), 0, scans=scans)
    write_head(fit_head(latents, target, volumes, errors=errors, held_out={"AUC": 0.9}), folder / "head")
    return folder


@pytest.fixture
def arguments(study: Path) -> tuple[Path, Path]:
    return study / "model", study / "head"


def test_new_subjects_are_predicted_and_judged(study: Path, arguments: tuple[Path, Path], tmp_path: Path) -> None:
    patient = np.arange(6) % 2
    new = source(tmp_path / "clinic", patient, seed=1, first=50)
    found = predict(*arguments, [new], tmp_path / "out", study=study)
    table = pd.read_csv(tmp_path / "out" / "predictions.tsv", sep="\t").set_index("scan_id")
    assert list(table.columns) == ["subject_id", "dataset", "score_control", "score_patient", "call", "known"]
    np.testing.assert_allclose(table["score_control"] + table["score_patient"], 1.0)
    assert (table["call"] == np.where(patient, "patient", "control")).all()
    measures = found.finding.table.set_index("measure")
    assert measures.loc["AUC", "value"] == 1.0
    assert measures.loc["AUC", "study"] == 0.9
    assert measures.loc["AUC", "low"] < 0.9
    assert 0.5 < measures.loc["reconstruction error, here / study", "value"] < 2.0
    assert read_finding(tmp_path / "out" / "findings" / "external").answer == found.finding.answer
    latents = xr.open_dataset(tmp_path / "out" / "latents.nc", engine="h5netcdf")
    assert latents.attrs["model_hash"] == load_model(arguments[0]).content_hash


def test_a_cohort_of_one_class_has_a_sensitivity_and_no_more(arguments: tuple[Path, Path], tmp_path: Path) -> None:
    new = source(tmp_path / "clinic", np.ones(4, dtype=int), seed=2, first=60)
    found = predict(*arguments, [new], tmp_path / "out").finding
    performance = found.table[found.table["part"] == "prediction"]
    assert list(performance["measure"]) == ["sensitivity (patient)"]
    assert "one-class cohort" in found.answer
    assert "not at hand" in " ".join(found.table["note"])


def test_without_the_target_there_are_predictions_alone(arguments: tuple[Path, Path], tmp_path: Path) -> None:
    new = source(tmp_path / "clinic", np.arange(3) % 2, seed=3, first=70, known=False)
    found = predict(*arguments, [new], tmp_path / "out")
    assert (found.finding.table["part"] == "domain shift").all()
    assert "cannot be said" in found.finding.answer
    assert found.predictions["known"].isna().all()


def test_a_known_name_is_refused_left_out_or_compared_by_scan(arguments: tuple[Path, Path], tmp_path: Path) -> None:
    new = source(tmp_path / "clinic", np.arange(4) % 2, seed=4, first=28)
    out = tmp_path / "out"
    with pytest.raises(LeakageError, match=r"has seen sub-28, sub-29: 0 of these 2 subjects by a scan"):
        predict(*arguments, [new], out)
    left = predict(*arguments, [new], out, config=PredictConfig(seen="leave out"))
    assert list(left.predictions.index) == ["sub-30", "sub-31"]
    assert list(left.excluded["rule"]) == ["not seen before"] * 2
    by_scan = predict(*arguments, [new], out, config=PredictConfig(seen="by scan"))
    assert len(by_scan.predictions) == 4
    assert "not by name" in " ".join(by_scan.finding.caveats)


def test_a_copied_scan_is_known_under_another_name(arguments: tuple[Path, Path], tmp_path: Path) -> None:
    """The very values of a scan of the study, of a subject whom only the head has seen."""
    array = np.concatenate([maps(np.arange(30) % 2, 0)[25:26].astype(np.float16), maps(np.zeros(1), 5)])
    new = source(tmp_path / "clinic", np.zeros(2, dtype=int), seed=0, first=80, array=array)
    with pytest.raises(LeakageError, match=r"has seen sub-80: 1 of these 1 subjects by a scan"):
        predict(*arguments, [new], tmp_path / "out")
    left = predict(*arguments, [new], tmp_path / "out", config=PredictConfig(seen="by scan"))
    assert list(left.predictions.index) == ["sub-81"]


def test_a_head_of_another_model_is_refused_before_anything_is_prepared(
    study: Path, arguments: tuple[Path, Path], tmp_path: Path
) -> None:
    other: Head = replace(read_head(arguments[1]), model_hash="0" * 64)
    write_head(other, tmp_path / "head")
    new = source(tmp_path / "clinic", np.zeros(1, dtype=int), seed=5, first=90)
    with pytest.raises(HeadError, match="means nothing in another"):
        predict(arguments[0], tmp_path / "head", [new], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_scans_of_another_kind_are_refused_unless_that_is_wanted(arguments: tuple[Path, Path], tmp_path: Path) -> None:
    new = source(tmp_path / "clinic", np.zeros(2, dtype=int), seed=6, first=90)
    for path in (tmp_path / "clinic").glob("*.nii.gz"):
        path.rename(path.with_name(path.name.split("_")[0].replace("sub-", "mwp1sub-") + ".nii.gz"))
    table = pd.read_csv(new, sep="\t")
    table["path"] = ["mwp1" + name.split("_")[0] + ".nii.gz" for name in table["path"]]
    table.to_csv(new, sep="\t", index=False)
    with pytest.raises(ModelError, match="made otherwise"):
        predict(*arguments, [new], tmp_path / "out")
    allowed = predict(*arguments, [new], tmp_path / "out", config=PredictConfig(allow_other_preparation=True))
    assert "made otherwise" in " ".join(allowed.finding.caveats)


def test_within_subjects_scans_are_not_compared_and_maps_are_taken_without(
    arguments: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scan's values depend on the person's other visits then, so that a known scan would pass as new."""
    monkeypatch.setattr(verb, "_recipe", lambda _: replace(RECIPE, name="auto", within_subject=True))
    new = source(tmp_path / "new", np.arange(4) % 2 == 0, seed=3, first=70)
    with pytest.raises(SettingError, match="would pass as new"):
        predict(*arguments, [new], tmp_path / "out", config=PredictConfig(seen="by scan"))
    assert len(predict(*arguments, [new], tmp_path / "out").predictions) == 4


def test_an_unknown_word_is_refused() -> None:
    with pytest.raises(SettingError, match=r"predict\.seen"):
        PredictConfig(seen="ignore")


def test_the_folder_of_the_study_is_not_written_over(study: Path, tmp_path: Path) -> None:
    other = source(tmp_path / "other", np.arange(4) % 2, seed=5, first=40)
    for out in (study, study / "model", study / "head"):
        with pytest.raises(SettingError, match="would be overwritten"):
            predict(study / "model", study / "head", [other], out, study=study)
    assert not (study / "prepared").exists()


@pytest.mark.parametrize(
    ("preparation", "words"),
    [
        (5, "does not say how its scans were prepared"),
        ({}, "does not say how its scans were prepared"),
        ({"recipe": ["t1"]}, "settings this nilatent does not know"),
        ({"recipe": {"fwhm_mm": "8"}}, "settings this nilatent does not know"),
        ({"recipe": {"colour": 1}}, "settings this nilatent does not know"),
        ({"recipe": {"modulation": "no"}}, "modulation = 'no', which is no bool"),
    ],
)
def test_a_preparation_that_a_stranger_wrote_is_read_with_care(preparation: object, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        verb._recipe(SimpleNamespace(preparation=preparation))


def test_a_preparation_in_whole_numbers_is_one() -> None:
    assert verb._recipe(SimpleNamespace(preparation={"recipe": {"fwhm_mm": 8, "spacing_mm": 2}})).fwhm_mm == 8
