import numpy as np
import pandas as pd
import pytest

from nilatent.volumes import Grid, Volumes, volumes_in_memory

SHAPE = (15, 17, 13)


def _cohort(array: np.ndarray) -> tuple[Volumes, pd.DataFrame]:
    n_scans = len(array)
    axes = np.meshgrid(*[np.linspace(-1, 1, side) for side in SHAPE], indexing="ij")
    ids = [f"sub-{index:03d}" for index in range(n_scans)]
    scans = pd.DataFrame({"subject_id": ids, "dataset": "one"}, index=pd.Index(ids, name="scan_id"))
    n_train, n_validation = round(0.65 * n_scans), round(0.15 * n_scans)
    part = ["train"] * n_train + ["validation"] * n_validation + ["test"] * (n_scans - n_train - n_validation)
    parts = pd.DataFrame({"subject_id": ids, "part": part}, index=scans.index)
    mask = sum(axis**2 for axis in axes) < 0.9
    return volumes_in_memory(array, mask=mask, grid=Grid(SHAPE, np.diag([4.0, 4.0, 4.0, 1.0])), scans=scans), parts


def blobs(rng: np.random.Generator) -> tuple[Volumes, pd.DataFrame]:
    """A blob that moves from left to right: one cause, but a curve that one or two components cannot follow."""
    axes = np.meshgrid(*[np.linspace(-1, 1, side) for side in SHAPE], indexing="ij")
    centre = rng.uniform(-0.6, 0.6, size=60)[:, None, None, None]
    array = np.exp(-((axes[0] - centre) ** 2 + axes[1] ** 2 + axes[2] ** 2) / 0.08)
    return _cohort(array + 0.02 * rng.standard_normal(array.shape))


@pytest.fixture
def curved(rng: np.random.Generator) -> tuple[Volumes, pd.DataFrame]:
    """Moving blobs, which a test may change."""
    return blobs(rng)


@pytest.fixture
def noise(rng: np.random.Generator) -> tuple[Volumes, pd.DataFrame]:
    """Scans that have nothing in common."""
    return _cohort(rng.standard_normal((40, *SHAPE)))


@pytest.fixture
def leaking(rng: np.random.Generator) -> tuple[Volumes, pd.DataFrame, pd.DataFrame]:
    """The blob again, under a field that one of two scanners adds; and the table of scans with the scanner in it."""
    axes = np.meshgrid(*[np.linspace(-1, 1, side) for side in SHAPE], indexing="ij")
    centre = rng.uniform(-0.6, 0.6, size=60)[:, None, None, None]
    second = rng.permutation(np.arange(60) % 2)
    array = np.exp(-((axes[0] - centre) ** 2 + axes[1] ** 2 + axes[2] ** 2) / 0.08)
    array = array + 0.2 * second[:, None, None, None] * axes[1] + 0.02 * rng.standard_normal(array.shape)
    volumes, parts = _cohort(array)
    scans = pd.DataFrame({"site": np.where(second, "b", "a"), "age": rng.uniform(20, 80, 60)}, index=parts.index)
    return volumes, parts, scans
