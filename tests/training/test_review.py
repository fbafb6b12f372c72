"""Seams between parts of the training that had each been tested alone."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from nilatent.errors import LeakageError
from nilatent.models import ModelConfig
from nilatent.models.aggregate import mmd
from nilatent.training.config import TrainConfig
from nilatent.training.loop import train
from nilatent.volumes import Grid, Volumes, volumes_in_memory

NONE = TrainConfig(n_epochs=0, batch_size=8, device="cpu", precision="32-true")
SMALL = ModelConfig(n_latent=3, channels=(4, 8))


def test_the_discrepancy_of_a_single_first_draw_is_finite() -> None:
    # The first piece of the first batch may be one scan, with nothing in the queue yet.
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(1, 3, generator=generator, requires_grad=True)
    found = mmd(z, torch.zeros(0, 3), torch.randn(64, 3, generator=generator))
    found.backward()
    assert found.isfinite()
    assert z.grad is not None
    assert z.grad.isfinite().all()


def test_a_test_subject_that_the_first_model_learned_from_is_refused(
    curved: tuple[Volumes, pd.DataFrame], tmp_path: Path
) -> None:
    volumes, parts = curved
    train(volumes, parts, SMALL, NONE, tmp_path / "first")
    swapped = parts.assign(part=parts["part"].map({"train": "test", "validation": "validation", "test": "train"}))
    with pytest.raises(LeakageError, match="test"):
        train(volumes, swapped, SMALL, replace(NONE, start_from=str(tmp_path / "first")), tmp_path / "second")


@pytest.mark.slow
def test_a_latent_grid_needs_no_more_components_than_pca_can_give(tmp_path: Path) -> None:
    n_scans, side = 1030, 6
    array = np.random.default_rng(0).standard_normal((n_scans, side, side, side))
    ids = [f"sub-{index:04d}" for index in range(n_scans)]
    scans = pd.DataFrame({"subject_id": ids, "dataset": "one"}, index=pd.Index(ids, name="scan_id"))
    parts = pd.DataFrame({"subject_id": ids, "part": ["train"] * 1010 + ["validation"] * 20}, index=scans.index)
    mask = np.ones((side,) * 3, dtype=bool)
    volumes = volumes_in_memory(array, mask=mask, grid=Grid((side,) * 3, np.diag([4.0, 4.0, 4.0, 1.0])), scans=scans)
    grid = ModelConfig(name="spatial_vae", channels=(4, 8), latent_grid=3, latent_channels=40, adversarial=0.0)
    assert train(volumes, parts, grid, NONE, tmp_path).best_epoch == 0


def test_a_start_that_was_told_conditions_is_not_called_pca(
    curved: tuple[Volumes, pd.DataFrame], tmp_path: Path
) -> None:
    volumes, parts = curved
    age = np.linspace(20.0, 80.0, len(parts))
    told = volumes.data + 0.02 * (age - 50.0)[:, None, None, None]
    volumes = volumes_in_memory(told, mask=volumes.mask, grid=volumes.grid, scans=volumes.scans)
    scans = pd.DataFrame({"age": age}, index=parts.index)
    model = train(volumes, parts, replace(SMALL, condition=("age",), curve=False), NONE, tmp_path, scans=scans)
    # The yardstick is told the same; the summary says of what it is the PCA.
    assert model.result["validation_fvu"] == pytest.approx(model.result["pca_fvu"], rel=0.01)
    assert "PCA of what is left beside age" in model.result["summary"]
