import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from nilatent.models import curve as module
from nilatent.models.curve import Curve, CurveChoice, choose, fit_curve

N_SCANS, N_VOXELS, N_LATENT = 60, 90, 3


def gram_of(x: torch.Tensor) -> torch.Tensor:
    return x.double() @ x.double().T


def reader(x: torch.Tensor) -> Callable[[int, int], torch.Tensor]:
    return lambda first, last: x[:, first:last]


def planted(rng: np.random.Generator, *, bend: float, n_scans: int = N_SCANS) -> Tensor:
    """Scans with three linear causes, the product and squares of two of them in other images, and noise."""
    images = np.linalg.qr(rng.standard_normal((N_VOXELS, 6)))[0].T
    a = rng.uniform(-1, 1, (n_scans, 3)) * (6.0, 5.0, 4.0)
    bent = bend * np.stack([a[:, 0] ** 2 - 12, a[:, 0] * a[:, 1], a[:, 1] ** 2 - 8], axis=1) / 6
    x = 0.3 + np.hstack([a, bent]) @ images + 0.02 * rng.standard_normal((n_scans, N_VOXELS))
    return torch.from_numpy(x.astype(np.float32))


def pca(x: Tensor, n_latent: int = N_LATENT) -> tuple[Tensor, Tensor, Tensor]:
    mean = x.mean(dim=0)
    components = torch.linalg.svd(x - mean, full_matrices=False).Vh[:n_latent]
    return mean, components, 1.0 / ((x - mean) @ components.T).std(dim=0)


def fitted(x: Tensor, *, subject: Tensor | None = None) -> tuple[Curve, CurveChoice]:
    mean, components, inverse_gain = pca(x)
    subject = torch.arange(len(x)) if subject is None else subject
    return fit_curve(reader(x), subject, mean=mean, components=components, inverse_gain=inverse_gain)


def missed(x: Tensor, mean: Tensor, components: Tensor) -> tuple[Tensor, Tensor]:
    """Scores of scans and what the components leave of them, spelled out."""
    scores = (x - mean) @ components.T
    return scores, x - mean - scores @ components


def ridge_regression(scores: Tensor, left: Tensor, new: Tensor, choice: CurveChoice) -> Tensor:
    """Kernel ridge regression, one pair of scans at a time."""
    sd = scores.std(dim=0).double()
    weight = sd**-choice.power
    width = choice.width * float(((sd * weight) ** 2).sum())

    def kernel(one: Tensor, two: Tensor) -> float:
        return math.exp(-float((((one - two).double() * weight) ** 2).sum()) / (2 * width))

    gram = torch.tensor([[kernel(one, two) for two in scores] for one in scores], dtype=torch.double)
    near = torch.tensor([[kernel(one, two) for two in scores] for one in new], dtype=torch.double)
    return near @ torch.linalg.solve(gram + choice.ridge * torch.eye(len(gram)).double(), left.double())


def test_curve_is_kernel_ridge_regression_of_what_is_left(rng, monkeypatch):
    monkeypatch.setattr(module, "SHARE_KEPT", 1 - 1e-10)
    x, new = planted(rng, bend=1.0).split([48, 12])
    mean, components, inverse_gain = pca(x)
    curve, choice = fitted(x)
    scores, left = missed(x, mean, components)
    other, _ = missed(new, mean, components)
    expected = ridge_regression(scores, left, other, choice)
    np.testing.assert_allclose(curve(other * inverse_gain), expected, atol=2e-3 * float(expected.abs().max()))


@pytest.mark.parametrize(("power", "width", "ridge"), [(0.0, 1.0, 0.1), (0.5, 4.0, 1e-3)])
def test_errors_of_a_fold_are_those_of_a_refit_on_images(rng, power, width, ridge):
    x = planted(rng, bend=0.5, n_scans=30)
    held_out = torch.arange(30) % 5 == 2
    parts = module._fold(gram_of(x), held_out, n_latent=N_LATENT)
    found = module.held_out_errors(parts, power=power, width=width)
    mean, components, _ = pca(x[~held_out])
    scores, left = missed(x[~held_out], mean, components)
    other, other_left = missed(x[held_out], mean, components)
    drawn = ridge_regression(scores, left, other, CurveChoice(power, width, ridge, 0.0, 0.0, 0))
    expected = (other_left - drawn).square().sum(dim=1)
    at = int(np.argmin(np.abs(np.log(module.RIDGES) - np.log(ridge))))
    np.testing.assert_allclose(found[at], expected, rtol=1e-3)
    np.testing.assert_allclose(parts.left, other_left.square().sum(dim=1), rtol=1e-3)
    np.testing.assert_allclose(parts.variance, (x[held_out] - mean).square().sum(dim=1), rtol=1e-4)


def test_gain_is_the_share_of_variance_that_new_scans_gain(rng):
    x, new = planted(rng, bend=1.0, n_scans=400).split([100, 300])
    mean, components, inverse_gain = pca(x)
    curve, choice = fitted(x)
    other, left = missed(new, mean, components)
    variance = (new - mean).square().sum()
    gain = left.square().sum() - (left - curve(other * inverse_gain)).square().sum()
    assert gain / variance == pytest.approx(choice.gain, rel=0.3)
    assert gain > 0.9 * left.square().sum()
    assert choice.gain > 10 * choice.standard_error > 0


def test_nothing_is_added_where_everything_is_straight(rng):
    x = planted(rng, bend=0.0)
    curve, choice = fitted(x)
    assert not choice.is_on
    assert choice.n_images == len(curve.images) == 0
    assert (curve(torch.randn(4, N_LATENT)) == 0).all()
    assert curve(torch.randn(4, N_LATENT)).shape == (4, N_VOXELS)


@pytest.mark.slow
def test_a_straight_cohort_is_seldom_taken_for_a_curved_one(rng):
    found = [fitted(planted(rng, bend=0.0, n_scans=40))[1].is_on for _ in range(200)]
    assert np.mean(found) < 0.05


def test_scans_of_one_subject_share_a_fold(rng):
    noise = torch.from_numpy(rng.standard_normal((20, N_VOXELS)))
    x = (noise.repeat_interleave(3, dim=0) + 0.01 * torch.from_numpy(rng.standard_normal((60, N_VOXELS)))).float()
    subject = torch.arange(20).repeat_interleave(3) * 7 - 3
    assert choose(gram_of(x), torch.arange(60), n_latent=6).is_on
    assert not choose(gram_of(x), subject, n_latent=6).is_on


def test_gain_is_a_mean_over_subjects(rng):
    x = planted(rng, bend=1.0)
    once, twice = (
        choose(gram_of(x), torch.arange(60), n_latent=3),
        choose(gram_of(x.repeat_interleave(2, dim=0)), torch.arange(60).repeat_interleave(2), n_latent=3),
    )
    assert twice.gain == pytest.approx(once.gain, rel=0.1)
    assert twice.standard_error == pytest.approx(once.standard_error, rel=0.2)


def test_kept_images_are_those_along_which_the_fit_varies_most(rng, monkeypatch):
    x = planted(rng, bend=1.0)
    mean, components, _ = pca(x)
    scores, left = missed(x, mean, components)
    monkeypatch.setattr(module, "SHARE_KEPT", 0.9)
    curve, choice = fitted(x)
    whole = ridge_regression(scores, left, scores, choice)
    values, rows = torch.linalg.svd(whole, full_matrices=False)[1:]
    shares = values.square().cumsum(0) / values.square().sum()
    assert len(curve.images) == int((shares < 0.9).sum()) + 1
    overlap = curve.images.double() @ rows[: len(curve.images)].T
    np.testing.assert_allclose(torch.linalg.svdvals(overlap), 1.0, atol=1e-3)


def test_unit_of_the_latents_does_not_matter_and_a_mute_latent_is_passed_over(rng):
    x = planted(rng, bend=1.0)
    mean, components, _ = pca(x)
    scores, left = missed(x, mean, components)
    drawn = []
    for inverse_gain in (torch.ones(3), torch.tensor([0.5, 2.0, 8.0]), torch.tensor([1.0, 1.0, 0.0])):
        curve, _ = fit_curve(
            reader(x), torch.arange(len(x)), mean=mean, components=components, inverse_gain=inverse_gain
        )
        drawn.append((curve(scores * inverse_gain), curve(scores * inverse_gain + torch.tensor([0.0, 0.0, 1.0]))))
    np.testing.assert_allclose(drawn[0][0], drawn[1][0], atol=1e-3)
    np.testing.assert_array_equal(drawn[2][0], drawn[2][1])
    assert (drawn[2][0] - left).square().sum() < 0.2 * left.square().sum()


def test_the_size_of_the_blocks_does_not_matter(rng, monkeypatch):
    x = planted(rng, bend=1.0)
    whole, choice = fitted(x)
    monkeypatch.setattr(module, "BLOCK_BYTES", 8 * len(x) * 7)
    curve, chosen = fitted(x)
    assert choice.n_images == chosen.n_images > 0
    z = torch.randn(5, N_LATENT)
    np.testing.assert_allclose(curve(z), whole(z), atol=1e-4)


def test_images_are_few_and_orthonormal_and_the_rest_of_a_scan_alone(rng):
    x = planted(rng, bend=1.0)
    curve, choice = fitted(x)
    assert choice.n_images == len(curve.images) < 10
    np.testing.assert_allclose(curve.images @ curve.images.T, np.eye(choice.n_images), atol=1e-3)
    z = torch.randn(7, N_LATENT)
    np.testing.assert_allclose(curve(z), torch.cat([curve(one[None]) for one in z]), atol=1e-6)
    np.testing.assert_allclose(curve(z) @ pca(x)[1].T, 0, atol=1e-3)


def test_state_alone_rebuilds_the_curve(rng):
    curve, _ = fitted(planted(rng, bend=1.0))
    again = Curve(**curve.state_dict())
    z = torch.randn(3, N_LATENT)
    np.testing.assert_array_equal(again(z), curve(z))
    assert not list(curve.parameters())


@pytest.mark.parametrize(("n_scans", "n_subjects", "n_latent"), [(2, 2, 1), (20, 20, 15), (60, 4, 3), (60, 1, 3)])
def test_too_few_scans_or_subjects_for_folds_leave_the_curve_out(rng, n_scans, n_subjects, n_latent):
    x = planted(rng, bend=1.0, n_scans=n_scans)
    choice = choose(gram_of(x), torch.arange(n_scans) % n_subjects, n_latent=n_latent)
    assert (choice.gain, choice.standard_error, choice.is_on) == (0.0, 0.0, False)
