"""What is decided inside the training part: folds over its subjects, weights of its classes, the threshold of a decision."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd

from nilatent.errors import SettingError

Kind = Literal["binary", "multi-class", "ordinal", "continuous"]


def subject_ranks(subjects: Sequence[object] | np.ndarray, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(scan,) code of the subject, and (subject,) a random rank that does not depend on labels."""
    codes, names = pd.factorize(np.asarray(subjects))
    return codes, np.random.default_rng(seed).permutation(len(names))


def inner_folds(y: np.ndarray | None, codes: np.ndarray, ranks: np.ndarray, *, n_inner: int) -> np.ndarray:
    """(scan,) inner fold: subjects dealt in random order, class after class, so that every fold has its share of each.

    Parameters
    ----------
    y : ndarray or None
        (scan,) class; a subject with several counts under the highest. None deals without looking.
    codes, ranks : ndarray
        From :func:`subject_ranks`.
    n_inner : int
        Folds; fewer when there are fewer subjects.
    """
    if n_inner < 2 or len(ranks) < 2:
        raise SettingError(
            f"{n_inner} inner folds over {len(ranks)} subjects leave nothing to judge by. Ask for 2 folds at least, of 2 "
            "subjects at least."
        )
    of_subject = np.zeros(len(ranks), dtype=np.intp)
    if y is not None:
        np.maximum.at(of_subject, codes, np.asarray(y, dtype=np.intp))
    dealt = np.empty(len(ranks), dtype=np.intp)
    dealt[np.lexsort((ranks, of_subject))] = np.arange(len(ranks)) % min(n_inner, len(ranks))
    return np.asarray(dealt[codes])


def encode(y: np.ndarray, kind: Kind, n_levels: int) -> np.ndarray:
    """(..., output) 0/1: the second class, each class by itself, or each cut between ordered levels passed."""
    if kind == "multi-class":
        return np.asarray(y[..., None] == np.arange(n_levels), dtype=np.float64)
    return np.asarray(y[..., None] > np.arange(n_levels - 1), dtype=np.float64)


def balanced_weights(y: np.ndarray, taking_part: np.ndarray) -> np.ndarray:
    """(scan, column) weights that sum to 1, every class that is present with the same share.

    Parameters
    ----------
    y : ndarray
        (scan, column) codes.
    taking_part : ndarray
        (scan, column) bool.
    """
    weights = np.zeros(y.shape)
    for code in range(int(y.max()) + 1):
        mine = (y == code) & taking_part
        weights += mine / np.maximum(mine.sum(axis=0), 1)
    return np.asarray(weights / weights.sum(axis=0))


def best_threshold(score: np.ndarray, y: np.ndarray) -> float:
    """Threshold on the score with the largest balanced accuracy: the middle of all that are within one standard error of it.

    The single best cut follows the noise of a few scans and costs one to two per cent of accuracy on new ones. A threshold at
    the share of the classes would follow how many cases a fold leaves for training, and so call fewest in the folds that
    hold most: useless features would be worse than guessing.

    Parameters
    ----------
    score : ndarray
        (scan,) probability of the second class, held out.
    y : ndarray
        (scan,) 0 or 1.

    Returns
    -------
    float
        The median score where nothing separates better than calling all alike.

    Examples
    --------
    >>> best_threshold(np.array([0.1, 0.2, 0.6, 0.9]), np.array([0, 0, 1, 1]))
    0.4
    """
    middle = float(np.median(score))
    ordered = np.unique(score)
    case, reference = np.sort(score[y == 1]), np.sort(score[y == 0])
    if len(case) == 0 or len(reference) == 0 or len(ordered) < 2:
        return middle
    cuts = (ordered[1:] + ordered[:-1]) / 2
    spared = np.searchsorted(reference, cuts) / len(reference)
    found = 1 - np.searchsorted(case, cuts) / len(case)
    gained = found + spared - 1
    best = int(gained.argmax())
    if gained[best] <= 0:
        return middle
    error = np.sqrt(found[best] * (1 - found[best]) / len(case) + spared[best] * (1 - spared[best]) / len(reference))
    return float(np.median(cuts[gained >= gained[best] - error - 1e-12]))
