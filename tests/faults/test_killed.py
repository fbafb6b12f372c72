"""Kill -9 at a random moment of every stage, then the same command: the end is that of an undisturbed run.

``NILATENT_KILLS`` says how often in each stage (2 when it is left out). What was finished before is not computed again.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tests.faults.conftest import Forking, contents, copy, differing, into

KILLS = int(os.environ.get("NILATENT_KILLS", "2"))
# A stage of milliseconds is sometimes over before the signal comes; such a try does not count.
TRIES = 6 * KILLS + 10

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]


@dataclass(frozen=True)
class Stage:
    """One stage: what is removed to have it computed again, the command that does, and what goes with it."""

    name: str
    removed: tuple[str, ...]
    command: tuple[str, ...]
    beside: tuple[str, ...] = ()


FINDINGS = (
    "reconstruction", "projections", "lrcp", "error_profile", "agnostic", "prediction", "harmonise", "normative", "leaks",
    "multimodal", "fusion", "sensitivity", "counterfactual", "fidelity", "blur", "longitudinal",
)  # fmt: skip
STAGES = (
    Stage("prepared", ("prepared",), ("train",), ("quality",)),
    Stage("quality", ("prepared/quality", "prepared/quality.html"), ("train",)),
    Stage("volumes", ("volumes",), ("train",)),
    Stage("regions", ("regions.tsv", "regions.json", "regions.provenance.json"), ("train",)),
    Stage("split", ("split.tsv", "split.provenance.json"), ("train",)),
    Stage("model", ("model",), ("train",)),
    Stage("latents", ("latents.nc", "latents.tsv", "latents.provenance.json"), ("encode",)),
    Stage("multimodal", ("multimodal",), ("encode",)),
    Stage("fold 0", ("folds/0",), ("analyse", "lrcp"), ("fold 0 multimodal",)),
    Stage("fold 1 multimodal", ("folds/1/multimodal",), ("analyse", "lrcp")),
    Stage("heads", ("heads",), ("analyse", "prediction")),
    *(Stage(name, (f"findings/{name}",), ("analyse", name)) for name in FINDINGS),
)


def undo(out: Path, stage: Stage) -> None:
    for name in stage.removed:
        shutil.rmtree(out / name) if (out / name).is_dir() else (out / name).unlink()


def finished(out: Path) -> dict[str, tuple[int, int]]:
    """Scans that are prepared, and how their files stand on the disk: what is written again is another file."""
    side_cars = list(out.glob("prepared/sub-*/anat/*.json"))
    maps = [path.with_name(path.name.replace(".json", ".nii.gz")) for path in side_cars]
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in maps}


def epochs(out: Path) -> list[float]:
    """Seconds of every epoch that a training has on disk: an epoch that is trained again has others."""
    history = out / "model" / "history.tsv"
    return pd.read_csv(history, sep="\t")["seconds"].tolist() if history.is_file() else []


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_a_stage_that_is_killed_ends_as_if_nothing_had_happened(
    stage: Stage, calm: Path, command: Forking, tmp_path: Path, rng: np.random.Generator
) -> None:
    out = copy(calm, tmp_path / "out")
    call = (stage.command[0], str(out), *stage.command[1:])
    undo(out, stage)
    undisturbed = command(*call)
    assert undisturbed.computed == {stage.name, *stage.beside}, undisturbed.text
    assert differing(out, calm) == []
    equal = landed = tried = 0
    while landed < KILLS and tried < TRIES:
        undo(out, stage)
        after_s = float(rng.uniform(0, undisturbed.lasting(stage.name)))
        killed = command(*call, kill_after_s=after_s, from_line=f"{stage.name} ...")
        tried += 1
        if killed.too_late:
            continue
        landed += 1
        maps, trained = finished(out), epochs(out)
        again = command(*call)
        assert again.status == 0, again.text
        assert again.computed <= {stage.name, *stage.beside}, again.text
        assert finished(out).items() >= maps.items()
        assert epochs(out)[: len(trained)] == trained
        assert differing(out, calm) == [], f"killed after {after_s:.3f} s of {stage.name}"
        equal += 1
    print(f"\nKILLS {stage.name}: {landed} landed of {tried}, {equal} ended equal")
    assert landed > 0, f"no kill landed in {stage.name}, which lasts {undisturbed.lasting(stage.name):.3f} s"


def test_a_report_that_is_killed_is_written_whole_by_the_next(
    calm: Path, command: Forking, tmp_path: Path, rng: np.random.Generator
) -> None:
    out = copy(calm, tmp_path / "out")
    lasting = command("report", out).seconds
    for _ in range(KILLS):
        (out / "report.html").unlink()
        shutil.rmtree(out / "figures")
        command("report", out, kill_after_s=float(rng.uniform(0, lasting)), from_line="")
        assert command("report", out).status == 0
        assert differing(out, calm) == []
    print(f"\nKILLS report: {KILLS} landed, {KILLS} ended equal")


def test_a_first_run_that_is_killed_again_and_again_ends_as_one(
    calm: Path, command: Forking, study: list[str], tmp_path: Path, rng: np.random.Generator
) -> None:
    """From nothing, reading of the cohort included, and with several deaths on one way."""
    out = tmp_path / "out"
    for _ in range(KILLS):
        command(*into(study, out), kill_after_s=float(rng.exponential(2.0)), from_line="")
    done = command(*into(study, out))
    assert done.status == 0, done.text
    assert differing(out, calm) == []


@pytest.mark.parametrize(
    "drawing",
    [
        ("samples", "--n", "40", "--allow-copies"),
        ("traverse", "--direction", "z000"),
        ("interpolate", "sub-001", "sub-002"),
    ],
    ids=lambda drawing: drawing[0],
)
def test_a_drawing_that_is_killed_is_whole_or_goes_on(
    drawing: tuple[str, ...], calm: Path, command: Forking, tmp_path: Path, rng: np.random.Generator
) -> None:
    def call(name: str) -> list[str]:
        place = str(tmp_path / name / "out")
        return ["generate", drawing[0], str(calm), place, *drawing[1:]]

    undisturbed = command(*call("calm"))
    assert undisturbed.status == 0, undisturbed.text
    before = contents(calm)
    for number in range(KILLS):
        name = f"killed-{number}"
        for _ in range(1 + number % 2):
            command(*call(name), kill_after_s=float(rng.uniform(0, undisturbed.seconds)), from_line="")
        assert command(*call(name)).status == 0
        # The folder around it too: a folder half written is no longer there.
        assert differing(tmp_path / name, tmp_path / "calm") == []
        shutil.rmtree(tmp_path / name)
    print(f"\nKILLS generate {drawing[0]}: {KILLS} landed, {KILLS} ended equal")
    assert contents(calm) == before
