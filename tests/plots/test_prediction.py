import numpy as np
import pandas as pd
import pytest

from nilatent.analysis.prediction import PredictionConfig
from nilatent.analysis.prediction import prediction as predict
from nilatent.analysis.prediction.sets import FeatureSet
from nilatent.finding import Finding, not_run
from nilatent.plots import prediction


@pytest.fixture
def found(rng: np.random.Generator) -> Finding:
    n = 60
    index = pd.Index([f"s{i:02d}" for i in range(n)], name="scan_id")
    scans = pd.DataFrame(
        {
            "subject_id": index,
            "group": rng.permutation(np.repeat(["AD", "CN", "MCI"], 20)),
            "sex": rng.permutation(np.repeat(["F", "M"], 30)),
            "age": rng.normal(70, 6, n),
            "site": rng.permutation(np.repeat(["x", "y"], 30)),
            "head_size_factor": rng.normal(1, 0.1, n),
        },
        index=index,
    )
    sets = [
        FeatureSet("latents", (rng.standard_normal((n, 3)) + (scans[["sex"]] == "M").to_numpy(),), None, False),
        FeatureSet("regions", (rng.standard_normal((n, 4)),), None, True),
    ]
    config = PredictionConfig(site="site", n_permutations=0, n_bootstrap=100, n_inner=2)
    return predict(sets, scans, np.arange(n) % 5, config)


def test_marks_and_intervals_are_those_of_the_table(found: Finding) -> None:
    panels = prediction.draw(found).axes
    assert [axes.get_title(loc="left") for axes in panels] == [
        "group", "sex", "age", "site: what the features know of the site",
    ]  # fmt: skip
    for axes, (_, part) in zip(panels, found.table.groupby("target", sort=False), strict=True):
        marks = [line.get_xdata()[0] for line in axes.lines if len(line.get_xdata()) == 1]
        np.testing.assert_allclose(marks, part["value"])
        spans = [line.get_xdata() for line in axes.lines if len(line.get_xdata()) == 2 and line.get_linestyle() == "-"]
        np.testing.assert_allclose(spans, part[["low", "high"]])
        assert [text.get_text() for text in axes.get_yticklabels()] == ["latents", "regions"]
        chance = [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == "--"]
        np.testing.assert_allclose(chance, part["chance"].iloc[0])
    assert [axes.get_xlabel() for axes in panels][2].startswith("R²")


def test_curves_are_those_of_the_finding(found: Finding) -> None:
    left, right = prediction.draw_curves(found).axes
    numbers = found.table.index[(found.table["target"] == "sex") & (found.table["head_size"] == "as it is")]
    for line, number in zip(left.lines, numbers, strict=False):
        np.testing.assert_array_equal(line.get_ydata(), found.data["found"].values[number])
    for line, number in zip(right.lines, numbers, strict=False):
        kept = found.data["bin_count"].values[number] > 0
        np.testing.assert_array_equal(line.get_xdata(), found.data["bin_predicted"].values[number][kept])
        np.testing.assert_array_equal(line.get_ydata(), found.data["bin_observed"].values[number][kept])
    assert len(left.collections) == 1
    assert "M found" in left.get_ylabel()


def test_calls_are_the_confusion_table(found: Finding) -> None:
    group, sex, age = prediction.draw_calls(found).axes
    assert [axes.get_title(loc="left") for axes in (group, sex, age)] == [
        "group, latents", "sex, latents", "age, latents",
    ]  # fmt: skip
    counts = [float(text.get_text().split("\n")[0]) for text in group.texts]
    np.testing.assert_array_equal(counts, found.data["confusion"].values[0].ravel())
    assert [text.get_text() for text in sex.get_xticklabels()] == ["F", "M"]
    number = found.table.index[found.table["target"] == "age"][0]
    points = age.collections[0].get_offsets()
    np.testing.assert_allclose(points[:, 0], found.data["truth"].values[number])
    np.testing.assert_allclose(points[:, 1], found.data["called"].values[number])


def test_every_column_of_the_table_has_a_name(found: Finding) -> None:
    assert set(found.table) <= set(prediction.COLUMN_NAMES)


def test_nothing_to_show_is_said_in_words(found: Finding) -> None:
    empty = not_run("prediction", "Q?", "no target")
    for draw in (prediction.draw, prediction.draw_curves, prediction.draw_calls):
        assert len(draw(empty).axes[0].texts) == 1
