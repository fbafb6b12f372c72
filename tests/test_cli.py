import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nilatent import cli

COMMANDS = ("demo", "run", "simulate", "prepare", "train", "encode", "analyse", "report", "doctor")


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
    assert stop.value.code == cli.BAD_USAGE
    said = capsys.readouterr().err
    assert "absent" in said
    assert "Traceback" not in said


def test_failed_scans_are_listed_and_those_the_user_left_out_are_not(capsys: pytest.CaptureFixture[str]):
    import pandas as pd
    import typer

    rows = [("sub-1", "study", "left out by the user", "Listed."), ("sub-2", "prepare", "4D", "Split it.")]
    excluded = pd.DataFrame(rows, columns=["scan_id", "stage", "rule", "reason"])
    with pytest.raises(typer.Exit) as stop:
        cli._close(5, excluded)
    assert stop.value.exit_code == cli.SOME_FAILED
    said = capsys.readouterr().err
    assert "sub-2 [prepare, 4D]: Split it." in said
    assert "sub-1" not in said
    cli._close(5, excluded.iloc[:1])


def test_a_place_that_cannot_be_written_comes_without_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(sys, "argv", ["nilatent", "simulate", str(tmp_path / "file" / "out"), "--n-subjects", "2"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == cli.BAD_USAGE
    assert "is writable" in capsys.readouterr().err
