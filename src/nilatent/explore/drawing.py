"""Volumes that an explorer shows: scans, what the model makes of them, moved latents, and means of groups."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt

from nilatent.explore.study import Explored

__all__ = ["KINDS", "Drawer", "Moved", "scan_volume"]

Kind = Literal["scan", "reconstruction", "error"]
KINDS: tuple[Kind, ...] = ("scan", "reconstruction", "error")
BATCH = 16
STARTS_KEPT = 8
T = TypeVar("T")
Volume = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Moved:
    """An image at moved latents.

    Parameters
    ----------
    image, start : ndarray
        (x, y, z) what is drawn, and what was drawn before the move.
    beyond : tuple[int, ...]
        Numbers of the moved sliders along which the place lies farther out than any training scan.
    """

    image: Volume
    start: Volume
    beyond: tuple[int, ...]


def scan_volume(study: Explored, row: int) -> Volume:
    """(x, y, z) the prepared map of a scan, whole, as the cache of volumes holds it (float16)."""
    return np.asarray(study.pools.volumes.data[int(study.at[row])], dtype=np.float32)


class Drawer:
    """The decoder of a run, one request at a time.

    Parameters
    ----------
    study : Explored
        The run.
    """

    def __init__(self, study: Explored) -> None:
        self.study = study
        # One thread of its own, not a lock: each thread that calls torch would bring up threads of its own.
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="decoder")
        self._start = lru_cache(STARTS_KEPT)(self._drawn_start)

    def close(self) -> None:
        """Let the decoder finish what it is at, and nothing more."""
        self._worker.shutdown(cancel_futures=True)

    def reconstruction(self, row: int) -> Volume:
        """(x, y, z) what the model makes of a scan, zero outside the mask."""
        return self._alone(lambda: self._start(row))

    def error(self, row: int) -> Volume:
        """(x, y, z) reconstruction minus scan, zero outside the mask."""
        return np.where(self.study.pools.volumes.mask, self.reconstruction(row) - scan_volume(self.study, row), 0)

    def moved(self, row: int | None, moves: Mapping[int, float]) -> Moved:
        """An image at the latents of a scan, or at the mean of the training scans, moved along sliders.

        Parameters
        ----------
        row : int, optional
            Number of the scan; None for the mean of the training scans.
        moves : Mapping[int, float]
            Number of a slider to units of its direction, finite; moves along several add up.
        """
        study = self.study
        step = np.zeros(len(study.space.names))
        for number, units in moves.items():
            step += units * study.slides[number].direction.step
        start = study.usual if row is None else study.coordinates[row]
        beyond = tuple(number for number, units in moves.items() if units and study.beyond(start + step, number))
        return self._alone(lambda: Moved(self._drawn(row, step), self._start(row), beyond))

    def mean(self, rows: Sequence[int], of: Literal["scans", "reconstructions"]) -> Volume:
        """(x, y, z) mean of scans, or of what the model makes of them; every person counts once, however many scans."""
        study, subjects = self.study, self.study.space.subjects[list(rows)]
        _, which, counts = np.unique(subjects, return_inverse=True, return_counts=True)
        weights = 1.0 / (len(counts) * counts[which])
        total = np.zeros(study.pools.volumes.grid.shape)
        for begin in range(0, len(rows), BATCH):
            some = list(rows[begin : begin + BATCH])
            images = (
                [scan_volume(study, row) for row in some] if of == "scans" else self._alone(partial(self._many, some))
            )
            for weight, image in zip(weights[begin : begin + BATCH], images, strict=True):
                total += weight * image
        return total.astype(np.float32)

    def _alone(self, act: Callable[[], T]) -> T:
        return self._worker.submit(act).result()

    def _drawn_start(self, row: int | None) -> Volume:
        return self._drawn(row, np.zeros(len(self.study.space.names)))

    def _drawn(self, row: int | None, step: np.ndarray) -> Volume:
        space = self.study.space
        if row is None:
            drawn = space.draw((self.study.usual + step)[None])
        else:
            told = self.study.pools.prepared.scans.loc[space.scans[[row]], list(space.told)] if space.told else None
            drawn = space.moved(np.array([row]), step[None], told)
        return self._volume(next(iter(drawn))[0])

    def _many(self, rows: Sequence[int]) -> list[Volume]:
        space = self.study.space
        told = self.study.pools.prepared.scans.loc[space.scans[list(rows)], list(space.told)] if space.told else None
        steps = np.zeros((len(rows), len(space.names)))
        return [self._volume(one) for batch in space.moved(np.asarray(rows), steps, told) for one in batch]

    def _volume(self, inside: npt.NDArray[np.float32]) -> Volume:
        volumes = self.study.pools.volumes
        whole = np.zeros(volumes.grid.shape, dtype=np.float32)
        whole[volumes.mask] = inside
        return whole
