"""Folds as jobs of their own give what the river gives one by one."""

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from tests.preprocess.conftest import scheduler_in, workers_for

from nilatent.cohort import Cohort, load_cohort, write_cohort
from nilatent.config import RunConfig, read_config, write_config
from nilatent.errors import SettingError
from nilatent.fold_jobs import NEEDS, FoldJob, train_fold, train_folds
from nilatent.lock import locked
from nilatent.pipeline import train_one_fold
from nilatent.pools import read_split
from nilatent.provenance import content_hash, seal
from nilatent.river import River
from nilatent.volumes import Grid, open_volumes, pack

SHAPE = (9, 11, 7)
ASKED = {
    "folds": 3,
    "model.name": "vae",
    "model.n_latent": 2,
    "model.channels": [4, 4],
    "model.curve": False,
    "training.n_epochs": 0,
    "training.device": "cpu",
}
FILES = ("model/weights.safetensors", "latents.tsv", "errors.tsv", "split.tsv", "model/result.json")


@pytest.fixture
def config() -> RunConfig:
    return read_config(overrides=ASKED)


@pytest.fixture
def out(tmp_path: Path, rng: np.random.Generator, config: RunConfig) -> Path:
    """A run folder that is filled until the split."""
    folder, grid = tmp_path / "run", Grid(SHAPE, np.diag([4.0, 4.0, 4.0, 1.0]))
    ids = [f"sub-{number:02d}" for number in range(24)]
    maps = rng.random((24, 2)) @ rng.random((2, np.prod(SHAPE))) + 0.1 * rng.random((24, np.prod(SHAPE)))
    for name, values in zip(ids, maps, strict=True):
        nib.save(grid.to_image(values.reshape(SHAPE)), tmp_path / f"{name}_GM.nii.gz")
    table = pd.DataFrame({"subject_id": ids, "dataset": "one", "source_id": ids}, index=pd.Index(ids, name="scan_id"))
    paths = [str(tmp_path / f"{name}_GM.nii.gz") for name in ids]
    cohort = Cohort(table.assign(session_id="", path=paths, sha256="", recipe="gm", age=np.arange(24) + 40.0))
    parts = table[["subject_id"]].assign(part="train", fold=np.arange(24) % 3)
    write_cohort(cohort, folder / "cohort")
    write_config(config, folder / "study.toml")
    made = {"prepared": write_cohort(cohort, folder / "prepared")[:1]}
    pack(cohort, grid, folder / "volumes", mask=np.ones(SHAPE, dtype=bool))
    parts.to_csv(folder / "split.tsv", sep="\t")
    made |= {"volumes": [folder / "volumes" / "volumes.npy"], "split": [folder / "split.tsv"]}
    for stage, outputs in made.items():
        seal(folder / f"{NEEDS[stage]}provenance.json", stage=stage, settings={}, inputs={}, outputs=outputs)
    return folder


def by_river(out: Path, config: RunConfig) -> None:
    """All folds, one by one, as a run trains them."""
    river = River(out, config)
    river.hashes |= {need: content_hash(out / f"{place}provenance.json") for need, place in NEEDS.items()}
    river.folds(load_cohort(out / "prepared"), open_volumes(out / "volumes"), read_split(out))


def same(one: Path, other: Path) -> bool:
    return all(
        (one / "folds" / str(fold) / name).read_bytes() == (other / "folds" / str(fold) / name).read_bytes()
        for fold in range(3)
        for name in FILES
    )


def test_the_river_finds_folds_done_that_were_trained_alone(
    out: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fit(_volumes: object, parts: pd.DataFrame, _fold: int, *rest: object, **_beside: object) -> list[Path]:
        folder = rest[2]
        assert isinstance(folder, Path)
        parts.to_csv(folder / "split.tsv", sep="\t")
        return [folder / "split.tsv"]

    monkeypatch.setattr("nilatent.fold_jobs.fit_fold", fit)
    monkeypatch.setattr("nilatent.river.fit_fold", lambda *_, **__: pytest.fail("A fold was trained twice."))
    assert [train_one_fold(out, config, fold) for fold in (2, 0, 1, 2)] == [True, True, True, False]
    by_river(out, config)
    assert capsys.readouterr().err.count("up to date") == 3
    # Whatever the fold rests on makes it stale: for the job as for the river.
    seal(out / "split.provenance.json", stage="split", settings={}, inputs={}, outputs=[out / "study.toml"])
    assert train_one_fold(out, config, 1)


def test_folds_that_cannot_be_trained_are_refused(out: Path, config: RunConfig) -> None:
    for fold in (-1, 3):
        with pytest.raises(SettingError, match=f"no fold {fold}: the study has 3 folds"):
            train_fold(FoldJob(out, config, fold))
    with locked(out), pytest.raises(SettingError, match="is in use by process"):
        train_one_fold(out, config, 0)
    with locked(out / "folds" / "0"), pytest.raises(SettingError, match=r"folds/0 is in use by process"):
        train_one_fold(out, config, 0)
    # As by a worker whose run was killed.
    with locked(out / "folds" / "0"), pytest.raises(SettingError, match=r"folds/0 is in use by process"):
        by_river(out, config)
    (out / "split.provenance.json").unlink()
    with pytest.raises(SettingError, match=r"lacks split, on which a fold rests.*--until split"):
        train_fold(FoldJob(out, config, 0))


def test_a_fold_is_not_shared_by_processes_that_were_started_elsewhere(
    out: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    several = read_config(overrides=ASKED | {"training.num_nodes": 2})
    with pytest.raises(SettingError, match="one command on one machine"):
        train_one_fold(out, several, 0)
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SettingError, match="one command on one machine"):
        train_one_fold(out, config, 0)


@pytest.mark.slow
def test_two_workers_give_the_same_bits_as_one_after_the_other(out: Path, tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    config = read_config(overrides=ASKED | {"training.n_epochs": 2})
    other, n_threads = Path(shutil.copytree(out, tmp_path / "other")), torch.get_num_threads()
    torch.set_num_threads(1)
    by_river(other, config)
    assert train_one_fold(out, config, 2)
    torch.set_num_threads(n_threads)
    place = tmp_path / "scheduler"
    place.mkdir()
    with scheduler_in(place) as (file, _), workers_for(file, 2, "--nthreads", "1", "--memory-limit", "0"):
        train_folds(out, config, scheduler=str(file))
        before = (out / "folds" / "1" / "provenance.json").stat().st_mtime_ns
        train_folds(out, config, scheduler=str(file))
    assert same(out, other)
    assert (out / "folds" / "1" / "provenance.json").stat().st_mtime_ns == before
    assert not list(out.glob("*.mark"))
