"""A slider: pictures drawn beforehand, one per step, of which a range input shows one; for a page of its own or the report.

Without scripts every step stands below the last. The script has no text from data: labels come from attributes that Jinja
has escaped, and are shown as text.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

import nilatent
from nilatent.errors import SettingError
from nilatent.finding import Finding
from nilatent.plots import strip
from nilatent.provenance import atomic
from nilatent.report import page
from nilatent.report.quality import page_file

CSS_DPI = 96
MAIN_KINDS, MAX_SLIDERS = ("group", "covariate"), 3
PNG_SIZE = slice(16, 24)
"""Where the header of a PNG holds its width and height."""


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
        return round(width * CSS_DPI / strip.FRAME_DPI), round(height * CSS_DPI / strip.FRAME_DPI)


def slider_script() -> str:
    """The script that brings every slider of a page to life; a page's policy must allow its hash."""
    return page_file("slider.js")


def direction_sliders(finding: Finding) -> tuple[Slider, ...]:
    """A slider for each group and covariate that the finding `sensitivity` has drawn; without these, for the first direction.

    Parameters
    ----------
    finding : Finding
        Of `sensitivity`; one that was not run or has drawn nothing gives none.
    """
    data = finding.data
    if "axial" not in data:
        return ()
    kinds = data["kind"].to_series()
    shown = [str(name) for name in data["shown"].values]
    names = [name for name in shown if kinds[name] in MAIN_KINDS] or shown[:1]
    steps = [float(step) for step in data["step"].values]
    sliders = []
    for number, name in enumerate(names[:MAX_SLIDERS]):
        unit = str(data["shown_unit"].sel(shown=name).item())
        frames = tuple(strip.to_png(strip.draw_direction(finding, name, step)) for step in steps)
        labels = tuple(f"{step:+g} × ({unit})".replace("-", "−", 1) if step else "middle" for step in steps)
        caption = f"What the decoder draws along {name}, from the mean of the training scans, and the change from it."
        sliders.append(Slider(f"direction-{number + 1}", name, labels, frames, len(steps) - 1, caption))
    return tuple(sliders)


def write_slider(
    slider: Slider,
    path: Path,
    *,
    title: str,
    verdict: str,
    notes: Sequence[str],
    effects: page.Sheet | None = None,
) -> Path:
    """One HTML file that opens by a double click and needs no other.

    Parameters
    ----------
    slider : Slider
        What it shows.
    path : Path
        The file.
    title, verdict : str
        What is seen, and what it says.
    notes : Sequence[str]
        What must not be concluded.
    effects : Sheet, optional
        Regional effects.

    Returns
    -------
    Path
        The file.
    """
    report_script, script = page_file("report.js"), slider_script()
    html = (
        page.environment()
        .get_template("slider.html.j2")
        .render(
            title=title,
            verdict=verdict,
            shown=slider,
            notes=list(notes),
            effects=effects,
            version=nilatent.__version__,
            css=Markup(page_file("report.css") + page_file("slider.css")),
            report_script=Markup(report_script),
            script=Markup(script),
            policy=page.policy([report_script, script]),
        )
    )
    with atomic(path) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return path
