from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from scipy.stats import t as student_t
from sklearn.metrics import roc_auc_score

from nilatent.analysis.latent_space import LatentSpace
from nilatent.analysis.sensitivity import COLUMNS, SensitivityConfig, sensitivity
from nilatent.analysis.sensitivity.decoder import changes_of, read_decoder, region_means
from nilatent.atlas import RegionWeights
from nilatent.errors import CohortError, SettingError
from nilatent.finding import read_finding, write_finding
from nilatent.latents import Frame

N, REGIONS, WIDE, FOLDS = 120, 12, 4, 3
PLANTED = (2, 7)
CONFIG = SensitivityConfig(covariates=("age",), n_permutations=199)


@dataclass(frozen=True, eq=False)
class Made:
    """A cohort of which everything is known."""

    study: LatentSpace
    spaces: list
    regions: pd.DataFrame
    scans: pd.DataFrame
    weights: RegionWeights
    grid: object
    mask: np.ndarray
    loadings: np.ndarray

    def run(self, config=CONFIG, **changes):
        parts = {
            name: getattr(self, name) for name in ("study", "spaces", "regions", "scans", "weights", "grid", "mask")
        }
        lrcp = changes.pop("lrcp", None)
        return sensitivity(**(parts | changes), config=config, lrcp=lrcp)


def linear_space(z, training, pattern, turn, *, bend=0.0, voxels=None):
    """Latents turned by an orthogonal matrix, and a decoder that undoes it; `bend` adds the cube of what is drawn."""

    def draw(latents, _told):
        for start in range(0, len(latents), 7):
            moved = latents[start : start + 7] @ turn.T @ pattern
            yield (0.5 + moved + bend * moved**3).astype(np.float32)

    n = len(z)
    return LatentSpace(
        scans=pd.Index([f"scan-{i:03d}" for i in range(n)], name="scan_id"),
        subjects=np.array([f"sub-{i:03d}" for i in range(n)]),
        values=z @ turn,
        frame=Frame(np.zeros(WIDE), np.eye(WIDE)),
        variance=np.zeros((n, WIDE)),
        names=tuple(f"z{i:03d}" for i in range(WIDE)),
        training=training,
        unseen=~training,
        has_prior=False,
        told=(),
        draw_latents=draw,
    )


@pytest.fixture
def make(rng, grid):
    """The first latent is the group's and moves planted regions alone; the second is the age's; all others move all."""

    def made(*, effect=1.5, n=N, bend=0.0, noise=0.02):
        mask = np.zeros(grid.shape, dtype=bool)
        mask[2:-2, 2:-3, 1:-2] = True
        voxels = np.arange(int(mask.sum()))
        matrix = sparse.coo_matrix((np.ones(len(voxels)), (voxels % REGIONS, voxels))).tocsr()
        names = [f"Region_{i}" for i in range(REGIONS)]
        weights = RegionWeights(matrix, np.arange(REGIONS) * 10 + 1, names, pd.DataFrame())
        loadings = 0.05 * rng.normal(size=(WIDE, REGIONS))
        loadings[0] = np.where(np.isin(np.arange(REGIONS), PLANTED), 0.1, 0.0)
        patient, age = np.arange(n) % 2 == 1, rng.normal(70, 8, n)
        z = rng.normal(size=(n, WIDE))
        z[:, 0] -= effect * patient
        z[:, 1] -= (age - 70) / 8
        folds = rng.permutation(n) % FOLDS
        turns = [np.linalg.qr(rng.normal(size=(WIDE, WIDE)))[0] for _ in range(FOLDS)]
        pattern = loadings[:, voxels % REGIONS]
        spaces = [linear_space(z, folds != fold, pattern, turns[fold], bend=bend) for fold in range(FOLDS)]
        study = linear_space(z, folds != 0, pattern, np.eye(WIDE), bend=bend)
        moved = z @ loadings
        regions = 0.5 + moved + bend * moved**3 + noise * rng.normal(size=(n, REGIONS))
        scans = pd.DataFrame(
            {"subject_id": study.subjects, "age": age, "group": np.where(patient, "AD", "CN")}, index=study.scans
        )
        frame = pd.DataFrame(regions, index=study.scans, columns=names)
        return Made(study, spaces, frame, scans, weights, grid, mask, loadings)

    return made


def of(found, name):
    return found.table[found.table["direction"] == name].set_index("label").sort_index()


def step_of(cohort, space, column):
    """Slope of the latents on a column, age or group held, among the training scans."""
    patient = (cohort.scans["group"] == "AD").to_numpy(dtype=float)
    design = np.column_stack([patient, cohort.scans["age"], np.ones(len(patient))])[space.training]
    return np.linalg.lstsq(design, space.coordinates[space.training], rcond=None)[0][column]


def test_the_group_moves_the_planted_regions_and_no_others(make, tmp_path):
    cohort = make()
    found = cohort.run()
    table = of(found, "group:AD:CN")
    planted = np.isin(np.arange(REGIONS), PLANTED)
    assert roc_auc_score(planted, table["effect"].abs()) == 1
    assert (table["p"].to_numpy()[planted] <= 0.05).all()
    assert (table["effect"].to_numpy()[planted] < -0.1).all()
    assert found.table.iloc[0]["region"] in {"Region_2", "Region_7"}
    assert "group:AD:CN (AD minus CN) moves" in found.answer
    assert tuple(found.table.columns) == COLUMNS
    write_finding(found, tmp_path)
    pd.testing.assert_frame_equal(read_finding(tmp_path).table, found.table, check_dtype=False)
    inside = found.maps["effect"].get_fdata()[cohort.mask]
    np.testing.assert_allclose(inside[:REGIONS], table["effect"], rtol=1e-4, atol=1e-6)
    assert set(found.maps) == {
        "effect",
        "effect_group-AD-CN",
        "effect_age",
        "effect_discriminant-AD-CN",
        "effect_pls-age",
    } | {f"effect_pc{k}" for k in (1, 2, 3)}


def test_of_a_linear_decoder_the_effect_is_the_loading_times_the_step_whatever_the_basis(make):
    cohort = make()
    found = cohort.run()
    patterns = [np.linalg.lstsq(cohort.study.values, space.values, rcond=None)[0] for space in cohort.spaces]
    for name, column, size in (("group:AD:CN", 0, 1), ("age", 1, 10)):
        by_model = [
            size * step_of(cohort, space, column) @ turn.T @ cohort.loadings
            for space, turn in zip(cohort.spaces, patterns, strict=True)
        ]
        table = of(found, name)
        np.testing.assert_allclose(table["effect"], np.mean(by_model, axis=0), atol=1e-5)
        np.testing.assert_allclose(table["fold_low"], np.min(by_model, axis=0), atol=1e-5)
        np.testing.assert_allclose(table["fold_high"], np.max(by_model, axis=0), atol=1e-5)
        np.testing.assert_allclose((table["low"] + table["high"]) / 2, table["effect"])
        mean = 0.5 + np.mean([s.values[s.training].mean(axis=0) @ t.T for s, t in zip(cohort.spaces, patterns, strict=True)], axis=0) @ cohort.loadings  # fmt: skip  # noqa: E501
        np.testing.assert_allclose(table["effect_percent"], 100 * table["effect"] / mean, rtol=1e-3, atol=1e-3)
    assert float(found.data["departure"].max()) < 1e-3
    sd = cohort.study.values[cohort.study.training].std(axis=0, ddof=1)
    np.testing.assert_allclose(found.data["effect"].sel(direction="z002"), sd[2] * cohort.loadings[2], atol=1e-5)


def test_intervals_are_those_of_the_regression_of_what_is_drawn(make):
    cohort = make()
    table = of(cohort.run(spaces=[cohort.study]), "age")
    own = cohort.study.training
    drawn = cohort.study.values[own] @ cohort.loadings
    patient = (cohort.scans["group"] == "AD").to_numpy(dtype=float)[own]
    design = np.column_stack([cohort.scans["age"][own], patient, np.ones(len(patient))])
    left = drawn - design @ np.linalg.lstsq(design, drawn, rcond=None)[0]
    degrees = len(patient) - 3
    error = np.sqrt(np.square(left).sum(axis=0) / degrees * np.linalg.inv(design.T @ design)[0, 0])
    half_width = 10 * student_t.ppf(0.975, degrees) * error
    np.testing.assert_allclose((table["high"] - table["low"]) / 2, half_width, atol=1e-5)


def test_without_a_group_effect_no_region_is_called(make):
    found = make(effect=0.0).run()
    table = of(found, "group:AD:CN")
    assert (table["p"] > 0.05).all()
    assert "No region is moved by group:AD:CN" in found.answer


def test_the_reach_says_how_far_the_decoder_is_moved(make):
    cohort = make(bend=2.0)
    space, weights = cohort.study, cohort.weights
    rows = np.flatnonzero(space.training)
    decoder = read_decoder(space, rows, weights)
    step = np.eye(WIDE)[2] * space.values[rows, 2].std(ddof=1)
    assert decoder.units(step, reach=2.0) == pytest.approx(2)
    assert decoder.units(5 * step, reach=2.0) == pytest.approx(0.4)
    assert decoder.units(step, reach=3.0) == pytest.approx(3)
    drawn = region_means(next(changes_of(space, decoder.centre, [step], [2.0])), weights)
    at, move = decoder.centre @ cohort.loadings, step @ cohort.loadings
    np.testing.assert_allclose(drawn, move + 2 * (3 * at**2 * move + 4 * move**3), atol=1e-5)
    slope = (move + 2 * (3 * at**2 * move + move**3)) / space.values[rows, 2].std(ddof=1)
    np.testing.assert_allclose(decoder.slopes[:, 2], slope, atol=1e-5)
    far = cohort.run(replace(CONFIG, reach=4.0)).data["effect"].sel(direction="z002")
    np.testing.assert_allclose(far, move + 2 * (3 * at**2 * move + 16 * move**3), atol=1e-5)


def test_slopes_are_those_at_the_mean_and_other_latents_go_along_in_people(make):
    cohort = make()
    mixed = replace(cohort.study, values=cohort.study.values @ np.array([[1, 0.8, 0, 0], *np.eye(4)[1:].tolist()]))
    rows = np.flatnonzero(mixed.training)
    decoder = read_decoder(mixed, rows, cohort.weights)
    np.testing.assert_allclose(decoder.slopes, cohort.loadings.T, atol=1e-5)
    drawn = mixed.values[rows] @ cohort.loadings
    score = mixed.values[rows, 1]
    slope = np.linalg.lstsq(np.column_stack([score, np.ones(len(rows))]), drawn, rcond=None)[0][0]
    np.testing.assert_allclose(decoder.among_people(np.eye(4)[1]), slope * score.std(ddof=1), atol=1e-5)
    np.testing.assert_allclose(decoder.among_people(5 * np.eye(4)[1]), slope * score.std(ddof=1), atol=1e-5)


def test_a_decoder_that_bends_is_said_first(make):
    found = make(bend=60.0).run()
    assert float(found.data["departure"].sel(direction="group:AD:CN")) > 0.2
    assert found.answer.startswith("The decoder bends")


def test_unseen_scans_judge_and_training_scans_do_not(make, rng):
    cohort = make()
    before = cohort.run(spaces=[cohort.study])
    regions = cohort.regions.copy()
    regions.loc[cohort.study.scans[cohort.study.training]] = rng.normal(size=(cohort.study.training.sum(), REGIONS))
    after = cohort.run(spaces=[cohort.study], regions=regions)
    for name in ("agreement", "unseen", "p_unseen", "claim"):
        np.testing.assert_allclose(after.data[name], before.data[name])
    assert np.abs(after.data["baseline_agreement"] - before.data["baseline_agreement"]).max() > 0.1
    assert float(before.data["agreement"].sel(direction="z002")) > 0.7
    regions = cohort.regions.copy()
    unseen = cohort.study.scans[cohort.study.unseen]
    regions.loc[unseen] = rng.permutation(regions.loc[unseen].to_numpy())
    shuffled = cohort.run(spaces=[cohort.study], regions=regions)
    assert float(shuffled.data["agreement_p"].sel(direction="z002")) > 0.05
    np.testing.assert_allclose(shuffled.data["effect"], before.data["effect"])
    np.testing.assert_allclose(shuffled.data["p"], before.data["p"])


def test_each_model_is_judged_by_its_own_unseen_scans(make):
    cohort = make()
    found = cohort.run()
    one = found.data.sel(direction="group:AD:CN")
    assert int(one["n_unseen"]) == N
    for judge, space in enumerate(cohort.spaces):
        patient = (cohort.scans["group"] == "AD").to_numpy(dtype=float)[space.unseen]
        design = np.column_stack([patient, cohort.scans["age"][space.unseen], np.ones(len(patient))])
        slopes = np.linalg.lstsq(design, cohort.regions[space.unseen], rcond=None)[0]
        np.testing.assert_allclose(one["unseen"][judge], slopes[0])
        np.testing.assert_allclose(found.data["unseen"].sel(direction="age")[judge], 10 * slopes[1])
    np.testing.assert_allclose(one["claim"].mean("judge"), one["effect"])
    assert of(found, "group:AD:CN")["unseen"].isna().all()
    alone = cohort.run(spaces=[cohort.study])
    np.testing.assert_allclose(of(alone, "group:AD:CN")["unseen"], alone.data.sel(direction="group:AD:CN")["unseen"][0])
    assert found.data["agreement_latent"].shape == (FOLDS,)
    assert (found.data["agreement_component"] > 0.7).all()


def test_a_latent_that_the_decoder_draws_and_scans_do_not_follow_is_found_out(make):
    cohort = make()
    values = cohort.regions.to_numpy() - np.outer(cohort.study.values[:, 3], cohort.loadings[3])
    found = cohort.run(regions=pd.DataFrame(values, index=cohort.regions.index, columns=cohort.regions.columns))
    agreement = found.data["agreement"]
    assert abs(float(agreement.sel(direction="z003"))) < 0.7 < float(agreement.sel(direction="z002"))
    assert float(found.data["p_unseen"].sel(direction="z002").min()) == 1 / 200
    np.testing.assert_allclose(
        found.data["effect"].sel(direction="z003"), cohort.run().data["effect"].sel(direction="z003")
    )


def test_the_p_of_plain_regional_analysis_does_not_ask_the_decoder(make, rng):
    cohort = make()
    blind = replace(cohort.study, draw_latents=lambda z, _: iter([np.full((len(z), int(cohort.mask.sum())), 0.5)]))
    found = cohort.run(study=blind, spaces=[blind])
    table = of(found, "group:AD:CN")
    assert (table["p"] == 1).all()
    assert (table["effect"] == 0).all()
    assert (table["p_regional"].to_numpy()[list(PLANTED)] <= 0.05).all()
    assert found.answer.startswith(
        "Plain regional regression on the same scans calls more regions than the decoder: group:AD:CN"
    )
    assert float(found.data["carried"].sel(direction="group:AD:CN")) == 0


def test_the_share_that_the_decoder_draws_is_told(make):
    cohort = make(noise=1e-4)
    assert float(cohort.run(spaces=[cohort.study]).data["carried"].sel(direction="age")) == pytest.approx(1, abs=0.01)
    half = replace(cohort.study, draw_latents=lambda z, told: (0.4 * one for one in cohort.study.draw_latents(z, told)))
    found = cohort.run(study=half, spaces=[half])
    assert float(found.data["carried"].sel(direction="group:AD:CN")) == pytest.approx(0.4, abs=0.01)
    assert "the decoder draws 40% of its slopes" in found.answer
    assert np.isnan(found.data["carried"].sel(direction="pls:age"))


def test_sites_are_held_and_keep_their_scans(make, rng):
    cohort = make(effect=0.0)
    site = np.where(rng.random(N) < 0.8, cohort.scans["group"] == "AD", cohort.scans["group"] == "CN").astype(int)
    shift = np.outer(3.0 * site, np.eye(WIDE)[0])
    spaces = [replace(cohort.study, values=cohort.study.values + shift)]
    scans = cohort.scans.assign(site=site)
    naive, held = (
        of(cohort.run(replace(CONFIG, site=name), study=spaces[0], spaces=spaces, scans=scans), "group:AD:CN")
        for name in ("", "site")
    )
    assert naive["p"].min() <= 0.05 < held["p"].min()
    assert held["effect"].abs().max() < naive["effect"].abs().max() / 2
    # The same model without blocks: other permutations, the same effect.
    config = replace(CONFIG, covariates=("age", "site"))
    free = of(cohort.run(config, study=spaces[0], spaces=spaces, scans=scans), "group:AD:CN")
    np.testing.assert_allclose(free["effect"], held["effect"])
    assert (free["p"] != held["p"]).any()
    assert (free["p_regional"] != held["p_regional"]).any()


def test_lrcp_joins_by_region_and_contrast(make):
    cohort = make()
    names = list(cohort.regions.columns)[::-1]
    strong = [0.9 if name in {"Region_2", "Region_7"} else 0.1 + 0.001 * k for k, name in enumerate(names)]
    lrcp = pd.DataFrame({"name": names, "rank": range(1, REGIONS + 1), "a": strong, "grade": "none", "p": 0.5})
    found = cohort.run(spaces=[cohort.study], lrcp=lrcp)
    table = of(found, "group:AD:CN")
    np.testing.assert_allclose(table["lrcp_rank"], range(REGIONS, 0, -1))
    assert (table["lrcp_a"].to_numpy()[list(PLANTED)] == 0.9).all()
    order = table["effect"].abs().rank().corr(table["lrcp_a"].rank())
    assert float(found.data["lrcp_a_correlation"].sel(direction="group:AD:CN")) == pytest.approx(order)
    by_rank = table["effect"].abs().rank().corr((-table["lrcp_rank"]).rank())
    assert float(found.data["lrcp_rank_correlation"].sel(direction="group:AD:CN")) == pytest.approx(by_rank)
    two = pd.concat([lrcp.assign(contrast="AD:CN"), lrcp.assign(contrast="MCI:CN", a=0.3)])
    several = cohort.run(spaces=[cohort.study], lrcp=two)
    assert (of(several, "group:AD:CN")["lrcp_a"].to_numpy()[list(PLANTED)] == 0.9).all()
    assert of(several, "age")["lrcp_a"].isna().all()
    with pytest.raises(SettingError, match="Region_0"):
        cohort.run(spaces=[cohort.study], lrcp=lrcp[lrcp["name"] != "Region_0"])


def test_strips_go_from_two_units_down_to_two_up(make):
    cohort = make()
    data = cohort.run().data.sel(shown="group:AD:CN")
    np.testing.assert_allclose(data["axial_change"].sel(step=0.0).fillna(0), 0)
    np.testing.assert_allclose(
        data["coronal_change"].sel(step=2.0).values, -data["coronal_change"].sel(step=-2.0).values, atol=1e-6
    )
    step = step_of(cohort, cohort.study, 0) @ cohort.loadings
    assert float(data["axial_change"].sel(step=1.0).min()) == pytest.approx(step.min(), rel=1e-3)
    np.testing.assert_allclose(np.diff(data["x"]), cohort.grid.spacing_mm)
    assert float(data["axial_mm"]) in data["z"]
    assert np.isnan(data["axial"].values[:, 0, 0]).all()


def test_what_is_not_asked_is_said(make):
    cohort = make()
    few = replace(cohort.study, training=np.arange(N) < 15, unseen=np.zeros(N, dtype=bool))
    assert "15 training subjects" in cohort.run(study=few, spaces=[few]).not_run
    flat = replace(cohort.study, values=np.ones((N, WIDE)))
    assert "the same latents" in cohort.run(study=flat, spaces=[flat]).not_run
    found = cohort.run(scans=cohort.scans.drop(columns="group"))
    assert "No direction group: no group column." in found.caveats
    assert found.table.iloc[0]["direction"] == "age"
    sized = cohort.scans.assign(head_size_factor=1.0 + 0.01 * np.arange(N))
    assert any("Head size" in line for line in cohort.run(scans=sized).caveats)
    told = [replace(space, told=("age",)) for space in cohort.spaces]
    found = cohort.run(study=replace(cohort.study, told=("age",)), spaces=told)
    assert "age" not in set(found.table["direction"])
    blind = [replace(space, unseen=np.zeros(N, dtype=bool)) for space in cohort.spaces]
    found = cohort.run(study=replace(cohort.study, unseen=np.zeros(N, dtype=bool)), spaces=blind)
    assert "Too few scans are unseen" in found.answer
    assert np.isnan(found.data["agreement"]).all()
    one_fold = [*cohort.spaces[:-1], replace(cohort.spaces[-1], training=np.arange(N) < 12, unseen=np.arange(N) > 50)]
    found = cohort.run(spaces=one_fold)
    assert any("not in every model" in line for line in found.caveats)


def test_parts_that_do_not_belong_together_are_refused(make):
    cohort = make()
    with pytest.raises(CohortError, match="regions lack scans"):
        cohort.run(regions=cohort.regions.iloc[1:])
    with pytest.raises(CohortError, match="not those of the atlas"):
        cohort.run(regions=cohort.regions[cohort.regions.columns[::-1]])
    with pytest.raises(CohortError, match="do not hold the same scans"):
        cohort.run(spaces=[])


@pytest.mark.parametrize("wrong", [{"reach": 0.0}, {"n_permutations": 0}, {"alpha": 1.0}])
def test_settings_out_of_range_are_named(wrong):
    with pytest.raises(SettingError, match=f"sensitivity.{next(iter(wrong))}"):
        SensitivityConfig(**wrong)


def test_the_seed_and_the_number_of_permutations_count(make):
    cohort = make(effect=0.3)
    p = [
        of(cohort.run(replace(CONFIG, seed=seed), spaces=[cohort.study]), "group:AD:CN")["p"].to_numpy()
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(p[0], p[1])
    assert (p[0] != p[2]).any()
    fewer = of(cohort.run(replace(CONFIG, n_permutations=9), spaces=[cohort.study]), "group:AD:CN")["p"]
    assert np.allclose(fewer * 10 % 1, 0) or fewer.min() >= 0.1


def test_the_level_decides_what_is_called(make):
    found = make().run(replace(CONFIG, alpha=0.9))
    called = int((of(found, "group:AD:CN")["p"] <= 0.9).sum())
    assert called > len(PLANTED)
    assert f"moves {called} of {REGIONS} regions (family-wise error 0.9)" in found.answer
