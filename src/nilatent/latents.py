"""Latents: posterior means and log-variances per scan, with what the model has seen; schema, reader and writer."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from nilatent.errors import LatentsError
from nilatent.provenance import atomic

FORMAT_VERSION = 1
COORDINATES = ("scan", "subject", "subject_in_training", "part")


def make_latents(
    mean: np.ndarray,
    log_var: np.ndarray,
    *,
    scan: Sequence[str],
    subject: Sequence[str],
    subject_in_training: Sequence[bool],
    part: Sequence[str],
    model_hash: str,
    volumes_hash: str,
) -> xr.Dataset:
    """Latents of a cohort as a labelled data set.

    Parameters
    ----------
    mean, log_var : ndarray
        (scan, latent) posterior mean and log-variance.
    scan, subject : Sequence[str]
        Identifier of each scan and of its subject.
    subject_in_training : Sequence[bool]
        Whether the model was fitted, or its stopping epoch chosen, with any scan of this subject.
    part : Sequence[str]
        Part of the split: ``"train"``, ``"validation"`` or ``"test"``.
    model_hash, volumes_hash : str
        Content hashes of the pools they came from.

    Returns
    -------
    Dataset
        Data variables ``mean`` and ``log_var`` with dimensions (scan, latent).

    Raises
    ------
    LatentsError
        When the result breaks the schema.

    Examples
    --------
    >>> zeros = np.zeros((2, 3), np.float32)
    >>> made = make_latents(zeros, zeros, scan=["a", "b"], subject=["a", "b"], subject_in_training=[True, False],
    ...                     part=["train", "test"], model_hash="", volumes_hash="")
    >>> dict(made.sizes)
    {'scan': 2, 'latent': 3}
    """
    mean = np.asarray(mean, dtype=np.float32)
    names = [f"z{index:03d}" for index in range(mean.shape[1])]
    latents = xr.Dataset(
        {
            "mean": (("scan", "latent"), mean),
            "log_var": (("scan", "latent"), np.asarray(log_var, dtype=np.float32)),
        },
        coords={
            "scan": ("scan", np.asarray(scan, dtype=str)),
            "latent": ("latent", np.asarray(names, dtype=str)),
            "subject": ("scan", np.asarray(subject, dtype=str)),
            "subject_in_training": ("scan", np.asarray(subject_in_training, dtype=bool)),
            "part": ("scan", np.asarray(part, dtype=str)),
        },
        attrs={"model_hash": model_hash, "volumes_hash": volumes_hash, "format_version": FORMAT_VERSION},
    )
    check_latents(latents)
    return latents


def check_latents(latents: xr.Dataset) -> None:
    """Refuse a data set that is not latents.

    Raises
    ------
    LatentsError
        When a variable or coordinate is missing, scans repeat, a value is not finite, or scans of one subject
        disagree about having been in training.
    """
    missing = [name for name in ("mean", "log_var") if name not in latents.data_vars]
    missing += [name for name in COORDINATES if name not in latents.coords]
    if missing:
        raise LatentsError(f"Latents lack {', '.join(missing)}. Make them with `nilatent encode`.")
    scans = pd.Index(latents["scan"].values)
    if not scans.is_unique:
        raise LatentsError(f"Scan {scans[scans.duplicated()][0]} stands twice in the latents. Encode the cohort again.")
    for name in ("mean", "log_var"):
        finite = np.isfinite(latents[name].values).all(axis=tuple(range(1, latents[name].ndim)))
        if not finite.all():
            raise LatentsError(
                f"Latents of scan {scans[~finite][0]} hold non-finite values in '{name}'. "
                "Look at the training history for divergence, and encode again."
            )
    seen = pd.Series(latents["subject_in_training"].values, index=latents["subject"].values)
    mixed = seen.groupby(level=0).nunique()
    if (mixed > 1).any():
        raise LatentsError(
            f"Subject {mixed.index[mixed > 1][0]} is marked as seen in training for some scans and not for others. "
            "All scans of a subject share one mark: encode again with the split the model was trained on."
        )


def write_latents(latents: xr.Dataset, folder: Path) -> list[Path]:
    """Write ``latents.nc`` and, as a spreadsheet of posterior means, ``latents.tsv``; returns both paths."""
    check_latents(latents)
    netcdf, table = Path(folder) / "latents.nc", Path(folder) / "latents.tsv"
    with atomic(netcdf) as temporary:
        latents.to_netcdf(temporary, engine="h5netcdf")
    frame = pd.DataFrame(latents["mean"].values, columns=list(latents["latent"].values))
    for position, (column, name) in enumerate(
        [
            ("scan_id", "scan"),
            ("subject_id", "subject"),
            ("part", "part"),
            ("subject_in_training", "subject_in_training"),
        ]
    ):
        frame.insert(position, column, latents[name].values)
    with atomic(table) as temporary:
        # Nine significant digits bring every float32 back exactly.
        frame.to_csv(temporary, sep="\t", index=False, float_format="%.9g")
    return [netcdf, table]


def read_latents(folder: Path) -> xr.Dataset:
    """Read ``latents.nc`` from a folder and check it.

    Raises
    ------
    LatentsError
        When the file is absent, of another format version, or breaks the schema.
    """
    path = Path(folder) / "latents.nc"
    if not path.is_file():
        raise LatentsError(f"{path} does not exist. Make it with `nilatent encode`.")
    with xr.open_dataset(path, engine="h5netcdf") as stored:
        latents = stored.load()
    if latents.attrs.get("format_version") != FORMAT_VERSION:
        raise LatentsError(
            f"{path} has latents format {latents.attrs.get('format_version')}, this nilatent reads {FORMAT_VERSION}. "
            "Encode the cohort again."
        )
    check_latents(latents)
    return latents
