"""Two studies in one page, side by side: cohorts, settings that differ, answers, headline numbers and figures.

Nothing is tested here, and the page says so: two studies differ in their people, scanners and settings at once, and two
numbers with intervals of their own are no test of a difference.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import pandas as pd
from markupsafe import Markup

import nilatent
from nilatent.errors import SettingError
from nilatent.finding import Finding
from nilatent.provenance import atomic
from nilatent.report import SECTIONS, TITLE, facts_of, page, sections_of, study, title_of
from nilatent.report.quality import page_file

__all__ = ["compare"]

FILE = "compare.html"
N_ROWS, N_VALUES = 8, 3
SIDES = ("A", "B")


@dataclass(frozen=True)
class Pair:
    """One section of both studies.

    Attributes
    ----------
    sections
        Of the first and of the second study.
    numbers
        Rows that both tables have, side by side; None where there are none.
    pictures
        Figures of the same name, None where one study has none.
    """

    sections: tuple[page.Section, page.Section]
    numbers: page.Sheet | None
    pictures: tuple[tuple[page.Picture | None, page.Picture | None], ...]

    @property
    def absent(self) -> bool:
        """Whether neither study ran it."""
        return all(section.not_run for section in self.sections)


def compare(first: Path, second: Path, path: Path | None = None) -> Path:
    """Write one page that shows two studies side by side.

    Parameters
    ----------
    first, second
        Run folders.
    path
        The file to write, or a folder that receives it as ``report.html``; None for ``compare.html`` beside `first`.

    Returns
    -------
    Path
        The page. It needs no other file, and the same folders give the same bytes.

    Raises
    ------
    SettingError
        When both are the same folder.
    FindingError
        When one is not a run.
    """
    first, second = Path(first), Path(second)
    if first.resolve() == second.resolve():
        raise SettingError(f"{first} was given twice. Name two run folders: `nilatent report A B`.")
    if path is None:
        path = first.resolve().parent / FILE
    elif path.suffix != ".html":
        path = path / "report.html"
    runs = study.read_run(first), study.read_run(second)
    html = (
        page.environment()
        .get_template("compare.html.j2")
        .render(
            names=_names(first, second),
            titles=[title_of(run).removeprefix(TITLE) for run in runs],
            sides=SIDES,
            cohort=_facts(*runs),
            settings=settings_that_differ(*runs),
            pairs=_pairs(*runs),
            version=nilatent.__version__,
            css=Markup(page_file("report.css") + page_file("compare.css")),
            script=Markup(page_file("report.js")),
            policy=page.policy([page_file("report.js")]),
        )
    )
    with atomic(path) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return path


def _names(first: Path, second: Path) -> list[str]:
    """What the two are called: their folders, and as much of the way to them as tells them apart."""
    parts = [list(folder.resolve().parts) for folder in (first, second)]
    shown = 1
    while parts[0][-shown:] == parts[1][-shown:]:
        shown += 1
    return [f"{side}: {'/'.join(part[-shown:])}" for side, part in zip(SIDES, parts, strict=True)]


def _facts(first: study.Run, second: study.Run) -> page.Sheet:
    """Counts at the top of both reports."""
    facts = [dict(facts_of(run)) for run in (first, second)]
    singular = {"scan": "scans", "person": "persons", "data set": "data sets"}
    facts = [{singular.get(name, name): value for name, value in one.items()} for one in facts]
    names = list(dict.fromkeys([*facts[0], *facts[1]]))
    table = pd.DataFrame(
        {"what": names} | {s: [one.get(n) for n in names] for s, one in zip(SIDES, facts, strict=True)}
    )
    return page.sheet(
        table, "What the two studies hold.", names={"what": ("number of", ""), "A": ("A", ""), "B": ("B", "")}
    )


def settings_that_differ(first: study.Run, second: study.Run) -> page.Sheet | None:
    """Settings and versions that differ; None when all are the same."""
    flat = [_flat(run.settings) | {f"version of {k}": v for k, v in run.versions.items()} for run in (first, second)]
    names = [name for name in dict.fromkeys([*flat[0], *flat[1]]) if flat[0].get(name) != flat[1].get(name)]
    if not names:
        return None
    columns = {side: [_said(one, name) for name in names] for side, one in zip(SIDES, flat, strict=True)}
    table = pd.DataFrame({"setting": names} | columns)
    return page.sheet(table, "Settings and versions that differ; – where a study names none.", names={})


def _flat(settings: Mapping[str, Any], start: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= _flat(value, f"{start}{name}.") if isinstance(value, Mapping) else {f"{start}{name}": value}
    return found


def _said(settings: Mapping[str, Any], name: str) -> str | None:
    if name not in settings:
        return None
    value = settings[name]
    return ", ".join(map(_without_folder, value if isinstance(value, list) else [value])) or "none"


def _without_folder(value: object) -> str:
    """A value that is a path is one from its first letter to its last, whatever it holds."""
    text = str(value)
    if any(kind(text).is_absolute() for kind in (PurePosixPath, PureWindowsPath)):
        return f"…/{PureWindowsPath(text).name}"
    return study.without_paths(text)


def _pairs(first: study.Run, second: study.Run) -> list[Pair]:
    named = {spec.finding: spec.names for spec in SECTIONS}
    pairs = []
    for one, other in zip(sections_of(first), sections_of(second), strict=True):
        numbers = None
        if one.anchor in named and not one.not_run and not other.not_run:
            numbers = common_rows(first.findings[one.anchor], second.findings[one.anchor], named[one.anchor])
        shown = [{picture.name: picture for picture in section.pictures} for section in (one, other)]
        names = dict.fromkeys([*shown[0], *shown[1]])
        pictures = tuple((shown[0].get(name), shown[1].get(name)) for name in names)
        pairs.append(Pair((one, other), numbers, pictures))
    return pairs


def common_rows(first: Finding, second: Finding, names: Mapping[str, tuple[str, str]]) -> page.Sheet | None:
    """First rows that both tables have: what names a row, and its first numbers in both studies."""
    columns = [name for name in names if name in first.table and name in second.table]
    numeric = [
        name
        for name in columns
        if not name.startswith("n_") and all(_is_number(found.table[name]) for found in (first, second))
    ]
    text = [name for name in columns if name not in numeric and not name.startswith("n_")]
    keys = _keys(first.table, second.table, text)
    if any(_is_number(first.table[key]) != _is_number(second.table[key]) for key in keys):
        return None
    values = [name for name in numeric if name not in ("rank", "label")][:N_VALUES]
    if not keys or not values:
        return None
    joined = first.table[[*keys, *values]].merge(second.table[[*keys, *values]], on=keys, suffixes=(" A", " B"))
    if joined.empty:
        return None
    shown = {name: names[name] for name in keys}
    for name in values:
        shown |= {f"{name} {side}": (f"{names[name][0]}, {side}", names[name][1]) for side in SIDES}
    caption = f"The first {min(N_ROWS, len(joined))} rows that both tables have; differences are not tested."
    return page.sheet(joined.head(N_ROWS), caption, names=shown)


def _is_number(column: "pd.Series[Any]") -> bool:
    return bool(pd.api.types.is_numeric_dtype(column)) and not pd.api.types.is_bool_dtype(column)


def _keys(first: pd.DataFrame, second: pd.DataFrame, text: list[str]) -> list[str]:
    """The first columns of text that together name every row of both tables; none where they do not."""
    for n_keys in range(1, len(text) + 1):
        keys = text[:n_keys]
        if not any(table.duplicated(keys).any() for table in (first, second)):
            return keys
    return []
