import numpy as np
import pytest
from scipy.stats import binom, spearmanr
from scipy.stats import t as student_t

from nilatent.analysis import stats
from nilatent.analysis.sensitivity.people import Unseen, agreement, joint_p, permuted_pattern
from nilatent.errors import SettingError

N, REGIONS = 60, 8


def naive(y, column, confounds):
    """Slope, t and half width of the column in a least-squares fit of every region."""
    design = np.column_stack([column, np.ones(len(column)), confounds])
    inverse = np.linalg.inv(design.T @ design)
    beta = inverse @ design.T @ y
    degrees = len(column) - design.shape[1]
    error = np.sqrt(np.square(y - design @ beta).sum(axis=0) / degrees * inverse[0, 0])
    return beta[0], beta[0] / error, student_t.ppf(0.975, degrees) * error


@pytest.fixture
def models(rng):
    """Three models that leave out a third of the subjects each; their values share noise."""
    shared, age = rng.normal(size=(N, REGIONS)), rng.normal(size=(N, 1))
    column = age[:, 0] + rng.normal(size=N)
    values, rows = [], []
    for fold in range(3):
        own = np.flatnonzero(np.arange(N) % 3 != fold)
        values.append(shared[own] + 2 * age[own] + 0.3 * rng.normal(size=(len(own), REGIONS)))
        rows.append(own)
    return values, rows, column, age


def test_effects_and_intervals_are_those_of_least_squares(models):
    values, rows, column, age = models
    found = permuted_pattern(values, rows, column, age, stats.permutations(N, 19, seed=0))
    expected = [naive(y, column[own], age[own]) for y, own in zip(values, rows, strict=True)]
    np.testing.assert_allclose(found.by_model, [slope for slope, _, _ in expected])
    np.testing.assert_allclose(found.effect, found.by_model.mean(axis=0))
    np.testing.assert_allclose(found.half_width, np.mean([half for _, _, half in expected], axis=0))


def test_p_values_are_those_of_a_loop_over_refits(models):
    values, rows, column, age = models
    values = [y - 0.5 * (np.arange(REGIONS) == 3) * column[own][:, None] for y, own in zip(values, rows, strict=True)]
    orders = stats.permutations(N, 99, seed=1, blocks=np.arange(N) // 20)
    found = permuted_pattern(values, rows, column, age, orders)
    left = stats.residualise(column, age)[:, 0]
    t = np.array(
        [
            np.abs(np.mean([naive(y, x[own], age[own])[1] for y, own in zip(values, rows, strict=True)], axis=0))
            for x in (left, *left[orders])
        ]
    )
    np.testing.assert_allclose(found.p_value, (1 + (t[1:] >= t[0] * (1 - 1e-6)).sum(axis=0)) / 100)
    np.testing.assert_allclose(found.p_fwe, (1 + (t[1:].max(axis=1)[:, None] >= t[0] * (1 - 1e-6)).sum(axis=0)) / 100)
    assert found.p_fwe.argmin() == 3


def test_a_region_that_no_model_moves_is_never_called(models):
    values, rows, column, age = models
    for y in values:
        y[:, 2] = 0
    found = permuted_pattern(values, rows, column, age, stats.permutations(N, 19, seed=0))
    assert found.p_fwe[2] == found.p_value[2] == 1
    assert found.effect[2] == found.half_width[2] == 0


def test_a_column_that_is_constant_in_one_model_is_an_error(models):
    values, rows, column, age = models
    column = np.where(np.isin(np.arange(N), rows[1]), 0.0, column)
    with pytest.raises(SettingError, match="constant"):
        permuted_pattern(values, rows, column, age, stats.permutations(N, 19, seed=0))


def test_on_nulls_the_family_wise_error_is_as_stated(rng):
    """Regions that correlate, a confound that drives regions and column, models that share subjects."""
    n_nulls, alpha, called = 200, 0.1, 0
    for null in range(n_nulls):
        age = rng.normal(size=(40, 1))
        shared = rng.normal(size=(40, 1)) + rng.normal(size=(40, 12)) + 2 * age
        column = ((age[:, 0] + rng.normal(size=40)) > 0).astype(float)
        rows = [np.flatnonzero(np.arange(40) % 4 != fold) for fold in range(4)]
        values = [shared[own] + 0.5 * rng.normal(size=(30, 12)) for own in rows]
        found = permuted_pattern(values, rows, column, age, stats.permutations(40, 99, seed=null))
        called += bool((found.p_fwe <= alpha).any())
    low, high = binom.interval(0.999, n_nulls, alpha)
    assert low <= called <= high


def held(rng, *, slopes=None, n=30, confounds=None, blocks=None):
    column = rng.normal(size=n)
    confounds = np.empty((n, 0)) if confounds is None else confounds
    regions = rng.normal(size=(n, REGIONS)) + np.outer(column, np.zeros(REGIONS) if slopes is None else slopes)
    return Unseen(regions, column, confounds, blocks)


def test_agreement_is_the_weighted_mean_of_rank_correlations(rng):
    claims = rng.normal(size=(2, REGIONS))
    judges = [held(rng, n=30), held(rng, n=12, confounds=rng.normal(size=(12, 2)))]
    found = agreement(claims, judges, n_permutations=19, seed=0)
    slopes = [naive(one.regions, one.column, one.confounds)[0] for one in judges]
    r = [spearmanr(claim, slope).statistic for claim, slope in zip(claims, slopes, strict=True)]
    np.testing.assert_allclose(found.by_model, r)
    assert [one.degrees for one in judges] == [28, 8]
    assert found.r == pytest.approx((28 * r[0] + 8 * r[1]) / 36)


def test_a_true_claim_agrees_and_its_opposite_does_not(rng):
    claim = np.linspace(-2, 2, REGIONS)
    judges = [held(rng, slopes=claim), held(rng, slopes=claim)]
    found = agreement([claim, claim], judges, n_permutations=199, seed=0)
    assert found.r > 0.9
    # Of models that may be bound together, twice the mean.
    alone = [agreement([claim], [one], n_permutations=199, seed=0).p for one in judges]
    assert found.p == pytest.approx(2 * np.mean(alone), abs=0.02)
    assert np.mean(alone) < 0.1
    opposite = agreement([-claim, -claim], judges, n_permutations=199, seed=0)
    assert opposite.p > 0.9
    assert opposite.r == pytest.approx(-found.r)


def test_p_of_agreement_is_uniform_when_regions_depend_on_each_other(rng):
    """A common factor that claims and regions share makes naive p-values of a rank correlation far too small."""
    claim, p = np.linspace(-1, 1, REGIONS), []
    for null in range(200):
        regions = rng.normal(size=(20, 1)) * claim + 0.3 * rng.normal(size=(20, REGIONS))
        one = Unseen(regions, rng.normal(size=20), rng.normal(size=(20, 1)))
        p.append(agreement([claim], [one], n_permutations=99, seed=null).p)
    low, high = binom.interval(0.999, 200, 0.1)
    assert low <= np.sum(np.array(p) <= 0.1) <= high


def test_permutations_of_agreement_stay_within_sites(rng):
    # The column differs between sites only, and within a site nothing can change.
    site = np.repeat(["a", "b"], 10)
    one = held(rng, n=20, blocks=site)
    steps = Unseen(one.regions, (site == "b") + 0.0, one.confounds, site)
    assert agreement([rng.normal(size=REGIONS)], [steps], n_permutations=19, seed=0).p == 1


def test_without_a_judge_there_is_no_agreement():
    found = agreement([], [], n_permutations=9, seed=0)
    assert np.isnan([found.r, found.p]).all()


def crossfitted(column, regions):
    """Claims by two folds, each held against the one that the other learnt from."""
    folds = [np.arange(len(column)) % 2 == fold for fold in (0, 1)]
    rows = [(np.flatnonzero(~unseen), np.flatnonzero(unseen)) for unseen in folds]
    return [(train, regions[train]) for train, _ in rows], [(own, regions[own]) for _, own in rows]


def test_p_over_models_is_uniform_though_each_learns_from_what_the_other_judges(rng):
    p = []
    for null in range(200):
        column, regions = rng.normal(size=40), rng.normal(size=(40, REGIONS))
        p.append(joint_p(column, np.ones((40, 0)), None, *crossfitted(column, regions), n_permutations=99, seed=null))
    low, high = binom.interval(0.999, 200, 0.1)
    assert low <= np.sum(np.array(p) <= 0.1) <= high


def test_p_over_models_finds_what_is_there_and_holds_confounds(rng):
    confound = rng.normal(size=(60, 1))
    column, claim = rng.normal(size=60) + confound[:, 0], np.linspace(-2, 2, REGIONS)
    told = rng.normal(size=(60, REGIONS)) + column[:, None] * claim
    given = {"n_permutations": 199, "seed": 0}
    assert joint_p(column, confound, None, *crossfitted(column, told), **given) <= 0.02
    only_confound = rng.normal(size=(60, REGIONS)) + confound * claim
    assert joint_p(column, confound, None, *crossfitted(column, only_confound), **given) > 0.05
    assert joint_p(column, np.ones((60, 0)), None, *crossfitted(column, only_confound), **given) <= 0.02


def test_p_over_models_is_that_of_fitting_everything_again(rng):
    confound = rng.normal(size=(24, 1))
    column = 0.5 * rng.normal(size=24) + confound[:, 0]
    regions = rng.normal(size=(24, REGIONS)) + column[:, None] * np.linspace(-0.3, 0.3, REGIONS)
    claims, judges = crossfitted(column, regions)
    design = np.column_stack([np.ones(24), confound])
    left = column - design @ np.linalg.lstsq(design, column, rcond=None)[0]

    def statistic(values):
        total = 0.0
        for claim, judge in zip(claims, judges, strict=True):
            slopes = [
                np.linalg.lstsq(np.column_stack([values[rows], design[rows]]), y, rcond=None)[0][0]
                for rows, y in (claim, judge)
            ]
            total += len(judge[0]) * spearmanr(*slopes).statistic
        return total

    orders = stats.permutations(24, 199, seed=3)
    reached = sum(statistic(left[order]) >= statistic(left) - 1e-9 for order in orders)
    found = joint_p(column, confound, None, claims, judges, n_permutations=199, seed=3)
    assert found == pytest.approx((1 + reached) / 200)
