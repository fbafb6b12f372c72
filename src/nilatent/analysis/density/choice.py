"""Choice of a density: candidates fitted on some subjects and judged by the likelihood of the others."""

import warnings
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.linalg import solve_triangular
from scipy.special import logsumexp
from sklearn.covariance import ledoit_wolf
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import KFold

from nilatent.errors import LatentsError, SettingError

# Subjects that a component of a mixture needs at least.
SUBJECTS_PER_COMPONENT = 10
COVARIANCES = ("spherical", "diag", "tied", "full")
# Added to the variances of a component, whose unit is the variance of the whole: no component shrinks onto one subject.
FLOOR = 0.01
# Places drawn from the posterior of a held-out scan, over which its likelihood is averaged.
N_DRAWS = 8


@dataclass(frozen=True)
class DensityConfig:
    """How a density is chosen.

    Parameters
    ----------
    max_components : int
        Most Gaussians of a mixture, at least 1.
    n_folds : int
        Folds of the training subjects on which candidates are compared, at least 2.
    n_errors : float
        The simplest density is taken that the likeliest does not beat by more standard errors on held-out subjects.
    """

    max_components: int = 8
    n_folds: int = 5
    n_errors: float = 2.0

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        if self.max_components < 1 or self.n_folds < 2 or not self.n_errors >= 0:
            raise SettingError(
                f"max_components is at least 1, n_folds at least 2 and n_errors at least 0, got {self.max_components}, "
                f"{self.n_folds} and {self.n_errors}."
            )


@dataclass(frozen=True)
class Candidate:
    """A shape that a density may have.

    Parameters
    ----------
    covariance : str
        ``"shrunk"`` for one Gaussian; ``"spherical"``, ``"diag"``, ``"tied"`` or ``"full"`` for a mixture, in units in which
        the one Gaussian is spherical.
    n_components : int
        Number of Gaussians.
    """

    covariance: str
    n_components: int

    def n_values(self, wide: int) -> int:
        """Numbers that it has more than one Gaussian of so many coordinates."""
        if self.n_components == 1:
            return 0
        of_all = {"tied": wide * (wide + 1) // 2}.get(self.covariance, 0)
        of_each = {"spherical": 1, "diag": wide, "full": wide * (wide + 1) // 2}.get(self.covariance, 0)
        return of_all + self.n_components * (1 + wide + of_each) - 1


GAUSSIAN = Candidate("shrunk", 1)


@dataclass(frozen=True, eq=False)
class Mixture:
    """Gaussians with shares.

    Parameters
    ----------
    weights : ndarray
        (component,) of sum 1.
    means : ndarray
        (component, coordinate).
    covariances : ndarray
        (component, coordinate, coordinate).
    """

    weights: np.ndarray
    means: np.ndarray
    covariances: np.ndarray

    def log_likelihood(self, x: np.ndarray) -> np.ndarray:
        """Log-density of places (n, coordinate) in nats, (n,)."""
        logs = np.empty((len(self.weights), len(x)))
        for component, (mean, covariance) in enumerate(zip(self.means, self.covariances, strict=True)):
            factor = np.linalg.cholesky(covariance)
            scaled = solve_triangular(factor, (x - mean).T, lower=True)
            volume = np.log(np.diag(factor)).sum() + 0.5 * len(mean) * np.log(2 * np.pi)
            logs[component] = -0.5 * np.square(scaled).sum(axis=0) - volume
        return np.asarray(logsumexp(logs, axis=0, b=self.weights[:, None]))


def choose(
    x: np.ndarray,
    given: np.ndarray,
    variance: np.ndarray,
    *,
    kind: str,
    config: DensityConfig,
    seed: int,
) -> tuple[Candidate, pd.DataFrame]:
    """The simplest candidate under which held-out subjects are not clearly less likely than under the likeliest.

    Parameters
    ----------
    x : ndarray
        (subject, coordinate) of training subjects.
    given : ndarray
        (subject, number) what the density is conditioned on.
    variance : ndarray
        (subject, coordinate) posterior variance; held-out subjects are judged by draws from their posterior.
    kind : {"auto", "gaussian", "mixture"}
        ``"gaussian"`` compares nothing.
    config : DensityConfig
        Which candidates, and how they are compared.
    seed : int
        Of folds, draws and starts.

    Returns
    -------
    Candidate
        The choice.
    DataFrame
        Every candidate, likeliest first: ``covariance``, ``n_components``, ``n_values`` (numbers it has more than one
        Gaussian), ``log_likelihood`` (nats per held-out subject), ``behind`` (how much likelier the likeliest that may be
        taken makes them) and ``behind_error`` (its standard error over subjects).
    """
    folds = list(KFold(min(config.n_folds, len(x)), shuffle=True, random_state=seed).split(x))
    draws = _posterior_draws(x, variance, seed)
    wholes = [_whole(x[train], given[train]) for train, _ in folds]

    def judged(candidate: Candidate) -> np.ndarray:
        found = np.empty(len(x))
        for (train, test), whole in zip(folds, wholes, strict=True):
            mixture = _mixture(whole, candidate, variance[train].mean(axis=0), seed=seed)
            left = draws[:, test] - given[test] @ whole.slopes
            found[test] = np.mean([mixture.log_likelihood(one) for one in left], axis=0)
        return found

    scores = {GAUSSIAN: judged(GAUSSIAN)}
    n_most = min(config.max_components, min(len(train) for train, _ in folds) // SUBJECTS_PER_COMPONENT)
    for covariance in COVARIANCES if kind != "gaussian" else ():
        last = -np.inf
        for n_components in range(2, n_most + 1):
            candidate = Candidate(covariance, n_components)
            scores[candidate] = judged(candidate)
            if scores[candidate].mean() < last:
                break
            last = float(scores[candidate].mean())
    able = {one: score for one, score in scores.items() if kind != "mixture" or one != GAUSSIAN}
    if not able:
        raise LatentsError(
            f"{len(x)} training subjects are too few for a mixture of at most {config.max_components} Gaussians with "
            f"{SUBJECTS_PER_COMPONENT} subjects each. Take one Gaussian."
        )
    best = max(able.values(), key=lambda score: float(score.mean()))
    tried = _table(scores, best, x.shape[1])
    close = tried[tried["behind"] <= config.n_errors * tried["behind_error"]].sort_values(["n_values", "behind"])
    pairs = zip(close["covariance"], close["n_components"], strict=True)
    ordered = [Candidate(str(covariance), int(n)) for covariance, n in pairs]
    return next(one for one in ordered if one in able), tried


def fit_mixture(
    x: np.ndarray, given: np.ndarray, posterior_variance: np.ndarray, candidate: Candidate, *, seed: int
) -> tuple[np.ndarray, Mixture]:
    """Slopes (number, coordinate) on what is given, and the mixture of what they leave, means at the mean of the training.

    Parameters
    ----------
    x, given
        As in :func:`choose`; the columns of `given` are centred.
    posterior_variance : ndarray
        (coordinate,) added to the covariance of every component.
    candidate : Candidate
        Which mixture.
    seed : int
        Of its starts.
    """
    whole = _whole(x, given)
    return whole.slopes, _mixture(whole, candidate, posterior_variance, seed=seed)


@dataclass(frozen=True, eq=False)
class _Whole:
    """A regression and the Gaussian of what it leaves: (subject, coordinate) rows of unit covariance times `factor`."""

    slopes: np.ndarray
    centre: np.ndarray
    factor: np.ndarray
    white: np.ndarray


def _whole(x: np.ndarray, given: np.ndarray) -> _Whole:
    n = len(x)
    # Units of one size: the rank does not depend on whether age is in years or in days.
    scale = given.std(axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    design = np.hstack([np.ones((n, 1)), given / scale])
    coefficients = np.linalg.lstsq(design, x, rcond=1e-10)[0]
    # A regression leaves less of the subjects it was fitted on than of others.
    left = (x - design @ coefficients) * np.sqrt(n / max(n - np.linalg.matrix_rank(design, rtol=1e-10), 1))
    spread = left.std(axis=0)
    spread = np.where(spread > 0, spread, np.finfo(float).tiny ** 0.25)
    covariance, _ = ledoit_wolf(left / spread, assume_centered=True)
    factor = spread[:, None] * np.linalg.cholesky(covariance)
    white = solve_triangular(factor, left.T, lower=True).T
    return _Whole(coefficients[1:] / scale[:, None], coefficients[0], factor, white)


def _mixture(whole: _Whole, candidate: Candidate, posterior_variance: np.ndarray, *, seed: int) -> Mixture:
    wide = len(whole.centre)
    weights, means, within = np.ones(1), np.zeros((1, wide)), np.eye(wide)[None]
    if candidate.n_components > 1:
        found = GaussianMixture(
            candidate.n_components,
            covariance_type=candidate.covariance,
            reg_covar=FLOOR,
            max_iter=300,
            n_init=2,
            random_state=seed,
        )
        with warnings.catch_warnings():
            # A mixture that is still climbing is judged on held-out subjects like any other.
            warnings.simplefilter("ignore", ConvergenceWarning)
            found.fit(whole.white)
        weights, means = found.weights_, found.means_
        within = _steadied(_matrices(found.covariances_, candidate, wide), weights, n=len(whole.white))
    covariances = whole.factor @ within @ whole.factor.T + np.diag(posterior_variance)
    return Mixture(weights, whole.centre + means @ whole.factor.T, covariances)


def _steadied(within: np.ndarray, weights: np.ndarray, *, n: int) -> np.ndarray:
    """Covariances of components, each drawn towards what they have in common by the weight of a few subjects.

    A component that has collapsed on one subject would otherwise draw that subject again and again.
    """
    counts = (weights * n)[:, None, None]
    common = np.einsum("k,kij->ij", weights, within)
    return np.asarray((counts * within + SUBJECTS_PER_COMPONENT * common) / (counts + SUBJECTS_PER_COMPONENT))


def _matrices(covariances: np.ndarray, candidate: Candidate, wide: int) -> np.ndarray:
    """(component, coordinate, coordinate) of what scikit-learn keeps in fewer numbers."""
    if candidate.covariance == "spherical":
        return np.asarray(covariances[:, None, None] * np.eye(wide))
    if candidate.covariance == "diag":
        return np.asarray(covariances[:, :, None] * np.eye(wide))
    if candidate.covariance == "tied":
        return np.repeat(covariances[None], candidate.n_components, axis=0)
    return covariances


def _posterior_draws(x: np.ndarray, variance: np.ndarray, seed: int) -> np.ndarray:
    """(draw, subject, coordinate); one that is the mean where there is no variance."""
    if not variance.any():
        return x[None]
    noise = np.random.default_rng(seed).standard_normal((N_DRAWS, *x.shape))
    return np.asarray(x + noise * np.sqrt(variance))


def _table(scores: dict[Candidate, np.ndarray], best: np.ndarray, wide: int) -> pd.DataFrame:
    rows = [
        {
            "covariance": candidate.covariance,
            "n_components": candidate.n_components,
            "n_values": candidate.n_values(wide),
            "log_likelihood": score.mean(),
            "behind": (best - score).mean(),
            "behind_error": (best - score).std(ddof=1) / np.sqrt(len(score)),
        }
        for candidate, score in scores.items()
    ]
    return pd.DataFrame(rows).sort_values("log_likelihood", ascending=False, ignore_index=True)
