from collections.abc import Callable

import numpy as np
import pytest
import torch

from nilatent.models import LinearStart, LocalStart, Model, ModelConfig, build

SHAPE = (15, 17, 13)


@pytest.fixture
def pca(rng: np.random.Generator) -> dict[str, torch.Tensor | float]:
    """A mask, a mean image and three orthonormal components, as a PCA of scans would give."""
    mask = torch.from_numpy(rng.random(SHAPE) > 0.5)
    n_voxels = int(mask.sum())
    basis, _ = np.linalg.qr(rng.standard_normal((n_voxels, 3)))
    return {
        "mask": mask,
        "mean": torch.from_numpy(rng.random(n_voxels).astype(np.float32)),
        "components": torch.from_numpy(basis.T.astype(np.float32).copy()),
        "sd": torch.tensor([3.0, 2.0, 1.0]),
        "residual_variance": 0.01,
        "slopes": torch.zeros(0, n_voxels),
    }


@pytest.fixture
def make(pca: dict[str, torch.Tensor | float]) -> Callable[..., Model]:
    """Build a model on that PCA; `shaken` moves every weight off its start."""

    def made(name: str, anchor: str, *, shaken: bool = False) -> Model:
        torch.manual_seed(0)
        local = LocalStart(0.1 * pca["components"][:2], torch.full((2, 27), 3.0), residual_variance=0.01)
        start = LinearStart(**{part: value for part, value in pca.items() if part != "mask"}, local=local)
        size = {"latent_grid": 3, "latent_channels": 2} if name == "spatial_vae" else {"n_latent": 3}
        config = ModelConfig(name=name, channels=(4, 8, 8), anchor=anchor, **size)
        model = build(config, mask=pca["mask"], start=start)
        if shaken:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter += 0.1 * torch.randn_like(parameter)
        return model

    return made


@pytest.fixture
def scans(rng: np.random.Generator) -> torch.Tensor:
    return torch.from_numpy(rng.random((4, 1, *SHAPE)).astype(np.float32))
