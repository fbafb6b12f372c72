"""A model on scans it is not learning from: batches, figures and the two trivial baselines."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from nilatent.models import Model, Posterior
from nilatent.models.losses import gaussian_kl
from nilatent.training.diagnostics import Fit, fit
from nilatent.volumes import Volumes, VoxelPca

Rows = npt.NDArray[np.intp]
Told = npt.NDArray[np.float32] | None
PCA_BATCH = 16
# Batches after which freed pages go back to the system: the allocator of Linux would keep more of them the longer a pass is.
BATCHES_KEPT = 4


@dataclass(frozen=True, eq=False)
class Validation:
    """One pass over a set of scans.

    Parameters
    ----------
    fit : Fit
        Of the reconstructions from posterior means.
    errors : ndarray
        (scan,) mean squared error per voxel of each scan.
    absolute_error : float
        Mean absolute error per voxel.
    means, log_vars, kl : ndarray
        (scan, latent) posteriors and their KL to the prior in nats.
    """

    fit: Fit
    errors: npt.NDArray[np.float64]
    absolute_error: float
    means: npt.NDArray[np.float32]
    log_vars: npt.NDArray[np.float32]
    kl: npt.NDArray[np.float32]


def read_batch(volumes: Volumes, rows: Rows) -> Float[Tensor, "batch 1 x y z"]:
    """Read scans from the memory map, in single precision, on the CPU."""
    return torch.from_numpy(np.asarray(volumes.data[rows], dtype=np.float32))[:, None]


@contextmanager
def exact() -> Iterator[None]:
    """Neither gradients nor the reduced precision that a GPU takes for convolutions by default."""
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        yield


def posteriors(
    module: Model, volumes: Volumes, rows: Rows, *, batch_size: int, conditions: Told = None
) -> Iterator[tuple[Rows, Tensor, Tensor | None, Posterior]]:
    """Encode scans batch by batch, in single precision.

    Parameters
    ----------
    module : Autoencoder, Vae or SpatialVae
        On any device.
    volumes : Volumes
        The scans.
    rows : ndarray
        Which of them, in this order.
    batch_size : int
        Scans at a time; it changes nothing but speed and memory.
    conditions : ndarray, optional
        (scan, condition) of all scans of `volumes`, for a model that is told them.

    Yields
    ------
    tuple
        Rows of the batch, the scans on the module's device, their conditions, and their posterior.
    """
    device = module.anchor.mask.device
    for number, start in enumerate(range(0, len(rows), batch_size)):
        if number % BATCHES_KEPT == 0:
            _hand_back()
        batch = rows[start : start + batch_size]
        with exact():
            x = read_batch(volumes, batch).to(device)
            c = told(conditions, batch, device)
            posterior = module.encode(x, c)
        yield batch, x, c, posterior


def _hand_back() -> None:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def told(conditions: Told, rows: Rows, device: torch.device) -> Float[Tensor, "batch ..."] | None:
    """Conditions of some scans, on the device; None for a model that is told none."""
    return None if conditions is None else torch.from_numpy(conditions[rows]).to(device)


def draw(
    module: Model, z: Float[Tensor, "batch latent"], c: Float[Tensor, "batch condition"] | None = None
) -> npt.NDArray[np.float32]:
    """Decode latents and keep the voxels inside the mask, (batch, voxel)."""
    with exact():
        return inside(module, module.decode(z, c))


def inside(module: Model, volume: Float[Tensor, "batch 1 x y z"]) -> npt.NDArray[np.float32]:
    """Keep the voxels inside the model's mask, (batch, voxel), on the CPU."""
    kept: npt.NDArray[np.float32] = volume.flatten(1)[:, module.anchor.mask.flatten() > 0].cpu().numpy()
    return kept


def validate(module: Model, volumes: Volumes, rows: Rows, *, batch_size: int, conditions: Told = None) -> Validation:
    """Reconstruct scans from their posterior means and measure the result.

    Parameters
    ----------
    module, volumes, rows, batch_size, conditions
        As in :func:`posteriors`.

    Returns
    -------
    Validation
        In single precision, without noise: what :mod:`nilatent.encode` would give.
    """
    errors: list[npt.NDArray[np.float64]] = []
    absolute: list[npt.NDArray[np.float64]] = []
    means: list[npt.NDArray[np.float32]] = []
    log_vars: list[npt.NDArray[np.float32]] = []
    kl: list[npt.NDArray[np.float32]] = []

    def pairs() -> Iterator[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]:
        for _, x, c, posterior in posteriors(module, volumes, rows, batch_size=batch_size, conditions=conditions):
            means.append(posterior.mean.cpu().numpy())
            log_vars.append(posterior.log_var.cpu().numpy())
            kl.append(gaussian_kl(posterior.mean, posterior.log_var).cpu().numpy())
            seen, drawn = inside(module, x), draw(module, posterior.mean, c)
            absolute.append(np.abs(seen - drawn).mean(axis=1, dtype=np.float64))
            errors.append(np.square(seen - drawn, dtype=np.float64).mean(axis=1))
            yield seen, drawn

    measured = fit(pairs())
    absolute_error = float(np.concatenate(absolute).mean())
    return Validation(
        fit=measured,
        errors=np.concatenate(errors),
        absolute_error=absolute_error,
        means=np.concatenate(means),
        log_vars=np.concatenate(log_vars),
        kl=np.concatenate(kl),
    )


def baselines(pca: VoxelPca, volumes: Volumes, rows: Rows, *, conditions: Told = None) -> dict[str, Fit]:
    """Measure the mean image and PCA of the training scans on other scans.

    Parameters
    ----------
    pca : VoxelPca
        Fitted on training scans, as many components as the model has latents.
    volumes : Volumes
        The scans.
    rows : ndarray
        Which of them.
    conditions : ndarray, optional
        (scan, condition) of all scans of `volumes`, which PCA is told; the mean image is the same for everybody.

    Returns
    -------
    dict
        ``mean_image`` and ``pca``.
    """

    def chunks() -> Iterator[tuple[npt.NDArray[np.float32], Told]]:
        for start in range(0, len(rows), PCA_BATCH):
            some = rows[start : start + PCA_BATCH]
            yield volumes.masked(some), None if conditions is None else conditions[some]

    return {
        "mean_image": fit((x, np.broadcast_to(pca.mean, x.shape)) for x, _ in chunks()),
        "pca": fit((x, pca.reconstruct(x, given)) for x, given in chunks()),
    }
