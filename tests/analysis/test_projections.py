import sys

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression
from sklearn.manifold import trustworthiness

from nilatent.analysis.projections import ProjectionsConfig, projections
from nilatent.analysis.projections.place import place_scans
from nilatent.errors import CohortError, LatentsError, SettingError
from nilatent.finding import read_finding, write_finding

FAST = {"methods": ("pca",), "n_permutations": 199}
ALL_BUT_UMAP = ("pca", "pls", "tsne")


def run(study, config=None, **options):
    return projections(study.latents, study.regions, study.scans, ProjectionsConfig(**FAST | (config or {})), **options)


def row(found, space, method):
    """Position of a map among those that are judged."""
    data = found.data
    return list(zip(data["space"].values, data["method"].values, strict=True)).index((space, method))


def of_pls(found):
    return found.table[(found.table["method"] == "PLS") & (found.table["space"] == "latents")].iloc[0]


def test_held_out_scans_do_not_shape_the_components(study):
    cohort = study()
    before = run(cohort).data["scores"].values
    held_out = cohort.latents["part"].values == "test"
    cohort.latents["mean"][held_out] += 100
    after = run(cohort).data["scores"].values
    np.testing.assert_allclose(after[~held_out], before[~held_out], atol=1e-5)


def test_explained_share_and_r2_equal_their_definitions(study):
    cohort = study()
    found = run(cohort, {"n_components": 3})
    z, train = cohort.latents["mean"].values.astype(float), cohort.latents["part"].values == "train"
    pca = PCA(3).fit(z[train])
    np.testing.assert_allclose(found.table["explained"][:3], pca.explained_variance_ratio_, rtol=1e-6)
    scores, age = found.data["scores"].values, cohort.scans[["age"]].to_numpy()
    expected = [LinearRegression().fit(age, score).score(age, score) for score in scores.T]
    np.testing.assert_allclose(found.table["r2_age"], expected, rtol=1e-5)
    np.testing.assert_allclose(
        found.data["region_r"].values[1, 2], np.corrcoef(scores[:, 1], cohort.regions["Region_2"])[0, 1], atol=1e-5
    )


def test_the_units_of_a_latent_do_not_matter_but_its_reach_in_the_image_does(study):
    cohort = study()
    plain = run(cohort).data["scores"].values
    cohort.latents["mean"][:, 1] *= 10
    cohort.latents["image_scale"][1] /= 10
    np.testing.assert_allclose(run(cohort).data["scores"].values, plain, rtol=1e-4, atol=1e-5)
    cohort.latents["image_scale"][1] *= 100
    assert run(cohort).table["explained"].iloc[0] > 0.9


def test_a_cluster_by_site_is_reported_as_a_failure(study):
    cohort = study(n=80)
    assert not any("Failure" in line for line in run(cohort, site="site").caveats)
    cohort.latents["mean"][cohort.scans["site"].to_numpy() == "x"] += 5
    found = run(cohort, site="site", group="group")
    assert found.caveats[0].startswith("Failure: the latents separate the levels of 'site' on PC1")
    assert "Failure" in found.answer
    cohort.scans["dataset"] = cohort.scans["site"]
    assert run(cohort).caveats[0].startswith("Failure: the latents separate the levels of 'dataset'")


def test_a_group_that_follows_the_site_is_not_found_within_sites(study):
    cohort = study(n=80)
    is_x = cohort.scans["site"].to_numpy() == "x"
    cohort.latents["mean"][is_x] += 5
    flip = np.arange(80) % 5 == 0
    cohort.scans["group"] = np.where(is_x ^ flip, 1.0, 2.0)
    assert run(cohort, group="group").table["p_group"].min() <= 0.01
    within = run(cohort, group="group", site="site")
    assert within.table["p_group"].min() > 0.01
    assert set(within.data["scan_group"].values) == {"1", "2"}


def test_a_column_with_a_slash_in_its_name_can_be_written(study, tmp_path):
    cohort = study()
    cohort.scans["M/F"] = cohort.scans["group"]
    write_finding(run(cohort, group="M/F"), tmp_path)
    assert set(read_finding(tmp_path).data["scan_M_F"].values) == set(cohort.scans["group"].astype(str))


def test_what_is_absent_or_constant_is_named_not_related(study):
    cohort = study()
    cohort.scans["sex"] = "F"
    found = run(cohort)
    assert "r2_sex" not in found.table
    assert any(line.endswith("not related: sex, head_size_factor.") for line in found.caveats)


def test_settings_have_their_effect(study):
    cohort = study()
    assert (run(cohort, {"n_components": 2}).table["space"] == "latents").sum() == 2
    assert "r2_age" not in run(cohort, covariates=[]).table
    assert run(cohort, {"n_permutations": 9}).table["p_age"].min() >= 0.1
    assert not run(cohort, seed=1).table["p_age"].equals(run(cohort).table["p_age"])


def test_repeated_sessions_enter_the_scores_but_not_the_p_values(study):
    cohort = study()
    cohort.scans["subject_id"] = [f"sub-{i // 2}" for i in range(60)]
    found = run(cohort)
    assert (found.n_scans, found.n_subjects) == (60, 30)
    assert any("first session of each subject (30 of 60 scans)" in line for line in found.caveats)


def test_small_cohorts_and_other_scans_are_refused(study):
    assert run(study(n=16)).not_run.startswith("too few: 16 subjects")
    cohort = study()
    with pytest.raises(CohortError, match="not once in latents and regional means alike"):
        projections(cohort.latents, cohort.regions.iloc[1:], cohort.scans)


def test_the_finding_survives_the_disk(study, tmp_path):
    found = run(study(), group="group")
    write_finding(found, tmp_path)
    back = read_finding(tmp_path)
    pd.testing.assert_frame_equal(back.table, found.table, check_dtype=False)
    np.testing.assert_array_equal(back.data["scan_group"].values, found.data["scan_group"].values)


def test_maps_have_their_rows_and_say_of_what_they_are(study):
    cohort = study(n=60)
    voxels = pd.DataFrame(cohort.latents["mean"].values, index=cohort.scans.index)
    found = run(
        cohort, {"methods": ALL_BUT_UMAP, "n_components": 2, "n_refits": 0}, group="group", voxel_scores=voxels[::-1]
    )
    ends = ["", " of regional means", " of voxel PCA"]
    expected = [f"{name}{axis}{end}" for end in ends for name in ("PC", "PLS", "t-SNE") for axis in (1, 2)]
    assert list(found.table["component"]) == expected
    assert list(found.data["component"].values) == expected
    # Voxel scores that are the latents, in another order of scans, make the same map.
    np.testing.assert_allclose(found.data["scores"].values[:, :2], found.data["scores"].values[:, 12:14], atol=1e-5)
    assert row(found, "voxel PCA", "all dimensions") == 8


def test_a_baseline_with_other_scans_is_refused(study):
    cohort = study()
    voxels = pd.DataFrame(np.ones((59, 2)), index=cohort.scans.index[1:])
    with pytest.raises(CohortError, match=r"sub-000 \(1 in all\) is not once in latents and voxel PCA"):
        run(cohort, voxel_scores=voxels)


def test_gaps_in_a_baseline_and_an_absent_site_are_refused(study):
    cohort = study()
    with pytest.raises(SettingError, match="Column 'centre', named as the site"):
        run(cohort, site="centre")
    cohort.regions.iloc[3, 2] = np.nan
    with pytest.raises(
        SettingError, match="table of regional means has a missing or infinite value in row 3, column 2"
    ):
        run(cohort)


def test_a_group_that_equals_the_site_is_nothing(study):
    cohort = study(n=80)
    cohort.scans["group"] = cohort.scans["site"]
    cohort.latents["mean"][cohort.scans["site"].to_numpy() == "x"] += 5
    found = run(cohort, group="group", site="site")
    assert (found.table["p_group"] == 1).all()
    assert (found.data["purity_p"].sel(variable=found.data["variable"] == "group").values[:, 0] == 1).all()


def test_faithfulness_is_that_of_the_plane_against_all_dimensions(study):
    cohort = study()
    found, z = run(cohort), cohort.latents["mean"].values.astype(float)
    at, plane = row(found, "latents", "PCA"), found.data["scores"].values[:, :2]
    expected = trustworthiness(z, plane, n_neighbors=6), trustworthiness(plane, z, n_neighbors=6)
    assert found.data["trustworthiness"].values[at, 0] == pytest.approx(expected[0])
    assert found.data["continuity"].values[at, 0] == pytest.approx(expected[1])
    assert list(found.data["n_judged"].values) == [60, 15]


def test_a_level_of_two_scans_is_as_if_unknown(study):
    cohort = study()
    values = []
    for rare in ("C", np.nan):
        cohort.scans.loc[cohort.scans.index[[10, 40]], "group"] = rare
        found = run(cohort, group="group")
        values.append(found.data["purity"].values[:, 0, -1])
    np.testing.assert_array_equal(*values)


def test_regions_count_alike_whatever_their_spread(study):
    cohort = study()
    before = run(cohort).data["scores"].values
    cohort.regions["Region_3"] *= 100
    cohort.regions["Region_5"] = 0.5
    of_regions = run(cohort).table["space"].eq("regional means").to_numpy()
    cohort.regions["Region_3"] /= 100
    after = run(cohort).data["scores"].values
    assert of_regions.any()
    assert not np.allclose(before[:, of_regions], after[:, of_regions])
    first = run(cohort).data["scores"].values
    cohort.regions["Region_3"] *= 100
    np.testing.assert_allclose(np.abs(run(cohort).data["scores"].values), np.abs(first), atol=1e-6)


def test_pls_is_shown_and_judged_on_other_scans_only(study):
    cohort = study(n=80, effect=4.0)
    found = run(cohort, {"methods": ("pls",)}, group="group")
    train = cohort.latents["part"].values == "train"
    assert np.isnan(found.data["scores"].values[train]).all()
    assert np.isfinite(found.data["scores"].values[~train]).all()
    assert of_pls(found)["n_subjects"] == 20
    at = row(found, "latents", "PLS")
    assert np.isnan(found.data["purity"].values[at, 0]).all()
    assert found.data["purity_p"].values[at, 1, -1] <= 0.01
    assert "on the 20 other subjects, share of neighbours of the same group: latents " in found.answer
    assert "PLS was told 'group'" in "".join(found.caveats)


def test_pls_does_not_look_at_the_target_of_other_scans(study):
    cohort = study(n=80)
    before = run(cohort, {"methods": ("pls",)}, group="group").data["scores"].values
    others = cohort.latents["part"].values != "train"
    cohort.scans.loc[others, "group"] = np.random.default_rng(5).permutation(cohort.scans["group"][others])
    np.testing.assert_array_equal(run(cohort, {"methods": ("pls",)}, group="group").data["scores"].values, before)


def test_pls_may_be_told_an_amount(study, rng):
    cohort = study(n=160)
    cohort.scans["score"] = cohort.latents["mean"].values[:, 0] + rng.normal(size=160)
    found = run(cohort, {"methods": ("pls",), "target": "score"})
    assert found.table["p_score"].min() <= 0.01
    assert (
        "PLS, told score of training scans, on the 40 other subjects, R2 of score on that of neighbours" in found.answer
    )
    assert "PLS was told 'score'" in "".join(found.caveats)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda scans, _: scans.drop(columns="group"), "its target 'group' is not a column"),
        (lambda scans, _: scans.assign(group=np.where(np.arange(60) < 2, "A", "B")), "training scans: 1 A, 44 B"),
        (lambda scans, part: scans.assign(group=np.where(part == "train", np.nan, 3.5)), "training scans: none with a"),
    ],
)
def test_why_there_is_no_pls(study, change, reason):
    cohort = study()
    scans = change(cohort.scans, cohort.latents["part"].values)
    config = ProjectionsConfig(methods=("pca", "pls"), n_permutations=9)
    found = projections(cohort.latents, cohort.regions, scans, config, group="group")
    assert "PLS" not in set(found.table["method"])
    assert any(line.startswith(f"PLS of latents, regional means was not run: {reason}") for line in found.caveats)


def test_latents_of_unseen_scans_alone_leave_nothing_to_judge_pls_on(study):
    cohort = study()
    unseen = cohort.latents.assign_coords(part=("scan", ["test"] * 60), subject_in_training=("scan", [False] * 60))
    config = ProjectionsConfig(methods=("pca", "pls"), n_permutations=9)
    found = projections(unseen, cohort.regions, cohort.scans, config, group="group")
    assert "no scan outside" in "".join(found.caveats)
    assert found.table["explained_heldout"].isna().all()


def test_a_method_whose_package_is_absent_is_listed_with_its_extra(study, monkeypatch):
    monkeypatch.setitem(sys.modules, "openTSNE", None)
    found = run(study(), {"methods": ("pca", "tsne")})
    assert any("t-SNE of latents" in line and "nilatent[embed]" in line for line in found.caveats)
    assert "nilatent[embed]" in found.settings["not_run"]["t-SNE of latents"]
    assert run(study(), {"methods": ("tsne",)}).not_run.startswith("The package 'openTSNE' is needed")


def test_sites_that_no_component_separates_are_a_failure_by_their_neighbours(study, rng):
    cohort = study(n=80)
    corner = rng.choice([-1, 1], (80, 2))
    cohort.latents["mean"][:, :2] += 60 * corner
    cohort.scans["site"] = np.where(corner.prod(axis=1) > 0, "x", "y")
    found = run(cohort, site="site")
    assert found.table.query("space == 'latents'")["p_site"].min() > 0.05
    assert found.caveats[0].startswith(
        "Failure: the latents separate the levels of 'site' on neighbours in all dimensions"
    )
    assert "neighbours in PCA (purity " in found.answer


def test_maps_repeat_where_there_is_something_to_repeat(study, rng):
    strong, noise = study(n=80), study(n=80)
    strong.latents["mean"][:, :2] += 40 * rng.normal(size=(80, 2))
    noise.latents["mean"][:] = rng.normal(size=(80, 6))
    first, second = (run(cohort, {"n_refits": 3}) for cohort in (strong, noise))
    at = row(first, "latents", "PCA")
    assert first.data["procrustes"].values[at] < 0.01 < second.data["procrustes"].values[at]
    assert first.data["overlap"].values[at] > 0.8 > second.data["overlap"].values[at]
    assert np.isnan(run(noise, {"n_refits": 0}).data["overlap"].values[at])


def test_flipping_moving_and_scaling_latents_changes_nothing(study, rng):
    cohort = study(n=64)
    config = {"methods": ALL_BUT_UMAP, "n_refits": 0, "n_permutations": 49}
    before = run(cohort, config, group="group")
    order, scale = rng.permutation(6), rng.choice([-1.0, 1.0], 6) * 2.0 ** rng.integers(-3, 4, 6)
    cohort.latents["mean"][:] = (cohort.latents["mean"].values * scale)[:, order]
    cohort.latents["image_scale"][:] = (1 / np.abs(scale))[order]
    after = run(cohort, config, group="group")
    pd.testing.assert_frame_equal(after.table, before.table, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(after.data["purity_fwe"].values, before.data["purity_fwe"].values)


def test_training_scans_placed_again_lie_near_themselves(study, tmp_path):
    cohort = study()
    cohort.latents["image_scale"][:] = np.arange(1, 7)
    write_finding(run(cohort, {"methods": ALL_BUT_UMAP, "n_refits": 0}, group="group"), tmp_path)
    found = read_finding(tmp_path)
    placed = place_scans(found, cohort.latents)
    train = cohort.latents["part"].values == "train"
    shown = pd.DataFrame(found.data["scores"].values, placed.index, found.data["component"].values)[placed.columns]
    np.testing.assert_allclose(placed.filter(like="PC"), shown.filter(like="PC"), atol=1e-6)
    np.testing.assert_allclose(placed[~train], shown[~train], atol=1e-6)
    away = np.linalg.norm(placed.filter(like="t-SNE")[train] - shown.filter(like="t-SNE")[train], axis=1)
    assert np.median(away) < 0.1 * shown["t-SNE1"][train].std()
    alone = place_scans(found, cohort.latents.isel(scan=[7]))
    np.testing.assert_allclose(alone, placed.iloc[[7]], atol=1e-9)


def test_scans_of_another_model_are_not_placed(study):
    cohort = study()
    found = run(cohort)
    with pytest.raises(LatentsError, match="6 of model 'other'"):
        place_scans(found, cohort.latents.assign_attrs(model_hash="other"))
    with pytest.raises(LatentsError, match="scans have 'PCA of a grid'"):
        place_scans(found, cohort.latents.assign_attrs(compact="PCA of a grid"))
    with pytest.raises(LatentsError, match="latents of model"):
        place_scans(found, cohort.latents.isel(latent=slice(3)))


def test_settings_out_of_range_are_refused():
    for options in ({"methods": ()}, {"methods": ("pca", "pca")}, {"methods": ("mds",)}, {"n_permutations": 0}):
        with pytest.raises(SettingError, match=r"projections\."):
            ProjectionsConfig(**options)


@pytest.mark.slow
def test_umap_stands_beside_the_others(study):
    cohort = study(n=80)
    cohort.latents["mean"][cohort.scans["group"].to_numpy() == "AD"] += 30
    found = run(cohort, {"methods": ("pca", "umap"), "n_refits": 2}, group="group")
    at = row(found, "latents", "UMAP")
    assert found.data["purity"].values[at, 0, -1] > 0.95
    assert found.data["overlap"].values[at] > 2 * found.data["overlap_chance"].values[at]
    again = run(cohort, {"methods": ("pca", "umap"), "n_refits": 2}, group="group")
    np.testing.assert_array_equal(found.data["scores"].values, again.data["scores"].values)
    placed = place_scans(found, cohort.latents)
    train = cohort.latents["part"].values == "train"
    first = list(found.table["component"]).index("UMAP1")
    shown = found.data["scores"].values[:, first : first + 2]
    away = np.linalg.norm(placed[["UMAP1", "UMAP2"]].to_numpy() - shown, axis=1)
    assert np.median(away[train]) < 0.5 * shown[train].std(axis=0).max()
    np.testing.assert_allclose(away[~train], 0, atol=1e-9)


@pytest.mark.slow
@pytest.mark.calibration
def test_pls_on_noise_separates_training_scans_and_no_others(study):
    called, trained = [], []
    for seed in range(200):
        cohort = study(n=60, n_latent=30)
        rng = np.random.default_rng(seed)
        cohort.latents["mean"][:] = rng.normal(size=(60, 30))
        cohort.scans["group"] = rng.permutation(cohort.scans["group"])
        config = {"methods": ("pls",), "n_permutations": 99, "n_refits": 0}
        found = run(cohort, config, group="group", covariates=[])
        called.append(of_pls(found)["p_group"] <= 0.05)
        train = cohort.latents["part"].values == "train"
        told = place_scans(found, cohort.latents)["PLS1"].to_numpy()[train]
        group = (cohort.scans["group"].to_numpy()[train] == "AD").astype(float)
        trained.append(np.corrcoef(told, group)[0, 1] ** 2)
    assert np.median(trained) > 0.4
    assert binomtest(int(np.sum(called)), 200, 0.05).pvalue > 0.01
