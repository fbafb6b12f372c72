import math
from itertools import combinations

import numpy as np
import pytest

from nilatent.models.losses import LOG_VAR_RANGE
from nilatent.training.diagnostics import (
    Fit,
    Swap,
    attainable_share,
    blur,
    divergence,
    fit,
    fvu,
    mean_local_minimum,
    overfitting,
    posterior_collapse,
    prior_mismatch,
)
from nilatent.training.prior import PriorDistance

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


def test_a_model_that_draws_conditions_alone_is_in_the_mean_local_minimum() -> None:
    good = Fit(0.5, 0.5, 0.5)
    assert mean_local_minimum(good, PCA, MEAN_IMAGE, swap=Swap(model=1.9, pca=2.0)).state == "absent"
    found = mean_local_minimum(good, PCA, MEAN_IMAGE, swap=Swap(model=1.001, pca=2.0))
    assert found.state == "found"
    assert "1.001 times" in found.sentence


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
    ("model", "pca", "state"),
    [(1.0, 1.5, "found"), (1.04, 1.5, "found"), (1.06, 1.5, "absent"), (1.0, 1.01, "absent"), (1.5, 1.5, "absent")],
)
def test_a_decoder_that_does_not_listen_has_collapsed(
    rng: np.random.Generator, model: float, pca: float, state: str
) -> None:
    """With latents that are all active; where not even PCA loses by a swap, a swap says nothing."""
    means = rng.standard_normal((200, 4)).astype(np.float32)
    assert posterior_collapse(means, 0.5 * means**2, swap=Swap(model, pca)).state == state


@pytest.mark.parametrize(("n_active", "state"), [(100, "absent"), (3, "absent"), (2, "found"), (0, "found")])
def test_a_grid_may_hold_more_than_it_needs(rng: np.random.Generator, n_active: int, state: str) -> None:
    means = np.zeros((30, 200), np.float32)
    means[:, :n_active] = rng.standard_normal((30, n_active))
    assert posterior_collapse(means, 0.5 * means**2, swap=Swap(1.4, 1.5), grid=True).state == state
    assert posterior_collapse(means, 0.5 * means**2, swap=Swap(1.4, 1.5)).state == "found"


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
    # The same gap costs nothing where validation scans are explained as well as by PCA.
    assert overfitting((0.2, 0.7), (0.5, 0.7), last=0.7).state == "noted"
    assert overfitting((0.2, 0.7), (0.5, 0.7), last=0.7, copies=(0.9, 0.1)).state == "found"


@pytest.mark.parametrize(
    ("copies", "state"),
    [
        ((0.9, 0.5), "found"),
        ((0.7, 0.5), "absent"),
        ((0.4, 0.0), "absent"),
        ((1.0, 1.0), "absent"),
        ((1.0, math.nan), "absent"),
    ],
)
def test_copies_of_training_scans_are_overfitting_where_pca_makes_none(copies: tuple[float, float], state: str) -> None:
    assert overfitting((0.5, 0.7), (0.5, 0.7), last=0.7, copies=copies).state == state


def test_what_is_worse_than_the_mean_image_knows_nothing_by_heart() -> None:
    assert overfitting((1.2, 1.9), (0.5, 0.7), last=1.9).state == "absent"


def test_log_variances_at_their_limit_are_a_divergence() -> None:
    log_vars = np.full((10, 20), -3.0, dtype=np.float32)
    log_vars[0, :2] = LOG_VAR_RANGE
    assert divergence(log_vars).state == "absent"
    log_vars[1, :2] = LOG_VAR_RANGE
    verdict = divergence(log_vars)
    assert (verdict.state, "2.0 %" in verdict.sentence) == ("found", True)
    assert divergence(None).state == "absent"
    stopped = divergence(None, stopped="The loss is not finite in epoch 3, batch 2.")
    assert (stopped.state, "epoch 3, batch 2" in stopped.sentence) == ("found", True)


@pytest.mark.parametrize(
    ("detail", "missed", "state"),
    [
        ((0.4, 0.6), (0.9, 0.8), "found"),
        ((0.5, 0.9), (0.9, 0.8), "absent"),
        ((0.4, 0.45), (0.9, 0.8), "absent"),
        ((0.4, 0.6), (0.7, 0.8), "absent"),
    ],
)
def test_blur_is_less_detail_than_pca_s_and_more_of_it_missed(
    detail: tuple[float, float], missed: tuple[float, float], state: str
) -> None:
    assert blur(detail, missed, (0.1, 0.1)).state == state
    assert blur(detail, missed, (0.1, 0.1), told_apart=False).state == "not assessed"


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


@pytest.mark.parametrize(
    ("distance", "state"),
    [
        (PriorDistance(0.5, 0.1, 0.3), "found"),
        (PriorDistance(0.2, 0.1, 0.3), "absent"),
        (PriorDistance(0.5, 0.6, 0.3), "absent"),
    ],
)
def test_a_distance_beyond_chance_and_tolerance_is_a_mismatch(
    rng: np.random.Generator, distance: PriorDistance, state: str
) -> None:
    assert prior_mismatch(*aggregate(rng, spread=1.0, off=0.0), distance=distance).state == state
