import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from safetensors import safe_open

from nilatent.simulate import SimulationConfig, simulate

MODULES = ("nilatent.pipeline", "nilatent.external", "nilatent.travel", "nilatent.synthetic", "nilatent.report")
SETTINGS = """
seed = 1
folds = 2
[recipe]
spacing_mm = 6.0
[model]
n_latent = 3
channels = [4, 4]
[training]
n_epochs = 4
[projections]
methods = ["pca"]
n_permutations = 20
[lrcp]
n_permutations = 20
[error_profile]
models = ["ridge"]
n_permutations = 19
[agnostic]
n_permutations = 19
[prediction]
targets = ["sex"]
n_permutations = 19
n_bootstrap = 100
[normative]
n_maps = 2
[leaks]
n_permutations = 19
[sensitivity]
n_permutations = 19
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
STUDY = ("--group", "group", "--contrast", "patient:control", "--covariates", "age", "--table", "scores=severity")


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int
    said: tuple[tuple[float, str], ...]
    seconds: float
    too_late: bool

    @property
    def text(self) -> str:
        return "\n".join(line for _, line in self.said)

    @property
    def computed(self) -> set[str]:
        """Stages that were not skipped."""
        return {line.removesuffix(" ...") for _, line in self.said if line.endswith(" ...")}

    def lasting(self, stage: str) -> float:
        """Seconds from the line that begins a stage to the next stage, or to the end."""
        starts = [when for when, line in self.said if line == f"{stage} ..."]
        later = [when for when, line in self.said if line.endswith((" ...", ": up to date")) and when > starts[0]]
        return (later[0] if later else self.seconds) - starts[0]


class Forking:
    """Gives orders to the process of ``forking.py``."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("forking.py")), *MODULES],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )

    def __call__(self, *arguments: object, **more: Any) -> Ended:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"arguments": [str(one) for one in arguments], **more}) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        return Ended(answer["status"], tuple(map(tuple, answer["said"])), answer["seconds"], answer["too_late"])


@pytest.fixture(scope="session")
def command() -> Iterator[Forking]:
    """The command line in a forked child of a process that has imported everything."""
    forking = Forking()
    yield forking
    forking.process.communicate()


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-two simulated subjects on a coarse grid."""
    config = SimulationConfig(n_subjects=22, seed=3, spacing_mm=6.0)
    return simulate(tmp_path_factory.mktemp("bids") / "simulated", config)


@pytest.fixture(scope="session")
def study(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Arguments of ``run`` but for the output folder, which comes in second place."""
    settings = tmp_path_factory.mktemp("settings") / "small.toml"
    settings.write_text(SETTINGS)
    return ["run", str(cohort), "", "--config", str(settings), *STUDY, "--n-procs", "1"]


@pytest.fixture(scope="session")
def calm(command: Forking, study: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    out = tmp_path_factory.mktemp("calm") / "out"
    done = command(*into(study, out))
    assert done.status == 0, done.text
    # In the process itself, whose children then find templates and atlas in memory.
    assert command("analyse", out, "lrcp", here=True).status == 0
    return out


def into(study: list[str], out: Path) -> list[str]:
    """The arguments of ``run`` with an output folder."""
    return [*study[:2], str(out), *study[3:]]


def copy(folder: Path, target: Path) -> Path:
    return Path(shutil.copytree(folder, target))


def contents(folder: Path) -> dict[str, object]:
    """Every file of a folder by its name: its bytes, but for what holds the seconds that a training took.

    ``history.tsv`` holds them in a column, ``resume.safetensors`` the same history, and ``MODEL_CARD.md`` and the pages nothing
    of them. A lock that nobody holds is an empty file.
    """
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            name = str(path.relative_to(folder))
            if path.name == "history.tsv":
                found[name] = pd.read_csv(path, sep="\t").drop(columns="seconds").to_csv()
            elif path.name == "resume.safetensors":
                with safe_open(path, framework="np") as file:
                    found[name] = {key: file.get_tensor(key).tobytes() for key in file.keys()}  # noqa: SIM118
            elif path.name.endswith(".lock"):
                continue
            else:
                found[name] = path.read_bytes()
    return found


def differing(folder: Path, other: Path) -> list[str]:
    """Names of files that only one of two folders has, or that differ."""
    one, two = contents(folder), contents(other)
    return sorted(name for name in one.keys() | two.keys() if one.get(name) != two.get(name))
