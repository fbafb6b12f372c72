import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager

import pytest

from nilatent.errors import SettingError
from nilatent.lock import LOCK_NAME, locked

HOLD = (
    "import sys\nfrom pathlib import Path\nfrom nilatent.lock import locked\n"
    "with locked(Path(sys.argv[1]), shared=sys.argv[2] == 'shared'):\n    print('held', flush=True)\n    sys.stdin.read()\n"
)


@contextmanager
def holder(folder, kind):
    """Another process that holds the folder until the block ends or it is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.communicate("")


@pytest.mark.parametrize(("kind", "ours"), [("alone", False), ("alone", True), ("shared", False)])
def test_a_held_folder_is_refused_and_the_holder_named(tmp_path, kind, ours):
    with (
        holder(tmp_path, kind) as process,
        pytest.raises(SettingError, match=rf"process {process.pid} on {socket.gethostname()} since \d+.*Wait until"),
        locked(tmp_path, shared=ours),
    ):
        pass
    with locked(tmp_path, shared=ours):
        pass


def test_those_that_share_work_side_by_side(tmp_path):
    with holder(tmp_path, "shared"), locked(tmp_path, shared=True):
        pass


def test_a_holder_that_was_killed_holds_nothing(tmp_path):
    with holder(tmp_path, "alone") as process:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        with locked(tmp_path):
            pass


def test_what_is_left_names_nobody_and_an_error_inside_lets_go(tmp_path):
    with pytest.raises(ValueError, match="inside"), locked(tmp_path / "new"):
        raise ValueError("inside")
    assert (tmp_path / "new" / LOCK_NAME).read_bytes() == b""
    with locked(tmp_path / "new"):
        pass


@pytest.mark.parametrize(
    ("since", "words"),
    [("2020-01-01T00:00:00+00:00", r" \(\d+ hours ago\)\. Wait"), ("2990-01-01T00:00:00+00:00", r"\. Wait")],
)
def test_the_age_of_a_lock_is_told_unless_the_clocks_disagree(tmp_path, since, words):
    with locked(tmp_path):
        (tmp_path / LOCK_NAME).write_text(f'{{"host": "here", "pid": 4711, "since": "{since}"}}')
        with (
            pytest.raises(SettingError, match=re.escape(f"process 4711 on here since {since}") + words),
            locked(tmp_path),
        ):
            pass
