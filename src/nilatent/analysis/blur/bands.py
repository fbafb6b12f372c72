"""Bands of detail of volumes inside a mask, and what preparation lets through of each.

Every band is the difference of two smoothings over the voxels of the mask alone (normalised convolution), so that neither
the border of the mask nor what lies beyond it counts as detail; the bands of an image add up to it. A Gaussian smooths what
the one before missed, and so again: one pass alone would let much of the coarse picture, which has most of the energy, count
as fine detail. The size of a detail is half a wavelength.

References
----------
Burt & Adelson 1983, The Laplacian pyramid as a compact image code. doi:10.1109/TCOM.1983.1095851
Knutsson & Westin 1993, Normalized and differential convolution. doi:10.1109/CVPR.1993.341081
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from nilatent.analysis.separable import along_axes
from nilatent.errors import SettingError

EDGES_VOXELS = (2.0, 4.0, 8.0)
"""Edges between bands: half the wavelength that a smoothing halves, in voxels; at 4 mm these are 8, 16 and 32 mm."""
N_PASSES = 3
SD_OF_EDGE = 2.0 * np.sqrt(-np.log(1.0 - 0.5 ** (1.0 / N_PASSES)) / 2.0) / np.pi
"""SD of the Gaussian for an edge of 1: after all passes half of the amplitude of that wave is left."""
SD_OF_FWHM = 1.0 / np.sqrt(8.0 * np.log(2.0))
# Frequencies per axis on which what preparation lets through is added up.
N_FREQUENCIES = 48


@dataclass(frozen=True, eq=False)
class Bands:
    """How images inside a mask are taken apart into bands of detail, from fine to coarse.

    Parameters
    ----------
    mask : ndarray
        (x, y, z) bool.
    spacing_mm : float
        Voxel size.

    Raises
    ------
    SettingError
        When the mask is empty.
    """

    mask: npt.NDArray[np.bool_]
    spacing_mm: float

    def __post_init__(self) -> None:
        """Refuse a mask without a voxel."""
        if self.mask.ndim != 3 or not self.mask.any():
            raise SettingError(
                "Bands of detail need an (x, y, z) mask with at least one voxel. Pack the volumes again."
            )

    @property
    def names(self) -> tuple[str, ...]:
        """What each band holds: sizes of details, half a wavelength, in mm."""
        edges = [f"{edge * self.spacing_mm:g}" for edge in EDGES_VOXELS]
        between = [f"{fine} to {coarse} mm" for fine, coarse in pairwise(edges)]
        return (f"finer than {edges[0]} mm", *between, f"coarser than {edges[-1]} mm")

    @cached_property
    def _smoothings(self) -> list[tuple[list[npt.NDArray[np.float32]], npt.NDArray[np.float32]]]:
        """Of every edge one matrix per axis, and the (voxel,) weight of the mask around each voxel."""
        found = []
        for edge in EDGES_VOXELS:
            matrices = [_gaussian(side, edge * SD_OF_EDGE) for side in self.mask.shape]
            found.append((matrices, along_axes(self.mask[None].astype(np.float32), matrices)[0, self.mask]))
        return found

    def __call__(self, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """Bands (image, band, voxel) of images inside the mask (image, voxel)."""
        volumes = np.zeros((len(images), *self.mask.shape), dtype=np.float32)
        finer = [np.zeros_like(images)]
        for matrices, weight in self._smoothings:
            missed = np.asarray(images, dtype=np.float32)
            for _ in range(N_PASSES):
                volumes[:, self.mask] = missed
                missed = missed - along_axes(volumes, matrices)[:, self.mask] / weight
            finer.append(missed)
        levels = np.stack([*finer, images], axis=1).astype(np.float64)
        return np.asarray(levels[:, 1:] - levels[:, :-1])

    def passed(self, fwhm_mm: float) -> npt.NDArray[np.float64]:
        """Share of energy that a Gaussian smoothing leaves of each band of a picture with as much of every wavelength.

        Parameters
        ----------
        fwhm_mm : float
            Width at half maximum of the smoothing, at least 0.

        Returns
        -------
        ndarray
            (band,) in [0, 1]; 1 without smoothing. Away from the border of the mask, and without what the averaging over
            voxels itself takes away.
        """
        axis = np.fft.fftfreq(N_FREQUENCIES) / self.spacing_mm
        square = axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + axis[None, None, :] ** 2
        edges = [SD_OF_EDGE * edge * self.spacing_mm for edge in EDGES_VOXELS]
        finer = [(1.0 - _transfer(square, sd_mm)) ** N_PASSES for sd_mm in edges]
        left = np.square(_transfer(square, SD_OF_FWHM * fwhm_mm))
        powers = [np.square(b - a) for a, b in pairwise([np.zeros_like(square), *finer, np.ones_like(square)])]
        return np.array([float((power * left).sum() / power.sum()) for power in powers])


def _gaussian(side: int, sd: float) -> npt.NDArray[np.float32]:
    """(side, side) smoothing along one axis; zero lies beyond the border."""
    smoothed = ndimage.gaussian_filter1d(np.eye(side), sd, axis=0, mode="constant", truncate=4.0)
    return np.asarray(smoothed, dtype=np.float32)


def _transfer(square: npt.NDArray[np.float64], sd_mm: float) -> npt.NDArray[np.float64]:
    """What a Gaussian leaves of the amplitude of a wave, by its squared frequency in 1/mm."""
    return np.asarray(np.exp(-2.0 * (np.pi * sd_mm) ** 2 * square))
