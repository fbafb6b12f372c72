"""Lock: one writer of a folder at a time, and the kernel lets go for a process that dies."""

import errno
import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from nilatent.errors import SettingError

if sys.platform != "win32":
    import fcntl

LOCK_NAME = ".nilatent.lock"


@contextmanager
def locked(folder: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold a folder while the block runs.

    Parameters
    ----------
    folder : Path
        Is created when it does not exist. The lock is the file ``.nilatent.lock`` in it, which stays there, empty.
    shared : bool
        Side by side with others that share it, for writers of different files; otherwise alone.

    Raises
    ------
    SettingError
        When another process holds the folder (names its host, its process number and since when), or when the folder is a
        file or cannot be written.

    Notes
    -----
    An advisory lock of the operating system (``flock``): it ends with the process, however that dies, so there are no
    stale locks. On a network disk it holds between machines where the disk is mounted with locks, as NFS is by default.
    Where a disk or a system has no locks, a line says so and the work goes on without.
    """
    path = Path(folder) / LOCK_NAME
    with _opened(path) as file:
        if not _take(file, shared=shared):
            raise SettingError(
                f"{folder} is in use by {_holder(path)}. Wait until it has ended, or stop it; two runs that write the same "
                "files would spoil them. Parts of a cohort (--participant-label, --session-label) may be prepared side "
                "by side."
            )
        file.truncate(0)
        holder = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        # The name is for others to read. On a full disk the folder is held without it.
        with suppress(OSError):
            path.write_text(json.dumps(holder), encoding="utf-8")
        try:
            yield
        finally:
            file.truncate(0)


def _opened(path: Path) -> TextIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a+", encoding="utf-8")
    except (FileExistsError, NotADirectoryError) as error:
        file = next((one for one in path.parents if one.is_file()), path.parent)
        raise SettingError(f"{path.parent} cannot be a folder: {file} is a file. Name another one.") from error
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        raise SettingError(
            f"{path.parent} cannot be written: {error.strerror}. Name a folder on a disk that you may write to."
        ) from error


def _take(file: TextIO, *, shared: bool) -> bool:
    if sys.platform == "win32":
        print(f"{file.name}: no lock on this system; see to it that nothing else writes there.", file=sys.stderr)
        return True
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
            raise
        print(f"{file.name}: this disk has no locks; see to it that nothing else writes there.", file=sys.stderr)
    return True


def _holder(path: Path) -> str:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        return f"process {known['pid']} on {known['host']} since {known['since']}{_age(known['since'])}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def _age(since: str) -> str:
    """How long ago that was, in words; nothing where the clocks disagree."""
    minutes, seconds = divmod(round((datetime.now(UTC) - datetime.fromisoformat(since)).total_seconds()), 60)
    if minutes < 0:
        return ""
    if minutes < 1:
        return f" ({seconds} seconds ago)"
    return f" ({minutes} minutes ago)" if minutes < 120 else f" ({minutes // 60} hours ago)"
