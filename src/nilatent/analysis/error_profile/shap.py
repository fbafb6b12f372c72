"""What each region contributes to the predicted error of held-out scans: exact SHAP, its stability, clusters.

References
----------
Lundberg et al. 2020 (TreeSHAP, interventional), doi:10.1038/s42256-019-0138-9. Kendall & Babington Smith 1939,
doi:10.1214/aoms/1177732186.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from types import ModuleType

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from scipy.stats import rankdata
from sklearn.ensemble import GradientBoostingRegressor

from nilatent.analysis.error_profile.gain import shuffled
from nilatent.analysis.error_profile.models import Part, Problem, grown_trees, left_over, ridge_weights
from nilatent.errors import NilatentError
from nilatent.extras import require

ADDITIVITY = 1e-5
TOP = 10
N_SHUFFLES = 10


@dataclass(frozen=True, eq=False)
class Contributions:
    """SHAP values of held-out scans by one model, in log error.

    Parameters
    ----------
    phi : ndarray
        (scan, region) mean over partitions.
    by_fold : ndarray
        (partition, fold, region) mean |phi| over the held-out scans of a fold.
    by_seed : ndarray
        (partition, region) mean |phi| over all scans.
    """

    phi: np.ndarray
    by_fold: np.ndarray
    by_seed: np.ndarray


def contributions(problem: Problem, partitions: Sequence[Sequence[Part]], model: str, *, seed: int) -> Contributions:
    """SHAP values of every scan by the models that have not seen it, once per partition."""
    phi = [held_out_shap(parts, problem.log_error, model, seed=seed) for parts in partitions]
    return Contributions(
        phi=np.mean(phi, axis=0),
        by_fold=np.array([fold_importance(one, parts) for one, parts in zip(phi, partitions, strict=True)]),
        by_seed=np.abs(phi).mean(axis=1),
    )


def linear_shap(weights: np.ndarray, x: np.ndarray, background: np.ndarray) -> np.ndarray:
    """(scan, region) exact interventional SHAP of a linear model: phi = w (x - mean of the background).

    All rows of the background count; ``shap.LinearExplainer`` would draw 100 of them unless told otherwise.
    """
    return np.asarray((x - background.mean(axis=0)) * weights)


def shap_package() -> ModuleType:
    """The package shap; it sets up colour maps when imported, with calls that matplotlib is about to drop."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return require("shap", extra="explain")


def tree_shap(model: GradientBoostingRegressor, x: np.ndarray, background: np.ndarray) -> tuple[np.ndarray, float]:
    """(scan, region) interventional TreeSHAP over all rows of the background, and the mean prediction over them."""
    shap = shap_package()
    # TreeExplainer, too, draws 100 rows of the background unless told otherwise.
    rows = shap.maskers.Independent(background, max_samples=len(background))
    explainer = shap.TreeExplainer(model, data=rows, feature_perturbation="interventional")
    phi = np.asarray(explainer.shap_values(x, check_additivity=False), dtype=np.float64)
    return phi, float(np.ravel(explainer.expected_value)[0])


def check_additivity(phi: np.ndarray, base: float, predicted: np.ndarray, *, model: str) -> None:
    """Stop unless contributions and base add up to the prediction of every scan, to 1e-5 in log error.

    Raises
    ------
    NilatentError
        Names the model and the largest gap.
    """
    gap = float(np.abs(phi.sum(axis=1) + base - predicted).max(initial=0))
    if not gap <= ADDITIVITY:
        raise NilatentError(
            f"SHAP values of the model '{model}' miss its prediction by {gap:.2g}, more than {ADDITIVITY:g}, so they explain "
            "another model. Install another version of shap, or leave the model out of error_profile.models."
        )


def held_out_shap(parts: Sequence[Part], log_error: np.ndarray, model: str, *, seed: int) -> np.ndarray:
    """(scan, region) contribution of each region to the predicted log error of each scan, by the model of its fold.

    Parameters
    ----------
    parts : Sequence[Part]
        One partition: every scan is held out once; the background are the training scans.
    log_error : ndarray
        (scan,) log errors.
    model : str
        ``"ridge"`` or ``"trees"``.
    seed : int
        Of the trees.
    """
    phi = np.zeros((len(log_error), parts[0].x_train.shape[1]))
    for part in parts:
        residuals = left_over(part, log_error[:, None])
        if model == "ridge":
            weights = ridge_weights(part, residuals)[:, 0]
            phi[part.test] = linear_shap(weights, part.x_test, part.x_train)
            base, predicted = float((part.x_train @ weights).mean()), part.x_test @ weights
        else:
            grown = grown_trees(part, residuals[:, 0], seed=seed)
            phi[part.test], base = tree_shap(grown, part.x_test, part.x_train)
            predicted = grown.predict(part.x_test)
        check_additivity(phi[part.test], base, predicted, model=model)
    return phi


def kendall_w(importance: np.ndarray) -> float:
    """Agreement of the order of regions between raters, corrected for ties; 1 is the same order, 0 none.

    Parameters
    ----------
    importance : ndarray
        (rater, region) values; a rater is a fold or a seed.
    """
    n_raters, n_regions = importance.shape
    if n_raters < 2 or n_regions < 2:
        return float("nan")
    ranks = rankdata(importance, axis=1)
    spread = np.square(ranks.sum(axis=0) - n_raters * (n_regions + 1) / 2).sum()
    ties = sum((counts**3 - counts).sum() for counts in (np.unique(row, return_counts=True)[1] for row in ranks))
    largest = n_raters**2 * (n_regions**3 - n_regions) - n_raters * ties
    return float(12 * spread / largest) if largest > 0 else float("nan")


def top_jaccard(importance: np.ndarray, *, top: int = TOP) -> float:
    """Mean overlap (Jaccard) of the `top` regions over all pairs of raters; NaN when there are not more regions."""
    if len(importance) < 2 or importance.shape[1] <= top:
        return float("nan")
    # A region without any contribution is not among the best, however few have one.
    best = [{r for r in np.argsort(-row, kind="stable")[:top] if row[r] > 0} for row in importance]
    pairs = [(len(a & b), len(a | b)) for a, b in combinations(best, 2)]
    return float(np.mean([shared / union if union else 0.0 for shared, union in pairs]))


def fold_importance(phi: np.ndarray, parts: Sequence[Part]) -> np.ndarray:
    """(fold, region) mean |phi| over the held-out scans of each fold."""
    return np.array([np.abs(phi[part.test]).mean(axis=0) for part in parts])


def seen(parts: Sequence[Part]) -> np.ndarray:
    """(scan, region) regional values of each held-out scan as its model saw them, in SD of the training scans."""
    x = np.empty((sum(len(part.test) for part in parts), parts[0].x_test.shape[1]))
    for part in parts:
        x[part.test] = part.x_test
    return x


def stability(
    problem: Problem,
    partitions: Sequence[Sequence[Part]],
    found: Contributions,
    model: str,
    orders: np.ndarray,
    *,
    seed: int,
) -> dict[str, float]:
    """Agreement of the importance of regions over folds and over seeds, and what shuffled errors reach.

    Folds share most of their training scans, so they agree to some degree about nothing at all; the shuffled value says
    to what degree.
    """
    values = shuffled(problem, orders[:N_SHUFFLES]).T
    chance = [held_out_shap(partitions[0], one, model, seed=seed) for one in values]
    return {
        "w_folds": float(np.mean([kendall_w(one) for one in found.by_fold])),
        "w_seeds": kendall_w(found.by_seed),
        "w_folds_shuffled": float(np.mean([kendall_w(fold_importance(phi, partitions[0])) for phi in chance])),
        "jaccard_folds": float(np.mean([top_jaccard(one) for one in found.by_fold])),
        "jaccard_seeds": top_jaccard(found.by_seed),
    }


def clusters(parts: Sequence[Part], *, threshold: float) -> np.ndarray:
    """(region,) number of the cluster of correlated regions, from 1, in the order of their first region.

    Average linkage on 1 - |r|, r the correlation of two regions (without what the null model tells) within the training
    scans of a fold, averaged over folds. Errors and groups play no part.

    Parameters
    ----------
    parts : Sequence[Part]
        One partition.
    threshold : float
        |r| at which regions are joined, in (0, 1).
    """
    n_regions = parts[0].x_train.shape[1]
    if n_regions < 2:
        return np.ones(n_regions, dtype=np.int64)
    r = np.mean([part.x_train.T @ part.x_train / len(part.train) for part in parts], axis=0)
    distance = np.clip(1 - np.abs((r + r.T) / 2), 0, None)
    np.fill_diagonal(distance, 0)
    found = fcluster(linkage(squareform(distance, checks=False), "average"), 1 - threshold, criterion="distance")
    _, first, code = np.unique(found, return_index=True, return_inverse=True)
    return np.asarray(np.argsort(np.argsort(first))[code] + 1)


def cluster_shap(phi: np.ndarray, cluster: np.ndarray) -> np.ndarray:
    """(scan, cluster) sum of the contributions of the regions of each cluster, clusters in order of their number."""
    return np.asarray(phi @ (cluster[:, None] == np.unique(cluster)).astype(np.float64))
