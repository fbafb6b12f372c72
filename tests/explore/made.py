"""A run in memory with a linear decoder: the first latent follows age, the second the group."""

import http.client
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy import sparse

from nilatent.analysis.latent_space import LatentSpace
from nilatent.atlas import RegionWeights
from nilatent.cohort import Cohort
from nilatent.config import RunConfig
from nilatent.explore.guard import TOKEN_HEADER
from nilatent.explore.server import Server
from nilatent.explore.study import Explored, explored
from nilatent.latents import Frame
from nilatent.pools import Pools
from nilatent.volumes import Grid, volumes_in_memory

SHAPE, WIDE, N, N_TRAINING = (15, 17, 13), 3, 80, 56
HOSTILE = '<img src=x onerror=alert(1)>"&=1+1'


@dataclass
class Made:
    """The run, and by what its images are drawn."""

    study: Explored
    weights: np.ndarray
    mean: np.ndarray
    told: list[pd.DataFrame | None] = field(default_factory=list)

    def decode(self, z: np.ndarray) -> np.ndarray:
        return self.mean + z @ self.weights

    def volume(self, inside: np.ndarray) -> np.ndarray:
        """(x, y, z) of values inside the mask."""
        whole = np.zeros(SHAPE)
        whole[self.study.pools.volumes.mask] = inside
        return whole


def make(rng: np.random.Generator, *, told: tuple[str, ...] = (), n: int = N) -> Made:
    mask = np.zeros(SHAPE, dtype=bool)
    mask[2:13, 2:15, 2:11] = True
    n_voxels = int(mask.sum())
    ids = pd.Index([f"sub-{number // 2:02d}_ses-{number % 2}" for number in range(n - 1)] + [HOSTILE], name="scan_id")
    subject = [*[str(scan).partition("_")[0] for scan in ids[:-1]], f"sub-{n // 2 - 1}"]
    age, patient = rng.uniform(40, 80, n), np.arange(n) % 4 < 2
    z = np.column_stack([(age - 60) / 10, 1.0 * patient, rng.normal(size=n)]) + 0.05 * rng.normal(size=(n, WIDE))
    weights, mean = 0.05 * rng.normal(size=(WIDE, n_voxels)), 0.6 + 0.02 * rng.normal(size=n_voxels)
    scans = pd.DataFrame(
        {"subject_id": subject, "dataset": "one", "age": age, "group": np.where(patient, "patient", "control")},
        index=ids,
    )
    scans["path"] = "/secret/place.nii.gz"
    array = 0.01 * rng.random((n, *SHAPE))
    array[:, mask] = mean + z @ weights + 0.01 * rng.normal(size=(n, n_voxels))
    grid = Grid(SHAPE, np.array([[4.0, 0, 0, -28], [0, 4, 0, -32], [0, 0, 4, -24], [0, 0, 0, 1]]))
    # The cache holds the scans in another order than the latents.
    order = rng.permutation(n)
    volumes = volumes_in_memory(array[order], mask=mask, grid=grid, scans=scans.iloc[order][["subject_id", "dataset"]])
    atlas = RegionWeights(sparse.csr_matrix(np.ones((1, n_voxels))), np.arange(1), ["All"], pd.DataFrame())
    config = RunConfig()
    study = replace(config.study, group="group", contrast="patient:control", covariates=("age",))
    nothing = pd.DataFrame(columns=["scan_id", "path", "stage", "rule", "reason"])
    training = np.arange(n) < N_TRAINING
    parts = pd.DataFrame({"subject_id": subject, "part": np.where(training, "train", "test")}, index=ids)
    pools = Pools(Path("run"), replace(config, study=study), Cohort(scans, nothing, {}), volumes, parts, atlas, atlas)
    pools.__dict__["latents"] = xr.Dataset()
    seen: list[pd.DataFrame | None] = []

    def draw(latents: np.ndarray, told_rows: pd.DataFrame | None) -> Iterator[np.ndarray]:
        seen.append(told_rows)
        for start in range(0, len(latents), 3):
            yield (mean + latents[start : start + 3] @ weights).astype(np.float32)

    space = LatentSpace(
        scans=ids, subjects=np.array(subject), values=z, frame=Frame(np.zeros(WIDE), np.eye(WIDE)),
        variance=np.zeros((n, WIDE)), names=("z000", "z001", "z002"), training=training, unseen=~training, has_prior=True,
        told=told, draw_latents=draw,
    )  # fmt: skip
    return Made(explored(pools, space), weights, mean, seen)


class Asking:
    """A client that knows the token, unless told otherwise."""

    def __init__(self, server: Server) -> None:
        self.server, self.port = server, server.door.port
        self.cookie = server.door.cookie.partition(";")[0]

    def __call__(
        self, method: str, path: str, body: Any = None, *, known: bool = True, **headers: str
    ) -> tuple[int, bytes, http.client.HTTPMessage]:
        link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        sent = {"Cookie": self.cookie, TOKEN_HEADER: self.server.door.token} if known else {}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        if body is not None:
            sent.setdefault("Content-Type", "application/json")
        link.request(method, path, body, sent)
        answer = link.getresponse()
        found = answer.status, answer.read(), answer.headers
        link.close()
        return found
