"""Devices: where a training runs, and the processes that share it."""

import contextlib
import mmap
import multiprocessing
import os
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import Tensor, nn

from nilatent.errors import NilatentError, SettingError
from nilatent.training.config import TrainConfig
from nilatent.volumes import Volumes

# The others wait for the first process while it computes the start and the figures of an epoch.
PATIENCE = timedelta(hours=2)
SECONDS_TO_END = 10.0
SECONDS_OF_A_LOOK = 0.2


class ProcessError(NilatentError):
    """One of the processes that share a training has ended."""


class SharedStrategy(DDPStrategy):
    """Processes with a device each that know of one another; they share what the loop tells them to, in sight."""

    def setup_module(self, module: nn.Module) -> nn.Module:  # type: ignore[override]
        """Return the module as it is: a wrapper would exchange gradients by itself, after each piece of a batch."""
        return module


def fabric_of(config: TrainConfig, *, alone: bool = False) -> Fabric:
    """The device and precision of a training.

    Parameters
    ----------
    config : TrainConfig
        Its `device`, `devices`, `num_nodes` and `precision` are used.
    alone : bool
        One process for itself, whatever the settings ask for.

    Raises
    ------
    SettingError
        When the machine has no such device, or not as many.
    """
    absent = {"cuda": not torch.cuda.is_available(), "mps": not torch.backends.mps.is_available()}
    if absent.get(config.device, False):
        raise SettingError(
            f"training.device is '{config.device}', and torch finds none on this machine. Set it to auto or cpu, or install "
            "a torch that is built for it."
        )
    if alone or config.n_processes == 1:
        return Fabric(accelerator=config.device, devices=1, precision=_precision(config))
    on_gpu = config.device == "cuda" or (config.device == "auto" and torch.cuda.is_available())
    if on_gpu and config.devices > torch.cuda.device_count():
        raise SettingError(
            f"training.devices is {config.devices}, and torch finds {torch.cuda.device_count()} GPUs on this machine. Ask for "
            "as many as there are, or set training.device to cpu."
        )
    return Fabric(
        accelerator=config.device,
        devices=config.devices,
        num_nodes=config.num_nodes,
        strategy=SharedStrategy(timeout=PATIENCE),
        precision=_precision(config),
    )


def _precision(config: TrainConfig) -> Any:
    if config.precision != "auto":
        return config.precision
    # On processors bfloat16 gained nothing at 4 or 2 mm with these narrow layers.
    mixed = config.device in ("auto", "cuda") and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return "bf16-mixed" if mixed else "32-true"


@contextmanager
def together(job: "partial[Any]", config: TrainConfig) -> Iterator[Fabric]:
    """The devices of a training, with every process that shares it at work.

    Parameters
    ----------
    job : partial
        The training itself, with all its arguments; what the other processes of this machine call. It comes by here in
        each of them.
    config : TrainConfig
        Says how many.

    Yields
    ------
    Fabric
        Launched. Where ``torchrun`` or SLURM has started a process for each device, it joins them; otherwise the others
        are started here, by ``spawn``, so that a script needs its ``if __name__ == "__main__":``.

    Raises
    ------
    SettingError
        When several machines are asked for and nothing has started a process on each.
    ProcessError
        When another process has ended before its time.
    """
    started = int(os.environ.get("WORLD_SIZE", config.n_processes))
    if started != config.n_processes:
        raise SettingError(
            f"{started} processes were started, and training.devices times training.num_nodes is {config.n_processes}. Give "
            "--devices (on each machine) and --num-nodes as they were started."
        )
    fabric = fabric_of(config)
    if config.n_processes == 1:
        yield fabric
        return
    if _started_elsewhere(fabric):
        fabric.launch()
        yield fabric
        return
    if config.num_nodes > 1:
        raise SettingError(
            f"training.num_nodes is {config.num_nodes}, and nothing has started a process on each device of each machine. "
            f"Start the same command there with `torchrun --nnodes {config.num_nodes} --nproc-per-node {config.devices}`, or "
            "with srun."
        )
    with _companions(job, config.devices):
        fabric.launch()
        try:
            yield fabric
        finally:
            torch.distributed.destroy_process_group()


def is_follower() -> bool:
    """Whether ``torchrun`` or SLURM has started this process as another than the first: it trains, and writes nothing."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))) > 0


def _started_elsewhere(fabric: Fabric) -> bool:
    environment = getattr(fabric.strategy, "cluster_environment", None)
    return environment is not None and environment.creates_processes_externally


@contextmanager
def _companions(job: "partial[Any]", n_processes: int) -> Iterator[None]:
    """Start the processes that join this one, which becomes the first; whatever happens, none of them is left behind."""
    n_threads = torch.get_num_threads()
    share = max(n_threads // n_processes, 1)
    context = multiprocessing.get_context("spawn")
    port = _free_port()
    ready = [context.Event() for _ in range(1, n_processes)]
    others = [
        context.Process(target=_accompany, args=(_portable(job), rank, port, share, sign), daemon=True)
        for rank, sign in enumerate(ready, start=1)
    ]
    before = dict(os.environ)
    try:
        for process in others:
            process.start()
        for process, sign in zip(others, ready, strict=True):
            # One that cannot even begin would be waited for in vain.
            while not sign.wait(SECONDS_OF_A_LOOK):
                if not process.is_alive():
                    raise ProcessError(
                        f"A process of the training could not be started (code {process.exitcode}); its own message is above. "
                        'A script that trains on several devices needs `if __name__ == "__main__":` around what it does.'
                    )
        os.environ.update(_environment(0, port))
        torch.set_num_threads(share)
        yield
    except RuntimeError as error:
        gone = [process for process in others if not process.is_alive() and process.exitcode != 0]
        if not gone:
            raise
        raise ProcessError(
            f"{len(gone)} of the {n_processes} processes of the training ended with code {gone[0].exitcode}; its own "
            "message is above. The same command goes on after the last finished epoch."
        ) from error
    finally:
        torch.set_num_threads(n_threads)
        os.environ.clear()
        os.environ.update(before)
        for process in others:
            # Done or not, there is nothing left that they could do alone.
            if sys.exc_info()[0] is None:
                process.join(SECONDS_TO_END)
            process.terminate()
            process.join()


def _environment(rank: int, port: int) -> dict[str, str]:
    return {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def _accompany(job: "partial[Any]", rank: int, port: int, n_threads: int, sign: Event) -> None:
    sign.set()
    os.environ.update(_environment(rank, port))
    torch.set_num_threads(n_threads)
    job = partial(job.func, *(_opened(one) for one in job.args), **job.keywords)
    # The first process raises the same, and the user reads it there.
    with contextlib.suppress(NilatentError, KeyboardInterrupt):
        job()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@dataclass(frozen=True)
class _Mapped:
    """A memory-mapped array by its place on disk, so that another process maps it too rather than gets a copy."""

    path: str
    offset: int
    shape: tuple[int, ...]
    dtype: str


def _portable(job: "partial[Any]") -> "partial[Any]":
    return partial(job.func, *(_packed(one) for one in job.args), **job.keywords)


def _packed(argument: Any) -> Any:
    data = argument.data if isinstance(argument, Volumes) else None
    # A part of a map says of itself that it begins where the whole does.
    if not isinstance(data, np.memmap) or not isinstance(data.base, mmap.mmap) or data.filename is None:
        return argument
    place = _Mapped(str(Path(data.filename).absolute()), data.offset, data.shape, data.dtype.str)
    empty = np.zeros((0, *data.shape[1:]), dtype=data.dtype)
    return place, replace(argument, data=empty, scans=argument.scans.iloc[:0]), argument.scans


def _opened(argument: Any) -> Any:
    if not isinstance(argument, tuple) or not isinstance(argument[0], _Mapped):
        return argument
    place, volumes, scans = argument
    data = np.memmap(place.path, dtype=place.dtype, mode="r", offset=place.offset, shape=place.shape)
    return replace(volumes, data=data, scans=scans)


def add_up(fabric: Fabric, modules: Sequence[nn.Module], *sums: Tensor) -> list[Tensor]:
    """Add up over all processes, in one exchange, the gradients of modules and some more numbers.

    Parameters
    ----------
    fabric : Fabric
        Launched.
    modules : Sequence[Module]
        The gradients of their parameters are replaced by their sums, whether this process had any or not.
    sums : Tensor
        Of any shape, on the device.

    Returns
    -------
    list[Tensor]
        The sums of `sums`. All processes have the same bits.
    """
    if fabric.world_size == 1:
        return list(sums)
    weights = [one for module in modules for one in module.parameters() if one.requires_grad]
    for weight in weights:
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
    parts = [*(weight.grad for weight in weights if weight.grad is not None), *sums]
    flat = torch.cat([part.detach().float().flatten() for part in parts])
    flat = cast(Tensor, fabric.all_reduce(flat, reduce_op="sum"))
    split = torch.split(flat, [part.numel() for part in parts])
    shaped = [values.view(part.shape) for values, part in zip(split, parts, strict=True)]
    for weight, total in zip(weights, shaped, strict=False):
        if weight.grad is not None:
            weight.grad.copy_(total)
    return shaped[len(weights) :]


def of_all(fabric: Fabric, find: Callable[[], Any]) -> Any:
    """What the first process finds, told to all others, so that every one decides alike.

    Parameters
    ----------
    fabric : Fabric
        Launched.
    find : callable
        Called in the first process only; gives plain values.
    """
    return fabric.broadcast(find() if fabric.is_global_zero else None)
