from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from scipy import sparse

from nilatent.atlas import RegionWeights
from nilatent.latents import make_latents
from nilatent.volumes import Grid, Volumes, volumes_in_memory

SHAPE = (15, 17, 13)


@dataclass(frozen=True, eq=False)
class Study:
    """Everything an analysis takes, small and consistent."""

    latents: xr.Dataset
    regions: pd.DataFrame
    scans: pd.DataFrame
    weights: RegionWeights
    grid: Grid
    mask: np.ndarray


@pytest.fixture
def grid() -> Grid:
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = -30, -40, -20
    return Grid(SHAPE, affine)


@pytest.fixture
def study(rng: np.random.Generator, grid: Grid) -> Callable[..., Study]:
    """A factor-model cohort: region values with shared factors, latents = an arbitrary mix of regions and noise."""

    def make(*, n: int = 60, n_regions: int = 12, n_latent: int = 6, effect: float = 0.0, planted: int = 4) -> Study:
        is_case = np.arange(n) < n // 2
        x = 0.5 + 0.03 * rng.normal(size=(n, 1)) + 0.03 * rng.normal(size=(n, n_regions))
        x[is_case, planted] -= effect * 0.03
        z = x @ rng.normal(size=(n_regions, n_latent)) * 10 + 0.3 * rng.normal(size=(n, n_latent))
        index = pd.Index([f"sub-{i:03d}" for i in range(n)], name="scan_id")
        names = [f"Region_{i}" for i in range(n_regions)]
        scans = pd.DataFrame(
            {
                "subject_id": index,
                "session_id": "",
                "dataset": "ds",
                "group": np.where(is_case, "AD", "CN"),
                "age": rng.normal(70, 5, n),
                "sex": rng.choice(["F", "M"], n),
                "site": rng.choice(["x", "y"], n),
            },
            index=index,
        )
        mask = np.zeros(SHAPE, dtype=bool)
        mask[2:-2, 2:-2, 2:-2] = True
        voxels = np.arange(int(mask.sum()))
        matrix = sparse.coo_matrix((np.ones(len(voxels)), (voxels % n_regions, voxels))).tocsr()
        weights = RegionWeights(matrix, np.arange(n_regions) * 10 + 1, names, pd.DataFrame())
        part = np.where(np.arange(n) % 4 == 0, "test", "train")
        latents = make_latents(
            z, np.zeros_like(z), scan=index, subject=index, subject_in_training=part == "train", part=part,
            model_hash="", volumes_hash="",
        )  # fmt: skip
        return Study(latents, pd.DataFrame(x, index=index, columns=names), scans, weights, grid, mask)

    return make


@pytest.fixture
def volumes(rng: np.random.Generator, grid: Grid) -> Volumes:
    """Forty scans that are a mean image plus three strong patterns plus noise; two scans of one subject."""
    mask = np.zeros(SHAPE, dtype=bool)
    mask[2:-2, 2:-3, 1:-2] = True
    mean, patterns = rng.uniform(0.2, 0.8, SHAPE), rng.normal(size=(3, *SHAPE))
    weights = rng.normal(size=(40, 3)) * 0.05
    array = mean + np.tensordot(weights, patterns, axes=1) + 0.02 * rng.normal(size=(40, *SHAPE))
    index = pd.Index([f"scan-{i:02d}" for i in range(40)], name="scan_id")
    subjects = [f"sub-{max(i, 1):02d}" for i in range(40)]
    scans = pd.DataFrame({"subject_id": subjects, "dataset": np.where(np.arange(40) % 2, "a", "b")}, index=index)
    return volumes_in_memory(array, mask=mask, grid=grid, scans=scans)
