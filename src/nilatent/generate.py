"""A trained decoder in use: latents to images, a batch at a time, so that ten thousand take no more memory than ten."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from nilatent.errors import LatentsError
from nilatent.training.checkpoint import TrainedModel
from nilatent.training.validation import draw


def images(
    model: TrainedModel,
    latents: np.ndarray,
    told: pd.DataFrame | None = None,
    *,
    batch_size: int = 16,
) -> Iterator[npt.NDArray[np.float32]]:
    """Images that a model draws at latents.

    Parameters
    ----------
    model : TrainedModel
        The model.
    latents : ndarray
        (n, value), those of a grid flat.
    told : DataFrame, optional
        n rows with the columns that the model is told of every scan; left out: as for its average training scan.
    batch_size : int
        Images at a time; it changes speed and memory only.

    Yields
    ------
    ndarray
        (batch, voxel) float32 inside the mask, in units of the training scans. An image is the mean of what the model
        expects at its latents, without the noise of a scanner: smoother than a scan.

    Raises
    ------
    LatentsError
        When the latents are not as wide as the model's, not finite, or `told` has another number of rows.
    """
    width = int(np.prod(model.module.latent_shape))
    if latents.ndim != 2 or latents.shape[1] != width or not np.isfinite(latents).all():
        raise LatentsError(f"The model draws from finite latents (n, {width}), and was given {latents.shape}.")
    n_told = model.conditions.n_values
    conditions = np.zeros((len(latents), n_told), dtype=np.float32)
    if n_told and told is not None:
        if len(told) != len(latents):
            raise LatentsError(f"{len(latents)} latents came with {len(told)} rows of what the model is told.")
        conditions = np.asarray(model.conditions.values(told), dtype=np.float32)
    for start in range(0, len(latents), batch_size):
        batch = slice(start, start + batch_size)
        z = torch.from_numpy(np.ascontiguousarray(latents[batch], dtype=np.float32))
        yield draw(model.module, z, torch.from_numpy(conditions[batch]) if n_told else None)
