"""A run folder of three modalities with a shared cause, as far as a joint model needs one."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd

from nilatent.cohort import Cohort, write_cohort
from nilatent.config import read_config, write_config
from nilatent.crossfit import fold_parts
from nilatent.grid import Grid
from nilatent.modalities import fit_joint, open_modalities
from nilatent.parts import split
from nilatent.volumes import pack

GRIDS = {
    "gm": Grid((7, 9, 8), np.diag([4.0, 4.0, 4.0, 1.0])),
    "wm": Grid((9, 7, 6), np.diag([4.0, 4.0, 4.0, 1.0])),
}
SMALL = {"n_latent": 4, "n_shared": 1, "n_epochs": 0, "channels": [4], "batch_size": 64}
N_SCANS, N_WITHOUT_WM = 40, 5


def patterns(rng: np.random.Generator, shape: tuple[int, ...], number: int) -> np.ndarray:
    """(number, x, y, z) smooth patterns about 0."""
    axes = np.meshgrid(*[np.linspace(-2, 2, side) for side in shape], indexing="ij")
    waves = rng.uniform(-1, 1, (number, 3))
    return np.array([np.sin(sum(k * axis for k, axis in zip(one, axes, strict=True)) + one[0]) for one in waves])


def write_run(out: Path, rng: np.random.Generator, *, folds: int) -> np.ndarray:
    """Write the folder of a run up to its joint models, all linear; gives the shared cause of every scan."""
    shared = rng.standard_normal(N_SCANS)
    ids = [f"sub-{number:02d}" for number in range(N_SCANS)]
    scans = pd.DataFrame({"subject_id": ids, "session_id": "", "source_id": ids, "sha256": "", "dataset": "one"})
    scans = scans.assign(score=100 + 10 * shared + 3 * rng.standard_normal(N_SCANS), mood=rng.standard_normal(N_SCANS))
    scans.index = pd.Index(ids, name="scan_id")
    scans.loc[ids[1], ["score", "mood"]] = np.nan
    tables = {}
    for name, grid in GRIDS.items():
        (out / "prepared").mkdir(parents=True, exist_ok=True)
        axes = patterns(rng, grid.shape, 2)
        causes = np.column_stack([shared, 0.5 * rng.standard_normal(N_SCANS)])
        array = 5 + np.einsum("nk,kxyz->nxyz", causes, axes) + 0.3 * rng.standard_normal((N_SCANS, *grid.shape))
        paths = [out / "prepared" / f"{one}_label-{name.upper()}_desc-modulated_probseg.nii.gz" for one in ids]
        for values, path in zip(array, paths, strict=True):
            nib.save(grid.to_image(values), path)
        tables[name] = scans.assign(path=list(map(str, paths)))
        there = tables[name] if name == "gm" else tables[name].iloc[N_WITHOUT_WM:]
        folder = out / "volumes" if name == "gm" else out / "modalities" / name
        pack(Cohort(there), grid, folder, mask=np.abs(axes[0]) > 0.1)
    asked = {"folds": folds, "study.modalities.wm": "WM", "study.tables.scores": ["score", "mood"]}
    asked |= {
        "multimodal.n_latent": 4,
        "multimodal.n_epochs": 0,
        "multimodal.channels": [4],
        "multimodal.n_shared": 1,
        "multimodal.batch_size": 64,
    }
    config = read_config(overrides=asked)
    write_config(config, out / "study.toml")
    cohort = Cohort(tables["gm"])
    write_cohort(cohort, out / "prepared")
    parts = split(cohort, config.split)
    parts.to_csv(out / "split.tsv", sep="\t", index_label="scan_id")
    modalities = open_modalities(out, config, cohort)
    fit_joint(modalities, parts, config.multimodal, out / "multimodal")
    for fold in range(folds):
        of_fold = fold_parts(parts, fold, validation_fraction=config.split.validation_fraction, seed=config.split.seed)
        fit_joint(modalities, of_fold, config.multimodal, out / "folds" / str(fold) / "multimodal")
    return shared
