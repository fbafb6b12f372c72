"""Training holds one batch of scans, however many there are; run as a script it trains on so many and prints its peak."""

import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

SHAPE = (32, 40, 32)
STATUS = Path("/proc/self/status")


@pytest.mark.slow
@pytest.mark.skipif(not STATUS.exists(), reason="anonymous memory is read from /proc/self/status")
def test_anonymous_memory_does_not_grow_with_the_number_of_scans() -> None:
    few, many = (
        float(
            subprocess.run(
                [sys.executable, "-W", "ignore", __file__, str(n_scans)],
                check=True,
                capture_output=True,
                text=True,
                # Arrays go back to the system as soon as they are freed: what counts is what is held, not what the
                # allocator keeps for later.
                env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "262144", "OMP_NUM_THREADS": "1"},
            ).stdout.splitlines()[-1]
        )
        for n_scans in (40, 800)
    )
    # All training scans at once would be 85 MB more, a quarter of what the smaller training holds.
    assert many < 1.1 * few


def _peak_mb(n_scans: int) -> float:
    from nilatent.models import ModelConfig
    from nilatent.training.loop import TrainConfig, train
    from nilatent.volumes import Grid, Volumes

    def anonymous_mb() -> float:
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith("RssAnon"))
        return int(line.split()[1]) / 1000

    peak, done = [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], anonymous_mb())

    rng = np.random.default_rng(0)
    ids = [f"sub-{index:04d}" for index in range(n_scans)]
    part = ["train"] * round(0.65 * n_scans)
    scans = pd.DataFrame({"subject_id": ids, "dataset": "one"}, index=pd.Index(ids, name="scan_id"))
    parts = scans.assign(part=part + ["validation"] * (n_scans - len(part)))
    with tempfile.TemporaryDirectory() as folder:
        with (Path(folder) / "scans").open("wb") as file:
            for _ in ids:
                rng.standard_normal(SHAPE, dtype=np.float32).astype(np.float16).tofile(file)
        data = np.memmap(Path(folder) / "scans", dtype=np.float16, mode="r", shape=(n_scans, *SHAPE))
        grid = Grid(SHAPE, np.diag([4.0, 4.0, 4.0, 1.0]))
        volumes = Volumes(data, np.ones(SHAPE, dtype=bool), grid, scans, f"noise {n_scans}")
        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        model = ModelConfig(name="vae", n_latent=4, channels=(4, 4))
        train(volumes, parts, model, TrainConfig(n_epochs=1, device="cpu"), Path(folder) / "model")
        done.set()
        thread.join()
    return peak[0]


if __name__ == "__main__":
    print(_peak_mb(int(sys.argv[1])))
