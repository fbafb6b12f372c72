"""Separable maps of volumes: one small matrix per axis, which is faster than a filter and exact at the border."""

from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt
from threadpoolctl import ThreadpoolController

Matrices = Sequence[npt.NDArray[np.float32]]


def along_axes(volumes: npt.NDArray[np.float32], matrices: Matrices) -> npt.NDArray[np.float32]:
    """Multiply every volume along each of its three axes by a matrix.

    Parameters
    ----------
    volumes : ndarray
        (volume, x, y, z).
    matrices : Sequence
        (x', x), (y', y) and (z', z).

    Returns
    -------
    ndarray
        (volume, x', y', z'): the sum over x, y, z of all three matrices and the volume.
    """
    first, second, third = matrices
    n_volumes, n_x, n_y, n_z = volumes.shape
    # Products this small spend more time waiting for a second thread than computing, above all on a busy machine.
    with _pools().limit(limits=1, user_api="blas"):
        along_x = np.matmul(first, volumes.reshape(n_volumes, n_x, n_y * n_z)).reshape(n_volumes, len(first), n_y, n_z)
        along_y = np.matmul(second, along_x)
        along_z = along_y.reshape(-1, n_z) @ third.T
    return np.asarray(along_z.reshape(*along_y.shape[:3], len(third)))


@cache
def _pools() -> ThreadpoolController:
    return ThreadpoolController()
