"""Workers: many jobs at once, each in a process with one thread, and none lost when one of them dies."""

import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ThreadPoolExecutor, wait
from typing import TypeVar

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


def run_jobs(
    work: Callable[[Job], None], jobs: Sequence[Job], *, n_procs: int, apart: bool
) -> Iterator[tuple[Job, BaseException | None]]:
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
    """
    waiting = deque(jobs)
    while waiting:
        pool, suspects = _pool(n_procs, apart=apart), list[Job]()
        try:
            yield from _until_broken(pool, work, waiting, suspects, n_procs=n_procs)
        finally:
            _close(pool)
        for job in suspects:
            alone = _pool(1, apart=True)
            try:
                yield job, _outcome(alone, work, job)
            finally:
                _close(alone)


def _until_broken(
    pool: Executor, work: Callable[[Job], None], waiting: deque[Job], suspects: list[Job], *, n_procs: int
) -> Iterator[tuple[Job, BaseException | None]]:
    # No more jobs are handed in than can run, so that a dead worker puts only those under suspicion.
    running: dict[Future[None], Job] = {}
    while (waiting and not suspects) or running:
        while waiting and len(running) < n_procs and not suspects:
            job = waiting.popleft()
            try:
                running[pool.submit(work, job)] = job
            except BrokenExecutor:
                suspects.append(job)
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            job, error = running.pop(future), future.exception()
            if isinstance(error, BrokenExecutor):
                suspects.append(job)
            else:
                yield job, error


def _outcome(pool: Executor, work: Callable[[Job], None], job: Job) -> BaseException | None:
    return pool.submit(work, job).exception()


def _pool(n_procs: int, *, apart: bool) -> Executor:
    if not apart:
        return ThreadPoolExecutor(n_procs)
    # The engines' memory grows a little with every scan, so workers are replaced now and then, as they should be.
    warnings.filterwarnings("ignore", message="A worker stopped while some jobs", category=UserWarning)
    pool: Executor = ProcessPoolExecutor(n_procs, env=ENVIRONMENT)
    return pool


def _close(pool: Executor) -> None:
    if isinstance(pool, ProcessPoolExecutor):
        pool.shutdown(wait=True, kill_workers=True)
    else:
        pool.shutdown(cancel_futures=True)
