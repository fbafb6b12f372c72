"""Damaged input: every file is refused with file, rule, value and next step, or gives a scan that is sane."""

import gzip
import json
import os
import re
import resource
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections import Counter
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nilatent.cohort import read_cohort
from nilatent.errors import ScanError
from nilatent.preprocess import job, space
from nilatent.preprocess.config import RecipeConfig
from nilatent.preprocess.derivative import Place
from nilatent.preprocess.recipe import prepare
from nilatent.provenance import read_json
from nilatent.volumes import Grid, template

GRID = Grid.mni(6.0)
CONFIG = RecipeConfig(name="gm", spacing_mm=6.0, fwhm_mm=0.0)
BOMB_BYTES = 12 * 2**30
MAX_SECONDS, MAX_GROWTH_MB, FREE_BYTES = 5.0, 100.0, 3 * 2**30
# Offset, format and name of the fields of a NIfTI-1 header that decide how the voxels are read.
FIELDS = {
    "sizeof_hdr": (0, "<i"),
    "dim0": (40, "<h"),
    "dim1": (42, "<h"),
    "dim3": (46, "<h"),
    "dim4": (48, "<h"),
    "datatype": (70, "<h"),
    "bitpix": (72, "<h"),
    "qfac": (76, "<f"),
    "pixdim1": (80, "<f"),
    "pixdim3": (88, "<f"),
    "vox_offset": (108, "<f"),
    "scl_slope": (112, "<f"),
    "scl_inter": (116, "<f"),
    "xyzt_units": (123, "<B"),
    "qform_code": (252, "<h"),
    "sform_code": (254, "<h"),
    "quatern_b": (256, "<f"),
    "srow_x": (280, "<f"),
    "srow_xt": (292, "<f"),
    "srow_z": (320, "<f"),
    "magic": (344, "<i"),
}
WHOLE = (0, 1, 2, 7, -1, 1000, 32767, -32768)
REAL = (0.0, -1.0, 1e-30, 1e30, -3e38, np.nan, np.inf, 0.001, 1e9)


def grey():
    return template("gm", GRID).get_fdata(dtype=np.float32)


def nifti(data, *, affine=None, kind=nib.Nifti1Image, dtype=None, qform=True):
    image = kind(data, GRID.affine if affine is None else affine)
    if dtype is not None:
        image.set_data_dtype(dtype)
    image.set_sform(image.affine, 4)
    if qform:
        image.set_qform(image.affine, 1)
    return image


def header_of(shape, *, dtype=np.float32, side=6.0, kind=nib.Nifti1Header):
    """A header of its own, which claims what it likes."""
    header = kind()
    header.set_data_dtype(dtype)
    header.set_data_shape(shape)
    header.set_sform(np.diag([side, side, side, 1]), 4)
    size = header.sizeof_hdr
    header["magic"] = b"n+1" if size == 348 else b"n+2\0\r\n\x1a\n"
    header["vox_offset"] = size + 4
    return header.binaryblock + bytes(4)


def bomb(start, n_bytes):
    """A small gzip file that unpacks to a lot."""
    packer, zeros = zlib.compressobj(9, zlib.DEFLATED, 31), bytes(2**22)
    once = packer.compress(start) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(zeros) + packer.flush(zlib.Z_FULL_FLUSH)
    # After a full flush the packed block can be repeated as it is, so that a large bomb costs nothing to make.
    return once + block * (n_bytes // len(zeros))


class Shelf:
    """Writes damaged files into a folder and keeps what is expected of them: a rule, ``"sane"``, or ``""`` for either."""

    def __init__(self, folder):
        self.folder, self.expected, self.names = folder, {}, {}

    def add(self, family, content, expected="", ending=".nii"):
        path = self.folder / f"{len(self.expected):03d}_{family}{ending}"
        if content is not None:
            path.write_bytes(bytes(content))
        self.expected[str(path)] = expected
        return path


def fuzz_fields(shelf, base):
    for name, (place, form) in FIELDS.items():
        for value in REAL if form == "<f" else WHOLE:
            raw = bytearray(base)
            raw[place : place + struct.calcsize(form)] = struct.pack(form, value & 255 if form == "<B" else value)
            shelf.add(f"{name}-{value:g}", raw)


def fuzz_bytes(shelf, base, rng):
    for number in range(60):
        raw = bytearray(base)
        for place in rng.integers(0, 352, size=rng.integers(1, 25)):
            raw[place] = rng.integers(256)
        packed = number % 2
        shelf.add("bytes", gzip.compress(bytes(raw)) if packed else raw, ending=".nii.gz" if packed else ".nii")
    for _ in range(15):
        raw = bytearray(base)
        place, length = int(rng.integers(0, 340)), int(rng.integers(1, 40))
        raw[place : place + length] = rng.integers(0, 256, length, dtype=np.uint8).tobytes()
        shelf.add("burst", raw)
    for _ in range(10):
        swapped = bytearray(base)
        at = int(rng.integers(348, len(base)))
        swapped[at:] = rng.integers(0, 256, len(base) - at, dtype=np.uint8).tobytes()
        shelf.add("voxels", swapped)


def cut(shelf, base, rng):
    packed = gzip.compress(base)
    for length in rng.integers(1, len(base) - 1, size=20):
        shelf.add("cut", base[:length], "readable")
    for length in rng.integers(1, len(packed) - 1, size=25):
        shelf.add("cut", packed[:length], "readable", ".nii.gz")
    for _ in range(25):
        flipped = bytearray(packed)
        flipped[int(rng.integers(100, len(packed)))] ^= 1 << int(rng.integers(8))
        shelf.add("flipped", flipped, "readable", ".nii.gz")
    shelf.add("trailing", base + rng.bytes(5000), "sane")
    shelf.add("trailing", gzip.compress(base + bytes(5000)), "sane", ".nii.gz")
    shelf.add("trailing", packed + b"garbage", "readable", ".nii.gz")


def shapes(shelf, base):
    for shape in [(32767,) * 3, (2000, 2000, 2000), (32767, 2, 2), (1, 30, 30), (30, 30), (30, 30, 30, 2), (2,) * 7]:
        flat = len(shape) < 3 or any(side > 1 for side in shape[3:])
        rule = "three dimensions" if flat else "extent" if shape[1] < 3 or shape[0] == 1 else "plausible size"
        for order in (header_of(shape), gzip.compress(header_of(shape))):
            shelf.add("shape", order, rule, ".nii" if order[:2] != b"\x1f\x8b" else ".nii.gz")
    for big in (2**40, 2**62, -5):
        raw = bytearray(header_of((9, 9, 9), kind=nib.Nifti2Header))
        raw[24:32] = struct.pack("<q", big)
        shelf.add("int64", raw, "" if big < 0 else "plausible size")
    shelf.add("claims", header_of((300, 300, 300), dtype=np.float64, side=1.0), "readable")
    shelf.add("claims", gzip.compress(header_of((300, 300, 300), dtype=np.float64, side=1.0)), "readable", ".nii.gz")
    endless = bomb(header_of((350, 350, 350), dtype=np.float64, side=1.0), BOMB_BYTES)
    shelf.add("bomb", endless, "readable", ".nii.gz")
    shelf.add("bomb", bomb(base, BOMB_BYTES), "sane", ".nii.gz")
    far = bytearray(header_of((30, 30, 30)))
    far[108:112], far[348] = struct.pack("<f", 2e9), 1
    shelf.add("bomb", bomb(bytes(far), BOMB_BYTES), "readable", ".nii.gz")
    long = bytearray(header_of((30, 30, 30)))
    long[108:112], long[348:352] = struct.pack("<f", 1e6), b"\1\0\0\0"
    long += struct.pack("<ii", 2**31 - 16, 6)
    shelf.add("bomb", bomb(bytes(long), BOMB_BYTES), "readable", ".nii.gz")


def kinds(shelf, rng):
    data = grey()
    hidden = np.zeros(data.shape, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    for name, image, expected in [
        ("complex", nifti(data.astype(np.complex64)), "one number per voxel"),
        ("rgb", nifti(hidden), "one number per voxel"),
        ("int16-slope", nifti(data, dtype=np.int16), "sane"),
        ("uint8-slope", nifti(data, dtype=np.uint8), "sane"),
        ("big-endian", nib.Nifti1Image(data, GRID.affine, nib.Nifti1Header(endianness=">")), "sane"),
        ("five-axes", nifti(data[..., None, None]), "sane"),
        ("nan", nifti(np.where(data > 0.5, np.nan, data)), "finite values"),
        ("inf", nifti(np.where(data > 0.5, np.inf, data)), "finite values"),
        ("too-large", nifti(np.where(data > 0.5, 1e300, 0.0)), "finite values"),
        ("huge", nifti(data * np.float32(1e30)), "plausible intensities"),
        ("tiny", nifti(data * np.float32(1e-30)), "plausible intensities"),
        ("constant", nifti(np.full_like(data, 7)), "not constant"),
        ("negative-too", nifti(data - 0.5), "sane"),
        ("mirror", contradiction(data), "one left and right"),
        ("no-orientation", no_orientation(data), "sane"),
    ]:
        shelf.add(name, image.to_bytes(), expected)
    # A number of sixteen bytes exists on some processors only.
    long = bytearray(nifti(data).to_bytes()[:352])
    long[70:74] = struct.pack("<hh", 1536, 128)
    shelf.add("longdouble", long + data.ravel(order="F").astype(np.longdouble).tobytes())
    for unit, factor in (("micron", 1000.0), ("meter", 0.001), ("mm", 1000.0), ("unknown", 0.001)):
        affine = GRID.affine.copy()
        affine[:3] *= factor
        image = nifti(data, affine=affine)
        image.header.set_xyzt_units(unit)
        expected = "sane" if unit in ("micron", "meter") else "voxel size"
        shelf.add(unit, image.to_bytes(), expected)


def contradiction(data):
    image = nifti(data)
    image.set_qform(np.diag([-1.0, 1, 1, 1]) @ GRID.affine, 1)
    return image


def no_orientation(data):
    image = nifti(data)
    image.set_sform(GRID.affine, 0)
    image.set_qform(GRID.affine, 0)
    return image


def other_files(shelf, base):
    link = shelf.add("link", None, "file exists")
    link.symlink_to("../.git/annex/objects/gone.nii.gz")
    shelf.add("folder", None, "file exists").mkdir()
    shelf.add("gone", None, "file exists")
    shelf.add("empty", b"", "file not empty")
    shelf.add("lfs", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "file is here", ".nii.gz")
    shelf.add("annex", b"/annex/objects/MD5E-s62--0.nii.gz\n", "file is here", ".nii.gz")
    png = b"\x89PNG\r\n\x1a\n" + bytes(500)
    for content in (
        b"not an image at all\n" * 100,
        png,
        b"PK\3\4" + bytes(600),
        b"<?xml version='1.0'?><a>",
        b"\x1f\x8b",
    ):
        for ending in (".nii", ".nii.gz", ".img", ".gii", ".mgz", ".txt"):
            shelf.add("other", content, "readable", ending)
    shelf.add("named-wrong", base, "readable", ".nii.gz")
    shelf.add("named-wrong", gzip.compress(base), "readable", ".nii")
    pair = nib.Nifti1Pair(grey(), GRID.affine)
    for keep, drop in ((".hdr", ".img"), (".img", ".hdr")):
        path = shelf.add("pair", None, "readable", keep)
        nib.save(pair, path)
        path.with_suffix(drop).unlink()
    nib.save(nib.MGHImage(grey(), GRID.affine), shelf.add("freesurfer", None, "sane", ".mgz"))
    nib.save(nib.Spm2AnalyzeImage(grey(), GRID.affine), shelf.add("analyze", None, "sane", ".img"))


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    made = Shelf(tmp_path_factory.mktemp("damaged"))
    rng, base = np.random.default_rng(20), whole_file()
    fuzz_fields(made, base)
    fuzz_bytes(made, base, rng)
    cut(made, base, rng)
    shapes(made, base)
    kinds(made, rng)
    other_files(made, base)
    return made


def outcome(path):
    started = time.process_time()
    try:
        scan = space.load_scan(Path(path))
    except ScanError as error:
        found = {"rule": error.rule, "message": str(error)}
    else:
        sane = (
            scan.data.ndim == 3
            and bool(np.isfinite(scan.data).all())
            and nib.aff2axcodes(scan.affine) == ("R", "A", "S")
            and 0.4 <= scan.voxel_mm.min() <= scan.voxel_mm.max() <= 6.006
        )
        found = {"rule": "sane" if sane else "insane", "message": ""}
    return found | {"seconds": time.process_time() - started}


def run_apart(paths):
    """Outcomes of files in a process of its own, which cannot take much memory and is stopped at a file that hangs."""
    asked = subprocess.run(
        [sys.executable, __file__], input=json.dumps(paths), capture_output=True, text=True, timeout=280, check=True
    )
    assert asked.stderr == ""
    return json.loads(asked.stdout)


def peak_mb():
    """Most memory that this process ever held; the maximum of `getrusage` counts the parent's before `exec`, too."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\s+(\d+)", status.read_text()).group(1)) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main():
    paths = json.loads(sys.stdin.read())
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    if pages:
        limit = pages * resource.getpagesize() + FREE_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    before = peak_mb()
    found = {}
    for path in paths:
        signal.alarm(60)
        found[path] = outcome(path)
    signal.alarm(0)
    sys.stdout.write(json.dumps({"files": found, "grown_mb": peak_mb() - before}))


@pytest.mark.skipif(sys.platform == "win32", reason="limits of a process are POSIX")
def test_three_hundred_damaged_files_are_refused_by_rule_or_give_a_sane_scan(shelf):
    assert len(shelf.expected) >= 300
    answer = run_apart(list(shelf.expected))
    rules = Counter(found["rule"] for found in answer["files"].values())
    wrong = {}
    for path, expected in shelf.expected.items():
        found = answer["files"][path]
        if found["rule"] == "insane" or (expected and found["rule"] != expected):
            wrong[Path(path).name] = (expected, found)
        elif found["rule"] != "sane":
            message = found["message"]
            assert message.startswith(f"{path}: rule '{found['rule']}' is broken: "), message
            assert message.endswith("."), message
            assert message.count(". ") >= 1, message
    assert wrong == {}
    assert sum(rules.values()) - rules["sane"] > 200, rules
    assert len(rules) >= 10, rules
    assert max(found["seconds"] for found in answer["files"].values()) < MAX_SECONDS
    assert answer["grown_mb"] < MAX_GROWTH_MB


def test_harmless_damage_leaves_the_voxels_as_they_were(shelf):
    whole = grey()
    for family in ("trailing", "bomb", "big-endian", "five-axes", "micron", "meter"):
        for path in [path for path, expected in shelf.expected.items() if f"_{family}" in path and expected == "sane"]:
            scan = space.load_scan(Path(path))
            np.testing.assert_array_equal(scan.data, whole)
            np.testing.assert_allclose(scan.affine, GRID.affine, atol=1e-4)


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="needs permissions that hold")
def test_a_file_that_may_not_be_read_is_named(tmp_path):
    path = tmp_path / "scan.nii"
    path.write_bytes(nifti(grey()).to_bytes())
    path.chmod(0)
    with pytest.raises(ScanError, match="permissions") as caught:
        space.load_scan(path)
    assert caught.value.rule == "readable"


def test_scans_of_thick_slices_and_turned_axes_are_read(tmp_path):
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(0.4), -np.sin(0.4)], [np.sin(0.4), np.cos(0.4)]]
    data = np.random.default_rng(1).normal(100, 10, (155, 131, 31)).astype(np.float32)
    path = tmp_path / "scan.nii.gz"
    nib.save(nifti(data, affine=turn @ np.diag([-1.0, 1.0, 5.0, 1.0])), path)
    scan = space.load_scan(path)
    assert scan.stored_axes == "LAS"
    np.testing.assert_allclose(scan.voxel_mm, [1, 1, 5], atol=1e-5)
    np.testing.assert_array_equal(scan.data, data[::-1])
    stored = space.as_stored(scan.data, scan)
    np.testing.assert_array_equal(stored.get_fdata(dtype=np.float32), data)


def test_reading_in_slabs_is_reading_at_once(tmp_path, monkeypatch):
    path = tmp_path / "scan.nii.gz"
    nib.save(nifti(grey(), dtype=np.int16), path)
    whole = space.load_scan(path).data
    monkeypatch.setattr(space, "SLAB_VOXELS", 2500)
    np.testing.assert_array_equal(space.load_scan(path).data, whole)


@cache
def whole_file():
    return nifti(grey()).to_bytes()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    edits=st.lists(st.tuples(st.integers(0, 359), st.binary(min_size=1, max_size=8)), max_size=6),
    length=st.one_of(st.none(), st.integers(1, 131_424)),
    packed=st.booleans(),
)
def test_no_bytes_make_load_scan_raise_anything_but_a_scan_error(tmp_path, edits, length, packed):
    raw = bytearray(whole_file())
    for place, content in edits:
        raw[place : place + len(content)] = content
    path = tmp_path / ("scan.nii.gz" if packed else "scan.nii")
    path.write_bytes(gzip.compress(bytes(raw[:length]), 1) if packed else bytes(raw[:length]))
    assert outcome(path)["rule"] != "insane"


# The same files through a cohort


def table_of(shelf, folder, every):
    chosen = list(shelf.expected)[::every]
    rows = [f"damaged{number}\t{path}\n" for number, path in enumerate(chosen)]
    for number in range(2):
        good = folder / f"good{number}_label-GM.nii.gz"
        nib.save(nifti(grey() * np.float32(1 - 0.1 * number)), good)
        rows.append(f"good{number}\t{good}\n")
    path = folder / "scans.tsv"
    path.write_text("participant_id\tpath\n" + "".join(rows), encoding="utf-8")
    return path, len(chosen)


@pytest.mark.slow
def test_of_a_cohort_of_damaged_maps_every_one_is_listed_and_the_good_ones_finish(shelf, tmp_path):
    path, n_damaged = table_of(shelf, tmp_path, 10)
    assert n_damaged >= 40
    cohort = read_cohort([path])
    done = prepare(cohort, tmp_path / "out", CONFIG, n_procs=2)
    listed = pd.concat([done.scans.index.to_series(), done.excluded["scan_id"]])
    assert set(listed) == {f"sub-damaged{number}" for number in range(n_damaged)} | {"sub-good0", "sub-good1"}
    assert {"sub-good0", "sub-good1"} <= set(done.scans.index)
    assert len(done.excluded) >= 25
    assert "engine succeeds" not in set(done.excluded["rule"])
    for reason in done.excluded["reason"]:
        assert reason.count(". ") >= 1, reason
    for prepared in done.scans["path"]:
        data = nib.load(prepared).get_fdata()
        assert data.shape == GRID.shape
        assert np.isfinite(data).all()


def test_damaged_t1_scans_are_refused_before_an_engine_starts(shelf, tmp_path, monkeypatch):
    def engine(*_, **__):
        raise AssertionError("an engine was started")

    monkeypatch.setattr(job, "prepare_t1", engine)
    refused = [path for path, expected in shelf.expected.items() if expected not in ("", "sane")][::3]
    assert len(refused) > 40
    config = RecipeConfig(name="t1", spacing_mm=6.0, fwhm_mm=0.0)
    for number, path in enumerate(refused):
        place = Place(tmp_path, f"sub-{number}", "", 6.0, "gm", "modulated")
        with pytest.raises(ScanError, match="rule '"):
            job.prepare_scan(job.Job("scan", Path(path), config, place, "bids::x", "", tmp_path))
        assert not place.folder.exists()


DAMAGED_SIDE_CARS = [
    "",
    "{",
    "[]",
    "null",
    '{"nilatent": []}',
    '{"nilatent": {"Key": 1}}',
    "\x00\xff",
    "{}",
    "[" * 50_000,
]


def test_a_damaged_side_car_of_an_earlier_run_is_done_again(tmp_path):
    path, _ = table_of(Shelf(tmp_path), tmp_path, 1)
    cohort, out = read_cohort([path]), tmp_path / "out"
    before = prepare(cohort, out, CONFIG)
    side_car = Path(before.scans["path"].iloc[0].replace(".nii.gz", ".json"))
    whole = read_json(side_car)
    for content in DAMAGED_SIDE_CARS:
        side_car.write_bytes(content.encode("latin-1"))
        after = prepare(cohort, out, CONFIG)
        assert read_json(side_car) == whole
        pd.testing.assert_frame_equal(before.scans, after.scans)


if __name__ == "__main__":
    main()
