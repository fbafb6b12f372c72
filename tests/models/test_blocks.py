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


def test_weights_keep_the_names_and_numbers_that_model_folders_know() -> None:
    trunk = Trunk(shape=(8, 8, 8), channels=(4, 8)).state_dict()
    assert {name: tuple(value.shape) for name, value in trunk.items()} == {
        "layers.0.weight": (4, 1, 5, 5, 5),
        "layers.1.weight": (4,),
        "layers.1.bias": (4,),
        "layers.3.weight": (8, 4, 3, 3, 3),
        "layers.4.weight": (8,),
        "layers.4.bias": (8,),
    }
    mirror = Mirror(shape=(8, 8, 8), channels=(4, 8), n_latent=2, n_smooth=0).state_dict()
    assert set(mirror) == {
        *("linear.weight", "linear.bias", "ups.0.0.weight", "ups.0.1.weight", "ups.0.1.bias"),
        *("last.weight", "last.bias"),
    }


def test_trunk_is_the_plain_sequence_of_its_layers() -> None:
    trunk = Trunk(shape=(15, 17, 13), channels=(4, 8))
    x = torch.randn(2, 1, 15, 17, 13)
    expected = x
    for name, value in trunk.state_dict().items():
        if value.ndim == 5:
            expected = torch.nn.functional.conv3d(expected, value, stride=2, padding=value.shape[-1] // 2)
        elif name.endswith("weight"):
            expected = torch.nn.functional.silu(torch.nn.functional.group_norm(expected, len(value) // 4, value))
    torch.testing.assert_close(trunk(x), expected.flatten(1), rtol=1e-4, atol=1e-5)


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
