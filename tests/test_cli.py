import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nilatent import cli
from nilatent.cli import options, scans

COMMANDS = ("demo", "run", "simulate", "prepare", "train", "search", "encode", "analyse", "report", "doctor")


def test_help_is_there_without_loading_numbers_or_networks():
    code = (
        "import sys; sys.argv = ['nilatent', '--help']\n"
        "from nilatent.cli import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert stop.code == 0\n"
        "heavy = {'torch', 'numpy', 'pandas', 'matplotlib', 'nibabel', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert [name for name in COMMANDS if not re.search(rf"│ {name} ", shown)] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_of_every_command_is_explained(command: str):
    registered = next(entry for entry in cli.app.registered_commands if entry.callback.__name__ == command)
    assert registered.callback.__doc__
    result = CliRunner().invoke(cli.app, [command, "--help"])
    assert result.exit_code == 0


def test_errors_that_the_user_can_mend_come_without_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys, "argv", ["nilatent", "report", str(tmp_path / "absent")])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == options.BAD_USAGE
    said = capsys.readouterr().err
    assert "absent" in said
    assert "Traceback" not in said


def test_failed_scans_are_listed_and_those_the_user_left_out_are_not(capsys: pytest.CaptureFixture[str]):
    import pandas as pd
    import typer

    rows = [("sub-1", "study", "left out by the user", "Listed."), ("sub-2", "prepare", "4D", "Split it.")]
    excluded = pd.DataFrame(rows, columns=["scan_id", "stage", "rule", "reason"])
    with pytest.raises(typer.Exit) as stop:
        options.list_failures(5, excluded)
    assert stop.value.exit_code == options.SOME_FAILED
    said = capsys.readouterr().err
    assert "sub-2 [prepare, 4D]: Split it." in said
    assert "sub-1" not in said
    options.list_failures(5, excluded.iloc[:1])


def test_a_place_that_cannot_be_written_comes_without_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(sys, "argv", ["nilatent", "simulate", str(tmp_path / "file" / "out"), "--n-subjects", "2"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == options.BAD_USAGE
    assert "is writable" in capsys.readouterr().err


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Call `nilatent prepare` on three subjects; gives the exit, what was said, and what would have been prepared how."""
    from nilatent.cohort import exclude
    from nilatent.preprocess import recipe

    source = tmp_path / "study"
    for number in (1, 2, 3):
        for session in ("a", "b"):
            stem = f"sub-0{number}_ses-{session}"
            path = source / f"sub-0{number}" / f"ses-{session}" / "anat" / f"{stem}_T1w.nii.gz"
            path.parent.mkdir(parents=True)
            path.write_bytes(stem.encode())
    (source / "participants.tsv").write_text("participant_id\nsub-01\nsub-02\nsub-03\n")
    calls = []

    def prepare(cohort, out, config, *, n_procs, scheduler, tables):
        calls.append({"cohort": cohort, "config": config, "n_procs": n_procs, "dask": scheduler, "tables": tables})
        broken = {"scan_id": "sub-03_ses-b", "stage": "prepare", "rule": "readable", "reason": "Look at it."}
        return exclude(cohort, [broken]) if broken["scan_id"] in cohort.scans.index else cohort

    def call(*arguments: str):
        calls.clear()
        done = CliRunner().invoke(cli.app, ["prepare", str(source), str(tmp_path / "out"), *arguments])
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        # An error of usage stands in a box whose lines break anywhere.
        return done.exit_code, " ".join(re.sub("[│\\s]+", " ", done.stderr).split()), calls[0] if calls else {}

    monkeypatch.setattr(recipe, "prepare", prepare)
    monkeypatch.setattr(scans, "_quality_page", lambda *_: None)
    return call


@pytest.mark.parametrize(
    ("flags", "changed"),
    [
        ((), {}),
        (("--recipe", "t1"), {"name": "t1"}),
        (("--spacing-mm", "2"), {"spacing_mm": 2.0}),
        (("--fwhm-mm", "0"), {"fwhm_mm": 0.0}),
        (("--no-modulation",), {"modulation": False}),
        (("--modulation",), {"modulation": True}),
        (("--normalisation", "syn"), {"normalisation": "syn"}),
        (("--target", "t1w"), {"target": "t1w"}),
    ],
)
def test_every_flag_of_prepare_reaches_the_recipe(prepared, flags: tuple[str, ...], changed: dict[str, object]):
    from nilatent.config import read_config

    assert prepared(*flags)[2]["config"] == replace(read_config().recipe, **changed)


def test_prepare_says_by_its_exit_whether_all_scans_went_through(prepared, tmp_path: Path):
    code, said, call = prepared()
    assert code == options.SOME_FAILED
    assert "sub-03_ses-b [prepare, readable]: Look at it." in said
    assert len(call["cohort"].scans) == 6
    assert call["tables"]
    assert (tmp_path / "out" / "scans.tsv").is_file()
    assert prepared("--participant-label", "01")[0] == options.DONE
    assert prepared("--no-such-flag")[0] == options.BAD_USAGE


@pytest.mark.parametrize(
    ("labels", "scans"),
    [
        (("--participant-label", "02"), ["sub-02_ses-a", "sub-02_ses-b"]),
        (("--participant-label", "sub-02", "--session-label", "b"), ["sub-02_ses-b"]),
        (("--session-label", "ses-a"), ["sub-01_ses-a", "sub-02_ses-a", "sub-03_ses-a"]),
        (("--participant-label", "01 03", "--session-label", "a"), ["sub-01_ses-a", "sub-03_ses-a"]),
        (
            ("--participant-label", "01,02", "--participant-label", "03", "--session-label", "a"),
            ["sub-01_ses-a", "sub-02_ses-a", "sub-03_ses-a"],
        ),
    ],
)
def test_a_part_is_prepared_without_tables_of_the_whole(
    prepared, tmp_path: Path, labels: tuple[str, ...], scans: list[str]
):
    _, said, call = prepared(*labels)
    assert list(call["cohort"].scans.index) == scans
    assert not call["tables"]
    assert not (tmp_path / "out" / "scans.tsv").exists()
    assert "without labels" in said


def test_an_unknown_label_names_the_nearest(
    prepared, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    given = ["nilatent", "prepare", str(tmp_path / "study"), str(tmp_path / "out"), "--participant-label", "4"]
    monkeypatch.setattr(sys, "argv", given)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == options.BAD_USAGE
    assert "no subject 'sub-4' among 3. Did you mean sub-0" in capsys.readouterr().err


def test_processes_here_or_a_cluster_elsewhere(prepared, monkeypatch: pytest.MonkeyPatch):
    from nilatent.preprocess import workers

    monkeypatch.setattr(workers, "fitting_processes", lambda: 7)
    assert [prepared()[2][name] for name in ("n_procs", "dask")] == [7, ""]
    assert [prepared("--n-procs", "3")[2][name] for name in ("n_procs", "dask")] == [3, ""]
    assert prepared("--dask", "tcp://host:8786")[2]["dask"] == "tcp://host:8786"
    code, said, call = prepared("--dask", "tcp://host:8786", "--n-procs", "3")
    assert (code, call) == (options.BAD_USAGE, {})
    assert "Give one of the two" in said
    assert prepared("--n-procs", "-1")[0] == options.BAD_USAGE


def test_every_flag_of_simulate_reaches_the_simulation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from nilatent import simulate

    asked = []
    monkeypatch.setattr(simulate, "simulate", lambda out, settings, **_: asked.append(settings) or out)
    flags = {"n-subjects": 9, "n-sessions": 2, "n-sites": 3, "spacing-mm": 5.0, "n-causes": 4, "group-fraction": 0.2}
    flags |= {"ventricles-mm": 2.0, "patient-head-size": 0.9, "follow-up-years": 4.0, "seed": 8}
    given = [f"--{name}={value}" for name, value in flags.items()]
    planted = ["--region", "Caudate_L=0.3", "--region", "Caudate_R=0.2"]
    done = CliRunner().invoke(cli.app, ["simulate", str(tmp_path / "a"), *given, *planted])
    assert done.exit_code == 0, done.output
    for name, value in flags.items():
        assert getattr(asked[0], name.replace("-", "_")) == value
    assert (asked[0].regions, asked[0].losses) == (("Caudate_L", "Caudate_R"), (0.3, 0.2))
    assert CliRunner().invoke(cli.app, ["simulate", str(tmp_path / "a"), "--region", "Caudate_L"]).exit_code == 2


def test_modalities_and_tables_reach_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import pandas as pd

    from nilatent import pipeline

    asked = []
    without = pd.DataFrame([("sub-1", "flair", "one image", "4D.")], columns=["scan_id", "modality", "rule", "reason"])

    def run(sources, out, settings, **_):
        asked.append(settings.study)
        return pipeline.Outcome(out / "report.html", 3, pd.DataFrame(columns=["stage"]), without)

    monkeypatch.setattr(pipeline, "run", run)
    given = ["--modality", "flair=FLAIR", "--modality", "wm = WM", "--table", "scores=BDI, RRS-sum", "--n-procs", "1"]
    done = CliRunner().invoke(cli.app, ["run", str(tmp_path), str(tmp_path / "out"), *given])
    assert asked[0].modalities == {"flair": "FLAIR", "wm": "WM"}
    assert asked[0].tables == {"scores": ("BDI", "RRS-sum")}
    assert done.exit_code == options.SOME_FAILED
    assert "sub-1 [flair, one image]: 4D." in done.output


@pytest.mark.parametrize(
    "given",
    [
        ["--modality", "FLAIR"],
        ["--modality", "a=X", "--modality", "a=Y"],
        ["--table", "scores="],
        ["--table", "a=X", "--table", "a=Y"],
    ],
)
def test_modalities_that_cannot_be_read_are_bad_usage(tmp_path: Path, given: list[str]):
    done = CliRunner().invoke(cli.app, ["run", str(tmp_path), str(tmp_path / "out"), *given])
    assert done.exit_code == options.BAD_USAGE
    assert "NAME=" in done.output


def test_what_is_generated_across_is_what_was_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from nilatent import across

    asked = []

    def predict_across(run, target, **given):
        asked.append((run, target, given))
        return tmp_path / "made"

    monkeypatch.setattr(across, "predict_across", predict_across)
    flags = ["--from", "wm,scores", "--scans", "sub-1", "--scans", "sub-2", "-o", str(tmp_path / "made")]
    done = CliRunner().invoke(cli.app, ["generate", "across", "run", "gm", *flags])
    assert done.exit_code == 0
    wanted = {"use": ["wm", "scores"], "scans": ["sub-1", "sub-2"], "out": tmp_path / "made"}
    assert asked == [(Path("run"), "gm", wanted)]
