"""Worst-case error of a linear rule: what its error can be at most in the population, whatever the distribution.

With probability at least 1 - eta the true error R of every rule of a class is at most its observed error plus Delta, and
Delta depends only on the number n of scans and the number d of weights that the rule fits. **A fitted threshold is a
weight**: a cut on one score has d = 2, a linear classifier with intercept on k features has d = k + 1.

The certificates built on this are one-sided: a missing one means "inconclusive", never "no effect".

References
----------
Cover 1965, doi:10.1109/PGEC.1965.264137 (dichotomies in general position). Vapnik 1998 (growth function). McAllester 2013,
arXiv:1307.2118 (PAC-Bayes with dropout). Gorriz et al. 2021, doi:10.1016/j.inffus.2020.09.008 (statistical agnostic
mapping). Clopper & Pearson 1934, doi:10.1093/biomet/26.4.404.
"""

from functools import lru_cache
from typing import Literal

import numpy as np
from scipy.special import gammaln, logsumexp
from scipy.stats import beta

from nilatent.errors import SettingError

Method = Literal["auto", "general", "boundary", "vapnik", "pac_bayes"]
METHODS = ("auto", "general", "boundary", "vapnik", "pac_bayes")
VALIDATED, INCONCLUSIVE = "bound-validated", "inconclusive"
CHANCE = 0.5
FROM_PAC_BAYES = 8
LAMBDAS = np.arange(6, 101) / 10
RESUBSTITUTION = (
    "Errors on the scans that a rule was fitted on (resubstitution) are refused: on data without any effect, in-sample PLS "
    "is certified in every cohort and a linear rule on 64 features by the PAC-Bayes bound in nearly every one. Hand in "
    "errors of held-out scans, from at least two folds."
)


def upper_bound(
    error: float,
    *,
    n: int,
    d: int,
    eta: float = 0.05,
    method: Method = "auto",
    theta2: float | None = None,
    l_max: float = 1.0,
    dropout: float = 0.5,
) -> float:
    """Worst-case error: the observed error plus Delta.

    Parameters
    ----------
    error : float
        Observed mean loss, at least 0; for a classifier the balanced error, in [0, 1].
    n : int
        Scans; with unequal groups twice the smaller one.
    d : int
        Weights of the rule, a fitted threshold counted as one.
    eta : float
        Probability, in (0, 1), with which the statement may fail.
    method : {"auto", "general", "boundary", "vapnik", "pac_bayes"}
        The bound. *auto* looks at `d` alone: general position below 8 weights, PAC-Bayes from 8 on. (Up to 3 and from 8 on
        is the published choice. Between, both are about equally wide, and the count needs no norm of the weights and holds
        for the rule itself instead of a randomised one.)
    theta2 : float, optional
        Squared norm of the weights, for PAC-Bayes: features of unit variance, margin 1.
    l_max : float
        Largest loss of one scan, for PAC-Bayes.
    dropout : float
        Share of weights dropped, in [0, 1), for PAC-Bayes.

    Returns
    -------
    float
        At least `error`; above 1 it says nothing.

    Raises
    ------
    SettingError
        When a value is out of range, or PAC-Bayes has no norm of the weights.

    Examples
    --------
    >>> round(upper_bound(0.2, n=100, d=2), 4)
    0.4036
    """
    _check(error=error, n=n, d=d, eta=eta)
    if method not in METHODS:
        raise SettingError(f"There is no bound '{method}'. Choose one of {', '.join(METHODS)}.")
    chosen = chosen_method(d) if method == "auto" else method
    if chosen == "pac_bayes":
        if theta2 is None:
            raise SettingError(
                f"The PAC-Bayes bound (chosen for d >= {FROM_PAC_BAYES}, here {d}) needs theta2, the squared norm of the "
                "weights. Hand it in, or choose method='general'."
            )
        return pac_bayes(error, n=n, theta2=theta2, eta=eta, l_max=l_max, dropout=dropout)
    if chosen == "vapnik":
        return error + vapnik_delta(n, d, eta=eta)
    count = log_dichotomies(n, d) if chosen == "general" else log_boundary_dichotomies(n, d)
    return error + float(np.sqrt((count - np.log(eta)) / (2 * n)))


def chosen_method(d: int) -> Method:
    """The bound taken for d weights, before any data are seen."""
    return "pac_bayes" if d >= FROM_PAC_BAYES else "general"


def _check(*, error: float, n: int, d: int, eta: float) -> None:
    if not (np.isfinite(error) and error >= 0):
        raise SettingError(f"The observed error is {error}; it must be finite and at least 0.")
    for name, value in (("n", n), ("d", d)):
        if value != int(value) or value < 1:
            raise SettingError(f"A bound was asked for {name} = {value}; it must be a whole number of at least 1.")
    if not 0 < eta < 1:
        raise SettingError(f"eta is {eta}; it is a probability of failure, above 0 and below 1, usually 0.05.")


@lru_cache(maxsize=1024)
def log_dichotomies(n: int, d: int) -> float:
    """Ln of N(n, d) = 2 sum_{k<d} C(n-1, k): splits of n points in general position by planes through the origin."""
    return float(np.log(2) + logsumexp(_log_choose(n - 1, np.arange(min(d, n)))))


def log_boundary_dichotomies(n: int, d: int) -> float:
    """Ln of Q(n, d) = 2 sum_{z<d} C(n, z) sum_{k=1}^{d-z} C(n-1-z, k-1): points may also lie on the plane."""
    terms = [
        _log_choose(n, np.array([z])) + logsumexp(_log_choose(n - 1 - z, np.arange(min(d - z, n - z))))
        for z in range(min(d, n))
    ]
    return float(np.log(2) + logsumexp(np.concatenate(terms)))


def _log_choose(n: int, k: np.ndarray) -> np.ndarray:
    return np.asarray(gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1))


def vapnik_delta(n: int, d: int, *, eta: float) -> float:
    """Delta of Vapnik's bound; the bracket falls again beyond d + 1 = 2n, where it no longer bounds: it is held there."""
    h = min(d + 1, 2 * n)
    return float(np.sqrt(abs(h * (np.log(2 * n / h) + 1) - np.log(eta / 4)) / n))


def pac_bayes(error: float, *, n: int, theta2: float, eta: float, l_max: float = 1.0, dropout: float = 0.5) -> float:
    """Worst-case error by the PAC-Bayes bound with dropout, best over a grid of lambda that the union bound pays for.

    The theorem is about the rule with random weights around theta; used for the rule itself it is the published
    convention, and one more reason to hand in held-out errors only.
    """
    for name, value, lowest, below in (("theta2", theta2, 0, np.inf), ("dropout", dropout, 0, 1)):
        if not lowest <= value < below:
            raise SettingError(f"{name} is {value}; it must be at least {lowest} and below {below}.")
    if not 0 < l_max < np.inf:
        raise SettingError(f"l_max is {l_max}; the largest loss of one scan must be above 0.")
    cost = LAMBDAS * l_max / n * ((1 - dropout) / 2 * theta2 + np.log(len(LAMBDAS) / eta))
    return float(((error + cost) / (1 - 1 / (2 * LAMBDAS))).min())


def mean_bound(
    errors: np.ndarray,
    n_eff: np.ndarray,
    *,
    d: int,
    eta: float = 0.05,
    theta2: np.ndarray | None = None,
    l_max: np.ndarray | None = None,
) -> float:
    """Mean over folds of held-out error plus Delta: the cross-validated upper bound.

    Delta is taken at the mean error: the PAC-Bayes Delta depends on the error, and its best lambda chosen fold by fold would
    follow the noise of small folds.

    Parameters
    ----------
    errors : ndarray
        (fold,) held-out errors; a classifier's must be balanced (:func:`~nilatent.analysis.held_out.balanced_errors`).
    n_eff : ndarray
        (fold,) scans of the training part; with groups, twice the smaller one.
    d, eta
        As in :func:`upper_bound`.
    theta2 : ndarray, optional
        (fold,) squared norm of the weights; needed from 8 weights on.
    l_max : ndarray, optional
        (fold,) largest loss of one scan, for PAC-Bayes; left out, 1.

    Returns
    -------
    float
        Mean worst-case error.

    Raises
    ------
    SettingError
        When there are fewer than two folds, or shapes or values do not fit.
    """
    errors, n_eff = np.asarray(errors, dtype=float), np.asarray(n_eff)
    norms = [None] * n_eff.size if theta2 is None else [float(value) for value in theta2]
    largest = np.ones(n_eff.size) if l_max is None else np.asarray(l_max, dtype=float)
    if errors.ndim != 1 or errors.shape != n_eff.shape or not len(errors) == len(norms) == len(largest):
        raise SettingError(f"{errors.shape} errors, {n_eff.shape} sizes, {len(norms)} norms: give one each per fold.")
    if len(errors) < 2:
        raise SettingError(RESUBSTITUTION)
    if not (np.isfinite(errors).all() and (errors >= 0).all()):
        raise SettingError("A fold has a missing or negative error. Give the held-out error of every fold.")
    error = float(errors.mean())
    folds = zip(n_eff, norms, largest, strict=True)
    return float(np.mean([upper_bound(error, n=int(n), d=d, eta=eta, theta2=t, l_max=lm) for n, t, lm in folds]))


def badge(errors: np.ndarray, n_eff: np.ndarray, *, d: int, eta: float = 0.05, theta2: np.ndarray | None = None) -> str:
    """``"bound-validated"`` when the worst-case error stays below chance, else ``"inconclusive"``; never a decision.

    Parameters
    ----------
    errors : ndarray
        (fold,) **balanced** error on the held-out scans of each fold. The raw error would certify a constant rule when
        groups are unequal.
    n_eff : ndarray
        (fold,) twice the smaller group of the training part of each fold.
    d : int
        Weights of the rule, a fitted threshold counted as one: 2 for a cut on one score.
    eta : float
        Probability of failure, in (0, 1).
    theta2 : ndarray, optional
        (fold,) squared norm of the weights; needed from 8 weights on.

    Returns
    -------
    str
        One of the two words.

    Raises
    ------
    SettingError
        As :func:`mean_bound`.

    Examples
    --------
    >>> badge(np.full(10, 0.15), np.full(10, 90), d=2), badge(np.full(10, 0.35), np.full(10, 90), d=2)
    ('bound-validated', 'inconclusive')
    """
    return VALIDATED if mean_bound(errors, n_eff, d=d, eta=eta, theta2=theta2) < CHANCE else INCONCLUSIVE


def badges(errors: np.ndarray, n_eff: np.ndarray, *, d: int, eta: float = 0.05) -> np.ndarray:
    """(region,) :func:`badge` of every column of (fold, region) balanced held-out errors that share folds and `d`."""
    return np.array([badge(column, n_eff, d=d, eta=eta) for column in np.asarray(errors, dtype=float).T], dtype=str)


def exact_limit(misses: int, trials: int, *, eta: float = 0.05) -> float:
    """Largest error rate that as few misses are still likely under: the one-sided exact binomial limit at level 1 - eta."""
    if not 0 <= misses <= trials or trials < 1:
        raise SettingError(f"{misses} misses in {trials} trials: trials are at least 1, misses from 0 to trials.")
    return 1.0 if misses == trials else float(beta.ppf(1 - eta, misses + 1, trials - misses))
