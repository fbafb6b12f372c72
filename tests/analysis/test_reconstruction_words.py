import numpy as np
import pytest
import xarray as xr

from nilatent.analysis.reconstruction.measures import METHODS, METRICS, Measures
from nilatent.analysis.reconstruction.words import caveats, regions_sentence, verdict, worse_levels


def test_a_verdict_needs_an_interval_that_excludes_zero():
    assert verdict((-0.2, -0.3, -0.1)) == "better than"
    assert verdict((0.2, 0.1, 0.3)) == "worse than"
    assert verdict((-0.1, -0.3, 0.1)) == "not distinguishable from"
    assert verdict((1e-7, -1e-6, 1e-6)) == "the same as"


def test_the_best_and_the_worst_region_are_named():
    fvu = xr.DataArray([[0.5, np.nan, 0.2, 0.9]], {"approach": ["model"], "region": list("abcd")})
    said = regions_sentence(xr.Dataset({"region_fvu": fvu}))
    assert said == " Of 3 regions c is kept best (FVU 0.200) and d worst (FVU 0.900)."


@pytest.mark.parametrize(("n_scales", "said"), [(2, "uses 2 of the five scales"), (5, "uses the five scales")])
def test_caveats_say_how_many_scales_fit(n_scales, said):
    settings = {"n_components_pca": 3, "n_latent": 3, "n_scales_ssim": n_scales, "cells_downsampling": [1, 1, 2]}
    found = caveats(settings | {"n_values_downsampling": 2, "features": "", "n_train": 9}, n_held_out=4)
    assert any(said in line for line in found)
    assert not any("PCA has" in line or "Deep features" in line for line in found)


def measured(model, deviation):
    """Measures with the squared errors of model and mean image alone; PCA's are those of the model."""
    values = np.full((len(METRICS), len(METHODS), len(model)), np.nan)
    values[METRICS.index("mse")] = np.stack([model, model, model, deviation])
    nothing = np.zeros(0)
    return Measures(values, nothing, nothing, nothing, nothing, {}, nothing, nothing, nothing)


def said_of(rng, *, worse, n_here=5, n=20):
    deviation = np.exp(0.3 * rng.normal(size=n))
    model = deviation * (0.8 + 0.05 * rng.normal(size=n))
    model[:n_here] += worse * deviation[:n_here]
    subjects, here = np.arange(n).astype(object), np.arange(n_here)
    strata = {("", "all"): np.arange(n), ("site", "a"): here, ("site", "b"): np.arange(n_here, n)}
    return worse_levels(measured(model, deviation), subjects, strata, seed=0)


def test_sites_that_are_alike_are_seldom_called_worse(rng):
    called = sum(bool(said_of(rng, worse=0.0)) for _ in range(150))
    # 5 % of 150 are 7.5; more than 14 come once in a hundred times.
    assert called <= 14


def test_a_worse_site_is_called_so_with_its_numbers(rng):
    said = said_of(rng, worse=0.15)
    assert said.startswith(" Of site a (5 scans) the model keeps clearly less than of the others: FVU 0.9")
    assert " b (" not in said


def test_columns_that_part_the_scans_alike_are_one(rng):
    n = 20
    model = np.where(np.arange(n) < 8, 0.9, 0.7) + 0.01 * rng.normal(size=n)
    a, b = np.arange(8), np.arange(8, n)
    strata = {("", "all"): np.arange(n), ("dataset", "x"): a, ("dataset", "y"): b, ("site", "1"): a, ("site", "2"): b}
    said = worse_levels(measured(model, np.ones(n)), np.arange(n).astype(object), strata, seed=0)
    assert said.count("clearly less") == 1


def test_many_scans_of_one_subject_are_no_evidence(rng):
    model = np.where(np.arange(60) < 6, 0.9, 0.7) + 0.01 * rng.normal(size=60)
    strata = {("", "all"): np.arange(60), ("site", "a"): np.arange(30), ("site", "b"): np.arange(30, 60)}
    one_by_one, six_each = np.arange(60).astype(object), (np.arange(60) // 6).astype(object)
    assert worse_levels(measured(model, np.ones(60)), one_by_one, strata, seed=0)
    assert not worse_levels(measured(model, np.ones(60)), six_each, strata, seed=0)
