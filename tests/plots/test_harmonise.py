import numpy as np
import pandas as pd
import pytest
import xarray as xr
from matplotlib.colors import to_rgba

from nilatent.analysis.harmonise import COLUMNS
from nilatent.finding import Finding, not_run
from nilatent.plots import harmonise, style

SITE = {"measures": "regions", "what": "scanner", "measure": "balanced accuracy", "chance": 0.25, "limit": 0.3}


@pytest.fixture
def finding(rng):
    def make(*, n_sites=4, from_kept=0.35):
        rows = [
            SITE | {"model": "linear", "before": 0.9, "after": 0.28, "from_kept": from_kept},
            SITE | {"model": "non-linear", "before": 0.8, "after": 0.4, "from_kept": from_kept},
            SITE | {"measure": "balanced accuracy, fresh scans", "model": "linear", "before": 0.6, "after": 0.35},
            SITE | {"what": "sex", "model": "linear", "before": 0.7, "after": 0.7},
            SITE | {"measure": "share of variance", "model": "", "before": 0.3, "after": 0.0},
        ]
        sites = [f"s{number:02d}" for number in range(n_sites)] * 10
        values = rng.normal(size=(2, len(sites)))
        values[:, np.array(sites) == "s03"] = np.nan
        data = xr.Dataset(
            {
                "site": ("scan", sites),
                "shown_before": (("shown", "scan"), values),
                "shown_after": (("shown", "scan"), values / 2),
            },
            coords={"shown": ["regions: one", "regions: $two"]},
        )
        return Finding("harmonise", "Q?", "A.", pd.DataFrame(rows), data, {"site": "scanner"}, (), 40, 40)

    return make


def bars(axes):
    return [(round(float(bar.get_width()), 3), bar.get_facecolor()) for bar in axes.patches]


def test_bars_are_the_accuracies_of_the_site(finding):
    axes = harmonise.draw(finding()).axes[-1]
    colours = [style.ORANGE, style.BLUE]
    expected = [0.9, 0.28, 0.8, 0.4, 0.6, 0.35]
    assert [width for width, _ in bars(axes)] == expected
    assert [colour for _, colour in bars(axes)] == [to_rgba(colours[number % 2]) for number in range(6)]
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "regions, linear",
        "regions, non-linear",
        "regions, linear, fresh",
    ]
    marks = [line.get_xdata()[0] for line in axes.lines]
    assert marks == [0.3, 0.25, 0.35] * 2 + [0.3, 0.25]
    without = harmonise.draw(finding(from_kept=np.nan)).axes[-1]
    assert [line.get_xdata()[0] for line in without.lines] == [0.3, 0.25] * 3


def test_boxes_stand_at_the_values_of_their_site(finding):
    made = finding()
    axes = harmonise.draw(made).axes
    assert len(axes) == 5
    medians = [line.get_ydata()[0] for line in axes[0].lines if line.get_color() == style.INK]
    values, sites = made.data["shown_before"].values[0], made.data["site"].values
    np.testing.assert_allclose(medians[:3], [np.median(values[sites == name]) for name in ("s00", "s01", "s02")])
    assert axes[1].get_title(loc="left") == "regions: one, after"


def test_many_sites_are_cut_and_it_says_so(finding):
    axes = harmonise.draw(finding(n_sites=40)).axes
    assert len(axes[0].get_xticks()) == harmonise.N_SITES
    assert "first 30 of 40 sites" in axes[2].get_xlabel()


def test_every_column_has_a_name():
    assert set(COLUMNS) == set(harmonise.COLUMN_NAMES)


def test_nothing_to_show_is_said(finding):
    assert "no harmonisation" in style.to_svg(harmonise.draw(not_run("harmonise", "Q?", "no site column")))
    assert style.to_svg(harmonise.draw(finding())).startswith("<?xml")
