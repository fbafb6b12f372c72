"""What an analysis of a run folder is: how its finding is made, and what it depends on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nilatent.finding import Finding


@dataclass(frozen=True, eq=False)
class Asked:
    """One analysis.

    Parameters
    ----------
    analyse : Callable
        Gives the finding.
    settings : object
        What it depends on beside the pools.
    needs : Sequence[str]
        Stages it rests on.
    beside : Callable
        What else it leaves in its folder, from the finding and the folder; gives the files.
    """

    analyse: Callable[[], Finding]
    settings: object
    needs: Sequence[str]
    beside: Callable[[Finding, Path], list[Path]] = lambda _finding, _folder: []
