import pytest
import torch

from nilatent.models.blocks import Mirror, Posterior, Trunk


@pytest.mark.parametrize("n_smooth", [0, 1, 2])
@pytest.mark.parametrize("shape", [(15, 17, 13), (8, 8, 9)])
def test_any_grid_comes_back_in_its_own_shape(shape: tuple[int, int, int], n_smooth: int) -> None:
    trunk = Trunk(shape=shape, channels=(4, 8, 8))
    mirror = Mirror(shape=shape, channels=(4, 8, 8), n_latent=2, n_smooth=n_smooth)
    assert trunk(torch.randn(3, 1, *shape)).shape == (3, trunk.n_features)
    assert mirror(torch.randn(3, 2)).shape == (3, 1, *shape)


def test_smooth_doubling_keeps_a_constant_away_from_the_edge() -> None:
    mirror = Mirror(shape=(8, 8, 8), channels=(4, 4), n_latent=2, n_smooth=1)
    doubled = mirror._interpolate(torch.full((1, 1, 4, 4, 4), 2.0))
    torch.testing.assert_close(doubled[:, :, 1:-1, 1:-1, 1:-1], torch.full((1, 1, 6, 6, 6), 2.0))


def test_smooth_doubling_is_torchs_trilinear_interpolation_inside() -> None:
    mirror = Mirror(shape=(8, 8, 8), channels=(4, 4), n_latent=2, n_smooth=1)
    coarse = torch.randn(1, 1, 4, 4, 4)
    expected = torch.nn.functional.interpolate(coarse, scale_factor=2, mode="trilinear", align_corners=False)
    inner = (slice(None), slice(None), *[slice(1, -1)] * 3)
    torch.testing.assert_close(mirror._interpolate(coarse)[inner], expected[inner])


def test_sample_has_the_moments_of_the_posterior() -> None:
    posterior = Posterior(torch.full((20000, 1), 3.0), torch.full((20000, 1), 2.0).log())
    drawn = posterior.sample(torch.Generator().manual_seed(1))
    assert drawn.mean() == pytest.approx(3.0, abs=0.05)
    assert drawn.var() == pytest.approx(2.0, rel=0.05)


def test_every_scan_of_a_batch_has_its_own_draw() -> None:
    drawn = Posterior(torch.zeros(4, 2), torch.zeros(4, 2)).sample(torch.Generator().manual_seed(1))
    assert len(drawn.unique()) == 8


def test_a_draw_follows_its_generator_and_nothing_else() -> None:
    posterior = Posterior(torch.zeros(4, 2), torch.zeros(4, 2))
    first = posterior.sample(torch.Generator().manual_seed(1))
    torch.manual_seed(9)
    torch.testing.assert_close(posterior.sample(torch.Generator().manual_seed(1)), first, rtol=0, atol=0)
