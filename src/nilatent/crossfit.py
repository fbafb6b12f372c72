"""Cross-fitting: as many models as folds, so that every scan is described by one that has not seen its subject."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from nilatent.atlas import RegionWeights
from nilatent.encode import encode, reconstructions
from nilatent.errors import LeakageError, SettingError
from nilatent.latents import read_latents, write_latents
from nilatent.models import ModelConfig
from nilatent.provenance import atomic
from nilatent.training.checkpoint import TrainedModel
from nilatent.training.config import TrainConfig
from nilatent.training.loop import train
from nilatent.training.remedy import train_with_remedies
from nilatent.volumes import Volumes


def fold_parts(parts: pd.DataFrame, fold: int, *, validation_fraction: float, seed: int) -> pd.DataFrame:
    """The split of one fold: its subjects are the test part, and the others train and choose the epoch.

    Parameters
    ----------
    parts : DataFrame
        Index scan_id; columns ``subject_id`` and ``fold``, all scans of a subject in one fold.
    fold : int
        Which fold is held out.
    validation_fraction : float
        Share of all subjects that choose the epoch, above 0 and below 1; at least one subject.
    seed : int
        Draws these subjects.

    Returns
    -------
    DataFrame
        Index scan_id; columns ``subject_id``, ``part`` and ``fold``.

    Raises
    ------
    LeakageError
        When a subject is in two folds.
    SettingError
        When the fold is empty, or nobody would be left to train on.

    Examples
    --------
    >>> parts = pd.DataFrame({"subject_id": list("abcdef"), "fold": [0, 1, 2, 0, 1, 2]}, index=list("abcdef"))
    >>> fold_parts(parts, 1, validation_fraction=0.2, seed=0)["part"].value_counts().to_dict()
    {'train': 3, 'test': 2, 'validation': 1}
    """
    by_subject = parts.groupby("subject_id")["fold"]
    straddling = by_subject.nunique()
    if (straddling > 1).any():
        raise LeakageError(
            f"Subject {straddling.idxmax()} is in more than one fold. Split the cohort again, by subject."
        )
    of_subject = by_subject.first().sort_index()
    held_out = of_subject.index[of_subject == fold]
    rest = of_subject.index[of_subject != fold]
    n_validation = max(round(validation_fraction * len(of_subject)), 1)
    if len(held_out) == 0 or len(rest) <= n_validation + 1:
        raise SettingError(
            f"Fold {fold} holds {len(held_out)} of {len(of_subject)} subjects and leaves {max(len(rest) - n_validation, 0)} to "
            "train on. Ask for as many folds as the split has, fewer than there are subjects."
        )
    judges = np.random.default_rng([seed, fold]).permutation(rest)[:n_validation]
    part = pd.Series("train", index=of_subject.index)
    part[held_out], part[judges] = "test", "validation"
    return pd.DataFrame(
        {"subject_id": parts["subject_id"], "part": parts["subject_id"].map(part), "fold": parts["fold"]}
    )


def fit_fold(
    volumes: Volumes,
    parts: pd.DataFrame,
    fold: int,
    model_config: ModelConfig,
    config: TrainConfig,
    folder: Path,
    *,
    scans: pd.DataFrame,
    preparation: Mapping[str, Any],
    nuisances: tuple[str, ...],
    remedy: bool = False,
) -> list[Path]:
    """Train the model of one fold, encode every scan with it and measure its errors on the scans it has not seen.

    Parameters
    ----------
    volumes, model_config, config, scans, preparation, nuisances
        As for :func:`nilatent.training.loop.train`.
    parts : DataFrame
        Of this fold, from :func:`fold_parts`.
    fold : int
        Which fold.
    remedy : bool
        Whether a training with a known failure starts again with a remedy, in each fold by itself.
    folder : Path
        Receives ``split.tsv``, ``model/``, ``latents.nc`` and ``errors.tsv``; a training that was killed goes on.

    Returns
    -------
    list of Path
        What the fold leaves, without what is needed to resume.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with atomic(folder / "split.tsv") as temporary:
        parts.to_csv(temporary, sep="\t", index_label="scan_id")
    training = train_with_remedies if remedy else train
    model = training(
        volumes,
        parts,
        model_config,
        config,
        folder / "model",
        scans=scans,
        preparation=dict(preparation),
        nuisances=nuisances,
    )
    latents = encode(model, volumes, parts, scans=scans, preparation=preparation)
    written = write_latents(latents, folder)
    unseen = ~latents["subject_in_training"].values & (latents["part"].values == "test")
    with atomic(folder / "errors.tsv") as temporary:
        errors_of(model, volumes, np.flatnonzero(unseen), fold, scans=scans).to_csv(
            temporary, sep="\t", index_label="scan_id"
        )
    kept = {"config.toml", "weights.safetensors", "result.json"}
    return [
        folder / "split.tsv",
        folder / "errors.tsv",
        *written,
        *sorted(path for path in (folder / "model").iterdir() if path.name in kept),
    ]


def errors_of(
    model: TrainedModel, volumes: Volumes, rows: np.ndarray, fold: int, *, scans: pd.DataFrame
) -> pd.DataFrame:
    """Mean squared error per voxel of the mask of some scans.

    Returns
    -------
    DataFrame
        Index scan_id; columns ``subject_id``, ``fold`` and ``error``, in squared units of the scans.
    """
    known = volumes.scans.iloc[rows]
    table = pd.DataFrame({"subject_id": known["subject_id"], "fold": fold, "error": np.nan}, index=known.index)
    for batch, drawn in reconstructions(model, volumes, np.asarray(rows, dtype=np.intp), scans=scans):
        missed = volumes.masked(batch).astype(np.float64) - drawn
        table.loc[volumes.scans.index[batch], "error"] = np.square(missed).mean(axis=1)
    return table


def regional_misses_of(
    model: TrainedModel,
    volumes: Volumes,
    rows: np.ndarray,
    weights: RegionWeights,
    *,
    scans: pd.DataFrame,
    squared: bool,
) -> pd.DataFrame:
    """What a model misses in every region of some scans: the mean over its voxels of the scan minus its reconstruction.

    Parameters
    ----------
    model, volumes, rows, scans
        As for :func:`errors_of`.
    weights : RegionWeights
        The atlas in the mask of the volumes.
    squared : bool
        The mean of the squares, an error, in place of the signed mean.

    Returns
    -------
    DataFrame
        Index scan_id, one column per region, in units of the scans or their square.
    """
    found = np.empty((len(rows), len(weights.names)))
    done = 0
    for batch, drawn in reconstructions(model, volumes, np.asarray(rows, dtype=np.intp), scans=scans):
        missed = volumes.masked(batch).astype(np.float64) - drawn
        missed = np.square(missed) if squared else missed
        found[done : done + len(batch)] = (weights.matrix @ missed.T).T / weights.n_voxels
        done += len(batch)
    return pd.DataFrame(found, index=volumes.scans.index[rows], columns=list(weights.names))


def read_folds(
    folder: Path, n_folds: int, *, reduce: Callable[[xr.Dataset], xr.Dataset]
) -> tuple[list[xr.Dataset], pd.DataFrame]:
    """Latents of every fold's model, and the errors of all scans, each by the model that has not seen its subject.

    Parameters
    ----------
    folder : Path
        Holds one folder per fold, as :func:`fit_fold` left them.
    n_folds : int
        How many.
    reduce : Callable
        What is kept of the latents of each fold: those on a grid are large, and only one fold's are held whole.

    Raises
    ------
    LeakageError
        When a scan is in two folds, or was seen by the model that measured it.
    """
    latents = [reduce(read_latents(folder / str(fold))) for fold in range(n_folds)]
    kinds = {"scan_id": str, "subject_id": str, "fold": int}
    tables = [pd.read_csv(folder / str(fold) / "errors.tsv", sep="\t", dtype=kinds) for fold in range(n_folds)]
    errors = pd.concat(tables).set_index("scan_id")
    if errors.index.has_duplicates:
        raise LeakageError(
            f"Scan {errors.index[errors.index.duplicated()][0]} is in more than one fold. Delete {folder} and run again."
        )
    for fold, found in enumerate(latents):
        seen = found["scan"].values[found["subject_in_training"].values].astype(str)
        known = errors.index[errors["fold"] == fold].intersection(seen)
        if len(known):
            raise LeakageError(
                f"The model of fold {fold} has seen the subject of {known[0]}, whose error it measured. Delete "
                f"{folder / str(fold)} and run again."
            )
    return latents, errors
