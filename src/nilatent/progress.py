"""Progress of long work: a bar with an estimate on a terminal, a line a minute elsewhere."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Item = TypeVar("Item")

SECONDS_BETWEEN_LINES = 60.0
# The speed is taken over this long: a scan may take minutes, and rich's own half minute would often hold none.
SECONDS_OF_SPEED = 1800.0


def track(
    items: Iterable[Item], *, total: int, label: str, note: Callable[[Item], str] | None = None
) -> Iterator[Item]:
    """Yield the items and show how far the work is.

    Parameters
    ----------
    items : Iterable
        What is worked through; may be a generator.
    total : int
        Number of items, for the estimate.
    label : str
        What is being done, such as ``"prepare"``.
    note : Callable, optional
        What to say of an item at once, on a line of its own; empty for nothing.

    Yields
    ------
    Item
        Each item, unchanged and in order.

    Examples
    --------
    >>> list(track([1, 2], total=2, label="count"))
    [1, 2]
    """
    if not sys.stderr.isatty():
        yield from _lines(_noted(items, note, _to_stderr), total=total, label=label)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("about"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=False, speed_estimate_period=SECONDS_OF_SPEED) as bar:
        task = bar.add_task(label, total=total)
        for item in _noted(items, note, lambda text: console.print(text, markup=False, highlight=False)):
            yield item
            bar.advance(task)


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _noted(items: Iterable[Item], note: Callable[[Item], str] | None, say: Callable[[str], None]) -> Iterator[Item]:
    for item in items:
        text = "" if note is None else " ".join(note(item).split())
        if text:
            say(text)
        yield item


def _lines(items: Iterable[Item], *, total: int, label: str) -> Iterator[Item]:
    start = last = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES:
            left = (now - start) / done * max(total - done, 0)
            _to_stderr(f"{label}: {done} of {total}, about {_lasting(left)} left")
            last = now


def follow(
    outcomes: Iterable[tuple[Item, BaseException | None, float]],
    *,
    total: int,
    kept: int,
    label: str,
    reason: Callable[[Item, BaseException], str],
) -> list[tuple[Item, BaseException]]:
    """The jobs that failed, after all have been worked through in sight of the user.

    Parameters
    ----------
    outcomes : Iterable
        Job, why it failed (or None), and its processor seconds, as the jobs end.
    total : int
        Number of jobs.
    kept : int
        Jobs that need not be done because they were before.
    label : str
        What is being done.
    reason : Callable
        Says of a failed job what to tell the user, who reads it at once.

    Returns
    -------
    list[tuple[Item, BaseException]]
        Failed jobs in the order they ended. A line says at the end how many were done, kept and failed, and the time.
    """

    def note(outcome: tuple[Item, BaseException | None, float]) -> str:
        job, error, _ = outcome
        return "" if error is None else f"failed: {reason(job, error)}"

    failed, cpu_s, start = [], 0.0, time.monotonic()
    for job, error, seconds in track(outcomes, total=total, label=label, note=note):
        cpu_s += seconds
        if error is not None:
            failed.append((job, error))
    done = total - len(failed)
    _to_stderr(
        f"{label}: {done} done, {kept} were done already, {len(failed)} failed; {_lasting(time.monotonic() - start)}"
        + (f", {cpu_s / done:.1f} processor seconds each" if done else "")
    )
    return failed


def _lasting(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
