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
from nilatent.models import LinearStart, Model, ModelConfig, PcaAnchor, SpatialVae, build
from nilatent.models.critic import Critic
from nilatent.provenance import hash_values
from nilatent.training.checkpoint import FORMAT_VERSION, module_from_state, read_tensors, write_tensors
from nilatent.training.conditions import Conditions, aligned_rotation, fit_conditions, standardised_score
from nilatent.training.config import TrainConfig
from nilatent.training.diagnostics import Fit
from nilatent.training.objective import Objective
from nilatent.training.spatial import CRITIC_BETAS, CriticObjective, SpatialObjective
from nilatent.training.validation import Rows, Told, baselines, validate
from nilatent.volumes import Volumes, VoxelPca, voxel_pca

# Raised when start.safetensors or resume.safetensors hold something else, so that older ones are not taken up.
RESUME_VERSION = 3
# Learning rate of the encoder's correction g relative to that of the decoder's f, with a PCA anchor.
ENCODER_RATE = 0.1


@dataclass(frozen=True, eq=False)
class Rival:
    """The critic that a spatial model is trained against, with an optimiser of its own."""

    critic: Critic
    objective: nn.Module
    optimiser: torch.optim.Optimizer


@dataclass(frozen=True, eq=False)
class Run:
    """Everything one training holds on to."""

    volumes: Volumes
    rows: dict[str, Rows]
    conditions: Conditions
    told: Told
    score: Told
    model_config: ModelConfig
    config: TrainConfig
    folder: Path
    key: str
    module: Model
    variance: float
    mean_image: Fit
    pca: Fit
    train_mean_image: Fit
    train_pca: Fit
    start_errors: npt.NDArray[np.float64]
    fabric: Fabric
    objective: nn.Module
    bare_objective: Objective | SpatialObjective
    optimiser: torch.optim.Optimizer
    rival: Rival | None

    @property
    def learners(self) -> dict[str, tuple[nn.Module, torch.optim.Optimizer]]:
        """What has weights that move, the model first."""
        model: dict[str, tuple[nn.Module, torch.optim.Optimizer]] = {"model": (self.module, self.optimiser)}
        return model if self.rival is None else model | {"critic": (self.rival.critic, self.rival.optimiser)}


def set_up(
    volumes: Volumes,
    parts: pd.DataFrame,
    model_config: ModelConfig,
    config: TrainConfig,
    folder: Path,
    *,
    scans: pd.DataFrame | None = None,
) -> Run:
    """Everything a training begins with; parameters and errors as in :func:`nilatent.training.loop.train`."""
    rows = _rows(volumes, parts, model_config)
    used = {part: list(volumes.scans.index[chosen]) for part, chosen in rows.items()}
    conditions = fit_conditions(scans, used["train"], model_config.condition)
    told = _told(conditions, volumes, scans, [*used["train"], *used["validation"]])
    score = (
        standardised_score(scans, used["train"], list(volumes.scans.index), model_config.align)
        if model_config.align
        else None
    )
    beside = [None if given is None else hash_values(given.astype(str).tolist()) for given in (told, score)]
    key = hash_values([FORMAT_VERSION, RESUME_VERSION, model_config, config, volumes.content_hash, used, *beside])
    start = folder / "start.safetensors"
    module, known = _start(volumes, rows, told, score, model_config, config, start, key)
    absent = {"cuda": not torch.cuda.is_available(), "mps": not torch.backends.mps.is_available()}
    if absent.get(config.device, False):
        raise SettingError(
            f"training.device is '{config.device}', and torch finds none on this machine. Set it to auto or cpu, or install "
            "a torch that is built for it."
        )
    fabric = Fabric(accelerator=config.device, devices=1, precision=_precision(config))
    _channels_last(module)
    objective = _objective(module, model_config, config, variance=known["variance"], n_scans=len(rows["train"]))
    optimiser = torch.optim.AdamW(_groups(module, config.weight_decay), lr=config.learning_rate)
    wrapped, optimiser = fabric.setup(objective, optimiser)
    return Run(
        volumes=volumes,
        rows=rows,
        conditions=conditions,
        told=told,
        score=score,
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
        rival=_rival(module, model_config, config, fabric),
    )


def _objective(
    module: Model, model_config: ModelConfig, config: TrainConfig, *, variance: float, n_scans: int
) -> Objective | SpatialObjective:
    if isinstance(module, SpatialVae):
        return SpatialObjective(module, model_config, config, variance=variance)
    return Objective(module, model_config, config, variance=variance, n_scans=n_scans)


def _rival(module: Model, model_config: ModelConfig, config: TrainConfig, fabric: Fabric) -> Rival | None:
    if not isinstance(module, SpatialVae) or model_config.adversarial == 0:
        return None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        critic = Critic(mask=module.anchor.mask.cpu())
    optimiser = torch.optim.AdamW(
        critic.parameters(), lr=config.learning_rate, betas=CRITIC_BETAS, weight_decay=config.weight_decay
    )
    _channels_last(critic)
    wrapped, optimiser = fabric.setup(CriticObjective(critic, module), optimiser)
    return Rival(critic, wrapped, optimiser)


def _channels_last(module: nn.Module) -> None:
    for parameter in module.parameters():
        if parameter.ndim == 5:
            parameter.data = parameter.data.to(memory_format=torch.channels_last_3d)


def _told(conditions: Conditions, volumes: Volumes, scans: pd.DataFrame | None, used: list[str]) -> Told:
    """Conditions in the order of the volumes; only the scans that training uses are looked at, the rest are NaN."""
    if scans is None or not conditions.columns:
        return conditions.values(scans)
    told = np.full((len(volumes.scans), conditions.n_values), np.nan, dtype=np.float32)
    values = conditions.values(scans.loc[used])
    told[volumes.rows(used)] = values
    return told


def _rows(volumes: Volumes, parts: pd.DataFrame, model_config: ModelConfig) -> dict[str, Rows]:
    rows = {part: volumes.rows(list(parts.index[parts["part"] == part])) for part in ("train", "validation")}
    for part, chosen in rows.items():
        if len(chosen) == 0:
            raise SettingError(
                f"No scan is in the part '{part}'. Training needs both parts: bring more scans or raise its fraction in the "
                "split."
            )
    if model_config.start == "pca" and model_config.n_latent >= len(rows["train"]):
        raise SettingError(
            f"model.n_latent is {model_config.n_latent} and must be smaller than the number of training scans, "
            f"{len(rows['train'])}. Set model.n_latent to {max(len(rows['train']) // 4, 1)} or so, or bring more scans."
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
    volumes: Volumes,
    rows: dict[str, Rows],
    told: Told,
    score: Told,
    model_config: ModelConfig,
    config: TrainConfig,
    path: Path,
    key: str,
) -> tuple[Model, dict[str, Any]]:
    # What never changes is written once: PCA repeated with another number of threads would differ in its last bits.
    stored = read_tensors(path, key=key)
    if stored is not None:
        return module_from_state(model_config, stored[0]), stored[1]
    n_components = min(model_config.n_values, len(rows["train"]) - 1)
    pca = voxel_pca(volumes, rows["train"], n_components, seed=config.seed)
    start = pca if told is None else _given(volumes, rows["train"], told, model_config, seed=config.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        module = build(
            model_config,
            mask=torch.from_numpy(np.asarray(volumes.mask)),
            start=linear_start(start, rotation=_rotation(start, volumes, rows["train"], told, score, model_config)),
        )
    measured = baselines(pca, volumes, rows["validation"])
    variance = float(np.square(pca.sd, dtype=np.float64).sum()) / pca.mean.size + pca.residual_variance
    errors = validate(module, volumes, rows["validation"], batch_size=config.batch_size, conditions=told).errors
    known: dict[str, Any] = {name: asdict(found) for name, found in measured.items()}
    known |= {f"train_{name}": asdict(found) for name, found in baselines(pca, volumes, sample(rows)).items()}
    known |= {"variance": variance, "start_errors": errors.tolist()}
    write_tensors(path, module.state_dict(), known | {"key": key})
    return module, known


def _given(
    volumes: Volumes, training: Rows, told: npt.NDArray[np.float32], model_config: ModelConfig, *, seed: int
) -> VoxelPca:
    """PCA of what the conditions leave; its components are wanted by one kind of start only."""
    most = len(training) - 1 - told.shape[1]
    n_components = model_config.n_values if model_config.start == "pca" else min(model_config.n_values, most)
    return voxel_pca(volumes, training, n_components, seed=seed, conditions=told)


def linear_start(pca: VoxelPca, *, rotation: npt.NDArray[np.float64] | None = None) -> LinearStart:
    """Give a PCA of the training scans to a model as its start."""
    return LinearStart(
        mean=torch.from_numpy(pca.mean),
        components=torch.from_numpy(pca.components),
        sd=torch.from_numpy(pca.sd),
        residual_variance=pca.residual_variance,
        slopes=torch.from_numpy(pca.slopes),
        rotation=None if rotation is None else torch.from_numpy(rotation.astype(np.float32)),
    )


def _rotation(
    pca: VoxelPca, volumes: Volumes, training: Rows, told: Told, score: Told, model_config: ModelConfig
) -> npt.NDArray[np.float64] | None:
    if score is None or model_config.start != "pca":
        return None
    known = training[np.isfinite(score[training])]
    x = volumes.masked(known)
    if told is not None:
        x -= told[known] @ pca.slopes
    return aligned_rotation(pca.scores(x).astype(np.float64) / pca.sd, score[known])


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


def _groups(module: Model, weight_decay: float) -> list[dict[str, Any]]:
    # The projection is already the best encoder of a linear decoder, so g may only follow f, slowly; before that it could
    # only learn the training scans by heart.
    slow = ENCODER_RATE if isinstance(module.anchor, PcaAnchor) else 1.0
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        rate = 1.0 if name.startswith("mirror.") else slow
        groups.setdefault((rate, weight_decay if parameter.ndim > 1 else 0.0), []).append(parameter)
    return [{"params": found, "rate": rate, "weight_decay": decay} for (rate, decay), found in groups.items()]
