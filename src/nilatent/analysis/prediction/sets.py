"""Feature sets that predict: the latents by the models that have not seen a scan, and the rows that stand beside them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

from nilatent.analysis.contrast import confound_matrix
from nilatent.analysis.held_out import check_folds
from nilatent.errors import CohortError, LeakageError, SettingError

LATENTS, REGIONS, COVARIATES, VOLUMES = "latents", "regions", "covariates", "head size and tissue volumes"
TISSUE_COLUMNS = ("head_size_factor", "tiv_ml", "source_tiv_ml", "gm_ml", "wm_ml", "csf_ml")


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """Numbers of every scan from which targets are predicted.

    Parameters
    ----------
    name : str
        In words, for the table.
    by_fold : tuple of ndarray
        (scan, feature) for every outer fold, made by what was fitted without the subjects of the fold; one array alone when
        nothing was fitted.
    seen : ndarray or None
        (fold, scan) bool: what made the features of the fold was fitted, or its epoch chosen, with this subject. None when
        nothing was fitted.
    baseline : bool
        A row that stands beside, which the others have to beat.
    grid : tuple[int, ...]
        (channel, x, y, z) of spatial latents that are flat in `by_fold`; empty for others.
    columns : tuple[str, ...]
        Column of the cohort from which each feature was made; empty for features of images. A feature made from the column
        that is predicted takes no part in predicting it.
    """

    name: str
    by_fold: tuple[np.ndarray, ...]
    seen: np.ndarray | None
    baseline: bool
    grid: tuple[int, ...] = ()
    columns: tuple[str, ...] = ()

    def of_fold(self, fold: int) -> np.ndarray:
        """(scan, feature) of one outer fold."""
        return self.by_fold[fold if len(self.by_fold) > 1 else 0]

    @property
    def finite(self) -> np.ndarray:
        """(scan,) bool: has every feature, in every fold."""
        return np.asarray(np.all([np.isfinite(values).all(axis=1) for values in self.by_fold], axis=0))


def check_sets(sets: Sequence[FeatureSet], scans: pd.DataFrame, folds: np.ndarray) -> None:
    """Refuse feature sets that do not fit the scans, or that know a scan they are judged on.

    Parameters
    ----------
    sets : Sequence[FeatureSet]
        What predicts.
    scans : DataFrame
        Index scan_id; ``subject_id``.
    folds : ndarray
        (scan,) outer fold in which each scan is held out, 0, 1, ...

    Raises
    ------
    LeakageError
        When what made the features of a fold has seen a subject held out in it, or a subject is in two folds.
    SettingError
        When names repeat, there are no sets, or shapes do not fit.
    """
    names = [one.name for one in sets]
    if not names or len(set(names)) < len(names):
        raise SettingError(f"The feature sets are named {names}. Give at least one, each with a name of its own.")
    folds = np.asarray(folds)
    n_folds = len(np.unique(folds))
    if len(folds) != len(scans) or not np.array_equal(np.unique(folds), np.arange(n_folds)):
        raise SettingError(
            f"{len(folds)} folds were given for {len(scans)} scans, with the numbers {np.unique(folds).tolist()}. Give each "
            "scan its fold, counted from 0 without a gap."
        )
    check_folds(folds, scans["subject_id"].to_numpy())
    for one in sets:
        shapes = [values.shape for values in one.by_fold]
        if len(shapes) not in (1, n_folds) or any(len(shape) != 2 or shape[0] != len(scans) for shape in shapes):
            raise SettingError(
                f"The feature set '{one.name}' holds arrays of shapes {shapes} for {len(scans)} scans in {n_folds} folds. Give "
                "one (scan, feature) array, or one for every fold."
            )
        if one.columns and len(one.columns) != shapes[0][1]:
            raise SettingError(
                f"The feature set '{one.name}' names {len(one.columns)} columns for {shapes[0][1]} features."
            )
        if one.seen is not None:
            _check_unseen(one, scans, folds, n_folds)


def _check_unseen(one: FeatureSet, scans: pd.DataFrame, folds: np.ndarray, n_folds: int) -> None:
    seen = np.asarray(one.seen)
    if seen.shape != (n_folds, len(scans)):
        raise SettingError(f"'seen' of '{one.name}' has shape {seen.shape}; it must be {(n_folds, len(scans))}.")
    by_subject = pd.DataFrame(seen.T).groupby(scans["subject_id"].to_numpy()).transform("any").to_numpy().T
    known = np.flatnonzero(by_subject[folds, np.arange(len(scans))])
    if len(known):
        subject = scans["subject_id"].iloc[known[0]]
        raise LeakageError(
            f"The features '{one.name}' of fold {folds[known[0]]} come from a model that has seen subject {subject}, who is "
            f"held out in it ({len(known)} such scans in all). Encode the scans of a fold with the model that was trained "
            "without them."
        )


def latent_set(folds: Sequence[xr.Dataset], scans: pd.DataFrame, *, name: str = LATENTS) -> FeatureSet:
    """The latents of cross-fitted models, model k for the scans held out in fold k.

    Parameters
    ----------
    folds : Sequence of Dataset
        Latents of all scans by each model, with the schema of :mod:`nilatent.latents`.
    scans : DataFrame
        Index scan_id.
    name : str
        In the table.

    Raises
    ------
    CohortError
        When a model lacks a scan, or labels shaped its latents: shuffled labels could not say what chance is.
    """
    chosen = []
    for number, latents in enumerate(folds):
        apart = scans.index.difference(pd.Index(latents["scan"].values))
        if len(apart):
            raise CohortError(
                f"Cross-fitted model {number} lacks scan {apart[0]}. Encode the whole cohort with every model."
            )
        if latents.attrs.get("supervised"):
            raise CohortError(
                f"Labels shaped the latents of cross-fitted model {number}, so a test that shuffles labels would not be valid. "
                "Train the folds without labels."
            )
        chosen.append(latents.sel(scan=scans.index.to_numpy()))
    seen = np.array([one["subject_in_training"].values for one in chosen])
    shape = tuple(int(size) for size in chosen[0].attrs.get("latent_shape", ()))
    values = tuple(one["mean"].values.reshape(len(scans), -1).astype(np.float64) for one in chosen)
    return FeatureSet(name, values, seen, baseline=False, grid=shape if len(shape) == 4 else ())


def region_set(regions: pd.DataFrame, scans: pd.DataFrame) -> FeatureSet:
    """Mean grey matter of the regions, (scan, region)."""
    return FeatureSet(REGIONS, (regions.loc[scans.index].to_numpy(dtype=np.float64),), None, baseline=True)


def covariate_set(scans: pd.DataFrame, columns: Sequence[str]) -> FeatureSet:
    """Covariates alone: numbers as they are, words as one 0/1 column per level but the first."""
    parts = [confound_matrix(scans, [column]) for column in columns]
    names = [column for column, part in zip(columns, parts, strict=True) for _ in range(part.shape[1])]
    return FeatureSet(COVARIATES, (np.hstack(parts),), None, baseline=True, columns=tuple(names))


def volume_set(scans: pd.DataFrame) -> FeatureSet | None:
    """Head size and tissue volumes, those that the preparation knows of every scan; None when there are none."""
    numbers = {name: pd.to_numeric(scans[name], errors="coerce") for name in TISSUE_COLUMNS if name in scans}
    known = [name for name, values in numbers.items() if bool(np.isfinite(values).all())]
    if not known:
        return None
    values = np.column_stack([numbers[name] for name in known]).astype(np.float64)
    return FeatureSet(VOLUMES, (values,), None, baseline=True, columns=tuple(known))
