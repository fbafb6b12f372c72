import numpy as np
import pytest
import torch
from torch.nn import functional

from nilatent.models.heads import ResidualHead, focal_loss


@pytest.fixture
def logits(rng: np.random.Generator) -> torch.Tensor:
    return torch.from_numpy(rng.standard_normal((12, 3)).astype(np.float32)).requires_grad_()


@pytest.fixture
def y(rng: np.random.Generator) -> torch.Tensor:
    return torch.from_numpy(rng.permutation(np.arange(12) % 3))


def test_without_focus_the_loss_is_weighted_cross_entropy(logits: torch.Tensor, y: torch.Tensor) -> None:
    weights = torch.tensor([0.5, 1.0, 3.0])
    expected = functional.cross_entropy(logits, y, weight=weights, reduction="none")
    torch.testing.assert_close(focal_loss(logits, y, class_weights=weights, gamma=0.0), expected)


@pytest.mark.parametrize("gamma", [0.5, 2.0, 5.0])
def test_of_two_classes_the_loss_has_a_closed_form(gamma: float) -> None:
    distance = torch.tensor([-4.0, -0.3, 0.0, 1.0, 6.0])
    p = 1.0 / (1.0 + torch.exp(-distance))
    found = focal_loss(
        torch.stack([torch.zeros(5), distance], dim=1),
        torch.ones(5, dtype=torch.long),
        class_weights=torch.tensor([1.0, 2.0]),
        gamma=gamma,
    )
    torch.testing.assert_close(found, -2.0 * (1.0 - p) ** gamma * p.log())


def test_a_scan_that_is_nearly_right_counts_less_the_more_the_focus() -> None:
    logits, y = torch.tensor([[0.0, 2.0], [0.0, -2.0]]), torch.tensor([1, 1])
    easy, hard = (focal_loss(logits, y, class_weights=torch.ones(2), gamma=gamma) for gamma in (0.0, 2.0))
    assert hard[0] / easy[0] < 0.02
    assert hard[1] / easy[1] > 0.7


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_the_gradient_raises_the_right_logit_and_lowers_the_others(
    logits: torch.Tensor, y: torch.Tensor, gamma: float
) -> None:
    focal_loss(logits, y, class_weights=torch.ones(3), gamma=gamma).sum().backward()
    right = functional.one_hot(y, 3).bool()
    assert logits.grad is not None
    assert (logits.grad[right] < 0).all()
    assert (logits.grad[~right] > 0).all()


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_a_certain_scan_has_a_finite_gradient(gamma: float) -> None:
    logits = torch.tensor([[0.0, 300.0], [0.0, -300.0]], requires_grad=True)
    focal_loss(logits, torch.tensor([1, 1]), class_weights=torch.ones(2), gamma=gamma).sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def shaken(grid: tuple[int, int, int, int], n_out: int) -> ResidualHead:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = ResidualHead(grid=grid, n_out=n_out, channels=(4, 8))
        with torch.no_grad():
            module.readout.weight.normal_()
    return module


@pytest.mark.parametrize("grid", [(4, 12, 12, 12), (2, 3, 3, 3), (3, 5, 6, 5), (1, 1, 2, 1), (2, 13, 7, 4)])
def test_any_grid_fits_and_every_corner_of_it_counts(grid: tuple[int, int, int, int], rng: np.random.Generator) -> None:
    module = shaken(grid, 2)
    z = torch.from_numpy(rng.standard_normal((3, *grid)).astype(np.float32)).requires_grad_()
    read = module(z)
    assert read.shape == (3, 2)
    read.sum().backward()
    assert z.grad is not None
    assert (z.grad[..., 0, 0, 0] != 0).all()
    assert (z.grad[..., -1, -1, -1] != 0).all()


def test_what_is_said_of_a_scan_does_not_depend_on_its_batch(rng: np.random.Generator) -> None:
    module = shaken((3, 5, 6, 5), 4).requires_grad_(False)
    z = torch.from_numpy(rng.standard_normal((5, 3, 5, 6, 5)).astype(np.float32))
    together = module(z)
    torch.testing.assert_close(module(z[2:3]), together[2:3], rtol=0, atol=1e-5)
    assert float(together.std(dim=0).min()) > 0.01


def test_before_the_first_step_no_class_is_likelier(rng: np.random.Generator) -> None:
    module = ResidualHead(grid=(2, 3, 3, 3), n_out=3)
    read = module(torch.from_numpy(rng.standard_normal((2, 2, 3, 3, 3)).astype(np.float32)))
    assert (read == 0).all()


def test_the_place_of_a_feature_counts(rng: np.random.Generator) -> None:
    """A mean over the grid would not tell left from right."""
    module = shaken((1, 12, 12, 12), 1).requires_grad_(False)
    z = torch.zeros(2, 1, 12, 12, 12)
    z[0, 0, 2:4, 5:7, 5:7] = 1.0
    z[1, 0, 8:10, 5:7, 5:7] = 1.0
    left, right = module(z)[:, 0].tolist()
    assert abs(left - right) > 0.01
