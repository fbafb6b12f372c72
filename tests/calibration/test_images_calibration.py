"""Cohorts of images are those of the simulator, and their truth is what was planted."""

import numpy as np
import pytest
from tests.calibration import images
from tests.calibration.calls import called_regions
from tests.calibration.images import ImageCondition, make_images, pca_latents, vbm_calls

from nilatent.preprocess.resampling import smooth
from nilatent.simulate import SimulationConfig, simulate_maps

pytestmark = pytest.mark.slow
CONDITIONS = {
    "null": ImageCondition(),
    "site": ImageCondition(confounded="site"),
    "harmed": ImageCondition(effect=1.0),
    "stages": ImageCondition(effect=1.0, stages=True),
}


@pytest.fixture(scope="module")
def made():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "N_PEOPLE", 48)
        yield make_images(CONDITIONS, 7)


def test_the_maps_are_those_of_the_simulator(made):
    config = SimulationConfig(n_subjects=1, seed=7, null=True, confounded="site")
    first = simulate_maps(config).maps[0]
    # Noise is drawn anew for each condition; smoothing leaves little of it.
    expected = smooth(first, fwhm_mm=images.FWHM_MM, spacing_mm=images.SPACING_MM)
    found = made["site"].volumes.data[0].astype(np.float32)
    assert np.abs(found - expected).max() < 0.1
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.999


def test_the_planted_regions_lose_what_was_planted_and_most_others_nothing(made):
    harmed = made["harmed"]
    planted = harmed.loss[harmed.planted]
    assert harmed.planted.sum() == 4
    # Smoothing and shape spread a loss of .20 to .35 over the neighbourhood.
    assert (planted > 0.03).all()
    assert (planted < 0.35).all()
    assert harmed.spared.mean() > 0.8
    assert not made["null"].planted.any()
    assert made["null"].spared.all()


def test_stages_compare_the_two_in_the_middle(made):
    stages = made["stages"]
    assert stages.comparison.label == "pMCI:sMCI"
    assert len(stages.comparison.rows) == 24
    assert 0 < stages.loss.max() < made["harmed"].loss.max()


def test_site_goes_with_the_group_only_where_it_shall(made):
    def shared(name: str) -> float:
        scans = made[name].volumes.scans
        return abs(np.corrcoef(scans["group"] == "patient", scans["site"] == "site2")[0, 1])

    assert shared("site") > 0.4
    assert shared("null") < 0.4


def test_every_method_counts_the_same_regions(made):
    harmed = made["harmed"]
    row = called_regions(harmed.with_latents(pca_latents(harmed)), 0) | vbm_calls(harmed, seed=0)
    assert row["n_planted"] == 4
    assert row["roi_planted"] >= 1
    assert row["vbm_planted"] >= 1
    assert all(row[name] <= 4 for name in row if name.endswith("_planted"))
