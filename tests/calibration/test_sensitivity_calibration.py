"""Decoder sensitivity on array-level cohorts and on simulated brains: errors under nulls, and the truth along the group."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score
from tests.calibration.cohorts import Cohort, Condition, make_cohort
from tests.calibration.images import FWHM_MM, SPACING_MM, atlas_weights

from nilatent.analysis import stats
from nilatent.analysis.contrast import compare_groups
from nilatent.analysis.latent_space import LatentSpace
from nilatent.analysis.regional import regional
from nilatent.analysis.sensitivity import SensitivityConfig, sensitivity
from nilatent.analysis.sensitivity.people import permuted_pattern
from nilatent.finding import Finding
from nilatent.latents import Frame
from nilatent.preprocess.resampling import smooth
from nilatent.simulate import SimulationConfig
from nilatent.simulate.memory import simulate_maps
from nilatent.volumes import gm_mask, volumes_in_memory

pytestmark = pytest.mark.slow
N_FOLDS, N_NULLS, ALPHA = 4, 100, 0.05
SCANS_PER_LATENT = 4


def pca_space(images: np.ndarray, index: pd.Index, training: np.ndarray) -> LatentSpace:
    """The linear model that decoders start from: principal components of the training images."""
    pca = PCA(int(training.sum()) // SCANS_PER_LATENT, svd_solver="full").fit(images[training])
    values = pca.transform(images)
    width = values.shape[1]
    return LatentSpace(
        scans=index,
        subjects=index.to_numpy().astype(str),
        values=values,
        frame=Frame(np.zeros(width), np.eye(width)),
        variance=np.zeros_like(values),
        names=tuple(f"z{number:03d}" for number in range(width)),
        training=training,
        unseen=~training,
        has_prior=False,
        told=(),
        draw_latents=partial(_drawn, pca),
    )


def _drawn(pca: PCA, latents: np.ndarray, _told: pd.DataFrame | None):
    yield pca.inverse_transform(latents).astype(np.float32)


def spaces_of(images: np.ndarray, index: pd.Index) -> list[LatentSpace]:
    """One per fold."""
    folds = np.random.default_rng(len(index)).permutation(len(index)) % N_FOLDS
    return [pca_space(images, index, folds != fold) for fold in range(N_FOLDS)]


def smallest_p(cohort: Cohort, seed: int) -> float:
    """Smallest family-wise p of the group over the regions that components of cross-fitted models draw."""
    asked = compare_groups(
        cohort.scans, group="group", contrast=cohort.contrast, covariates=cohort.covariates, site=cohort.site
    )
    x = cohort.regions.to_numpy()[asked.rows]
    folds = np.random.default_rng(seed).permutation(len(x)) % N_FOLDS
    trained = [np.flatnonzero(folds != fold) for fold in range(N_FOLDS)]
    drawn = []
    for own in trained:
        pca = PCA(len(own) // SCANS_PER_LATENT, svd_solver="full").fit(x[own])
        drawn.append(pca.inverse_transform(pca.transform(x[own])))
    orders = stats.permutations(len(x), 199, seed=seed, blocks=asked.blocks)
    return float(permuted_pattern(drawn, trained, asked.is_case.astype(float), asked.confounds, orders).p_fwe.min())


@pytest.mark.parametrize(
    "condition",
    [Condition(n=60), Condition(n=80, age_effect=1.0, site_effect=1.0)],
    ids=["null", "age and site go with the group"],
)
def test_of_cohorts_without_an_effect_one_in_twenty_has_a_region(condition: Condition) -> None:
    false = sum(smallest_p(make_cohort(condition, seed), seed) <= ALPHA for seed in range(N_NULLS))
    assert binomtest(false, N_NULLS, ALPHA, alternative="greater").pvalue > 0.001


@dataclass(frozen=True, eq=False)
class Brains:
    """Sensitivity of simulated brains, and which regions lost grey matter, by how much of a patient's mean."""

    finding: Finding
    loss: pd.Series


def brains(*, n: int, effect: float, seed: int) -> Brains:
    """Grey-matter maps at 4 mm with four planted regions, smoothed as they are prepared."""
    made = simulate_maps(SimulationConfig(n_subjects=n, effect=effect, seed=seed, spacing_mm=SPACING_MM))
    maps = np.stack([smooth(one, fwhm_mm=FWHM_MM, spacing_mm=SPACING_MM) for one in made.maps])
    mask = gm_mask(made.grid)
    volumes = volumes_in_memory(maps, mask=mask, grid=made.grid, scans=made.scans)
    weights = atlas_weights()
    spaces = spaces_of(maps[:, mask], made.scans.index)
    config = SensitivityConfig(contrast="patient:control", covariates=("age", "sex"), site="site", n_permutations=499)
    found = sensitivity(spaces[0], spaces, regional(volumes, weights), made.scans, weights, made.grid, mask, config)
    planted = made.regions.set_index("name")["mean_loss"]
    return Brains(found, planted.reindex(weights.names).fillna(0.0))


def area(values: pd.Series, loss: pd.Series) -> float:
    """Planted against other regions by the size of an effect."""
    return float(roc_auc_score(loss.loc[values.index] > 0, values.abs()))


def test_the_direction_of_the_group_moves_the_planted_regions() -> None:
    one = brains(n=100, effect=1.0, seed=3)
    table = one.finding.table
    group = table[table["direction"] == "group:patient:control"].set_index("region")
    assert area(group["effect"], one.loss) >= 0.95
    assert (group.loc[one.loss.index[one.loss > 0], "effect"] < 0).all()
    assert group.loc[one.loss.index[one.loss > 0], "p"].max() <= ALPHA


def test_of_a_small_effect_in_few_scans_the_decoder_says_how_little_it_draws() -> None:
    """Eleven latents of 45 scans draw a part of a loss of a tenth."""
    found = brains(n=60, effect=0.4, seed=3).finding
    carried = float(found.data["carried"].sel(direction="group:patient:control"))
    assert carried < 0.9
    assert f"the decoder draws {carried:.0%} of its slopes" in found.answer
