"""Regional grey matter: the mean of every scan inside every region of an atlas; table, reader and writer."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from nilatent.atlas import RegionWeights
from nilatent.errors import AtlasError, CohortError
from nilatent.provenance import atomic, read_json, write_json
from nilatent.volumes import Volumes

BATCH = 64


@dataclass(frozen=True, eq=False)
class Regions:
    """Regional grey matter as read from disk.

    Parameters
    ----------
    values : DataFrame
        Index scan_id, one column per region: weighted mean inside the region.
    labels : ndarray
        (region,) numeric label in the atlas.
    n_voxels : ndarray
        (region,) size in voxel equivalents.
    dropped : DataFrame
        Regions left out: ``label``, ``name``, ``n_voxels``, ``reason``.
    """

    values: pd.DataFrame
    labels: np.ndarray
    n_voxels: np.ndarray
    dropped: pd.DataFrame


def regional(volumes: Volumes, weights: RegionWeights) -> pd.DataFrame:
    """Mean grey matter per scan and region.

    Parameters
    ----------
    volumes : Volumes
        The scans.
    weights : RegionWeights
        The atlas on the grid and inside the mask of the volumes.

    Returns
    -------
    DataFrame
        Index scan_id, columns region names: mean weighted by the covered fraction of each voxel, in the unit of the maps.

    Raises
    ------
    AtlasError
        When the weights belong to another mask.
    """
    n_voxels = int(volumes.mask.sum())
    if weights.matrix.shape[1] != n_voxels:
        raise AtlasError(
            f"The region weights cover {weights.matrix.shape[1]} voxels, the mask of the volumes {n_voxels}. "
            "Compute the weights on the grid and mask of these volumes."
        )
    share = weights.matrix.multiply(1 / weights.n_voxels[:, None]).tocsr()
    n_scans = len(volumes.scans)
    values = np.empty((n_scans, len(weights.names)))
    for start in range(0, n_scans, BATCH):
        rows = np.arange(start, min(start + BATCH, n_scans))
        values[rows] = (share @ volumes.masked(rows).T.astype(np.float64)).T
    return pd.DataFrame(values, index=pd.Index(volumes.scans.index, name="scan_id"), columns=list(weights.names))


def write_regions(values: pd.DataFrame, weights: RegionWeights, folder: Path) -> list[Path]:
    """Write ``regions.tsv`` and its data dictionary ``regions.json`` (labels, sizes, dropped regions and why)."""
    table, dictionary = Path(folder) / "regions.tsv", Path(folder) / "regions.json"
    with atomic(table) as temporary:
        values.to_csv(temporary, sep="\t", index_label="scan_id", float_format="%.17g")
    regions = [
        {"name": name, "label": int(label), "n_voxels": float(size)}
        for name, label, size in zip(weights.names, weights.labels, weights.n_voxels, strict=True)
    ]
    dropped = [{str(key): value for key, value in row.items()} for row in weights.dropped.to_dict("records")]
    description = "Mean grey matter inside the region, weighted by the covered fraction of each voxel"
    write_json(dictionary, {"description": description, "regions": regions, "dropped": dropped})
    return [table, dictionary]


def read_regions(folder: Path) -> Regions:
    """Read what :func:`write_regions` wrote.

    Raises
    ------
    CohortError
        When a file is missing, or table and dictionary name different regions.
    """
    table, dictionary = Path(folder) / "regions.tsv", Path(folder) / "regions.json"
    for path in (table, dictionary):
        if not path.is_file():
            raise CohortError(f"{path} does not exist. Run `nilatent run` to measure the regions again.")
    # Through text, because not every parser of pandas brings a float64 back to its last bit.
    values = pd.read_csv(table, sep="\t", dtype=str).set_index("scan_id").astype(np.float64)
    described = read_json(dictionary)
    names = [row["name"] for row in described["regions"]]
    if names != list(values.columns):
        raise CohortError(f"{table} and {dictionary} name different regions. Measure the regions again.")
    return Regions(
        values,
        np.array([row["label"] for row in described["regions"]], dtype=np.int64),
        np.array([row["n_voxels"] for row in described["regions"]], dtype=np.float64),
        pd.DataFrame(described["dropped"], columns=["label", "name", "n_voxels", "reason"]),
    )
