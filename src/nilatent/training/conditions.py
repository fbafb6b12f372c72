"""Columns of the cohort that a model is told: numbers standardised and categories coded, both by the training scans."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from nilatent.errors import SettingError

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Column:
    """One column and how it becomes numbers.

    Parameters
    ----------
    name : str
        Of the cohort's column.
    levels : tuple[str, ...]
        Values of a category, the reference first; none for a number.
    mean, sd : tuple[float, ...]
        What is taken away from each number and what it is divided by: of the values of a number, of the indicator of
        each level but the reference of a category (whose SD is left at 1).
    """

    name: str
    levels: tuple[str, ...]
    mean: tuple[float, ...]
    sd: tuple[float, ...]


@dataclass(frozen=True)
class Conditions:
    """What a model is told of every scan beside its image.

    Parameters
    ----------
    columns : tuple[Column, ...]
        In the order of the settings.
    """

    columns: tuple[Column, ...] = ()

    @property
    def n_values(self) -> int:
        """Numbers for each scan."""
        return sum(len(column.mean) for column in self.columns)

    def values(self, scans: pd.DataFrame | None) -> Array | None:
        """Numbers of every scan.

        Parameters
        ----------
        scans : DataFrame or None
            Index ``scan_id`` and the columns; None is allowed where no column is needed.

        Returns
        -------
        ndarray or None
            (scan, value) float32; None without columns.

        Raises
        ------
        SettingError
            When a column is absent, a value is missing, or a category was not among the training scans.
        """
        if not self.columns:
            return None
        if scans is None:
            raise SettingError(
                f"The model is told {', '.join(column.name for column in self.columns)} of every scan (model.condition). "
                "Give the table of scans with these columns."
            )
        return np.concatenate([_coded(column, scans) for column in self.columns], axis=1)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return {"columns": [asdict(column) for column in self.columns]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Conditions":
        """Read what :meth:`to_dict` made."""
        return cls(
            tuple(
                Column(one["name"], tuple(one["levels"]), tuple(one["mean"]), tuple(one["sd"]))
                for one in values["columns"]
            )
        )


def fit_conditions(scans: pd.DataFrame | None, training: Sequence[str], names: Sequence[str]) -> Conditions:
    """Learn from the training scans how columns become numbers.

    Parameters
    ----------
    scans : DataFrame or None
        Index ``scan_id``; None is allowed where no column is asked for.
    training : Sequence[str]
        Scans of the training part; no other is looked at.
    names : Sequence[str]
        Columns.

    Raises
    ------
    SettingError
        When a column is absent, a value is missing, or all training scans have the same.
    """
    if not names:
        return Conditions()
    if scans is None:
        raise SettingError(
            f"model.condition names {', '.join(names)}; training needs the table of scans with these columns."
        )
    return Conditions(tuple(_learned(scans.loc[list(training)], name) for name in names))


def _learned(scans: pd.DataFrame, name: str) -> Column:
    values = _complete(scans, name)
    if pd.api.types.is_numeric_dtype(values):
        numbers = values.to_numpy(float)
        if not numbers.std() > 0:
            raise SettingError(
                f"All training scans have {name} = {numbers[0]:g}, so it tells the model nothing. Leave it out."
            )
        return Column(name, (), (float(numbers.mean()),), (float(numbers.std()),))
    counts = values.astype(str).value_counts().sort_index()
    # The commonest level is the reference, so that no other stands for nearly everybody.
    reference = str(counts.idxmax())
    others = [str(level) for level in counts.index if level != reference]
    if not others:
        raise SettingError(
            f"All training scans have {name} = {reference}, so it tells the model nothing. Leave it out."
        )
    share = tuple(float(counts[level] / counts.sum()) for level in others)
    return Column(name, (reference, *others), share, (1.0,) * len(others))


def _complete(scans: pd.DataFrame, name: str) -> "pd.Series[Any]":
    if name not in scans:
        raise SettingError(
            f"model.condition names '{name}', and the cohort has no such column: {', '.join(scans.columns)}."
        )
    missing = scans.index[scans[name].isna()]
    if len(missing):
        raise SettingError(
            f"{name} is missing for {len(missing)} scans ({', '.join(map(str, missing[:5]))}), and the model is told it of every "
            "scan. Fill it in, leave these scans out (--exclude), or take it out of model.condition."
        )
    return scans[name]


def _coded(column: Column, scans: pd.DataFrame) -> Array:
    values = _complete(scans, column.name)
    if column.levels:
        words = values.astype(str).to_numpy()
        unknown = sorted(set(words) - set(column.levels))
        if unknown:
            raise SettingError(
                f"{column.name} is '{unknown[0]}' for scan {scans.index[words == unknown[0]][0]}; the training scans had "
                f"{', '.join(column.levels)}. The model has no way to draw another: leave these scans out."
            )
        numbers = (words[:, None] == np.array(column.levels[1:])).astype(float)
    else:
        known = pd.to_numeric(values, errors="coerce")
        if known.isna().any():
            scan = known.index[known.isna()][0]
            raise SettingError(
                f"{column.name} is '{values[scan]}' for scan {scan}, and the training scans had numbers. Write it as one, or "
                "leave this scan out."
            )
        numbers = known.to_numpy(float)[:, None]
    return np.asarray((numbers - column.mean) / column.sd, dtype=np.float32)


def standardised_score(scans: pd.DataFrame | None, training: Sequence[str], order: Sequence[str], name: str) -> Array:
    """A score of the training scans in SD about their mean, to which a latent is pulled.

    Parameters
    ----------
    scans : DataFrame or None
        Index ``scan_id``.
    training : Sequence[str]
        Scans of the training part; the score of no other is looked at.
    order : Sequence[str]
        All scans, in the order of the result.
    name : str
        Column of numbers; values may be missing.

    Returns
    -------
    ndarray
        (scan,) float32; NaN where it is missing, and for every scan outside the training part.

    Raises
    ------
    SettingError
        When there is no such column of numbers, or it does not vary.
    """
    if scans is None or name not in scans:
        raise SettingError(
            f"model.align is '{name}', and there is no such column in the cohort. Name a column of numbers."
        )
    if not pd.api.types.is_numeric_dtype(scans[name]):
        raise SettingError(f"model.align is '{name}', which holds words. Name a column of numbers.")
    known = scans[name].loc[list(training)].astype(float)
    if not (known.notna().sum() > 2 and known.std(ddof=0) > 0):
        raise SettingError(
            f"model.align is '{name}', which has no two different values among the training scans. Leave it out."
        )
    standardised = (known - known.mean()) / known.std(ddof=0)
    return np.asarray(standardised.reindex(list(order)).to_numpy(float), dtype=np.float32)


def aligned_rotation(latents: npt.NDArray[np.float64], score: Array) -> npt.NDArray[np.float64]:
    """Rotate whitened latents so that the first follows a score, as well as a linear rule finds that on new scans.

    Parameters
    ----------
    latents : ndarray
        (scan, latent) of the training scans, uncorrelated and of unit variance.
    score : ndarray
        (scan,) standardised; NaN where it is missing.

    Returns
    -------
    ndarray
        (latent, latent) symmetric and orthogonal (a reflection): its first row is the direction of ridge regression, whose
        penalty has the smallest leave-one-out error. The latents keep their variances and stay uncorrelated.
    """
    known = np.isfinite(score)
    x, y = latents[known] - latents[known].mean(axis=0), score[known].astype(np.float64)
    y = y - y.mean()
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    best, direction = np.inf, vt[0]
    for penalty in np.logspace(-3, 3, 25) * len(y):
        shrunk = s**2 / (s**2 + penalty)
        left = (y - u @ (shrunk * (u.T @ y))) / (1.0 - 1.0 / len(y) - (u**2 @ shrunk))
        if np.square(left).sum() < best:
            best, direction = float(np.square(left).sum()), vt.T @ (s / (s**2 + penalty) * (u.T @ y))
    direction = direction / max(float(np.linalg.norm(direction)), 1e-300)
    mirror = np.eye(len(direction))[0] - direction
    size = float(mirror @ mirror)
    return np.eye(len(direction)) - (2.0 / size * np.outer(mirror, mirror) if size > 1e-24 else 0.0)
