import io
import re
from importlib import resources

import numpy as np
import pandas as pd
import pytest
from PIL import Image

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


def colours(*, dark: bool) -> dict[str, str]:
    """The colours of the page by their names in the style sheet."""
    css = resources.files("nilatent").joinpath("templates", "report.css").read_text(encoding="utf-8")
    light, _, rest = css.partition("@media (prefers-color-scheme: dark)")
    found = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})\b", light))
    return found | dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})\b", rest.split("\n}")[0])) if dark else found


def contrast(one: str, other: str) -> float:
    """WCAG 2 contrast of two colours."""

    def luminance(colour: str) -> float:
        channels = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_every_text_stands_out_from_its_paper(dark: bool) -> None:
    found = colours(dark=dark)
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    pairs = [(ink, paper) for ink in ("ink", "muted", "accent") for paper in ("paper", "card", "soft")]
    pairs += [("warn", "warn-soft"), ("ink", "warn-soft"), ("accent", "warn-soft")]
    low = {pair: round(contrast(found[pair[0]], found[pair[1]]), 2) for pair in pairs}
    assert {pair: value for pair, value in low.items() if value < 4.5} == {}


def test_marks_that_turn_the_direction_of_writing_are_made_visible() -> None:
    text = "a\u202eb \u05d0\u05d1 \u2066c"
    shown = page.environment().from_string("{{ text }}<p>").render(text=text)
    assert shown == "a\ufffdb \u05d0\u05d1 \ufffdc<p>"
    assert style.plain(text) == "a\ufffdb \u05d0\u05d1 \ufffdc"


def test_print_is_300_dots_per_inch_on_white_paper() -> None:
    first, second = (style.to_png(style.message("nothing")) for _ in range(2))
    assert first == second
    image = Image.open(io.BytesIO(first))
    assert image.size == (1920, 300)
    assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
    assert round(image.info["dpi"][0]) == 300
