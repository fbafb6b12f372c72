"""How far two sets of brains are apart: maximum mean discrepancy, its kernel variant, coverage and density.

Every measure compares two sets of rows of features. Sets of several latent spaces are compared space by space and averaged
with the number of unseen subjects as weights, because each space draws its own images and has its own unseen subjects.
Permutations stay within a space too. All estimates are without bias at any two sizes, so that sets of different sizes can be
laid side by side; they can be below 0.

References
----------
Gretton et al. 2012, A kernel two-sample test, https://jmlr.org/papers/v13/gretton12a.html. Binkowski et al. 2018,
arXiv:1801.01401 (kernel inception distance, degree 3). Naeem et al. 2020, arXiv:2002.09797 (density and coverage).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nilatent.analysis import stats

KERNELS = ("mmd2", "kid")
"""Gaussian with the median distance of training scans, and polynomial of degree 3."""
DEGREE = 3


@dataclass(frozen=True, eq=False)
class Scale:
    """What makes features comparable, from training scans.

    Parameters
    ----------
    centre : ndarray
        (feature,) their mean.
    size : ndarray
        (feature,) by which they are divided; after it the mean square of a feature is about 1.
    bandwidth : float
        Median distance between two training scans, of the Gaussian kernel.
    """

    centre: np.ndarray
    size: np.ndarray
    bandwidth: float

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """(n, feature) about the centre and scaled."""
        return np.asarray((np.asarray(x, dtype=np.float64) - self.centre) / self.size)


@dataclass(frozen=True, eq=False)
class Pair:
    """Two sets of one latent space, ready to be compared by both kernels.

    Parameters
    ----------
    kernels : ndarray
        (2, n, n) values of :data:`KERNELS` between all rows, 0 on the diagonal; for pairs also between the two of a pair.
    n_real : int
        The first rows are the real scans; the others are compared with them.
    paired : bool
        Row i of the others belongs to the subject of row i of the real scans, and is exchanged with it alone.
    """

    kernels: np.ndarray
    n_real: int
    paired: bool


@dataclass(frozen=True, eq=False)
class Apart:
    """How far two sets are apart; each (2,) in the order of :data:`KERNELS`.

    Parameters
    ----------
    value : ndarray
        Unbiased square of the discrepancy; 0 is expected of one distribution.
    p : ndarray
        Permutation p, one-sided.
    left_out : list of ndarray
        Per space (row, 2): the value of this space without that row, the real scans first; of pairs (pair, 2).
    n_real : tuple[int, ...]
        Per space, how many of these rows are real scans, or pairs.
    weights : ndarray
        (space,) of the average.
    """

    value: np.ndarray
    p: np.ndarray
    left_out: list[np.ndarray]
    n_real: tuple[int, ...]
    weights: np.ndarray


def scale_of(training: np.ndarray, *, each: bool) -> Scale:
    """Scale of features, learnt from training scans (scan, feature).

    Parameters
    ----------
    training : ndarray
        One scan per subject, at least two that differ.
    each : bool
        Divide every feature by its own SD; otherwise all by one, so that features which hardly vary stay quiet.
    """
    x = np.asarray(training, dtype=np.float64)
    centre, sd = x.mean(axis=0), x.std(axis=0, ddof=1)
    overall = max(float(np.sqrt(np.square(sd).mean())), np.finfo(float).tiny)
    size = np.where(sd > 1e-9 * overall, sd, overall) if each else np.full(len(sd), overall)
    scaled = (x - centre) / size
    apart = np.sqrt(squared_distances(scaled, scaled)[np.triu_indices(len(x), 1)])
    return Scale(centre, size, float(np.median(apart)) or 1.0)


def squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(n, m) squared Euclidean distances of rows, by one matrix product: features can be tens of thousands."""
    found = np.square(x).sum(axis=1)[:, None] + np.square(y).sum(axis=1) - 2 * (x @ y.T)
    return np.asarray(np.maximum(found, 0.0))


def pair(real: np.ndarray, other: np.ndarray, *, bandwidth: float, paired: bool = False) -> Pair:
    """Kernels between the rows of two sets (n, feature) that are scaled, of which each has at least two."""
    x = np.concatenate([real, other])
    gaussian = np.exp(-squared_distances(x, x) / (2 * bandwidth**2))
    polynomial = (x @ x.T / x.shape[1] + 1) ** DEGREE
    kernels = np.stack([gaussian, polynomial])
    every = np.arange(len(x))
    kernels[:, every, every] = 0
    if paired:
        ones = np.arange(len(real))
        kernels[:, ones, ones + len(real)] = kernels[:, ones + len(real), ones] = 0
    return Pair(kernels, len(real), paired)


def discrepancy(compared: Pair, is_other: np.ndarray) -> np.ndarray:
    """Unbiased squared discrepancy of every labelling.

    Parameters
    ----------
    compared : Pair
        The kernels.
    is_other : ndarray
        (labelling, n) 0/1; every labelling has as many ones.

    Returns
    -------
    ndarray
        (labelling, 2).
    """
    other = np.asarray(is_other, dtype=np.float64)
    n_other = other[0].sum()
    n_real = other.shape[1] - n_other
    cross = n_real * (n_real - 1) if compared.paired else n_real * n_other
    found = []
    for kernel in compared.kernels:
        towards = other @ kernel
        within_other = (towards * other).sum(axis=1)
        between = towards.sum(axis=1) - within_other
        within_real = kernel.sum() - within_other - 2 * between
        found.append(
            within_real / (n_real * (n_real - 1)) + within_other / (n_other * (n_other - 1)) - 2 * between / cross
        )
    return np.stack(found, axis=1)


def apart(pairs: Sequence[Pair], *, n_permutations: int, seed: int) -> Apart:
    """How far sets are apart, averaged over latent spaces, with a permutation p.

    Parameters
    ----------
    pairs : Sequence[Pair]
        One per latent space.
    n_permutations : int
        Labellings under the hypothesis of one distribution: drawn within each space, and within each pair of paired sets.
    seed : int
        Of the labellings.
    """
    rng, weights = np.random.default_rng(seed), np.array([one.n_real for one in pairs], dtype=np.float64)
    weights /= weights.sum()
    total, left_out = np.zeros((n_permutations + 1, len(KERNELS))), []
    for one, weight in zip(pairs, weights, strict=True):
        labels = _labels(one, n_permutations, rng)
        total += weight * discrepancy(one, labels)
        left_out.append(_left_out(one))
    p = [stats.max_p(column[:1], column[1:])[0] for column in total.T]
    return Apart(total[0], np.array(p), left_out, tuple(one.n_real for one in pairs), weights)


def standard_error(first: Apart, second: Apart | None = None) -> np.ndarray:
    """(2,) jackknife standard error, over real scans and images, of a discrepancy, or of the difference of two.

    Parameters
    ----------
    first, second : Apart
        Both to the same real scans, whose part in the difference is taken together; images are drawn for each by itself.
    """
    found = np.zeros(len(KERNELS))
    for number, (weight, n_real) in enumerate(zip(first.weights, first.n_real, strict=True)):
        ours = first.left_out[number]
        theirs = np.zeros(ours.shape) if second is None else second.left_out[number]
        groups = [ours[:n_real] - theirs[:n_real], ours[n_real:], theirs[n_real:]]
        for values in groups:
            n = max(len(values), 1)
            found += weight**2 * (n - 1) / n * np.square(values - values.mean(axis=0)).sum(axis=0) if len(values) else 0
    return np.sqrt(found)


def halves(sets: Sequence[np.ndarray], bandwidths: Sequence[float], *, n_splits: int, seed: int) -> np.ndarray:
    """(split, 2) discrepancy of two random halves of the real scans (n, feature), scaled, of every latent space: the floor.

    The mean over all splits is 0; what the splits scatter is what chance alone does at half the number of scans.
    """
    rng, weights = np.random.default_rng(seed), np.array([len(one) for one in sets], dtype=np.float64)
    total = np.zeros((n_splits, len(KERNELS)))
    for x, bandwidth, weight in zip(sets, bandwidths, weights / weights.sum(), strict=True):
        half = len(x) // 2
        labels = rng.permuted(np.tile(np.arange(len(x)) >= half, (n_splits, 1)), axis=1)
        total += weight * discrepancy(pair(x[:half], x[half:], bandwidth=bandwidth), labels)
    return total


def coverage_and_density(real: np.ndarray, other: np.ndarray, *, k: int, subsets: Sequence[np.ndarray]) -> np.ndarray:
    """Share of real scans with an image nearer than their k-th real neighbour, and how many such balls hold an image.

    Parameters
    ----------
    real, other : ndarray
        (n, feature) and (m, feature), scaled.
    k : int
        Neighbour, below n.
    subsets : Sequence of ndarray
        Rows of the images that take part; over several the mean is given.

    Returns
    -------
    ndarray
        (2,) coverage in [0, 1]; density, 1 where the images lie as densely as the scans.
    """
    radius = np.sort(squared_distances(real, real), axis=1)[:, k]
    inside = squared_distances(real, other) <= radius[:, None]
    found = [(inside[:, rows].any(axis=1).mean(), inside[:, rows].sum() / (k * len(rows))) for rows in subsets]
    return np.asarray(np.mean(found, axis=0))


def expected_coverage(n: int, m: int, *, k: int) -> float:
    """Coverage of n real scans by m images of the same distribution."""
    steps = np.arange(k)
    return float(1 - np.prod((n - 1 - steps) / (n + m - 1 - steps)))


def _labels(one: Pair, n_permutations: int, rng: np.random.Generator) -> np.ndarray:
    n = one.kernels.shape[1]
    observed = (np.arange(n) >= one.n_real).astype(np.float64)
    if one.paired:
        swapped = rng.integers(2, size=(n_permutations, one.n_real))
        drawn = np.hstack([swapped, 1 - swapped]).astype(np.float64)
    else:
        drawn = rng.permuted(np.tile(observed, (n_permutations, 1)), axis=1)
    return np.vstack([observed, drawn])


def _left_out(one: Pair) -> np.ndarray:
    """(row, 2) discrepancy without that row; of pairs (pair, 2) without both."""
    n, other = one.n_real, np.arange(one.kernels.shape[1]) >= one.n_real
    m = int(other.sum())
    found = []
    for kernel in one.kernels:
        to_real, to_other = kernel[:, ~other].sum(axis=1), kernel[:, other].sum(axis=1)
        within, without, between = to_real[~other].sum(), to_other[other].sum(), to_other[~other].sum()
        if one.paired:
            real, images = within - 2 * to_real[:n], without - 2 * to_other[n:]
            crossing = between - to_other[:n] - to_real[n:]
            few = (n - 1) * (n - 2)
            found.append(real / few + images / few - 2 * crossing / few)
            continue
        real = (within - 2 * to_real * ~other) / np.where(other, n * (n - 1), (n - 1) * (n - 2))
        images = (without - 2 * to_other * other) / np.where(other, (m - 1) * (m - 2), m * (m - 1))
        crossing = (between - np.where(other, to_real, to_other)) / np.where(other, n * (m - 1), (n - 1) * m)
        found.append(real + images - 2 * crossing)
    return np.stack(found, axis=1)
