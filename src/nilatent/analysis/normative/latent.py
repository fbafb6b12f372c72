"""Distance of a scan from the reference in latent space, and how many held-out reference scans lie as far: the array core.

References
----------
Ledoit & Wolf 2004, doi:10.1016/S0047-259X(03)00096-4. Vovk 2015, doi:10.1007/s10472-013-9368-4 (cross-conformal
prediction). Bates et al. 2023, doi:10.1214/22-AOS2244 (conformal p-values and the false discovery rate). Newcombe 2006,
doi:10.1002/sim.2324 (interval of the AUC, method 5).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import xarray as xr
from scipy.optimize import brentq
from scipy.stats import gumbel_r, mannwhitneyu, norm
from sklearn.covariance import LedoitWolf

from nilatent.analysis.normative.reference import Deviations, normal_score
from nilatent.errors import CohortError, LeakageError
from nilatent.latents import check_latents

# With fewer held-out reference scans an empirical p says next to nothing.
MIN_CALIBRATION = 10


@dataclass(frozen=True, eq=False)
class FoldLatents:
    """Latents of the model that a fold is judged with.

    Parameters
    ----------
    by_fold : dict[int, ndarray]
        Fold to (scan, latent) of all scans; coordinates of different folds have nothing in common.
    judged : ndarray
        (scan,) bool: the model of the scan's fold has not seen its subject.
    """

    by_fold: dict[int, np.ndarray]
    judged: np.ndarray


def latents_by_fold(latents: Sequence[xr.Dataset], scan_ids: np.ndarray, folds: np.ndarray) -> FoldLatents:
    """Latents of every fold, in the order of the scans.

    Parameters
    ----------
    latents : Sequence of Dataset
        One per fold, in the order of the folds, or one that serves all.
    scan_ids : ndarray
        (scan,) identifiers.
    folds : ndarray
        (scan,) fold of each scan.

    Raises
    ------
    CohortError
        When latents and scans do not hold the same scans, or there are neither one nor as many latents as folds.
    LeakageError
        When the model of a fold has seen a subject of that fold.
    """
    numbers = np.unique(folds)
    if len(latents) not in (1, len(numbers)):
        raise CohortError(
            f"{len(latents)} latents were given for {len(numbers)} folds. Give one per cross-fitted model, or one for all."
        )
    by_fold, judged = {}, np.ones(len(scan_ids), dtype=bool)
    for position, fold in enumerate(numbers):
        one = latents[position if len(latents) > 1 else 0]
        check_latents(one)
        apart = sorted(set(map(str, scan_ids)) ^ set(map(str, one["scan"].values)))
        if apart:
            raise CohortError(
                f"The latents of fold {fold} and the cohort do not hold the same scans: {apart[0]} ({len(apart)} in all) is in "
                "one only. Encode the whole cohort."
            )
        chosen = one.sel(scan=scan_ids)
        seen = chosen["subject_in_training"].values & (folds == fold)
        if len(latents) > 1 and seen.any():
            raise LeakageError(
                f"The model of fold {fold} has seen subject {chosen['subject'].values[seen][0]}, whose deviation it would judge "
                f"({int(seen.sum())} such scans). Hand in the latents in the order of the folds, or train the folds again."
            )
        judged &= ~seen
        by_fold[int(fold)] = chosen["mean"].values.reshape(len(scan_ids), -1).astype(np.float64)
    return FoldLatents(by_fold, judged)


def mahalanobis(found: Deviations, *, n_components: int = 0) -> np.ndarray:
    """Distance of new scans from the reference mean for their age, sex and site, in SD: about 1 for one of the reference.

    The covariance of the reference residuals is shrunk, so that it can be inverted when latents are many and scans are few.

    Parameters
    ----------
    found : Deviations
        Of latents; flat ones count for nothing.
    n_components : int
        Look along that many principal directions of the reference residuals only; 0 is all.

    Returns
    -------
    ndarray
        (new,) root of the mean squared deviation over directions, at least 0.
    """
    kept = np.isfinite(found.sd)
    if not kept.any():
        return np.full(len(found.units), np.nan)
    residuals = found.residuals[:, kept]
    variance, directions = np.linalg.eigh(LedoitWolf(assume_centered=True).fit(residuals).covariance_)
    first = 0 if n_components == 0 else max(0, len(variance) - n_components)
    along = found.units[:, kept] @ directions[:, first:]
    return np.asarray(np.sqrt((np.square(along) / variance[first:]).mean(axis=1)))


def conformal_p(scores: np.ndarray, held_out: np.ndarray, subjects: np.ndarray) -> np.ndarray:
    """Share of held-out reference scans that lie at least as far, the scan itself counted as one of them.

    Every scan was scored by a model that was not fitted on its subject, reference scans included. So a new scan of the
    reference population is one more of them, and its rank is anybody's: no distribution is assumed.

    Parameters
    ----------
    scores : ndarray
        (scan,) larger is more unusual; NaN for none.
    held_out : ndarray
        (scan,) bool: one scan per reference subject.
    subjects : ndarray
        (scan,) subject; nobody is compared with themselves.

    Returns
    -------
    ndarray
        (scan,) p in (0, 1]; NaN without a score, and for all when fewer than ten reference scans have one.

    Examples
    --------
    >>> conformal_p(np.arange(12.0), np.arange(12) < 11, np.arange(12))[[0, 10, 11]].round(3).tolist()
    [1.0, 0.091, 0.083]
    """
    pool = held_out & np.isfinite(scores)
    p = np.full(len(scores), np.nan)
    if pool.sum() < MIN_CALIBRATION:
        return p
    for scan in np.flatnonzero(np.isfinite(scores)):
        others = scores[pool & (subjects != subjects[scan])]
        p[scan] = (1 + np.count_nonzero(others >= scores[scan])) / (1 + len(others))
    return p


def auc_interval(cases: np.ndarray, reference: np.ndarray, *, level: float = 0.95) -> tuple[float, float, float, float]:
    """Area under the ROC curve of cases against reference with its interval, and the p that it is one half.

    Parameters
    ----------
    cases, reference : ndarray
        (n,) scores; higher in cases gives an area above 0.5.
    level : float
        Coverage of the interval, in (0, 1).

    Returns
    -------
    tuple[float, float, float, float]
        Area, lower and upper limit (Newcombe's method 5, which is no point at an area of 1), two-sided Mann-Whitney p.
    """
    n_cases, n_reference = len(cases), len(reference)
    test = mannwhitneyu(cases, reference, alternative="two-sided")
    area = float(test.statistic) / (n_cases * n_reference)
    half, mean_size = float(norm.ppf((1 + level) / 2)), (n_cases + n_reference) / 2

    def apart(theta: float) -> float:
        shape = 1 + (mean_size - 1) * ((1 - theta) / (2 - theta) + theta / (1 + theta))
        return (area - theta) ** 2 - half**2 * theta * (1 - theta) * shape / (n_cases * n_reference)

    # At 0 and 1 the variance is nothing, and the root that is sought lies further in.
    edge = max(min(1e-9, 1e-6 / (n_cases * n_reference) ** 2), 1e-15)
    low = 0.0 if area < edge or apart(edge) < 0 else float(brentq(apart, edge, min(area, 1 - edge)))
    high = 1.0 if area > 1 - edge or apart(1 - edge) < 0 else float(brentq(apart, max(area, edge), 1 - edge))
    return area, low, high, float(test.pvalue)


def predicted_p(
    scores: np.ndarray, held_out: np.ndarray, subjects: np.ndarray, *, tail: Literal["normal", "gumbel"]
) -> np.ndarray:
    """One-sided p of a score, from a prediction of the logarithms of the held-out reference scores.

    Mean and SD come from scans that the reference model has not seen, and their own uncertainty is in the prediction, so what
    a model of few scans, a model that has seen its reference scans, or heavy tails do to the scores is in them already. Unlike
    a rank, p is not bounded below by the number of reference scans.

    Parameters
    ----------
    scores, held_out, subjects
        As for :func:`conformal_p`; scores above 0.
    tail : {"normal", "gumbel"}
        Shape of the logarithm: normal for a distance, Gumbel for the largest of many deviations (exact when these have heavy
        tails, cautious when they are normal).

    Returns
    -------
    ndarray
        (scan,) in [0, 1]; NaN as there.
    """
    pool = held_out & np.isfinite(scores)
    p = np.full(len(scores), np.nan)
    if pool.sum() < MIN_CALIBRATION:
        return p
    logs = np.log(np.maximum(scores, np.finfo(float).tiny))
    for scan in np.flatnonzero(np.isfinite(scores)):
        others = logs[pool & (subjects != subjects[scan])]
        n_others = len(others)
        spread = max(float(others.std(ddof=1)) * np.sqrt(1 + 1 / n_others), np.finfo(float).tiny)
        z = normal_score((logs[scan] - others.mean()) / spread, n_others - 1)
        p[scan] = norm.sf(z) if tail == "normal" else gumbel_r.sf(z * np.pi / np.sqrt(6) + np.euler_gamma)
    return p
