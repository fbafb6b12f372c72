"""Tables, names and folders that were made to lead out of the output folder, or to show what lies elsewhere."""

import os
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from nilatent.cohort import read_cohort, write_cohort
from nilatent.errors import NilatentError
from nilatent.grid import Grid, template_array
from nilatent.preprocess.config import RecipeConfig
from nilatent.preprocess.recipe import prepare
from nilatent.provenance import file_stems
from nilatent.tables import read_tsv
from nilatent.training.checkpoint import load_model
from nilatent.training.stored import ModelError

SAFE = re.compile(r"[A-Za-z0-9_-]+")
NAMES = (
    "../../outside",
    "/absolute",
    "..",
    "a/../../b",
    "C:\\outside",
    "sub-../x",
    "~root",
    "$(touch x)",
    "`id`",
    "con\u202efdp.exe",
    "-rf",
)


@pytest.fixture
def table(tmp_path: Path, rng: np.random.Generator) -> Path:
    """A table of good images whose subjects and sessions have such names."""
    grid = Grid.mni(6.0)
    lines = ["path\tparticipant_id\tsession_id"]
    for index, name in enumerate(NAMES):
        image = tmp_path / f"image_{index}.nii.gz"
        values = template_array("gm", 6.0) * np.float32(1 - index / 50)
        nib.save(grid.to_image(values), image)
        lines.append(f"{image.name}\tp{index}{name}\t{name}")
    place = tmp_path / "table.tsv"
    place.write_text("\n".join(lines), encoding="utf-8")
    return place


def test_no_name_of_a_table_leads_out_of_the_folder(table: Path):
    cohort = read_cohort([table])
    assert len(cohort.scans) + len(cohort.excluded) == len(NAMES)
    assert len(cohort.scans) > 8
    for name in [*cohort.scans.index, *cohort.scans["subject_id"], *cohort.scans["dataset"]]:
        assert SAFE.fullmatch(name), name


@pytest.mark.slow
def test_what_is_prepared_lies_in_the_folder_that_was_named(table: Path, tmp_path: Path):
    before = set(tmp_path.rglob("*"))
    out = tmp_path / "out"
    done = prepare(read_cohort([table]), out, RecipeConfig(name="gm", spacing_mm=6.0, fwhm_mm=0.0), n_procs=1)
    assert len(done.scans) > 8
    made = set(tmp_path.rglob("*")) - before
    assert {path for path in made if not path.is_relative_to(out)} == set()
    assert all(Path(path).resolve().is_relative_to(out.resolve()) for path in done.scans["path"])


def test_files_that_a_table_names_anywhere_are_read_as_images_and_never_shown(tmp_path: Path):
    """Paths may be absolute or lead upwards: studies lie on several disks. What is no image is left out, and not quoted."""
    inner = tmp_path / "study" / "table"
    inner.mkdir(parents=True)
    (tmp_path / "secret.txt").write_text("the password is swordfish")
    image = Grid.mni(6.0).to_image(template_array("gm", 6.0))
    nib.save(image, tmp_path / "scan.nii.gz")
    rows = [("a", "../../secret.txt"), ("b", str(tmp_path / "secret.txt")), ("c", "../../scan.nii.gz"), ("d", "/etc")]
    place = inner / "table.tsv"
    place.write_text("participant_id\tpath\n" + "\n".join("\t".join(row) for row in rows))
    cohort = read_cohort([place])
    done = prepare(cohort, tmp_path / "out", RecipeConfig(name="gm", spacing_mm=6.0, fwhm_mm=0.0), n_procs=1)
    assert list(done.scans.index) == ["sub-c"]
    assert set(done.excluded["scan_id"]) == {"sub-a", "sub-b", "sub-d"}
    write_cohort(done, tmp_path / "out")
    told = [path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert not any(b"swordfish" in content for content in told)


def test_names_of_groups_and_targets_become_file_names_and_no_paths():
    stems = file_stems([*NAMES, "a\x00b", "", ".", "/", "a" * 500])
    assert all(SAFE.fullmatch(stem) and len(stem) <= 83 for stem in stems.values())
    assert len({stem.lower() for stem in stems.values()}) == len(stems)


@pytest.mark.parametrize(
    "cell", ["=cmd|' /C calc'!A0", "<script>alert(1)</script>", "{{ 7*7 }}", "\x1b[2J", "http://127.0.0.1:9/x"]
)
def test_a_cell_stays_a_text(tmp_path: Path, cell: str):
    (tmp_path / "t.csv").write_text(f'a,b\n"{cell}",1\n', encoding="utf-8")
    assert read_tsv(tmp_path / "t.csv").iloc[0]["a"] == cell.strip()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder of an older version, as it is kept for tests."""
    kept = Path(__file__).parents[1] / "training" / "data"
    made = next(path.parent for path in sorted(kept.rglob("config.toml")))
    return Path(shutil.copytree(made, tmp_path / "model"))


def test_the_model_folder_of_these_tests_is_a_good_one(folder: Path):
    assert load_model(folder).result


@pytest.mark.parametrize("name", ["config.toml", "grid.json", "result.json", "subjects.tsv", "weights.safetensors"])
def test_a_link_out_of_a_model_folder_shows_nothing_of_what_it_leads_to(folder: Path, tmp_path: Path, name: str):
    """Links are followed, since git-annex keeps weights behind them; what is there is read as weights, and not quoted."""
    (tmp_path / "secret").write_text("password: swordfish\nroot:x:0:0\n")
    (folder / name).unlink()
    (folder / name).symlink_to(tmp_path / "secret")
    with pytest.raises(ModelError) as refused:
        load_model(folder)
    assert "swordfish" not in str(refused.value)
    assert (tmp_path / "secret").read_text().startswith("password")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
def test_pipes_and_devices_in_a_model_folder_are_not_opened(folder: Path):
    (folder / "weights.safetensors").unlink()
    os.mkfifo(folder / "weights.safetensors")
    with pytest.raises(ModelError, match=r"lacks weights\.safetensors"):
        load_model(folder)
    (folder / "weights.safetensors").unlink()
    (folder / "weights.safetensors").symlink_to("/dev/zero")
    with pytest.raises(ModelError, match=r"lacks weights\.safetensors"):
        load_model(folder)


def weights(header: bytes, claimed: int | None = None) -> bytes:
    return (len(header) if claimed is None else claimed).to_bytes(8, "little") + header


@pytest.mark.parametrize(
    "content",
    [
        weights(b'{"x":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}'),
        weights(b'{"anchor.mask":{"dtype":"F32","shape":[1099511627776,1099511627776],"data_offsets":[0,0]}}'),
        weights(b'{"anchor.mask":{"dtype":"F32","shape":[1152921504606846976,0],"data_offsets":[0,0]}}'),
        weights(b"{}", claimed=2**63),
        weights(b'{"x":' + b"[" * 100_000),
        weights(b'{"x":{"dtype":"PY","shape":[1],"data_offsets":[0,4]}}') + bytes(4),
        b"\x80\x04\x95cos\nsystem\n",
    ],
    ids=["huge", "overflow", "empty and huge", "long header", "deep header", "unknown type", "pickle"],
)
def test_weights_that_claim_what_they_are_not_are_refused(folder: Path, content: bytes):
    (folder / "weights.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match="damaged"):
        load_model(folder)


def test_a_scan_list_of_a_stranger_is_read_as_a_table(tmp_path: Path):
    """Whatever stands in ``scans.tsv`` of a folder that was passed on: text, and never code or an address."""
    frame = pd.DataFrame(
        {"path": ["http://127.0.0.1:9/x.nii.gz", "s3://bucket/x.nii.gz"], "participant_id": ["a", "b"]}
    )
    frame.to_csv(tmp_path / "t.tsv", sep="\t", index=False)
    with pytest.raises(NilatentError, match="does not exist"):
        read_cohort([tmp_path / "t.tsv"])
