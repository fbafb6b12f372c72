import numpy as np
import pandas as pd
import pytest
import xarray as xr

from nilatent.finding import Finding, not_run
from nilatent.plots import blur as plot
from nilatent.plots import style

APPROACHES = [
    "reconstruction",
    "PCA of equal size",
    "PCA of all training scans",
    "mean image",
    "samples of the density",
]
BANDS = ["finer than 8 mm", "8 to 16 mm", "coarser than 16 mm"]


@pytest.fixture
def finding(rng: np.random.Generator) -> Finding:
    pair, arrays = ("approach", "band"), {}
    for measure in ("energy_kept", "detail_kept", "coherence", "explained"):
        values = rng.uniform(0.2, 0.8, (5, 3))
        if measure in ("coherence", "explained"):
            values[4] = np.nan
        arrays |= {measure: (pair, values), f"{measure}_low": (pair, values - 0.1)}
        arrays |= {f"{measure}_high": (pair, values + 0.1)}
    pictures = ["scan", *APPROACHES]
    data = xr.Dataset(
        {
            **arrays,
            "passed": ("band", [0.01, 0.3, 0.9]),
            "scan_share": ("band", [0.1, 0.3, 0.6]),
            "slices": (("picture", "x", "y"), rng.random((6, 9, 10))),
            "extent_mm": ("edge", [-18.0, 18.0, -30.0, 10.0]),
            "position_mm": -1.0,
        },
        coords={"approach": APPROACHES, "band": BANDS, "picture": pictures, "example": "sub-$1$"},
    )
    return Finding("blur", "Q?", "A.", pd.DataFrame(), data, {}, (), 10, 10)


def test_charts_show_the_values_of_the_finding(finding: Finding) -> None:
    charts = plot.draw(finding).axes[:3]
    for axes, measure in zip(charts, plot.PANELS, strict=True):
        drawn = [points.get_offsets()[:, 1] for points in axes.collections if len(points.get_offsets()) == 3]
        expected = finding.data[measure].dropna("approach").values
        np.testing.assert_allclose(drawn, expected)
    words = [label.get_text() for label in charts[0].get_xticklabels()]
    assert words[0] == "finer\nthan\n8 mm\n(1 %)"


def test_slices_are_upright_marked_and_named(finding: Finding) -> None:
    *slices, bar = plot.draw(finding).axes[3:]
    assert bar.get_ylabel() == "value of a\nvoxel"
    assert [axes.get_title(loc="left") for axes in slices][:2] == ["scan sub-\\$1\\$", "reconstruction"]
    for axes, values in zip(slices, finding.data["slices"].values, strict=True):
        np.testing.assert_allclose(axes.images[0].get_array(), values.T)
        assert {"L", "R"} <= {text.get_text() for text in axes.texts}
    assert len({axes.images[0].norm.vmax for axes in slices}) == 1


def test_what_was_not_run_is_said() -> None:
    assert "not measured" in style.to_svg(plot.draw(not_run("blur", "Q?", "too few")))
