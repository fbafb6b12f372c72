"""Latents: posterior means and log-variances per scan, with what the model has seen; schema, reader and writer."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from nilatent.errors import LatentsError
from nilatent.netcdf import read_netcdf
from nilatent.provenance import HEAD_BYTES, atomic, hash_values, plain, reserve

FORMAT_VERSION = 2
PARTS = ("train", "validation", "test")
COORDINATES = ("scan", "subject", "subject_in_training", "part", "image_scale")
# What is said of the latents in words, as attributes: who among the scans the model has seen, what to think of when reading
# them, the column that shaped the first of them on training scans, and of what they are the components.
NOTES = ("seen", "caveat", "told", "supervised", "compact")
# A spreadsheet is for people and for other programs' tables; neither has use for more columns.
MAX_COLUMNS = 512
MAX_SCANS = 2000
CHUNK = 8192
CONTENT = "content_hash"


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
    latent_shape: Sequence[int] | None = None,
    notes: Mapping[str, str] | None = None,
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
    latent_shape : Sequence[int], optional
        Shape of one scan's latent: (channel, x, y, z) of a grid, of which the rows are flat, the last axis fastest. Left
        out: a vector.
    notes : Mapping[str, str], optional
        Words by a key of :data:`NOTES`; empty ones are left out.

    Returns
    -------
    Dataset
        Data variables ``mean`` and ``log_var`` with dimensions (scan, latent), float32; ``latent_shape`` and the notes are
        attributes.

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
    shape = [mean.shape[1]] if latent_shape is None else [int(side) for side in latent_shape]
    if len(shape) not in (1, 4) or prod(shape) != mean.shape[1]:
        raise LatentsError(
            f"Latents of shape {shape} do not have {mean.shape[1]} values. Give (latent,) or (channel, x, y, z)."
        )
    said = {name: words for name, words in ({} if notes is None else notes).items() if words}
    unknown = sorted(set(said) - set(NOTES))
    if unknown:
        raise LatentsError(f"Latents have no note '{unknown[0]}'; the notes are {', '.join(NOTES)}.")
    latents = xr.Dataset(
        {
            "mean": (("scan", "latent"), mean),
            "log_var": (("scan", "latent"), log_var),
        },
        coords={
            "scan": ("scan", np.asarray(scan, dtype=str)),
            "latent": ("latent", np.asarray(_names(shape), dtype=str)),
            "subject": ("scan", np.asarray(subject, dtype=str)),
            "subject_in_training": ("scan", seen),
            "part": ("scan", np.asarray(part, dtype=str)),
            "image_scale": (
                "latent",
                np.ones(mean.shape[1]) if image_scale is None else np.asarray(image_scale, dtype=float),
            ),
        },
        attrs={
            "model_hash": model_hash,
            "volumes_hash": volumes_hash,
            "format_version": FORMAT_VERSION,
            "latent_shape": shape,
        }
        | said,
    )
    check_latents(latents)
    return latents


def _names(shape: Sequence[int]) -> list[str]:
    if len(shape) == 1:
        return [f"z{index:03d}" for index in range(shape[0])]
    return [f"c{c}_x{x:02d}_y{y:02d}_z{z:02d}" for c, x, y, z in np.ndindex(*shape)]


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
    """Write ``latents.nc`` and, of a vector of at most 512 values, the posterior means as the spreadsheet ``latents.tsv``.

    Returns
    -------
    list[Path]
        What was written; a spreadsheet of earlier latents is removed where there is none of these.
    """
    check_latents(latents)
    netcdf, table = Path(folder) / "latents.nc", Path(folder) / "latents.tsv"
    with atomic(netcdf) as temporary:
        reserve(temporary, latents.nbytes + HEAD_BYTES)
        latents.assign_attrs({CONTENT: _content(latents)}).to_netcdf(temporary, engine="h5netcdf")
    if is_grid(latents) or latents.sizes["latent"] > MAX_COLUMNS:
        table.unlink(missing_ok=True)
        return [netcdf]
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
        When the file is absent or damaged, not as it was written, of another format version, or breaks the schema.
    """
    path = Path(folder) / "latents.nc"
    if not path.is_file():
        raise LatentsError(f"{path} does not exist. Make it with `nilatent encode`.")
    try:
        latents = read_netcdf(path)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        raise LatentsError(f"{path} cannot be read: {error}. Encode the cohort again.") from error
    version = latents.attrs.get("format_version")
    if version == 1:
        latents = _from_version_1(latents)
    elif version != FORMAT_VERSION:
        raise LatentsError(
            f"{path} has latents format {version}, this nilatent reads up to {FORMAT_VERSION}. Encode the cohort again."
        )
    # A list of one number comes back from the file as the number.
    latents.attrs["latent_shape"] = [int(side) for side in np.atleast_1d(latents.attrs["latent_shape"])]
    check_latents(latents)
    written = latents.attrs.pop(CONTENT, "")
    # Files of before it was written have none.
    if written and written != _content(latents):
        raise LatentsError(f"{path} is not as it was written: some of its bytes have changed. Encode the cohort again.")
    return latents


def _content(latents: xr.Dataset) -> str:
    """Hash of every value, name and attribute."""
    values = {name: latents[name].values for name in ("mean", "log_var", "latent", *COORDINATES)}
    hashed = {
        name: hash_values(one) if one.dtype.kind in "OU" else hashlib.sha256(np.ascontiguousarray(one).data).hexdigest()
        for name, one in values.items()
    }
    return hash_values([hashed, {name: plain(value) for name, value in latents.attrs.items() if name != CONTENT}])


def _from_version_1(latents: xr.Dataset) -> xr.Dataset:
    """Before there were latents on a grid and notes."""
    return latents.assign_attrs(format_version=FORMAT_VERSION, latent_shape=[latents.sizes["latent"]])


def is_grid(latents: xr.Dataset) -> bool:
    """Whether the latents of a scan lie on a grid rather than in a vector."""
    return len(latents.attrs["latent_shape"]) > 1


def compact(latents: xr.Dataset, *, n_components: int, seed: int) -> xr.Dataset:
    """Principal components of latents, for analyses that need few of them.

    Parameters
    ----------
    latents : Dataset
        Of any shape. The components are those of the posterior means of the scans in the part ``"train"``; no other scan
        has a say in them.
    n_components : int
        Components wanted; where the training scans span fewer dimensions, the result has those, and says so.
    seed : int
        Draws the scans they are fitted on, where there are more than 2000.

    Returns
    -------
    Dataset
        Latents that are a vector: scores in units of the latents (not whitened), centred on the training scans, largest
        weight of each component positive, ``image_scale`` 1. The log-variance is that of the score, whose variance is the
        sum of those of the latents by the squared weights. The note ``compact`` says what they are.

    Raises
    ------
    LatentsError
        When there are fewer than two training scans, all of them have the same latents, or fewer than one component is
        asked for.
    """
    check_latents(latents)
    n_train = min(int((latents["part"].values == "train").sum()), MAX_SCANS)
    frame, share = _fitted(latents, n_components=n_components, seed=seed)
    mean, variance = latents["mean"].values, np.exp(latents["log_var"].values.astype(np.float64))
    weights = frame.axes
    shape = " x ".join(str(side) for side in latents.attrs["latent_shape"])
    words = (
        f"PCA of the latent {'grid' if is_grid(latents) else 'vector'} ({shape}): {len(weights)} of {mean.shape[1]} "
        f"dimensions, {100 * share:.1f} % of the variance of {n_train} training scans"
    )
    if len(weights) < n_components:
        words += f"; {n_components} were asked for, and these scans span no more"
    return make_latents(
        frame.coordinates(mean),
        np.log(variance @ np.square(weights).T),
        scan=list(latents["scan"].values),
        subject=list(latents["subject"].values),
        subject_in_training=list(latents["subject_in_training"].values),
        part=list(latents["part"].values),
        model_hash=latents.attrs["model_hash"],
        volumes_hash=latents.attrs["volumes_hash"],
        notes={name: latents.attrs[name] for name in NOTES if name in latents.attrs} | {"compact": words},
    )


@dataclass(frozen=True, eq=False)
class Frame:
    """Coordinates in which latents are described and moved: the latents themselves, or the components of a grid.

    Parameters
    ----------
    centre : ndarray
        (value,) latents at the origin of the coordinates.
    axes : ndarray
        (coordinate, value) orthonormal rows.
    """

    centre: np.ndarray
    axes: np.ndarray

    def coordinates(self, latents: np.ndarray) -> np.ndarray:
        """(scan, coordinate) of latents (scan, value)."""
        return np.asarray((latents - self.centre) @ self.axes.T)

    def latents(self, coordinates: np.ndarray) -> np.ndarray:
        """(scan, value) latents at coordinates (scan, coordinate); what no coordinate describes is that of the centre."""
        return np.asarray(self.centre + coordinates @ self.axes)


def frame_of(latents: xr.Dataset, *, n_components: int, seed: int) -> Frame:
    """The coordinates that :func:`compact` gives of latents on a grid; of a vector the latents as they are.

    Parameters
    ----------
    latents, n_components, seed
        As in :func:`compact`; the latter two are for a grid only.

    Raises
    ------
    LatentsError
        As in :func:`compact`.
    """
    check_latents(latents)
    if not is_grid(latents):
        return Frame(np.zeros(latents.sizes["latent"]), np.eye(latents.sizes["latent"]))
    return _fitted(latents, n_components=n_components, seed=seed)[0]


def _fitted(latents: xr.Dataset, *, n_components: int, seed: int) -> tuple[Frame, float]:
    """Components of the latents of the training scans, and their share of the variance."""
    train = np.flatnonzero(latents["part"].values == "train")
    if len(train) > MAX_SCANS:
        train = np.sort(np.random.default_rng(seed).choice(train, size=MAX_SCANS, replace=False))
    if not 1 <= n_components < max(len(train), 2):
        raise LatentsError(
            f"{len(train)} training scans have at most {max(len(train) - 1, 0)} components, {n_components} were asked for. Bring "
            "more scans, or ask for fewer."
        )
    mean = latents["mean"].values[train]
    centre = mean.mean(axis=0, dtype=np.float64)
    axes, share = _components(mean, centre, n_components)
    return Frame(centre, axes), share


def _components(x: np.ndarray, centre: np.ndarray, n_components: int) -> tuple[np.ndarray, float]:
    """Orthonormal rows (component, latent) and their share of the variance, through the scan-by-scan Gram matrix."""
    blocks = [slice(start, start + CHUNK) for start in range(0, x.shape[1], CHUNK)]
    gram = sum(((x[:, block] - centre[block]) @ (x[:, block] - centre[block]).T for block in blocks), np.zeros(()))
    values, vectors = np.linalg.eigh(gram)
    order = np.argsort(values)[::-1][:n_components]
    order = order[values[order] > 1e-10 * max(values.max(), np.finfo(float).tiny)]
    # What single precision leaves of equal numbers is no variance.
    if values.max() <= 1e-12 * len(x) * np.square(centre).sum() or values.max() <= 0:
        raise LatentsError("The latents of all training scans are the same. Look at the diagnosis of the training.")
    mixed = (vectors[:, order] / np.sqrt(values[order])).T
    weights = np.concatenate([mixed @ (x[:, block] - centre[block]) for block in blocks], axis=1)
    weights *= np.sign(weights[np.arange(len(weights)), np.abs(weights).argmax(axis=1)])[:, None]
    return weights, float(values[order].sum() / np.trace(gram))
