from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from nilatent.models import ModelConfig
from nilatent.training.config import TrainConfig
from nilatent.training.cost import Cost, cost_of, estimate
from nilatent.training.loop import train
from nilatent.volumes import Volumes


class Linear(nn.Module):
    """A loss whose cost is known: one matrix product of (batch, 2210) and (2210, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(10 * 17 * 13, 4, bias=False)
        self.register_buffer("fixed", torch.zeros(7))

    def forward(self, x: Tensor, generator: torch.Generator) -> Tensor:
        assert generator.device == x.device
        return self.layer(x.flatten(1)).square().sum()


def test_a_matrix_product_costs_what_it_costs() -> None:
    objective, batch = Linear(), torch.randn(3, 1, 10, 17, 13)
    before = objective.layer.weight.clone()
    cost = estimate(objective, batch, n_latent=4, n_voxels=2000, n_steps=10)
    assert (cost.n_weights, cost.n_fixed, cost.compression) == (8840, 7, 500)
    # Forward, and backward for the weights alone: the scans need no gradient.
    assert cost.gflop_per_scan == pytest.approx(2 * 2 * 2210 * 4 / 1e9)
    # Five copies of the weights, the scans twice (as a batch and kept for the backward pass), and the result.
    expected = 4 * (5 * 8840 + 7) + 2 * batch.nbytes + 4 * 3 * 4
    assert cost.memory_gb * 1e9 == pytest.approx(expected, rel=0.01)
    assert cost.total_seconds == pytest.approx(10 * cost.step_seconds)
    assert objective.layer.weight.grad is None
    torch.testing.assert_close(objective.layer.weight, before, rtol=0, atol=0)


@pytest.mark.parametrize(("seconds", "said"), [(50.0, "50 seconds"), (720.0, "12 minutes"), (9000.0, "2.5 hours")])
def test_the_sentence_names_memory_and_time(seconds: float, said: str) -> None:
    sentence = Cost(1000, 5, 250.0, 1.5, 3.1, 0.1, seconds).sentence
    assert "1,000 weights" in sentence
    assert f"needs about 3.1 GB and at most {said} here" in sentence


def test_asking_for_the_cost_changes_nothing(curved: tuple[Volumes, pd.DataFrame], tmp_path: Path) -> None:
    model, config = ModelConfig(name="vae", n_latent=2, channels=(4, 8, 8), info_lambda=100.0), TrainConfig(n_epochs=2)
    cost = cost_of(*curved, model, config, tmp_path / "asked")
    asked = train(*curved, model, config, tmp_path / "asked")
    assert asked.content_hash == train(*curved, model, config, tmp_path / "plain").content_hash
    assert cost.compression == int(curved[0].mask.sum()) / 2
    assert cost.total_seconds == pytest.approx(cost.step_seconds * 2 * 5)
