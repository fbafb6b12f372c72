from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from nilatent.analysis.error_profile import ErrorProfileConfig, error_profile
from nilatent.errors import CohortError, LeakageError, SettingError
from nilatent.finding import read_finding, write_finding

FAST = ErrorProfileConfig(models=("ridge",), n_permutations=199, n_repeats=2)


def errors_of(study, *, effect: float = 0.0, planted: int = 4, total: float = 0.0, seed: int = 0) -> pd.DataFrame:
    """Log errors that follow one region and total grey matter, each cross-fitted model at its own level."""
    rng, n = np.random.default_rng(seed), len(study.scans)
    fold = np.arange(n) % 5
    own = study.regions.iloc[:, planted].to_numpy() - study.regions.mean(axis=1).to_numpy()
    gm = study.regions.to_numpy() @ study.weights.n_voxels
    log_error = effect * own / own.std() + total * (gm - gm.mean()) / gm.std() + 0.5 * rng.normal(size=n) + fold
    return pd.DataFrame(
        {"fold": fold, "error": np.exp(log_error), "subject_id": study.scans["subject_id"]}, index=study.scans.index
    )


def run(study, errors, config=FAST, **changes):
    parts = {name: getattr(study, name) for name in ("regions", "scans", "weights", "grid", "mask")}
    return error_profile(errors, **(parts | changes), config=config)


def test_the_planted_region_opens_the_gate_and_stands_first(study):
    planted = study(n=80)
    found = run(planted, errors_of(planted, effect=-0.6))
    row = found.table.iloc[0]
    assert (row["name"], row["rank"]) == ("Region_4", 1)
    assert row["direction"] == "larger error with less grey matter"
    assert row["signed_effect"] == -row["mean_abs_phi"]
    assert found.data.attrs["deciding"] == "ridge"
    assert "Region_4 (larger error with less grey matter" in found.answer
    attrs = found.data.attrs
    assert f"W = {attrs['w_folds']:.2f} ({attrs['w_folds_shuffled']:.2f} with shuffled errors)" in found.answer
    assert attrs["w_folds"] > attrs["w_folds_shuffled"]
    inside = found.maps["mean_abs_phi"].get_fdata()[planted.mask]
    np.testing.assert_allclose(inside.max(), row["mean_abs_phi"], rtol=1e-6)
    np.testing.assert_allclose(found.maps["signed_effect"].get_fdata().min(), -row["mean_abs_phi"], rtol=1e-6)


def test_the_table_says_what_the_shap_values_say(study):
    planted = study(n=80)
    found = run(planted, errors_of(planted, effect=0.6))
    phi, group = found.data["phi"].values, found.data["group"].values
    table = found.table.set_index("name").loc[found.data["region"].values]
    np.testing.assert_allclose(table["mean_abs_phi"], np.abs(phi).mean(axis=0))
    np.testing.assert_allclose(table["signed_mean"], phi.mean(axis=0))
    for name in ("AD", "CN"):
        np.testing.assert_allclose(table[f"mean_abs_phi[{name}]"], np.abs(phi[group == name]).mean(axis=0))
        np.testing.assert_allclose(table[f"signed_mean[{name}]"], phi[group == name].mean(axis=0))
    for number, members in table.groupby("cluster"):
        rows = np.flatnonzero(table["cluster"] == number)
        np.testing.assert_allclose(members["cluster_mean_abs_phi"], np.abs(phi[:, rows].sum(axis=1)).mean())


def test_without_a_gain_there_is_no_picture(study):
    null = study(n=80)
    found = run(null, errors_of(null, total=1.0))
    assert found.table.empty
    assert not found.maps
    assert "phi" not in found.data
    assert found.data.attrs["deciding"] == ""
    assert "no region is named" in found.answer
    assert found.data["r2_null"].item() > 0.3


def test_two_models_share_the_error_rate(study):
    planted = study(n=30, n_regions=6)
    config = replace(FAST, models=("trees", "ridge"), n_permutations_trees=5, n_stop=5, n_folds=2, n_repeats=1)
    found = run(planted, errors_of(planted, effect=1.0), config=config)
    data = found.data
    assert list(data["model"].values) == ["trees", "ridge"]
    assert data["p_gate"].values[0] == data["p_gain"].values[0] >= 1 / 6
    assert data["p_gate"].values[1] == 2 * data["p_gain"].values[1] == 2 / 200
    assert data["n_permutations"].values.tolist() == [5, 199]
    # The gate of the trees is closed, so they contribute nothing to the table.
    assert data.attrs["deciding"] == "ridge"
    assert "mean_abs_phi_trees" not in found.table


@pytest.mark.slow
def test_trees_find_an_effect_without_direction(study):
    cohort = study(n=120, n_regions=6)
    errors = errors_of(cohort)
    own = cohort.regions["Region_4"] - cohort.regions.mean(axis=1)
    errors["error"] *= np.exp(np.abs(own - own.mean()) / own.std())
    config = replace(FAST, models=("ridge", "trees"), n_permutations_trees=59, n_repeats=2)
    found = run(cohort, errors, config=config)
    assert found.data.attrs["deciding"] == "trees"
    assert found.table["name"].iloc[0] == "Region_4"
    assert found.data["p_gate"].values[0] > 0.05


def test_the_level_of_each_model_says_nothing(study):
    planted = study(n=80)
    errors = errors_of(planted, effect=0.6)
    shifted = errors.assign(error=errors["error"] * np.exp(7.0 * errors["fold"] ** 2))
    pd.testing.assert_frame_equal(run(planted, shifted).table, run(planted, errors).table)


def test_a_bent_relation_to_total_grey_matter_is_no_region(study):
    null = study(n=80)
    gm = null.regions.to_numpy() @ null.weights.n_voxels
    errors = errors_of(null)
    errors["error"] *= np.exp(3 * np.square((gm - gm.mean()) / gm.std()))
    assert run(null, errors).data["r2_null"].item() > 0.8


def test_the_order_of_errors_and_regions_changes_nothing_but_their_order(study, rng):
    planted = study(n=80)
    errors = errors_of(planted, effect=0.6)
    found = run(planted, errors, regions=planted.regions.iloc[rng.permutation(80)])
    pd.testing.assert_frame_equal(found.table, run(planted, errors).table)


def test_what_a_model_has_seen_is_refused(study):
    errors = errors_of(study()).assign(in_training=False)
    errors.loc["sub-007", "in_training"] = True
    with pytest.raises(LeakageError, match=r"1 subjects.*sub-007"):
        run(study(), errors)


def test_visits_of_a_subject_do_not_straddle_folds(study):
    cohort = study()
    errors = errors_of(cohort)
    cohort.scans["subject_id"] = errors["subject_id"] = ["sub-000", "sub-000", *errors["subject_id"][2:]]
    with pytest.raises(LeakageError, match="sub-000"):
        run(cohort, errors)


def test_one_scan_per_subject_and_the_rest_is_listed(study):
    cohort = study()
    errors = errors_of(cohort)
    subjects = ["sub-000" if i == 5 else name for i, name in enumerate(errors["subject_id"])]
    cohort.scans["subject_id"] = errors["subject_id"] = subjects
    found = run(cohort, errors)
    assert (found.n_scans, found.n_subjects) == (59, 59)
    assert found.settings["left_out"] == {"a later session of the same subject": ["sub-005"]}


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [("error", 0.0, "above 0"), ("error", np.nan, "above 0"), ("subject_id", "sub-999", "different subjects")],
)
def test_errors_that_cannot_be_are_refused(study, column, value, said):
    errors = errors_of(study())
    errors.loc["sub-003", column] = value
    with pytest.raises(CohortError, match=said):
        run(study(), errors)


def test_tables_that_do_not_belong_together_are_refused(study):
    cohort = study()
    errors = errors_of(cohort)
    with pytest.raises(CohortError, match="no column 'fold'"):
        run(cohort, errors.drop(columns="fold"))
    with pytest.raises(CohortError, match="sub-999"):
        run(cohort, errors.rename(index={"sub-001": "sub-999"}))
    with pytest.raises(CohortError, match="without regions"):
        run(cohort, errors, regions=cohort.regions.iloc[1:])
    with pytest.raises(CohortError, match="regions of the atlas"):
        run(cohort, errors, regions=cohort.regions.iloc[:, ::-1])


def test_too_few_held_out_scans_are_not_run(study):
    cohort = study()
    found = run(cohort, errors_of(cohort).iloc[:15].assign(fold=0))
    assert found.not_run.startswith("too few: 15 subjects")
    assert "--folds" in found.not_run


def test_scans_that_cannot_be_shuffled_are_not_run(study):
    cohort = study(n=30)
    errors = errors_of(cohort)
    cohort.scans["site"] = [f"site-{i // 5}" for i in range(30)]
    assert "shuffled" in run(cohort, errors, config=replace(FAST, site="site")).not_run


def test_the_null_model_takes_what_the_cohort_has_and_says_so(study):
    cohort = study()
    assert run(cohort, errors_of(cohort)).settings["null_model"] == [
        "total_gm and its square", "age and its square", "sex", "level of the cross-fitted model"
    ]  # fmt: skip
    cohort.scans["sex"], cohort.scans["head_size_factor"] = "F", np.arange(60.0)
    cohort.scans.loc[cohort.scans.index[:20], "age"] = np.nan
    found = run(cohort, errors_of(cohort), config=replace(FAST, site="site"))
    assert found.settings["null_model"] == [
        "total_gm and its square", "head_size_factor and its square", "site", "level of the cross-fitted model"
    ]  # fmt: skip
    assert found.n_scans == 60
    assert any("age is missing in 33% of the scans; sex is the same in every scan" in line for line in found.caveats)


def test_what_is_asked_for_is_in_the_null_model_once_and_bent_where_it_is_a_number(study):
    cohort = study()
    cohort.scans["score"] = np.arange(60.0) % 7
    found = run(cohort, errors_of(cohort), config=replace(FAST, covariates=("sex", "score", "age")))
    assert found.settings["null_model"] == [
        "total_gm and its square", "age and its square", "sex", "score", "level of the cross-fitted model"
    ]  # fmt: skip
    cohort.scans.loc[cohort.scans.index[:20], "age"] = np.nan
    assert run(cohort, errors_of(cohort), config=replace(FAST, covariates=("age",))).n_scans == 40


def test_settings_have_their_effect(study):
    cohort = study(n=80)
    errors = errors_of(cohort, effect=0.4)
    table = run(cohort, errors).table
    for change in (
        {"covariates": ("site",)},
        {"site": "site"},
        {"seed": 1},
        {"n_folds": 4},
        {"n_repeats": 3},
        {"cluster_r": 0.05},
        {"group": "sex"},
        {"n_permutations": 99},
    ):
        assert not run(cohort, errors, config=replace(FAST, **change)).table.equals(table), change
    assert run(cohort, errors, config=replace(FAST, alpha=0.001)).table.empty


def test_groups_that_are_too_small_or_absent_are_said(study):
    cohort = study(n=80)
    cohort.scans["group"] = ["rare"] * 5 + ["A"] * 35 + ["B"] * 40
    found = run(cohort, errors_of(cohort, effect=0.6))
    assert "mean_abs_phi[rare]" not in found.table
    assert {"mean_abs_phi[A]", "mean_abs_phi[B]", "p_class_size"} <= set(found.table)
    assert any("rare" in line for line in found.caveats)
    alone = run(cohort, errors_of(cohort, effect=0.6), config=replace(FAST, group="nothing"))
    assert "p_class_size" not in alone.table
    assert any("not compared between classes" in line for line in alone.caveats)


def test_groups_that_equal_a_site_are_not_compared(study):
    cohort = study(n=80)
    cohort.scans["site"] = cohort.scans["group"]
    found = run(cohort, errors_of(cohort, effect=0.6), config=replace(FAST, site="site"))
    assert "p_class_size" not in found.table
    assert any("tells the groups apart" in line for line in found.caveats)


def test_a_constant_region_is_left_out_and_said(study):
    cohort = study(n=80)
    cohort.regions["Region_2"] = 0.5
    found = run(cohort, errors_of(cohort, effect=0.6))
    assert "Region_2" not in set(found.table["name"])
    assert any("Region_2" in line for line in found.caveats)


def test_there_and_back(study, tmp_path):
    planted = study(n=80)
    found = run(planted, errors_of(planted, effect=0.6))
    write_finding(found, tmp_path)
    again = read_finding(tmp_path)
    pd.testing.assert_frame_equal(again.table, found.table, check_dtype=False)
    assert again.data.attrs["deciding"] == "ridge"
    np.testing.assert_array_equal(again.data["phi"], found.data["phi"])


@pytest.mark.parametrize(
    "wrong", [{"models": ()}, {"models": ("forest",)}, {"models": ("ridge", "ridge")}, {"alpha": 0.0}, {"n_folds": 1}]
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(SettingError, match=next(iter(wrong))):
        ErrorProfileConfig(**wrong)
