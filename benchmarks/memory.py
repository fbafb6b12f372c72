"""Whether training needs more memory for more scans: anonymous memory with few and with many simulated volumes.

Each count is trained in a fresh process on a cache of scans that is mapped from disk. Counted is the peak of RssAnon of
/proc/self/status, which leaves mapped pages out; Linux only.

    python benchmarks/memory.py --counts 200 4000
    python benchmarks/memory.py --quick
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from measured import machine

from nilatent.cohort import Cohort
from nilatent.grid import Grid
from nilatent.models import ModelConfig
from nilatent.parts import SplitConfig, split
from nilatent.simulate.config import SimulationConfig
from nilatent.simulate.memory import simulate_maps
from nilatent.training.loop import TrainConfig, train
from nilatent.volumes import Volumes, gm_mask

N_BASES = 12
SECONDS_BETWEEN = 0.01


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="40 and 400 scans at 6 mm")
    parser.add_argument("--counts", type=int, nargs="+", default=[200, 4000])
    parser.add_argument("--spacing", type=float, default=4.0, help="voxel size in mm")
    parser.add_argument("--anchors", nargs="+", choices=("pca", "none"), default=["pca", "none"])
    parser.add_argument("--n-latent", type=int, default=16)
    parser.add_argument("--n-epochs", type=int, default=1)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--one", nargs=3, metavar=("COUNT", "ANCHOR", "FILE"), help="train in this process and print what was seen"
    )
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.counts, arguments.spacing = [40, 400], 6.0
    return arguments


def anonymous_mb() -> float:
    """RssAnon of this process in MB of 10^6 bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024 / 1e6


class Watch(threading.Thread):
    """Keeps the largest RssAnon seen."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0.0
        self.done = threading.Event()

    def run(self) -> None:
        """Look again and again."""
        while not self.done.is_set():
            self.peak = max(self.peak, anonymous_mb())
            time.sleep(SECONDS_BETWEEN)


def write_mixtures(n_scans: int, spacing_mm: float, path: Path) -> None:
    """Write random mixtures of a few simulated maps, each with noise of its own."""
    maps = simulate_maps(SimulationConfig(n_subjects=N_BASES, spacing_mm=spacing_mm)).maps
    rng = np.random.default_rng(0)
    with path.open("wb") as file:
        for _ in range(n_scans):
            mixed = np.tensordot(rng.dirichlet(np.ones(N_BASES)).astype(np.float32), maps, axes=1)
            (mixed + 0.05 * rng.standard_normal(mixed.shape, dtype=np.float32)).astype(np.float16).tofile(file)


def open_mixtures(n_scans: int, spacing_mm: float, path: Path) -> Volumes:
    """Map what :func:`write_mixtures` wrote."""
    grid = Grid.mni(spacing_mm)
    ids = [f"sub-{index:05d}" for index in range(n_scans)]
    scans = pd.DataFrame({"subject_id": ids, "dataset": "simulated"}, index=pd.Index(ids, name="scan_id"))
    data = np.memmap(path, dtype=np.float16, mode="r", shape=(n_scans, *grid.shape))
    return Volumes(data, gm_mask(grid), grid, scans, f"mixtures {n_scans}")


def train_once(arguments: argparse.Namespace) -> dict[str, float]:
    """Train in this process, watched."""
    torch.set_num_threads(arguments.threads)
    count, anchor, path = int(arguments.one[0]), arguments.one[1], Path(arguments.one[2])
    model = ModelConfig(name="vae", n_latent=arguments.n_latent, anchor=anchor)
    with tempfile.TemporaryDirectory() as folder:
        volumes = open_mixtures(count, arguments.spacing, path)
        cohort = Cohort(volumes.scans, pd.DataFrame(columns=["scan_id", "path", "stage", "rule", "reason"]), {})
        parts = split(cohort, SplitConfig(seed=0))
        before, watch = anonymous_mb(), Watch()
        watch.start()
        steps: list[float] = []
        train(
            volumes,
            parts,
            model,
            TrainConfig(n_epochs=arguments.n_epochs, device="cpu"),
            Path(folder) / "model",
            on_epoch=lambda _: steps.append(anonymous_mb()),
        )
        watch.done.set()
        watch.join()
    return {"before_mb": before, "after_epoch_mb": steps[-1], "peak_mb": watch.peak}


def main() -> None:
    arguments = read_arguments()
    if arguments.one:
        print(json.dumps(train_once(arguments)))
        return
    print(machine(arguments.threads))
    print(
        "\n| Start | Scans | MB before | MB after an epoch | peak MB | peak, relative to the fewest |\n|---|---|---|---|---|---|"
    )
    settings = ("--spacing", arguments.spacing, "--n-latent", arguments.n_latent)
    settings += ("--n-epochs", arguments.n_epochs, "--threads", arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        first: dict[str, float] = {}
        for count in arguments.counts:
            path = Path(folder) / f"{count}.bin"
            write_mixtures(count, arguments.spacing, path)
            for anchor in arguments.anchors:
                one = ("--one", count, anchor, path)
                command = [sys.executable, "-W", "ignore", __file__, *map(str, (*one, *settings))]
                told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                found = json.loads(told.splitlines()[-1])
                ratio = found["peak_mb"] / first.setdefault(anchor, found["peak_mb"])
                print(
                    f"| {anchor} | {count:,} | {found['before_mb']:.0f} | {found['after_epoch_mb']:.0f} "
                    f"| {found['peak_mb']:.0f} | {ratio:.3f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
