import numpy as np
import pytest
import torch
from torch import Tensor

from nilatent.models.critic import Critic, critic_error, fooling_error
from nilatent.models.perceptual import bands

SHAPE = (15, 17, 13)


@pytest.fixture
def mask() -> Tensor:
    mask = torch.ones(SHAPE)
    mask[:8] = 0.0
    mask[8:12, :2] = 0.0
    return mask


@pytest.fixture
def critic(mask: Tensor) -> Critic:
    torch.manual_seed(0)
    return Critic(mask=mask)


def judgements(value: float) -> Tensor:
    return torch.full((2, 1, 4, 5, 4), value)


def test_patches_count_by_their_share_of_the_mask(critic: Critic) -> None:
    assert critic.weight.shape == (4, 5, 4)
    assert critic.weight.sum().item() == pytest.approx(1.0)
    assert (critic.weight[:2] == 0).all()
    torch.testing.assert_close(critic.weight[2, 0, 0] * 2, critic.weight[2, 1, 0])
    torch.testing.assert_close(critic.weight[3, 1, 0] / critic.weight[2, 1, 0], torch.tensor(0.75))


def test_errors_of_known_judgements(critic: Critic) -> None:
    right, wrong, unsure = judgements(1.0), judgements(0.0), judgements(0.5)
    torch.testing.assert_close(critic_error(right, wrong, critic.weight), torch.zeros(2))
    torch.testing.assert_close(critic_error(wrong, right, critic.weight), torch.ones(2))
    torch.testing.assert_close(critic_error(unsure, unsure, critic.weight), torch.full((2,), 0.25))
    torch.testing.assert_close(critic_error(judgements(3.0), wrong, critic.weight), torch.full((2,), 2.0))
    torch.testing.assert_close(fooling_error(wrong, critic.weight), torch.full((2,), 0.5))
    torch.testing.assert_close(fooling_error(right, critic.weight), torch.zeros(2))


def test_patches_outside_the_mask_do_not_count(critic: Critic) -> None:
    judged = judgements(1.0)
    judged[:, :, :2] = 50.0
    torch.testing.assert_close(fooling_error(judged, critic.weight), torch.zeros(2))
    torch.testing.assert_close(critic_error(judged, judgements(0.0), critic.weight), torch.zeros(2))


def test_a_batch_is_its_scans_one_by_one(critic: Critic) -> None:
    x = torch.rand(3, 1, *SHAPE, generator=torch.Generator().manual_seed(0))
    together = critic(x)
    assert together.shape == (3, 1, 4, 5, 4)
    torch.testing.assert_close(together, torch.cat([critic(scan[None]) for scan in x]), rtol=0, atol=1e-5)
    assert torch.equal(critic.train()(x), critic.eval()(x))


def test_a_patch_sees_its_surroundings_only() -> None:
    torch.manual_seed(0)
    wide = Critic(mask=torch.ones(48, 4, 4))
    x = torch.zeros(1, 1, 48, 4, 4, requires_grad=True)
    # Normalisation sees the whole scan, so it is left out here.
    wide.down_norm = wide.middle_norm = torch.nn.GroupNorm(1, 32).requires_grad_(requires_grad=False)
    wide.down_norm.forward = lambda volume: volume  # type: ignore[method-assign]
    wide(x)[0, 0, 6].sum().backward()
    assert x.grad is not None
    seen = x.grad.abs().sum(dim=(0, 1, 3, 4)).nonzero().flatten()
    assert (seen[0].item(), seen[-1].item()) == (12, 37)


def test_it_learns_to_tell_noise_from_its_blur(critic: Critic, mask: Tensor, rng: np.random.Generator) -> None:
    def pair() -> tuple[Tensor, Tensor]:
        noise = torch.from_numpy(rng.standard_normal((2, 1, *SHAPE)).astype(np.float32)) * mask
        return noise, (noise - bands(noise, mask, n_bands=1)[0][0]) * mask

    def error() -> Tensor:
        scan, drawn = pair()
        return critic_error(critic(scan), critic(drawn), critic.weight).mean()

    before = error().item()
    optimiser = torch.optim.AdamW(critic.parameters(), lr=3e-3)
    for _ in range(20):
        optimiser.zero_grad()
        error().backward()
        optimiser.step()
    assert error().item() < 0.1 < 0.2 < before
