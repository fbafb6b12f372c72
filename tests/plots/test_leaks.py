import pandas as pd
import xarray as xr

from nilatent.analysis.leaks import COLUMNS
from nilatent.finding import Finding, not_run
from nilatent.plots import leaks, style


def finding(verdicts):
    table = pd.DataFrame({"check": [f"check {n}" for n in range(len(verdicts))], "verdict": verdicts, "what": "Said."})
    return Finding("leaks", "Q?", "A.", table, xr.Dataset(), {}, (), 4, 4)


def test_each_check_has_the_mark_of_its_verdict():
    verdicts = ["clean", "found", "not checked", "clean"]
    drawn = leaks.draw(finding(verdicts))
    marks = [(line.get_ydata()[0], line.get_marker(), line.get_color()) for line in drawn.axes[0].lines]
    assert marks == [(height, *leaks.LOOKS[verdict][::-1]) for height, verdict in enumerate(verdicts)]
    assert [text.get_text() for text in drawn.legends[0].get_texts()] == ["found", "clean", "not checked"]


def test_every_column_has_a_name():
    assert set(COLUMNS) == set(leaks.COLUMN_NAMES)


def test_nothing_to_show_is_said():
    assert "no leak audit" in style.to_svg(leaks.draw(not_run("leaks", "Q?", "none")))
