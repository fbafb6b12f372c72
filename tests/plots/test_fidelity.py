from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from nilatent.finding import Finding
from nilatent.plots import fidelity


@pytest.fixture
def finding(rng: np.random.Generator) -> Finding:
    names = [*fidelity.BARS, "reconstructions of PCA"]
    rows = [{"comparison": name, "features": kind} for kind in fidelity.FEATURES for name in names]
    table = pd.DataFrame(rows).assign(mmd2=np.arange(16) / 100, mmd2_se=0.01, mmd2_high=np.nan)
    table.loc[table["comparison"] == fidelity.HALVES, "mmd2_high"] = [0.05, 0.06]
    data = {
        "samples_ratio": ("samples", rng.uniform(0.4, 1, 30)),
        "unseen_ratio": ("unseen", rng.uniform(0.4, 1, 10)),
        "training_ratio": ("training", rng.uniform(0.4, 1, 20)),
        "region_mean": ("region", rng.random(7)),
        "region_real_mean": ("region", rng.random(7)),
        "region_sd": ("region", rng.random(7)),
        "region_real_sd": ("region", rng.random(7)),
        "region_q": ("region", np.array([0.01, 0.2, 0.5, 1, 1, 1, 1])),
        "axial": (("kind", "shown", "x", "y"), rng.random((4, 3, 9, 11))),
        "coronal": (("kind", "shown", "x", "z"), rng.random((4, 3, 9, 8))),
        "use_auc": ("trained_on", [0.9, 0.7]),
        "use_auc_low": ("trained_on", [0.8, 0.6]),
        "use_auc_high": ("trained_on", [1.0, 0.8]),
    }
    coords = {"kind": list(fidelity.KINDS), "trained_on": ["real scans", "$synthetic$ scans"]}
    return Finding("fidelity", "Q?", "A.", table, xr.Dataset(data, coords=coords), {}, (), 10, 10)


def test_bars_are_the_discrepancies_in_a_fixed_order_with_the_floor_dashed(finding: Finding) -> None:
    regions, deep = fidelity.draw(finding).axes[:2]
    assert [label.get_text() for label in regions.get_yticklabels()] == list(fidelity.BARS.values())
    assert [bar.get_width() for bar in regions.patches] == pytest.approx(np.arange(7) / 100)
    assert [bar.get_width() for bar in deep.patches] == pytest.approx(np.arange(8, 15) / 100)
    assert regions.lines[0].get_xdata()[0] == 0.05
    assert deep.lines[0].get_xdata()[0] == 0.06


def test_ratios_areas_and_called_regions_are_drawn(finding: Finding) -> None:
    axes = fidelity.draw(finding).axes
    nearest, useful, mean = axes[2], axes[3], axes[4]
    counted = {text.get_text() for text in nearest.get_legend().get_texts()}
    assert counted == {"training scans among themselves (20)", "unseen scans, reconstructed (10)", "synthetic (30)"}
    np.testing.assert_allclose(useful.collections[1].get_offsets()[:, 0], [0.9, 0.7])
    assert useful.get_yticklabels()[1].get_text() == "\\$synthetic\\$ scans"
    assert [len(one.get_offsets()) for one in mean.collections] == [6, 1]


def test_the_strip_names_what_is_synthetic_and_uses_one_scale(finding: Finding) -> None:
    drawn = fidelity.draw_strip(finding)
    panels = [axes for axes in drawn.axes if axes.images and axes.images[0].get_array().ndim == 2]
    assert len(panels) == 4 * 6
    words = [axes.get_ylabel() for axes in panels if axes.get_ylabel()]
    assert words == list(fidelity.KINDS.values())
    assert [("synthetic" in one) for one in words] == [False, False, True, True]
    assert len({axes.images[0].norm.vmax for axes in panels}) == 1
    np.testing.assert_array_equal(panels[0].images[0].get_array(), finding.data["axial"].values[0, 0].T)


def test_without_a_check_usefulness_or_images_the_figure_says_so(finding: Finding) -> None:
    bare = finding.data.drop_vars(["samples_ratio", "use_auc", "axial"])
    found = replace(finding, data=bare, settings={"utility_not_run": "one group only"})
    words = [text.get_text() for axes in fidelity.draw(found).axes for text in axes.texts]
    assert "Not judged: too few training subjects." in words
    assert "Not judged: one group only" in words
    assert "No image was kept." in fidelity.draw_strip(found).axes[0].texts[0].get_text()
    empty = replace(finding, table=pd.DataFrame())
    assert fidelity.draw(empty).axes[0].texts[0].get_text() == "No image was judged."


def test_every_column_of_the_page_is_one_of_the_table() -> None:
    columns = {
        "comparison", "features", "mmd2", "mmd2_se", "mmd2_p", "mmd2_high", "kid", "kid_se", "kid_p", "kid_high", "auc",
        "coverage", "density", "spread", "n_real", "n_images",
    }  # fmt: skip
    assert set(fidelity.COLUMN_NAMES) <= columns
