from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from nilatent import analyses
from nilatent.analysis.normative import NormativeConfig
from nilatent.errors import ScanError
from nilatent.finding import not_run
from nilatent.grid import Grid

GRID = Grid((5, 7, 3), np.diag([4.0, 4.0, 4.0, 1.0]))
MASK = np.zeros(GRID.shape, dtype=bool)
MASK[1:4, 2:5, 1] = True


@pytest.fixture
def pools():
    index = pd.Index(["head", "broken", "map"], name="scan_id")
    paths = ["/prepared/head.nii.gz", "/prepared/broken.nii.gz", "/prepared/map.nii.gz"]
    scans = pd.DataFrame({"recipe": ["t1", "t1", "gm"], "path": paths}, index=index)
    return SimpleNamespace(
        prepared=SimpleNamespace(scans=scans),
        volumes=SimpleNamespace(mask=MASK, grid=GRID),
        parts=pd.DataFrame({"fold": [0, 1, 0]}, index=index),
        config=SimpleNamespace(normative=NormativeConfig()),
    )


def test_deviation_maps_lie_in_template_space_and_of_heads_in_their_own(pools, tmp_path, monkeypatch):
    z = {
        name: np.full(MASK.sum(), number + 1, dtype=np.float32) for number, name in enumerate(["map", "head", "broken"])
    }
    asked = []

    def deviation_maps(volumes, scans, folds, config, *, chosen, label):
        asked.append((folds.tolist(), chosen))
        return ((name, z[name]) for name in chosen)

    def to_native(image, side_car):
        if side_car.name == "broken.json":
            raise ScanError("It was changed.", rule="transform")
        assert side_car == Path("/prepared/head.json")
        return nib.Nifti1Image(image.get_fdata()[::-1], np.eye(4))

    monkeypatch.setattr(analyses, "deviation_maps", deviation_maps)
    monkeypatch.setattr(analyses, "to_native", to_native)
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / "old.nii.gz").write_bytes(b"")
    found = replace(not_run("normative", "", ""), settings={"mapped": ["map", "head", "broken"]})
    written = analyses._deviation_maps(pools, found, tmp_path)
    names = ["broken.nii.gz", "head.nii.gz", "map.nii.gz", "native/head.nii.gz", "native/not_written.tsv"]
    assert sorted(str(path.relative_to(tmp_path / "maps")) for path in written) == names
    assert not (tmp_path / "maps" / "old.nii.gz").exists()
    assert asked == [([0, 1, 0], ["map", "head", "broken"])]
    image = nib.load(tmp_path / "maps" / "head.nii.gz").get_fdata()
    assert (image[MASK] == 2).all()
    assert (image[~MASK] == 0).all()
    np.testing.assert_array_equal(nib.load(tmp_path / "maps" / "native" / "head.nii.gz").get_fdata(), image[::-1])
    assert "It was changed" in (tmp_path / "maps" / "native" / "not_written.tsv").read_text()


def test_what_was_not_run_leaves_no_maps(pools, tmp_path):
    (tmp_path / "maps").mkdir()
    assert analyses._deviation_maps(pools, not_run("normative", "", "too few"), tmp_path) == []
    assert not (tmp_path / "maps").exists()
