from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from nilatent.analysis.prediction.compare import compare, subject_swaps
from nilatent.analysis.prediction.cv import Told
from nilatent.analysis.prediction.measures import main_measure, subject_weights
from nilatent.analysis.prediction.targets import Target


def told_of(called):
    called = np.asarray(called, dtype=float)[:, None]
    return Told(called[:, :, None], called, np.ones_like(called), np.arange(len(called)) % 3)


def compared(target, first, second, subjects, **changes):
    n_draws = changes.pop("n_draws", 400)
    return compare(
        target,
        first,
        second,
        against="regions",
        weights=subject_weights(subjects, n_draws, seed=1),
        swaps=subject_swaps(subjects, n_draws, seed=1),
        **changes,
    )


@pytest.mark.parametrize("kind", ["binary", "ordinal", "continuous"])
def test_swaps_are_measures_of_exchanged_predictions(rng, kind):
    n = 30
    y = rng.standard_normal(n) if kind == "continuous" else rng.integers(0, 3, n) % (2 if kind == "binary" else 3)
    levels = {"binary": ("a", "b"), "ordinal": ("a", "b", "c")}.get(kind, ())
    target = Target("t", kind, np.arange(n), y, levels, {}, "t")
    both = [y + rng.standard_normal(n), rng.standard_normal(n)]
    if kind != "continuous":
        both = [np.clip(np.round(values), 0, len(levels) - 1) for values in both]
    first, second = (told_of(values) for values in both)
    subjects = np.repeat(np.arange(15), 2)
    found = compared(target, first, second, subjects)

    def apart(one, other):
        return (main_measure(target, y[:, None], told_of(one)) - main_measure(target, y[:, None], told_of(other)))[0]

    observed = apart(*both)
    assert found.difference == pytest.approx(observed)
    swapped = []
    for swap in subject_swaps(subjects, 400, seed=1).astype(bool):
        assert (swap[::2] == swap[1::2]).all()
        swapped.append(apart(np.where(swap, both[1], both[0]), np.where(swap, both[0], both[1])))
    # Three folds, of which every two share half of their training scans.
    reached = (np.sqrt(2.5) * np.abs(swapped) >= abs(observed) - 1e-9).sum()
    assert found.p_value == pytest.approx((1 + reached) / 401)
    assert found.low < found.difference < found.high


def test_the_interval_allows_for_folds_that_share_training_scans(rng):
    y = rng.standard_normal(40)
    target = Target("t", "continuous", np.arange(40), y, (), {}, "t")
    first, second = (told_of(y + rng.standard_normal(40)) for _ in range(2))
    plain = [replace(one, folds=np.zeros(40)) for one in (first, second)]
    wide, narrow = compared(target, first, second, np.arange(40)), compared(target, *plain, np.arange(40))
    assert wide.high - wide.low == pytest.approx(np.sqrt(2.5) * (narrow.high - narrow.low))
    assert wide.difference == narrow.difference


def test_equal_predictions_do_not_differ(rng):
    target = Target("t", "binary", np.arange(40), np.arange(40) % 2, ("a", "b"), {}, "t")
    same = told_of(rng.integers(0, 2, 40))
    found = compared(target, same, same, np.arange(40))
    assert (found.difference, found.low, found.high, found.p_value) == (0, 0, 0, 1)


def test_a_better_set_is_found_and_the_sign_is_its_own(rng):
    y = rng.standard_normal(60)
    target = Target("t", "continuous", np.arange(60), y, (), {}, "t")
    good, bad = told_of(y + 0.3 * rng.standard_normal(60)), told_of(0.1 * rng.standard_normal(60))
    assert compared(target, good, bad, np.arange(60)).low > 0
    assert compared(target, bad, good, np.arange(60)).high < 0
    assert compared(target, good, bad, np.arange(60)).p_value < 0.01


def test_the_p_value_of_few_subjects_is_the_exact_one(rng):
    y = np.array([0, 0, 0, 1, 1, 1])
    target = Target("t", "binary", np.arange(6), y, ("a", "b"), {}, "t")
    right, wrong = np.ones(6), np.array([0, 0, 1, 0, 0, 1])
    signed = right - wrong
    every = [abs((signed * signs).sum()) for signs in product([1, -1], repeat=6)]
    exact = np.mean(np.sqrt(2.5) * np.array(every) >= signed.sum())
    found = compared(target, told_of(y), told_of(np.where(wrong, y, 1 - y)), np.arange(6), n_draws=20_000)
    assert found.p_value == pytest.approx(exact, abs=0.01)
