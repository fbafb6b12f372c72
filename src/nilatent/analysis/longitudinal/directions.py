"""Latents seen along directions that mean something: a score that models of different folds share.

A latent of one model is not that of another, but the place of a scan between two groups, or along age, is. A direction is
learned from the training scans of each model as a pattern; the score of a scan is the place along it that fits its latents
best (generalised least squares), so that a move by the pattern changes the score by one.

References
----------
Haufe et al. 2014, doi:10.1016/j.neuroimage.2013.10.067.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pandas as pd

from nilatent.analysis.contrast import MIN_PER_GROUP, NotComparableError, confound_matrix, first_scans
from nilatent.analysis.directions import covariate_step, group_step
from nilatent.analysis.latent_space import LatentSpace
from nilatent.analysis.longitudinal.visits import LongitudinalConfig, Visits
from nilatent.analysis.residuals import residualise

# Of the SD of the latent that varies most, at which one that does not vary counts.
FLAT = 1e-6


def direction_scores(
    spaces: Sequence[LatentSpace], scans: pd.DataFrame, visits: Visits, config: LongitudinalConfig
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Scores of scans that a model has not seen, along every contrast and every numeric covariate.

    Parameters
    ----------
    spaces : Sequence of LatentSpace
        Each scores the scans it has not seen.
    scans : DataFrame
        Index scan_id.
    visits : Visits
        For its contrasts.
    config : LongitudinalConfig
        For its covariates.

    Returns
    -------
    scores : DataFrame
        (scan, direction), scans that a model has not seen; 1 is the step from the second group of a contrast to the first,
        or one unit of the covariate. Means of models are made equal.
    refused : dict[str, str]
        Direction to the reason why a model could not learn it.
    """
    wanted = _wanted(scans, visits, config)
    parts: list[pd.DataFrame] = []
    refused: dict[str, str] = {}
    for space in spaces:
        columns: dict[str, np.ndarray] = {}
        try:
            centre, within = _spread(space, scans, visits, config)
        except NotComparableError as error:
            refused |= dict.fromkeys(wanted, str(error))
            continue
        for name, step_of in wanted.items():
            try:
                if name in space.told:
                    raise NotComparableError("the decoder is told of it, so the latents need not hold it")
                columns[name] = score(space.coordinates[space.unseen] - centre, step_of(space), within)
            except NotComparableError as error:
                refused[name] = str(error)
        parts.append(pd.DataFrame(columns, index=space.scans[space.unseen]))
    scores = pd.concat(parts) if parts else pd.DataFrame()
    # Of a direction that one model lacks, some subjects would have no score.
    return scores.drop(columns=[name for name in refused if name in scores]), refused


def score(coordinates: np.ndarray, pattern: np.ndarray, within: np.ndarray) -> np.ndarray:
    """(scan,) how many times a pattern is in the coordinates, by generalised least squares.

    Parameters
    ----------
    coordinates : ndarray
        (scan, coordinate) less their centre.
    pattern : ndarray
        (coordinate,) that counts 1.
    within : ndarray
        (coordinate, coordinate) covariance of what the pattern does not explain.

    Raises
    ------
    NotComparableError
        When the pattern is empty.

    Examples
    --------
    >>> score(np.array([[2.0, 0.0], [0.0, 2.0]]), np.array([1.0, 1.0]), np.diag([1.0, 3.0])).round(3).tolist()
    [1.5, 0.5]
    """
    weights = np.linalg.solve(within, pattern)
    size = float(pattern @ weights)
    if not size > 0:
        raise NotComparableError("no latent changes along it")
    return np.asarray(coordinates @ weights / size)


def _spread(
    space: LatentSpace, scans: pd.DataFrame, visits: Visits, config: LongitudinalConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Mean of the first training scan of each subject, and covariance of these beside covariates, site and group."""
    # scikit-learn is slow to import, and most users of this file do without.
    from sklearn.covariance import ledoit_wolf

    table = scans.loc[space.scans[space.training]]
    rows = first_scans(table)
    z, held = space.coordinates[space.training][rows], table.iloc[rows]
    names = [
        *config.covariates,
        *([config.site] if config.site else []),
        *([config.group] if visits.contrasts else []),
    ]
    confounds = confound_matrix(held, names, levels=[name for name in (config.site, config.group) if name])
    whole = np.isfinite(confounds).all(axis=1)
    if whole.sum() < MIN_PER_GROUP:
        raise NotComparableError(f"{whole.sum()} training subjects have all covariates; {MIN_PER_GROUP} are needed")
    left = residualise(z[whole], confounds[whole])
    # Shrunk on a scale on which latents of any unit are equal.
    size = np.maximum(left.std(axis=0), FLAT * left.std(axis=0).max(initial=0.0)) + np.finfo(float).tiny
    return z[whole].mean(axis=0), ledoit_wolf(left / size, assume_centered=True)[0] * np.outer(size, size)


def _wanted(
    scans: pd.DataFrame, visits: Visits, config: LongitudinalConfig
) -> dict[str, Callable[[LatentSpace], np.ndarray]]:
    grouped = (config.group,) if visits.contrasts else ()
    wanted: dict[str, Callable[[LatentSpace], np.ndarray]] = {}
    for name in dict.fromkeys(config.covariates):
        others = (*(other for other in config.covariates if other != name), *grouped)
        if pd.api.types.is_numeric_dtype(scans[name]) and not pd.api.types.is_bool_dtype(scans[name]):
            wanted[name] = partial(_towards, scans=scans, column=name, others=others, site=config.site)
    for case, reference in visits.contrasts:
        wanted[f"{case}:{reference}"] = partial(_between, scans=scans, pair=(case, reference), config=config)
    return wanted


def _towards(space: LatentSpace, *, scans: pd.DataFrame, column: str, others: tuple[str, ...], site: str) -> np.ndarray:
    return covariate_step(space, scans, column, others=others, site=site)


def _between(
    space: LatentSpace, *, scans: pd.DataFrame, pair: tuple[str, str], config: LongitudinalConfig
) -> np.ndarray:
    return group_step(space, scans, config.group, *pair, others=config.covariates, site=config.site)
