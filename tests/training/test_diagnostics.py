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
    overfitting,
    posterior_collapse,
    prior_mismatch,
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


@pytest.mark.parametrize(
    ("model", "state"),
    [((0.5, 0.7), "absent"), ((0.4, 0.69), "absent"), ((0.2, 0.75), "found"), ((0.9, 0.95), "absent")],
)
def test_overfitting_is_a_gap_beyond_that_of_pca(model: tuple[float, float], state: str) -> None:
    assert overfitting(model, (0.5, 0.7), last=model[1]).state == state


def test_overfitting_after_the_kept_epoch_was_stopped() -> None:
    assert overfitting((0.5, 0.7), (0.5, 0.7), last=0.79).state == "absent"
    assert overfitting((0.5, 0.7), (0.5, 0.7), last=0.81).state == "stopped"
    assert overfitting((0.2, 0.75), (0.5, 0.7), last=0.9).state == "found"


def aggregate(
    rng: np.random.Generator, *, spread: float, off: float, width: float = 0.6
) -> tuple[np.ndarray, np.ndarray]:
    """Posteriors of 12 scans, six latents, whose aggregate has that SD and lies that far from zero."""
    means = off + np.sqrt(spread**2 - width**2) * rng.standard_normal((12, 6))
    return means.astype(np.float32), np.full((12, 6), 2 * np.log(width), dtype=np.float32)


@pytest.mark.parametrize(
    ("spread", "off", "state"), [(1.0, 0.0, "absent"), (0.62, 0.0, "found"), (1.9, 0.0, "found"), (1.0, 1.0, "found")]
)
def test_prior_mismatch_is_in_spread_or_place(rng: np.random.Generator, spread: float, off: float, state: str) -> None:
    assert prior_mismatch(*aggregate(rng, spread=spread, off=off)).state == state


def test_prior_mismatch_allows_for_chance(rng: np.random.Generator) -> None:
    """Few scans with the prior as their aggregate are called in few of many cohorts."""
    states = [prior_mismatch(*aggregate(rng, spread=1.0, off=0.0)).state for _ in range(200)]
    assert states.count("found") <= 10
    few = aggregate(rng, spread=1.0, off=0.0)
    assert prior_mismatch(few[0][:5], few[1][:5]).state == "not assessed"
