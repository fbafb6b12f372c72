"""Wide ventricles: the deformation by which fluid in the middle of the brain takes room from the tissue around it."""

from functools import cache, lru_cache

import numpy as np
from scipy.ndimage import gaussian_filter

from nilatent.simulate.deform import Array, diffeomorphism, rest_at_edges
from nilatent.volumes import Grid, template

# The lateral and third ventricles of the template lie inside this box of MNI space (mm).
BOX_MM = ((-32.0, 32.0), (-48.0, 32.0), (-12.0, 32.0))
SMOOTHING_MM = 8.0


@cache
def _pull(lattice_mm: float) -> Array:
    """(3, x, y, z) direction towards the fluid, at most one voxel of the lattice long."""
    lattice = Grid.mni(lattice_mm)
    inside = [
        (low <= place) & (place <= high)
        for (low, high), place in zip(
            BOX_MM, [lattice.affine[i, 3] + lattice_mm * np.arange(lattice.shape[i]) for i in range(3)], strict=True
        )
    ]
    fluid = template("csf", lattice).get_fdata(dtype=np.float32) * np.einsum("x,y,z->xyz", *inside).astype(np.float32)
    near = gaussian_filter(fluid, SMOOTHING_MM / lattice_mm)
    slope = np.stack(np.gradient(near)) * rest_at_edges(lattice.shape)
    return np.asarray(slope / np.sqrt((slope**2).sum(axis=0)).max(), dtype=np.float32)


@lru_cache(maxsize=4)
def widening(amount_mm: float, lattice_mm: float) -> tuple[Array, Array]:
    """Deformation that moves the walls of the ventricles outward.

    Parameters
    ----------
    amount_mm : float
        How fast the fastest point moves, in mm per unit time; the wall moves by somewhat less.
    lattice_mm : float
        Voxel size of the lattice.

    Returns
    -------
    displacement : ndarray
        (3, x, y, z) float32, in voxels: where in the template a point of the widened brain comes from.
    jacobian : ndarray
        (x, y, z) float32, positive: below 1 where fluid has grown, above 1 where tissue is pressed together.

    Raises
    ------
    SettingError
        When the deformation folds space over.
    """
    return diffeomorphism(np.float32(amount_mm / lattice_mm) * _pull(lattice_mm))
