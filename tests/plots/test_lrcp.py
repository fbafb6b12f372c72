import numpy as np
import pandas as pd
import pytest
import xarray as xr

from nilatent.finding import Finding
from nilatent.plots import lrcp


def finding(table: pd.DataFrame) -> Finding:
    return Finding("lrcp", "Q?", "A.", table, xr.Dataset(), {}, (), 30, 30)


@pytest.fixture
def table(rng: np.random.Generator) -> pd.DataFrame:
    ranks = rng.permutation(np.arange(1, 26))
    values = {"name": [f"Region_{rank}" for rank in ranks], "a": 0.9 - 0.02 * ranks, "bal_acc": 0.85 - 0.02 * ranks}
    return pd.DataFrame(values | {"grade": np.where(ranks < 4, "strong", "none"), "rank": ranks})


def test_bars_are_the_numbers_of_the_twenty_best(table: pd.DataFrame) -> None:
    left, right = lrcp.draw(finding(table)).axes
    best = table.sort_values("rank").head(20)
    assert [label.get_text() for label in left.get_yticklabels()] == list(best["name"])
    np.testing.assert_allclose([bar.get_width() for bar in left.patches], best["a"])
    np.testing.assert_allclose([0.5 + bar.get_width() for bar in right.patches], best["bal_acc"])


def test_the_best_region_is_on_top(table: pd.DataFrame) -> None:
    left, _ = lrcp.draw(finding(table)).axes
    bottom, top = left.get_ylim()
    assert bottom > top


def test_no_region_is_said_in_words() -> None:
    drawn = lrcp.draw(finding(pd.DataFrame()))
    assert "no region" in drawn.axes[0].texts[0].get_text()
