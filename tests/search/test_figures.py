import numpy as np
import pandas as pd

from nilatent.search.config import ACTIVE, ELBO, FVU
from nilatent.search.figures import curve_of, figures_of, hopeless

HISTORY = pd.DataFrame(
    {
        "epoch": [0, 1, 2, 3],
        "best_epoch": [0, 0, 2, 2],
        "validation_fvu": [0.9, 0.95, 0.6, 0.7],
        "validation_elbo": [-9.0, -8.0, -6.0, np.nan],
        "active_share": [1.0, 0.5, 0.25, 0.0],
        "seconds": [0.0, 1.5, 1.5, 2.0],
    }
)


def test_figures_are_those_of_the_weights_that_are_kept() -> None:
    np.testing.assert_array_equal(curve_of((FVU, ACTIVE), HISTORY), [[0.9, 1.0], [0.9, 1.0], [0.6, 0.25], [0.6, 0.25]])
    found = figures_of(HISTORY)
    assert (found["validation_fvu"], found["validation_elbo"], found["best_epoch"]) == (0.6, -6.0, 2)
    assert (found["n_epochs"], found["seconds"]) == (3, 5.0)
    assert figures_of(HISTORY.assign(best_epoch=3))["validation_elbo"] is None
    assert set(figures_of(pd.DataFrame()).values()) == {None}


def others(*ends: float) -> list[np.ndarray]:
    """Finished trials whose figure was nothing at the start, and then another to the end."""
    return [np.array([[0.0], [end], [end]]) for end in ends]


def test_below_the_median_at_this_epoch_is_hopeless() -> None:
    at_1 = np.array([[2.5], [2.5]])
    assert "was 2.5, the median of 5 finished trials at that epoch 3" in hopeless(at_1, others(1, 2, 3, 4, 5), (ELBO,))
    assert not hopeless(at_1, others(1, 2, 2, 4, 5), (ELBO,))
    assert not hopeless(at_1, others(1, 2, 3, 4), (ELBO,)), "four trials are no crowd"
    assert not hopeless(at_1[:1], others(1, 2, 3, 4, 5), (ELBO,)), "the epoch counts, not the end"


def test_low_is_good_where_the_measure_says_so() -> None:
    assert hopeless(np.array([[0.0], [3.5]]), others(1, 2, 3, 4, 5), (FVU,))
    assert not hopeless(np.array([[0.0], [2.5]]), others(1, 2, 3, 4, 5), (FVU,))


def test_a_trial_that_ended_stays_as_it_ended() -> None:
    assert hopeless(np.array([[0.0], [2.5], [2.5], [2.5]]), others(1, 2, 3, 4, 5), (ELBO,))


def test_with_two_figures_none_is_stopped_that_is_best_in_the_second() -> None:
    finished = [np.array([[fvu, 0.5]]) for fvu in (0.1, 0.2, 0.3, 0.4, 0.5)]
    assert "no worse in its share of active" in hopeless(np.array([[0.35, 0.4]]), finished, (FVU, ACTIVE))
    assert not hopeless(np.array([[0.35, 0.6]]), finished, (FVU, ACTIVE))
    assert not hopeless(np.array([[0.25, 0.4]]), finished, (FVU, ACTIVE))
