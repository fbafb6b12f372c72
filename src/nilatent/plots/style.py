"""The one place that says how a figure looks: type, colours, text that stays text, and bytes that repeat.

Colours are the Okabe-Ito set and perceptually even maps, which stay apart for colour-blind readers and in grey print.
"""

import io
import re
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

INK = "#1f2933"
"""Colour of text and axes; the report swaps it for a light one on dark pages."""
QUIET = "#7b8794"
"""Colour of reference lines and secondary marks; readable on white and on near-black."""
CELL_INK = "#102a43"
"""Of text on shaded cells, which keep their light paper on a dark page: this ink must not follow the theme."""
BLUE = "#1b7dbd"
ORANGE = "#d55e00"
GROUP_COLOURS = (BLUE, ORANGE, "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1", QUIET)
"""Okabe-Ito without yellow and black, which vanish on a light and on a dark page; blue is lighter for the latter."""
GROUP_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
"""Shapes repeat what the colours say, so that no reader depends on colour."""

AMOUNT_MAP = "viridis"
SIGNED_MAP = "PuOr_r"
SCAN_MAP = "gray"
"""Of the values of a scan, so that colour is left for what is laid over it."""
PRINT_DPI = 300.0
"""Of figures as pixels: what journals ask of half-tones."""
COLUMN_INCHES, SMALLEST_POINTS = 180.0 / 25.4, 6.0
"""Widest column of a journal, and the smallest text it takes; a wider figure is reduced to it, and its text with it."""
WIDEST_INCHES = 9.2
"""A figure of this width keeps text of 8 points legible in print."""

STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Helvetica Neue", "Arial", "sans-serif"],
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.titleweight": "regular",
    "axes.titlelocation": "left",
    "axes.labelsize": 9.0,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "axes.axisbelow": True,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "legend.frameon": False,
    "legend.fontsize": 8.0,
    "figure.dpi": 100.0,
    "savefig.dpi": PRINT_DPI,
    "svg.fonttype": "none",
    "svg.hashsalt": "nilatent",
}
"""Settings of every figure; `draw` functions run inside `mpl.rc_context(STYLE)`."""

_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
_BLANK = "(empty)"


def plain(value: object, *, width: int | None = None) -> str:
    """Text that matplotlib shows exactly as it is.

    Dollar signs would start a formula, a leading underscore would hide a legend entry, control characters would break
    the SVG, and marks that turn the direction of writing would turn what follows the text as well.

    Parameters
    ----------
    value
        Anything from data: an id, a label, a column name.
    width
        Longest length in characters; longer text is cut with an ellipsis. None keeps all.
    """
    text = visible(" ".join(str(value).split()))
    if not text:
        return _BLANK
    if width is not None:
        text = textwrap.shorten(text, width, placeholder="…") if " " in text else text
        text = text if len(text) <= width else text[: width - 1] + "…"
    text = text.replace("$", r"\$")
    return "\u200b" + text if text.startswith("_") else text


def visible(text: str) -> str:
    """Text whose control characters are replaced by a mark: none of them can change what stands around the text.

    Letters that are written from right to left keep their direction; only the invisible marks that would impose one on
    other text are replaced.
    """
    return _CONTROL.sub("\ufffd", text)


def figure(width: float, height: float) -> Figure:
    """An empty figure in the house style.

    Parameters
    ----------
    width, height
        Size in inches.
    """
    return Figure(figsize=(width, height), layout="constrained")


def message(text: str) -> Figure:
    """A figure that says in words why there is nothing to draw."""
    empty = figure(6.4, 1.0)
    axes = empty.add_subplot()
    axes.set_axis_off()
    axes.text(0.0, 0.5, plain(text), va="center", wrap=True)
    return empty


def looks(labels: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker per label, in the given order; no pair comes twice among 64."""
    n_colours, n_markers = len(GROUP_COLOURS), len(GROUP_MARKERS)
    return {
        label: (GROUP_COLOURS[i % n_colours], GROUP_MARKERS[(i + i // n_colours) % n_markers])
        for i, label in enumerate(labels)
    }


def spread(n_points: int) -> np.ndarray:
    """Offsets in [-0.5, 0.5] that keep points of a strip apart; the same for the same number, without a seed.

    References
    ----------
    Roberts (2018), the golden-ratio low-discrepancy sequence.
    """
    golden = (np.sqrt(5.0) - 1.0) / 2.0
    return np.asarray((np.arange(n_points) * golden) % 1.0 - 0.5)


def to_png(drawn: Figure) -> bytes:
    """PNG of a figure for print: 300 dots per inch on white paper, the same bytes for the same figure."""
    buffer = io.BytesIO()
    with mpl.rc_context(STYLE), _missing_glyphs_allowed():
        drawn.savefig(buffer, format="png", dpi=PRINT_DPI, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def to_svg(drawn: Figure) -> str:
    """SVG text of a figure: no date, stable ids, so that the same figure gives the same bytes."""
    buffer = io.StringIO()
    with mpl.rc_context(STYLE), _missing_glyphs_allowed():
        drawn.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


@contextmanager
def _missing_glyphs_allowed() -> Iterator[None]:
    # The text stays text in an SVG and the reader's own fonts show it; matplotlib only lacks it for measuring.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        warnings.filterwarnings("ignore", message=r"Matplotlib currently does not support")
        yield
