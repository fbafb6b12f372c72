"""Linear mixed models with a random intercept and a random slope over time for every subject."""

from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

from nilatent.errors import SettingError

# Relative SD of the random effects below which they count as absent.
ABSENT = 1e-3
# Factors from which the search starts beside that of the subjects' own lines, and the least of any: at 0 there is no slope.
START = (0.5, 0.0, 0.05)
LEAST = (0.1, -np.inf, 0.02)
LARGEST = 1e4
SEARCH = {"ftol": 1e-12, "gtol": 1e-7, "maxiter": 500}


@dataclass(frozen=True, eq=False)
class MixedFit:
    """A fitted mixed model.

    Parameters
    ----------
    coefficients : ndarray
        (fixed,) effects, in units of the outcome per unit of their column.
    covariance : ndarray
        (fixed, fixed) of the coefficients.
    random : ndarray
        (2, 2) covariance of intercept and slope between subjects; of the intercept alone (1, 1).
    residual_variance : float
        Within subjects.
    subject_effects : ndarray
        (subject, 2) or (subject, 1) best linear unbiased predictions of each subject's deviation, in sorted order of the
        subjects.
    log_likelihood : float
        Restricted or not, as the fit was asked for.
    n_scans, n_subjects : int
        How many it rests on.
    singular : bool
        A random effect has no variance of its own, or intercept and slope are the same thing.
    relative : ndarray
        (3,) or (1,) Cholesky factor of the covariance of the random effects over the variance within, time standardised.
    """

    coefficients: np.ndarray
    covariance: np.ndarray
    random: np.ndarray
    residual_variance: float
    subject_effects: np.ndarray
    log_likelihood: float
    n_scans: int
    n_subjects: int
    singular: bool
    relative: np.ndarray

    @property
    def degrees(self) -> int:
        """Of freedom of a fixed effect between subjects: subjects minus fixed effects, at least 1."""
        return max(self.n_subjects - len(self.coefficients), 1)

    def interval(
        self, contrast: np.ndarray, *, degrees: int | None = None, level: float = 0.95
    ) -> tuple[float, float, float]:
        """Estimate of a linear combination of the fixed effects and its confidence interval by Student's t.

        Parameters
        ----------
        contrast : ndarray
            (fixed,) weights.
        degrees : int, optional
            Degrees of freedom; left out: those of an effect between subjects. One over time has fewer, because subjects
            with one visit say nothing of it.
        level : float
            Coverage.
        """
        value, free = float(contrast @ self.coefficients), self.degrees if degrees is None else degrees
        wide = float(stats.t.ppf(0.5 + level / 2, free) * np.sqrt(contrast @ self.covariance @ contrast))
        return value, value - wide, value + wide


@dataclass(frozen=True, eq=False)
class _Sums:
    """Inner products subject by subject, all that the likelihood needs; they are taken once."""

    zz: np.ndarray
    z_both: np.ndarray
    xx: np.ndarray
    xy: np.ndarray
    yy: float
    n: int


def fit_mixed(
    y: np.ndarray,
    fixed: np.ndarray,
    time: np.ndarray,
    subject: np.ndarray,
    *,
    restricted: bool = True,
    slopes: bool = True,
    near: MixedFit | None = None,
) -> MixedFit:
    """Fit ``y = fixed coefficients + b0 + b1 time + noise`` with subject-wise normal b by (restricted) maximum likelihood.

    Parameters
    ----------
    y : ndarray
        (scan,) outcome.
    fixed : ndarray
        (scan, fixed) design of full rank, the constant among its columns or in their span.
    time : ndarray
        (scan,) years, on any origin.
    subject : ndarray
        (scan,) of any labels.
    restricted : bool
        REML, whose variances are not too small; likelihoods of fits with different `fixed` may be compared without it only.
    slopes : bool
        A random slope beside the random intercept. Wants subjects with two visits, and some with three.
    near : MixedFit, optional
        A fit of the same scans beside which the search may start: it changes how long it takes.

    Returns
    -------
    MixedFit
        The same whatever the order of the rows.

    Raises
    ------
    SettingError
        When values are not finite, the design is not of full rank, or nobody has two visits.

    Notes
    -----
    The variance within and the fixed effects are profiled out, and the relative Cholesky factor of the random effects is
    sought from several starts with the gradient in closed form, as lme4 does without it; statsmodels' MixedLM has the same
    likelihood and often does not converge for a random slope.

    References
    ----------
    Laird & Ware 1982, Random-effects models for longitudinal data. doi:10.2307/2529876
    Bates, Mächler, Bolker & Walker 2015, Fitting linear mixed-effects models using lme4. doi:10.18637/jss.v067.i01

    Examples
    --------
    >>> years = np.tile([0.0, 1.0, 2.0], 4)
    >>> subject = np.repeat(["a", "b", "c", "d"], 3)
    >>> level = np.repeat([5.0, 6.0, 7.0, 8.0], 3)
    >>> noise = np.tile([0.1, -0.2, 0.1, -0.1, 0.2, -0.1], 2)
    >>> found = fit_mixed(level - 0.5 * years + noise, np.column_stack([np.ones(12), years]), years, subject)
    >>> found.coefficients.round(2).tolist()
    [6.5, -0.5]
    """
    y, fixed, time = (np.asarray(values, dtype=np.float64) for values in (y, fixed, time))
    codes = _checked(y, fixed, time, subject)
    # On a scale of their own: outcomes differ by orders of magnitude, and the search should not care.
    centre, spread = float(time.mean()), float(time.std()) or 1.0
    unit = float(np.std(y)) or 1.0
    z = np.column_stack([np.ones(len(y)), (time - centre) / spread])[:, : 2 if slopes else 1]
    # What is far from zero beside its spread would lose its digits in the sums of squares.
    origin = np.linalg.lstsq(fixed, y, rcond=None)[0]
    left = (y - fixed @ origin) / unit
    sums = _sums(left, fixed, z, codes)
    theta = _search(sums, _guess(left, fixed, z, codes) if near is None else near.relative, restricted=restricted)
    solved, factor = _solved(theta, sums, restricted=restricted), _factor(theta)
    # Back to the units and the origin of the caller.
    turn = np.array([[1.0, -centre / spread], [0.0, 1.0 / spread]])[: z.shape[1], : z.shape[1]]
    relative, size = factor @ factor.T, solved.variance * unit**2
    n_free = sums.n - (fixed.shape[1] if restricted else 0)
    return MixedFit(
        coefficients=origin + solved.beta * unit,
        covariance=solved.inverse * size,
        random=turn @ relative @ turn.T * size,
        residual_variance=float(size),
        subject_effects=_predicted(factor, sums, solved.beta) @ turn.T * unit,
        log_likelihood=-0.5 * solved.deviance - n_free * np.log(unit),
        n_scans=len(y),
        n_subjects=len(sums.zz),
        singular=bool(np.linalg.eigvalsh(relative).min() < ABSENT**2),
        relative=theta,
    )


def likelihood_ratio(
    y: np.ndarray,
    without: np.ndarray,
    time: np.ndarray,
    subject: np.ndarray,
    *,
    whole: MixedFit,
    slopes: bool = True,
) -> tuple[float, float, MixedFit]:
    """Test whether a model needs more than a smaller one within it.

    Parameters
    ----------
    y, time, subject, slopes
        As in :func:`fit_mixed`.
    without : ndarray
        (scan, fixed) design of the smaller model; its columns are in the span of those of the larger.
    whole : MixedFit
        The larger model of the same scans, not restricted.

    Returns
    -------
    statistic, p : float
        Twice the difference of the log-likelihoods, at least 0, and its chi-squared p: too small in few subjects.
    fit : MixedFit
        Of the smaller model.
    """
    smaller = fit_mixed(y, without, time, subject, restricted=False, slopes=slopes, near=whole)
    statistic = max(2.0 * (whole.log_likelihood - smaller.log_likelihood), 0.0)
    degrees = len(whole.coefficients) - without.shape[1]
    return statistic, float(stats.chi2.sf(statistic, degrees)), smaller


def deletion_steps(
    y: np.ndarray, fixed: np.ndarray, time: np.ndarray, subject: np.ndarray, *, fit: MixedFit
) -> np.ndarray:
    """How far each subject moves the fixed effects: the effects less those without the subject, variances as they are.

    Parameters
    ----------
    y, fixed, time, subject
        As in :func:`fit_mixed`.
    fit : MixedFit
        Of these.

    Returns
    -------
    ndarray
        (subject, fixed) in sorted order of the subjects; an effect that a subject alone tells of stays where it is. With n
        subjects, (n - 1) / n times the sum of their squares is the jackknife variance, which holds whatever the true
        covariance within subjects.

    References
    ----------
    Bell & McCaffrey 2002, Bias reduction in standard errors for linear regression with multi-stage samples. Survey
    Methodology 28:169-181.
    """
    codes = np.unique(subject, return_inverse=True)[1]
    n_random = 1 if len(fit.relative) == 1 else 2
    spread = float(time.std()) or 1.0
    z = np.column_stack([np.ones(len(y)), (time - time.mean()) / spread])[:, :n_random]
    both = np.column_stack([fixed, y - fixed @ fit.coefficients])
    factor = _factor(fit.relative)
    zz, z_both, all_both = (_by_subject(*pair, codes) for pair in ((z, z), (z, both), (both, both)))
    root = np.linalg.cholesky(np.eye(n_random) + factor.T @ zz @ factor)
    taken = _forward(root, factor.T @ z_both)
    told = all_both - np.swapaxes(taken, 1, 2) @ taken
    information, score = told[:, :-1, :-1], told[:, :-1, -1]
    whole = information.sum(axis=0)
    size = np.sqrt(np.diag(whole))
    without = np.linalg.pinv((whole - information) / np.outer(size, size), rcond=1e-10, hermitian=True)
    return np.asarray(np.einsum("sij,sj->si", without, score / size) / size)


def _checked(y: np.ndarray, fixed: np.ndarray, time: np.ndarray, subject: np.ndarray) -> np.ndarray:
    if not (np.isfinite(y).all() and np.isfinite(fixed).all() and np.isfinite(time).all()):
        raise SettingError("A mixed model was given values that are no finite numbers. Leave these scans out first.")
    if np.linalg.matrix_rank(fixed) < fixed.shape[1]:
        raise SettingError(
            f"The {fixed.shape[1]} columns of a mixed model say the same thing twice (rank {np.linalg.matrix_rank(fixed)}). "
            "Leave out a covariate that follows from the others."
        )
    codes = np.unique(subject, return_inverse=True)[1]
    if np.bincount(codes).max() < 2 or len(y) <= fixed.shape[1] + 1:
        raise SettingError(
            f"{len(y)} scans of {codes.max() + 1} subjects: a change over time needs subjects with two visits or more, and more "
            "scans than effects."
        )
    return codes


def _sums(y: np.ndarray, x: np.ndarray, z: np.ndarray, codes: np.ndarray) -> _Sums:
    both = np.column_stack([x, y])
    return _Sums(_by_subject(z, z, codes), _by_subject(z, both, codes), x.T @ x, x.T @ y, float(y @ y), len(y))


def _by_subject(left: np.ndarray, right: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """(subject, left, right) inner products."""
    products = left[:, :, None] * right[:, None, :]
    added = np.zeros((codes.max() + 1, *products.shape[1:]))
    np.add.at(added, codes, products)
    return added


def _factor(theta: np.ndarray) -> np.ndarray:
    return np.array([[theta[0]]]) if len(theta) == 1 else np.array([[theta[0], 0.0], [theta[1], theta[2]]])


def _guess(y: np.ndarray, fixed: np.ndarray, z: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Relative factor as it seems from the mean and the slope of every subject; without a random slope the first number."""
    left = y - fixed @ np.linalg.lstsq(fixed, y, rcond=None)[0]
    n = np.bincount(codes)
    level = np.bincount(codes, left) / n
    within = left - level[codes]
    spread: np.ndarray = np.zeros(len(n))
    slope: np.ndarray = np.zeros(len(n))
    if z.shape[1] > 1:
        centred = z[:, 1] - (np.bincount(codes, z[:, 1]) / n)[codes]
        spread = np.bincount(codes, np.square(centred))
        slope = np.divide(np.bincount(codes, centred * within), spread, out=slope, where=spread > 0)
        within = within - slope[codes] * centred
    sloped = (n > 2) & (spread > 0)
    noise = np.square(within).sum() / max(len(y) - len(n) - int(sloped.sum()), 1) + 1e-12
    between = [np.var(level) - noise * np.mean(1 / n)]
    if z.shape[1] > 1:
        between.append(np.var(slope[sloped]) - noise * np.mean(1 / spread[sloped]) if sloped.any() else 0.0)
    sizes = np.sqrt(np.maximum(between, 0.0) / noise)
    return sizes if len(sizes) == 1 else np.array([sizes[0], 0.0, sizes[1]])


def _search(sums: _Sums, guess: np.ndarray, *, restricted: bool) -> np.ndarray:
    # A factor of either sign is the same model: the search may cross 0, where a bound would hold it.
    bounds = [(-LARGEST, LARGEST)] * len(guess)

    def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
        solved = _solved(theta, sums, restricted=restricted)
        return solved.deviance, _gradient(theta, sums, solved, restricted=restricted)

    starts = [np.clip(start[: len(bounds)], LEAST[: len(bounds)], LARGEST / 10) for start in (guess, START)]
    found = [
        optimize.minimize(loss, start, method="L-BFGS-B", jac=True, bounds=bounds, options=SEARCH) for start in starts
    ]
    best = np.asarray(min(found, key=lambda one: one.fun).x)
    best[:2] *= -1.0 if best[0] < 0 else 1.0
    best[2:] = np.abs(best[2:])
    return best


@dataclass(frozen=True, eq=False)
class _Solved:
    """What follows from a relative factor of the random effects."""

    deviance: float
    beta: np.ndarray
    inverse: np.ndarray
    variance: float


def _solved(theta: np.ndarray, sums: _Sums, *, restricted: bool) -> _Solved:
    """Deviance at a relative factor, with the coefficients, the inverse of their information and the variance within."""
    factor = _factor(theta)
    root = np.linalg.cholesky(np.eye(len(factor)) + factor.T @ sums.zz @ factor)
    # Each subject's random effects take these parts of the inner products away.
    taken = _forward(root, factor.T @ sums.z_both)
    taken = taken.reshape(-1, taken.shape[2])
    lost = taken.T @ taken
    xx, xy, yy = sums.xx - lost[:-1, :-1], sums.xy - lost[:-1, -1], sums.yy - lost[-1, -1]
    inverse = np.linalg.inv(xx)
    beta = inverse @ xy
    n = sums.n - (len(beta) if restricted else 0)
    variance = max((yy - xy @ beta) / n, 1e-300)
    deviance = n * (1.0 + np.log(2.0 * np.pi * variance))
    deviance += 2.0 * np.log(np.diagonal(root, axis1=1, axis2=2)).sum()
    if restricted:
        deviance += np.linalg.slogdet(xx)[1]
    return _Solved(float(deviance), beta, inverse, float(variance))


def _gradient(theta: np.ndarray, sums: _Sums, solved: _Solved, *, restricted: bool) -> np.ndarray:
    """Of the deviance, by the parameters of the relative factor."""
    factor = _factor(theta)
    # Z'V^-1 = (1 + Z'Z L)^-1 Z' with L the relative covariance of the random effects.
    shrunk = np.linalg.inv(np.eye(len(factor)) + sums.zz @ (factor @ factor.T))
    of_both = shrunk @ sums.z_both
    of_x, left = of_both[:, :, :-1], of_both[:, :, -1] - of_both[:, :, :-1] @ solved.beta
    by_covariance = _product(shrunk, sums.zz.transpose(0, 2, 1)) - left.T @ left / solved.variance
    if restricted:
        by_covariance -= _product(of_x @ solved.inverse, of_x)
    by_factor = 2.0 * by_covariance @ factor
    return np.asarray(by_factor.ravel() if len(theta) == 1 else by_factor[[0, 1, 1], [0, 0, 1]])


def _product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(row, row) sum over subjects of ``left @ right.T``, as one product of matrices."""
    flat = [one.transpose(1, 0, 2).reshape(one.shape[1], -1) for one in (left, right)]
    return np.asarray(flat[0] @ flat[1].T)


def _forward(root: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Solve lower-triangular systems of one or two rows, one per subject."""
    first = right[:, 0] / root[:, 0, 0, None]
    if right.shape[1] == 1:
        return np.asarray(first[:, None])
    second = (right[:, 1] - root[:, 1, 0, None] * first) / root[:, 1, 1, None]
    return np.stack([first, second], axis=1)


def _predicted(factor: np.ndarray, sums: _Sums, beta: np.ndarray) -> np.ndarray:
    """(subject, random) predictions of the random effects."""
    left = sums.z_both[:, :, -1] - sums.z_both[:, :, :-1] @ beta
    middle = np.eye(len(factor)) + factor.T @ sums.zz @ factor
    return np.asarray(np.einsum("aj,sjk,sk->sa", factor, np.linalg.inv(middle), left @ factor))
