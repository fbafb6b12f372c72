"""Detail that an adversarial term draws beside a plain VAE, and how much of it is the detail of the scan.

A plain VAE and spatial VAEs without and with a perceptual and an adversarial term are trained on the same split, and
`nilatent.analysis.blur` holds their reconstructions of the test part against PCA of the training scans, band by band: energy
kept, coherence with the scan's own detail, share explained. The critic is on from the first epoch, so that whatever epoch the
validation scans choose has been under it; the chosen epoch is in the table.

    python benchmarks/blur.py OUT/volumes --n-latent 8 --n-splits 2 --out blur.tsv
    python benchmarks/blur.py --simulate 120 --n-latent 24 --out blur.tsv
"""

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import ndimage

from nilatent.analysis.blur import blur
from nilatent.analysis.blur.bands import SD_OF_FWHM
from nilatent.cohort import Cohort
from nilatent.encode import encode
from nilatent.models import ModelConfig
from nilatent.parts import SplitConfig, split
from nilatent.pools import n_components
from nilatent.simulate.config import SimulationConfig
from nilatent.simulate.memory import simulate_maps
from nilatent.spaces import space_of
from nilatent.training.loop import TrainConfig, train
from nilatent.volumes import Volumes, gm_mask, open_volumes, volumes_in_memory


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("volumes", nargs="?", type=Path, help="a folder that `pack` left")
    parser.add_argument("--simulate", type=int, help="instead: this many simulated subjects at 4 mm")
    parser.add_argument("--smooth-mm", type=float, default=0.0, help="smoothing of the simulated maps")
    parser.add_argument("--fwhm-mm", type=float, default=8.0, help="smoothing that the volumes went through")
    parser.add_argument("--n-latent", type=int, default=8)
    parser.add_argument("--latent-grid", type=int, default=12)
    parser.add_argument("--anchor", default="auto", help="start of the spatial models: auto is local PCA")
    parser.add_argument("--adversarial", nargs="+", type=float, default=[0.05])
    parser.add_argument("--n-epochs", type=int, default=40)
    parser.add_argument("--n-splits", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--models", type=Path, default=Path("blur-models"), help="where the models go; resumed there")
    parser.add_argument("--out", type=Path, default=Path("blur.tsv"))
    arguments = parser.parse_args()
    if (arguments.volumes is None) == (arguments.simulate is None):
        parser.error("give either a volumes folder or --simulate N")
    return arguments


def read_volumes(arguments: argparse.Namespace) -> tuple[Volumes, float]:
    """The scans, and the smoothing they went through."""
    if arguments.volumes is not None:
        return open_volumes(arguments.volumes), arguments.fwhm_mm
    cohort = simulate_maps(SimulationConfig(n_subjects=arguments.simulate, seed=arguments.seed))
    maps = cohort.maps
    if arguments.smooth_mm:
        sd = arguments.smooth_mm * SD_OF_FWHM / cohort.grid.spacing_mm
        maps = np.stack([ndimage.gaussian_filter(one, sd) for one in maps])
    scans = cohort.scans[["subject_id", "dataset"]]
    made = volumes_in_memory(maps, mask=gm_mask(cohort.grid), grid=cohort.grid, scans=scans)
    return made, arguments.smooth_mm


def configs(arguments: argparse.Namespace) -> dict[str, ModelConfig]:
    spatial = {"name": "spatial_vae", "latent_grid": arguments.latent_grid, "anchor": arguments.anchor}
    return {
        "vae": ModelConfig(name="vae", n_latent=arguments.n_latent),
        "spatial, plain": ModelConfig(**spatial, perceptual=0.0, adversarial=0.0),
        "spatial, perceptual": ModelConfig(**spatial, adversarial=0.0),
    } | {
        f"spatial, perceptual and adversarial {weight:g}": ModelConfig(
            **spatial, adversarial=weight, adversarial_from=0.0
        )
        for weight in arguments.adversarial
    }


def judge_split(volumes: Volumes, fwhm_mm: float, seed: int, arguments: argparse.Namespace) -> pd.DataFrame:
    """Rows of the finding of every model on the test part of one split; of the yardsticks those of the VAE's."""
    cohort = Cohort(volumes.scans, pd.DataFrame(columns=["scan_id", "path", "stage", "rule", "reason"]), {})
    parts = split(cohort, SplitConfig(seed=seed))
    told = []
    for name, config in configs(arguments).items():
        began = time.perf_counter()
        training = TrainConfig(seed=seed, n_epochs=arguments.n_epochs)
        model = train(volumes, parts, config, training, arguments.models / f"{name}-{seed}".replace(", ", "-"))
        seconds = time.perf_counter() - began
        latents = encode(model, volumes, parts)
        space = space_of(model, latents, n_components=n_components(parts), seed=seed)
        found = blur([space], volumes, volumes.scans, fwhm_mm=fwhm_mm, seed=seed)
        table = found.table.assign(model=name)
        if told:
            table = table[table["approach"].str.startswith(("reconstruction", "samples"))]
        told.append(
            table.assign(
                split=seed,
                n_test=found.n_scans,
                best_epoch=model.best_epoch,
                n_epochs=len(model.history) - 1,
                seconds=round(seconds),
            )
        )
        print(name, found.answer, flush=True)
    return pd.concat(told, ignore_index=True)


def main() -> None:
    arguments = read_arguments()
    volumes, fwhm_mm = read_volumes(arguments)
    done = []
    for number in range(arguments.n_splits):
        done.append(judge_split(volumes, fwhm_mm, arguments.seed + number, arguments))
        pd.concat(done).to_csv(arguments.out, sep="\t", index=False, float_format="%.4f")
    shown = pd.concat(done).drop(columns=[name for name in done[0] if str(name).endswith(("_low", "_high"))])
    print(shown.to_string(index=False))


if __name__ == "__main__":
    main()
