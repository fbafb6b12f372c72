"""A process that imports the toolkit once and forks a child per order: a command that can be killed at any moment.

Orders come as JSON, one a line, on the standard input; an answer to each goes to the standard output in the same form.
"""

import json
import os
import resource
import select
import signal
import sys
import time
import traceback
from typing import Any


def main() -> None:
    """Answer orders until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for order in sys.stdin:
        answers.write(json.dumps(obey(json.loads(order))) + "\n")
        answers.flush()


def obey(order: dict[str, Any]) -> dict[str, Any]:
    """Run a command line in a child: its exit status, what it said and when, in seconds from the fork."""
    if order.get("here"):
        return {"status": status_of(order["arguments"]), "said": [], "seconds": 0.0, "too_late": False}
    read_end, write_end = os.pipe()
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        live(order, read_end, write_end)
    os.close(write_end)
    said, late = listen(read_end, child, order, began)
    os.close(read_end)
    _, status = os.waitpid(child, 0)
    return {
        "status": os.waitstatus_to_exitcode(status),
        "said": said,
        "seconds": time.monotonic() - began,
        "too_late": late,
    }


def live(order: dict[str, Any], read_end: int, write_end: int) -> None:
    """What the child does; it never returns."""
    os.setsid()
    os.close(read_end)
    os.dup2(write_end, 1)
    os.dup2(write_end, 2)
    if "file_bytes" in order:
        # The signal would kill; without it a write that is too large fails as one on a full disk does.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["file_bytes"], order["file_bytes"]))
    if "clock_s" in order:
        turn_clock(order["clock_s"])
    status = status_of(order["arguments"])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def turn_clock(jump_s: float) -> None:
    """From now on the wall clock jumps by so much, back and forth, each time it is asked."""
    real, asked = time.time, iter(range(10**9))
    time.time = lambda: real() + jump_s * (next(asked) % 2)


def status_of(arguments: list[str]) -> int:
    """Exit status of the command line."""
    from nilatent.cli import main as command_line

    sys.argv = ["nilatent", *arguments]
    try:
        command_line()
    except SystemExit as end:
        return int(end.code or 0)
    except Exception:  # noqa: BLE001 (what a command lets through is what is looked for)
        traceback.print_exc()
        return 70
    return 0


def listen(read_end: int, child: int, order: dict[str, Any], began: float) -> tuple[list[tuple[float, str]], bool]:
    """Read what the child says; kill its whole group when its time has come. True when the kill came too late."""
    said: list[tuple[float, str]] = []
    rest, kill_at, killed = b"", None, False
    if "kill_after_s" in order and not order["from_line"]:
        kill_at = began + order["kill_after_s"]
    while True:
        wait = None if kill_at is None or killed else max(kill_at - time.monotonic(), 0)
        if not select.select([read_end], [], [], wait)[0]:
            os.killpg(child, signal.SIGKILL)
            killed = True
            continue
        found = os.read(read_end, 65536)
        if not found:
            return said, "kill_after_s" in order and not killed
        now = time.monotonic()
        *lines, rest = (rest + found).split(b"\n")
        said += [(now - began, line.decode(errors="replace")) for line in lines]
        if kill_at is None and "kill_after_s" in order:
            starts = [line for line in lines if line.decode(errors="replace").startswith(order["from_line"])]
            kill_at = now + order["kill_after_s"] if starts else None


if __name__ == "__main__":
    import importlib

    # All that a command would load late: a child is to be killed in its work, not in its imports.
    for module in sys.argv[1:]:
        importlib.import_module(module)
    main()
