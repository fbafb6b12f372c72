"""The jobs of `table.py`: ours, and the named peers that do the same."""

import argparse
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np

N_LATENT = 16
MAPS_MM = 4.0
FVU, QUALITY_EPOCHS, QUALITY_BUDGET_S = 0.9, 18, 25.0

Routes = dict[str, tuple[Callable[[], object], float]]


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
    """The report of `nilatent demo` and its page of every subject, beside drawing the figures of the findings alone."""
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
    "report": Job(
        "The report of the demo, with pages of 160 subjects",
        report,
        "Pages of 160 subjects with figures each take about 60 % of it; the rest is matplotlib, too.",
    ),
}
