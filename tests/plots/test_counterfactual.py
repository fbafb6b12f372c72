import numpy as np
import pandas as pd
import pytest
import xarray as xr

from nilatent.analysis.counterfactual import COLUMNS
from nilatent.finding import Finding, not_run
from nilatent.plots import counterfactual
from nilatent.volumes import Grid

CHANGES = ["10 years older", "a $x$ as control"]
NAMES = ["total grey matter", *(f"Region_{number}" for number in range(15))]


@pytest.fixture
def finding(rng: np.random.Generator) -> Finding:
    tables = []
    for change in CHANGES:
        values = rng.normal(size=(len(NAMES), 2))
        table = pd.DataFrame(
            {"change": change, "region": NAMES, "percent": values[:, 0], "regression_percent": values[:, 1]}
        )
        for name, column in (("percent", "percent"), ("regression", "regression_percent")):
            table[f"{name}_low"], table[f"{name}_high"] = table[column] - 1, table[column] + 2
        tables.append(table)
    fold = ("change", "fold", "region")
    data = xr.Dataset(
        {
            **{
                f"fold_{name}_relative": (fold, rng.normal(size=(2, 3, 15)))
                for name in ("effect", "regression", "slope")
            },
            "scan_effect_ml": (("change", "scan"), [[1.0, 2.0, np.nan], [np.nan, 1.0, np.nan]]),
            "example": ("change", ["sub-1", "sub-2"]),
            **{name: ("change", [0.25, -0.5]) for name in ("rho", "regression_rho")},
            **{name: ("change", [0.011, 0.9]) for name in ("rho_p", "regression_rho_p")},
        },
        coords={"change": CHANGES, "fold": [0, 1, 2], "region": NAMES[1:], "scan": ["a", "b", "c"]},
    )
    grid = Grid.mni(6.0)
    maps = {}
    for stem in ("older", "control"):
        now, difference = rng.uniform(0.1, 0.8, grid.shape), 0.02 * rng.normal(size=grid.shape)
        maps[f"now_{stem}"], maps[f"changed_{stem}"] = grid.to_image(now), grid.to_image(now + 0.1)
        maps[f"difference_{stem}"] = grid.to_image(difference)
    settings = {"stems": ["older", "control"]}
    return Finding("counterfactual", "Q?", "A.", pd.concat(tables, ignore_index=True), data, settings, (), 3, 3, maps)


def test_bars_are_the_changes_in_the_order_of_the_table_with_their_intervals(finding: Finding) -> None:
    drawn = counterfactual.draw(finding)
    for row, change in enumerate(CHANGES):
        axes = drawn.axes[2 * row]
        table = finding.table[finding.table["change"] == change].head(13)
        assert [bar.get_width() for bar in axes.patches] == pytest.approx(list(table["percent"]))
        assert [label.get_text() for label in axes.get_yticklabels()] == list(table["region"])
        bottom, top = axes.get_ylim()
        assert bottom > top
        lines = np.array([path.vertices[:, 0] for path in axes.collections[0].get_paths()])
        np.testing.assert_allclose(lines, table[["percent_low", "percent_high"]])
    assert drawn.axes[2].get_title(loc="left").startswith("A \\$x\\$ as control")


def test_dots_are_regions_of_every_model_against_unseen_scans(finding: Finding) -> None:
    axes = counterfactual.draw(finding).axes[3]
    data = finding.data.isel(change=1)
    for dots, name in zip(axes.collections, ("regression", "effect"), strict=True):
        places = np.asarray(dots.get_offsets())
        np.testing.assert_allclose(places[:, 0], data[f"fold_{name}_relative"].values.ravel())
        np.testing.assert_allclose(places[:, 1], data["fold_slope_relative"].values.ravel())
    words = [text.get_text() for text in axes.get_legend().get_texts()]
    assert "model: rank correlation -0.50 (p = 0.9)" in words


def test_what_is_not_known_is_said(finding: Finding) -> None:
    unknown = finding.data.assign(fold_slope_relative=finding.data["fold_slope_relative"] * np.nan)
    axes = counterfactual.draw(Finding(**(vars(finding) | {"data": unknown}))).axes[1]
    assert "Too few unseen scans" in axes.texts[0].get_text()
    assert len(counterfactual.draw(not_run("counterfactual", "Q?", "no age")).axes) == 1
    assert "no image" in counterfactual.draw_example(finding, number=2).axes[0].texts[0].get_text()


def test_slices_show_now_changed_their_difference_and_the_mean(finding: Finding) -> None:
    drawn = counterfactual.draw_example(finding, number=1)
    n = len(counterfactual.POSITIONS_MM)
    panels = [axes.images[0].get_array() for axes in drawn.axes[: 4 * n]]
    np.testing.assert_allclose(panels[n] - panels[0], panels[2 * n], atol=1e-6)
    np.testing.assert_allclose(panels[2 * n], 0.1, atol=1e-6)
    assert not np.allclose(panels[3 * n], panels[2 * n], atol=1e-3)
    labels = [drawn.axes[row * n].get_ylabel() for row in range(4)]
    assert labels == ["sub-2\nas drawn now", "a \\$x\\$ as control", "difference", "mean difference\n(n = 1)"]
    limits = drawn.axes[2 * n].images[0].norm
    assert limits.vmin == -limits.vmax
    assert drawn.axes[0].images[0].norm is drawn.axes[n].images[0].norm


def test_every_column_of_the_table_has_a_name() -> None:
    assert set(counterfactual.COLUMN_NAMES) == set(COLUMNS)
