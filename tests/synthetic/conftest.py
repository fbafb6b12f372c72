from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from nilatent import synthetic
from nilatent.analysis.latent_space import LatentSpace
from nilatent.cohort import Cohort
from nilatent.config import read_config
from nilatent.grid import Grid
from nilatent.latents import Frame
from nilatent.pools import Pools
from nilatent.synthetic import Form
from nilatent.volumes import volumes_in_memory

SHAPE, N, WIDE = (15, 17, 13), 30, 3
N_TRAINING = 24
INPUTS = {"model": "abc", "latents": "def"}


class Decoder:
    """A linear decoder that keeps what it was given."""

    def __init__(self, rng: np.random.Generator, n_voxels: int) -> None:
        self.mean = rng.uniform(0.2, 0.8, n_voxels)
        self.axes = rng.normal(size=(WIDE, n_voxels)) * 0.15
        self.batches: list[int] = []
        self.told: list[pd.DataFrame | None] = []
        self.fails_at = 10**9

    def __call__(self, latents: np.ndarray, told: pd.DataFrame | None) -> Iterator[np.ndarray]:
        if len(self.batches) == self.fails_at:
            raise KeyboardInterrupt
        self.batches.append(len(latents))
        self.told.append(told)
        yield self.images(latents)

    def images(self, latents: np.ndarray) -> np.ndarray:
        return (self.mean + latents @ self.axes).astype(np.float32)


@pytest.fixture
def form(rng: np.random.Generator) -> Form:
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = -30, -40, -20
    return Form(Grid(SHAPE, affine), rng.random(SHAPE) > 0.5, "gm", "modulatedSmooth8", INPUTS)


@pytest.fixture
def scans(rng: np.random.Generator) -> pd.DataFrame:
    index = pd.Index([f"sub-{i:03d}" for i in range(N)], name="scan_id")
    group = np.where(np.arange(N) % 2, "case", "control")
    age = rng.uniform(20, 80, N).round(2)
    return pd.DataFrame({"age": age, "group": group, "code": np.arange(N) % 3 + 1}, index=index)


@pytest.fixture
def decoder(rng: np.random.Generator, form: Form) -> Decoder:
    return Decoder(rng, int(form.mask.sum()))


@pytest.fixture
def space(rng: np.random.Generator, scans: pd.DataFrame, decoder: Decoder) -> LatentSpace:
    """The first latent grows with age, the second is larger in cases."""
    values = rng.normal(size=(N, WIDE)) * 0.3
    values[:, 0] += 0.05 * scans["age"]
    values[:, 1] += 3.0 * (scans["group"] == "case")
    return LatentSpace(
        scans=scans.index,
        subjects=scans.index.to_numpy(str),
        values=values,
        frame=Frame(np.zeros(WIDE), np.eye(WIDE)),
        variance=np.full((N, WIDE), 0.01),
        names=("z0", "z1", "z2"),
        training=np.arange(N) < N_TRAINING,
        unseen=np.arange(N) >= N_TRAINING,
        has_prior=True,
        told=(),
        draw_latents=decoder,
    )


@pytest.fixture
def values_of(form: Form) -> Callable[[Path], dict[str, np.ndarray]]:
    """Subject to values inside the mask of every image of a data set."""

    def read(folder: Path) -> dict[str, np.ndarray]:
        paths = sorted(folder.glob("sub-*/anat/*.nii.gz"))
        return {path.parts[-3]: np.asarray(nib.load(path).dataobj)[form.mask] for path in paths}

    return read


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch,
    rng: np.random.Generator,
    space: LatentSpace,
    scans: pd.DataFrame,
    form: Form,
    decoder: Decoder,
) -> Pools:
    """A run of two folds; of the second, the latents of every scan are turned round."""
    array = np.zeros((N, *SHAPE))
    array[:, form.mask] = decoder.images(space.values) + 0.1 * rng.normal(size=(N, int(form.mask.sum())))
    table = scans.assign(subject_id=scans.index, dataset="one", sex="F", path="sub-1_desc-modulated_probseg.nii.gz")
    volumes = volumes_in_memory(array, mask=form.mask, grid=form.grid, scans=table[["subject_id", "dataset"]])
    config = read_config(None, overrides={"folds": 2, "study.group": "group"})
    pools = Pools(Path("run"), config, Cohort(table), volumes, pd.DataFrame(), None, None)  # type: ignore[arg-type]
    monkeypatch.setattr(synthetic, "open_pools", lambda _: pools)
    monkeypatch.setattr(synthetic, "study_space", lambda _: space)
    monkeypatch.setattr(synthetic, "fold_spaces", lambda _: [space, replace(space, values=-space.values)])
    monkeypatch.setattr(synthetic, "form_of", lambda _, folder: replace(form, inputs={"model": folder.as_posix()}))
    return pools
