"""What of a model folder is believed: files, settings and shapes are checked before memory is taken for them."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nilatent.errors import NilatentError
from nilatent.models import ModelConfig, build, empty_start
from nilatent.models.curve import MAX_CENTRES, MAX_RANK

# A folder may come from a stranger: larger files are none of ours.
MAX_BYTES = {"weights.safetensors": 2**34, "config.toml": 2**20}
MAX_TEXT_BYTES = 2**26


class ModelError(NilatentError):
    """A model folder is incomplete, damaged, of another format version, or does not fit the scans."""


def check_files(folder: Path, names: Sequence[str]) -> None:
    """Refuse a folder in which a file is missing, or larger than any that nilatent writes.

    Raises
    ------
    ModelError
        Names the file.
    """
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ModelError(
            f"{folder} lacks {', '.join(missing)}, so it is not a finished model. Run `nilatent train` again."
        )
    for name in names:
        size, most = (folder / name).stat().st_size, MAX_BYTES.get(name, MAX_TEXT_BYTES)
        if size > most:
            raise ModelError(
                f"{folder / name} has {size} bytes, and nilatent writes at most {most}. It is not a model folder of ours."
            )


def stored_config(table: Mapping[str, Any]) -> ModelConfig:
    """Settings of a model as they were stored.

    Parameters
    ----------
    table : Mapping
        Name to value; lists are taken as tuples.

    Raises
    ------
    ValueError
        When a setting does not exist or its value is of another kind.
    SettingError
        When the values cannot be meant.
    """
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in table.items()}
    defaults = {field.name: field.default for field in fields(ModelConfig)}
    for name, value in values.items():
        if name not in defaults:
            raise ValueError(f"there is no setting model.{name}")
        kind = float if name == "sigma" else type(defaults[name])
        inner = {"channels": int, "condition": str}.get(name)
        right = type(value) in ((float, int) if kind is float else (kind,)) or (name == "sigma" and value is None)
        if not right or (inner is not None and any(type(item) is not inner for item in value)):
            raise ValueError(f"model.{name} is {value!r}, which is no {kind.__name__}")
    return ModelConfig(**values)


def check_state(config: ModelConfig, state: Mapping[str, Tensor], *, n_condition: int) -> None:
    """Refuse weights that are not those of the settings, before memory is taken for what the settings ask for.

    Parameters
    ----------
    config : ModelConfig
        Which model.
    state : Mapping[str, Tensor]
        Weights and buffers as they were stored.
    n_condition : int
        Numbers it is told of every scan.

    Raises
    ------
    ValueError
        When a name or shape differs, or a value is not finite.
    """
    n_values, n_voxels = config.n_values, int((state["anchor.mask"] > 0).sum())
    sizes: dict[str, tuple[int, ...]] = {"anchor.log_var": (n_values,), "anchor.slopes": (n_condition, n_voxels)}
    if config.start == "pca":
        sizes |= {"anchor.components": (n_values, n_voxels), "anchor.rotation": (n_values, n_values)}
    if config.start == "local":
        sizes |= {"anchor.components": (config.latent_channels, n_voxels)}
    _compare(sizes, {name: state[name] for name in sizes})
    mask = state["anchor.mask"] > 0
    n_centres, n_images = curve_sizes(state)
    if n_centres > MAX_CENTRES or n_images > MAX_RANK:
        raise ValueError(f"anchor.curve has {n_centres} centres and {n_images} images, more than training ever keeps")
    start = empty_start(config, mask=mask, n_condition=n_condition, n_centres=n_centres, n_images=n_images)
    try:
        # On a device without memory, but for the rotation, which is computed with.
        rotation = torch.eye(n_values) if config.start == "pca" else None
        with torch.device("meta"):
            expected = build(config, mask=mask, start=replace(start, rotation=rotation)).state_dict()
    except RuntimeError as error:
        raise ValueError(f"the settings ask for a network that cannot be: {error}") from error
    _compare({name: tuple(value.shape) for name, value in expected.items()}, state)


def curve_sizes(state: Mapping[str, Tensor]) -> tuple[int, int]:
    """Centres and images of the curve of a stored model; 1 and 0 for a model that has no place for one."""
    if "anchor.curve.centres" not in state:
        return 1, 0
    return len(state["anchor.curve.centres"]), len(state["anchor.curve.images"])


def _compare(expected: Mapping[str, tuple[int, ...]], state: Mapping[str, Tensor]) -> None:
    for name in sorted(expected.keys() | state.keys()):
        shape = tuple(state[name].shape) if name in state else None
        if expected.get(name) != shape:
            raise ValueError(f"{name} has shape {shape}, and the settings ask for {expected.get(name)}")
        if not (state[name].is_floating_point() and bool(state[name].isfinite().all())):
            raise ValueError(f"{name} holds values that are no finite numbers")
