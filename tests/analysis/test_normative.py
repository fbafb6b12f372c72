from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from nilatent.analysis.normative import COLUMNS, NormativeConfig, normative
from nilatent.analysis.normative.latent import predicted_p
from nilatent.errors import CohortError, LeakageError, SettingError
from nilatent.finding import read_finding, write_finding
from nilatent.latents import make_latents

CONFIG = NormativeConfig(covariates=("age", "sex"))
N_FOLDS = 4


def folds_of(cohort):
    return np.arange(len(cohort.scans)) % N_FOLDS


def models(cohort, rng):
    """Latents of one model per fold: the same knowledge, each in its own arbitrary basis."""
    z, folds, found = cohort.latents["mean"].values, folds_of(cohort), []
    for fold in range(N_FOLDS):
        turn = np.linalg.qr(rng.normal(size=(z.shape[1],) * 2))[0]
        seen, index = folds != fold, cohort.scans.index
        found.append(
            make_latents(
                z @ turn + rng.normal(), np.zeros_like(z), scan=index, subject=cohort.scans["subject_id"],
                subject_in_training=seen, part=np.where(seen, "train", "test"), model_hash="", volumes_hash="",
            )
        )  # fmt: skip
    return found


def errors_of(cohort, rng):
    values = np.exp(0.3 * rng.normal(size=cohort.regions.shape))
    return pd.DataFrame(values, index=cohort.regions.index, columns=cohort.regions.columns)


def run(cohort, rng, config=CONFIG, **changes):
    parts = {"latents": models(cohort, rng), "errors": errors_of(cohort, rng), "folds": folds_of(cohort)}
    parts |= {name: getattr(cohort, name) for name in ("regions", "scans", "weights", "grid", "mask")}
    return normative(**(parts | changes), config=config)


def test_the_planted_region_is_where_cases_deviate(study, rng, tmp_path):
    cohort = study(n=120, effect=4.0, n_latent=12)
    found = run(cohort, rng)
    cases = found.table[~found.table["reference"]]
    assert (cases["region"] == "Region_4").mean() > 0.8
    assert (cases.loc[cases["region"] == "Region_4", "region_z"] < 0).all()
    mean = found.data["mean_z"].sel(case_group="AD")
    assert mean.idxmin() == "Region_4"
    assert np.abs(mean.drop_sel(region="Region_4")).max() < 1
    inside = found.maps["mean_z"].get_fdata()[cohort.mask]
    np.testing.assert_allclose(np.unique(inside), np.sort(mean.values), rtol=1e-5)
    assert tuple(name for name in found.table if name in COLUMNS) == COLUMNS
    assert found.table["p"].is_monotonic_increasing
    assert found.settings["mapped"] == list(found.table["scan_id"].head(50))
    write_finding(found, tmp_path)
    pd.testing.assert_frame_equal(read_finding(tmp_path).table, found.table, check_dtype=False)


def test_areas_of_latents_regions_and_errors_stand_beside_each_other(study, rng):
    cohort = study(n=120, effect=4.0, n_latent=12)
    errors = errors_of(cohort, rng)
    errors.loc[cohort.scans["group"] == "AD"] *= 1.3
    found = run(cohort, rng, errors=errors)
    table = found.table.set_index("scan_id").loc[cohort.scans.index]
    areas = found.data["auc"].sel(case_group="AD")
    for measure, column in (("latent deviation", "mahalanobis"), ("error z, mean", "mean_error_z")):
        area = roc_auc_score(cohort.scans["group"] == "AD", table[column])
        assert float(areas.sel(measure=measure)) == pytest.approx(area)
        assert area > 0.85
        assert f"{measure} {area:.2f} (" in found.answer
    assert float(areas.sel(measure="regional z, largest")) > 0.75
    assert ((found.data["auc_low"] < areas) & (areas < found.data["auc_high"])).all()


def test_a_scan_is_judged_without_its_own_values(study, rng):
    cohort = study(n=60)
    before = run(cohort, np.random.default_rng(0), latents=[])
    changed = cohort.regions.copy()
    scan, reference = changed.index[40], cohort.scans["group"].iloc[40] == "CN"
    changed.loc[scan, "Region_2"] += 0.01
    after = run(cohort, np.random.default_rng(0), latents=[], regions=changed)
    z, new = before.data["z"].values, after.data["z"].values
    same_fold = folds_of(cohort) == folds_of(cohort)[40]
    others = same_fold & (np.arange(60) != 40)
    assert reference
    assert new[40, 2] > z[40, 2]
    np.testing.assert_array_equal(new[others], z[others])
    assert (new[~same_fold, 2] != z[~same_fold, 2]).all()


def test_z_is_that_of_a_new_case_against_few_controls(study, rng):
    """Without covariates: the t of Crawford and Howell, as a z."""
    cohort = study(n=60)
    found = run(cohort, rng, NormativeConfig(), latents=[])
    values, folds = cohort.regions["Region_1"].to_numpy(), folds_of(cohort)
    fitted = values[(cohort.scans["group"] == "CN") & (folds != folds[3])]
    t_value = (values[3] - fitted.mean()) / (fitted.std(ddof=1) * np.sqrt(1 + 1 / len(fitted)))
    z = stats.norm.ppf(stats.t.cdf(t_value, len(fitted) - 1))
    assert float(found.data["z"][3].sel(region="Region_1")) == pytest.approx(z)


def test_signs_order_and_scales_of_latents_change_nothing_and_their_basis_little(study, rng):
    cohort = study(n=80, effect=2.0)
    one = run(cohort, np.random.default_rng(1), errors=None).table.set_index("scan_id").sort_index()["mahalanobis"]
    turned = run(cohort, np.random.default_rng(2), errors=None).table.set_index("scan_id").sort_index()["mahalanobis"]
    changed = [latents.isel(latent=[3, 1, 0, 2, 5, 4]) for latents in models(cohort, np.random.default_rng(1))]
    for number, latents in enumerate(changed):
        latents["mean"] = latents["mean"] * (np.array([-1, 2, 0.01, -30, 1, 5]) * (number + 1))
    other = run(cohort, rng, errors=None, latents=changed).table.set_index("scan_id").sort_index()["mahalanobis"]
    np.testing.assert_allclose(other, one, rtol=1e-4)
    # Shrinkage is towards a sphere in the basis at hand.
    assert np.corrcoef(one, turned)[0, 1] > 0.95


def test_several_case_groups_have_their_own_areas_and_maps(study, rng):
    cohort = study(n=120, effect=4.0, n_latent=12)
    cohort.scans["group"] = np.where(np.arange(120) % 2, cohort.scans["group"], "MCI")
    cohort.scans.iloc[60:, cohort.scans.columns.get_loc("group")] = "CN"
    found = run(cohort, rng)
    assert found.data["case_group"].values.tolist() == ["AD", "MCI"]
    assert set(found.maps) == {"mean_z", "mean_z_AD", "mean_z_MCI"}
    both, ad, mci = (found.maps[name].get_fdata() for name in ("mean_z", "mean_z_AD", "mean_z_MCI"))
    np.testing.assert_allclose(np.abs(both), np.maximum(np.abs(ad), np.abs(mci)))
    assert found.answer.count("Area under the curve of ") == 2


def test_what_age_explains_is_no_deviation(study, rng):
    cohort = study(n=120)
    years = cohort.scans["age"].to_numpy()
    cohort.regions.iloc[:, :] -= 0.03 * (years[:, None] - 70)
    cohort.scans["group"] = np.where(years + 3 * rng.normal(size=120) > 72, "AD", "CN")
    blind, told = (run(cohort, rng, NormativeConfig(covariates=names), latents=[]) for names in ((), ("age",)))
    assert np.abs(blind.data["mean_z"]).min() > 1
    assert np.abs(told.data["mean_z"]).max() < 0.6
    assert set(told.table.columns) - set(blind.table.columns) == {"age"}
    oldest = years > years[cohort.scans["group"] == "CN"].max()
    noted = told.table.set_index("scan_id").loc[cohort.scans.index, "note"].str.contains("extrapolated")
    np.testing.assert_array_equal(noted[years > 72], oldest[years > 72])
    assert oldest.any()
    assert any(f"{noted.sum()} scans are of subjects younger or older" in line for line in told.caveats)


def test_a_site_without_reference_is_not_judged(study, rng):
    cohort = study(n=80)
    cohort.scans["site"] = np.where(cohort.scans["group"] == "CN", "x", np.where(np.arange(80) % 2, "x", "y"))
    found = run(cohort, rng, replace(CONFIG, site="site"))
    apart = found.table[found.table["site"] == "y"]
    assert len(apart) == 20
    assert apart[["p", "q", "mahalanobis", "region_z"]].isna().all(axis=None)
    assert apart["note"].str.contains("nothing is expected").all()
    assert found.table.loc[found.table["site"] == "x", "p"].notna().all()
    assert found.n_scans == 60
    assert any("Not judged: 20 scans" in line for line in found.caveats)


def test_a_missing_age_is_left_out_and_listed(study, rng):
    cohort = study(n=60)
    cohort.scans.iloc[[3, 50], cohort.scans.columns.get_loc("age")] = np.nan
    found = run(cohort, rng)
    assert found.settings["left_out"] == {"missing value in a covariate or the site": ["sub-003", "sub-050"]}
    assert found.table.set_index("scan_id").loc[["sub-003", "sub-050"], "p"].isna().all()
    assert found.settings["n_reference"] == 29


def test_later_scans_of_a_reference_subject_are_judged_and_not_fitted(study, rng):
    cohort = study(n=60)
    cohort.scans.loc["sub-056", "subject_id"] = "sub-052"
    cohort.scans.loc["sub-052", "session_id"], cohort.scans.loc["sub-056", "session_id"] = "1", "2"
    found = run(cohort, rng)
    assert found.settings["n_reference"] == 29
    assert found.data["fitted"].values[52]
    assert not found.data["fitted"].values[56]
    assert found.n_subjects == 59
    assert found.table.set_index("scan_id").loc["sub-056", "reference"]
    with pytest.raises(LeakageError, match="sub-052 has scans in 2 folds"):
        run(cohort, rng, folds=np.arange(60) % 3, latents=[])


def test_latents_that_have_seen_the_subject_are_refused(study, rng):
    cohort = study(n=60)
    with pytest.raises(LeakageError, match="has seen subject sub-00"):
        run(cohort, rng, latents=models(cohort, rng)[::-1])
    with pytest.raises(CohortError, match="2 latents were given for 4 folds"):
        run(cohort, rng, latents=models(cohort, rng)[:2])


def test_of_the_studys_own_model_only_unseen_scans_are_judged_by_latents(study, rng):
    cohort = study(n=120)
    found = run(cohort, rng, latents=[cohort.latents])
    table = found.table.set_index("scan_id").loc[cohort.scans.index]
    unseen = ~cohort.latents["subject_in_training"].values
    np.testing.assert_array_equal(table["mahalanobis"].notna(), unseen)
    assert table["region_z"].notna().all()
    few = run(study(n=60), rng, latents=[study(n=60).latents])
    assert few.table["p_latents"].isna().all()
    assert any("fewer than ten reference scans" in line for line in few.caveats)


def test_the_reference_is_named_or_like_a_control_group_or_everybody(study, rng):
    cohort = study(n=60)
    assert run(cohort, rng).settings["reference"] == "CN"
    assert run(cohort, rng, replace(CONFIG, reference="AD")).settings["reference"] == "AD"
    with pytest.raises(SettingError, match="'HC' is no level of column 'group', which holds AD, CN"):
        run(cohort, rng, replace(CONFIG, reference="HC"))
    cohort.scans["group"] = np.where(cohort.scans["group"] == "AD", "left", "right")
    everybody = run(cohort, rng)
    assert everybody.settings["reference"] == "all scans"
    assert everybody.table["reference"].all()
    assert "auc" not in everybody.data
    assert any("so all scans are" in line for line in everybody.caveats)


def test_too_small_a_reference_is_not_run(study, rng):
    cohort = study(n=60)
    cohort.scans["group"] = np.where(np.arange(60) < 9, "CN", "AD")
    assert "too few: 9 complete reference subjects (CN)" in run(cohort, rng).not_run
    cohort.scans["group"] = np.where(np.arange(60) < 11, "CN", "AD")
    many = replace(CONFIG, covariates=("age", "sex", *(f"c{number}" for number in range(4))))
    scans = cohort.scans.assign(**{f"c{number}": rng.normal(size=60) for number in range(4)})
    assert "degrees of freedom beside the covariates" in run(cohort, rng, many, scans=scans).not_run


def test_a_small_reference_says_so_and_a_constant_region_is_not_judged(study, rng):
    cohort = study(n=60)
    cohort.regions["Region_5"] = 0.25
    found = run(cohort, rng)
    assert any("The reference has 30 subjects" in line for line in found.caveats)
    assert found.data["z"].sel(region="Region_5").isnull().all()
    assert found.data["z"].drop_sel(region="Region_5").notnull().all()
    assert found.table["n_expected"].iloc[0] == pytest.approx(0.05 * 11, rel=1e-3)


def test_p_is_the_smallest_of_the_looks_times_their_number(study, rng):
    cohort = study(n=80)
    three, two = run(cohort, rng).table, run(cohort, rng, errors=None).table
    for table, looks in ((three, ["p_latents", "p_regions", "p_error"]), (two, ["p_latents", "p_regions"])):
        np.testing.assert_allclose(table["p"], np.minimum(len(looks) * table[looks].min(axis=1), 1))
    assert two["p_error"].isna().all()
    for reference in (True, False):
        part = three[three["reference"] == reference]
        np.testing.assert_allclose(part["q"], stats.false_discovery_control(part["p"]))
    strict, loose = (run(cohort, np.random.default_rng(0), replace(CONFIG, alpha=a)).table for a in (1e-9, 1.0))
    assert not strict["deviates"].any()
    assert loose["deviates"].all()


def test_p_over_regions_is_the_larger_of_bonferroni_and_of_the_largest_z_of_the_reference(study, rng):
    found = run(study(n=80), rng)
    table = found.table.set_index("scan_id").loc[found.data["scan"].values]
    for name, p_name, z in (("region", "p_regions", "z"), ("error_region", "p_error", "error_z")):
        largest = np.abs(found.data[z]).max("region").values
        np.testing.assert_array_equal(np.abs(table[f"{name}_z"]), largest)
        bonferroni = np.minimum(12 * 2 * stats.norm.sf(largest), 1)
        expected = predicted_p(largest, found.data["fitted"].values, table["subject_id"].to_numpy(), tail="gumbel")
        np.testing.assert_allclose(table[p_name], np.maximum(bonferroni, expected))
        assert 0 < (bonferroni > expected).mean() < 1


def test_errors_count_by_their_logarithm(study, rng):
    cohort = study(n=60)
    errors = errors_of(cohort, rng)
    one, squared = (run(cohort, rng, errors=table).data["error_z"] for table in (errors, 5 * errors**2))
    np.testing.assert_allclose(one, squared)


def test_settings_act(study, rng):
    cohort = study(n=80)
    usual, few = (run(cohort, np.random.default_rng(0), replace(CONFIG, n_components=n)).table for n in (0, 2))
    distances = [table.set_index("scan_id").sort_index()["mahalanobis"] for table in (usual, few)]
    assert (distances[0] != distances[1]).all()
    assert len(run(cohort, rng, replace(CONFIG, n_maps=3)).settings["mapped"]) == 3
    with pytest.raises(SettingError, match="n_maps is -1"):
        NormativeConfig(n_maps=-1)
    with pytest.raises(SettingError, match="alpha is 0"):
        NormativeConfig(alpha=0)


def test_tables_that_do_not_belong_together_are_refused(study, rng):
    cohort = study(n=60)
    errors = errors_of(cohort, rng)
    with pytest.raises(CohortError, match="sub-000"):
        run(cohort, rng, regions=cohort.regions.iloc[1:])
    with pytest.raises(CohortError, match="columns of the errors"):
        run(cohort, rng, errors=errors.iloc[:, 1:])
    with pytest.raises(CohortError, match=r"sub-002 in Region_3 is 0\.0"):
        run(cohort, rng, errors=errors.mask((errors.index == "sub-002")[:, None] & (errors.columns == "Region_3"), 0.0))
    with pytest.raises(SettingError, match="one fold per scan"):
        run(cohort, rng, folds=np.zeros(3))


def test_scans_without_a_group_dilute_nobody(study, rng):
    cohort = study(n=120, effect=4.0, n_latent=12)
    alone = run(cohort, np.random.default_rng(1)).table.set_index("scan_id")
    controls = cohort.scans.index[cohort.scans["group"] == "CN"][:20]
    cohort.scans.loc[controls, "group"] = None
    found = run(cohort, np.random.default_rng(1))
    table = found.table.set_index("scan_id")
    cases = cohort.scans.index[cohort.scans["group"] == "AD"]
    known = table.loc[cases, "p"].notna()
    np.testing.assert_allclose(
        table.loc[cases, "q"][known], stats.false_discovery_control(table.loc[cases, "p"][known])
    )
    assert alone.loc[cases, "q"].notna().any()
    assert f"of {known.sum()} scans that are not CN" in found.answer


def test_a_covariate_named_like_a_column_of_the_finding_is_refused(study, rng):
    cohort = study()
    cohort.scans["region"] = "north"
    with pytest.raises(SettingError, match="'region' has the name of a column"):
        run(cohort, rng, NormativeConfig(covariates=("age", "region")))
