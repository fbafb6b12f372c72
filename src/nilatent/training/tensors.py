"""Tensors on disk: one safetensors file with plain values in its header, written in one rename."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from nilatent.provenance import atomic


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
