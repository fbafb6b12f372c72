"""ComBat: the shift and the scale that a site puts on each feature, learnt from some scans and taken out of others.

The parametric empirical Bayes form with covariates that are kept. Each feature is standardised once the kept covariates are
removed; what a site adds and how it stretches are estimated feature by feature, and shrunk towards what this site does to
the other features. No library was fit for this: of those that install beside numpy 2, one has no transform of new scans,
and the other takes its priors over sites instead of over features, which is another method (docs/harmonisation.md).

References
----------
Johnson, Li & Rabinovic 2007, doi:10.1093/biostatistics/kxj037. Fortin et al. 2018, doi:10.1016/j.neuroimage.2017.11.024.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nilatent.analysis.contrast import MIN_DEGREES, NotComparableError
from nilatent.analysis.residuals import check_finite
from nilatent.errors import SettingError

ADJUSTED, UNSEEN, ONE_SUBJECT = "", "unseen site", "one-subject site"
"""What was done to a scan; those with words are handed back as they came."""
TOLERANCE, MAX_ROUNDS = 1e-10, 10_000
# Residual spread of a feature, relative to its size, under which it counts as constant within sites.
FLAT = 1e-9


@dataclass(frozen=True, eq=False)
class Combat:
    """What was learnt: arrays alone, so that it can be stored as they are.

    Parameters
    ----------
    sites : tuple[str, ...]
        Sites with at least two subjects among the scans it was fitted on.
    alone : tuple[str, ...]
        Sites with one subject, which took no part.
    centre : ndarray
        (feature,) mean over the scans at the mean of the kept covariates.
    slopes : ndarray
        (covariate, feature) change of the feature per unit of the kept covariate, within sites.
    keep_mean : ndarray
        (covariate,) mean of the kept covariates.
    scale : ndarray
        (feature,) residual SD within sites; 0 for a feature that is constant within each of them.
    shift : ndarray
        (site, feature) what the site adds, in units of `scale`, or of the feature where that is 0.
    variance : ndarray
        (site, feature) residual variance of the site, relative to that of all.
    n_scans : ndarray
        (site,) scans it was fitted on.
    """

    sites: tuple[str, ...]
    alone: tuple[str, ...]
    centre: np.ndarray
    slopes: np.ndarray
    keep_mean: np.ndarray
    scale: np.ndarray
    shift: np.ndarray
    variance: np.ndarray
    n_scans: np.ndarray

    def apply(
        self, values: np.ndarray, site: Sequence[str] | np.ndarray, keep: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Take the sites out of scans, whether they were fitted on or not.

        A kept covariate of a scan enters its harmonised values where sites differ in variance. Whoever predicts that
        covariate from them must not hand it in: put :attr:`keep_mean` in its column instead.

        Parameters
        ----------
        values : ndarray
            (scan, feature).
        site : Sequence[str]
            (scan,) site of each scan.
        keep : ndarray or None
            (scan, covariate) in the columns of the fit.

        Returns
        -------
        harmonised : ndarray
            (scan, feature) float64. Scans of a site that is unknown, or had one subject, are unchanged: what their site
            does cannot be told from what the people are like.
        flags : ndarray
            (scan,) :data:`ADJUSTED`, :data:`UNSEEN` or :data:`ONE_SUBJECT`.

        Raises
        ------
        SettingError
            When a value is missing, or features or covariates are not as many as in the fit.
        """
        values, names, kept = _checked(values, site, keep)
        if values.shape[1] != len(self.centre) or kept.shape[1] != len(self.slopes):
            raise SettingError(
                f"{values.shape[1]} features and {kept.shape[1]} kept covariates were given; the harmonisation was fitted on "
                f"{len(self.centre)} and {len(self.slopes)}. Hand in the same columns."
            )
        position = {name: number for number, name in enumerate(self.sites)}
        codes = np.array([position.get(name, -1) for name in names], dtype=int)
        known = codes >= 0
        flags = np.where(known, ADJUSTED, np.where(np.isin(names, self.alone), ONE_SUBJECT, UNSEEN))
        expected = self.centre + (kept[known] - self.keep_mean) @ self.slopes
        unit = np.where(self.scale > 0, self.scale, 1.0)
        left = (values[known] - expected) / unit - self.shift[codes[known]]
        harmonised = values.copy()
        harmonised[known] = expected + unit * left / np.sqrt(self.variance[codes[known]])
        return harmonised, flags


def fit_combat(
    values: np.ndarray,
    site: Sequence[str] | np.ndarray,
    keep: np.ndarray | None = None,
    *,
    subjects: Sequence[object] | np.ndarray | None = None,
) -> Combat:
    """Learn what each site does to each feature from these scans alone.

    Parameters
    ----------
    values : ndarray
        (scan, feature).
    site : Sequence[str]
        (scan,) site of each scan.
    keep : ndarray or None
        (scan, covariate) numbers whose effect stays, such as age and 0/1 columns of sex.
    subjects : Sequence or None
        (scan,) subject of each scan; None when every scan is another person.

    Returns
    -------
    Combat
        One feature alone has no others to learn from: its shift and scale are not shrunk.

    Raises
    ------
    NotComparableError
        When fewer than two sites have two subjects, there are too few scans, or sites explain a kept covariate (or a
        combination of them) without remainder.
    SettingError
        When a value or a site is missing.

    Examples
    --------
    >>> values = np.array([[0.0], [1.0], [2.0], [10.0], [11.0], [12.0]] * 3)
    >>> learnt = fit_combat(values, (["a"] * 3 + ["b"] * 3) * 3)
    >>> learnt.apply(np.array([[1.0], [11.0], [5.0]]), ["a", "b", "c"])[0].ravel().round(6).tolist()
    [6.0, 6.0, 5.0]
    """
    values, names, kept = _checked(values, site, keep)
    people = np.arange(len(names)) if subjects is None else np.asarray(subjects)
    if len(people) != len(names):
        raise SettingError(f"{len(people)} subjects were given for {len(names)} scans. Give one per scan.")
    levels = [str(name) for name in np.unique(names)]
    alone = tuple(name for name in levels if len(np.unique(people[names == name])) < 2)
    sites = tuple(name for name in levels if name not in alone)
    if len(sites) < 2:
        raise NotComparableError(
            f"{len(sites)} of {len(levels)} sites have two subjects or more, and harmonisation needs two such sites"
        )
    used = np.isin(names, sites)
    values, kept = values[used], kept[used]
    codes = np.searchsorted(sites, names[used])
    n_scans = np.bincount(codes)
    _check_design(kept, codes, n_scans)
    centre, keep_mean = values.mean(axis=0), kept.mean(axis=0)
    within_x, within_k = values - _means(values, codes)[codes], kept - _means(kept, codes)[codes]
    slopes = np.linalg.lstsq(within_k, within_x, rcond=1e-10)[0]
    spread = np.sqrt(np.square(within_x - within_k @ slopes).mean(axis=0))
    varies = spread > FLAT * np.sqrt(np.square(values).mean(axis=0))
    scale = np.where(varies, spread, 0.0)
    left = (values - centre - (kept - keep_mean) @ slopes) / np.where(varies, spread, 1.0)
    shift, variance = _means(left, codes), np.ones((len(sites), values.shape[1]))
    for number in range(len(sites)):
        own = left[codes == number][:, varies]
        shift[number, varies], variance[number, varies] = _shrunk(own)
    return Combat(sites, alone, centre, slopes, keep_mean, scale, shift, variance, n_scans)


def _shrunk(left: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Posterior shift and variance of each column of one site's standardised scans (n, feature); each (feature,)."""
    n, n_features = left.shape
    mean, variance = left.mean(axis=0), left.var(axis=0, ddof=1)
    if n_features < 2:
        return mean, np.where(variance > 0, variance, 1.0)
    # Moments over features give the priors: normal for the shift, inverse gamma for the variance.
    prior_mean, prior_variance = mean.mean(), mean.var(ddof=1)
    typical, spread = variance.mean(), variance.var(ddof=1)
    if typical <= 0:
        return mean, np.ones(n_features)
    shape = 2 + typical**2 / max(spread, 1e-12 * typical**2)
    rate = typical * (shape - 1)
    new_shift, new_variance = mean, np.where(variance > 0, variance, typical)
    for _ in range(MAX_ROUNDS):
        shift, scale = new_shift, new_variance
        new_shift = (n * prior_variance * mean + scale * prior_mean) / (n * prior_variance + scale)
        squares = (n - 1) * variance + n * np.square(mean - new_shift)
        new_variance = (rate + squares / 2) / (n / 2 + shape - 1)
        if max(np.abs(new_shift - shift).max(), np.abs(new_variance / scale - 1).max()) < TOLERANCE:
            return new_shift, new_variance
    raise SettingError(
        f"The empirical Bayes estimates of a site with {n} scans and {n_features} features did not settle in {MAX_ROUNDS} "
        "rounds. Leave this site out."
    )


def _means(values: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """(site, column) mean of each site."""
    member = np.eye(codes.max() + 1)[codes]
    return np.asarray(member.T @ values / member.sum(axis=0)[:, None])


def _check_design(kept: np.ndarray, codes: np.ndarray, n_scans: np.ndarray) -> None:
    """Refuse kept covariates that the sites explain, and fits with too few scans."""
    total = kept - kept.mean(axis=0)
    size = np.linalg.norm(total, axis=0)
    # A covariate that is constant among these scans has no effect to keep and none to confound.
    total = total[:, size > 1e-10 * (1 + np.abs(kept).max(axis=0, initial=0))]
    total = total / np.linalg.norm(total, axis=0)
    rank = np.linalg.matrix_rank(total, tol=1e-8) if total.size else 0
    within = np.linalg.matrix_rank(total - _means(total, codes)[codes], tol=1e-8) if total.size else 0
    if within < rank:
        raise NotComparableError(
            "the sites explain a kept covariate, or a combination of them, without remainder, so the two cannot be told "
            "apart; do not keep the covariate that equals the site"
        )
    degrees = len(codes) - len(n_scans) - rank
    if degrees < MIN_DEGREES:
        raise NotComparableError(f"too few: {len(codes)} scans for {len(n_scans)} sites and {rank} kept covariates")


def _checked(
    values: np.ndarray, site: Sequence[str] | np.ndarray, keep: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    values = check_finite(values, what="The table to harmonise")
    kept = np.empty((len(values), 0)) if keep is None or np.size(keep) == 0 else check_finite(keep, what="What is kept")
    given = np.asarray(site, dtype=object)
    if len(given) != len(values) or len(kept) != len(values):
        raise SettingError(
            f"{len(values)} rows of values, {len(given)} sites and {len(kept)} rows of covariates were given. All have one row "
            "per scan."
        )
    missing = [number for number, name in enumerate(given) if not isinstance(name, str) or not name]
    if missing:
        raise SettingError(
            f"Row {missing[0]} has no site ({len(missing)} in all). Leave those scans out, or name their site as text."
        )
    return values, given.astype(str), kept
