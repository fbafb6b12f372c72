"""What the package may import and call: nothing that runs what a file says, unpacks archives, or reaches for a network."""

import ast
from pathlib import Path

import pytest

import nilatent

SOURCE = Path(nilatent.__file__).parent
# Modules whose use is to run what a file says, to start other programs, or to talk to other machines.
FORBIDDEN = {
    *("pickle", "cPickle", "_pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib.externals.cloudpickle"),
    *("yaml", "ruamel", "code", "codeop", "runpy", "imp", "ctypes", "cffi", "pty", "subprocess"),
    *("tarfile", "zipfile", "zipimport", "ensurepip", "pip"),
    *("ftplib", "http.client", "imaplib", "poplib", "requests", "httpx", "aiohttp", "smtplib", "telnetlib"),
    *("urllib.request", "urllib3", "xmlrpc", "websockets", "xml"),
}
# Where the rule is broken, and why.
ALLOWED = {("training/validation.py", "ctypes"): "asks the C library by a fixed name to hand memory back"}
CALLS = {
    *("eval", "exec", "compile", "__import__", "breakpoint", "input"),
    *("os.system", "os.popen", "os.fork", "os.execv", "os.execve", "os.spawnv", "os.startfile", "os.posix_spawn"),
    *(
        "pd.read_pickle",
        "pandas.read_pickle",
        "pd.read_html",
        "pd.read_xml",
        "pd.read_hdf",
        "pd.eval",
        "pd.read_feather",
    ),
    *("np.fromfile", "numpy.fromfile", "torch.load", "torch.save", "torch.jit.load", "torch.hub.load", "torch.package"),
    *("joblib.load", "joblib.dump", "shutil.unpack_archive", "shutil.make_archive", "nib.streamlines.load"),
}
ENDINGS = (
    ".read_pickle",
    ".to_pickle",
    ".load_state_dict_from_url",
    ".unpack_archive",
    ".extractall",
    ".eval_js",
    ".query",
)
KEYWORDS = {("allow_pickle", True), ("shell", True), ("weights_only", False), ("trust_remote_code", True)}


def forbidden(tree: ast.AST, place: str = "") -> list[str]:
    """Lines of a module that break the rule."""
    found = []
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            parents = {".".join(name.split(".")[:length]) for length in range(1, name.count(".") + 2)}
            bad = parents & FORBIDDEN | ({name} & CALLS)
            found += [f"{place}:{node.lineno} imports {one}" for one in bad if (place, one) not in ALLOWED]
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in CALLS or called.endswith(ENDINGS):
                found.append(f"{place}:{node.lineno} calls {called}")
            given = {keyword.arg: getattr(keyword.value, "value", None) for keyword in node.keywords}
            found += [f"{place}:{node.lineno} {key}={value}" for key, value in KEYWORDS if given.get(key) == value]
            if called in ("np.load", "numpy.load") and given.get("allow_pickle") is not False:
                found.append(f"{place}:{node.lineno} {called} without allow_pickle=False")
            if called.endswith("import_module") and place not in IMPORTERS:
                found.append(f"{place}:{node.lineno} imports by a name that is computed")
    return found


# The door for optional packages, whose names stand in the code; and the package itself, which loads its nouns late.
IMPORTERS = ("extras.py", "__init__.py")


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from pickle import loads",
        "import joblib.externals.cloudpickle as c",
        "from joblib import load",
        "from torch import load",
        "from urllib import request",
        "from urllib.request import urlopen",
        "import xml.etree.ElementTree",
        "import subprocess",
        "eval(x)",
        "exec(x)",
        "torch.load(x)",
        "np.load(x)",
        "np.load(x, allow_pickle=True)",
        "frame.to_pickle(x)",
        "pd.read_pickle(x)",
        "table.query(x)",
        "tar.extractall(x)",
        "importlib.import_module(x)",
    ],
)
def test_the_walk_finds_what_it_must(text: str):
    assert forbidden(ast.parse(text), "some.py")


def test_the_walk_lets_the_harmless_pass():
    text = (
        "from urllib.parse import parse_qs\nmodel.eval()\nnp.load(x, allow_pickle=False)\nfrom joblib import Parallel"
    )
    assert forbidden(ast.parse(text), "some.py") == []


def test_no_module_runs_what_a_file_says_or_reaches_for_a_network():
    modules = sorted(SOURCE.rglob("*.py"))
    assert len(modules) > 100
    found = []
    for path in modules:
        place = path.relative_to(SOURCE).as_posix()
        found += forbidden(ast.parse(path.read_text(encoding="utf-8")), place)
    assert found == []


def test_what_is_required_by_name_stands_in_the_code():
    """``require`` imports what it is given: no file and no setting may say what that is."""
    given = [
        (path.name, ast.unparse(node))
        for path in sorted(SOURCE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "require"
        if not isinstance(node.args[0], ast.Constant)
    ]
    # The one variable runs over three names in the line before.
    assert given == [("scans.py", "require(module, extra='report')")]
