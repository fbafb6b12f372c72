import numpy as np
import pandas as pd
import pytest
import xarray as xr

from nilatent.analysis.multimodal import JOINT, RIVAL, SHARED
from nilatent.analysis.multimodal.asked import ALL
from nilatent.analysis.multimodal.judged import EQUAL, TRAIN_ONLY
from nilatent.finding import Finding, not_run
from nilatent.plots import multimodal

LINES = [
    ("gm", "volumes", "wm + scores", ALL, JOINT, 0.8),
    ("gm", "volumes", "wm + scores", ALL, RIVAL, 0.7),
    ("gm", "volumes", "wm + scores", ALL, TRAIN_ONLY["ridge"], 0.75),
    ("gm", "volumes", "wm + scores", ALL, "PLS", 0.85),
    ("gm", "volumes", "wm + scores", "any of these", JOINT, 0.82),
    ("gm", "volumes", "itself", ALL, JOINT, 0.5),
    ("gm", "volumes", "itself", ALL, SHARED, 0.6),
    ("gm", "volumes", "itself", ALL, EQUAL, 0.4),
    ("scores: $x_1$", "category", "gm", ALL, JOINT, 1.01),
    ("scores: y", "number", "gm", ALL, JOINT, np.nan),
]


@pytest.fixture
def found(rng: np.random.Generator) -> Finding:
    table = pd.DataFrame(LINES, columns=["target", "kind", "sources", "scans", "way", "unexplained"])
    table = table.assign(low=table["unexplained"] - 0.1, high=table["unexplained"] + 0.2)
    steps = {"target": ["gm", "gm"], "fewer": ["", "wm"], "more": ["wm", "wm + scores"]}
    numbers = {"change": [-0.2, 0.001], "low": [-0.3, 0.0], "high": [-0.1, 0.002]}
    data = xr.Dataset({f"step_{name}": ("step", values) for name, values in (steps | numbers).items()})
    for kind in multimodal.KINDS:
        data[f"{kind}_axial"] = (("case", "x", "y"), rng.random((3, 15, 17)))
        data[f"{kind}_coronal"] = (("case", "x", "z"), rng.random((3, 15, 13)))
    data["joint_error_axial"][:, 0] = np.nan
    data = data.assign(case_joint=("case", [0.5, 0.6, 0.7]), case_simple=("case", [0.4, 0.5, 0.6]))
    data = data.assign_coords(case=["a", "b", "c"], case_scan=("case", ["s1", "s2", "s3"]))
    settings = {"examples": {"target": "gm", "sources": "wm + scores"}}
    return Finding("multimodal", "?", ".", table, data, settings, (), 9, 9)


def test_marks_are_those_of_the_table(found: Finding) -> None:
    drawn = multimodal.draw(found)
    panels = drawn.axes
    assert [axes.get_title(loc="left") for axes in panels[::2]] == ["gm", r"scores: \$x_1\$"]
    left = panels[0]
    marks = sorted(line.get_xdata()[0] for line in left.lines if len(line.get_xdata()) == 1)
    assert marks == [0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.82]
    spans = sorted(
        tuple(line.get_xdata()) for line in left.lines if len(line.get_xdata()) == 2 and line.get_ls() == "-"
    )
    np.testing.assert_allclose(spans, [(value - 0.1, value + 0.2) for value in marks])
    # What stands higher is told from what the label says.
    heights = {line.get_xdata()[0]: line.get_ydata()[0] for line in left.lines if len(line.get_xdata()) == 1}
    labels = [text.get_text() for text in left.get_yticklabels()]
    assert labels == ["from wm + scores (all of these)", "from wm + scores (any of these)", "from itself"]
    assert [round(heights[value]) for value in (0.8, 0.7, 0.75, 0.82, 0.5, 0.6, 0.4)] == [0, 0, 0, 1, 2, 2, 2]
    assert heights[0.8] < heights[0.7] < heights[0.75]
    assert "variance" in left.get_xlabel()
    assert "log loss" in panels[2].get_xlabel()
    assert drawn.legends[0].get_texts()[0].get_text() == "joint model"


def test_steps_are_points_of_a_hundred(found: Finding) -> None:
    right = multimodal.draw(found).axes[1]
    marks = next(line for line in right.lines if len(line.get_xdata()) == 2 and line.get_marker() == "s")
    np.testing.assert_allclose(marks.get_xdata(), [-20, 0.1])
    assert [text.get_text() for text in right.get_yticklabels()] == ["nothing → wm", "wm → wm + scores"]
    assert right.get_xlim() == pytest.approx((-33, 1))


def test_examples_have_sides_and_a_common_scale(found: Finding) -> None:
    drawn = multimodal.draw_examples(found)
    panels = [axes for axes in drawn.axes if axes.images]
    assert len(panels) == 3 * len(multimodal.KINDS) * 2
    for axes in panels:
        assert {text.get_text() for text in axes.texts} >= {"L", "R"}
    assert len({axes.images[0].norm for axes in panels}) == 2
    np.testing.assert_allclose(panels[0].images[0].get_array(), found.data["truth_axial"].values[0].T)
    assert "s1" in panels[0].get_ylabel()
    assert "50 % and 40 %" in panels[0].get_ylabel()


def test_words_are_those_of_the_analysis(found: Finding) -> None:
    assert set(multimodal.LOOKS) == {JOINT, SHARED, RIVAL, EQUAL, *TRAIN_ONLY.values()}
    assert set(found.table) <= set(multimodal.COLUMN_NAMES)


def test_nothing_to_show_is_said() -> None:
    nothing = not_run("multimodal", "?", "no kinds")
    for draw in (multimodal.draw, multimodal.draw_examples):
        drawn = draw(nothing)
        assert any(
            "told from" in text.get_text()
            for text in [*drawn.texts, *(text for axes in drawn.axes for text in axes.texts)]
        )
