import os
import signal
import threading
from concurrent.futures import BrokenExecutor

import pytest

from nilatent.preprocess import workers
from nilatent.preprocess.workers import BYTES_PER_PROCESS, ENVIRONMENT, fitting_processes, run_jobs


def outcomes_of(stream):
    return {job: error for job, error, _ in stream}


@pytest.mark.parametrize("apart", [True, False])
def test_one_failure_is_one_outcome(apart):
    def work(job):
        if job == 2:
            raise ValueError("two")

    outcomes = outcomes_of(run_jobs(work, range(5), n_procs=2, apart=apart))
    assert sorted(outcomes) == list(range(5))
    assert [job for job, error in outcomes.items() if error is not None] == [2]
    assert isinstance(outcomes[2], ValueError)


def test_a_killed_worker_loses_nobody_else(tmp_path):
    def work(job):
        if job == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        (tmp_path / str(job)).touch()

    outcomes = outcomes_of(run_jobs(work, range(7), n_procs=2, apart=True))
    assert isinstance(outcomes.pop(3), BrokenExecutor)
    assert outcomes == dict.fromkeys([0, 1, 2, 4, 5, 6])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "2", "4", "5", "6"]


def test_a_worker_that_dies_once_is_forgiven(tmp_path):
    def work(job):
        if job == 1 and not (tmp_path / "died").exists():
            (tmp_path / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    assert outcomes_of(run_jobs(work, range(3), n_procs=2, apart=True)) == dict.fromkeys(range(3))


def test_workers_run_with_one_thread(tmp_path):
    def work(job):
        (tmp_path / str(job)).write_text("".join(os.environ[name] for name in ENVIRONMENT))

    assert outcomes_of(run_jobs(work, ["x"], n_procs=1, apart=True)) == {"x": None}
    assert set((tmp_path / "x").read_text()) == {"1"}


def test_jobs_run_side_by_side():
    meeting = threading.Barrier(2, timeout=20)

    def work(job):
        meeting.wait()

    assert outcomes_of(run_jobs(work, range(2), n_procs=2, apart=False)) == dict.fromkeys(range(2))


@pytest.mark.parametrize("apart", [True, False])
def test_processor_time_is_that_of_each_job(apart):
    def work(job):
        import time

        stop = time.thread_time() + job
        while job and time.thread_time() < stop:
            pass

    seconds = {job: cpu_s for job, _, cpu_s in run_jobs(work, [0, 0.3], n_procs=2, apart=apart)}
    assert seconds[0] < 0.15 < 0.28 < seconds[0.3]


GB2 = BYTES_PER_PROCESS


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine of 16 cores with 40 GB free, whose control groups a test can fill: ``machine(own_cgroup, {file: text})``."""
    monkeypatch.setattr(workers, "cpu_count", lambda: 16)
    for name in ("MEMORY", "CGROUPS", "OWN_CGROUP"):
        monkeypatch.setattr(workers, name, tmp_path / name)
    (tmp_path / "MEMORY").write_text(f"MemTotal: 99999999 kB\nMemAvailable:   {20 * GB2 // 1024} kB\n")

    def fill(own, limits):
        (tmp_path / "OWN_CGROUP").write_text(own)
        for name, text in limits.items():
            (tmp_path / "CGROUPS" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "CGROUPS" / name).write_text(text)

    return fill


@pytest.mark.parametrize(
    ("own", "limits", "expected"),
    [
        ("0::/\n", {"memory.max": "max\n"}, 16),
        ("0::/\n", {"memory.max": f"{5 * GB2}\n"}, 5),
        # A batch job: the limit may stand at any level above the process.
        (
            "0::/job_7/step_0\n",
            {"memory.max": "max", "job_7/memory.max": f"{3 * GB2 + 1}", "job_7/step_0/memory.max": "max"},
            3,
        ),
        # The first version of control groups: a tree for each controller, and no limit is a huge number.
        (
            "4:memory:/job\n1:cpu:/other\n",
            {"memory/job/memory.limit_in_bytes": f"{2 * GB2}", "memory/memory.limit_in_bytes": "9223372036854771712"},
            2,
        ),
        ("1:cpu:/other\n", {"other/memory.max": "1"}, 16),
        # In a container the path is the host's, and what counts is mounted at the root.
        ("0::/host/only\n", {"memory.max": f"{GB2 // 2}"}, 1),
    ],
)
def test_no_more_processes_than_memory_was_granted_for(machine, own, limits, expected):
    machine(own, limits)
    assert fitting_processes() == expected


def test_free_memory_of_the_machine_counts_and_so_do_cores(machine, tmp_path, monkeypatch):
    (tmp_path / "MEMORY").write_text(f"MemAvailable: {4 * GB2 // 1024} kB\n")
    assert fitting_processes() == 4
    monkeypatch.setattr(workers, "cpu_count", lambda: 3)
    assert fitting_processes() == 3
    (tmp_path / "MEMORY").unlink()
    assert 1 <= fitting_processes() <= 3
