import numpy as np
import pytest

from nilatent.analysis.fusion.difference import difference
from nilatent.analysis.prediction.compare import compare, subject_swaps
from nilatent.analysis.prediction.cv import Told
from nilatent.analysis.prediction.measures import subject_weights
from nilatent.analysis.prediction.targets import Target

N = 40


def said(called, folds):
    return Told(called[:, None, None], called[:, None], np.zeros((N, 1)), folds)


@pytest.mark.parametrize("n_folds", [2, 5])
def test_swaps_and_intervals_are_widened_for_folds(rng, n_folds):
    y, folds = rng.standard_normal(N), np.arange(N) % n_folds
    one, other = (said(y + spread * rng.standard_normal(N), folds) for spread in (0.6, 0.8))
    target = Target("t", "continuous", np.arange(N), y, (), {}, "t")
    swaps = subject_swaps(np.arange(N), 500, seed=0)
    settings = {"against": "x", "weights": subject_weights(np.arange(N), 300, seed=0), "swaps": swaps}
    plain = compare(target, one, other, **settings)
    found = difference(target, one, other, alpha=0.05, **settings)
    assert (found.difference, found.against) == (plain.difference, "x")
    wider = np.sqrt(1 + n_folds / (n_folds - 1))
    assert found.high - found.low == pytest.approx(wider * (plain.high - plain.low))
    assert (found.difference - found.low) / (found.high - found.low) == pytest.approx(
        (plain.difference - plain.low) / (plain.high - plain.low)
    )

    def r2(called):
        return 1 - np.square(y - called).sum() / np.square(y).sum()

    reached = 0
    for swap in swaps.astype(bool):
        here = np.where(swap, other.called[:, 0], one.called[:, 0])
        there = np.where(swap, one.called[:, 0], other.called[:, 0])
        reached += wider * abs(r2(here) - r2(there)) >= abs(plain.difference) - 1e-6
    assert found.p_value == (1 + reached) / 501
    assert found.p_value > plain.p_value
