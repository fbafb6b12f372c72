"""The quality page of a preparation: a row of slices per scan, sortable by every measure, and the scans that were dropped."""

import base64
import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import pandas as pd
import xarray as xr
from markupsafe import Markup

import nilatent
from nilatent.errors import ScanError
from nilatent.finding import Finding, read_finding
from nilatent.plots import mosaic as rows_of_slices
from nilatent.plots.quality import COLUMN_NAMES, WORST_FIRST
from nilatent.preprocess.mosaic import place, read_mosaic, template_mosaic
from nilatent.provenance import atomic
from nilatent.report import page
from nilatent.report.study import without_paths

FINDING, PAGE = "quality", "quality.html"
SLICES = "slices"
# A scan adds about 75 kB to a page that holds its pictures; above this they lie beside it.
MAX_INSIDE = 200
STRIP_HEIGHT = 20
SIDES = {"axial": ("L", "R"), "coronal": ("L", "R"), "sagittal": ("P", "A")}
AXES = {"axial": "z", "coronal": "y", "sagittal": "x"}


@dataclass(frozen=True)
class Measure:
    """A measure on the page: its column, name, explanation, and whether the lowest values come first when sorted."""

    column: str
    name: str
    hint: str
    lowest_first: bool


@dataclass(frozen=True)
class Cell:
    """A value: its measure's number, text, exact number for sorting, place between the extremes in per cent, and mark."""

    measure: int
    text: str
    key: str
    percent: str
    flagged: bool


@dataclass(frozen=True)
class Row:
    """A prepared scan; `problem` says why there are no pictures."""

    scan_id: str
    dataset: str
    dataset_number: int
    recipe: str
    flags: tuple[str, ...]
    farthest: str
    cells: tuple[Cell, ...]
    grey: str
    lines: str
    problem: str


@dataclass(frozen=True)
class Dropped:
    """A scan that was dropped, at which stage, by which rule and why."""

    scan_id: str
    stage: str
    rule: str
    reason: str


def build(folder: Path) -> Path:
    """Write `quality.html` into the folder of a preparation.

    Parameters
    ----------
    folder
        What `nilatent prepare` wrote, with the finding in `quality/`. A scan whose slices are missing or damaged has a
        row that says so.

    Returns
    -------
    Path
        The page: one file that needs no other up to 200 scans; above, its pictures lie in `quality/slices/`. The same
        folder gives the same bytes.

    Raises
    ------
    FindingError
        When the finding is missing or damaged.
    """
    folder = Path(folder)
    found = read_finding(folder / FINDING)
    beside = folder / FINDING / SLICES if len(found.table) > MAX_INSIDE else None
    rows = list(_rows(found, folder, beside))
    _clear(folder / FINDING / SLICES, keep={Path(name).name for row in rows for name in (row.grey, row.lines)})
    template = template_mosaic()
    css = "".join([page_file("report.css"), page_file("quality.css"), _strips(found), _layers(template)])
    script = page_file("quality.js")
    width, height = rows_of_slices.size(template)
    html = (
        page.environment()
        .get_template("quality.html.j2")
        .render(
            found=found,
            rows=rows,
            measures=_measures(found.table),
            dropped=_dropped(found),
            names=dict(COLUMN_NAMES),
            slices=_positions(template),
            reference=_source(rows_of_slices.encode_grey(rows_of_slices.grey(template)), None),
            width=width,
            height=height,
            version=nilatent.__version__,
            css=Markup(css),
            script=Markup(script),
            policy=_policy(script, beside=beside is not None),
        )
    )
    path = folder / PAGE
    with atomic(path) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return path


def page_file(name: str) -> str:
    """Text of one of our own style sheets or scripts."""
    return resources.files("nilatent").joinpath("templates", name).read_text(encoding="utf-8")


def _policy(script: str, *, beside: bool) -> str:
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    images = "data: 'self' file:" if beside else "data:"
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src {images}; base-uri 'none'; "
        "form-action 'none'"
    )


def _measures(table: pd.DataFrame) -> list[Measure]:
    shown = [name for name in COLUMN_NAMES if name in table and name != "farthest_z"]
    numeric = [name for name in shown if pd.api.types.is_numeric_dtype(table[name])]
    return [Measure(name, *COLUMN_NAMES[name], WORST_FIRST.get(name, "low") != "high") for name in numeric]


def _rows(found: Finding, folder: Path, beside: Path | None) -> Iterator[Row]:
    """Rows, those first that should be looked at; one scan is in memory at a time."""
    measures = [measure.column for measure in _measures(found.table)]
    position = found.data["position"].to_series()
    maps = dict(zip(found.data["scan"].to_numpy().astype(str), found.data["map"].to_numpy().astype(str), strict=True))
    datasets = [str(name) for name in found.data["dataset"].to_numpy()]
    table = found.table.fillna({"flags": ""})
    order = table.assign(calm=table["flags"] == "").sort_values(
        ["calm", "farthest_z"], ascending=[True, False], kind="stable", na_position="last"
    )
    for row in order.to_dict("records"):
        scan_id = str(row["scan_id"])
        flags = tuple(name for name in str(row["flags"]).split(", ") if name)
        grey, lines, problem = _pictures(folder / maps[scan_id], scan_id, beside)
        yield Row(
            scan_id,
            str(row["dataset"]),
            datasets.index(str(row["dataset"])),
            str(row["recipe"]),
            flags,
            _key(row["farthest_z"]),
            tuple(
                Cell(number, value_text(row[name]), _key(row[name]), _percent(position[scan_id, name]), name in flags)
                for number, name in enumerate(measures)
                if not pd.isna(row[name])
            ),
            grey,
            lines,
            problem,
        )


def _pictures(prepared: Path, scan_id: str, beside: Path | None) -> tuple[str, str, str]:
    try:
        slices = read_mosaic(place(prepared))
    except ScanError as error:
        return "", "", without_paths(str(error))
    grey = rows_of_slices.encode_grey(rows_of_slices.grey(slices))
    lines = rows_of_slices.encode_lines(rows_of_slices.lines(slices), rows_of_slices.SCAN_COLOUR)
    if beside is None:
        return _source(grey, None), _source(lines, None), ""
    return _source(grey, beside / f"{scan_id}.webp"), _source(lines, beside / f"{scan_id}_outlines.webp"), ""


def _source(picture: bytes, path: Path | None) -> str:
    if path is None:
        return f"data:image/webp;base64,{base64.b64encode(picture).decode()}"
    with atomic(path) as temporary:
        temporary.write_bytes(picture)
    return f"{FINDING}/{SLICES}/{path.name}"


def _clear(folder: Path, *, keep: set[str]) -> None:
    for path in folder.glob("*.webp"):
        if path.name not in keep:
            path.unlink()


def value_text(value: float) -> str:
    """A value of a measure as the page shows it: whole above 100, one decimal above 10, three below."""
    size = abs(float(value))
    return page.number_text(float(value), decimals=0 if size >= 100 else 1 if size >= 10 else 3)


def _key(value: float) -> str:
    return f"{value:.9g}" if math.isfinite(value) else ""


def _percent(position: float) -> str:
    return f"{100 * position:.1f}" if math.isfinite(position) else ""


def _dropped(found: Finding) -> list[Dropped]:
    data = found.data
    columns = [data[name].to_numpy().astype(str) for name in ("dropped", "stage", "rule", "reason")]
    return [
        Dropped(scan, stage, rule, without_paths(reason)) for scan, stage, rule, reason in zip(*columns, strict=True)
    ]


def _positions(mosaic: xr.Dataset) -> str:
    words = []
    for plane in rows_of_slices.PLANES:
        places = ", ".join(page.number_text(float(value)) for value in mosaic[f"{plane}_mm"].to_numpy())
        words.append(f"{plane} {AXES[plane]} = {places} mm")
    return "; ".join(words)


def _strips(found: Finding) -> str:
    """A class per data set and measure with the distribution of its values as a background."""
    rules = []
    numbers = {measure.column: number for number, measure in enumerate(_measures(found.table))}
    counts = found.data["n_scans"]
    for dataset in range(counts.sizes["dataset"]):
        for name in counts["measure"].to_numpy():
            bins = counts.isel(dataset=dataset).sel(measure=name).to_numpy().tolist()
            if str(name) in numbers:
                rules.append(f".d{dataset} .m{numbers[str(name)]} .strip{{background-image:{_histogram(bins)}}}")
    return "\n".join(rules)


def _histogram(counts: Sequence[int]) -> str:
    tallest = max(1, int(max(counts)))
    bars = "".join(
        f"M{left} {STRIP_HEIGHT}V{STRIP_HEIGHT * (1 - math.sqrt(count / tallest)):.1f}h1V{STRIP_HEIGHT}"
        for left, count in enumerate(int(count) for count in counts)
        if count
    )
    # Roots of the counts: one scan far out must not vanish beside a hundred in the middle.
    svg = (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {len(counts)} {STRIP_HEIGHT}' preserveAspectRatio='none'>"
        f"<path d='{bars}' fill='#8794a3' fill-opacity='.55'/></svg>"
    )
    return _svg_url(svg)


def _svg_url(svg: str) -> str:
    return f'url("data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}")'


def _layers(mosaic: xr.Dataset) -> str:
    """Outlines of the template and the letters of the sides: once on the page, over every row."""
    outlines = rows_of_slices.encode_lines(rows_of_slices.lines(mosaic), rows_of_slices.TEMPLATE_COLOUR)
    width, height = rows_of_slices.size(mosaic)
    letters = []
    for panel in rows_of_slices.panels(mosaic):
        left, right = SIDES[panel.plane]
        middle = panel.top + panel.height / 2
        letters += [_letter(panel.left + 3, middle, "start", left)]
        letters += [_letter(panel.left + panel.width - 3, middle, "end", right)]
        label = f"{AXES[panel.plane]} {page.number_text(panel.position_mm)}"
        letters += [_letter(panel.left + 3, height - 4, "start", label)]
    marks = (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' font-family='sans-serif' font-size='11' "
        f"fill='#fff' fill-opacity='.85'>{''.join(letters)}</svg>"
    )
    return (
        f".stack::before{{background-image:{_svg_url(marks)}}}"
        f'.stack::after{{background-image:url("{_source(outlines, None)}")}}'
        f".swatch.scan{{background:{rows_of_slices.SCAN_COLOUR}}}"
        f".swatch.template{{background:{rows_of_slices.TEMPLATE_COLOUR}}}"
    )


def _letter(x: float, y: float, anchor: str, text: str) -> str:
    return f"<text x='{x:g}' y='{y:g}' text-anchor='{anchor}'>{text}</text>"
