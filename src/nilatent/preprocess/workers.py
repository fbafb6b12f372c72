"""Workers: many jobs at once, each in a process with one thread, and none lost when one of them dies."""

import os
import time
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import TypeVar

from joblib import cpu_count
from joblib.externals.loky import ProcessPoolExecutor

Job = TypeVar("Job")

# One thread per process: the result does not depend on how sums are shared out, and processes do not fight for cores.
ENVIRONMENT = {
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1",
    "ANTS_RANDOM_SEED": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}

# What a process wants at its peak for a head of 1 mm, with room for a larger field of view.
BYTES_PER_PROCESS = 2 * 1024**3
MEMORY = Path("/proc/meminfo")
CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")


def fitting_processes() -> int:
    """How many scans the machine can carry at once: one per core, as far as 2 GB of memory are there for each.

    Returns
    -------
    int
        At least 1. Cores and memory that a container or a batch system granted count, not those of the machine.
    """
    return max(1, min(int(cpu_count()), _free_bytes() // BYTES_PER_PROCESS))


def _free_bytes() -> int:
    limits = [_memory_of_machine(), *_memory_of_group()]
    return min(limits)


def _memory_of_machine() -> int:
    try:
        lines = dict(line.split(":", 1) for line in MEMORY.read_text(encoding="ascii").splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _memory_of_group() -> list[int]:
    """Limits of the control groups this process is in, from its own up to the root; empty where there are none."""
    limits = []
    try:
        groups = [line.split(":", 2) for line in OWN_CGROUP.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return []
    for _, controllers, place in groups:
        # The second version has one tree for all controllers, the first a tree for each.
        root, name = (CGROUPS / "memory", "memory.limit_in_bytes") if controllers else (CGROUPS, "memory.max")
        if controllers and "memory" not in controllers.split(","):
            continue
        folder = root / place.strip("/")
        for group in [folder, *(parent for parent in folder.parents if parent.is_relative_to(root))]:
            try:
                limits.append(int((group / name).read_text(encoding="ascii")))
            except (OSError, ValueError):  # In a container the path is the host's; and "max" is no limit.
                continue
    return limits


def run_jobs(
    work: Callable[[Job], None], jobs: Sequence[Job], *, n_procs: int, apart: bool
) -> Generator[tuple[Job, BaseException | None, float], None, None]:
    """Do every job, whatever happens to some.

    Parameters
    ----------
    work : Callable
        Does one job; its exception is that job's outcome.
    jobs : Sequence
        What to do.
    n_procs : int
        Jobs at the same time.
    apart : bool
        In worker processes with one thread each, for engines that may die; otherwise in threads, which start at once.

    Yields
    ------
    Job
        In the order they end.
    BaseException or None
        Why it failed, or None. When a worker process dies, the jobs that ran at that moment are each tried once more,
        alone; the one that kills its worker again ends with a ``BrokenExecutor``.
    float
        Processor seconds; 0 for a job that failed.
    """
    waiting = deque(jobs)
    while waiting:
        pool, suspects = _pool(n_procs, apart=apart), list[Job]()
        try:
            timed = partial(_seconds, work, time.process_time if apart else time.thread_time)
            yield from _until_broken(pool, timed, waiting, suspects, n_procs=n_procs)
        finally:
            _close(pool)
        for job in suspects:
            alone = _pool(1, apart=True)
            try:
                yield _outcome(alone.submit(_seconds, work, time.process_time, job), job)
            finally:
                _close(alone)


def _until_broken(
    pool: Executor, work: Callable[[Job], float], waiting: deque[Job], suspects: list[Job], *, n_procs: int
) -> Iterator[tuple[Job, BaseException | None, float]]:
    # No more jobs are handed in than can run, so that a dead worker puts only those under suspicion.
    running: dict[Future[float], Job] = {}
    while (waiting and not suspects) or running:
        while waiting and len(running) < n_procs and not suspects:
            job = waiting.popleft()
            try:
                running[pool.submit(work, job)] = job
            except BrokenExecutor:
                suspects.append(job)
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            job = running.pop(future)
            if isinstance(future.exception(), BrokenExecutor):
                suspects.append(job)
            else:
                yield _outcome(future, job)


def _outcome(future: Future[float], job: Job) -> tuple[Job, BaseException | None, float]:
    error = future.exception()
    return job, error, 0.0 if error is not None else future.result()


def _seconds(work: Callable[[Job], None], clock: Callable[[], float], job: Job) -> float:
    start = clock()
    work(job)
    return clock() - start


def _pool(n_procs: int, *, apart: bool) -> Executor:
    if not apart:
        return ThreadPoolExecutor(n_procs)
    # Loky replaces a worker whose memory has grown much; the scans go on, so it is no news.
    warnings.filterwarnings("ignore", message="A worker stopped while some jobs", category=UserWarning)
    pool: Executor = ProcessPoolExecutor(n_procs, env=ENVIRONMENT)
    return pool


def _close(pool: Executor) -> None:
    if isinstance(pool, ProcessPoolExecutor):
        pool.shutdown(wait=True, kill_workers=True)
    else:
        pool.shutdown(cancel_futures=True)
