"""Every job of nilatent beside a named peer, and `docs/benchmarks.md` from what was measured.

One fresh process of one thread for each job; inside it the routes take turns (A B A B ...), after one turn that is not counted
and pays for imports and caches. The clock counts processor seconds of the process and its children, which other work on the
machine disturbs least. Rows are kept, so a run that was stopped goes on; delete the folder to begin anew. A peer that is not
installed is named as missing.

    python benchmarks/table.py FOLDER
    python benchmarks/table.py FOLDER --jobs permutations projections --n-turns 5 --scan T1W.nii.gz
"""

import argparse
import cProfile
import importlib.metadata
import os
import platform
import pstats
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
from table_jobs import JOBS

N_TURNS = 3
COLUMNS = ("job", "route", "turn", "processor_s", "wall_s", "load")
TOOLS = (
    "nilatent",
    "numpy",
    "scipy",
    "torch",
    "scikit-learn",
    "nibabel",
    "nilearn",
    "antspyx",
    "deepbet",
    "openTSNE",
    "umap-learn",
    "matplotlib",
    "monai",
    "pythae",
)
ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"), "1"
)


def processor_seconds() -> float:
    """User and system time of this process and of the children it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def measured(name: str, folder: Path, scan: Path | None, n_turns: int) -> Iterator[dict[str, object]]:
    """Rows of one job, and where the time of ours goes."""
    routes = JOBS[name].routes(folder, scan)
    for turn in range(n_turns + 1):
        for route, (once, factor) in routes.items():
            wall, processor = time.perf_counter(), processor_seconds()
            told = once()
            spent = processor_seconds() - processor, time.perf_counter() - wall
            if isinstance(told, float):
                spent = told, float("nan")
            if turn:
                row = {"job": name, "route": route, "turn": turn, "load": round(os.getloadavg()[0], 1)}
                yield row | {"processor_s": factor * spent[0], "wall_s": factor * spent[1]}
    profile = cProfile.Profile()
    profile.runcall(next(iter(routes.values()))[0])
    (folder / f"{name}.profile.txt").write_text(_slowest(profile), encoding="utf-8")


def _slowest(profile: cProfile.Profile) -> str:
    """Return the three functions with the largest time of their own, as shares."""
    found = pstats.Stats(profile)
    own = {key: value[2] for key, value in found.stats.items()}  # type: ignore[attr-defined]
    total = sum(own.values()) or 1.0
    named = []
    for file, _line, function in sorted(own, key=lambda key: -own[key])[:3]:
        where = "" if file == "~" else f"{Path(file).stem}."
        called = function.strip("<>").removeprefix("built-in method ").removeprefix("method ")
        named.append(f"`{where}{called}` {own[(file, _line, function)] / total:.0%}")
    return ", ".join(named)


def run_jobs(arguments: argparse.Namespace) -> pd.DataFrame:
    """Run every job that has no rows yet, each in a fresh process."""
    rows = arguments.folder / "rows.tsv"
    for name in arguments.jobs:
        known = pd.read_csv(rows, sep="\t") if rows.exists() else pd.DataFrame(columns=COLUMNS)
        if name in set(known["job"]):
            continue
        command = [
            sys.executable,
            __file__,
            str(arguments.folder),
            "--worker",
            name,
            "--n-turns",
            str(arguments.n_turns),
        ]
        command += ["--scan", str(arguments.scan)] if arguments.scan else []
        print(f"{name} ...", flush=True)
        ended = subprocess.run(command, env=os.environ | ONE_THREAD, check=False)
        made = arguments.folder / f"{name}.tsv"
        if ended.returncode or not made.exists():
            print(f"{name}: ended with {ended.returncode}; its rows are missing.", file=sys.stderr)
            continue
        joined = pd.concat([known, pd.read_csv(made, sep="\t")]) if len(known) else pd.read_csv(made, sep="\t")
        joined.to_csv(rows, sep="\t", index=False)
    return pd.read_csv(rows, sep="\t")


def versions() -> str:
    """Versions of what was compared, where installed."""
    told = []
    for tool in TOOLS:
        try:
            told.append(f"{tool} {importlib.metadata.version(tool)}")
        except importlib.metadata.PackageNotFoundError:
            told.append(f"{tool} not installed")
    return ", ".join(told)


def number_text(value: float) -> str:
    """Three digits that count."""
    return f"{value:.3g}" if value < 1000 else f"{float(f'{value:.2g}'):,.0f}"


def page(rows: pd.DataFrame, folder: Path) -> str:
    """Markdown of all rows: medians, range over the turns, and the ratio to ours."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    lines = [
        "# Benchmarks",
        "",
        "`python benchmarks/table.py FOLDER` writes this page. Routes of a job take turns in one process of one thread;",
        "seconds are processor seconds, medians over the turns with their range. More than 1 in the last column: ours is",
        "faster by that factor. Other questions (time to a quality, layers against the roofline, memory, the explorer) are",
        "answered in `benchmarks/README.md`, and cost against the number of scans in [scale.md](scale.md).",
        "",
        f"Measured {datetime.now(UTC):%Y-%m-%d} on {os.cpu_count()} cores ({platform.machine()}), {memory:.0f} GB, Python "
        f"{platform.python_version()}; load {rows['load'].min():.1f} to {rows['load'].max():.1f}. {versions()}.",
        "",
        "| Job | Route | processor s (range) | by ours |",
        "|---|---|---|---|",
    ]
    notes = ["", "## Where the time goes", "", "| Job | Slowest of ours, share of its time | Limit |", "|---|---|---|"]
    for name, job in JOBS.items():
        some = rows[rows["job"] == name]
        if some.empty:
            lines.append(f"| {job.what} | not run | | |")
            continue
        medians = some.groupby("route", sort=False)["processor_s"].agg(["median", "min", "max"])
        ours = medians["median"].iloc[0]
        for number, (route, row) in enumerate(medians.iterrows()):
            seconds = f"{number_text(row['median'])} ({number_text(row['min'])} to {number_text(row['max'])})"
            told = f"{seconds} | {number_text(row['median'] / ours)}" if row.notna().all() else "not reached | "
            lines.append(f"| {job.what if number == 0 else ''} | {route} | {told} |")
        notes.append(f"| {job.what} | {(folder / f'{name}.profile.txt').read_text(encoding='utf-8')} | {job.limit} |")
    return "\n".join([*lines, *notes, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--jobs", nargs="+", choices=list(JOBS), default=list(JOBS))
    parser.add_argument("--n-turns", type=int, default=N_TURNS)
    parser.add_argument("--scan", type=Path, help="a T1 scan to prepare, in place of the template")
    parser.add_argument("--page", type=Path, default=Path(__file__).parents[1] / "docs" / "benchmarks.md")
    parser.add_argument("--worker", choices=list(JOBS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    if arguments.worker:
        rows = pd.DataFrame(measured(arguments.worker, arguments.folder, arguments.scan, arguments.n_turns))
        rows[list(COLUMNS)].to_csv(arguments.folder / f"{arguments.worker}.tsv", sep="\t", index=False)
        return
    rows = run_jobs(arguments)
    arguments.page.write_text(page(rows, arguments.folder), encoding="utf-8")
    print(f"{arguments.page} written.")


if __name__ == "__main__":
    main()
