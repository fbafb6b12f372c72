"""The latent space of one encoder: where scans lie in it, which of them it may be judged on, and how a place is drawn."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from nilatent.errors import LatentsError
from nilatent.latents import Frame

Draw = Callable[[np.ndarray, pd.DataFrame | None], Iterator[np.ndarray]]


@dataclass(frozen=True, eq=False)
class LatentSpace:
    """One encoder, its decoder, and all scans of a cohort in its latent space.

    Parameters
    ----------
    scans : Index
        (scan,) ``scan_id``, in the order of the other arrays.
    subjects : ndarray
        (scan,) str.
    values : ndarray
        (scan, value) posterior means, as the encoder gives them; a latent on a grid is flat.
    frame : Frame
        Coordinates in which latents are described and moved; fitted on the training scans.
    variance : ndarray
        (scan, coordinate) posterior variance along each coordinate; zero for a model without one.
    names : tuple[str, ...]
        Of the coordinates: ``z000``, ...
    training : ndarray
        (scan,) bool: the scan moved the weights. What learns from latents learns from these.
    unseen : ndarray
        (scan,) bool: held out, and neither it nor its subject had a say in the encoder. What is judged is judged on these.
    has_prior : bool
        Whether the model was trained towards a standard normal prior of its latents.
    told : tuple[str, ...]
        Columns that the decoder is told of every scan; none for most models.
    draw_latents : Callable
        Latents (n, value) and, where the decoder is told something, a table of n rows with the columns `told` (None: as
        for the average training scan) to batches of images inside the mask, (batch, voxel) float32, in order.
    """

    scans: pd.Index
    subjects: np.ndarray
    values: np.ndarray
    frame: Frame
    variance: np.ndarray
    names: tuple[str, ...]
    training: np.ndarray
    unseen: np.ndarray
    has_prior: bool
    told: tuple[str, ...]
    draw_latents: Draw

    def __post_init__(self) -> None:
        """Refuse parts that do not fit together."""
        n, wide = self.values.shape[0], len(self.names)
        lengths = {len(self.scans), len(self.subjects), len(self.variance), len(self.training), len(self.unseen), n}
        if lengths != {n} or self.variance.shape[1] != wide or self.frame.axes.shape != (wide, self.values.shape[1]):
            raise LatentsError(
                f"The latent space has rows {sorted(lengths)}, {wide} names and axes {self.frame.axes.shape}: one row per scan, "
                "and one name and one axis per coordinate."
            )
        if set(self.subjects[self.training]) & set(self.subjects[self.unseen]):
            raise LatentsError(
                "A subject of this latent space is both in training and unseen. Encode the cohort again."
            )

    @property
    def coordinates(self) -> np.ndarray:
        """(scan, coordinate) float64 of every scan."""
        return self.frame.coordinates(self.values.astype(np.float64))

    def draw(self, coordinates: np.ndarray, told: pd.DataFrame | None = None) -> Iterator[np.ndarray]:
        """Images at places (n, coordinate) of the space, in batches (batch, voxel) inside the mask."""
        return self.draw_latents(self.frame.latents(coordinates), told)

    def moved(self, rows: np.ndarray, steps: np.ndarray, told: pd.DataFrame | None = None) -> Iterator[np.ndarray]:
        """Images of scans that were moved by steps (n, coordinate); what no coordinate describes stays their own.

        Parameters
        ----------
        rows : ndarray
            (n,) numbers of the scans.
        steps : ndarray
            (n, coordinate).
        told : DataFrame, optional
            n rows.
        """
        return self.draw_latents(self.values[rows] + steps @ self.frame.axes, told)
