"""Where a training starts: rows, baselines, model, objective and optimiser, the same after an interruption."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from lightning_fabric import Fabric
from torch import nn

from nilatent.errors import LeakageError, SettingError
from nilatent.models import Autoencoder, ModelConfig, PcaAnchor, Vae, build
from nilatent.provenance import hash_values
from nilatent.training.checkpoint import FORMAT_VERSION, module_from_state, read_tensors, write_tensors
from nilatent.training.config import TrainConfig
from nilatent.training.diagnostics import Fit
from nilatent.training.objective import Objective
from nilatent.training.validation import Rows, baselines, validate
from nilatent.volumes import Volumes, voxel_pca

# Raised when start.safetensors or resume.safetensors hold something else, so that older ones are not taken up.
RESUME_VERSION = 2
# Learning rate of the encoder's correction g relative to that of the decoder's f, with a PCA anchor.
ENCODER_RATE = 0.1


@dataclass(frozen=True, eq=False)
class Run:
    """Everything one training holds on to."""

    volumes: Volumes
    rows: dict[str, Rows]
    model_config: ModelConfig
    config: TrainConfig
    folder: Path
    key: str
    module: Autoencoder | Vae
    variance: float
    mean_image: Fit
    pca: Fit
    train_mean_image: Fit
    train_pca: Fit
    start_errors: npt.NDArray[np.float64]
    fabric: Fabric
    objective: nn.Module
    bare_objective: Objective
    optimiser: torch.optim.Optimizer


def set_up(volumes: Volumes, parts: pd.DataFrame, model_config: ModelConfig, config: TrainConfig, folder: Path) -> Run:
    """Everything a training begins with; parameters and errors as in :func:`nilatent.training.loop.train`."""
    rows = _rows(volumes, parts, n_latent=model_config.n_latent)
    scans = {part: list(volumes.scans.index[chosen]) for part, chosen in rows.items()}
    key = hash_values([FORMAT_VERSION, RESUME_VERSION, model_config, config, volumes.content_hash, scans])
    module, known = _start(volumes, rows, model_config, config, folder / "start.safetensors", key)
    absent = {"cuda": not torch.cuda.is_available(), "mps": not torch.backends.mps.is_available()}
    if absent.get(config.device, False):
        raise SettingError(
            f"training.device is '{config.device}', and torch finds none on this machine. Set it to auto or cpu, or install "
            "a torch that is built for it."
        )
    fabric = Fabric(accelerator=config.device, devices=1, precision=_precision(config))
    objective = Objective(
        module.to(memory_format=torch.channels_last_3d),  # type: ignore[call-overload]
        model_config,
        config,
        variance=known["variance"],
        n_scans=len(rows["train"]),
    )
    optimiser = torch.optim.AdamW(_groups(module, config.weight_decay), lr=config.learning_rate)
    wrapped, optimiser = fabric.setup(objective, optimiser)
    return Run(
        volumes=volumes,
        rows=rows,
        model_config=model_config,
        config=config,
        folder=folder,
        key=key,
        module=module,
        variance=known["variance"],
        mean_image=Fit(**known["mean_image"]),
        pca=Fit(**known["pca"]),
        train_mean_image=Fit(**known["train_mean_image"]),
        train_pca=Fit(**known["train_pca"]),
        start_errors=np.asarray(known["start_errors"]),
        fabric=fabric,
        objective=wrapped,
        bare_objective=objective,
        optimiser=optimiser,
    )


def _rows(volumes: Volumes, parts: pd.DataFrame, *, n_latent: int) -> dict[str, Rows]:
    rows = {part: volumes.rows(list(parts.index[parts["part"] == part])) for part in ("train", "validation")}
    for part, chosen in rows.items():
        if len(chosen) == 0:
            raise SettingError(
                f"No scan is in the part '{part}'. Training needs both parts: bring more scans or raise its fraction in the "
                "split."
            )
    if n_latent >= len(rows["train"]):
        raise SettingError(
            f"model.n_latent is {n_latent} and must be smaller than the number of training scans, {len(rows['train'])}. "
            f"Set model.n_latent to {max(len(rows['train']) // 4, 1)} or so, or bring more scans."
        )
    both = set(parts.loc[parts["part"] == "train", "subject_id"]) & set(
        parts.loc[parts["part"] == "validation", "subject_id"]
    )
    if both:
        raise LeakageError(
            f"Subjects {', '.join(sorted(both)[:5])} are in the training and in the validation part. Split by subject again."
        )
    return rows


def _start(
    volumes: Volumes, rows: dict[str, Rows], model_config: ModelConfig, config: TrainConfig, path: Path, key: str
) -> tuple[Autoencoder | Vae, dict[str, Any]]:
    # What never changes is written once: PCA repeated with another number of threads would differ in its last bits.
    stored = read_tensors(path, key=key)
    if stored is not None:
        return module_from_state(model_config, stored[0]), stored[1]
    pca = voxel_pca(volumes, rows["train"], model_config.n_latent, seed=config.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        module = build(
            model_config,
            mask=torch.from_numpy(np.asarray(volumes.mask)),
            mean=torch.from_numpy(pca.mean),
            components=torch.from_numpy(pca.components),
            sd=torch.from_numpy(pca.sd),
            residual_variance=pca.residual_variance,
        )
    measured = baselines(pca, volumes, rows["validation"])
    variance = float(np.square(pca.sd, dtype=np.float64).sum()) / pca.mean.size + pca.residual_variance
    errors = validate(module, volumes, rows["validation"], batch_size=config.batch_size).errors
    known: dict[str, Any] = {name: asdict(found) for name, found in measured.items()}
    known |= {f"train_{name}": asdict(found) for name, found in baselines(pca, volumes, sample(rows)).items()}
    known |= {"variance": variance, "start_errors": errors.tolist()}
    write_tensors(path, module.state_dict(), known | {"key": key})
    return module, known


def sample(rows: dict[str, Rows]) -> Rows:
    """Training scans at even steps, as many as there are validation scans: enough to see a gap between the two."""
    chosen = np.linspace(0, len(rows["train"]) - 1, min(len(rows["validation"]), len(rows["train"])))
    return np.asarray(rows["train"][np.unique(chosen.round().astype(int))])


def _precision(config: TrainConfig) -> Any:
    if config.precision != "auto":
        return config.precision
    # On processors bfloat16 gained nothing at 4 or 2 mm with these narrow layers.
    mixed = config.device in ("auto", "cuda") and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return "bf16-mixed" if mixed else "32-true"


def _groups(module: Autoencoder | Vae, weight_decay: float) -> list[dict[str, Any]]:
    # The projection is already the best encoder of a linear decoder, so g may only follow f, slowly; before that it could
    # only learn the training scans by heart.
    slow = ENCODER_RATE if isinstance(module.anchor, PcaAnchor) else 1.0
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        rate = 1.0 if name.startswith("mirror.") else slow
        groups.setdefault((rate, weight_decay if parameter.ndim > 1 else 0.0), []).append(parameter)
    return [{"params": found, "rate": rate, "weight_decay": decay} for (rate, decay), found in groups.items()]
