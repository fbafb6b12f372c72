"""Cost: what a training needs in memory, arithmetic and time, measured on a few scans before it begins."""

import math
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from nilatent.errors import SettingError
from nilatent.models import ModelConfig
from nilatent.training.config import TrainConfig
from nilatent.training.start import Run, set_up
from nilatent.training.step import gradients
from nilatent.training.validation import validate
from nilatent.volumes import PCA_MAX_SCANS, Volumes

# A weight, the optimiser's two moments and the best weights so far, each in single precision; gradients are measured.
COPIES_OF_WEIGHTS = 4
# While they are written to disk, all of these exist twice more: on the processor, and as the bytes of the file.
COPIES_ON_DISK = 2 * COPIES_OF_WEIGHTS
# An epoch ends with the reconstruction of the validation scans, and with their evidence lower bound.
VALIDATION_PASSES = 2
# What a process takes beyond its live tensors: copies inside operations, and freed memory that it does not give back.
# Measured on a processor at 4 and 2 mm (1.5 to 2.4 for both kinds of model, whole batches and parts); on a GPU assumed.
SLACK = {"cpu": 1.75, "other": 1.25}
CONVOLUTIONS = (torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default)
BYTES = 4
GB = 1e9
SECONDS_A_MINUTE, SECONDS_AN_HOUR = 60, 3600


@dataclass(frozen=True)
class Cost:
    """What a training needs.

    Parameters
    ----------
    n_weights : int
        Numbers that are trained, those of a critic included.
    n_fixed : int
        Numbers that are not: mask, mean image, components, frozen parts.
    compression : float
        Voxels inside the mask per latent.
    gflop_per_scan : float
        Multiplications and additions of one scan's step, forward and backward, in billions.
    memory_gb : float
        Of weights, gradients, moments, a micro-batch with what its backward pass keeps, or of the principal components that
        the training starts from where these need more; on each GPU, or of all processes together on a processor. In GB of
        10^9 bytes; the library itself (some 0.4) and the cache of scans, which is only mapped, come on top. On a processor
        the measured peak lies within a factor of 1.5 of it.
    step_seconds : float
        Of one batch, on this device.
    total_seconds : float
        When every epoch is run, validation included; patience may end it sooner.
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

    The start it computes is kept in the folder, and the training takes it up. One and two scans are measured first, so
    that a training that is too large is refused before it is tried.

    Raises
    ------
    SettingError
        When the training needs more memory than is free, with what would help.
    """
    run = set_up(volumes, parts, model_config, config, folder, scans=scans)
    rows = run.rows["train"]
    n_scans = min(config.piece, len(rows))
    on_processor = run.fabric.device.type == "cpu"
    try:
        with FlopCounterMode(display=False) as counter:
            _piece(run, 1)
        passing = memory_of(lambda n: _piece(run, n), n_scans)
    except torch.OutOfMemoryError as error:
        raise SettingError(
            "Not even one scan at a time fits into this device's memory. Set training.checkpointing = true, lower "
            "model.channels, or prepare the scans at a larger recipe.spacing_mm."
        ) from error
    held, saving = _held(run)
    passing = round(passing * SLACK["cpu" if on_processor else "other"])
    memory = held + max(passing, saving)
    memory = max(memory * config.devices, _start_bytes(run)) if on_processor else held + passing
    check_fits(memory, available(run.fabric.device), run, n_scans)
    _piece(run, n_scans)
    seconds = _timed(run, lambda: _piece(run, n_scans))
    some = run.rows["validation"][: config.piece]
    checking = _timed(run, lambda: validate(run.module, volumes, some, batch_size=config.piece, conditions=run.told))
    # Processes on one machine's cores share these; GPUs do not.
    n_workers = 1 if on_processor else config.n_processes
    pieces = [-(-min(config.batch_size, len(rows) - first) // config.piece) for first in _firsts(run)]
    turns = sum(-(-number // n_workers) for number in pieces)
    epoch = seconds * turns + VALIDATION_PASSES * checking * len(run.rows["validation"]) / len(some)
    modules: list[nn.Module] = [run.module] if run.rival is None else [run.module, run.rival.critic]
    n_weights = sum(one.numel() for module in modules for one in module.parameters() if one.requires_grad)
    return Cost(
        n_weights=n_weights,
        n_fixed=_n_numbers(modules) - n_weights,
        compression=int(volumes.mask.sum()) / model_config.n_values,
        gflop_per_scan=counter.get_total_flops() / 1e9,
        memory_gb=memory / GB,
        step_seconds=seconds * -(-pieces[0] // n_workers),
        total_seconds=config.n_epochs * epoch,
    )


def memory_of(piece: Callable[[int], object], n_scans: int) -> int:
    """Bytes that a forward and backward pass over some scans takes at most at a time.

    Parameters
    ----------
    piece : callable
        Takes a number of scans and passes them forward and backward.
    n_scans : int
        How many.

    Returns
    -------
    int
        Measured for one and two scans, and from there on a straight line. What the memory manager keeps for later is not
        seen.
    """
    one = _peak(lambda: piece(1))
    if n_scans == 1:
        return one
    return one + (n_scans - 1) * (_peak(lambda: piece(2)) - one)


def _peak(run: Callable[[], object]) -> int:
    with LiveBytes() as live:
        run()
    return int(live.peak)


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Count the bytes of the tensors that are made inside it and still alive, and the most of them at a time.

    A convolution copies what it takes and what it gives into an order of its own; for as long as it runs these copies
    count, too.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive = 0
        self.peak = 0
        self.known: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        taken = _storages((args, kwargs))
        made = func(*args, **(kwargs or {}))
        given = _storages(made)
        for place, storage in given.items():
            if place not in taken:
                self._add(storage)
        copies = sum(storage.nbytes() for storage in (taken | given).values()) if func in CONVOLUTIONS else 0
        self.peak = max(self.peak, self.alive + copies)
        return made

    def _add(self, storage: Any) -> None:
        if storage in self.known:
            return
        size = storage.nbytes()
        self.known[storage] = size
        self.alive += size
        weakref.finalize(storage, self._drop, size)

    def _drop(self, size: int) -> None:
        self.alive -= size


def _storages(values: object) -> dict[int, Any]:
    tensors = [one for one in tree_leaves(values) if isinstance(one, Tensor)]
    return {id(one.untyped_storage()): one.untyped_storage() for one in tensors}


def available(device: torch.device) -> int | None:
    """Bytes that are free on a device; None where nothing tells."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    listed = Path("/proc/meminfo")
    if device.type != "cpu" or not listed.is_file():
        return None
    for line in listed.read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def check_fits(needed: int, free: int | None, run: Run, n_scans: int) -> None:
    """Refuse a training that needs more memory than is free.

    Parameters
    ----------
    needed, free : int
        Bytes; None is not known, and then nothing is refused.
    run : Run
        What is trained.
    n_scans : int
        Scans at a time.

    Raises
    ------
    SettingError
        Says what would help.
    """
    if free is None or needed <= free:
        return
    ways = []
    if n_scans > 1:
        ways.append(f"set training.micro_batch to {n_scans // 2} or less (the result stays that of a batch)")
    if not run.config.checkpointing:
        ways.append("set training.checkpointing = true")
    ways.append("take a preset for a smaller machine, such as cpu-small")
    raise SettingError(
        f"The training needs about {needed / GB:.2g} GB with {n_scans} scans at a time, and {free / GB:.2g} GB are free here. "
        f"To make it fit, {', or '.join(ways)}."
    )


def _piece(run: Run, n_scans: int) -> None:
    """Forward and backward over some scans, with the critic on where there is one; weights stay as they are."""
    rows = run.rows["train"]
    piece = rows[[number % len(rows) for number in range(n_scans)]]
    generator = torch.Generator(run.fabric.device).manual_seed(0)
    gradients(run, piece, generator, share=1.0, kl_weight=1.0, rival=run.rival)
    for optimiser in (run.optimiser, *(() if run.rival is None else (run.rival.optimiser,))):
        optimiser.zero_grad(set_to_none=True)


def _held(run: Run) -> tuple[int, int]:
    """Bytes of what stays from step to step, and of what is added to it while an epoch is written."""
    learners: list[nn.Module] = [learner for learner, _ in run.learners.values()]
    free = sum(one.numel() for learner in learners for one in learner.parameters() if one.requires_grad)
    return BYTES * (COPIES_OF_WEIGHTS * free + _n_numbers(learners) - free), BYTES * COPIES_ON_DISK * free


def _start_bytes(run: Run) -> int:
    """Bytes of the principal components while they are computed: the scans inside the mask, and what comes of them."""
    n_scans = min(len(run.rows["train"]), PCA_MAX_SCANS)
    n_components = min(run.model_config.n_values, n_scans - 1)
    return BYTES * int(run.volumes.mask.sum()) * (n_scans + 2 * n_components)


def _n_numbers(modules: list[nn.Module]) -> int:
    return sum(one.numel() for module in modules for one in (*module.parameters(), *module.buffers()))


def _firsts(run: Run) -> range:
    return range(0, len(run.rows["train"]), run.config.batch_size)


def _timed(run: Run, work: Callable[[], object]) -> float:
    _wait(run.fabric.device)
    began = time.perf_counter()
    work()
    _wait(run.fabric.device)
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _duration(seconds: float) -> str:
    if math.isnan(seconds):
        return "an unknown time"
    if seconds < 2 * SECONDS_A_MINUTE:
        return f"{seconds:.0f} seconds"
    if seconds < 2 * SECONDS_AN_HOUR:
        return f"{seconds / SECONDS_A_MINUTE:.0f} minutes"
    return f"{seconds / SECONDS_AN_HOUR:.1f} hours"
