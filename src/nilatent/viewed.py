"""Viewed: small volumes of some scans and of what the model makes of them, to be looked at beside a scatter of all scans.

A page that opens by itself cannot hold every scan. Which ones it holds is decided here, once, by a rule that knows no
label: those reconstructed worst, then scans that the model has not seen, spread over the latent space, then the others.
"""

import gzip
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xarray as xr

from nilatent.errors import FindingError
from nilatent.netcdf import read_netcdf
from nilatent.provenance import HEAD_BYTES, atomic, reserve
from nilatent.volumes import Volumes

__all__ = ["Viewed", "encoded_bytes", "read_viewed", "view", "viewing_order", "write_viewed"]

FILE = "viewed.nc"
SPACING_MM = 3.0
"""Finer volumes are averaged in whole blocks of voxels until a voxel is at least so wide."""
BUDGET_BYTES = 6_000_000
"""Of all volumes together, compressed and written as base64."""
N_WORST, MAX_SCANS, N_AXES = 5, 400, 10
TOP_QUANTILE = 0.999
LEVELS = 255
FORMAT_VERSION = 1

Chunks = Iterable[tuple[npt.NDArray[np.intp], npt.NDArray[np.float32]]]


@dataclass(frozen=True, eq=False)
class Viewed:
    """Originals and reconstructions of some scans, coded in eight bits.

    Parameters
    ----------
    scans : tuple[str, ...]
        Their ids, in the order in which they were chosen.
    listed, unseen : ndarray
        (scan,) bool: whether it is here because a figure names it or its error is among the largest, and whether the
        model that reconstructed it has not seen its subject.
    original, model : ndarray
        (scan, x, y, z) uint8: 0 stands for `low`, 255 for `high`, and what lies beyond is cut off.
    affine : ndarray
        (4, 4) voxel indices to RAS millimetres.
    low, high : float
        Range of both, in units of the scans.
    error_limit : float
        Half-width of the colour bar of reconstruction minus original, in the same units.
    n_all : int
        Scans of the study, of which these are some.
    """

    scans: tuple[str, ...]
    listed: npt.NDArray[np.bool_]
    unseen: npt.NDArray[np.bool_]
    original: npt.NDArray[np.uint8]
    model: npt.NDArray[np.uint8]
    affine: npt.NDArray[np.float64]
    low: float
    high: float
    error_limit: float
    n_all: int


def viewing_order(points: npt.NDArray[np.float64], unseen: npt.NDArray[np.bool_], first: Sequence[int]) -> list[int]:
    """Rows in the order in which they are to be shown, each once, and no more than a page can hold at all.

    Parameters
    ----------
    points : ndarray
        (scan, latent): where the scans lie.
    unseen : ndarray
        (scan,) whether the model has not seen the subject.
    first : Sequence[int]
        Rows that are shown whatever happens.

    Returns
    -------
    list[int]
        After the first, always the scan farthest from all that were chosen, among the unseen as long as there are any.

    References
    ----------
    Gonzalez (1985), farthest-point clustering. https://doi.org/10.1016/0304-3975(85)90224-5

    Examples
    --------
    >>> viewing_order(np.array([[0.0], [1.0], [9.0]]), np.array([True, True, True]), [0])
    [0, 2, 1]
    """
    order = [int(row) for row in dict.fromkeys(first)]
    away = np.full(len(points), np.inf)
    for row in order:
        away = np.minimum(away, np.square(points - points[row]).sum(axis=1))
    left = np.ones(len(points), dtype=bool)
    left[order] = False
    # Without a first scan the one in the middle begins: the farthest would be an outlier.
    if not order:
        away = -np.square(points - np.median(points, axis=0)).sum(axis=1)
    for pool in (unseen, ~unseen):
        while (left & pool).any() and len(order) < MAX_SCANS:
            row = int(np.argmax(np.where(left & pool, away, -np.inf)))
            distance = np.square(points - points[row]).sum(axis=1)
            away = distance if not order else np.minimum(away, distance)
            left[row] = False
            order.append(row)
    return order


def leading_axes(values: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """(scan, axis) positions on the first principal axes of the latents: noise in the others would spread every scan."""
    centred = np.asarray(values, dtype=np.float64) - np.mean(values, axis=0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    return np.asarray(u[:, :N_AXES] * s[:N_AXES])


def view(
    volumes: Volumes,
    latents: xr.Dataset,
    errors: "xr.DataArray | None",
    reconstruct: Callable[[npt.NDArray[np.intp]], Chunks],
    *,
    cases: Sequence[str] = (),
    budget_bytes: int = BUDGET_BYTES,
) -> Viewed:
    """Small volumes of as many scans as the budget holds.

    Parameters
    ----------
    volumes : Volumes
        The originals.
    latents : Dataset
        As vectors: ``mean`` (scan, latent) and ``subject_in_training``, of the scans in `volumes`, in any order.
    errors : DataArray, optional
        Error of scans, by the coordinate ``scan``: the largest of unseen scans are always shown.
    reconstruct : Callable
        Gives, of rows of `volumes`, pairs of rows and their reconstructions inside the mask, (batch, voxel) float32, in
        the order asked for; read only as far as the budget goes.
    cases : Sequence[str]
        Scans that a figure names and that are therefore shown.
    budget_bytes : int
        Of the volumes together, as a page holds them. The first scan is shown whatever its size.

    Returns
    -------
    Viewed
        In the order of :func:`viewing_order`.
    """
    names = list(map(str, volumes.scans.index))
    latents = latents.sel(scan=names)
    unseen = ~latents["subject_in_training"].values.astype(bool)
    rows = {name: row for row, name in enumerate(names)}
    first = [rows[name] for name in [*cases, *_worst(errors, {n for n, new in zip(names, unseen, strict=True) if new})]]
    order = viewing_order(leading_axes(latents["mean"].values), unseen, first)
    low, high = _range(volumes, order)
    shrink, affine = _shrinker(volumes)

    def coded(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
        share = (shrink(values) - low) / (high - low)
        return np.asarray(np.rint(np.clip(share, 0.0, 1.0) * LEVELS), dtype=np.uint8)

    originals: list[npt.NDArray[np.uint8]] = []
    models: list[npt.NDArray[np.uint8]] = []
    limits, spent = [], 0
    for batch, made in reconstruct(np.array(order, dtype=np.intp)):
        for original, model in zip(volumes.masked(batch), made, strict=True):
            pair = coded(original), coded(model)
            spent += encoded_bytes(*pair)
            if spent > budget_bytes and originals:
                break
            originals.append(pair[0])
            models.append(pair[1])
            limits.append(np.quantile(np.abs(shrink(model) - shrink(original)), TOP_QUANTILE))
        if spent > budget_bytes:
            break
    kept = order[: len(originals)]
    listed = np.isin(kept, first)
    limit = max(float(np.median(limits)), (high - low) / LEVELS)
    scans, pictures = tuple(names[row] for row in kept), (np.stack(originals), np.stack(models))
    return Viewed(scans, listed, unseen[kept], *pictures, affine, low, high, limit, len(names))


def encoded_bytes(*arrays: npt.NDArray[np.uint8]) -> int:
    """Characters that arrays take in a page: one after the other, compressed, as base64."""
    compressed = gzip.compress(b"".join(one.tobytes(order="F") for one in arrays), mtime=0)
    return 4 * -(-len(compressed) // 3)


def _worst(errors: "xr.DataArray | None", unseen: set[str]) -> list[str]:
    if errors is None:
        return []
    found = errors.to_series()
    found = found[[str(name) in unseen for name in found.index]].dropna()
    return [str(name) for name in found.sort_values(ascending=False, kind="stable").index[:N_WORST]]


def _range(volumes: Volumes, rows: Sequence[int]) -> tuple[float, float]:
    """Range of the original scans: from 0, or the least where that is below, to nearly the largest."""
    some = volumes.masked(sorted(rows[: N_WORST * 4]))
    low, high = min(0.0, float(some.min())), float(np.quantile(some, TOP_QUANTILE))
    return low, high if high > low else low + 1.0


def _shrinker(
    volumes: Volumes,
) -> tuple[Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]], npt.NDArray[np.float64]]:
    """What makes a small volume of the values inside the mask, and the affine of what it makes."""
    grid, mask = volumes.grid, volumes.mask
    factor = max(1, int(np.ceil(SPACING_MM / grid.spacing_mm - 1e-6)))
    inside = np.argwhere(mask)
    start = inside.min(axis=0)
    blocks = -(-(inside.max(axis=0) + 1 - start) // factor)
    place = tuple((inside - start).T)
    affine = np.array(grid.affine)
    # The centre of a block of voxels lies half a block from the centre of its first.
    affine[:3, 3] += grid.spacing_mm * (start + (factor - 1) / 2)
    affine[:3, :3] *= factor

    def shrink(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        box = np.zeros(tuple(blocks * factor), dtype=np.float32)
        box[place] = values
        x, y, z = blocks
        return np.asarray(box.reshape(x, factor, y, factor, z, factor).mean(axis=(1, 3, 5)))

    return shrink, affine


def write_viewed(viewed: Viewed, folder: Path) -> Path:
    """Write ``viewed.nc`` into a folder.

    Returns
    -------
    Path
        The file: netCDF with the variables ``original`` and ``model`` (scan, x, y, z).
    """
    dims = ("scan", "x", "y", "z")
    data = xr.Dataset(
        {
            "original": (dims, viewed.original),
            "model": (dims, viewed.model),
            "affine": (("row", "column"), viewed.affine),
        },
        {
            "scan": list(viewed.scans),
            "listed": ("scan", viewed.listed.astype(np.uint8)),
            "unseen": ("scan", viewed.unseen.astype(np.uint8)),
        },
        {name: getattr(viewed, name) for name in ("low", "high", "error_limit", "n_all")}
        | {"format_version": FORMAT_VERSION},
    )
    squeezed = {name: {"zlib": True, "complevel": 4} for name in ("original", "model")}
    path = Path(folder) / FILE
    with atomic(path) as temporary:
        reserve(temporary, data.nbytes + HEAD_BYTES)
        data.to_netcdf(temporary, engine="h5netcdf", encoding=squeezed)
    return path


def read_viewed(folder: Path) -> Viewed | None:
    """What :func:`write_viewed` left in a folder; None where it left nothing.

    Raises
    ------
    FindingError
        When the file is damaged, or of another version.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        return None
    try:
        data = read_netcdf(path)
        version = int(data.attrs["format_version"])
        values = {name: float(data.attrs[name]) for name in ("low", "high", "error_limit")}
        scans = tuple(map(str, data["scan"].values))
        listed, unseen = (data[name].values.astype(bool) for name in ("listed", "unseen"))
        original, model, affine = (data[name].values for name in ("original", "model", "affine"))
        n_all = int(data.attrs["n_all"])
    except (OSError, ValueError, KeyError) as error:
        raise FindingError(f"{path} is damaged: {error}. Run `nilatent analyse reconstruction` again.") from error
    if version != FORMAT_VERSION:
        raise FindingError(
            f"{path} has format {version}, this nilatent reads {FORMAT_VERSION}. Run `nilatent analyse reconstruction` again."
        )
    return Viewed(scans, listed, unseen, original, model, affine, **values, n_all=n_all)
