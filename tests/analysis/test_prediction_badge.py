import numpy as np
import pytest

from nilatent.analysis import bounds
from nilatent.analysis.held_out import certify_calls
from nilatent.analysis.prediction.badge import NOT_ASSESSED, badge

N = 400
FOLDS = np.arange(N) % 5
Y = np.arange(N) // 5 % 2


def made(called, y=Y, **changes):
    settings = {
        "kind": "binary", "head": "linear", "n_features": 3, "independent": True, "p_value": 0.01, "alpha": 0.05,
    }  # fmt: skip
    return badge(called, y, FOLDS, **(settings | changes))


def with_errors(rng, share):
    return np.where(rng.uniform(size=N) < share, 1 - Y, Y)


def test_the_badge_of_few_features_is_the_certificate(rng):
    for share in (0.05, 0.3, 0.45):
        called = with_errors(rng, share)
        holds = certify_calls(called, Y == 1, FOLDS, d=4).holds
        assert made(called) == (bounds.VALIDATED if holds else bounds.INCONCLUSIVE)
    assert made(with_errors(rng, 0.05)) == bounds.VALIDATED


def test_more_features_widen_the_bound(rng):
    called = with_errors(rng, 0.1)
    found = [made(called, n_features=d) for d in (3, 10, 60, 5000)]
    assert found[1] == bounds.VALIDATED
    assert found[-1] == bounds.INCONCLUSIVE


def test_a_badge_needs_the_p_value_and_independent_scans(rng):
    called = with_errors(rng, 0.05)
    assert made(called, p_value=0.06) == bounds.INCONCLUSIVE
    assert made(called, p_value=0.06, alpha=0.1) == bounds.VALIDATED
    assert made(called, independent=False) == NOT_ASSESSED
    assert made(called, p_value=np.nan) == NOT_ASSESSED


@pytest.mark.parametrize("changes", [{"head": "trees"}, {"head": "network"}, {"kind": "ordinal"}])
def test_what_has_no_count_is_not_assessed(rng, changes):
    assert made(with_errors(rng, 0.05), **changes) == NOT_ASSESSED


def test_numbers_are_judged_by_sar_with_few_features(rng):
    y = rng.standard_normal(N)
    good = y + 0.1 * rng.standard_normal(N)
    assert made(good, y, kind="continuous") == bounds.VALIDATED
    assert made(0 * y, y, kind="continuous") == bounds.INCONCLUSIVE
    assert made(good, y, kind="continuous", n_features=7) == NOT_ASSESSED
