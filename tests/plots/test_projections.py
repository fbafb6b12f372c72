from dataclasses import replace

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


@pytest.fixture
def whole(finding: Finding, rng: np.random.Generator) -> Finding:
    """Four maps of latents and one of regional means; PLS shows held-out scans alone."""
    rows = [("latents", method, f"{method}{axis}") for method in ("PCA", "PLS", "t-SNE", "UMAP") for axis in (1, 2)]
    rows += [("regional means", "PCA", f"PCA{axis} of regional means") for axis in (1, 2, 3)]
    table = pd.DataFrame(rows, columns=["space", "method", "component"])
    linear = table["method"].isin(["PCA", "PLS"])
    table = table.assign(explained=np.where(linear, 0.3, np.nan), r2_age=np.arange(11) / 20, p_age=0.5)
    scores = rng.normal(size=(8, 11))
    scores[::2, 2:4] = np.nan
    maps = [("latents", "all dimensions"), ("latents", "PLS"), ("regional means", "all dimensions")]
    dims = ("map", "judged", "variable")
    values = np.arange(12.0).reshape(3, 2, 2) / 20
    values[1, 0] = np.nan
    quality = {f"{what}{end}": (dims, values) for what in ("purity", "silhouette") for end in ("", "_chance")}
    quality |= {"purity_fwe": (dims, values / 10), "silhouette_fwe": (dims, values + 0.06)}
    quality["silhouette"] = (dims, np.where([True, False], np.nan, values))
    quality |= dict.fromkeys(("trustworthiness", "continuity"), (dims[:2], values[:, :, 0]))
    known = {
        "space": ("map", [space for space, _ in maps]),
        "method": ("map", [method for _, method in maps]),
        "variable": ["age", "dx"],
        "are_levels": ("variable", [0, 1]),
    }
    data = finding.data.drop_vars("scores").assign(
        {
            "scores": (("scan", "component"), scores),
            "overlap": ("map", [np.nan, 0.5, np.nan]),
            "procrustes": ("map", [np.nan, 0.1, np.nan]),
        }
        | quality
    )
    return replace(finding, table=table, data=data.assign_coords(known))


def test_every_map_has_its_panel_and_pls_its_scans(whole: Finding) -> None:
    panels = projections.draw(whole).axes
    assert [axes.get_title("left") for axes in panels] == ["PCA", "PLS, scans outside training", "t-SNE", "UMAP"]
    for position, axes in enumerate(panels):
        dots = np.vstack([points.get_offsets() for points in axes.collections])
        expected = whole.data["scores"].values[:, 2 * position : 2 * position + 2]
        expected = expected[np.isfinite(expected[:, 0])]
        np.testing.assert_allclose(np.sort(dots, axis=0), np.sort(expected, axis=0))
    assert panels[0].get_xlabel() == "PCA1 (30% of variance)"
    assert panels[3].get_xlabel() == "UMAP1"
    assert not list(panels[3].get_xticks())


def test_baselines_stand_below_and_what_was_not_run_is_said(whole: Finding) -> None:
    panels = projections.draw_spaces(whole).axes
    assert [axes.get_ylabel() for axes in panels] == ["latents", "", "", "", "regional means", "", "", ""]
    assert [text.get_text() for axes in panels[4:] for text in axes.texts] == ["not run"] * 3


def test_without_baselines_that_is_said(finding: Finding) -> None:
    for drawn in (projections.draw_spaces(finding), projections.draw_quality(finding)):
        assert len(drawn.axes[0].texts) == 1


def test_relations_are_those_of_the_latents(whole: Finding) -> None:
    axes = projections.draw_relations(whole).axes[0]
    assert [text.get_text() for text in axes.texts] == [f"{value:.2f}" for value in np.arange(8) / 20]


def test_quality_shows_all_scans_but_of_pls_the_others(whole: Finding) -> None:
    axes = projections.draw_quality(whole).axes[0]
    heads = [text.get_text().replace("\n", " ") for text in axes.get_xticklabels()]
    assert heads[4:] == ["neigh- bours: age (R²)", "neigh- bours: dx", "silhouette: dx"]
    rows = [text.get_text() for text in axes.get_yticklabels()]
    assert rows == ["all dimensions of latents", "PLS of latents, others only", "all dimensions of regional means"]
    of_pls = [text.get_text() for text in axes.texts if text.get_position()[1] == 1]
    # Trustworthiness, continuity, repeats, purity by age and by dx, silhouette by dx, of the set outside training.
    assert of_pls == ["0.30", "0.30", "0.50", "0.10", "0.30*", "0.35*", "0.35"]


def test_scatter_offers_every_map_of_latents_and_the_planes_of_baselines(whole: Finding) -> None:
    columns = pd.DataFrame({"age": np.arange(8.0)}, index=SCANS)
    axes = projections.scatter(whole, columns)["axes"]
    labels = [axis["label"] for axis in axes]
    assert labels[0] == "PCA1 (30% of variance)"
    assert labels[2] == "PLS1 (30% of variance, scans outside training)"
    assert labels[4:8] == ["t-SNE1", "t-SNE2", "UMAP1", "UMAP2"]
    assert labels[8:] == [f"PCA{axis} of regional means (30% of variance)" for axis in (1, 2)]
    assert axes[2]["values"][0] is None
    np.testing.assert_allclose(axes[9]["values"], whole.data["scores"].values[:, 9], rtol=1e-5)


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
