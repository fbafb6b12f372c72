"""Array-level cohorts by a factor model: regions made of factors, voxels made of regions, latents by PCA of voxels.

No image and no training, so that a cohort costs a few milliseconds and thousands can be made.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd
import xarray as xr
from scipy import sparse

from nilatent.atlas import RegionWeights
from nilatent.latents import make_latents
from nilatent.volumes import Grid

# What the regions share: one factor of size, and factors that differ in which regions load on them.
N_NETWORKS, NETWORK_LOADING = 4, 0.5
VOXELS_PER_REGION = 4
SCANS_PER_LATENT, MOST_LATENTS = 4, 32
N_FOLDS = 5
# Mean and SD over regions of what a standard deviation of age takes, per unit of age_effect: a mean alone would be removed
# with total grey matter.
AGE_ON_REGIONS, AGE_SPREAD = 0.7, 0.5
# Share of people who were scanned where most of their group were, when site and group are confounded.
SITE_ODDS = 0.85
# Mean and SD of severity by stage. Stable and progressive impairment overlap, as they do at the first visit.
STAGES = {"CN": (0.0, 0.0), "sMCI": (0.3, 0.2), "pMCI": (0.8, 0.3), "AD": (1.2, 0.4)}


@dataclass(frozen=True)
class Condition:
    """What a cohort is like.

    Parameters
    ----------
    n : int
        Scans that are compared, one per subject.
    n_regions : int
        Regions in a row: number r lies between r - 1 and r + 1.
    n_latent : int or None
        Principal components of the voxels; None takes one for every four scans, at most 32, as the models do.
    planted : tuple[int, ...]
        Regions that the disease changes.
    effect : float
        By how much a case of severity 1 is lower in these, in SD of what is specific to a region.
    neighbours : float
        Correlation of what is specific to two regions next to each other, in [0, 1).
    age_effect, site_effect : float
        How strongly age (site) acts on the regions and goes with the group; 0 is not at all.
    told : bool
        Age and site are handed over as confounds. Untold they must show, or the condition would prove nothing.
    cases : float
        Share of cases.
    class_mediated : bool
        Planted regions vary by themselves and the model does not see them; it sees the disease elsewhere. Then regions
        and latents go together between groups and never within one.
    stages : bool
        Four stages of `n` / 2 scans each share the latents; compared are progressive (cases) and stable impairment.
    """

    n: int = 60
    n_regions: int = 60
    n_latent: int | None = None
    planted: tuple[int, ...] = (10, 30, 50)
    effect: float = 0.0
    neighbours: float = 0.5
    age_effect: float = 0.0
    site_effect: float = 0.0
    told: bool = True
    cases: float = 0.5
    class_mediated: bool = False
    stages: bool = False


@dataclass(frozen=True, eq=False)
class Cohort:
    """A cohort as the analyses take it, with the truth.

    Parameters
    ----------
    latents : Dataset
        Latents with the schema of :mod:`nilatent.latents`.
    regions : DataFrame
        Index scan_id, one column per region.
    scans : DataFrame
        Index scan_id; ``subject_id``, ``group``, ``age``, ``site``, and ``score``, a number that goes with age, site and
        disease as the group does.
    errors : DataFrame
        Index scan_id; ``fold``, ``error``, ``subject_id``: errors of reconstruction that overall size, age and site shape
        and no region beyond them.
    weights, grid, mask : RegionWeights, Grid, ndarray
        The atlas on the grid.
    planted, spared : ndarray
        (region,) bool: the groups truly differ; they truly do not. Images have regions between, next to planted ones.
    contrast : str
        Groups that are compared.
    covariates : tuple[str, ...]
        Handed over as confounds.
    site : str
        Column of the site; empty when there is one, or when nobody was told.
    """

    latents: xr.Dataset
    regions: pd.DataFrame
    scans: pd.DataFrame
    errors: pd.DataFrame
    weights: RegionWeights
    grid: Grid
    mask: np.ndarray
    planted: np.ndarray
    spared: np.ndarray
    contrast: str
    covariates: tuple[str, ...]
    site: str


def make_cohort(condition: Condition, seed: int) -> Cohort:
    """A cohort of the given kind; the same seed gives the same cohort."""
    rng = np.random.default_rng([seed, condition.n, condition.n_regions])
    people = 2 * condition.n if condition.stages else condition.n
    age = rng.normal(size=people)
    stage = _stages(condition, age, rng)
    severity = _severity(condition, stage, rng)
    is_case = stage >= 2 if condition.stages else stage == 1
    second = rng.random(people) < np.where(is_case, SITE_ODDS, 1 - SITE_ODDS)
    x = _regions(condition, rng, age=age, second=second)
    x[:, condition.planted] -= condition.effect * severity[:, None]
    voxels = np.repeat(x, VOXELS_PER_REGION, axis=1)
    voxels += rng.normal(size=voxels.shape)
    latents = _components(condition, voxels, severity, rng)
    regions = voxels.reshape(people, condition.n_regions, VOXELS_PER_REGION).mean(axis=2)
    nuisance = condition.age_effect * age + condition.site_effect * second
    score = nuisance + condition.effect * severity + rng.normal(size=people)
    log_error = 0.5 * (nuisance + regions.mean(axis=1)) + rng.normal(size=people)
    index = pd.Index([f"sub-{number:04d}" for number in range(people)], name="scan_id")
    names = list(STAGES) if condition.stages else ["control", "patient"]
    sites = np.where(second, "second", "first")
    scans = pd.DataFrame(
        {"subject_id": index, "group": np.array(names)[stage], "age": age, "site": sites, "score": score}, index=index
    )
    errors = pd.DataFrame(
        {"fold": np.arange(people) % N_FOLDS, "error": np.exp(log_error), "subject_id": index}, index=index
    )
    weights, grid, mask = one_voxel_atlas(condition.n_regions)
    planted = np.isin(np.arange(condition.n_regions), condition.planted) & (condition.effect > 0)
    return Cohort(
        latents=labelled(latents, index),
        regions=pd.DataFrame(regions, index=index, columns=list(weights.names)),
        scans=scans,
        errors=errors,
        weights=weights,
        grid=grid,
        mask=mask,
        planted=planted,
        spared=~planted,
        contrast="pMCI:sMCI" if condition.stages else "patient:control",
        covariates=("age",) if condition.told else (),
        site="site" if condition.told and condition.site_effect > 0 else "",
    )


def labelled(latents: np.ndarray, index: pd.Index) -> xr.Dataset:
    """Latents with the schema of the package, of a model that has seen everybody's images and nobody's label."""
    return make_latents(
        latents,
        np.zeros_like(latents),
        scan=list(index),
        subject=list(index),
        subject_in_training=np.ones(len(index), dtype=bool),
        part=["train"] * len(index),
        model_hash="",
        volumes_hash="",
    )


@cache
def one_voxel_atlas(n_regions: int) -> tuple[RegionWeights, Grid, np.ndarray]:
    """An atlas whose regions have one voxel each, with its grid and mask."""
    grid = Grid.mni(6.0)
    mask = np.zeros(grid.shape, dtype=bool)
    mask.ravel()[:n_regions] = True
    names = [f"region {number:03d}" for number in range(n_regions)]
    nothing = pd.DataFrame(columns=["label", "name", "n_voxels", "reason"])
    return (
        RegionWeights(sparse.eye_array(n_regions, format="csr"), np.arange(1, n_regions + 1), names, nothing),
        grid,
        mask,
    )


def _stages(condition: Condition, age: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(scan,) stage from 0, equal in size; or 1 for cases and 0 for others. The first are older when age acts."""
    order = np.argsort(np.argsort(-(condition.age_effect * age + rng.normal(size=len(age)))))
    if condition.stages:
        return order % len(STAGES)
    return (order < round(condition.cases * len(age))).astype(int)


def _severity(condition: Condition, stage: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    if not condition.stages:
        return stage.astype(float)
    mean, sd = np.array(list(STAGES.values())).T
    return np.clip(mean[stage] + sd[stage] * rng.normal(size=len(stage)), 0, None)


def _regions(condition: Condition, rng: np.random.Generator, *, age: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(scan, region) before the disease."""
    n, n_regions = len(age), condition.n_regions
    loadings = NETWORK_LOADING * rng.normal(size=(N_NETWORKS, n_regions))
    shared = rng.normal(size=(n, 1)) + rng.normal(size=(n, N_NETWORKS)) @ loadings
    distance = np.abs(np.subtract.outer(np.arange(n_regions), np.arange(n_regions)))
    x = shared + rng.normal(size=(n, n_regions)) @ np.linalg.cholesky(condition.neighbours**distance).T
    if condition.class_mediated:
        x[:, condition.planted] = rng.normal(size=(n, len(condition.planted)))
    ageing = AGE_ON_REGIONS + AGE_SPREAD * rng.normal(size=n_regions)
    x -= condition.age_effect * age[:, None] * ageing
    return x + condition.site_effect * second[:, None] * rng.normal(size=n_regions)


def _components(condition: Condition, voxels: np.ndarray, severity: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(scan, latent) principal components of what the model sees."""
    if condition.class_mediated:
        hidden = np.isin(np.arange(voxels.shape[1]) // VOXELS_PER_REGION, condition.planted)
        elsewhere = rng.normal(size=(len(voxels), hidden.sum())) - condition.effect * severity[:, None]
        voxels = np.hstack([voxels[:, ~hidden], elsewhere])
    n_latent = condition.n_latent or min(len(voxels) // SCANS_PER_LATENT, MOST_LATENTS)
    centred = voxels - voxels.mean(axis=0)
    return np.asarray(centred @ np.linalg.svd(centred, full_matrices=False)[2][:n_latent].T)
