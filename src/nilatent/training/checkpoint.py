"""The model folder and the state from which an interrupted training goes on."""

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import tomli_w
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from nilatent.models import Model, ModelConfig, build, empty_start
from nilatent.models.curve import no_curve
from nilatent.provenance import atomic, hash_file, hash_values, plain, read_json, write_json
from nilatent.training.card import Facts, model_card
from nilatent.training.conditions import Conditions
from nilatent.training.origin import Origin, Seen, hashed, seen_by, summary
from nilatent.training.stored import ModelError, check_files, check_state, curve_sizes, stored_config
from nilatent.training.tensors import read_tensors, write_tensors
from nilatent.volumes import Grid

__all__ = [
    "FILES",
    "FORMAT_VERSION",
    "Learners",
    "ModelError",
    "Origin",
    "Progress",
    "TrainedModel",
    "keep",
    "load_model",
    "module_from_state",
    "read_tensors",
    "resume",
    "save_model",
    "write_history",
    "write_tensors",
]

FORMAT_VERSION = 2
FILES = (
    "MODEL_CARD.md",
    "conditions.json",
    "config.toml",
    "grid.json",
    "history.tsv",
    "preparation.json",
    "result.json",
    "subjects.tsv",
    "weights.safetensors",
)
# The settings hold the hashes of the other files; the history holds seconds, which no two trainings share.
HASHED = tuple(name for name in FILES if name not in ("config.toml", "history.tsv"))
NOT_IN_VERSION_1 = ("MODEL_CARD.md", "conditions.json", "preparation.json")


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
    seen : Seen
        The subjects and scans that moved its weights or chose its epoch, as hashes.
    preparation : dict, optional
        How its scans were made; None when it was not said.
    best_epoch : int
        0 when no epoch was better than the start.
    result : dict
        ``summary`` in words, validation figures, verdicts; see ``result.json``.
    history : DataFrame
        One row per epoch.
    content_hash : str
        Of weights, settings, grid, preparation and what was seen; it does not depend on time or place.
    """

    module: Model
    model_config: ModelConfig
    training: dict[str, Any]
    conditions: Conditions
    grid: Grid
    mask: npt.NDArray[np.bool_]
    seen: Seen
    preparation: dict[str, Any] | None
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
    history : tuple[dict[str, Any], ...]
        One row per epoch, the start included.
    past : Tensor, optional
        (draw, latent) queue of the objective, where it has one.
    """

    best: dict[str, Tensor]
    history: tuple[dict[str, Any], ...]
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
    # The header sorts names, and the table shall have its columns in one order.
    columns = list(dict.fromkeys(name for row in progress.history for name in row))
    about = {"key": key, "history": progress.history, "columns": columns}
    write_tensors(folder / "resume.safetensors", tensors, about)
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
        None when there is nothing to go on from, it belongs to another training, or its bytes have changed.
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
    history = tuple({name: row[name] for name in about.get("columns", row) if name in row} for row in about["history"])
    return Progress(best, history, tensors.get("past"))


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
    origin: Origin | None = None,
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
        Columns ``subject_id`` and ``part``; no name is written, only its hash.
    result : Mapping
        Plain values.
    origin : Origin, optional
        What the model was made from; without it, its preparation and its scans are not known to whoever uses it.
    """
    weights = folder / "weights.safetensors"
    write_tensors(weights, state, {"format_version": FORMAT_VERSION})
    # Of the weights alone, so that the same training gives the same folder.
    salt = hash_file(weights)[:32]
    preparation = None if origin is None or origin.preparation is None else plain(origin.preparation)
    told = dict(result) | ({} if origin is None else {"trained_on": summary(origin)})
    mask = state["anchor.mask"].cpu() > 0
    write_json(folder / "grid.json", grid.to_dict() | {"mask_hash": _mask_hash(mask)})
    write_json(folder / "conditions.json", conditions.to_dict())
    write_json(folder / "preparation.json", preparation)
    write_json(folder / "result.json", told)
    with atomic(folder / "subjects.tsv") as temporary:
        seen_by(salt, subjects, origin).to_table().to_csv(temporary, sep="\t", index=False)
    counts = {
        anchored: sum(state[name].numel() for name in state if name.startswith("anchor.") == anchored)
        for anchored in (True, False)
    }
    facts = Facts(
        model=stored_config(dict(settings["model"])),
        training=settings["training"],
        conditions=conditions,
        grid=grid,
        n_voxels=int(mask.sum()),
        n_learned=counts[False],
        n_fixed=counts[True],
        preparation=preparation,
        result=told,
    )
    with atomic(folder / "MODEL_CARD.md") as temporary:
        temporary.write_text(model_card(facts), encoding="utf-8")
    present = {
        name: {key: value for key, value in table.items() if value is not None} for name, table in settings.items()
    } | {"sha256": {name: hash_file(folder / name) for name in HASHED}}
    with atomic(folder / "config.toml") as temporary:
        temporary.write_text(tomli_w.dumps({"format_version": FORMAT_VERSION} | present), encoding="utf-8")


def load_model(folder: Path) -> TrainedModel:
    """Read a model folder, from whomever it comes: nothing in it is run.

    Parameters
    ----------
    folder : Path
        What :func:`nilatent.training.loop.train` left, with this version of nilatent or an older one.

    Returns
    -------
    TrainedModel
        Ready to encode.

    Raises
    ------
    ModelError
        When a file is missing, too large or damaged, the format is a newer one, or the weights are not those of the
        settings.
    """
    folder = Path(folder)
    check_files(folder, ("config.toml",))
    try:
        settings = tomllib.loads((folder / "config.toml").read_text(encoding="utf-8"))
        version = settings.get("format_version")
        if version == 1:
            return _from_version_1(folder, settings)
        if version == FORMAT_VERSION:
            return _from_version_2(folder, settings)
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"{folder} is damaged: {type(error).__name__}: {error}. Get it again from whoever made it, or train again."
        ) from error
    raise ModelError(
        f"{folder} holds model format {version}, this nilatent reads up to {FORMAT_VERSION}. Install the nilatent that "
        "wrote it, or train again."
    )


def _from_version_2(folder: Path, settings: Mapping[str, Any]) -> TrainedModel:
    check_files(folder, FILES)
    read = _read_version_2(folder, settings)
    for name, digest in dict(settings.get("sha256", {})).items():
        # Last, because what is wrong with a file says more than that it was changed.
        if name in HASHED and hash_file(folder / name) != digest:
            raise ValueError(f"{name} is not as it was written")
    return read


def _read_version_2(folder: Path, settings: Mapping[str, Any]) -> TrainedModel:
    table = pd.read_csv(folder / "subjects.tsv", sep="\t", dtype=str, keep_default_na=False)
    return _trained(
        folder,
        settings,
        load_file(folder / "weights.safetensors"),
        conditions=Conditions.from_dict(read_json(folder / "conditions.json")),
        seen=Seen.from_table(table),
        preparation=read_json(folder / "preparation.json"),
    )


def _from_version_1(folder: Path, settings: Mapping[str, Any]) -> TrainedModel:
    """Before models were told conditions or turned their latents, and when subjects stood in the folder by name."""
    check_files(folder, [name for name in FILES if name not in NOT_IN_VERSION_1])
    state = load_file(folder / "weights.safetensors")
    state["anchor.slopes"] = torch.zeros(0, int((state["anchor.mask"] > 0).sum()))
    if "anchor.components" in state:
        # Never more components than voxels: an identity of any size asked for would fill the memory.
        state["anchor.rotation"] = torch.eye(min(state["anchor.components"].shape))
        nothing = no_curve(*state["anchor.components"].shape).state_dict()
        state |= {f"anchor.curve.{name}": value for name, value in nothing.items()}
    table = pd.read_csv(folder / "subjects.tsv", sep="\t", dtype=str, keep_default_na=False)
    named = {hashed("", name): part for name, part in zip(table["subject_id"], table["part"], strict=True)}
    return _trained(folder, settings, state, conditions=Conditions(), seen=Seen("", named, {}), preparation=None)


def _trained(
    folder: Path,
    settings: Mapping[str, Any],
    state: dict[str, Tensor],
    *,
    conditions: Conditions,
    seen: Seen,
    preparation: dict[str, Any] | None,
) -> TrainedModel:
    config = stored_config(settings["model"])
    if config.start == "local" and "anchor.components" not in state:
        # Before grids could start from blocks, the start left to the program was the mean image.
        config = replace(config, anchor="mean")
    result, stored = read_json(folder / "result.json"), read_json(folder / "grid.json")
    grid, mask = Grid.from_dict(stored), state["anchor.mask"] > 0
    if tuple(mask.shape) != grid.shape or stored.get("mask_hash", _mask_hash(mask)) != _mask_hash(mask):
        raise ValueError("the mask in weights.safetensors is not the one of grid.json")
    check_state(config, state, n_condition=conditions.n_values)
    known = [hash_file(folder / "weights.safetensors"), asdict(config), conditions.to_dict(), grid.to_dict()]
    return TrainedModel(
        module=module_from_state(config, state),
        model_config=config,
        training=dict(settings["training"]),
        conditions=conditions,
        grid=grid,
        mask=mask.numpy(),
        seen=seen,
        preparation=preparation,
        best_epoch=int(result["best_epoch"]),
        result=result,
        history=pd.read_csv(folder / "history.tsv", sep="\t"),
        content_hash=hash_values([*known, seen, preparation]),
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
    n_centres, n_images = curve_sizes(state)
    start = empty_start(
        config, mask=mask, n_condition=len(state["anchor.slopes"]), n_centres=n_centres, n_images=n_images
    )
    with torch.random.fork_rng(devices=[]):
        module = build(config, mask=mask, start=start)
    module.load_state_dict(dict(state))
    return module.eval()


def _mask_hash(mask: Tensor) -> str:
    return hash_values(np.packbits(mask.numpy()))
