"""Choice: which image of a scan is taken where a folder holds several, and why; no choice is made where nothing says which."""

import gzip
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from nilatent.images import MAX_IMAGE_BYTES, stem_of

# How a scan was acquired and reconstructed; runs repeat it in the same way.
WAY = re.compile(r"(?:^|_)((?:acq|rec|ce)-[^_]+)", re.IGNORECASE)
RUN = re.compile(r"(?:^|_)run-0*(\d+)", re.IGNORECASE)
NAME_ONE = "Name the one you want in a table of paths"


def problem(scan_id: str, path: Path | str, rule: str, reason: str) -> dict[str, str]:
    """A row of the list of scans that were left out."""
    return {"scan_id": scan_id, "path": str(path), "rule": rule, "reason": reason}


def one_kind(rows: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Rows of one kind of image only (one space, one resolution, one prefix): that of most scans, then the better one.

    Parameters
    ----------
    rows : Sequence[dict[str, Any]]
        Each with ``scan_id``, ``path``, ``variant`` (the kind) and ``rank`` (lower is better).

    Returns
    -------
    list[dict[str, Any]]
        The rows of that kind, without ``variant`` and ``rank``.
    list[dict[str, str]]
        Scans that have no image of that kind.
    """
    if not rows:
        return [], []
    counted = Counter(variant for _, variant in {(row["scan_id"], row["variant"]) for row in rows})
    ranks = {row["variant"]: row["rank"] for row in rows}
    chosen = min(counted, key=lambda variant: (-counted[variant], ranks[variant], len(variant), variant))
    tied = sorted(variant for variant, times in counted.items() if times == counted[chosen] and variant != chosen)
    if tied:
        others = ", ".join(f"'{variant.strip('_')}'" for variant in tied)
        Console(stderr=True).print(
            f"{rows[0]['path'].parent}: as many scans have maps of the kind {others} as of '{chosen.strip('_')}', which is "
            "taken. For another, name the files in a table of paths.",
            highlight=False,
            markup=False,
        )
    kept = [row for row in rows if row["variant"] == chosen]
    named = {row["scan_id"] for row in kept}
    problems = []
    for row in rows:
        if row["scan_id"] not in named:
            named.add(row["scan_id"])
            reason = (
                f"{row['path']} is another kind of image ('{row['variant'].strip('_')}') than most scans of the folder "
                f"have ('{chosen.strip('_')}'). Make that kind for this scan too, or name the files in a table of paths."
            )
            problems.append(problem(row["scan_id"], row["path"], "other kind of image", reason))
    return [{key: value for key, value in row.items() if key not in ("variant", "rank")} for row in kept], problems


def one_image(rows: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """One image of every scan.

    Parameters
    ----------
    rows : Sequence[dict[str, Any]]
        Each with ``scan_id`` and ``path``; of one kind.

    Returns
    -------
    list[dict[str, Any]]
        A row per scan: of several acquisitions or reconstructions the one that most scans have, else the one whose name
        states none; of several runs the first; of files that unpack to the same bytes the first by name.
    list[dict[str, str]]
        Images that were passed over (``"second image"``), and scans of which nothing says which image is meant
        (``"several images"``), which are left out.
    """
    images: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        images[row["scan_id"]].append(row)
    common = Counter(way for _, way in {(row["scan_id"], _way(row["path"])) for row in rows})
    kept, problems = [], []
    for scan_id, mine in images.items():
        left, why = _preferred(mine, common)
        if len(left) > 1:
            listed = ", ".join(str(row["path"]) for row in left)
            reason = f"{scan_id} has {listed}, and nothing says which is meant. {NAME_ONE}, or move the others away."
            problems.append(problem(scan_id, left[0]["path"], "several images", reason))
            continue
        kept += left
        for row in mine:
            if row is not left[0]:
                reason = (
                    f"{row['path']} is a second image of {scan_id}, for which {left[0]['path']} is used: {why}. {NAME_ONE}, "
                    "or give each its own session."
                )
                problems.append(problem(scan_id, row["path"], "second image", reason))
    return kept, problems


def _way(path: Path) -> str:
    return "_".join(sorted(WAY.findall(stem_of(path.name))))


def _run(path: Path) -> int:
    found = RUN.search(stem_of(path.name))
    return int(found[1]) if found is not None else 0


def _preferred(rows: list[dict[str, Any]], common: Counter[str]) -> tuple[list[dict[str, Any]], str]:
    """The row to take and why; several rows when nothing says which."""
    why = ""
    if len({_way(row["path"]) for row in rows}) > 1:
        most = max(common[_way(row["path"])] for row in rows)
        left = [row for row in rows if common[_way(row["path"])] == most]
        why = f"most scans of the folder have '{_way(left[0]['path']) or 'no acq-, rec- or ce-'}'"
        if len({_way(row["path"]) for row in left}) > 1:
            left = [row for row in left if not _way(row["path"])] or left
            why = "its name states no other acquisition or reconstruction"
        if len({_way(row["path"]) for row in left}) > 1:
            return left, ""
        rows = left
    runs = [_run(row["path"]) for row in rows]
    if len(set(runs)) > 1:
        rows, why = [row for row, run in zip(rows, runs, strict=True) if run == min(runs)], why or "it is the first run"
    if len(rows) > 1 and all(_same_bytes(rows[0]["path"], row["path"]) for row in rows[1:]):
        rows, why = rows[:1], why or "both are the same image"
    return rows, why


def _same_bytes(one: Path, other: Path) -> bool:
    """Whether two files unpack to the same bytes."""
    read = 0
    try:
        with _unpacked(one) as first, _unpacked(other) as second:
            while (part := first.read(2**20)) == second.read(2**20) and read <= MAX_IMAGE_BYTES:
                if not part:
                    return True
                read += len(part)
    except (OSError, EOFError, zlib.error):
        return False
    return False


def _unpacked(path: Path) -> Any:
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path) if packed else path.open("rb")
