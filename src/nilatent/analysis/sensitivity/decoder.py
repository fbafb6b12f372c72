"""What a decoder does: regional means of the images it draws, their slopes along every coordinate, and effects of directions."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from nilatent.analysis.latent_space import LatentSpace
from nilatent.atlas import RegionWeights

# Half of a central difference, in SD of a coordinate: as far as people lie from the mean. A decoder that bends has other slopes
# nearer to it, where hardly anybody is.
SLOPE_SD = 1.0


@dataclass(frozen=True, eq=False)
class Decoder:
    """A decoder around the mean of its training scans, in regions.

    Parameters
    ----------
    centre : ndarray
        (coordinate,) mean of the first training scan of each subject.
    covariance : ndarray
        (coordinate, coordinate) of these scans.
    mean : ndarray
        (region,) of the image drawn at the centre.
    slopes : ndarray
        (region, coordinate) change of a regional mean per unit of a coordinate, from one SD below the centre to one above.
    """

    centre: np.ndarray
    covariance: np.ndarray
    mean: np.ndarray
    slopes: np.ndarray

    def units(self, step: np.ndarray, *, reach: float) -> float:
        """How many steps make `reach` standard deviations of the training scans along the step."""
        length = float(np.linalg.norm(step))
        return float(reach * np.sqrt(step @ self.covariance @ step) / length**2)

    def among_people(self, readout: np.ndarray) -> np.ndarray:
        """(region,) what one SD of a score of the coordinates brings in people, in whom other coordinates go along with it.

        Parameters
        ----------
        readout : ndarray
            (coordinate,) weights of the score.
        """
        along = self.covariance @ readout
        return np.asarray(self.slopes @ along / np.sqrt(readout @ along))


def read_decoder(space: LatentSpace, rows: np.ndarray, weights: RegionWeights) -> Decoder:
    """A decoder in regions, by central differences along each coordinate.

    Parameters
    ----------
    space : LatentSpace
        The latent space.
    rows : ndarray
        Numbers of the scans that say where the centre is and how far a standard deviation goes.
    weights : RegionWeights
        The atlas inside the mask of the images.

    Returns
    -------
    Decoder
        Slopes along a coordinate in which the scans do not differ are 0.
    """
    z = space.coordinates[rows]
    centre, sd = z.mean(axis=0), z.std(axis=0, ddof=1)
    moves = SLOPE_SD * np.diag(sd)[sd > 0]
    slopes = np.zeros((len(weights.names), len(sd)))
    changes = list(changes_of(space, centre, moves, np.ones(len(moves))))
    slopes[:, sd > 0] = np.array([region_means(one, weights) for one in changes]).T / (SLOPE_SD * sd[sd > 0])
    mean = region_means(next(images_of(space, centre[None])), weights)
    return Decoder(centre, np.atleast_2d(np.cov(z.T)), mean, slopes)


def images_of(space: LatentSpace, coordinates: np.ndarray) -> Iterator[np.ndarray]:
    """(voxel,) images at places (n, coordinate), one after the other."""
    return chain.from_iterable(space.draw(coordinates))


def changes_of(
    space: LatentSpace, centre: np.ndarray, steps: Sequence[np.ndarray] | np.ndarray, units: Iterable[float]
) -> Iterator[np.ndarray]:
    """Change of the image per step: (image at +k steps - image at -k steps) / 2k around a place.

    Parameters
    ----------
    space : LatentSpace
        The latent space.
    centre : ndarray
        (coordinate,).
    steps : Sequence of ndarray
        (coordinate,) each.
    units : Iterable of float
        k of each step, above 0.

    Yields
    ------
    ndarray
        (voxel,) float64, of one step after the other.
    """
    k = np.asarray(list(units), dtype=np.float64)
    if len(k) == 0:
        return
    far = np.asarray(steps) * k[:, None]
    images = images_of(space, centre + np.stack([far, -far], axis=1).reshape(-1, len(centre)))
    for size in k:
        above = next(images).astype(np.float64)
        yield (above - next(images)) / (2 * size)


def region_means(image: np.ndarray, weights: RegionWeights) -> np.ndarray:
    """(region,) means of an image inside the mask."""
    return np.asarray(weights.matrix @ image.astype(np.float64) / weights.n_voxels)


def departure(effect: np.ndarray, linear: np.ndarray) -> float:
    """Largest difference between the effect of a direction and what the slopes say of it, as a share of the largest effect."""
    largest = float(np.abs(effect).max(initial=0))
    return float(np.abs(effect - linear).max(initial=0) / largest) if largest > 0 else float("nan")
