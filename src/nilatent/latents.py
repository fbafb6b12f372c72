"""Latents: posterior means and log-variances per scan, with what the model has seen; schema, reader and writer."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from nilatent.errors import LatentsError
from nilatent.provenance import atomic

FORMAT_VERSION = 1
PARTS = ("train", "validation", "test")
COORDINATES = ("scan", "subject", "subject_in_training", "part", "image_scale")


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
    image_scale: Sequence[float] | None = None,
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
    image_scale : Sequence[float], optional
        (latent,) root mean square change of the image inside the mask per unit of the latent, at least 0. The units of a
        latent are arbitrary; multiplied by this, a distance between latents is about one between images. Left out: 1.

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
    mean, log_var = np.asarray(mean, dtype=np.float32), np.asarray(log_var, dtype=np.float32)
    seen = np.asarray(subject_in_training)
    lengths = {"mean": len(mean), "scan": len(scan), "subject": len(subject), "part": len(part), "mark": len(seen)}
    if mean.ndim != 2 or log_var.shape != mean.shape or len(set(lengths.values())) != 1:
        raise LatentsError(
            f"mean has shape {mean.shape}, log_var {log_var.shape}, and the rows count {lengths}. All have one row per scan."
        )
    if seen.dtype != bool:
        raise LatentsError(
            f"subject_in_training is True or False, got {seen.dtype}: the text 'False' would count as True."
        )
    names = [f"z{index:03d}" for index in range(mean.shape[1])]
    latents = xr.Dataset(
        {
            "mean": (("scan", "latent"), mean),
            "log_var": (("scan", "latent"), log_var),
        },
        coords={
            "scan": ("scan", np.asarray(scan, dtype=str)),
            "latent": ("latent", np.asarray(names, dtype=str)),
            "subject": ("scan", np.asarray(subject, dtype=str)),
            "subject_in_training": ("scan", seen),
            "part": ("scan", np.asarray(part, dtype=str)),
            "image_scale": (
                "latent",
                np.ones(mean.shape[1]) if image_scale is None else np.asarray(image_scale, dtype=float),
            ),
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
        When a variable or coordinate is missing or has other dimensions, scans repeat, a value is not finite, a part is
        unknown, or scans of one subject disagree about their part or about having been in training.
    """
    missing = [name for name in ("mean", "log_var") if name not in latents.data_vars]
    missing += [name for name in COORDINATES if name not in latents.coords]
    if missing:
        raise LatentsError(f"Latents lack {', '.join(missing)}. Make them with `nilatent encode`.")
    dimensions = {"mean": ("scan", "latent"), "log_var": ("scan", "latent"), "image_scale": ("latent",)}
    for name in ("mean", "log_var", *COORDINATES):
        wanted = dimensions.get(name, ("scan",))
        if latents[name].dims != wanted:
            raise LatentsError(
                f"'{name}' of the latents has the dimensions {latents[name].dims}, not {wanted}. Transpose."
            )
    if latents["subject_in_training"].dtype != bool:
        raise LatentsError(f"'subject_in_training' is {latents['subject_in_training'].dtype}, not bool. Encode again.")
    unknown = sorted(set(map(str, latents["part"].values)) - set(PARTS))
    if unknown:
        raise LatentsError(f"The latents have the part '{unknown[0]}', not one of {', '.join(PARTS)}. Encode again.")
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
    scale = latents["image_scale"].values
    if not (np.isfinite(scale).all() and (scale >= 0).all()):
        raise LatentsError("Latents have an 'image_scale' that is negative or not finite. Encode the cohort again.")
    for name, what in (("subject_in_training", "mark of having been seen in training"), ("part", "part of the split")):
        of_subject = pd.Series(latents[name].values, index=latents["subject"].values).groupby(level=0).nunique()
        if (of_subject > 1).any():
            raise LatentsError(
                f"Scans of subject {of_subject.index[of_subject > 1][0]} differ in their {what}. All scans of a subject "
                "share it: encode again with the split the model was trained on."
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
        When the file is absent or damaged, of another format version, or breaks the schema.
    """
    path = Path(folder) / "latents.nc"
    if not path.is_file():
        raise LatentsError(f"{path} does not exist. Make it with `nilatent encode`.")
    try:
        with xr.open_dataset(path, engine="h5netcdf") as stored:
            latents = stored.load()
    except (OSError, ValueError) as error:
        raise LatentsError(f"{path} cannot be read: {error}. Encode the cohort again.") from error
    if latents.attrs.get("format_version") != FORMAT_VERSION:
        raise LatentsError(
            f"{path} has latents format {latents.attrs.get('format_version')}, this nilatent reads {FORMAT_VERSION}. "
            "Encode the cohort again."
        )
    check_latents(latents)
    return latents
