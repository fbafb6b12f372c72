"""What the page looks into: small volumes of some scans, and the regions of the atlas on the template, drawn by NiiVue.

Everything is in the page as compressed bytes with a NIfTI header beside them, so that a viewer asks for nothing and what is
shown can be saved as an ordinary NIfTI file.
"""

import base64
import gzip
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib as mpl
import nibabel as nib
import numpy as np
import numpy.typing as npt

from nilatent.atlas import Atlas, load_atlas
from nilatent.errors import AtlasError
from nilatent.plots import style
from nilatent.plots.reconstruction import ERROR_MAP
from nilatent.viewed import LEVELS, Viewed, encoded_bytes
from nilatent.volumes import Grid, gm_mask, template

__all__ = ["RegionMap", "ScanViewer", "packed_template", "region_map", "scan_viewer", "words"]

MNI_CODE = 4
HEADER_BYTES = 352
MEGABYTE = 1e6
REGIONS_MM = 3.0
UNITS = {"gm": "grey-matter fraction", "t1w": "scaled T1 intensity"}


@dataclass(frozen=True)
class ScanViewer:
    """Volumes of scans as the page holds them.

    Attributes
    ----------
    settings
        Plain values for the script: headers, range, colours, and of every scan its id and whether its subject was seen.
    blobs
        Base64 of the compressed codes of each scan, original before reconstruction.
    sentence
        How many scans are embedded, which, and how large they are.
    """

    settings: Mapping[str, Any]
    blobs: tuple[str, ...]
    sentence: str


@dataclass(frozen=True)
class RegionMap:
    """The atlas on the template as the page holds it: plain values for the script, and base64 of compressed codes."""

    settings: Mapping[str, Any]
    template: str
    labels: str


def scan_viewer(viewed: Viewed, *, target: str) -> ScanViewer:
    """Volumes that a click on a dot of the scatter shows.

    Parameters
    ----------
    viewed : Viewed
        Of :func:`nilatent.viewed.read_viewed`.
    target : {"gm", "t1w"}
        What the volumes hold.
    """
    shape = viewed.original.shape[1:]
    slope = (viewed.high - viewed.low) / LEVELS
    known = zip(viewed.scans, viewed.unseen, strict=True)
    settings = {
        "shape": list(shape),
        "header": header(shape, viewed.affine, np.uint8, slope=slope, intercept=viewed.low),
        "error_header": header(shape, viewed.affine, np.float32),
        "slope": slope,
        "low": viewed.low,
        "high": viewed.high,
        "error_limit": viewed.error_limit,
        "unit": UNITS.get(target, target),
        "amount_colours": colours(style.SCAN_MAP),
        "error_colours": colours(ERROR_MAP, n_steps=33),
        "scans": [{"id": scan, "unseen": bool(unseen)} for scan, unseen in known],
        "n_all": viewed.n_all,
    }
    pairs = zip(viewed.original, viewed.model, strict=True)
    return ScanViewer(settings, tuple(packed(*pair) for pair in pairs), words(viewed))


def words(viewed: Viewed) -> str:
    """How many scans are embedded and which, and where to see the others.

    Parameters
    ----------
    viewed : Viewed
        What is embedded.
    """
    n_shown, n_listed = len(viewed.scans), int(viewed.listed.sum())
    size = sum(encoded_bytes(*pair) for pair in zip(viewed.original, viewed.model, strict=True)) / MEGABYTE
    spacing = float(np.linalg.norm(viewed.affine[:3, 0]))
    start = f"Volumes of {n_shown} of {viewed.n_all} scans are embedded at {spacing:g} mm, {size:.1f} MB"
    if n_shown == viewed.n_all:
        return f"{start}."
    n_unseen, n_rest = (int((~viewed.listed & (viewed.unseen == which)).sum()) for which in (True, False))
    which = [f"{n_listed} named in this report or with the largest errors"] * (n_listed > 0)
    which += [f"{n_unseen} of subjects that the model has not seen"] * (n_unseen > 0)
    which += [f"{n_rest} of subjects that it has seen"] * (n_rest > 0)
    listed = ", then ".join(which)
    return f"{start}: {listed}, each the farthest in latent space from those before. For all: nilatent explore."


def region_map(names: Mapping[str, int], atlas: Mapping[str, Any]) -> RegionMap | None:
    """Regions that a click on a row of a table shows; None where the atlas is not to be had.

    Parameters
    ----------
    names : Mapping[str, int]
        Region to label, of this study.
    atlas : Mapping
        Settings of the atlas: ``spec``, ``table``.
    """
    table = Path(atlas["table"]) if atlas.get("table") else None
    try:
        found = load_atlas(atlas.get("spec", "aal2"), table=table)
    except AtlasError:
        # A report may be built where the atlas file of the study is not; the tables and maps are complete without.
        return None
    grid = Grid.mni(REGIONS_MM)
    labels = _nearest(found, grid)
    code = np.uint8 if labels.max() <= LEVELS else np.uint16
    settings = {
        "shape": list(grid.shape),
        "header": header(grid.shape, grid.affine, np.uint8),
        "wide": code is np.uint16,
        "names": [[name, int(label)] for name, label in names.items()],
        "atlas": found.name,
    }
    return RegionMap(settings, packed_template(), packed(labels.astype(code)))


def _nearest(atlas: Atlas, grid: Grid) -> npt.NDArray[np.int64]:
    """Label at the centre of every voxel of a grid."""
    image = np.asarray(atlas.image.dataobj).astype(np.int64).reshape(atlas.image.shape[:3])
    to_atlas = np.linalg.inv(atlas.image.affine) @ grid.affine
    places = np.indices(grid.shape).reshape(3, -1)
    found = np.rint(to_atlas[:3, :3] @ places + to_atlas[:3, 3:]).astype(np.intp)
    inside = ((found >= 0) & (found < np.array(image.shape)[:, None])).all(axis=0)
    labels = np.zeros(places.shape[1], dtype=np.int64)
    labels[inside] = image[tuple(found[:, inside])]
    return labels.reshape(grid.shape)


@cache
def packed_template() -> str:
    """Base64 of compressed codes of the template that lies under regions and maps, on the grid of `REGIONS_MM`."""
    grid = Grid.mni(REGIONS_MM)
    values = template("t1", grid).get_fdata(dtype=np.float32)
    top = float(np.quantile(values[gm_mask(grid)], 0.999))
    return packed(np.asarray(np.rint(np.clip(values / top, 0.0, 1.0) * LEVELS), dtype=np.uint8))


def header(
    shape: tuple[int, ...],
    affine: npt.NDArray[np.float64],
    dtype: type[np.generic],
    *,
    slope: float = 1.0,
    intercept: float = 0.0,
) -> str:
    """Base64 of what a NIfTI file of such values begins with."""
    made = nib.Nifti1Header(endianness="<")
    made.set_data_shape(shape)
    made.set_data_dtype(dtype)
    made.set_sform(affine, code=MNI_CODE)
    made.set_qform(affine, code=MNI_CODE)
    made.set_xyzt_units("mm")
    made["vox_offset"] = HEADER_BYTES
    made["magic"] = b"n+1"
    # nibabel leaves the scaling to whoever writes the file; these fields are at bytes 112 and 116.
    block = bytearray(made.binaryblock)
    struct.pack_into("<ff", block, 112, slope, intercept)
    return base64.b64encode(bytes(block) + bytes(HEADER_BYTES - len(block))).decode()


def packed(*arrays: npt.NDArray[Any]) -> str:
    """Base64 of compressed codes, one array after the other, in the order of voxels of NIfTI."""
    codes = b"".join(one.astype(one.dtype.newbyteorder("<")).tobytes(order="F") for one in arrays)
    return base64.b64encode(gzip.compress(codes, mtime=0)).decode()


def colours(name: str, *, n_steps: int = 17) -> dict[str, list[int]]:
    """A map of colours as NiiVue reads it: red, green and blue at steps from 0 to 255."""
    table = (mpl.colormaps[name](np.linspace(0.0, 1.0, n_steps))[:, :3] * 255).round().astype(int)
    steps = np.linspace(0, 255, n_steps).round().astype(int)
    red, green, blue = (table[:, index].tolist() for index in range(3))
    return {"R": red, "G": green, "B": blue, "A": [255] * n_steps, "I": steps.tolist()}
