import numpy as np
import pandas as pd
import pytest
import xarray as xr

from nilatent.finding import Finding
from nilatent.plots import reconstruction


@pytest.fixture
def finding(rng: np.random.Generator) -> Finding:
    table = pd.DataFrame({"stratum": ["all"] * 3 + ["dataset x"] * 3 + ["all"], "part": ["test"] * 6 + ["train"]})
    table = table.assign(method=[*reconstruction.METHODS, *reconstruction.METHODS, "model"], fvu=rng.random(7))
    table = table.assign(fvu_low=table["fvu"] - 0.1, fvu_high=table["fvu"] + 0.1)
    data = {}
    for plane, other in (("axial", 17), ("coronal", 13)):
        original, model = rng.random((2, 3, 15, other)) * (rng.random((3, 15, other)) > 0.3)
        cuts = {"original": original, "model": model, "error": model - original}
        data |= {f"{kind}_{plane}": (("case", "x", f"u{other}"), values) for kind, values in cuts.items()}
    names = {"case": ["best", "median", "worst"], "case_scan": ("case", ["sub-1", "sub-2", "sub-$3$"])}
    return Finding("reconstruction", "Q?", "A.", table, xr.Dataset(data, names), {}, (), 3, 3)


def test_dots_are_the_held_out_numbers(finding: Finding) -> None:
    axes = reconstruction.draw(finding).axes[0]
    held = finding.table[finding.table["part"] == "test"]
    dots = [points for points in axes.collections if points.get_label() in reconstruction.METHODS]
    for points in dots:
        expected = held.loc[held["method"] == points.get_label(), "fvu"]
        np.testing.assert_allclose(points.get_offsets()[:, 0], expected)
    assert len(dots) == 3


def test_panels_are_the_slices_with_left_on_the_left(finding: Finding) -> None:
    panels = np.array(reconstruction.draw_slices(finding).axes[:18]).reshape(3, 6)
    np.testing.assert_allclose(panels[1, 0].images[0].get_array(), finding.data["original_axial"].values[1].T)
    np.testing.assert_allclose(panels[2, 4].images[0].get_array(), finding.data["model_coronal"].values[2].T)
    for axes in panels.flat:
        places = {text.get_text(): text.get_position()[0] for text in axes.texts}
        assert places["L"] < places["R"]


def test_error_is_symmetric_about_zero_and_shown_only_inside(finding: Finding) -> None:
    panels = np.array(reconstruction.draw_slices(finding).axes[:18]).reshape(3, 6)
    image = panels[0, 2].images[0]
    assert image.norm.vmin == -image.norm.vmax
    empty = (finding.data["original_axial"].values[0] == 0) & (finding.data["model_axial"].values[0] == 0)
    np.testing.assert_array_equal(np.ma.getmaskarray(image.get_array()), empty.T)
    assert empty.any()


def test_rows_name_case_and_scan(finding: Finding) -> None:
    panels = np.array(reconstruction.draw_slices(finding).axes[:18]).reshape(3, 6)
    assert [axes.get_ylabel() for axes in panels[:, 0]] == ["best\nsub-1", "median\nsub-2", "worst\nsub-\\$3\\$"]
