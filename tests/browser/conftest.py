"""Headless Chromium for pages that must be silent and stay at home: an error or a request elsewhere fails the test."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, WebError, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ARGUMENTS = [
    "--no-sandbox",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
AT_HOME = {"file", "data", "blob", "about"}
LOOPBACK = {"127.0.0.1", "localhost", "::1"}

OpenPage = Callable[..., Page]


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """One browser for all tests of a worker."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium: Browser) -> Iterator[OpenPage]:
    """Open a file or an address in a window of its own; what the page says or asks for besides fails the test at its end.

    A page from a loopback address may ask its own origin, and no other.
    """
    faults: list[str] = []
    contexts = []

    def opened(target: Path | str, *, width: int = 1280, height: int = 900, dark: bool = False) -> Page:
        address = target.absolute().as_uri() if isinstance(target, Path) else target
        parts = urlsplit(address)
        home = f"{parts.scheme}://{parts.netloc}" if parts.hostname in LOOPBACK else ""
        context = chromium.new_context(
            viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light"
        )
        contexts.append(context)

        def heard(message: ConsoleMessage) -> None:
            if message.type == "error":
                faults.append(f"console: {message.text} ({message.location})")

        def thrown(error: WebError) -> None:
            faults.append(f"not caught: {error.error}")

        def asked(request: Request) -> None:
            wanted = urlsplit(request.url)
            if wanted.scheme not in AT_HOME and f"{wanted.scheme}://{wanted.netloc}" != home:
                faults.append(f"request: {request.url[:200]}")

        context.on("console", heard)
        context.on("weberror", thrown)
        context.on("request", asked)
        page = context.new_page()
        page.on("websocket", lambda socket: faults.append(f"request: {socket.url}"))
        page.goto(address)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert faults == []
