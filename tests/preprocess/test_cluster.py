"""On a scheduler and workers of their own, as on a cluster: separate processes that share this machine's disk."""

import os
import re
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from concurrent.futures import BrokenExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from tests.preprocess.conftest import scheduler_in, workers_for

from nilatent.errors import SettingError
from nilatent.preprocess import cluster
from nilatent.preprocess.cluster import Demands, installed, run_on_cluster

pytest.importorskip("distributed")

DEMANDS = Demands({"ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1"}, "ants", installed(["nilatent", "numpy"]), ())


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory):
    with scheduler_in(tmp_path_factory.mktemp("scheduler")) as (file, _):
        yield str(file)


@pytest.fixture
def two_workers(scheduler):
    with workers_for(Path(scheduler), 2) as processes:
        yield processes


def outcomes(work, jobs, scheduler, demands=DEMANDS):
    return {job: error for job, error, _ in run_on_cluster(work, jobs, scheduler=scheduler, demands=demands)}


def test_a_failure_is_one_outcome_and_each_job_is_done_once_in_one_thread(scheduler, two_workers, tmp_path):
    def work(job):
        import tempfile

        import numpy  # noqa: F401
        from threadpoolctl import threadpool_info

        if job == 2:
            raise ValueError("two")
        threads = {pool["num_threads"] for pool in threadpool_info()}
        text = f"{os.environ['ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS']} {threads} {tempfile.gettempdir()}\n"
        with (tmp_path / str(job)).open("a") as file:
            file.write(text)

    found = outcomes(work, range(9), scheduler)
    assert sorted(found) == list(range(9))
    assert isinstance(found.pop(2), ValueError)
    assert set(found.values()) == {None}
    for job in found:
        threads, pools, scratch = (tmp_path / str(job)).read_text().splitlines()[0].split(" ")
        assert (threads, pools) == ("1", "{1}")
        assert "worker-" in scratch
        assert len((tmp_path / str(job)).read_text().splitlines()) == 1


@pytest.mark.slow
def test_a_job_that_takes_a_whole_worker_has_its_threads_for_itself(scheduler, tmp_path):
    def work(job):
        import numpy  # noqa: F401
        from threadpoolctl import threadpool_info

        start = time.time()
        time.sleep(0.4)
        threads = max(pool["num_threads"] for pool in threadpool_info())
        (tmp_path / str(job)).write_text(f"{os.getpid()} {start} {time.time()} {threads}")

    with workers_for(Path(scheduler), 2, "--nthreads", "2"):
        assert outcomes(work, range(6), scheduler, replace(DEMANDS, whole_worker=True)) == dict.fromkeys(range(6))
    found = [tuple(map(float, (tmp_path / str(job)).read_text().split())) for job in range(6)]
    assert len({pid for pid, *_ in found}) == 2
    assert {threads for *_, threads in found} == {2}
    for pid, start, _, _ in found:
        assert sum(one == pid and since <= start < until for one, since, until, _ in found) == 1


def test_a_killed_worker_loses_nobody_and_a_scan_that_kills_is_listed(scheduler, tmp_path):
    def work(job):

        first = not (tmp_path / "died").exists()
        if job == 4 or (job == 1 and first):
            (tmp_path / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        (tmp_path / str(job)).touch()

    with workers_for(Path(scheduler), 4):
        found = outcomes(work, range(6), scheduler)
    assert isinstance(found.pop(4), BrokenExecutor)
    assert found == dict.fromkeys([0, 1, 2, 3, 5])
    assert sorted(path.name for path in tmp_path.glob("[0-9]")) == ["0", "1", "2", "3", "5"]


def test_a_worker_that_would_give_other_numbers_is_refused_before_anything_is_done(scheduler, two_workers, tmp_path):
    def touch(job):
        (tmp_path / "done").touch()

    refusals = {
        r"has numpy .*, and here it is 0\.1.*Install the same": replace(DEMANDS, versions={"numpy": "0.1"}),
        r"has no-such-engine absent, and here it is 1\.0": replace(DEMANDS, versions={"no-such-engine": "1.0"}),
        r"does not see .*nowhere.*under one path": replace(DEMANDS, visible=(tmp_path / "nowhere",)),
        # A module that every worker has loaded stands for an engine that somebody else used there.
        r"loaded 'json' before.*set NUMBER=7": replace(DEMANDS, environment={"NUMBER": "7"}, engine="json"),
    }
    for rule, demands in refusals.items():
        with pytest.raises(SettingError, match=rule):
            outcomes(touch, [1], scheduler, demands)
    assert not (tmp_path / "done").exists()
    assert outcomes(str, [1], scheduler) == {1: None}


def test_a_worker_without_nilatent_is_refused(scheduler):
    # Without `site`, installed packages are found and an editable nilatent is not.
    bare = {"python": (sys.executable, "-S"), "environment": {"PYTHONPATH": sysconfig.get_path("purelib")}}
    if (
        subprocess.run(
            [*bare["python"], "-c", "import nilatent"], env=bare["environment"], capture_output=True
        ).returncode
        == 0
    ):
        pytest.skip("nilatent is installed as a plain package")
    with (
        workers_for(Path(scheduler), 1, **bare),
        pytest.raises(SettingError, match=r"worker tcp.*No module named 'nilatent'"),
    ):
        outcomes(str, [1], scheduler)


@pytest.mark.slow
def test_a_worker_that_joins_later_is_checked_too(scheduler):
    def work(job):

        time.sleep(0.2)

    with ExitStack() as stack:
        stack.enter_context(workers_for(Path(scheduler), 1))
        stream = run_on_cluster(work, range(200), scheduler=scheduler, demands=DEMANDS)
        assert next(stream)[1] is None
        stack.enter_context(workers_for(Path(scheduler), 1, "--nthreads", "2"))
        errors = [error for _, error, _ in stream if error is not None]
    assert errors
    assert all(isinstance(error, SettingError) and "does 2 things at a time" in str(error) for error in errors)


def test_a_scheduler_that_is_not_there_is_an_error_that_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "CONNECT_S", 0.5)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(SettingError, match=f"No dask scheduler answers at {address}.*dask scheduler"):
        outcomes(str, [1], address)
    with pytest.raises(SettingError, match=r"no scheduler file .*dask scheduler --scheduler-file"):
        outcomes(str, [1], str(tmp_path / "scheduler.json"))
    for bad in ("{}", "not json"):
        (tmp_path / "bad.json").write_text(bad)
        with pytest.raises(SettingError, match="is not what `dask scheduler"):
            outcomes(str, [1], str(tmp_path / "bad.json"))


def test_a_scheduler_without_workers_is_not_waited_for_without_end(scheduler, monkeypatch):
    monkeypatch.setattr(cluster, "PATIENCE_S", 0.5)
    with pytest.raises(SettingError, match=r"has had no worker.*dask worker"):
        outcomes(str, [1], scheduler)


@pytest.mark.parametrize("lost", ["scheduler", "workers"])
def test_what_is_lost_midway_ends_the_wait(tmp_path, monkeypatch, lost):
    monkeypatch.setattr(cluster, "POLL_S", 0.2)

    def work(job):

        time.sleep(100 * job)

    with scheduler_in(tmp_path) as (file, process), workers_for(file, 1) as workers:
        stream = run_on_cluster(work, [0, 1], scheduler=str(file), demands=DEMANDS)
        assert next(stream)[1] is None
        monkeypatch.setattr(cluster, "PATIENCE_S", 2.0)
        for each in workers if lost == "workers" else [process]:
            each.kill()
        with pytest.raises(SettingError, match="was lost" if lost == "scheduler" else "has had no worker"):
            list(stream)


@pytest.mark.slow
def test_the_slurm_example_of_the_documentation_runs(tmp_path, monkeypatch):
    """With commands that stand in for SLURM's: they start the job's script here, as SLURM would on a node."""
    pytest.importorskip("dask_jobqueue")
    monkeypatch.setattr(cluster, "PATIENCE_S", 60.0)
    text = (Path(__file__).parents[2] / "docs" / "cluster.md").read_text(encoding="utf-8")
    script = re.search(r"```python\n(.*?)```", text, flags=re.DOTALL)[1]
    assert "N_WORKERS = 40" in script
    local = '"dashboard_address": None, "host": "127.0.0.1"'
    (tmp_path / "workers.py").write_text(
        script.replace("N_WORKERS = 40", "N_WORKERS = 2").replace('"dashboard_address": None', local)
    )
    starts = 'cp "$1" job-$$.sh; setsid bash job-$$.sh > job-$$.log 2>&1 &'
    commands = {
        "sbatch": f'{starts}\necho $! >> jobs\necho "Submitted batch job $!"\n',
        "scancel": 'for job in "$@"; do kill -- -"$job" 2> cancelled.log; done\n',
    }
    for name, body in commands.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}")
        (tmp_path / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "TMPDIR": str(tmp_path)}
    with (tmp_path / "log.txt").open("w") as log:
        running = subprocess.Popen(
            [sys.executable, "workers.py"], cwd=tmp_path, env=environment, stdout=log, stderr=log
        )
        try:
            file = tmp_path / "scheduler.json"
            waited = time.monotonic() + 100
            while not file.exists() and running.poll() is None and time.monotonic() < waited:
                time.sleep(0.2)
            assert file.exists(), (tmp_path / "log.txt").read_text()
            assert outcomes(str, range(5), str(file)) == dict.fromkeys(range(5))
            jobs = [path.read_text() for path in tmp_path.glob("job-*.sh")]
            assert len(jobs) == 2
            assert all(
                "#SBATCH --mem=4G" in job and "#SBATCH -t 08:00:00" in job and "--nthreads 1" in job for job in jobs
            )
            file.unlink()
            assert running.wait(timeout=60) == 0, (tmp_path / "log.txt").read_text()
        finally:
            running.kill()
            for job in (tmp_path / "jobs").read_text().split():
                with suppress(ProcessLookupError):
                    os.killpg(int(job), signal.SIGKILL)
