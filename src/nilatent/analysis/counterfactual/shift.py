"""Where a scan lies once columns of it have other values: told to the decoder, or moved along forward patterns."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from nilatent.analysis.contrast import level_words
from nilatent.analysis.directions import covariate_step, group_step
from nilatent.analysis.latent_space import LatentSpace
from nilatent.errors import CohortError, SettingError


def shift(
    space: LatentSpace,
    scans: pd.DataFrame,
    rows: np.ndarray,
    changes: Mapping[str, float | str],
    *,
    others: Sequence[str] = (),
    site: str = "",
) -> tuple[np.ndarray, pd.DataFrame | None]:
    """What moves scans to changed values of columns, for :meth:`LatentSpace.moved`.

    A column that the decoder is told is told anew, and the latents stay. For any other the latents move along its forward
    pattern: the regression of the coordinates of training scans on the column, the other columns held.

    Parameters
    ----------
    space : LatentSpace
        The latent space.
    scans : DataFrame
        Index scan_id; ``subject_id`` and the columns named here, of at least the scans of the space.
    rows : ndarray
        (n,) numbers of scans of the space.
    changes : Mapping[str, float or str]
        Column to its change: ``"+10"`` or ``"-2.5"`` is added to a number, ``70.0`` or ``"70"`` sets it, a level replaces a
        category. Nothing gives the scans as they are.
    others : Sequence[str]
        Columns that are held while the pattern of one is fitted, along with the other changed ones.
    site : str
        Column of the site, held too; empty for none.

    Returns
    -------
    steps : ndarray
        (n, coordinate).
    told : DataFrame or None
        n rows with the columns that the decoder is told; None where it is told nothing.

    Raises
    ------
    CohortError
        When a scan is not in the table, or the value it would be changed from is missing.
    NotComparableError
        When the training scans do not carry the pattern of a column.
    SettingError
        When a column does not exist, or the new value is none of it.

    Examples
    --------
    >>> steps, told = shift(space, scans, rows, {"age": "+10"}, others=("sex",))  # doctest: +SKIP
    >>> older = space.moved(rows, steps, told)  # doctest: +SKIP
    """
    absent = space.scans.difference(scans.index)
    if len(absent):
        raise CohortError(f"Scan {absent[0]} of the latent space is not in the cohort. Take the cohort of the run.")
    # All of a selection, so that nothing is changed in the caller's table.
    chosen = scans.loc[space.scans[np.asarray(rows)]].copy()
    steps = np.zeros((len(chosen), len(space.names)))
    told = chosen[list(space.told)].copy() if space.told else None
    for column, change in changes.items():
        if column not in chosen:
            raise SettingError(
                f"Column '{column}' is not in the cohort, which has {', '.join(map(str, scans.columns))}. Name one of these."
            )
        if told is not None and column in space.told:
            told[column] = _changed(chosen, column, change)
            continue
        # A site that is changed cannot be held at once.
        own = "" if column == site else site
        held = [name for name in dict.fromkeys([*others, *changes]) if name not in (column, own)]
        if is_number(scans[column]):
            amount = _amounts(chosen, column, change)
            steps += np.outer(amount, covariate_step(space, scans, column, others=held, site=own))
        else:
            steps += _to_level(space, scans, chosen, column, str(change), held=held, site=own)
    return steps, told


def is_number(values: "pd.Series[float]") -> bool:
    """Whether a column is changed by an amount: numbers are, words and True or False are not."""
    return bool(pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values))


def is_amount(change: float | str) -> bool:
    """Whether a change is added to the value: ``"+10"``; without a sign, and as a number, it replaces the value."""
    return isinstance(change, str) and change.strip()[:1] in {"+", "-"}


def _number(column: str, change: float | str) -> float:
    try:
        number = float(change)
    except ValueError:
        number = float("nan")
    if not np.isfinite(number):
        raise SettingError(
            f"The column '{column}' holds numbers and is to become '{change}'. Write +10 to add, or 70 to set."
        )
    return number


def _amounts(chosen: pd.DataFrame, column: str, change: float | str) -> np.ndarray:
    number = _number(column, change)
    if is_amount(change):
        return np.full(len(chosen), number)
    return number - _known(chosen, column).to_numpy(dtype=np.float64)


def _changed(chosen: pd.DataFrame, column: str, change: float | str) -> "pd.Series[float] | str | float":
    if not is_number(chosen[column]):
        return str(change)
    number = _number(column, change)
    return _known(chosen, column).astype(float) + number if is_amount(change) else number


def _to_level(
    space: LatentSpace,
    scans: pd.DataFrame,
    chosen: pd.DataFrame,
    column: str,
    target: str,
    *,
    held: Sequence[str],
    site: str,
) -> np.ndarray:
    """(n, coordinate) steps from the level of each scan to another; none for a scan that has it."""
    known = sorted(level_words(scans[column]).dropna().unique())
    if target not in known:
        raise SettingError(f"The column '{column}' is to become '{target}'; it holds {', '.join(known)}.")
    levels = level_words(_known(chosen, column)).to_numpy()
    steps = np.zeros((len(chosen), len(space.names)))
    for level in sorted(set(levels) - {target}):
        steps[levels == level] = group_step(space, scans, column, target, level, others=held, site=site)
    return steps


def _known(chosen: pd.DataFrame, column: str) -> "pd.Series[float]":
    missing = chosen.index[level_words(chosen[column]).isna()]
    if len(missing):
        raise CohortError(
            f"Scan {missing[0]} has no value in column '{column}' to be changed from ({len(missing)} in all). Leave such scans "
            "out, or fill the column in."
        )
    values: pd.Series[float] = chosen[column]
    return values
