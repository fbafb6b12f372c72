"""Registration: the affine from a brain to the template, by mutual information, and the parts that any fit is made of."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
import numpy.typing as npt
from scipy import ndimage, optimize
from scipy.spatial.transform import Rotation

from nilatent.volumes import Grid, template_array

Floats = npt.NDArray[np.float64]
Cost = Callable[[Floats], tuple[float, Floats]]

SEARCH_MM, LEVEL_1_MM, LEVEL_2_MM = 6.0, 3.0, 2.0
BINS = 32
# Values above this percentile of a brain (vessels, remains of fat) share the last bin.
TOP_PERCENTILE = 99.8
# Turns and shears are counted in millimetres at this distance from the centre, so that all parameters weigh alike.
ARM_MM = 60.0
START_TURNS_DEGREES = (-30.0, 0.0, 30.0)
N_REFINED = 3
# A wider search follows when the first fit is worse than any good fit seen on real brains.
GOOD_CORRELATION = 0.55
N_REFINED_WIDE = 8
# Slope of the mutual information per millimetre at which a fit counts as converged.
COARSE_SLOPE, FINE_SLOPE = 1e-3, 1e-4
_EMPTY = 1e-12


def register_affine(brain: npt.NDArray[np.float32], affine: Floats) -> tuple[Floats, float]:
    """Affine from the subject to the template, brain to brain: search, rigid (6), then affine (12).

    Parameters
    ----------
    brain : ndarray
        (x, y, z) skull-stripped and bias-corrected; background 0.
    affine : ndarray
        (4, 4) of the brain.

    Returns
    -------
    ndarray
        (4, 4) RAS millimetres of the subject to RAS millimetres of the template.
    float
        Correlation with the template inside its mask, in [-1, 1].

    Notes
    -----
    Starts have the centres of both brains together and are turned by up to 30 degrees about each axis; all are scored on
    6 mm copies, the best are fitted. When none fits, the 24 ways to lay the axes of the scan are searched too. Mirrored
    starts are not: the template is symmetric, so a mirrored brain would fit it as well as the true one.

    References
    ----------
    Mattes et al. (2003). https://doi.org/10.1109/TMI.2003.809072
    """
    cost = information_cost(*coarse_copy(brain, affine, SEARCH_MM), _template(SEARCH_MM))
    turns, of_scan = start_turns(), brain_centre(brain, affine)
    near = _search(cost, turned_starts(turns, of_scan, _template_centre()), n_refined=N_REFINED)
    found, correlation = refine_affine(brain, affine, near[0], spacing_mm=LEVEL_1_MM)
    if correlation >= GOOD_CORRELATION:
        return found, correlation
    laid = [turn @ axes for axes in Rotation.create_group("O").as_matrix() for turn in turns]
    # On coarse copies a brain upside down fits nearly as well, so the finer copies decide.
    wide = _search(cost, turned_starts(laid, of_scan, _template_centre()), n_refined=N_REFINED_WIDE)
    fits = [refine_affine(brain, affine, start, spacing_mm=LEVEL_1_MM) for start in wide]
    return max([(found, correlation), *fits], key=lambda scored: scored[1])


def refine_affine(
    brain: npt.NDArray[np.float32], affine: Floats, start: Floats, *, spacing_mm: float = LEVEL_2_MM
) -> tuple[Floats, float]:
    """The affine that fits best near a given one; parameters and result as :func:`register_affine`.

    Parameters
    ----------
    brain : ndarray
        (x, y, z) brain, background 0.
    affine : ndarray
        (4, 4) of the brain.
    start : ndarray
        (4, 4) subject to template, a few millimetres off at most.
    spacing_mm : float
        Of the copies that are compared.

    Returns
    -------
    ndarray
        (4, 4) subject to template.
    float
        Correlation with the template inside its mask.

    Notes
    -----
    The points compared fill the whole grid, not the mask alone: inside the mask only, nothing holds the outline, and the
    brains of the old swell until their ventricles fit.
    """
    copy, placed = coarse_copy(brain, affine, spacing_mm)
    cost = information_cost(copy, placed, _template(spacing_mm))
    found = fit(cost, start, centre=_template_centre(), n_parameters=12, slope=FINE_SLOPE)
    return found, _correlation(copy, placed, found, spacing_mm)


def coarse_copy(
    data: npt.NDArray[np.float32], affine: Floats, spacing_mm: float
) -> tuple[npt.NDArray[np.float32], Floats]:
    """A copy with voxels of about a spacing (never finer than the image), smoothed first, and its affine."""
    voxel_mm = np.linalg.norm(affine[:3, :3], axis=0)
    step = np.maximum(1.0, spacing_mm / voxel_mm)
    # A width of one new voxel at half maximum; none where the voxel stays as it is.
    sigma = np.sqrt(np.maximum(0.0, step**2 - 1)) / np.sqrt(8 * np.log(2))
    smooth = ndimage.gaussian_filter(np.asarray(data, dtype=np.float32), sigma, mode="constant", truncate=3)
    shape = tuple(int(np.ceil(side / by)) for side, by in zip(data.shape, step, strict=True))
    copy = ndimage.affine_transform(
        smooth, np.diag(step), step / 2 - 0.5, output_shape=shape, order=1, mode="grid-constant"
    )
    placed = affine.astype(np.float64)
    placed[:3, 3] += placed[:3, :3] @ (step / 2 - 0.5)
    placed[:3, :3] = placed[:3, :3] * step
    return np.asarray(copy, dtype=np.float32), placed


def _template_centre() -> Floats:
    samples = _template(SEARCH_MM)
    return np.asarray(samples.points[:3, samples.inside].mean(axis=1))


def brain_centre(data: npt.NDArray[np.float32], affine: Floats) -> Floats:
    """Mean position of the voxels of a brain, (3,) millimetres."""
    return np.asarray(affine[:3, :3] @ np.argwhere(data > 0).mean(axis=0) + affine[:3, 3])


def start_turns() -> list[Floats]:
    """The (3, 3) rotations that a search starts from, by up to 30 degrees about each axis."""
    return [
        np.asarray(Rotation.from_euler("xyz", angles, degrees=True).as_matrix())
        for angles in product(START_TURNS_DEGREES, repeat=3)
    ]


def turned_starts(turns: Sequence[Floats], of_moving: Floats, of_fixed: Floats) -> list[Floats]:
    """(4, 4) starts from the moving to the fixed image, one per turn, each with the two (3,) centres together."""
    starts = []
    for turn in turns:
        start = np.eye(4)
        start[:3, :3] = turn
        start[:3, 3] = of_fixed - turn @ of_moving
        starts.append(start)
    return starts


def _search(cost: Cost, starts: Sequence[Floats], *, n_refined: int) -> list[Floats]:
    """The affines that are reached from the best-scored starts, best first."""
    scores = [cost(inverse(start))[0] for start in starts]
    centre, fits = _template_centre(), []
    for row in np.argsort(scores, kind="stable")[:n_refined]:
        rigid = fit(cost, starts[row], centre=centre, n_parameters=6, slope=COARSE_SLOPE)
        found = fit(cost, rigid, centre=centre, n_parameters=12, slope=COARSE_SLOPE)
        fits.append((cost(inverse(found))[0], found))
    return [found for _, found in sorted(fits, key=lambda scored: scored[0])]


def fit(cost: Cost, start: Floats, *, centre: Floats, n_parameters: int, slope: float) -> Floats:
    """Transform of least cost near a start, by BFGS.

    Parameters
    ----------
    cost : Callable
        Of the (4, 4) matrix from the fixed to the moving image: the value and its (3, 4) derivative by the entries.
    start : ndarray
        (4, 4) moving to fixed; the result differs from it by a rigid (or affine) movement.
    centre : ndarray
        (3,) millimetres of the fixed image about which it turns.
    n_parameters : {6, 12}
        Rigid or affine.
    slope : float
        Slope of the cost per millimetre at which the fit has converged.

    Returns
    -------
    ndarray
        (4, 4) moving to fixed.
    """
    base = inverse(start)
    steps = np.asarray(1e-3 * np.eye(n_parameters), dtype=np.float64)

    def value_and_slope(parameters: Floats) -> tuple[float, Floats]:
        value, by_entry = cost(base @ _matrix(parameters, centre))
        slopes = [
            ((base @ (_matrix(parameters + step, centre) - _matrix(parameters - step, centre)))[:3] * by_entry).sum()
            / 2e-3
            for step in steps
        ]
        return value, np.asarray(slopes)

    # A first step of a few millimetres; without it BFGS spends its first evaluations on finding the scale.
    options = {"gtol": slope, "maxiter": 100, "hess_inv0": 100.0 * np.eye(n_parameters)}
    result = optimize.minimize(value_and_slope, np.zeros(n_parameters), jac=True, method="BFGS", options=options)
    return inverse(base @ _matrix(result.x, centre))


def inverse(matrix: Floats) -> Floats:
    """Inverse of a matrix, float64."""
    return np.asarray(np.linalg.inv(matrix), dtype=np.float64)


def _matrix(parameters: Floats, centre: Floats) -> Floats:
    """(4, 4) of shifts (mm), turns, and, of 12 parameters, stretches and shears (mm at the arm) about a centre."""
    linear = Rotation.from_rotvec(parameters[3:6] / ARM_MM).as_matrix()
    if len(parameters) == 12:
        a, b, c, d, e, f = parameters[6:] / ARM_MM
        linear = linear @ (np.eye(3) + np.array([[a, d, e], [d, b, f], [e, f, c]]))
    matrix = np.eye(4)
    matrix[:3, :3] = linear
    matrix[:3, 3] = centre - linear @ centre + parameters[:3]
    return matrix


@dataclass(frozen=True, eq=False)
class Samples:
    """A fixed image at (4, point) homogeneous millimetres: (point,) values, and whether a point is in the brain."""

    points: Floats
    values: npt.NDArray[np.float32]
    inside: npt.NDArray[np.bool_]


def scattered_points(shape: tuple[int, ...], affine: Floats) -> Floats:
    """One point at random in each voxel of a grid, the same at each call: (4, point) homogeneous millimetres.

    Were the points on the nodes, the interpolation of two grids that meet would draw the fit to them.
    """
    voxels = np.indices(shape).reshape(3, -1) + np.random.default_rng(0).uniform(-0.5, 0.5, (3, np.prod(shape)))
    return np.concatenate([affine[:3, :3] @ voxels + affine[:3, 3:], np.ones((1, voxels.shape[1]))])


@cache
def _template(spacing_mm: float) -> Samples:
    # Coarse copies come from one fine template, since its averages are slow to make.
    grid, fine = Grid.mni(spacing_mm), Grid.mni(LEVEL_2_MM)
    points = scattered_points(grid.shape, grid.affine)

    def at_points(name: str) -> npt.NDArray[np.float32]:
        copy, placed = coarse_copy(template_array(name, LEVEL_2_MM), fine.affine, spacing_mm)
        there = (inverse(placed) @ points)[:3]
        return np.asarray(ndimage.map_coordinates(copy, there, order=1, mode="nearest"), dtype=np.float32)

    return Samples(points, at_points("t1"), at_points("mask") > 0.5)


def information_cost(moving: npt.NDArray[np.float32], affine: Floats, samples: Samples) -> Cost:
    """Negative mutual information with a sampled fixed image as a function of the affine from it to the moving one.

    Parameters
    ----------
    moving : ndarray
        (x, y, z) brain, background 0.
    affine : ndarray
        (4, 4) of the moving image.
    samples : Samples
        Of the fixed image.

    Returns
    -------
    Callable
        Takes the (4, 4) matrix and returns the value (nat) and its (3, 4) derivative by the entries of the matrix.
    """
    points, bins = samples.points, np.rint(_scaled(samples.values)).astype(np.int64)
    # A rim of background, so that points outside are looked up like any other.
    padded = np.pad(_scaled(moving), 1)
    to_voxel = inverse(affine)
    to_voxel[:3, 3] += 1

    def cost(to_scan: Floats) -> tuple[float, Floats]:
        values, slopes = _look_up(padded, (to_voxel @ to_scan)[:3] @ points)
        information, by_value = _information(bins, values)
        by_voxel = slopes * by_value
        return -information, -(to_voxel[:3, :3].T @ (by_voxel @ points.T))

    return cost


def _scaled(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    top = np.percentile(values[values > 0], TOP_PERCENTILE)
    return np.asarray(np.clip(values, 0, top) * ((BINS - 1) / top), dtype=np.float32)


def _look_up(image: npt.NDArray[np.float32], voxels: Floats) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Linear interpolation at (3, point) voxel positions: (point,) values and their exact (3, point) derivatives."""
    inside = np.clip(voxels, 0, np.asarray(image.shape)[:, None] - 1.001)
    lower = inside.astype(np.int64)
    x, y, z = (inside - lower).astype(np.float32)
    along_x, along_y = image.shape[1] * image.shape[2], image.shape[2]
    first = lower[0] * along_x + lower[1] * along_y + lower[2]
    flat = image.ravel()
    # Corner 011 is one voxel further along y and z.
    c000, c001, c010, c011 = (flat[first + shift] for shift in (0, 1, along_y, along_y + 1))
    c100, c101, c110, c111 = (flat[first + along_x + shift] for shift in (0, 1, along_y, along_y + 1))
    d00, d01, d10, d11 = c001 - c000, c011 - c010, c101 - c100, c111 - c110
    z00, z01, z10, z11 = c000 + z * d00, c010 + z * d01, c100 + z * d10, c110 + z * d11
    y0, y1 = z00 + y * (z01 - z00), z10 + y * (z11 - z10)
    by_z = (d00 + y * (d01 - d00)) * (1 - x) + (d10 + y * (d11 - d10)) * x
    by_y = (z01 - z00) * (1 - x) + (z11 - z10) * x
    return y0 + x * (y1 - y0), np.stack([y1 - y0, by_y, by_z])


def _information(bins: npt.NDArray[np.int64], values: npt.NDArray[np.float32]) -> tuple[float, npt.NDArray[np.float32]]:
    """Mutual information (nat) of binned and of continuous values, and its (point,) derivative by the latter.

    Parameters
    ----------
    bins : ndarray
        (point,) in 0 to ``BINS - 1``.
    values : ndarray
        (point,) in 0 to ``BINS - 1``; each is spread over four bins by a cubic B-spline, so that the information is smooth.
    """
    width = BINS + 3
    lower = values.astype(np.int64)
    t = values - lower
    r, t2 = 1 - t, t * t
    first = bins * width + lower
    w0, w1, w3 = r * r * r / 6, t2 * (t * 0.5 - 1) + np.float32(2 / 3), t2 * t / 6
    weights = (w0, w1, 1 - w0 - w1 - w3, w3)
    counts = sum(
        (np.bincount(first + shift, weights=weight, minlength=BINS * width) for shift, weight in enumerate(weights)),
        np.zeros(()),
    )
    joint = counts.reshape(BINS, width) / len(values)
    of_fixed, of_moving = joint.sum(axis=1, keepdims=True), joint.sum(axis=0, keepdims=True)
    there = joint > _EMPTY
    # The share of the fixed image does not change with the moving one, so its logarithm takes no part in the derivative.
    log_ratio = np.where(there, np.log(np.where(there, joint, 1) / np.where(of_moving > 0, of_moving, 1)), 0.0)
    information = float((joint * log_ratio).sum() - (of_fixed * np.log(np.where(of_fixed > 0, of_fixed, 1))).sum())
    gain = log_ratio.ravel().astype(np.float32)
    slope = -0.5 * r * r * gain[first] + (1.5 * t2 - 2 * t) * gain[first + 1]
    slope += (t + 0.5 - 1.5 * t2) * gain[first + 2] + 0.5 * t2 * gain[first + 3]
    return information, slope / np.float32(len(values))


def correlation(brain: npt.NDArray[np.float32], affine: Floats, to_template: Floats) -> float:
    """Correlation of a brain with the template inside its mask, moved by an affine; copies and points as the last fit has."""
    return _correlation(*coarse_copy(brain, affine, LEVEL_2_MM), to_template, LEVEL_2_MM)


def _correlation(moving: npt.NDArray[np.float32], affine: Floats, to_template: Floats, spacing_mm: float) -> float:
    samples = _template(spacing_mm)
    there = inverse(to_template @ affine) @ samples.points[:, samples.inside]
    moved = ndimage.map_coordinates(moving, there[:3], order=1)
    return float(np.corrcoef(moved, samples.values[samples.inside])[0, 1])


def itk_text(to_template: Floats) -> str:
    """The transform that moves the subject's image to the template, in ITK's text format.

    Parameters
    ----------
    to_template : ndarray
        (4, 4) RAS millimetres of the subject to those of the template. ITK writes the inverse, since moving an image
        needs, for each point of the template, the point of the subject to look at.

    Returns
    -------
    str
        Content of a ``.txt`` transform for ANTs, ITK-SNAP and 3D Slicer.
    """
    flip = np.diag([-1.0, -1.0, 1.0, 1.0])
    matrix = flip @ np.linalg.inv(np.asarray(to_template, dtype=np.float64)) @ flip
    numbers = " ".join(f"{value:.12g}" for value in (*matrix[:3, :3].ravel(), *matrix[:3, 3]))
    return (
        "#Insight Transform File V1.0\n#Transform 0\nTransform: AffineTransform_double_3_3\n"
        f"Parameters: {numbers}\nFixedParameters: 0 0 0\n"
    )
