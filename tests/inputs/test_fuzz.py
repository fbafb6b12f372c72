"""Headers and tables changed at random, through the whole front: each is prepared or listed with a reason.

The default run takes few of each; the slow one a thousand, or as many as NILATENT_FUZZ says.
"""

import gzip
import os
import struct
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from tests.inputs.front import GRID, front, grey, map_bytes, write_map

from nilatent.cohort import load_cohort
from nilatent.errors import NilatentError
from nilatent.images import bids_label
from nilatent.tables import read_tsv

FEW, MANY = 15, int(os.environ.get("NILATENT_FUZZ", "1000"))
LONG = pytest.param(MANY, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])
# Offset and format of what a NIfTI-1 header says, and what stands there in files that broke somebody's program.
FIELDS = {
    "sizeof_hdr": (0, "i", (0, 540, 1543569408, -1)),
    "dim0": (40, "h", (0, 1, 2, 4, 5, 7, 8, -1, 768)),
    "dim1": (42, "h", (0, 1, -31, 30, 32, 30_000, 32_767)),
    "dim2": (44, "h", (0, 1, 58, 30_000)),
    "dim3": (46, "h", (0, 1, 13, 54, 30_000)),
    "dim4": (48, "h", (0, 1, 2, 400, -1)),
    "datatype": (70, "h", (0, 1, 2, 4, 8, 32, 64, 128, 256, 512, 768, 1024, 1536, 1792, 2304, -5)),
    "bitpix": (72, "h", (0, 1, 8, 64, -32)),
    "qfac": (76, "f", (0, -1, 5, np.nan)),
    "pixdim1": (80, "f", (0, -6, 1e-9, 0.001, 6000, np.nan, np.inf)),
    "pixdim2": (84, "f", (0, -6, 3, np.nan)),
    "pixdim3": (88, "f", (0, 6.01, 1e30, -np.inf)),
    "vox_offset": (108, "f", (0, 1, 348, 351.5, 353, 4096, 1e9, -352, np.nan, np.inf)),
    "scl_slope": (112, "f", (0, -1, 2, 255, 1e-30, 1e30, np.nan, np.inf)),
    "scl_inter": (116, "f", (0, -1, 1, 1e30, np.nan, -np.inf)),
    "xyzt_units": (123, "B", (0, 1, 2, 3, 8, 255)),
    "qform_code": (252, "h", (0, 1, 2, 3, 5, -1, 999)),
    "sform_code": (254, "h", (0, 1, 2, 3, 5, -1, 999)),
    "quatern_b": (256, "f", (1, 0.3, 2, np.nan)),
    "quatern_c": (260, "f", (0.7, -1)),
    "qoffset_x": (268, "f", (1e30, np.nan)),
    "srow_x": (280, "f", (0, -6, 5.5, np.nan, np.inf)),
    "srow_xy": (284, "f", (0.5, 3, 6)),
    "srow_xt": (292, "f", (0, 1e9, -40)),
    "srow_z": (320, "f", (0, -6, 1e-30)),
    "magic": (344, "4s", (b"ni1\0", b"n+2\0", b"\0\0\0\0", b"n+1 ")),
    "extension": (348, "4s", (b"\1\0\0\0", b"\xff\xff\xff\xff")),
}


def change_fields(rng: np.random.Generator, raw: bytes) -> bytes:
    changed = bytearray(raw)
    for name in rng.choice(list(FIELDS), size=rng.integers(1, 4), replace=False):
        place, form, values = FIELDS[name]
        value = values[rng.integers(len(values))]
        changed[place : place + struct.calcsize(form)] = struct.pack(f"<{form}", value)
    return bytes(changed)


def change_bytes(rng: np.random.Generator, raw: bytes) -> bytes:
    changed = bytearray(raw)
    for place in rng.integers(0, 352, size=rng.integers(1, 20)):
        changed[place] = rng.integers(256)
    return bytes(changed)


def change_affine(rng: np.random.Generator, _: bytes) -> bytes:
    """Singular, sheared, left-handed, oblique, or at odds with the qform."""
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    small = np.eye(3) + 0.1 * rng.normal(size=(3, 3))
    ways = [np.diag([6, 6, 0]), small * 6, np.diag([-6, 6, 6]), turn * 6, np.diag([6, 6, 6]), np.zeros((3, 3))]
    affine = GRID.affine.copy()
    affine[:3, :3] = ways[rng.integers(len(ways))]
    image = nib.Nifti1Image(grey() * rng.uniform(0.5, 1), np.eye(4))
    image.header.set_qform(GRID.affine, int(rng.integers(5)))
    image.header.set_sform(affine, int(rng.integers(5)))
    return bytes(nib.Nifti1Image(image.dataobj, None, image.header).to_bytes())


def change_kind(rng: np.random.Generator, _: bytes) -> bytes:
    """Other types and axes, values that are none, the other byte order, extensions, NIfTI-2."""
    data = grey() * np.float32(rng.uniform(0.5, 1))
    holes = np.where(
        rng.random(data.shape) < 0.01, rng.choice([np.nan, np.inf, -np.inf, 1e300]), data.astype(np.float64)
    )
    colours = np.zeros(data.shape, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    big = nib.Nifti1Header(endianness=">")
    extended = nib.Nifti1Image(data, GRID.affine)
    extended.header.extensions.append(
        nib.nifti1.Nifti1Extension(int(rng.integers(50)), rng.bytes(int(rng.integers(500))))
    )
    images = [
        nib.Nifti1Image((data * 100).astype(np.int8), GRID.affine),
        nib.Nifti1Image((data * 255).astype(np.uint8), GRID.affine),
        nib.Nifti1Image(holes, GRID.affine),
        nib.Nifti1Image(data.astype(np.complex64), GRID.affine),
        nib.Nifti1Image(colours, GRID.affine),
        nib.Nifti1Image(data[..., None], GRID.affine),
        nib.Nifti1Image(np.stack([data] * int(rng.integers(2, 6)), axis=-1), GRID.affine),
        nib.Nifti1Image(data, GRID.affine, big),
        nib.Nifti2Image(data, GRID.affine),
        nib.Nifti1Image(np.full_like(data, rng.choice([0, 1, 7])), GRID.affine),
        nib.Nifti1Image(data[: rng.integers(1, 31), : rng.integers(1, 29)], GRID.affine),
        extended,
    ]
    return bytes(images[rng.integers(len(images))].to_bytes())


CHANGES: list[Callable[[np.random.Generator, bytes], bytes]] = [
    change_fields,
    change_fields,
    change_bytes,
    change_affine,
    change_kind,
]


def damaged(rng: np.random.Generator, number: int) -> tuple[bytes, str]:
    """One file and its ending."""
    raw = CHANGES[rng.integers(len(CHANGES))](rng, map_bytes(number))
    packing = rng.integers(7)
    if packing == 0:
        return raw[: rng.integers(len(raw))], ".nii"
    if packing > 3:
        return raw, ".nii"
    packed = gzip.compress(raw, 1)
    if packing == 1:
        packed = packed[: rng.integers(len(packed))]
    if packing == 2:
        packed += rng.bytes(int(rng.integers(1, 2000)))
    return packed, ".nii.gz"


@pytest.mark.parametrize("n_files", [FEW, LONG])
def test_every_file_of_changed_bytes_is_prepared_or_listed(tmp_path, capsys, n_files):
    rng, source = np.random.default_rng(20 + n_files), tmp_path / "mri"
    for number in (0, 1):
        write_map(source / f"mwp1good{number}.nii", number)
    for number in range(n_files):
        content, ending = damaged(rng, number + 2)
        (source / f"mwp1f{number:05d}{ending}").write_bytes(content)
    started = time.process_time()
    passed = front([source], tmp_path / "out")
    seconds = time.process_time() - started
    expected = {"sub-good0", "sub-good1", *(f"sub-f{number:05d}" for number in range(n_files))}
    through, left_out = set(passed.prepared.scans.index), set(passed.prepared.excluded["scan_id"])
    assert through | left_out == expected
    assert not through & left_out
    assert {"sub-good0", "sub-good1"} <= through
    rules = Counter(passed.prepared.excluded["rule"])
    assert not {"engine succeeds", "worker survives"} & set(rules), passed.prepared.excluded["reason"].tolist()
    for row in passed.prepared.excluded.itertuples():
        assert f"mwp1{row.scan_id.removeprefix('sub-')}" in row.reason, row
        assert row.reason.endswith("."), row
        assert ". " in row.reason, row
    # What lies beside it changes nothing in a good scan.
    for number in (0, 1):
        row = list(passed.volumes.scans.index).index(f"sub-good{number}")
        wanted = np.asarray(grey() * np.float32(1 - number / 5000))
        np.testing.assert_allclose(passed.volumes.data[row][:31, :29, :27], wanted, atol=2e-3)
    with capsys.disabled():
        if n_files > FEW:
            print(
                f"\n{n_files} files, {seconds:.0f} processor seconds: {len(through)} prepared, {dict(rules.most_common())}"
            )


CELLS = [
    "",
    "n/a",
    "NaN",
    "#N/A",
    "001",
    "1,5",
    "1 234",
    "1e999",
    "-0",
    "inf",
    "٣",
    "½",
    "é",
    "e\u0301",
    "🧠",
    "x" * 300,
]
CELLS += [
    "\x00",
    "\t",
    "\r",
    "\n",
    "\r\n",
    "\x85",
    "\u2028",
    "\ufeff",
    "\ud7ff",
    "\x1b[31m",
    '"',
    '""',
    '"x',
    "'",
    "\\",
    "=1+1",
]
CELLS += [
    "sub-",
    "sub-01",
    "SUB-01",
    "../../etc/passwd",
    "~",
    "/dev/zero",
    ".",
    "path",
    "scan_id",
    "M",
    "male",
    "9" * 400,
]
CELLS += ["%s", "{0}", "[red]", "<b>"]
HEADER = "participant_id\tage\tsex\tsite\tscore\tpath"
BASE = [HEADER, *(f"sub-0{n}\t{20 + n}\tM\ts{n % 2}\t{n}.5\tmwp1sub-0{n}.nii" for n in range(1, 5))]


def changed_table(rng: np.random.Generator) -> bytes:
    lines = [line.split("\t") for line in BASE]
    for _ in range(rng.integers(1, 4)):
        row = int(rng.integers(len(lines)))
        column = int(rng.integers(max(len(lines[row]), 1)))
        cell = CELLS[rng.integers(len(CELLS))]
        way = rng.integers(9)
        if way < 4 and lines[row]:
            lines[row][column] = cell
        elif way == 4:
            lines.insert(row, list(lines[rng.integers(len(lines))]))
        elif way == 5:
            lines.insert(row, [cell])
        elif way == 6 and len(lines) > 2:
            del lines[row]
        elif way == 7:
            lines[row].insert(column, cell)
        else:
            rng.shuffle(lines[row])
    text = ["\n", "\r\n", "\r"][rng.integers(3)].join("\t".join(line) for line in lines)
    codec = ["utf-8", "utf-8", "utf-8", "utf-8-sig", "latin-1", "utf-16", "utf-16-le", "utf-32"][rng.integers(8)]
    raw = bytearray(text.encode(codec, "replace"))
    if rng.random() < 0.3 and raw:
        for place in rng.integers(0, len(raw), size=rng.integers(1, 5)):
            raw[place] = rng.integers(256)
    return bytes(raw[: rng.integers(len(raw) + 1)] if rng.random() < 0.1 else raw)


def accounted(path: Path, source: Path, scans: set[str]) -> None:
    """Every row of the table and every image of the folder is in the cohort or among what was left out."""
    table = read_tsv(path)
    subject = next(name for name in table if name.lower() == "participant_id")
    labels = {bids_label("sub", value) or f"line-{line}" for line, value in table[subject].items()}
    seen = {scan.split("_ses-")[0] for scan in scans}
    lost = {label for label in labels if label not in seen and not any(scan.startswith("line-") for scan in scans)}
    assert not lost, lost
    if source.is_dir():
        assert {f"sub-0{number}" for number in range(1, 5)} <= seen


@pytest.mark.parametrize("n_tables", [FEW, LONG])
def test_every_changed_table_gives_a_cohort_or_words(tmp_path, capsys, n_tables):
    for number in range(1, 5):
        write_map(tmp_path / "mri" / f"mwp1sub-0{number}.nii", number)
    outcomes: Counter[str] = Counter()
    started = time.process_time()
    for number in range(n_tables):
        content = changed_table(np.random.default_rng([number, n_tables]))
        joined = number % 2 == 0
        path = tmp_path / "mri" / ("participants.tsv" if joined else "paths.tsv")
        path.write_bytes(content)
        source = path.parent if joined else path
        try:
            # One output folder: what was prepared once is not prepared again, and the cohort around it changes every time.
            passed = front([source], tmp_path / "out")
        except NilatentError as error:
            words = str(error)
            assert ". " in words, words
            assert any(word in words for word in ("participants.tsv", "paths.tsv", "sub-", "mri")), words
            outcomes["refused in words"] += 1
        else:
            assert load_cohort(tmp_path / "out" / "cohort").content_hash == passed.cohort.content_hash
            accounted(path, source, {*passed.prepared.scans.index, *passed.prepared.excluded["scan_id"]})
            outcomes["all scans" if len(passed.prepared.scans) == 4 else "some scans, the others listed"] += 1
        path.unlink()
    assert len(outcomes) == 3
    with capsys.disabled():
        if n_tables > FEW:
            print(
                f"\n{n_tables} tables, {time.process_time() - started:.0f} processor seconds: {dict(outcomes.most_common())}"
            )
