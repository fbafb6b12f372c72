"""SAR, statistical agnostic regression: whether a prediction beats the training mean in the worst case.

The loss is the epsilon-insensitive one in units of the target's SD. A certificate needs the permutation p-value of
:func:`~nilatent.analysis.held_out.prediction_p` as well.

References
----------
Gorriz et al. 2024, arXiv:2402.15213.
"""

from dataclasses import dataclass

import numpy as np
from scipy.stats import iqr
from sklearn.svm import SVR

from nilatent.analysis import bounds, stats
from nilatent.analysis.discriminability import FoldLatents, of_fold, unit_scale
from nilatent.analysis.held_out import Certificate, check_folds, n_weights, parts
from nilatent.errors import SettingError

# A tenth of the SD when y is Gaussian, whose interquartile range is 1.349 SD.
IQR_PER_EPSILON = 13.49


def tube_loss(residuals: np.ndarray, epsilon: float) -> tuple[float, float]:
    """Mean excess of the residuals over epsilon: among those that exceed it (the published loss), and among all.

    The first is what SAR compares (0.763 for the mean of a Gaussian y, in SD); it can fall while a rule gets worse, because
    small new errors dilute large old ones. The second is the mean loss, which cannot.
    """
    excess = np.maximum(np.abs(residuals) - epsilon, 0)
    outside = excess[excess > 0]
    return float(outside.mean()) if len(outside) else 0.0, float(excess.mean())


@dataclass(frozen=True, eq=False)
class _HeldOut:
    """A fold of a regression, in SD of the training part."""

    truth: np.ndarray
    predicted: np.ndarray
    epsilon: float
    n_train: int
    theta2: float
    l_max: float


def certify_predictions(
    truth: np.ndarray, predicted: np.ndarray, folds: np.ndarray, *, d: int = 2, eta: float = 0.05
) -> Certificate:
    """Certificate of any regressor from its held-out predictions, by SAR's losses.

    Parameters
    ----------
    truth, predicted : ndarray
        (scan,) target and its held-out prediction, in the same unit.
    folds : ndarray
        (scan,) fold in which each scan was held out.
    d : int
        Weights that count, below 8. A non-linear regressor enters as one score with one threshold, 2, the published
        convention.
    eta : float
        Probability of failure, in (0, 1).

    Returns
    -------
    Certificate
        In SD of the target.
    """
    check_folds(folds)
    folded = []
    for train, test in parts(folds):
        centre, scale, epsilon = _units(truth[train])
        folded.append(
            _HeldOut((truth[test] - centre) / scale, (predicted[test] - centre) / scale, epsilon, len(train), 0.0, 1.0)
        )
    if d >= bounds.FROM_PAC_BAYES:
        raise SettingError(f"d = {d} needs the norm of the weights: use sar() for a linear regressor.")
    return _regression(folded, d=d, eta=eta)


def sar(
    features: FoldLatents,
    target: np.ndarray,
    folds: np.ndarray,
    *,
    confounds: np.ndarray | None = None,
    eta: float = 0.05,
) -> Certificate:
    """Statistical agnostic regression: a linear epsilon support vector regression against the training mean.

    C = 1 and epsilon = IQR(y) / 13.49, on features and a target of unit variance; confounds, scales, epsilon and weights
    come from the training part of each fold.

    Parameters
    ----------
    features : ndarray or Sequence of ndarray
        (scan, feature), or one such array per fold: the latents by the model that has not seen the scans of the fold.
    target : ndarray
        (scan,) what is predicted.
    folds : ndarray
        (scan,) fold in which each scan is held out.
    confounds : ndarray or None
        (scan, confound) removed from features and target.
    eta : float
        Probability of failure, in (0, 1).

    Returns
    -------
    Certificate
        `error` and `bound` are the published loss (:func:`tube_loss`); it holds when both losses plus Delta are below those
        of the training mean.
    """
    check_folds(folds)
    folded = []
    for number, (train, test) in enumerate(parts(folds)):
        x = unit_scale(stats.residualise(of_fold(features, number), confounds, fit_rows=train), train)
        y = stats.residualise(target, confounds, fit_rows=train)[:, 0]
        centre, scale, epsilon = _units(y[train])
        y = (y - centre) / scale
        machine = SVR(kernel="linear", C=1.0, epsilon=epsilon).fit(x[train], y[train])
        norm = float(np.square(machine.coef_).sum() + np.square(machine.intercept_).sum())
        # The loss is not bounded: the largest one of the training mean stands for its range.
        largest = max(float(np.abs(y[train]).max()) - epsilon, 1.0)
        folded.append(_HeldOut(y[test], machine.predict(x[test]), epsilon, len(train), norm, largest))
    return _regression(folded, d=n_weights(features), eta=eta)


def _units(y: np.ndarray) -> tuple[float, float, float]:
    """Mean, SD, and epsilon in SD."""
    scale = float(y.std())
    if not scale > 1e-12 * (1 + abs(float(y.mean()))):
        raise SettingError("The target is constant in a training part, so there is nothing to predict. Choose another.")
    return float(y.mean()), scale, float(iqr(y)) / IQR_PER_EPSILON / scale


def _regression(folded: list[_HeldOut], *, d: int, eta: float) -> Certificate:
    of_rule = np.array([tube_loss(part.truth - part.predicted, part.epsilon) for part in folded])
    of_mean = np.array([tube_loss(part.truth, part.epsilon) for part in folded]).mean(axis=0)
    sizes, norms = np.array([part.n_train for part in folded]), np.array([part.theta2 for part in folded])
    largest = np.array([part.l_max for part in folded])
    worst = [bounds.mean_bound(loss, sizes, d=d, eta=eta, theta2=norms, l_max=largest) for loss in of_rule.T]
    holds = bool(worst[0] < of_mean[0] and worst[1] < of_mean[1])
    return Certificate(float(of_rule[:, 0].mean()), worst[0], float(of_mean[0]), holds, np.nan, float(sizes.mean()))
