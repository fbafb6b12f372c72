import numpy as np
import pandas as pd
import pytest
import xarray as xr
from matplotlib.colors import to_rgba

from nilatent.finding import Finding
from nilatent.plots import error_profile, style


def finding(table: pd.DataFrame, data: xr.Dataset) -> Finding:
    return Finding("error_profile", "Q?", "A.", table, data, {}, (), 30, 30)


@pytest.fixture
def gains() -> xr.Dataset:
    values = {"r2_null": ("model", [0.5, 0.45]), "r2": ("model", [0.4, 0.55]), "p_gate": ("model", [0.7, 0.06])}
    return xr.Dataset(values, coords={"model": ["ridge", "trees"]})


@pytest.fixture
def opened(rng: np.random.Generator, gains: xr.Dataset) -> Finding:
    phi, names = rng.normal(size=(30, 25)) * np.arange(25, 0, -1), [f"Region_{i}" for i in range(25)]
    size = np.abs(phi).mean(axis=0)
    order = rng.permutation(25)
    rank = (-size).argsort().argsort() + 1
    table = pd.DataFrame({"name": np.array(names)[order], "mean_abs_phi": size[order], "rank": rank[order]})
    classes = np.array([np.abs(phi[:15]).mean(axis=0), np.abs(phi[15:]).mean(axis=0)])
    data = xr.Dataset(
        {
            "phi": (("scan", "region"), phi),
            "x": (("scan", "region"), rng.normal(size=(30, 25))),
            "class_mean_abs_phi": (("class", "region"), classes),
        },
        coords={"region": names, "class": ["AD", "CN"]},
    )
    return finding(table, gains.merge(data))


def test_bars_and_marks_are_the_numbers_of_the_twenty_best(opened: Finding) -> None:
    left = error_profile.draw(opened).axes[0]
    best = opened.table.sort_values("rank").head(20)
    assert [label.get_text() for label in left.get_yticklabels()] == list(best["name"])
    np.testing.assert_allclose([bar.get_width() for bar in left.patches], best["mean_abs_phi"])
    of_class = opened.data["class_mean_abs_phi"].sel(region=best["name"].to_numpy())
    for marks, name in zip(left.collections, ("AD", "CN"), strict=True):
        np.testing.assert_allclose(marks.get_offsets()[:, 0], of_class.sel({"class": name}))
        np.testing.assert_allclose(marks.get_offsets()[:, 1], range(20))
    bottom, top = left.get_ylim()
    assert bottom > top


def test_every_scan_is_a_point_at_its_value_in_the_row_of_its_region(opened: Finding) -> None:
    right = error_profile.draw(opened).axes[1]
    best = opened.table.sort_values("rank").head(20)["name"].to_numpy()
    for row, (points, name) in enumerate(zip(right.collections, best, strict=True)):
        one = opened.data.sel(region=name)
        np.testing.assert_allclose(points.get_offsets()[:, 0], one["phi"])
        assert (np.abs(points.get_offsets()[:, 1] - row) < 0.5).all()
        low, high = points.get_facecolors()[[int(one["x"].values.argmin()), int(one["x"].values.argmax())]]
        assert low[2] > low[0]
        assert high[0] > high[2]


def test_points_of_one_bin_are_stacked_in_turn() -> None:
    np.testing.assert_array_equal(error_profile.stacked([7, 3, 7, 7, 3, 7]), [0, 0, 1, -1, 1, 2])


def test_a_closed_gate_shows_what_was_tested_and_no_region(gains: xr.Dataset) -> None:
    axes = error_profile.draw(finding(pd.DataFrame(), gains)).axes[0]
    assert "Gate closed" in axes.get_title(loc="left")
    np.testing.assert_allclose([bar.get_width() for bar in axes.patches], [0.5, 0.4, 0.45, 0.55])
    assert [text.get_text() for text in axes.texts] == ["p = 0.7", "p = 0.06"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["ridge regression", "boosted trees"]
    assert axes.patches[1].get_facecolor() == to_rgba(style.BLUE)


def test_nothing_is_said_in_words() -> None:
    drawn = error_profile.draw(finding(pd.DataFrame(), xr.Dataset()))
    assert "no error profile" in drawn.axes[0].texts[0].get_text()


def test_without_classes_there_are_bars_only(opened: Finding) -> None:
    alone = opened.data.drop_dims("class").assign(class_mean_abs_phi=(("class", "region"), np.zeros((0, 25))))
    alone = alone.assign_coords({"class": np.array([], dtype=str)})
    assert not error_profile.draw(finding(opened.table, alone)).axes[0].collections
