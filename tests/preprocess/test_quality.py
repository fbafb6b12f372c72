import numpy as np
import pandas as pd
import pytest

from nilatent.cohort import Cohort
from nilatent.finding import read_finding, write_finding
from nilatent.plots.quality import WORST_FIRST
from nilatent.preprocess import quality
from nilatent.volumes import Grid, template_array


def test_correlation_is_pearson_inside_the_mask(rng):
    a, b = rng.random((2, 15, 17, 13)).astype(np.float32)
    inside = rng.random((15, 17, 13)) > 0.5
    assert quality.correlation(a, b, inside) == pytest.approx(np.corrcoef(a[inside], b[inside])[0, 1], abs=1e-5)
    assert quality.correlation(a, np.ones_like(b), inside) == 0


def test_dice_by_counting():
    one, two = np.zeros((2, 15, 17, 13), dtype=bool)
    one[:4], two[2:8] = True, True
    assert quality.dice(one, two) == pytest.approx(2 * 2 / (4 + 6))
    assert quality.dice(one & False, two & False) == 1


def test_outside_fraction_by_counting(rng):
    inside = np.zeros((15, 17, 13), dtype=bool)
    inside[:5] = True
    values = np.ones(inside.shape, dtype=np.float32)
    assert quality.outside_fraction(values, inside) == pytest.approx(10 / 15)


def test_tissue_contrast_recovers_the_planted_means(rng):
    gm = (rng.random((15, 17, 13)) > 0.5).astype(np.float32)
    brain = (60 * gm + 80 * (1 - gm)).astype(np.float32)
    contrast, white = quality.tissue_contrast(brain, gm, 1 - gm)
    assert (contrast, white) == pytest.approx((0.25, 80))


def test_robust_z_is_standard_on_normal_values_and_unmoved_by_outliers(rng):
    values = rng.normal(5, 2, 4001)
    z = quality.robust_z(np.append(values, [1e6] * 20))[:4001]
    np.testing.assert_allclose(z, (values - 5) / 2, atol=0.25)


def cohort(rng, n=20):
    table = pd.DataFrame({"gm_ml": rng.normal(700, 30, n), "noise_to_contrast": rng.normal(0.02, 0.002, n)})
    table.index = [f"sub-{i:02d}" for i in range(n)]
    return table, pd.Series("one", index=table.index)


def test_outliers_are_named_on_the_bad_side_only(rng):
    table, groups = cohort(rng)
    table.loc["sub-03", "gm_ml"] = 100
    table.loc["sub-04", "noise_to_contrast"] = 0.5
    table.loc["sub-05", "noise_to_contrast"] = -0.5
    flags = quality.outlier_flags(table, groups)
    assert flags["sub-03"] == "gm_ml"
    assert flags["sub-04"] == "noise_to_contrast"
    assert "noise_to_contrast" not in flags["sub-05"]


def test_badness_is_the_robust_z_towards_the_bad_side(rng):
    values = rng.normal(size=20)
    table = pd.DataFrame(dict.fromkeys(("mask_dice", "bias_range", "tiv_ml", "csf_ml"), values))
    found, z = quality.badness(table, pd.Series(["one"] * 20)), quality.robust_z(values)
    np.testing.assert_allclose(found["mask_dice"], -z)
    np.testing.assert_allclose(found["bias_range"], z)
    np.testing.assert_allclose(found["tiv_ml"], np.abs(z))
    assert found["csf_ml"].isna().all()


def test_a_data_set_is_judged_by_itself(rng):
    table, groups = cohort(rng, 40)
    groups.iloc[30:] = "two"
    table.loc[groups == "two", "gm_ml"] += 5000
    assert not quality.outlier_flags(table, groups).str.contains("gm_ml").any()
    table.loc[:, "gm_ml"] = table["gm_ml"].where(groups == "one", 700.0)
    groups.iloc[35:] = "few"
    assert (quality.outlier_flags(table, groups)[groups == "few"] == "").all()


def test_a_failed_registration_is_named_in_the_smallest_data_set_too():
    table = pd.DataFrame({"mask_dice": [0.95, 0.82, np.nan], "aligned_size": [1.05, 1.3, 0.7]}, index=list("abc"))
    flags = quality.outlier_flags(table, pd.Series("one", index=table.index))
    assert list(flags) == ["", "mask_dice, aligned_size", "aligned_size"]


def test_limits_and_the_bad_side_agree():
    for name, (low, high) in quality.LIMITS.items():
        side = quality.MEASURES[name][2]
        assert (side in ("low", "both")) == (low > 0)
        assert side == "low" or high < 10


def test_correlation_with_the_template_does_not_depend_on_the_spacing():
    found = {}
    for spacing in (2.0, 4.0):
        grey = template_array("gm", spacing)
        shifted = np.roll(grey, round(8 / spacing), axis=1)
        found[spacing] = quality.gm_measures(shifted, Grid.mni(spacing))
    for name in ("template_correlation", "outside_fraction"):
        assert found[2.0][name] == pytest.approx(found[4.0][name], abs=0.01)
    assert found[4.0]["template_correlation"] < 0.7


def test_grey_matter_is_outside_only_where_the_template_has_no_brain_at_all():
    mask, grid = template_array("mask", 4.0), Grid.mni(4.0)
    edge, beyond = ((mask > 0) & (mask < 0.5)).astype(np.float32), (mask == 0).astype(np.float32)
    assert edge.sum() > 100
    assert quality.gm_measures(edge, grid)["outside_fraction"] == pytest.approx(0, abs=1e-6)
    expected = 3 * beyond.sum() / (edge.sum() + 3 * beyond.sum())
    assert quality.gm_measures(edge + 3 * beyond, grid)["outside_fraction"] == pytest.approx(expected)


def test_the_page_sorts_by_the_side_that_is_bad():
    assert set(WORST_FIRST) == {name for name, (_, _, side) in quality.MEASURES.items() if side == "high"}
    assert set(WORST_FIRST.values()) == {"high"}


VOXEL = np.array([1.0, 1.0, np.sqrt(2.0)])


def test_derived_measures_in_closed_form():
    given = {"tiv_ml": 1500.0, "gm_ml": 600.0, "wm_ml": 450.0, "head_size_factor": 0.75}
    given |= {"noise_ratio": 0.02, "tissue_contrast": 0.25}
    found = quality.derived(given, VOXEL)
    assert (found["gm_fraction"], found["wm_fraction"]) == pytest.approx((0.4, 0.3))
    assert found["aligned_size"] == pytest.approx(2000 / quality.template_ml())
    assert found["noise_to_contrast"] == pytest.approx(0.08)
    assert found["resolution_mm"] == pytest.approx(np.sqrt(4 / 3), abs=0.005)


@pytest.mark.parametrize(
    ("ratio", "side", "points"),
    [(0.0466, 0.5, 95.0), (0.3949, 3.0, 45.0), (0.3949, 0.5, 105 - 10 * (0.5 * (6**8 + 1)) ** (1 / 8))],
)
def test_image_quality_at_the_ends_of_its_scale(ratio, side, points):
    found = quality.derived({"noise_ratio": 0.25 * ratio, "tissue_contrast": 0.25}, np.full(3, side))
    assert found["image_quality"] == pytest.approx(points)


def test_nothing_is_derived_from_nothing():
    assert quality.derived({"gm_ml": 600.0}, VOXEL) == {}
    assert "image_quality" not in quality.derived({"noise_ratio": 0.02, "tissue_contrast": -0.1}, VOXEL)
    assert "noise_to_contrast" not in quality.derived({"noise_ratio": np.nan, "tissue_contrast": 0.3}, VOXEL)


def prepared(rng, folder, n=12):
    """A cohort of two data sets: ten scans, of which the third is noisy, and two; one more was dropped."""
    ids = [f"sub-{i:02d}" for i in range(n)]
    scans = pd.DataFrame({"subject_id": ids, "dataset": ["one"] * (n - 2) + ["two"] * 2, "recipe": "t1"}, index=ids)
    scans["path"] = [str(folder / name / "anat" / f"{name}_space-MNI_probseg.nii.gz") for name in ids]
    scans["mask_dice"] = np.linspace(0.94, 0.96, n)
    scans["noise_to_contrast"] = 0.02 + 0.001 * rng.normal(size=n)
    scans.iloc[2, scans.columns.get_loc("noise_to_contrast")] = 0.3
    measures = ["mask_dice", "noise_to_contrast"]
    flags = quality.outlier_flags(scans[measures], scans["dataset"])
    scans["quality_flags"] = flags.mask(flags == "", np.nan)
    row = ("sub-99", "x.nii.gz", "prepare", "voxel size", "x.nii.gz: rule 'voxel size' is broken: 9 mm.")
    dropped = pd.DataFrame([row], columns=["scan_id", "path", "stage", "rule", "reason"])
    return Cohort(scans, dropped)


def test_the_finding_counts_names_and_places_every_scan(rng, tmp_path):
    found = quality.quality(prepared(rng, tmp_path), folder=tmp_path)
    assert found.answer == (
        "12 of 13 scans were prepared; dropped: 1 by the rule 'voxel size'. 1 of 12 should be looked at: sub-02."
    )
    table = found.table.set_index("scan_id")
    assert table["farthest_z"].idxmax() == "sub-02"
    assert table.loc["sub-10":, "farthest_z"].isna().all()
    position = found.data["position"].sel(measure="noise_to_contrast").to_series()
    assert position["sub-02"] == 1
    assert position.drop("sub-02").max() < 0.05
    counts = found.data["n_scans"].sum("bin")
    assert counts.sel(dataset="one").to_numpy().tolist() == [10, 10]
    assert counts.sel(dataset="two").to_numpy().tolist() == [2, 2]
    assert str(found.data["map"].sel(scan="sub-01").item()) == "sub-01/anat/sub-01_space-MNI_probseg.nii.gz"
    assert any("fewer than 8 scans" in caveat and caveat.endswith("two.") for caveat in found.caveats)


def test_a_finding_comes_back_from_disk(rng, tmp_path):
    found = quality.quality(prepared(rng, tmp_path), folder=tmp_path)
    write_finding(found, tmp_path / "quality")
    back = read_finding(tmp_path / "quality")
    pd.testing.assert_frame_equal(back.table.fillna({"flags": ""}), found.table, check_dtype=False)
    assert back.data["reason"].item() == "x.nii.gz: rule 'voxel size' is broken: 9 mm."
    np.testing.assert_allclose(back.data["position"], found.data["position"])


def test_a_cohort_of_which_nothing_is_left_is_said_to_be_so(rng, tmp_path):
    whole = prepared(rng, tmp_path)
    nothing = quality.quality(Cohort(whole.scans.iloc[:0], whole.excluded), folder=tmp_path)
    assert nothing.answer == "0 of 1 scans were prepared; dropped: 1 by the rule 'voxel size'."
    write_finding(nothing, tmp_path / "quality")
    assert read_finding(tmp_path / "quality").n_scans == 0


def test_a_difference_of_nothing_is_no_outlier(rng):
    table, groups = cohort(rng)
    table["gm_ml"] = 700 + rng.normal(0, 1e-3, len(table))
    table.loc["sub-03", "gm_ml"] = 700.5
    assert quality.outlier_flags(table, groups)["sub-03"] == ""
    table.loc["sub-03", "gm_ml"] = 710.5
    assert quality.outlier_flags(table, groups)["sub-03"] == "gm_ml"


def test_many_flags_are_a_caveat_about_the_data_set(rng, tmp_path):
    whole = prepared(rng, tmp_path)
    scans = whole.scans.assign(quality_flags="mask_dice")
    found = quality.quality(Cohort(scans), folder=tmp_path)
    assert "12 of 12 should be looked at" in found.answer
    assert found.answer.endswith("and 4 more.")
    assert any("More than a fifth" in caveat for caveat in found.caveats)
