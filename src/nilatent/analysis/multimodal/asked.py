"""What is asked of several kinds of measurement: which is told from which, and by which scans."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

Array = npt.NDArray[np.float64]
Rows = npt.NDArray[np.bool_]
Kind = Literal["volumes", "number", "category"]
JOINT, SHARED = "joint model", "joint model, shared latents only"
ALL, SOME = "all of these", "any of these"
# Up to so many others, every set of them is asked; of more only each by itself and all together.
MOST_OTHERS = 3


@dataclass(frozen=True, eq=False)
class Fold:
    """One joint model and the scans it has not seen.

    Parameters
    ----------
    parts : DataFrame
        Index ``scan_id``, the same for all folds; columns ``subject_id`` and ``part``: ``train``, ``validation`` or ``test``.
    result : Mapping
        ``result.json`` of the model.
    n_latent : Mapping[str, int]
        Of each kind of volumes: its latents, shared and private.
    """

    parts: pd.DataFrame
    result: Mapping[str, Any]
    n_latent: Mapping[str, int]

    def rows(self, *names: str) -> Rows:
        """(scan,) whether it is in one of these parts."""
        return self.parts["part"].isin(names).to_numpy()


@dataclass(frozen=True, eq=False)
class Told:
    """What joint models said of one kind of measurement of scans they have not seen, looking at some kinds only.

    Parameters
    ----------
    target : str
        The kind that is told.
    sources : tuple[str, ...]
        What was looked at; the target alone where it is drawn from itself.
    way : str
        :data:`JOINT`, or :data:`SHARED` where the target is drawn from itself without its private latents.
    said : ndarray or DataFrame
        Of volumes (scan,) squared errors, summed over voxels. Of a table what is expected of each scan: a column per number,
        and per category a column ``name=level`` with the probability of each level. NaN where nothing was told.
    """

    target: str
    sources: tuple[str, ...]
    way: str
    said: Array | pd.DataFrame


@dataclass(frozen=True)
class Question:
    """One target, told from some kinds of measurement.

    Parameters
    ----------
    modality, column : str
        What is told; a column where the modality is a table.
    kind : str
        ``"volumes"``, ``"number"`` or ``"category"``.
    sources : tuple[str, ...]
        What it is told from; the modality alone where it is drawn from itself.
    given : str
        :data:`ALL`: of scans that have all sources; :data:`SOME`: of those that have any of them.
    """

    modality: str
    column: str
    kind: Kind
    sources: tuple[str, ...]
    given: str

    @property
    def target(self) -> str:
        """Its name in tables and figures."""
        return f"{self.modality}: {self.column}" if self.column else self.modality

    @property
    def itself(self) -> bool:
        """Whether it is drawn from itself."""
        return self.sources == (self.modality,)


def source_sets(names: Sequence[str], target: str) -> list[tuple[str, ...]]:
    """Sets of the other kinds that are asked, the largest first.

    Examples
    --------
    >>> source_sets(["gm", "wm", "scores"], "wm")
    [('gm', 'scores'), ('gm',), ('scores',)]
    """
    others = [name for name in names if name != target]
    sizes = range(len(others), 0, -1) if len(others) <= MOST_OTHERS else (len(others), 1)
    return [one for size in sizes for one in combinations(others, size)]


def present(one: Array | pd.DataFrame) -> Rows:
    """(scan,) whether there is anything of a kind."""
    there = one.notna().to_numpy() if isinstance(one, pd.DataFrame) else np.isfinite(one)
    return np.asarray(there.any(axis=1))


def questions(kinds: Mapping[str, Array | pd.DataFrame], folds: Sequence[Fold]) -> list[Question]:
    """Every question, target by target: from all others, from fewer, and of volumes from themselves.

    Parameters
    ----------
    kinds : Mapping[str, ndarray or DataFrame]
        In the order of the model.
    folds : Sequence[Fold]
        Whose test scans are told; where some of these lack a source, what there is of the sources is asked, too.
    """
    asked: list[Question] = []
    test = np.any([fold.rows("test") for fold in folds], axis=0)
    for modality, one in kinds.items():
        columns: list[tuple[str, Kind]] = [("", "volumes")]
        if isinstance(one, pd.DataFrame):
            numeric = pd.api.types.is_numeric_dtype
            columns = [(str(name), "number" if numeric(one[name]) else "category") for name in one]
        sets = source_sets(list(kinds), modality)
        for column, kind in columns:
            own = one[column].notna().to_numpy() if isinstance(one, pd.DataFrame) else present(one)
            there = test & own
            has = np.stack([present(kinds[name]) for name in sets[0]])
            asked += [Question(modality, column, kind, sources, ALL) for sources in sets]
            if (there & has.any(axis=0) & ~has.all(axis=0)).any():
                asked.append(Question(modality, column, kind, sets[0], SOME))
            if kind == "volumes":
                asked.append(Question(modality, "", kind, (modality,), ALL))
    return asked
