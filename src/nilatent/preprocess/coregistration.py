"""Coregistration: where another image of a head lies on the brain of its T1 scan, and whether that can be believed."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from nilatent.preprocess import registration
from nilatent.preprocess.registration import Floats, Samples
from nilatent.preprocess.rigid import orthogonal

SEARCH_MM, LEVELS_MM = 6.0, (4.0, 2.0)
N_REFINED = 5
# The centre of a head lies below that of its brain, by this much when the neck is in view.
UP_MM = (0.0, 25.0)
# Voxels brighter than this share of the brightest ones show the head; air and its noise are darker.
HEAD_SHARE = 0.15
SHIFT_MM = 8.0


@dataclass(frozen=True, eq=False)
class Coregistration:
    """A rigid movement and what speaks for it.

    Parameters
    ----------
    to_brain : ndarray
        (4, 4) RAS millimetres of the image to RAS millimetres of the brain.
    gain : float
        See :func:`information_gain`.
    covered : float
        Share of the brain of which the image has values, in [0, 1].
    """

    to_brain: Floats
    gain: float
    covered: float


def coregister(
    moving: npt.NDArray[np.float32],
    affine: Floats,
    brain: npt.NDArray[np.float32],
    brain_affine: Floats,
) -> Coregistration:
    """The rigid movement from another image of a head, whole or stripped and of any contrast, to its brain.

    Parameters
    ----------
    moving : ndarray
        (x, y, z) image; values below 0 count as 0.
    affine : ndarray
        (4, 4) of the image.
    brain : ndarray
        (x, y, z) T1 intensities, 0 outside the brain.
    brain_affine : ndarray
        (4, 4) of the brain.

    Returns
    -------
    Coregistration
        The best fit and its measures; whether it is good enough is for the caller to say.

    Notes
    -----
    Mutual information is taken at points inside the brain only: the skull of one image has no counterpart in the other.
    For a rigid movement that suffices; there is no size to be held by the outline. The search starts from where the headers
    put both images, and from the centres together, turned by up to 30 degrees about each axis.

    References
    ----------
    Maes et al. (1997). https://doi.org/10.1109/42.563664
    """
    centre = registration.brain_centre(brain, brain_affine)
    cost = _cost(moving, affine, brain, brain_affine, SEARCH_MM)
    head = np.where(moving > HEAD_SHARE * np.percentile(moving, 99), moving, 0)
    of_head = registration.brain_centre(head, affine)
    turned = [
        start
        for up_mm in UP_MM
        for start in registration.turned_starts(registration.start_turns(), of_head + np.array([0, 0, up_mm]), centre)
    ]
    scores = [cost(_inverse(start))[0] for start in turned]
    starts = [np.eye(4), *(turned[row] for row in np.argsort(scores, kind="stable")[: N_REFINED - 1])]
    fits = [
        registration.fit(cost, start, centre=centre, n_parameters=6, slope=registration.COARSE_SLOPE)
        for start in starts
    ]
    found = min(fits, key=lambda fitted: cost(_inverse(fitted))[0])
    for spacing_mm in LEVELS_MM:
        cost = _cost(moving, affine, brain, brain_affine, spacing_mm)
        found = registration.fit(cost, found, centre=centre, n_parameters=6, slope=registration.FINE_SLOPE)
    found = orthogonal(found)
    gain = information_gain(moving, affine, brain, brain_affine, to_brain=found)
    return Coregistration(found, gain, covered(moving, affine, brain, brain_affine, to_brain=found))


def information_gain(
    moving: npt.NDArray[np.float32],
    affine: Floats,
    brain: npt.NDArray[np.float32],
    brain_affine: Floats,
    *,
    to_brain: Floats,
) -> float:
    """How much of the mutual information of an image and a brain is lost when the image is shifted by 8 mm.

    Parameters
    ----------
    moving, affine, brain, brain_affine
        As for :func:`coregister`.
    to_brain : ndarray
        (4, 4) of the image to the brain.

    Returns
    -------
    float
        One minus the largest information at six shifts by the information found. An image that shows the brain where it is
        said to lie loses much; at a wrong place, or without a brain in it, next to nothing is lost. At most 1; 0 or less
        where a shift fits as well.
    """
    cost = _cost(moving, affine, brain, brain_affine, LEVELS_MM[-1])
    found = -cost(_inverse(to_brain))[0]
    shifted = []
    for axis in range(3):
        for by_mm in (-SHIFT_MM, SHIFT_MM):
            shift = np.eye(4)
            shift[axis, 3] = by_mm
            shifted.append(-cost(_inverse(shift @ to_brain))[0])
    return float(1 - max(shifted) / found) if found > 0 else 0.0


def covered(
    moving: npt.NDArray[np.float32],
    affine: Floats,
    brain: npt.NDArray[np.float32],
    brain_affine: Floats,
    *,
    to_brain: Floats,
) -> float:
    """Share of a brain of which an image has values other than 0; parameters as for :func:`information_gain`."""
    inside = np.argwhere(brain > 0)[::7]
    there = _inverse(to_brain @ affine) @ brain_affine
    voxels = there[:3, :3] @ inside.T + there[:3, 3:]
    return float((ndimage.map_coordinates(moving, voxels, order=0, mode="grid-constant") != 0).mean())


def _inverse(matrix: Floats) -> Floats:
    return np.asarray(np.linalg.inv(matrix), dtype=np.float64)


def _cost(
    moving: npt.NDArray[np.float32],
    affine: Floats,
    brain: npt.NDArray[np.float32],
    brain_affine: Floats,
    spacing_mm: float,
) -> registration.Cost:
    copy, placed = registration.coarse_copy(moving, affine, spacing_mm)
    return registration.information_cost(copy, placed, _inside(brain, brain_affine, spacing_mm))


def _inside(brain: npt.NDArray[np.float32], affine: Floats, spacing_mm: float) -> Samples:
    """The brain at a point of every voxel that lies at least by half inside it."""
    copy, placed = registration.coarse_copy(brain, affine, spacing_mm)
    mask, _ = registration.coarse_copy((brain > 0).astype(np.float32), affine, spacing_mm)
    points = registration.scattered_points(copy.shape, placed)
    voxels = (_inverse(placed) @ points)[:3]
    values, share = (ndimage.map_coordinates(image, voxels, order=1) for image in (copy, mask))
    inside = share > 0.5
    return Samples(points[:, inside], np.asarray(values[inside], dtype=np.float32), inside[inside])
