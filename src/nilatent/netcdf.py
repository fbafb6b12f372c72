"""Netcdf: labelled arrays from a file that a stranger may have made: what it claims is checked before memory is taken."""

from math import prod
from pathlib import Path

import h5py
import xarray as xr

# A dimension without a coordinate is kept as an empty array under this name, and never read.
NO_VARIABLE = "This is a netCDF dimension but not a netCDF variable"
KINDS = "biuf"
# Pictures of brains shrink to a tenth, zeros to a thousandth.
MAX_RATIO = 200
# Except for small arrays of one value, such as the picture of an empty scan: so much of all arrays together.
MAX_BEYOND = 2**24
# What deflates, shuffles and sums; other filters are programs of their own, looked for on this machine.
FILTERS = (h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32)
# Texts are read in blocks; one block of texts that all lie in the same place costs no more than so many times the file.
BLOCK = 16
MAX_TEXTS_AT_ONCE = 1024


def read_netcdf(path: Path) -> xr.Dataset:
    """Labelled arrays as nilatent writes them: one group, all values in the file itself, few of them compressed.

    Parameters
    ----------
    path : Path
        A netCDF-4 file.

    Returns
    -------
    Dataset
        In memory; the file is closed.

    Raises
    ------
    OSError
        When it is no such file, or cut short.
    ValueError
        When it holds links, virtual or external arrays, groups, or arrays much larger than what is stored of them: small
        files that would fill the memory, or show another file of this machine as their own values.

    Notes
    -----
    HDF5, on which netCDF-4 rests, follows links into any other file and fills or unpacks an array of any claimed size.
    nilatent writes no such thing, so the file is refused, rather than some of it believed. Nothing in it is ever run.
    """
    size = path.stat().st_size
    with h5py.File(path, "r") as file:
        _check_attributes(file)
        found = [_stored_bytes(file, name, size) for name in file]
        stored, beyond = (sum(column) for column in zip(*found, strict=True)) if found else (0, 0)
        if stored > size:
            raise ValueError(f"it claims {stored} bytes of values and has {size}")
        if beyond > MAX_BEYOND:
            raise ValueError(f"its arrays claim {beyond} bytes more than what is stored of them can hold")
    with xr.open_dataset(path, engine="h5netcdf") as opened:
        return opened.load()


def _stored_bytes(file: h5py.File, name: str, size: int) -> tuple[int, int]:
    """Bytes stored of one array, found to be one that nilatent can have written, and what it claims beyond real values."""
    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        raise ValueError(f"'{name}' is a link to another place")
    array = file[name]
    if not isinstance(array, h5py.Dataset):
        raise ValueError(f"'{name}' is no array")
    if array.is_virtual or array.external:
        raise ValueError(f"the values of '{name}' lie in another file")
    _check_attributes(array)
    if NO_VARIABLE in str(array.attrs.get("NAME", "")):
        return 0, 0
    text = h5py.check_string_dtype(array.dtype)
    if array.dtype.kind not in KINDS and text is None:
        raise ValueError(f"'{name}' holds {array.dtype}, neither numbers nor text")
    made = array.id.get_create_plist()
    filters = [made.get_filter(place)[0] for place in range(made.get_nfilters())]
    if not set(filters) <= set(FILTERS):
        raise ValueError(f"'{name}' is packed in a way that nilatent does not use")
    claimed, stored = int(array.size or 0) * array.dtype.itemsize, int(array.id.get_storage_size())
    beyond = max(claimed - stored * (MAX_RATIO if filters else 1), 0)
    if beyond and not filters:
        raise ValueError(f"'{name}' claims {claimed} bytes, and {stored} are stored of it")
    if text is not None and text.length is None:
        _check_texts(array, name, size)
    return stored, beyond


def _check_texts(array: h5py.Dataset, name: str, size: int) -> None:
    """Refuse texts that are together longer than the file: many rows that point at one text."""
    in_row = prod(array.shape[1:])
    if in_row > MAX_TEXTS_AT_ONCE:
        raise ValueError(f"'{name}' holds {in_row} texts in a row")
    total, step = 0, max(1, BLOCK // max(in_row, 1))
    for start in range(0, len(array) if array.ndim else 0, step):
        total += sum(len(text) for text in array[start : start + step].flat)
        if total > size:
            raise ValueError(f"'{name}' holds more text than the file is long")


def _check_attributes(place: h5py.File | h5py.Dataset) -> None:
    for name in place.attrs:
        told = place.attrs.get_id(name)
        if h5py.check_string_dtype(told.dtype) is not None and told.get_space().get_simple_extent_npoints() > (
            MAX_TEXTS_AT_ONCE
        ):
            raise ValueError(f"the attribute '{name}' holds too many texts")
