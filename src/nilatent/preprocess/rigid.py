"""Rigid: the turn and shift between two images of one head, by mutual information, neither of them the reference."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial.transform import Rotation

from nilatent.preprocess.registration import (
    COARSE_SLOPE,
    FINE_SLOPE,
    SEARCH_MM,
    Cost,
    Floats,
    Samples,
    brain_centre,
    coarse_copy,
    fit,
    information_cost,
    inverse,
    scattered_points,
    start_turns,
    turned_starts,
)

# A brain, background 0, and the (4, 4) affine of its voxels.
Brain = tuple[npt.NDArray[np.float32], Floats]

COARSE_MM, FINE_MM = 4.0, 2.0
N_REFINED = 3
# Background around a brain takes part: without it nothing holds the outline.
MARGIN_MM = 12.0
# All brains were moved to one of them at first; the average of all takes its place, twice.
N_ROUNDS = 2
AVERAGE_MM = 1.0


def register_rigid(
    moving: npt.NDArray[np.float32],
    affine: Floats,
    fixed: npt.NDArray[np.float32],
    fixed_affine: Floats,
    *,
    start: Floats | None = None,
) -> Floats:
    """The rigid movement from one image of a brain to another of the same brain, of any two contrasts.

    Parameters
    ----------
    moving : ndarray
        (x, y, z) skull-stripped; background 0.
    affine : ndarray
        (4, 4) of the moving image.
    fixed : ndarray
        (x, y, z) skull-stripped; background 0. Another grid, another voxel size and another contrast are fine.
    fixed_affine : ndarray
        (4, 4) of the fixed image.
    start : ndarray, optional
        (4, 4) rigid, a few millimetres off at most; None to search: the centres together, turned by up to 30 degrees
        about each axis.

    Returns
    -------
    ndarray
        (4, 4) float64, RAS millimetres of the moving image to RAS millimetres of the fixed one: a rotation and a shift,
        never a mirror or a stretch.

    Notes
    -----
    What is minimised is the sum of both directions, each image looked up at points of the other. A cost of one direction
    blurs one image only, which makes the result depend on which image is called fixed (Reuter et al. 2012); here the swap
    gives the inverse to about a thousandth of a millimetre, what is left being the optimiser's tolerance.

    References
    ----------
    Reuter et al. (2012). https://doi.org/10.1016/j.neuroimage.2012.02.084
    Mattes et al. (2003). https://doi.org/10.1109/TMI.2003.809072

    Examples
    --------
    >>> import numpy as np
    >>> from nilatent.volumes import Grid, template_array
    >>> brain, affine = template_array("t1", 6.0), Grid.mni(6.0).affine
    >>> shifted = affine.copy()
    >>> shifted[0, 3] += 5.0
    >>> register_rigid(brain, shifted, brain, affine, start=np.eye(4))[0, 3].round(1)
    np.float64(-5.0)
    """
    if start is None:
        start = _searched(moving, affine, fixed, fixed_affine)
    return _refined(moving, affine, fixed, fixed_affine, start=start, spacing_mm=FINE_MM)


def orthogonal(matrix: Floats) -> Floats:
    """A (4, 4) matrix with its linear part replaced by the nearest rotation: what a fit of rigid steps has lost to rounding."""
    left, _, right = np.linalg.svd(matrix[:3, :3])
    nearest = np.array(matrix, dtype=np.float64)
    nearest[:3, :3] = left @ np.diag([1.0, 1.0, np.sign(np.linalg.det(left @ right))]) @ right
    return nearest


def _searched(
    moving: npt.NDArray[np.float32], affine: Floats, fixed: npt.NDArray[np.float32], fixed_affine: Floats
) -> Floats:
    """The movement found from many starts, a fraction of a millimetre off."""
    centre = brain_centre(fixed, fixed_affine)
    cost = _both_ways(moving, affine, fixed, fixed_affine, spacing_mm=SEARCH_MM)
    starts: Sequence[Floats] = turned_starts(start_turns(), brain_centre(moving, affine), centre)
    scores = [cost(inverse(start))[0] for start in starts]
    best = [starts[row] for row in np.argsort(scores, kind="stable")[:N_REFINED]]
    fits = [fit(cost, start, centre=centre, n_parameters=6, slope=COARSE_SLOPE) for start in best]
    nearest = min(fits, key=lambda found: cost(inverse(found))[0])
    return _refined(moving, affine, fixed, fixed_affine, start=nearest, spacing_mm=COARSE_MM)


def _refined(
    moving: npt.NDArray[np.float32],
    affine: Floats,
    fixed: npt.NDArray[np.float32],
    fixed_affine: Floats,
    *,
    start: Floats,
    spacing_mm: float,
) -> Floats:
    cost = _both_ways(moving, affine, fixed, fixed_affine, spacing_mm=spacing_mm)
    centre = brain_centre(fixed, fixed_affine)
    return orthogonal(fit(cost, start, centre=centre, n_parameters=6, slope=FINE_SLOPE))


def _both_ways(
    moving: npt.NDArray[np.float32],
    affine: Floats,
    fixed: npt.NDArray[np.float32],
    fixed_affine: Floats,
    *,
    spacing_mm: float,
) -> Cost:
    """Cost of a (4, 4) matrix from the fixed to the moving image, with its (3, 4) derivative: both directions, summed."""
    copies = [coarse_copy(image, placed, spacing_mm) for image, placed in ((moving, affine), (fixed, fixed_affine))]
    (moving_copy, moving_placed), (fixed_copy, fixed_placed) = copies
    forth = information_cost(moving_copy, moving_placed, _samples(fixed_copy, fixed_placed))
    back = information_cost(fixed_copy, fixed_placed, _samples(moving_copy, moving_placed))

    def cost(to_moving: Floats) -> tuple[float, Floats]:
        to_fixed = inverse(to_moving)
        value, by_entry = forth(to_moving)
        other, by_inverse = back(to_fixed)
        # d(M^-1) = -M^-1 dM M^-1; the last row of M does not change.
        through = -to_fixed.T @ np.vstack([by_inverse, np.zeros(4)]) @ to_fixed.T
        return value + other, by_entry + through[:3]

    return cost


def _samples(image: npt.NDArray[np.float32], affine: Floats) -> Samples:
    """The image at a point of each voxel of the box around its brain, and of a rim."""
    voxel_mm = np.linalg.norm(affine[:3, :3], axis=0)
    there = np.argwhere(image > 0)
    margin = np.ceil(MARGIN_MM / voxel_mm).astype(int)
    first, last = there.min(axis=0) - margin, there.max(axis=0) + margin
    placed = np.array(affine, dtype=np.float64)
    placed[:3, 3] += placed[:3, :3] @ first
    points = scattered_points(tuple(int(side) for side in last - first + 1), placed)
    values = ndimage.map_coordinates(image, (inverse(affine) @ points)[:3], order=1, mode="grid-constant")
    values = np.asarray(values, dtype=np.float32)
    return Samples(points, values, values > 0)


def align(brains: Sequence[Brain]) -> list[Floats]:
    """Rigid movements of several images of one brain to the space midway between them.

    Parameters
    ----------
    brains : Sequence[tuple[ndarray, ndarray]]
        (x, y, z) values, background 0, and (4, 4) affine of each; two or more.

    Returns
    -------
    list[ndarray]
        (4, 4) each, millimetres of the image to those of the middle.

    Notes
    -----
    All are moved to the first, coarsely; then, twice, to the average of all, which no longer prefers any.
    """
    movements = [np.eye(4), *(_searched(*brain, *brains[0]) for brain in brains[1:])]
    movements = to_middle(movements, brain_centre(*brains[0]))
    for _ in range(N_ROUNDS):
        shape, affine = space_around(brains, movements)
        mean = average(resampled(brains, movements, shape, affine))
        fitted = [
            register_rigid(*brain, mean, affine, start=start) for brain, start in zip(brains, movements, strict=True)
        ]
        movements = to_middle(fitted, brain_centre(mean, affine))
    return movements


def to_middle(movements: Sequence[Floats], centre: Floats) -> list[Floats]:
    """Movements to a common space, changed so that the common space lies midway between the images.

    Parameters
    ----------
    movements : Sequence[ndarray]
        (4, 4) rigid each, image to common space.
    centre : ndarray
        (3,) of the brain in the common space.

    Returns
    -------
    list[ndarray]
        (4, 4) each. The mean of their inverses turns nothing and leaves the centre of the brain where it is; they do not
        depend on which common space was given.
    """
    back = np.linalg.inv(np.stack(movements))
    change = np.eye(4)
    change[:3, :3] = Rotation.from_matrix(back[:, :3, :3]).mean().as_matrix()
    change[:3, 3] = (back @ np.append(centre, 1.0)).mean(axis=0)[:3] - change[:3, :3] @ centre
    return [orthogonal(change @ movement) for movement in movements]


def space_around(brains: Sequence[Brain], movements: Sequence[Floats]) -> tuple[tuple[int, ...], Floats]:
    """Shape and (4, 4) affine of a grid of 1 mm that holds every moved brain with a margin."""
    ends = []
    for (values, affine), movement in zip(brains, movements, strict=True):
        there = movement @ affine
        positions = np.argwhere(values > 0) @ there[:3, :3].T + there[:3, 3]
        ends.append((positions.min(axis=0), positions.max(axis=0)))
    first = np.floor(np.min([low for low, _ in ends], axis=0) - MARGIN_MM)
    last = np.max([high for _, high in ends], axis=0) + MARGIN_MM
    placed = np.diag([AVERAGE_MM, AVERAGE_MM, AVERAGE_MM, 1.0])
    placed[:3, 3] = first
    return tuple(int(side) for side in np.ceil((last - first) / AVERAGE_MM) + 1), placed


def resampled(
    brains: Sequence[Brain], movements: Sequence[Floats], shape: tuple[int, ...], affine: Floats
) -> list[npt.NDArray[np.float32]]:
    """Every brain moved to a grid, its median 1: scanners scale each visit as they like."""
    moved = []
    for (values, placed), movement in zip(brains, movements, strict=True):
        there = inverse(movement @ placed) @ affine
        seen = ndimage.affine_transform(
            values, there[:3, :3], there[:3, 3], output_shape=shape, order=1, mode="grid-constant"
        )
        moved.append(np.asarray(seen / np.median(values[values > 0]), dtype=np.float32))
    return moved


def average(images: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    """Mean of images of one grid where at least half of them have brain, over those that have; 0 elsewhere.

    Background counted in, an average would be dark wherever one brain was cut closer than the others.
    """
    total, n_there = np.zeros(images[0].shape), np.zeros(images[0].shape, dtype=np.int16)
    for image in images:
        total += image
        n_there += image > 0
    return np.asarray(np.where(2 * n_there >= len(images), total / np.maximum(n_there, 1), 0), dtype=np.float32)
