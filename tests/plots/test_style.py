import importlib
import itertools
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from matplotlib import rcParams
from matplotlib.figure import Figure

from nilatent.plots import style

HOSTILE = ["<script>alert(1)</script>", "$\\alpha$ and $5", "a & b \"c\" 'd'", "_hidden", "😀 ünï", "bell\x07 \ud800"]


def texts(svg: str) -> list[str]:
    return ["".join(node.itertext()).strip() for node in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def labelled(label: str) -> Figure:
    drawn = style.figure(3, 2)
    axes = drawn.add_subplot()
    axes.scatter([0], [0], label=style.plain(label))
    axes.set_title(style.plain(label))
    axes.set_xticks([0], [style.plain(label)])
    axes.legend()
    return drawn


@pytest.mark.parametrize("label", HOSTILE)
def test_labels_are_shown_letter_by_letter(label: str) -> None:
    expected = label.replace("\x07", "\ufffd").replace("\ud800", "\ufffd")
    shown = [text.lstrip("\u200b") for text in texts(style.to_svg(labelled(label)))]
    assert shown.count(expected) == 3


def test_same_figure_same_bytes_and_no_date() -> None:
    first, second = style.to_svg(labelled("a")), style.to_svg(labelled("a"))
    assert first == second
    assert "dc:date" not in first


def test_long_text_is_cut_to_the_width() -> None:
    assert len(style.plain("word " * 30, width=20)) <= 20
    assert style.plain("x" * 30, width=20) == "x" * 19 + "…"


def test_looks_never_repeat_among_64() -> None:
    assert len(set(style.looks([str(i) for i in range(64)]).values())) == 64


def test_spread_fills_the_strip_evenly() -> None:
    offsets = sorted(style.spread(100))
    assert offsets[0] >= -0.5
    assert offsets[-1] <= 0.5
    assert max(b - a for a, b in itertools.pairwise(offsets)) < 0.03


def test_drawing_leaves_global_settings_alone() -> None:
    before = dict(rcParams)
    style.to_svg(style.message("nothing"))
    assert dict(rcParams) == before


FINDINGS = sorted(
    path.stem
    for path in Path(style.__file__).parent.glob("*.py")
    if path.stem not in ("__init__", "style", "brain", "mosaic")
)


@pytest.mark.parametrize("stem", FINDINGS)
def test_every_plot_is_a_function_with_a_caption_and_a_test(stem: str) -> None:
    """The figures of its test are held against the sizes of print by the fixture beside this file."""
    draw = importlib.import_module(f"nilatent.plots.{stem}").draw
    assert draw.__doc__.splitlines()[0].endswith(".")
    assert draw.__annotations__["return"] is Figure
    assert Path(__file__).with_name(f"test_{stem}.py").is_file()


def test_text_of_wide_figures_keeps_six_points_in_print() -> None:
    smallest = min(style.STYLE[name] for name in style.STYLE if name.endswith("size"))
    assert smallest * style.COLUMN_INCHES / style.WIDEST_INCHES >= style.SMALLEST_POINTS
    assert style.STYLE["svg.fonttype"] == "none"
