"""What fidelity compares: images from a latent space and from its yardsticks, as regional means and deep features."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from nilatent.analysis.copies import Images
from nilatent.analysis.density import fit_density, prior_latents
from nilatent.analysis.density.columns import common
from nilatent.analysis.latent_space import LatentSpace
from nilatent.atlas import RegionWeights
from nilatent.latents import Frame
from nilatent.volumes import Volumes, VoxelPca, voxel_pca

FeatureFunction = Callable[[Images], npt.NDArray[np.float32]]

BATCH = 64
DENSITY, PRIOR, TRAINING = "samples", "samples of the prior", "training scans"
RECONSTRUCTIONS, MEAN = "reconstructions", "mean image"
PCA, PCA_RECONSTRUCTIONS = "samples of PCA", "reconstructions of PCA"


@dataclass(frozen=True, eq=False)
class Described:
    """Images by what is measured of them.

    Parameters
    ----------
    regions : ndarray
        (n, region) mean inside each region.
    deep : ndarray
        (n, feature).
    """

    regions: np.ndarray
    deep: np.ndarray


def describe(images: Iterable[Images], weights: RegionWeights, features: FeatureFunction) -> Described:
    """Regional means and deep features of batches of images (batch, voxel inside the mask of the weights)."""
    regions, deep = [], []
    for batch in images:
        regions.append((weights.matrix @ batch.T).T / weights.n_voxels)
        deep.append(features(np.asarray(batch, dtype=np.float32)))
    return Described(np.concatenate(regions), np.concatenate(deep))


def scans_of(volumes: Volumes, space: LatentSpace, rows: np.ndarray) -> Images:
    """(n, voxel) scans of rows of a latent space, which need not have the order of the volumes."""
    return volumes.masked(volumes.rows(list(space.scans[rows])))


def first_of(space: LatentSpace, chosen: np.ndarray) -> np.ndarray:
    """Rows of the first scan of every subject among those chosen (scan,) bool."""
    rows = np.flatnonzero(chosen)
    return rows[np.sort(np.unique(space.subjects[rows], return_index=True)[1])]


def told_of(space: LatentSpace, scans: pd.DataFrame, rows: np.ndarray) -> pd.DataFrame | None:
    """What the decoder is told of these scans; None where it is told nothing."""
    return scans.loc[space.scans[rows]] if space.told else None


def reconstructed(space: LatentSpace, scans: pd.DataFrame, rows: np.ndarray) -> Images:
    """(n, voxel) what the decoder makes of scans."""
    return np.concatenate(list(space.draw_latents(space.values[rows], told_of(space, scans, rows))))


def sampled(space: LatentSpace, scans: pd.DataFrame, n: int, *, kind: str, seed: int) -> tuple[Images, str]:
    """Images (n, voxel) from the density of the training scans, and what density it is.

    Parameters
    ----------
    space : LatentSpace
        The space.
    scans : DataFrame
        The cohort; where the decoder is told something, each sample is told what some training scan was.
    n : int
        How many.
    kind : {"auto", "gaussian", "prior"}
        Density, as :func:`nilatent.analysis.density.fit_density` has it; or the prior.
    seed : int
        Of density and draws.
    """
    rng = np.random.default_rng(seed)
    rows, columns = first_of(space, space.training), list(space.told)
    rows = rows[common(scans.loc[space.scans[rows], columns], space.subjects[rows])] if columns else rows
    told = told_of(space, scans, rng.choice(rows, size=n)) if columns else None
    if kind == "prior":
        latents = prior_latents(n, space.values.shape[1], rng)
        return np.concatenate(list(space.draw_latents(latents, told))), "standard normal prior"
    density = fit_density(space, scans=scans if columns else None, columns=columns, kind=kind, seed=seed)
    return np.concatenate(list(space.draw(density.sample(n, rng=rng, told=told), told))), density.words


def pca_space(space: LatentSpace, volumes: Volumes, *, seed: int) -> tuple[LatentSpace, VoxelPca]:
    """The yardstick of a latent space: voxel PCA with as many components, fitted on the same training scans.

    Parameters
    ----------
    space : LatentSpace
        Gives scans, parts and the number of coordinates.
    volumes : Volumes
        The scans.
    seed : int
        Of the choice of scans, where there are more than PCA takes.

    Returns
    -------
    tuple[LatentSpace, VoxelPca]
        A space whose values are the scores and whose decoder is linear; fewer components where the scans span fewer.
    """
    rows = volumes.rows(list(space.scans))
    pca = voxel_pca(volumes, rows[space.training], len(space.names), seed=seed, at_most=True)
    scores = np.concatenate([pca.scores(volumes.masked(rows[start : start + BATCH])) for start in _starts(len(rows))])

    def draw(latents: np.ndarray, _told: pd.DataFrame | None) -> Iterator[Images]:
        for start in _starts(len(latents)):
            some = latents[start : start + BATCH].astype(np.float32)
            yield np.asarray(pca.mean + some @ pca.components, dtype=np.float32)

    width = scores.shape[1]
    made = LatentSpace(
        scans=space.scans,
        subjects=space.subjects,
        values=scores,
        frame=Frame(np.zeros(width), np.eye(width)),
        variance=np.zeros(scores.shape),
        names=tuple(f"PC{number + 1}" for number in range(width)),
        training=space.training,
        unseen=space.unseen,
        has_prior=False,
        told=(),
        draw_latents=draw,
    )
    return made, pca


def _starts(n: int) -> range:
    return range(0, n, BATCH)
