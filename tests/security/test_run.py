"""A whole study under an audit hook of Python: nothing unpickles, starts a program, connects, or runs code from a text."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HOOK = Path(__file__).with_name("audited.py")
SETTINGS = """
seed = 1
[recipe]
spacing_mm = 6.0
[model]
n_latent = 4
channels = [4, 8]
[training]
n_epochs = 2
[projections]
methods = ["pca", "pls"]
n_permutations = 99
[lrcp]
n_permutations = 99
[error_profile]
models = ["ridge"]
n_permutations = 99
[prediction]
n_permutations = 19
n_bootstrap = 100
"""
STUDY = ("--group", "group", "--contrast", "patient:control", "--covariates", "age,sex", "--n-procs", "1")


def python(code: str, *arguments: object) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code, *map(str, arguments)], check=True, env=environment, capture_output=True)


def test_the_hook_sees_what_it_must(tmp_path: Path):
    """Otherwise its silence would say nothing."""
    ours = HOOK.parents[2] / "src" / "nilatent" / "planted.py"
    planted = "import pickle, collections; pickle.loads(pickle.dumps(collections.Counter())); exec('1')"
    python(
        f"import sys; sys.path.insert(0, {str(HOOK.parent)!r}); import audited, pathlib, pickle, socket, subprocess\n"
        "audited.watch(pathlib.Path(sys.argv[1]))\n"
        "subprocess.run(['true'])\n"
        "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(('127.0.0.1', 9))\n"
        f"exec(compile({planted!r}, {str(ours)!r}, 'exec'))\n",
        tmp_path / "events.tsv",
    )
    seen = [line.split("\t") for line in (tmp_path / "events.tsv").read_text().splitlines()]
    assert [(event, place) for event, _, place in seen] == [
        ("subprocess.Popen", "-"),
        ("socket.connect", "-"),
        ("pickle.find_class", "/planted.py:1"),
        ("compile", "/planted.py:1"),
        ("exec", "/planted.py:1"),
    ]


@pytest.mark.slow
def test_a_study_unpickles_nothing_starts_nothing_and_connects_nowhere(tmp_path: Path):
    (tmp_path / "small.toml").write_text(SETTINGS)
    command = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    source, events = tmp_path / "source", tmp_path / "events.tsv"
    python(command, HOOK, events, "simulate", source, "--n-subjects", 24, "--spacing-mm", 6, "--n-procs", 1)
    python(command, HOOK, events, "run", source, tmp_path / "out", "--config", tmp_path / "small.toml", *STUDY)
    assert (tmp_path / "out" / "report.html").is_file()
    assert events.read_text() == ""
