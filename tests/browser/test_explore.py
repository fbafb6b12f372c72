"""The explorer in a real browser: the right brain behind a point, and the decoder's own numbers behind a slider."""

import io
import re
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, Response, expect
from tests.browser.conftest import OpenPage
from tests.explore.made import HOSTILE, SHAPE, Made, make

from nilatent.explore.answers import Answers
from nilatent.explore.drawing import Drawer
from nilatent.explore.server import Server

pytestmark = [pytest.mark.browser, pytest.mark.slow]

HEADER, SLOPE_AT = 352, 112
PATIENCE = 90_000


@pytest.fixture(scope="module")
def made() -> Made:
    return make(np.random.default_rng(0))


@pytest.fixture(scope="module")
def address(made: Made) -> Iterator[str]:
    drawer = Drawer(made.study)
    server = Server(Answers(made.study, drawer))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server.door.address
    server.shutdown()
    thread.join()
    server.server_close()
    drawer.close()


@pytest.fixture
def page(open_page: OpenPage, address: str) -> Page:
    page = open_page(address, width=1500, height=1000)
    ready(page)
    return page


def ready(page: Page) -> None:
    page.set_default_timeout(PATIENCE)
    page.wait_for_selector("body[data-ready]")


def values(answer: Response) -> np.ndarray:
    """(x, y, z) that the browser was sent, by the calibration in the header."""
    body = answer.body()
    slope = np.frombuffer(body, "<f4", count=1, offset=SLOPE_AT)[0]
    return slope * np.frombuffer(body[HEADER:], "<i2").reshape(SHAPE, order="F").astype(float)


def click_point(page: Page, trace: int, point: int) -> None:
    box = page.locator("#plot .scatterlayer .trace").nth(trace).locator(".points path").nth(point).bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - 1, y)
    page.mouse.click(x, y)


def picture(page: Page, panel: str) -> bytes:
    return page.locator(f'[data-panel="{panel}"] canvas').screenshot()


def test_a_click_shows_the_scan_behind_the_point(made: Made, page: Page) -> None:
    assert "token" not in page.url
    scans = made.study.pools.prepared.scans
    controls, patients = (list(scans.index[scans["group"] == level]) for level in ("control", "patient"))
    seen = []
    for trace, point, scan in ((0, 3, controls[3]), (1, 7, patients[7])):
        with page.expect_response(re.compile("/api/scan")) as sent:
            click_point(page, trace, point)
        page.wait_for_selector(f'[data-panel="a"][data-shown="{scan} scan"]')
        assert page.locator('[data-panel="a"] figcaption b').text_content() == scan
        row = list(made.study.pools.volumes.scans.index).index(scan)
        assert np.allclose(values(sent.value), made.study.pools.volumes.data[row].astype(float), atol=1e-4)
        seen.append(picture(page, "a"))
    assert seen[0] != seen[1]
    # What is on the screen is the volume: the error of the same scan has other colours.
    page.select_option('[data-panel="a"] select.kind', "error")
    page.wait_for_selector(f'[data-panel="a"][data-shown="{patients[7]} error"]')
    assert picture(page, "a") != seen[1]


def test_a_slider_draws_what_the_decoder_gives_there(made: Made, page: Page) -> None:
    names = [one.direction.name for one in made.study.slides]
    number, row = names.index("group:patient:control"), 11
    scan = str(made.study.space.scans[row])
    page.fill('[data-panel="a"] input.scan', scan)
    page.press('[data-panel="a"] input.scan', "Enter")
    page.wait_for_selector(f'[data-panel="a"][data-shown="{scan} scan"]')
    with page.expect_response(re.compile("/api/decode")) as sent:
        page.select_option("#start", "a")
    assert np.allclose(values(sent.value), made.volume(made.decode(made.study.space.values[row])), atol=1e-4)
    page.wait_for_selector(f'[data-panel="moved"][data-shown^="{scan} image {{}}"]')
    before = picture(page, "moved")
    with page.expect_response(re.compile("/api/decode")) as sent:
        page.locator(f"#slider-{number}").press("ArrowRight")
    page.wait_for_selector(f'[data-panel="moved"][data-shown^="{scan} image {{\\"{number}\\""]')
    # One of forty steps from end to end, which are four group differences apart.
    step = 0.1 * made.study.slides[number].direction.step
    assert np.allclose(values(sent.value), made.volume(made.decode(made.study.space.values[row] + step)), atol=1e-4)
    moved = picture(page, "moved")
    assert moved != before
    assert page.locator(f"#slider-{number} + small").text_content()
    expect(page.locator(f'output[for="slider-{number}"]')).to_have_text("0.10 × towards patient")
    with page.expect_response(re.compile("/api/decode")) as sent:
        page.select_option("#show", "change")
    assert np.allclose(values(sent.value), made.volume(step @ made.weights), atol=1e-4)
    page.wait_for_selector(f'[data-panel="moved"][data-shown^="{scan} change"]')
    # Differences have other colours, so the volume is read whole again; before, its numbers alone were put in place.
    page.select_option("#show", "image")
    page.wait_for_selector(f'[data-panel="moved"][data-shown^="{scan} image {{\\"{number}\\""]')
    assert picture(page, "moved") == moved


def test_a_group_drawn_by_hand_has_its_mean_and_names_stay_text(made: Made, page: Page) -> None:
    frame = page.locator("#plot .nsewdrag").first.bounding_box()
    assert frame is not None
    left, right = frame["x"] + 2, frame["x"] + frame["width"] - 2
    top, bottom = frame["y"] + 2, frame["y"] + frame["height"] - 2
    page.mouse.move(left, top)
    page.mouse.down()
    for x, y in ((right, top), (right, bottom), (left, bottom), (left, top)):
        page.mouse.move(x, y, steps=4)
    page.mouse.up()
    n = len(made.study.rows)
    expect(page.locator("#chosen")).to_have_text(f"{n} of {n} scans are chosen.")
    assert HOSTILE in (page.locator("#ids").text_content() or "")
    with page.expect_response(re.compile("/api/mean")) as sent:
        page.get_by_role("button", name="Mean of them").click()
    subjects = made.study.space.subjects
    weights = np.array([1 / (subjects == one).sum() for one in subjects]) / len(set(subjects))
    scans = made.study.pools.volumes.data[made.study.at].astype(float)
    assert np.allclose(values(sent.value), np.tensordot(weights, scans, 1), atol=1e-4)
    page.fill('[data-panel="b"] input.scan', HOSTILE)
    page.press('[data-panel="b"] input.scan', "Enter")
    expect(page.locator('[data-panel="b"] figcaption b')).to_have_text(HOSTILE)
    assert page.locator("img[src=x]").count() == 0
    for label, suffix, begin in (("NIfTI", ".nii", b"\x5c\x01"), ("PNG", ".png", b"\x89PNG")):
        with page.expect_download() as saved:
            page.locator('[data-panel="b"]').get_by_role("button", name=f"Save as {label}").click()
        assert re.fullmatch(r"[A-Za-z0-9._-]+", saved.value.suggested_filename)
        assert saved.value.suggested_filename.endswith(suffix)
        assert saved.value.path().read_bytes().startswith(begin)


def test_a_narrow_window_needs_no_sideways_scrolling(open_page: OpenPage, address: str) -> None:
    page = open_page(address, width=390, height=844, dark=True)
    ready(page)
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 390
    assert page.locator("#fault").is_hidden()


def test_left_is_where_the_page_says(made: Made, page: Page) -> None:
    """One scan is bright on its left (x < 0) alone."""
    volumes, scan = made.study.pools.volumes, str(made.study.space.scans[4])
    row = list(volumes.scans.index).index(scan)
    before = volumes.data[row].copy()
    x = volumes.grid.affine[0, 0] * np.arange(SHAPE[0]) + volumes.grid.affine[0, 3]
    try:
        volumes.data[row] = (volumes.mask & (x < 0)[:, None, None]).astype(before.dtype)
        page.fill('[data-panel="a"] input.scan', scan)
        page.press('[data-panel="a"] input.scan', "Enter")
        page.wait_for_selector(f'[data-panel="a"][data-shown="{scan} scan"]')
        found = []
        for side in ("left", "right"):
            page.select_option("#side", side)
            page.wait_for_timeout(500)
            found.append(axial_halves(picture(page, "a")))
    finally:
        volumes.data[row] = before
    assert found[0][0] > 2 * found[0][1]
    assert found[1][1] > 2 * found[1][0]


def axial_halves(png: bytes) -> tuple[float, float]:
    """Brightness of the left and of the right half of the axial slice, which stands below on the left."""
    shot = np.asarray(Image.open(io.BytesIO(png)).convert("L"), dtype=float)
    height, width = shot.shape
    axial = shot[height // 2 : int(0.92 * height), : width // 2]
    middle = axial.shape[1] // 2
    return float(axial[:, :middle].mean()), float(axial[:, middle:].mean())
