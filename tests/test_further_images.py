import json

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from nilatent import further_images
from nilatent.cohort import Cohort
from nilatent.config import StudyConfig, read_config
from nilatent.errors import SettingError
from nilatent.further_images import check_images, failed_images, pack_modality, write_images
from nilatent.grid import Grid
from nilatent.preprocess.beside import mask_of
from nilatent.volumes import open_volumes


def test_a_cohort_read_with_other_images_is_not_gone_on_with(tmp_path):
    write_images(tmp_path, StudyConfig(modalities={"flair": "FLAIR", "wm": "WM"}))
    check_images(tmp_path, StudyConfig(modalities={"flair": "FLAIR"}))
    # What the recipe makes itself is not read.
    check_images(tmp_path, StudyConfig(modalities={"csf": "CSF"}))
    with pytest.raises(SettingError, match="'flair' is now T2w, and the scans were read with FLAIR"):
        check_images(tmp_path, StudyConfig(modalities={"flair": "T2w"}))
    with pytest.raises(SettingError, match="'pet' is now pet, and the scans were read with none"):
        check_images(tmp_path, StudyConfig(modalities={"pet": "pet"}))
    write_images(tmp_path, StudyConfig())
    assert not (tmp_path / "cohort" / "images.json").exists()


def test_images_are_packed_in_their_own_mask_and_failures_are_kept(tmp_path, monkeypatch, rng):
    grid = Grid.mni(6.0)
    paths = [tmp_path / f"{number}.nii.gz" for number in range(2)]
    arrays = rng.random((2, *grid.shape)).astype(np.float32)
    for path, values in zip(paths, arrays, strict=True):
        nib.save(grid.to_image(values), path)
    scans = pd.DataFrame({"subject_id": ["a", "b", "c"], "dataset": "one"}, index=pd.Index(list("abc"), name="scan_id"))
    asked = []

    def prepare_beside(cohort, prepared, name, source, out, config, *, n_procs):
        asked.append((name, source, out, n_procs))
        failed = [("c", "flair", "c.nii", "3D", "It has 4 dimensions.")]
        table = pd.DataFrame(failed, columns=["scan_id", "modality", "path", "rule", "reason"])
        return Cohort(prepared.scans.iloc[:2].assign(path=list(map(str, paths)))), table

    monkeypatch.setattr(further_images, "prepare_beside", prepare_beside)
    config = read_config(overrides={"recipe.spacing_mm": 6.0, "study.modalities.flair": "FLAIR"})
    written = pack_modality(Cohort(scans), Cohort(scans), "flair", "FLAIR", tmp_path, config.recipe, n_procs=3)
    folder = tmp_path / "modalities" / "flair"
    assert asked == [("flair", "FLAIR", folder / "prepared", 3)]
    assert {path.parent for path in written} == {folder}
    assert all(path.is_file() for path in written)
    volumes = open_volumes(folder)
    assert list(volumes.scans.index) == ["a", "b"]
    assert (volumes.mask == mask_of("FLAIR", grid)).all()
    np.testing.assert_allclose(volumes.masked([1])[0], arrays[1][volumes.mask], atol=1e-3)
    failed = failed_images(tmp_path, config)
    assert failed.loc[0, ["scan_id", "rule"]].tolist() == ["c", "3D"]
    assert json.loads((folder / "grid.json").read_text())
    assert failed_images(tmp_path, read_config()).empty
