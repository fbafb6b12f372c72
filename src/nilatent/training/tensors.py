"""Tensors on disk: one safetensors file with plain values in its header, written in one rename."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from nilatent.provenance import atomic, hash_values

DIGEST = "sha256"


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
    known = dict(about) | {DIGEST: _digest(plain, about)}
    # One key only: the order of several is not fixed, and the same weights must give the same bytes.
    content = save(plain, metadata={"nilatent": json.dumps(known, sort_keys=True)})
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
        Tensors and plain values; None when the file is absent, of another training, not such a file, or its bytes have
        changed.
    """
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("nilatent", "{}"))
            if about.get("key") != key:
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, ValueError):
        return None
    written = about.pop(DIGEST, "")
    # A file that is gone is better than a training that goes on from other numbers.
    return (tensors, about) if written in ("", _digest(tensors, about)) else None


def _digest(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> str:
    values = {
        name: hashlib.sha256(
            one.reshape(-1).clone(memory_format=torch.contiguous_format).view(torch.uint8).numpy().data
        ).hexdigest()
        for name, one in tensors.items()
    }
    return hash_values([values, {name: value for name, value in about.items() if name != DIGEST}])
