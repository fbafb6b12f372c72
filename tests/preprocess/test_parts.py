"""One cohort by any route: at once, in parts side by side, through a cluster, through dying workers; the same bytes."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from scipy import ndimage
from tests.preprocess.conftest import scheduler_in, workers_for

from nilatent.cohort import read_cohort, select
from nilatent.errors import SettingError
from nilatent.lock import locked
from nilatent.preprocess.recipe import RecipeConfig, prepare
from nilatent.simulate import SimulationConfig, simulate
from nilatent.volumes import Grid, template

CONFIG = RecipeConfig(name="gm", spacing_mm=6.0, fwhm_mm=8.0)
# As a batch system would: each part by a process of its own.
PART = (
    "import sys\nfrom pathlib import Path\nfrom nilatent.cohort import read_cohort, select\n"
    "from nilatent.preprocess.config import RecipeConfig\n"
    "from nilatent.preprocess.recipe import prepare\n"
    "source, out, *labels = sys.argv[1:]\n"
    "config = RecipeConfig(name='gm', spacing_mm=6.0, fwhm_mm=8.0)\n"
    "done = prepare(select(read_cohort([Path(source)]), labels), Path(out), config, tables=False)\n"
    "assert sorted(done.scans['subject_id']) == sorted(labels), done.excluded\n"
)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A BIDS derivative of eight maps, the last of them damaged."""
    rng = np.random.default_rng(4)
    grid, folder = Grid.mni(6.0), tmp_path_factory.mktemp("bids") / "study"
    grey = template("gm", grid).get_fdata(dtype=np.float32)
    for number in range(8):
        path = folder / f"sub-{number}" / "anat" / f"sub-{number}_space-MNI152NLin6Asym_label-GM_probseg.nii.gz"
        path.parent.mkdir(parents=True)
        factor = 1 + 0.5 * ndimage.gaussian_filter(rng.normal(size=grid.shape), 2)
        nib.save(grid.to_image(np.clip(grey * factor, 0, 1.5)), path)
    path.write_bytes(path.read_bytes()[:1000])
    rows = "".join(f"sub-{number}\t{20 + number}\n" for number in range(8))
    (folder / "participants.tsv").write_text(f"participant_id\tage\n{rows}")
    return folder


@pytest.fixture(scope="module")
def at_once(source, tmp_path_factory):
    """The whole cohort in one go."""
    out = tmp_path_factory.mktemp("once") / "out"
    done = prepare(read_cohort([source]), out, CONFIG, n_procs=2)
    assert list(done.excluded["scan_id"]) == ["sub-7"]
    return out


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_same(found, expected):
    found, expected = contents(found), contents(expected)
    assert sorted(found) == sorted(expected)
    assert [name for name in expected if found[name] != expected[name]] == []


@pytest.mark.slow
def test_parts_side_by_side_and_a_last_call_leave_what_one_call_leaves(source, at_once, tmp_path):
    out = tmp_path / "out"
    parts = [["sub-0", "sub-2", "sub-4"], ["sub-1", "sub-3"], ["sub-5", "sub-6"]]
    running = [subprocess.Popen([sys.executable, "-c", PART, str(source), str(out), *labels]) for labels in parts]
    assert [process.wait() for process in running] == [0, 0, 0]
    assert_parts_become_the_whole(source, out, at_once)


def test_parts_one_by_one_and_a_last_call_leave_what_one_call_leaves(source, at_once, tmp_path):
    cohort = read_cohort([source])
    for labels in (["0", "2", "4", "7"], ["1", "3"], ["5", "6"]):
        prepare(select(cohort, labels), tmp_path / "out", CONFIG, tables=False)
    assert_parts_become_the_whole(source, tmp_path / "out", at_once)


def assert_parts_become_the_whole(source, out, at_once):
    assert len(list(out.glob("sub-*/anat/*_label-GM_*probseg.nii.gz"))) == 7
    assert not (out / "quality.tsv").exists()
    before = {path: path.stat().st_mtime_ns for path in out.glob("sub-*/anat/*")}
    prepare(read_cohort([source]), out, CONFIG)
    assert {path: path.stat().st_mtime_ns for path in out.glob("sub-*/anat/*")} == before
    assert_same(out, at_once)


def test_a_part_that_makes_a_map_takes_away_tables_that_say_nothing_of_it(source, tmp_path):
    out, cohort = tmp_path / "out", read_cohort([source])
    first, second = select(cohort, ["0", "1"]), select(cohort, ["2"])
    prepare(first, out, CONFIG)
    table = (out / "quality.tsv").read_bytes()
    (out / "quality.html").touch()
    (out / "quality").mkdir()
    prepare(first, out, CONFIG, tables=False)
    assert (out / "quality.tsv").read_bytes() == table
    prepare(second, out, CONFIG, tables=False)
    assert not list(out.glob("quality*"))
    prepare(select(cohort, ["0", "1", "2"]), out, CONFIG)
    assert list(pd.read_csv(out / "quality.tsv", sep="\t")["scan_id"]) == ["sub-0", "sub-1", "sub-2"]


def test_the_whole_and_a_part_do_not_run_together_and_parts_do(source, tmp_path):
    cohort = select(read_cohort([source]), ["0"])
    with locked(tmp_path):
        for tables in (True, False):
            with pytest.raises(SettingError, match="is in use by process"):
                prepare(cohort, tmp_path, CONFIG, tables=tables)
    with locked(tmp_path, shared=True):
        with pytest.raises(SettingError, match="is in use by process"):
            prepare(cohort, tmp_path, CONFIG)
        assert len(prepare(cohort, tmp_path, CONFIG, tables=False).scans) == 1


def test_a_part_of_several_data_sets_goes_where_all_of_it_would(source, tmp_path):
    copy = tmp_path / "other"
    for name in ("sub-0", "sub-1"):
        path = copy / name / "anat" / f"{name}_space-MNI152NLin6Asym_label-GM_probseg.nii.gz"
        path.parent.mkdir(parents=True)
        original = nib.load(source / name / "anat" / path.name)
        nib.save(nib.Nifti1Image(original.get_fdata(dtype=np.float32) * 0.9, original.affine), path)
    (copy / "participants.tsv").write_text("participant_id\tage\nsub-0\t20\nsub-1\t30\n")
    cohort = read_cohort([source, copy])
    done = prepare(select(cohort, ["other_sub-0"]), tmp_path / "out", CONFIG, tables=False)
    assert Path(done.scans["path"].iloc[0]).is_relative_to(tmp_path / "out" / "other" / "sub-0")


@pytest.mark.slow
def test_a_worker_killed_while_it_holds_a_scan_changes_nothing(source, at_once, tmp_path):
    distributed = pytest.importorskip("distributed")
    out = tmp_path / "out"
    with (
        scheduler_in(tmp_path) as (file, _),
        workers_for(file, 3),
        distributed.Client(scheduler_file=str(file)) as watcher,
        ThreadPoolExecutor(1) as pool,
    ):
        watcher.wait_for_workers(3, timeout=60)
        pids = watcher.run(os.getpid)
        running = pool.submit(prepare, read_cohort([source]), out, CONFIG, scheduler=str(file))
        victim = one_that_holds_a_scan(watcher, pids, running)
        os.kill(pids[victim], signal.SIGKILL)
        done = running.result(timeout=200)
        assert sorted(watcher.nthreads()) == sorted(set(pids) - {victim})
    assert list(done.excluded["scan_id"]) == ["sub-7"]
    assert_same(out, at_once)


def one_that_holds_a_scan(watcher, pids, running):
    """A worker that was stopped and still holds a scan: what is killed now is lost for certain."""
    while not running.done():
        for address in [address for address, held in watcher.processing().items() if held]:
            os.kill(pids[address], signal.SIGSTOP)
            time.sleep(0.3)
            if watcher.processing().get(address):
                return address
            os.kill(pids[address], signal.SIGCONT)
        time.sleep(0.01)
    raise AssertionError("all scans were done before a worker could be stopped")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_raw_heads_give_the_same_bytes_by_any_number_of_processes_and_by_a_cluster(tmp_path):
    for module in ("ants", "deepbet", "distributed"):
        pytest.importorskip(module)
    cohort = read_cohort([simulate(tmp_path / "heads", SimulationConfig(kind="t1", n_subjects=2, seed=1))])
    config = RecipeConfig(spacing_mm=4.0)
    for n_procs in (1, 2):
        prepare(cohort, tmp_path / str(n_procs), config, n_procs=n_procs)
    # With several threads each, were they left as they are.
    with scheduler_in(tmp_path) as (file, _), workers_for(file, 2, environment={"OMP_NUM_THREADS": "2"}):
        done = prepare(cohort, tmp_path / "cluster", config, scheduler=str(file))
    assert done.excluded.empty
    assert_same(tmp_path / "2", tmp_path / "1")
    assert_same(tmp_path / "cluster", tmp_path / "1")
    assert not list(tmp_path.glob("**/scan-*"))
