"""Whether the tests notice a wrong formula: seeded mutants of the statistics, each against the tests of its file.

    python benchmarks/mutation.py FOLDER --n-mutants 300 --seed 0
    python benchmarks/mutation.py FOLDER --table

FOLDER gets a clone of the last commit (`tree`), the mutants in random order (`mutants.tsv`) and one row per mutant that
was tried (`rows.tsv`). A run that was stopped goes on. Because the order is random, the first part of the rows is a fair
sample of all. Each mutant is tried in a process of its own, forked after the libraries are loaded. Tests of the file's
own name come first, then those that import it, then those of the files that import it; the first red one stops it.
"""

import argparse
import ast
import difflib
import importlib
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

MUTATED = ("src/nilatent/models/losses.py", "src/nilatent/analysis", "src/nilatent/training/diagnostics.py")
TESTS = ("tests/analysis", "tests/models", *(f"tests/training/test_{name}.py" for name in ("diagnostics", "judge")))
LIBRARIES = (
    "pytest", "torch", "lightning_fabric", "numpy", "pandas", "xarray", "h5netcdf", "nibabel", "nilearn.image",
    "nilearn.datasets", "sklearn.svm", "sklearn.ensemble", "sklearn.manifold", "sklearn.linear_model", "scipy.stats",
    "scipy.optimize",
)  # fmt: skip
# Nouns, which no mutated file is part of.
UNTOUCHED = ("nilatent.latents", "nilatent.atlas", "nilatent.volumes", "nilatent.finding", "nilatent.cohort")
BROKEN = 70
COMPARISONS = {
    ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE), ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.In: (ast.NotIn,), ast.NotIn: (ast.In,), ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
}  # fmt: skip
ARITHMETIC = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult, ast.FloorDiv: ast.Div,
    ast.Mod: ast.FloorDiv, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """One edit of one file: bytes `start` to `stop` become `after`."""

    file: str
    line: int
    operator: str
    start: int
    stop: int
    before: str
    after: str

    def apply(self, source: bytes) -> bytes:
        """The file's bytes with the edit."""
        return source[: self.start] + self.after.encode() + source[self.stop :]


@dataclass(frozen=True)
class Row:
    """What became of one mutant."""

    number: int
    file: str
    line: int
    operator: str
    outcome: str  # killed, survived, timeout, error
    processor_seconds: float
    n_tests: int
    by: str
    diff: str


def signatures(source: Path) -> dict[str, set[str]]:
    """The parameters without a default of each function and class, by name; of equal names, all of them together."""
    needed: dict[str, set[str]] = {}
    for path in source.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.FunctionDef):
                plain = [*node.args.posonlyargs, *node.args.args]
                open_ = plain[: len(plain) - len(node.args.defaults)]
                keyword = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
                names = {a.arg for a in open_} | {a.arg for a, default in keyword if default is None}
            elif isinstance(node, ast.ClassDef):
                lines = [item for item in node.body if isinstance(item, ast.AnnAssign)]
                names = {item.target.id for item in lines if isinstance(item.target, ast.Name) and item.value is None}
            else:
                continue
            needed.setdefault(node.name, set()).update(names)
    return needed


def executed(node: ast.AST) -> Iterator[ast.AST]:
    """Nodes whose value can change a number: no annotations, decorators, docstrings, messages of errors or f-strings."""
    if isinstance(node, ast.Raise | ast.JoinedStr | ast.Assert):
        return
    yield node
    for name, value in ast.iter_fields(node):
        if name in {"annotation", "returns", "decorator_list", "type_params"}:
            continue
        for child in value if isinstance(value, list) else [value]:
            docstring = isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)
            if isinstance(child, ast.AST) and not docstring:
                yield from executed(child)


def changed(node: ast.AST, **values: object) -> str:
    """The source of a node with some of its fields replaced."""
    kept = dict(ast.iter_fields(node))
    return ast.unparse(type(node)(**(kept | values)))


def of_operators(node: ast.AST) -> Iterator[tuple[str, str]]:
    """Operator and new source for comparisons, arithmetic, logic and signs."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        for other in COMPARISONS[type(node.ops[0])]:
            yield "comparison", f"({changed(node, ops=[other()])})"
    elif isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
        yield "arithmetic", f"({changed(node, op=ARITHMETIC[type(node.op)]())})"
    elif isinstance(node, ast.AugAssign) and type(node.op) in ARITHMETIC:
        yield "arithmetic", changed(node, op=ARITHMETIC[type(node.op)]())
    elif isinstance(node, ast.BoolOp):
        yield "boolean", f"({changed(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())})"
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.Invert):
        yield "boolean", f"({ast.unparse(node.operand)})"
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        yield "sign", f"({ast.unparse(node.operand)})"


def of_values(node: ast.AST, needed: dict[str, set[str]]) -> Iterator[tuple[str, str]]:
    """Operator and new source for constants, calls, returned values and slices."""
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield "boolean", repr(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield "constant", repr(node.value + 1)
        yield "constant", f"({node.value - 1!r})"
    elif isinstance(node, ast.Call):
        callee = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        for place, keyword in enumerate(node.keywords):
            axis = keyword.arg == "axis" and isinstance(keyword.value, ast.Constant | ast.UnaryOp)
            if axis and ast.unparse(keyword.value) in {"0", "1", "-1"}:
                other = ast.keyword("axis", ast.Constant(1 if ast.unparse(keyword.value) == "0" else 0))
                yield "axis", changed(node, keywords=[*node.keywords[:place], other, *node.keywords[place + 1 :]])
            elif keyword.arg is not None and keyword.arg not in needed.get(callee, set()):
                yield "dropped keyword", changed(node, keywords=[*node.keywords[:place], *node.keywords[place + 1 :]])
    elif isinstance(node, ast.Return) and node.value is not None and ast.unparse(node.value) != "None":
        pair = isinstance(node.value, ast.Tuple) and len(node.value.elts) > 1
        if pair:
            first, second, *rest = node.value.elts
            yield "returned value", f"return {ast.unparse(ast.Tuple([second, first, *rest], ast.Load()))}"
        else:
            yield "returned value", "return None"
    elif isinstance(node, ast.Slice):
        for name in ("lower", "upper"):
            bound = getattr(node, name)
            if bound is not None:
                if not isinstance(bound, ast.Constant):  # a constant has its own mutants
                    yield "slice", changed(node, **{name: ast.BinOp(bound, ast.Add(), ast.Constant(1))})
                yield "slice", changed(node, **{name: None})


def candidates(tree: Path, file: str, needed: dict[str, set[str]]) -> list[list[Mutant]]:
    """Every place of one file that can be mutated: for each, the mutants of one operator."""
    source = (tree / file).read_bytes()
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found: dict[tuple[int, int, str], list[Mutant]] = {}
    for node in executed(ast.parse(source)):
        if not hasattr(node, "end_col_offset"):
            continue
        start, stop = starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset
        before = source[start:stop].decode()
        for operator, after in (*of_operators(node), *of_values(node, needed)):
            mutant = Mutant(file, node.lineno, operator, start, stop, before, after)
            found.setdefault((start, stop, operator), []).append(mutant)
    return list(found.values())


def draw(tree: Path, n_mutants: int, seed: int) -> list[Mutant]:
    """Mutants in random order, from each file in proportion to its places (largest remainders), one at a place."""
    needed = signatures(tree / "src")
    files = [path for entry in MUTATED for path in sorted((tree / entry).rglob("*.py")) or [tree / entry]]
    names = [str(path.relative_to(tree)) for path in files]
    pools = {name: candidates(tree, name, needed) for name in names}
    total = sum(map(len, pools.values()))
    share = {file: n_mutants * len(pool) / total for file, pool in pools.items()}
    left = n_mutants - sum(map(int, share.values()))
    more = set(sorted(share, key=lambda file: share[file] % 1, reverse=True)[:left])
    generator = random.Random(seed)
    places = [p for name, pool in pools.items() for p in generator.sample(pool, int(share[name]) + (name in more))]
    drawn = [generator.choice(place) for place in places]
    generator.shuffle(drawn)
    for mutant in drawn:
        ast.parse(mutant.apply((tree / mutant.file).read_bytes()))
    return drawn


class Watched:
    """A pytest plugin that counts tests, notes the red ones, and starts none when too little time is left for it."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.red: list[str] = []
        self.n_tests = 0

    def pytest_runtest_logreport(self, report: object) -> None:
        """A test is red when any part of it is."""
        self.n_tests += report.when == "call"
        if report.failed:
            self.red.append(report.nodeid)

    def pytest_runtest_protocol(self, item: object) -> None:
        """What is left undone then counts as green: the mutant has survived what there was time for."""
        if time.process_time() > self.seconds:
            item.session.shouldstop = "no time left"

    def pytest_collectreport(self, report: object) -> None:
        """A file of tests that cannot be imported is red."""
        if report.failed:
            self.red.append(f"{report.nodeid} (import)")


def enter(tree: Path) -> None:
    """Work in the clone from here on, and make sure that it is what is imported."""
    os.chdir(tree)
    sys.path[:0] = [str(tree / "src"), str(tree)]
    os.environ["PYTHONPATH"] = str(tree / "src")
    import nilatent

    if not Path(nilatent.__file__).is_relative_to(tree):
        raise SystemExit(f"nilatent came from {nilatent.__file__}, not from {tree}.")


def dotted(file: str) -> str:
    """The module of a file under src."""
    return file.removeprefix("src/").removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imported(text: str) -> set[str]:
    """Modules that a source imports, and what it takes from them, as dotted names."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def own_tests(tree: Path) -> dict[str, list[str]]:
    """The test files of each mutated file, the nearest first."""
    tests = [path for entry in TESTS for path in (sorted((tree / entry).glob("test_*.py")) or [tree / entry])]
    takes = {str(path.relative_to(tree)): imported(path.read_text()) for path in tests}
    sources = {str(path.relative_to(tree)): imported(path.read_text()) for path in (tree / "src").rglob("*.py")}
    files = [path for entry in MUTATED for path in (sorted((tree / entry).rglob("*.py")) or [tree / entry])]
    found = {}
    for path in files:
        file = str(path.relative_to(tree))
        module = dotted(file)
        stem = module.removeprefix("nilatent.analysis.").replace(".", "_").split("nilatent_")[-1]
        users = {dotted(other) for other, names in sources.items() if module in names}
        near = [test for test in takes if Path(test).stem == f"test_{stem}"]
        near += [test for test, names in takes.items() if module in names]
        near += [test for test in takes if Path(test).stem.startswith(f"test_{stem.split('_')[0]}")]
        near += [test for test, names in takes.items() if users & names]
        found[file] = list(dict.fromkeys(near))
    return found


def in_child(tests: list[str], answer: Path, limit: float) -> int:
    """Exit status of pytest on these files in a forked process group; -1 for one that ran out of processor time."""
    import pytest

    child = os.fork()
    if child == 0:
        os.setpgrp()
        resource.setrlimit(resource.RLIMIT_CPU, (int(limit), int(limit) + 1))
        quiet = os.open(answer.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        plugin = Watched(0.7 * limit + time.process_time())
        alone = [word for name in ("cacheprovider", "randomly", "cov", "xdist") for word in ("-p", f"no:{name}")]
        status: int = BROKEN
        try:
            status = pytest.main([*tests, "-x", "-q", *alone], plugins=[plugin])
            if not plugin.red and status == pytest.ExitCode.INTERRUPTED:
                status = pytest.ExitCode.OK
            answer.write_text("\n".join([str(plugin.n_tests), *plugin.red]))
        finally:  # whatever happened, the child does not go on with the work of its parent
            os._exit(status)
    # Only for what sleeps: on a busy machine, wall time says nothing.
    ends = time.monotonic() + 60 * limit
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.WEXITSTATUS(status) if os.WIFEXITED(status) else -1
        if time.monotonic() > ends:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return BROKEN
        time.sleep(0.1)


def judge(number: int, mutant: Mutant, tree: Path, tests: list[str], limit: float) -> Row:
    """Try one mutant: write it, run its tests, put the file back."""
    path, answer = tree / mutant.file, tree.parent / "answer"
    source, times = path.read_bytes(), path.stat()
    text = mutant.apply(source)
    lines = difflib.unified_diff(source.decode().splitlines(), text.decode().splitlines(), lineterm="", n=0)
    diff = " ".join(line for line in lines if not line.startswith(("---", "+++", "@@")))
    answer.unlink(missing_ok=True)
    began = os.times()
    try:
        path.write_bytes(text)
        os.utime(path, (times.st_atime, times.st_mtime + 10 + number))  # no cached bytecode may stand for this text
        status = in_child(tests, answer, limit)
    finally:
        path.write_bytes(source)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    ended = os.times()
    spent = ended.children_user + ended.children_system - began.children_user - began.children_system
    outcome = {0: "survived", 1: "killed", 2: "killed", -1: "timeout"}.get(status, "error")
    n_tests, *red = answer.read_text().split("\n") if answer.exists() else ["0"]
    by = red[0] if red else ""
    if outcome == "killed" and not red:
        outcome = "error"
    return Row(
        number, mutant.file, mutant.line, mutant.operator, outcome, round(spent, 2), int(n_tests), by, diff.strip()
    )


def read_rows(path: Path) -> list[Row]:
    """The rows so far."""
    if not path.exists():
        return []
    split = [line.split("\t") for line in path.read_text().splitlines()[1:]]
    return [Row(int(n), f, int(at), o, out, float(s), int(t), by, d) for n, f, at, o, out, s, t, by, d in split]


def print_table(rows: list[Row]) -> None:
    """Outcomes by operator, and each mutant that no test noticed."""
    outcomes = sorted({row.outcome for row in rows})
    print(f"{'operator':<16}" + "".join(f"{outcome:>13}" for outcome in outcomes))
    for operator in [*sorted({row.operator for row in rows}), "all"]:
        chosen = [row for row in rows if operator in {"all", row.operator}]
        print(f"{operator:<16}" + "".join(f"{sum(r.outcome == outcome for r in chosen):>13}" for outcome in outcomes))
    for row in rows:
        if row.outcome not in {"killed", "timeout"}:
            print(f"\n{row.number} {row.outcome} {row.file}:{row.line} ({row.operator}, {row.n_tests} tests)")
            print(f"  {row.diff}")


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--n-mutants", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=60.0, help="processor seconds per mutant")
    parser.add_argument("--again", type=int, nargs="*", help="try only these, whatever their rows say; writes no row")
    parser.add_argument("--table", action="store_true", help="only print what the rows so far say")
    return parser.parse_args()


def main() -> None:
    arguments = read_arguments()
    folder = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    tree, rows_path = folder / "tree", folder / "rows.tsv"
    if arguments.table:
        print_table(read_rows(rows_path))
        return
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    if not tree.exists():
        subprocess.run(["git", "clone", "--quiet", str(Path(__file__).parents[1]), str(tree)], check=True)
    # A run that was killed may have left a mutant behind.
    subprocess.run(["git", "-C", str(tree), "checkout", "--quiet", "--", "."], check=True)
    enter(tree)
    for name in (*LIBRARIES, *UNTOUCHED):
        importlib.import_module(name)
    mutants = draw(tree, arguments.n_mutants, arguments.seed)
    table = ["\t".join(map(str, (n, m.file, m.line, m.operator, repr(m.after)))) for n, m in enumerate(mutants)]
    (folder / "mutants.tsv").write_text("\n".join(table) + "\n")
    tests = own_tests(tree)
    if not rows_path.exists():
        rows_path.write_text("\t".join(field.name for field in fields(Row)) + "\n")
    done = {row.number for row in read_rows(rows_path)}
    wanted = range(len(mutants)) if arguments.again is None else arguments.again
    for number in wanted:
        if number in done and arguments.again is None:
            continue
        row = judge(number, mutants[number], tree, tests[mutants[number].file], arguments.limit)
        print(row.number, row.outcome, f"{row.file}:{row.line}", row.by, row.diff, sep="  ", flush=True)
        if arguments.again is None:
            with rows_path.open("a") as file:
                file.write("\t".join(str(value).replace("\t", " ") for value in asdict(row).values()) + "\n")
    print_table(read_rows(rows_path))


if __name__ == "__main__":
    main()
