import os
import signal
import threading
from concurrent.futures import BrokenExecutor

import pytest

from nilatent.preprocess.workers import ENVIRONMENT, run_jobs


@pytest.mark.parametrize("apart", [True, False])
def test_one_failure_is_one_outcome(apart):
    def work(job):
        if job == 2:
            raise ValueError("two")

    outcomes = dict(run_jobs(work, range(5), n_procs=2, apart=apart))
    assert sorted(outcomes) == list(range(5))
    assert [job for job, error in outcomes.items() if error is not None] == [2]
    assert isinstance(outcomes[2], ValueError)


def test_a_killed_worker_loses_nobody_else(tmp_path):
    def work(job):
        if job == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        (tmp_path / str(job)).touch()

    outcomes = dict(run_jobs(work, range(7), n_procs=2, apart=True))
    assert isinstance(outcomes.pop(3), BrokenExecutor)
    assert outcomes == dict.fromkeys([0, 1, 2, 4, 5, 6])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "2", "4", "5", "6"]


def test_a_worker_that_dies_once_is_forgiven(tmp_path):
    def work(job):
        if job == 1 and not (tmp_path / "died").exists():
            (tmp_path / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    assert dict(run_jobs(work, range(3), n_procs=2, apart=True)) == dict.fromkeys(range(3))


def test_workers_run_with_one_thread(tmp_path):
    def work(job):
        (tmp_path / str(job)).write_text("".join(os.environ[name] for name in ENVIRONMENT))

    assert dict(run_jobs(work, ["x"], n_procs=1, apart=True)) == {"x": None}
    assert set((tmp_path / "x").read_text()) == {"1"}


def test_jobs_run_side_by_side():
    meeting = threading.Barrier(2, timeout=20)

    def work(job):
        meeting.wait()

    assert dict(run_jobs(work, range(2), n_procs=2, apart=False)) == dict.fromkeys(range(2))
