"""The report in headless Chromium: what a click, a filter, a lasso and a hostile name do."""

import csv
import io
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from playwright.sync_api import Locator, Page, expect
from tests.report import conftest as run_folders

from nilatent import report
from nilatent.plots import style
from nilatent.report import page as report_page
from nilatent.viewed import read_viewed, write_viewed
from nilatent.volumes import Grid

pytestmark = [pytest.mark.browser, pytest.mark.slow]

OpenPage = Callable[..., Page]
LOPSIDED = 11
"""Row of the one scan that is bright on its left alone."""
REGION = "Hippocampus_L"
SECONDS = 60_000
"""Milliseconds that a machine with other work may take to draw volumes without a graphics card."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose scans are of one grey each, with a region of the atlas in its tables."""
    made = run_folders.write_run(tmp_path_factory.mktemp("viewed"), "Hippocampus_L")
    run_folders.write_viewed_scans(made)
    brighten_left(made / "findings" / "reconstruction", LOPSIDED)
    report.build(made)
    return made


def brighten_left(place: Path, row: int) -> None:
    """Give one embedded scan light where x is below 0 mm, and nothing elsewhere."""
    viewed = read_viewed(place)
    assert viewed is not None
    x_mm = viewed.affine[0, 0] * np.arange(viewed.original.shape[1]) + viewed.affine[0, 3]
    viewed.original[row] = np.where(x_mm < 0, 100, 0).astype(np.uint8)[:, None, None]
    write_viewed(viewed, place)


@pytest.fixture
def page(folder: Path, open_page: OpenPage) -> Page:
    return open_page(folder / "report.html")


def pixels(place: Locator) -> np.ndarray:
    """(pixel, 3) colours of what is seen of an element."""
    return np.asarray(Image.open(io.BytesIO(place.screenshot())).convert("RGB")).reshape(-1, 3).astype(int)


def grey(place: Locator) -> float:
    """The grey that most pixels have, paper and ink of the letters apart."""
    seen = pixels(place)
    plain = seen[(np.ptp(seen, axis=1) == 0) & (seen[:, 0] > 5) & (seen[:, 0] < 250)][:, 0]
    return float(np.bincount(plain).argmax()) / 255


def dot(page: Page, row: int) -> tuple[float, float]:
    """Where the dot of a scan is in the window, as Plotly has placed it."""
    found = page.evaluate(
        """(row) => {
            const canvas = document.querySelector("#scatter-projections .canvas");
            for (const trace of canvas.data) {
                const place = (trace.customdata ?? []).indexOf(row);
                if (place < 0 || !trace.hovertemplate) continue;
                const { xaxis, yaxis } = canvas._fullLayout;
                const box = canvas.getBoundingClientRect();
                return [box.x + xaxis._offset + xaxis.l2p(trace.x[place]), box.y + yaxis._offset + yaxis.l2p(trace.y[place])];
            }
        }""",
        row,
    )
    return float(found[0]), float(found[1])


def centre(page: Page, name: str = "#scatter-projections .canvas") -> None:
    page.locator(name).evaluate("(one) => one.scrollIntoView({ block: 'center', behavior: 'instant' })")


@pytest.mark.parametrize("row", [4, 9])
def test_click_on_a_dot_shows_its_brain(page: Page, row: int) -> None:
    centre(page)
    page.mouse.click(*dot(page, row))
    viewer = page.locator("#viewer")
    expect(viewer.get_by_role("heading")).to_have_text(f"sub-{row:02d}")
    expect(viewer).to_have_attribute("data-shown", f"sub-{row:02d}", timeout=SECONDS)
    seen = "has not seen" if row % 2 == 0 else "was trained or chosen with"
    expect(viewer.locator('[data-role="said"]')).to_contain_text(seen)
    centre(page, "#viewer .volumes")
    page.wait_for_timeout(500)
    value = run_folders.grey_of(row)
    assert grey(viewer.locator('[data-kind="original"] canvas')) == pytest.approx(value, abs=0.02)
    assert grey(viewer.locator('[data-kind="model"] canvas')) == pytest.approx(value / 2, abs=0.02)
    # The reconstruction is too low: the error is of one sign, and its colour of that half of the map.
    colours = pixels(viewer.locator('[data-kind="error"] canvas'))
    assert (colours[:, 2] > colours[:, 0] + 20).sum() > 10 * (colours[:, 0] > colours[:, 2] + 60).sum()


def test_a_scan_that_is_not_embedded_says_so(page: Page) -> None:
    centre(page)
    page.mouse.click(*dot(page, 20))
    viewer = page.locator("#viewer")
    expect(viewer.locator('[data-role="said"]')).to_contain_text(
        "sub-20 are not in this file, which holds 12 of 24 scans"
    )
    assert not viewer.locator(".volumes").is_visible()


def coloured(place: Locator) -> np.ndarray:
    """(row, column, channel) of what is seen of an element."""
    return np.asarray(Image.open(io.BytesIO(place.screenshot())).convert("RGB")).astype(int)


def test_left_is_where_the_letter_says(page: Page) -> None:
    scan = f"sub-{LOPSIDED:02d}"
    page.locator('#viewer [data-role="scan"]').select_option(scan)
    expect(page.locator("#viewer")).to_have_attribute("data-shown", scan, timeout=SECONDS)
    page.wait_for_timeout(500)
    shot = coloured(page.locator('#viewer [data-kind="original"] canvas')).mean(axis=-1)
    # Round corners show the paper of the page.
    shot[:6] = 0
    # The coronal view is above on the left, the axial one below it; in each corner stands the letter of its left side.
    height, width = shot.shape[0] // 2, shot.shape[1] // 2
    for view in (shot[:height, :width], shot[height - 25 : int(0.8 * shot.shape[0]), :width]):
        assert spells_l(view[:50, :40] > 200)
        middle = view[50:-20]
        left, right = middle[:, : width // 2 - 5], middle[:, width // 2 + 5 :]
        assert np.median(left) == pytest.approx(100, abs=3)
        assert np.median(right) == pytest.approx(0, abs=3)


def spells_l(ink: np.ndarray) -> bool:
    """Whether the first letter is an L: a whole stem on its left, a foot, and nothing above the foot. An R has a bow."""
    rows = np.flatnonzero(ink.any(axis=1))
    columns = np.flatnonzero(ink[rows[0] : rows[-1] + 1].any(axis=0))
    gaps = np.flatnonzero(np.diff(columns) > 1)
    letter = ink[rows[0] : rows[-1] + 1, columns[0] : columns[gaps[0]] + 1]
    upper = letter[: -len(letter) // 3]
    return bool(upper.any(axis=1).all() and letter[-2:, -2:].any() and not upper[:, -2:].any())


def test_a_map_is_drawn_on_its_side_in_the_colours_of_its_bar(page: Page, tmp_path: Path) -> None:
    import nibabel as nib

    assert page.evaluate("typeof window.niivue") == "undefined"
    page.locator('#lrcp [data-role="map"]').select_option("lrcp/minus_log10_p")
    box = page.locator("#map-viewer")
    expect(box).to_have_attribute("data-shown", "lrcp/minus_log10_p 1.301", timeout=SECONDS)
    expect(box.locator('[data-role="place"]')).to_contain_text("mm: 2.5")
    page.wait_for_timeout(500)
    shot = coloured(box.locator("canvas"))
    map_ink = np.ptp(shot, axis=-1) > 60
    crosshair = (shot[..., 0] > shot[..., 1] + 20) & (shot[..., 1] > shot[..., 2])
    ink = shot[map_ink & ~crosshair]
    assert len(ink) > 100
    # The colour of 2.5 on a bar that ends at 3, and nothing between it and the template.
    colour = 255 * np.array(mpl.colormaps[style.AMOUNT_MAP](2.5 / 3)[:3])
    assert (np.abs(ink - colour).max(axis=1) <= 6).all()
    axial = (map_ink & ~crosshair)[:, : shot.shape[1] // 3].any(axis=0)
    grid = Grid.mni(6.0)
    assert (grid.affine @ [11, 0, 0, 1])[0] < 0
    grey = (np.ptp(shot, axis=-1) == 0) & (shot[..., 0] > 30)
    head = np.flatnonzero(grey[25:, : shot.shape[1] // 3].any(axis=0))
    assert np.flatnonzero(axial).max() < (head[0] + head[-1]) / 2
    with page.expect_download() as download:
        box.get_by_role("button", name="Save as NIfTI").click()
    download.value.save_as(tmp_path / "one.nii")
    image = nib.load(tmp_path / "one.nii")
    np.testing.assert_allclose(image.get_fdata()[8:12, 12:18, 10:14], 2.5, atol=1e-4)
    np.testing.assert_allclose(image.affine, grid.affine)
    assert np.count_nonzero(image.get_fdata()) == 96
    box.locator('[data-role="threshold"]').fill("2.6")
    box.locator('[data-role="threshold"]').press("Enter")
    expect(box).to_have_attribute("data-shown", "lrcp/minus_log10_p 2.6", timeout=SECONDS)
    expect(box.locator('[data-role="said"]')).to_contain_text("No value is as far from 0 as 2.6")
    page.wait_for_timeout(500)
    shot = coloured(box.locator("canvas"))
    assert not (np.abs(shot - colour).max(axis=-1) <= 6).any()
    # Nearer to the threshold than 16 bits can tell is on it.
    box.locator('[data-role="threshold"]').fill("2.50003")
    box.locator('[data-role="threshold"]').press("Enter")
    expect(box).to_have_attribute("data-shown", "lrcp/minus_log10_p 2.50003", timeout=SECONDS)
    expect(box.locator('[data-role="said"]')).not_to_contain_text("No value")


def test_saved_volume_is_the_scan(page: Page, tmp_path: Path) -> None:
    import nibabel as nib

    page.locator('#viewer [data-role="scan"]').select_option("sub-03")
    expect(page.locator("#viewer")).to_have_attribute("data-shown", "sub-03", timeout=SECONDS)
    for kind, value in (("original", 1.0), ("model", 0.5), ("error", -0.5)):
        with page.expect_download() as download:
            page.locator(f'[data-save="{kind}"]').click()
        assert download.value.suggested_filename == f"sub-03_{kind}.nii"
        download.value.save_as(tmp_path / "one.nii")
        image = nib.load(tmp_path / "one.nii")
        np.testing.assert_allclose(image.get_fdata(), value * run_folders.grey_of(3), atol=1 / 255)
        assert nib.aff2axcodes(image.affine) == ("R", "A", "S")


def test_a_row_of_a_region_shows_it_on_the_template(page: Page) -> None:
    box = page.locator("#region-map")

    def red_of(region: str) -> np.ndarray:
        page.locator("#lrcp-1 tbody tr", has=page.get_by_role("button", name=region, exact=True)).locator("td").nth(
            1
        ).click()
        expect(box).to_have_attribute("data-shown", region, timeout=SECONDS)
        expect(box.locator('[data-role="said"]')).to_have_text(region)
        page.wait_for_timeout(500)
        seen = np.asarray(Image.open(io.BytesIO(box.locator("canvas").screenshot())).convert("RGB")).astype(int)
        return (seen[..., 0] > 80) & (2 * seen[..., 1:].max(axis=-1) < seen[..., 0])

    left, right = red_of(REGION), red_of("Region_1_L")
    for red in (left, right):
        assert 20 < red.sum() < 0.1 * red.size
    # The axial slice comes first. The fixture gives the second region the label of the same structure on the other side.
    x_left, x_right = (np.flatnonzero(red[:, : red.shape[1] // 3].any(axis=0)).mean() for red in (left, right))
    assert x_left + 10 < x_right


def test_lasso_selects_scans_and_filters_the_table(page: Page) -> None:
    page.locator('[data-role="colour"]').select_option(label="group")
    centre(page)
    x, y = dot(page, 7)
    page.mouse.move(x - 6, y - 6)
    page.mouse.down()
    for corner in ((x + 6, y - 6), (x + 6, y + 6), (x - 6, y + 6), (x - 6, y - 5)):
        page.mouse.move(*corner, steps=3)
    page.mouse.up()
    expect(page.locator('#scatter-projections [data-role="ids"]')).to_contain_text("sub-07")
    chosen = page.locator('#scatter-projections [data-role="ids"] bdi').all_text_contents()
    rows = page.locator("#projections-scans tbody tr")
    expect(rows).to_have_count(len(chosen))
    assert sorted(chosen) == sorted(rows.locator("th").all_text_contents())
    expect(page.locator('.selection [data-role="picked"]')).to_contain_text(f"{len(chosen)} of 24 scans selected (")
    page.mouse.dblclick(*dot(page, 7))
    expect(rows).to_have_count(24)


def test_tables_sort_by_number_and_filter(page: Page) -> None:
    table = page.locator("#lrcp-1")
    head = table.locator("thead th", has_text="rank")
    head.get_by_role("button").click()
    expect(head).to_have_attribute("aria-sort", "ascending")
    head.get_by_role("button").click()
    place = head.evaluate("(one) => one.cellIndex")
    shown = [int(row.split("\t")[place]) for row in table.locator("tbody tr").all_inner_texts()]
    assert shown == sorted(shown, reverse=True)
    page.locator("#lrcp-1-filter").fill("region_1")
    expect(table.locator("tbody tr")).to_have_count(11)
    expect(page.locator("#lrcp-1-filter + .count")).to_have_text("11 of 30 rows")


@pytest.mark.parametrize("width", [390, 1920])
def test_no_window_is_too_narrow(folder: Path, open_page: OpenPage, width: int) -> None:
    page = open_page(folder / "report.html", width=width)
    page.locator('#viewer [data-role="scan"]').select_option("sub-03")
    expect(page.locator("#viewer")).to_have_attribute("data-shown", "sub-03", timeout=SECONDS)
    assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")


def test_paper_cuts_no_table_off_and_says_what_it_leaves_out(tmp_path: Path, open_page: OpenPage) -> None:
    wide = pd.DataFrame({f"a name of some words, {number}": np.arange(30) / 7 for number in range(20)})
    frame = io.BytesIO()
    Image.new("L", (40, 30)).save(frame, "PNG")
    slider = report_page.Slider("age", "age", ("one", "two"), (frame.getvalue(),) * 2, 0, "Steps.")
    sheets = (report_page.sheet(wide, "Numbers.", names={}),)
    section = report_page.Section("Wide", "wide", "", answer="Yes.", sheets=sheets, sliders=(slider,))
    path = tmp_path / "wide.html"
    path.write_text(report_page.render(report_page.Page("A", "", "0", (), (section,), (), (), ())), encoding="utf-8")
    page = open_page(path, width=718)
    page.locator("thead button").first.click()
    page.emulate_media(media="print")
    assert page.locator("table").evaluate("(one) => one.getBoundingClientRect().right - innerWidth") <= 0
    assert page.locator("thead th").evaluate_all("(all) => all.filter((one) => one.offsetWidth).length") == 12
    after, before = (f"(one) => getComputedStyle(one, '::{place}').content" for place in ("after", "before"))
    assert "first 12 columns" in page.locator("caption").evaluate(after)
    assert page.locator("thead button").first.evaluate(after) == "none"
    assert [one.evaluate(before) for one in page.locator(".frame").all()] == ['"one"', '"two"']


HOSTILE = [
    """</script><img src=x onerror="window.hit = 1">'q' {{ 7*7 }} %{x}""",
    '=HYPERLINK("http://example.org","x")',
    "@SUM(1+1)",
    "+1+1\\t=2",
    "-2+3",
    "\u202egnp.exe \u05d0\u05d1\u05d2 \u0645\u0631\u062d\u0628\u0627 😀",
    "<svg onload=window.hit=1>",
]


def test_hostile_names_are_text_wherever_they_stand(tmp_path: Path, open_page: OpenPage) -> None:
    made = run_folders.write_run(tmp_path, HOSTILE[0], column="=cmd|' /C calc'!A0")
    for table in (made / "prepared" / "scans.tsv", made / "cohort" / "scans.tsv"):
        scans = pd.read_csv(table, sep="\t", dtype=str)
        scans["note"] = (HOSTILE * 4)[: len(scans)]
        scans.to_csv(table, sep="\t", index=False, na_rep="n/a")
    run_folders.write_viewed_scans(made, 24)
    page = open_page(report.build(made))
    expect(page.locator("#scatter-projections .main-svg").first).to_be_attached()
    assert page.locator("#scatter-projections .modebar-btn").count() == 8
    assert page.locator('[data-title="Share chart..."], .modebar-btn--logo').count() == 0
    for name in ("note", "=cmd|' /C calc'!A0"):
        page.locator('#scatter-projections > .choices [data-role="colour"]').select_option(label=name)
    centre(page)
    page.mouse.move(*dot(page, 23))
    expect(page.locator(".hoverlayer")).to_contain_text("<img src=x")
    page.mouse.click(*dot(page, 23))
    expect(page.locator("#viewer h3")).to_contain_text("</script><img src=x onerror=")
    assert page.evaluate("window.hit") is None
    assert page.locator("img[src=x], svg[onload]").count() == 0
    with page.expect_download() as download:
        page.locator("#projections-scans").locator("xpath=ancestor::*[contains(@class, 'sheet')]").get_by_role(
            "button", name="Save as TSV"
        ).click()
    text = Path(download.value.path()).read_text(encoding="utf-8")
    rows = list(csv.reader(io.StringIO(text), delimiter="\t"))
    assert len({len(row) for row in rows}) == 1
    cells = [cell for row in rows for cell in row]
    assert not [cell for cell in cells if cell.lstrip().startswith(("=", "+", "@"))]
    assert {'\'=HYPERLINK("http://example.org","x")', "'-2+3", "'@SUM(1+1)"} <= set(cells)
    assert any(HOSTILE[0] in cell for cell in cells)
    age = rows[0].index("age")
    assert all(float(row[age]) > 0 for row in rows[1:])


def test_thousands_of_rows_are_data_until_they_are_asked_for(tmp_path: Path, open_page: OpenPage) -> None:
    made = run_folders.write_run(tmp_path, n_scans=3000)
    run_folders.write_viewed_scans(made, 5)
    path = report.build(made)
    text = path.read_text(encoding="utf-8")
    assert "Volumes of 5 of 3000 scans are embedded" in text
    page = open_page(path)
    rows = page.locator("#preparation-1 tbody tr")
    expect(rows).to_have_count(100)
    page.locator("#preparation-1-filter").fill("sub-2718")
    expect(rows).to_have_count(1)
    expect(rows.locator("th")).to_have_text("sub-2718")
    page.locator("#preparation-1-filter").fill("")
    page.locator("#preparation-1 thead button").nth(2).click()
    page.locator("#preparation-1 thead button").nth(2).click()
    known = pd.read_csv(made / "prepared" / "quality.tsv", sep="\t")
    assert page.locator("#projections-scans tbody tr").count() == 100
    head = page.locator("#preparation-1 thead th").nth(2).inner_text()
    assert head
    assert rows.first.locator("th").inner_text() in set(known["scan_id"])
