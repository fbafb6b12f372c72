"""Patterns of a table of coordinates: what changes in them when a column, or the score of a linear model, changes.

References
----------
Haufe et al. 2014, doi:10.1016/j.neuroimage.2013.10.067. Ledoit & Wolf 2004, doi:10.1016/S0047-259X(03)00096-4.
"""

import numpy as np

from nilatent.analysis import stats
from nilatent.analysis.contrast import NotComparableError


def forward_pattern(coordinates: np.ndarray, column: np.ndarray, confounds: np.ndarray | None) -> np.ndarray:
    """Slope of every coordinate on a column, given the confounds: least squares.

    Parameters
    ----------
    coordinates : ndarray
        (scan, coordinate).
    column : ndarray
        (scan,) numbers; of a group 1 and 0.
    confounds : ndarray or None
        (scan, confound) without intercept.

    Returns
    -------
    ndarray
        (coordinate,) in units of the coordinate per unit of the column.

    Raises
    ------
    NotComparableError
        When the column is constant once the confounds are removed.

    Examples
    --------
    >>> column = np.arange(5.0)
    >>> forward_pattern(np.outer(column, [2.0, -1.0]) + 7, column, None).round(6).tolist()
    [2.0, -1.0]
    """
    if not stats.varying(column, confounds)[0]:
        raise NotComparableError("the column is constant, or the confounds explain it without remainder")
    left = stats.residualise(column, confounds)[:, 0]
    return np.asarray(left @ coordinates / (left @ left))


def discriminant_pattern(coordinates: np.ndarray, is_case: np.ndarray, confounds: np.ndarray | None) -> np.ndarray:
    """What changes in the coordinates when the score of a linear discriminant goes from one group to the other.

    The weights w are those of Fisher's discriminant with a shrunken covariance; the pattern is S w (Haufe et al. 2014) with
    S the covariance of the coordinates, scaled by the difference of the groups' mean scores.

    Parameters
    ----------
    coordinates : ndarray
        (scan, coordinate).
    is_case : ndarray
        (scan,) bool.
    confounds : ndarray or None
        (scan, confound), removed.

    Returns
    -------
    ndarray
        (coordinate,) cases minus reference.
    """
    # scikit-learn is slow to import, and most users of this file do without.
    from sklearn.covariance import ledoit_wolf

    label = is_case.astype(float)
    difference = forward_pattern(coordinates, label, confounds)
    left = stats.residualise(coordinates, confounds)
    within = left - np.outer(stats.residualise(label, confounds)[:, 0], difference)
    weights = np.linalg.solve(ledoit_wolf(within, assume_centered=True)[0], difference)
    pattern = left.T @ (left @ weights) / len(left)
    return np.asarray(pattern * (weights @ difference) / (weights @ pattern))


def pls_pattern(coordinates: np.ndarray, column: np.ndarray, confounds: np.ndarray | None) -> np.ndarray:
    """What goes along with the score of the coordinates whose covariance with a column is largest: one SD of the score.

    Parameters
    ----------
    coordinates, column, confounds
        As in :func:`forward_pattern`.

    Returns
    -------
    ndarray
        (coordinate,) towards higher values of the column: the loadings of the first component of partial least squares, not
        its weights, times the SD of its score.
    """
    from sklearn.cross_decomposition import PLSRegression

    left, right = stats.residualise(coordinates, confounds), stats.residualise(column, confounds)
    fitted = PLSRegression(n_components=1, scale=False).fit(left, right[:, 0])
    towards = np.sign(fitted.x_scores_[:, 0] @ right[:, 0])
    return np.asarray(towards * fitted.x_scores_[:, 0].std(ddof=1) * fitted.x_loadings_[:, 0])
