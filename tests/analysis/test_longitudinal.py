import re
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest
from scipy import sparse, stats

from nilatent.analysis.contrast import NotComparableError
from nilatent.analysis.latent_space import LatentSpace
from nilatent.analysis.longitudinal import COLUMNS, LongitudinalConfig, change_over_time, longitudinal
from nilatent.analysis.longitudinal.change import degrees
from nilatent.analysis.longitudinal.directions import direction_scores
from nilatent.analysis.longitudinal.drawn import courses, decoded_regions
from nilatent.analysis.longitudinal.forecast import LATENT, LATENT_CHANGE, REGIONAL, VOXEL, Forecasts, forecasts
from nilatent.analysis.longitudinal.scans import visits_of
from nilatent.analysis.longitudinal.table import Block, DrawnRates, forecast_rows, joined
from nilatent.analysis.longitudinal.times import with_clock
from nilatent.analysis.longitudinal.words import answer
from nilatent.analysis.mixed import deletion_steps, fit_mixed
from nilatent.atlas import RegionWeights
from nilatent.errors import CohortError, LatentsError
from nilatent.finding import Finding, read_finding, write_finding
from nilatent.latents import Frame
from nilatent.volumes import Grid

N, N_VISITS, N_VOXELS, N_REGIONS, N_CAUSES = 48, 3, 120, 4, 3
GRID = Grid((6, 5, 4), np.diag([4.0, 4.0, 4.0, 1.0]))
MASK = np.ones(GRID.shape, dtype=bool)
CONFIG = LongitudinalConfig(covariates=("age", "sex"), n_permutations=99)
RATES = {"AD": -0.5, "CN": -0.1}


@dataclass(frozen=True, eq=False)
class Cohort:
    """Images that are a mean and a few patterns; the first pattern fades over the years, faster in one group."""

    scans: pd.DataFrame
    images: np.ndarray
    causes: np.ndarray
    patterns: np.ndarray
    weights: RegionWeights

    @property
    def regions(self) -> pd.DataFrame:
        means = np.asarray((self.weights.matrix @ self.images.T).T) / self.weights.n_voxels
        return pd.DataFrame(means, self.scans.index, self.weights.names)

    def spaces(self, rng, *, n_folds=2) -> list[LatentSpace]:
        """One linear encoder per fold, each with another basis of the patterns."""
        fold = np.repeat(np.arange(N) // 2 % n_folds, N_VISITS)
        return [self.space(rng, fold != one) for one in range(n_folds)]

    def space(self, rng, training) -> LatentSpace:
        mixed = np.linalg.qr(rng.normal(size=(N_CAUSES, N_CAUSES)))[0] @ np.diag(rng.uniform(0.5, 2, N_CAUSES))
        values = self.causes @ mixed

        def draw(latents, told):
            yield (0.5 + latents @ np.linalg.inv(mixed) @ self.patterns).astype(np.float32)

        return LatentSpace(
            scans=self.scans.index,
            subjects=self.scans["subject_id"].to_numpy().astype(str),
            values=values,
            frame=Frame(np.zeros(N_CAUSES), np.eye(N_CAUSES)),
            variance=np.zeros(values.shape),
            names=tuple(f"z{one:03d}" for one in range(N_CAUSES)),
            training=training,
            unseen=~training,
            has_prior=False,
            told=(),
            draw_latents=draw,
        )

    def masked(self, names) -> np.ndarray:
        return self.images[self.scans.index.get_indexer(names)].astype(np.float32)

    def find(self, spaces, config=CONFIG, **more) -> Finding:
        return longitudinal(spaces, self.regions, self.scans, self.weights, GRID, MASK, config, **more)


@pytest.fixture
def cohort(rng) -> Cohort:
    subject, visit = np.repeat(np.arange(N), N_VISITS), np.tile(np.arange(N_VISITS), N)
    years = visit * rng.uniform(0.8, 1.2, N * N_VISITS)
    group = np.where(subject % 2, "AD", "CN")
    start = rng.normal(70, 5, N)[subject]
    scans = pd.DataFrame(
        {
            "subject_id": [f"sub-{one:02d}" for one in subject],
            "session_id": [f"ses-{one}" for one in visit],
            "age": start + years,
            "sex": np.where(subject % 3, "F", "M"),
            "group": group,
        },
        index=pd.Index([f"sub-{one:02d}_ses-{two}" for one, two in zip(subject, visit, strict=True)], name="scan_id"),
    )
    causes = rng.normal(size=(N, N_CAUSES))[subject]
    causes[:, 0] += (np.vectorize(RATES.get)(group) + 0.05 * rng.normal(size=N)[subject]) * years
    causes[:, 1] += 0.1 * (scans["age"] - 70)
    causes[:, 2] += group == "AD"
    patterns = 0.05 * rng.normal(size=(N_CAUSES, N_VOXELS))
    images = 0.5 + causes @ patterns + 0.01 * rng.normal(size=(len(scans), N_VOXELS))
    matrix = sparse.csr_matrix((np.ones(N_VOXELS), (np.arange(N_VOXELS) % N_REGIONS, np.arange(N_VOXELS))))
    names = [f"Region_{one}" for one in range(N_REGIONS)]
    return Cohort(scans, images, causes, patterns, RegionWeights(matrix, np.arange(N_REGIONS), names, pd.DataFrame()))


def slopes(cohort):
    """(group, voxel) planted change per year: that of the first cause, and of age in the second."""
    return {group: rate * cohort.patterns[0] + 0.1 * cohort.patterns[1] for group, rate in RATES.items()}


def test_the_finding_names_what_was_planted_and_comes_back_from_disk(cohort, rng, tmp_path):
    spaces = cohort.spaces(rng)
    found = cohort.find(spaces, study=spaces[0], masked=cohort.masked)
    table = found.table
    assert list(table.columns) == list(COLUMNS)
    assert (found.n_scans, found.n_subjects, found.not_run) == (N * N_VISITS, N, "")
    assert set(table["kind"]) == {"regions", "decoded regions", "directions", "latents", "voxels"}
    assert table["what"].iloc[0] == "difference in rate"
    planted = (
        np.asarray(cohort.weights.matrix @ cohort.patterns[0]) / cohort.weights.n_voxels * (RATES["AD"] - RATES["CN"])
    )
    rows = table[(table["what"] == "difference in rate") & (table["kind"] == "regions")].set_index("measure")
    seen = rows.loc[cohort.weights.names]
    assert np.corrcoef(seen["value"], planted)[0, 1] > 0.9
    assert ((seen["low"] <= planted) & (planted <= seen["high"])).sum() >= 3
    assert "held-out subjects is foreseen better with latents" in found.answer
    assert "in AD than in CN" in found.answer
    repeated = table[table["what"] == "repeatability"].groupby("kind")["value"]
    assert f"regions {repeated.get_group('regions').median():.3f}, decoded" in found.answer
    latents = repeated.get_group("latents")
    assert f"latents {latents.median():.3f} (z" in found.answer
    assert f"{latents.min():.3f} to z" in found.answer
    write_finding(found, tmp_path)
    back = read_finding(tmp_path)
    pd.testing.assert_frame_equal(back.table, table, check_dtype=False)
    assert set(back.maps) == {"change", "difference", "change_AD", "change_CN", "difference_AD_CN"}


def test_drawn_courses_change_as_planted_with_the_intervals_of_the_draws(cohort, rng):
    spaces = cohort.spaces(rng)
    found = cohort.find(spaces, seed=3)
    for group, planted in slopes(cohort).items():
        image = found.maps[f"change_{group}"].get_fdata()[MASK]
        assert np.corrcoef(image, planted)[0, 1] > 0.9
    difference = found.maps["difference"].get_fdata()[MASK]
    np.testing.assert_allclose(
        difference, (found.maps["change_AD"].get_fdata() - found.maps["change_CN"].get_fdata())[MASK], atol=1e-7
    )
    drawn = found.data["drawn_rate"].sel(estimate="value").values
    np.testing.assert_allclose(drawn, found.data["rate"].sel(estimate="value").values, atol=0.004)
    rows = found.table[(found.table["what"] == "rate") & (found.table["kind"] == "regions")]
    assert rows.set_index(["measure", "group"]).loc[("Region_2", "CN"), "drawn"] == pytest.approx(drawn[2, 1])
    between = found.table[(found.table["what"] == "difference in rate") & (found.table["measure"] == "Region_2")].iloc[
        0
    ]
    assert between["drawn"] == pytest.approx(drawn[2, 0] - drawn[2, 1])
    percent = rows.set_index(["measure", "group"])["percent"]["Region_2"]
    assert between["percent"] == pytest.approx(percent["AD"] - percent["CN"])
    visits, config = visits_of(cohort.scans, CONFIG), with_clock(cohort.scans, CONFIG)
    again = courses(spaces, cohort.scans, visits, config, weights=cohort.weights, seed=3).redrawn
    wide = stats.t(degrees(visits)).ppf(0.975)
    expected = {"AD": again[:, 0], "CN": again[:, 1], "AD:CN": again[:, 0] - again[:, 1]}
    rows = found.table[found.table["drawn"].notna()].set_index(["group", "measure"])
    for group, draws in expected.items():
        one = rows.loc[group].loc[cohort.weights.names]
        np.testing.assert_allclose(one["drawn_high"] - one["drawn"], wide * draws.std(axis=0, ddof=1))
        np.testing.assert_allclose(one["drawn"] - one["drawn_low"], wide * draws.std(axis=0, ddof=1))
    none = courses(spaces, cohort.scans, visits, replace(config, n_redrawn=0), weights=cohort.weights)
    assert none.redrawn.shape == (0, 2, 0)


def test_courses_rest_on_scans_a_model_has_not_seen_and_average_models_by_their_subjects(cohort, rng):
    spaces, visits = cohort.spaces(rng), visits_of(cohort.scans, CONFIG)
    found = courses(spaces, cohort.scans, visits, CONFIG)
    assert (found.n_models, found.seen, list(found.n_subjects), list(found.years)) == (
        2,
        False,
        [24, 24],
        [0.0, 1.0, 2.0],
    )
    one_by_one = [courses([space], cohort.scans, visits, CONFIG) for space in spaces]
    votes = np.array([one.n_subjects for one in one_by_one])
    mean = sum(one.images * (n / votes.sum(axis=0))[:, None, None] for one, n in zip(one_by_one, votes, strict=True))
    np.testing.assert_allclose(found.images, mean, atol=1e-6)
    # What the training scans do makes no difference to them.
    wild = [replace(one, values=np.where(one.training[:, None], 50.0, one.values)) for one in spaces]
    np.testing.assert_allclose(courses(wild, cohort.scans, visits, CONFIG).images, found.images)
    none = [replace(one, training=np.full(N * N_VISITS, True), unseen=np.full(N * N_VISITS, False)) for one in spaces]
    assert courses(none, cohort.scans, visits, CONFIG).seen


def test_courses_are_drawn_again_with_steps_of_the_jackknife_of_random_size(cohort, rng):
    space, config = cohort.spaces(rng)[0], replace(CONFIG, n_redrawn=20)
    visits = visits_of(cohort.scans, CONFIG)
    found = courses([space], cohort.scans, visits, config, weights=cohort.weights, seed=1)
    part = visits.take(space.unseen[visits.rows], least=1)
    n, z, design = int(part.first.sum()), space.coordinates[part.rows], part.design()
    fits = [fit_mixed(y, design, part.years, part.subject) for y in z.T]
    steps = [deletion_steps(y, design, part.years, part.subject, fit=fit) for y, fit in zip(z.T, fits, strict=True)]
    # The random numbers are the first that the seed gives; what a step of every coordinate draws, in every region.
    sizes = np.random.default_rng(1).standard_normal((20, n)) * np.sqrt((n - 1) / n)
    unit = np.concatenate([*space.draw(np.eye(N_CAUSES))]) - np.concatenate([*space.draw(np.zeros((1, N_CAUSES)))])
    unit = np.asarray((cohort.weights.matrix @ unit.T).T) / cohort.weights.n_voxels
    for group in range(2):
        effects = np.array([fit.coefficients[2 + group] for fit in fits])
        moved = effects + sizes @ np.stack([step[:, 2 + group] for step in steps], axis=1)
        np.testing.assert_allclose(found.redrawn[:, group], moved @ unit, rtol=1e-3, atol=1e-7)


@pytest.mark.slow
def test_intervals_of_drawn_rates_cover_what_was_planted(cohort, rng):
    visits, covered = visits_of(cohort.scans, CONFIG), []
    weights = cohort.weights
    planted = np.array([np.asarray(weights.matrix @ slopes(cohort)[one]) / weights.n_voxels for one in ("AD", "CN")]).T
    years = cohort.scans["age"].to_numpy() - cohort.scans.groupby("subject_id")["age"].transform("min").to_numpy()
    age = cohort.scans.groupby("subject_id")["age"].transform("min").to_numpy()
    for seed in range(150):
        subject = np.repeat(rng.normal(size=(2, N, N_CAUSES)), N_VISITS, axis=1)
        causes = subject[0] + 0.2 * subject[1] * years[:, None] + 0.3 * rng.normal(size=cohort.causes.shape)
        causes[:, 0] += np.vectorize(RATES.get)(cohort.scans["group"]) * years
        causes[:, 1] += 0.1 * (age + years - 70)
        again = replace(cohort, causes=causes)
        found = courses(again.spaces(rng), cohort.scans, visits, CONFIG, weights=weights, seed=seed)
        block = Block("regions", (), np.empty((0, 0)), visits, None, True)
        drawn = DrawnRates.of(found, weights, block)
        between = planted[:, :1] - planted[:, 1:]
        for estimates, truth in ((drawn.rate, planted), (drawn.difference, between)):
            covered.append(((estimates[..., 1] <= truth) & (truth <= estimates[..., 2])).mean())
    assert 0.92 < np.mean(covered) < 0.985


def test_horizons_beyond_the_follow_up_are_not_drawn(cohort, rng):
    visits = visits_of(cohort.scans, CONFIG)
    far = replace(CONFIG, horizons=(1.0, 9.0))
    assert list(courses(cohort.spaces(rng), cohort.scans, visits, far).years) == [0.0, 1.0]
    far = replace(CONFIG, horizons=(9.0,))
    assert courses(cohort.spaces(rng), cohort.scans, visits, far).years[1] == pytest.approx(visits.years.max())


def test_decoded_regions_are_those_of_the_images_without_noise(cohort, rng):
    space = cohort.spaces(rng)[0]
    rows = np.array([4, 1, 7])
    clean = 0.5 + cohort.causes[rows] @ cohort.patterns
    naive = [[image[one::N_REGIONS].mean() for one in range(N_REGIONS)] for image in clean]
    np.testing.assert_allclose(decoded_regions(space, cohort.scans, rows, cohort.weights), naive, rtol=1e-5)


def test_directions_mean_the_same_in_every_model(cohort, rng):
    visits = visits_of(cohort.scans, CONFIG)
    once, again = (
        direction_scores(cohort.spaces(np.random.default_rng(seed)), cohort.scans, visits, CONFIG)[0] for seed in (1, 2)
    )
    assert list(once) == ["age", "AD:CN"]
    assert sorted(once.index) == sorted(cohort.scans.index)
    # Whatever the basis and the units of a model, the scores are about the same.
    for name in once:
        assert np.corrcoef(once[name], again.loc[once.index, name])[0, 1] > 0.95
        assert again[name].std() == pytest.approx(once[name].std(), rel=0.15)
    # The step between the groups at the first visit is 1.
    first = cohort.scans.loc[cohort.scans["session_id"] == "ses-0", "group"]
    means = once["AD:CN"].loc[first.index].groupby(first).mean()
    assert means["AD"] - means["CN"] == pytest.approx(1, abs=0.5)


def test_forecasts_are_what_they_are_called(cohort, rng):
    visits = visits_of(cohort.scans, CONFIG)
    regions = cohort.regions.to_numpy()
    found = forecasts(cohort.spaces(rng), regions, cohort.scans, visits, cohort.weights, CONFIG, masked=cohort.masked)
    assert sorted(found.subject) == sorted(set(cohort.scans["subject_id"]))
    first, last = (cohort.scans.index.get_indexer([f"{one}_ses-{two}" for one in found.subject]) for two in (0, 2))
    np.testing.assert_allclose(found.regional[0], np.abs(regions[first] - regions[last]).mean(axis=1))
    naive = np.sqrt(np.square(cohort.images[first] - cohort.images[last]).mean(axis=1))
    np.testing.assert_allclose(found.voxel[0], naive, rtol=1e-5)
    # The planted rates themselves, added to the first scan and to what the decoder makes of it.
    gone = (cohort.scans["age"].to_numpy()[last] - cohort.scans["age"].to_numpy()[first])[:, None]
    step = gone * np.array([slopes(cohort)[one] for one in cohort.scans["group"].iloc[first]])
    best = np.sqrt(np.square(cohort.images[first] + step - cohort.images[last]).mean(axis=1))
    assert found.voxel[VOXEL.index(LATENT_CHANGE)].mean() == pytest.approx(best.mean(), rel=0.1)
    clean = 0.5 + cohort.causes[first] @ cohort.patterns + step
    best = np.sqrt(np.square(clean - cohort.images[last]).mean(axis=1))
    assert found.voxel[VOXEL.index(LATENT)].mean() == pytest.approx(best.mean(), rel=0.1)


def test_a_forecast_learns_nothing_from_those_it_foresees(cohort, rng):
    visits = visits_of(cohort.scans, CONFIG)
    regions = cohort.regions.to_numpy()
    space = cohort.spaces(rng)[0]
    space = replace(space, unseen=space.unseen & (cohort.scans["session_id"] != "none").to_numpy())
    plain = forecasts([space], regions, cohort.scans, visits, cohort.weights, CONFIG)
    later = space.unseen & (cohort.scans["session_id"] == "ses-1").to_numpy()
    moved, values = regions.copy(), space.values.copy()
    moved[later] += 5
    values[later] += 50
    again = forecasts([replace(space, values=values)], moved, cohort.scans, visits, cohort.weights, CONFIG)
    np.testing.assert_allclose(again.regional, plain.regional)
    trained = np.where(space.training[:, None], regions + np.arange(len(regions))[:, None] % 3, regions)
    other = forecasts([space], trained, cohort.scans, visits, cohort.weights, CONFIG)
    assert (other.regional[1:3].mean(axis=1) > plain.regional[1:3].mean(axis=1) + 0.5).all()
    np.testing.assert_allclose(other.regional[[0, 3, 4]], plain.regional[[0, 3, 4]])


def test_errors_are_compared_subject_by_subject(rng):
    hard = rng.uniform(0, 10, 60)
    errors = np.stack([hard + 1, hard + 2, hard + 1.5, hard + 0.1 * rng.normal(size=60) + 1, hard + 3])
    found = Forecasts(np.arange(60).astype(str), np.ones(60), errors, np.empty((4, 0)))
    table = forecast_rows(found, seed=0).set_index(["what", "measure"])
    of_first, of_best = (table.loc[f"error less that of the {what}"] for what in ("first scan", "best without latents"))
    means = table.loc["error of forecast"]
    np.testing.assert_allclose(means.loc[list(REGIONAL), "value"], errors.mean(axis=1))
    assert list(means["value"]) == sorted(means["value"])
    np.testing.assert_allclose(of_first.loc[REGIONAL[1], ["value", "low", "high"]].to_numpy(dtype=float), 1)
    # The first scan is here the best that needs no latents.
    np.testing.assert_allclose(of_best.loc[LATENT, ["value", "low", "high"]].to_numpy(dtype=float), 2)
    assert of_best.loc[LATENT, "percent"] == pytest.approx(200 / errors[0].mean())
    paired, alone = of_best.loc[LATENT_CHANGE], means.loc[LATENT_CHANGE]
    assert paired["low"] < 0 < paired["high"]
    assert paired["high"] - paired["low"] < 0.1 < alone["high"] - alone["low"]


def test_a_forecast_that_is_no_better_is_said_first(cohort, rng):
    blind = [
        replace(one, values=np.zeros_like(one.values) + rng.normal(size=one.values.shape)) for one in cohort.spaces(rng)
    ]
    answer = cohort.find(blind).answer
    assert answer.startswith(f"The last visit of {N} held-out subjects is foreseen no better with latents than without")


def test_a_gain_that_may_be_chance_is_no_gain(cohort, rng):
    visits, rates = visits_of(cohort.scans, CONFIG), change_over_time(cohort.regions, cohort.scans, CONFIG)
    errors = np.abs(rng.normal(size=(5, 20))) + 3
    errors[REGIONAL.index(LATENT)] = errors[0] + rng.normal(size=20) - 0.1
    errors[REGIONAL.index(LATENT)] -= errors[REGIONAL.index(LATENT)].mean() - errors[:3].mean(axis=1).min() + 0.02
    unsure = Forecasts(np.arange(20).astype(str), np.ones(20), errors, np.empty((4, 0)))
    said = answer(joined([rates, forecast_rows(unsure, seed=0)]), visits, CONFIG)
    assert said.startswith("The last visit of 20 held-out subjects is foreseen no better")
    sure = replace(unsure, regional=errors - 2 * (np.arange(5) == REGIONAL.index(LATENT))[:, None])
    said = answer(joined([rates, forecast_rows(sure, seed=0)]), visits, CONFIG)
    assert "foreseen better with latents" in said
    assert not said.startswith("The last visit")


def test_a_decoder_that_is_told_age_moves_with_it(cohort, rng):
    plain = cohort.spaces(rng)

    def draw(latents, told):
        assert told is not None
        shift = 0.01 * (told["age"].to_numpy() - 70)[:, None]
        yield (0.5 + 0 * latents[:, :1] + shift * np.ones(N_VOXELS)).astype(np.float32)

    told = [replace(one, told=("age",), draw_latents=draw) for one in plain]
    visits, config = visits_of(cohort.scans, CONFIG), with_clock(cohort.scans, CONFIG)
    np.testing.assert_allclose(courses(told, cohort.scans, visits, config).rate, 0.01, rtol=1e-3)
    assert "age" in direction_scores(told, cohort.scans, visits, config)[1]
    found = forecasts(told, cohort.regions.to_numpy(), cohort.scans, visits, cohort.weights, config)
    index = [cohort.scans.index.get_indexer([f"{one}_ses-{two}" for one in found.subject]) for two in (0, 2)]
    x = cohort.regions.to_numpy()
    naive = np.abs(x[index[0]] + 0.01 * found.years[:, None] - x[index[1]]).mean(axis=1)
    np.testing.assert_allclose(found.regional[REGIONAL.index(LATENT_CHANGE)], naive, rtol=1e-4)


def test_curves_and_visits_are_those_of_an_average_subject(cohort):
    data = cohort.find([]).data
    names = list(cohort.weights.names)
    shown = [names.index(one) for one in data["shown_measure"].values]
    curve = data["curve"].values
    rate = (curve[:, :, 5, 0] - curve[:, :, 0, 0]) / (data["curve_years"].values[5] - data["curve_years"].values[0])
    np.testing.assert_allclose(rate, data["rate"].values[shown, :, 0], rtol=1e-6)
    assert (curve[..., :20, 1] < curve[..., :20, 0]).all()
    # What age and sex do is taken away from the visits: what is left of it in them is nothing.
    first = data["visit_years"].values == 0
    ages = cohort.scans.loc[cohort.scans["session_id"] == "ses-0", "age"].to_numpy()
    raw = cohort.regions.to_numpy()[cohort.scans["session_id"] == "ses-0"][:, shown]
    group = (data["visit_group"].values[first] == "AD").astype(float)
    design = np.column_stack([np.ones(N), group, ages])
    left = [
        np.abs(np.linalg.lstsq(design, one, rcond=None)[0][2]) for one in (data["visit_value"].values[:, first].T, raw)
    ]
    assert left[0].sum() < 0.3 * left[1].sum()


def test_without_models_regions_alone_are_judged(cohort):
    found = cohort.find([])
    assert set(found.table["kind"]) == {"regions"}
    assert found.maps == {}
    assert "foreseen" not in found.answer
    rows = change_over_time(cohort.regions, cohort.scans.iloc[::-1], CONFIG)
    pd.testing.assert_frame_equal(rows, found.table)


def test_groups_that_no_site_shares_are_not_said_to_change_alike(cohort):
    scans = cohort.scans.assign(site=cohort.scans["group"])
    said = replace(cohort, scans=scans).find([], replace(CONFIG, site="site")).answer
    assert "was not tested" in said
    assert "regions change at another rate" not in said


def test_what_cannot_be_asked_is_not_run_and_says_why(cohort, rng):
    spaces = cohort.spaces(rng)
    once = cohort.scans["session_id"] == "ses-0"
    alone = replace(cohort, scans=cohort.scans[once], images=cohort.images[once.to_numpy()])
    assert "seen at two different times" in alone.find([]).not_run
    changed = cohort.scans.assign(group=np.where(cohort.scans["session_id"] == "ses-2", "AD", cohort.scans["group"]))
    assert "at different visits" in replace(cohort, scans=changed).find(spaces).not_run
    assert "no column 'years'" in cohort.find(spaces, replace(CONFIG, time="years")).not_run
    with pytest.raises(NotComparableError):
        change_over_time(alone.regions, alone.scans, CONFIG)
    with pytest.raises(CohortError, match="same scans"):
        change_over_time(cohort.regions.iloc[1:], cohort.scans, CONFIG)
    with pytest.raises(CohortError, match="not the regions of the atlas"):
        longitudinal([], cohort.regions.iloc[:, ::-1], cohort.scans, cohort.weights, GRID, MASK, CONFIG)
    with pytest.raises(LatentsError, match="two of the models"):
        cohort.find([spaces[0], spaces[0]])


REFUSED = {
    "no group has 8": [
        lambda scans: scans[scans["subject_id"] == "sub-01"],
        lambda scans: scans.assign(group=np.where(scans["subject_id"] == "sub-00", "CN", None)),
    ],
    "no scan has a 'age'": [lambda scans: scans.assign(age=np.nan)],
    "no subject was seen at two different times": [
        lambda scans: scans.assign(age=70.0),
        lambda scans: scans.iloc[::N_VISITS],
    ],
    "144 scans are too few for": [lambda scans: scans.assign(site=np.arange(len(scans)).astype(str))],
    "followed for 93. years": [
        lambda scans: scans.assign(age=scans["age"].mask(scans.index == "sub-03_ses-1", 999.0)),
    ],
}


@pytest.mark.parametrize("said", REFUSED)
def test_cohorts_that_tell_nothing_are_refused_with_the_reason(cohort, said):
    for damage in REFUSED[said]:
        scans = damage(cohort.scans.assign(site="x"))
        odd = replace(cohort, scans=scans, images=cohort.images[cohort.scans.index.get_indexer(scans.index)])
        assert re.search(said, odd.find([], replace(CONFIG, site="site")).not_run)


@pytest.mark.parametrize(
    "odd",
    [lambda scans: scans.assign(group=None), lambda scans: scans.assign(site=scans["session_id"], group="CN")],
    ids=["no group", "one group, sites change"],
)
def test_everybody_is_one_group_where_the_column_tells_none_apart(cohort, rng, odd):
    there = replace(cohort, scans=odd(cohort.scans.assign(site="x")))
    found = there.find(there.spaces(rng), replace(CONFIG, site="site"))
    rates = found.table[found.table["what"] == "rate"]
    assert rates["group"].nunique() == 1
    assert set(rates["kind"]) == {"regions", "decoded regions", "directions"}
    assert np.isfinite(rates[["value", "low", "high"]].to_numpy(dtype=float)).all()
    assert "difference in rate" not in set(found.table["what"])


def test_caveats_say_what_the_data_cannot(cohort, rng):
    said = " ".join(cohort.find(cohort.spaces(rng)).caveats)
    assert "48 subjects: 0 seen at one time" in said
    assert "No site column" in said
    fewer = cohort.scans.drop([f"sub-{one:02d}_ses-2" for one in range(N)])
    fewer = fewer.drop(["sub-00_ses-1"]).assign(site="x")
    fewer["age"] = fewer.groupby("subject_id")["age"].transform("first").round() + (fewer["session_id"] == "ses-1")
    fewer["site"] = np.where(fewer.index == "sub-05_ses-1", "y", fewer["site"])
    two = replace(cohort, scans=fewer, images=cohort.images[cohort.scans.index.get_indexer(fewer.index)])
    said = " ".join(two.find([], replace(CONFIG, site="site")).caveats)
    for words in (
        "1 seen at one time",
        "no random slope",
        "in whole years",
        "1 subjects were seen at more than one site",
        "prepared by itself",
    ):
        assert words in said
    said = " ".join(two.find([], CONFIG, within_subject=True).caveats)
    assert "through a template of their subject" in said
    assert "prepared by itself" not in said


def test_close_visits_give_repeatability(cohort):
    near = cohort.scans.copy()
    visit = near["session_id"] == "ses-1"
    near.loc[visit, "age"] = near.loc[near["session_id"] == "ses-0", "age"].to_numpy() + 0.1
    table = change_over_time(cohort.regions, near, CONFIG)
    rows = table[table["what"] == "repeatability, close visits"]
    assert (len(rows), set(rows["n_subjects"])) == (N_REGIONS, {N})
    assert (rows["low"] < rows["value"]).all()
    visits = visits_of(near, CONFIG)
    said = answer(table, visits, CONFIG)
    assert f"(two visits of {N} subjects close together): regions {rows['value'].median():.3f}." in said
    none = change_over_time(cohort.regions, near, replace(CONFIG, retest_days=10.0))
    assert "repeatability, close visits" not in set(none["what"])
