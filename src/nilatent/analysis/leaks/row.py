"""One row of the leak audit."""

from collections.abc import Iterable
from dataclasses import dataclass

FOUND, CLEAN, NOT_CHECKED = "found", "clean", "not checked"
N_EXAMPLES = 3


@dataclass(frozen=True)
class Check:
    """What one check says.

    Parameters
    ----------
    check : str
        Its name.
    verdict : str
        :data:`FOUND`, :data:`CLEAN` or :data:`NOT_CHECKED`.
    what : str
        What was found, or why it was not checked; a sentence.
    n : int
        How many: pairs, subjects, scans or columns, as the sentence says.
    examples : str
        The worst of them.
    advice : str
        What to do; empty when clean.
    elsewhere : str
        Where the same leak is refused; empty when only the audit sees it.
    """

    check: str
    verdict: str
    what: str
    n: int = 0
    examples: str = ""
    advice: str = ""
    elsewhere: str = ""


def examples(names: Iterable[str]) -> str:
    """The first names in one text."""
    listed = list(names)
    more = f" and {len(listed) - N_EXAMPLES} more" if len(listed) > N_EXAMPLES else ""
    return "; ".join(listed[:N_EXAMPLES]) + more
