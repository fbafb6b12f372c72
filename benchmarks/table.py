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
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd

N_TURNS = 3
N_LATENT = 16
MAPS_MM = 4.0
FVU, QUALITY_EPOCHS, QUALITY_BUDGET_S = 0.9, 18, 25.0
Routes = dict[str, tuple[Callable[[], object], float]]

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


@dataclass(frozen=True)
class Job:
    """A job, what does it, and what bounds it.

    Parameters
    ----------
    what : str
        Heading and size of the problem.
    routes : callable
        Of the folder and the scan that was given: what does the job by name, ours first, and a factor by which its seconds are
        multiplied, where only a part of the job is done. A route that returns a number tells its processor seconds itself.
    limit : str
        What is slowest, and what it could not be faster than.
    """

    what: str
    routes: Callable[[Path, Path | None], Routes]
    limit: str


def simulated(n_scans: int, spacing_mm: float = MAPS_MM) -> np.ndarray:
    """Grey-matter maps of so many people."""
    from nilatent.simulate.config import SimulationConfig
    from nilatent.simulate.memory import simulate_maps

    return simulate_maps(SimulationConfig(n_subjects=n_scans, spacing_mm=spacing_mm, seed=0)).maps


def reading(folder: Path, _scan: Path | None) -> Routes:
    """Hundred maps of 2 mm, in random order, from the memory map and from compressed NIfTI files."""
    from nilatent.volumes import Grid

    maps, grid = np.float16(simulated(10, 2.0)), Grid.mni(2.0)
    place = folder / "reading"
    place.mkdir(exist_ok=True)
    np.save(place / "maps.npy", maps)
    for number, one in enumerate(maps):
        nib.save(grid.to_image(one.astype(np.float32)), place / f"{number}.nii.gz")
    order = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 10))

    def ours() -> None:
        mapped = np.load(place / "maps.npy", mmap_mode="r")
        for number in order:
            np.asarray(mapped[number], np.float32).sum()

    def theirs() -> None:
        for number in order[:10]:
            nib.load(place / f"{number}.nii.gz").get_fdata(dtype=np.float32).sum()

    return {"nilatent, memory map of float16": (ours, 1.0), "nibabel, .nii.gz (10 of 100)": (theirs, 10.0)}


def preparation(folder: Path, scan: Path | None) -> Routes:
    """One T1 scan to a grey-matter map of 2 mm: the template with a bias field, moved and with noise, where none is given."""
    import preparation as routes
    import torch

    torch.set_num_threads(1)
    path = scan or _made_scan(folder / "scan.nii.gz")

    def run(route: Callable[..., object]) -> Callable[[], object]:
        def once() -> None:
            with tempfile.TemporaryDirectory() as work:
                route(path, routes.Clock(), Path(work))

        return once

    return {
        "nilatent prepare, affine": (run(routes.ours), 1.0),
        "plain antspyx + deepbet at their defaults": (run(routes.plain), 1.0),
    }


def _made_scan(path: Path) -> Path:
    from nilatent.volumes import template

    image, rng = template("t1"), np.random.default_rng(0)
    data = image.get_fdata(dtype=np.float32)
    ramp = np.linspace(0.8, 1.2, data.shape[0], dtype=np.float32)[:, None, None]
    noisy = (data * ramp + rng.normal(0, 0.03 * data.max(), data.shape).astype(np.float32)) * (data > 0)
    moved = image.affine.copy()
    moved[:3, 3] += (7.0, -5.0, 9.0)
    nib.save(nib.Nifti1Image(noisy.astype(np.float32), moved), path)
    return path


def training(_folder: Path, _scan: Path | None) -> Routes:
    """Two steps of eight maps, forward, backward and optimiser, in single precision."""
    import training as bench

    data = bench.gather(bench.simulate(MAPS_MM, 8.0, 40, None), 8)
    ground = bench.prepare(data, "cpu")
    found, absent = bench.peers(ground.mask, N_LATENT)
    print(*absent, sep="\n")
    arguments = argparse.Namespace(device="cpu", n_latent=8)
    place = Path(tempfile.mkdtemp())
    turns = dict(bench._turns(data, found, ground, arguments, "32-true", place))
    return {name: (lambda once=once: (once(), once()), 1.0) for name, (once, _) in turns.items()}


def quality(_folder: Path, _scan: Path | None) -> Routes:
    """A training from nothing until the held-out FVU is .9; peers at the best of three learning rates, found before."""
    import training as bench
    from nilatent.training.loop import TrainConfig

    data = bench.gather(bench.simulate(MAPS_MM, 8.0, 200, None), N_LATENT)
    ground = bench.prepare(data, "cpu")
    found, absent = bench.peers(ground.mask, N_LATENT)
    print(*absent, sep="\n")
    config = TrainConfig(n_epochs=QUALITY_EPOCHS, patience=QUALITY_EPOCHS + 1, device="cpu")
    limit = bench.Limit(FVU, QUALITY_BUDGET_S)
    routes: Routes = {}
    for name, model in bench.OURS.items():
        made = model(N_LATENT)
        routes[name] = (lambda made=made: bench.train_ours(made, data, config, limit).reached(FVU).processor, 1.0)
    for peer in found:
        rate = bench.best_rate(peer, ground, data, config, QUALITY_BUDGET_S / 3)
        tuned = replace(config, learning_rate=rate)

        def theirs(peer: "bench.Peer" = peer, tuned: TrainConfig = tuned) -> float:
            return float(bench.train_peer(peer, ground, data, tuned, limit).reached(FVU).processor)

        routes[peer.name] = (theirs, 1.0)
    return routes


def encoding(_folder: Path, _scan: Path | None) -> Routes:
    """Posterior means of 200 maps: ours with its checks and its scale of every latent, MONAI's network alone."""
    import torch

    import training as bench
    from nilatent.encode import encode
    from nilatent.models import ModelConfig
    from nilatent.training.checkpoint import load_model
    from nilatent.training.loop import TrainConfig, train

    torch.set_num_threads(1)
    data = bench.gather(bench.simulate(MAPS_MM, 8.0, 200, None), N_LATENT)
    place = Path(tempfile.mkdtemp())
    train(data.volumes, data.parts, ModelConfig(name="vae", n_latent=N_LATENT), TrainConfig(n_epochs=0), place)
    model = load_model(place)
    routes: Routes = {"nilatent encode": (lambda: encode(model, data.volumes, data.parts), 1.0)}
    ground = bench.prepare(data, "cpu")
    found, absent = bench.peers(ground.mask, N_LATENT)
    print(*absent, sep="\n")
    x = torch.from_numpy(np.asarray(data.volumes.data, np.float32))[:, None]
    for peer in found:
        if peer.name.startswith("MONAI VarAutoEncoder, evidence"):
            network = peer.build().eval()

            def theirs(network: torch.nn.Module = network) -> None:
                with torch.no_grad():
                    for some in x.split(16):
                        network.encode_forward(some)

            routes["MONAI VarAutoEncoder.encode_forward, scans in memory"] = (theirs, 1.0)
    return routes


def permutations(_folder: Path, _scan: Path | None) -> Routes:
    """1,000 permutations of 116 regions by 64 latents over 500 scans with 4 confounds."""
    from nilearn.mass_univariate import permuted_ols
    from scipy.stats import pearsonr

    from nilatent.analysis import stats

    rng = np.random.default_rng(0)
    x, z, c = (rng.normal(size=(500, k)) for k in (116, 64, 4))
    orders = stats.permutations(500, 1000, seed=0)

    def nilearn() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            permuted_ols(z, x, c, n_perm=20, n_jobs=1, verbose=0, random_state=0)

    def scipy() -> None:
        for pair in range(1000):
            pearsonr(x[:, pair % 116], z[:, pair % 64])

    return {
        "nilatent permuted_correlation": (lambda: stats.permuted_correlation(x, z, orders, confounds=c), 1.0),
        "nilearn permuted_ols (20 of 1,000)": (nilearn, 50.0),
        "SciPy pearsonr, pair by pair (1,000 of 7.4 million)": (scipy, 116 * 64 * 1000 / 1000),
    }


def tsne(_folder: Path, _scan: Path | None) -> Routes:
    """A map of 1,000 scans by 64 latents; ours keeps what is needed to place new scans."""
    from sklearn.manifold import TSNE

    from nilatent.analysis.projections.maps import fit_neighbours

    values = _latents()
    return {
        "nilatent fit_neighbours (openTSNE)": (lambda: fit_neighbours("tsne", values, values[:, 0], seed=0), 1.0),
        "scikit-learn TSNE": (lambda: TSNE(perplexity=30, random_state=0, n_jobs=1).fit_transform(values), 1.0),
    }


def umap(_folder: Path, _scan: Path | None) -> Routes:
    """A map of 1,000 scans by 64 latents."""
    from umap import UMAP

    from nilatent.analysis.projections.maps import fit_neighbours

    values = _latents()

    def theirs() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            UMAP(n_neighbors=15, random_state=0, n_jobs=1).fit_transform(values)

    return {
        "nilatent fit_neighbours": (lambda: fit_neighbours("umap", values, values[:, 0], seed=0), 1.0),
        "umap-learn": (theirs, 1.0),
    }


def _latents() -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.asarray(rng.normal(size=(1000, 8)) @ rng.normal(size=(8, 64)) + 0.5 * rng.normal(size=(1000, 64)))


def report(folder: Path, _scan: Path | None) -> Routes:
    """The report of `nilatent demo`, beside drawing its figures as SVG with matplotlib and doing nothing else."""
    from nilatent.finding import read_finding
    from nilatent.plots import style
    from nilatent.report import build
    from nilatent.report.sections import SECTIONS

    run = folder / "demo"
    if not (run / "report.html").exists():
        command = [str(Path(sys.executable).with_name("nilatent")), "demo", str(run)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    def bare() -> None:
        for spec in SECTIONS:
            if (run / "findings" / spec.finding).is_dir():
                found = read_finding(run / "findings" / spec.finding)
                if not found.not_run:
                    for draw in (spec.draw, *spec.more.values()):
                        style.to_svg(draw(found))

    return {"nilatent report": (lambda: build(run), 1.0), "matplotlib, figures of the findings alone": (bare, 1.0)}


JOBS = {
    "reading": Job("Reading 100 maps of 2 mm", reading, "Copying to single precision; the disk is not read again."),
    "preparation": Job(
        "Preparing one T1 scan, to 2 mm",
        preparation,
        "deepbet (not for a stripped brain), resampling, the moved priors and N4, in about equal parts.",
    ),
    "training": Job(
        "16 maps of 4 mm through a training step",
        training,
        "Convolutions of few channels and passes over memory, 29 % of the peak of matrix products (`roofline.py`).",
    ),
    "quality": Job(
        "Training until the held-out FVU is .9, 130 maps of 4 mm",
        quality,
        "As it comes it starts as probabilistic PCA and is there before its first epoch; the network has no part in that.",
    ),
    "encoding": Job("Encoding 200 maps of 4 mm", encoding, "The encoder's first convolution."),
    "permutations": Job(
        "1,000 permutations, 116 regions by 64 latents, 500 scans",
        permutations,
        "The matrix product: 1.7 times its time at the machine's peak (`inference.py`).",
    ),
    "t-SNE": Job("t-SNE of 1,000 scans, 64 latents", tsne, "The gradient of openTSNE; ours adds nothing to it."),
    "UMAP": Job("UMAP of 1,000 scans, 64 latents", umap, "The optimisation of umap-learn; ours adds nothing to it."),
    "report": Job("The report of the demo", report, "matplotlib, which lays out every figure twice."),
}


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
