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


def test_several_contrasts_have_a_row_of_panels_each(table: pd.DataFrame) -> None:
    other = table.assign(contrast="MCI:CN", a=table["a"] / 2, rank=table["rank"] + 25)
    drawn = lrcp.draw(finding(pd.concat([table.assign(contrast="AD:CN"), other])))
    assert [axes.get_title(loc="left") for axes in drawn.axes[::2]] == ["AD:CN", "MCI:CN"]
    for axes, part in zip(drawn.axes[::2], (table, other), strict=True):
        best = part.sort_values("rank").head(10)
        np.testing.assert_allclose([bar.get_width() for bar in axes.patches], best["a"])
        assert [label.get_text() for label in axes.get_yticklabels()] == list(best["name"])


def test_of_a_number_the_correlation_is_shown(table: pd.DataFrame) -> None:
    table = table.assign(bal_acc=np.nan, r_target=0.5 - 0.04 * table["rank"])
    _, right = lrcp.draw(finding(table)).axes
    best = table.sort_values("rank").head(20)
    np.testing.assert_allclose([bar.get_width() for bar in right.patches], best["r_target"])
    assert "number" in right.get_xlabel()


@pytest.fixture
def profiled(table: pd.DataFrame, rng: np.random.Generator) -> Finding:
    a, regions = rng.uniform(-1, 1, size=(25, 4)), [f"Region_{rank}" for rank in range(25, 0, -1)]
    pair, latents = ("region", "latent"), [f"z{j}" for j in range(4)]
    data = xr.Dataset({"a": (pair, a), "q_a": (pair, np.abs(a) / 2)}, coords={"region": regions, "latent": latents})
    return Finding("lrcp", "Q?", "A.", table, data, {}, (), 30, 30)


def test_the_profile_shows_the_correlations_in_the_order_of_the_table(profiled: Finding) -> None:
    axes, _ = lrcp.draw_profile(profiled).axes
    regions = [f"Region_{rank}" for rank in range(1, 26)]
    np.testing.assert_allclose(axes.images[0].get_array(), profiled.data["a"].sel(region=regions))
    names = axes.get_yticklabels()
    assert [name.get_text() for name in names] == regions
    assert [name.get_fontweight() for name in names] == ["bold"] * 3 + ["regular"] * 22
    low, high = axes.images[0].get_clim()
    assert low == -high == -float(np.abs(profiled.data["a"]).max())


def test_dots_mark_small_q(profiled: Finding) -> None:
    axes, _ = lrcp.draw_profile(profiled).axes
    shown = profiled.data["q_a"].sel(region=[f"Region_{rank}" for rank in range(1, 26)]).values
    rows, columns = np.nonzero(shown <= 0.05)
    np.testing.assert_array_equal(axes.collections[0].get_offsets(), np.column_stack([columns, rows]))


def test_contrasts_have_a_panel_of_the_profile_each(profiled: Finding) -> None:
    data = xr.concat([profiled.data, -profiled.data], dim=pd.Index(["AD:CN", "MCI:CN"], name="contrast"))
    table = pd.concat([profiled.table.assign(contrast=name) for name in ("AD:CN", "MCI:CN")])
    drawn = lrcp.draw_profile(Finding("lrcp", "Q?", "A.", table, data, {}, (), 30, 30))
    first, second, _ = drawn.axes
    assert [axes.get_title(loc="left") for axes in (first, second)] == ["AD:CN", "MCI:CN"]
    np.testing.assert_allclose(first.images[0].get_array(), -second.images[0].get_array())


def test_no_profile_is_said_in_words(table: pd.DataFrame) -> None:
    assert "no profile" in lrcp.draw_profile(finding(table)).axes[0].texts[0].get_text()
