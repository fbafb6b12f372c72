"""Image-level cohorts at 4 mm: the same simulated people under every condition, their latents and their regions.

Shapes cost the most, and no condition changes them: each person is deformed once and given the tissue loss, the site and
the age of every condition in turn.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from nilearn.mass_univariate import permuted_ols
from tests.calibration.calls import ALPHA, N_PERMUTATIONS, counted
from tests.calibration.cohorts import MOST_LATENTS, SCANS_PER_LATENT, STAGES, Cohort, labelled

from nilatent import cohort as scan_cohort
from nilatent.analysis.contrast import Comparison, compare_groups
from nilatent.analysis.regional import regional
from nilatent.atlas import RegionWeights, load_atlas, region_weights
from nilatent.encode import encode
from nilatent.models import ModelConfig
from nilatent.preprocess.resampling import smooth
from nilatent.simulate import SimulationConfig
from nilatent.simulate.anatomy import base_anatomy, grey_matter_maps
from nilatent.simulate.memory import template_ml
from nilatent.simulate.people import draw_people, visits_of_people
from nilatent.training.config import TrainConfig
from nilatent.training.loop import train
from nilatent.volumes import Grid, Volumes, gm_mask, volumes_in_memory, voxel_pca

N_PEOPLE, SPACING_MM, FWHM_MM = 80, 4.0, 8.0
COVARIATES = ("age", "sex", "intracranial_ml")
# A region of which cases lost less than this, compared with the same people unharmed, is called falsely. Between these and
# the planted ones are neighbours that truly lose some, by shape and smoothing.
LEAST_LOSS = 0.01


@dataclass(frozen=True)
class ImageCondition:
    """What a cohort of images is like.

    Parameters
    ----------
    effect, confounded, class_mediated
        As in :class:`nilatent.simulate.SimulationConfig`; an effect of 0 is the null.
    stages : bool
        Four stages of graded severity instead of two groups; compared are progressive and stable impairment.
    """

    effect: float = 0.0
    confounded: str = "none"
    class_mediated: bool = False
    stages: bool = False


UNHARMED = ImageCondition()


@dataclass(frozen=True, eq=False)
class Images:
    """One cohort of images.

    Parameters
    ----------
    volumes : Volumes
        Smoothed maps of everybody.
    regions : DataFrame
        Index scan_id, one column per region: mean grey matter.
    comparison : Comparison
        The groups that are compared; its rows are those of `volumes` and `regions`.
    loss : ndarray
        (region,) share of grey matter that cases lost beyond the reference group, against the same people unharmed.
    """

    volumes: Volumes
    regions: pd.DataFrame
    comparison: Comparison
    loss: np.ndarray

    @property
    def planted(self) -> np.ndarray:
        """(region,) bool: named in the simulation, and cases lost grey matter there."""
        return np.isin(self.regions.columns, SimulationConfig().regions) & ~self.spared

    @property
    def spared(self) -> np.ndarray:
        """(region,) bool: cases lost next to nothing."""
        return self.loss < LEAST_LOSS

    def with_latents(self, latents: np.ndarray) -> Cohort:
        """The cohort as the analyses take it, with these latents (scan, latent)."""
        scans = self.volumes.scans
        return Cohort(
            latents=labelled(latents, scans.index),
            regions=self.regions,
            scans=scans,
            errors=pd.DataFrame(),
            weights=atlas_weights(),
            grid=self.volumes.grid,
            mask=self.volumes.mask,
            planted=self.planted,
            spared=self.spared,
            contrast=self.comparison.label,
            covariates=COVARIATES,
            site="site",
        )


@cache
def atlas_weights() -> RegionWeights:
    """Default atlas on the grid of the maps."""
    grid = Grid.mni(SPACING_MM)
    return region_weights(load_atlas("aal2"), grid, gm_mask(grid))


def make_images(conditions: Mapping[str, ImageCondition], seed: int) -> dict[str, Images]:
    """One cohort of the same people for every condition."""
    config = SimulationConfig(n_subjects=N_PEOPLE, seed=seed, spacing_mm=SPACING_MM)
    # The difference from the same people unharmed is the truth of every condition.
    drawn = [_people(config, condition) for condition in (UNHARMED, *conditions.values())]
    visits = [visits_of_people(scans, planted) for scans, planted in drawn]
    anatomy, mask = base_anatomy(config), gm_mask(Grid.mni(SPACING_MM))
    maps = np.empty((len(drawn), N_PEOPLE, *mask.shape), dtype=np.float16)
    for person in range(N_PEOPLE):
        made = grey_matter_maps(config, anatomy, person, [visit[person][0] for visit in visits])
        maps[:, person] = [smooth(one, fwhm_mm=FWHM_MM, spacing_mm=SPACING_MM) for one in made]
    cohorts = {}
    unharmed = _measured(maps[0], drawn[0][0], mask)[1]
    for name, some, (scans, planted) in zip(conditions, maps[1:], drawn[1:], strict=True):
        volumes, regions = _measured(some, scans, mask)
        table = scans.assign(total_gm=regions.to_numpy() @ atlas_weights().n_voxels)
        contrast = "pMCI:sMCI" if conditions[name].stages else "patient:control"
        compared = compare_groups(
            table, group="group", contrast=contrast, covariates=(*COVARIATES, "total_gm"), site="site"
        )
        harmed = bool((planted["atrophy"] > 0).any())
        loss = _loss(regions, unharmed, compared) if harmed else np.zeros(regions.shape[1])
        cohorts[name] = Images(volumes, regions, compared, loss)
    return cohorts


def _people(config: SimulationConfig, condition: ImageCondition) -> tuple[pd.DataFrame, pd.DataFrame]:
    settings = replace(config, confounded=condition.confounded, class_mediated=condition.class_mediated)
    scans, planted = draw_people(settings, template_ml=template_ml())
    if condition.stages:
        rng = np.random.default_rng([config.seed, len(STAGES)])
        stage = np.arange(len(scans)) % len(STAGES)
        mean, sd = np.array(list(STAGES.values())).T
        severity = np.clip(mean[stage] + sd[stage] * rng.normal(size=len(stage)), 0, None)
        scans, planted = scans.assign(group=np.array(list(STAGES))[stage]), planted.assign(atrophy=severity)
    return scans, planted.assign(atrophy=condition.effect * planted["atrophy"])


def _measured(maps: np.ndarray, scans: pd.DataFrame, mask: np.ndarray) -> tuple[Volumes, pd.DataFrame]:
    volumes = volumes_in_memory(maps, mask=mask, grid=Grid.mni(SPACING_MM), scans=scans)
    return volumes, regional(volumes, atlas_weights())


def _loss(regions: pd.DataFrame, unharmed: pd.DataFrame, comparison: Comparison) -> np.ndarray:
    share = (1 - regions.to_numpy() / unharmed.to_numpy())[comparison.rows]
    return np.asarray(share[comparison.is_case].mean(axis=0) - share[~comparison.is_case].mean(axis=0))


def pca_latents(images: Images) -> np.ndarray:
    """(scan, latent) principal components of the voxels of everybody, as many as the models take."""
    rows = np.arange(len(images.regions))
    n_latent = min(len(rows) // SCANS_PER_LATENT, MOST_LATENTS)
    return voxel_pca(images.volumes, rows, n_latent, seed=0).scores(images.volumes.masked(rows)).astype(np.float64)


def trained_latents(images: Images, seed: int) -> np.ndarray:
    """(scan, latent) of the default model, trained on the training part; labels play no part."""
    nothing = pd.DataFrame(columns=["scan_id", "path", "stage", "rule", "reason"])
    everybody = scan_cohort.Cohort(images.volumes.scans, nothing, {})
    parts = scan_cohort.split(everybody, scan_cohort.SplitConfig(seed=seed))
    with tempfile.TemporaryDirectory() as folder:
        n_latent = min(int((parts["part"] == "train").sum()) // SCANS_PER_LATENT, MOST_LATENTS)
        settings = ModelConfig(n_latent=n_latent), TrainConfig(seed=seed, device="cpu")
        model = train(images.volumes, parts, *settings, Path(folder))
    return np.asarray(encode(model, images.volumes, parts)["mean"].values, dtype=np.float64)


def vbm_calls(images: Images, *, seed: int) -> dict[str, float]:
    """Planted and other regions that own a voxel which differs, by the maximum statistic over voxels."""
    compared = images.comparison
    found = permuted_ols(
        compared.is_case.astype(float)[:, None],
        images.volumes.masked(compared.rows).astype(np.float64),
        confounding_vars=compared.confounds,
        n_perm=N_PERMUTATIONS,
        random_state=seed,
        n_jobs=1,
        output_type="dict",
    )
    differs = found["logp_max_t"][0] >= -np.log10(ALPHA) - 1e-9
    matrix = atlas_weights().matrix
    # A voxel belongs to the region that covers most of it.
    owner = np.asarray(matrix.argmax(axis=0)).ravel()
    covered = np.asarray(matrix.max(axis=0).todense()).ravel() > 0
    called = np.isin(np.arange(matrix.shape[0]), owner[differs & covered])
    return counted({"vbm": called}, images.planted, images.spared)
