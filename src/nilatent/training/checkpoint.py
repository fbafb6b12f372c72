"""The model folder and the state from which an interrupted training goes on."""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import tomli_w
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from nilatent.errors import NilatentError
from nilatent.models import Autoencoder, ModelConfig, Vae, build
from nilatent.provenance import atomic, hash_file, hash_values, read_json, write_json
from nilatent.volumes import Grid

FORMAT_VERSION = 1
FILES = ("config.toml", "grid.json", "history.tsv", "result.json", "subjects.tsv", "weights.safetensors")


class ModelError(NilatentError):
    """A model folder is incomplete or of another format version."""


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """A trained network with everything needed to use it and to know what it has seen.

    Parameters
    ----------
    module : Autoencoder or Vae
        On the CPU, in single precision, at its best epoch.
    model_config : ModelConfig
        Which model.
    training : dict
        The settings it was trained with.
    grid : Grid
        Grid of the scans it takes.
    mask : ndarray
        (x, y, z) bool; it sees and draws nothing outside.
    training_subjects, validation_subjects : tuple[str, ...]
        The subjects whose scans moved its weights, and those that chose its epoch.
    best_epoch : int
        0 when no epoch was better than the start.
    result : dict
        ``summary`` in words, validation figures, verdicts; see ``result.json``.
    history : DataFrame
        One row per epoch.
    content_hash : str
        Of weights, settings, grid and subjects; it does not depend on time or place.
    """

    module: Autoencoder | Vae
    model_config: ModelConfig
    training: dict[str, Any]
    grid: Grid
    mask: npt.NDArray[np.bool_]
    training_subjects: tuple[str, ...]
    validation_subjects: tuple[str, ...]
    best_epoch: int
    result: dict[str, Any]
    history: pd.DataFrame
    content_hash: str


def save_model(
    folder: Path,
    *,
    state: Mapping[str, Tensor],
    settings: Mapping[str, Mapping[str, Any]],
    grid: Grid,
    subjects: pd.DataFrame,
    result: Mapping[str, Any],
) -> None:
    """Write a model folder; ``config.toml`` comes last, so a folder that has it is complete.

    Parameters
    ----------
    folder : Path
        Receives the files in :data:`FILES`; ``history.tsv`` is already there.
    state : Mapping[str, Tensor]
        Weights and buffers of the module.
    settings : Mapping
        ``model`` and ``training``, each a flat mapping; values that are None are left out.
    grid : Grid
        Of the training scans.
    subjects : DataFrame
        Columns ``subject_id`` and ``part``.
    result : Mapping
        Plain values.
    """
    write_tensors(folder / "weights.safetensors", state, {"format_version": FORMAT_VERSION})
    write_json(folder / "grid.json", grid.to_dict())
    write_json(folder / "result.json", result)
    with atomic(folder / "subjects.tsv") as temporary:
        subjects[["subject_id", "part"]].to_csv(temporary, sep="\t", index=False)
    present = {
        name: {key: value for key, value in table.items() if value is not None} for name, table in settings.items()
    }
    with atomic(folder / "config.toml") as temporary:
        temporary.write_text(tomli_w.dumps({"format_version": FORMAT_VERSION} | present), encoding="utf-8")


def load_model(folder: Path) -> TrainedModel:
    """Read a model folder.

    Parameters
    ----------
    folder : Path
        What :func:`nilatent.training.loop.train` left.

    Returns
    -------
    TrainedModel
        Ready to encode.

    Raises
    ------
    ModelError
        When a file is missing or the format is another.
    """
    folder = Path(folder)
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise ModelError(
            f"{folder} lacks {', '.join(missing)}, so it is not a finished model. Run `nilatent train` again."
        )
    settings = tomllib.loads((folder / "config.toml").read_text(encoding="utf-8"))
    if settings.get("format_version") != FORMAT_VERSION:
        raise ModelError(
            f"{folder} holds model format {settings.get('format_version')}, this nilatent reads {FORMAT_VERSION}. "
            "Train again, or use the nilatent that wrote it."
        )
    config = ModelConfig(**(settings["model"] | {"channels": tuple(settings["model"]["channels"])}))
    state = load_file(folder / "weights.safetensors")
    subjects = pd.read_csv(folder / "subjects.tsv", sep="\t", dtype=str, keep_default_na=False)
    seen = {part: tuple(subjects.loc[subjects["part"] == part, "subject_id"]) for part in ("train", "validation")}
    result, grid = read_json(folder / "result.json"), read_json(folder / "grid.json")
    return TrainedModel(
        module=module_from_state(config, state),
        model_config=config,
        training=settings["training"],
        grid=Grid.from_dict(grid),
        mask=state["anchor.mask"].numpy() > 0,
        training_subjects=seen["train"],
        validation_subjects=seen["validation"],
        best_epoch=int(result["best_epoch"]),
        result=result,
        history=pd.read_csv(folder / "history.tsv", sep="\t"),
        content_hash=hash_values([hash_file(folder / "weights.safetensors"), asdict(config), grid, seen]),
    )


def module_from_state(config: ModelConfig, state: Mapping[str, Tensor]) -> Autoencoder | Vae:
    """Build a module and fill it with stored weights and buffers.

    Parameters
    ----------
    config : ModelConfig
        Which model.
    state : Mapping[str, Tensor]
        Its whole state; the mask in it gives the shape.

    Returns
    -------
    Autoencoder or Vae
        In evaluation mode, on the CPU.
    """
    mask = state["anchor.mask"] > 0
    n_voxels = int(mask.sum())
    with torch.random.fork_rng(devices=[]):
        module = build(
            config,
            mask=mask,
            mean=torch.zeros(n_voxels),
            components=torch.zeros(config.n_latent, n_voxels),
            sd=torch.ones(config.n_latent),
            residual_variance=0.0,
        )
    module.load_state_dict(dict(state))
    return module.eval()


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write tensors and plain values as one safetensors file, in one rename.

    Parameters
    ----------
    path : Path
        A ``.safetensors`` file.
    tensors : Mapping[str, Tensor]
        On any device, in any memory format.
    about : Mapping
        Plain values, kept as JSON in the header. Tensors and values share one file because two files could be torn
        apart by a kill between their renames.
    """
    plain = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    with atomic(path) as temporary:
        save_file(plain, temporary, metadata={"nilatent": json.dumps(dict(about), sort_keys=True)})


def read_tensors(path: Path, *, key: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Read what :func:`write_tensors` wrote, if it belongs to this training.

    Parameters
    ----------
    path : Path
        A ``.safetensors`` file that may be absent.
    key : str
        What ``about["key"]`` must be.

    Returns
    -------
    tuple or None
        Tensors and plain values; None when the file is absent, of another training, or not such a file.
    """
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("nilatent", "{}"))
            if about.get("key") != key:
                return None
            return {name: file.get_tensor(name) for name in file.keys()}, about  # noqa: SIM118 (not a mapping)
    except SafetensorError:
        return None
