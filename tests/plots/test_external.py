import numpy as np
import pandas as pd
import pytest
import xarray as xr

from nilatent.finding import Finding
from nilatent.plots import external, style


def finding(kind: str, *, two: bool = False, known: bool = True) -> Finding:
    rng = np.random.default_rng(0)
    levels = {"binary": ["control", "_$patient"], "multi-class": ["a", "b", "c"], "continuous": ["number"]}[kind]
    score = rng.dirichlet(np.ones(len(levels)), size=20) if kind != "continuous" else rng.normal(60, 8, (20, 1))
    told = score[:, 0] + rng.normal(0, 4, 20) if kind == "continuous" else (np.arange(20) % len(levels)).astype(float)
    data = xr.Dataset(
        {
            "score": (("scan", "output"), score),
            "called": ("scan", np.zeros(20)),
            "known": ("scan", told if known else np.full(20, np.nan)),
            "mean_difference": ("latent", rng.standard_normal(12)),
        },
        coords={"output": levels},
        attrs={"threshold": 0.4 if kind == "binary" else np.nan, "kind": kind, "target": "asked"},
    )
    if two:
        share = {name: ("bin", value) for name, value in (("told", [0.2, 0.8]), ("share", [0.1, 0.9]))}
        limits = {"share_low": ("bin", [0.0, 0.6]), "share_high": ("bin", [0.4, 1.0])}
        curve = {"roc_false": ("point", [0.0, 0.2, 1.0]), "roc_true": ("point", [0.0, 0.7, 1.0])}
        data = data.assign(share | limits | curve)
    return Finding("external", "?", "!", pd.DataFrame(), data, {}, (), 20, 20)


@pytest.mark.parametrize(
    ("kind", "two", "known", "n_panels"),
    [
        ("binary", True, True, 4),
        ("binary", False, True, 2),
        ("binary", False, False, 2),
        ("multi-class", False, True, 2),
        ("continuous", False, True, 2),
        ("continuous", False, False, 2),
    ],
)
def test_there_is_a_panel_for_all_that_is_known(kind: str, two: bool, known: bool, n_panels: int) -> None:
    drawn = external.draw(finding(kind, two=two, known=known))
    assert len(drawn.axes) == n_panels
    assert style.to_svg(drawn).startswith("<?xml")


def test_points_and_threshold_are_those_of_the_finding() -> None:
    given = finding("binary", two=True)
    axes = external.draw(given).axes[0]
    drawn = np.concatenate([strip.get_offsets()[:, 0] for strip in axes.collections])
    np.testing.assert_allclose(np.sort(drawn), np.sort(given.data["score"].values[:, 1]))
    assert axes.lines[0].get_xdata()[0] == 0.4
    assert "dashed" in axes.get_title(loc="left")


def test_scans_of_whom_nothing_is_known_have_a_row_of_their_own() -> None:
    labels = [label.get_text() for label in external.draw(finding("binary", known=False)).axes[0].get_yticklabels()]
    assert labels[-1] == "not known"
    labels = [label.get_text() for label in external.draw(finding("binary")).axes[0].get_yticklabels()]
    assert "not known" not in labels


def test_without_predictions_it_says_so() -> None:
    empty = Finding("external", "?", "!", pd.DataFrame(), xr.Dataset(), {}, (), 0, 0)
    assert "no prediction" in external.draw(empty).axes[0].texts[0].get_text()
