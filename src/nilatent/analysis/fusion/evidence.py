"""What heads of several modalities say of one scan, put on one scale, averaged or weighted.

Evidence adds up where probabilities do not: it is the log odds of the second class, or of each cut between ordered levels
being passed; the log probability of each of several classes; and a number itself.

References
----------
Wolpert 1992 (stacking), doi:10.1016/S0893-6080(05)80023-1. Breiman 1996 (stacked regressions, weights at least 0),
doi:10.1007/BF00117832. Genest & Zidek 1986 (logarithmic pool), doi:10.1214/ss/1177013825.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize, nnls
from scipy.special import expit, logit, softmax

from nilatent.analysis.prediction.heads import probabilities
from nilatent.analysis.prediction.inner import Kind, encode

# No head is surer than this: one that is certain and wrong would outvote all others.
SURE = 1e-6


def evidence(scores: np.ndarray, kind: Kind) -> np.ndarray:
    """(scan, output) evidence of (scan, class) probabilities, or of (scan, 1) numbers.

    Examples
    --------
    >>> evidence(np.array([[0.5, 0.5], [0.1, 0.9]]), "binary").round(2)
    array([[0. ],
           [2.2]])
    """
    if kind == "continuous":
        return np.asarray(scores, dtype=np.float64)
    if kind == "multi-class":
        logs = np.log(np.maximum(scores, SURE))
        return np.asarray(logs - logs.mean(axis=1, keepdims=True))
    passed = 1 - np.cumsum(scores, axis=1)[:, :-1]
    return np.asarray(logit(np.clip(passed, SURE, 1 - SURE)))


def scores_of(said: np.ndarray, kind: Kind) -> np.ndarray:
    """(scan, class) probabilities, or (scan, 1) numbers, of (scan, output) evidence: the way back."""
    return np.asarray(said) if kind == "continuous" else probabilities(said, kind)


def average(said: np.ndarray) -> np.ndarray:
    """(scan, output) mean evidence of the modalities that a scan has.

    Parameters
    ----------
    said : ndarray
        (scan, modality, output); NaN where a scan lacks a modality. Every scan has one at least.
    """
    known = np.isfinite(said)
    return np.asarray(np.where(known, said, 0.0).sum(axis=1) / known.sum(axis=1))


@dataclass(frozen=True, eq=False)
class Stack:
    """One weight per modality, learnt on scans that the heads had not seen.

    Parameters
    ----------
    weights : ndarray
        (modality,) at least 0: a head that says the opposite of the truth on inner held-out scans is useless, not useful.
    intercept : ndarray
        (output,).
    """

    weights: np.ndarray
    intercept: np.ndarray

    def say(self, said: np.ndarray) -> np.ndarray:
        """(scan, output) weighted sum of (scan, modality, output) evidence."""
        return np.asarray(np.einsum("nmk,m->nk", said, self.weights) + self.intercept)


def fit_stack(said: np.ndarray, y: np.ndarray, kind: Kind, *, n_levels: int) -> Stack:
    """Learn the weights of modalities: least squares of a number, else logistic, with weights of at least 0.

    Sound evidence of independent modalities is summed with weights near 1, so the logistic weights get a normal prior of
    that size; without it, classes that are told apart wholly would drive them to infinity.

    Parameters
    ----------
    said : ndarray
        (scan, modality, output) by heads that have not seen the scan; nothing missing.
    y : ndarray
        (scan,) codes or numbers.
    kind : {"binary", "multi-class", "ordinal", "continuous"}
        Of the target.
    n_levels : int
        Classes; ignored for a number.

    Returns
    -------
    Stack
        The weights.
    """
    n, n_modalities, n_outputs = said.shape
    if kind == "continuous":
        middle, level = said[:, :, 0].mean(axis=0), y.mean()
        weights = nnls(said[:, :, 0] - middle, y - level)[0]
        return Stack(weights, np.array([level - middle @ weights]))
    shown = encode(np.asarray(y), kind, n_levels)

    def objective(values: np.ndarray) -> tuple[float, np.ndarray]:
        weights, intercept = values[:n_modalities], values[n_modalities:]
        linear = np.einsum("nmk,m->nk", said, weights) + intercept
        if kind == "multi-class":
            missed = softmax(linear, axis=1) - shown
            loss = np.logaddexp.reduce(linear, axis=1) - (shown * linear).sum(axis=1)
        else:
            missed = expit(linear) - shown
            loss = (np.logaddexp(0, linear) - shown * linear).sum(axis=1)
        slope = np.einsum("nmk,nk->m", said, missed) + weights
        return float(loss.sum() + weights @ weights / 2) / n, np.append(slope, missed.sum(axis=0)) / n

    bounds = [(0.0, None)] * n_modalities + [(None, None)] * n_outputs
    start = np.append(np.full(n_modalities, 1 / n_modalities), np.zeros(n_outputs))
    found = minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds).x
    return Stack(found[:n_modalities], found[n_modalities:])


def loss(scores: np.ndarray, y: np.ndarray, kind: Kind) -> np.ndarray:
    """(...,) squared error of numbers, or minus the log probability of the true class.

    Parameters
    ----------
    scores : ndarray
        (..., class) probabilities, or (..., 1) numbers.
    y : ndarray
        (...,) codes or numbers, as long as the last axis but one of the scores.
    """
    if kind == "continuous":
        return np.asarray(np.square(scores[..., 0] - y))
    told = np.take_along_axis(scores, np.broadcast_to(y, scores.shape[:-1])[..., None].astype(np.intp), axis=-1)
    return np.asarray(-np.log(np.maximum(told[..., 0], SURE)))
