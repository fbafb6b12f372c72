"""Held-out reconstruction of every model beside PCA of equal size and the mean image.

Cohorts are ``simulated`` (free fields of shape), ``curved`` (few causes of shape, so that PCA needs many components), both
simulated anew for every split, and volumes folders, split anew. One row per cohort, split, size and model goes to a table as
soon as it is known; the same command goes on where it was stopped. Nothing here is chosen by looking at test parts, and
every row that was run is in the table.

    python benchmarks/reconstruction.py rows.tsv --cohorts simulated curved mine=OUT/volumes
    python benchmarks/reconstruction.py rows.tsv --table
"""

import argparse
import dataclasses
import functools
import itertools
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import ndimage, stats

from nilatent.analysis.similarity import ssim_3d
from nilatent.cohort import Cohort
from nilatent.encode import reconstructions
from nilatent.models import MODELS, ModelConfig
from nilatent.parts import SplitConfig, split
from nilatent.preprocess.resampling import smooth
from nilatent.simulate import SimulationConfig, simulate_maps
from nilatent.training.loop import TrainConfig, train
from nilatent.volumes import Volumes, gm_mask, open_volumes, volumes_in_memory, voxel_pca

N_CAUSES = {"simulated": 0, "curved": 4}
FWHM_MM, DATA_RANGE = 8.0, 1.0
LATENTS = (8, 16, 32, 64)
MARGIN_FVU = 0.005
COLUMNS = [
    *("cohort", "split", "n_train", "n_validation", "n_test", "n_latent", "model", "fvu", "ssim", "psnr", "pca_fvu"),
    *("best_epoch", "n_epochs", "seconds", "note"),
]
KEY = ["cohort", "split", "n_latent", "model"]
TRIVIAL = ("mean image", "pca")


def settings(model: str, n_latent: int, seed: int) -> tuple[ModelConfig, TrainConfig]:
    """A model by its name in the table: all defaults; without an anchor when it is plain; untrained when it is its start."""
    name, _, kind = model.partition(" ")
    config = ModelConfig(name=name, n_latent=n_latent)
    if kind == "plain":
        config = dataclasses.replace(config, anchor="none")
    return config, TrainConfig(seed=seed, n_epochs=0) if kind == "start" else TrainConfig(seed=seed)


def models() -> list[str]:
    vector = [name for name in MODELS if name != "spatial_vae"]
    kinds = [f"{name} {kind}" for kind in ("start", "plain") for name in vector]
    return [*vector, *kinds, *(name for name in MODELS if name == "spatial_vae")]


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path, help="the table of rows, made or continued")
    parser.add_argument("--cohorts", nargs="+", default=list(N_CAUSES), help="simulated, curved, or NAME=FOLDER")
    parser.add_argument("--models", nargs="+", choices=models(), default=models())
    parser.add_argument("--latents", nargs="+", type=int, default=list(LATENTS))
    parser.add_argument("--n-splits", type=int, default=5)
    parser.add_argument("--n-subjects", type=int, default=160, help="of the simulated cohorts")
    parser.add_argument("--seed", type=int, default=100, help="of the first split; the next has the next")
    parser.add_argument("--table", action="store_true", help="print what is there as Markdown, and run nothing")
    return parser.parse_args()


@functools.cache
def read_volumes(cohort: str, n_subjects: int, seed: int) -> Volumes:
    """Volumes of a cohort: other people for every seed when they are simulated, the same when they are real."""
    if cohort not in N_CAUSES:
        return open_volumes(Path(cohort.partition("=")[2]))
    config = SimulationConfig(n_subjects=n_subjects, seed=seed, n_causes=N_CAUSES[cohort])
    made = simulate_maps(config)
    maps = np.stack([smooth(one, fwhm_mm=FWHM_MM, spacing_mm=config.spacing_mm) for one in made.maps])
    scans = made.scans[["subject_id", "dataset"]]
    return volumes_in_memory(maps, mask=gm_mask(made.grid), grid=made.grid, scans=scans)


def measure(x: np.ndarray, drawn: np.ndarray, mean: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """FVU, SSIM and PSNR of reconstructions of scans, both (scan, voxel)."""
    mse = np.square(x - drawn).mean(axis=1)
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    inside = mask[box]
    ssim = []
    for original, made in zip(x, drawn, strict=True):
        filled = np.zeros((2, *inside.shape), dtype=np.float32)
        filled[:, inside] = original, made
        ssim.append(ssim_3d(filled[0], filled[1:], inside, data_range=DATA_RANGE)[0][0])
    fvu = mse.sum() / np.square(x - mean).mean(axis=1).sum()
    return {"fvu": fvu, "ssim": float(np.mean(ssim)), "psnr": float(np.mean(10 * np.log10(DATA_RANGE**2 / mse)))}


def judge(volumes: Volumes, seed: int, n_latent: int, model: str) -> dict[str, object]:
    """One fit of one model, or PCA, or the mean image, measured on the test part of one split."""
    cohort = Cohort(volumes.scans, pd.DataFrame(columns=["scan_id", "path", "stage", "rule", "reason"]), {})
    parts = split(cohort, SplitConfig(seed=seed))
    rows = {part: volumes.rows(list(parts.index[parts["part"] == part])) for part in ("train", "validation", "test")}
    shared: dict[str, object] = {f"n_{part}": len(found) for part, found in rows.items()}
    if n_latent >= len(rows["train"]):
        return shared | {"note": f"not run: {len(rows['train'])} training scans carry no {n_latent} components"}
    pca = voxel_pca(volumes, rows["train"], n_latent, seed=seed)
    x = volumes.masked(rows["test"]).astype(np.float64)
    by_pca = pca.reconstruct(volumes.masked(rows["test"]))
    shared |= {"pca_fvu": np.square(x - by_pca).sum() / np.square(x - pca.mean).sum()}
    if model in TRIVIAL:
        drawn = by_pca if model == "pca" else np.broadcast_to(pca.mean, x.shape)
        return shared | measure(x, drawn, pca.mean, volumes.mask)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        trained = train(volumes, parts, *settings(model, n_latent, seed), Path(folder))
    seconds = round(time.perf_counter() - began, 1)
    drawn = np.concatenate([batch for _, batch in reconstructions(trained, volumes, rows["test"])])
    history = {"best_epoch": trained.best_epoch, "n_epochs": len(trained.history) - 1, "seconds": seconds}
    return shared | measure(x, drawn, pca.mean, volumes.mask) | history


def known_rows(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, sep="\t") if path.is_file() else pd.DataFrame(columns=COLUMNS)


def run(arguments: argparse.Namespace) -> None:
    if not arguments.rows.is_file():
        arguments.rows.write_text("\t".join(COLUMNS) + "\n", encoding="utf-8")
    seeds = range(arguments.seed, arguments.seed + arguments.n_splits)
    for model, cohort, seed in itertools.product([*arguments.models, *TRIVIAL], arguments.cohorts, seeds):
        # The spatial model has a grid for a latent: one row, beside the largest PCA that was asked for.
        for n_latent in arguments.latents if model != "spatial_vae" else arguments.latents[-1:]:
            key = dict(zip(KEY, (cohort.partition("=")[0], seed, n_latent, model), strict=True))
            if (known_rows(arguments.rows)[KEY] == pd.Series(key)).all(axis=1).any():
                continue
            volumes = read_volumes(cohort, arguments.n_subjects, seed if cohort in N_CAUSES else 0)
            row = pd.DataFrame([key | judge(volumes, seed, n_latent, model)], columns=COLUMNS)
            with arguments.rows.open("a", encoding="utf-8") as file:
                row.to_csv(file, sep="\t", index=False, header=False, float_format="%.6g")


def interval(differences: np.ndarray, *, overlap: float) -> tuple[float, float, float]:
    """Mean over splits and its 95 % limits.

    `overlap` is the number of test scans over that of training scans where all splits are of the same people, whose
    differences hang together, and 0 where every split has people of its own.

    References
    ----------
    Nadeau & Bengio 2003, Inference for the generalization error. doi:10.1023/A:1024068626366
    """
    n_splits, centre = len(differences), float(differences.mean())
    if n_splits < 2:
        return centre, float("nan"), float("nan")
    error = differences.std(ddof=1) * np.sqrt(1 / n_splits + overlap)
    half = float(stats.t.ppf(0.975, n_splits - 1) * error)
    return centre, centre - half, centre + half


def verdict(low: float, high: float) -> str:
    """What the interval of the difference from PCA says; below zero is better."""
    if np.isnan(low):
        return "one split"
    if high < 0:
        return "better"
    # A model that kept its start is PCA itself.
    if low > 0:
        return "worse" if high >= MARGIN_FVU else "worse, not inferior"
    return "not inferior" if high < MARGIN_FVU else "undecided"


def table(rows: pd.DataFrame) -> str:
    """Markdown: one line per cohort, size and model, mean over splits."""
    lines = [
        "| Cohort | d | Model | FVU | SSIM | PSNR dB | FVU minus PCA | 95 % | verdict | splits | kept its start | s per fit |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    order = {name: position for position, name in enumerate([*TRIVIAL, *models()])}
    rows = rows.assign(order=rows["model"].map(order)).sort_values(
        ["cohort", "n_latent", "order", "split"], kind="stable"
    )
    for (cohort, n_latent, model), found in rows.groupby(["cohort", "n_latent", "model"], sort=False):
        ran = found[found["fvu"].notna()]
        if ran.empty:
            lines.append(f"| {cohort} | {n_latent} | {model} | {found['note'].iloc[0]} | | | | | | {len(found)} | | |")
            continue
        fvu, ssim, psnr = ran[["fvu", "ssim", "psnr"]].mean()
        told = f"| {cohort} | {n_latent} | {model} | {fvu:.4f} | {ssim:.3f} | {psnr:.2f}"
        if model in TRIVIAL:
            lines.append(f"{told} | – | – | – | {len(ran)} | – | – |")
            continue
        overlap = 0.0 if cohort in N_CAUSES else float((ran["n_test"] / ran["n_train"]).mean())
        centre, low, high = interval((ran["fvu"] - ran["pca_fvu"]).to_numpy(), overlap=overlap)
        kept = f"{int((ran['best_epoch'] == 0).sum())} of {len(ran)}"
        lines.append(
            f"{told} | {centre:+.4f} | {low:+.4f} to {high:+.4f} | {verdict(low, high)} | {len(ran)} | {kept} "
            f"| {ran['seconds'].mean():.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    arguments = read_arguments()
    if not arguments.table:
        run(arguments)
    print(table(known_rows(arguments.rows)))


if __name__ == "__main__":
    main()
