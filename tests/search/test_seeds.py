import numpy as np
import pandas as pd
import pytest
from scipy import stats

from nilatent.search.config import ELBO, FVU
from nilatent.search.seeds import Difference, difference


def table(chosen: list[float], given: list[float]) -> pd.DataFrame:
    rows = [{"settings": "chosen", "seed": seed, "validation_fvu": value} for seed, value in enumerate(chosen)]
    return pd.DataFrame(
        rows + [{"settings": "given", "seed": seed, "validation_fvu": value} for seed, value in enumerate(given)]
    )


def test_the_interval_is_that_of_the_paired_t_test(rng: np.random.Generator) -> None:
    chosen, given = rng.standard_normal((2, 7))
    found = difference(table(list(chosen), list(given)).sample(frac=1, random_state=0), "validation_fvu")
    expected = stats.ttest_rel(chosen, given).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.mean == pytest.approx(np.mean(chosen - given))
    assert found.n_seeds == 7


def test_a_seed_that_failed_leaves_the_pair() -> None:
    found = difference(table([1.0, np.nan, 3.0, 5.0], [0.0, 9.0, np.nan, 3.0]), "validation_fvu")
    assert (found.mean, found.n_seeds) == (1.5, 2)
    alone = difference(table([1.0, np.nan], [0.0, 1.0]), "validation_fvu")
    assert (alone.mean, alone.n_seeds) == (1.0, 1)
    assert np.isnan([alone.low, alone.high]).all()
    assert not alone.better(FVU)
    assert not alone.worse(FVU)


def test_which_side_is_better_depends_on_the_measure() -> None:
    below, across = Difference(-2.0, -3.0, -1.0, 3), Difference(-2.0, -5.0, 1.0, 3)
    assert (below.better(FVU), below.worse(FVU), below.better(ELBO), below.worse(ELBO)) == (True, False, False, True)
    assert not any(test(measure) for test in (across.better, across.worse) for measure in (FVU, ELBO))
