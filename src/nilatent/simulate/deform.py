"""Smooth random diffeomorphisms: stationary velocity fields at several scales, integrated by scaling and squaring."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.ndimage import map_coordinates

from nilatent.errors import SettingError

Array = npt.NDArray[np.float32]

FWHM_PER_SIGMA = math.sqrt(8 * math.log(2))
# Bumps one sigma apart add up to a field whose variance ripples by less than a thousandth.
SIGMAS_BETWEEN_BUMPS = 1.0
SIGMAS_REACHED = 3.5
# The first small step of the integration moves no point further than this, so that it is invertible by itself.
MAX_STEP_VOXELS = 0.25
LARGEST_AMPLITUDE = 2.5


@dataclass(frozen=True)
class Scale:
    """One scale of anatomical difference between people.

    Parameters
    ----------
    fwhm_mm : float
        Width of the bumps that the velocity (or its potential) is made of.
    sd_mm : float
        Standard deviation of one velocity component, in mm per unit time.
    conserves_volume : bool
        The velocity is the curl of a potential: it bends folds without growing or shrinking anything.
    """

    fwhm_mm: float
    sd_mm: float
    conserves_volume: bool


@lru_cache(maxsize=64)
def _bumps(n_voxels: int, spacing_mm: float, fwhm_mm: float) -> Array:
    sigma = fwhm_mm / FWHM_PER_SIGMA
    step = SIGMAS_BETWEEN_BUMPS * sigma
    centre = (n_voxels - 1) * spacing_mm / 2
    n_side = math.ceil((centre + SIGMAS_REACHED * sigma) / step)
    nodes = centre + step * np.arange(-n_side, n_side + 1)
    distance = np.arange(n_voxels)[:, None] * spacing_mm - nodes[None, :]
    kernel = np.exp(-0.5 * (distance / sigma) ** 2)
    # For bumps this dense the sum of squares is the integral: unit variance everywhere, edges included.
    return np.asarray(kernel / math.sqrt(math.sqrt(math.pi) * sigma / step), dtype=np.float32)


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int, int], *, spacing_mm: float, fwhm_mm: float) -> Array:
    """A stationary Gaussian random field of mean 0 and variance 1.

    Parameters
    ----------
    rng : Generator
        Draws one weight per bump.
    shape : tuple[int, int, int]
        Voxels.
    spacing_mm : float
        Voxel size.
    fwhm_mm : float
        Width of the Gaussian bumps; values two bump sigmas apart correlate at exp(-1).

    Returns
    -------
    ndarray
        (x, y, z) float32.
    """
    kernels = [_bumps(side, spacing_mm, fwhm_mm) for side in shape]
    weights = rng.standard_normal([kernel.shape[1] for kernel in kernels], dtype=np.float32)
    # einsum and not BLAS: a threaded product may sum in another order, and the bytes must not depend on threads.
    field = np.einsum("xa,abc->xbc", kernels[0], weights)
    field = np.einsum("yb,xbc->xyc", kernels[1], field)
    return np.asarray(np.einsum("zc,xyc->xyz", kernels[2], field), dtype=np.float32)


def random_velocity(rng: np.random.Generator, envelope: Array, *, spacing_mm: float, scales: Sequence[Scale]) -> Array:
    """A random stationary velocity field.

    Parameters
    ----------
    rng : Generator
        Draws the field.
    envelope : ndarray
        (x, y, z) in [0, 1]: how far the field unfolds in each voxel; 0 at the edges keeps everything on the grid.
    spacing_mm : float
        Voxel size.
    scales : Sequence[Scale]
        Independent fields that are added up.

    Returns
    -------
    ndarray
        (3, x, y, z) float32, in voxels per unit time.
    """
    x, y, z = envelope.shape
    velocity = np.zeros((3, x, y, z), dtype=np.float32)
    for scale in scales:
        if scale.sd_mm == 0:
            continue
        draws = [smooth_noise(rng, (x, y, z), spacing_mm=spacing_mm, fwhm_mm=scale.fwhm_mm) for _ in range(3)]
        field = np.stack(draws) * envelope
        sd_voxels = scale.sd_mm / spacing_mm
        if scale.conserves_volume:
            # The slope of a potential of variance 1 has the variance 1 / (2 sigma^2); a curl component adds two.
            sigma_voxels = scale.fwhm_mm / FWHM_PER_SIGMA / spacing_mm
            velocity += np.float32(sd_voxels * sigma_voxels) * curl(field)
        else:
            velocity += np.float32(sd_voxels) * field
    return velocity


def rest_at_edges(shape: tuple[int, int, int], *, width_voxels: int = 4) -> Array:
    """(x, y, z) envelope: 0 in the two outermost voxels, 1 from `width_voxels` further in, smooth between."""
    ramps = []
    for side in shape:
        to_edge = np.minimum(np.arange(side), np.arange(side)[::-1])
        ramps.append(np.sin(0.5 * np.pi * np.clip((to_edge - 1) / width_voxels, 0, 1)) ** 2)
    return np.asarray(np.einsum("x,y,z->xyz", *ramps), dtype=np.float32)


def curl(potential: Array) -> Array:
    """Curl of a vector field by central differences.

    Parameters
    ----------
    potential : ndarray
        (3, x, y, z), in voxels.

    Returns
    -------
    ndarray
        (3, x, y, z); its divergence by central differences is zero away from the outermost two voxels.
    """
    slope = [np.gradient(component) for component in potential]
    return np.stack([slope[2][1] - slope[1][2], slope[0][2] - slope[2][0], slope[1][0] - slope[0][1]])


def integrate(velocity: Array) -> Array:
    """Displacement after unit time along a stationary velocity field, by scaling and squaring.

    Parameters
    ----------
    velocity : ndarray
        (3, x, y, z) float32, in voxels per unit time.

    Returns
    -------
    ndarray
        (3, x, y, z) float32 displacement u in voxels: the point x ends at x + u(x).

    References
    ----------
    Arsigny et al. (2006). https://doi.org/10.1007/11866565_113
    """
    fastest = float(np.sqrt((velocity**2).sum(axis=0)).max())
    n_squarings = max(0, math.ceil(math.log2(fastest / MAX_STEP_VOXELS))) if fastest > 0 else 0
    displacement = velocity / np.float32(2**n_squarings)
    identity = np.indices(velocity.shape[1:], dtype=np.float32)
    for _ in range(n_squarings):
        moved = identity + displacement
        displacement = displacement + np.stack([sample(component, moved) for component in displacement])
    return displacement


def sample(image: Array, coordinates: npt.NDArray[np.floating], *, outside: str = "nearest") -> Array:
    """Values of an image at voxel coordinates, by linear interpolation.

    Parameters
    ----------
    image : ndarray
        (x, y, z).
    coordinates : ndarray
        (3, ...) voxel coordinates.
    outside : {"nearest", "constant"}
        What lies beyond the edge: the value of the edge, or zero.

    Returns
    -------
    ndarray
        (...) float32.
    """
    return np.asarray(map_coordinates(image, coordinates, order=1, mode=outside, output=np.float32))


def jacobian(displacement: Array) -> Array:
    """Volume change of the deformation x to x + u(x), by central differences.

    Parameters
    ----------
    displacement : ndarray
        (3, x, y, z), in voxels.

    Returns
    -------
    ndarray
        (x, y, z) determinant of I + grad u: 1 keeps volume, 2 doubles it, 0 or less folds space over.
    """
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = (np.gradient(component) for component in displacement)
    xx, yy, zz = xx + 1, yy + 1, zz + 1
    return np.asarray(xx * (yy * zz - yz * zy) - xy * (yx * zz - yz * zx) + xz * (yx * zy - yy * zx), dtype=np.float32)


def diffeomorphism(velocity: Array) -> tuple[Array, Array]:
    """The smooth deformation that a stationary velocity field leads to in unit time; it folds nowhere.

    Parameters
    ----------
    velocity : ndarray
        (3, x, y, z) float32, in voxels per unit time.

    Returns
    -------
    displacement : ndarray
        (3, x, y, z) float32, in voxels.
    jacobian : ndarray
        (x, y, z) float32, positive.

    Raises
    ------
    SettingError
        When the deformation folds space over.
    """
    displacement = integrate(velocity)
    determinant = jacobian(displacement)
    if determinant.min() <= 0:
        raise SettingError(
            f"A simulated deformation must keep every Jacobian positive; the smallest is {determinant.min():.3f}. "
            "Lower the setting deformation."
        )
    return displacement, determinant


def draw_amplitudes(rng: np.random.Generator, n_causes: int) -> Array:
    """How much of each cause one person has: (cause,) float32, standard normal, at most 2.5 either way."""
    # An amplitude far out in the tail is the one that would fold space.
    drawn = rng.standard_normal(n_causes, dtype=np.float32)
    return np.clip(drawn, -LARGEST_AMPLITUDE, LARGEST_AMPLITUDE)


def caused_velocity(causes: Array, amplitudes: Array) -> Array:
    """Velocity field of a person whose shape has a few causes.

    However large the amplitudes, velocities stay in a space of as many dimensions as there are causes; the
    deformations they lead to lie on a curved sheet in the space of images, which has as many dimensions but no flat
    space of that size around it.

    Parameters
    ----------
    causes : ndarray
        (cause, 3, x, y, z) float32, in voxels per unit time: one field per cause, the same for everyone.
    amplitudes : ndarray
        (cause,) from :func:`draw_amplitudes`.

    Returns
    -------
    ndarray
        (3, x, y, z) float32: the weighted sum, divided by the root of the number of causes, so that the size of the
        differences between people does not depend on it.
    """
    weights = amplitudes / np.float32(math.sqrt(len(causes)))
    return np.asarray(np.einsum("k,kcxyz->cxyz", weights, causes), dtype=np.float32)


def random_diffeomorphism(
    rng: np.random.Generator, envelope: Array, *, spacing_mm: float, scales: Sequence[Scale]
) -> tuple[Array, Array]:
    """A smooth random deformation of space that folds nowhere.

    Parameters
    ----------
    rng : Generator
        Draws the deformation.
    envelope : ndarray
        (x, y, z) in [0, 1]: how far it unfolds in each voxel.
    spacing_mm : float
        Voxel size.
    scales : Sequence[Scale]
        Widths and amplitudes of the differences.

    Returns
    -------
    displacement : ndarray
        (3, x, y, z) float32, in voxels.
    jacobian : ndarray
        (x, y, z) float32, positive.

    Raises
    ------
    SettingError
        When the deformation folds space over.
    """
    return diffeomorphism(random_velocity(rng, envelope, spacing_mm=spacing_mm, scales=scales))
