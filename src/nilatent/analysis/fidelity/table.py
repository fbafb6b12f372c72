"""From images and scans of every latent space to one row per comparison."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from nilatent.analysis.copies import CopyCheck
from nilatent.analysis.fidelity import measures as measures
from nilatent.analysis.fidelity.draws import (
    DENSITY,
    MEAN,
    PCA,
    PCA_RECONSTRUCTIONS,
    PRIOR,
    RECONSTRUCTIONS,
    TRAINING,
    Described,
)
from nilatent.analysis.fidelity.regions import classifier_auc

UNSEEN = "unseen scans"
HALVES = "two halves of the unseen scans"
FEATURES = {"regions": "regional means", "deep": "deep features"}
N_NEIGHBOURS = 5
N_SPLITS = 2000
# Sets of images, as many as there are scans, over which coverage and density are averaged.
N_SUBSETS = 20
COMPARISONS = {
    "training scans": (TRAINING, UNSEEN),
    "reconstructions": (RECONSTRUCTIONS, UNSEEN),
    "reconstructions of PCA": (PCA_RECONSTRUCTIONS, UNSEEN),
    "samples": (DENSITY, UNSEEN),
    "samples of the prior": (PRIOR, UNSEEN),
    "samples against reconstructions": (DENSITY, RECONSTRUCTIONS),
    "samples of PCA": (PCA, UNSEEN),
    "mean image": (MEAN, UNSEEN),
}
"""Name of a comparison to what is compared with what; reconstructions of unseen scans are paired with these."""
COLUMNS = (
    "comparison", "features", "mmd2", "mmd2_se", "mmd2_p", "mmd2_high", "kid", "kid_se", "kid_p", "kid_high", "auc",
    "coverage", "density", "spread", "n_real", "n_images",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Drawn:
    """What was drawn from one latent space, and what it is compared with.

    Parameters
    ----------
    sets : dict[str, Described]
        By the names in :mod:`nilatent.analysis.fidelity.draws`, and the unseen scans, one per subject.
    spread : dict[str, float]
        Total variance over voxels, as a share of that of the unseen scans.
    checks : dict[str, CopyCheck]
        Of the samples, and of those of PCA; none where the training subjects are too few.
    """

    sets: dict[str, Described]
    spread: dict[str, float]
    checks: dict[str, CopyCheck]


def comparisons(drawn: Sequence[Drawn], *, n_permutations: int, seed: int) -> tuple[pd.DataFrame, dict[str, float]]:
    """Every comparison by regional means and by deep features.

    Parameters
    ----------
    drawn : Sequence[Drawn]
        One per latent space.
    n_permutations, seed : int
        Of the tests.

    Returns
    -------
    table : DataFrame
        :data:`COLUMNS`; within either kind of features the smallest discrepancy first. The row of the two halves has, as
        ``mmd2_high``, what 95 % of all splits stay below.
    gains : dict[str, float]
        By kind of features, discrepancy of samples minus that of PCA's over the standard error of that difference.
    """
    rows: list[dict[str, object]] = []
    gains = {}
    for kind in FEATURES:
        made, found = _compared(drawn, kind, n_permutations=n_permutations, seed=seed)
        rows += made
        gains[kind] = _gain(found)
    table = pd.DataFrame(rows).reindex(columns=list(COLUMNS))
    return table.sort_values(["features", "mmd2"], ascending=[False, True], ignore_index=True, kind="stable"), gains


def _compared(
    drawn: Sequence[Drawn], kind: str, *, n_permutations: int, seed: int
) -> tuple[list[dict[str, object]], dict[str, measures.Apart]]:
    """Rows of the table by one kind of features, and how far apart each comparison found two sets."""
    scales = [measures.scale_of(getattr(one.sets[TRAINING], kind), each=kind == "regions") for one in drawn]
    bandwidths = [scale.bandwidth for scale in scales]

    def scaled(name: str) -> list[np.ndarray]:
        # When it is asked for: of all sets at once, deep features in double precision would be most of what is held.
        return [scale(getattr(one.sets[name], kind)) for one, scale in zip(drawn, scales, strict=True)]

    rows = [_halves(scaled(UNSEEN), bandwidths, FEATURES[kind], seed=seed)]
    found: dict[str, measures.Apart] = {}
    for name, (image, against) in COMPARISONS.items():
        if image not in drawn[0].sets:
            continue
        sides, paired = (scaled(against), scaled(image)), image in (RECONSTRUCTIONS, PCA_RECONSTRUCTIONS)
        pairs = [
            measures.pair(a, b, bandwidth=width, paired=paired) for a, b, width in zip(*sides, bandwidths, strict=True)
        ]
        found[name] = measures.apart(pairs, n_permutations=n_permutations, seed=seed)
        row = {"comparison": name, "features": FEATURES[kind]} | _row(found[name]) | _places(*sides, seed=seed)
        if image == TRAINING:
            # Who is unseen in one latent space trained the others, so permutations within each would not be independent.
            row |= {f"{kernel}_p": np.nan for kernel in measures.KERNELS}
        row["n_real"], row["n_images"] = (sum(map(len, side)) for side in sides)
        if against == UNSEEN:
            row["spread"] = _mean([one.spread[image] for one in drawn], sides[0])
        if kind == "regions":
            row["auc"] = classifier_auc(*sides, paired=paired, seed=seed)
        rows.append(row)
    return rows, found


def _gain(found: Mapping[str, measures.Apart]) -> float:
    """How many standard errors the samples lie farther from unseen scans than those of PCA; below 0: nearer."""
    ours, theirs = found["samples"], found["samples of PCA"]
    error = measures.standard_error(ours, theirs)[0]
    return float((ours.value[0] - theirs.value[0]) / max(error, np.finfo(float).tiny))


def _row(found: measures.Apart) -> dict[str, object]:
    error = measures.standard_error(found)
    row: dict[str, object] = {}
    for number, kernel in enumerate(measures.KERNELS):
        row |= {kernel: found.value[number], f"{kernel}_se": error[number], f"{kernel}_p": found.p[number]}
    return row


def _halves(real: Sequence[np.ndarray], bandwidths: Sequence[float], words: str, *, seed: int) -> dict[str, object]:
    drawn = measures.halves(real, bandwidths, n_splits=N_SPLITS, seed=seed)
    row: dict[str, object] = {"comparison": HALVES, "features": words, "n_real": sum(map(len, real))}
    for number, kernel in enumerate(measures.KERNELS):
        row |= {kernel: drawn[:, number].mean(), f"{kernel}_se": drawn[:, number].std()}
        row[f"{kernel}_high"] = np.quantile(drawn[:, number], 0.95)
    return row


def _places(real: Sequence[np.ndarray], other: Sequence[np.ndarray], *, seed: int) -> dict[str, object]:
    """Coverage and density, of as many images as there are scans."""
    rng, found = np.random.default_rng(seed), []
    for x, y in zip(real, other, strict=True):
        n = min(len(x), len(y))
        subsets = [rng.permutation(len(y))[:n] for _ in range(N_SUBSETS)] if len(y) > n else [np.arange(n)]
        found.append(measures.coverage_and_density(x, y, k=min(N_NEIGHBOURS, len(x) - 1), subsets=subsets))
    coverage, density = (_mean(list(column), real) for column in np.array(found).T)
    return {"coverage": coverage, "density": density}


def _mean(values: Sequence[float], real: Sequence[np.ndarray]) -> float:
    return float(np.average(values, weights=[len(one) for one in real]))
