"""Small files that claim or unpack to a lot: refused in words that state the limit, before memory is taken."""

import gzip
import json
import os
import re
import resource
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

GB = 2**30
# What one process may take beyond what it has once the program is loaded, and how much it may ever have held of it.
FREE_BYTES, MAX_GROWTH_MB, MAX_SECONDS = 3 * GB, 400.0, 30.0


def header(shape: tuple[int, ...], *, kind: type = nib.Nifti1Header, side: float = 1.0) -> bytes:
    made = kind()
    made.set_data_dtype(np.float32)
    made.set_sform(np.diag([side, side, side, 1]), 4)
    size = 348 if kind is nib.Nifti1Header else 540
    made["magic"] = b"n+1" if size == 348 else b"n+2\0\r\n\x1a\n"
    made["dim"][: len(shape) + 1] = [len(shape), *shape]
    made["vox_offset"] = size + 4
    return bytes(made.binaryblock) + bytes(4)


def inflating(start: bytes, n_bytes: int) -> bytes:
    """A gzip file of `start` and so many zeros."""
    packer, zeros = zlib.compressobj(9, zlib.DEFLATED, 31), bytes(2**22)
    once = packer.compress(start) + packer.flush(zlib.Z_FULL_FLUSH)
    # After a full flush the packed block can be repeated as it is.
    return once + (packer.compress(zeros) + packer.flush(zlib.Z_FULL_FLUSH)) * (n_bytes // len(zeros))


def long_file(path: Path, n_bytes: int, start: bytes = b"") -> None:
    """A file that takes no room on the disk, whatever its length."""
    with path.open("wb") as file:
        file.write(start)
        file.truncate(n_bytes)


IMAGES = {
    "cube": header((30_000, 30_000, 30_000)),
    "terabyte": header((6500, 6500, 6500), kind=nib.Nifti2Header),
    "overflow": header((2**40, 2**20, 3), kind=nib.Nifti2Header),
    "packedcube": gzip.compress(header((30_000, 30_000, 30_000))),
    "claims": gzip.compress(header((600, 600, 600)) + bytes(50_000)),
    "inflates": inflating(header((350, 350, 350)), 12 * GB),
    "nameless": b"\x1f\x8b\x08\x18" + bytes([0, 0, 0, 0, 0, 3]) + b"x" * 2**20,
    "extension": gzip.compress(header((150, 150, 150))[:348] + struct.pack("<4B2i", 1, 0, 0, 0, 2**31 - 16, 6)),
}
LIMITS = {
    "sub-cube": "allowed are 1 to 262144000 voxels",
    "sub-terabyte": "allowed are 1 to 262144000 voxels",
    "sub-overflow": "allowed are 1 to 262144000 voxels",
    "sub-packedcube": "allowed are 1 to 262144000 voxels",
    "sub-claims": "500 times what",
    "sub-inflates": "nearly nothing but",
    "sub-nameless": "a name without an end",
    "sub-extension": "extension of it has 2147483632 bytes",
    "sub-sparse": "no scan has more than 5368709120",
}
# Name, what to write, and the words.
TABLES = [
    ("a gigabyte", lambda path: long_file(path, GB, b"participant_id\t"), "a table may have 268435456"),
    ("a long row", lambda path: path.write_bytes(b"participant_id\t" + b"x" * 2**27), "more than 4194304 characters"),
    ("a wide row", lambda path: path.write_bytes(b"participant_id" + b"\tx" * 2**25), "more than 4194304 characters"),
    ("many rows", lambda path: path.write_bytes(b"participant_id\n" + b"1\n" * 2**23), "more than 20000000 cells"),
    ("one cell", lambda path: path.write_bytes(b'participant_id\n"' + b"x\n" * 2**20), "field larger than field limit"),
]
JSONS = [
    ("a gigabyte", lambda path: long_file(path, GB, b"{"), "may have 8388608"),
    (
        "ten thousand levels",
        lambda path: path.write_bytes(b'{"a":' * 10_000 + b"1" + b"}" * 10_000),
        "nested more than 64 levels",
    ),
    ("a million levels", lambda path: path.write_bytes(b"[" * 2**23), "nested more than 64 levels"),
    ("half a text", lambda path: path.write_bytes(b'{"' + b'\\"' * 2**21), "Unterminated string"),
    ("many lists", lambda path: path.write_bytes(b'{"a": [' + b"[]," * 2**21 + b"1]}"), ""),
]


def peak_mb() -> float:
    """Most memory that this process ever held."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def main(folder: Path) -> None:
    """Read every bomb below a folder in this process, and say what became of it."""
    from nilatent.cohort import read_cohort
    from nilatent.errors import CohortError
    from nilatent.preprocess.config import RecipeConfig
    from nilatent.preprocess.recipe import prepare

    config = RecipeConfig(name="gm", spacing_mm=6.0, fwhm_mm=0.0)
    prepare(read_cohort([folder / "good"]), folder / "out", config)
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + FREE_BYTES, held + FREE_BYTES))
    found: dict[str, object] = {}
    before, started = peak_mb(), time.process_time()
    done = prepare(read_cohort([folder / "images"]), folder / "out", config)
    found["images"] = done.excluded.set_index("scan_id")["reason"].to_dict()
    found["image"] = [time.process_time() - started, peak_mb() - before]
    for kind, cases in (("table", TABLES), ("json", JSONS)):
        source = folder / kind
        for name, write, _ in cases:
            place = source / ("participants.tsv" if kind == "table" else "participants.json")
            write(place)
            before, started = peak_mb(), time.process_time()
            try:
                read_cohort([source])
                said = ""
            except CohortError as error:
                said = str(error)
            found[f"{kind}: {name}"] = [said, time.process_time() - started, peak_mb() - before]
            place.unlink()
    sys.stdout.write(json.dumps(found))


@pytest.mark.slow
@pytest.mark.timeout(1000)
@pytest.mark.skipif(sys.platform != "linux", reason="peaks of memory are read from /proc")
def test_bombs_are_refused_with_their_limit_before_memory_is_taken(tmp_path, capsys):
    from tests.inputs.front import write_map

    for place in ("good", "images", "table", "json"):
        write_map(tmp_path / place / "mwp1good.nii", 1)
    for name, content in IMAGES.items():
        ending = ".nii.gz" if content[:2] == b"\x1f\x8b" else ".nii"
        (tmp_path / "images" / f"mwp1{name}{ending}").write_bytes(content)
    long_file(tmp_path / "images" / "mwp1sparse.nii", 1024 * GB, header((500, 500, 500)))
    (tmp_path / "json" / "participants.tsv").write_text("participant_id\ngood\n")
    ended = subprocess.run(
        [sys.executable, __file__, tmp_path],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
        cwd=Path.cwd(),
        env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    found = json.loads(ended.stdout)
    reasons = found.pop("images")
    assert set(reasons) == set(LIMITS)
    for scan, words in LIMITS.items():
        assert words in reasons[scan], (scan, reasons[scan])
    seconds, grown = found.pop("image")
    assert seconds < MAX_SECONDS
    assert grown < MAX_GROWTH_MB
    words = {f"table: {name}": said for name, _, said in TABLES} | {f"json: {name}": said for name, _, said in JSONS}
    for name, (said, took, more) in found.items():
        assert words[name] in said, (name, said)
        assert took < MAX_SECONDS, name
        assert more < 2 * MAX_GROWTH_MB, name
        with capsys.disabled():
            print(f"\n{name}: {took:.1f} processor seconds, {more:.0f} MB more: {said[-160:]}", end="")
    with capsys.disabled():
        print(f"\n{len(LIMITS)} images: {seconds:.1f} processor seconds, {grown:.0f} MB more")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
