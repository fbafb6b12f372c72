"""The folder of a joint model: weights, settings, modalities, and whom it has seen."""

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tomli_w
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from nilatent.grid import Grid
from nilatent.models.multimodal import ImagePart, LinearPart, MultimodalVae, TablePart
from nilatent.provenance import atomic, hash_file, hash_values, read_json, write_json
from nilatent.training.conditions import Column, Conditions
from nilatent.training.multimodal.config import MultimodalConfig
from nilatent.training.multimodal.start import table_part
from nilatent.training.origin import Origin, Seen, hashed, seen_by
from nilatent.training.stored import ModelError, check_files
from nilatent.training.tensors import write_tensors
from nilatent.volumes import Volumes

FORMAT_VERSION = 1
FILES = ("config.toml", "history.tsv", "modalities.json", "result.json", "subjects.tsv", "weights.safetensors")
LINEAR = ("mean", "shared", "private", "noise")


@dataclass(frozen=True, eq=False)
class TrainedMultimodal:
    """A joint model with everything needed to use it and to know what it has seen.

    Parameters
    ----------
    module : MultimodalVae
        On the CPU, in evaluation mode, at its best epoch.
    config : MultimodalConfig
        The settings it was trained with.
    grids : dict[str, Grid]
        Of each modality of volumes; its mask is that of its part.
    columns : dict[str, tuple[Column, ...]]
        Of each table, and how its cells become numbers.
    seen : Seen
        Subjects and scans that moved its weights or chose its epoch, as hashes.
    result : dict
        ``summary`` in words and figures; see ``result.json``.
    history : DataFrame
        One row per epoch.
    content_hash : str
        Of weights, settings, modalities and what was seen.
    """

    module: MultimodalVae
    config: MultimodalConfig
    grids: dict[str, Grid]
    columns: dict[str, tuple[Column, ...]]
    seen: Seen
    result: dict[str, Any]
    history: pd.DataFrame
    content_hash: str


def save_multimodal(
    folder: Path,
    *,
    module: MultimodalVae,
    config: MultimodalConfig,
    volumes: Mapping[str, Volumes],
    columns: Mapping[str, tuple[Column, ...]],
    parts: pd.DataFrame,
    result: Mapping[str, Any],
) -> None:
    """Write the folder of a joint model; ``config.toml`` comes last, so a folder that has it is complete.

    Parameters
    ----------
    folder : Path
        Receives the files in :data:`FILES`; ``history.tsv`` is already there.
    module : MultimodalVae
        At its best epoch.
    config : MultimodalConfig
        Settings.
    volumes : Mapping[str, Volumes]
        Of each modality of images, for its grid and for the hashes of its scans.
    columns : Mapping
        Of each table.
    parts : DataFrame
        Index ``scan_id``, columns ``subject_id`` and ``part``. No name is written, only its hash.
    result : Mapping
        Plain values.
    """
    (folder / "config.toml").unlink(missing_ok=True)
    weights = folder / "weights.safetensors"
    write_tensors(weights, module.state_dict(), {"format_version": FORMAT_VERSION})
    modalities = {
        name: {"grid": volumes[name].grid.to_dict()}
        if name in volumes
        else {"columns": Conditions(tuple(columns[name])).to_dict()["columns"]}
        for name in module.names
    }
    write_json(folder / "modalities.json", {"order": list(module.names), "modalities": modalities})
    write_json(folder / "result.json", dict(result))
    with atomic(folder / "subjects.tsv") as temporary:
        _seen(hash_file(weights)[:32], volumes, parts).to_table().to_csv(temporary, sep="\t", index=False)
    with atomic(folder / "config.toml") as temporary:
        settings = {"format_version": FORMAT_VERSION, "multimodal": asdict(config)}
        temporary.write_text(tomli_w.dumps(settings), encoding="utf-8")


def _seen(salt: str, volumes: Mapping[str, Volumes], parts: pd.DataFrame) -> Seen:
    """Names and values of all modalities; a subject of a table alone is known by its name."""
    used = parts[parts["part"].isin(("train", "validation"))]
    named = used.drop_duplicates("subject_id")[["subject_id", "part"]]
    subjects, scans = dict(seen_by(salt, named).subjects), dict[str, str]()
    for one in volumes.values():
        own = parts.loc[parts.index.intersection(one.scans.index)]
        known = seen_by(salt, named, Origin(one, own))
        subjects, scans = subjects | dict(known.subjects), scans | dict(known.scans)
    return Seen(salt, subjects, scans)


def load_multimodal(folder: Path) -> TrainedMultimodal:
    """Read the folder of a joint model, from whomever it comes: nothing in it is run.

    Raises
    ------
    ModelError
        When a file is missing, too large or damaged, the format is another one, or the weights are not those of the
        settings.
    """
    folder = Path(folder)
    check_files(folder, FILES)
    try:
        settings = tomllib.loads((folder / "config.toml").read_text(encoding="utf-8"))
        if settings.get("format_version") == FORMAT_VERSION:
            return _loaded(folder, settings["multimodal"])
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"{folder} is damaged: {type(error).__name__}: {error}. Get it again from whoever made it, or train again."
        ) from error
    raise ModelError(
        f"{folder} holds joint models of format {settings.get('format_version')}, this nilatent reads {FORMAT_VERSION}. "
        "Install the nilatent that wrote it, or train again."
    )


def _loaded(folder: Path, settings: Mapping[str, Any]) -> TrainedMultimodal:
    odd = sorted(set(settings) ^ {field.name for field in fields(MultimodalConfig)})
    if odd:
        raise ValueError(f"the setting multimodal.{odd[0]} is missing or unknown")
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()
    }
    config = MultimodalConfig(**values)
    state, about = load_file(folder / "weights.safetensors"), read_json(folder / "modalities.json")
    if not all(bool(value.isfinite().all()) for value in state.values()):
        raise ValueError("weights.safetensors holds values that are no finite numbers")
    grids, columns, parts = {}, {}, dict[str, ImagePart | TablePart]()
    for name in about["order"]:
        own = {
            key.removeprefix(f"parts.{name}."): value
            for key, value in state.items()
            if key.startswith(f"parts.{name}.")
        }
        linear = LinearPart(*(own[key] for key in LINEAR))
        if "grid" in about["modalities"][name]:
            grids[name] = Grid.from_dict(about["modalities"][name]["grid"])
            parts[name] = _image_part(own, linear, grids[name], config)
        else:
            columns[name] = Conditions.from_dict(about["modalities"][name]).columns
            parts[name] = table_part(columns[name], linear)
    module = MultimodalVae(parts, kind=config.experts)
    module.load_state_dict(state)
    table = pd.read_csv(folder / "subjects.tsv", sep="\t", dtype=str, keep_default_na=False)
    seen = Seen.from_table(table)
    return TrainedMultimodal(
        module=module.eval(),
        config=config,
        grids=grids,
        columns=columns,
        seen=seen,
        result=read_json(folder / "result.json"),
        history=pd.read_csv(folder / "history.tsv", sep="\t"),
        content_hash=hash_values([hash_file(folder / "weights.safetensors"), asdict(config), about, seen]),
    )


def _image_part(state: Mapping[str, Tensor], linear: LinearPart, grid: Grid, config: MultimodalConfig) -> ImagePart:
    mask = state["mask"] > 0
    if tuple(mask.shape) != grid.shape or int(mask.sum()) != linear.shared.shape[1]:
        raise ValueError("the mask in weights.safetensors is not the one of modalities.json")
    with torch.random.fork_rng(devices=[]):
        return ImagePart(mask=mask, channels=config.channels, start=linear)


def subjects_seen(
    seen: Seen, subjects: "pd.Series[str]", volumes: Mapping[str, Volumes]
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Find the scans of subjects that a joint model has seen, by name or by the values of any of their volumes.

    Parameters
    ----------
    seen : Seen
        Of the model.
    subjects : Series
        Index ``scan_id``: the subject of each scan.
    volumes : Mapping[str, Volumes]
        What is there of them.

    Returns
    -------
    ndarray
        (scan,) bool, the same for all scans of a subject.
    """
    known = np.array([hashed(seen.salt, str(name)) in seen.subjects for name in subjects], dtype=bool)
    for one in volumes.values():
        dataset = one.scans["dataset"].reindex(subjects.index).fillna("").astype(str)
        known |= [seen.knows_subject(str(name), of) for name, of in zip(subjects, dataset, strict=True)]
        places = one.scans.index.get_indexer(subjects.index)
        known |= [place >= 0 and seen.knows_scan(one.data[place]) for place in places]
    return np.asarray(pd.Series(known).groupby(subjects.to_numpy()).transform("any"), dtype=bool)
