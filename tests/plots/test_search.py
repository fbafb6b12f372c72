from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from nilatent.finding import Finding
from nilatent.plots import search


@pytest.fixture
def finding() -> Finding:
    states = ["finished", "failed", "stopped early", "finished", "finished"]
    table = pd.DataFrame({"trial": range(5), "state": states, "validation_fvu": [0.9, np.nan, 0.95, 0.5, 0.6]})
    table["n_values"] = [4, 8, 4, 8, 2]
    table["on_front"], table["chosen"] = [False, False, False, True, True], [False, False, False, False, True]
    data = xr.Dataset(
        {
            "best_so_far": ("trial", [0.9, 0.9, 0.9, 0.5, 0.5]),
            "importance": ("setting", [0.7, 0.3]),
            "validation_fvu_by_seed": (("settings", "seed"), [[0.6, 0.61, 0.62], [0.9, 0.91, 0.92]]),
        },
        coords={"trial": range(5), "setting": ["width", "beta"], "settings": ["chosen", "given"], "seed": [1, 2, 3]},
    )
    settings = {"objective": ["validation_fvu", "n_values"], "front": ["validation_fvu", "n_values"]}
    return Finding("search", "Q?", "A.", table, data, settings, (), 30, 30)


def points(axes: object, label: str) -> list[list[float]]:
    return next(one for one in axes.collections if one.get_label() == label).get_offsets().tolist()


def test_every_trial_stands_in_its_place(finding: Finding) -> None:
    order, front, _ = search.draw(finding).axes
    assert points(order, "finished") == [[0, 0.9], [3, 0.5], [4, 0.6]]
    assert points(order, "stopped early") == [[2, 0.95]]
    assert [x for x, _ in points(order, "failed")] == [1]
    assert points(order, "settings as given") == [[0, 0.9]]
    assert points(order, "chosen") == [[4, 0.6]]
    assert order.lines[0].get_ydata().tolist() == [0.9, 0.9, 0.9, 0.5, 0.5]
    assert points(front, "finished") == [[0.9, 4], [0.5, 8], [0.6, 2]]
    assert front.lines[0].get_xydata().tolist() == [[0.5, 8], [0.6, 2]]


def test_importance_is_shown_where_there_is_one(finding: Finding) -> None:
    panel = search.draw(finding).axes[2]
    assert [bar.get_width() for bar in panel.patches] == [0.7, 0.3]
    assert [label.get_text() for label in panel.get_yticklabels()] == ["channels", "beta"]
    without = replace(finding, data=finding.data.isel(setting=slice(0)))
    assert len(search.draw(without).axes) == 2


def test_a_line_joins_the_same_seed_and_given_comes_first(finding: Finding) -> None:
    (panel,) = search.draw_seeds(finding).axes
    assert [label.get_text() for label in panel.get_xticklabels()] == ["given", "chosen"]
    assert [line.get_ydata().tolist() for line in panel.lines] == [[0.9, 0.6], [0.91, 0.61], [0.92, 0.62]]
    alone = replace(finding, data=finding.data.sel(settings=["given"]))
    assert [line.get_ydata().tolist() for line in search.draw_seeds(alone).axes[0].lines] == [[0.9], [0.91], [0.92]]


def test_nothing_to_show_is_said_in_words(finding: Finding) -> None:
    empty = replace(finding, table=pd.DataFrame(), data=xr.Dataset())
    assert "No trial" in search.draw(empty).axes[0].texts[0].get_text()
    assert "No further seed" in search.draw_seeds(empty).axes[0].texts[0].get_text()
