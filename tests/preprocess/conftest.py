"""A dask scheduler and workers as on a cluster: processes of their own, on ports that were free."""

import os
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager

LOCAL = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
# Two more attempts would prove nothing more, and each ends a worker.
FEW = {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1"}


@contextmanager
def started(*arguments, folder, environment=None, python=(sys.executable,)):
    with (folder / "log.txt").open("a") as log:
        process = subprocess.Popen(
            [*python, "-m", *map(str, arguments)],
            stdout=log,
            stderr=log,
            env=os.environ | {"TMPDIR": str(folder)} | (environment or {}),
            cwd=folder,
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()


@contextmanager
def scheduler_in(folder):
    file = folder / "scheduler.json"
    with started(
        "distributed.cli.dask_scheduler", *LOCAL, "--scheduler-file", file, folder=folder, environment=FEW
    ) as process:
        waited = time.monotonic() + 60
        while not file.exists() and time.monotonic() < waited:
            time.sleep(0.05)
        yield file, process


@contextmanager
def workers_for(file, n_workers, *options, environment=None, python=(sys.executable,)):
    with ExitStack() as stack:
        arguments = [
            "--scheduler-file",
            file,
            "--no-dashboard",
            "--host",
            "127.0.0.1",
            "--local-directory",
            file.parent,
        ]
        yield [
            stack.enter_context(
                started(
                    "distributed.cli.dask_worker",
                    *arguments,
                    "--no-nanny",
                    *(options or ("--nthreads", "1")),
                    folder=file.parent,
                    environment=environment,
                    python=python,
                )
            )
            for _ in range(n_workers)
        ]
