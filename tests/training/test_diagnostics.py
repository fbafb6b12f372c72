import math
from itertools import combinations

import numpy as np
import pytest

from nilatent.training.diagnostics import (
    Fit,
    attainable_share,
    fit,
    fvu,
    mean_local_minimum,
    posterior_collapse,
)

MEAN_IMAGE = Fit(mse=1.0, variance=0.0, correlation=1.0)
PCA = Fit(mse=0.8, variance=0.2, correlation=0.9)


def test_fit_is_the_naive_one_over_any_chunks(rng: np.random.Generator) -> None:
    x, made = rng.standard_normal((2, 7, 50)).astype(np.float32)
    found = fit((x[part], made[part]) for part in (slice(0, 3), slice(3, 4), slice(4, 7)))
    assert found.mse == pytest.approx(((x - made) ** 2).mean(), rel=1e-5)
    assert found.variance == pytest.approx(made.var(axis=0, ddof=1).mean(), rel=1e-5)
    pairs = [np.corrcoef(made[i], made[j])[0, 1] for i, j in combinations(range(7), 2)]
    assert found.correlation == pytest.approx(np.mean(pairs), abs=1e-6)


def test_one_scan_has_no_variance_and_no_correlation() -> None:
    found = fit([(np.ones((1, 4), np.float32), np.zeros((1, 4), np.float32))])
    assert (found.mse, found.variance, math.isnan(found.correlation)) == (1.0, 0.0, True)


def test_fvu_and_share_are_relative_to_the_trivial() -> None:
    assert fvu(Fit(0.9, 0.1, 0.9), MEAN_IMAGE) == pytest.approx(0.9)
    assert attainable_share(0.9, 0.8) == pytest.approx(0.5)
    assert math.isnan(attainable_share(0.9, 1.0))


@pytest.mark.parametrize(
    ("model", "pca", "state"),
    [
        (Fit(0.79, 0.2, 0.9), PCA, "absent"),
        (Fit(0.91, 0.2, 0.9), PCA, "found"),
        (Fit(0.80, 0.09, 0.9), PCA, "found"),
        (Fit(0.80, 0.2, 0.9999), PCA, "found"),
        (Fit(0.80, 0.2, 0.9999), Fit(0.8, 0.2, 0.9999), "absent"),
        (Fit(1.00, 0.0, 1.0), Fit(0.992, 0.01, 0.9), "nothing attainable"),
        (Fit(1.00, 0.0, 1.0), Fit(1.2, 0.3, 0.9), "nothing attainable"),
    ],
)
def test_the_mean_local_minimum_is_judged_by_what_is_attainable(model: Fit, pca: Fit, state: str) -> None:
    assert mean_local_minimum(model, pca, MEAN_IMAGE).state == state


def test_a_verdict_says_the_numbers_and_what_to_do() -> None:
    said = mean_local_minimum(Fit(0.95, 0.01, 1.0), PCA, MEAN_IMAGE).sentence
    assert "5.0 %" in said
    assert "PCA 20.0 %" in said
    assert "lower the learning rate" in said


@pytest.mark.parametrize(("n_dead", "state"), [(0, "absent"), (1, "absent"), (2, "found"), (4, "found")])
def test_collapse_is_found_when_half_of_the_latents_are_dead(rng: np.random.Generator, n_dead: int, state: str) -> None:
    means = rng.standard_normal((200, 4)).astype(np.float32)
    means[:, :n_dead] = 0.0
    verdict = posterior_collapse(means, 0.5 * means**2)
    assert verdict.state == state
    assert f"{4 - n_dead} of 4" in verdict.sentence
