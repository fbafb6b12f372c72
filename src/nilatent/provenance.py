"""Content hashes, atomic writes, and the record that lets a stage be skipped when nothing it depends on has changed."""

import dataclasses
import errno
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import secrets
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from nilatent.errors import NilatentError

PACKAGES = ("nilatent", "numpy", "scipy", "pandas", "xarray", "nibabel", "nilearn", "scikit-learn", "torch", "antspyx")

# Half of a file, and the mark by which the workers of a cluster are known to see a folder.
LEFT = re.compile(r"\.(?P<pid>\d+)-[0-9a-f]{8}\.partial\.|\.nilatent-[0-9a-f]+\.mark$")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
CLOSED = (errno.EROFS, errno.EACCES, errno.EPERM)
MEGABYTE = 10**6
# A file may have so much less on the disk than its size says, by how disks count.
BLOCKS = 2**16
# Of a netCDF file, beside its arrays; its library ends the process where a disk fills under it.
HEAD_BYTES = 2**19


class DiskError(NilatentError, OSError):
    """A disk is full or cannot be written; what was finished before is kept."""


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

    Raises
    ------
    DiskError
        When the disk is full or cannot be written.

    Notes
    -----
    The replacement is one rename on the same file system after an fsync: a reader, or a run started again after a
    crash, sees the old file or the new one and never half of one.
    """
    path = Path(path)
    # Two writers can have one process number: threads, and containers on two machines.
    temporary = path.with_name(f".{os.getpid()}-{secrets.token_hex(4)}.partial.{path.name}")
    try:
        with writing(path, temporary):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def writing(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Say in words of an error inside the block that the disk is full or cannot be written; other errors pass.

    Parameters
    ----------
    path : Path
        What is being written.
    temporary : Path, optional
        Where it is written meanwhile; left out: `path`.

    Raises
    ------
    DiskError
        With what was being written, how much is free, and what to do.
    """
    try:
        yield
    except DiskError:
        raise
    except Exception as error:
        if is_full(error):
            raise DiskError(_full(path, path if temporary is None else temporary)) from error
        own = getattr(error, "filename", None) in {str(place) for place in (temporary, path, path.parent)}
        if isinstance(error, OSError) and error.errno in CLOSED and own:
            raise DiskError(
                f"{path} cannot be written: {error.strerror}. What was finished before is kept; make the folder writable, or "
                "copy it to a disk that is, and run the same command again."
            ) from error
        raise


def is_full(error: BaseException) -> bool:
    """Whether an error says that a disk is full, or that a quota or the largest size of a file was reached.

    Not every library keeps the number of the system's error; all keep its words.
    """
    if isinstance(error, OSError) and error.errno in FULL:
        return True
    return any(os.strerror(code) in str(error) for code in FULL) or "errno = 28" in str(error)


def _full(path: Path, temporary: Path) -> str:
    folder = next(parent for parent in path.absolute().parents if parent.is_dir())
    free = shutil.disk_usage(folder).free
    size, missing = (temporary.stat().st_size, _missing(temporary)) if temporary.is_file() else (0, 0)
    # A file that is mapped into memory has its whole size before it has its bytes.
    told = f"it takes {size / MEGABYTE:.1f} MB" if missing else f"{size / MEGABYTE:.1f} MB of it were written"
    more = f" ({(missing - free) / MEGABYTE:.1f} MB are missing)" if missing > free else ""
    return (
        f"{path} could not be written: the disk is full, or a quota or the largest size of a file is reached; {told}, "
        f"{free / MEGABYTE:.1f} MB are free{more}. What was finished before is kept; make room and run the same command again, "
        "and it goes on from there."
    )


def _missing(path: Path) -> int:
    """Bytes for which a file has no room yet."""
    known = path.stat()
    missing = known.st_size - known.st_blocks * 512
    return missing if missing > BLOCKS else 0


def reserve(path: Path, n_bytes: int = 0) -> None:
    """Take room on the disk for a file whose writer would not survive a full one.

    Parameters
    ----------
    path : Path
        Such as a new memory map: where a disk fills under one, the system ends the process without a word. Is created when it
        does not exist.
    n_bytes : int
        What it will take; 0 for the size that it has already.

    Raises
    ------
    OSError
        When there is no room; :func:`atomic` says so in words.
    """
    if not hasattr(os, "posix_fallocate"):
        return
    number = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        size = max(os.fstat(number).st_size, n_bytes, 1)
        os.truncate(number, size)
        os.posix_fallocate(number, 0, size)
    except OSError as error:
        # Some disks cannot promise room.
        if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV):
            raise
    finally:
        os.close(number)


def sweep(folder: Path, *, but: str = "") -> None:
    """Remove what killed processes left in a folder that the caller holds, but for folders of one name in it.

    What a process of this machine that lives is writing stays: a report takes no lock.
    """
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name != but]
        for name in files:
            left = LEFT.match(name)
            if left and not _lives(left["pid"]):
                (Path(place) / name).unlink(missing_ok=True)


def _lives(pid: str | None) -> bool:
    """Whether another process of this number is there; in a container the one that was killed often had our own."""
    if pid is None or int(pid) == os.getpid():
        return False
    if sys.platform == "linux":
        with suppress(OSError):
            # One that has ended and was not waited for writes nothing.
            return ") Z " not in Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return False
    if sys.platform == "win32":
        return True  # There, asking would end it.
    with suppress(ProcessLookupError, OverflowError):
        with suppress(PermissionError):
            os.kill(int(pid), 0)
        return True
    return False


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
