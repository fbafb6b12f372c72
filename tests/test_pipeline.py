import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from nilatent.analysis.regional import read_regions
from nilatent.cohort import Cohort, write_cohort
from nilatent.config import read_config
from nilatent.errors import SettingError
from nilatent.pipeline import check_names
from nilatent.river import River
from nilatent.volumes import Grid, brain_mask, template, volumes_in_memory


def test_unknown_stage_or_analysis_is_refused():
    with pytest.raises(SettingError, match="Did you mean 'lrcp'"):
        check_names("report", ["lrpc"])
    with pytest.raises(SettingError, match="model, latents, findings, report"):
        check_names("reprot", [])


def test_a_relative_folder_is_the_one_it_is_from_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert River("results", read_config()).out == tmp_path / "results"


def test_remedies_are_taken_only_when_asked_for(tmp_path, rng):
    scans = pd.DataFrame({"subject_id": [f"sub-{i}" for i in range(24)], "dataset": "one"}).rename_axis("scan_id")
    scans.index = pd.Index(scans["subject_id"], name="scan_id")
    grid = Grid((15, 17, 13), np.diag([4.0, 4.0, 4.0, 1.0]))
    mask = np.ones(grid.shape, dtype=bool)
    volumes = volumes_in_memory(rng.random((24, *grid.shape)), mask=mask, grid=grid, scans=scans)
    parts = scans.assign(part=["train"] * 14 + ["validation"] * 5 + ["test"] * 5)
    asked = {"model.n_latent": 2, "model.channels": [4, 8], "training.n_epochs": 1}
    table = scans.assign(
        session_id="", source_id=scans["subject_id"], path=scans.index + "_GM.nii.gz", sha256="", recipe="gm"
    )
    for remedy in (False, True, False):
        river = River(tmp_path / "run", read_config(overrides=asked | ({"remedy": True} if remedy else {})))
        river.hashes |= {"volumes": "some", "split": "some", "prepared": "some"}
        write_cohort(Cohort(table), river.out / "cohort")
        river.model(Cohort(table), volumes, parts)
        assert (river.out / "model" / "attempts.json").is_file() == remedy
        assert (river.out / "model" / "weights.safetensors").is_file()


def test_regions_hold_grey_matter_when_t1_intensities_are_modelled(tmp_path, rng):
    grid = Grid.mni(6.0)
    grey = template("gm", grid).get_fdata(dtype=np.float32)
    rows = {}
    for number in range(3):
        for kind, values in (("t1w", rng.random(grid.shape)), ("gm", grey * (1 + number / 10))):
            nib.save(grid.to_image(values), tmp_path / f"{kind}{number}.nii.gz")
        rows[f"sub-{number}"] = {"subject_id": f"sub-{number}", "session_id": "", "dataset": "one", "sha256": ""}
        rows[f"sub-{number}"] |= {"path": str(tmp_path / f"t1w{number}.nii.gz")}
        rows[f"sub-{number}"] |= {"gm_path": str(tmp_path / f"gm{number}.nii.gz")}
    prepared = Cohort(pd.DataFrame.from_dict(rows, orient="index").rename_axis("scan_id"))
    river = River(tmp_path / "run", read_config(overrides={"recipe.target": "t1w", "recipe.spacing_mm": 6.0}))
    river.hashes["prepared"] = "some"
    volumes = river.volumes(prepared)
    assert (volumes.mask == brain_mask(grid)).all()
    river.regions(river.grey(prepared, volumes))
    values = read_regions(river.out).values
    np.testing.assert_allclose(values.loc["sub-2"] / values.loc["sub-0"], 1.2, rtol=1e-3)


def test_folds_take_remedies_when_the_model_does(tmp_path, rng, monkeypatch):
    taken = []

    def fit(*_, remedy, **__):
        taken.append(remedy)
        return []

    monkeypatch.setattr("nilatent.river.fit_fold", fit)
    ids = [f"sub-{i}" for i in range(24)]
    table = pd.DataFrame({"subject_id": ids, "dataset": "one", "source_id": ids}, index=pd.Index(ids, name="scan_id"))
    table = table.assign(session_id="", path=table.index + "_GM.nii.gz", sha256="", recipe="gm")
    parts = table.assign(part="train", fold=np.arange(24) % 2)
    for remedy in (False, True):
        river = River(tmp_path / str(remedy), read_config(overrides={"folds": 2, "remedy": remedy}))
        river.hashes |= {"volumes": "some", "split": "some", "prepared": "some"}
        write_cohort(Cohort(table), river.out / "cohort")
        river.folds(Cohort(table), None, parts)
    assert taken == [False, False, True, True]
