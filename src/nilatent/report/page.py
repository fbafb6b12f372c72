"""What the page is made of: pictures, sheets and sections as plain values, and the one function that makes HTML of them.

Every text from data goes through Jinja's autoescape; scripts and styles are our own files. A content security policy
allows those scripts by their hash and no connection at all, so that nothing in the data can run or phone home.
"""

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from nilatent.errors import SettingError
from nilatent.plots import style
from nilatent.plots.strip import FRAME_DPI
from nilatent.report.maps import FindingMap, MapShelf, shelf
from nilatent.report.viewer import RegionMap, ScanViewer

PIXELS_PER_INCH = 96
PNG_SIZE = slice(16, 24)
"""Where the header of a PNG holds its width and height."""
MISSING = "–"
PAGED_ROWS, FIRST_ROWS = 200, 100
"""Rows above which a table is shown in parts, and rows of the first part."""
DARK_INK = "#e4e7eb"


@dataclass(frozen=True)
class Picture:
    """A figure as the page shows it.

    Attributes
    ----------
    name
        Stem of its file in `figures/`.
    svg
        The figure.
    alternative, caption
        What a reader who does not see it is told, and what stands below it.
    width, height
        CSS pixels.
    fallback
        Hidden on the screen while the interactive form of the same figure is there.
    drawn
        The figure itself, for other formats; None where only the drawing is known.
    """

    name: str
    svg: str
    alternative: str
    caption: str
    width: int
    height: int
    fallback: bool = False
    drawn: Figure | None = field(default=None, repr=False, compare=False)

    @property
    def source(self) -> str:
        """Data URI of the SVG, with ink that turns light on a dark page; an image cannot run scripts or load anything.

        Colours are overridden by a style sheet inside the SVG, never by replacing text, so that a label which happens
        to spell a colour stays as it is.
        """
        rules = "".join(f'[style*="{kind}: {style.INK}"]{{{kind}:{DARK_INK}!important}}' for kind in ("fill", "stroke"))
        opened = self.svg.index(">", self.svg.index("<svg")) + 1
        themed = f"<style>@media (prefers-color-scheme: dark){{{rules}}}</style>"
        data = base64.b64encode((self.svg[:opened] + themed + self.svg[opened:]).encode()).decode()
        return f"data:image/svg+xml;base64,{data}"


@dataclass(frozen=True)
class Column:
    """Head of a column: shown name, whether it holds numbers, and an explanation for the pointer."""

    name: str
    numeric: bool
    hint: str = ""


@dataclass(frozen=True)
class Cell:
    """Shown text, and the number it is sorted by (None: by its text)."""

    text: str
    key: float | None = None


@dataclass(frozen=True)
class Sheet:
    """A table: caption, heads and rows."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]

    @property
    def paged(self) -> bool:
        """Whether a browser would be slow with all rows in the document; they are then data of the page's script."""
        return len(self.rows) > PAGED_ROWS

    @property
    def first_rows(self) -> tuple[tuple[Cell, ...], ...]:
        """The rows that are in the document."""
        return self.rows[:FIRST_ROWS] if self.paged else self.rows

    @property
    def packed(self) -> list[list[Any]]:
        """All rows as plain values: the text of a cell, or its text and the number it is sorted by."""
        return [[cell.text if cell.key is None else [cell.text, cell.key] for cell in row] for row in self.rows]


@dataclass(frozen=True, eq=False)
class Slider:
    """What the range input goes through.

    Parameters
    ----------
    name : str
        Letters, digits, ``_`` and ``-``; unique on its page.
    what : str
        What changes from step to step: the label of the input.
    labels : tuple[str, ...]
        Of each step.
    frames : tuple[bytes, ...]
        PNG of each step, all of one size.
    start : int
        The step shown first.
    caption : str
        What is seen.

    Raises
    ------
    SettingError
        When there are not as many labels as frames, none at all, or no such start.
    """

    name: str
    what: str
    labels: tuple[str, ...]
    frames: tuple[bytes, ...]
    start: int
    caption: str

    def __post_init__(self) -> None:
        """Refuse a slider that shows nothing or has no name to be found by."""
        if not self.frames or len(self.labels) != len(self.frames) or not 0 <= self.start < len(self.frames):
            raise SettingError(
                f"A slider has a label for every frame and starts at one of them, got {len(self.labels)} labels, "
                f"{len(self.frames)} frames and the start {self.start}. Draw one frame per label."
            )
        if not self.name.replace("-", "").replace("_", "").isalnum() or not self.name.isascii():
            raise SettingError(f"A slider is called by letters, digits, _ and -, got '{self.name}'. Rename it.")

    @property
    def sources(self) -> list[str]:
        """Data URIs of the frames."""
        return [f"data:image/png;base64,{base64.b64encode(frame).decode()}" for frame in self.frames]

    @property
    def width(self) -> int:
        """CSS pixels of a frame."""
        return self._size()[0]

    @property
    def height(self) -> int:
        """CSS pixels of a frame."""
        return self._size()[1]

    def _size(self) -> tuple[int, int]:
        sides = self.frames[0][PNG_SIZE]
        width, height = (int.from_bytes(sides[start : start + 4], "big") for start in (0, 4))
        return round(width * PIXELS_PER_INCH / FRAME_DPI), round(height * PIXELS_PER_INCH / FRAME_DPI)


@dataclass(frozen=True)
class Section:
    """One part of the page; `not_run` holds the reason when there is nothing to show."""

    title: str
    anchor: str
    lead: str
    question: str = ""
    answer: str = ""
    not_run: str = ""
    n_scans: int = 0
    n_subjects: int = 0
    pictures: tuple[Picture, ...] = ()
    sheets: tuple[Sheet, ...] = ()
    caveats: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    scatter: Mapping[str, Any] | None = None
    sliders: tuple[Slider, ...] = ()
    viewer: ScanViewer | None = None
    maps: tuple[FindingMap, ...] = ()


@dataclass(frozen=True)
class Reference:
    """A work to cite; `doi` is empty when it has none."""

    text: str
    doi: str = ""


@dataclass(frozen=True)
class Page:
    """All that the template is given."""

    title: str
    verdict: str
    version: str
    facts: tuple[tuple[str, str], ...]
    sections: tuple[Section, ...]
    paragraphs: tuple[str, ...]
    references: tuple[Reference, ...]
    provenance: tuple[Sheet, ...]
    settings: str = field(default="")
    regions: RegionMap | None = None


def sheet(table: pd.DataFrame, caption: str, *, names: Mapping[str, tuple[str, str]]) -> Sheet:
    """A table of a data frame.

    Parameters
    ----------
    table
        Without the index; what should be shown is a column.
    caption
        Says what a row is.
    names
        Columns to show, in this order, to (shown name, explanation). A key that ends in a star stands for all columns
        that start like it, and a star in the shown name for the rest of theirs. Empty: all columns, by their own names.
    """
    shown = _named(table, names)
    columns, cells = [], []
    for column, (name, hint) in shown.items():
        values = table[column]
        numeric = bool(pd.api.types.is_numeric_dtype(values)) and not pd.api.types.is_bool_dtype(values)
        columns.append(Column(name, numeric, hint))
        cells.append(_numbers(values) if numeric else [Cell(MISSING if pd.isna(v) else str(v)) for v in values])
    return Sheet(caption, tuple(columns), tuple(zip(*cells, strict=True)))


def _named(table: pd.DataFrame, names: Mapping[str, tuple[str, str]]) -> dict[str, tuple[str, str]]:
    if not names:
        return {str(column): (str(column), "") for column in table}
    shown: dict[str, tuple[str, str]] = {}
    for key, (name, hint) in names.items():
        if not key.endswith("*"):
            shown |= {key: (name, hint)} if key in table else {}
            continue
        start = key.removesuffix("*")
        matching = [str(column) for column in table if str(column).startswith(start)]
        shown |= {column: (name.replace("*", column.removeprefix(start)), hint) for column in matching}
    return shown


def _numbers(values: pd.Series) -> list[Cell]:
    """Numbers of a column with the same number of decimals, so that they can be compared down the column."""
    numbers = [float(value) if not pd.isna(value) else math.nan for value in values]
    finite = [abs(number) for number in numbers if math.isfinite(number)]
    whole = all(number == round(number) for number in finite)
    largest = max(finite, default=0.0)
    decimals = 0 if whole or largest >= 1000 else 1 if largest >= 10 else 3
    if 0 < largest < 0.1:
        decimals = 2 - math.floor(math.log10(largest))
    return [
        Cell(number_text(number, decimals=decimals), number if math.isfinite(number) else None) for number in numbers
    ]


def number_text(number: float, *, decimals: int | None = None) -> str:
    """A number with a true minus sign; what would round to nothing is written with its power of ten.

    Parameters
    ----------
    number
        Not-a-number becomes a dash.
    decimals
        Digits after the point; None for three significant digits, and whole numbers in full.
    """
    if not math.isfinite(number):
        return MISSING if math.isnan(number) else "∞" if number > 0 else "−∞"
    if decimals is None:
        text = f"{number:.0f}" if number == round(number) else f"{number:.3g}"
    elif number != 0 and abs(number) < 0.5 * 10.0**-decimals:
        text = f"{number:.1g}"
    else:
        text = f"{number:.{decimals}f}"
    return text.replace("-", "−")


def picture(drawn: Figure, name: str, *, caption: str, alternative: str, fallback: bool = False) -> Picture:
    """A figure, ready for the page and for its own file."""
    width, height = (round(float(inches) * PIXELS_PER_INCH) for inches in drawn.get_size_inches())
    return Picture(name, style.to_svg(drawn), alternative, caption, width, height, fallback, drawn)


def _asset(name: str) -> str:
    return resources.files("nilatent").joinpath("templates", name).read_text(encoding="utf-8")


def _script(name: str) -> str:
    """One of our scripts as a browser hashes it: after turning every line end into a line feed."""
    return _asset(name).replace("\r\n", "\n").replace("\r", "\n")


def policy(scripts: Sequence[str]) -> str:
    """The content security policy of a page that runs these scripts and nothing else."""
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" for script in scripts
    )
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def environment() -> Environment:
    """Where every page finds its template: text from data is escaped, and a name that is not given is an error."""
    return Environment(
        loader=PackageLoader("nilatent", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: style.visible(value) if type(value) is str else value,
    )


def map_shelf(sections: Sequence[Section]) -> MapShelf | None:
    """The maps of all sections that a page of them holds; None where there are none."""
    return shelf([one for section in sections for one in section.maps])


def render(page: Page) -> str:
    """The page as one HTML text that needs no other file."""
    scatters = any(section.scatter for section in page.sections)
    sliding = any(section.sliders for section in page.sections)
    maps = map_shelf(page.sections)
    volumes = page.regions is not None or maps is not None or any(section.viewer for section in page.sections)
    # The text comes alive first; then the dots, whose library takes a browser longest.
    wanted = {
        "report.js": True,
        "viewer.js": volumes,
        "maps.js": maps is not None,
        "slider.js": sliding,
        "plotly-basic.min.js": scatters,
        "scatter.js": scatters,
    }
    scripts = [_script(name) for name, is_wanted in wanted.items() if is_wanted]
    # Held as text that a browser does not even compile, until somebody asks for a volume.
    held = [_script("niivue.umd.js")] if volumes else []
    html: str = (
        environment()
        .get_template("report.html.j2")
        .render(
            page=page,
            css=Markup(_asset("report.css") + (_asset("slider.css") if sliding else "")),
            scripts=[Markup(script) for script in scripts],
            held=[Markup(script) for script in held],
            maps=maps,
            licences=[
                _asset(name)
                for name, is_wanted in (("niivue.LICENSE.txt", volumes), ("plotly.LICENSE.txt", scatters))
                if is_wanted
            ],
            policy=policy([*scripts, *held]),
        )
    )
    return html
