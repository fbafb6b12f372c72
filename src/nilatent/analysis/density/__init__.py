"""Density of latents after training: a mixture of Gaussians, chosen on held-out subjects, from which new latents are drawn.

A model is trained towards a prior, or towards none, and its latents are distributed otherwise. The density that they have is
fitted afterwards: a regression on what is known of a scan (age, sex, group), and of what that leaves one Gaussian or a
mixture, whichever makes latents of unseen subjects likelier.

References
----------
Ghosh et al. 2020, From variational to deterministic autoencoders, doi:10.48550/arXiv.1903.12436 (densities after training).
Ledoit & Wolf 2004, A well-conditioned estimator for large-dimensional covariance matrices,
doi:10.1016/S0047-259X(03)00096-4.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.linalg import solve_triangular

from nilatent.analysis.density.choice import DensityConfig, Mixture, choose, fit_mixture
from nilatent.analysis.density.columns import ToldColumn, as_numbers, beyond, common, learn_columns
from nilatent.analysis.latent_space import LatentSpace
from nilatent.errors import LatentsError, SettingError

__all__ = ["Density", "DensityConfig", "fit_density", "prior_latents"]

KINDS = ("auto", "gaussian", "mixture")
# A covariance of fewer is a guess, whatever it is shrunk to.
MIN_DEGREES = 8
SINGULAR = 1e-12


DEFAULT = DensityConfig()


@dataclass(frozen=True, eq=False)
class Density:
    """Where the latents of a population lie, given what is known of a scan.

    Parameters
    ----------
    columns : tuple[ToldColumn, ...]
        What it is conditioned on; none for the whole population.
    slopes : ndarray
        (number, varying coordinate) change of the mean per unit of each number of the columns.
    mixture : Mixture
        Of the coordinates that vary, at the mean of the training scans' columns. Its covariances include the mean
        posterior variance: it is the density of what the model takes for possible latents, not of best guesses only.
    varies : ndarray
        (coordinate,) bool; the others are the same for every training scan, and for every sample.
    fixed : ndarray
        (other coordinate,) what they are.
    covariance : str
        Of the components: ``"shrunk"`` (one Gaussian), ``"spherical"``, ``"diag"``, ``"tied"`` or ``"full"``; see
        :class:`nilatent.analysis.density.choice.Candidate`.
    tried : DataFrame
        One row per candidate, likeliest first: ``covariance``, ``n_components``, ``n_values`` (numbers more than one
        Gaussian has), ``log_likelihood`` per held-out subject, ``behind`` the likeliest and its standard error
        ``behind_error``.
    n_subjects : int
        Training subjects it was fitted on, one scan each.
    n_left_out : int
        Training scans left out because a value is missing, or a category is that of fewer than five subjects.
    """

    columns: tuple[ToldColumn, ...]
    slopes: np.ndarray
    mixture: Mixture
    varies: np.ndarray
    fixed: np.ndarray
    covariance: str
    tried: pd.DataFrame
    n_subjects: int
    n_left_out: int

    @property
    def words(self) -> str:
        """What it is, in one sentence."""
        of = f" given {', '.join(column.name for column in self.columns)}" if self.columns else ""
        n, fixed = len(self.mixture.weights), len(self.fixed)
        what = f"a mixture of {n} Gaussians" if n > 1 else "one Gaussian"
        words = f"{what} ({self.covariance} covariance){of}, fitted on {self.n_subjects} training subjects"
        rare = f"; {self.n_left_out} scans lack a value, or share it with too few, and were left out"
        words += rare if self.n_left_out else ""
        return words + (f"; {fixed} coordinates do not vary and stay as they are" if fixed else "")

    def sample(self, n: int, *, rng: np.random.Generator, told: pd.DataFrame | None = None) -> np.ndarray:
        """New places of the latent space.

        Parameters
        ----------
        n : int
            How many.
        rng : Generator
            Of the draws.
        told : DataFrame, optional
            n rows with the columns it is conditioned on; needed when there are any.

        Returns
        -------
        ndarray
            (n, coordinate) float64.

        Raises
        ------
        SettingError
            When `told` is missing, has another number of rows, or a value that the density does not know.
        """
        centre = self._centre(told, n)
        which = rng.choice(len(self.mixture.weights), size=n, p=self.mixture.weights)
        places = np.empty((n, len(self.varies)))
        places[:, ~self.varies] = self.fixed
        drawn = rng.standard_normal(centre.shape)
        for component, covariance in enumerate(self.mixture.covariances):
            rows = which == component
            drawn[rows] = self.mixture.means[component] + drawn[rows] @ np.linalg.cholesky(covariance).T
        places[:, self.varies] = centre + drawn
        return places

    def log_likelihood(self, coordinates: np.ndarray, told: pd.DataFrame | None = None) -> np.ndarray:
        """Log-density of places (n, coordinate) in nats, (n,); coordinates that do not vary take no part."""
        return self.mixture.log_likelihood(coordinates[:, self.varies] - self._centre(told, len(coordinates)))

    def distance(self, coordinates: np.ndarray, told: pd.DataFrame | None = None) -> np.ndarray:
        """Mahalanobis distance from the mean of the density over the root of the coordinates that vary, (n,).

        About 1 for a member of the population, whatever the number of coordinates; 2 and more is far outside.
        """
        left = coordinates[:, self.varies] - self._centre(told, len(coordinates))
        weights, means = self.mixture.weights, self.mixture.means
        apart = means - weights @ means
        whole = np.einsum("k,kij->ij", weights, self.mixture.covariances) + (apart * weights[:, None]).T @ apart
        scaled = solve_triangular(np.linalg.cholesky(whole), (left - weights @ means).T, lower=True)
        return np.asarray(np.sqrt(np.square(scaled).mean(axis=0)))

    def beyond(self, told: pd.DataFrame) -> np.ndarray:
        """Rows (n,) bool of conditions with a number outside the range of the training scans."""
        return beyond(self.columns, told)

    def _centre(self, told: pd.DataFrame | None, n: int) -> np.ndarray:
        if not self.columns:
            return np.zeros((n, int(self.varies.sum())))
        if told is None or len(told) != n:
            raise SettingError(
                f"The density is conditioned on {', '.join(column.name for column in self.columns)}, so {n} places need as many "
                f"rows of these, got {'none' if told is None else len(told)}."
            )
        return np.asarray(as_numbers(self.columns, told) @ self.slopes)


def fit_density(
    space: LatentSpace,
    *,
    scans: pd.DataFrame | None = None,
    columns: Sequence[str] = (),
    kind: str = "auto",
    seed: int,
    config: DensityConfig = DEFAULT,
) -> Density:
    """The density of the latents of the training scans, one scan of each subject.

    Parameters
    ----------
    space : LatentSpace
        The density is that of its coordinates.
    scans : DataFrame, optional
        Index ``scan_id``, with the columns; needed where there are any.
    columns : Sequence[str]
        What it is conditioned on: numbers enter linearly, words as categories. Scans that lack a value are left out, and
        those of a category with fewer than five subjects: its mean would be one person's latents.
    kind : {"auto", "gaussian", "mixture"}
        ``"mixture"`` takes two Gaussians at least, ``"auto"`` only where held-out subjects say so.
    seed : int
        Of folds and of the starts of mixtures.
    config : DensityConfig
        How it is chosen.

    Returns
    -------
    Density
        With every candidate in ``tried``.

    Raises
    ------
    LatentsError
        When the training scans are too few or all of them have the same latents.
    SettingError
        When a column is absent or constant, or `kind` is unknown.

    Examples
    --------
    >>> density = fit_density(space, scans=scans, columns=["age"], seed=0)  # doctest: +SKIP
    >>> old = density.sample(100, rng=np.random.default_rng(0), told=pd.DataFrame({"age": [80.0] * 100}))  # doctest: +SKIP
    """
    if kind not in KINDS:
        raise SettingError(f"The kind of a density is one of {', '.join(KINDS)}, got '{kind}'.")
    rows, n_left_out = _rows(space, scans, columns)
    if len(rows) - 1 < MIN_DEGREES:
        raise LatentsError(
            f"{len(rows)} training subjects have all of {', '.join(columns) or 'what is needed'}, too few for a density. "
            "Condition on less, or bring more scans."
        )
    told = () if scans is None or not columns else learn_columns(scans.loc[space.scans[rows]], columns)
    given = np.zeros((len(rows), 0)) if scans is None else as_numbers(told, scans.loc[space.scans[rows]])
    if len(rows) - 1 - given.shape[1] < MIN_DEGREES:
        raise LatentsError(
            f"{len(rows)} training subjects with {given.shape[1]} numbers of conditions leave fewer than {MIN_DEGREES} degrees "
            "of freedom, too few for a density. Bring more scans, or condition on less."
        )
    x, variance = space.coordinates[rows], space.variance[rows]
    varies = _varies(x, variance)
    taken, tried = choose(x[:, varies], given, variance[:, varies], kind=kind, config=config, seed=seed)
    slopes, mixture = fit_mixture(x[:, varies], given, variance[:, varies].mean(axis=0), taken, seed=seed)
    return Density(
        columns=told,
        slopes=slopes,
        mixture=mixture,
        varies=varies,
        fixed=x[:, ~varies].mean(axis=0),
        covariance=taken.covariance,
        tried=tried,
        n_subjects=len(rows),
        n_left_out=n_left_out,
    )


def _varies(x: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """(coordinate,) bool: the latent differs between scans, or is not known exactly."""
    spread = x.var(axis=0) + variance.mean(axis=0)
    if not spread.max() > SINGULAR * np.square(x).mean():
        raise LatentsError("The latents of all training scans are the same. Look at the diagnosis of the training.")
    return np.asarray(spread > SINGULAR * spread.max())


def _rows(space: LatentSpace, scans: pd.DataFrame | None, columns: Sequence[str]) -> tuple[np.ndarray, int]:
    """The first training scan of every subject of which all columns can be used, and how many scans cannot be."""
    training = np.flatnonzero(space.training)
    usable = np.ones(len(training), dtype=bool)
    if columns:
        absent = list(columns) if scans is None else [name for name in columns if name not in scans]
        if scans is None or absent:
            raise SettingError(
                f"The density is to be conditioned on {absent[0]}, and the table of scans has no such column. Name one that it "
                "has, or rename it with --column."
            )
        unlisted = space.scans[training].difference(scans.index)
        if len(unlisted):
            raise LatentsError(f"Training scan {unlisted[0]} is not in the table of scans. Give the table of the run.")
        usable = common(scans.loc[space.scans[training], list(columns)], space.subjects[training])
    rows = training[usable]
    first = np.sort(np.unique(space.subjects[rows], return_index=True)[1])
    return rows[first], int((~usable).sum())


def prior_latents(n: int, n_values: int, rng: np.random.Generator) -> np.ndarray:
    """Draws of a standard normal prior, (n, value) float64, for a model that was trained towards it."""
    return rng.standard_normal((n, n_values))
