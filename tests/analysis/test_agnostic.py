from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest

from nilatent.analysis import bounds, discriminability, held_out, sar, stats
from nilatent.analysis.agnostic import COLUMNS, AgnosticConfig, agnostic
from nilatent.analysis.agnostic import words as agnostic_words
from nilatent.errors import CohortError, SettingError
from nilatent.finding import read_finding, write_finding

FAST = AgnosticConfig(n_permutations=199, n_folds=5, adjust_global=False)


def run(study, config=FAST, **changes):
    parts = {name: getattr(study, name) for name in ("latents", "regions", "scans", "weights", "grid", "mask")}
    return agnostic(**(parts | changes), config=config)


def rows(found, **where):
    table = found.table
    for column, value in where.items():
        table = table[table[column] == value]
    return table


def test_the_planted_region_is_validated_and_mapped(study):
    planted = study(effect=3.0, n=400, n_latent=6)
    found = run(planted)
    own = rows(found, test="SAM", features="own grey matter").set_index("name")
    assert own.index[0] == "Region_4"
    assert own.index[own["badge"] == "bound-validated"].tolist() == ["Region_4"]
    assert own["sam_z"].idxmax() == "Region_4"
    assert "the badge goes to 1 of 12 by their own grey matter" in found.answer
    inside = found.maps["worst_case_accuracy"].get_fdata()[planted.mask]
    np.testing.assert_allclose(inside.max(), 1 - own["bound"].min(), rtol=1e-6)
    np.testing.assert_allclose(found.maps["accuracy"].get_fdata().max(), 1 - own["error"].min(), rtol=1e-6)
    assert tuple(found.table) == COLUMNS
    assert rows(found, test="CUBV", features="regions")["badge"].tolist() == ["bound-validated"]


def test_without_an_effect_nothing_is_validated(study):
    found = run(study(n=100))
    assert (found.table["badge"] == "inconclusive").all()
    assert "which is no evidence that there is no effect" in found.caveats[0]


def test_rows_are_the_certificates_of_the_cores(study):
    cohort = study(effect=1.5, n=80)
    found = run(cohort, replace(FAST, covariates=("age",), targets=("age",), eta=0.2, seed=3, n_folds=8))
    is_case = (cohort.scans["group"] == "AD").to_numpy()
    age, z = cohort.scans[["age"]].to_numpy(), cohort.latents["mean"].values.astype(float)
    folds = discriminability.label_free_folds(80, 8, seed=3)
    made = held_out.cubv(z, is_case, folds, confounds=age, eta=0.2)
    row = rows(found, test="CUBV", features="latents").iloc[0]
    np.testing.assert_allclose(row[["error", "bound", "limit"]].astype(float), [made.error, made.bound, made.limit])
    np.testing.assert_allclose(row["delta"], made.bound - made.error)
    orders = stats.permutations(80, 199, seed=3)
    targets = discriminability.balanced_targets(is_case)
    assert row["p"] == held_out.prediction_p(z, targets, folds, orders, confounds=age)
    assert (row["d"], row["method"], row["target"]) == (7, "general", "AD:CN")
    alone = rows(found, test="CUBV", features="covariates only").iloc[0]
    assert alone["error"] == held_out.cubv(age, is_case, folds, eta=0.2).error
    made = sar.sar(z, age[:, 0], folds, eta=0.2)
    row = rows(found, test="SAR", features="latents").iloc[0]
    np.testing.assert_allclose(
        row[["error", "bound", "threshold"]].astype(float), [made.error, made.bound, made.threshold], rtol=1e-6
    )
    x = cohort.regions.to_numpy()
    read_out = discriminability.readout_scores(z, x, age, folds)[0]
    for features, values, removed in (("own grey matter", x, age), ("read out of the latents", read_out, None)):
        made = held_out.sam(values, is_case, folds, confounds=removed, eta=0.2)
        table = rows(found, test="SAM", features=features).sort_values("label")
        np.testing.assert_allclose(table["error"], made.error)
        np.testing.assert_allclose(table["bound"], made.bound)
        p_fwe = stats.permuted_correlation(values, targets, orders, confounds=age).p_fwe[:, 0]
        np.testing.assert_array_equal(table["p"], p_fwe)


def test_a_badge_needs_the_bound_and_the_p_value(study):
    cohort = study(effect=1.2, n=200)
    found = run(cohort)
    holds, small = found.table["bound"] < found.table["threshold"], found.table["p"] <= 0.05
    assert (small & ~holds).any()
    np.testing.assert_array_equal(found.table["badge"] == bounds.VALIDATED, holds & small)
    # The smallest p that four permutations can give is 1/5.
    strict = run(study(effect=3.0, n=400), replace(FAST, n_permutations=4))
    assert (strict.table["bound"] < strict.table["threshold"]).any()
    assert (strict.table["badge"] == bounds.INCONCLUSIVE).all()


def test_age_is_predicted_when_it_is_there_and_nothing_else_is_named(study):
    cohort = study(n=200)
    x = cohort.regions.to_numpy().mean(axis=1)
    cohort.scans["age"] = 70 + 2000 * (x - x.mean()) + np.random.default_rng(0).normal(size=200)
    cohort.scans["score"] = np.random.default_rng(1).normal(size=200)
    found = run(cohort)
    sar_rows = rows(found, test="SAR")
    assert sar_rows["target"].unique().tolist() == ["age"]
    assert sar_rows.set_index("features").loc["latents", "badge"] == "bound-validated"
    assert "age: latents loss" in found.answer
    both = run(cohort, replace(FAST, targets=("score", "age")))
    assert rows(both, test="SAR")["target"].unique().tolist() == ["score", "age"]
    assert (rows(both, test="SAR", target="score")["badge"] == "inconclusive").all()
    assert rows(run(cohort, scans=cohort.scans.drop(columns="age")), test="SAR").empty


def test_a_target_is_not_removed_from_itself(study):
    cohort = study(n=60)
    with_age = run(cohort, replace(FAST, covariates=("age", "sex")))
    without = run(cohort, replace(FAST, covariates=("sex",)))
    pd.testing.assert_frame_equal(rows(with_age, test="SAR"), rows(without, test="SAR"), check_index_type=False)


@pytest.mark.parametrize(
    "change",
    [
        {"covariates": ("sex",)},
        {"site": "site"},
        {"targets": ("score",)},
        {"adjust_global": True},
        {"seed": 1},
        {"n_folds": 6},
        {"contrast": "CN:AD"},
        {"group": "sex"},
        {"eta": 0.2},
        {"alpha": 0.001},
        {"n_permutations": 48},
    ],
)
def test_settings_have_their_effect(study, change):
    cohort = study(effect=3.0, n=200 if "alpha" in change else 60, n_regions=6)
    cohort.scans["score"] = np.arange(len(cohort.scans)) % 7
    few = replace(FAST, n_permutations=49)
    assert not run(cohort, replace(few, **change)).table.equals(run(cohort, few).table)


def test_labels_stay_in_their_site_unless_the_site_is_the_feature(study):
    cohort = study(n=100)
    cohort.scans["site"] = np.where(np.arange(100) % 10 == 0, "x", "y")
    cohort.scans.loc[cohort.scans["group"] == "CN", "site"] = np.where(np.arange(50) % 10 == 0, "y", "x")
    shifted = cohort.regions + 0.5 * (cohort.scans["site"] == "x").to_numpy()[:, None]
    found = run(cohort, replace(FAST, site="site"), regions=shifted)
    alone = rows(found, test="CUBV", features="covariates only").iloc[0]
    assert (alone["error"], alone["p"], alone["badge"]) == (pytest.approx(0.1), 1 / 200, "bound-validated")
    assert (found.table.drop(alone.name)["badge"] == "inconclusive").all()


def test_several_contrasts_each_have_their_certificates(study):
    cohort = study(n=90)
    cohort.scans["group"] = np.tile(["AD", "MCI", "CN"], 30)
    found = run(cohort, replace(FAST, contrast="AD:CN,MCI:CN"))
    assert found.table["target"].unique().tolist() == ["AD:CN", "MCI:CN", "age"]
    assert sorted(found.maps) == sorted(
        ["accuracy", "worst_case_accuracy", "accuracy_MCI-CN", "worst_case_accuracy_MCI-CN"]
    )
    assert (found.n_scans, rows(found, test="CUBV", target="AD:CN")["n_eff"].iloc[0]) == (90, pytest.approx(45, abs=3))


def test_repeated_sessions_count_one_scan_per_subject(study):
    cohort = study()
    cohort.scans["subject_id"] = [f"sub-{i // 2}" for i in range(60)]
    cohort.scans["session_id"] = ["01", "02"] * 30
    found = run(cohort)
    assert (found.n_scans, found.n_subjects) == (30, 30)
    assert "Left out: 30 scans (AD:CN: a later session of the same subject)." in found.caveats


def test_what_cannot_be_asked_is_said(study):
    cohort = study()
    found = run(cohort, replace(FAST, group="absent"))
    assert found.table["test"].unique().tolist() == ["SAR"]
    assert "Not asked about the groups: no group column." in found.caveats
    assert found.maps == {}
    none = run(cohort, replace(FAST, group="absent"), scans=cohort.scans.drop(columns="age"))
    assert none.not_run == "the groups: no group column"
    cohort.scans["site2"] = cohort.scans["group"]
    equal = run(cohort, replace(FAST, site="site2"))
    assert any("the confounds tell AD from CN without error" in line for line in equal.caveats)
    cohort.scans["age"] = 70.0
    assert any("'age' is constant" in line for line in run(cohort).caveats)


def test_constant_regions_and_latents_make_no_certificate(study):
    cohort = study()
    cohort.regions["Region_2"] = 0.25
    cohort.latents["mean"][:] = 1.0
    found = run(cohort)
    assert "Region_2" not in set(found.table["name"])
    assert rows(found, features="read out of the latents").empty
    assert rows(found, features="latents").empty
    assert rows(found, test="CUBV", features="regions")["d"].tolist() == [12]
    assert any("Constant, or explained by the confounds" in line for line in found.caveats)
    cohort.regions.loc[:, :] = 0.25
    assert run(cohort).not_run.startswith("neither latents nor regions vary")


def test_settings_out_of_range_are_refused(study):
    for change, said in (
        ({"n_folds": 1}, r"n_folds is 1.*resubstitution"),
        ({"n_permutations": 0}, "n_permutations is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"alpha": 0.0}, "alpha is 0"),
        ({"eta": 1.0}, "eta is 1"),
    ):
        with pytest.raises(SettingError, match=said):
            replace(FAST, **change)
    cohort = study()
    with pytest.raises(SettingError, match="'sex' of scan"):
        run(cohort, replace(FAST, targets=("sex",)))
    with pytest.raises(CohortError, match="do not hold the same scans"):
        run(cohort, scans=cohort.scans.iloc[1:])
    with pytest.raises(CohortError, match="not the regions of the atlas"):
        run(cohort, regions=cohort.regions.iloc[:, ::-1])


def test_the_finding_comes_back_from_disk(study, tmp_path):
    found = run(study())
    write_finding(found, tmp_path / "agnostic")
    back = read_finding(tmp_path / "agnostic")
    pd.testing.assert_frame_equal(back.table, found.table, check_dtype=False)
    assert back.settings["not_asked"] == {}


def cross_fitted(study, n_models):
    """Models that know the same regions in coordinates of their own; each has not seen one fold."""
    unseen, rng, x = np.arange(len(study.scans)) % n_models, np.random.default_rng(5), study.regions.to_numpy()
    made = []
    for number in range(n_models):
        latents = study.latents.copy(deep=True)
        latents["mean"][:] = x @ rng.normal(size=(x.shape[1], latents.sizes["latent"])) * 10
        latents["subject_in_training"][:] = unseen != number
        made.append(latents)
    return made, unseen


def test_cross_fitted_models_judge_the_scans_they_have_not_seen(study):
    cohort = study(effect=0.4, n=120)
    models, unseen = cross_fitted(cohort, 4)
    found = run(cohort, replace(FAST, covariates=("age",)), folds=models)
    is_case, age = (cohort.scans["group"] == "AD").to_numpy(), cohort.scans[["age"]].to_numpy()
    z = [model["mean"].values.astype(float) for model in models]
    made = held_out.cubv(z, is_case, unseen, confounds=age)
    row = rows(found, test="CUBV", features="latents").iloc[0]
    np.testing.assert_allclose(row[["error", "bound"]].astype(float), [made.error, made.bound])
    orders = stats.permutations(120, 199, seed=0, blocks=unseen)
    targets = discriminability.balanced_targets(is_case)
    assert row["p"] == held_out.prediction_p(z, targets, unseen, orders, confounds=age)
    assert 1 / 200 < row["p"] < 1
    assert found.settings["n_models"] == 4
    assert "Every scan was judged by the one of 4 models that had not seen its subject." in found.caveats


def test_latents_that_labels_shaped_get_no_certificate(study):
    cohort = study(n=60)
    cohort.latents.attrs["supervised"] = "group"
    found = run(cohort)
    assert not found.table["features"].str.contains("latents").any()
    assert any(line.startswith("Not asked about the latents: labels ('group') shaped them") for line in found.caveats)


def test_a_prediction_that_only_the_published_loss_certifies_is_named(study):
    cohort = study(n=60)
    table = run(cohort).table
    row = table.index[(table["test"] == "SAR") & (table["features"] == "latents")][0]

    def named(**changed):
        now = table.copy()
        now.loc[row, list(changed)] = list(changed.values())
        said = agnostic_words.caveats(
            cohort.latents, now, [], asdict(FAST) | {"n_models": 0}, skipped={}, left_out={}, flat=[]
        )
        return any(line.startswith("age from latents is below guessing") for line in said)

    below = {"bound": 0.6, "threshold": 0.7, "p": 0.01}
    assert named(**below)
    assert not named(**below | {"badge": "bound-validated"})
    assert not named(**below | {"p": 0.2})
    assert not named(**below | {"bound": 0.8})
