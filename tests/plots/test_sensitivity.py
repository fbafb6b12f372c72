import numpy as np
import pandas as pd
import pytest
import xarray as xr

from nilatent.finding import Finding
from nilatent.plots import sensitivity, style

NAMES = ["group:AD:a $x$", "age", "sex:F:M", "discriminant:AD:a $x$", "pc1"]
KINDS = ["group", "covariate", "covariate", "discriminant", "component"]
STEPS = [-2.0, -1.0, 0.0, 1.0, 2.0]


@pytest.fixture
def finding(rng: np.random.Generator) -> Finding:
    pair, triple = ("direction", "region"), ("direction", "judge", "region")
    effect = rng.normal(size=(5, 14))
    axial, coronal = rng.uniform(0, 1, (5, 5, 6, 8)), rng.uniform(0, 1, (5, 5, 6, 7))
    axial[:, :, 0] = np.nan
    data = xr.Dataset(
        {
            "effect": (pair, effect),
            "half_width": (pair, np.where(np.arange(5)[:, None] < 3, 0.1, np.nan) * np.ones((5, 14))),
            "p": (pair, np.where(effect > 0.5, 0.01, 0.5)),
            "baseline": (pair, effect + 0.1),
            "claim": (triple, effect[:, None] + np.zeros((5, 2, 14))),
            "unseen": (triple, rng.normal(size=(5, 2, 14))),
            "agreement": ("direction", [0.5, 0.25, 0.1, 0.0, 0.2]),
            "agreement_p": ("direction", [0.01] * 5),
            "baseline_agreement": ("direction", [0.4] * 5),
            "kind": ("direction", KINDS),
            "unit": ("direction", ["AD minus a $x$", "10 years", "F minus M", "AD minus a $x$", "1 SD"]),
            "axial": (("shown", "step", "x", "y"), axial),
            "coronal": (("shown", "step", "x", "z"), coronal),
            "axial_change": (("shown", "step", "x", "y"), axial - axial[:, [2]]),
            "coronal_change": (("shown", "step", "x", "z"), coronal - coronal[:, [2]]),
            "axial_mm": ("shown", [4.0] * 5),
            "coronal_mm": ("shown", [-8.0] * 5),
            "shown_unit": ("shown", ["AD minus a $x$", "10 years", "F minus M", "AD minus a $x$", "1 SD"]),
        },
        coords={
            "direction": NAMES,
            "shown": NAMES,
            "region": [f"Region_{number}" for number in range(14)],
            "step": STEPS,
            "x": -10 + 4.0 * np.arange(6),
            "y": -20 + 4.0 * np.arange(8),
            "z": -12 + 4.0 * np.arange(7),
        },
    )
    return Finding("sensitivity", "Q?", "A.", pd.DataFrame({"direction": NAMES}), data, {"alpha": 0.05}, (), 25, 25)


def test_bars_are_the_largest_effects_and_filled_where_called(finding: Finding) -> None:
    axes = sensitivity.draw(finding).axes
    assert len(axes) == 6
    for row, name in enumerate(NAMES[:3]):
        one, panel = finding.data.sel(direction=name), axes[2 * row]
        order = np.argsort(-np.abs(one["effect"].values))[:10]
        np.testing.assert_allclose([bar.get_width() for bar in panel.patches], one["effect"].values[order])
        filled = [bar.get_facecolor()[3] > 0 for bar in panel.patches]
        np.testing.assert_array_equal(filled, one["p"].values[order] <= 0.05)
        assert [text.get_text() for text in panel.get_yticklabels()] == [f"Region_{place}" for place in order]
        lines, diamonds = panel.collections
        ends = np.array([segment[:, 0] for segment in lines.get_segments()])
        np.testing.assert_allclose(ends, one["effect"].values[order][:, None] + [-0.1, 0.1])
        np.testing.assert_allclose(diamonds.get_offsets()[:, 0], one["baseline"].values[order])
        assert "p ≤ 0.05" in panel.get_title(loc="left")
    assert axes[2].get_xlabel() == "effect per unit: 10 years"


def test_dots_are_claims_against_unseen_scans_judge_by_judge(finding: Finding) -> None:
    axes = sensitivity.draw(finding).axes[3]
    one = finding.data.sel(direction="age")
    expected = np.column_stack([one["claim"].values.ravel(), one["unseen"].values.ravel()])
    np.testing.assert_allclose(axes.collections[0].get_offsets(), expected)
    assert axes.get_title(loc="left").startswith("Rank correlation 0.25\n(p = 0.01; regression 0.40)")


def test_without_unseen_scans_the_panel_says_so(finding: Finding) -> None:
    finding.data["unseen"][:] = np.nan
    axes = sensitivity.draw(finding).axes[1]
    assert "too few unseen scans" in [text.get_text() for text in axes.texts]


def test_without_groups_and_covariates_others_are_drawn(finding: Finding) -> None:
    others = finding.data.sel(direction=["pc1"])
    drawn = sensitivity.draw(Finding("sensitivity", "Q?", "A.", finding.table, others, {"alpha": 0.05}, (), 2, 2))
    assert drawn.axes[0].get_title(loc="left").startswith("pc1")


def test_strips_show_the_slices_of_the_finding_left_on_the_left(finding: Finding) -> None:
    drawn = sensitivity.draw_strips(finding)
    panels = drawn.axes[:80]
    first, change = panels[1].images[0], panels[11].images[0]
    one = finding.data.sel(shown=NAMES[0], step=-1.0)
    np.testing.assert_allclose(np.ma.filled(first.get_array(), np.nan), one["axial"].values.T)
    np.testing.assert_allclose(np.ma.filled(change.get_array(), np.nan), one["axial_change"].values.T)
    assert first.get_extent() == [-12.0, 12.0, -22.0, 10.0]
    coronal = panels[5].images[0]
    np.testing.assert_allclose(coronal.get_array(), finding.data["coronal"].sel(shown=NAMES[0], step=-2.0).values.T)
    assert coronal.get_extent() == [-12.0, 12.0, -14.0, 14.0]
    assert change.norm.vmin == -change.norm.vmax
    texts = [text.get_text() for axes in panels for text in axes.texts]
    assert style.plain("group:AD:a $x$: steps of AD minus a $x$") in texts
    assert "pc1: steps of 1 SD" in texts
    assert not any("discriminant" in text for text in texts)


def test_nothing_to_draw_is_said(finding: Finding) -> None:
    empty = Finding("sensitivity", "Q?", "A.", pd.DataFrame(), xr.Dataset(), {}, (), 0, 0)
    for draw in (sensitivity.draw, sensitivity.draw_strips):
        assert len(draw(empty).axes[0].texts) == 1


def test_every_column_of_the_table_has_a_name() -> None:
    from nilatent.analysis.sensitivity.table import COLUMNS, LRCP_COLUMNS

    assert {*COLUMNS, *LRCP_COLUMNS.values()} == set(sensitivity.COLUMN_NAMES)
