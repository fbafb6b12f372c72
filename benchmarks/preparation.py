"""Seconds and memory per scan on one core, from a T1 scan at its own voxels to a grey-matter map at 2 mm.

Each route runs in a fresh process of one thread, over the same scans in the same order: ours, and a plain antspyx script
with deepbet, everything at its defaults. The first scan of a process also pays for what is loaded once.

    python benchmarks/preparation.py BIDS_FOLDER [MORE...] --n-scans 10
    python benchmarks/preparation.py TABLE.tsv --grey 2      # a table with the columns path and manual: Dice as well
"""

import argparse
import functools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

SPACING_MM = 2.0
ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"
)


class Clock:
    """Processor seconds by step; a step inside another one counts for the outer one only."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inside = False

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Count what the block takes under a name."""
        if self._inside:
            yield
            return
        self._inside, start = True, processor_seconds()
        try:
            yield
        finally:
            self._inside = False
            self.seconds[name] = self.seconds.get(name, 0.0) + processor_seconds() - start

    def watch(self, module: Any) -> None:
        """Count every public function that a module defines, when it is called through the module."""
        for name, function in list(vars(module).items()):
            if callable(function) and getattr(function, "__module__", "") == module.__name__ and name[0].islower():
                setattr(module, name, self._watched(f"{module.__name__.split('.')[-1]}.{name}", function))

    def _watched(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def watched(*arguments: Any, **settings: Any) -> Any:
            with self.step(name):
                return function(*arguments, **settings)

        return watched


def processor_seconds() -> float:
    """User and system time of this process and the children it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def peak_mib() -> float:
    """Largest resident memory so far; macOS counts in bytes, Linux in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def ours(path: Path, clock: Clock, work: Path) -> np.ndarray:
    """Prepare a scan with the recipe t1 and write its map; returns the tissue labels, as the scan is stored."""
    import nibabel as nib

    from nilatent.preprocess import space, t1
    from nilatent.volumes import Grid

    with clock.step("read"):
        scan = space.load_scan(path)
    grid = Grid.mni(SPACING_MM)
    made = t1.prepare_t1(scan, grid, path=path, work=work)
    with clock.step("write"):
        for name, values in made.maps.items():
            nib.save(grid.to_image(values), work / f"{name}.nii.gz")
    return np.asarray(space.as_stored(made.tissues, scan).dataobj)


def plain(path: Path, clock: Clock, work: Path) -> np.ndarray:
    """The same with antspyx and deepbet, each call at its defaults, as their own examples write it."""
    import ants
    import deepbet
    import nibabel as nib

    from nilatent.volumes import Grid, template

    fixed, priors = work / "t1.nii.gz", [work / f"prior{number}.nii.gz" for number in range(3)]
    if not fixed.exists():
        with clock.step("read"):
            for name, file in zip(("t1", "gm", "wm", "csf"), (fixed, *priors), strict=True):
                nib.save(template(name), file)
    with clock.step("read"):
        scan = ants.image_read(str(path))
    with clock.step("deepbet"):
        mask = ants.get_mask(scan, low_thresh=1e-6, cleanup=0) if is_stripped(scan.numpy()) else None
        if mask is None:
            deepbet.run_bet([str(path)], mask_paths=[str(work / "mask.nii.gz")], no_gpu=True)
            mask = ants.image_read(str(work / "mask.nii.gz"))
    with clock.step("n4_bias_field_correction"):
        brain = ants.n4_bias_field_correction(scan, mask=mask) * mask
    with clock.step("registration, Affine"):
        found = ants.registration(ants.image_read(str(fixed)), brain, type_of_transform="Affine")
    with clock.step("apply_transforms"):
        backward = {"transformlist": found["invtransforms"], "whichtoinvert": [True]}
        moved = [ants.apply_transforms(brain, ants.image_read(str(prior)), **backward) for prior in priors]
    with clock.step("atropos"):
        # The default weight of its Markov field; the default radius is for pictures.
        parts = ants.atropos(a=brain, x=mask, i=moved, m="[0.2,1x1x1]")["probabilityimages"]
    with clock.step("apply_transforms"):
        nib.save(Grid.mni(SPACING_MM).to_image(np.zeros(Grid.mni(SPACING_MM).shape)), work / "grid.nii.gz")
        grid = ants.image_read(str(work / "grid.nii.gz"))
        grey = ants.apply_transforms(grid, parts[0], transformlist=found["fwdtransforms"])
    with clock.step("write"):
        ants.image_write(grey, str(work / "gm.nii.gz"))
    return np.where(mask.numpy() > 0, np.argmax([part.numpy() for part in parts], axis=0) + 1, 0)


def is_stripped(data: np.ndarray) -> bool:
    return bool(np.mean(data == 0) > 0.5)


ROUTES = {"ours": ours, "plain antspyx + deepbet": plain}


def run_route(route: str, paths: list[Path], manuals: list[Path | None], grey: int) -> list[dict[str, Any]]:
    """One row per scan; runs in the fresh process."""
    import nibabel as nib
    import torch

    torch.set_num_threads(1)
    clock = Clock()
    if route == "ours":
        from nilatent.preprocess import intensity, quality, registration, resampling, tissue

        for module in (tissue, intensity, registration, resampling, quality):
            clock.watch(module)
    rows = []
    with tempfile.TemporaryDirectory() as work:
        for path, manual in zip(paths, manuals, strict=True):
            clock.seconds = {}
            start, wall = processor_seconds(), time.perf_counter()
            labels = ROUTES[route](path, clock, Path(work))
            row = {"processor": processor_seconds() - start, "wall": time.perf_counter() - wall, "peak": peak_mib()}
            if manual is not None:
                truth = np.asarray(nib.load(manual).dataobj).squeeze() == grey
                row["dice"] = 2 * float((truth & (labels == 1)).sum()) / float(truth.sum() + (labels == 1).sum())
            rows.append(row | {"steps": clock.seconds})
            print(
                f"{route}: {len(rows)} of {len(paths)}, {row['processor']:.1f} processor s", file=sys.stderr, flush=True
            )
    return rows


def read_scans(arguments: argparse.Namespace) -> tuple[list[Path], list[Path | None]]:
    """Paths of the scans, evenly taken, and of their manual tissue maps where a table gives them."""
    from nilatent.cohort import read_cohort

    paths: list[Path] = []
    manuals: list[Path | None] = []
    for source in arguments.sources:
        if source.is_file():
            table = pd.read_csv(source, sep="\t")
            paths += [Path(path) for path in table["path"]]
            manuals += [
                Path(path) if isinstance(path, str) else None for path in table.get("manual", [None] * len(table))
            ]
        else:
            found = [Path(path) for path in read_cohort([source], suffix="T1w").scans["path"]]
            paths += found
            manuals += [None] * len(found)
    chosen = np.unique(np.linspace(0, len(paths) - 1, min(arguments.n_scans, len(paths))).round().astype(int))
    return [paths[i] for i in chosen], [manuals[i] for i in chosen]


def in_a_fresh_process(route: str, paths: list[Path], manuals: list[Path | None], grey: int) -> list[dict[str, Any]]:
    asked = {
        "route": route,
        "paths": [str(path) for path in paths],
        "manuals": [None if manual is None else str(manual) for manual in manuals],
        "grey": grey,
    }
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "rows.json"
        command = [sys.executable, __file__, "--worker", json.dumps(asked), str(answer)]
        # What the engines print would stand in the table.
        subprocess.run(command, env=os.environ | ONE_THREAD, stdout=subprocess.DEVNULL, check=True)
        rows: list[dict[str, Any]] = json.loads(answer.read_text())
    return rows


def later(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return rows[1:] if len(rows) > 1 else rows


def print_tables(found: dict[str, list[dict[str, Any]]]) -> None:
    base = statistics.median(row["processor"] for row in later(found["plain antspyx + deepbet"]))
    print(
        "| Route | processor s, later scans (worst) | share of plain | first scan | wall s | peak MiB | GM Dice (worst) |"
    )
    print("|---|---|---|---|---|---|---|")
    for route, rows in found.items():
        seconds = [row["processor"] for row in later(rows)]
        wall = statistics.median(row["wall"] for row in later(rows))
        dice = [row["dice"] for row in rows if "dice" in row]
        agreement = f"{statistics.median(dice):.3f} ({min(dice):.3f})" if dice else "–"
        median = statistics.median(seconds)
        print(
            f"| {route} | {median:.1f} ({max(seconds):.1f}) | {median / base:.2f} | {rows[0]['processor']:.1f} "
            f"| {wall:.1f} | {max(row['peak'] for row in rows):.0f} | {agreement} |"
        )
    for route, rows in found.items():
        print(f"\n| {route}: step | processor s |\n|---|---|")
        names = sorted({name for row in later(rows) for name in row["steps"]})
        medians = {name: statistics.median(row["steps"].get(name, 0.0) for row in later(rows)) for name in names}
        for name, seconds in sorted(medians.items(), key=lambda item: -item[1]):
            if seconds >= 0.05:
                print(f"| {name} | {seconds:.2f} |")


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        asked = json.loads(sys.argv[2])
        manuals = [None if manual is None else Path(manual) for manual in asked["manuals"]]
        rows = run_route(asked["route"], [Path(path) for path in asked["paths"]], manuals, asked["grey"])
        Path(sys.argv[3]).write_text(json.dumps(rows))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", type=Path, help="BIDS folders, or tables (TSV) with the column path")
    parser.add_argument("--n-scans", type=int, default=10)
    parser.add_argument("--grey", type=int, default=2, help="value of grey matter in the manual maps")
    arguments = parser.parse_args()
    paths, manuals = read_scans(arguments)
    found = {route: in_a_fresh_process(route, paths, manuals, arguments.grey) for route in ROUTES}
    print(f"{len(paths)} scans, one thread, grid of {SPACING_MM:g} mm\n")
    print_tables(found)


if __name__ == "__main__":
    main()
