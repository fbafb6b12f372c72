import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.conftest import once

from nilatent import cli
from nilatent.simulate import SimulationConfig, simulate

SETTINGS = """
seed = 1
folds = 2
[recipe]
spacing_mm = 6.0
[model]
n_latent = 4
channels = [4, 8]
[training]
n_epochs = 3
[projections]
methods = ["pca", "pls"]
n_permutations = 200
[lrcp]
n_permutations = 200
[error_profile]
models = ["ridge"]
n_permutations = 99
[agnostic]
n_permutations = 99
[prediction]
n_permutations = 19
n_bootstrap = 100
[normative]
n_maps = 2
[leaks]
n_permutations = 49
[sensitivity]
n_permutations = 49
[counterfactual]
n_bootstrap = 100
n_permutations = 100
[fidelity]
n_samples = 20
n_permutations = 99
n_repeats = 1
[multimodal]
n_shared = 2
n_epochs = 1
channels = [4]
[fusion]
n_draws = 99
n_bootstrap = 100
"""


@pytest.fixture(scope="session")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-six simulated subjects on a coarse grid, with planted atrophy."""
    config = SimulationConfig(n_subjects=26, seed=3, spacing_mm=6.0)
    return once("bids", lambda root: simulate(root / "simulated", config), tmp_path_factory) / "simulated"


@pytest.fixture
def source(simulated: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(simulated, tmp_path / "source"))


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("settings") / "small.toml"
    path.write_text(SETTINGS)
    return path


@pytest.fixture
def nilatent(settings: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command line in a process of its own: ``nilatent("run", source, out)``."""

    def call(command: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command_line(command, *arguments, *(["--config", settings] if command == "run" else [])),
            capture_output=True,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            check=False,
        )

    return call


@pytest.fixture
def here(
    settings: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The same command line in this process, where everything is imported already."""

    def call(command: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        words = ["nilatent", command, *map(str, arguments), *(["--config", str(settings)] if command == "run" else [])]
        monkeypatch.setattr(sys, "argv", words)
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main()
        said = capfd.readouterr()
        return subprocess.CompletedProcess(words, int(stop.value.code or 0), said.out, said.err)

    return call


def command_line(*arguments: object) -> list[str]:
    return [sys.executable, "-c", "from nilatent.cli import main; main()", *map(str, arguments)]
