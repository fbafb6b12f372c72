"""What the house rules forbid, checked by a machine: import directions are import-linter's, the rest is here."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import nilatent

SOURCE = Path(nilatent.__file__).parent
MODULES = sorted(SOURCE.rglob("*.py"))
PACKAGE_FILES = sorted(path for path in SOURCE.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
TEXT = {".py", ".j2", ".css", ".js", ".json", ".toml", ".typed", ""}
HEAVY = ("torch", "matplotlib", "sklearn", "nilearn")
MACHINE = re.compile(
    r"(?<![\w.])/(work|home|Users|root|mnt|media|scratch|tmp)/|[A-Z]:\\\\|file://", flags=re.IGNORECASE
)


def forbidden(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            for name in names:
                if name.split(".")[0] in {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "requests"}:
                    yield node.lineno, f"imports {name}"
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in {
                "eval",
                "exec",
                "compile",
                "__import__",
                "os.system",
                "os.popen",
                "joblib.load",
                "joblib.dump",
            }:
                yield node.lineno, f"calls {called}"
            for keyword in node.keywords:
                value = getattr(keyword.value, "value", None)
                if (keyword.arg, value) in {("shell", True), ("allow_pickle", True), ("weights_only", False)}:
                    yield node.lineno, f"{keyword.arg}={value}"
            if called.endswith("torch.load") and not any(keyword.arg == "weights_only" for keyword in node.keywords):
                yield node.lineno, "torch.load without weights_only=True"


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from pickle import load",
        "eval('1')",
        "import subprocess\nsubprocess.run('ls', shell=True)",
        "np.load(x, allow_pickle=True)",
        "torch.load(path)",
    ],
)
def test_the_walk_finds_what_it_must(text):
    assert list(forbidden(ast.parse(text)))


def test_the_walk_lets_the_harmless_pass():
    assert not list(forbidden(ast.parse("model.eval()\nnp.load(x, allow_pickle=False)\nre.compile('a')")))


def test_no_pickle_no_eval_no_shell():
    assert len(MODULES) > 10
    found = [
        f"{path.relative_to(SOURCE)}:{line} {what}"
        for path in MODULES
        for line, what in forbidden(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert found == []


@pytest.mark.parametrize("module", ["nilatent", *(["nilatent.cli"] if (SOURCE / "cli").exists() else [])])
def test_importing_is_light(module):
    script = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert module in loaded
    assert not loaded & set(HEAVY)


def test_no_file_is_named_for_being_useful():
    bad = {"utils", "util", "helpers", "helper", "common", "misc", "tools", "base", "core"}
    assert [path for path in SOURCE.rglob("*") if path.stem.strip("_") in bad and path.name != "base.html.j2"] == []


@pytest.mark.parametrize("text", ["/home/anna/x", "'/mnt/data'", "C:\\\\Users", "file:///x", "(/Users/x/y)"])
def test_a_path_of_a_machine_would_be_seen(text):
    assert MACHINE.search(text)


def test_no_path_of_a_machine_is_in_the_package():
    found = []
    for path in (path for path in PACKAGE_FILES if path.suffix in TEXT):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if len(line) < 1000 and MACHINE.search(line):
                found.append(f"{path.name}:{number} {line.strip()}")
    assert found == []


def test_every_public_function_and_class_says_what_it_gives():
    silent = [
        f"{path.relative_to(SOURCE)}:{node.lineno} {node.name}"
        for path in MODULES
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
    ]
    assert silent == []
