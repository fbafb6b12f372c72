import numpy as np
import pandas as pd
import pytest
import xarray as xr

from nilatent.errors import LatentsError
from nilatent.latents import check_latents, make_latents, read_latents, write_latents
from nilatent.provenance import hash_file


def arguments(rng):
    return {
        "mean": rng.normal(size=(5, 3)).astype(np.float32),
        "log_var": rng.normal(size=(5, 3)).astype(np.float32),
        "scan": ["007", "b_ses-1", "b_ses-2", "c", "d"],
        "subject": ["007", "b", "b", "c", "d"],
        "subject_in_training": [True, False, False, True, False],
        "part": ["train", "test", "test", "validation", "test"],
        "model_hash": "m",
        "volumes_hash": "v",
    }


def build(given):
    mean, log_var = given.pop("mean"), given.pop("log_var")
    return make_latents(mean, log_var, **given)


@pytest.fixture
def latents(rng):
    return build(arguments(rng))


def test_latents_survive_the_disk_bit_by_bit(tmp_path, latents):
    assert [path.name for path in write_latents(latents, tmp_path)] == ["latents.nc", "latents.tsv"]
    again = read_latents(tmp_path)
    xr.testing.assert_identical(again, latents)
    assert again["mean"].dtype == np.float32
    assert again["subject_in_training"].dtype == bool
    assert again["scan"].values.tolist()[0] == "007"


def test_the_spreadsheet_brings_every_float_back(tmp_path, latents):
    write_latents(latents, tmp_path)
    table = pd.read_csv(tmp_path / "latents.tsv", sep="\t", dtype={"scan_id": str, "subject_id": str})
    assert list(table) == ["scan_id", "subject_id", "part", "subject_in_training", "z000", "z001", "z002"]
    np.testing.assert_array_equal(table[["z000", "z001", "z002"]].to_numpy(np.float32), latents["mean"].values)
    assert table["scan_id"].tolist() == latents["scan"].values.tolist()
    assert table["subject_in_training"].tolist() == [True, False, False, True, False]


def test_the_same_latents_are_the_same_bytes(tmp_path, rng):
    given = arguments(rng)
    hashes = [
        [hash_file(path) for path in write_latents(build(dict(given)), tmp_path / folder)] for folder in ("a", "b")
    ]
    assert hashes[0] == hashes[1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mean": np.zeros(5)}, "mean has shape"),
        ({"log_var": np.zeros((5, 2))}, "log_var"),
        ({"scan": ["a", "b", "c", "d"]}, "'scan': 4"),
        ({"subject": ["a"] * 6}, "'subject': 6"),
        ({"part": ["test"] * 4}, "'part': 4"),
        ({"subject_in_training": ["False"] * 5}, "'False' would count as True"),
        ({"subject_in_training": [1, 0, 0, 1, 0]}, "True or False"),
        ({"mean": np.full((5, 3), np.nan)}, "scan 007 hold non-finite values in 'mean'"),
        ({"log_var": np.full((5, 3), np.inf)}, "'log_var'"),
        ({"scan": ["a", "b", "c", "d", "b"]}, "Scan b stands twice"),
        ({"subject_in_training": [True, False, True, True, False]}, "subject b differ in their mark"),
        ({"part": ["train", "test", "train", "validation", "test"]}, "subject b differ in their part"),
        ({"part": ["train", "test", "test", "dev", "test"]}, "'dev'"),
    ],
)
def test_what_breaks_the_schema_is_refused(rng, change, words):
    with pytest.raises(LatentsError, match=words):
        build(arguments(rng) | change)


@pytest.mark.parametrize("name", ["mean", "log_var", "scan", "subject", "subject_in_training", "part"])
def test_latents_that_lack_something_are_refused(latents, name):
    with pytest.raises(LatentsError, match=f"lack .*{name}"):
        check_latents(latents.drop_vars(name))


def test_latents_that_lie_on_their_side_are_refused(latents):
    with pytest.raises(LatentsError, match="dimensions"):
        check_latents(latents.transpose("latent", "scan"))
    with pytest.raises(LatentsError, match="not bool"):
        check_latents(latents.assign_coords(subject_in_training=("scan", ["True"] * 5)))


def test_a_folder_without_whole_latents_of_this_version_is_refused(tmp_path, latents):
    with pytest.raises(LatentsError, match="does not exist"):
        read_latents(tmp_path)
    latents.assign_attrs(format_version=99).to_netcdf(tmp_path / "latents.nc", engine="h5netcdf")
    with pytest.raises(LatentsError, match="format 99"):
        read_latents(tmp_path)
    (tmp_path / "latents.nc").write_bytes((tmp_path / "latents.nc").read_bytes()[:50])
    with pytest.raises(LatentsError, match="cannot be read"):
        read_latents(tmp_path)
    with pytest.raises(LatentsError, match="lack"):
        write_latents(latents.drop_vars("part"), tmp_path)


def test_the_reach_of_a_latent_is_kept_and_never_negative(tmp_path, rng):
    made = build(arguments(rng) | {"image_scale": [0.5, 0.0, 2.0]})
    write_latents(made, tmp_path)
    assert read_latents(tmp_path)["image_scale"].values.tolist() == [0.5, 0.0, 2.0]
    with pytest.raises(LatentsError, match="image_scale"):
        build(arguments(rng) | {"image_scale": [0.5, -1.0, 2.0]})
