"""How far the latents of all scans together lie from the prior, and how far chance alone would put them."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nilatent.models.aggregate import kernel, mmd

Array = npt.NDArray[np.float32]

MAX_DRAWS = 256
"""Draws that are compared with the prior at most; of more, that many are taken at random."""
N_PRIOR_DRAWS = 256
N_REPEATS = 199
CHANCE_QUANTILE = 0.99
TOLERATED_VARIANCE = 1 / 3
KERNEL_ROWS = 64


@dataclass(frozen=True)
class PriorDistance:
    """How far the latents of all scans together lie from the prior: squared maximum mean discrepancy.

    Parameters
    ----------
    value : float
        Of one draw per scan from its posterior; unbiased, so it may be negative.
    by_chance : float
        What as many draws from the prior itself exceed once in a hundred times.
    tolerated : float
        That of a prior with a third of its variance.
    """

    value: float
    by_chance: float
    tolerated: float


def discrepancy(means: Array, log_vars: Array, *, seed: int) -> float:
    """Squared maximum mean discrepancy between the latents of all scans and the prior.

    Parameters
    ----------
    means, log_vars : ndarray
        (scan, latent) posteriors, at least two. Of a latent grid, (scan and cell, channel) from :func:`by_channel`.
    seed : int
        Of one draw per row, and of those from the prior.

    References
    ----------
    Gretton et al. 2012, A kernel two-sample test. https://jmlr.org/papers/v13/gretton12a.html
    """
    rng = np.random.default_rng([seed, 0])
    rows = rng.permutation(len(means))[:MAX_DRAWS]
    drawn = means[rows] + np.exp(0.5 * log_vars[rows]) * rng.standard_normal((len(rows), means.shape[1]))
    z = torch.from_numpy(drawn.astype(np.float32))
    return float(mmd(z, z[:0], _prior(means.shape[1], seed=seed)[:N_PRIOR_DRAWS]))


def distance(means: Array, log_vars: Array, *, seed: int) -> PriorDistance:
    """Compare the discrepancy with what chance and a prior of a third of the variance would give.

    Parameters
    ----------
    means, log_vars, seed
        As in :func:`discrepancy`.
    """
    n_draws = min(len(means), MAX_DRAWS)
    by_chance, tolerated = limits(n_draws, means.shape[1], seed=seed)
    return PriorDistance(discrepancy(means, log_vars, seed=seed), by_chance, tolerated)


def limits(n_draws: int, n_latent: int, *, seed: int) -> tuple[float, float]:
    """Discrepancy that draws from the prior exceed once in a hundred times, and that of a prior with a third of it.

    Parameters
    ----------
    n_draws : int
        As many as there are of the latents, at most :data:`MAX_DRAWS`.
    n_latent, seed
        As in :func:`discrepancy`: the draws from the prior that the latents are compared with are the same.
    """
    # The kernel between draws is needed for every repeat, so it is computed once, and a repeat picks rows of it.
    pool = _prior(n_latent, seed=seed)
    held, others = pool[:N_PRIOR_DRAWS], pool[N_PRIOR_DRAWS:]
    among, across, own = _kernel(others, others), _kernel(others, held), _among(_kernel(held, held))
    rng = np.random.default_rng([seed, 1])
    values = []
    for _ in range(N_REPEATS):
        rows = torch.from_numpy(rng.permutation(len(others))[:n_draws])
        values.append(_among(among[rows][:, rows]) + own - 2.0 * float(across[rows].mean()))
    narrow = others * TOLERATED_VARIANCE**0.5
    tolerated = _among(_kernel(narrow, narrow)) + own - 2.0 * float(_kernel(narrow, held).mean())
    return float(np.quantile(values, CHANCE_QUANTILE)), tolerated


def by_channel(values: Array, latent_shape: tuple[int, ...], cells: npt.NDArray[np.bool_] | None) -> Array:
    """Lay the latents of a grid out as one row per scan and cell; those of a vector are left as they are.

    Parameters
    ----------
    values : ndarray
        (scan, latent), flat.
    latent_shape : tuple[int, ...]
        ``(n,)`` of a vector, ``(channel, a, b, c)`` of a grid.
    cells : ndarray or None
        (a, b, c) bool: cells with a voxel of the mask; the others are the prior itself in every scan.

    Returns
    -------
    ndarray
        (scan, latent) of a vector; (scan x cell, channel) of a grid.
    """
    if cells is None:
        return values
    grid = values.reshape(len(values), latent_shape[0], -1)[:, :, cells.reshape(-1)]
    return np.ascontiguousarray(np.moveaxis(grid, 1, 2).reshape(-1, latent_shape[0]))


def _prior(n_latent: int, *, seed: int) -> Tensor:
    draws = np.random.default_rng([seed, 2]).standard_normal((N_PRIOR_DRAWS + 3 * MAX_DRAWS, n_latent))
    return torch.from_numpy(draws.astype(np.float32))


def _kernel(one: Tensor, two: Tensor) -> Tensor:
    rows = [
        kernel(one[start : start + KERNEL_ROWS], two, n_latent=one.shape[1])
        for start in range(0, len(one), KERNEL_ROWS)
    ]
    return torch.cat(rows)


def _among(kernels: Tensor) -> float:
    return float((kernels.sum() - kernels.diagonal().sum()) / (len(kernels) * (len(kernels) - 1)))
