"""Regional means of images drawn from a latent space beside those of scans: each region by itself, and all in one classifier."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import ks_2samp

from nilatent.analysis import stats
from nilatent.analysis.prediction.heads import fit_linear
from nilatent.analysis.prediction.measures import auc

N_PARTS = 5


@dataclass(frozen=True, eq=False)
class RegionsApart:
    """Every region of images beside the same region of unseen scans; all (region,).

    Parameters
    ----------
    mean, sd : ndarray
        Of the images.
    real_mean, real_sd : ndarray
        Of the scans, one per subject.
    shift : ndarray
        Difference of the means in SD of the scans.
    ratio : ndarray
        SD of the images over that of the scans.
    q : ndarray
        False discovery rate over regions of the Kolmogorov-Smirnov test that both are one distribution.
    """

    mean: np.ndarray
    sd: np.ndarray
    real_mean: np.ndarray
    real_sd: np.ndarray
    shift: np.ndarray
    ratio: np.ndarray
    q: np.ndarray


def in_proportion(real: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Rows of all latent spaces together, the others as many times as there are real ones in each space.

    The first rows of the others are taken: each space then has the same say among images as among scans.
    """
    times = max(min(len(b) // len(a) for a, b in zip(real, other, strict=True)), 1)
    return np.concatenate(list(real)), np.concatenate([b[: times * len(a)] for a, b in zip(real, other, strict=True)])


def regions_apart(real: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> RegionsApart:
    """Compare every region of images with that of scans.

    Parameters
    ----------
    real, other : Sequence of ndarray
        (n, region) of every latent space: unseen scans, one per subject, and images.
    """
    x, y = in_proportion(real, other)
    sd, real_sd = y.std(axis=0, ddof=1), x.std(axis=0, ddof=1)
    safe = np.maximum(real_sd, np.finfo(float).tiny)
    p = np.array([ks_2samp(a, b).pvalue for a, b in zip(x.T, y.T, strict=True)])
    mean, real_mean = y.mean(axis=0), x.mean(axis=0)
    return RegionsApart(mean, sd, real_mean, real_sd, (mean - real_mean) / safe, sd / safe, stats.fdr(p))


def classifier_auc(real: Sequence[np.ndarray], other: Sequence[np.ndarray], *, paired: bool, seed: int) -> float:
    """Area under the curve with which a logistic head tells images from unseen scans by their regional means.

    Parameters
    ----------
    real, other : Sequence of ndarray
        (n, region) of every latent space.
    paired : bool
        The others are reconstructions of the scans at the same place; either is judged by a head that knows neither.
    seed : int
        Of the parts.

    Returns
    -------
    float
        0.5 where they cannot be told apart, 1 where they always can; of few scans it scatters around, and so can be below 0.5.
        A head is fitted on four fifths of one latent space and judges the last fifth. No head sees the scans of another space:
        these trained the model whose images it judges. Only pairs judged by one head are counted.
    """
    rng, found = np.random.default_rng(seed), []
    for number, (a, b) in enumerate(zip(real, other, strict=True)):
        x, is_image = np.concatenate([a, b]), np.repeat([False, True], [len(a), len(b)])
        dealt = [rng.permutation(np.arange(len(one)) % N_PARTS) for one in (a, b)]
        parts = np.concatenate([dealt[0], dealt[0] if paired else dealt[1]])
        scores, varies = np.full(len(x), np.nan), stats.varying(x)
        for part in np.unique(parts):
            train, test = parts != part, parts == part
            head = fit_linear(
                x[train][:, varies],
                is_image[train].astype(np.intp),
                kind="binary",
                levels=("scan", "image"),
                subjects=np.flatnonzero(train),
                seed=seed,
            )
            scores[test] = head.scores(x[test][:, varies])[:, 1]
        found.append((scores, is_image, number * N_PARTS + parts))
    scores, is_image, parts = (np.concatenate(column) for column in zip(*found, strict=True))
    return float(auc(scores, is_image, np.ones((1, len(scores))), parts)[0])
