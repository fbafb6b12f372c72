"""The page in a real browser, where there is one; every message on its console is a failure."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from nilatent import report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--virtual-time-budget=5000",
    "--enable-logging=stderr",
    "--dump-dom",
)

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")]


def opened(path: Path, profile: Path) -> tuple[str, list[str]]:
    """The document after its scripts, and what they said on the console."""
    command = [str(CHROMIUM), *OPTIONS, f"--user-data-dir={profile}", path.as_uri()]
    done = subprocess.run(command, capture_output=True, timeout=120, check=True, env=os.environ)
    said = [line for line in done.stderr.decode(errors="replace").splitlines() if "CONSOLE" in line]
    return done.stdout.decode(), said


def test_page_comes_alive_without_a_word(make_run: Callable[..., Path], hostile: str, tmp_path: Path) -> None:
    document, said = opened(report.build(make_run(hostile)), tmp_path / "profile")
    assert said == []
    assert 'class="main-svg"' in document
    assert document.count('<th scope="col"><button') > 5
    assert "sendChartToCloud" not in document[document.rindex("</script>") :]
    assert 'data-title="Share chart..."' not in document
    assert 'id="scatter-projections" hidden' not in document
    assert "<img src=x" not in document.split("<script>")[0]
