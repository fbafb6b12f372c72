"""A run that is killed at any moment and started again ends as if nothing had happened."""

import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from tests.river.conftest import command_line

STAGES = ("prepared", "volumes", "regions", "split", "model", "latents", "reconstruction", "projections", "lrcp")


TRIES = 8


def _killed_in(stage: str, arguments: list[str], *, delay: float) -> bool:
    """Start, wait for the stage's line and a little longer, kill the process group; True when it died in that stage."""
    process = subprocess.Popen(
        arguments, stderr=subprocess.PIPE, text=True, start_new_session=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith(f"{stage} ..."):
            time.sleep(delay)
            break
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    later = process.stderr.read()
    process.stderr.close()
    # Had the stage ended before the kill, the next one would have announced itself.
    return process.wait() == -signal.SIGKILL and " ..." not in later


@pytest.fixture(scope="module")
def calm(simulated: Path, settings: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, undisturbed."""
    out = tmp_path_factory.mktemp("calm") / "out"
    subprocess.run(_run(simulated, settings, out), check=True, capture_output=True)
    return out


def _run(simulated: Path, settings: Path, out: Path) -> list[str]:
    return command_line("run", simulated, out, "--config", str(settings), "--group", "group", "--n-procs", "2")


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_killed_run_ends_with_the_latents_of_an_undisturbed_one(
    stage: str, simulated: Path, settings: Path, calm: Path, tmp_path: Path, rng: np.random.Generator
):
    # Stages last from milliseconds to seconds: a try that came too late is made again, from nothing and sooner.
    for number in range(TRIES):
        out = tmp_path / f"killed-{number}"
        if _killed_in(stage, _run(simulated, settings, out), delay=float(rng.uniform(0, 0.6)) / 3**number):
            break
    else:
        pytest.fail(f"no kill landed in the stage {stage} in {TRIES} tries")
    done = subprocess.run(_run(simulated, settings, out), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (out / "latents.tsv").read_bytes() == (calm / "latents.tsv").read_bytes()
    assert (out / "findings/lrcp/table.tsv").read_bytes() == (calm / "findings/lrcp/table.tsv").read_bytes()


@pytest.mark.slow
def test_a_second_run_in_the_folder_of_a_living_one_is_refused_and_after_its_death_goes_on(
    simulated: Path, settings: Path, tmp_path: Path
):
    out = tmp_path / "out"
    first = subprocess.Popen(_run(simulated, settings, out), stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert first.stderr is not None
    next(line for line in first.stderr if line.startswith("prepared ..."))
    os.killpg(first.pid, signal.SIGSTOP)
    second = subprocess.run(_run(simulated, settings, out), capture_output=True, text=True, check=False)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    assert second.returncode == 2
    assert f"is in use by process {first.pid} on" in second.stderr
    assert subprocess.run(_run(simulated, settings, out), capture_output=True, check=False).returncode == 0
