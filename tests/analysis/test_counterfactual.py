from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from nilatent.analysis.contrast import NotComparableError
from nilatent.analysis.counterfactual import TOTAL, CounterfactualConfig, agreement, counterfactual, shift, slopes_of
from nilatent.analysis.counterfactual.change import Change, changes_of, held_columns
from nilatent.analysis.counterfactual.decoded import DOSES, Decoded, decode, jacobian, readout_matrix, true_readouts
from nilatent.analysis.counterfactual.judged import Fold, Resampled, crossed, resampled
from nilatent.analysis.counterfactual.slopes import pattern, people_of
from nilatent.analysis.latent_space import LatentSpace
from nilatent.analysis.stats import permutations
from nilatent.atlas import RegionWeights
from nilatent.errors import CohortError, SettingError
from nilatent.finding import read_finding, write_finding
from nilatent.latents import Frame
from nilatent.volumes import Volumes, volumes_in_memory

N_LATENT, N_REGIONS, N_FOLDS = 6, 12, 3
AGE_STEP = np.array([0.03, -0.02, 0.0, 0.01, 0.0, 0.0])
CASE_STEP = np.array([0.0, 0.0, 1.5, 0.0, 0.0, 0.0])
CONFIG = CounterfactualConfig(covariates=("age", "sex"), n_bootstrap=100, n_permutations=199)


@dataclass(frozen=True, eq=False)
class World:
    """Images that are a linear drawing of known causes, and perfect encoders of them."""

    spaces: list[LatentSpace]
    volumes: Volumes
    regions: pd.DataFrame
    scans: pd.DataFrame
    weights: RegionWeights
    causes: np.ndarray
    mean: np.ndarray
    patterns: np.ndarray


@pytest.fixture
def world(rng, grid):
    def make(*, n=60, bend=0.0, batch=7, age_step=AGE_STEP, told=(), case_step=CASE_STEP):
        mask = np.zeros(grid.shape, dtype=bool)
        mask[2:-2, 2:-2, 2:-2] = True
        n_voxels = int(mask.sum())
        names = pd.Index([f"sub-{i:03d}" for i in range(n)], name="scan_id")
        scans = pd.DataFrame({"subject_id": names, "session_id": "", "dataset": "ds"}, index=names)
        scans["age"], scans["sex"] = rng.uniform(20, 70, n).round(1), rng.choice(["F", "M"], n)
        scans["group"] = np.where(rng.permutation(n) < n // 2, "AD", "CN")
        z = 0.5 * rng.normal(size=(n, N_LATENT)) + np.outer(scans["age"], age_step)
        z += np.outer(scans["group"] == "AD", case_step)
        matrix = sparse.csr_matrix((np.ones(n_voxels), (np.arange(n_voxels) % N_REGIONS, np.arange(n_voxels))))
        weights = RegionWeights(matrix, np.arange(N_REGIONS), [f"Region_{i}" for i in range(N_REGIONS)], pd.DataFrame())
        mean = rng.uniform(0.3, 0.6, n_voxels)
        # Each region answers to every cause in its own way, so that regional effects are known.
        patterns = 0.01 * rng.normal(size=(N_LATENT, N_REGIONS))[:, np.arange(n_voxels) % N_REGIONS]
        patterns = patterns * rng.uniform(0.5, 1.5, n_voxels)

        def draw(latents, table):
            for start in range(0, len(latents), batch):
                part = latents[start : start + batch]
                image = mean + part @ patterns + bend * np.square(part) @ np.abs(patterns)
                if told:
                    ages = table["age"].to_numpy(float)[start : start + batch]
                    image = image + np.outer(ages - 45, AGE_STEP @ patterns)
                yield image.astype(np.float32)

        images = np.zeros((n, *grid.shape))
        images[:, mask] = np.concatenate(list(draw(z, scans)))
        images[:, mask] += 0.002 * rng.normal(size=(n, n_voxels))
        volumes = volumes_in_memory(images, mask=mask, grid=grid, scans=scans)
        x = volumes.masked(np.arange(n))
        regions = pd.DataFrame((matrix @ x.T).T / weights.n_voxels, index=names, columns=weights.names)
        spaces = []
        for fold in range(N_FOLDS):
            turn = np.linalg.qr(rng.normal(size=(N_LATENT, N_LATENT)))[0]
            seen = np.arange(n) % N_FOLDS != fold
            spaces.append(
                LatentSpace(
                    scans=names,
                    subjects=names.to_numpy(str),
                    values=z @ turn,
                    frame=Frame(np.zeros(N_LATENT), np.eye(N_LATENT)),
                    variance=np.zeros((n, N_LATENT)),
                    names=tuple(f"z{i:03d}" for i in range(N_LATENT)),
                    training=seen,
                    unseen=~seen,
                    has_prior=True,
                    told=told,
                    draw_latents=lambda latents, table, turn=turn: draw(latents @ turn.T, table),
                )
            )
        return World(spaces, volumes, regions, scans, weights, z, mean, patterns)

    return make


def run(made, config=CONFIG, **changes):
    parts = {name: getattr(made, name) for name in ("spaces", "volumes", "regions", "scans", "weights")}
    return counterfactual(**(parts | changes), config=config)


def naive_slope(space, scans, column, others):
    rows = np.flatnonzero(space.training)
    design = np.column_stack([np.ones(len(rows)), column[rows], *(other[rows] for other in others)])
    return np.linalg.lstsq(design, space.coordinates[rows], rcond=None)[0][1]


def test_numbers_move_along_the_regression_of_training_scans_on_them(world):
    made = world()
    space, scans, rows = made.spaces[0], made.scans, np.array([5, 0, 33])
    age, male = scans["age"].to_numpy(), (scans["sex"] == "M").to_numpy(float)
    step = naive_slope(space, scans, age, [male])
    steps, told = shift(space, scans, rows, {"age": "+10"}, others=("sex",))
    assert told is None
    np.testing.assert_allclose(steps, np.tile(10 * step, (3, 1)), rtol=1e-6)
    back, _ = shift(space, scans, rows, {"age": "-10"}, others=("sex",))
    np.testing.assert_allclose(steps + back, 0, atol=1e-12)
    for seventy in (70.0, "70"):
        to, _ = shift(space, scans, rows, {"age": seventy}, others=("sex",))
        np.testing.assert_allclose(to, np.outer(70 - age[rows], step), rtol=1e-6)
    unheld, _ = shift(space, scans, rows, {"age": "+10"})
    assert not np.allclose(unheld, steps, rtol=1e-3)
    changed = scans.assign(age=scans["age"].where(space.training, 99.0))
    np.testing.assert_allclose(shift(space, changed, rows, {"age": "+10"}, others=("sex",))[0], steps)


def test_categories_move_from_the_level_of_each_scan(world):
    made = world()
    space, scans = made.spaces[1], made.scans
    rows, case = np.arange(10), (scans["group"] == "AD").to_numpy(float)
    age = scans["age"].to_numpy()
    step = naive_slope(space, scans, case, [age])
    steps, _ = shift(space, scans, rows, {"group": "CN"}, others=("age",))
    np.testing.assert_allclose(steps, np.outer(-case[rows], step), atol=1e-9)
    both, _ = shift(space, scans, rows, {"group": "CN", "age": "+5"})
    years = naive_slope(space, scans, age, [case])
    np.testing.assert_allclose(both, steps + 5 * years, atol=1e-9)


def test_a_site_that_is_changed_is_not_held(world):
    made = world()
    space, scans = made.spaces[1], made.scans.assign(site=np.where(np.arange(len(made.scans)) % 2, "a", "b"))
    rows = np.flatnonzero(space.unseen)[:4]
    plain, _ = shift(space, scans, rows, {"site": "a"})
    named, _ = shift(space, scans, rows, {"site": "a"}, site="site")
    np.testing.assert_allclose(named, plain)
    assert np.abs(plain).max() > 0


def test_a_decoder_that_is_told_the_column_is_told_anew_and_latents_stay(world):
    made = world(told=("age",))
    space, scans, rows = made.spaces[0], made.scans, np.array([3, 4])
    kept = scans.copy()
    steps, told = shift(space, scans, rows, {"age": "+10"}, others=("sex",))
    assert not steps.any()
    np.testing.assert_allclose(told["age"], scans["age"].iloc[rows] + 10)
    np.testing.assert_allclose(shift(space, scans, rows, {"age": 50.0})[1]["age"], 50)
    moved, same = shift(space, scans, rows, {"group": "CN"})
    np.testing.assert_array_equal(same["age"], scans["age"].iloc[rows])
    assert moved[scans["group"].iloc[rows] == "AD"].any() or (scans["group"].iloc[rows] == "CN").all()
    pd.testing.assert_frame_equal(scans, kept)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"weight": "+1"}, SettingError, "'weight'"),
        ({"age": "old"}, SettingError, "'old'"),
        ({"group": "MCI"}, SettingError, "AD, CN"),
        ({"age": 70.0}, CohortError, "sub-002"),
    ],
)
def test_changes_that_mean_nothing_are_refused(world, changes, error, words):
    made = world()
    made.scans.loc["sub-002", "age"] = np.nan
    with pytest.raises(error, match=words):
        shift(made.spaces[0], made.scans, np.array([2]), changes)
    with pytest.raises(CohortError, match="sub-007"):
        shift(made.spaces[0], made.scans.drop("sub-007"), np.array([2]), {})


def test_the_planted_effects_are_found_and_the_finding_comes_back(world, tmp_path):
    made = world(n=120)
    found = run(made)
    assert found.settings["asked"] == ["10 years older", "AD as CN"]
    true = {"10 years older": 10 * AGE_STEP, "AD as CN": -CASE_STEP}
    for change, step in true.items():
        table = found.table[found.table["change"] == change].set_index("region")
        effect = made.weights.matrix @ (step @ made.patterns) / made.weights.n_voxels
        size = np.abs(effect).max()
        np.testing.assert_allclose(table.loc[made.weights.names, "effect"], effect, atol=0.5 * size)
        assert np.corrcoef(table.loc[made.weights.names, "effect"], effect)[0, 1] > 0.9
        ml = made.volumes.grid.voxel_ml
        assert table.loc[TOTAL, "ml"] == pytest.approx((table.loc[made.weights.names, "ml"]).sum(), rel=1e-4)
        assert ((table["effect_low"] <= table["effect"]) & (table["effect"] <= table["effect_high"])).all()
        region = table.loc["Region_3"]
        assert region["ml"] == pytest.approx(region["effect"] * made.weights.n_voxels[3] * ml)
        judged = made.scans["group"] == "AD" if change == "AD as CN" else np.ones(120, dtype=bool)
        assert region["percent"] == pytest.approx(100 * region["effect"] / made.regions.loc[judged, "Region_3"].mean())
        data = found.data.sel(change=change)
        assert float(data["rho"]) > 0.5
        assert float(data["rho_p"]) < 0.02
        assert float(data["explained_p"]) < 0.02
        np.testing.assert_allclose(table["regression_percent"], table["percent"], rtol=0.02, atol=0.05)
    shown = found.table[found.table["change"] == "AD as CN"]
    assert shown["region"].iloc[0] == TOTAL
    surely = shown["effect"].abs() / (shown["effect_high"] - shown["effect_low"])
    assert surely.iloc[1:].is_monotonic_decreasing
    assert found.n_scans == 120
    assert int(np.isfinite(found.data["scan_effect_ml"].sel(change="AD as CN")).sum()) == 60
    write_finding(found, tmp_path)
    pd.testing.assert_frame_equal(read_finding(tmp_path).table, found.table, check_dtype=False)


def test_maps_are_the_mean_difference_and_the_scan_of_median_effect(world):
    made = world(n=62)
    found = run(made, replace(CONFIG, changes=("age=+10",)))
    now, changed, mean = (
        found.maps[f"{name}_10-years-older"].get_fdata()[made.volumes.mask] for name in ("now", "changed", "difference")
    )
    scan = str(found.data["example"].values[0])
    effects = found.data["scan_effect_ml"].sel(change="10 years older").to_series()
    allowed = effects[found.data["beyond"].sel(change="10 years older").to_series() == 0]
    assert effects[scan] == pytest.approx(np.sort(allowed)[(len(allowed) - 1) // 2])
    expected = made.mean + made.causes[made.scans.index.get_loc(scan)] @ made.patterns
    np.testing.assert_allclose(now, expected, atol=1e-5)
    ml = made.volumes.grid.voxel_ml
    assert (changed - now).sum() * ml == pytest.approx(effects[scan], rel=1e-3)
    assert mean.sum() * ml == pytest.approx(effects.mean(), rel=1e-4)
    steps = [
        shift(space, made.scans, np.array([0]), {"age": "+10"}, others=("sex", "group"))[0] for space in made.spaces
    ]
    drawn = [
        np.concatenate(list(space.moved(np.array([0]), step)))[0]
        for space, step in zip(made.spaces, steps, strict=True)
    ]
    still = made.mean + made.causes[0] @ made.patterns
    np.testing.assert_allclose(mean, np.average(drawn, axis=0, weights=[21, 21, 20]) - still, atol=1e-5)


def folds_of(made, change, others):
    people = people_of(made.scans, change.column, others=others, levels=change.levels)
    readout = readout_matrix(made.weights, made.volumes.grid.voxel_ml)
    values = true_readouts(made.volumes, people.rows, readout)
    folds = []
    for number, space in enumerate(made.spaces):
        judged = np.flatnonzero(space.unseen[people.rows])
        rows, images_of = people.rows[judged], made.volumes.masked
        decoded = decode(space, made.scans, rows, change, readout, images_of, rows, others=others, site="")
        steep = jacobian(space, made.scans, rows, readout)
        unseen = space.unseen[people.rows]
        folds.append(
            Fold(number, space.training[people.rows], unseen, judged, decoded, space.coordinates[people.rows], steep)
        )
    return folds, people, values


def test_resamples_are_the_whole_analysis_done_again(world):
    """Linear decoder: fit and decode every fold with the resampled subjects, and average over the resampled unseen ones."""
    made = world(n=45)
    folds, people, values = folds_of(made, Change("age", 10.0), ("sex",))
    found = resampled(folds, people, values, amount=10.0, n_bootstrap=100, seed=4)
    rng, n = np.random.default_rng(4), len(people.x)
    readout = readout_matrix(made.weights, made.volumes.grid.voxel_ml)
    for draw in range(1, 4):
        counts = rng.multinomial(n, np.full(n, 1 / n))
        effects, slopes = [], []
        for space in made.spaces:
            seen, new = (np.repeat(np.arange(n), counts * part) for part in (space.training, space.unseen))
            design = np.column_stack([np.ones(len(seen)), people.x[seen], people.confounds[seen]])
            step = np.linalg.lstsq(design, space.coordinates[seen], rcond=None)[0][1]
            slopes += [10 * np.linalg.lstsq(design, values[seen], rcond=None)[0][1]] * len(new)
            now, older = (
                np.concatenate(list(space.moved(new, np.tile(by * step, (len(new), 1))))).astype(float)
                for by in (0, 10)
            )
            effects += list((readout @ (older - now).T).T)
        np.testing.assert_allclose(found.model[draw], np.mean(effects, axis=0), rtol=1e-3, atol=2e-5)
        np.testing.assert_allclose(found.regression[draw], np.mean(slopes, axis=0), rtol=1e-6)
    low, high = Resampled.interval(found.model)
    np.testing.assert_allclose(low, np.quantile(found.model[1:], 0.025, axis=0))
    assert (high > low).all()


@pytest.mark.parametrize("kind", ["model", "regression"])
def test_agreement_is_that_of_every_fold_done_again_with_every_shuffled_column(world, kind):
    made = world(n=47)
    folds, people, values = folds_of(made, Change("age", 10.0), ("sex",))
    values, unit = values[:, :-1], np.linspace(1, 2, N_REGIONS)
    found = crossed(
        folds, people, values, amount=10.0, unit=unit, kind=kind, n_permutations=99, seed=2
    )  # fmt: skip
    design = np.column_stack([np.ones(47), people.confounds])
    left = people.x - design @ np.linalg.lstsq(design, people.x, rcond=None)[0]
    rhos, gains = [], []
    for column in [left, *left[permutations(47, 99, seed=2)]]:
        rho, gain, total = [], 0.0, 0.0
        for fold, space in zip(folds, made.spaces, strict=True):
            seen, new = space.training, space.unseen
            moving = values if kind == "regression" else fold.coordinates
            effect = pattern(column[seen], people.confounds[seen], moving[seen])
            effect = effect if kind == "regression" else fold.jacobian[:-1] @ effect
            table = np.column_stack([column, values])
            table = table - design @ np.linalg.lstsq(design[seen], table[seen], rcond=None)[0]
            x, y = table[new, 0], table[new, 1:] / table[seen, 1:].std(axis=0)
            slope = x @ table[new, 1:] / (x @ x)
            rho.append(pd.Series(effect * unit).corr(pd.Series(slope * unit), method="spearman"))
            gain += np.square(y).sum() - np.square(y - np.outer(x, effect / table[seen, 1:].std(axis=0))).sum()
            total += np.square(y).sum()
        rhos.append(np.average(rho, weights=[16, 16, 15]))
        gains.append(gain / total)
    assert found.rho == pytest.approx(rhos[0], abs=1e-9)
    assert found.rho_drawn == pytest.approx(rhos[0], abs=0.02)
    if kind == "model":
        turned = [replace(fold, decoded=replace(fold.decoded, dosed=-fold.decoded.dosed)) for fold in folds]
        again = crossed(turned, people, values, amount=10.0, unit=unit, kind=kind, n_permutations=99, seed=2)
        assert (again.rho, again.rho_drawn) == pytest.approx((found.rho, -found.rho_drawn))
    assert found.p_value == pytest.approx(np.mean(np.array(rhos) >= rhos[0] - 1e-9))
    assert found.explained == pytest.approx(gains[0])
    assert found.explained_p == pytest.approx(np.mean(np.array(gains) >= gains[0] - 1e-9))


def null_folds(rng):
    """Three folds on which the column has nothing to do with the values; the effect of a fold comes of its training people."""
    n = 36
    names = [f"s{i}" for i in range(n)]
    people = people_of(pd.DataFrame({"subject_id": names, "age": rng.uniform(20, 80, n)}, index=names), "age")
    values = rng.normal(size=(n, 3)) @ rng.normal(size=(3, 20)) + 0.3 * rng.normal(size=(n, 20))
    folds = []
    for number in range(3):
        unseen = np.arange(n) % 3 == number
        effect = pattern(people.x[~unseen], people.confounds[~unseen], values[~unseen])
        dosed = np.full((len(DOSES), int(unseen.sum()), 21), np.nan)
        dosed[DOSES.index(1.0)] = np.append(effect, 0.0)
        decoded = Decoded(dosed, np.zeros(1), unseen, unseen, 1)
        folds.append(Fold(number, ~unseen, unseen, np.flatnonzero(unseen), decoded, values, np.eye(21, 20)))
    return folds, people, values


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "least"), [("model", 4), ("regression", 4), ("told", 0)])
def test_p_is_right_where_the_column_says_nothing_though_folds_share_subjects(rng, kind, least):
    """Permuting the unseen of each fold alone would call about twice as many."""
    rejected = np.zeros(2)
    for seed in range(120):
        folds, people, values = null_folds(rng)
        found = crossed(folds, people, values, amount=1.0, unit=np.ones(20), kind=kind, n_permutations=99, seed=seed)
        rejected += found.p_value <= 0.1, found.explained_p <= 0.1
    # Binomial: 12 expected of 120, and 21 are exceeded once in 200 such tests.
    assert (rejected <= 21).all()
    assert (rejected >= least).all()


@pytest.mark.slow
def test_interval_covers_the_true_effect(rng):
    truth, covered, n, j = np.array([1.0, -0.5]), np.zeros(3), 60, np.array([[1.0, 0], [0, 1], [1, 1]])
    for seed in range(60):
        names = [f"s{i}" for i in range(n)]
        x = rng.normal(size=n)
        people = people_of(pd.DataFrame({"subject_id": names, "age": x}, index=names), "age")
        z = np.outer(x, truth) + rng.normal(size=(n, 2))
        folds = []
        for number in range(3):
            unseen = np.arange(n) % 3 == number
            step = pattern(x[~unseen], people.confounds[~unseen], z[~unseen])
            dosed = np.tile(j @ step, (len(DOSES), int(unseen.sum()), 1))
            decoded = Decoded(dosed, np.zeros(1), unseen, unseen, 1)
            folds.append(Fold(number, ~unseen, unseen, np.flatnonzero(unseen), decoded, z, j))
        low, high = Resampled.interval(resampled(folds, people, z @ j.T, amount=1.0, n_bootstrap=100, seed=seed).model)
        covered += (low <= j @ truth) & (j @ truth <= high)
    assert (covered >= 50).all()


def test_a_told_decoder_is_judged_too(world):
    made = world(n=90, told=("age",), age_step=np.zeros(N_LATENT))
    found = run(made, replace(CONFIG, changes=("age=+10",)))
    table = found.table.set_index("region")
    effect = made.weights.matrix @ (10 * AGE_STEP @ made.patterns) / made.weights.n_voxels
    np.testing.assert_allclose(table.loc[made.weights.names, "effect"], effect, rtol=1e-3, atol=1e-6)
    assert float(found.data["rho"][0]) > 0.3
    assert any("is told age" in line for line in found.caveats)
    assert "no interval" in found.answer
    assert found.table[["percent_low", "percent_high", "ml_low", "ml_high"]].isna().all(axis=None)
    assert found.table["percent"].iloc[1:].abs().is_monotonic_decreasing
    np.testing.assert_allclose(found.data["dose_ml"][0] / table.loc[TOTAL, "ml"], DOSES, rtol=1e-3)
    group = run(made, replace(CONFIG, changes=("group=CN",)))
    moved = group.table.set_index("region").loc[made.weights.names, "effect"]
    true = made.weights.matrix @ (-CASE_STEP @ made.patterns) / made.weights.n_voxels
    assert np.corrcoef(moved, true)[0, 1] > 0.9


def test_batches_of_the_decoder_change_nothing(world):
    made = world(n=30)
    one = replace(made.spaces[0], draw_latents=lambda latents, _: (row[None] for row in _all(made.spaces[0], latents)))
    readout, rows = readout_matrix(made.weights, 1.0), np.flatnonzero(made.spaces[0].unseen)
    found = [
        decode(space, made.scans, rows, Change("age", 10.0), readout, made.volumes.masked, rows, others=(), site="")
        for space in (made.spaces[0], one)
    ]
    np.testing.assert_allclose(found[0].dosed, found[1].dosed, atol=1e-4)
    np.testing.assert_allclose(found[0].difference, found[1].difference, atol=1e-7)
    np.testing.assert_array_equal(found[0].own_changed, found[1].own_changed)


def test_a_scan_that_is_not_among_the_candidates_is_sought_among_them_and_itself(world):
    made = world(n=30)
    space, readout, images_of = made.spaces[0], readout_matrix(made.weights, 1.0), made.volumes.masked
    rows = np.flatnonzero(space.unseen)
    sought = rows[::2]

    def ask(some, among):
        return decode(space, made.scans, some, Change("age", 10.0), readout, images_of, among, others=(), site="")

    found = ask(rows, sought)
    assert found.n_candidates == len(sought) + 1
    alone = [ask(rows[[at]], np.union1d(sought, rows[at])) for at in range(len(rows))]
    assert found.own_now.tolist() == [bool(one.own_now[0]) for one in alone]
    assert found.own_changed.tolist() == [bool(one.own_changed[0]) for one in alone]
    assert 0 < found.own_changed[1::2].mean() <= 1


def _all(space, latents):
    return np.concatenate(list(space.draw_latents(latents, None)))


def test_the_slope_of_a_bent_decoder_is_that_about_unseen_scans(world):
    made = world(bend=0.3)
    space, readout = made.spaces[0], readout_matrix(made.weights, made.volumes.grid.voxel_ml)
    rows = np.flatnonzero(space.unseen)[:4]
    turn = np.linalg.lstsq(made.causes, space.values, rcond=None)[0]
    by_cause = [made.patterns + 0.6 * np.abs(made.patterns) * made.causes[row][:, None] for row in rows]
    expected = readout @ (turn.T @ np.mean(by_cause, axis=0)).T
    np.testing.assert_allclose(jacobian(space, made.scans, rows, readout), expected, rtol=1e-3, atol=1e-3)


def test_bent_decoders_are_called_bent_and_straight_ones_are_not(world):
    config = replace(CONFIG, changes=("age=+10",))
    straight, bent = run(world(), config), run(world(bend=5.0), config)
    assert float(straight.data["asymmetry"][0]) < 1e-3
    assert float(straight.data["linear_gap"][0]) < 1e-3
    assert float(straight.data["monotone_share"][0]) == 1
    assert float(bent.data["asymmetry"][0]) > 0.2
    assert any("far from linear" in line for line in bent.caveats)
    assert float(straight.data["rho_drawn"][0]) == pytest.approx(float(straight.data["rho"][0]), abs=0.02)
    assert not any("far from linear" in line for line in straight.caveats)


def test_a_changed_scan_is_still_itself_unless_the_change_swamps_it(world):
    small = run(world(), replace(CONFIG, changes=("age=+1",)))
    assert float(small.data["own_now"][0]) == 1
    assert float(small.data["own_changed"][0]) > 0.9
    large = run(world(), replace(CONFIG, changes=("age=+2000",)))
    assert float(large.data["own_now"][0]) == 1
    assert float(large.data["own_changed"][0]) < 0.3


def test_values_beyond_the_training_scans_are_marked(world):
    made = world()
    found = run(made, replace(CONFIG, changes=("age=+10",)))
    marked = found.data["beyond"].sel(change="10 years older").to_series()
    expected = [
        made.scans["age"].iloc[row] + 10 > made.scans["age"][space.training].max()
        for space in made.spaces
        for row in np.flatnonzero(space.unseen)
    ]
    assert int(marked.sum()) == sum(expected) > 0
    assert f"For {sum(expected)} of them" in found.answer
    younger = run(made, replace(CONFIG, changes=("age=-1000",)))
    assert int(younger.data["beyond"].sum()) == 60


def test_the_answer_says_first_where_regression_does_as_well(world):
    made = world(n=90)
    blind = [
        replace(space, draw_latents=lambda latents, _: iter([np.tile(made.mean.astype(np.float32), (len(latents), 1))]))
        for space in made.spaces
    ]
    found = run(made, replace(CONFIG, changes=("age=+10",)), spaces=blind)
    assert "Too few unseen" in found.answer or found.answer.startswith("Regional regression alone")
    backwards = [
        replace(space, draw_latents=lambda latents, told, space=space: space.draw_latents(-latents, told))
        for space in made.spaces
    ]
    found = run(made, replace(CONFIG, changes=("age=+10",)), spaces=backwards)
    assert found.answer.startswith("Regional regression alone")
    assert float(found.data["rho"][0]) < 0
    assert float(found.data["rho_p"][0]) > 0.9


def test_codes_of_groups_and_sites_are_names(world):
    made = world(n=72)
    levels, sites = np.array(["AD", "CN", "MCI"]), np.array(["one", "two", "three"])
    group, site = np.where(made.scans["group"] == "AD", 0, 1 + np.arange(72) % 2), np.arange(72) // 2 % 3
    coded = made.scans.assign(group=group, site=site)
    named = made.scans.assign(group=levels[group], site=sites[site])
    config = replace(CONFIG, site="site", changes=("group=CN",))
    first = run(made, config, scans=named)
    second = run(made, replace(config, changes=("group=1",)), scans=coded)
    assert first.settings["asked"] == ["AD as CN", "MCI as CN"]
    assert second.settings["asked"] == ["0 as 1", "2 as 1"]
    np.testing.assert_allclose(first.data["effect"], second.data["effect"])
    np.testing.assert_array_equal(first.data["rho_p"], second.data["rho_p"])


def test_settings_have_an_effect(world):
    made = world(n=60)
    base = replace(CONFIG, changes=("age=+10",))
    found = run(made, base)
    for changes in ({"covariates": ()}, {"group": ""}):
        assert not np.allclose(run(made, replace(base, **changes)).data["effect"], found.data["effect"])
    np.testing.assert_array_equal(run(made, base).table["ml_low"], found.table["ml_low"])
    lows = [found.table["ml_low"].sum()]
    for changes in ({"seed": 1}, {"n_permutations": 101, "n_bootstrap": 110}):
        other = run(made, replace(base, **changes))
        lows.append(other.table["ml_low"].sum())
    assert len(set(lows)) == 3
    assert (float(other.data["rho_p"][0]) * 102) % 1 == pytest.approx(0, abs=1e-9)


def test_what_is_asked(world):
    scans = world().scans
    assert changes_of(scans, CONFIG) == [Change("age", 10.0), Change("group", levels=("CN", "AD"))]
    assert changes_of(scans.drop(columns="group"), CONFIG) == [Change("age", 10.0)]
    three = scans.assign(group=np.resize(["AD", "MCI", "CN"], len(scans)))
    asked = changes_of(three, replace(CONFIG, changes=("group=CN", "age=-5")))
    assert [one.label for one in asked] == ["AD as CN", "MCI as CN", "5 years younger"]
    assert held_columns(scans, asked[2], CONFIG) == ("sex", "group")
    assert held_columns(scans, asked[0], CONFIG) == ("age", "sex")
    unknown = scans.assign(group=scans["group"].where(scans.index != "sub-000"))
    assert held_columns(unknown, asked[2], CONFIG) == ("sex",)
    with pytest.raises(NotComparableError, match="name a change"):
        changes_of(scans[["subject_id", "sex"]], CONFIG)
    for text, words in (
        ("age=60", r"age=\+10"),
        ("group=MCI", "AD, CN"),
        ("weight=+1", "weight"),
        ("age=+0", "amount"),
    ):
        with pytest.raises(SettingError, match=words):
            changes_of(scans, replace(CONFIG, changes=(text,)))
    for wrong in ({"changes": ("age",)}, {"n_bootstrap": 10}, {"n_permutations": 0}):
        with pytest.raises(SettingError, match=next(iter(wrong))):
            CounterfactualConfig(**wrong)


def test_what_cannot_be_asked_is_said(world):
    made = world()
    few = made.scans.assign(group=np.where(np.arange(60) < 4, "AD", "CN"))
    found = run(made, scans=few)
    assert found.settings["asked"] == ["10 years older"]
    assert any(line.startswith("Not asked: AD as CN (too few") for line in found.caveats)
    assert run(made, scans=made.scans[["subject_id", "session_id", "sex"]].assign(age="x")).not_run
    constant = run(made, replace(CONFIG, changes=("age=+10",)), scans=made.scans.assign(age=50.0))
    assert "constant" in constant.not_run
    nobody = [replace(space, unseen=np.zeros(60, dtype=bool)) for space in made.spaces]
    assert "has not seen" in run(made, spaces=nobody).not_run


def test_a_model_of_other_images_than_grey_matter_is_not_asked(world):
    made = world()
    assert "another image" in run(made, regions=made.regions + 0.5).not_run


def test_head_size_is_held_where_it_is_known_and_else_this_is_said(world, rng):
    made = world()
    config = replace(CONFIG, changes=("age=+10",))
    sized = made.scans.assign(head_size_factor=rng.normal(1.3, 0.1, 60) + 0.004 * made.scans["age"])
    by_default = run(made, config, scans=sized)
    assert by_default.settings["held"] == {"10 years older": ("sex", "group", "head_size_factor")}
    named = run(
        made, replace(config, covariates=("age", "sex", "tiv_ml")), scans=sized.assign(tiv_ml=sized["head_size_factor"])
    )
    np.testing.assert_allclose(named.data["effect"], by_default.data["effect"])
    without = [run(made, replace(config, head_size=""), scans=sized), run(made, config)]
    sized.iloc[3, sized.columns.get_loc("head_size_factor")] = np.nan
    without.append(run(made, config, scans=sized))
    for found in without:
        assert any("Head size is not held" in line for line in found.caveats)
        np.testing.assert_allclose(found.data["effect"], without[1].data["effect"])
        assert not np.allclose(found.data["effect"], by_default.data["effect"])
    assert not any("Head size" in line for line in (*by_default.caveats, *named.caveats))


def test_parts_that_do_not_belong_together_are_refused(world):
    made = world()
    both = [made.spaces[0], replace(made.spaces[0])]
    for changes, words in (
        ({"spaces": []}, "Train a model"),
        ({"spaces": both}, "two latent spaces"),
        ({"scans": made.scans.drop("sub-011")}, "sub-011"),
        ({"regions": made.regions.iloc[:, ::-1]}, "do not belong"),
        ({"spaces": [made.spaces[0], replace(made.spaces[1], scans=made.scans.index[::-1])]}, "another order"),
    ):
        with pytest.raises(CohortError, match=words):
            run(made, **changes)


def test_another_cohort_can_be_asked(world):
    made, other = world(n=90), world(n=40)
    found = run(made, replace(CONFIG, changes=("age=+10",)))
    regions = pd.DataFrame(
        made.weights.matrix @ (made.mean + other.causes @ made.patterns).T / made.weights.n_voxels[:, None],
        index=made.regions.columns,
        columns=other.scans.index,
    ).T
    asked = agreement(found.data["effect"].values[0], regions, other.scans, "age", others=("sex",), seed=1)
    assert asked.rho > 0.7
    assert asked.p_value < 0.05
    np.testing.assert_allclose(asked.slopes, slopes_of(regions, other.scans, "age", others=("sex",)))
