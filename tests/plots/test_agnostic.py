import numpy as np
import pandas as pd
import pytest
import xarray as xr

from nilatent.finding import Finding
from nilatent.plots import agnostic, style


def finding(table: pd.DataFrame) -> Finding:
    return Finding("agnostic", "Q?", "A.", table, xr.Dataset(), {}, (), 30, 30)


@pytest.fixture
def table(rng: np.random.Generator) -> pd.DataFrame:
    rules = pd.DataFrame(
        {
            "test": ["CUBV", "CUBV", "SAR"],
            "target": ["AD:CN", "AD:CN", "age"],
            "features": ["latents", "covariates only", "latents"],
            "name": "",
            "error": [0.2, 0.45, 0.6],
            "bound": [0.4, 0.6, 0.9],
            "threshold": [0.5, 0.5, 0.76],
            "badge": ["bound-validated", "inconclusive", "inconclusive"],
            "label": 0,
        }
    )
    error = rng.permutation(np.linspace(0.2, 0.5, 30))
    regions = {"name": [f"Region_{i}" for i in range(30)], "error": error, "bound": error + 0.2, "label": range(30)}
    same = {"test": "SAM", "target": "AD:CN", "features": "own grey matter", "threshold": 0.5, "badge": "inconclusive"}
    own = pd.DataFrame(regions).assign(**same)
    return pd.concat([rules, own, own.assign(features="read out of the latents", error=0.01)], ignore_index=True)


def lines(axes, colour):
    """Horizontal extents of the lines of a colour that run from error to bound."""
    drawn = [line.get_xdata() for line in axes.lines if line.get_color() == colour]
    return [tuple(x) for x in drawn if len(x) == 2 and x[0] != x[1]]


def test_lines_run_from_the_error_to_the_worst_case(table: pd.DataFrame) -> None:
    groups, numbers, regions = agnostic.draw(finding(table)).axes
    assert lines(groups, style.BLUE) == [(0.2, 0.4)]
    assert lines(groups, style.QUIET) == [(0.45, 0.6)]
    assert lines(numbers, style.QUIET) == [(0.6, 0.9)]
    marks = [tuple(line.get_xdata()) for line in numbers.lines if line.get_color() == style.ORANGE]
    assert marks == [(0.76, 0.76)]
    best = table[table["features"] == "own grey matter"].sort_values("bound").head(20)
    np.testing.assert_allclose(lines(regions, style.QUIET), best[["error", "bound"]].to_numpy())
    assert [label.get_text() for label in regions.get_yticklabels()] == list(best["name"])


def test_the_question_is_named_where_there_are_several(table: pd.DataFrame) -> None:
    groups, *_ = agnostic.draw(finding(table)).axes
    assert [label.get_text() for label in groups.get_yticklabels()] == ["AD:CN, latents", "AD:CN, covariates only"]
    other = table.assign(target=["A:B", *table["target"].iloc[1:]])
    several = other[other["test"] == "SAM"].assign(target=["A:B"] * 30 + ["C:B"] * 30).head(31)
    several.loc[several.index[0], "target"] = "C:B"
    (regions,) = agnostic.draw(finding(several)).axes
    assert any(label.get_text().startswith("C:B, Region_") for label in regions.get_yticklabels())


def test_no_certificate_is_said_in_words() -> None:
    drawn = agnostic.draw(finding(pd.DataFrame()))
    assert "no certificate" in drawn.axes[0].texts[0].get_text()
