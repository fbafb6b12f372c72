"""Whether a head beats guessing in the worst case: the bound badge of a row, by CUBV for two classes and SAR for a number.

References
----------
Gorriz et al. 2024, arXiv:2401.16407 (CUBV) and arXiv:2402.15213 (SAR).
"""

import numpy as np

from nilatent.analysis import bounds
from nilatent.analysis.held_out import balanced_errors, certify_calls, effective_sizes
from nilatent.analysis.sar import certify_predictions

NOT_ASSESSED = "not assessed"


def badge(
    called: np.ndarray,
    y: np.ndarray,
    folds: np.ndarray,
    *,
    kind: str,
    head: str,
    n_features: int,
    independent: bool,
    p_value: float,
    alpha: float,
) -> str:
    """Badge of a row.

    A linear rule on d features has d + 1 weights, its threshold counted. From 8 weights on two classes are counted by
    dichotomies in general position, which needs no norm of the weights: a penalty could make that as small as it likes. SAR
    has no such count, and trees and networks have no count at all.

    Parameters
    ----------
    called : ndarray
        (scan,) held-out codes or numbers.
    y : ndarray
        (scan,) truth.
    folds : ndarray
        (scan,) outer fold.
    kind, head : str
        Of the target, and which head.
    n_features : int
        Features that the head weights.
    independent : bool
        Whether every scan is another subject, which the bounds assume.
    p_value : float
        Permutation p; a badge needs it to be at most `alpha`.
    alpha : float
        Error rate of both.

    Returns
    -------
    str
        ``"bound-validated"``, ``"inconclusive"`` or ``"not assessed"``.
    """
    d = n_features + 1
    assessed = head in ("linear", "svm") and kind in ("binary", "continuous") and independent and np.isfinite(p_value)
    if not assessed or (kind == "continuous" and d >= bounds.FROM_PAC_BAYES):
        return NOT_ASSESSED
    if kind == "continuous":
        holds = certify_predictions(y, called, folds, d=d, eta=alpha).holds
    elif d < bounds.FROM_PAC_BAYES:
        holds = certify_calls(called, y == 1, folds, d=d, eta=alpha).holds
    else:
        error = float(balanced_errors(called[:, None].astype(float), y == 1, folds).mean())
        sizes = effective_sizes(y == 1, folds)
        worst = np.mean([bounds.upper_bound(error, n=int(n), d=d, eta=alpha, method="general") for n in sizes])
        holds = bool(worst < bounds.CHANCE)
    return bounds.VALIDATED if holds and p_value <= alpha else bounds.INCONCLUSIVE
