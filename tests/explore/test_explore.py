import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urlparse

import pytest
import typer
from tests.explore.made import Made
from typer.testing import CliRunner

from nilatent import explore as room
from nilatent.cli.explore import explore as command
from nilatent.errors import SettingError
from nilatent.explore import explore
from nilatent.explore import study as look
from nilatent.explore.server import Server
from nilatent.explore.study import NEEDED


@pytest.fixture
def opened(made: Made, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Serving ends at once, as by Ctrl+C; what a browser would have opened."""

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    addresses: list[str] = []
    monkeypatch.setattr(room, "open_explored", lambda _: made.study)
    monkeypatch.setattr(Server, "serve_forever", interrupted)

    def opens(uri: str) -> None:
        page = Path(unquote(urlparse(uri).path))
        # The token stands in the page alone, in a folder that is the user's own, and not in the browser's arguments.
        assert "token" not in uri
        assert page.parent.stat().st_mode & 0o077 == 0
        addresses.append(re.search(r"url=([^\"]+)", page.read_text())[1])

    monkeypatch.setattr(room.webbrowser, "open", opens)
    return addresses


@pytest.mark.parametrize("missing", ["study.toml", "model"])
def test_a_folder_that_is_no_run_or_has_no_model_is_refused_in_words(tmp_path: Path, missing: str) -> None:
    for name in set(NEEDED) - {missing}:
        (tmp_path / name).mkdir()
    with pytest.raises(
        SettingError, match=f"{'no run' if missing == 'study.toml' else 'without a trained model'}.*{missing}"
    ):
        explore(tmp_path)


def test_latents_of_another_model_are_not_drawn_by_this_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*NEEDED, "latents.provenance.json"):
        (tmp_path / name).mkdir() if name != "latents.provenance.json" else (tmp_path / name).touch()
    monkeypatch.setattr(look, "read_run", lambda _: SimpleNamespace(records={"model": {}}))
    with pytest.raises(SettingError, match="of another model or of other scans"):
        explore(tmp_path)


def test_the_address_is_printed_and_opened_unless_told_not_to(opened: list[str]) -> None:
    app = typer.Typer()
    app.command()(command)
    said = CliRunner().invoke(app, ["run"])
    assert said.exit_code == 0
    assert len(opened) == 1
    assert opened[0] in said.output
    assert said.output.endswith("Ended.\n")
    said = CliRunner().invoke(app, ["run", "--no-browser"])
    assert "http://127.0.0.1:" in said.output
    assert len(opened) == 1


def test_a_port_that_is_taken_is_refused_in_words(opened: Callable[[], None], server: Server) -> None:
    with pytest.raises(SettingError, match=f"Port {server.door.port} cannot be used"):
        explore(Path("run"), port=server.door.port, open_browser=False)
