import numpy as np
import pytest
from scipy.stats import binomtest

from nilatent.analysis import stats
from nilatent.analysis.sequential import permuted_maxima, sequential_p
from nilatent.errors import SettingError


def by_hand(observed, drawn, stop_after):
    """Draw until as many as asked have reached the observed value."""
    reached = 0
    for number, value in enumerate(drawn, start=1):
        reached += value >= observed
        if reached == stop_after:
            return stop_after / number
    return (1 + reached) / (1 + len(drawn))


@pytest.mark.parametrize("stop_after", [1, 3, 10])
def test_sequential_p_equals_drawing_one_by_one(rng, stop_after):
    drawn, observed = rng.normal(size=40), rng.normal(size=(5, 6)) + 0.5
    expected = np.vectorize(lambda value: by_hand(value, drawn, stop_after))(observed)
    np.testing.assert_allclose(sequential_p(observed, drawn, stop_after=stop_after), expected)


def test_larger_statistics_never_have_larger_p(rng):
    p = sequential_p(np.sort(rng.normal(size=200)), rng.normal(size=60), stop_after=4)
    assert (np.diff(p) <= 0).all()


def test_a_run_that_is_stopped_gives_the_p_values_of_the_whole_run(rng, monkeypatch):
    x, z, c = rng.normal(size=(30, 4)), rng.normal(size=(30, 3)), rng.normal(size=(30, 1))
    monkeypatch.setattr(stats, "BATCH_BYTES", 10_000)
    orders = stats.permutations(30, 500, seed=0)
    whole = stats.permuted_correlation(x, z, orders, confounds=c)
    full, stopped = (permuted_maxima(x, z, orders, confounds=c, stop_after=stop) for stop in (0, 20))
    np.testing.assert_allclose(full.p_fwe, whole.p_fwe)
    np.testing.assert_allclose(full.observed, whole.observed)
    assert len(stopped.maxima) < 250
    np.testing.assert_allclose(stopped.maxima, whole.maxima[: len(stopped.maxima)])
    np.testing.assert_allclose(stopped.p_fwe, sequential_p(np.abs(full.observed), full.maxima, stop_after=20))
    assert (stopped.maxima >= np.abs(full.observed).max() - stats.TIE).sum() == 20


def test_signs_and_names_reach_the_engine(rng, monkeypatch):
    seen = []
    monkeypatch.setattr(stats, "track", lambda items, **named: seen.append(named["label"]) or items)
    x, flips = rng.normal(size=(16, 2)), rng.choice([-1.0, 1.0], size=(50, 16))
    found = permuted_maxima(x, x[:, ::-1], None, flips=flips, label="lrcp")
    np.testing.assert_allclose(found.maxima, stats.permuted_correlation(x, x[:, ::-1], None, flips=flips).maxima)
    assert seen == ["lrcp"]


def test_stopping_early_keeps_the_family_wise_error_with_and_without_effects_elsewhere(rng):
    found = {0.0: [], 2.0: []}
    for effect, false in found.items():
        for seed in range(250):
            z = rng.normal(size=(24, 1))
            x = rng.normal(size=(24, 6)) + np.hstack([effect * z, np.zeros((24, 5))])
            orders = stats.permutations(24, 199, seed=seed)
            p = permuted_maxima(x, z, orders, stop_after=8).p_fwe[1:, 0]
            false.append(bool((p <= 0.05).any()))
    for false in found.values():
        assert binomtest(sum(false), 250, 0.05, alternative="greater").pvalue > 0.01


def test_a_single_test_that_stops_is_right_at_every_level(rng):
    p = [float(sequential_p(np.array(rng.normal()), rng.normal(size=400), stop_after=5)) for _ in range(3000)]
    for alpha in (0.02, 0.05, 0.2, 0.5):
        rate = binomtest(int(np.sum(np.array(p) <= alpha)), 3000, alpha)
        assert rate.pvalue > 0.001, alpha


def test_a_negative_number_of_exceedances_is_refused(rng):
    x = rng.normal(size=(10, 1))
    with pytest.raises(SettingError, match="stop_after is -1"):
        permuted_maxima(x, x, stats.permutations(10, 9, seed=0), stop_after=-1)
