"""Simulated cohorts by the thousand: one row per cohort, in tables that go on where they were stopped.

A row is appended once its cohort is done, so a run may be killed at any moment and goes on with the same command. Shards
take different seeds and write files of their own, so that they may run at once, on one machine or on several.

    python -m tests.calibration.run ROWS --studies regions badges --shard 1/4
    python -m tests.calibration.table ROWS docs/calibration.md
"""

import argparse
import ast
import hashlib
import os
import time
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
from tests.calibration.studies import STUDIES

from nilatent.provenance import versions

KEY = ["condition", "settings", "seed", "code"]
STAMP = ("numpy", "scipy", "scikit-learn", "torch")


def code_hash(files: Iterable[Path]) -> str:
    """Twelve digits that change with what the files do, and not with their comments, docstrings, layout, names or places."""
    return hashlib.sha256(" ".join(sorted(map(_hash_of_one, files))).encode()).hexdigest()[:12]


def _hash_of_one(path: Path) -> str:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if not isinstance(body, list):
            continue
        if body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
            body = body[1:]
        # An import says where something lies, and not what it does.
        node.body = [one for one in body if not isinstance(one, ast.Import | ast.ImportFrom)]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def read_rows(folder: Path, study: str) -> pd.DataFrame:
    """Rows of a study from every shard; a line that a killed run left unfinished is not one."""
    tables = []
    for path in sorted(Path(folder).glob(f"{study.replace(' ', '-')}.*.tsv")):
        lines = [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
        cells = [line.rstrip("\n").split("\t") for line in lines]
        tables.append(pd.DataFrame(cells[1:], columns=cells[0]))
    if not tables:
        return pd.DataFrame(columns=KEY)
    rows = pd.concat(tables, ignore_index=True).drop_duplicates(KEY)
    numbers = [name for name in rows if name not in ("condition", "settings", "code", "versions")]
    return rows.astype(dict.fromkeys(numbers, float))


def append_row(path: Path, row: dict[str, object]) -> None:
    """Append one line, and first a header to a new file; half a line of a killed run is cut off before."""
    if path.exists() and path.stat().st_size:
        content = path.read_bytes()
        os.truncate(path, content.rfind(b"\n") + 1)
    fresh = not path.exists() or path.stat().st_size == 0
    lines = ["\t".join(row)] if fresh else []
    if not fresh and path.open(encoding="utf-8").readline().rstrip("\n").split("\t") != list(row):
        raise SystemExit(f"{path} has other columns than this code makes. Move it away, or name another folder.")
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(f"{line}\n" for line in [*lines, "\t".join(map(str, row.values()))]))


def run(
    folder: Path,
    studies: Iterable[str],
    *,
    n_cohorts: int | None = None,
    shard: tuple[int, int] = (1, 1),
    conditions: Iterable[str] = (),
) -> None:
    """Do what is missing: seeds outermost, so that all conditions have about as many cohorts whenever it is stopped.

    Parameters
    ----------
    folder : Path
        Receives one table per study, shard and code.
    studies, conditions : Iterable of str
        Names; no conditions are all.
    n_cohorts : int or None
        Of each condition, over all shards; None is what each study asks for.
    shard : tuple of int
        Which of how many, from 1: it takes every so many-th seed.
    """
    number, of = shard
    folder.mkdir(parents=True, exist_ok=True)
    stamp = " ".join(f"{name} {version}" for name, version in versions().items() if name in STAMP)
    code = {study: code_hash(STUDIES[study].files()) for study in studies}
    done = {study: set(read_rows(folder, study)[KEY].itertuples(index=False, name=None)) for study in code}
    last = {study: STUDIES[study].n_cohorts if n_cohorts is None else n_cohorts for study in code}
    wanted = set(conditions)
    for seed in range(number - 1, max(last.values()), of):
        for study in code:
            path = folder / f"{study.replace(' ', '-')}.{number}-of-{of}.{code[study]}.tsv"
            for name, settings in STUDIES[study].conditions.items():
                key = {"condition": name, "settings": repr(settings), "seed": seed, "code": code[study]}
                if seed >= last[study] or tuple(key.values()) in done[study] or (wanted and name not in wanted):
                    continue
                began = time.process_time()
                measured = STUDIES[study].measure(name, seed)
                seconds = round(time.process_time() - began, 3)
                append_row(path, key | {"versions": stamp, "seconds": seconds} | measured)


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the rows are, and go on")
    parser.add_argument("--studies", nargs="+", choices=list(STUDIES), default=list(STUDIES))
    parser.add_argument("--conditions", nargs="+", default=[], help="only these, by their names in the table")
    parser.add_argument("--cohorts", type=int, help="of each condition, over all shards")
    parser.add_argument("--shard", type=shard_of, default=(1, 1), help="i/n: every n-th seed, from the i-th")
    given = parser.parse_args()
    run(given.folder, given.studies, n_cohorts=given.cohorts, shard=given.shard, conditions=given.conditions)


def shard_of(text: str) -> tuple[int, int]:
    """Two numbers from ``i/n``."""
    number, slash, of = text.partition("/")
    if not slash or not 1 <= int(number) <= int(of):
        raise argparse.ArgumentTypeError(f"'{text}' is not i/n with i from 1 to n, such as 2/4")
    return int(number), int(of)


if __name__ == "__main__":
    main()
