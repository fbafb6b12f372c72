"""Cluster: the same jobs on the workers of a dask scheduler, one scan at a time in each, and none lost when workers die."""

import importlib.metadata
import os
import platform
import secrets
import socket
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, CancelledError
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from threadpoolctl import threadpool_limits

from nilatent.errors import SettingError
from nilatent.extras import require
from nilatent.provenance import read_json

Job = TypeVar("Job")

CONNECT_S = 30.0
# A scheduler may well be there before its workers, and all of them may be replaced at the end of their wall time.
PATIENCE_S = 600.0
POLL_S = 10.0
# A worker with several threads would do several jobs at once, should dask send it a second one.
_ALONE = threading.Lock()


@dataclass(frozen=True)
class Demands:
    """What every worker must have, so that it gives the numbers that any other gives.

    Parameters
    ----------
    environment : dict[str, str]
        Variables that must hold before the engine is loaded.
    engine : str
        The module that reads them when it is loaded, such as ``"ants"``.
    versions : dict[str, str]
        What :func:`installed` says here.
    visible : tuple[Path, ...]
        Files that the worker must see, as proof that it shares the disks.
    whole_worker : bool
        Whether a job takes all threads of its worker, as a training does; otherwise a worker must have one.
    """

    environment: dict[str, str]
    engine: str
    versions: dict[str, str]
    visible: tuple[Path, ...]
    whole_worker: bool = False


def installed(packages: Sequence[str]) -> dict[str, str]:
    """Versions of Python (without its last part) and of packages; ``"absent"`` for those that are not there."""
    found = {"python": platform.python_version().rpartition(".")[0]}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


@contextmanager
def mark(folder: Path) -> Iterator[Path]:
    """A file of a new name in a folder, for workers to look for; removed afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f".nilatent-{secrets.token_hex(8)}.mark"
    path.touch()
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def run_on_cluster(
    work: Callable[[Job], None], jobs: Sequence[Job], *, scheduler: str, demands: Demands
) -> Generator[tuple[Job, BaseException | None, float], None, None]:
    """Do every job on the workers of a dask scheduler, whatever happens to some workers.

    Parameters
    ----------
    work : Callable
        Does one job; its exception is that job's outcome. Importable on the workers.
    jobs : Sequence
        What to do; each travels to its worker.
    scheduler : str
        Address (``"tcp://host:8786"``) or the path of a scheduler file.
    demands : Demands
        Checked on every worker before anything is done, and again on those that join later.

    Yields
    ------
    Job
        In the order they end.
    BaseException or None
        Why it failed, or None. A job whose worker dies is given to another; one that has outlived more workers than the
        scheduler allows (three, by its default) ends with a ``BrokenExecutor``.
    float
        Processor seconds; 0 for a job that failed.

    Raises
    ------
    SettingError
        When the scheduler cannot be reached or is lost, no worker is there for ten minutes, or a worker does not meet
        the demands.
    MissingExtraError
        When dask.distributed is not installed.
    """
    if not jobs:
        return
    distributed = require("distributed", extra="cluster")
    with closing(_client(distributed, scheduler)) as client:
        try:
            _check_workers(client, demands, scheduler)
            yield from _until_done(distributed, client, work, deque(jobs), scheduler=scheduler, demands=demands)
        except (OSError, CancelledError) as error:
            raise SettingError(
                f"The scheduler {scheduler} was lost: {type(error).__name__}: {error}. What is finished is kept; start it "
                "and its workers again, and run the same command."
            ) from error


def _client(distributed: Any, scheduler: str) -> Any:
    try:
        return distributed.Client(_address(scheduler), timeout=CONNECT_S)
    except (OSError, ValueError) as error:
        raise SettingError(
            f"No dask scheduler answers at {scheduler}: {type(error).__name__}: {error}. Give the address that "
            "`dask scheduler` prints (tcp://host:8786), or its scheduler file; check that it runs and that this machine "
            "may reach it."
        ) from error


def _address(scheduler: str) -> str:
    if "://" in scheduler or not scheduler.endswith(".json"):
        return scheduler
    if not Path(scheduler).is_file():
        raise SettingError(
            f"There is no scheduler file {scheduler}. Start the scheduler with: dask scheduler --scheduler-file {scheduler}"
        )
    waited = time.monotonic() + CONNECT_S
    while True:
        try:
            return str(read_json(Path(scheduler))["address"])
        except (ValueError, KeyError, TypeError) as error:
            if time.monotonic() > waited:
                raise SettingError(
                    f"{scheduler} is not what `dask scheduler --scheduler-file` writes. Remove it and start the scheduler "
                    "again."
                ) from error
            # Dask writes the file in place: it may be there before its content is.
            time.sleep(0.1)


def _check_workers(client: Any, demands: Demands, scheduler: str) -> None:
    try:
        client.wait_for_workers(1, timeout=PATIENCE_S)
    except TimeoutError as error:
        raise SettingError(_no_workers(scheduler)) from error
    for address, refusal in client.run(_refusal_here, demands, on_error="return").items():
        if isinstance(refusal, OSError):
            continue  # It left while it was asked; the others have the work.
        if isinstance(refusal, BaseException):
            refusal = f"worker {address} cannot be used: {type(refusal).__name__}: {refusal}. Install the same nilatent there."
        if refusal:
            raise SettingError(refusal)


def _no_workers(scheduler: str) -> str:
    return (
        f"The scheduler {scheduler} has had no worker for {PATIENCE_S / 60:g} minutes. Start some with: "
        f"dask worker {scheduler} --nthreads 1. What is finished is kept; then run the same command."
    )


def _until_done(
    distributed: Any,
    client: Any,
    work: Callable[[Job], None],
    waiting: deque[Job],
    *,
    scheduler: str,
    demands: Demands,
) -> Iterator[tuple[Job, BaseException | None, float]]:
    running: dict[Any, tuple[Job, str]] = {}
    last_seen = time.monotonic()
    while waiting or running:
        # No more jobs are handed in than can run: dask counts the death of a worker against all that wait there too.
        threads = client.nthreads()
        capacity = len(threads) if demands.whole_worker else sum(threads.values())
        last_seen = time.monotonic() if capacity else last_seen
        if time.monotonic() - last_seen > PATIENCE_S:
            raise SettingError(_no_workers(scheduler))
        while waiting and len(running) < capacity:
            job, taken = waiting.popleft(), {place for _, place in running.values()}
            # To one that is free, as far as is known here; where it dies, dask gives the job to another.
            place = next((one for one in threads if one not in taken), "") if demands.whole_worker else ""
            asked = {"workers": place or None, "allow_other_workers": bool(place)}
            running[client.submit(_do, work, job, demands, pure=False, **asked)] = job, place
        for future in _ended(distributed, running):
            (job, _), error = running.pop(future), future.exception()
            if isinstance(error, distributed.KilledWorker):
                error = BrokenExecutor(str(error))
            yield job, error, 0.0 if error is not None else float(future.result())


def _ended(distributed: Any, running: Mapping[Any, Any]) -> list[Any]:
    if not running:
        time.sleep(min(POLL_S, PATIENCE_S / 10))
        return []
    try:
        return list(distributed.wait(list(running), timeout=POLL_S, return_when="FIRST_COMPLETED").done)
    except TimeoutError:
        return []


def _do(work: Callable[[Job], None], job: Job, demands: Demands) -> float:
    worker = require("distributed", extra="cluster").get_worker()
    refusal = _refusal_here(demands, worker)
    if refusal:
        raise SettingError(refusal)
    with _ALONE:
        start = time.process_time()
        # Where dask lets the worker keep its files; what a killed worker leaves there is removed by the next one.
        before, tempfile.tempdir = tempfile.tempdir, worker.local_directory
        try:
            with threadpool_limits(worker.state.nthreads):
                work(job)
        finally:
            tempfile.tempdir = before
        return time.process_time() - start


def _refusal_here(demands: Demands, dask_worker: Any) -> str:
    """Why this worker cannot be used, or nothing; prepares its environment on the way."""
    name = f"worker {dask_worker.address} on {socket.gethostname()}"
    if dask_worker.state.nthreads != 1 and not demands.whole_worker:
        return (
            f"{name} does {dask_worker.state.nthreads} things at a time, and the engines allow one in a process. "
            "Start it with --nthreads 1, and with --nworkers N for N at a time."
        )
    found = installed([package for package in demands.versions if package != "python"])
    for package, version in demands.versions.items():
        if found[package] != version:
            return (
                f"{name} has {package} {found[package]}, and here it is {version}; the numbers could differ. Install the "
                "same versions in both, best by using one environment."
            )
    unseen = [str(path) for path in demands.visible if not path.exists()]
    if unseen:
        return (
            f"{name} does not see {unseen[0]}. Put scans and results on a disk that all machines share, under one path."
        )
    wanted = {variable: value for variable, value in demands.environment.items() if os.environ.get(variable) != value}
    if wanted and demands.engine in sys.modules:
        settings = " ".join(f"{variable}={value}" for variable, value in wanted.items())
        return (
            f"{name} loaded '{demands.engine}' before its threads could be set. Start a fresh worker, or set {settings} "
            "where it is started."
        )
    os.environ.update(demands.environment)
    return ""
