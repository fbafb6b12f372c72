"""Cost: what a training needs in memory, arithmetic and time, measured on one batch before it begins."""

import math
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nilatent.models import ModelConfig
from nilatent.training.config import TrainConfig
from nilatent.training.start import set_up
from nilatent.training.validation import read_batch, told
from nilatent.volumes import Volumes

# Weight, gradient and the optimiser's two moments, each in single precision; the best weights so far are a fifth.
COPIES_OF_WEIGHTS = 5
SECONDS_A_MINUTE, SECONDS_AN_HOUR = 60, 3600


@dataclass(frozen=True)
class Cost:
    """What a training needs.

    Parameters
    ----------
    n_weights : int
        Numbers that are trained.
    n_fixed : int
        Numbers that are not: mask, mean image, components.
    compression : float
        Voxels inside the mask per latent.
    gflop_per_scan : float
        Multiplications and additions of one scan's step, forward and backward, in billions.
    memory_gb : float
        Of weights, gradients, moments, one batch and what its backward pass keeps, in GB of 10^9 bytes; the library itself
        and the cache of scans, which is only mapped, come on top.
    step_seconds : float
        Of one batch, on this device.
    total_seconds : float
        When every epoch is run; patience may end it sooner.
    """

    n_weights: int
    n_fixed: int
    compression: float
    gflop_per_scan: float
    memory_gb: float
    step_seconds: float
    total_seconds: float

    @property
    def sentence(self) -> str:
        """The same in words."""
        return (
            f"{self.n_weights:,} weights and {self.n_fixed:,} fixed numbers, one latent for {self.compression:,.0f} voxels, "
            f"{self.gflop_per_scan:.3g} GFLOP a scan and step; needs about {self.memory_gb:.2g} GB and at most "
            f"{_duration(self.total_seconds)} here"
        )


def cost_of(
    volumes: Volumes,
    parts: pd.DataFrame,
    model_config: ModelConfig,
    config: TrainConfig,
    folder: Path,
    *,
    scans: pd.DataFrame | None = None,
) -> Cost:
    """What :func:`nilatent.training.loop.train` would need with the same arguments, on this machine.

    The start it computes is kept in the folder, and the training takes it up.
    """
    run = set_up(volumes, parts, model_config, config, folder, scans=scans)
    rows = run.rows["train"]
    batch = rows[: config.batch_size]
    return estimate(
        run.objective,
        read_batch(volumes, batch).to(run.fabric.device),
        c=told(run.told, batch, run.fabric.device),
        n_latent=model_config.n_values,
        n_voxels=int(volumes.mask.sum()),
        n_steps=config.n_epochs * math.ceil(len(rows) / config.batch_size),
    )


def estimate(
    objective: nn.Module,
    batch: Float[Tensor, "batch 1 x y z"],
    *,
    n_latent: int,
    n_voxels: int,
    n_steps: int,
    c: Float[Tensor, "batch condition"] | None = None,
) -> Cost:
    """Run one batch forward and backward twice, and reckon from it.

    Parameters
    ----------
    objective : Module
        Takes scans and a generator, gives a loss; its weights are left as they are, their gradients are dropped.
    batch : (batch, 1, x, y, z) Tensor
        On the device of the objective.
    n_latent, n_voxels : int
        Latents of a scan, and voxels inside the mask.
    n_steps : int
        Batches of the whole training.
    c : (batch, condition) Tensor, optional
        What the model is told of each scan.

    Returns
    -------
    Cost
        The first batch is counted and the second timed, because the first one also sets things up.
    """
    generator = torch.Generator(batch.device).manual_seed(0)
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with (
        FlopCounterMode(display=False) as counter,
        torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor),
    ):
        objective(batch, generator, c).backward()
    _wait(batch.device)
    began = time.perf_counter()
    objective(batch, generator, c).backward()
    _wait(batch.device)
    seconds = time.perf_counter() - began
    objective.zero_grad(set_to_none=True)
    weights = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    n_weights = sum(parameter.numel() for parameter in weights)
    n_fixed = sum(buffer.numel() for buffer in objective.buffers())
    own = {tensor.untyped_storage().data_ptr() for tensor in (*objective.parameters(), *objective.buffers())}
    activations = sum(size for place, size in kept.items() if place not in own)
    memory = 4 * (COPIES_OF_WEIGHTS * n_weights + n_fixed) + activations + batch.nbytes
    return Cost(
        n_weights=n_weights,
        n_fixed=n_fixed,
        compression=n_voxels / n_latent,
        gflop_per_scan=counter.get_total_flops() / len(batch) / 1e9,
        memory_gb=memory / 1e9,
        step_seconds=seconds,
        total_seconds=seconds * n_steps,
    )


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _duration(seconds: float) -> str:
    if seconds < 2 * SECONDS_A_MINUTE:
        return f"{seconds:.0f} seconds"
    if seconds < 2 * SECONDS_AN_HOUR:
        return f"{seconds / SECONDS_A_MINUTE:.0f} minutes"
    return f"{seconds / SECONDS_AN_HOUR:.1f} hours"
