import numpy as np
import pandas as pd
import pytest

from nilatent.plots import style
from nilatent.report import page


@pytest.mark.parametrize(
    ("number", "decimals", "text"),
    [
        (-0.5, 3, "−0.500"),
        (0.0002, 3, "0.0002"),
        (0.0, 3, "0.000"),
        (3.0, None, "3"),
        (0.12345, None, "0.123"),
        (np.nan, 2, "–"),
    ],
)
def test_numbers_read_well(number: float, decimals: int | None, text: str) -> None:
    assert page.number_text(number, decimals=decimals) == text


def test_columns_share_their_decimals_and_sort_by_value() -> None:
    table = pd.DataFrame(
        {"x": [12.345, 7.1, np.nan], "n": [1, 20, 3], "ok": [True, False, True], "t": ["a", None, "c"]}
    )
    shown = page.sheet(table, "rows", names={})
    assert [row[0].text for row in shown.rows] == ["12.3", "7.1", "–"]
    assert [row[0].key for row in shown.rows] == [12.345, 7.1, None]
    assert [row[1].text for row in shown.rows] == ["1", "20", "3"]
    assert [column.numeric for column in shown.columns] == [True, True, False, False]
    assert shown.rows[1][3].text == page.MISSING


def test_named_columns_come_in_the_order_of_the_names() -> None:
    table = pd.DataFrame({"p_age": [0.1], "r2_age": [0.2], "r2_sex": [0.3], "hidden": [1]})
    shown = page.sheet(table, "rows", names={"absent": ("?", ""), "r2_*": ("R² of *", ""), "p_*": ("p of *", "")})
    assert [column.name for column in shown.columns] == ["R² of age", "R² of sex", "p of age"]
    assert [cell.text for cell in shown.rows[0]] == ["0.200", "0.300", "0.100"]


def test_ink_turns_light_on_a_dark_page_and_labels_stay() -> None:
    drawn = style.message(style.INK)
    shown = page.picture(drawn, "x", caption="", alternative="")
    assert f">{style.INK}</text>" in shown.svg
    assert "prefers-color-scheme" not in shown.svg
    assert (shown.width, shown.height) == (614, 96)
