import numpy as np
import pandas as pd
import pytest
import xarray as xr

from nilatent.errors import FindingError
from nilatent.finding import Finding
from nilatent.plots import projections

SCANS = [f"sub-{i}" for i in range(8)]


@pytest.fixture
def finding(rng: np.random.Generator) -> Finding:
    table = pd.DataFrame(
        {"component": ["PC1", "PC2"], "explained": [0.4, 0.2], "r2_age": [0.5, 0.1], "p_age": [0.01, 0.9]}
    )
    coords = {"scan": SCANS, "part": ("scan", ["train", "test"] * 4)}
    data = {
        "scores": (("scan", "component"), rng.normal(size=(8, 2))),
        "scan_dx": ("scan", ["a", "b"] * 3 + ["a", "n/a"]),
    }
    return Finding("projections", "Q?", "A.", table, xr.Dataset(data, coords), {"group": "dx"}, (), 8, 8)


def test_every_scan_is_a_dot_at_its_scores(finding: Finding) -> None:
    axes = projections.draw(finding).axes[0]
    dots = np.vstack([points.get_offsets() for points in axes.collections])
    np.testing.assert_allclose(np.sort(dots, axis=0), np.sort(finding.data["scores"].values, axis=0))


def test_groups_have_their_names_and_the_missing_one_too(finding: Finding) -> None:
    drawn = projections.draw(finding)
    assert [text.get_text() for text in drawn.legends[0].texts] == ["a", "b", "not given", "ringed: held out"]


def test_relations_star_only_what_is_significant(finding: Finding) -> None:
    axes = projections.draw_relations(finding).axes[0]
    assert [text.get_text() for text in axes.texts] == ["0.50*", "0.10"]


def test_scatter_follows_the_scans_of_the_finding(finding: Finding) -> None:
    columns = pd.DataFrame({"age": np.arange(8.0), "dx": list("ababcacb"), "note": SCANS, "one": 1}, index=SCANS)
    made = projections.scatter(finding, columns.sample(frac=1, random_state=1))
    by_name = {column["name"]: column for column in made["columns"]}
    assert by_name["age"]["values"] == list(range(8))
    assert by_name["dx"]["values"] == list("ababcacb")
    assert "one" not in by_name
    np.testing.assert_allclose(made["axes"][1]["values"], finding.data["scores"].values[:, 1], rtol=1e-5)


def test_missing_values_are_none_and_text_levels_are_named(finding: Finding) -> None:
    columns = pd.DataFrame({"age": [np.nan, *np.arange(7.0)], "sex": [np.nan, *"MFMFMFM"]}, index=SCANS)
    age, sex = projections.scatter(finding, columns)["columns"]
    assert age["values"][0] is None
    assert sex["values"][0] == "not given"
    assert [level["name"] for level in sex["levels"]] == ["F", "M", "not given"]


def test_a_scan_without_a_row_is_refused(finding: Finding) -> None:
    with pytest.raises(FindingError, match="sub-0"):
        projections.scatter(finding, pd.DataFrame({"age": [1.0]}, index=["sub-9"]))
