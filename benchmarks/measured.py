"""What the training benchmarks share: clocks, and the machine in words."""

import os
import platform
import time
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Spent:
    """Wall and processor seconds."""

    wall: float
    processor: float


class Clock:
    """Wall and processor seconds since it was made, waiting for an accelerator before it is read."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._began = self._now()

    def _now(self) -> tuple[float, float]:
        if self._device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter(), time.process_time()

    def read(self) -> Spent:
        """Seconds so far."""
        wall, processor = self._now()
        return Spent(wall - self._began[0], processor - self._began[1])


def machine(threads: int) -> str:
    """Cores, memory, library and load: what a figure cannot be read without."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    device = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return (
        f"{os.cpu_count()} cores ({platform.machine()}), {memory:.0f} GB{device}, torch {torch.__version__}, "
        f"{threads} threads, load {os.getloadavg()[0]:.1f}"
    )
