"""Samples per second of `nilatent generate samples`, and whether ten thousand take more memory than a hundred.

Decoding is held against the matrix product: the share that its multiplications and additions have of the rate that a product
of large single-precision matrices reaches in the same process with as many threads. Writing is held against `nibabel.save`
of the same images alone. With one thread the clock counts processor time, which other work on the machine disturbs least;
with more it counts wall time. Memory is the peak of RssAnon of /proc/self/status (Linux only) of a fresh process that
exports so many samples, which are deleted afterwards.

    OMP_NUM_THREADS=1 python benchmarks/generation.py RUN
    OMP_NUM_THREADS=1 python benchmarks/generation.py RUN --n 64 --counts 32 128
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import torch
from measured import machine
from memory import Watch, anonymous_mb
from torch.utils.flop_counter import FlopCounterMode

from nilatent.analysis.copies import fit_copy_rule
from nilatent.generate import images
from nilatent.pools import open_pools
from nilatent.spaces import study_space
from nilatent.synthetic import SamplesConfig, export_samples, form_of, write_synthetic
from nilatent.synthetic.plan import BLOCK, drawn, plan_samples
from nilatent.training.checkpoint import load_model

PEAK_SIDE, N_TIMES = 1024, 5


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("--n", type=int, default=256, help="samples that are timed")
    parser.add_argument("--counts", type=int, nargs="*", default=[100, 10_000], help="samples whose memory is watched")
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    parser.add_argument("--one", type=int, help="export so many in this process and print what was seen")
    return parser.parse_args()


class Bench:
    """Seconds of the processor for one thread, of the wall for more."""

    def __init__(self, threads: int) -> None:
        self._now = time.process_time if threads == 1 else time.perf_counter

    def seconds(self, run: Callable[[], object], n_times: int = 1) -> float:
        """Least seconds of some runs."""
        found = []
        for _ in range(n_times):
            began = self._now()
            run()
            found.append(self._now() - began)
        return min(found)


def peak(bench: Bench) -> float:
    """Operations a second of a product of large single-precision matrices."""
    a = torch.randn(PEAK_SIDE, PEAK_SIDE)
    return 2 * PEAK_SIDE**3 / bench.seconds(lambda: a @ a, N_TIMES)


def rates(arguments: argparse.Namespace) -> pd.DataFrame:
    bench, pools = Bench(arguments.threads), open_pools(arguments.run)
    model, space, form = load_model(arguments.run / "model"), study_space(pools), form_of(pools, pools.out)
    config, scans = SamplesConfig(n=arguments.n), pools.prepared.scans
    plan = plan_samples(space, scans, form, config, checks_copies=False)
    latents = np.concatenate([drawn(space, plan, start)[0] for start in range(0, arguments.n, BLOCK)])[: arguments.n]
    told = scans.iloc[:1].loc[:, list(space.told)] if space.told else None
    told = None if told is None else told.iloc[np.zeros(len(latents), dtype=int)]
    with FlopCounterMode(display=False) as counter:
        first = next(images(model, latents[:BLOCK], None if told is None else told.iloc[:BLOCK]))
    ready = np.concatenate(list(images(model, latents, told)))
    before = peak(bench)
    decode = bench.seconds(lambda: list(images(model, latents, told)), 3)
    rate = max(before, peak(bench))
    rule = fit_copy_rule(
        space, lambda rows: pools.volumes.masked(pools.volumes.rows(list(space.scans[rows]))), told=scans
    )
    check = bench.seconds(lambda: [rule.flag(ready[start : start + BLOCK]) for start in range(0, len(ready), BLOCK)])

    def kept(_: np.ndarray, __: pd.DataFrame | None) -> Iterator[np.ndarray]:
        yield first

    def export(source: Callable[..., Iterator[np.ndarray]]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            made = replace(space, draw_latents=source)
            write_synthetic(Path(folder) / "made", made, scans, form, config, is_copy=None)

    def save() -> None:
        with tempfile.TemporaryDirectory() as folder:
            for number, values in enumerate(ready):
                volume = np.zeros(form.grid.shape, dtype=np.float32)
                volume[form.mask] = values
                nib.save(form.grid.to_image(volume), Path(folder) / f"{number}.nii.gz")

    prepare = bench.seconds(lambda: plan_samples(space, scans, form, config, checks_copies=False))
    bare, writing, whole = (
        bench.seconds(save),
        bench.seconds(lambda: export(kept)),
        bench.seconds(lambda: export(space.draw_latents)),
    )
    operations = counter.get_total_flops() / BLOCK
    print(
        f"{machine(arguments.threads)}; {model.model_config.name}, {' x '.join(map(str, form.grid.shape))} voxels, "
        f"{operations / 1e6:.0f} million operations per image, peak {rate / 1e9:.0f} GFLOP/s; "
        f"{prepare:.1f} s once for the density, not counted below"
    )
    table = pd.DataFrame(
        {
            "decoding at the peak of the matrix product": operations * arguments.n / rate,
            "decoding": decode,
            "looking for copies": check,
            "nibabel.save alone": bare,
            "export of images that are there": writing - prepare,
            "export": whole - prepare,
        },
        index=["seconds"],
    ).T
    per_second = arguments.n / table["seconds"]
    return table.assign(
        per_second=per_second, by_save=table["seconds"] / bare, by_peak=table["seconds"] / table["seconds"].iloc[0]
    )


def export_once(arguments: argparse.Namespace) -> dict[str, float]:
    """Export in this process, watched."""
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        before, watch, began = anonymous_mb(), Watch(), time.perf_counter()
        watch.start()
        written = export_samples(arguments.run, Path(folder) / "made", SamplesConfig(n=arguments.one))
        watch.done.set()
        watch.join()
        seconds = time.perf_counter() - began
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file()) / 1e6
    return {"before_mb": before, "peak_mb": watch.peak, "seconds": seconds, "disk_mb": size, "written": len(written)}


def main() -> None:
    arguments = read_arguments()
    if arguments.one:
        print(json.dumps(export_once(arguments)))
        return
    torch.set_num_threads(arguments.threads)
    print(rates(arguments).round(3).to_string())
    print(
        "\n| Samples | written | MB on disk | wall s | MB before | peak MB | by the fewest |\n|---|---|---|---|---|---|---|"
    )
    first = 0.0
    for count in arguments.counts:
        command = [sys.executable, "-W", "ignore", __file__, str(arguments.run), "--one", str(count)]
        told = subprocess.run(
            [*command, "--threads", str(arguments.threads)], check=True, capture_output=True, text=True
        )
        found = json.loads(told.stdout.splitlines()[-1])
        first = first if first else found["peak_mb"]
        print(
            f"| {count:,} | {found['written']:,} | {found['disk_mb']:.0f} | {found['seconds']:.0f} | {found['before_mb']:.0f} "
            f"| {found['peak_mb']:.0f} | {found['peak_mb'] / first:.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
