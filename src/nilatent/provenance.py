"""Content hashes, atomic writes, and the record that lets a stage be skipped when nothing it depends on has changed."""

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

PACKAGES = ("nilatent", "numpy", "scipy", "pandas", "xarray", "nibabel", "nilearn", "scikit-learn", "torch", "antspyx")


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hex digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_values(values: object) -> str:
    """SHA-256 of plain values (dataclasses, mappings, sequences, numbers, arrays), independent of key order.

    Parameters
    ----------
    values : object
        Anything :func:`plain` understands.

    Returns
    -------
    str
        64 hex digits.

    Examples
    --------
    >>> hash_values({"a": 1, "b": 2}) == hash_values({"b": 2, "a": 1})
    True
    """
    return hashlib.sha256(json.dumps(plain(values), sort_keys=True, allow_nan=True).encode()).hexdigest()


def plain(values: object) -> Any:
    """The same values in the types JSON has.

    Raises
    ------
    TypeError
        For an object that has no plain form, rather than hashing its memory address.
    """
    if dataclasses.is_dataclass(values) and not isinstance(values, type):
        return {field.name: plain(getattr(values, field.name)) for field in dataclasses.fields(values)}
    if isinstance(values, Mapping):
        keyed = {str(key): plain(value) for key, value in values.items()}
        if len(keyed) != len(values):
            raise TypeError("two keys of a mapping have the same text; one of the two values would be lost")
        return keyed
    if isinstance(values, np.ndarray):
        return plain(values.tolist())
    if isinstance(values, np.generic):
        return values.item()
    if isinstance(values, Path):
        return str(values)
    if values is None or isinstance(values, bool | int | float | str):
        return values
    if isinstance(values, Sequence | set | frozenset):
        return [plain(value) for value in (sorted(values) if isinstance(values, set | frozenset) else values)]
    raise TypeError(f"{type(values).__name__} has no plain form; pass numbers, text, arrays, mappings or dataclasses")


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that replaces it only when the block ends well.

    Parameters
    ----------
    path : Path
        The file to write. Its folder is created.

    Yields
    ------
    Path
        Write here. The name keeps the suffixes, so that writers that look at them still work.

    Notes
    -----
    The replacement is one rename on the same file system after an fsync: a reader, or a run started again after a
    crash, sees the old file or the new one and never half of one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Two writers can have one process number: threads, and containers on two machines.
    temporary = path.with_name(f".{os.getpid()}-{secrets.token_hex(4)}.partial.{path.name}")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def file_stems(names: Iterable[object], taken: Iterable[str] = ()) -> dict[str, str]:
    """A file name without ending for each name, that every system takes and no other name has, whatever the case of letters.

    Parameters
    ----------
    names : Iterable
        Anything with a text; the same name is given once.
    taken : Iterable of str
        File names that are somebody else's.

    Examples
    --------
    >>> file_stems(["A+", "A-", "AD:CN"])
    {'A+': 'A', 'A-': 'A_2', 'AD:CN': 'AD-CN'}
    """
    stems: dict[str, str] = {}
    used = {name.lower() for name in taken}
    for name in map(str, dict.fromkeys(names)):
        plain_name = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")[:80] or "_"
        stem, number = plain_name, 1
        while stem.lower() in used:
            number += 1
            stem = f"{plain_name}_{number}"
        used.add(stem.lower())
        stems[name] = stem
    return stems


def write_json(path: Path, values: object) -> None:
    """Write plain values as sorted, indented UTF-8 JSON, atomically."""
    with atomic(path) as temporary:
        text = json.dumps(plain(values), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=True)
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read what :func:`write_json` wrote."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that shape the numbers; absent optional packages are left out."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def seal(
    record: Path,
    *,
    stage: str,
    settings: object,
    inputs: Mapping[str, str],
    outputs: Sequence[Path],
    seed: int | None = None,
) -> str:
    """Write the record of a finished stage, last of all its files.

    Parameters
    ----------
    record : Path
        The record, such as ``model/provenance.json``.
    stage : str
        Name of the stage.
    settings : object
        The resolved settings.
    inputs : Mapping[str, str]
        Content hash of every pool the stage drank from.
    outputs : Sequence[Path]
        Files the stage left, inside the folder of the record.
    seed : int, optional
        The seed it used, for the reader; what the stage depends on belongs into `settings`.

    Returns
    -------
    str
        Content hash of the outputs; it does not depend on time or place.
    """
    files = {path.relative_to(record.parent).as_posix(): hash_file(path) for path in sorted(outputs)}
    content = hash_values(files)
    write_json(
        record,
        {
            "stage": stage,
            "key": _key(stage, settings, inputs),
            "settings": settings,
            "inputs": dict(inputs),
            "outputs": files,
            "content_hash": content,
            "seed": seed,
            "versions": versions(),
        },
    )
    return content


def is_fresh(record: Path, *, stage: str, settings: object, inputs: Mapping[str, str]) -> bool:
    """Whether a stage need not run again: same settings and inputs, and every output is there unchanged."""
    if not record.is_file():
        return False
    try:
        known = read_json(record)
        outputs = known["outputs"]
        if known["key"] != _key(stage, settings, inputs):
            return False
        return all(
            (record.parent / name).is_file() and hash_file(record.parent / name) == digest
            for name, digest in outputs.items()
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return False


def content_hash(record: Path) -> str:
    """Content hash that :func:`seal` wrote."""
    return str(read_json(record)["content_hash"])


def _key(stage: str, settings: object, inputs: Mapping[str, str]) -> str:
    found = versions()
    return hash_values(
        {"stage": stage, "settings": settings, "inputs": dict(inputs), "nilatent": found.get("nilatent")}
    )
