"""The command line in a process that writes down what its Python does: a file of events that no code of ours should cause.

``python audited.py EVENTS COMMAND...`` is ``nilatent COMMAND...`` and appends a line per event to EVENTS: what it was, of
what, and the innermost file that is neither Python's own nor installed, with its line (``-`` when no code of ours is on
the stack).
"""

import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve()
# What runs code, reaches out of the process, or leaves files behind that would be run later.
WATCHED = (
    "code.__new__",
    "ftplib.connect",
    "http.client.connect",
    "marshal.load",
    "marshal.loads",
    "os.exec",
    "os.fork",
    "os.forkpty",
    "os.posix_spawn",
    "os.spawn",
    "os.system",
    "pickle.find_class",
    "shutil.unpack_archive",
    "socket.bind",
    "socket.connect",
    "socket.getaddrinfo",
    "socket.sendto",
    "subprocess.Popen",
    "urllib.Request",
    "webbrowser.open",
)
# Code from texts: every import executes a module, so that these count only where our own code asked for it directly.
DIRECT = ("compile", "exec")


def watch(log: Path) -> None:
    """Write down what happens from here on."""
    place = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    ours = str(Path(__file__).resolve().parents[2] / "src" / "nilatent")
    busy = False

    def note(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal busy
        if busy or (event not in WATCHED and event not in DIRECT):
            return
        busy = True
        try:
            frame, direct, found = sys._getframe(1), True, ""
            while frame is not None and not found:
                name = frame.f_code.co_filename
                if name.startswith("<frozen importlib") or "importlib" in name:
                    # An import: Python reads its own compiled files, which are not data.
                    return
                if name.startswith(ours):
                    found = f"{name.removeprefix(ours)}:{frame.f_lineno}"
                frame, direct = frame.f_back, direct and bool(found)
            if event in DIRECT and not direct:
                return
            told = " ".join(str(value)[:80].replace("\n", " ") for value in arguments)
            os.write(place, f"{event}\t{told}\t{found or '-'}\n".encode())
        finally:
            busy = False

    sys.addaudithook(note)


if __name__ == "__main__":
    watch(Path(sys.argv[1]))
    sys.argv = ["nilatent", *sys.argv[2:]]
    from nilatent.cli import main

    main()
