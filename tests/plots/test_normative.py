import numpy as np
import pandas as pd
import pytest
import xarray as xr

from nilatent.finding import Finding
from nilatent.plots import normative


@pytest.fixture
def finding(rng: np.random.Generator) -> Finding:
    group = np.repeat(["HC", "AD", "a $x$"], [12, 8, 5])
    scans = [f"sub-{number:02d}" for number in range(25)]
    table = pd.DataFrame(
        {
            "scan_id": scans,
            "group": group,
            "reference": group == "HC",
            "deviates": np.arange(25) == 14,
            "mahalanobis": rng.uniform(0.5, 2, 25),
            "rms_z": rng.uniform(0.8, 1.2, 25),
            "largest_z": rng.uniform(2, 4, 25),
            "mean_error_z": rng.normal(size=25),
        }
    )
    pair = ("case_group", "region")
    areas = rng.uniform(0.4, 0.9, (2, 3))
    data = xr.Dataset(
        {
            "z": (("scan", "region"), rng.normal(size=(25, 14))),
            "qq_expected": ("level", np.linspace(-2, 2, 9)),
            "qq_seen": (("kind", "level"), np.linspace(-2, 2, 9) * np.array([[1.1], [0.7]])),
            "reference_sd": ("kind", [1.1, 0.7]),
            "mean_z": (pair, rng.normal(size=(2, 14))),
            **{
                name: (("case_group", "measure"), areas + by)
                for name, by in (("auc", 0), ("auc_low", -0.1), ("auc_high", 0.1))
            },
        },
        coords={
            "scan": scans,
            "region": [f"Region_{number}" for number in range(14)],
            "case_group": ["AD", "a $x$"],
            "measure": ["latent deviation", "regional z, largest", "error z, mean"],
            "kind": ["regions", "latents"],
        },
    )
    return Finding("normative", "Q?", "A.", table, data, {}, (), 25, 25)


def test_dots_are_the_distances_of_the_groups_the_reference_on_top(finding: Finding) -> None:
    axes = normative.draw(finding).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "HC\n(n = 12)",
        "AD\n(n = 8)",
        "a \\$x\\$\n(n = 5)",
    ]
    bottom, top = axes.get_ylim()
    assert bottom > top
    drawn = [collection.get_offsets()[:, 0] for collection in axes.collections]
    for row, name in zip((0, 2, 4), ("HC", "AD", "a $x$"), strict=True):
        np.testing.assert_allclose(drawn[row], finding.table.loc[finding.table["group"] == name, "mahalanobis"])
    np.testing.assert_allclose(drawn[3], finding.table.loc[[14], "mahalanobis"])
    assert len(drawn[1]) == len(drawn[5]) == 0


def test_without_latents_regional_z_is_shown(finding: Finding) -> None:
    finding.table["mahalanobis"] = np.nan
    axes = normative.draw(finding).axes[0]
    np.testing.assert_allclose(axes.collections[0].get_offsets()[:, 0], finding.table["rms_z"].iloc[:12])
    assert "regional z" in axes.get_xlabel()


def test_quantiles_areas_and_regions_are_the_numbers_of_the_finding(finding: Finding) -> None:
    _, quantiles, areas, regions = normative.draw(finding).axes
    for row, line in enumerate(quantiles.lines[1:]):
        np.testing.assert_allclose(line.get_ydata(), finding.data["qq_seen"][row])
    assert "latents (SD 0.70)" in [text.get_text() for text in quantiles.get_legend().get_texts()]
    dots = [collection for collection in areas.collections if len(collection.get_offsets()) == 3]
    np.testing.assert_allclose([dot.get_offsets()[:, 0] for dot in dots], finding.data["auc"])
    mean = finding.data["mean_z"]
    first = [label.get_text() for label in regions.get_yticklabels()]
    assert first == list(mean["region"].values[np.argsort(-np.abs(mean.values).max(axis=0))][:10])
    np.testing.assert_allclose([bar.get_width() for bar in regions.patches], mean.sel(region=first).values.ravel())


def test_without_a_case_group_two_panels_stay(finding: Finding) -> None:
    bare = Finding("normative", "Q?", "A.", finding.table, finding.data.drop_dims(["case_group"]), {}, (), 25, 25)
    assert len(normative.draw(bare).axes) == 2


def test_the_place_of_a_scan_is_among_the_others_of_the_reference(finding: Finding) -> None:
    for scan, n_others in (("sub-14", 12), ("sub-03", 11)):
        first, second, third = normative.draw_place(finding, scan).axes
        others = first.collections[0]
        assert len(others.get_offsets()) == n_others
        row = finding.table.set_index("scan_id").loc[scan]
        for axes, name in ((first, "mahalanobis"), (second, "largest_z"), (third, "mean_error_z")):
            assert axes.collections[1].get_offsets()[0, 0] == row[name]


def test_nothing_to_show_is_said_in_words(finding: Finding) -> None:
    empty = Finding("normative", "Q?", "A.", pd.DataFrame(), xr.Dataset(), {}, (), 0, 0)
    assert "No scan" in normative.draw(empty).axes[0].texts[0].get_text()
    finding.table.loc[0, ["mahalanobis", "largest_z", "mean_error_z"]] = np.nan
    assert "not judged" in normative.draw_place(finding, "sub-00").axes[0].texts[0].get_text()
    assert "not judged" in normative.draw_place(finding, "absent").axes[0].texts[0].get_text()
