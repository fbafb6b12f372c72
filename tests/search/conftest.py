from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from nilatent.models import ModelConfig
from nilatent.search import seeds, trials
from nilatent.training.config import TrainConfig
from nilatent.volumes import Grid, Volumes, volumes_in_memory

SHAPE = (15, 17, 13)
N_CAUSES = 3
PARTS = ["train"] * 22 + ["validation"] * 8 + ["test"] * 6


def cohort(array: np.ndarray) -> tuple[Volumes, pd.DataFrame]:
    ids = [f"sub-{index:03d}" for index in range(len(array))]
    scans = pd.DataFrame({"subject_id": ids, "dataset": "one"}, index=pd.Index(ids, name="scan_id"))
    axes = np.meshgrid(*[np.linspace(-1, 1, side) for side in SHAPE], indexing="ij")
    volumes = volumes_in_memory(
        array, mask=sum(axis**2 for axis in axes) < 0.9, grid=Grid(SHAPE, np.diag([4.0, 4.0, 4.0, 1.0])), scans=scans
    )
    return volumes, pd.DataFrame({"subject_id": ids, "part": PARTS}, index=scans.index)


@pytest.fixture
def caused(rng: np.random.Generator) -> tuple[Volumes, pd.DataFrame]:
    """Scans with three causes of equal weight, beside noise: fewer latents miss some, more have nothing to say."""
    amounts = rng.standard_normal((len(PARTS), N_CAUSES))
    patterns = rng.standard_normal((N_CAUSES, *SHAPE))
    return cohort(np.tensordot(amounts, patterns, axes=1) + rng.standard_normal((len(PARTS), *SHAPE)))


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Trainings that only write the history of figures worked out from their settings."""

    def pretend(figure: Callable[[ModelConfig, TrainConfig], float]) -> None:
        def train(
            volumes: Volumes,
            parts: pd.DataFrame,
            model_config: ModelConfig,
            config: TrainConfig,
            folder: Path,
            *,
            scans: pd.DataFrame | None = None,
            on_epoch: Callable[[dict[str, int | float]], None] | None = None,
        ) -> SimpleNamespace:
            folder.mkdir(parents=True, exist_ok=True)
            history = []
            for epoch in range(config.n_epochs + 1):
                fvu = figure(model_config, config)
                row = {"epoch": epoch, "validation_fvu": fvu, "validation_elbo": -fvu, "pca_fvu": 0.5, "kl": 1.0}
                history.append(row | {"n_active": 1, "best_epoch": epoch, "seconds": 1.0})
                pd.DataFrame(history).to_csv(folder / "history.tsv", sep="\t", index=False)
                if epoch and on_epoch is not None:
                    on_epoch(history[-1])
            return SimpleNamespace(result={"verdicts": [{"failure": "over-fitting", "state": "found"}]})

        monkeypatch.setattr(trials, "train", train)
        monkeypatch.setattr(seeds, "train", train)

    return pretend
