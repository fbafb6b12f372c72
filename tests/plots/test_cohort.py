import numpy as np
import pandas as pd

from nilatent.plots import cohort

SCANS = pd.DataFrame(
    {
        "dataset": ["x", "x", "y", "y"],
        "dx": ["a", "b", "a", np.nan],
        "age": [20.0, 30.0, np.nan, 50.0],
        "sex": ["F", "M", "F", np.nan],
    },
    index=["1", "2", "3", "4"],
)


def test_dots_are_the_known_ages() -> None:
    axes = cohort.draw(SCANS, group="dx").axes[0]
    ages = np.concatenate([np.ma.getdata(points.get_offsets())[:, 0] for points in axes.collections])
    assert sorted(ages[np.isfinite(ages)]) == [20.0, 30.0, 50.0]


def test_rows_are_data_sets_and_groups_first_on_top() -> None:
    axes = cohort.draw(SCANS, group="dx").axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["y · not given", "y · a", "x · b", "x · a"]


def test_without_a_group_rows_are_data_sets() -> None:
    axes = cohort.draw(SCANS, group="").axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["y", "x"]


def test_no_age_is_said_in_words() -> None:
    drawn = cohort.draw(SCANS.drop(columns="age"), group="dx")
    assert "No age" in drawn.axes[0].texts[0].get_text()
