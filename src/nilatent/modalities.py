"""Modalities of a study: the modelled images, further images and tables of the same scans, and the joint model of all."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from nilatent.cohort import Cohort
from nilatent.config import RunConfig
from nilatent.latents import write_latents
from nilatent.multimodal import encode_jointly
from nilatent.training.multimodal import MultimodalConfig, train_multimodal
from nilatent.training.multimodal.data import Modality, check_modalities, code, learn_columns
from nilatent.training.multimodal.start import check_size
from nilatent.volumes import Volumes, open_volumes

MODALITIES, JOINT = "modalities", "multimodal"
"""Folders of a run: packed further images by name, and the joint model, which each fold has too."""
# What another process needs to know that a joint model is whole; the history holds seconds, which differ.
MODEL_FILES = ("config.toml", "modalities.json", "result.json", "subjects.tsv", "weights.safetensors")


def modality_names(config: RunConfig) -> tuple[str, ...]:
    """Names of all modalities in the order of the joint model, the modelled images first; none where the study names no other.

    Examples
    --------
    >>> from nilatent.config import read_config
    >>> modality_names(read_config(overrides={"study.modalities.wm": "WM", "study.tables.scores": ["BDI"]}))
    ('gm', 'wm', 'scores')
    """
    study = config.study
    return (config.recipe.target, *study.modalities, *study.tables) if study.modalities or study.tables else ()


def modality_stages(config: RunConfig) -> list[str]:
    """Stages that pack further images, by the names under which the river seals them."""
    return [f"modality {name}" for name in config.study.modalities]


def joint_stages(config: RunConfig) -> list[str]:
    """Stages of the joint models that describe scans they have not seen: of every fold, or the study's own without folds."""
    if not modality_names(config):
        return []
    return [f"fold {fold} {JOINT}" for fold in range(config.folds)] or [JOINT]


def open_modalities(out: Path, config: RunConfig, prepared: Cohort) -> dict[str, Volumes | pd.DataFrame]:
    """Every modality of a run folder, in the order of the joint model.

    Parameters
    ----------
    out : Path
        The run folder, whose volumes and further images are packed.
    config : RunConfig
        Its settings.
    prepared : Cohort
        Its scans, with the columns of the tables.

    Returns
    -------
    dict[str, Volumes or DataFrame]
        By name: the modelled images first, under the name of the recipe's target; empty where the study names no other
        modality. A scan may lack any but the first.

    Raises
    ------
    GridError
        When further images are not packed.
    """
    if not modality_names(config):
        return {}
    found: dict[str, Volumes | pd.DataFrame] = {config.recipe.target: open_volumes(out / "volumes")}
    found |= {name: open_volumes(out / MODALITIES / name) for name in config.study.modalities}
    return found | {name: prepared.scans[list(columns)] for name, columns in config.study.tables.items()}


def check_joint(modalities: Mapping[str, Modality], parts: pd.DataFrame, config: MultimodalConfig) -> None:
    """Refuse a split from which no joint model could be trained, before anything is.

    Parameters
    ----------
    modalities : Mapping[str, Volumes or DataFrame]
        From :func:`open_modalities`.
    parts : DataFrame
        Index ``scan_id``, columns ``subject_id`` and ``part``.
    config : MultimodalConfig
        Its sizes.

    Raises
    ------
    SettingError
        When a modality has too few scans to train on or to choose the epoch, a column does not vary among the training
        scans, or another scan has a word that they lack.
    """
    check_modalities(modalities, parts)
    training = parts.index[parts["part"] == "train"]
    for name, one in modalities.items():
        if isinstance(one, Volumes):
            check_size(name, int(training.isin(one.scans.index).sum()), config)
        else:
            code(one, learn_columns(one, list(training), name=name), list(parts.index), name=name)


def fit_joint(
    modalities: Mapping[str, Modality], parts: pd.DataFrame, config: MultimodalConfig, folder: Path
) -> list[Path]:
    """Train a joint model, or go on with it, and write what it says of every scan from all that the scan has.

    Parameters
    ----------
    modalities : Mapping[str, Volumes or DataFrame]
        From :func:`open_modalities`.
    parts : DataFrame
        Index ``scan_id``, columns ``subject_id`` and ``part``.
    config : MultimodalConfig
        Settings.
    folder : Path
        Receives the model, ``latents.nc`` and ``latents.tsv``.

    Returns
    -------
    list of Path
        What is left, without what is needed to resume.
    """
    model = train_multimodal(modalities, parts, config, folder)
    written = write_latents(encode_jointly(model, modalities, parts), folder)
    return [*written, *(folder / name for name in MODEL_FILES)]


def told(modalities: Mapping[str, Modality], parts: pd.DataFrame, *, n_models: int) -> str:
    """What a joint training takes, in a sentence.

    Parameters
    ----------
    modalities : Mapping[str, Volumes or DataFrame]
        From :func:`open_modalities`.
    parts : DataFrame
        Index ``scan_id``.
    n_models : int
        How many such models are trained, those of the folds among them.
    """
    counts, n_bytes = [], 0
    for name, one in modalities.items():
        if isinstance(one, Volumes):
            has, of = int(parts.index.isin(one.scans.index).sum()), f"{int(one.mask.sum())} voxels"
            n_bytes += has * int(np.prod(one.grid.shape)) * 2
        else:
            has, of = int(one.loc[parts.index].notna().any(axis=1).sum()), f"{one.shape[1]} columns"
        counts.append(f"{name} ({has} of {len(parts)} scans, {of})")
    models = "one model" if n_models == 1 else f"{n_models} models, one after the other"
    return f"{models} of {', '.join(counts)}; {n_bytes / 1e6:.0f} MB are read in an epoch."
