"""Mosaic: a few slices of a scan pulled into template space and kept, so that its preparation can be looked at."""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from scipy import ndimage

from nilatent.errors import ScanError
from nilatent.netcdf import read_netcdf
from nilatent.provenance import HEAD_BYTES, atomic, reserve
from nilatent.volumes import template

FORMAT_VERSION = 1
Points = npt.NDArray[np.float64]
# Plane: (axis it is cut along, vertical axis, horizontal axis, positions in mm). Cerebellum and temporal poles, basal
# ganglia, upper ventricles, vertex; occipital lobes, hippocampi, frontal lobes; insula and beside the midline.
PLANES: Mapping[str, tuple[str, str, str, tuple[float, ...]]] = {
    "axial": ("z", "y", "x", (-20.0, 0.0, 20.0, 45.0)),
    "coronal": ("y", "z", "x", (-55.0, -20.0, 15.0)),
    "sagittal": ("x", "z", "y", (-30.0, 8.0)),
}
# The template brain and a finger's breadth around it: what was left on, or cut off, must be in the picture.
BOX_MM: Mapping[str, tuple[int, int]] = {"x": (-86, 86), "y": (-120, 88), "z": (-74, 94)}
# Intensity that is drawn white, by the brain's 99.5th percentile: fat of the scalp is brighter than any brain.
HEADROOM = 1.15
# Every fourth voxel along each axis is enough to find the range of the intensities.
STEP = 4
MAP_IS_GREY = 0.5


def affine_points(to_template: npt.NDArray[np.float64]) -> Callable[[Points], Points]:
    """The way back from template to scan, for points, when the way there is an affine.

    Parameters
    ----------
    to_template : ndarray
        (4, 4) millimetres of the scan to millimetres of the template.
    """
    back = np.linalg.inv(to_template)
    return lambda points: points @ back[:3, :3].T + back[:3, 3]


def field_points(displacement: npt.NDArray[np.float32], affine: npt.NDArray[np.float64]) -> Callable[[Points], Points]:
    """The way back from template to scan, for points, when it is a displacement field.

    Parameters
    ----------
    displacement : ndarray
        (3, x, y, z) mm, from each point of the template to its point of the scan; beyond its edge the nearest counts.
    affine : ndarray
        (4, 4) of the field, in template space.
    """
    to_voxel = np.linalg.inv(affine)

    def back(points: Points) -> Points:
        voxels = (points @ to_voxel[:3, :3].T + to_voxel[:3, 3]).T
        moved = [ndimage.map_coordinates(part, voxels, order=1, mode="nearest") for part in displacement]
        return np.asarray(points + np.stack(moved, axis=1))

    return back


def scan_mosaic(
    data: npt.NDArray[np.float32],
    affine: npt.NDArray[np.float64],
    tissues: npt.NDArray[np.uint8] | None,
    *,
    to_scan: Callable[[Points], Points],
) -> xr.Dataset:
    """Slices of a scan as it was given, and of its tissues, in template space.

    Parameters
    ----------
    data : ndarray
        (x, y, z) intensities, the whole head if it is there.
    affine : ndarray
        (4, 4) of the scan.
    tissues : ndarray or None
        (x, y, z) labels: 0 background, 1 grey, 2 white, 3 fluid. None for a grey-matter map in template space: 1 stands
        where it exceeds 0.5.
    to_scan : Callable
        (n, 3) millimetres of the template to (n, 3) millimetres of the scan.

    Returns
    -------
    Dataset
        For each plane ``<plane>_scan`` (linear) and ``<plane>_tissue`` (nearest), uint8, with the dimensions position,
        vertical and horizontal in millimetres of the template, all growing to the right, the front and the top.
    """
    if tissues is None:
        return _map_mosaic(data, affine, to_scan)
    few = (slice(None, None, STEP),) * 3
    sparse, inside = data[few], tissues[few] > 0
    low = float(np.percentile(sparse, 1))
    high = HEADROOM * float(np.percentile(sparse[inside] if inside.any() else sparse, 99.5))
    return _dataset(
        {name: _bytes(cut, low, high) for name, cut in _cuts(data, affine, to_scan, order=1).items()},
        _cuts(tissues, affine, to_scan, order=0),
    )


def _map_mosaic(
    data: npt.NDArray[np.float32], affine: npt.NDArray[np.float64], to_scan: Callable[[Points], Points]
) -> xr.Dataset:
    cuts = _cuts(data, affine, to_scan, order=1)
    high = max(1.0, float(np.percentile(data[(slice(None, None, STEP),) * 3], 99.5)))
    return _dataset(
        {name: _bytes(cut, 0.0, high) for name, cut in cuts.items()},
        {name: cut > MAP_IS_GREY for name, cut in cuts.items()},
    )


@cache
def template_mosaic() -> xr.Dataset:
    """The template in the same slices: its T1, and its tissues as 1 (brain) and 2 (white matter)."""
    image = template("t1")
    brain, white = (template(name).get_fdata(dtype=np.float32) > 0.5 for name in ("mask", "wm"))
    tissues = np.where(brain & white, 2, brain).astype(np.uint8)
    return scan_mosaic(image.get_fdata(dtype=np.float32), image.affine, tissues, to_scan=lambda points: points)


def _axis(name: str) -> npt.NDArray[np.float64]:
    low, high = BOX_MM[name]
    return np.arange(low, high + 1, dtype=float)


def _cuts(
    values: npt.NDArray[Any], affine: npt.NDArray[np.float64], to_scan: Callable[[Points], Points], *, order: int
) -> dict[str, npt.NDArray[Any]]:
    to_voxel = np.linalg.inv(affine)
    cuts = {}
    for plane, (along, vertical, horizontal, positions) in PLANES.items():
        at = {along: np.asarray(positions), vertical: _axis(vertical), horizontal: _axis(horizontal)}
        spread = dict(zip(at, np.meshgrid(*at.values(), indexing="ij"), strict=True))
        there = to_scan(np.stack([spread[name].ravel() for name in "xyz"], axis=1))
        voxels = there @ to_voxel[:3, :3].T + to_voxel[:3, 3]
        sampled = ndimage.map_coordinates(values, voxels.T, order=order, mode="constant", cval=0)
        cuts[plane] = sampled.reshape([len(axis) for axis in at.values()])
    return cuts


def _bytes(values: npt.NDArray[np.float32], low: float, high: float) -> npt.NDArray[np.uint8]:
    scaled = (values - low) / max(high - low, 1e-6)
    return np.asarray(np.round(255 * np.clip(scaled, 0, 1)), dtype=np.uint8)


def _dataset(scan: Mapping[str, npt.NDArray[Any]], tissue: Mapping[str, npt.NDArray[Any]]) -> xr.Dataset:
    variables: dict[str, Any] = {}
    coordinates: dict[str, Any] = {name: (name, _axis(name), {"units": "mm"}) for name in BOX_MM}
    for plane, (_, vertical, horizontal, positions) in PLANES.items():
        dims = (f"{plane}_mm", vertical, horizontal)
        variables[f"{plane}_scan"] = (dims, scan[plane])
        variables[f"{plane}_tissue"] = (dims, np.asarray(tissue[plane], dtype=np.uint8))
        coordinates[f"{plane}_mm"] = (f"{plane}_mm", np.asarray(positions), {"units": "mm"})
    return xr.Dataset(variables, coordinates, {"format_version": FORMAT_VERSION})


def place(prepared: Path) -> Path:
    """Where the mosaic of a scan lies, by the path of its prepared map: in ``figures``, beside ``anat``."""
    return prepared.parent.parent / "figures" / f"{prepared.name.split('_space-')[0]}_mosaic.nc"


def write_mosaic(mosaic: xr.Dataset, path: Path) -> None:
    """Write a mosaic as compressed netCDF, atomically."""
    packed = {str(name): {"zlib": True, "complevel": 4, "shuffle": False} for name in mosaic.data_vars}
    with atomic(path) as temporary:
        reserve(temporary, mosaic.nbytes + HEAD_BYTES)
        mosaic.to_netcdf(temporary, engine="h5netcdf", encoding=packed)


def read_mosaic(path: Path) -> xr.Dataset:
    """Read what :func:`write_mosaic` wrote.

    Raises
    ------
    ScanError
        When the file is missing or damaged, or the slices are of another version.
    """
    rule = "has a mosaic"
    step = "Prepare the scan again; its map is not affected."
    try:
        mosaic = read_netcdf(path)
    except FileNotFoundError as error:
        raise ScanError(f"{path}: rule '{rule}' is broken: there is no such file. {step}", rule=rule) from error
    except (OSError, ValueError, KeyError) as error:
        raise ScanError(f"{path}: rule '{rule}' is broken: it is damaged ({error}). {step}", rule=rule) from error
    expected = template_mosaic()
    if mosaic.sizes != expected.sizes or set(mosaic.data_vars) != set(expected.data_vars):
        raise ScanError(f"{path}: rule '{rule}' is broken: its slices are of another version. {step}", rule=rule)
    return mosaic
