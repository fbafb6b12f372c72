"""A trained model in use: latents of scans, and their reconstructions as arrays."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
import xarray as xr

from nilatent.errors import GridError, LatentsError
from nilatent.latents import make_latents
from nilatent.progress import track
from nilatent.training.checkpoint import TrainedModel
from nilatent.training.origin import recognise
from nilatent.training.preparation import check_preparation
from nilatent.training.validation import Told, draw, posteriors
from nilatent.volumes import Volumes


def encode(
    model: TrainedModel,
    volumes: Volumes,
    parts: pd.DataFrame,
    *,
    scans: pd.DataFrame | None = None,
    batch_size: int = 16,
    preparation: Mapping[str, Any] | None = None,
    allow_other_preparation: bool = False,
) -> xr.Dataset:
    """Latents of every scan in the cache.

    Parameters
    ----------
    model : TrainedModel
        From :func:`nilatent.training.checkpoint.load_model`.
    volumes : Volumes
        The scans, on the grid and mask of the model.
    parts : DataFrame
        Index ``scan_id``, columns ``subject_id`` and ``part``; one row for every scan in the cache.
    scans : DataFrame, optional
        Index ``scan_id``: the columns that the model is told of every scan, where there are any.
    batch_size : int
        Scans at a time; it changes speed and memory only.
    preparation : Mapping, optional
        How these scans were made, as it was said of the model's; see :mod:`nilatent.training.preparation`.
    allow_other_preparation : bool
        Encode scans that were made otherwise than the model's; a caveat then goes with the latents.

    Returns
    -------
    Dataset
        Posterior mean and log-variance, (scan, latent) in the order of the cache. ``subject_in_training`` is true for
        every scan of a subject in the model's training **or** validation part (the latter chose the epoch), known by its
        name or by the values of one of its scans. The notes among the attributes say how many and why (``seen``), what
        is to be thought of when reading them (``caveat``), and a column whose values shaped the first latent on training
        scans (``supervised``). A latent on a grid has an ``image_scale`` of 1 throughout: to measure it would take two
        volumes per value.

    Raises
    ------
    GridError
        When the scans are on another grid or in another mask.
    ModelError
        When they were made otherwise than the model's.
    LatentsError
        When a scan has no row in `parts`.

    Notes
    -----
    Always in single precision and without noise. A scan's row is the same alone, in any batch, in any order and on any
    number of threads, to the rounding of the last bits.
    """
    _check_same_space(model, volumes)
    caveat = check_preparation(model.preparation, preparation, allow_other=allow_other_preparation)
    scan_ids = volumes.scans.index
    absent = scan_ids.difference(parts.index)
    if len(absent) > 0:
        raise LatentsError(
            f"Scan {absent[0]} has no row in the split. Split the cohort again, or pack without this scan."
        )
    names = ", ".join(model.model_config.condition)
    told_words = (
        f"The model was told {names} of every scan, those of the test part included: the latents hold what is left, and say "
        "nothing of these columns."
        if names
        else ""
    )
    rows = np.arange(len(scan_ids))
    means: list[npt.NDArray[np.float32]] = []
    log_vars: list[npt.NDArray[np.float32]] = []
    conditions = told_of(model, volumes, scans)
    batches = posteriors(model.module, volumes, rows, batch_size=batch_size, conditions=conditions)
    for _, _, _, posterior in track(batches, total=-(-len(rows) // batch_size), label="encode"):
        means.append(posterior.mean.cpu().numpy())
        log_vars.append(posterior.log_var.cpu().numpy())
    mean = np.concatenate(means)
    known = parts.loc[scan_ids]
    marks, seen = recognise(model.seen, volumes, known["subject_id"])
    shape = model.module.latent_shape
    return make_latents(
        mean,
        np.concatenate(log_vars),
        scan=list(scan_ids),
        subject=list(known["subject_id"]),
        subject_in_training=list(marks),
        part=list(known["part"]),
        model_hash=model.content_hash,
        volumes_hash=volumes.content_hash,
        image_scale=list(image_scale(model, mean)) if len(shape) == 1 else None,
        latent_shape=shape,
        notes={"seen": seen, "caveat": caveat, "told": told_words, "supervised": model.model_config.align},
    )


def image_scale(model: TrainedModel, mean: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """How much the image changes per unit of each latent.

    Parameters
    ----------
    model : TrainedModel
        The model.
    mean : ndarray
        (scan, latent) posterior means: the change is taken from one SD below their centre to one above.

    Returns
    -------
    ndarray
        (latent,) root mean square change over the voxels of the mask, in units of the scans.
    """
    centre, step = mean.mean(axis=0), np.maximum(mean.std(axis=0), 1e-3)
    scale = np.empty(len(centre))
    n_condition = model.conditions.n_values
    # Conditions are zero on average.
    usual = torch.zeros(2, n_condition) if n_condition else None
    for index, width in enumerate(step):
        ends = np.stack([centre, centre])
        ends[:, index] += (-width, width)
        low, high = draw(model.module, torch.from_numpy(ends), usual)
        scale[index] = np.sqrt(np.mean(np.square(high.astype(np.float64) - low))) / (2 * width)
    return scale


def reconstructions(
    model: TrainedModel,
    volumes: Volumes,
    rows: npt.NDArray[np.intp],
    *,
    scans: pd.DataFrame | None = None,
    batch_size: int = 16,
) -> Iterator[tuple[npt.NDArray[np.intp], npt.NDArray[np.float32]]]:
    """Reconstructions of scans from their posterior means, a batch at a time.

    Parameters
    ----------
    model : TrainedModel
        The model.
    volumes : Volumes
        The scans, on the grid and mask of the model.
    rows : ndarray
        Rows of the cache, in the order wanted.
    scans : DataFrame, optional
        As in :func:`encode`.
    batch_size : int
        Scans at a time; it changes speed and memory only.

    Yields
    ------
    tuple
        Rows of the batch, and their reconstructions inside the mask, (batch, voxel) float32 in the order of
        :meth:`nilatent.volumes.Volumes.masked`.

    Raises
    ------
    GridError
        When the scans are on another grid or in another mask.
    """
    _check_same_space(model, volumes)
    rows = np.asarray(rows, dtype=np.intp)
    conditions = told_of(model, volumes, scans)
    batches = posteriors(model.module, volumes, rows, batch_size=batch_size, conditions=conditions)
    for batch, _, c, posterior in track(batches, total=-(-len(rows) // batch_size), label="reconstruct"):
        yield batch, draw(model.module, posterior.mean, c)


def told_of(model: TrainedModel, volumes: Volumes, scans: pd.DataFrame | None) -> Told:
    """What the model is told of each scan in the cache, in its order; None for a model that is told nothing."""
    return model.conditions.values(None if scans is None else scans.loc[volumes.scans.index])


def _check_same_space(model: TrainedModel, volumes: Volumes) -> None:
    model.grid.check_same(volumes.grid.shape, volumes.grid.affine, place="The volumes cache")
    if not np.array_equal(model.mask, volumes.mask):
        raise GridError(
            f"The volumes cache has a mask of {int(volumes.mask.sum())} voxels, the model one of {int(model.mask.sum())}, or "
            "they lie elsewhere. Pack the scans with the mask the model was trained with, or train again on this cache."
        )
