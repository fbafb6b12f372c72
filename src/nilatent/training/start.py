"""Where a training starts: rows, baselines, model, objective and optimiser, the same after an interruption."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from nilatent.errors import LeakageError, SettingError
from nilatent.models import LinearStart, LocalAnchor, LocalStart, Model, ModelConfig, PcaAnchor, SpatialVae, build
from nilatent.models.critic import Critic
from nilatent.models.curve import MAX_SCANS, Curve, CurveChoice, fit_curve
from nilatent.models.spatial_vae import cell_of_voxels
from nilatent.provenance import hash_values
from nilatent.training.checkpoint import FORMAT_VERSION, module_from_state, read_tensors, write_tensors
from nilatent.training.conditions import Conditions, aligned_rotation, fit_conditions, standardised_score
from nilatent.training.config import TrainConfig, settled
from nilatent.training.devices import fabric_of
from nilatent.training.diagnostics import Fit
from nilatent.training.local import local_start
from nilatent.training.nuisance import NUISANCES, present
from nilatent.training.objective import Objective
from nilatent.training.reference import Reference, reference
from nilatent.training.spatial import CRITIC_BETAS, CriticObjective, SpatialObjective
from nilatent.training.transfer import Source, freeze, part_of, source_of
from nilatent.training.validation import PCA_BATCH, Rows, Told, baselines, validate
from nilatent.volumes import Volumes, VoxelPca, voxel_pca

# Raised when start.safetensors or resume.safetensors hold something else, so that older ones are not taken up.
RESUME_VERSION = 7
# Learning rate of the encoder's correction g relative to that of the decoder's f, where components are the start.
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
    source: Source | None
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
    reference: Reference
    nuisances: pd.DataFrame

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
    nuisances: Sequence[str] = NUISANCES,
    fabric: Fabric | None = None,
) -> Run:
    """Everything a training begins with; parameters and errors as in :func:`nilatent.training.loop.train`.

    With a launched `fabric` of several processes all of them call this, and the first one computes the start; without one,
    this process sets up for itself.
    """
    source = source_of(config, model_config, volumes, parts, folder=folder)
    rows = _rows(volumes, parts, model_config, transferred=source is not None)
    used = {part: list(volumes.scans.index[chosen]) for part, chosen in rows.items()}
    conditions = (
        fit_conditions(scans, used["train"], model_config.condition) if source is None else source.model.conditions
    )
    told = _told(conditions, volumes, scans, [*used["train"], *used["validation"]])
    score = (
        standardised_score(scans, used["train"], list(volumes.scans.index), model_config.align)
        if model_config.align
        else None
    )
    fabric = fabric_of(config, alone=True) if fabric is None else fabric
    key = _key(volumes, used, told, score, model_config, config, source)
    known_to = (volumes, rows, told, score, model_config, config)
    module, known = _agreed(fabric, folder, lambda: _start(*known_to, source, folder / "start.safetensors", key))
    freeze(module, config, model_config)
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
        source=source,
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
        reference=Reference.from_dict(known["reference"]),
        nuisances=present(scans, [*used["train"], *used["validation"]], nuisances),
    )


def _key(
    volumes: Volumes,
    used: dict[str, list[str]],
    told: Told,
    score: Told,
    model_config: ModelConfig,
    config: TrainConfig,
    source: Source | None,
) -> str:
    beside = [None if given is None else hash_values(given.astype(str).tolist()) for given in (told, score)]
    # What a model is counts, and not where it lies.
    settings = replace(settled(config), start_from="" if source is None else source.model.content_hash)
    return hash_values([FORMAT_VERSION, RESUME_VERSION, model_config, settings, volumes.content_hash, used, *beside])


def _agreed(
    fabric: Fabric, folder: Path, start: Callable[[], tuple[Model, dict[str, Any]]]
) -> tuple[Model, dict[str, Any]]:
    """The start, computed by the first process and read by the others."""
    if fabric.is_global_zero:
        computed = start()
        fabric.barrier()
        return computed
    fabric.barrier()
    if not (folder / "start.safetensors").is_file():
        raise SettingError(
            f"{folder} is not the same folder for all processes of the training. Give one on a disk that all machines share."
        )
    return start()


def _objective(
    module: Model, model_config: ModelConfig, config: TrainConfig, *, variance: float, n_scans: int
) -> Objective | SpatialObjective:
    if isinstance(module, SpatialVae):
        module.checkpointing = config.checkpointing
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


def _rows(volumes: Volumes, parts: pd.DataFrame, model_config: ModelConfig, *, transferred: bool) -> dict[str, Rows]:
    rows = {part: volumes.rows(list(parts.index[parts["part"] == part])) for part in ("train", "validation")}
    for part, chosen in rows.items():
        if len(chosen) == 0:
            raise SettingError(
                f"No scan is in the part '{part}'. Training needs both parts: bring more scans or raise its fraction in the "
                "split."
            )
    # The components of a model that was trained before are not those of these scans.
    if model_config.start == "pca" and model_config.n_latent >= len(rows["train"]) and not transferred:
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
    source: Source | None,
    path: Path,
    key: str,
) -> tuple[Model, dict[str, Any]]:
    # What never changes is written once: PCA repeated with another number of threads would differ in its last bits.
    stored = read_tensors(path, key=key)
    if stored is not None:
        return module_from_state(model_config, stored[0]), stored[1]
    # Where the components are the start there are as many as latents; elsewhere they are the yardstick alone.
    yardstick = model_config.start != "pca" or source is not None
    # It is told what the model is told: the start of one is the yardstick of the other.
    n_components = model_config.n_values
    pca = voxel_pca(volumes, rows["train"], n_components, seed=config.seed, conditions=told, at_most=yardstick)
    module = (
        _built(pca, volumes, rows["train"], told, score, model_config, seed=config.seed)
        if source is None
        else source.model.module
    )
    known: dict[str, Any] = {}
    # A model that another training left keeps its own curve, and one that shall have none gets none.
    if isinstance(module.anchor, PcaAnchor) and source is None and model_config.curve:
        module.anchor.curve, choice = _curve(module.anchor, volumes, rows["train"], told)
        known = {"curve": asdict(choice)}
    measured = baselines(pca, volumes, rows["validation"], conditions=told)
    on_training = baselines(pca, volumes, sample(rows), conditions=told)
    variance = float(np.square(pca.sd, dtype=np.float64).sum()) / pca.mean.size + pca.residual_variance
    errors = validate(module, volumes, rows["validation"], batch_size=config.piece, conditions=told).errors
    known |= {name: asdict(found) for name, found in measured.items()}
    known |= {f"train_{name}": asdict(found) for name, found in on_training.items()}
    known |= {"variance": variance, "start_errors": errors.tolist()}
    known["reference"] = asdict(reference(pca, volumes, rows, sample(rows), conditions=told))
    write_tensors(path, module.state_dict(), known | {"key": key})
    return module, known


def _built(
    pca: VoxelPca,
    volumes: Volumes,
    training: Rows,
    told: Told,
    score: Told,
    model_config: ModelConfig,
    *,
    seed: int,
) -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(
            model_config,
            mask=torch.from_numpy(np.asarray(volumes.mask)),
            start=linear_start(
                pca,
                rotation=_rotation(pca, volumes, training, told, score, model_config),
                local=_local(pca, volumes, training, told, model_config),
            ),
        )


def _curve(anchor: PcaAnchor, volumes: Volumes, training: Rows, told: Told) -> tuple[Curve, CurveChoice]:
    """Fit what the components miss, on training scans alone; at even steps among them when they are very many."""
    chosen = training[np.unique(np.linspace(0, len(training) - 1, min(len(training), MAX_SCANS)).round().astype(int))]

    def read(first: int, last: int) -> Tensor:
        x = torch.from_numpy(volumes.block(chosen, first, last))
        return x if told is None else x - torch.from_numpy(told[chosen]) @ anchor.slopes[:, first:last]

    subject = np.unique(volumes.scans["subject_id"].to_numpy()[chosen], return_inverse=True)[1]
    return fit_curve(
        read,
        torch.from_numpy(subject),
        mean=anchor.mean,
        components=anchor.components,
        inverse_gain=anchor.inverse_gain,
    )


def _local(
    known: VoxelPca, volumes: Volumes, training: Rows, told: Told, model_config: ModelConfig
) -> LocalStart | None:
    if model_config.start != "local":
        return None
    grid = model_config.latent_grid
    cell = cell_of_voxels(torch.from_numpy(np.asarray(volumes.mask)), grid).numpy()
    n_channels = model_config.latent_channels
    return local_start(volumes, training, cell, known=known, n_channels=n_channels, n_cells=grid**3, told=told)


def linear_start(
    pca: VoxelPca, *, rotation: npt.NDArray[np.float64] | None = None, local: LocalStart | None = None
) -> LinearStart:
    """Give a PCA of the training scans to a model as its start."""
    return LinearStart(
        mean=torch.from_numpy(pca.mean),
        components=torch.from_numpy(pca.components),
        sd=torch.from_numpy(pca.sd),
        residual_variance=pca.residual_variance,
        slopes=torch.from_numpy(pca.slopes),
        rotation=None if rotation is None else torch.from_numpy(rotation.astype(np.float32)),
        local=local,
    )


def _rotation(
    pca: VoxelPca, volumes: Volumes, training: Rows, told: Told, score: Told, model_config: ModelConfig
) -> npt.NDArray[np.float64] | None:
    if score is None or model_config.start != "pca":
        return None
    known = training[np.isfinite(score[training])]
    scores = []
    for start in range(0, len(known), PCA_BATCH):
        some = known[start : start + PCA_BATCH]
        scores.append(pca.scores(volumes.masked(some), None if told is None else told[some]))
    return aligned_rotation(np.concatenate(scores).astype(np.float64) / pca.sd, score[known])


def sample(rows: dict[str, Rows]) -> Rows:
    """Training scans at even steps, as many as there are validation scans: enough to see a gap between the two."""
    chosen = np.linspace(0, len(rows["train"]) - 1, min(len(rows["validation"]), len(rows["train"])))
    return np.asarray(rows["train"][np.unique(chosen.round().astype(int))])


def _groups(module: Model, weight_decay: float) -> list[dict[str, Any]]:
    # The projection is already the best encoder of a linear decoder, so g may only follow f, slowly; before that it could
    # only learn the training scans by heart.
    slow = ENCODER_RATE if isinstance(module.anchor, (PcaAnchor, LocalAnchor)) else 1.0
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        rate = 1.0 if part_of(name) == "decoder" else slow
        groups.setdefault((rate, weight_decay if parameter.ndim > 1 else 0.0), []).append(parameter)
    return [{"params": found, "rate": rate, "weight_decay": decay} for (rate, decay), found in groups.items()]
