import numpy as np
import pandas as pd
import pytest

from nilatent.analysis.fusion import FusionConfig
from nilatent.analysis.fusion import fusion as fuse
from nilatent.analysis.fusion import ways as fusion_ways
from nilatent.analysis.prediction.sets import FeatureSet
from nilatent.finding import Finding, not_run
from nilatent.plots import fusion


@pytest.fixture
def found(rng: np.random.Generator) -> Finding:
    n = 48
    index = pd.Index([f"s{i:02d}" for i in range(n)], name="scan_id")
    scans = pd.DataFrame(
        {"subject_id": index, "age": rng.normal(70, 6, n), "group": rng.permutation(np.repeat(["AD", "CN"], 24))},
        index=index,
    )
    blood = rng.standard_normal((n, 2))
    blood[:6] = np.nan
    sets = [
        FeatureSet("image", (rng.standard_normal((n, 3)) + scans[["age"]].to_numpy() / 6,), None, False),
        FeatureSet("blood", (blood,), None, False),
    ]
    config = FusionConfig(targets=("age", "group"), n_inner=2, n_draws=99, n_bootstrap=100)
    return fuse(sets, None, scans, np.arange(n) % 3, config)


def test_marks_and_bars_are_those_of_the_table(found: Finding) -> None:
    panels = fusion.draw(found).axes
    assert [axes.get_title(loc="left") for axes in panels[::2]] == ["age", "group"]
    for left, right, (_, part) in zip(
        panels[::2], panels[1::2], found.table.groupby("target", sort=False), strict=True
    ):
        shown = part[part["value"].notna()]
        marks = [line.get_xdata()[0] for line in left.lines if len(line.get_xdata()) == 1]
        np.testing.assert_allclose(marks, shown["value"])
        spans = [line.get_xdata() for line in left.lines if len(line.get_xdata()) == 2 and line.get_linestyle() == "-"]
        np.testing.assert_allclose(spans, shown[["low", "high"]])
        hollow = [line.get_markerfacecolor() == "white" for line in left.lines if len(line.get_xdata()) == 1]
        assert hollow == shown["note"].str.contains("lack").tolist()
        single = part[part["way"] == "single"]
        bars = [patch.get_width() for patch in right.patches]
        np.testing.assert_allclose(bars, [*single["conditional"], *single["marginal"]])
        whiskers = [line.get_xdata() for line in right.lines[: len(bars)]]
        np.testing.assert_allclose(whiskers[: len(single)], single[["conditional_low", "conditional_high"]])
        np.testing.assert_allclose(whiskers[len(single) :], single[["marginal_low", "marginal_high"]])
        assert [text.get_text() for text in right.get_yticklabels()] == single["features"].tolist()
    assert "variance" in panels[1].get_xlabel()
    assert "log loss" in panels[3].get_xlabel()


def test_ways_are_called_as_in_the_analysis(found: Finding) -> None:
    assert (fusion.SINGLE, fusion.INSIDE) == (fusion_ways.SINGLE, fusion_ways.INSIDE)
    assert fusion.OF_WHAT_IS_THERE == (fusion_ways.PRESENT, fusion_ways.PRESENT_SINGLE)
    assert set(found.table) <= set(fusion.COLUMN_NAMES)


def test_nothing_to_show_is_said_in_words() -> None:
    assert len(fusion.draw(not_run("fusion", "Q?", "one modality")).axes[0].texts) == 1
