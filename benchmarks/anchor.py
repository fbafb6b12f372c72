"""Whether the network adds anything to PCA on scans it has not seen.

Over several splits by subject: held-out FVU of PCA, of the plain and of the PCA-anchored models, paired with PCA.

    python benchmarks/anchor.py OUT/volumes --n-latent 8
    python benchmarks/anchor.py --simulate 150 --n-latent 16 --models autoencoder
"""

import argparse
import itertools
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from nilatent.cohort import Cohort
from nilatent.models import ANCHORS, MODELS, ModelConfig
from nilatent.parts import SplitConfig, split
from nilatent.simulate.config import SimulationConfig
from nilatent.simulate.memory import simulate_maps
from nilatent.training.diagnostics import fvu
from nilatent.training.loop import TrainConfig, train
from nilatent.training.validation import baselines, validate
from nilatent.volumes import Volumes, gm_mask, open_volumes, volumes_in_memory, voxel_pca


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("volumes", nargs="?", type=Path, help="a folder that `pack` left")
    parser.add_argument("--simulate", type=int, help="instead: this many simulated subjects at 4 mm")
    parser.add_argument("--n-latent", type=int, default=8)
    parser.add_argument("--n-splits", type=int, default=5)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if (arguments.volumes is None) == (arguments.simulate is None):
        parser.error("give either a volumes folder or --simulate N")
    return arguments


def read_volumes(arguments: argparse.Namespace) -> Volumes:
    if arguments.volumes is not None:
        return open_volumes(arguments.volumes)
    cohort = simulate_maps(SimulationConfig(n_subjects=arguments.simulate, seed=arguments.seed))
    scans = cohort.scans[["subject_id", "dataset"]]
    return volumes_in_memory(cohort.maps, mask=gm_mask(cohort.grid), grid=cohort.grid, scans=scans)


def judge_split(volumes: Volumes, seed: int, *, n_latent: int, models: list[str]) -> list[dict[str, object]]:
    """One row per model: held-out FVU beside that of PCA, on the test part of one split."""
    cohort = Cohort(volumes.scans, pd.DataFrame(columns=["scan_id", "path", "stage", "rule", "reason"]), {})
    parts = split(cohort, SplitConfig(seed=seed))
    fitted, held_out = (volumes.rows(list(parts.index[parts["part"] == part])) for part in ("train", "test"))
    trivial = baselines(voxel_pca(volumes, fitted, n_latent, seed=seed), volumes, held_out)
    pca = fvu(trivial["pca"], trivial["mean_image"])
    shared = {"split": seed, "n_train": len(fitted), "n_test": len(held_out), "n_latent": n_latent}
    rows: list[dict[str, object]] = [
        shared | {"model": "mean image", "fvu": 1.0, "pca_fvu": pca, "best_epoch": 0, "n_epochs": 0, "seconds": 0.0},
        shared | {"model": "pca", "fvu": pca, "pca_fvu": pca, "best_epoch": 0, "n_epochs": 0, "seconds": 0.0},
    ]
    for name, anchor in itertools.product(models, ANCHORS):
        config = ModelConfig(name=name, n_latent=n_latent, anchor=anchor)
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            trained = train(volumes, parts, config, TrainConfig(seed=seed), Path(folder))
        seconds = time.perf_counter() - began
        found = validate(trained.module, volumes, held_out, batch_size=16).fit
        rows.append(
            shared
            | {
                "model": f"{name} {'anchored' if anchor == 'pca' else 'plain'}",
                "fvu": fvu(found, trivial["mean_image"]),
                "pca_fvu": pca,
                "best_epoch": trained.best_epoch,
                "n_epochs": len(trained.history) - 1,
                "seconds": round(seconds, 1),
            }
        )
    return rows


def interval(differences: np.ndarray) -> tuple[float, float, float]:
    """Mean and its 95 % limits by Student's t; splits share scans, so the limits are a guide, not a test."""
    centre = float(differences.mean())
    if len(differences) < 2:
        return centre, float("nan"), float("nan")
    half = stats.t.ppf(0.975, len(differences) - 1) * differences.std(ddof=1) / np.sqrt(len(differences))
    return centre, centre - float(half), centre + float(half)


def summarise(rows: pd.DataFrame) -> pd.DataFrame:
    """Per model: mean FVU, paired difference from PCA with its interval, share of explained variance added."""
    told = []
    for model, found in rows.groupby("model", sort=False):
        difference, low, high = interval((found["fvu"] - found["pca_fvu"]).to_numpy())
        share, share_low, share_high = interval(((found["pca_fvu"] - found["fvu"]) / (1 - found["pca_fvu"])).to_numpy())
        told.append(
            {
                "model": model,
                "fvu": found["fvu"].mean(),
                "minus_pca": difference,
                "low": low,
                "high": high,
                "share_added": share,
                "share_low": share_low,
                "share_high": share_high,
                "n_epoch_0": int((found["best_epoch"] == 0).sum()),
                "seconds": found["seconds"].mean(),
            }
        )
    return pd.DataFrame(told)


def main() -> None:
    arguments = read_arguments()
    volumes = read_volumes(arguments)
    rows: list[dict[str, object]] = []
    for number in range(arguments.n_splits):
        rows += judge_split(volumes, arguments.seed + number, n_latent=arguments.n_latent, models=arguments.models)
    table = pd.DataFrame(rows)
    table.to_csv(sys.stdout, sep="\t", index=False, float_format="%.4f")
    print()
    summarise(table).to_csv(sys.stdout, sep="\t", index=False, float_format="%.4f")


if __name__ == "__main__":
    main()
