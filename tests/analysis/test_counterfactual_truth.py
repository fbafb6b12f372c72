"""The same simulated people with and without the disease, and ten years on: the true counterfactuals."""

import numpy as np
import pandas as pd
import pytest

from nilatent.analysis.counterfactual import CounterfactualConfig, counterfactual, shift, slopes_of
from nilatent.analysis.latent_space import LatentSpace
from nilatent.analysis.regional import regional
from nilatent.atlas import load_atlas, region_weights
from nilatent.latents import Frame
from nilatent.simulate.config import SimulationConfig
from nilatent.simulate.memory import simulate_maps
from nilatent.volumes import gm_mask, volumes_in_memory

pytestmark = pytest.mark.slow

PEOPLE = {"n_subjects": 96, "seed": 3, "spacing_mm": 6.0}
HELD = ("age", "sex", "intracranial_ml")
N_FOLDS, N_COMPONENTS = 3, 40


def volumes_of(config):
    cohort = simulate_maps(config)
    return volumes_in_memory(cohort.maps, mask=gm_mask(cohort.grid), grid=cohort.grid, scans=cohort.scans), cohort


def linear_space(volumes, seen):
    """Principal components of the training scans, as an encoder and a decoder."""
    x = volumes.masked(np.arange(len(volumes.scans))).astype(np.float64)
    mean = x[seen].mean(axis=0)
    axes = np.linalg.svd(x[seen] - mean, full_matrices=False)[2][:N_COMPONENTS]
    return LatentSpace(
        scans=volumes.scans.index,
        subjects=volumes.scans["subject_id"].to_numpy(str),
        values=(x - mean) @ axes.T,
        frame=Frame(np.zeros(N_COMPONENTS), np.eye(N_COMPONENTS)),
        variance=np.zeros((len(x), N_COMPONENTS)),
        names=tuple(f"z{i:03d}" for i in range(N_COMPONENTS)),
        training=seen,
        unseen=~seen,
        has_prior=False,
        told=(),
        draw_latents=lambda latents, _: iter([(mean + latents @ axes).astype(np.float32)]),
    )


@pytest.fixture(scope="session")
def sick():
    volumes, cohort = volumes_of(SimulationConfig(**PEOPLE))
    weights = region_weights(load_atlas("aal2"), cohort.grid, volumes.mask)
    spaces = [linear_space(volumes, np.arange(96) % N_FOLDS != fold) for fold in range(N_FOLDS)]
    return volumes, cohort, weights, spaces


def expected_change(sick, changes, *, others):
    """(scan, region) of the model, and of regional regression on the same training scans, by the fold that has not seen it."""
    volumes, cohort, weights, spaces = sick
    regions = regional(volumes, weights)
    model, regression = (pd.DataFrame(np.nan, index=regions.index, columns=regions.columns) for _ in range(2))
    ((column, value),) = changes.items()
    levels = None if column == "age" else ("control", "patient")
    for space in spaces:
        rows = np.flatnonzero(space.unseen)
        steps, told = shift(space, cohort.scans, rows, changes, others=others, site="site")
        changed, now = (np.concatenate(list(space.moved(rows, by, told))) for by in (steps, 0 * steps))
        model.iloc[rows] = (weights.matrix @ (changed - now).T).T / weights.n_voxels
        slopes = slopes_of(regions, cohort.scans[space.training], column, others=others, site="site", levels=levels)
        regression.iloc[rows] = slopes.to_numpy() * (float(value) if levels is None else 1.0)
    return regions, model, regression


def error_percent(expected, true, mean):
    return float(np.sqrt(np.square(100 * (expected - true) / mean).mean().mean()))


def test_patients_as_controls_are_nearer_to_their_healthy_twins(sick):
    _, cohort, weights, _ = sick
    twins, _ = volumes_of(SimulationConfig(**PEOPLE, null=True))
    patients = (cohort.scans["group"] == "patient").to_numpy()
    regions, model, regression = expected_change(sick, {"group": "control"}, others=HELD)
    true = regional(twins, weights) - regions
    assert not true[~patients].to_numpy().any()
    true, model, regression = true[patients], model[patients], regression[patients]
    mean, planted = regions[patients].mean(), list(cohort.regions["name"])
    nothing = error_percent(0 * true[planted], true[planted], mean[planted])
    of_model = error_percent(model[planted], true[planted], mean[planted])
    assert of_model < 0.6 * nothing
    assert of_model < 1.25 * error_percent(regression[planted], true[planted], mean[planted])
    share = (model[planted].mean() / true[planted].mean()).to_numpy()
    np.testing.assert_allclose(share, 1, atol=0.35)
    strength = (100 * model.mean() / mean).abs()
    others = strength.drop(planted)
    assert (strength[planted].to_numpy()[:, None] > others.to_numpy()).mean() > 0.95


def test_ten_years_are_the_planted_three_per_cent(sick):
    volumes, cohort, weights, spaces = sick
    config = CounterfactualConfig(
        changes=("age=+10",), covariates=HELD, site="site", n_bootstrap=200, n_permutations=200
    )
    found = counterfactual(spaces, volumes, regional(volumes, weights), cohort.scans, weights, config)
    total = found.table.iloc[0]
    planted = 100 * (np.exp(-0.003 * 10) - 1)
    assert total["percent_low"] < planted < total["percent_high"]
    assert total["percent_high"] < 0
    assert abs(total["percent"] - planted) < 1.5
