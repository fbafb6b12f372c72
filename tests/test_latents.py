import numpy as np
import pandas as pd
import pytest
import xarray as xr
from sklearn.decomposition import PCA

from nilatent.errors import LatentsError
from nilatent.latents import check_latents, compact, is_grid, make_latents, read_latents, write_latents
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
        ({"latent_shape": (2, 2)}, r"shape \[2, 2\] do not have 3 values"),
        ({"latent_shape": (1, 1, 1, 4)}, "do not have 3 values"),
        ({"latent_shape": (1, 3)}, "Give .*channel, x, y, z"),
        ({"notes": {"hint": "words"}}, "no note 'hint'"),
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


def grid(rng, parts="tttttvvhh", **changes):
    """Latents of nine scans on a grid of two channels."""
    n, part = len(parts), {"t": "train", "v": "validation", "h": "test"}
    names = [f"s{index}" for index in range(n)]
    given = {
        "mean": rng.normal(size=(n, 16)) * np.arange(1, 17) + 5,
        "log_var": rng.normal(size=(n, 16)),
        "scan": names,
        "subject": names,
        "subject_in_training": [key != "h" for key in parts],
        "part": [part[key] for key in parts],
        "model_hash": "m",
        "volumes_hash": "v",
        "latent_shape": (2, 2, 2, 2),
        "notes": {"seen": "7 of 9", "caveat": "", "supervised": "score"},
    }
    return build(given | changes)


def test_a_grid_survives_the_disk_and_leaves_no_spreadsheet(tmp_path, rng, latents):
    made = grid(rng)
    write_latents(latents, tmp_path)
    assert [path.name for path in write_latents(made, tmp_path)] == ["latents.nc"]
    assert not (tmp_path / "latents.tsv").exists()
    again = read_latents(tmp_path)
    xr.testing.assert_identical(again, made)
    assert again.attrs["latent_shape"] == [2, 2, 2, 2]
    assert is_grid(again)
    assert not is_grid(latents)
    assert again.attrs["seen"] == "7 of 9"
    assert "caveat" not in again.attrs
    assert again["latent"].values[[0, 1, 2, 4, 8]].tolist() == [
        "c0_x00_y00_z00",
        "c0_x00_y00_z01",
        "c0_x00_y01_z00",
        "c0_x01_y00_z00",
        "c1_x00_y00_z00",
    ]


@pytest.mark.parametrize(("n_values", "files"), [(512, 2), (513, 1)])
def test_a_long_vector_leaves_no_spreadsheet(tmp_path, rng, n_values, files):
    wide = {"mean": rng.normal(size=(5, n_values)), "log_var": np.zeros((5, n_values))}
    assert len(write_latents(build(arguments(rng) | wide), tmp_path)) == files


def test_latents_of_version_1_are_read(tmp_path, latents):
    older = latents.copy()
    older.attrs = {"model_hash": "m", "volumes_hash": "v", "format_version": 1}
    older.to_netcdf(tmp_path / "latents.nc", engine="h5netcdf")
    xr.testing.assert_identical(read_latents(tmp_path), latents)


def test_components_are_those_of_the_training_scans(rng):
    made = grid(rng)
    z, train = made["mean"].values.astype(float), made["part"].values == "train"
    reference = PCA(n_components=3).fit(z[train])
    found = compact(made, n_components=3, seed=0)
    scores = reference.transform(z)
    signs = np.sign((scores * found["mean"].values).sum(axis=0))
    np.testing.assert_allclose(found["mean"].values, scores * signs, rtol=1e-4, atol=1e-4)
    variance = np.exp(made["log_var"].values) @ np.square(reference.components_).T
    np.testing.assert_allclose(np.exp(found["log_var"].values), variance, rtol=1e-4)
    share = 100 * reference.explained_variance_ratio_.sum()
    assert found.attrs["compact"] == (
        f"PCA of the latent grid (2 x 2 x 2 x 2): 3 of 16 dimensions, {share:.1f} % of the variance of 5 training scans"
    )
    assert (found.attrs["seen"], found.attrs["supervised"], found.attrs["latent_shape"]) == ("7 of 9", "score", [3])
    for name in ("scan", "subject", "part", "subject_in_training"):
        np.testing.assert_array_equal(found[name], made[name])


def test_other_scans_have_no_say_in_the_components(rng):
    made = grid(rng)
    other = made.copy(deep=True)
    other["mean"][5:] = rng.normal(size=(4, 16))
    one, two = (compact(latents, n_components=3, seed=0) for latents in (made, other))
    np.testing.assert_array_equal(one["mean"][:5], two["mean"][:5])
    assert one.attrs == two.attrs
    alone = compact(made.isel(scan=[0, 1, 2, 3, 4, 8]), n_components=3, seed=0)
    np.testing.assert_allclose(alone["mean"][5], one["mean"][8], rtol=1e-5)


def test_whole_components_keep_distances_and_survive_the_disk(tmp_path, rng):
    made = grid(rng, parts="t" * 20)
    found = compact(made, n_components=16, seed=0)
    for latents in (made, found):
        z = latents["mean"].values.astype(float)
        latents.attrs["distance"] = np.linalg.norm(z[3] - z[11])
    assert found.attrs.pop("distance") == pytest.approx(made.attrs.pop("distance"), rel=1e-5)
    centred = made["mean"].values - made["mean"].values.mean(axis=0)
    weights = np.linalg.lstsq(centred, found["mean"].values, rcond=None)[0]
    np.testing.assert_array_equal(weights.max(axis=0), np.abs(weights).max(axis=0))
    write_latents(found, tmp_path)
    xr.testing.assert_identical(read_latents(tmp_path), found)


def test_signs_do_not_depend_on_the_order_of_the_scans(rng):
    made = grid(rng)
    one, two = (
        compact(latents, n_components=3, seed=0) for latents in (made, made.isel(scan=[8, 3, 2, 6, 1, 4, 0, 7, 5]))
    )
    np.testing.assert_allclose(two.sel(scan=one["scan"])["mean"], one["mean"], rtol=1e-4, atol=1e-5)


def test_fewer_dimensions_than_asked_for_are_said(rng):
    made = grid(rng)
    made["mean"][:5] = rng.normal(size=(5, 1)).astype(np.float32) * np.ones((1, 16), np.float32)
    found = compact(made, n_components=3, seed=0)
    assert found.sizes["latent"] == 1
    assert "3 were asked for, and these scans span no more" in found.attrs["compact"]


@pytest.mark.parametrize(("n_components", "words"), [(5, "at most 4 components, 5 were asked"), (0, "0 were asked")])
def test_components_that_cannot_be_are_refused(rng, n_components, words):
    with pytest.raises(LatentsError, match=words):
        compact(grid(rng), n_components=n_components, seed=0)


def test_components_of_latents_that_say_nothing_are_refused(rng):
    made = grid(rng)
    made["mean"][:] = np.float32(0.1)
    with pytest.raises(LatentsError, match="are the same"):
        compact(made, n_components=2, seed=0)


def test_of_very_many_scans_the_seed_draws(rng, monkeypatch):
    monkeypatch.setattr("nilatent.latents.MAX_SCANS", 6)
    made = grid(rng, parts="t" * 12)
    one, same, two = (compact(made, n_components=2, seed=seed)["mean"].values for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert not np.allclose(one, two)
