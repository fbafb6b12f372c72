"""Progress of long work: a bar with an estimate on a terminal, a line a minute elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Item = TypeVar("Item")

SECONDS_BETWEEN_LINES = 60.0


def track(items: Iterable[Item], *, total: int, label: str) -> Iterator[Item]:
    """Yield the items and show how far the work is.

    Parameters
    ----------
    items : Iterable
        What is worked through; may be a generator.
    total : int
        Number of items, for the estimate.
    label : str
        What is being done, such as ``"prepare"``.

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
        yield from _lines(items, total=total, label=label)
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
    with Progress(*columns, console=Console(stderr=True), transient=False) as bar:
        task = bar.add_task(label, total=total)
        for item in items:
            yield item
            bar.advance(task)


def _lines(items: Iterable[Item], *, total: int, label: str) -> Iterator[Item]:
    start = last = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES:
            left = (now - start) / done * max(total - done, 0)
            print(f"{label}: {done} of {total}, about {left / 60:.0f} min left", file=sys.stderr, flush=True)
            last = now
