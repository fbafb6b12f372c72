"""The command of a container, as BIDS Apps are called."""

import json
from pathlib import Path

import numpy as np
import pytest
from nibabel import Nifti1Image
from typer.testing import CliRunner, Result

import nilatent
from nilatent import cli, pipeline
from nilatent.preprocess import recipe

ALL = {"sub-01", "sub-02", "sub-03"}


@pytest.fixture
def bids(tmp_path: Path) -> Path:
    folder = tmp_path / "bids"
    for number, name in enumerate(sorted(ALL)):
        for session in ("ses-1", "ses-2"):
            place = folder / name / session / "anat"
            place.mkdir(parents=True)
            values = np.full((5, 7, 3), number + (session == "ses-2") / 2, np.float32)
            Nifti1Image(values, np.eye(4)).to_filename(place / f"{name}_{session}_T1w.nii.gz")
    (folder / "dataset_description.json").write_text('{"Name": "three", "BIDSVersion": "1.10.0"}')
    return folder


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """What would have been prepared, where and how; and what would have been run."""
    made: list[tuple] = []

    def prepare(cohort, out, config, *, n_procs, tables):
        made.append(("prepare", set(cohort.scans.index), out, config, n_procs, tables))
        return cohort

    def run(sources, out, config, *, n_procs):
        made.append(("run", list(sources), out, config, n_procs))
        return pipeline.Outcome(out / "report.html", 6, nilatent.read_cohort(sources).excluded)

    monkeypatch.setattr(recipe, "prepare", prepare)
    monkeypatch.setattr(pipeline, "run", run)
    return made


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, ["bids-app", *map(str, arguments)])


@pytest.mark.parametrize(
    ("given", "subjects"),
    [
        ([], ALL),
        (["--participant_label", "01", "02"], {"sub-01", "sub-02"}),
        (["--participant-label", "sub-01,03"], {"sub-01", "sub-03"}),
        (["--participant_label", "02", "--participant_label", "03"], {"sub-02", "sub-03"}),
    ],
)
def test_participants_are_prepared_where_the_group_level_looks(bids, tmp_path, calls, given, subjects):
    done = call(bids, tmp_path / "out", "participant", *given, "--n-procs", "1", "--preset", "cpu")
    assert done.exit_code == 0, done.output
    ((what, scans, out, config, n_procs, tables),) = calls
    assert (what, out, config.spacing_mm, n_procs, tables) == ("prepare", tmp_path / "out" / "prepared", 3.0, 1, False)
    assert scans == {f"{name}_{session}" for name in subjects for session in ("ses-1", "ses-2")}


def test_one_session_alone(bids, tmp_path, calls):
    assert call(bids, tmp_path / "out", "participant", "--session_label", "2").exit_code == 0
    assert calls[0][1] == {f"{name}_ses-2" for name in ALL}


def test_the_group_level_runs_the_river_with_the_settings_of_the_participants(bids, tmp_path, calls):
    settings = tmp_path / "study.toml"
    settings.write_text("[recipe]\nspacing_mm = 5.0\n")
    for level in ("participant", "group"):
        assert call(bids, tmp_path / "out", level, "--config", settings, "--seed", "7").exit_code == 0
    (_, _, _, recipe_of_parts, *_), (what, sources, out, config, _) = calls
    assert (what, sources, out, config.seed) == ("run", [bids], tmp_path / "out", 7)
    assert config.recipe == recipe_of_parts
    assert config.recipe.spacing_mm == 5.0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["group", "--participant_label", "01"], "all participants"),
        (["participant", "01"], "belongs to no option"),
        (["participant", "--participant_label", "01", "--session_label", "1", "2"], "belongs to no option"),
        (["participant", "--participant-labels", "01"], "No such option"),
        (["session"], "session"),
    ],
)
def test_what_cannot_be_meant_is_refused(bids, tmp_path, calls, arguments, words):
    done = call(bids, tmp_path / "out", *arguments)
    assert (done.exit_code, calls) == (2, [])
    assert words in " ".join(done.output.replace("│", " ").split())


@pytest.mark.parametrize(
    "content",
    [None, "[]", "{", json.dumps({"Name": "x"}), 10_000 * "["],
    ids=["absent", "list", "torn", "lacks", "deep"],
)
def test_a_folder_that_does_not_say_it_is_bids_needs_the_flag(bids, tmp_path, calls, content):
    place = bids / "dataset_description.json"
    place.unlink()
    if content is not None:
        place.write_text(content)
    refused = call(bids, tmp_path / "out", "participant")
    assert (refused.exit_code, calls) == (2, [])
    assert "--skip-bids-validation" in refused.output
    assert call(bids, tmp_path / "out", "participant", "--skip_bids_validation").exit_code == 0
    assert len(calls) == 1


def test_it_says_its_version():
    done = call("--version")
    assert (done.exit_code, done.output.strip()) == (0, nilatent.__version__)
