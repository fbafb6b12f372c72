"""Training beside other tools: volumes per second, and seconds to a given quality on scans that were held out.

All in one process, in turn (A B C A B C ...), with the same simulated scans, threads, batch size, optimiser and schedule of the
learning rate. Where MONAI or Pythae is not installed its rows are missing, with the reason.

    python benchmarks/training.py --quick
    python benchmarks/training.py --spacing 4 --threads 2 --keep FOLDER --out FOLDER
    python benchmarks/training.py --device cuda --spacing 1      # in principle; see README.md for what was run
"""

import argparse
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from measured import Clock, Spent, machine
from peers import Peer, peers
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn
from training_tables import tell_quality, tell_speed

from nilatent.cohort import Cohort
from nilatent.models import ModelConfig
from nilatent.parts import SplitConfig, split
from nilatent.simulate.config import SimulationConfig
from nilatent.simulate.memory import simulate_maps
from nilatent.training.config import learning_rate
from nilatent.training.loop import MAX_GRADIENT_NORM, TrainConfig, train
from nilatent.training.start import set_up
from nilatent.training.validation import baselines
from nilatent.volumes import Volumes, gm_mask, volumes_in_memory, voxel_pca

SD_BY_FWHM = 1.0 / 2.3548
PEER_RATES = (3e-4, 1e-3, 3e-3)
PILOT_EPOCHS = 6
STEPS_A_TURN = 2
NOT_REACHED = float("nan")


@dataclass(frozen=True, eq=False)
class Data:
    """Scans, their parts, and the two yardsticks on those held out."""

    volumes: Volumes
    parts: pd.DataFrame
    rows: dict[str, np.ndarray]
    mean_image_mse: float
    pca_fvu: float


@dataclass(frozen=True)
class Course:
    """One training: what was spent when the held-out FVU was what."""

    points: tuple[tuple[Spent, float], ...]

    def reached(self, target: float) -> Spent:
        """Seconds until the first epoch that is as good as the target."""
        return next((spent for spent, fvu in self.points if fvu <= target), Spent(NOT_REACHED, NOT_REACHED))


class EnoughError(Exception):
    """Ends a training of ours from its callback."""


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few scans, epochs and repeats: does it run at all")
    parser.add_argument("--spacing", type=float, default=4.0, help="voxel size in mm")
    parser.add_argument("--fwhm", type=float, default=8.0, help="smoothing of the simulated maps in mm")
    parser.add_argument("--n-scans", type=int, default=200)
    parser.add_argument("--n-latent", type=int, default=16)
    parser.add_argument("--n-epochs", type=int, default=60, help="length of the schedule, for all")
    parser.add_argument("--n-repeats", type=int, default=3)
    parser.add_argument(
        "--budget", type=float, default=120.0, help="processor seconds after which one training is ended"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", nargs="+", choices=("32-true", "bf16-mixed"), default=["32-true", "bf16-mixed"])
    parser.add_argument("--only", choices=("speed", "quality"), help="one of the two tables")
    parser.add_argument("--keep", type=Path, help="folder that keeps the simulated scans for the next run")
    parser.add_argument("--out", type=Path, help="folder for the tables as TSV")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.n_scans, arguments.n_epochs, arguments.n_repeats, arguments.budget = 40, 6, 2, 3.0
    return arguments


def simulate(spacing_mm: float, fwhm_mm: float, n_scans: int, keep: Path | None) -> Volumes:
    """Simulated grey-matter maps, smoothed."""
    config = SimulationConfig(n_subjects=n_scans, spacing_mm=spacing_mm, seed=0)
    kept = None if keep is None else keep / f"maps_{spacing_mm:g}mm_{n_scans}.npy"
    few = simulate_maps(replace(config, n_subjects=2))
    if kept is not None and kept.exists():
        maps = np.load(kept)
    else:
        maps = simulate_maps(config).maps
        if kept is not None:
            kept.parent.mkdir(parents=True, exist_ok=True)
            np.save(kept, maps)
    sd = fwhm_mm * SD_BY_FWHM / spacing_mm
    smooth = np.stack([gaussian_filter(volume, sd) for volume in maps]) if fwhm_mm > 0 else maps
    ids = [f"sub-{index:04d}" for index in range(n_scans)]
    scans = pd.DataFrame({"subject_id": ids, "dataset": "simulated"}, index=pd.Index(ids, name="scan_id"))
    return volumes_in_memory(smooth, mask=gm_mask(few.grid), grid=few.grid, scans=scans)


def gather(volumes: Volumes, n_latent: int) -> Data:
    """Split by subject, and measure the mean image and PCA on the scans held out."""
    cohort = Cohort(volumes.scans, pd.DataFrame(columns=["scan_id", "path", "stage", "rule", "reason"]), {})
    parts = split(cohort, SplitConfig(seed=0))
    rows = {part: volumes.rows(list(parts.index[parts["part"] == part])) for part in ("train", "validation")}
    trivial = baselines(voxel_pca(volumes, rows["train"], n_latent, seed=0), volumes, rows["validation"])
    mean_image = trivial["mean_image"].mse
    return Data(volumes, parts, rows, mean_image, trivial["pca"].mse / mean_image)


@dataclass(frozen=True, eq=False)
class Ground:
    """The scans as the peers take them: on the device, raw and standardised, before any clock starts."""

    mask: Tensor
    raw: dict[str, Tensor]
    standardised: dict[str, Tensor]
    scale: float


def prepare(data: Data, device: str) -> Ground:
    mask = torch.from_numpy(np.asarray(data.volumes.mask)).float()
    raw = {
        part: torch.from_numpy(np.asarray(data.volumes.data[rows], np.float32))[:, None]
        for part, rows in data.rows.items()
    }
    inside = raw["train"][..., mask > 0]
    centre, scale = float(inside.mean()), float(inside.std())
    standardised = {part: ((x - centre) / scale * mask).to(device) for part, x in raw.items()}
    return Ground(mask.to(device), {part: (x * mask).to(device) for part, x in raw.items()}, standardised, scale)


def train_peer(peer: Peer, ground: Ground, data: Data, config: TrainConfig, limit: "Limit") -> Course:
    """Our loop and schedule around a tool's model."""
    clock = Clock(config.device)
    torch.manual_seed(config.seed)
    module = peer.build().to(ground.mask.device)
    optimiser = torch.optim.AdamW(module.parameters(), lr=config.learning_rate)
    scans = ground.raw if peer.raw else ground.standardised
    n_train, points = len(scans["train"]), []
    rng = np.random.default_rng(config.seed)
    n_batches = -(-n_train // config.batch_size)
    for epoch in range(1, config.n_epochs + 1):
        module.train()
        order = torch.from_numpy(rng.permutation(n_train))
        for number in range(n_batches):
            x = scans["train"][order[number * config.batch_size : (number + 1) * config.batch_size]]
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(config, epoch - 1 + (number + 1) / n_batches)
            step(lambda x=x: peer.loss(module, x), module, optimiser)
        points.append((clock.read(), held_out(peer, module, ground, data)))
        if limit.is_over(points[-1]):
            break
    return Course(tuple(points))


def step(loss: Callable[[], Tensor], module: nn.Module, optimiser: torch.optim.Optimizer) -> None:
    """Take one step as our own loop does, the look at the norm included."""
    optimiser.zero_grad()
    loss().backward()
    norm = nn.utils.clip_grad_norm_(module.parameters(), MAX_GRADIENT_NORM)
    if not torch.isfinite(norm):
        raise RuntimeError("The gradient is not finite.")
    optimiser.step()


@torch.no_grad()
def held_out(peer: Peer, module: nn.Module, ground: Ground, data: Data) -> float:
    """FVU on the validation scans, from posterior means, inside the mask."""
    scans = (ground.raw if peer.raw else ground.standardised)["validation"]
    unit = 1.0 if peer.raw else ground.scale
    total = sum(float(((peer.reconstruct(module, x) - x) * ground.mask).square().sum()) for x in scans.split(8))
    return total * unit**2 / float(ground.mask.sum()) / len(scans) / data.mean_image_mse


@dataclass(frozen=True)
class Limit:
    """When a training is ended: at the hardest target, or after so many processor seconds."""

    target: float
    seconds: float

    def is_over(self, point: tuple[Spent, float]) -> bool:
        """Whether nothing more is to be learned from going on."""
        spent, fvu = point
        return fvu <= self.target or spent.processor > self.seconds


def train_ours(model: ModelConfig, data: Data, config: TrainConfig, limit: Limit) -> Course:
    """`nilatent.training.train` as it is, with its validation and everything that it writes."""
    points: list[tuple[Spent, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        clock = Clock(config.device)
        start = train(data.volumes, data.parts, model, replace(config, n_epochs=0), Path(folder) / "start")
        points.append((clock.read(), float(start.history["validation_fvu"].iloc[0])))
        if limit.is_over(points[-1]):
            return Course(tuple(points))
        clock = Clock(config.device)

        def on_epoch(row: dict[str, int | float]) -> None:
            points.append((clock.read(), float(row["validation_fvu"])))
            if limit.is_over(points[-1]):
                raise EnoughError

        with suppress(EnoughError):
            train(data.volumes, data.parts, model, config, Path(folder) / "model", on_epoch=on_epoch)
    return Course(tuple(points))


def best_rate(peer: Peer, ground: Ground, data: Data, config: TrainConfig, budget: float) -> float:
    """The learning rate with the lowest held-out FVU after a short training of its own; a gift to the peer."""
    limit = Limit(target=0.0, seconds=budget)
    found = {}
    for rate in PEER_RATES:
        trial = replace(config, learning_rate=rate, n_epochs=min(PILOT_EPOCHS, config.n_epochs), seed=1000)
        try:
            found[rate] = min(fvu for _, fvu in train_peer(peer, ground, data, trial, limit).points)
        except RuntimeError:
            found[rate] = float("inf")
    print(
        f"  {peer.name}: FVU by learning rate {', '.join(f'{rate:g}: {fvu:.3f}' for rate, fvu in found.items())}",
        flush=True,
    )
    return min(found, key=lambda rate: found[rate])


OURS = {
    "nilatent vae (as it comes: PCA start)": lambda n_latent: ModelConfig(name="vae", n_latent=n_latent),
    "nilatent vae, plain (anchor none)": lambda n_latent: ModelConfig(name="vae", n_latent=n_latent, anchor="none"),
}


def compare_quality(data: Data, found: list[Peer], ground: Ground, arguments: argparse.Namespace) -> pd.DataFrame:
    """One row per model and repeat: seconds to either target, and the best FVU seen."""
    targets = {"pca": data.pca_fvu + 0.01, "modest": 0.9}
    config = TrainConfig(n_epochs=arguments.n_epochs, patience=arguments.n_epochs + 1, device=arguments.device)
    limit = Limit(min(targets.values()), arguments.budget)
    print("\nLearning rates tried for the peers (ours has its default):", flush=True)
    rates = {peer.name: best_rate(peer, ground, data, config, arguments.budget / len(PEER_RATES)) for peer in found}
    rows = []
    for repeat in range(arguments.n_repeats):
        runs: dict[str, Callable[[], Course]] = {}
        for name, model in OURS.items():
            runs[name] = lambda model=model, seed=repeat: train_ours(
                model(arguments.n_latent), data, replace(config, seed=seed), limit
            )
        for peer in found:
            runs[peer.name] = lambda peer=peer, seed=repeat: train_peer(
                peer, ground, data, replace(config, seed=seed, learning_rate=rates[peer.name]), limit
            )
        for name, run in runs.items():
            course = run()
            row = {"model": name, "repeat": repeat, "learning_rate": rates.get(name, config.learning_rate)}
            for target, fvu in targets.items():
                spent = course.reached(fvu)
                row |= {f"{target}_wall_s": spent.wall, f"{target}_processor_s": spent.processor}
            last = course.points[-1][0]
            row |= {"best_fvu": min(fvu for _, fvu in course.points), "n_epochs": len(course.points) - (name in OURS)}
            rows.append(row | {"wall_s": last.wall, "processor_s": last.processor, "load": os.getloadavg()[0]})
            print(
                "  "
                + "  ".join(
                    f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
                    for key, value in rows[-1].items()
                ),
                flush=True,
            )
    return pd.DataFrame(rows)


def compare_speed(data: Data, found: list[Peer], ground: Ground, arguments: argparse.Namespace) -> pd.DataFrame:
    """Volumes per second of training steps, a few steps of each in turn."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for precision in arguments.precision:
            turns = dict(_turns(data, found, ground, arguments, precision, Path(folder)))
            for turn in range(arguments.n_repeats + 1):
                for name, (once, n_weights) in turns.items():
                    clock = Clock(arguments.device)
                    for _ in range(STEPS_A_TURN):
                        once()
                    spent, n_volumes = clock.read(), STEPS_A_TURN * TrainConfig().batch_size
                    # The first turn also sets things up.
                    if turn > 0:
                        row = {"precision": precision, "model": name, "n_weights": n_weights, "turn": turn}
                        rows.append(
                            row | {"wall_s": spent.wall / n_volumes, "processor_s": spent.processor / n_volumes}
                        )
    return pd.DataFrame(rows)


def _turns(
    data: Data, found: list[Peer], ground: Ground, arguments: argparse.Namespace, precision: str, folder: Path
) -> Iterator[tuple[str, tuple[Callable[[], None], int]]]:
    config = TrainConfig(device=arguments.device, precision=precision)
    for name, model in OURS.items():
        run = set_up(data.volumes, data.parts, model(arguments.n_latent), config, folder / f"{precision}{len(name)}")
        generator = torch.Generator(run.fabric.device).manual_seed(0)
        x = ground.raw["train"][: config.batch_size]

        def once(run=run, generator=generator, x=x) -> None:
            run.optimiser.zero_grad()
            run.fabric.backward(run.objective(x, generator))
            run.fabric.clip_gradients(
                run.objective, run.optimiser, max_norm=MAX_GRADIENT_NORM, error_if_nonfinite=False
            )
            run.optimiser.step()

        yield name, (once, sum(weight.numel() for weight in run.module.parameters()))
    for peer in found:
        module = peer.build().to(arguments.device)
        optimiser = torch.optim.AdamW(module.parameters(), lr=1e-4)
        x = (ground.raw if peer.raw else ground.standardised)["train"][: config.batch_size]

        def once(peer=peer, module=module, optimiser=optimiser, x=x) -> None:
            with lowered(arguments.device, precision):
                loss = peer.loss(module, x)
            step(lambda: loss, module, optimiser)

        yield peer.name, (once, sum(weight.numel() for weight in module.parameters()))


@contextmanager
def lowered(device: str, precision: str) -> Iterator[None]:
    with torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bf16-mixed"):
        yield


def main() -> None:
    arguments = read_arguments()
    torch.set_num_threads(arguments.threads)
    print(machine(arguments.threads), flush=True)
    data = gather(simulate(arguments.spacing, arguments.fwhm, arguments.n_scans, arguments.keep), arguments.n_latent)
    ground = prepare(data, arguments.device)
    found, absent = peers(ground.mask, arguments.n_latent)
    sizes = ", ".join(f"{len(rows)} {part}" for part, rows in data.rows.items())
    print(f"Grid {data.volumes.grid.shape}, FWHM {arguments.fwhm:g} mm, {sizes} scans, {arguments.n_latent} latents")
    print("".join(f"Left out: {reason}\n" for reason in absent), flush=True)
    tables = {}
    if arguments.only != "quality":
        tables["speed"] = compare_speed(data, found, ground, arguments)
        print(tell_speed(tables["speed"]), flush=True)
    if arguments.only != "speed":
        tables["quality"] = compare_quality(data, found, ground, arguments)
        print("\n" + tell_quality(tables["quality"], data.pca_fvu))
    print(f"Load at the end {os.getloadavg()[0]:.1f}")
    for name, table in tables.items():
        if arguments.out is not None:
            arguments.out.mkdir(parents=True, exist_ok=True)
            table.to_csv(arguments.out / f"training_{name}_{arguments.spacing:g}mm.tsv", sep="\t", index=False)


if __name__ == "__main__":
    main()
