"""What modalities share, as far as a linear model can tell, and how much of it is believed."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from nilatent.errors import SettingError

Array = npt.NDArray[np.float64]
Blocks = Sequence[slice]
# Strengths of the ridge that are tried, in units of the mean variance of a modality's values.
RIDGES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
N_FOLDS = 5
N_STEPS = 30
# Share of a value's variance that is its own at least, however well others seem to tell it.
SMALLEST = 0.02
# Share of the correlations within a modality that is not believed.
SHRINKAGE = 0.1
# So far above what chance would tell of a column must be what is believed to be more.
N_STANDARD_ERRORS = 2.0


@dataclass(frozen=True, eq=False)
class Sharing:
    """Linear model ``value = loadings z + rest``, z standard normal, the rests of two modalities independent.

    Parameters
    ----------
    loadings : ndarray
        (value, shared).
    rest : ndarray
        (value, value) covariance of the rest, positive definite; zero between modalities.
    ridge : float
        How strongly values of small variance were mistrusted.
    """

    loadings: Array
    rest: Array
    ridge: float


@dataclass(frozen=True)
class Choice:
    """How many latents are shared, the ridge, and what that is worth.

    Parameters
    ----------
    n_shared : int
        Shared latents.
    ridge : float
        As in :func:`fit_sharing`.
    gain : float
        Share of the variance of left-out scans, mean over the modalities, that is explained from the other modalities.
    """

    n_shared: int
    ridge: float
    gain: float


def fit_sharing(
    values: Array, blocks: Blocks, scale: Array, *, tables: Sequence[bool], n_shared: int, ridge: float
) -> Sharing:
    """Fit the model to the correlations between modalities: principal axes, of which the modalities themselves are no part.

    Parameters
    ----------
    values : ndarray
        (scan, value) about their means and of about unit variance, NaN where missing. Each correlation is that of the scans
        that have both values.
    blocks : Sequence[slice]
        Values of each modality.
    scale : ndarray
        (value,) SD of each value in its own units.
    tables : Sequence[bool]
        Which modalities are tables. Their columns are no order of size, so the ridge cannot tell them apart: the correlations
        of each of its columns with a modality are shrunk by the share of their squares that chance alone would give.
    n_shared : int
        Shared latents.
    ridge : float
        At least 0. Correlations are multiplied by the root of ``v / (v + ridge)`` for both their values, v being the value's
        variance over the mean of its modality: components of small variance correlate by chance as well as any. For 0 and two
        complete modalities of components this is probabilistic canonical correlation analysis.

    References
    ----------
    Bach & Jordan 2005, A probabilistic interpretation of canonical correlation analysis. Technical report 688, Department of
    Statistics, University of California, Berkeley.
    """
    between = correlations(values)
    within = np.zeros_like(between)
    believed = np.ones(len(between))
    for block in blocks:
        own = between[block, block]
        within[block, block] = _possible((1.0 - SHRINKAGE) * own + SHRINKAGE * np.eye(len(own)))
        between[block, block] = 0.0
        variance = np.square(scale[block])
        believed[block] = np.sqrt(variance / (variance + ridge * variance.mean()))
    between = believed[:, None] * between * believed
    _shrink(between, believed, values, blocks, tables)
    # Where each modality has an equal part in an axis, this is what the steps end in; of two modalities it always is.
    loadings = _axes(between, n_shared) * np.sqrt(len(blocks) / (len(blocks) - 1))
    for _ in range(N_STEPS if len(blocks) > 2 else 0):
        # What the latents explain of a modality itself is theirs to say: filled in from the step before.
        own = np.zeros_like(between)
        for block in blocks:
            own[block, block] = loadings[block] @ loadings[block].T
        loadings = _axes(between + own, n_shared)
    loadings = _within_bounds(loadings, within, blocks)
    return Sharing(loadings, _apart(within - loadings @ loadings.T, blocks), ridge)


def _shrink(between: Array, believed: Array, values: Array, blocks: Blocks, tables: Sequence[bool]) -> None:
    """Shrink the correlations of every column of a table, in place, by the share of their squares that chance would give."""
    known, raw = np.isfinite(values), correlations(values)
    columns = [block for block, is_table in zip(blocks, tables, strict=True) if is_table]
    for table, other in ((one, other) for one in columns for other in blocks if other != one):
        # Values that have nothing to do with one another correlate with a variance of one over the number of scans.
        number = np.maximum(known[:, table].T.astype(float) @ known[:, other], 1.0)
        chance = (np.outer(believed[table], believed[other]) ** 2 / number).sum(axis=1)
        # What is told of a column does not scatter by chance; believed where chance alone would hardly tell so much.
        told, share = np.square(raw[table, other]).sum(axis=1), (1.0 / number).sum(axis=1)
        sure = told > share + N_STANDARD_ERRORS * np.sqrt(2.0 * np.square(1.0 / number).sum(axis=1))
        left = np.clip((1.0 - told) / np.maximum(1.0 - share, SMALLEST), 0.0, 1.0)
        chance *= np.where(sure & (share < 1.0), left, 1.0)
        found = np.square(between[table, other]).sum(axis=1)
        factor = np.maximum(1.0 - chance / np.maximum(found, 1e-300), 0.0)
        between[table, other] *= factor[:, None]
        between[other, table] = between[table, other].T


def correlations(values: Array) -> Array:
    """Products of values of about unit variance, mean over the scans that have both."""
    known = np.isfinite(values)
    filled = np.where(known, values, 0.0)
    pairs = known.T.astype(float) @ known
    return np.asarray(filled.T @ filled / np.maximum(pairs, 1.0))


def expected(values: Array, sharing: Sharing) -> Array:
    """Values of scans, given those that are known.

    Parameters
    ----------
    values : ndarray
        (scan, value), NaN where missing.
    sharing : Sharing
        The model.

    Returns
    -------
    ndarray
        (scan, value): known values as they are, the others as the model expects them.
    """
    total = sharing.loadings @ sharing.loadings.T + sharing.rest
    filled = values.copy()
    patterns, which = np.unique(np.isfinite(values), axis=0, return_inverse=True)
    for number, known in enumerate(patterns):
        rows, seen, missing = np.flatnonzero(which.reshape(-1) == number), np.flatnonzero(known), np.flatnonzero(~known)
        gain = np.linalg.solve(total[np.ix_(seen, seen)], total[np.ix_(seen, missing)])
        filled[np.ix_(rows, missing)] = values[np.ix_(rows, seen)] @ gain
    return filled


@dataclass(frozen=True, eq=False)
class Measured:
    """One modality of the training scans.

    Parameters
    ----------
    values : ndarray
        (scan, value), NaN where missing: cells of a table, or coordinates in which scans are as far apart as their volumes.
    n_components : int
        Principal components that stand for it; 0: the values themselves.
    """

    values: Array
    n_components: int

    def made(self, inside: npt.NDArray[np.bool_]) -> tuple[Array, Array, Array]:
        """Standard values of all scans, the SD of each, and the square of what is left out of each scan.

        Means, components and SD are those of the scans `inside`.
        """
        there = np.isfinite(self.values[inside])
        number = np.maximum(there.sum(axis=0), 1)
        centred = self.values - np.where(there, self.values[inside], 0.0).sum(axis=0) / number
        if not self.n_components:
            sd = np.sqrt(np.where(there, centred[inside] ** 2, 0.0).sum(axis=0) / number)
            sd = np.where(sd > 0, sd, 1.0)
            return centred / sd, sd, np.zeros(len(centred))
        own = centred[inside][there.all(axis=1)]
        _, s, vt = np.linalg.svd(own, full_matrices=False)
        kept = int(min(self.n_components, (s > 1e-6 * s[0]).sum()))
        scores, sd = centred @ vt[:kept].T, s[:kept] / np.sqrt(max(len(own) - 1, 1))
        return scores / sd, sd, np.square(centred).sum(axis=1) - np.square(scores).sum(axis=1)


def side_by_side(
    modalities: Sequence[Measured], inside: npt.NDArray[np.bool_]
) -> tuple[Array, list[slice], Array, Array]:
    """Values of all modalities, where those of each are, their SD, and (scan, modality) squares of what is left out."""
    made = [one.made(inside) for one in modalities]
    ends = np.cumsum([values.shape[1] for values, _, _ in made])
    blocks = [slice(int(end) - values.shape[1], int(end)) for end, (values, _, _) in zip(ends, made, strict=True)]
    values, scale = (np.concatenate([one[place] for one in made], axis=-1) for place in (0, 1))
    return values, blocks, scale, np.stack([left for _, _, left in made], axis=1)


def choose_sharing(
    modalities: Sequence[Measured], *, subject: npt.NDArray[Any], candidates: Sequence[int], seed: int
) -> Choice:
    """The number of shared latents, and the ridge, that best predict each modality of left-out people from the others.

    Parameters
    ----------
    modalities : Sequence[Measured]
        Of the training scans. Their components are found anew without the left-out people: to whiten a handful of scans by
        components that they made themselves takes everything away that they have in common.
    subject : ndarray
        (scan,) whose scan it is: all scans of a person are left out together.
    candidates : Sequence[int]
        Numbers of shared latents that are tried.
    seed : int
        Of the folds.

    Returns
    -------
    Choice
        At a gain of 0 or less nothing shared can be shown; it is the fewest latents with the strongest ridge then.
    """
    people = np.unique(subject)
    if len(people) < 2:
        raise SettingError(
            "What modalities share is judged on left-out people, and the training part has one. Bring more."
        )
    order = np.random.default_rng(seed).permutation(len(people))
    fold_of = dict(zip(people[order], np.arange(len(people)) % min(N_FOLDS, len(people)), strict=True))
    fold = np.array([fold_of[one] for one in subject])
    gains: dict[tuple[int, float], list[float]] = {}
    tables = [not one.n_components for one in modalities]
    for out in (fold == number for number in np.unique(fold)):
        if any(np.isfinite(one.values[~out]).any(axis=1).sum() < 2 for one in modalities):
            continue  # Of a modality of which nobody is left nothing is learned.
        values, blocks, scale, left = side_by_side(modalities, ~out)
        for n_shared, ridge in product(candidates, RIDGES):
            fitted = fit_sharing(values[~out], blocks, scale, tables=tables, n_shared=n_shared, ridge=ridge)
            gain = explained(values[out], blocks, fitted, scale, left[out])
            gains.setdefault((n_shared, ridge), []).append(gain)
    told = {one: float(np.nanmean(found)) if np.isfinite(found).any() else 0.0 for one, found in gains.items()}
    if not told:
        raise SettingError("A modality is known of too few training subjects to learn what it shares. Leave it out.")
    best = max(told, key=lambda one: (told[one], -one[0], one[1]))
    if told[best] <= 0:
        best = (min(candidates), max(RIDGES))
    return Choice(best[0], best[1], told[best])


def explained(values: Array, blocks: Blocks, sharing: Sharing, scale: Array, left: Array) -> float:
    """Share of variance explained of each modality from all others, mean over the modalities.

    Parameters
    ----------
    values : ndarray
        (scan, value) that the model was not fitted on.
    blocks, sharing
        As above.
    scale : ndarray
        (value,) SD of each value in its own units, in which errors are summed.
    left : ndarray
        (scan, modality) squares that no value describes.
    """
    shares = []
    for place, block in enumerate(blocks):
        hidden = values.copy()
        hidden[:, block] = np.nan
        judged = np.isfinite(hidden).any(axis=1) & np.isfinite(values[:, block]).any(axis=1)
        if not judged.any():
            continue
        told = values[judged][:, block] * scale[block]
        guess = expected(hidden[judged], sharing)[:, block] * scale[block]
        around = np.nansum(told**2) + np.nansum(left[judged, place])
        shares.append(float((np.nansum(told**2) - np.nansum((told - guess) ** 2)) / max(around, 1e-300)))
    return float(np.mean(shares)) if shares else float("nan")


def _possible(correlated: Array) -> Array:
    """The nearest like it that is positive definite: of cells that few scans have together, correlations contradict."""
    size, axes = np.linalg.eigh((correlated + correlated.T) / 2)
    if not len(size) or size[0] >= SMALLEST:
        return correlated
    kept = axes * np.maximum(size, SMALLEST) @ axes.T
    ratio = np.sqrt(np.diagonal(correlated) / np.diagonal(kept))
    return np.asarray(ratio[:, None] * kept * ratio)


def _axes(matrix: Array, n_axes: int) -> Array:
    size, axes = np.linalg.eigh(matrix)
    return np.asarray(axes[:, ::-1][:, :n_axes] * np.sqrt(np.maximum(size[::-1][:n_axes], 0.0)))


def _within_bounds(loadings: Array, within: Array, blocks: Blocks) -> Array:
    """Loadings that leave every modality some variance of its own in every direction."""
    kept = loadings.copy()
    for block in blocks:
        root = np.linalg.cholesky(within[block, block] + 1e-9 * np.eye(block.stop - block.start))
        u, s, vt = np.linalg.svd(np.linalg.solve(root, loadings[block]), full_matrices=False)
        kept[block] = root @ (u * np.minimum(s, np.sqrt(1.0 - SMALLEST))) @ vt
    return kept


def _apart(covariance: Array, blocks: Blocks) -> Array:
    """The covariance within modalities, positive definite."""
    kept = np.zeros_like(covariance)
    for block in blocks:
        size, axes = np.linalg.eigh((covariance[block, block] + covariance[block, block].T) / 2)
        kept[block, block] = axes * np.maximum(size, SMALLEST**2) @ axes.T
    return kept
