"""Cost against the number of scans: pack, train, encode, analyse, report, with processor seconds and anonymous memory.

Every stage runs in a fresh process, through the methods that the command line calls. Counted are the processor seconds of that
process beyond checking what earlier stages left, and the peak of RssAnon of /proc/self/status, which leaves mapped pages
out; Linux only. Rows go to FOLDER/rows.tsv as they are measured, and the same command goes on where it was stopped.

    python benchmarks/scale.py FOLDER
    python benchmarks/scale.py FOLDER --counts 100 1000 --only lrcp projections
    python benchmarks/scale.py FOLDER --table docs/images/scale.png --page docs/scale.md

Scans are made from the fields of the simulator: each is a mixture of three of 96 simulated healthy shapes, times the person's
head size and grey matter, less the loss of grey matter that patients have, times noise; smoothed by 8 mm as `prepare` does.
Scan number i is the same whatever the count.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

N_SHAPES = 96
MIXED = 3
N_LATENT = 32
FWHM_MM = 8.0
SD_BY_FWHM = 1 / 2.3548
NOISE = 0.1
SECONDS_BETWEEN = 0.01
FIRST = ("cohort", "pack", "regions", "split", "train", "encode")
ANALYSES = (
    "reconstruction", "projections", "lrcp", "error_profile", "agnostic", "prediction", "harmonise", "normative", "leaks",
    "sensitivity", "counterfactual", "fidelity", "blur", "longitudinal",
)  # fmt: skip
LAST = ("heads", "report")
COLUMNS = ("count", "stage", "processor_s", "wall_s", "checked_s", "before_mb", "peak_mb", "note")


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--counts", type=int, nargs="+", default=[100, 1000, 10000])
    parser.add_argument("--spacing", type=float, default=4.0, help="voxel size in mm")
    parser.add_argument("--only", nargs="+", default=[*FIRST, *ANALYSES, *LAST], help="stages, in the order given")
    parser.add_argument("--again", action="store_true", help="measure stages that have a row, too")
    parser.add_argument("--table", type=Path, help="print the table of what was measured, draw this figure, and stop")
    parser.add_argument("--page", type=Path, help="with --table: put the table between the marks of this page")
    parser.add_argument("--stage", help="one stage in this process")
    parser.add_argument("--limit", type=float, default=7200.0, help="wall seconds for a stage")
    return parser.parse_args()


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


def people(count: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The first people of the largest cohort there can be, so that names are the same whatever the count."""
    from nilatent.simulate.config import SimulationConfig
    from nilatent.simulate.memory import template_ml
    from nilatent.simulate.people import draw_people

    scans, planted = draw_people(SimulationConfig(n_subjects=count), template_ml=template_ml())
    names = [f"sub-{number + 1:05d}" for number in range(count)]
    index = pd.Index(names, name="scan_id")
    return scans.set_index(index).assign(subject_id=names), planted.set_index(index).assign(subject_id=names)


def write_maps(folder: Path, count: int, spacing_mm: float) -> None:
    """Write the maps that are not there yet, in `folder`."""
    import nibabel as nib
    from scipy.ndimage import gaussian_filter

    from nilatent.simulate.config import SimulationConfig
    from nilatent.simulate.memory import simulate_maps

    scans, planted = people(count)
    missing = [number for number, name in enumerate(scans.index) if not place(folder, name).is_file()]
    if not missing:
        return
    folder.mkdir(parents=True, exist_ok=True)
    made = simulate_maps(SimulationConfig(n_subjects=N_SHAPES, spacing_mm=spacing_mm, null=True, noise=0.0))
    own = (made.planted["head_size"] * made.planted["gm_factor"]).to_numpy(dtype=np.float32)
    shapes = made.maps / own[:, None, None, None]
    loss, sd = made.truth_maps["loss"], FWHM_MM * SD_BY_FWHM / spacing_mm
    for number in missing:
        rng = np.random.default_rng([0, number])
        chosen, shares = rng.choice(N_SHAPES, MIXED, replace=False), rng.dirichlet(np.ones(MIXED)).astype(np.float32)
        grey = np.tensordot(shares, shapes[chosen], axes=1)
        row = planted.iloc[number]
        grey *= np.float32(row["head_size"] * row["gm_factor"]) * (1 - np.float32(row["atrophy"]) * loss)
        grey *= 1 + NOISE * rng.standard_normal(grey.shape, dtype=np.float32)
        # As the cache keeps them, and half the size when packed.
        smooth = gaussian_filter(np.clip(grey, 0, None), sd).astype(np.float16).astype(np.float32)
        path = place(folder, str(scans.index[number]))
        partial = path.with_name(f".partial.{path.name}")
        nib.save(made.grid.to_image(smooth), partial)
        partial.replace(path)


def place(folder: Path, scan: str) -> Path:
    """Where a map lies."""
    return folder / f"{scan}_space-MNI152NLin2009aSym_label-GM_desc-givenSmooth8_probseg.nii.gz"


def settings() -> Any:
    """One epoch, and what a study of patients and controls asks."""
    from nilatent.config import read_config

    asked: dict[str, Any] = {
        "study.group": "group",
        "study.contrast": "patient:control",
        "study.covariates": ["age", "sex"],
        "study.site": "site",
        "model.name": "vae",
        "model.n_latent": N_LATENT,
        "training.n_epochs": 1,
        "training.device": "cpu",
        "recipe.name": "gm",
    }
    return read_config(overrides=asked)


@dataclass
class Pools:
    """What the stages so far left, opened or filled in order."""

    river: Any
    prepared: Any = None
    volumes: Any = None
    weights: Any = None
    parts: Any = None


def make_cohort(out: Path) -> None:
    """Leave the cohort and the prepared pool of maps that are there, as `prepare` would."""
    from nilatent.cohort import read_cohort, write_cohort
    from nilatent.config import write_config
    from nilatent.preprocess.recipe import fingerprint
    from nilatent.provenance import seal

    table, config = out / "maps.tsv", settings()
    cohort = read_cohort([table])
    write_config(config, out / "study.toml")
    write_cohort(cohort, out / "cohort")
    ours = cohort.scans.assign(recipe="gm", homogeneity=1.0, quality_flags=np.nan)
    written = write_cohort(replace(cohort, scans=ours), out / "prepared")
    kept = [path for path in written if path.name != "excluded.tsv"]
    record = out / "prepared" / "provenance.json"
    inputs = {"cohort": cohort.content_hash}
    seal(record, stage="prepared", settings=fingerprint(config.recipe), inputs=inputs, outputs=kept)
    # The page of quality belongs to the preparation, which is not measured here.
    (out / "prepared" / "quality.html").touch()


def write_table(folder: Path, out: Path, count: int) -> None:
    """The source: a table of paths."""
    out.mkdir(parents=True, exist_ok=True)
    scans, _ = people(count)
    paths = [str(place(folder, str(scan))) for scan in scans.index]
    table = scans.assign(participant_id=scans["subject_id"], path=paths)
    kept = ["participant_id", "path", "age", "sex", "site", "group", "severity", "intracranial_ml"]
    table[kept].to_csv(out / "maps.tsv", sep="\t", index=False)


def run_stage(name: str, out: Path) -> dict[str, Any]:
    """Run one stage in this process, watched; what earlier stages left is checked before the clock starts."""
    import torch

    from nilatent.river import River

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    began, steps = time.process_time(), [*FIRST, *ANALYSES, *LAST]
    pools = Pools(River(out, settings()))
    for done in FIRST[: min(steps.index(name), len(FIRST))]:
        step(done, pools)
    checked, before, wall, watch = time.process_time(), anonymous_mb(), time.perf_counter(), Watch()
    watch.start()
    if name == "cohort":
        make_cohort(out)
    else:
        step(name, pools)
    watch.done.set()
    watch.join()
    return {
        "processor_s": time.process_time() - checked,
        "wall_s": time.perf_counter() - wall,
        "checked_s": checked - began,
        "before_mb": before,
        "peak_mb": max(watch.peak, anonymous_mb()),
        "note": note_of(name, out),
    }


def step(name: str, pools: Pools) -> None:
    """One stage, filled or found up to date."""
    river = pools.river
    if name == "cohort":
        # Sealed without the page of quality, which belongs to the preparation.
        river.quality = lambda _: None
        pools.prepared = river.prepared(river.cohort([]), n_procs=1, scheduler="")
    elif name == "pack":
        pools.volumes = river.volumes(pools.prepared)
    elif name == "regions":
        pools.weights = river.regions(river.grey(pools.prepared, pools.volumes))
    elif name == "split":
        pools.parts = river.parts(pools.prepared)
    elif name == "train":
        river.model(pools.prepared, pools.volumes, pools.parts)
    elif name == "encode":
        river.latents(pools.prepared, pools.volumes, pools.parts)
    elif name == "heads":
        river.findings(pools.prepared, pools.volumes, pools.parts, pools.weights, only=["prediction"])
        river.heads(pools.prepared, pools.volumes, pools.parts, pools.weights)
    elif name == "report":
        river.report()
    else:
        river.findings(pools.prepared, pools.volumes, pools.parts, pools.weights, only=[name])


def note_of(name: str, out: Path) -> str:
    """Why an analysis was not run, or the size of the page."""
    if name == "report":
        return f"{(out / 'report.html').stat().st_size / 1e6:.1f} MB"
    path = out / "findings" / name / "finding.json"
    if name in ANALYSES and path.is_file():
        return str(json.loads(path.read_text(encoding="utf-8")).get("not_run") or "")
    return ""


def read_rows(path: Path) -> pd.DataFrame:
    """What was measured so far, the last measurement of each stage."""
    if not path.is_file():
        return pd.DataFrame(columns=list(COLUMNS))
    return pd.read_csv(path, sep="\t", keep_default_na=False).drop_duplicates(["count", "stage"], keep="last")


def measure(arguments: argparse.Namespace) -> None:
    """Every stage of every count that has no row yet, each in a process of its own."""
    folder, rows = arguments.folder.absolute(), arguments.folder / "rows.tsv"
    for count in arguments.counts:
        out = folder / f"n{count}"
        write_maps(folder / "maps", count, arguments.spacing)
        write_table(folder / "maps", out, count)
        for name in arguments.only:
            known = read_rows(rows)
            if not arguments.again and ((known["count"] == count) & (known["stage"] == name)).any():
                continue
            command = [sys.executable, "-W", "ignore", __file__, str(folder), "--stage", name, "--counts", str(count)]
            try:
                told = subprocess.run(command, capture_output=True, text=True, timeout=arguments.limit)
            except subprocess.TimeoutExpired:
                print(f"{count} {name}: over {arguments.limit:.0f} s", flush=True)
                continue
            if told.returncode:
                print(f"{count} {name}: failed\n{told.stderr[-3000:]}", flush=True)
                if name in FIRST:
                    return
                continue
            found = {"count": count, "stage": name} | json.loads(told.stdout.splitlines()[-1])
            line = pd.DataFrame([found])[list(COLUMNS)].round(2)
            line.to_csv(rows, sep="\t", mode="a", header=not rows.is_file(), index=False)
            print(*(found[column] for column in COLUMNS), sep="\t", flush=True)


def main() -> None:
    arguments = read_arguments()
    if arguments.stage:
        count = arguments.counts[0]
        told = run_stage(arguments.stage, arguments.folder / f"n{count}")
        print(json.dumps(told))
    elif arguments.table:
        from scale_table import draw, table, write_table

        rows = read_rows(arguments.folder / "rows.tsv")
        print(table(rows))
        draw(rows, arguments.table)
        if arguments.page:
            write_table(table(rows), arguments.page)
    else:
        measure(arguments)


if __name__ == "__main__":
    main()
