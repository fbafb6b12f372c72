"""What is written to disk is BIDS: judged by the BIDS validator, and found again by pybids."""

import importlib.util
import json
import os
import subprocess
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from nilatent.cohort import read_cohort
from nilatent.preprocess import job, recipe
from nilatent.preprocess.config import RecipeConfig
from nilatent.preprocess.derivative import SPACE, Prepared
from nilatent.preprocess.recipe import prepare
from nilatent.provenance import read_json, write_json
from nilatent.simulate import SimulationConfig, simulate
from nilatent.volumes import Grid, template_array

# Of the libraries that read BIDS, not of what is tested here.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

GM = RecipeConfig(name="gm", spacing_mm=6.0, fwhm_mm=0.0)
T1 = RecipeConfig(name="t1", spacing_mm=6.0, fwhm_mm=8.0)
NOWHERE = "http://127.0.0.1:9"


def findings(folder: Path, severity: str = "error") -> list[tuple[str, str, str]]:
    """Code, place and detail of what the BIDS validator says of a folder; it can reach no network."""
    deno = importlib.import_module("deno").find_deno_bin()
    spec = importlib.util.find_spec("bids_validator_deno")
    validator = Path(spec.submodule_search_locations[0]) / "bids-validator.js"
    done = subprocess.run(
        [deno, "run", "--allow-read", "--allow-env", "--no-remote", validator, "--json", folder],
        capture_output=True,
        text=True,
        env=os.environ | {"HTTPS_PROXY": NOWHERE, "HTTP_PROXY": NOWHERE, "NO_COLOR": "1"},
        check=False,
    )
    told = json.loads(done.stdout)
    assert told["summary"]["schemaVersion"], done.stderr
    return [
        (issue["code"], str(issue.get("location")), f"{issue.get('subCode', '')} {issue.get('issueMessage', '')}")
        for issue in told["issues"]["issues"]
        if issue["severity"] == severity
    ]


def layout(folder: Path, **settings: object):
    """The folder as pybids sees it."""
    return importlib.import_module("bids").BIDSLayout(folder, validate=True, **settings)


def stand_in(scan, grid, *, path, work, modulation, normalisation) -> Prepared:
    """Files of the t1 recipe without its engines: the template's own maps."""
    maps = {name: template_array(name, grid.spacing_mm) for name in ("gm", "wm", "csf", "t1")}
    maps["t1w"] = maps.pop("t1")
    warp = nib.Nifti1Image(np.zeros((3, 3, 3, 1, 3), dtype=np.float32), np.eye(4))
    transforms = {f"from-T1w_to-{SPACE}_mode-image_xfm.txt": "#Insight Transform File V1.0\n"}
    transforms[f"from-T1w_to-{SPACE}_desc-warp_mode-image_xfm.nii.gz"] = warp
    notes = {"Modulated": modulation, "Normalisation": normalisation}
    tissues = (scan.data > scan.data.mean()).astype(np.uint8)
    return Prepared(maps, np.eye(4), {"gm_ml": 700.0}, notes, transforms, tissues)


@pytest.fixture
def heads(tmp_path) -> Path:
    """A raw data set of two people and two sessions each, small enough to be made for every test."""
    root = tmp_path / "raw"
    image = Grid.mni(6.0).to_image(template_array("t1", 6.0))
    for number in range(4):
        stem = f"sub-0{number // 2}", f"ses-0{number % 2}"
        path = root.joinpath(*stem, "anat", "_".join((*stem, "T1w.nii.gz")))
        path.parent.mkdir(parents=True)
        # No two alike: copies are left out.
        nib.save(nib.Nifti1Image(image.get_fdata(dtype=np.float32) + number / 100, image.affine, image.header), path)
        path.with_name(path.name.replace(".nii.gz", ".json")).write_text("{}")
    write_json(root / "dataset_description.json", {"Name": "raw", "BIDSVersion": "1.10.0", "DatasetType": "raw"})
    (root / "README").write_text("Made by a test: the template, four times. " * 5)
    return root


@pytest.fixture(scope="session")
def simulated(tmp_path_factory) -> dict[str, Path]:
    """Maps and heads, over sessions and sites."""
    root = tmp_path_factory.mktemp("simulated")
    several = {"n_subjects": 3, "n_sessions": 2, "n_sites": 2}
    return {
        "maps": simulate(root / "maps", SimulationConfig(spacing_mm=6.0, n_subjects=2)),
        "visits": simulate(root / "visits", SimulationConfig(spacing_mm=5.5, **several)),
        "heads": simulate(root / "heads", SimulationConfig(kind="t1", native_spacing_mm=4.0, n_subjects=1)),
    }


@pytest.fixture
def without_engines(monkeypatch):
    monkeypatch.setattr(job, "prepare_t1", stand_in)
    monkeypatch.setattr(recipe.workers, "run_jobs", _in_threads)


def _in_threads(work, jobs, *, n_procs, apart, run=recipe.workers.run_jobs):
    return partial(run, work, jobs, n_procs=n_procs, apart=False)()


@pytest.mark.parametrize("name", ["maps", "visits", "heads"])
def test_simulated_data_sets_are_valid(simulated, name):
    assert findings(simulated[name]) == []


def test_the_validator_sees_a_fault(simulated, tmp_path):
    prepare(read_cohort([simulated["maps"]]), tmp_path / "out", GM)
    image = next((tmp_path / "out").rglob("*probseg.nii.gz"))
    image.rename(image.with_name(image.name.replace("_res-6", "_resolution-6")))
    codes = {code for code, _, _ in findings(tmp_path / "out")}
    assert codes & {"NOT_INCLUDED", "ENTITY_NOT_IN_RULE", "ENTITY_WITH_NO_LABEL", "ALL_FILENAME_RULES_HAVE_ISSUES"}


@pytest.mark.parametrize("name", ["maps", "visits"])
def test_prepared_maps_are_valid_and_found_by_entity(simulated, tmp_path, name):
    cohort = read_cohort([simulated[name]])
    done = prepare(cohort, tmp_path / "out", GM)
    assert findings(tmp_path / "out") == []
    found = layout(tmp_path / "out", is_derivative=True)
    maps = found.get(
        label="GM", space=SPACE, res="6", desc="given", suffix="probseg", extension=".nii.gz", return_type="filename"
    )
    assert sorted(maps) == sorted(done.scans["path"])
    assert found.get(label="WM") == []
    assert found.get_subjects() == sorted({text.removeprefix("sub-") for text in cohort.scans["subject_id"]})
    first = found.get(label="GM", extension=".nii.gz")[0]
    assert first.get_metadata()["Resolution"] == "6 mm isotropic"


def test_several_data_sets_are_valid_each_and_together(simulated, tmp_path):
    prepare(read_cohort([simulated["maps"], simulated["visits"]]), tmp_path / "out", GM)
    for folder in (tmp_path / "out", tmp_path / "out" / "maps", tmp_path / "out" / "visits"):
        assert findings(folder) == [], folder.name
    table = pd.read_csv(tmp_path / "out" / "visits" / "participants.tsv", sep="\t")
    assert list(table["participant_id"]) == ["sub-001", "sub-002", "sub-003"]


@pytest.mark.parametrize("target", ["gm", "t1w"])
def test_what_the_t1_recipe_writes_is_valid_and_found_by_entity(heads, tmp_path, without_engines, target):
    cohort = read_cohort([heads], suffix="T1w")
    config = RecipeConfig(name="t1", spacing_mm=6.0, fwhm_mm=8.0, target=target)
    done = prepare(cohort, tmp_path / "out", config)
    assert done.excluded.empty
    assert findings(tmp_path / "out") == []
    assert [place for code, place, _ in findings(tmp_path / "out", "warning") if code == "NIFTI_UNIT"] == []
    found = layout(tmp_path / "out", is_derivative=True)
    for label in ("GM", "WM", "CSF"):
        maps = found.get(label=label, space=SPACE, desc="modulatedSmooth8", suffix="probseg", extension=".nii.gz")
        assert [image.entities["subject"] + image.entities["session"] for image in maps] == [
            "0000",
            "0001",
            "0100",
            "0101",
        ]
    brains = found.get(suffix="T1w", space=SPACE, desc="preproc", extension=".nii.gz")
    assert all(image.get_metadata()["SkullStripped"] is True for image in brains)
    assert len(brains) == len(found.get(suffix="dseg", space="orig", extension=".nii.gz")) == 4
    assert len(found.get(suffix="xfm", extension=".txt", **{"from": "T1w", "to": SPACE, "mode": "image"})) == 4


def test_a_derivative_inside_its_source_is_valid_with_it(heads, without_engines):
    out = heads / "derivatives" / "nilatent"
    prepare(read_cohort([heads], suffix="T1w"), out, T1)
    assert findings(heads) == []
    assert findings(out) == []
    assert read_json(out / "dataset_description.json")["DatasetLinks"] == {"raw": "../.."}
    both = layout(heads, derivatives=out)
    scan = both.get(scope="raw", subject="01", session="01", suffix="T1w", extension=".nii.gz")[0]
    grey = both.get(scope="derivatives", subject="01", session="01", label="GM", extension=".nii.gz")[0]
    # A source of another data set is named by a BIDS URI: the link of its name, and the path in it.
    _, name, inside = grey.get_metadata()["Sources"][0].split(":")
    link = read_json(out / "dataset_description.json")["DatasetLinks"][name]
    assert (out / link / inside).resolve() == Path(scan.path).resolve()


def test_variables_that_contradict_their_description_are_written_validly(simulated, tmp_path):
    """Levels in another case, ages over the limit, codes beside missing values: real sources have them all."""
    source = simulate(tmp_path / "source", SimulationConfig(spacing_mm=6.0, n_subjects=3))
    path = source / "participants.tsv"
    people = pd.read_csv(path, sep="\t", dtype=str)
    people = people.assign(gender=["m", "f", "x"], age=["92", "30.5", "n/a"], code=["1", "n/a", "2"], free="text, more")
    people.to_csv(path, sep="\t", index=False, na_rep="n/a")
    described = read_json(source / "participants.json") | {
        "age": {"Units": "years", "Format": "integer", "Maximum": 89},
        "gender": {"Description": "Gender", "Levels": {"M": "male", "F": "female"}},
        "code": {"Description": "Code", "Levels": {"1": "one", "2": "two"}},
    }
    (source / "participants.json").write_text(json.dumps(described))
    assert {code for code, _, _ in findings(source)} == {"TSV_VALUE_INCORRECT_TYPE"}
    prepare(read_cohort([source]), tmp_path / "out", GM)
    assert findings(tmp_path / "out") == []
    again = pd.read_csv(tmp_path / "out" / "participants.tsv", sep="\t", dtype=str, keep_default_na=False)
    pd.testing.assert_frame_equal(again[["age", "code", "free"]], people[["age", "code", "free"]], check_dtype=False)
    levels = read_json(tmp_path / "out" / "participants.json")["gender"]["Levels"]
    assert levels == {"M": "male", "F": "female", "m": "male", "f": "female", "x": "x"}


@pytest.mark.slow
def test_the_real_t1_recipe_writes_a_valid_data_set(tmp_path):
    pytest.importorskip("ants")
    heads = simulate(tmp_path / "heads", SimulationConfig(kind="t1", n_subjects=1))
    done = prepare(read_cohort([heads], suffix="T1w"), tmp_path / "out", T1)
    assert done.excluded.empty
    assert findings(tmp_path / "out") == []
    found = layout(tmp_path / "out", is_derivative=True)
    assert len(found.get(label="GM", space=SPACE, res="6", suffix="probseg", extension=".nii.gz")) == 1
