"""Files that change behind the back: scans while they are read, and single bytes of what was written."""

import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tests.faults.conftest import Forking, copy, differing, into
from tests.faults.test_full_disk import CONFIG, finding, latents, maps, prepared

from nilatent.cohort import read_cohort
from nilatent.errors import FindingError, LatentsError
from nilatent.finding import read_finding, write_finding
from nilatent.latents import read_latents, write_latents
from nilatent.models import ModelConfig
from nilatent.preprocess import space
from nilatent.preprocess.recipe import prepare, try_again
from nilatent.provenance import seal
from nilatent.training.checkpoint import FILES, ModelError, load_model
from nilatent.training.config import TrainConfig
from nilatent.training.loop import train
from nilatent.volumes import Grid, Volumes, volumes_in_memory


def flip(path: Path, place: int) -> None:
    """Turn one bit of one byte."""
    content = bytearray(path.read_bytes())
    content[place] ^= 0x10
    path.write_bytes(content)


@pytest.mark.slow
def test_a_scan_that_changes_while_it_is_prepared_is_left_out_and_taken_by_the_next_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = maps(tmp_path / "study", 3), tmp_path / "out"
    changed = next(source.glob("sub-1/anat/*.nii.gz"))
    other = next(source.glob("sub-0/anat/*.nii.gz")).read_bytes()
    real = space.load_scan

    def overtaken(path: Path) -> space.Scan:
        found = real(path)
        if path == changed:
            # As long as before and of the same age: only the bytes tell.
            before = path.stat()
            path.write_bytes((other + bytes(10**6))[: before.st_size])
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        return found

    monkeypatch.setattr(space, "load_scan", overtaken)
    kept = changed.read_bytes()
    first = prepare(read_cohort([source]), out, CONFIG)
    assert first.excluded[["scan_id", "rule"]].to_numpy().tolist() == [["sub-1", "image stays the same"]]
    assert "run the same command again" in first.excluded["reason"].iloc[0]
    assert not list(out.glob("sub-1/anat/*"))
    monkeypatch.undo()
    changed.write_bytes(kept)
    assert prepared(source, out).excluded.empty
    prepared(source, tmp_path / "calm")
    assert differing(out, tmp_path / "calm") == []


def test_a_scan_of_the_same_size_and_age_with_other_bytes_is_prepared_again(tmp_path: Path) -> None:
    source, out = maps(tmp_path / "study", 2), tmp_path / "out"
    before = prepared(source, out)
    path = next(source.glob("sub-1/anat/*.nii.gz"))
    known = path.stat()
    # A byte of the header of gzip that says nothing of the image.
    flip(path, 9)
    os.utime(path, ns=(known.st_atime_ns, known.st_mtime_ns))
    made = {scan: Path(str(file)).stat().st_mtime_ns for scan, file in before.scans["path"].items()}
    after = prepared(source, out)
    again = {scan: Path(str(file)).stat().st_mtime_ns for scan, file in after.scans["path"].items()}
    assert [scan for scan in made if made[scan] != again[scan]] == ["sub-1"]


@pytest.mark.parametrize(
    ("rule", "stays"), [("worker survives", False), ("image stays the same", False), ("same grid", True)]
)
def test_what_was_lost_to_something_that_passed_is_tried_again(rule: str, stays: bool, tmp_path: Path) -> None:
    record, listed = tmp_path / "provenance.json", tmp_path / "excluded.tsv"
    record.touch()
    pd.DataFrame({"scan_id": ["sub-1"], "rule": [rule]}).to_csv(listed, sep="\t")
    try_again(listed, record)
    assert record.exists() == stays


def model_folder(folder: Path) -> Path:
    array = np.random.default_rng(0).random((24, 9, 11, 7))
    ids = pd.Index([f"sub-{number:02d}" for number in range(24)], name="scan_id")
    scans = pd.DataFrame({"subject_id": ids, "dataset": "one"}, index=ids)
    grid = Grid((9, 11, 7), np.diag([4.0, 4.0, 4.0, 1.0]))
    volumes: Volumes = volumes_in_memory(array, mask=array[0] > 0.3, grid=grid, scans=scans)
    parts = pd.DataFrame({"subject_id": ids, "part": ["train"] * 16 + ["validation"] * 8}, index=ids)
    settings = ModelConfig(name="vae", n_latent=2, channels=(4, 8), sigma=0.1), TrainConfig(n_epochs=1)
    train(volumes, parts, *settings, folder)
    return folder


def test_every_changed_byte_of_a_model_is_found(tmp_path: Path, rng: np.random.Generator) -> None:
    folder = model_folder(tmp_path / "model")
    # Settings that changed and still can be read are another model, which latents and heads do not take for theirs.
    for name in sorted(set(FILES) - {"config.toml", "history.tsv"}):
        content = (folder / name).read_bytes()
        for place in rng.integers(len(content), size=5):
            flip(folder / name, int(place))
            with pytest.raises(ModelError):
                load_model(folder)
            (folder / name).write_bytes(content)
    load_model(folder)


@pytest.mark.slow
def test_a_training_does_not_go_on_from_changed_bytes(tmp_path: Path, rng: np.random.Generator) -> None:
    calm = model_folder(tmp_path / "calm")
    out = copy(calm, tmp_path / "out")
    for name in ("resume.safetensors", "start.safetensors"):
        size = (out / name).stat().st_size
        flip(out / name, int(rng.integers(size // 2, size)))
        if name == "start.safetensors":
            (out / "resume.safetensors").unlink()
        assert differing(model_folder(out), calm) == []


# What cannot be opened complains once more when it is closed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_changed_byte_of_latents_changes_nothing_or_is_found(tmp_path: Path, rng: np.random.Generator) -> None:
    write_latents(latents(40), tmp_path)
    path, found = tmp_path / "latents.nc", 0
    before, content = read_latents(tmp_path), path.read_bytes()
    for place in rng.integers(len(content), size=25):
        flip(path, int(place))
        try:
            # There are bytes between the arrays that nobody reads.
            assert read_latents(tmp_path).identical(before)
        except LatentsError:
            found += 1
        path.write_bytes(content)
    assert found > 4


def test_every_changed_byte_of_a_sealed_finding_is_found(tmp_path: Path, rng: np.random.Generator) -> None:
    written = write_finding(finding(1000), tmp_path)
    seal(tmp_path / "provenance.json", stage="lrcp", settings={}, inputs={}, outputs=written)
    read_finding(tmp_path)
    for path in written:
        content = path.read_bytes()
        for place in rng.integers(len(content), size=5):
            flip(path, int(place))
            with pytest.raises(FindingError, match="is not as it was written"):
                read_finding(tmp_path)
            path.write_bytes(content)
    write_finding(finding(1001), tmp_path)
    assert len(read_finding(tmp_path).data["r"]) == 1001


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_run_mends_a_changed_byte_in_whatever_it_had_written(
    calm: Path, command: Forking, study: list[str], tmp_path: Path, rng: np.random.Generator
) -> None:
    out = copy(calm, tmp_path / "out")
    changed = [
        path for path in sorted(out.rglob("*")) if path.is_file() and path.stat().st_size and path.name != "study.toml"
    ]
    for path in changed:
        flip(path, int(rng.integers(path.stat().st_size)))
    done = command(*into(study, out))
    assert done.status == 0, done.text
    print(f"\nFLIPPED: {len(changed)} files; differing: {differing(out, calm)}")
    # What a reader of pages gets beside them is written anew at every report.
    assert differing(out, calm) == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_scan_that_changes_between_runs_is_found_and_one_that_changes_back_too(
    command: Forking, cohort: Path, study: list[str], calm: Path, tmp_path: Path
) -> None:
    out, source = copy(calm, tmp_path / "out"), copy(cohort, tmp_path / cohort.name)
    call = into([study[0], str(source), *study[2:]], out)
    path = sorted(source.rglob("*.nii.gz"))[0]
    content, known = path.read_bytes(), path.stat()
    flip(path, 9)
    os.utime(path, ns=(known.st_atime_ns, known.st_mtime_ns))
    assert "prepared" in command(*call).computed
    path.write_bytes(content)
    assert "prepared" in command(*call).computed
    shutil.rmtree(out / "cohort")
    shutil.copytree(calm / "cohort", out / "cohort")
    assert differing(out, calm) == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_clock_that_jumps_a_day_back_and_forth_changes_nothing(
    command: Forking, study: list[str], calm: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = command(*into(study, out), clock_s=-86400)
    assert done.status == 0, done.text
    assert differing(out, calm) == []
    # Files of tomorrow, and of long ago.
    for number, path in enumerate(sorted(out.rglob("*"))):
        os.utime(path, (86400.0 * number, 4e9 - number))
    again = command(*into(study, out))
    assert again.computed == {"report"}
