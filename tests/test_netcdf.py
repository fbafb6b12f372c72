"""Labelled arrays from strangers: small files that would fill the memory or show other files are refused."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr

from nilatent.netcdf import read_netcdf


@pytest.fixture
def path(tmp_path: Path, rng: np.random.Generator) -> Path:
    """What xarray writes of numbers, whole numbers, truths, texts in two dimensions, and pictures that are packed."""
    names = np.array([["Hippocampus_L", "é"], ["", "x" * 50]])
    made = xr.Dataset(
        {
            "mean": (("scan", "latent"), rng.standard_normal((5, 3)).astype(np.float32)),
            "seen": ("scan", [True, False, True, True, False]),
            "level": (("a", "b"), names),
            "picture": (("x", "y"), rng.integers(0, 9, (40, 30), dtype=np.uint8)),
            "none": ("scan_of_none", np.zeros(0)),
        },
        coords={"scan": [f"sub-{number}" for number in range(5)]},
        attrs={"caveat": "Read with care.", "shape": [3, 1]},
    )
    place = tmp_path / "data.nc"
    made.to_netcdf(place, engine="h5netcdf", encoding={"picture": {"zlib": True, "shuffle": True}})
    return place


def test_what_we_write_comes_back(path: Path):
    with xr.open_dataset(path, engine="h5netcdf") as plain:
        xr.testing.assert_identical(read_netcdf(path), plain.load())


def test_the_picture_of_an_empty_scan_is_read(tmp_path: Path):
    empty = xr.Dataset({"picture": (("x", "y"), np.zeros((1500, 1000), np.uint8))})
    empty.to_netcdf(tmp_path / "data.nc", engine="h5netcdf", encoding={"picture": {"zlib": True, "shuffle": True}})
    assert (tmp_path / "data.nc").stat().st_size < 20_000
    xr.testing.assert_identical(read_netcdf(tmp_path / "data.nc"), empty)


def external_link(file: h5py.File, beside: Path) -> None:
    file["secret"] = h5py.ExternalLink(str(beside), "secret")


def soft_link(file: h5py.File, beside: Path) -> None:
    file["secret"] = h5py.SoftLink("/mean")


def external_storage(file: h5py.File, beside: Path) -> None:
    file.create_dataset("secret", shape=(8,), dtype="u1", external=[(str(beside), 0, 8)])


def virtual(file: h5py.File, beside: Path) -> None:
    layout = h5py.VirtualLayout(shape=(4,), dtype="f8")
    layout[:] = h5py.VirtualSource(str(beside), "secret", shape=(4,))
    file.create_virtual_dataset("secret", layout)


def unwritten(file: h5py.File, beside: Path) -> None:
    file.create_dataset("huge", shape=(10**12,), dtype="f4", chunks=(10**6,))


def packed(file: h5py.File, beside: Path) -> None:
    file.create_dataset("huge", data=np.zeros((4096, 4096)), compression="gzip", compression_opts=9)


def many_packed(file: h5py.File, beside: Path) -> None:
    for number in range(30):
        file.create_dataset(
            f"huge{number}", data=np.zeros(10**6, np.uint8), chunks=(10**6,), compression="gzip", compression_opts=9
        )


def group(file: h5py.File, beside: Path) -> None:
    file.create_group("inner")


def compound(file: h5py.File, beside: Path) -> None:
    file.create_dataset("pairs", data=np.zeros(3, dtype=[("a", "f4"), ("b", "f4")]))


def other_filter(file: h5py.File, beside: Path) -> None:
    file.create_dataset("packed", data=np.arange(99), compression="lzf")


def many_texts(file: h5py.File, beside: Path) -> None:
    file.attrs["notes"] = ["x"] * 2000


def rows_of_texts(file: h5py.File, beside: Path) -> None:
    file.create_dataset("texts", data=[["x"] * 5000], dtype=h5py.string_dtype())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (external_link, "link to another place"),
        (soft_link, "link to another place"),
        (external_storage, "lie in another file"),
        (virtual, "lie in another file"),
        (unwritten, "claims 4000000000000 bytes, and 0 are stored"),
        (packed, "claim 99811328 bytes more"),
        (many_packed, "claim 2[0-9]{7} bytes more"),
        (group, "is no array"),
        (compound, "neither numbers nor text"),
        (other_filter, "does not use"),
        (many_texts, "too many texts"),
        (rows_of_texts, "5000 texts in a row"),
    ],
)
def test_what_we_do_not_write_is_refused_before_memory_is_taken(path: Path, tmp_path: Path, change, words: str):
    with h5py.File(tmp_path / "beside.h5", "w") as beside:
        beside["secret"] = np.arange(4.0)
    with h5py.File(path, "a") as file:
        change(file, tmp_path / "beside.h5")
    with pytest.raises(ValueError, match=words):
        read_netcdf(path)


def test_many_rows_that_point_at_one_text_are_refused(path: Path):
    with h5py.File(path, "a") as file:
        texts = file.create_dataset("texts", data=["x" * 100_000, *["y"] * 999], dtype=h5py.string_dtype())
        place = texts.id.get_offset()
    content = bytearray(path.read_bytes())
    content[place : place + 16_000] = content[place : place + 16] * 1000
    path.write_bytes(content)
    with h5py.File(path) as file:
        assert len(file["texts"][999]) == 100_000
    with pytest.raises(ValueError, match="more text than the file is long"):
        read_netcdf(path)


def test_arrays_that_lie_in_one_another_are_refused(path: Path):
    with h5py.File(path, "a") as file:
        file["numbers"] = np.arange(50_000.0)
        for index in range(9):
            file[f"again_{index}"] = file["numbers"]
    with pytest.raises(ValueError, match=r"it claims \d+ bytes of values and has"):
        read_netcdf(path)


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x89HDF\r\n\x1a\n" + bytes(200)])
def test_what_is_no_such_file_is_an_error_of_the_system(tmp_path: Path, content: bytes):
    (tmp_path / "data.nc").write_bytes(content)
    with pytest.raises(OSError, match="open"):
        read_netcdf(tmp_path / "data.nc")
