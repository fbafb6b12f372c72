import dataclasses

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from nilatent.finding import Finding
from nilatent.plots import reconstruction


@pytest.fixture
def finding(rng: np.random.Generator) -> Finding:
    table = pd.DataFrame({"stratum": ["all"] * 4 + ["dataset x"] * 4 + ["all"], "part": ["test"] * 8 + ["train"]})
    table = table.assign(method=[*reconstruction.METHODS, *reconstruction.METHODS, "model"], fvu=rng.random(9))
    table = table.assign(fvu_low=table["fvu"] - 0.1, fvu_high=table["fvu"] + 0.1)
    data = {}
    for plane, other in (("axial", 17), ("coronal", 13)):
        original, model = rng.random((2, 3, 15, other)) * (rng.random((3, 15, other)) > 0.3)
        cuts = {"original": original, "model": model, "error": model - original}
        data |= {f"{kind}_{plane}": (("case", "x", f"u{other}"), values) for kind, values in cuts.items()}
    for name in ("region_fvu", "region_fvu_low", "region_fvu_high", "region_correlation"):
        data[name] = (("approach", "region"), rng.random((4, 30)))
    data["case_mse"] = ("case", [0.00123, 0.02, 0.3])
    names = {
        "case": ["best", "median", "worst"],
        "case_scan": ("case", ["sub-1", "one_long_dataset_sub-20", "sub-$3$"]),
        "approach": list(reconstruction.METHODS),
        "region": [f"Region_{i}" for i in range(30)],
    }
    return Finding("reconstruction", "Q?", "A.", table, xr.Dataset(data, names), {}, (), 3, 3)


def test_dots_are_the_held_out_numbers(finding: Finding) -> None:
    axes = reconstruction.draw(finding).axes[0]
    held = finding.table[finding.table["part"] == "test"]
    dots = [points for points in axes.collections if points.get_label() in reconstruction.METHODS]
    for points in dots:
        expected = held.loc[held["method"] == points.get_label(), "fvu"]
        np.testing.assert_allclose(points.get_offsets()[:, 0], expected)
    assert len(dots) == 4


@pytest.mark.parametrize("fvu", [1.4, 4.2])
def test_a_blob_far_out_does_not_push_the_others_together(finding: Finding, fvu: float) -> None:
    table = finding.table.copy()
    table.loc[table["method"] == "down-sampling", ["fvu", "fvu_low", "fvu_high"]] = [fvu, fvu - 0.1, fvu + 0.1]
    axes = reconstruction.draw(dataclasses.replace(finding, table=table)).axes[0]
    assert axes.get_xlim()[1] < 1.2
    assert [text.get_text() for text in axes.texts] == [str(fvu)] * 2


def test_methods_that_were_not_judged_are_not_in_the_legend(finding: Finding) -> None:
    few = finding.table[finding.table["method"] != "down-sampling"]
    drawn = reconstruction.draw(dataclasses.replace(finding, table=few))
    assert [text.get_text() for text in drawn.legends[0].get_texts()] == ["model", "pca", "mean image"]


def test_regions_are_the_best_and_the_worst_in_order(finding: Finding) -> None:
    left, right = reconstruction.draw_regions(finding).axes
    fvu = finding.data["region_fvu"].sel(approach="model")
    order = np.argsort(fvu.values)
    chosen = [*order[:10], *order[-10:]]
    assert [label.get_text() for label in left.get_yticklabels()] == [f"Region_{i}" for i in chosen]
    for index, method in enumerate(("model", "pca")):
        dots = next(points for points in left.collections if points.get_label() == method)
        np.testing.assert_allclose(dots.get_offsets()[:, 0], finding.data["region_fvu"].sel(approach=method)[chosen])
        correlation = finding.data["region_correlation"].sel(approach=method).values[chosen]
        np.testing.assert_allclose(right.collections[index].get_offsets()[:, 0], correlation)


def test_few_regions_are_all_shown_and_none_is_said(finding: Finding) -> None:
    few = dataclasses.replace(finding, data=finding.data.isel(region=slice(0, 7)))
    assert len(reconstruction.draw_regions(few).axes[0].get_yticklabels()) == 7
    none = dataclasses.replace(finding, data=finding.data.drop_dims("region"))
    assert "No region was measured" in reconstruction.draw_regions(none).axes[0].texts[0].get_text()


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


def test_rows_name_case_scan_and_error(finding: Finding) -> None:
    panels = np.array(reconstruction.draw_slices(finding).axes[:18]).reshape(3, 6)
    assert [axes.get_ylabel() for axes in panels[:, 0]] == [
        "best\nsub-1\nMSE 0.0012",
        "median\none_long_dataset_\nsub-20\nMSE 0.02",
        "worst\nsub-\\$3\\$\nMSE 0.3",
    ]
