"""A disk that is full, or that cannot be written: every writer says so in words, leaves no half file, and goes on later."""

import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from tests.faults.conftest import Forking, contents, differing

from nilatent.cohort import Cohort, read_cohort, write_cohort
from nilatent.errors import SettingError
from nilatent.finding import Finding, write_finding
from nilatent.grid import Grid, template
from nilatent.latents import make_latents, write_latents
from nilatent.lock import locked
from nilatent.models import ModelConfig
from nilatent.preprocess import job
from nilatent.preprocess.recipe import RecipeConfig, prepare
from nilatent.provenance import DiskError, atomic, reserve, sweep, write_json
from nilatent.training.config import TrainConfig
from nilatent.training.loop import train
from nilatent.training.tensors import write_tensors
from nilatent.volumes import volumes_in_memory

MIB = 2**20


@contextmanager
def no_file_over(n_bytes: int) -> Iterator[None]:
    """Writes beyond so many bytes of a file fail, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def mounted(place: Path, size: int, *options: str) -> bool:
    call = ["mount", "-t", "tmpfs", "-o", ",".join((f"size={size}", *options)), "tmpfs", str(place)]
    return shutil.which("mount") is not None and subprocess.run(call, capture_output=True, check=False).returncode == 0


def mount_again(place: Path, *options: str) -> None:
    subprocess.run(["mount", "-o", ",".join(("remount", *options)), str(place)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of a mebibyte."""
    place = tmp_path / "disk"
    place.mkdir()
    if not mounted(place, MIB):
        pytest.skip("a small disk can only be mounted by root")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def finding(n: int) -> Finding:
    values = np.random.default_rng(0).normal(size=n)
    image = nib.Nifti1Image(values[:1000].reshape(10, 10, 10).astype(np.float32), np.eye(4))
    data = xr.Dataset({"r": ("x", values)})
    table = pd.DataFrame({"r": values[:10]})
    return Finding("lrcp", "Which?", "This.", table, data, {}, (), 1, 1, {"map": image})


def latents(n: int) -> xr.Dataset:
    mean = np.random.default_rng(0).normal(size=(n, 64)).astype(np.float32)
    ids = [f"sub-{number}" for number in range(n)]
    return make_latents(
        mean,
        mean,
        scan=ids,
        subject=ids,
        subject_in_training=[False] * n,
        part=["test"] * n,
        model_hash="",
        volumes_hash="",
    )


def mapped(path: Path) -> None:
    """A memory map: where the disk fills under one, the process dies without a word."""
    with atomic(path) as temporary:
        data = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=(200_000,))
        reserve(temporary)
        data[:] = 1.0


def image(path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(60, 60, 60)).astype(np.float32)
    with atomic(path) as temporary:
        nib.save(nib.Nifti1Image(values, np.eye(4)), temporary)


WRITERS: dict[str, Callable[[Path], object]] = {
    "data.nc": lambda folder: write_finding(finding(100_000), folder),
    "latents.nc": lambda folder: write_latents(latents(1_000), folder),
    "volumes.npy": lambda folder: mapped(folder / "volumes.npy"),
    "map.nii.gz": lambda folder: image(folder / "map.nii.gz"),
    "record.json": lambda folder: write_json(folder / "record.json", "a" * 400_000),
    "weights.safetensors": lambda folder: write_tensors(folder / "weights.safetensors", {"w": torch.ones(200_000)}, {}),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_that_does_not_fit_is_named_and_nothing_half_is_left(name: str, tmp_path: Path) -> None:
    write, out = WRITERS[name], tmp_path / "out"
    with no_file_over(300_000), pytest.raises(DiskError, match=rf"{name} could not be written.*MB are free.*make room"):
        write(out)
    assert not (out / name).exists()
    assert [path.name for path in out.iterdir() if ".partial." in path.name] == []
    write(out)
    write(tmp_path / "calm")
    assert differing(out, tmp_path / "calm") == []


def test_a_full_disk_says_how_much_is_missing_and_keeps_what_was_there(small_disk: Path) -> None:
    (small_disk / "volumes.npy").write_bytes(b"before")
    (small_disk / "other").write_bytes(bytes(MIB // 2))
    with pytest.raises(DiskError, match=r"it takes 0\.8 MB, 0\.5 MB are free \(0\.3 MB are missing\)"):
        mapped(small_disk / "volumes.npy")
    assert (small_disk / "volumes.npy").read_bytes() == b"before"
    (small_disk / "other").unlink()
    mapped(small_disk / "volumes.npy")
    assert (small_disk / "volumes.npy").stat().st_size > 800_000


def maps(folder: Path, n: int) -> Path:
    """A BIDS derivative of so many grey-matter maps, no two alike."""
    grid = Grid.mni(6.0)
    grey = template("gm", grid).get_fdata(dtype=np.float32)
    for number in range(n):
        path = folder / f"sub-{number}" / "anat" / f"sub-{number}_space-MNI152NLin6Asym_label-GM_probseg.nii.gz"
        path.parent.mkdir(parents=True)
        nib.save(grid.to_image(np.clip(grey * (1 + 0.01 * number), 0, 1.5)), path)
    return folder


CONFIG = RecipeConfig(name="gm", spacing_mm=6.0, fwhm_mm=8.0)


def prepared(source: Path, out: Path) -> Cohort:
    return prepare(read_cohort([source]), out, CONFIG)


@pytest.mark.slow
def test_a_disk_that_fills_stops_the_preparation_and_leaves_no_scan_out(tmp_path: Path) -> None:
    source, out = maps(tmp_path / "study", 2), tmp_path / "out"
    prepared(source, tmp_path / "calm")
    sizes = sorted(path.stat().st_size for path in (tmp_path / "calm").rglob("*.nii.gz"))
    with no_file_over(sizes[0] - 100), pytest.raises(DiskError, match=r"sub-\d.*could not be written"):
        prepared(source, out)
    assert list(out.rglob("*.partial.*")) == []
    assert prepared(source, out).excluded.empty
    assert differing(out, tmp_path / "calm") == []


def test_temporary_files_that_do_not_fit_stop_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(job, "prepare_map", full)
    with pytest.raises(DiskError, match=r"sub-0.*temporary files.*TMPDIR"):
        prepared(maps(tmp_path / "study", 1), tmp_path / "out")


def test_a_cohort_on_a_disk_that_cannot_be_written_is_prepared(small_disk: Path, tmp_path: Path) -> None:
    mount_again(small_disk, "size=8m")
    source = maps(small_disk / "study", 2)
    before = contents(source)
    mount_again(small_disk, "ro")
    assert len(prepared(source, tmp_path / "out").scans) == 2
    assert contents(source) == before
    with (
        pytest.raises(SettingError, match=r"cannot be written: Read-only file system. Name a folder"),
        locked(small_disk),
    ):
        pass
    with pytest.raises(DiskError, match=r"Read-only file system.*copy it to a disk that is"):
        write_cohort(read_cohort([source]), small_disk / "cohort")


def test_results_on_a_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a letter")
    for place in ("out", "out/deeper"):
        with pytest.raises(SettingError, match=r"out is a file. Name another one"), locked(tmp_path / place):
            pass
    assert (tmp_path / "out").read_text() == "a letter"


def test_a_training_whose_state_does_not_fit_goes_on_to_the_same_weights(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    array = rng.random((24, 9, 11, 7))
    ids = pd.Index([f"sub-{number:02d}" for number in range(24)], name="scan_id")
    scans = pd.DataFrame({"subject_id": ids, "dataset": "one"}, index=ids)
    grid = Grid((9, 11, 7), np.diag([4.0, 4.0, 4.0, 1.0]))
    volumes = volumes_in_memory(array, mask=array[0] > 0.3, grid=grid, scans=scans)
    parts = pd.DataFrame({"subject_id": ids, "part": ["train"] * 16 + ["validation"] * 8}, index=ids)
    asked = (volumes, parts, ModelConfig(name="vae", n_latent=2, channels=(4, 8), sigma=0.1), TrainConfig(n_epochs=2))
    train(*asked, tmp_path / "calm")

    def filled(row: dict[str, object]) -> None:
        # The epoch before is on the disk; the next one does not fit any more.
        resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(DiskError, match=r"resume\.safetensors could not be written"):
            train(*asked, tmp_path / "out", on_epoch=filled)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    train(*asked, tmp_path / "out")
    assert differing(tmp_path / "out", tmp_path / "calm") == []


def test_what_killed_writers_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    # Above the largest number a process can have.
    left, ours, others = (
        tmp_path / name for name in ("a/.9999999-0123abcd.partial.x", "a/x.npy", "prepared/.9999999-0123abcd.partial.x")
    )
    for path in (left, ours, others, tmp_path / "a/.partial.notes", tmp_path / "a/.nilatent-09ab.mark"):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    sweep(tmp_path, but="prepared")
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == sorted(
        [ours.name, others.name, ".partial.notes"]
    )


def test_what_a_living_process_writes_is_not_swept(tmp_path: Path) -> None:
    living = subprocess.Popen(["sleep", "60"])
    half = tmp_path / f".{living.pid}-0123abcd.partial.report.html"
    half.touch()
    sweep(tmp_path)
    assert half.exists()
    living.kill()
    # Ended, and not yet waited for.
    os.waitid(os.P_PID, living.pid, os.WEXITED | os.WNOWAIT)
    sweep(tmp_path)
    assert not half.exists()
    living.wait()
    half.with_name(f".{os.getpid()}-0123abcd.partial.report.html").touch()
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_disk_that_fills_at_one_stage_after_the_other_ends_as_a_large_one(
    small_disk: Path, calm: Path, command: Forking
) -> None:
    out, mebibytes, stopped = small_disk / "out", 1, []
    shutil.copytree(calm / "cohort", out / "cohort")
    shutil.copy(calm / "study.toml", out / "study.toml")
    for call in (("train",), ("encode",), ("analyse", "lrcp"), ("report",)):
        while (ended := command(call[0], out, *call[1:])).status != 0:
            said = " ".join(ended.text.split())
            assert ended.status == 2, said
            assert "make room" in said or "has room" in said, said
            assert list(out.rglob("*.partial.*")) == []
            stopped += [line for _, line in ended.said if line.endswith(" ...")][-1:]
            mebibytes += 1
            assert mebibytes < 60
            mount_again(small_disk, f"size={mebibytes}m")
    print(f"\nFULL: stopped in {stopped}")
    assert len(set(stopped)) >= 3
    # Of a run of which not all was asked, the report is another one.
    found, expected = contents(out), contents(calm)
    assert [name for name in found if found[name] != expected.get(name)] == ["report.html"]
