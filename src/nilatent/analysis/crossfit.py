"""Cross-fitted latents: each scan by the model that has not seen its subject, and what may be pooled over such models."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

from nilatent.analysis import discriminability, stats
from nilatent.errors import CohortError
from nilatent.latents import check_latents


@dataclass(frozen=True, eq=False)
class CrossFit:
    """Latents of several models, and which of them has not seen a scan.

    Parameters
    ----------
    latents : tuple of ndarray
        (scan, latent) per model, all scans in each; coordinates of different models have nothing in common.
    folds : ndarray
        (scan,) number of the one model that has not seen the scan.
    """

    latents: tuple[np.ndarray, ...]
    folds: np.ndarray

    def rows(self, chosen: np.ndarray) -> "CrossFit":
        """The same of some scans, without the models that have seen all of these."""
        present, folds = np.unique(self.folds[chosen], return_inverse=True)
        return CrossFit(tuple(self.latents[number][chosen] for number in present), folds)

    @property
    def dummies(self) -> np.ndarray:
        """(scan, model - 1) 0/1 columns that say which model has not seen the scan."""
        return np.asarray(self.folds[:, None] == np.arange(1, len(self.latents)), dtype=np.float64)


def cross_fit(folds: Sequence[xr.Dataset], scans: pd.Index) -> CrossFit:
    """Latents of cross-fitted models in the order of the scans.

    Parameters
    ----------
    folds : Sequence of Dataset
        Latents of all scans, one data set per model, with the schema of :mod:`nilatent.latents`.
    scans : Index
        Identifiers of the scans.

    Returns
    -------
    CrossFit
        Latents per model and the model that has not seen a scan.

    Raises
    ------
    CohortError
        When there are fewer than two models, a model lacks a scan, a scan was seen by every model or is new to several, or
        labels shaped the latents: the model of a fold then knows labels of the others, and shuffled labels cannot say so.
    """
    if len(folds) < 2:
        raise CohortError(f"{len(folds)} cross-fitted model was given. Cross-fitting needs two at least.")
    for number, latents in enumerate(folds):
        check_latents(latents)
        apart = scans.symmetric_difference(pd.Index(latents["scan"].values))
        if len(apart):
            raise CohortError(
                f"Cross-fitted model {number} and the cohort do not hold the same scans: {apart[0]} ({len(apart)} in all) is "
                "in one only. Encode the whole cohort with every model."
            )
        if latents.attrs.get("supervised"):
            raise CohortError(
                f"Labels shaped the latents of cross-fitted model {number}, so it knows labels of the scans of other folds, and "
                "a test that shuffles labels would not be valid. Train the folds without labels."
            )
    chosen = [latents.sel(scan=scans.to_numpy()) for latents in folds]
    unseen = np.array([~latents["subject_in_training"].values for latents in chosen])
    odd = np.flatnonzero(unseen.sum(axis=0) != 1)
    if len(odd):
        raise CohortError(
            f"Scan {scans[odd[0]]} is new to {unseen[:, odd[0]].sum()} of {len(folds)} cross-fitted models ({len(odd)} such "
            "scans in all); each scan must be new to exactly one. Train the folds again from one split."
        )
    values = (latents["mean"].values.reshape(len(scans), -1).astype(np.float64) for latents in chosen)
    return CrossFit(tuple(values), unseen.argmax(axis=0))


def crossfit_association(
    crossed: CrossFit,
    regions: np.ndarray,
    orders: np.ndarray,
    *,
    confounds: np.ndarray | None,
) -> stats.ShareTest:
    """Whether regions can be read out of the latents of models that have not seen the scans read: p of each region.

    The statistic is the product of the region with its ridge readout (penalty 0.1), summed over folds. The readout is
    refitted in every permutation of the regions' residuals. Where models agree, what one fold learns from another is what
    the other learns from it, and a readout that is held fixed would miss up to half of the variance under the null
    hypothesis. All permutations are one matrix product.

    Parameters
    ----------
    crossed : CrossFit
        Latents per model.
    regions : ndarray
        (scan, region).
    orders : ndarray
        (permutation, scan) orders that stay within folds.
    confounds : ndarray or None
        (scan, confound), with :attr:`CrossFit.dummies` among them.

    Returns
    -------
    ShareTest
        `share` is the statistic; p-values are one-sided, since a readout that goes against its region is no association.
    """
    basis = stats.confound_basis(confounds, len(regions))
    x = stats.unit_residuals(regions, basis, what="The regions").astype(np.float32)
    seen, unseen = [], []
    for number, latents in enumerate(crossed.latents):
        new = crossed.folds == number
        train = np.flatnonzero(~new)
        z = discriminability.unit_scale(stats.residualise(latents, confounds, fit_rows=train), train)
        gram = z[train].T @ z[train] / len(train) + discriminability.PENALTY * np.eye(z.shape[1])
        mixed = np.linalg.solve(np.linalg.cholesky(gram), z.T).T
        seen.append(mixed * ~new[:, None])
        unseen.append(mixed * new[:, None])
    both = np.hstack([*seen, *unseen])
    both = (both - basis @ (basis.T @ both)).astype(np.float32)
    half = both.shape[1] // 2
    observed = ((both[:, :half].T @ x) * (both[:, half:].T @ x)).sum(axis=0)
    # Products of unit columns with latents of unit variance: relative to their size, a tie must count as a tie.
    scale = float(np.linalg.norm(both[:, :half], axis=0) @ np.linalg.norm(both[:, half:], axis=0)) + 1e-30
    exceeding, maxima = np.zeros(len(observed), dtype=np.int64), np.empty(len(orders))
    for start, products in stats.permuted_batches(both, x, basis, orders):
        statistic = (products[:half] * products[half:]).sum(axis=0)
        exceeding += np.count_nonzero(statistic >= observed - stats.TIE * scale, axis=0)
        maxima[start : start + len(statistic)] = statistic.max(axis=1)
    return stats.ShareTest(
        observed / scale, (1 + exceeding) / (1 + len(orders)), stats.max_p(observed / scale, maxima / scale)
    )
