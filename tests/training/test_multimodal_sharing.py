import numpy as np
import pytest

from nilatent.training.multimodal.sharing import (
    Measured,
    Sharing,
    choose_sharing,
    expected,
    explained,
    fit_sharing,
    side_by_side,
)


def white(x):
    """Uncorrelated columns of unit variance that span the same."""
    x = x - x.mean(axis=0)
    u = np.linalg.svd(x, full_matrices=False)[0]
    return u * np.sqrt(len(x))


def pair(rng, n_scans=400, sizes=(5, 4), strength=0.8):
    """Two modalities with one cause in common, and noise."""
    cause = rng.standard_normal(n_scans)
    made = [
        strength * cause[:, None] * rng.standard_normal(size) + rng.standard_normal((n_scans, size)) for size in sizes
    ]
    ends = np.cumsum(sizes)
    return cause, np.hstack([white(one) for one in made]), [slice(0, ends[0]), slice(ends[0], ends[1])]


def test_without_ridge_two_modalities_give_their_canonical_correlations(rng):
    """Cross-covariance of the model: canonical vectors times correlations, by a singular value decomposition."""
    _, values, (one, other) = pair(rng)
    found = fit_sharing(values, [one, other], np.ones(9), tables=[False, False], n_shared=2, ridge=0.0)
    u, s, vt = np.linalg.svd(values[:, one].T @ values[:, other] / len(values))
    crossed = found.loadings[one] @ found.loadings[other].T
    assert np.allclose(crossed, (u[:, :2] * s[:2]) @ vt[:2])
    total = found.loadings @ found.loadings.T + found.rest
    assert np.allclose(total[one, one], np.eye(5))
    assert np.allclose(found.rest[one, other], 0)


def test_three_modalities_share_as_planted(rng):
    cause = rng.standard_normal((5000, 1))
    planted = [rng.uniform(-0.7, 0.7, (1, size)) for size in (5, 4, 3)]
    values = np.hstack(
        [cause @ one + rng.standard_normal((5000, one.shape[1])) * np.sqrt(1 - one**2) for one in planted]
    )
    blocks = [slice(0, 5), slice(5, 9), slice(9, 12)]
    found = fit_sharing(values, blocks, np.ones(12), tables=[False] * 3, n_shared=1, ridge=0.0).loadings[:, 0]
    truth = np.hstack(planted)[0]
    assert np.allclose(found * np.sign(found @ truth), truth, atol=0.05)


def test_ridge_mistrusts_values_of_small_variance(rng):
    _, values, blocks = pair(rng)
    scale = np.array([3.0, 1.0, 1.0, 1.0, 0.1, 1.0, 1.0, 1.0, 1.0])
    free, held = (
        fit_sharing(values, blocks, scale, tables=[False, False], n_shared=4, ridge=ridge) for ridge in (0.0, 1.0)
    )
    kept = np.abs(held.loadings @ held.loadings.T)[:5, 5:].sum(axis=1)
    kept /= np.abs(free.loadings @ free.loadings.T)[:5, 5:].sum(axis=1)
    assert kept[0] > 0.5
    assert kept[4] < 0.1


def test_chance_correlations_of_a_table_are_taken_off(rng):
    values = np.hstack([white(rng.standard_normal((60, 6))), rng.standard_normal((60, 4))])
    blocks = [slice(0, 6), slice(6, 10)]
    trusting, wary = (
        fit_sharing(values, blocks, np.ones(10), tables=[False, table], n_shared=2, ridge=0.0)
        for table in (False, True)
    )
    size = [np.square((one.loadings @ one.loadings.T)[:6, 6:]).sum() for one in (trusting, wary)]
    assert size[1] < 0.4 * size[0]


def test_expected_values_are_the_conditional_means(rng):
    _, values, blocks = pair(rng, n_scans=50)
    sharing = fit_sharing(values, blocks, np.ones(9), tables=[False, False], n_shared=2, ridge=0.1)
    total = sharing.loadings @ sharing.loadings.T + sharing.rest
    hidden = values.copy()
    hidden[3, [0, 6]] = np.nan
    hidden[7] = np.nan
    filled = expected(hidden, sharing)
    seen = [1, 2, 3, 4, 5, 7, 8]
    truth = total[np.ix_([0, 6], seen)] @ np.linalg.inv(total[np.ix_(seen, seen)]) @ values[3, seen]
    assert np.allclose(filled[3, [0, 6]], truth)
    assert np.allclose(filled[7], 0)
    assert np.array_equal(filled[0], values[0])


def test_explained_counts_what_no_value_describes(rng):
    _, values, blocks = pair(rng, n_scans=200)
    sharing = fit_sharing(values, blocks, np.ones(9), tables=[False, False], n_shared=1, ridge=0.0)
    whole = explained(values, blocks, sharing, np.ones(9), np.zeros((200, 2)))
    half = explained(values, blocks, sharing, np.ones(9), np.stack([np.full(200, 5.0), np.full(200, 4.0)], axis=1))
    assert whole > 0.05
    assert half == pytest.approx(whole / 2)


def measured(rng, *, shared, n_scans=60):
    cause = rng.standard_normal((n_scans, 1))
    images = [
        shared * cause * rng.standard_normal(200)
        + rng.standard_normal((n_scans, 3)) @ rng.standard_normal((3, 200)) * 0.7
        for _ in range(2)
    ]
    return [Measured(one + 0.3 * rng.standard_normal(one.shape), 8) for one in images]


def test_choice_gains_where_something_is_shared(rng):
    subject = np.array([f"s{number}" for number in range(60)])
    choice = choose_sharing(measured(rng, shared=1.0), subject=subject, candidates=(1, 2, 4), seed=0)
    assert choice.gain > 0.25
    assert choice.n_shared <= 2


def test_nothing_shared_is_not_found(rng):
    subject = np.array([f"s{number}" for number in range(60)])
    choice = choose_sharing(measured(rng, shared=0.0), subject=subject, candidates=(1, 2, 4), seed=0)
    assert choice.gain < 0.02


def test_visits_of_a_person_are_left_out_together(rng):
    """Copies of a scan under the same name tell nothing; under other names they would tell each other's modalities."""
    modalities = [Measured(np.repeat(one.values[:20], 3, axis=0), 8) for one in measured(rng, shared=0.0)]
    people = np.repeat([f"s{number}" for number in range(20)], 3)
    honest = choose_sharing(modalities, subject=people, candidates=(4,), seed=0).gain
    leaking = choose_sharing(modalities, subject=np.arange(60).astype(str), candidates=(4,), seed=0).gain
    assert leaking > honest + 0.05


def test_components_are_those_of_the_scans_inside(rng):
    modality = measured(rng, shared=1.0)[0]
    inside = np.arange(60) < 40
    values, _, scale, left = side_by_side([modality], inside)
    assert np.allclose(values[inside].mean(axis=0), 0)
    assert np.allclose(values[inside].std(axis=0, ddof=1), 1)
    centred = modality.values - modality.values[inside].mean(axis=0)
    assert np.allclose(np.square(values * scale).sum(axis=1) + left[:, 0], np.square(centred).sum(axis=1))
    other = Measured(np.where(inside[:, None], modality.values, 9.0), 8)
    assert np.allclose(other.made(inside)[0][inside], values[inside])


def test_rest_is_positive_definite_even_of_copies(rng):
    x = white(rng.standard_normal((50, 4)))
    found = fit_sharing(
        np.hstack([x, x]), [slice(0, 4), slice(4, 8)], np.ones(8), tables=[False, False], n_shared=4, ridge=0.0
    )
    assert isinstance(found, Sharing)
    assert np.linalg.eigvalsh(found.rest).min() > 0


def test_cells_that_few_scans_have_together_still_give_a_model(rng):
    """Correlations of pairs of columns contradict one another then, and no cohort has them."""
    n_scans, cause = 60, rng.standard_normal((60, 1))
    image = cause + 0.5 * rng.standard_normal((n_scans, 4))
    table = cause + 0.4 * rng.standard_normal((n_scans, 8))
    table[rng.random(table.shape) < 0.5] = np.nan
    measured = [Measured(image, 0), Measured(table, 0)]
    people = np.array([f"sub-{number}" for number in range(n_scans)])
    choice = choose_sharing(measured, subject=people, candidates=[1], seed=0)
    assert np.isfinite(choice.gain)
    values = np.hstack([image, table])
    found = fit_sharing(values, [slice(0, 4), slice(4, 12)], np.ones(12), tables=[False, True], n_shared=1, ridge=0.0)
    assert np.linalg.eigvalsh(found.rest).min() > 0


def test_a_modality_of_one_person_is_passed_over_or_refused(rng):
    n_scans = 40
    values = rng.standard_normal((n_scans, 3))
    people = np.array([f"sub-{number // 2}" for number in range(n_scans)])
    rare = np.full((n_scans, 2), np.nan)
    rare[:2] = rng.standard_normal((2, 2))
    measured = [Measured(values, 0), Measured(rare, 0)]
    # Four folds of five leave the person in; the fifth has nobody to learn from.
    assert choose_sharing(measured, subject=people, candidates=[1], seed=0).gain <= 0


def test_what_is_told_of_a_column_is_not_taken_for_chance(rng):
    """Half of a column is told by one of many values; shrunk as if all were chance, a third of that would go."""
    n_scans, n_values = 120, 16
    image = white(rng.standard_normal((n_scans, n_values)))
    column = image[:, 0] + rng.standard_normal(n_scans)
    column = (column - column.mean()) / column.std()
    values, blocks = np.column_stack([image, column]), [slice(0, n_values), slice(n_values, n_values + 1)]
    found = fit_sharing(values, blocks, np.ones(n_values + 1), tables=[False, True], n_shared=1, ridge=0.0)
    told = found.loadings[:n_values] @ found.loadings[n_values]
    share = np.square(values[:, :n_values].T @ column / n_scans).sum()
    # What the column leaves untold scatters by chance: so much of it, and as a positive-part James-Stein factor.
    by_chance = n_values / n_scans * (1 - share) / (1 - n_values / n_scans)
    assert np.square(told).sum() == pytest.approx(share * (1 - by_chance / share) ** 2, rel=1e-3)
    # All taken for chance, a quarter less would be left.
    assert np.square(told).sum() > 1.25 * share * (1 - n_values / n_scans / share) ** 2
