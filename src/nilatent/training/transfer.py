"""Transfer: a trained model as the start of another training, and parts of a model that stay as they start."""

from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import pandas as pd

from nilatent.errors import GridError, LeakageError, SettingError
from nilatent.models import Model, ModelConfig
from nilatent.training.checkpoint import TrainedModel, load_model
from nilatent.training.config import TrainConfig
from nilatent.volumes import Volumes

# Settings that say what a network is trained for and not what it is: the same weights may go on under others.
PURPOSES = frozenset(
    {
        "sigma",
        "beta",
        "term",
        "free_bits",
        "capacity",
        "info_alpha",
        "info_lambda",
        "perceptual",
        "adversarial",
        "adversarial_from",
        "align_weight",
    }
)


@dataclass(frozen=True, eq=False)
class Source:
    """The model that a training starts from.

    Parameters
    ----------
    model : TrainedModel
        As it was left. Its anchor is kept (the principal components or mean image of *its* training scans), so latents keep
        their meaning, and so are the numbers that its conditions became. Whoever it has seen, the new model has seen.
    place : Path
        Its folder.
    """

    model: TrainedModel
    place: Path


def source_of(
    config: TrainConfig, model_config: ModelConfig, volumes: Volumes, parts: pd.DataFrame, *, folder: Path
) -> Source | None:
    """The model to start from, if it fits.

    Parameters
    ----------
    config : TrainConfig
        Its `start_from`.
    model_config : ModelConfig
        The network that is asked for.
    volumes : Volumes
        The scans of the new training.
    parts : DataFrame
        Their subjects and parts.
    folder : Path
        Of the new model.

    Returns
    -------
    Source or None
        None when the settings name none.

    Raises
    ------
    ModelError
        When the folder holds no finished model.
    GridError
        When its scans were on another grid or in another mask.
    SettingError
        When it is another network, or its folder is that of the new model.
    LeakageError
        When a subject that moved its weights is to judge the new ones.
    """
    if not config.start_from:
        return None
    if Path(config.start_from).resolve() == folder.resolve():
        raise SettingError(
            f"training.start_from is {config.start_from}, the folder of the new model, which would overwrite it. Train into "
            "another folder."
        )
    source = Source(load_model(Path(config.start_from)), Path(config.start_from))
    _check_space(source, volumes)
    _check_settings(source, model_config)
    _check_subjects(source, volumes, parts)
    return source


def _check_space(source: Source, volumes: Volumes) -> None:
    grid, mask = source.model.grid, source.model.mask
    if grid.shape != volumes.grid.shape or not np.allclose(grid.affine, volumes.grid.affine, atol=1e-3):
        raise GridError(
            f"The model in {source.place} knows {'x'.join(map(str, grid.shape))} voxels of {grid.spacing_mm:g} mm from "
            f"{np.round(grid.affine[:3, 3], 1).tolist()}, the scans have {'x'.join(map(str, volumes.grid.shape))} of "
            f"{volumes.grid.spacing_mm:g} mm from {np.round(volumes.grid.affine[:3, 3], 1).tolist()}. Its weights and anchor "
            f"belong to its voxels: prepare the scans with recipe.spacing_mm = {grid.spacing_mm:g}, or leave out "
            "training.start_from."
        )
    if not np.array_equal(mask, volumes.mask):
        raise GridError(
            f"The model in {source.place} knows a mask of {int(mask.sum())} voxels, the scans have one of "
            f"{int(volumes.mask.sum())}, or they lie elsewhere. Pack the scans with its mask, or leave out "
            "training.start_from."
        )


def _check_settings(source: Source, asked: ModelConfig) -> None:
    known = source.model.model_config
    # These two decide whether the decoder draws a noise variance too; other noise needs no other weights.
    drawn = "voxel" in (known.likelihood, asked.likelihood)
    free = PURPOSES if drawn else PURPOSES | {"likelihood"}
    differing = [
        f"{entry.name} = {getattr(known, entry.name)!r} (asked for: {getattr(asked, entry.name)!r})"
        for entry in fields(ModelConfig)
        if entry.name not in free | {"anchor"} and getattr(known, entry.name) != getattr(asked, entry.name)
    ]
    if known.start != asked.start:
        differing.append(f"anchor = '{known.start}' (asked for: '{asked.start}')")
    if differing:
        raise SettingError(
            f"The model in {source.place} has {', '.join(differing)}. A training that starts from it is of the same network: "
            "set the same in [model], or leave out training.start_from."
        )


def _check_subjects(source: Source, volumes: Volumes, parts: pd.DataFrame) -> None:
    # Who moved the weights may not choose the epoch; who did either may not be held out.
    before = {"validation": source.model.seen.only("train"), "test": source.model.seen}
    judges = parts.index[parts["part"].isin(before) & parts.index.isin(volumes.scans.index)]
    rows = volumes.rows(list(judges))
    known = sorted(
        {
            subject
            for row, part, subject, dataset in zip(
                rows,
                parts.loc[judges, "part"],
                parts.loc[judges, "subject_id"].astype(str),
                volumes.scans.loc[judges, "dataset"],
                strict=True,
            )
            if before[part].knows_subject(subject, str(dataset)) or before[part].knows_scan(volumes.data[row])
        }
    )
    if known:
        raise LeakageError(
            f"{len(known)} subjects of the validation or test part are known to the model in {source.place}: "
            f"{', '.join(known[:5])}. They would find the start better than it is. Use the split that model was trained with; "
            "people of another study who only bear the same names need names of their own."
        )


def freeze(module: Model, config: TrainConfig, model_config: ModelConfig) -> None:
    """Keep parts of a model from learning.

    Parameters
    ----------
    module : Autoencoder, Vae or SpatialVae
        Changed in place: the parameters of frozen parts take no gradient.
    config : TrainConfig
        Its `freeze`.
    model_config : ModelConfig
        Of the module.

    Raises
    ------
    SettingError
        When a critic shall teach a decoder that is frozen.
    """
    if "decoder" in config.freeze and model_config.name == "spatial_vae" and model_config.adversarial > 0:
        raise SettingError(
            f"training.freeze names the decoder and model.adversarial is {model_config.adversarial}: the critic teaches the "
            "decoder only. Set model.adversarial to 0, or leave the decoder free."
        )
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(part_of(name) not in config.freeze)


def without_places(config: TrainConfig, source: Source | None) -> dict[str, object]:
    """The settings as they are kept with the model: what it started from by its content, not by its place on a disk."""
    return asdict(config) | ({} if source is None else {"start_from": source.model.content_hash})


def part_of(name: str) -> str:
    """The part that a parameter belongs to, by its name: ``"encoder"`` or ``"decoder"``."""
    return "decoder" if name.startswith("mirror.") else "encoder"
