"""Volumes: scans on one grid in a memory-mapped cache with their mask, and voxel PCA."""

import hashlib
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pandas as pd
from nibabel.filebasedimages import ImageFileError
from numpy.lib.format import open_memmap
from scipy import linalg

from nilatent.cohort import Cohort
from nilatent.errors import GridError, SettingError
from nilatent.grid import Grid, average_to_grid, brain_mask, gm_mask, template, template_array
from nilatent.progress import track
from nilatent.provenance import atomic, hash_file, hash_values, read_json, reserve, write_json

__all__ = [
    "Grid",
    "Volumes",
    "VoxelPca",
    "average_to_grid",
    "brain_mask",
    "gm_mask",
    "open_volumes",
    "pack",
    "template",
    "template_array",
    "volumes_in_memory",
    "voxel_pca",
]

HASHED = {"volumes": "volumes.npy", "mask": "mask.nii.gz", "scans": "scans.tsv"}
PCA_MAX_SCANS = 1000
FLOAT16_MAX = float(np.finfo(np.float16).max)
FLOAT16_SMALLEST = float(np.finfo(np.float16).smallest_normal)
PCA_BLOCK_BYTES = 4 * 2**20


@dataclass(frozen=True, eq=False)
class Volumes:
    """Scans on one grid.

    Parameters
    ----------
    data : ndarray or memmap
        (scan, x, y, z) float16.
    mask : ndarray
        (x, y, z) bool; analyses and losses look inside it only.
    grid : Grid
        Of every scan.
    scans : DataFrame
        Index ``scan_id``; columns ``subject_id`` and ``dataset``, one row per volume in the same order.
    content_hash : str
        Hash of values, mask, grid and rows, those of subjects and data sets included.
    """

    data: npt.NDArray[np.float16]
    mask: npt.NDArray[np.bool_]
    grid: Grid
    scans: pd.DataFrame
    content_hash: str

    def __post_init__(self) -> None:
        """Refuse parts that do not fit together."""
        if self.data.shape != (len(self.scans), *self.grid.shape) or self.mask.shape != self.grid.shape:
            raise GridError(
                f"Volumes hold data {self.data.shape}, mask {self.mask.shape}, grid {self.grid.shape} and "
                f"{len(self.scans)} scans: these do not fit together. Delete the volumes folder and pack again."
            )
        twice = self.scans.index[self.scans.index.duplicated()]
        if len(twice):
            raise GridError(f"Scan {twice[0]} stands twice in the volumes. Delete the volumes folder and pack again.")

    def masked(self, rows: Sequence[int] | npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.float32]:
        """Values inside the mask, (row, voxel) float32.

        Raises
        ------
        GridError
            When a row is not the number of a scan, counted from 0: True and -1 are none.
        """
        wanted = np.asarray(rows)
        if wanted.size and (wanted.dtype.kind not in "iu" or wanted.min() < 0 or wanted.max() >= len(self.scans)):
            raise GridError(
                f"Rows are whole numbers from 0 to {len(self.scans) - 1}; get them with Volumes.rows(scan_ids)."
            )
        flat = np.flatnonzero(self.mask)
        out = np.empty((len(wanted), flat.size), dtype=np.float32)
        for position, row in enumerate(wanted):
            out[position] = self.data[int(row)].reshape(-1)[flat]
        return out

    def block(self, rows: npt.NDArray[np.integer[Any]], start: int, stop: int) -> npt.NDArray[np.float32]:
        """Columns `start` to `stop` of :meth:`masked`, without the others ever being in memory."""
        inside = np.flatnonzero(self.mask)[start:stop]
        flat = self.data.reshape(len(self.scans), -1)
        out = np.empty((len(rows), inside.size), dtype=np.float32)
        for position, row in enumerate(rows):
            out[position] = flat[row, inside[0] : inside[-1] + 1][inside - inside[0]]
        return out

    def rows(self, scan_ids: Sequence[str]) -> npt.NDArray[np.intp]:
        """Row of each scan.

        Raises
        ------
        GridError
            When a scan is not in the cache.
        """
        found = self.scans.index.get_indexer(pd.Index(scan_ids))
        if (found < 0).any():
            absent = pd.Index(scan_ids)[found < 0][0]
            raise GridError(f"Scan {absent} is not in the volumes cache. Pack the cohort again.")
        return np.asarray(found, dtype=np.intp)


def volumes_in_memory(
    array: npt.NDArray[Any], *, mask: npt.NDArray[np.bool_], grid: Grid, scans: pd.DataFrame
) -> Volumes:
    """Volumes from an array, for simulations and notebooks; the same checks as from disk."""
    for scan_id, values in zip(scans.index, array, strict=True):
        _check_float16(values, place=f"Scan {scan_id}")
    data = np.ascontiguousarray(array, dtype=np.float16)
    inside = np.asarray(mask, dtype=bool)
    values_hash = hashlib.sha256(data.tobytes()).hexdigest()
    digest = hash_values([values_hash, inside.tobytes().hex(), grid.to_dict(), _rows(scans).to_csv(sep="\t")])
    return Volumes(data, inside, grid, scans, digest)


def _rows(scans: pd.DataFrame) -> pd.DataFrame:
    return scans[["subject_id", "dataset"]].rename_axis("scan_id")


def _check_float16(values: npt.NDArray[Any], *, place: str) -> None:
    peak = float(np.abs(values).max())
    if not np.isfinite(values).all() or peak > FLOAT16_MAX or 0 < peak < FLOAT16_SMALLEST:
        raise GridError(
            f"{place} holds values that float16 cannot (not finite, above {FLOAT16_MAX:g}, or all below "
            f"{FLOAT16_SMALLEST:.2g}); its largest is {peak:g}. Prepare it again, or rescale it."
        )


def pack(cohort: Cohort, grid: Grid, folder: Path, *, mask: npt.NDArray[np.bool_] | None = None) -> Volumes:
    """Copy prepared maps into one memory-mapped cache.

    Parameters
    ----------
    cohort : Cohort
        Prepared: every path is a map on the grid.
    grid : Grid
        The grid all must share.
    folder : Path
        Receives ``volumes.npy``, ``mask.nii.gz``, ``grid.json`` and ``scans.tsv``; may be deleted at any time.
    mask : ndarray, optional
        (x, y, z) bool, the voxels that count; without it, those where the template has grey matter.

    Returns
    -------
    Volumes
        Opened from the folder.

    Raises
    ------
    GridError
        When there is no scan, or a map cannot be read, is on another grid or does not fit float16.
    """
    if cohort.scans.empty:
        raise GridError(f"The cohort has no scan to pack into {folder}. Look at its excluded.tsv for the reasons.")
    # The last file to be written goes first: a cache that is half new and half old must not open.
    (folder / "grid.json").unlink(missing_ok=True)
    shape = (len(cohort.scans), *grid.shape)
    with atomic(folder / "volumes.npy") as temporary:
        data = open_memmap(temporary, mode="w+", dtype=np.float16, shape=shape)  # type: ignore[no-untyped-call]
        reserve(temporary)
        paths = zip(cohort.scans.index, cohort.scans["path"], strict=True)
        for row, (scan_id, path) in enumerate(track(paths, total=len(cohort.scans), label="pack")):
            data[row] = _read_map(path, grid, place=f"Scan {scan_id} ({path})")
        data.flush()
        del data
    with atomic(folder / "mask.nii.gz") as temporary:
        nib.save(grid.to_image(gm_mask(grid) if mask is None else mask, dtype=np.uint8), temporary)
    with atomic(folder / "scans.tsv") as temporary:
        _rows(cohort.scans).to_csv(temporary, sep="\t")
    hashes = {f"{name}_sha256": hash_file(folder / file) for name, file in HASHED.items()}
    write_json(folder / "grid.json", grid.to_dict() | hashes)
    return open_volumes(folder)


def _read_map(path: str, grid: Grid, *, place: str) -> npt.NDArray[np.float32]:
    try:
        image = nib.load(path)
        grid.check_same(image.shape, image.affine, place=place)
        values = np.asarray(image.get_fdata(dtype=np.float32, caching="unchanged"))
    except (ImageFileError, OSError, EOFError, ValueError, zlib.error) as error:
        raise GridError(f"{place} cannot be read: {error}. Prepare it again.") from error
    _check_float16(values, place=place)
    return values


def open_volumes(folder: Path) -> Volumes:
    """Open a cache that :func:`pack` left; volumes are mapped, not read.

    Raises
    ------
    GridError
        When the folder is not a complete cache.
    """
    folder = Path(folder)
    missing = [name for name in (*HASHED.values(), "grid.json") if not (folder / name).is_file()]
    if missing:
        raise GridError(f"{folder} lacks {', '.join(missing)}, so it is not a volumes cache. Pack the cohort again.")
    described = read_json(folder / "grid.json")
    for name in ("mask", "scans"):
        if hash_file(folder / HASHED[name]) != described.get(f"{name}_sha256"):
            raise GridError(f"{folder / HASHED[name]} is not the one that was packed. Pack the cohort again.")
    grid = Grid.from_dict(described)
    mask = np.asarray(nib.load(folder / "mask.nii.gz").dataobj) > 0
    scans = pd.read_csv(folder / "scans.tsv", sep="\t", dtype=str, keep_default_na=False).set_index("scan_id")
    try:
        data = np.load(folder / "volumes.npy", mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise GridError(f"{folder / 'volumes.npy'} is not whole: {error}. Pack the cohort again.") from error
    return Volumes(data, mask, grid, scans, hash_values(described))


@dataclass(frozen=True, eq=False)
class VoxelPca:
    """Principal components of the voxels inside the mask.

    Parameters
    ----------
    mean : ndarray
        (voxel,) mean image; with conditions that of a scan all of whose conditions are zero.
    components : ndarray
        (component, voxel), orthonormal rows, largest variance first.
    sd : ndarray
        (component,) standard deviation of the scores of the scans it was fitted on, divisor n - 1.
    residual_variance : float
        Mean variance per voxel that the components leave, divisor n - 1.
    slopes : ndarray
        (condition, voxel) change of the mean image per unit of each condition, which the components leave out; no rows
        without conditions.
    """

    mean: npt.NDArray[np.float32]
    components: npt.NDArray[np.float32]
    sd: npt.NDArray[np.float32]
    residual_variance: float
    slopes: npt.NDArray[np.float32]

    def expected(self, conditions: npt.NDArray[np.float32] | None = None) -> npt.NDArray[np.float32]:
        """Mean image, (voxel,), or of scans with these conditions (scan, condition) the mean of their like, (scan, voxel)."""
        return self.mean if conditions is None else np.asarray(self.mean + conditions @ self.slopes, dtype=np.float32)

    def scores(
        self, x: npt.NDArray[np.float32], conditions: npt.NDArray[np.float32] | None = None
    ) -> npt.NDArray[np.float32]:
        """Scores (scan, component) of masked scans (scan, voxel), beyond their conditions where these are told."""
        return np.asarray((x - self.expected(conditions)) @ self.components.T, dtype=np.float32)

    def reconstruct(
        self, x: npt.NDArray[np.float32], conditions: npt.NDArray[np.float32] | None = None
    ) -> npt.NDArray[np.float32]:
        """Masked scans (scan, voxel) as the components see them, and as their conditions have them expected."""
        return np.asarray(self.expected(conditions) + self.scores(x, conditions) @ self.components, dtype=np.float32)


def voxel_pca(
    volumes: Volumes,
    rows: Sequence[int] | npt.NDArray[np.integer[Any]],
    n_components: int,
    *,
    seed: int,
    max_scans: int = PCA_MAX_SCANS,
    conditions: npt.NDArray[np.float32] | None = None,
    at_most: bool = False,
) -> VoxelPca:
    """PCA of voxels through the scan-by-scan Gram matrix.

    Parameters
    ----------
    volumes : Volumes
        The scans.
    rows : Sequence[int]
        Rows of the training scans; no other scan is touched.
    n_components : int
        At most the number of scans minus one.
    seed : int
        Draws the scans when there are more than `max_scans`.
    max_scans : int
        Upper limit on the scans used.
    conditions : ndarray, optional
        (scan, condition) for all scans of `volumes`: their linear effect on the voxels is taken out before.
    at_most : bool
        Take as many components as the scans can give when they are fewer, as for a mere yardstick.

    Returns
    -------
    VoxelPca
        Each component's largest weight is positive, so the sign does not depend on the machine.

    Raises
    ------
    SettingError
        When more components are asked for than the scans can give.
    """
    rows = np.sort(np.asarray(rows, dtype=np.intp))
    if len(rows) > max_scans:
        rows = np.sort(np.random.default_rng(seed).choice(rows, size=max_scans, replace=False))
    n_scans = len(rows)
    given = np.zeros((n_scans, 0)) if conditions is None else conditions[rows].astype(np.float64)
    if at_most:
        n_components = min(n_components, n_scans - 1 - given.shape[1])
    if not 1 <= n_components < n_scans - given.shape[1]:
        raise SettingError(
            f"PCA of {n_scans} scans has at most {n_scans - 1 - given.shape[1]} components, {n_components} were asked for. "
            "Lower n_latent or bring more training scans."
        )
    usual = given.mean(axis=0)
    given = given - usual
    # In double precision: single precision would drown the small components. Added up in place, in the lower triangle: of
    # many scans a second such matrix would be most of what a training needs.
    gram = np.zeros((n_scans, n_scans), order="F")
    for _, x in _blocks(volumes, rows):
        gram = linalg.blas.dsyrk(1.0, x.T, beta=1.0, c=gram, trans=1, lower=1, overwrite_c=1)
    if given.shape[1]:
        gram += np.tril(gram, -1).T
    solve = _ridge(given, gram)
    if given.shape[1]:
        without = np.eye(n_scans) - given @ solve
        gram = without @ gram @ without.T
    total = float(np.trace(gram))
    # Only the vectors asked for, and in place.
    values, vectors = linalg.eigh(gram, subset_by_index=(n_scans - n_components, n_scans - 1), overwrite_a=True)
    values, vectors = values[::-1], vectors[:, ::-1]
    if at_most:
        n_components = max(int((values > 1e-10 * values[0]).sum()), 1)
        values, vectors = values[:n_components], vectors[:, :n_components]
    if values[-1] <= 1e-10 * max(values[0], np.finfo(float).tiny):
        raise SettingError(
            f"The {n_scans} training scans span fewer than {n_components} dimensions. Lower n_latent, and look for "
            "scans that are copies of one another."
        )
    del gram
    weights = (vectors / np.sqrt(values)).T
    # What the conditions leave of the centred scans x is (1 - given solve) x.
    weights = weights - (weights @ given) @ solve
    found = [(mean - usual @ (solve @ x), solve @ x, weights @ x) for mean, x in _blocks(volumes, rows)]
    mean, slopes, components = (np.concatenate(parts, axis=-1).astype(np.float32) for parts in zip(*found, strict=True))
    flips = np.sign(components[np.arange(n_components), np.abs(components).argmax(axis=1)])
    components *= flips[:, None]
    left = (total - float(values.sum())) / (n_scans - 1) / mean.size
    sd = np.sqrt(values / (n_scans - 1)).astype(np.float32)
    return VoxelPca(mean, components, sd, max(left, 0.0), slopes)


def _blocks(
    volumes: Volumes, rows: npt.NDArray[np.integer[Any]]
) -> Iterator[tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]]:
    """Mean (voxel,) and centred values (scan, voxel) of some scans, a block of voxels at a time."""
    n_voxels = int(volumes.mask.sum())
    size = max(PCA_BLOCK_BYTES // (8 * len(rows)), 1)
    for start in range(0, n_voxels, size):
        x = volumes.block(rows, start, start + size).astype(np.float64)
        mean = x.mean(axis=0)
        x -= mean
        yield mean, x


def _ridge(given: npt.NDArray[np.float64], gram: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Ridge regression on centred conditions, with the penalty of the smallest leave-one-out error over all voxels.

    Least squares in every voxel would add noise of its own to every scan: of conditions that tell little, more than they
    explain.

    Parameters
    ----------
    given : ndarray
        (scan, condition), columns of mean zero.
    gram : ndarray
        (scan, scan) inner products of the centred voxels.

    Returns
    -------
    ndarray
        (condition, scan): times the centred voxels, these are the slopes.
    """
    n_scans = len(given)
    if given.shape[1] == 0:
        return np.zeros((0, n_scans))
    u, s, vt = np.linalg.svd(given, full_matrices=False)
    # The last is as good as infinite: being told nothing.
    penalties = np.append(np.logspace(-3, 3, 25) * n_scans, 1e12 * n_scans)
    errors = []
    for penalty in penalties:
        hat = u * (s**2 / (s**2 + penalty)) @ u.T
        left = (np.eye(n_scans) - hat) / (1.0 - 1.0 / n_scans - np.diag(hat))[:, None]
        errors.append(float(np.einsum("ij,jk,ik->", left, gram, left, optimize=True)))
    penalty = penalties[int(np.argmin(errors))]
    return np.asarray(vt.T * (s / (s**2 + penalty)) @ u.T)
