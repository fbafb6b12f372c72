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
from safetensors.torch import load_file, save
from torch import Tensor, nn

from nilatent.errors import NilatentError
from nilatent.models import Model, ModelConfig, build, empty_start
from nilatent.provenance import atomic, hash_file, hash_values, read_json, write_json
from nilatent.training.conditions import Conditions
from nilatent.volumes import Grid

FORMAT_VERSION = 2
FILES = (
    "conditions.json",
    "config.toml",
    "grid.json",
    "history.tsv",
    "result.json",
    "subjects.tsv",
    "weights.safetensors",
)


class ModelError(NilatentError):
    """A model folder is incomplete or of another format version."""


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """A trained network with everything needed to use it and to know what it has seen.

    Parameters
    ----------
    module : Autoencoder, Vae or SpatialVae
        On the CPU, in single precision, at its best epoch.
    model_config : ModelConfig
        Which model.
    training : dict
        The settings it was trained with.
    conditions : Conditions
        What it is told of every scan beside the image.
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

    module: Model
    model_config: ModelConfig
    training: dict[str, Any]
    conditions: Conditions
    grid: Grid
    mask: npt.NDArray[np.bool_]
    training_subjects: tuple[str, ...]
    validation_subjects: tuple[str, ...]
    best_epoch: int
    result: dict[str, Any]
    history: pd.DataFrame
    content_hash: str


@dataclass(frozen=True, eq=False)
class Progress:
    """Where a training stands after an epoch: with the seed, all that is needed to go on.

    Parameters
    ----------
    best : dict[str, Tensor]
        Weights of the best epoch.
    history : tuple[dict[str, int | float], ...]
        One row per epoch, the start included.
    past : Tensor, optional
        (draw, latent) queue of the objective, where it has one.
    """

    best: dict[str, Tensor]
    history: tuple[dict[str, int | float], ...]
    past: Tensor | None = None

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return len(self.history) - 1

    @property
    def best_epoch(self) -> int:
        """The epoch whose weights are kept; 0 is the start."""
        return int(self.history[-1]["best_epoch"])


Learners = Mapping[str, tuple[nn.Module, torch.optim.Optimizer]]


def keep(folder: Path, key: str, progress: Progress, learners: Learners) -> None:
    """Write the state after an epoch to ``resume.safetensors``, then ``history.tsv`` for whoever looks on.

    Parameters
    ----------
    folder : Path
        The model folder.
    key : str
        Says which training this is; another one does not go on from it.
    progress : Progress
        Best weights and history.
    learners : Mapping
        Name to module and optimiser: the parameters of each and their moments are written; buffers never change.
    """
    tensors = {f"best.{name}": tensor for name, tensor in progress.best.items()}
    for learner, (module, optimiser) in learners.items():
        for name, parameter in module.named_parameters():
            tensors[f"{learner}.now.{name}"] = parameter
            for moment, value in optimiser.state.get(parameter, {}).items():
                tensors[f"{learner}.{moment}.{name}"] = value
    if progress.past is not None:
        tensors["past"] = progress.past
    write_tensors(folder / "resume.safetensors", tensors, {"key": key, "history": progress.history})
    write_history(folder, progress)


def write_history(folder: Path, progress: Progress) -> None:
    """Write ``history.tsv``, one row per epoch."""
    with atomic(folder / "history.tsv") as temporary:
        pd.DataFrame(progress.history).to_csv(temporary, sep="\t", index=False, na_rep="n/a")


def resume(folder: Path, key: str, learners: Learners) -> Progress | None:
    """Put modules and optimisers back where :func:`keep` left them.

    Parameters
    ----------
    folder, key
        As given to :func:`keep`.
    learners
        Filled in place; the first of them is the model, whose best weights are kept.

    Returns
    -------
    Progress or None
        None when there is nothing to go on from, or it belongs to another training.
    """
    stored = read_tensors(folder / "resume.safetensors", key=key)
    if stored is None:
        return None
    tensors, about = stored
    for learner, (module, optimiser) in learners.items():
        for name, parameter in module.named_parameters():
            parameter.data.copy_(tensors[f"{learner}.now.{name}"])
            if f"{learner}.step.{name}" in tensors:
                moments = {moment: tensors[f"{learner}.{moment}.{name}"] for moment in ("exp_avg", "exp_avg_sq")}
                laid_out = {moment: _laid_out(value, parameter) for moment, value in moments.items()}
                optimiser.state[parameter] = {"step": tensors[f"{learner}.step.{name}"], **laid_out}
    model = next(iter(learners.values()))[0]
    best = {name: _laid_out(tensors[f"best.{name}"], parameter) for name, parameter in model.named_parameters()}
    return Progress(best, tuple(about["history"]), tensors.get("past"))


def _laid_out(value: Tensor, like: Tensor) -> Tensor:
    """Copy into the memory layout of the parameter, which the tensors of an undisturbed run have too."""
    return torch.empty_like(like).copy_(value).detach()


def save_model(
    folder: Path,
    *,
    state: Mapping[str, Tensor],
    settings: Mapping[str, Mapping[str, Any]],
    conditions: Conditions,
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
    conditions : Conditions
        What the model is told.
    grid : Grid
        Of the training scans.
    subjects : DataFrame
        Columns ``subject_id`` and ``part``.
    result : Mapping
        Plain values.
    """
    write_tensors(folder / "weights.safetensors", state, {"format_version": FORMAT_VERSION})
    write_json(folder / "grid.json", grid.to_dict())
    write_json(folder / "conditions.json", conditions.to_dict())
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
    lists = {name: tuple(value) for name, value in settings["model"].items() if isinstance(value, list)}
    config = ModelConfig(**(settings["model"] | lists))
    conditions = read_json(folder / "conditions.json")
    state = load_file(folder / "weights.safetensors")
    subjects = pd.read_csv(folder / "subjects.tsv", sep="\t", dtype=str, keep_default_na=False)
    seen = {part: tuple(subjects.loc[subjects["part"] == part, "subject_id"]) for part in ("train", "validation")}
    result, grid = read_json(folder / "result.json"), read_json(folder / "grid.json")
    return TrainedModel(
        module=module_from_state(config, state),
        model_config=config,
        training=settings["training"],
        conditions=Conditions.from_dict(conditions),
        grid=Grid.from_dict(grid),
        mask=state["anchor.mask"].numpy() > 0,
        training_subjects=seen["train"],
        validation_subjects=seen["validation"],
        best_epoch=int(result["best_epoch"]),
        result=result,
        history=pd.read_csv(folder / "history.tsv", sep="\t"),
        content_hash=hash_values([hash_file(folder / "weights.safetensors"), asdict(config), conditions, grid, seen]),
    )


def module_from_state(config: ModelConfig, state: Mapping[str, Tensor]) -> Model:
    """Build a module and fill it with stored weights and buffers.

    Parameters
    ----------
    config : ModelConfig
        Which model.
    state : Mapping[str, Tensor]
        Its whole state; the mask in it gives the shape.

    Returns
    -------
    Autoencoder, Vae or SpatialVae
        In evaluation mode, on the CPU.
    """
    mask = state["anchor.mask"] > 0
    start = empty_start(config, mask=mask, n_condition=len(state["anchor.slopes"]))
    with torch.random.fork_rng(devices=[]):
        module = build(config, mask=mask, start=start)
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
    # One key only: the order of several is not fixed, and the same weights must give the same bytes.
    content = save(plain, metadata={"nilatent": json.dumps(dict(about), sort_keys=True)})
    with atomic(path) as temporary:
        temporary.write_bytes(content)


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
