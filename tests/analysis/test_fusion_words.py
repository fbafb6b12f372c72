import numpy as np
import pandas as pd
import pytest

from nilatent.analysis.fusion.ways import AVERAGE, EARLY, INSIDE, JOINT, SINGLE
from nilatent.analysis.fusion.words import answer


def table_of(*, value=0.6, low=0.4, difference=0.2, q=0.01, conditional=0.2, q_conditional=0.01, kind="continuous"):
    """A table with two fused ways, the second a little worse than the first."""
    fused = [(EARLY, value, difference), (AVERAGE, value - 0.05, difference - 0.05)]
    lines = [
        {"way": SINGLE, "features": "image", "value": 0.4, "conditional": conditional, "q_conditional": q_conditional},
        {"way": SINGLE, "features": "blood", "value": 0.3, "conditional": -0.1, "q_conditional": 0.01},
        {"way": INSIDE, "features": "image (5 of 5 folds)", "value": value - difference, "low": low - difference},
        *({"way": way, "value": v, "low": low, "difference": d, "q_difference": q} for way, v, d in fused),
        {"way": JOINT},
    ]
    table = pd.DataFrame(lines).assign(target="age", kind=kind, main="r2", high=0.8, chance=0.0)
    columns = ["low", "difference_low", "difference_high", "conditional_low", "conditional_high"]
    return table.assign(**{name: table.get(name, np.nan) for name in columns})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {},
            "Together they tell more than the best single modality: age (early fusion, R² 0.60 [0.40, 0.80] against 0.40",
        ),
        ({"q": 0.06}, "That several modalities together tell more than the best single one is not shown: age (early"),
        ({"low": -0.1}, "That several modalities together tell more than the best single one is not shown: age (early"),
        ({"difference": -0.2}, "Together they tell less than the best single modality: age (early fusion"),
        ({"difference": 0.03}, "Together they tell more than the best single modality: age (early fusion"),
        ({"difference": 0.03, "q": 0.2}, "That several modalities together tell more"),
    ],
)
def test_the_verdict_comes_first(changes, expected):
    assert answer(table_of(**changes), 0.05).startswith(expected)


def test_what_tells_nothing_is_called_so():
    assert "neither told from chance" in answer(table_of(low=-0.1, difference=0.1), 0.05)
    assert "neither told from chance" not in answer(table_of(), 0.05)


def test_only_what_is_shown_to_be_carried_is_named():
    assert "What the others lack of age is carried by image (20 % of the squared error of knowing nothing" in answer(
        table_of(), 0.05
    )
    assert "not shown of blood" in answer(table_of(), 0.05)
    for changes in ({"conditional": -0.2}, {"q_conditional": 0.06}):
        assert answer(table_of(**changes), 0.05).endswith(
            "No modality is shown to carry something of age that the others lack."
        )
    assert "of the log loss" in answer(table_of(kind="binary"), 0.05)
