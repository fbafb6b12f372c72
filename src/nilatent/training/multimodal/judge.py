"""A joint model on scans it is not learning from: its bound, each modality from the others, and how much each has to say."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nilatent.models.multimodal import ImagePart, MultimodalVae, TablePart
from nilatent.training.multimodal.data import Joined
from nilatent.training.validation import Rows, exact

# Draws per scan, the same in every epoch, so that epochs are compared and not their noise.
N_DRAWS = 4


@dataclass(frozen=True, eq=False)
class Bounds:
    """Evidence lower bound of what is present of some scans.

    Parameters
    ----------
    total : ndarray
        (scan,) nats.
    likelihood : ndarray
        (modality,) mean expected log-likelihood of the scans that have it.
    private_kl, shared_kl : float
        Mean divergences per scan.
    """

    total: npt.NDArray[np.float64]
    likelihood: npt.NDArray[np.float64]
    private_kl: float
    shared_kl: float


@exact()
def bounds(module: MultimodalVae, joined: Joined, rows: Rows, *, batch_size: int, seed: int) -> Bounds:
    """Evidence lower bound of scans, without hidden modalities, weights or noise on what the networks see.

    Parameters
    ----------
    module : MultimodalVae
        On any device.
    joined : Joined
        The modalities.
    rows : ndarray
        Which scans.
    batch_size : int
        Scans at a time.
    seed : int
        Of four draws per scan, the same in every call.
    """
    total, likelihood, private, shared = [], [], 0.0, 0.0
    generator = torch.Generator(_device(module)).manual_seed(seed)
    for x, present in _batches(module, joined, rows, batch_size):
        drawn = [module.bound(x, present, generator) for _ in range(N_DRAWS)]
        total.append(torch.stack([one.total() for one in drawn]).mean(dim=0).double().cpu().numpy())
        likelihood.append(torch.stack([one.likelihood for one in drawn]).mean(dim=0).double().cpu().numpy())
        private += float(sum(one.private_kl.sum() for one in drawn)) / N_DRAWS
        shared += float(drawn[0].shared_kl.sum())
    n_present = joined.present[rows].sum(axis=0)
    return Bounds(
        np.concatenate(total),
        np.concatenate(likelihood).sum(axis=0) / np.maximum(n_present, 1),
        private / len(rows),
        shared / len(rows),
    )


@exact()
def crossed(module: MultimodalVae, joined: Joined, rows: Rows, *, batch_size: int) -> dict[str, float]:
    """Fraction of variance unexplained of each modality when it is predicted from all others.

    Returns
    -------
    dict[str, float]
        1 is as good as the mean of the training scans. Of a table, over its columns of numbers in SD of the training scans;
        NaN where it has none, or no scan has this modality and another.
    """
    told = {}
    for place, name in enumerate(module.names):
        others = joined.present.copy()
        others[:, place] = False
        own = rows[joined.present[rows, place] & others[rows].any(axis=1)]
        missed = total = 0.0
        for x, present in _batches(module, joined, own, batch_size):
            present[:, place] = False
            drawn = module.draw(name, module.encode(x, present).moments().mean)
            error, around = _errors(module.part(name), x[name], drawn)
            missed, total = missed + error, total + around
        told[name] = missed / total if total > 0 else math.nan
    return told


def _errors(part: ImagePart | TablePart, x: Tensor, drawn: Tensor) -> tuple[float, float]:
    """Squared errors of a prediction, and of the mean of the training scans."""
    if isinstance(part, ImagePart):
        index = part.get_buffer("index")
        seen, drawn = x.flatten(1)[:, index], drawn.flatten(1)[:, index]
        return float((seen - drawn).square().sum()), float((seen - part.get_buffer("mean")).square().sum())
    numbers = part.numbers.to(x.device)
    known = x[:, 1, numbers]
    error = (x[:, 0, numbers] - drawn[:, numbers]).square() * known
    return float(error.sum()), float((x[:, 0, numbers].square() * known).sum())


@exact()
def balance(
    module: MultimodalVae, joined: Joined, rows: Rows, weights: Mapping[str, float]
) -> dict[str, dict[str, Any]]:
    """How much each modality weighs, in training and in the shared latents.

    Returns
    -------
    dict
        Per modality: ``n_values`` (voxels or columns), ``weight`` (the factor asked for), ``noise_sd`` (of a voxel, in units
        of the scans; of a table the mean over its columns of numbers, in SD), ``nats_per_percent`` (what training gains when its
        squared error falls by one per cent: half a nat per hundred values, by the weight) and ``shared_nats`` (mean information
        about the shared latents, by it alone, in the scans that have it).
    """
    told = {}
    for place, name in enumerate(module.names):
        part, nats = module.part(name), []
        for x, present in _batches(module, joined, rows[joined.present[rows, place]], 16):
            alone = torch.zeros_like(present)
            alone[:, place] = True
            root = module.encode(x, alone).root
            # Of a mixture the components differ; the widest knowledge is that of the one with this modality alone.
            nats.append(torch.diagonal(root, dim1=-2, dim2=-1).log().sum(dim=-1).amax(dim=1))
        weight = float(weights.get(name, 1.0))
        told[name] = {
            "n_values": part.n_values,
            "weight": weight,
            "noise_sd": _noise_sd(part),
            "nats_per_percent": 0.005 * part.n_values * weight,
            "shared_nats": float(torch.cat(nats).mean()) if nats else math.nan,
        }
    return told


def _noise_sd(part: ImagePart | TablePart) -> float:
    noise = part.log_noise.detach().exp().sqrt()
    if isinstance(part, ImagePart):
        return float(noise)
    return float(noise[part.numbers.to(noise.device)].mean()) if len(part.numbers) else math.nan


def _device(module: MultimodalVae) -> torch.device:
    return next(module.parameters()).device


def _batches(
    module: MultimodalVae, joined: Joined, rows: Rows, batch_size: int
) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    for first in range(0, len(rows), batch_size):
        yield joined.batch(rows[first : first + batch_size], _device(module))
