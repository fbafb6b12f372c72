from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from nilatent.analysis.longitudinal import table as written
from nilatent.finding import Finding, not_run
from nilatent.plots import longitudinal

GROUPS = ["AD", "a $x$"]


def rows(what: str, kind: str, measures: list[str], group: str, values: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "what": what,
            "kind": kind,
            "measure": measures,
            "group": group,
            "value": values,
            "low": values - 0.5,
            "high": values + 0.5,
            "p_fwe": np.linspace(0.01, 0.2, len(values)),
        }
    )


@pytest.fixture
def finding(rng: np.random.Generator) -> Finding:
    regions = [f"Region_{number}" for number in range(14)]
    table = pd.concat(
        [
            rows(written.DIFFERENCE, written.REGIONS, regions, "AD:a $x$", rng.normal(size=14)),
            rows(written.DIFFERENCE, written.DECODED, regions, "AD:a $x$", rng.normal(size=14)),
            *(rows(written.RATE, written.REGIONS, regions, group, rng.normal(size=14)) for group in GROUPS),
            rows(written.ERROR, written.REGIONS, ["first scan", "latent image"], "", np.array([2.0, 3.0])),
        ],
        ignore_index=True,
    )
    curve = np.cumsum(rng.uniform(0.1, 0.2, (4, 2, 5, 3)), axis=3)[..., [1, 0, 2]]
    curve[:, 1, 4] = np.nan
    value = rng.normal(size=(4, 6))
    value[0, 2] = np.nan
    data = xr.Dataset(
        {
            "curve": (("shown", "group", "time", "estimate"), curve),
            "visit_value": (("shown", "visit"), value),
            "rate": (("region", "group", "estimate"), rng.normal(size=(14, 2, 3))),
            "drawn_rate": (("region", "group", "estimate"), rng.normal(size=(14, 2, 1)) + np.array([0, -0.1, 0.3])),
        },
        coords={
            "group": GROUPS,
            "estimate": ["value", "low", "high"],
            "region": regions,
            "shown_measure": ("shown", ["AD:a $x$", "Region_0", "Region_1", "Region_2"]),
            "shown_kind": ("shown", ["directions", "regions", "regions", "regions"]),
            "curve_years": ("time", np.linspace(0, 2, 5)),
            "visit_years": ("visit", [0.0, 1.0, 2.0, 0.0, 0.0, 1.5]),
            "visit_group": ("visit", ["AD", "AD", "AD", "AD", "a $x$", "a $x$"]),
            "visit_subject": ("visit", [0, 0, 0, 1, 2, 2]),
        },
        attrs={"step": "year"},
    )
    return Finding("longitudinal", "Q?", "A.", table, data, {"alpha": 0.05}, (), 6, 3)


def test_lines_are_the_courses_and_the_visits_with_a_gap_between_subjects(finding: Finding) -> None:
    drawn = longitudinal.draw(finding)
    first = drawn.axes[0]
    assert first.get_title(loc="left") == "AD:a \\$x\\$"
    assert first.get_ylabel() == "place along it"
    of_visits, course = first.lines[:2]
    np.testing.assert_allclose(of_visits.get_xdata(), [0, 1, np.nan, 0])
    np.testing.assert_allclose(of_visits.get_ydata()[:2], finding.data["visit_value"][0, :2])
    np.testing.assert_allclose(course.get_ydata(), finding.data["curve"][0, 0, :, 0])
    lowest = first.collections[0].get_paths()[0].vertices[:, 1].min()
    assert lowest == pytest.approx(float(finding.data["curve"][0, 0, :, 1].min()))
    # Four courses in a grid of six.
    assert [axes.axison for axes in drawn.axes[:6]] == [True] * 4 + [False] * 2


def test_rates_drawn_and_errors_are_the_numbers_of_the_finding(finding: Finding) -> None:
    rates, drawn, errors = longitudinal.draw(finding).axes[6:]
    shown = finding.table.iloc[:12]
    assert [label.get_text() for label in rates.get_yticklabels()] == list(shown["measure"])
    sure, unsure = (one.get_offsets() for one in rates.collections[1:])
    np.testing.assert_allclose(sure[:, 0], shown.loc[shown["p_fwe"] <= 0.05, "value"])
    assert len(sure) + len(unsure) == 12
    # Of each group first the intervals, then the points.
    ends = np.array([path.vertices[:, 1] for path in drawn.collections[2].get_paths()])
    np.testing.assert_allclose(ends, finding.data["drawn_rate"][:, 1, 1:])
    np.testing.assert_allclose(drawn.collections[3].get_offsets()[:, 1], finding.data["drawn_rate"][:, 1, 0])
    np.testing.assert_allclose(drawn.collections[3].get_offsets()[:, 0], finding.data["rate"][:, 1, 0])
    np.testing.assert_allclose(errors.collections[1].get_offsets()[:, 0], [2, 3])
    assert [text.get_text() for text in errors.texts] == ["first scan", "latent image"]


def test_repeatability_is_that_of_every_measure_and_its_median(finding: Finding) -> None:
    values = np.array([0.9, 0.5, 0.7])
    more = [
        rows(written.REPEATABILITY, kind, ["a", "b", "c"], "", values - 0.1 * shift) for shift, kind in enumerate("xy")
    ]
    table = pd.concat([finding.table, *more], ignore_index=True)
    axes = longitudinal.draw(replace(finding, table=table)).axes[-1]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["x", "y"]
    np.testing.assert_allclose(axes.lines[2].get_xdata(), values - 0.1)
    assert [line.get_xdata()[0] for line in axes.lines[1::2]] == pytest.approx([0.7, 0.6])


def test_panels_of_what_is_not_there_are_left_out(finding: Finding) -> None:
    table = finding.table[finding.table["what"] == written.RATE]
    data = finding.data.drop_vars("drawn_rate")
    plain = Finding("longitudinal", "Q?", "A.", table, data, {"alpha": 0.05}, (), 6, 3)
    axes = longitudinal.draw(plain).axes
    assert len(axes) == 7
    assert axes[6].get_title(loc="left") == "Rate: AD"
    empty = longitudinal.draw(not_run("longitudinal", "Q?", "nobody came twice"))
    assert "No change over time" in empty.axes[0].texts[0].get_text()
    plt.close("all")


def test_every_column_and_kind_of_row_of_the_table_has_a_name() -> None:
    assert list(longitudinal.COLUMN_NAMES) == list(written.COLUMNS)
    names = ("DIFFERENCE", "RATE", "ERROR", "REGIONS", "REPEATABILITY")
    assert [getattr(longitudinal, name) for name in names] == [getattr(written, name) for name in names]
