"""What values tell of a label of held-out scans, such as their site: two classifiers, and chance by permutation.

The linear one sees means; the other sees what features do together and how far they spread as well. Both are fitted on
training scans alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from nilatent.errors import SettingError

LINEAR, NON_LINEAR = "linear", "non-linear"
MODELS = (LINEAR, NON_LINEAR)
BATCH = 200
LIMIT = 0.95


@dataclass(frozen=True)
class Signal:
    """How well the label of held-out scans was called.

    Parameters
    ----------
    accuracy : float
        Balanced accuracy: mean over labels of the share called right.
    chance : float
        Its mean once labels are shuffled.
    limit : float
        What shuffled labels exceed in one of twenty draws.
    p_value : float
        One-sided, (1 + b) / (1 + B).
    """

    accuracy: float
    chance: float
    limit: float
    p_value: float


def call_labels(
    train: np.ndarray, labels: Sequence[str] | np.ndarray, new: np.ndarray, *, model: str = LINEAR
) -> np.ndarray:
    """Labels of new scans, by a classifier that weighs all labels alike.

    Parameters
    ----------
    train, new : ndarray
        (scan, feature) of training scans, and of scans to call.
    labels : Sequence[str]
        (scan,) label of each training scan.
    model : str
        ``"linear"``, multinomial logistic regression, or ``"non-linear"``, support vectors with a Gaussian kernel.

    Returns
    -------
    ndarray
        (scan,) str.

    Raises
    ------
    SettingError
        When the model is unknown, or the training scans have one label only.
    """
    if model not in MODELS:
        raise SettingError(f"There is no model '{model}'; the models are {', '.join(MODELS)}.")
    labels = np.asarray(labels, dtype=str)
    if len(np.unique(labels)) < 2:
        raise SettingError("The training scans have one label only, so nothing can be told apart. Use fewer folds.")
    return np.asarray(_classifier(model).fit(train, labels).predict(new), dtype=str)


def _classifier(model: str) -> Pipeline:
    if model == LINEAR:
        return make_pipeline(StandardScaler(), LogisticRegression(C=1.0, class_weight="balanced", max_iter=5000))
    return make_pipeline(StandardScaler(), SVC(C=10.0, kernel="rbf", class_weight="balanced"))


def judge(called: np.ndarray, truth: np.ndarray, orders: np.ndarray) -> Signal:
    """Balanced accuracy of calls, against labels that are shuffled while the calls stay.

    Parameters
    ----------
    called, truth : ndarray
        (scan,) label that was called, and the true one.
    orders : ndarray
        (permutation, scan) from :func:`~nilatent.analysis.stats.permutations`, within folds: calls of different folds come
        from different classifiers.

    Returns
    -------
    Signal
        Without a relation of calls and labels p is uniform, or larger where ties count.
    """
    names, codes = np.unique(truth, return_inverse=True)
    right = (np.asarray(called)[:, None] == names) / (np.bincount(codes) * len(names))
    rows = np.arange(len(codes))
    accuracy = float(right[rows, codes].sum())
    drawn = np.concatenate([right[rows, shuffled].sum(axis=1) for shuffled in _shuffled(codes, orders)])
    # Sums in another order differ by rounding; a tie counts as reached.
    reached = int((drawn >= accuracy - 1e-9).sum())
    return Signal(accuracy, float(drawn.mean()), float(np.quantile(drawn, LIMIT)), (1 + reached) / (1 + len(drawn)))


def judge_numbers(predicted: np.ndarray, truth: np.ndarray, orders: np.ndarray) -> Signal:
    """The same of a number: the correlation of prediction and truth stands where the balanced accuracy stood."""
    left, right = predicted - predicted.mean(), truth - truth.mean()
    size = float(np.linalg.norm(left) * np.linalg.norm(right))
    if size <= 1e-12 * max(1.0, float(np.linalg.norm(truth))):
        return Signal(0.0, 0.0, 0.0, 1.0)
    observed = float(left @ right) / size
    drawn = np.concatenate([shuffled @ left / size for shuffled in _shuffled(right, orders)])
    reached = int((drawn >= observed - 1e-9).sum())
    return Signal(observed, float(drawn.mean()), float(np.quantile(drawn, LIMIT)), (1 + reached) / (1 + len(drawn)))


def _shuffled(values: np.ndarray, orders: np.ndarray) -> Iterator[np.ndarray]:
    """(batch, scan) values in the given orders, batch after batch."""
    for start in range(0, len(orders), BATCH):
        yield values[orders[start : start + BATCH]]
