"""Head: a fitted rule from the latents of one model to a target, frozen with its threshold; its reader and writer."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from nilatent.analysis.prediction.heads import LinearHead
from nilatent.errors import NilatentError
from nilatent.models.heads import ResidualHead
from nilatent.provenance import atomic, hash_file, hash_values, plain, read_json, write_json
from nilatent.training.heads import NetworkHead
from nilatent.training.origin import Seen
from nilatent.training.tensors import write_tensors

FORMAT_VERSION = 1
FEATURES = "latents"
FILES = ("head.json", "subjects.tsv", "weights.safetensors")
# A folder may come from a stranger: larger files are none of ours.
MAX_BYTES = 2**30
# Nobody tells so many groups apart, and a network head has an output for each.
MAX_LEVELS = 1000
KINDS = ("binary", "multi-class", "ordinal", "continuous")
LINEAR = ("centre", "scale", "coefficients", "intercept", "prior")


class HeadError(NilatentError):
    """A head folder is incomplete, damaged, of another format version, or belongs to another model."""


@dataclass(frozen=True, eq=False)
class Reference:
    """What is normal in the study, against which scans from elsewhere are held; no scan can be made out of it.

    Parameters
    ----------
    mean, sd : ndarray
        (latent,) of the posterior means of the study's scans.
    n_subjects : int
        Whose scans these are.
    error, error_se : float
        Mean over subjects the model has not seen of their squared reconstruction error per voxel, and its standard error; NaN
        when it was not said.
    n_error : int
        How many such subjects.
    """

    mean: np.ndarray
    sd: np.ndarray
    n_subjects: int
    error: float = float("nan")
    error_se: float = float("nan")
    n_error: int = 0


@dataclass(frozen=True, eq=False)
class Head:
    """A frozen rule on the latents of one model.

    Parameters
    ----------
    target : str
        What it predicts: a column of the cohort, or a contrast of its groups.
    column : str
        The column.
    rule : LinearHead or NetworkHead
        The rule with its threshold.
    model_hash : str
        Content hash of the model whose latents it reads.
    seen : Seen
        Subjects and scans it was fitted on, as salted hashes, all in the part ``"train"``.
    reference : Reference
        What is normal in the study.
    held_out : dict[str, float]
        How well the same kind of head did on held-out subjects of the study, by name of the measure; empty when not said.
    versions : dict[str, str]
        Of the packages it was fitted with.
    content_hash : str
        Of everything but the versions; empty until it was written or read.
    """

    target: str
    column: str
    rule: LinearHead | NetworkHead
    model_hash: str
    seen: Seen
    reference: Reference
    held_out: dict[str, float]
    versions: dict[str, str]
    content_hash: str = ""

    @property
    def levels(self) -> tuple[str, ...]:
        """Names of the classes in the order of the scores; none for a number."""
        return self.rule.levels

    def check_model(self, model_hash: str) -> None:
        """Refuse another model than the one whose latents the head was fitted on.

        Raises
        ------
        HeadError
            Names both.
        """
        if model_hash != self.model_hash:
            raise HeadError(
                f"The head for '{self.target}' was fitted on latents of the model {self.model_hash[:12]}, this is the model "
                f"{model_hash[:12]}. A latent of one model means nothing in another: fit a head on the latents of this one."
            )

    def scores(self, latents: xr.Dataset) -> np.ndarray:
        """(scan, class) probabilities, or (scan, 1) numbers."""
        return self.rule.scores(self._means(latents))

    def call(self, latents: xr.Dataset) -> np.ndarray:
        """(scan,) codes of the classes that are called by the frozen threshold, or numbers."""
        return np.asarray(self.rule.call(self._means(latents)))

    def _means(self, latents: xr.Dataset) -> np.ndarray:
        self.check_model(str(latents.attrs["model_hash"]))
        if latents.sizes["latent"] != len(self.reference.mean):
            raise HeadError(
                f"The head reads {len(self.reference.mean)} latents and was given {latents.sizes['latent']}. Give those of the "
                "model themselves, not their components."
            )
        return np.asarray(latents["mean"].values, dtype=np.float64)


def named_head(folder: Path, name: str) -> Path | None:
    """The head of a target, or in a folder of that name, among those that a study passes on; None when there is none.

    Parameters
    ----------
    folder : Path
        ``heads/`` of a run folder.
    name : str
        Target, such as ``"AD:CN"``, or the folder's name.
    """
    heads = sorted(path.parent for path in Path(folder).glob("*/head.json"))
    by_target = {str(read_json(place / "head.json").get("target")): place for place in heads}
    return by_target.get(name) or next((place for place in heads if place.name == name), None)


def write_head(head: Head, folder: Path) -> list[Path]:
    """Write ``weights.safetensors``, ``subjects.tsv`` (hashes, no names) and, last, ``head.json``.

    Returns
    -------
    list[Path]
        What was written.
    """
    weights, table, described = folder / "weights.safetensors", folder / "subjects.tsv", folder / "head.json"
    # Without its description a head does not open: one that is half new and half old must not.
    described.unlink(missing_ok=True)
    write_tensors(weights, _tensors(head), {"format_version": FORMAT_VERSION})
    with atomic(table) as temporary:
        head.seen.to_table().to_csv(temporary, sep="\t", index=False)
    write_json(
        described,
        {
            "format_version": FORMAT_VERSION,
            "target": head.target,
            "column": head.column,
            "features": FEATURES,
            "model_hash": head.model_hash,
            "rule": _described(head.rule),
            "reference": {
                name: getattr(head.reference, name) for name in ("n_subjects", "error", "error_se", "n_error")
            },
            "held_out": head.held_out,
            "weights_sha256": hash_file(weights),
            "subjects_sha256": hash_file(table),
            "versions": head.versions,
        },
    )
    return [weights, table, described]


def _tensors(head: Head) -> dict[str, Tensor]:
    found = {"reference.mean": head.reference.mean, "reference.sd": head.reference.sd}
    rule = head.rule
    if isinstance(rule, LinearHead):
        found |= {f"rule.{name}": getattr(rule, name) for name in LINEAR}
        return {name: torch.from_numpy(np.asarray(value, dtype=np.float64)) for name, value in found.items()}
    found |= {"rule.centre": rule.centre, "rule.scale": rule.scale}
    arrays = {name: torch.from_numpy(np.asarray(value, dtype=np.float64)) for name, value in found.items()}
    return arrays | {f"state.{name}": value for name, value in rule.state.items()}


def _described(rule: LinearHead | NetworkHead) -> dict[str, Any]:
    names = ("kind", "levels", "threshold", "n_train")
    if isinstance(rule, LinearHead):
        return {"head": "linear"} | {name: getattr(rule, name) for name in (*names, "penalty")}
    own = ("grid", "channels", "y_centre", "y_scale", "best_epoch")
    return {"head": "network"} | {name: getattr(rule, name) for name in (*names, *own)}


def read_head(folder: Path) -> Head:
    """Read a head folder, from whomever it comes: nothing in it is run.

    Raises
    ------
    HeadError
        When a file is missing, too large or damaged, or the format is another one.
    """
    folder = Path(folder)
    for name in FILES:
        if not (folder / name).is_file():
            raise HeadError(f"{folder} lacks {name}, so it is no head. Run the study's heads again.")
        if (folder / name).stat().st_size > MAX_BYTES:
            raise HeadError(
                f"{folder / name} is larger than any that nilatent writes. It is not a head folder of ours."
            )
    try:
        told = read_json(folder / "head.json")
        if told["format_version"] != FORMAT_VERSION or told["features"] != FEATURES:
            raise HeadError(
                f"{folder} holds head format {told['format_version']} on {told['features']}, this nilatent reads "
                f"{FORMAT_VERSION} on {FEATURES}. Install the nilatent that wrote it, or fit the head again."
            )
        for name in ("subjects.tsv", "weights.safetensors"):
            if hash_file(folder / name) != told[f"{name.split('.')[0]}_sha256"]:
                raise ValueError(f"{name} is not the one that was written with head.json")
        tensors = load_file(folder / "weights.safetensors")
        table = pd.read_csv(folder / "subjects.tsv", sep="\t", dtype=str, keep_default_na=False)
        return _read(told, tensors, Seen.from_table(table))
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        ArithmeticError,
        RuntimeError,
        SafetensorError,
    ) as error:
        raise HeadError(
            f"{folder} is damaged: {type(error).__name__}: {error}. Get it again from whoever made it, or fit it again."
        ) from error


def _read(told: Mapping[str, Any], tensors: Mapping[str, Tensor], seen: Seen) -> Head:
    parts = ("reference.", "rule.", "state.")[: 2 if told["rule"]["head"] == "linear" else 3]
    for name, value in tensors.items():
        if not name.startswith(parts):
            raise ValueError(f"there is no {name} in such a head")
        if not (value.is_floating_point() and bool(value.isfinite().all())):
            raise ValueError(f"{name} holds values that are no finite numbers")
    mean, sd = (tensors[f"reference.{name}"].numpy() for name in ("mean", "sd"))
    rule = told["rule"]
    if rule["kind"] not in KINDS or mean.ndim != 1 or sd.shape != mean.shape:
        raise ValueError(f"a head of kind '{rule['kind']}' with a reference of shapes {mean.shape} and {sd.shape}")
    _check_rule(rule, tensors)
    if not all(type(value) in (int, float) for value in told["held_out"].values()):
        raise ValueError("held_out holds values that are no numbers")
    read = _linear(rule, tensors, len(mean)) if rule["head"] == "linear" else _network(rule, tensors, len(mean))
    known = {name: value for name, value in told.items() if name != "versions"}
    return Head(
        target=str(told["target"]),
        column=str(told["column"]),
        rule=read,
        model_hash=str(told["model_hash"]),
        seen=seen,
        reference=Reference(mean, sd, **{name: plain(value) for name, value in told["reference"].items()}),
        held_out=dict(told["held_out"]),
        versions=dict(told["versions"]),
        content_hash=hash_values(known),
    )


def _check_rule(rule: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Refuse what would be read as a rule and say nothing: numbers would come out, and be wrong."""
    levels, threshold = rule["levels"], rule["threshold"]
    least, most = {"binary": (2, 2), "continuous": (0, 0)}.get(rule["kind"], (2, MAX_LEVELS))
    named = isinstance(levels, list) and all(isinstance(level, str) for level in levels)
    if not named or len(set(levels)) < len(levels) or not least <= len(levels) <= most:
        raise ValueError(f"a head of kind '{rule['kind']}' with the levels {str(levels)[:99]}")
    # The comparison is also false for what is no number at all.
    if rule["kind"] == "binary" and not 0.0 <= float(threshold) <= 1.0:
        raise ValueError(f"a threshold of {threshold} for a probability")
    for name in ("rule.scale", "rule.prior"):
        if name in tensors and not bool((tensors[name] > 0).all()):
            raise ValueError(f"{name} holds values that are not above 0")


def _linear(told: Mapping[str, Any], tensors: Mapping[str, Tensor], n_latent: int) -> LinearHead:
    arrays = _under("rule.", {name: value.numpy() for name, value in tensors.items()})
    n_levels = len(told["levels"])
    n_out = {"multi-class": n_levels, "ordinal": n_levels - 1}.get(told["kind"], 1)
    sizes = {"centre": (n_latent,), "scale": (n_latent,), "coefficients": (n_out, n_latent), "intercept": (n_out,)}
    _compare(sizes | {"prior": (n_levels,)}, arrays)
    return LinearHead(
        kind=told["kind"],
        levels=tuple(told["levels"]),
        threshold=float(told["threshold"]),
        penalty=float(told["penalty"]),
        n_train=int(told["n_train"]),
        **arrays,
    )


def _network(told: Mapping[str, Any], tensors: Mapping[str, Tensor], n_latent: int) -> NetworkHead:
    grid, channels = tuple(int(side) for side in told["grid"]), tuple(int(width) for width in told["channels"])
    if len(grid) != 4 or prod(grid) != n_latent or min(grid) < 1:
        raise ValueError(f"a grid {grid} for {n_latent} latents")
    state = _under("state.", tensors)
    # Settings are believed only when the weights are of their shapes, on a device without memory.
    with torch.device("meta"):
        expected = ResidualHead(grid=grid, n_out=max(len(told["levels"]), 1), channels=channels).state_dict()
    _compare({name: tuple(value.shape) for name, value in expected.items()}, state)
    arrays = _under("rule.", {name: value.numpy() for name, value in tensors.items()})
    _compare({"centre": (n_latent,), "scale": (n_latent,)}, arrays)
    return NetworkHead(
        kind=told["kind"],
        levels=tuple(told["levels"]),
        grid=grid,
        channels=channels,
        y_centre=float(told["y_centre"]),
        y_scale=float(told["y_scale"]),
        state=state,
        n_train=int(told["n_train"]),
        best_epoch=int(told["best_epoch"]),
        threshold=float(told["threshold"]),
        **arrays,
    )


def _under(prefix: str, tensors: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _compare(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, Any]) -> None:
    for name in sorted(expected.keys() | found.keys()):
        shape = tuple(found[name].shape) if name in found else None
        if expected.get(name) != shape:
            raise ValueError(f"{name} has shape {shape}, and the description asks for {expected.get(name)}")
