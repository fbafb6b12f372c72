from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from nilatent.analysis import stats
from nilatent.analysis.contrast import Comparison
from nilatent.analysis.lrcp import COLUMNS, LrcpConfig, lrcp, profile, ranking_score
from nilatent.errors import CohortError
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
    assert (row["direction"], row["grade"], row["badge"], row["rank"]) == ("lower in AD", "strong", "not assessed", 1)
    assert (found.table["grade"] != "none").sum() == 1
    assert tuple(found.table.columns[: len(COLUMNS)]) == COLUMNS
    assert "Region_4 (lower in AD" in found.answer
    inside = found.maps["minus_log10_p"].get_fdata()[planted.mask]
    np.testing.assert_allclose(inside.max(), -np.log10(found.table["p"].min()), rtol=1e-6)


def test_flipping_permuting_and_scaling_latents_changes_nothing(study, rng):
    cohort = study(effect=1.5)
    order = rng.permutation(6)
    factors = np.array([-1, 3, 0.01, -100, 1, 2])
    changed = cohort.latents.isel(latent=order)
    changed["mean"] = changed["mean"] * factors
    pd.testing.assert_frame_equal(run(cohort, latents=changed).table, run(cohort).table, rtol=1e-4)


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


def test_the_ranking_score_by_hand():
    np.testing.assert_allclose(ranking_score(np.array([0.81, -1, 0.5]), np.array([0.75, 0.9, 0.4])), [0.45**0.5, 0, 0])


def test_an_association_that_is_only_a_group_difference_is_class_mediated(study):
    cohort = study(n=200, n_latent=3)
    rng, is_case = np.random.default_rng(0), np.arange(200) < 100
    cohort.latents["mean"][:] = rng.normal(size=(200, 3)) + 3 * is_case[:, None]
    cohort.regions["Region_4"] = 0.5 + 0.03 * (rng.normal(size=200) - 2 * is_case)
    row = run(cohort).table.set_index("name").loc["Region_4"]
    assert row["grade"] == "class-mediated"
    assert row["p_a"] <= 0.05 < row["p_centred"]


def test_within_groups_scans_are_exchanged_within_groups_only(rng):
    is_case = np.arange(68) < 8
    z, x = rng.normal(size=(2, 68, 1)) * np.where(is_case, 100, 1)[:, None]
    pattern = np.array([-2, -1, -1, 0, 0, 1, 1, 2.0])
    z[:8, 0], x[:8, 0] = pattern * 100, np.array([-1, -2, 1, 0, 0, -1, 1, 2.0]) * 100
    comparison = Comparison(np.arange(68), is_case, "A", "B", np.empty((68, 0)), None, {})
    found = profile(z, x, comparison, FAST, unadjusted=comparison.confounds)
    free = stats.permuted_correlation(x, z, stats.permutations(68, 300, seed=1), confounds=is_case[:, None])
    assert free.p_value[0, 0] < 0.05 < min(found.centred.p_value[0, 0], found.joint_centred_p[0])


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
