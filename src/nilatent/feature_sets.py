"""Feature sets of a run folder: the latents, and the rows that stand beside them, each made without the scans it is judged on."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr

from nilatent.analysis.prediction.sets import FeatureSet, covariate_set, latent_set, region_set, volume_set
from nilatent.latents import is_grid, read_latents
from nilatent.modalities import JOINT, MODALITIES, modality_names
from nilatent.parts import draw_folds
from nilatent.pools import Pools, scores_of
from nilatent.volumes import open_volumes

PCA = "voxel PCA"
GRID = "latent grid"
FLAT = 1e-9
WITH_RESIDUALS = "latents + residuals"
"""Latents beside as many components of the regional means that they leave unexplained."""


def described(pools: Pools) -> tuple[list[xr.Dataset], pd.DataFrame, np.ndarray]:
    """Which scans may be judged, the fold in which each is held out, and the latents of every fold.

    With cross-fitted models, all scans, each described by the model that has not seen its subject. Without, the scans of the
    study's test part alone, which its one model has not seen.

    Parameters
    ----------
    pools : Pools
        Of the run folder.

    Returns
    -------
    latents : list of Dataset
        One per fold; the same again and again where one model describes all.
    scans : DataFrame
        Rows of the cohort.
    folds : ndarray
        (scan,) counted from 0.
    """
    blind, config = pools.fold_latents(), pools.config
    if blind:
        scans = pools.prepared.scans
        return blind, scans, pools.parts["fold"].loc[scans.index].to_numpy()
    scans = _unseen(pools)
    strata = [name for name in (config.study.group, "sex") if name and name in scans]
    folds = draw_folds(scans, n_folds=config.split.n_folds, stratify=strata, seed=config.seed).to_numpy()
    return [pools.latents] * len(np.unique(folds)), scans, folds


def feature_sets(
    pools: Pools, latents: Sequence[xr.Dataset], scans: pd.DataFrame, folds: np.ndarray
) -> list[FeatureSet]:
    """What predicts: latents, alone and with what they leave, then the baselines; in the order of the table.

    Parameters
    ----------
    pools : Pools
        Of the run folder.
    latents, scans, folds : Sequence of Dataset, DataFrame, ndarray
        From :func:`described`.
    """
    sets = [latent_set(latents, scans)]
    if "network" in pools.config.prediction.heads:
        sets += _grid(pools, scans, n_folds=len(latents))
    sets.append(_whole_set(pools, scans, folds, sets[0]))
    sets.append(region_set(pools.regions, scans))
    sets.append(_voxel_set(pools, scans, [one.sizes["latent"] for one in latents] if pools.config.folds else []))
    # A scan that lacks one takes no part: the baseline must not be weakened in its stead.
    covariates = [name for name in pools.config.study.covariates if scans[name].notna().any()]
    sets += [covariate_set(scans, covariates)] if covariates else []
    volumes = volume_set(scans)
    return sets + ([volumes] if volumes is not None else [])


def joint_set(pools: Pools, scans: pd.DataFrame, *, n_folds: int) -> FeatureSet | None:
    """Latents of the joint models, each from all that a scan has; None where the study names no other modality.

    Parameters
    ----------
    pools : Pools
        Of the run folder.
    scans : DataFrame
        Scans that may be judged, from :func:`described`.
    n_folds : int
        Folds in which they are held out.

    Returns
    -------
    FeatureSet or None
        It knows whom each model has seen.
    """
    names = modality_names(pools.config)
    if not names:
        return None
    places = [pools.out / "folds" / str(fold) for fold in range(pools.config.folds)] or [pools.out]
    latents = [read_latents(place / JOINT) for place in places]
    return latent_set(latents if pools.config.folds else latents * n_folds, scans, name=f"joint ({', '.join(names)})")


def image_sets(pools: Pools, scans: pd.DataFrame, latents: Sequence[xr.Dataset]) -> list[FeatureSet]:
    """Principal components of the voxels of every further image, as many as latents; NaN in scans that lack it.

    Parameters
    ----------
    pools : Pools
        Of the run folder.
    scans, latents : DataFrame, Sequence of Dataset
        From :func:`described`.

    Returns
    -------
    list[FeatureSet]
        Each fitted on the training scans of the fold's model that have the image, or of the study's own without folds.
    """
    config = pools.config
    splits = [pools.fold_parts(fold) for fold in range(config.folds)] or [pools.parts]
    seen = np.array([(parts["part"] == "train").loc[scans.index] for parts in splits])
    seen = seen if config.folds else np.tile(seen, (len(latents), 1))
    sets = []
    for name in config.study.modalities:
        volumes = open_volumes(pools.out / MODALITIES / name)
        scores = [
            scores_of(volumes, one.sizes["latent"], parts, seed=config.seed).reindex(scans.index)
            for one, parts in zip(latents, splits, strict=False)
        ]
        values = tuple(one.to_numpy(dtype=np.float64) for one in scores)
        sets.append(FeatureSet(name, values, seen, baseline=False))
    return sets


def _unseen(pools: Pools) -> pd.DataFrame:
    latents = pools.latents
    chosen = ~latents["subject_in_training"].values & (latents["part"].values == "test")
    scans = pools.prepared.scans
    return scans[scans.index.isin(latents["scan"].values[chosen])]


def _voxel_set(pools: Pools, scans: pd.DataFrame, sizes: list[int]) -> FeatureSet:
    """Principal components of the voxels, as many as latents, fitted on the scans that trained the model beside them."""
    if sizes:
        scores = [pools.voxel_scores(n, pools.fold_parts(fold)) for fold, n in enumerate(sizes)]
    else:
        scores = [pools.voxel_scores(pools.latents.sizes["latent"], pools.parts)]
    values = tuple(one.loc[scans.index].to_numpy(dtype=np.float64) for one in scores)
    return FeatureSet(PCA, values, None, baseline=True)


def _whole_set(pools: Pools, scans: pd.DataFrame, folds: np.ndarray, latents: FeatureSet) -> FeatureSet:
    """Latents and what they leave of the regions, which is where a brain differs in ways that the model has not met."""
    left = [one.loc[scans.index].to_numpy(dtype=np.float64) for one in pools.residuals()]
    values = []
    for fold in range(len(latents.by_fold)):
        z = latents.of_fold(fold)
        values.append(np.hstack([z, leading(left[fold if len(left) > 1 else 0], folds != fold, z.shape[1])]))
    return FeatureSet(WITH_RESIDUALS, tuple(values), latents.seen, baseline=False)


def leading(x: np.ndarray, train: np.ndarray, n_components: int) -> np.ndarray:
    """Scores of all scans on the leading principal components of standardised features of the training scans.

    Few components, because one penalty weighs all features of a head: a hundred regions would drown a handful of latents.

    Parameters
    ----------
    x : ndarray
        (scan, feature).
    train : ndarray
        (scan,) bool: what is fitted is fitted on these.
    n_components : int
        At most so many; fewer where the training scans carry fewer.

    Returns
    -------
    ndarray
        (scan, component).
    """
    centre, spread = x[train].mean(axis=0), x[train].std(axis=0)
    # What is left of a constant is rounding, and must not be blown up to the size of the others.
    varies = spread > FLAT * (1e-3 + np.abs(centre))
    z = (x - centre) / np.where(varies, spread, 1.0) * varies
    _, sizes, axes = np.linalg.svd(z[train], full_matrices=False)
    kept = min(n_components, int((sizes > 1e-9 * sizes[0]).sum()))
    return np.asarray(z @ axes[:kept].T)


def _grid(pools: Pools, scans: pd.DataFrame, *, n_folds: int) -> list[FeatureSet]:
    """Spatial latents as they are, for a head that knows neighbours."""
    whole = pools.whole_latents()
    if not is_grid(whole[0]):
        return []
    described = whole if len(whole) == n_folds else whole * n_folds
    return [latent_set(described, scans, name=GRID)]
