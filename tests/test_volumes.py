import signal
import subprocess
import sys

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from sklearn.decomposition import PCA

from nilatent import volumes as module
from nilatent.cohort import Cohort
from nilatent.errors import GridError, SettingError
from nilatent.volumes import (
    Grid,
    average_to_grid,
    gm_mask,
    open_volumes,
    pack,
    template,
    volumes_in_memory,
    voxel_pca,
)

ODD = Grid((15, 17, 13), np.array([[5.0, 0, 0, -35], [0, 5, 0, -57], [0, 0, 5, -25], [0, 0, 0, 1]]))


def scans_of(n):
    ids = pd.Index([f"00{row}" for row in range(n)], name="scan_id")
    return pd.DataFrame({"subject_id": [f"0{row}" for row in range(n)], "dataset": "made"}, index=ids)


def cohort_on_disk(folder, arrays, grid=ODD, dtype=np.float32):
    folder.mkdir(parents=True, exist_ok=True)
    scans = scans_of(len(arrays))
    paths = [folder / f"{scan}.nii.gz" for scan in scans.index]
    for path, array in zip(paths, arrays, strict=True):
        nib.save(grid.to_image(array, dtype=dtype), path)
    return Cohort(scans.assign(path=[str(path) for path in paths], session_id="", sha256="", source_id=""))


@pytest.fixture
def maps(rng):
    return rng.random((4, *ODD.shape)).astype(np.float32)


@pytest.fixture
def mask(rng):
    return rng.random(ODD.shape) < 0.3


def in_memory(array, mask):
    return volumes_in_memory(array, mask=mask, grid=ODD, scans=scans_of(len(array)))


# Grid


@pytest.mark.parametrize("spacing", [1, 1.5, 2, 3, 4, 6])
def test_the_mni_grid_holds_the_whole_template_brain(spacing):
    grid = Grid.mni(spacing)
    assert all(side % 8 == 0 for side in grid.shape)
    assert grid.spacing_mm == spacing
    brain = template("mask")
    corners = np.argwhere(brain.get_fdata() > 0)
    outer = np.array([corners.min(axis=0) - 0.5, corners.max(axis=0) + 0.5])
    voxels = nib.affines.apply_affine(np.linalg.inv(grid.affine) @ brain.affine, outer)
    assert (voxels[0] >= -0.5).all()
    assert (voxels[1] <= np.array(grid.shape) - 0.5).all()
    centre = nib.affines.apply_affine(grid.affine, (np.array(grid.shape) - 1) / 2)
    np.testing.assert_allclose(centre, [0, -17, 5], atol=1e-9)


def test_the_usual_grids_have_the_documented_sides():
    assert [Grid.mni(spacing).shape for spacing in (1, 2, 3, 4)] == [
        (160, 192, 160),
        (80, 96, 80),
        (56, 64, 56),
        (40, 48, 40),
    ]
    assert Grid.mni(4).voxel_ml == pytest.approx(0.064)


@pytest.mark.parametrize("spacing", [0.5, 7, float("nan")])
def test_a_spacing_out_of_range_is_refused(spacing):
    with pytest.raises(SettingError, match="spacing_mm"):
        Grid.mni(spacing)


@pytest.mark.parametrize(
    "affine", [np.diag([-2.0, 2, 2, 1]), np.diag([2.0, 2, 3, 1]), np.eye(4)[[1, 0, 2, 3]], np.eye(3)]
)
def test_a_grid_that_is_flipped_anisotropic_or_turned_is_refused(affine):
    with pytest.raises(GridError):
        Grid((3, 3, 3), affine)


def test_a_grid_survives_json_and_refuses_another_shape():
    again = Grid.from_dict(ODD.to_dict())
    assert again.shape == ODD.shape
    np.testing.assert_array_equal(again.affine, ODD.affine)
    with pytest.raises(GridError, match="shape"):
        ODD.to_image(np.zeros((17, 15, 13)))


def test_an_image_of_a_grid_is_in_mni_space_and_keeps_its_affine(tmp_path, maps):
    nib.save(ODD.to_image(maps[0]), tmp_path / "x.nii.gz")
    image = nib.load(tmp_path / "x.nii.gz")
    np.testing.assert_allclose(image.affine, ODD.affine)
    assert image.header["sform_code"] == image.header["qform_code"] == 4
    assert image.header.get_xyzt_units()[0] == "mm"
    np.testing.assert_array_equal(image.get_fdata(dtype=np.float32), maps[0])


@pytest.mark.parametrize(("side", "move"), [(16, 0.0), (15, 0.1), (15, -40.0)])
def test_another_grid_is_refused_with_rule_value_place_and_next_step(side, move):
    affine = ODD.affine.copy()
    affine[0, 3] += move
    with pytest.raises(GridError) as caught:
        ODD.check_same((side, 17, 13), affine, place="Scan sub-01")
    for words in ("Scan sub-01", f"{side}x17x13", "expected 15x17x13 at 5 mm", "Run `nilatent prepare`"):
        assert words in str(caught.value)
    ODD.check_same(ODD.shape, ODD.affine + 1e-5, place="x")


# Averaging and the template


def test_average_to_grid_is_the_mean_of_the_voxels_below(rng):
    fine = Grid((30, 34, 26), np.array([[2.5, 0, 0, -36.25], [0, 2.5, 0, -58.25], [0, 0, 2.5, -26.25], [0, 0, 0, 1.0]]))
    array = rng.random(fine.shape)
    naive = np.zeros(ODD.shape)
    for x, y, z in np.ndindex(ODD.shape):
        naive[x, y, z] = array[2 * x : 2 * x + 2, 2 * y : 2 * y + 2, 2 * z : 2 * z + 2].mean()
    np.testing.assert_allclose(average_to_grid(array, fine.affine, ODD), naive, rtol=1e-5)
    flipped = fine.affine @ np.array([[-1, 0, 0, 29], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    np.testing.assert_allclose(average_to_grid(array[::-1], flipped, ODD), naive, rtol=1e-5)


def test_average_to_grid_keeps_the_integral_up_to_the_edge(rng):
    fine = Grid((9, 11, 7), np.array([[2.0, 0, 0, -9.3], [0, 2, 0, -8.1], [0, 0, 2, -7.2], [0, 0, 0, 1]]))
    array = rng.random(fine.shape)
    assert average_to_grid(array, fine.affine, ODD).sum() * ODD.voxel_ml == pytest.approx(
        array.sum() * fine.voxel_ml, rel=0.02
    )


def test_the_template_keeps_its_volume_at_4_mm():
    full, coarse = template("gm"), template("gm", Grid.mni(4)).get_fdata(dtype=np.float32)
    assert coarse.min() >= 0
    assert coarse.max() <= 1 + 1e-6
    assert coarse.sum() * 64 == pytest.approx(full.get_fdata(dtype=np.float32).sum(), rel=2e-4)


def test_tissues_of_the_template_add_up_to_the_mask():
    parts = [template(name).get_fdata(dtype=np.float32) for name in ("gm", "wm", "csf")]
    assert all(part.min() >= 0 and part.max() <= 1 for part in (*parts, template("t1").get_fdata(dtype=np.float32)))
    mask = template("mask").get_fdata(dtype=np.float32) > 0
    total = sum(parts)
    assert np.median(total[mask]) == pytest.approx(1, abs=0.01)
    assert 1700 < mask.sum() / 1000 < 2000
    with pytest.raises(SettingError, match="t1, gm"):
        template("t2")


def test_a_change_of_a_template_image_does_not_reach_the_next_caller():
    template("gm").get_fdata(dtype=np.float32)[:] = 7
    np.asarray(template("gm").dataobj)[:] = 7
    assert template("gm").get_fdata(dtype=np.float32).max() <= 1


def test_the_mask_is_nearly_symmetric_and_leaves_out_deep_white_matter():
    grid = Grid.mni(4)
    mask = gm_mask(grid)
    assert (mask & mask[::-1]).sum() / mask.sum() > 0.95
    assert 25_000 < mask.sum() < 33_000

    def at(x, y, z):
        i, j, k = np.round(nib.affines.apply_affine(np.linalg.inv(grid.affine), [x, y, z])).astype(int)
        return bool(mask[i, j, k])

    assert at(-26, -21, -10)  # hippocampus
    assert at(26, -21, -10)
    assert not at(0, -100, 70)  # outside the head
    assert not at(24, -30, 30)  # corona radiata


# The cache


def test_pack_and_open_give_the_maps_back_to_half_precision(tmp_path, maps):
    packed = pack(cohort_on_disk(tmp_path / "maps", maps), ODD, tmp_path / "cache")
    again = open_volumes(tmp_path / "cache")
    np.testing.assert_allclose(np.asarray(again.data, dtype=np.float32), maps, rtol=2**-11)
    assert list(again.scans.index) == ["000", "001", "002", "003"]
    assert list(again.scans["subject_id"]) == ["00", "01", "02", "03"]
    np.testing.assert_array_equal(again.mask, gm_mask(ODD))
    assert packed.content_hash == again.content_hash
    assert isinstance(again.data, np.memmap)


def test_the_content_hash_sees_values_and_rows(tmp_path, maps):
    def digest(arrays, **change):
        cohort = cohort_on_disk(tmp_path / "maps", arrays)
        return pack(Cohort(cohort.scans.assign(**change)), ODD, tmp_path / "cache").content_hash

    hashes = [digest(maps), digest(maps[::-1]), digest(maps, subject_id="x"), digest(maps, dataset="y")]
    assert len(set(hashes)) == 4
    assert digest(maps) == hashes[0]


def test_masked_values_are_those_of_the_rows_asked_for(maps, mask):
    volumes = in_memory(maps, mask)
    rows = volumes.rows(["003", "000"])
    naive = [[maps[row][voxel] for voxel in zip(*np.nonzero(mask), strict=True)] for row in (3, 0)]
    np.testing.assert_allclose(volumes.masked(rows), naive, rtol=2**-10)
    assert volumes.masked([]).shape == (0, mask.sum())
    with pytest.raises(GridError, match="007"):
        volumes.rows(["007"])


@pytest.mark.parametrize("rows", [[-1], [4], [True, False], [0.0]])
def test_rows_that_would_quietly_mean_other_scans_are_refused(maps, mask, rows):
    with pytest.raises(GridError, match="0 to 3"):
        in_memory(maps, mask).masked(np.array(rows))


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e5, -1e5])
def test_values_beyond_half_precision_are_refused(tmp_path, maps, mask, value):
    maps[2, 3, 4, 5] = value
    with pytest.raises(GridError, match=r"Scan 002 .*float16"):
        pack(cohort_on_disk(tmp_path, maps), ODD, tmp_path / "cache")
    with pytest.raises(GridError, match="Scan 002"):
        in_memory(maps, mask)


def test_a_map_that_half_precision_would_round_away_is_refused(tmp_path, maps, mask):
    with pytest.raises(GridError, match="float16"):
        in_memory(maps * 1e-6, mask)


def test_a_map_on_another_grid_or_damaged_is_refused_by_name(tmp_path, maps):
    cohort = cohort_on_disk(tmp_path, maps)
    moved = ODD.affine.copy()
    moved[2, 3] += 5
    nib.save(Grid(ODD.shape, moved).to_image(maps[0]), cohort.scans["path"].iloc[1])
    with pytest.raises(GridError, match=r"Scan 001 .*15x17x13 grid with origin"):
        pack(cohort, ODD, tmp_path / "cache")
    nib.save(nib.Nifti1Image(maps[..., 0], ODD.affine), cohort.scans["path"].iloc[1])
    with pytest.raises(GridError, match="4x15x17 grid"):
        pack(cohort, ODD, tmp_path / "cache")
    nib.save(ODD.to_image(maps[0]), cohort.scans["path"].iloc[1])
    with open(cohort.scans["path"].iloc[1], "r+b") as file:  # noqa: PTH123
        file.truncate(2000)
    with pytest.raises(GridError, match=r"Scan 001 .*cannot be read"):
        pack(cohort, ODD, tmp_path / "cache")
    assert not (tmp_path / "cache" / "volumes.npy").exists()


def test_an_empty_cohort_is_not_packed(tmp_path, maps):
    cohort = cohort_on_disk(tmp_path, maps)
    with pytest.raises(GridError, match="no scan"):
        pack(Cohort(cohort.scans.iloc[:0]), ODD, tmp_path / "cache")


@pytest.mark.parametrize("name", ["volumes.npy", "mask.nii.gz", "grid.json", "scans.tsv"])
def test_a_cache_that_lacks_a_file_is_refused(tmp_path, maps, name):
    pack(cohort_on_disk(tmp_path, maps), ODD, tmp_path / "cache")
    (tmp_path / "cache" / name).unlink()
    with pytest.raises(GridError, match=f"lacks {name}"):
        open_volumes(tmp_path / "cache")


def test_a_cache_whose_parts_are_of_two_cohorts_is_refused(tmp_path, maps):
    pack(cohort_on_disk(tmp_path / "a", maps), ODD, tmp_path / "one")
    reverse = cohort_on_disk(tmp_path / "a", maps).scans.iloc[::-1]
    pack(Cohort(reverse), ODD, tmp_path / "two")
    (tmp_path / "two" / "scans.tsv").replace(tmp_path / "one" / "scans.tsv")
    with pytest.raises(GridError, match=r"scans\.tsv is not the one"):
        open_volumes(tmp_path / "one")
    with (tmp_path / "two" / "volumes.npy").open("r+b") as file:
        file.truncate(300)
    (tmp_path / "one" / "scans.tsv").replace(tmp_path / "two" / "scans.tsv")
    with pytest.raises(GridError, match=r"volumes\.npy is not whole"):
        open_volumes(tmp_path / "two")


@pytest.mark.parametrize("stop", ["_read_map", "gm_mask", "_rows", "hash_file"])
def test_packing_again_and_breaking_off_leaves_no_cache_of_two_cohorts(tmp_path, maps, monkeypatch, stop):
    cohort = cohort_on_disk(tmp_path / "a", maps)
    pack(cohort, ODD, tmp_path / "cache")

    def broken(*_args, **_more):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, stop, broken)
        with pytest.raises(KeyboardInterrupt):
            pack(Cohort(cohort.scans.iloc[::-1]), ODD, tmp_path / "cache")
    with pytest.raises(GridError, match="lacks"):
        open_volumes(tmp_path / "cache")
    assert list(pack(cohort, ODD, tmp_path / "cache").scans.index) == list(cohort.scans.index)


KILLED = """
import sys, time, pathlib, numpy as np, pandas as pd
from nilatent import volumes
from nilatent.cohort import Cohort
def slow(*args, **more):
    print("packing", flush=True)
    time.sleep(60)
volumes._read_map = slow
scans = pd.DataFrame({"subject_id": ["a"], "dataset": ["d"], "path": ["x"]}, index=pd.Index(["a"], name="scan_id"))
volumes.pack(Cohort(scans), volumes.Grid.mni(6), pathlib.Path(sys.argv[1]))
"""


def test_a_kill_while_packing_leaves_no_volumes(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path / "c")], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "packing\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not (tmp_path / "c" / "volumes.npy").exists()
    with pytest.raises(GridError, match=r"lacks volumes\.npy"):
        open_volumes(tmp_path / "c")


def test_parts_that_do_not_fit_together_are_refused(maps, mask):
    with pytest.raises(ValueError, match="zip"):
        volumes_in_memory(maps, mask=mask, grid=ODD, scans=scans_of(3))
    with pytest.raises(GridError, match="do not fit together"):
        volumes_in_memory(maps, mask=mask[1:], grid=ODD, scans=scans_of(4))
    with pytest.raises(GridError, match="000 stands twice"):
        volumes_in_memory(maps, mask=mask, grid=ODD, scans=scans_of(4).iloc[[0, 0, 1, 2]])


def test_volumes_in_memory_hash_values_mask_and_rows(maps, mask):
    hashes = {in_memory(maps, mask).content_hash, in_memory(maps[::-1], mask).content_hash}
    hashes |= {in_memory(maps, ~mask).content_hash}
    hashes |= {volumes_in_memory(maps, mask=mask, grid=ODD, scans=scans_of(4).assign(subject_id="x")).content_hash}
    assert len(hashes) == 4
    assert in_memory(maps.copy(), mask.astype(np.uint8)).content_hash in hashes


# Voxel PCA


@pytest.fixture
def many(rng, mask):
    scores = rng.normal(size=(20, 6)) * [8, 4, 2, 1, 0.5, 0.02]
    array = 5 + np.tensordot(scores, rng.normal(size=(6, *ODD.shape)), axes=1)
    return in_memory(array + 0.01 * rng.normal(size=array.shape), mask)


def test_voxel_pca_is_the_pca_of_scikit_learn(many):
    rows = np.arange(20)
    x = many.masked(rows).astype(np.float64)
    ours, theirs = voxel_pca(many, rows, 6, seed=0), PCA(6, svd_solver="full").fit(x)
    signs = np.sign((ours.components * theirs.components_).sum(axis=1))
    np.testing.assert_allclose(ours.components, signs[:, None] * theirs.components_, atol=2e-4)
    np.testing.assert_allclose(ours.mean, theirs.mean_, rtol=1e-5)
    np.testing.assert_allclose(ours.sd, np.sqrt(theirs.explained_variance_), rtol=1e-5)
    np.testing.assert_allclose(ours.components @ ours.components.T, np.eye(6), atol=1e-5)
    left = x - theirs.inverse_transform(theirs.transform(x))
    assert ours.residual_variance == pytest.approx((left**2).sum() / 19 / x.shape[1], rel=1e-3)
    np.testing.assert_allclose(ours.reconstruct(x.astype(np.float32)), x - left, atol=2e-4)
    np.testing.assert_allclose(ours.scores(x.astype(np.float32)), theirs.transform(x) * signs, atol=5e-3)
    assert (ours.components[np.arange(6), np.abs(ours.components).argmax(axis=1)] > 0).all()


def test_voxel_pca_touches_the_rows_given_only_and_ignores_their_order(many, rng):
    rows = np.array([1, 3, 5, 7, 9, 11])
    fitted = voxel_pca(many, rows, 3, seed=0)
    array = np.array(many.data, dtype=np.float32)
    array[0::2] = rng.random(array[0::2].shape)
    other = voxel_pca(in_memory(array, many.mask), rng.permutation(rows), 3, seed=5)
    np.testing.assert_array_equal(fitted.components, other.components)
    np.testing.assert_array_equal(fitted.mean, other.mean)


def test_voxel_pca_draws_at_most_max_scans_by_seed(many):
    rows = np.arange(20)
    drawn = [voxel_pca(many, rows, 2, seed=seed, max_scans=6).mean for seed in (0, 0, 1)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert np.abs(drawn[0] - drawn[2]).max() > 1e-3
    chosen = np.sort(np.random.default_rng(0).choice(rows, 6, replace=False))
    np.testing.assert_allclose(drawn[0], many.masked(chosen).mean(axis=0), rtol=1e-5)
    with pytest.raises(SettingError, match="at most 5 components, 6"):
        voxel_pca(many, rows, 6, seed=0, max_scans=6)


def test_voxel_pca_does_not_depend_on_the_block_of_voxels(many, monkeypatch):
    whole = voxel_pca(many, np.arange(20), 4, seed=0)
    monkeypatch.setattr(module, "PCA_BLOCK_BYTES", 8 * 20 * 100)
    np.testing.assert_allclose(voxel_pca(many, np.arange(20), 4, seed=0).components, whole.components, atol=1e-6)


@pytest.mark.parametrize("n_components", [0, 20, 25])
def test_more_components_than_scans_can_give_are_refused(many, n_components):
    with pytest.raises(SettingError, match="at most 19 components"):
        voxel_pca(many, np.arange(20), n_components, seed=0)


def test_copies_of_scans_do_not_count_as_dimensions(many):
    rows = np.repeat(np.arange(4), 3)
    assert voxel_pca(many, rows, 3, seed=0).components.shape[0] == 3
    with pytest.raises(SettingError, match="copies"):
        voxel_pca(many, rows, 4, seed=0)
    with pytest.raises(SettingError, match="copies"):
        voxel_pca(many, np.zeros(5, dtype=int), 1, seed=0)
