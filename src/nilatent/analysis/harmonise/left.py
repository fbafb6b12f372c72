"""What sites still do to held-out values, and what became of the effects that were to stay: feature by feature, within folds."""

from dataclasses import dataclass

import numpy as np

from nilatent.analysis.combat import ADJUSTED
from nilatent.analysis.contrast import MIN_DEGREES
from nilatent.analysis.harmonise.folds import AFTER, BEFORE, STATES, Harmonised, Kept, Usable

# Fewer scans of a site than this say little of its spread.
MIN_FOR_SPREAD = 8
MIN_FEATURES = 3


@dataclass(frozen=True)
class Slopes:
    """Effect of a kept covariate on each feature: pattern over features and size, after against before.

    Parameters
    ----------
    pattern : float
        Correlation over features; NaN when there are fewer than three.
    size : float
        Root mean square of the slopes after, per that before: 1 where the effect is neither reduced nor increased.
    """

    pattern: float
    size: float


def judged_rows(made: Harmonised, scans: Usable) -> np.ndarray:
    """(scan,) bool: harmonised, and the first scan of its subject."""
    return np.asarray(scans.first & (made.flags == ADJUSTED))


def pools(made: Harmonised, scans: Usable) -> list[np.ndarray]:
    """Positions of judged scans, fold by fold.

    Over all folds together the errors of the sites' means would cancel: what one fold holds out, the others learn from.
    """
    judged = np.flatnonzero(judged_rows(made, scans))
    return [judged[scans.folds[judged] == fold] for fold in np.unique(scans.folds[judged])]


def site_share(made: Harmonised, scans: Usable) -> dict[str, np.ndarray]:
    """By state, (feature,) share of the variance that lies between sites once kept covariates are removed.

    Corrected for the number of sites, so that 0 is chance, and values below it occur; NaN for a constant feature.
    """
    found: dict[str, np.ndarray] = {}
    for state in STATES:
        of_pools = []
        for rows in pools(made, scans):
            values, keep = made.values[state][rows], _ones(scans.keep[rows])
            without, with_site = _residuals(values, keep), _residuals(values, _with_site(keep, scans.site[rows]))
            if with_site is not None and without is not None:
                with np.errstate(invalid="ignore", divide="ignore"):
                    of_pools.append(1 - with_site[1] / np.where(without[1] > 0, without[1], np.nan))
        found[state] = np.mean(of_pools, axis=0) if of_pools else np.full(len(made.measures.features), np.nan)
    return found


def site_spread(made: Harmonised, scans: Usable) -> dict[str, float]:
    """By state, how far the SDs of the sites lie apart: SD over sites of log2 of a site's SD, mean over features.

    Under ``"chance"`` what sites of these sizes give when all have one variance. NaN with fewer than two large sites.
    """
    found: dict[str, list[float]] = {state: [] for state in (*STATES, "chance")}
    for rows in pools(made, scans):
        names, counts = np.unique(scans.site[rows], return_counts=True)
        large = names[counts >= MIN_FOR_SPREAD]
        if len(large) < 2:
            continue
        expected = np.mean(1 / (2 * (counts[counts >= MIN_FOR_SPREAD] - 1)))
        found["chance"].append(float(np.sqrt(expected) / np.log(2)))
        for state in STATES:
            fitted = _residuals(made.values[state][rows], _with_site(_ones(scans.keep[rows]), scans.site[rows]))
            if fitted is None:
                continue
            of_sites = np.array([fitted[0][scans.site[rows] == name].std(axis=0, ddof=1) for name in large])
            varies = (of_sites > 0).all(axis=0)
            if varies.any():
                found[state].append(float(np.log2(of_sites[:, varies]).std(axis=0, ddof=1).mean()))
    return {name: float(np.mean(values)) if values else float("nan") for name, values in found.items()}


def slopes_kept(made: Harmonised, scans: Usable, one: Kept) -> Slopes:
    """Slopes of one covariate in held-out scans: within sites before, without regard to sites after.

    The first does not rest on ComBat. Each feature counts in units of its SD before.
    """
    pairs = []
    for rows in pools(made, scans):
        keep = _ones(scans.keep[rows])
        within = _slopes(made.values[BEFORE][rows], _with_site(keep, scans.site[rows]), one)
        plain = _slopes(made.values[AFTER][rows], keep, one)
        sd = made.values[BEFORE][rows].std(axis=0)
        if within is not None and plain is not None and (sd > 0).sum() >= MIN_FEATURES:
            pairs.append(((within / sd)[:, sd > 0].ravel(), (plain / sd)[:, sd > 0].ravel()))
    usable = [(a, b) for a, b in pairs if a.std() > 0 and b.std() > 0]
    if not usable:
        return Slopes(float("nan"), float("nan"))
    pattern = np.mean([np.corrcoef(a, b)[0, 1] for a, b in usable])
    size = np.mean([np.linalg.norm(b) / np.linalg.norm(a) for a, b in usable])
    return Slopes(float(pattern), float(size))


def site_of_covariate(scans: Usable, one: Kept, judged: np.ndarray) -> float:
    """Largest share of the variance of a covariate's columns that lies between sites, in [0, 1]."""
    values, site = scans.keep[judged][:, one.columns], scans.site[judged]
    total = np.square(values - values.mean(axis=0)).sum(axis=0)
    within = sum(
        np.square(values[site == name] - values[site == name].mean(axis=0)).sum(axis=0) for name in np.unique(site)
    )
    shares = 1 - within / np.where(total > 0, total, np.inf)
    return float(np.where(total > 0, shares, 0.0).max(initial=0.0))


def _ones(keep: np.ndarray) -> np.ndarray:
    return np.column_stack([keep, np.ones(len(keep))])


def _with_site(design: np.ndarray, site: np.ndarray) -> np.ndarray:
    """The covariates beside one 0/1 column per site, which take the place of the intercept."""
    return np.column_stack([design[:, :-1], site[:, None] == np.unique(site)]).astype(np.float64)


def _residuals(values: np.ndarray, design: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """(scan, feature) residuals and (feature,) variance over the degrees of freedom; None when these are too few."""
    size = np.linalg.norm(design, axis=0)
    scaled = design / np.where(size > 0, size, 1.0)
    degrees = len(values) - np.linalg.matrix_rank(scaled)
    if degrees < MIN_DEGREES:
        return None
    residuals = values - scaled @ np.linalg.lstsq(scaled, values, rcond=1e-10)[0]
    return residuals, np.square(residuals).sum(axis=0) / degrees


def _slopes(values: np.ndarray, design: np.ndarray, one: Kept) -> np.ndarray | None:
    """(column, feature) least-squares slopes; None when degrees of freedom are too few or sites explain the covariate."""
    size = np.linalg.norm(design, axis=0)
    if (size == 0).any() or np.linalg.matrix_rank(design / size) < design.shape[1]:
        return None
    if len(values) - design.shape[1] < MIN_DEGREES:
        return None
    found = np.linalg.lstsq(design / size, values, rcond=1e-10)[0] / size[:, None]
    return np.asarray(found[one.columns])
