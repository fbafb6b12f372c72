import dataclasses
import json

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from nilatent.errors import FindingError
from nilatent.finding import Finding, not_run, read_finding, write_finding
from nilatent.provenance import hash_file


@pytest.fixture
def finding(rng):
    table = pd.DataFrame(
        {
            "name": ["NA", "None", "n\ta", "007", np.nan],
            "code": ["01", "1", "001", "1e5", "True"],
            "label": range(5),
            "p": [1 / 3, np.nan, 1e-300, 0.0, 1.0],
            "strong": [True, False, True, False, True],
            "seen": pd.Series([True, False, None, True, False], dtype=object),
            "gap": np.nan,
            "large": [2**60 + 1, 2, 3, 4, 5],
        }
    )
    affine = np.diag([2.0, 2, 2, 1])
    maps = {
        "association": nib.Nifti1Image(rng.normal(size=(15, 17, 13)).astype(np.float32), affine),
        "labels": nib.Nifti1Image(rng.integers(0, 9, (15, 17, 13)).astype(np.int16), affine),
    }
    data = xr.Dataset({"r": (("latent", "region"), rng.normal(size=(2, 5)))}, coords={"region": list("abcde")})
    return Finding(
        name="lrcp",
        question="Which region?",
        answer="Größe: 1/3.",
        table=table,
        data=data,
        maps=maps,
        settings={"seed": np.int64(3), "alpha": 0.05, "columns": ("age", "sex")},
        caveats=("Not causal.", "Small."),
        n_scans=5,
        n_subjects=4,
    )


def test_a_finding_survives_the_disk(tmp_path, finding):
    written = write_finding(finding, tmp_path / "lrcp")
    assert [path.name for path in written] == [
        "table.tsv",
        "data.nc",
        "association.nii.gz",
        "labels.nii.gz",
        "finding.json",
    ]
    again = read_finding(tmp_path / "lrcp")
    for name in ("name", "question", "answer", "caveats", "n_scans", "n_subjects", "not_run"):
        assert getattr(again, name) == getattr(finding, name)
    assert again.settings == {"seed": 3, "alpha": 0.05, "columns": ["age", "sex"]}
    xr.testing.assert_identical(again.data, finding.data)
    for name, image in finding.maps.items():
        np.testing.assert_array_equal(np.asarray(again.maps[name].dataobj), np.asarray(image.dataobj))
        np.testing.assert_array_equal(again.maps[name].affine, image.affine)
        assert again.maps[name].get_data_dtype() == image.get_data_dtype()


def test_every_cell_of_the_table_survives_the_disk(tmp_path, finding):
    write_finding(finding, tmp_path)
    table = read_finding(tmp_path).table
    assert list(table) == list(finding.table)
    for name in ("code", "label", "strong", "large"):
        assert table[name].tolist() == finding.table[name].tolist()
    assert table["seen"].tolist()[:2] == [True, False]
    assert table["seen"].isna().tolist() == [False, False, True, False, False]
    assert table["gap"].isna().all()
    assert table["label"].dtype == finding.table["label"].dtype
    assert table["name"].fillna("gap").tolist() == ["NA", "None", "n\ta", "007", "gap"]
    np.testing.assert_array_equal(table["p"], finding.table["p"])


def test_a_finding_without_rows_keeps_its_columns(tmp_path, finding):
    write_finding(dataclasses.replace(finding, table=finding.table.iloc[:0], maps={}), tmp_path)
    again = read_finding(tmp_path)
    assert list(again.table) == list(finding.table)
    assert again.table.empty
    assert again.maps == {}


def test_what_was_not_run_survives_the_disk_with_its_reason(tmp_path):
    write_finding(not_run("lrcp", "Which region?", "no group column."), tmp_path)
    again = read_finding(tmp_path)
    assert (again.not_run, again.answer) == ("no group column.", "Not run: no group column.")
    assert again.table.empty
    assert not again.data.variables
    assert (again.n_scans, again.maps) == (0, {})


def test_the_same_finding_is_the_same_bytes(tmp_path, finding):
    hashes = [[hash_file(path) for path in write_finding(finding, tmp_path / name)] for name in "ab"]
    assert hashes[0] == hashes[1]


@pytest.mark.parametrize("change", ["index", "columns"])
def test_a_table_that_would_lose_something_is_refused(tmp_path, finding, change):
    table = finding.table.set_index("name") if change == "index" else pd.concat([finding.table] * 2, axis=1)
    with pytest.raises(FindingError, match="reset_index"):
        write_finding(dataclasses.replace(finding, table=table), tmp_path)


def test_a_map_that_would_lie_elsewhere_is_refused(tmp_path, finding):
    write_finding(finding, tmp_path / "lrcp")
    (tmp_path / "secret.nii.gz").write_bytes((tmp_path / "lrcp" / "labels.nii.gz").read_bytes())
    head = json.loads((tmp_path / "lrcp" / "finding.json").read_text())
    (tmp_path / "lrcp" / "finding.json").write_text(json.dumps(head | {"maps": ["../secret"]}))
    with pytest.raises(FindingError, match="a path for a name"):
        read_finding(tmp_path / "lrcp")


def test_another_format_version_is_refused(tmp_path, finding):
    head = write_finding(finding, tmp_path)[-1]
    head.write_text(json.dumps(json.loads(head.read_text()) | {"format_version": 99}))
    with pytest.raises(FindingError, match=r"format 99.*Run the analysis again"):
        read_finding(tmp_path)


@pytest.mark.parametrize("name", ["finding.json", "table.tsv", "data.nc", "labels.nii.gz"])
def test_a_finding_that_lacks_a_file_is_refused_by_its_name(tmp_path, finding, name):
    write_finding(finding, tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(FindingError, match=name):
        read_finding(tmp_path)


@pytest.mark.parametrize("name", ["finding.json", "data.nc"])
def test_a_damaged_finding_is_refused(tmp_path, finding, name):
    write_finding(finding, tmp_path)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:20])
    with pytest.raises(FindingError, match="damaged"):
        read_finding(tmp_path)


def test_writing_again_and_breaking_off_leaves_no_finding_of_two_runs(tmp_path, finding):
    write_finding(finding, tmp_path)
    broken = dataclasses.replace(finding, data=xr.Dataset({"x": ("a", [object()])}))
    with pytest.raises((TypeError, ValueError)):
        write_finding(broken, tmp_path)
    with pytest.raises(FindingError, match=r"finding\.json"):
        read_finding(tmp_path)
