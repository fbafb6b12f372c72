"""Each layer of the default network against its roofline, and the whole step against the peak.

Attainable is the larger of arithmetic by the measured peak of a matrix product and bytes by the measured bandwidth of a triad,
both in the same precision, with the same threads, in the same run. Bytes are the least a layer can move: forward its input,
weights and output, backward its input, weights, the gradient of the output and the gradients that it writes. Arithmetic is
that of the plain layer, however it is computed. With one thread the clock counts processor time, which other work on the
machine disturbs least; with more it counts wall time.

    python benchmarks/roofline.py --spacing 4 2 --threads 1
    python benchmarks/roofline.py --quick
"""

import argparse
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import pandas as pd
import torch
from measured import machine
from torch import Tensor, nn
from torch.nn import functional

from nilatent.grid import Grid
from nilatent.models import LinearStart, ModelConfig, Vae, build
from nilatent.models.blocks import crop, pyramid
from nilatent.models.layers import double_to_few, halve, interpolate, to_few
from nilatent.training.config import TrainConfig
from nilatent.training.objective import Objective
from nilatent.volumes import gm_mask

N_TIMES = 7
PEAK_SIDES = (1024, 2048)
TRIAD_NUMBERS = 30_000_000
BYTES = {torch.float32: 4, torch.bfloat16: 2}


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer at its place.

    Parameters
    ----------
    name : str
        What it does.
    run : callable
        From the input to the output.
    x : Tensor
        Its input.
    weights : tuple
        Its parameters.
    multiplied : int
        Multiplications with an addition, forward.
    sends_back : bool
        Whether the gradient of the input is wanted.
    """

    name: str
    run: Callable[[Tensor], Tensor]
    x: Tensor
    weights: tuple[Tensor, ...]
    multiplied: int
    sends_back: bool = True


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="6 mm and one round: does it run at all")
    parser.add_argument("--spacing", type=float, nargs="+", default=[4.0, 2.0], help="voxel sizes in mm")
    parser.add_argument("--channels", type=int, nargs="+", default=list(ModelConfig().channels))
    parser.add_argument("--anchor", choices=("pca", "none"), default="pca")
    parser.add_argument("--n-latent", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=TrainConfig().batch_size)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--precision", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=2, help="how often everything is measured; the best counts")
    parser.add_argument("--out", type=Path, help="folder for the tables as TSV")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.spacing, arguments.rounds = [6.0], 1
    return arguments


@dataclass(frozen=True)
class Bench:
    """Where and how things are timed."""

    device: str
    threads: int

    def seconds(self, run: Callable[[], object]) -> float:
        """Least time of several."""
        run()
        return min(self._once(run) for _ in range(N_TIMES))

    def _once(self, run: Callable[[], object]) -> float:
        self._wait()
        clock = time.process_time if self.threads == 1 and self.device == "cpu" else time.perf_counter
        began = clock()
        run()
        self._wait()
        return clock() - began

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def peak(bench: Bench, dtype: torch.dtype) -> float:
    """Most arithmetic per second: matrix products by the library of linear algebra and by that of convolutions."""
    best = 0.0
    for side in PEAK_SIDES:
        a, b = (torch.randn(side, side, device=bench.device).to(dtype) for _ in range(2))
        image = a.reshape(1, side, side, 1, 1).contiguous(memory_format=torch.channels_last_3d)
        kernel = b.reshape(side, side, 1, 1, 1)
        for run in (lambda a=a, b=b: a @ b, lambda x=image, w=kernel: functional.conv3d(x, w)):
            best = max(best, 2.0 * side**3 / bench.seconds(run))
    return best


def bandwidth(bench: Bench, dtype: torch.dtype) -> float:
    """Bytes per second of a triad, ``a = b + 2 c``, over arrays that no cache holds."""
    a, b, c = (torch.ones(TRIAD_NUMBERS, device=bench.device, dtype=dtype) for _ in range(3))
    return 3.0 * a.nbytes / bench.seconds(lambda: torch.add(b, c, alpha=2.0, out=a))


def make_model(arguments: argparse.Namespace, grid: Grid) -> tuple[Vae, int]:
    """Build the model on a start of random numbers, whose sizes are all that counts."""
    mask = torch.from_numpy(gm_mask(grid))
    n_voxels = int(mask.sum())
    generator = torch.Generator().manual_seed(0)
    components = torch.linalg.qr(torch.randn(n_voxels, arguments.n_latent, generator=generator))[0].T.contiguous()
    start = LinearStart(
        mean=torch.rand(n_voxels, generator=generator),
        components=components,
        sd=torch.linspace(5.0, 1.0, arguments.n_latent),
        residual_variance=0.01,
        slopes=torch.zeros(0, n_voxels),
    )
    config = ModelConfig(
        name="vae", n_latent=arguments.n_latent, anchor=arguments.anchor, channels=tuple(arguments.channels)
    )
    torch.manual_seed(0)
    model = build(config, mask=mask, start=start)
    assert isinstance(model, Vae)
    return model.to(arguments.device, memory_format=torch.channels_last_3d), n_voxels  # type: ignore[call-overload]


def layers(model: Vae, shape: tuple[int, ...], batch_size: int, n_voxels: int) -> Iterator[Layer]:
    """Every layer with an input of the right size, in the order in which a scan meets them."""
    device = model.anchor.mask.device
    sides = pyramid((shape[0], shape[1], shape[2]), len(model.trunk.layers) // 2)

    def volumes(width: int, level: int) -> Tensor:
        made = torch.randn(batch_size, width, *sides[level], device=device)
        return made.contiguous(memory_format=torch.channels_last_3d)

    yield from _trunk_layers(model, volumes, [prod(side) * batch_size for side in sides])
    heads = (model.mean_head, model.log_var_head)
    for head in heads[:1]:
        x = torch.randn(batch_size, head.in_features, device=device)
        yield Layer("head of the means", head, x, tuple(head.parameters()), head.weight.numel() * batch_size)
    first = model.mirror.linear
    x = torch.randn(batch_size, first.in_features, device=device)
    yield Layer(
        f"linear {first.in_features} to {first.out_features}",
        first,
        x,
        tuple(first.parameters()),
        first.weight.numel() * batch_size,
    )
    yield from _mirror_layers(model, volumes, sides, batch_size)
    if len(model.anchor.log_var) and hasattr(model.anchor, "components"):
        n_latent = len(model.anchor.log_var)
        z = torch.randn(batch_size, n_latent, device=device)
        scans = torch.rand(batch_size, 1, *shape, device=device)
        work = batch_size * n_latent * n_voxels
        yield Layer("PCA projection", model.anchor.project, scans, (), work, sends_back=False)
        yield Layer("PCA reconstruction", model.anchor.reconstruct, z, (), work)


def _trunk_layers(model: Vae, volumes: Callable[[int, int], Tensor], n_voxels: list[int]) -> Iterator[Layer]:
    for position, (name, layer) in enumerate(model.trunk.layers.items()):
        level = position // 2
        if isinstance(layer, nn.Conv3d):
            weight = layer.weight
            run = (lambda x, w=weight: halve(x, w)) if name == "0" else layer
            told = f"convolution {weight.shape[1]} to {weight.shape[0]}, {weight.shape[2]}^3, stride 2"
            x = volumes(weight.shape[1], level)
            yield Layer(told, run, x, (weight,), weight.numel() * n_voxels[level + 1], sends_back=level > 0)
        else:
            width = len(layer.weight)
            yield Layer(f"norm and SiLU, {width}", layer, volumes(width, level + 1), tuple(layer.parameters()), 0)


def _mirror_layers(
    model: Vae, volumes: Callable[[int, int], Tensor], sides: list[tuple[int, ...]], batch_size: int
) -> Iterator[Layer]:
    level = len(sides) - 1
    for up, bend in model.mirror.ups:
        weight = up.weight
        x = volumes(weight.shape[0], level)
        work = weight.numel() * batch_size * prod(sides[level])
        level -= 1
        run = lambda x, up=up, side=sides[level]: crop(up(x), side)  # noqa: E731
        yield Layer(f"transposed convolution {weight.shape[0]} to {weight.shape[1]}, 4^3", run, x, (weight,), work)
        width = weight.shape[1]
        yield Layer(f"norm and SiLU, {width}", bend, volumes(width, level), tuple(bend.parameters()), 0)
    last = model.mirror.last
    weights = tuple(last.parameters())
    work = last.weight.numel() * batch_size * prod(sides[level])
    smooth = model.mirror.n_smooth > 0
    name = "last convolution" if smooth else "last transposed convolution"
    width = last.weight.shape[1] if smooth else last.weight.shape[0]
    run = (lambda x: to_few(x, *weights)) if smooth else (lambda x: double_to_few(x, *weights))
    yield Layer(f"{name} {width} to 1, {last.weight.shape[2]}^3", run, volumes(width, level), weights, work)
    if smooth:
        # Along each axis two products a voxel, if nothing is wasted.
        yield Layer("trilinear doubling", interpolate, volumes(1, level), (), 2 * 14 * batch_size * prod(sides[level]))


def judge(layer: Layer, bench: Bench, dtype: torch.dtype) -> dict[str, object]:
    """Time a layer forward and backward, and count what it must do."""
    x = layer.x.to(dtype) if dtype != torch.float32 and layer.weights else layer.x
    x = x.detach().requires_grad_(layer.sends_back)
    wanted = [tensor for tensor in (x, *layer.weights) if tensor.requires_grad]

    def forward() -> Tensor:
        with torch.autocast(bench.device, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            return layer.run(x)

    out = forward()
    along = torch.randn_like(out)

    def both() -> None:
        if wanted:
            torch.autograd.grad(forward(), wanted, along)
        else:
            forward()

    n_passes = 1 + bool(layer.weights) + layer.sends_back if wanted else 1
    weights = sum(weight.numel() for weight in layer.weights)
    moved = x.numel() + weights + out.numel()
    if wanted:
        moved += x.numel() + 2 * weights + out.numel() + layer.sends_back * x.numel()
    return {
        "layer": layer.name,
        "flops": 2.0 * layer.multiplied * n_passes,
        "bytes": float(BYTES[dtype] * moved),
        "seconds": bench.seconds(both),
    }


def whole_step(
    model: Vae, arguments: argparse.Namespace, shape: tuple[int, ...], bench: Bench, dtype: torch.dtype
) -> float:
    """Seconds of one step as the training takes it."""
    config = ModelConfig(
        name="vae", n_latent=arguments.n_latent, anchor=arguments.anchor, channels=tuple(arguments.channels)
    )
    objective = Objective(model, config, TrainConfig(), variance=0.02, n_scans=100)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5)
    generator = torch.Generator(bench.device).manual_seed(0)
    x = torch.rand(arguments.batch_size, 1, *shape, device=bench.device)

    def step() -> None:
        optimiser.zero_grad()
        with torch.autocast(bench.device, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = objective(x, generator)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()

    return bench.seconds(step)


def measure(arguments: argparse.Namespace, spacing_mm: float, precision: str) -> pd.DataFrame:
    """One row per layer, and one for the whole step."""
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    bench = Bench(arguments.device, arguments.threads)
    grid = Grid.mni(spacing_mm)
    model, n_voxels = make_model(arguments, grid)
    rows: dict[str, dict[str, object]] = {}
    fastest, widest = 0.0, 0.0
    for _ in range(arguments.rounds):
        fastest, widest = max(fastest, peak(bench, dtype)), max(widest, bandwidth(bench, dtype))
        for position, layer in enumerate(layers(model, grid.shape, arguments.batch_size, n_voxels)):
            found = judge(layer, bench, dtype)
            before = rows.setdefault(f"{position} {layer.name}", found)
            before["seconds"] = min(before["seconds"], found["seconds"])
        noisy = torch.empty(arguments.batch_size, 1, *grid.shape, device=arguments.device)
        seconds = bench.seconds(lambda x=noisy: torch.randn_like(x))
        rows["noise"] = {"layer": "noise on the scans", "flops": 0.0, "bytes": float(noisy.nbytes), "seconds": seconds}
        seconds = whole_step(model, arguments, grid.shape, bench, dtype)
        rows["step"] = {
            "layer": "whole step",
            "flops": 0.0,
            "bytes": 0.0,
            "seconds": min(seconds, rows.get("step", {}).get("seconds", seconds)),
        }
    table = pd.DataFrame(list(rows.values()))
    # The other head is the same again.
    twice = table["layer"].eq("head of the means") + 1
    table.loc[table.index[-1], "flops"] = (table["flops"] * twice).sum()
    table["attainable"] = pd.concat([table["flops"] / fastest, table["bytes"] / widest], axis=1).max(axis=1)
    table["share"] = table["attainable"] / table["seconds"]
    return table.assign(spacing_mm=spacing_mm, precision=precision, peak=fastest, bandwidth=widest)


def tell(table: pd.DataFrame) -> str:
    """Markdown of one grid and precision."""
    first, step = table.iloc[0], table.iloc[-1]
    lines = [
        f"{first['spacing_mm']:g} mm, {first['precision']}: peak {first['peak'] / 1e9:.0f} GFLOP/s, bandwidth "
        f"{first['bandwidth'] / 1e9:.0f} GB/s",
        "",
        "| Layer | GFLOP | MB | ms | share of the step | bound by | share of attainable |",
        "|---|---|---|---|---|---|---|",
    ]
    for _, row in table.iloc[:-1].iterrows():
        bound = "arithmetic" if row["flops"] / row["peak"] >= row["bytes"] / row["bandwidth"] else "memory"
        lines.append(
            f"| {row['layer']} | {row['flops'] / 1e9:.2f} | {row['bytes'] / 1e6:.1f} | {1e3 * row['seconds']:.2f} "
            f"| {row['seconds'] / step['seconds']:.0%} | {bound} | {row['share']:.0%} |"
        )
    counted = table["seconds"].iloc[:-1].sum() / step["seconds"]
    reached = step["flops"] / step["peak"] / step["seconds"]
    lines.append(
        f"| **whole step** | {step['flops'] / 1e9:.2f} | | {1e3 * step['seconds']:.1f} | layers above {counted:.0%} | "
        f"| {reached:.0%} of the peak |"
    )
    return "\n".join(lines)


def main() -> None:
    arguments = read_arguments()
    torch.set_num_threads(arguments.threads)
    print(machine(arguments.threads))
    tables = []
    for spacing_mm in arguments.spacing:
        for precision in arguments.precision:
            tables.append(measure(arguments, spacing_mm, precision))
            print("\n" + tell(tables[-1]), flush=True)
    print(f"\nLoad at the end {os.getloadavg()[0]:.1f}")
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        pd.concat(tables).to_csv(arguments.out / "roofline.tsv", sep="\t", index=False)


if __name__ == "__main__":
    main()
