"""Columns of the cohort as numbers that a density is conditioned on, learned from the training scans."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from nilatent.errors import SettingError

# Of a category: the mean of fewer is nearly the latents of one of them.
MIN_SUBJECTS = 5


@dataclass(frozen=True)
class ToldColumn:
    """One column and how it becomes numbers about their training mean.

    Parameters
    ----------
    name : str
        Of the cohort's column.
    levels : tuple[str, ...]
        Values of a category, the commonest first; none for a number.
    mean : tuple[float, ...]
        Of a number, or of the 0/1 indicator of each level but the first.
    low, high : float
        Smallest and largest number among the training scans; NaN for a category.
    """

    name: str
    levels: tuple[str, ...]
    mean: tuple[float, ...]
    low: float
    high: float


def common(told: pd.DataFrame, subjects: np.ndarray) -> np.ndarray:
    """Rows of which every column is known, and every category is that of five subjects at least.

    Parameters
    ----------
    told : DataFrame
        One row per scan.
    subjects : ndarray
        (scan,) whose they are.

    Returns
    -------
    ndarray
        (scan,) bool.
    """
    usable = told.notna().all(axis=1)
    for name in told:
        if not _is_number(told[name]):
            people = pd.Series(subjects, index=told.index)[usable].groupby(told[name][usable].astype(str)).nunique()
            usable = usable & told[name].astype(str).map(people).ge(MIN_SUBJECTS)
    return usable.to_numpy()


def learn_columns(scans: pd.DataFrame, names: Sequence[str]) -> tuple[ToldColumn, ...]:
    """How columns become numbers.

    Parameters
    ----------
    scans : DataFrame
        Training scans, with no value of the columns missing.
    names : Sequence[str]
        Columns; numbers are taken as they are, words and truth values as categories.

    Raises
    ------
    SettingError
        When all scans have one value of a column: nothing could be learned from it.
    """
    return tuple(_learned(scans[name], name) for name in names)


def _learned(values: pd.Series, name: str) -> ToldColumn:
    if values.nunique() < 2:
        raise SettingError(
            f"All {len(values)} training scans have {name} = {', '.join(map(str, values.unique()))}, so no sample can be drawn "
            "for another value. Leave it out of the conditions."
        )
    if _is_number(values):
        numbers = values.to_numpy(float)
        return ToldColumn(name, (), (float(numbers.mean()),), float(numbers.min()), float(numbers.max()))
    counts = values.astype(str).value_counts().sort_index()
    first = str(counts.idxmax())
    others = [str(level) for level in counts.index if level != first]
    share = tuple(float(counts[level] / counts.sum()) for level in others)
    return ToldColumn(name, (first, *others), share, np.nan, np.nan)


def _is_number(values: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)


def as_numbers(columns: Sequence[ToldColumn], told: pd.DataFrame) -> np.ndarray:
    """Columns of a table as numbers about their training mean.

    Parameters
    ----------
    columns : Sequence[ToldColumn]
        Learned from the training scans.
    told : DataFrame
        With these columns.

    Returns
    -------
    ndarray
        (row, number) float64.

    Raises
    ------
    SettingError
        When a column is absent, a value is missing or no number, or a category was not among the training scans.
    """
    parts = [np.zeros((len(told), 0)), *(_coded(column, told) - column.mean for column in columns)]
    return np.concatenate(parts, axis=1)


def _coded(column: ToldColumn, told: pd.DataFrame) -> np.ndarray:
    if column.name not in told:
        raise SettingError(
            f"The density was conditioned on {column.name}, and the table of conditions has no such column: "
            f"{', '.join(map(str, told.columns))}. Add it."
        )
    values = told[column.name]
    if values.isna().any():
        raise SettingError(
            f"{column.name} is missing in {int(values.isna().sum())} of {len(told)} rows of conditions. Fill it in."
        )
    if not column.levels:
        numbers = pd.to_numeric(values, errors="coerce").to_numpy(float)
        if not np.isfinite(numbers).all():
            wrong = values.iloc[int(np.flatnonzero(~np.isfinite(numbers))[0])]
            raise SettingError(f"{column.name} is a number of the training scans, got '{wrong}'. Write it as one.")
        return numbers[:, None]
    words = values.astype(str).to_numpy()
    unknown = sorted(set(words) - set(column.levels))
    if unknown:
        raise SettingError(
            f"{column.name} = '{unknown[0]}' is that of fewer than {MIN_SUBJECTS} training subjects. Take one of "
            f"{', '.join(column.levels)}."
        )
    return np.asarray(words[:, None] == np.array(column.levels[1:]), dtype=np.float64)


def beyond(columns: Sequence[ToldColumn], told: pd.DataFrame) -> np.ndarray:
    """Rows in which a number lies outside the range of the training scans, (row,) bool: what is drawn there is a guess."""
    outside = np.zeros(len(told), dtype=bool)
    for column in columns:
        if not column.levels:
            numbers = _coded(column, told)[:, 0]
            outside |= (numbers < column.low) | (numbers > column.high)
    return outside
