"""Pictures whose detail is held against that of scans, and the sums over voxels that say how much of it they hold."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from nilatent.analysis.blur.bands import Bands
from nilatent.analysis.density import fit_density, prior_latents
from nilatent.analysis.density.columns import common
from nilatent.analysis.latent_space import LatentSpace
from nilatent.volumes import Volumes, VoxelPca, voxel_pca

SCAN, MODEL, EQUAL, ALL, MEAN = "scan", "reconstruction", "PCA of equal size", "PCA of all training scans", "mean image"
SAMPLES, PRIOR = "samples of the density", "samples of the prior"
PAIRED = (MODEL, EQUAL, ALL, MEAN)
"""Pictures that belong to one scan each, so that their detail can be held against its own."""
SUMS = ("scan_whole", "scan_detail", "drawn_whole", "drawn_detail", "product")
BATCH = 16
SAMPLES_EACH = 2
"""Samples drawn for each unseen scan."""


@dataclass(frozen=True, eq=False)
class Sums:
    """Energies and products of detail per picture, over the voxels of the mask.

    Parameters
    ----------
    values : ndarray
        (sum, approach, scan, band) in the order of :data:`SUMS`: mean square of the scan's band, of what it has beyond the
        training mean, the same of what was drawn, and the mean product of scan and drawing beyond the training mean (NaN
        for samples, which belong to no scan).
    approaches : tuple[str, ...]
        What was drawn.
    rows : ndarray
        (scan,) rows of the space.
    samples : Mapping[str, ndarray]
        One drawn image (voxel,) of each kind of sample.
    """

    values: npt.NDArray[np.float64]
    approaches: tuple[str, ...]
    rows: npt.NDArray[np.intp]
    samples: Mapping[str, np.ndarray]


def sums_of(
    space: LatentSpace, volumes: Volumes, scans: pd.DataFrame, bands: Bands, rows: np.ndarray, *, seed: int
) -> Sums:
    """Sums of some scans of one space."""
    linear = yardsticks(space, volumes, seed=seed)
    mean = bands(linear[0].mean[None])[0]
    drawn = _samples(space, scans, rows, seed=seed)
    paired = np.zeros((len(SUMS), len(PAIRED), len(rows), len(bands.names)))
    unpaired = np.full((len(SUMS), len(drawn), len(rows), len(bands.names)), np.nan)
    for start in range(0, len(rows), BATCH):
        batch = slice(start, start + BATCH)
        scan = bands(volumes.masked(volumes.rows(list(space.scans[rows[batch]]))))
        own = _energy(scan), _energy(scan - mean)
        for number, images in enumerate(pictures(space, volumes, scans, linear, rows[batch])):
            seen = bands(images)
            product = ((scan - mean) * (seen - mean)).mean(axis=2)
            energies = np.broadcast_arrays(*own, _energy(seen), _energy(seen - mean), product)
            paired[:, number, batch] = energies
        unpaired[:2, :, batch] = np.stack(own)[:, None]
    first: dict[str, npt.NDArray[np.float32]] = {}
    for number, (name, batches) in enumerate(drawn.items()):
        found = []
        for images in batches:
            first.setdefault(name, images[0])
            seen = bands(images)
            found.append((_energy(seen), _energy(seen - mean)))
        whole, detail = (np.concatenate(part) for part in zip(*found, strict=True))
        unpaired[2, number], unpaired[3, number] = (
            one.reshape(len(rows), SAMPLES_EACH, -1).mean(axis=1) for one in (whole, detail)
        )
    return Sums(np.concatenate([paired, unpaired], axis=1), (*PAIRED, *drawn), rows, first)


def _energy(bands: np.ndarray) -> npt.NDArray[np.float64]:
    """(image, band) mean square over voxels."""
    return np.asarray(np.einsum("ibv,ibv->ib", bands, bands) / bands.shape[2])


def yardsticks(space: LatentSpace, volumes: Volumes, *, seed: int) -> tuple[VoxelPca, VoxelPca]:
    """PCA of as many components as the latent has values, and of as many as the training scans allow."""
    training = volumes.rows(list(space.scans[space.training]))
    equal, largest = (
        voxel_pca(volumes, training, size, seed=seed, at_most=True) for size in (space.values.shape[1], len(training))
    )
    return equal, largest


def pictures(
    space: LatentSpace, volumes: Volumes, scans: pd.DataFrame, linear: tuple[VoxelPca, VoxelPca], rows: np.ndarray
) -> Iterator[np.ndarray]:
    """Images (scan, voxel) of some scans, in the order of :data:`PAIRED`."""
    x = volumes.masked(volumes.rows(list(space.scans[rows])))
    still = np.zeros((len(rows), len(space.names)))
    yield np.concatenate(list(space.moved(rows, still, _told(space, scans, rows))))
    for pca in linear:
        yield pca.reconstruct(x)
    # One row stands for all.
    yield linear[0].mean[None]


def _told(space: LatentSpace, scans: pd.DataFrame, rows: np.ndarray) -> pd.DataFrame | None:
    return scans.loc[space.scans[rows], list(space.told)] if space.told else None


def _samples(
    space: LatentSpace, scans: pd.DataFrame, rows: np.ndarray, *, seed: int
) -> dict[str, Iterator[np.ndarray]]:
    """Batches of drawn images by their kind, so many for each of the scans, told what those scans are told."""
    rng = np.random.default_rng(seed)
    rows = np.repeat(rows, SAMPLES_EACH)
    told = _told(space, scans, rows)
    learnt = space.training
    given = [
        name for name in space.told if common(scans.loc[space.scans[learnt], [name]], space.subjects[learnt]).all()
    ]
    density = fit_density(space, scans=scans if given else None, columns=given, seed=seed)
    drawn = {SAMPLES: space.draw(density.sample(len(rows), rng=rng, told=told), told)}
    if space.has_prior:
        latents = prior_latents(len(rows), space.values.shape[1], rng)
        drawn[PRIOR] = space.draw_latents(latents, told)
    return drawn
