"""Spatial VAEs of three latent grids on T1 intensities: held-out reconstruction beside trivial ways to keep as many values.

For every grid: SSIM, MSE, feature distance and cosine similarity of the model on the test part, beside down-sampling to the
same number of values (cells of either grid without a voxel of the mask hold none), PCA (as many components as the training
scans allow) and the mean image.

    python benchmarks/spatial.py OUT/volumes OUT/split.tsv --grids 24 12 3 --out spatial.tsv
"""

import argparse
import resource
import time
from pathlib import Path

import pandas as pd

from nilatent.analyses import values_used
from nilatent.analysis.reconstruction import reconstruction
from nilatent.encode import reconstructions
from nilatent.models import ModelConfig
from nilatent.models.features import image_features
from nilatent.training.loop import TrainConfig, train
from nilatent.volumes import Volumes, open_volumes

SHOWN = ["fvu", "mse", "ssim", "ms_ssim", "psnr", "feature_distance", "feature_cosine", "cosine"]


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("volumes", type=Path, help="a folder that `pack` left")
    parser.add_argument("split", type=Path, help="split.tsv of that run")
    parser.add_argument("--grids", nargs="+", type=int, default=[24, 12, 3])
    parser.add_argument("--latent-channels", type=int, default=ModelConfig().latent_channels)
    parser.add_argument("--n-epochs", type=int, default=TrainConfig().n_epochs)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--models", type=Path, default=Path("spatial-models"), help="where the models go; resumed there"
    )
    parser.add_argument("--out", type=Path, default=Path("spatial.tsv"))
    return parser.parse_args()


def judge_grid(volumes: Volumes, parts: pd.DataFrame, grid: int, arguments: argparse.Namespace) -> pd.DataFrame:
    """Train one model on the training part and measure it on the test part; one row per method."""
    config = ModelConfig(name="spatial_vae", latent_grid=grid, latent_channels=arguments.latent_channels)
    training = TrainConfig(
        n_epochs=arguments.n_epochs,
        batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        seed=arguments.seed,
    )
    began, used = time.perf_counter(), time.process_time()
    model = train(volumes, parts, config, training, arguments.models / f"grid-{grid}")
    wall, processor = time.perf_counter() - began, time.process_time() - used
    features, note = image_features(volumes.mask)
    rows = volumes.rows(list(parts.index[parts["part"] != "validation"]))
    found = reconstruction(
        volumes,
        reconstructions(model, volumes, rows, batch_size=4),
        parts,
        volumes.scans,
        n_latent=values_used(model),
        seed=arguments.seed,
        features=features,
        features_note=note,
        target="t1w",
    )
    table = found.table[(found.table["stratum"] == "all") & (found.table["part"] == "test")]
    kept = table[["method", "n_scans", *[name for name in SHOWN if name in table]]].assign(
        grid=grid,
        n_values=config.n_values,
        n_used=values_used(model),
        best_epoch=model.best_epoch,
        n_epochs=len(model.history) - 1,
        wall_seconds=round(wall),
        processor_seconds=round(processor),
        peak_gb=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
    )
    print(found.answer, flush=True)
    print(kept.to_string(index=False), flush=True)
    return kept


def main() -> None:
    arguments = read_arguments()
    volumes = open_volumes(arguments.volumes)
    parts = pd.read_csv(arguments.split, sep="\t", dtype={"scan_id": str, "subject_id": str}).set_index("scan_id")
    done = []
    for grid in arguments.grids:
        done.append(judge_grid(volumes, parts, grid, arguments))
        pd.concat(done).to_csv(arguments.out, sep="\t", index=False)


if __name__ == "__main__":
    main()
