"""Seconds until a report can be read and answers a click, in headless Chromium, from the start of the navigation.

"read" is the first paint with text. "answers" is the first moment at which a click of the mouse on a dot of the scatter,
scrolled to at once, has put that scan's id into the page; a click that comes too early is tried again, as a person would.
"brain" is when the three volumes of that scan are drawn, by software (swiftshader; a graphics card is faster). Every page is
opened in a browser of its own, pages in turn, medians. "processor" is the time that the page's main thread computed until
the answer: other work on the machine disturbs it less than the clock.

    python benchmarks/report.py RUN [RUN|PAGE.html ...] [--times 5]
"""

import argparse
import os
import shutil
import statistics
from dataclasses import astuple, dataclass
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright
from playwright.sync_api import TimeoutError as Waited

ARGUMENTS = [
    "--no-sandbox",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-background-networking",
]
LIMIT_SECONDS = 3.0
PATIENCE_MS, TRY_MS, N_TRIES = 120_000, 250, 400
LIVE = "() => document.querySelector('.scatter')?.closest('section').classList.contains('live')"
DOT = """() => {
  const canvas = document.querySelector(".scatter .canvas");
  canvas.scrollIntoView({ block: "center", behavior: "instant" });
  const { xaxis, yaxis } = canvas._fullLayout;
  const box = canvas.getBoundingClientRect();
  const { scan } = JSON.parse(canvas.parentNode.querySelector(":scope > script").textContent);
  const dots = canvas.data.filter((trace) => trace.hovertemplate).flatMap((trace) => (trace.customdata ?? []).map((row, at) => [
    box.x + xaxis._offset + xaxis.l2p(trace.x[at]), box.y + yaxis._offset + yaxis.l2p(trace.y[at]), scan[row]]));
  // Of the embedded scans the one that stands most alone, so that a click can only mean it.
  const shown = new Set([...document.querySelectorAll('#viewer select option')].map((option) => option.value));
  const apart = (dot, other) => Math.hypot(other[0] - dot[0], other[1] - dot[1]);
  const alone = (dot) => Math.min(...dots.filter((other) => other !== dot).map((other) => apart(dot, other)));
  return dots.filter((dot) => shown.has(dot[2])).reduce((best, dot) => (alone(dot) > alone(best) ? dot : best));
}"""
ANSWERED = "(scan) => document.querySelector('#viewer h3').textContent === scan && performance.now()"
DRAWN = "(scan) => document.querySelector('#viewer').dataset.shown === scan && performance.now()"
PAINTED = "() => performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? 0"


@dataclass(frozen=True)
class Opened:
    """Seconds from the start of the navigation, and processor seconds of the main thread until the answer."""

    read: float
    answers: float
    brain: float
    processor: float


def open_once(browser: Browser, page: Path) -> Opened:
    """Open a report as a reader would and click a dot as soon as there is one."""
    window = browser.new_page(viewport={"width": 1280, "height": 900})
    window.set_default_timeout(PATIENCE_MS)
    session = window.context.new_cdp_session(window)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    faults: list[str] = []
    window.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    window.on("pageerror", lambda error: faults.append(str(error)))
    window.goto(page.absolute().as_uri(), wait_until="commit")
    window.wait_for_function(LIVE)
    answers, scan = click(window)
    spent = {one["name"]: one["value"] for one in session.send("Performance.getMetrics")["metrics"]}
    brain = float(window.wait_for_function(DRAWN, arg=scan).json_value())
    read = float(window.evaluate(PAINTED))
    if faults:
        raise SystemExit(f"{page}: {faults[:3]}")
    return Opened(read / 1e3, answers / 1e3, brain / 1e3, spent["TaskDuration"])


def click(window: Page) -> tuple[float, str]:
    """Milliseconds at which a click was answered, and the scan it was on."""
    for _ in range(N_TRIES):
        x, y, scan = window.evaluate(DOT)
        window.mouse.move(x - 1, y)
        window.mouse.click(x, y)
        try:
            return float(window.wait_for_function(ANSWERED, arg=scan, timeout=TRY_MS).json_value()), scan
        except Waited:
            continue
    raise SystemExit("No click was answered.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pages", nargs="+", type=Path, help="run folders, or HTML files of reports")
    parser.add_argument("--times", type=int, default=5)
    asked = parser.parse_args()
    pages = [one / "report.html" if one.is_dir() else one for one in asked.pages]
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    found: dict[Path, list[Opened]] = {page: [] for page in pages}
    loads = []
    with sync_playwright() as playwright:
        for _ in range(asked.times):
            for page in pages:
                browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
                found[page].append(open_once(browser, page))
                browser.close()
                loads.append(os.getloadavg()[0])
    print(f"{os.cpu_count()} cores, load {min(loads):.1f} to {max(loads):.1f}, medians of {asked.times}, seconds")
    print(f"{'read':>7}{'answers':>9}{'brain':>8}{'processor':>11}{'MB':>7}  page")
    for page, times in found.items():
        read, answers, brain, spent = (statistics.median(one) for one in zip(*map(astuple, times), strict=True))
        size = page.stat().st_size / 1e6
        verdict = "" if answers <= LIMIT_SECONDS else f"  over {LIMIT_SECONDS:g} s"
        print(f"{read:7.2f}{answers:9.2f}{brain:8.2f}{spent:11.2f}{size:7.1f}  {page}{verdict}")


if __name__ == "__main__":
    main()
