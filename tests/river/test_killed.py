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


def _kill_in(stage: str, arguments: list[str], *, delay: float) -> bool:
    """Start, wait for the stage's line, wait a little, kill the whole process group; True when it was still at work."""
    process = subprocess.Popen(
        arguments, stderr=subprocess.PIPE, text=True, start_new_session=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith(f"{stage} ..."):
            time.sleep(delay)
            break
    alive = process.poll() is None
    if alive:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return alive


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_killed_run_ends_with_the_latents_of_an_undisturbed_one(
    stage: str, simulated: Path, settings: Path, tmp_path: Path, rng: np.random.Generator
):
    study = ["--config", str(settings), "--group", "group", "--n-procs", "2"]
    out, calm = tmp_path / "killed", tmp_path / "calm"
    for _ in range(2):
        _kill_in(stage, command_line("run", simulated, out, *study), delay=float(rng.uniform(0, 0.6)))
    for folder in (out, calm):
        done = subprocess.run(
            command_line("run", simulated, folder, *study), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    assert (out / "latents.tsv").read_bytes() == (calm / "latents.tsv").read_bytes()
    assert (out / "findings/lrcp/table.tsv").read_bytes() == (calm / "findings/lrcp/table.tsv").read_bytes()
    assert not [
        path for path in out.rglob("*.partial.*") if path.suffix in (".tsv", ".json") and "prepared" in str(path)
    ]
