"""A slider: pictures drawn beforehand, one per step, of which a range input shows one; for a page of its own or the report.

Without scripts every step stands below the last. The script has no text from data: labels come from attributes that Jinja
has escaped, and are shown as text.
"""

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

import nilatent
from nilatent.finding import Finding
from nilatent.plots import strip
from nilatent.provenance import atomic
from nilatent.report import page
from nilatent.report.page import Slider
from nilatent.report.quality import page_file

__all__ = ["Slider", "direction_sliders", "slider_script", "write_slider"]

MAIN_KINDS, MAX_SLIDERS = ("group", "covariate"), 3


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
