"""What PCA of equal size does to the scans that a training is judged on: measured once, at its start."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from nilatent.models.anchor import painted
from nilatent.models.perceptual import edge_error, high_frequency_energy
from nilatent.volumes import Volumes, VoxelPca

Rows = npt.NDArray[np.intp]
Array = npt.NDArray[np.float32]
Told = npt.NDArray[np.float32] | None

MAX_PROBED = 32
"""Validation scans that are looked at in detail, at even steps."""
MAX_NEIGHBOURS = 256
"""Training scans among which the nearest to a reconstruction is looked for, at even steps."""
MIN_SCANS_FOR_COPIES = 5
CHUNK = 16


@dataclass(frozen=True)
class Reference:
    """PCA of equal size and the mean image on the scans that a model is judged on.

    Parameters
    ----------
    probed : tuple[int, ...]
        Positions, among the validation scans, of those looked at in detail; the following values belong to them.
    detail, pca_detail : tuple[float, ...]
        Energy of the finest band of the scan, and of PCA's reconstruction of it.
    pca_missed : tuple[float, ...]
        Energy of the finest band of the difference between the scan and PCA's reconstruction.
    pca_edges : tuple[float, ...]
        Error of PCA's reconstruction in the strength of edges.
    pca_errors, pca_swapped_errors : tuple[float, ...]
        Mean squared error of PCA per voxel, with the scan's own scores and with those of its partner.
    pca_copies : float
        Share of these scans that PCA draws more like a training scan than like themselves; NaN with too few.
    training_errors, training_pca_errors : tuple[float, ...]
        Mean squared error per voxel of the mean image and of PCA, of each training scan of
        :func:`nilatent.training.start.sample`.
    """

    probed: tuple[int, ...]
    detail: tuple[float, ...]
    pca_detail: tuple[float, ...]
    pca_missed: tuple[float, ...]
    pca_edges: tuple[float, ...]
    pca_errors: tuple[float, ...]
    pca_swapped_errors: tuple[float, ...]
    pca_copies: float
    training_errors: tuple[float, ...]
    training_pca_errors: tuple[float, ...]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Reference":
        """Read what :func:`dataclasses.asdict` made of one, also when its tuples have become lists on the way."""
        plain: dict[str, Any] = {name: tuple(one) if isinstance(one, list) else one for name, one in values.items()}
        return cls(**plain)


def reference(
    pca: VoxelPca, volumes: Volumes, rows: dict[str, Rows], sampled: Rows, *, conditions: Told = None
) -> Reference:
    """Measure PCA on the scans that a model is judged on.

    Parameters
    ----------
    pca : VoxelPca
        Fitted on the training scans, as many components as the model has latents or the scans can give.
    volumes : Volumes
        The scans.
    rows : dict
        Of the parts ``"train"`` and ``"validation"``.
    sampled : ndarray
        Rows of the training scans on which over-fitting is judged.
    conditions : ndarray, optional
        (scan, condition) of all scans of `volumes`, which PCA is told like the model.
    """

    def known(chosen: Rows) -> Told:
        return None if conditions is None else conditions[chosen]

    mask = torch.from_numpy(np.asarray(volumes.mask))
    validation, positions = rows["validation"], probed(len(rows["validation"]))
    own, other = validation[positions], validation[partners(len(validation))[positions]]
    x = volumes.masked(own)
    drawn = pca.reconstruct(x, known(own))
    # Another's scores under a scan's own conditions, as the model's latents are swapped.
    scores = pca.scores(volumes.masked(other), known(other))
    swapped = pca.expected(known(own)) + scores @ pca.components
    by_mean: tuple[float, ...] = ()
    by_pca: tuple[float, ...] = ()
    for start in range(0, len(sampled), CHUNK):
        some = sampled[start : start + CHUNK]
        scans = volumes.masked(some)
        by_mean += errors(scans, np.broadcast_to(pca.mean, scans.shape))
        by_pca += errors(scans, pca.reconstruct(scans, known(some)))
    return Reference(
        probed=tuple(int(position) for position in positions),
        detail=_each(high_frequency_energy, mask, x),
        pca_detail=_each(high_frequency_energy, mask, drawn),
        pca_missed=_each(high_frequency_energy, mask, x - drawn),
        pca_edges=_each(edge_error, mask, x, drawn),
        pca_errors=errors(x, drawn),
        pca_swapped_errors=errors(x, swapped),
        pca_copies=copies(x, drawn, volumes, rows["train"]),
        training_errors=by_mean,
        training_pca_errors=by_pca,
    )


def probed(n_scans: int, *, most: int = MAX_PROBED) -> Rows:
    """Positions of some of the scans at even steps."""
    return np.unique(np.linspace(0, n_scans - 1, min(n_scans, most)).round().astype(np.intp))


def partners(n_scans: int) -> Rows:
    """Whose latents each scan gets when they are swapped: of the scan half the list away, so never of a neighbouring visit."""
    return (np.arange(n_scans) + n_scans // 2) % n_scans


def copies(x: Array, drawn: Array, volumes: Volumes, training: Rows) -> float:
    """Share of the scans that are drawn more like some training scan than like themselves.

    Likeness is the correlation of the deviations from the mean of the training scans: a distance would call the most
    average training scan the nearest to every cautious reconstruction.

    Parameters
    ----------
    x, drawn : ndarray
        (scan, voxel) validation scans and their reconstructions.
    volumes : Volumes
        The scans.
    training : ndarray
        Rows of the training scans.

    Returns
    -------
    float
        In [0, 1]; NaN for fewer than five scans. PCA of few scans copies too, so its value belongs beside it.

    References
    ----------
    Meehan, Chaudhuri & Dasgupta 2020, A non-parametric test to detect data-copying in generative models.
    doi:10.48550/arXiv.2004.05675
    """
    if len(x) < MIN_SCANS_FOR_COPIES:
        return float("nan")
    chosen = training[probed(len(training), most=MAX_NEIGHBOURS)]
    mean = sum(scans.sum(axis=0, dtype=np.float64) for scans in chunks(volumes, chosen)) / len(chosen)
    mean = np.asarray(mean, dtype=np.float32)
    made = _direction(drawn - mean)
    own = (made * _direction(x - mean)).sum(axis=1)
    nearest = np.concatenate([made @ _direction(scans - mean).T for scans in chunks(volumes, chosen)], axis=1).max(
        axis=1
    )
    return float((nearest > own).mean())


def chunks(volumes: Volumes, rows: Rows) -> Iterator[Array]:
    """Scans inside the mask, (scan, voxel), a few at a time."""
    for start in range(0, len(rows), CHUNK):
        yield volumes.masked(rows[start : start + CHUNK])


def errors(x: Array, drawn: Array) -> tuple[float, ...]:
    """Mean squared error per voxel of each scan."""
    return tuple(np.square(x - drawn, dtype=np.float64).mean(axis=1).tolist())


def _direction(deviation: Array) -> Array:
    norm = np.linalg.norm(deviation, axis=1, keepdims=True)
    return np.asarray(deviation / np.where(norm > 0, norm, 1.0), dtype=np.float32)


def _each(measure: Callable[..., torch.Tensor], mask: torch.Tensor, *masked: Array) -> tuple[float, ...]:
    """One value per scan, one scan at a time."""
    index, inside = mask.flatten().nonzero().flatten(), mask.float()
    found = []
    for scans in zip(*masked, strict=True):
        volumes = [painted(torch.from_numpy(scan)[None], index, inside) for scan in scans]
        found.append(float(measure(*volumes, inside)))
    return tuple(found)
