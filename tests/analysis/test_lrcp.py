import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from nilatent.analysis import stats
from nilatent.analysis.lrcp import COLUMNS, LrcpConfig, lrcp
from nilatent.errors import CohortError, SettingError
from nilatent.finding import read_finding, write_finding

FAST = LrcpConfig(n_permutations=300, n_permutations_linked=100, adjust_global=False)


def run(study, config=FAST, **changes):
    parts = {name: getattr(study, name) for name in ("latents", "regions", "scans", "weights", "grid", "mask")}
    return lrcp(**(parts | changes), config=config)


def test_the_planted_region_is_first_and_the_only_one_called(study):
    planted = study(effect=2.5, n_latent=10, n=120)
    found = run(planted)
    row = found.table.iloc[0]
    assert row["name"] == "Region_4"
    assert (row["direction"], row["grade"], row["badge"], row["rank"]) == (
        "lower in AD",
        "strong",
        "bound-validated",
        1,
    )
    assert (found.table["grade"] != "none").sum() == 1
    assert tuple(found.table.columns[: len(COLUMNS)]) == COLUMNS
    assert "Region_4 (lower in AD" in found.answer
    area = roc_auc_score(planted.scans["group"] == "AD", -planted.regions["Region_4"])
    np.testing.assert_allclose(row["auc_region"], area)
    assert area > 0.8
    inside = found.maps["minus_log10_p"].get_fdata()[planted.mask]
    np.testing.assert_allclose(inside.max(), -np.log10(found.table["p"].min()), rtol=1e-6)


def test_a_region_that_its_own_grey_matter_does_not_bear_out_is_not_called(study, monkeypatch):
    planted = study(effect=2.5, n_latent=10, n=120)
    plain = run(planted).table.set_index("name")

    def lent(*arguments, called, **settings):
        return np.where(called, 0.2, np.nan)

    monkeypatch.setattr(sys.modules["nilatent.analysis.lrcp.profile"], "own_p", lent)
    found = run(planted)
    table = found.table.set_index("name")
    assert (plain.loc["Region_4", "grade"], table.loc["Region_4", "grade"]) == ("strong", "none")
    assert table.loc["Region_4", "p"] == plain.loc["Region_4", "p"] <= 0.05
    assert "; 1 would, and their own grey matter" in found.answer
    assert any("not called" in line and "Region_4" in line for line in found.caveats)


def test_q_is_of_the_reading_that_decides(study):
    planted, one_latent = study(effect=1.0, n_latent=3), replace(FAST, covariates=())
    of_blend, of_joint = (run(planted, replace(one_latent, reading=reading)).table for reading in ("blended", "joint"))
    of_blend, of_joint = (table.set_index("name").sort_index() for table in (of_blend, of_joint))
    assert (of_blend["p_single"] != of_joint["p_single"]).any()
    # By one region the blend cannot be surer than over all of them.
    assert (of_blend["p_single"] <= np.maximum(of_blend["p_joint"], of_blend["p_blend"])).all()
    assert (of_joint["p_single"] <= np.maximum(of_joint["p_joint"], of_joint["p_readout"])).all()


def test_flipping_permuting_and_scaling_latents_changes_nothing(study, rng):
    cohort = study(effect=1.5)
    order = rng.permutation(6)
    factors = np.array([-1, 3, 0.01, -100, 1, 2])
    changed = cohort.latents.isel(latent=order)
    changed["mean"] = changed["mean"] * factors
    for config in (FAST, replace(FAST, covariates=("age",), site="site"), replace(FAST, target="age")):
        pd.testing.assert_frame_equal(run(cohort, config, latents=changed).table, run(cohort, config).table, rtol=1e-4)


def test_rotating_latents_of_one_scale_changes_nothing_of_the_joint_reading(study, rng):
    cohort = study(effect=1.5, n_latent=4)
    z = cohort.latents["mean"].values.astype(float)
    z = np.linalg.svd(z - z.mean(axis=0), full_matrices=False)[0]
    found = []
    for turn in (np.eye(4), np.linalg.qr(rng.normal(size=(4, 4)))[0]):
        cohort.latents["mean"][:] = z @ turn
        found.append(run(cohort).table.set_index("name").sort_index())
    joint = ["p_joint", "p_a", "p_d", "p", "p_centred", "r2_latents", "grade", "p_own"]
    # Not to the last digit: in each training fold latents are brought to one scale, one by one, so that scales do not count.
    pd.testing.assert_frame_equal(found[0][joint], found[1][joint], atol=0.06)
    assert np.abs(found[0]["a"] - found[1]["a"]).max() > 0.06


def remix(cohort, seed=0):
    """Latents that know the regions as they are now, in an arbitrary basis."""
    x, rng = cohort.regions.to_numpy() - 0.5, np.random.default_rng(seed)
    cohort.latents["mean"][:] = x @ rng.normal(size=(12, cohort.latents.sizes["latent"])) * 10
    cohort.latents["mean"][:] += 0.1 * rng.normal(size=cohort.latents["mean"].shape)


@pytest.fixture
def three_groups(study):
    cohort = study(n=120, n_latent=12)
    cohort.scans["group"] = np.repeat(["AD", "MCI", "CN"], 40)
    cohort.regions.iloc[:40, 4] -= 0.06
    remix(cohort)
    return cohort


def test_three_groups_are_compared_with_the_control_group_and_p_counts_the_contrasts(three_groups):
    found = run(three_groups)
    assert found.settings["contrast"] == "AD:CN,MCI:CN"
    assert tuple(found.table.columns[: len(COLUMNS) + 1]) == (*COLUMNS, "contrast")
    assert found.table["rank"].tolist() == list(range(1, 25))
    assert found.table["score"].is_monotonic_decreasing
    called = found.table[found.table["grade"] != "none"]
    assert set(zip(called["contrast"], called["name"], strict=True)) == {("AD:CN", "Region_4")}
    for contrast in ("AD:CN", "MCI:CN"):
        alone = run(three_groups, replace(FAST, contrast=contrast)).table.set_index("name").sort_index()
        of_two = found.table[found.table["contrast"] == contrast].set_index("name").sort_index()
        for column in ("p_a", "p_d", "p", "p_centred", "p_region", "p_linked", "p_pair", "p_unadjusted"):
            np.testing.assert_allclose(of_two[column], np.minimum(1, 2 * alone[column]), err_msg=column)
        np.testing.assert_array_equal(of_two["bal_acc"], alone["bal_acc"])
    assert "AD (40) from CN (40)" in found.answer
    assert "MCI (40) from CN (40)" in found.answer
    assert any("for the 2 contrasts by their number" in line for line in found.caveats)
    np.testing.assert_allclose(found.table["q"], stats.fdr(found.table["p_single"].to_numpy()))


def test_several_contrasts_have_a_map_each_and_arrays_with_their_name(three_groups, tmp_path):
    found = run(three_groups)
    names = {f"{name}{part}" for name in ("a", "minus_log10_p", "score") for part in ("", "_AD-CN", "_MCI-CN")}
    assert set(found.maps) == names
    ad, mci, both = (found.maps[f"score{part}"].get_fdata() for part in ("_AD-CN", "_MCI-CN", ""))
    np.testing.assert_allclose(both, np.maximum(ad, mci))
    assert (ad > mci + 1e-3).any()
    assert found.data["a"].sel(contrast="MCI:CN", region="Region_4").shape == (12,)
    assert found.data["group"].sel(contrast="MCI:CN").values.tolist() == [""] * 40 + ["MCI"] * 40 + ["CN"] * 40
    write_finding(found, tmp_path)
    pd.testing.assert_frame_equal(read_finding(tmp_path).table, found.table, check_dtype=False)
    assert read_finding(tmp_path).data["contrast"].values.tolist() == ["AD:CN", "MCI:CN"]


def test_a_contrast_that_cannot_be_compared_is_said_and_the_others_go_on(three_groups):
    three_groups.scans["group"] = ["AD"] * 3 + ["MCI"] * 57 + ["CN"] * 60
    found = run(three_groups)
    assert "contrast" not in found.table
    assert (
        "Not compared: AD:CN, too few: 3 AD and 60 CN; at least 20 subjects are needed, 8 of each group."
        in found.caveats
    )
    assert "contrasts by their number" not in " ".join(found.caveats)
    none = run(three_groups, replace(FAST, contrast="AD:MCI,AD:CN"))
    assert none.not_run.startswith("AD:MCI, too few: 3 AD and 57 MCI")
    assert "; AD:CN, too few: 3 AD and 60 CN" in none.not_run


def test_a_number_is_asked_about_instead_of_the_groups(study, rng):
    cohort = study(n=120, n_latent=12)
    cohort.scans["mmse"] = 60 * cohort.regions["Region_4"] + 1.2 * rng.normal(size=120)
    found = run(cohort, replace(FAST, target="mmse"))
    row = found.table.iloc[0]
    assert (row["name"], row["direction"], row["grade"], row["badge"]) == (
        "Region_4", "higher with mmse", "strong", "not assessed",
    )  # fmt: skip
    assert found.table["bal_acc"].isna().all()
    assert tuple(found.table.columns[: len(COLUMNS)]) == COLUMNS
    assert row["r_target"] > 0.6
    assert 0.3 < row["r2_target"] < row["r_target"] ** 2 + 0.1
    assert "grey matter that follows mmse?" in found.question
    assert "mmse (120 subjects)" in found.answer
    cohort.scans["mmse"] *= -1
    assert run(cohort, replace(FAST, target="mmse")).table.iloc[0]["direction"] == "lower with mmse"
    assert run(cohort, replace(FAST, target="absent")).not_run == "no column 'absent'"
    # Age, drawn apart from everything, is followed by no region.
    assert (run(cohort, replace(FAST, target="age")).table["grade"] == "none").all()


def test_an_association_that_is_only_that_of_the_number_is_mediated_by_it(study, rng):
    cohort = study(n=200, n_latent=3)
    cohort.latents["mean"][:] = rng.normal(size=(200, 3)) + 3 * cohort.scans["age"].to_numpy()[:, None] / 5
    cohort.regions["Region_4"] = 0.5 + 0.03 * (rng.normal(size=200) - cohort.scans["age"] / 5)
    row = run(cohort, replace(FAST, target="age")).table.set_index("name").loc["Region_4"]
    assert row["grade"] == "target-mediated"
    assert row["p_a"] <= 0.05 < row["p_centred"]


def cross_fitted(cohort, rng, n_models=4):
    """Models that agree but for their arbitrary basis."""
    folds, n_latent = [], cohort.latents.sizes["latent"]
    for number in range(n_models):
        new = np.arange(len(cohort.scans)) % n_models == number
        turn = np.linalg.qr(rng.normal(size=(n_latent, n_latent)))[0]
        model = cohort.latents.copy(deep=True).assign_coords(subject_in_training=("scan", ~new))
        model["mean"] = model["mean"].dims, (model["mean"].values @ turn).astype(np.float32)
        folds.append(model)
    return folds


def test_cross_fitted_models_find_what_is_planted_and_never_meet(study, rng):
    cohort = study(effect=2.5, n_latent=10, n=120)
    folds = cross_fitted(cohort, rng)
    found = run(cohort, folds=folds)
    assert found.table["name"][found.table["grade"] != "none"].tolist() == ["Region_4"]
    assert found.settings["n_models"] == 4
    assert any("rest on 4 models" in line for line in found.caveats)
    again = run(cohort, folds=cross_fitted(cohort, np.random.default_rng(5)))
    region = found.table.set_index("name").loc["Region_4"]
    assert region["r2_latents"] > 0.5
    np.testing.assert_allclose(again.table["bal_acc"].max(), found.table["bal_acc"].max(), atol=0.05)
    fold = np.eye(4)[np.arange(120) % 4][:, 1:]
    values, readout = cohort.regions["Region_4"].to_numpy(), found.data["readout"].sel(region="Region_4").values
    assert region["a"] == pytest.approx(stats.partial_correlation(readout, values, fold)[0, 0])
    assert region["a"] > found.data["a"].sel(region="Region_4").max()
    assert run(cohort, replace(FAST, target="age"), folds=folds).not_run == ""


def test_scales_and_signs_of_cross_fitted_models_change_nothing(study, rng):
    cohort = study(effect=1.5, n=80)
    folds = cross_fitted(cohort, rng)
    changed = [fold.isel(latent=rng.permutation(6)) for fold in folds]
    for fold in changed:
        fold["mean"] = fold["mean"] * rng.choice([-7.0, 0.01, 3.0], size=6)
    pd.testing.assert_frame_equal(run(cohort, folds=changed).table, run(cohort, folds=folds).table, rtol=1e-4)


def test_folds_that_cannot_be_judged_are_not_run(study, rng):
    cohort = study()
    folds = cross_fitted(cohort, rng, n_models=2)
    cohort.scans["group"] = np.where(np.arange(60) % 2, "AD", "CN")
    assert "the cross-fitted models tell what is asked about without error" in run(cohort, folds=folds).not_run
    cohort.scans["group"] = np.where(np.arange(60) < 30, "AD", "CN")
    folds[1]["mean"][:] = 1.0
    assert "no latent of cross-fitted model 1 varies" in run(cohort, folds=folds).not_run


def test_called_regions_and_no_others_have_a_p_of_their_own_grey_matter(study):
    table = run(study(effect=2.5, n_latent=10, n=120)).table
    np.testing.assert_array_equal(table["p_own"].isna(), table["grade"] == "none")
    assert table["p_own"].min() <= 0.01


def test_bad_input_is_refused_or_named(study):
    cohort = study()
    cohort.scans["again"] = (cohort.scans["group"] == "AD").astype(int)
    assert "tell AD from CN without error" in run(cohort, replace(FAST, covariates=("again",))).not_run
    cohort.scans["twin"] = 2 * cohort.scans["age"] + 1
    one, two = (run(cohort, replace(FAST, covariates=names)).table for names in (("age",), ("age", "twin")))
    pd.testing.assert_frame_equal(one, two)
    with pytest.raises(SettingError, match="Column 'weight' is not in the cohort"):
        run(cohort, replace(FAST, covariates=("weight",)))
    with pytest.raises(SettingError, match="missing or infinite"):
        run(cohort, regions=cohort.regions.replace(cohort.regions.iloc[3, 2], np.nan))
    cohort.scans["group"] = ["AD"] + ["CN"] * 59
    assert run(cohort).not_run.startswith("too few: 1 AD and 59 CN")


def test_more_latents_than_scans_are_answered(study):
    found = run(study(n=40, n_latent=90, effect=3))
    assert found.table["p"].between(0, 1).all()
    assert found.table.iloc[0]["name"] == "Region_4"


def test_the_order_of_scans_of_latents_and_regions_changes_nothing(study, rng):
    cohort = study(effect=1.5)
    order = rng.permutation(60)
    found = run(cohort, latents=cohort.latents.isel(scan=order), regions=cohort.regions.iloc[order[::-1]])
    pd.testing.assert_frame_equal(found.table, run(cohort).table)


def test_p_is_the_larger_of_both_and_grades_follow_it(study):
    # Latents that know the group and little of the regions: discriminable without being associated.
    cohort, is_case = study(n=60, n_latent=1), np.arange(60) < 30
    cohort.latents["mean"][:, 0] = np.random.default_rng(0).normal(size=60) + 4 * is_case
    table = run(cohort).table
    assert (table["p_a"] > table["p_d"]).any()
    table = pd.concat([table, run(study(effect=1.0)).table])
    assert (table["p_a"] < table["p_d"]).any()
    np.testing.assert_array_equal(table["p"], table[["p_a", "p_d"]].max(axis=1))
    np.testing.assert_array_equal(table["grade"] == "none", table["p"] > 0.05)
    assert run(cohort).table["score"].is_monotonic_decreasing


def test_an_association_that_is_only_a_group_difference_is_class_mediated(study):
    cohort = study(n=200, n_latent=3)
    rng, is_case = np.random.default_rng(0), np.arange(200) < 100
    cohort.latents["mean"][:] = rng.normal(size=(200, 3)) + 3 * is_case[:, None]
    cohort.regions["Region_4"] = 0.5 + 0.03 * (rng.normal(size=200) - 2 * is_case)
    row = run(cohort).table.set_index("name").loc["Region_4"]
    assert row["grade"] == "class-mediated"
    assert row["p_a"] <= 0.05 < row["p_centred"]


def test_settings_have_their_effect(study):
    cohort = study(effect=1.5)
    table = run(cohort).table.set_index("name").sort_index()
    for change in (
        {"covariates": ("age",)},
        {"site": "site"},
        {"adjust_global": True},
        {"seed": 1},
        {"n_folds": 5},
        {"contrast": "CN:AD"},
        {"alpha": 1.0},
        {"reading": "linked"},
        {"target": "age"},
        {"n_permutations": 50},
        {"n_permutations_linked": 50},
    ):
        other = run(cohort, replace(FAST, **change)).table.set_index("name").sort_index()
        assert not other.equals(table), change
    linked = run(cohort, replace(FAST, reading="linked")).table
    np.testing.assert_array_equal(linked[["p_a", "p_d"]], linked[["p_pair", "p_linked"]])


def test_latents_that_spread_less_in_unseen_scans_are_told(study):
    cohort = study(n=60)
    assert not any("spread less" in line for line in run(cohort).caveats)
    cohort.latents["mean"][~cohort.latents["subject_in_training"].values] *= 0.5
    assert any("spread less (median ratio of SD 0." in line for line in run(cohort).caveats)


def test_global_size_is_adjusted_for_unless_told_otherwise(study):
    cohort = study(n=100)
    cohort.regions.iloc[:50] -= 0.08
    cohort.latents["mean"][:50] -= 3
    adjusted, raw = (run(cohort, replace(FAST, adjust_global=value)) for value in (True, False))
    assert (raw.table["p_region"] <= 0.05).mean() > 0.9
    assert (adjusted.table["p_region"] <= 0.05).mean() < 0.3
    assert any("No head size" in line for line in adjusted.caveats)
    cohort.scans["head_size_factor"] = np.linspace(1, 1.2, 100)
    assert run(cohort, replace(FAST, adjust_global=True)).settings["confounds"] == ["total_gm", "head_size_factor"]


def test_unadjusted_leaves_the_global_measures_in_and_takes_the_covariates_out(study):
    cohort = study(n=60)
    cohort.scans["head_size_factor"] = np.linspace(1, 1.2, 60)
    found = run(cohort, replace(FAST, covariates=("age",), site="site", adjust_global=True))
    plain = np.column_stack([cohort.scans["age"], cohort.scans["site"] == "y"])
    total = cohort.regions.to_numpy() @ cohort.weights.n_voxels
    full = np.column_stack([plain, total, cohort.scans["head_size_factor"]])
    table, z = found.table.set_index("name"), cohort.latents["mean"].values
    for column, confounds in (("a", full), ("a_unadjusted", plain)):
        expected = np.abs(stats.partial_correlation(cohort.regions.to_numpy(), z, confounds)).max(axis=1)
        np.testing.assert_allclose(table.loc[cohort.regions.columns, column], expected, atol=1e-5)


def test_constant_regions_and_latents_are_left_out_and_named(study):
    cohort = study()
    cohort.regions["Region_2"] = 0.25
    cohort.latents["mean"][:, 3] = 1.0
    found = run(cohort)
    assert len(found.table) == 11
    assert any("Region_2, z003" in line for line in found.caveats)


def test_repeated_sessions_count_one_scan_per_subject(study):
    cohort = study()
    cohort.scans["subject_id"] = [f"sub-{i // 2}" for i in range(60)]
    cohort.scans["session_id"] = ["01", "02"] * 30
    found = run(cohort)
    assert (found.n_scans, found.n_subjects) == (30, 30)
    assert "Left out: 30 scans (a later session of the same subject)." in found.caveats


def test_a_cohort_that_cannot_answer_is_not_run(study):
    cohort = study()
    assert run(cohort, replace(FAST, group="absent")).not_run == "no group column"
    few = cohort.scans.index[22:42]
    parts = {"latents": cohort.latents.sel(scan=few.to_numpy()), "regions": cohort.regions.loc[few]}
    cohort.scans["group"] = ["AD"] * 26 + ["CN"] * 34
    assert run(cohort, scans=cohort.scans.loc[few], **parts).not_run.startswith("too few: 4 AD and 16 CN")


def test_tables_of_other_scans_are_refused(study):
    cohort = study()
    with pytest.raises(CohortError, match="do not hold the same scans"):
        run(cohort, regions=cohort.regions.iloc[1:])
    with pytest.raises(CohortError, match="not the regions of the atlas"):
        run(cohort, regions=cohort.regions.iloc[:, ::-1])


def test_the_finding_survives_the_disk(study, tmp_path):
    found = run(study())
    write_finding(found, tmp_path)
    pd.testing.assert_frame_equal(read_finding(tmp_path).table, found.table, check_dtype=False)
