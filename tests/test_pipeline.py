import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from nilatent.analysis.regional import read_regions
from nilatent.cohort import Cohort
from nilatent.config import read_config
from nilatent.errors import SettingError
from nilatent.pipeline import River, check_names
from nilatent.volumes import Grid, brain_mask, template


def test_unknown_stage_or_analysis_is_refused():
    with pytest.raises(SettingError, match="Did you mean 'lrcp'"):
        check_names("report", ["lrpc"])
    with pytest.raises(SettingError, match="model, latents, findings, report"):
        check_names("reprot", [])


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
