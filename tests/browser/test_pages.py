"""Every page of a run with hostile names: nothing of the data runs, and everybody can read it.

The whole river makes the pages, so that the names go through every reader, analysis, figure and table there is.
"""

import csv
import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from playwright.sync_api import Page
from tests.report.test_subjects import write_run
from tests.river.conftest import SETTINGS

from nilatent import report
from nilatent.report import page as report_page
from nilatent.report.compare import compare
from nilatent.report.subjects import build_subjects
from nilatent.simulate import SimulationConfig, simulate

pytestmark = [pytest.mark.browser, pytest.mark.slow]

OpenPage = Callable[..., Page]
GROUP, SITE, NOTE = "=cmd|' /C calc'!A0", '<img src=x onerror="window.hit=1">', "\u202enote 😀"
CASE, REFERENCE = "</script><svg onload=window.hit=2>", "@SUM(1+1)\"'&amp;"
SITES = ["+site\u202e \u05d0\u05d1\u05d2 {{7*7}}", "w" * 90]
NOTES = ['=HYPERLINK("http://example.org","x")', "-2+3", "a\nb\tc", "<b>bold</b>", "$\\alpha$_x"]
NO_FILE = "sub-<b>1"
SAVED = """async () => {
  const blobs = [];
  URL.createObjectURL = (blob) => { blobs.push(blob); return "blob:taken"; };
  URL.revokeObjectURL = HTMLAnchorElement.prototype.click = () => {};
  [...document.querySelectorAll("button")].filter((one) => one.textContent === "Save as TSV").forEach((one) => one.click());
  return Promise.all(blobs.map((blob) => blob.text()));
}"""
PAGES = ("report", "compare", "quality", "subjects", "subject")

FAULTS = (Path(__file__).parent / "faults.js").read_text(encoding="utf-8")
"""What a reader with a keyboard, a screen reader or weak sight would stumble over, as sentences."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a table of paths whose labels, columns, name and folder are hostile."""
    place = tmp_path_factory.mktemp("pages")
    simulated = simulate(place / "simulated", SimulationConfig(n_subjects=26, seed=3, spacing_mm=6.0))
    people = pd.read_csv(simulated / "participants.tsv", sep="\t", dtype=str)
    table = people[["participant_id", "age", "sex"]].assign(
        path=[str(next((simulated / name).rglob("*.nii*"))) for name in people["participant_id"]]
    )
    table[GROUP] = people["group"].map({"patient": CASE, "control": REFERENCE})
    table[SITE] = (SITES * 13)[: len(table)]
    table[NOTE] = (NOTES * 6)[: len(table)]
    table.loc[0, "participant_id"] = NO_FILE
    source, out = place / "a study <i>.tsv", place / "Jane Doe's run"
    table.to_csv(source, sep="\t", index=False, quoting=csv.QUOTE_MINIMAL)
    (place / "small.toml").write_text(SETTINGS, encoding="utf-8")
    words = ["run", source, out, "--config", place / "small.toml", "--group", GROUP, "--site", SITE]
    words += ["--contrast", f"{CASE}:{REFERENCE}", "--covariates", "age,sex", "--n-procs", "1"]
    done = subprocess.run(
        [sys.executable, "-c", "from nilatent.cli import main; main()", *map(str, words)],
        capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.fixture(scope="module")
def pages(folder: Path) -> dict[str, Path]:
    other = Path(shutil.copytree(folder, folder.with_name("other")))
    report.build(other)
    people = sorted(path for path in (folder / "subjects").glob("*.html") if path.name != "index.html")
    return {
        "report": folder / "report.html",
        "compare": compare(folder, other),
        "quality": folder / "prepared" / "quality.html",
        "subjects": folder / "subjects" / "index.html",
        "subject": people[0],
    }


def test_identifiers_become_names_that_every_file_system_holds(folder: Path) -> None:
    scans = pd.read_csv(folder / "cohort" / "scans.tsv", sep="\t", dtype=str)
    assert scans["scan_id"].str.fullmatch("[A-Za-z0-9_-]+").all()
    assert scans["source_id"][0] == NO_FILE


@pytest.mark.parametrize("name", PAGES)
def test_nothing_of_the_data_runs_and_all_of_it_is_shown(
    name: str, pages: dict[str, Path], open_page: OpenPage
) -> None:
    page = open_page(pages[name])
    page.wait_for_timeout(500)
    assert page.evaluate("window.hit") is None
    assert page.locator("img[src=x], svg[onload]").count() == 0
    said = page.evaluate("document.body.textContent")
    assert "\u202e" not in said
    assert (CASE in said) or (REFERENCE in said) or name == "quality"
    assert "49" not in re.findall(r"\u05d0\u05d1\u05d2 (\S*)", said)


def test_saved_tables_are_safe_in_a_spreadsheet(pages: dict[str, Path], open_page: OpenPage) -> None:
    page = open_page(pages["report"])
    # What would be saved is taken on its way: a browser stops a page that saves dozens of files by itself.
    saved = page.evaluate(SAVED)
    assert len(saved) > 10
    for text in saved:
        rows = list(csv.reader(io.StringIO(text), delimiter="\t"))
        assert len(rows) > 1
        assert len({len(row) for row in rows}) == 1
        cells = [cell for row in rows for cell in row]
        assert not [cell for cell in cells if cell.lstrip().startswith(("=", "+", "@")) or re.match(r"-[^\d.]", cell)]


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("name", PAGES)
def test_everybody_can_read_it(name: str, dark: bool, pages: dict[str, Path], open_page: OpenPage) -> None:
    page = open_page(pages[name], dark=dark)
    page.wait_for_timeout(500)
    assert page.evaluate(FAULTS) == []


def test_rows_that_are_made_from_data_lead_to_their_subject(
    tmp_path: Path, open_page: OpenPage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_page, "PAGED_ROWS", 5)
    monkeypatch.setattr(report_page, "FIRST_ROWS", 3)
    index, *people = build_subjects(write_run(tmp_path))
    assert index.read_text(encoding="utf-8").count('<th scope="row"') == 3
    page = open_page(index)
    page.locator("#subjects-table thead button").first.click()
    links = page.locator("#subjects-table tbody th a")
    assert links.all_text_contents() == sorted(path.stem for path in people)
    assert [one.get_attribute("href") for one in links.all()] == sorted(path.name for path in people)


@pytest.mark.parametrize("width", [390, 1920])
@pytest.mark.parametrize("name", PAGES)
def test_no_window_is_too_narrow(name: str, width: int, pages: dict[str, Path], open_page: OpenPage) -> None:
    page = open_page(pages[name], width=width)
    assert page.evaluate("document.scrollingElement.scrollWidth - innerWidth") <= 0
