"""The explorer: a page on this machine that shows any scan of a run, what its model makes of it, and what its latents do."""

import sys
import tempfile
import webbrowser
from collections.abc import Callable
from pathlib import Path

from nilatent.errors import SettingError
from nilatent.explore.answers import Answers
from nilatent.explore.drawing import Drawer
from nilatent.explore.server import Server
from nilatent.explore.study import open_explored

__all__ = ["explore"]


def explore(run: Path, *, port: int = 0, open_browser: bool = True, say: Callable[[str], None] = print) -> None:
    """Serve a run to a browser on this machine until it is interrupted (Ctrl+C); nothing is written into the run.

    Parameters
    ----------
    run : Path
        Folder that `nilatent run` filled.
    port : int
        On the loopback; 0 takes a free one.
    open_browser : bool
        Whether the page is opened in the browser of this desktop.
    say : Callable
        Receives the lines for the terminal: the address, which holds the token, and how to end.

    Raises
    ------
    SettingError
        When the folder is no run with a model, or the port is taken.
    """
    study = open_explored(Path(run))
    drawer = Drawer(study)
    try:
        server = Server(Answers(study, drawer), port=port)
    except OSError as error:
        raise SettingError(
            f"Port {port} cannot be used ({error.strerror}). Leave --port out, and a free one is taken."
        ) from error
    say(f"{len(study.rows)} scans: {server.door.address}")
    say("The address is for you alone: it holds the token. End with Ctrl+C.")
    # In a folder that nobody else can read: as an argument of the browser the token would be told to every user of the machine.
    private = tempfile.TemporaryDirectory(prefix="nilatent-")
    if open_browser:
        webbrowser.open(_way(Path(private.name), server.door.address))
    try:
        server.serve_forever(poll_interval=0.2)
    except KeyboardInterrupt:
        say("Ended.")
    finally:
        server.server_close()
        drawer.close()
        private.cleanup()
        sys.stdout.flush()


def _way(folder: Path, address: str) -> str:
    """A page on disk that leads to the address; what the browser is told to open."""
    page = folder / "explorer.html"
    page.write_text(
        '<!doctype html><meta charset="utf-8"><title>nilatent</title><meta name="referrer" content="no-referrer">'
        f'<meta http-equiv="refresh" content="0;url={address}">',
        encoding="utf-8",
    )
    return page.as_uri()
