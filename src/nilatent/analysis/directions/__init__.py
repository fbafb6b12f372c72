"""Directions in a latent space that have a meaning: single latents, components, covariates, groups and discriminants.

A direction that moves an image must be a *pattern*: what changes in the latents when a column changes. The weights of a
classifier are none, because they also cancel what disturbs the classifier (Haufe et al.). Covariates and groups are therefore
described by regressions of the latents on the column, and the discriminant by the pattern of its score. All are fitted on the
first training scan of each subject.

References
----------
Haufe et al. 2014, doi:10.1016/j.neuroimage.2013.10.067.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd

from nilatent.analysis.contrast import (
    Comparison,
    Gradient,
    NotComparableError,
    compare_groups,
    compare_target,
    contrasts_of,
    first_scans,
    level_words,
)
from nilatent.analysis.directions.patterns import discriminant_pattern, forward_pattern, pls_pattern
from nilatent.analysis.latent_space import LatentSpace
from nilatent.errors import CohortError, SettingError

__all__ = [
    "AGE_YEARS",
    "Direction",
    "compared",
    "covariate_step",
    "directions",
    "discriminant_pattern",
    "fitted_directions",
    "forward_pattern",
    "group_step",
    "pls_pattern",
    "training_table",
    "values_of",
]

Kind = Literal["latent", "component", "pls", "discriminant", "covariate", "group"]

AGE_YEARS = 10.0
"""Years that the direction of a column called age goes in one step; other numbers go one standard deviation."""
N_COMPONENTS = 10
# A latent that varies this much less than the one that varies most says nothing of a scan.
FLAT_SHARE = 1e-6


@dataclass(frozen=True, eq=False)
class Direction:
    """A move in the latent space.

    Parameters
    ----------
    name : str
        Such as ``"z003"``, ``"pc1"``, ``"age"``, ``"sex:M:F"``, ``"pls:age"``, ``"group:patient:control"`` or
        ``"discriminant:patient:control"``.
    kind : str
        What it describes.
    step : ndarray
        (coordinate,) the move for one unit.
    unit : str
        What one unit is, in words: ``"1 SD"``, ``"10 years"``, ``"patient minus control"``.
    column : str
        Column it is fitted to; empty for latents and components.
    levels : tuple[str, ...]
        The group it goes towards and the one it comes from; empty for numbers.
    size : float
        Units of the column in one step: 10 for ten years; 1 where there is no number.
    n_subjects : int
        Training subjects it was fitted on.
    n_left_out : int
        Training scans it was not fitted on: a missing value, another group, a later session.
    held : tuple[str, ...]
        Columns that were held when it was fitted.
    """

    name: str
    kind: Kind
    step: np.ndarray
    unit: str
    column: str = ""
    levels: tuple[str, ...] = ()
    size: float = 1.0
    n_subjects: int = 0
    n_left_out: int = 0
    held: tuple[str, ...] = ()


def directions(
    space: LatentSpace,
    scans: pd.DataFrame,
    *,
    group: str,
    contrast: str,
    covariates: Sequence[str],
    site: str = "",
) -> list[Direction]:
    """Every direction that the training scans carry.

    Parameters
    ----------
    space : LatentSpace
        The latent space.
    scans : DataFrame
        Index scan_id; ``subject_id`` and the columns named here, of at least the scans of the space.
    group, contrast : str
        Column of the groups, and the contrasts as in :func:`nilatent.analysis.contrast.contrasts_of`.
    covariates : Sequence[str]
        Columns held in one another's directions and in those of the group. A number has a direction and a PLS direction, a
        column of words one direction for each level against the most frequent.
    site : str
        Column of the site, held throughout; empty for none.

    Returns
    -------
    list[Direction]
        Latents, components, covariates, PLS, groups, discriminants. What cannot be fitted is not there:
        :func:`fitted_directions` says why.

    Raises
    ------
    CohortError
        When a scan of the space is not in `scans`.
    SettingError
        When a column or a contrast does not exist.
    """
    return fitted_directions(space, scans, group=group, contrast=contrast, covariates=covariates, site=site)[0]


def fitted_directions(
    space: LatentSpace,
    scans: pd.DataFrame,
    *,
    group: str,
    contrast: str,
    covariates: Sequence[str],
    site: str = "",
) -> tuple[list[Direction], dict[str, str]]:
    """:func:`directions`, and the reason for each that cannot be fitted by its name.

    Raises
    ------
    CohortError
        When a scan of the space is not in `scans`.
    SettingError
        When a column or a contrast does not exist, or two directions have one name.
    """
    table = training_table(space, scans)
    found, refused = _unlabelled(space, table), dict[str, str]()
    try:
        contrasts = contrasts_of(scans.loc[space.scans], group=group, contrast=contrast)
    except NotComparableError as error:
        contrasts, refused["group"] = [], str(error)
    for wanted in _wanted(space, scans.loc[space.scans], group, contrasts, tuple(covariates)):
        try:
            found.append(_fitted(space, table, wanted, site=site))
        except NotComparableError as error:
            refused[wanted.name] = str(error)
    names = [one.name for one in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SettingError(f"Two directions are called '{twice[0]}'. Rename the column with --column.")
    return found, refused


def covariate_step(
    space: LatentSpace, scans: pd.DataFrame, column: str, *, others: Sequence[str], site: str = ""
) -> np.ndarray:
    """(coordinate,) by which the latents change per unit of a column of numbers, other columns held.

    Parameters
    ----------
    space, scans, site
        As in :func:`directions`.
    column : str
        A column of numbers.
    others : Sequence[str]
        Columns that are held: numbers or words, such as the group.

    Raises
    ------
    NotComparableError
        When too few training subjects have the columns, or the others explain the column.
    SettingError
        When the column holds words, or a column does not exist.

    Examples
    --------
    >>> ten_years = 10 * covariate_step(space, scans, "age", others=("sex", "group"))  # doctest: +SKIP
    """
    asked = compare_target(training_table(space, scans), target=column, covariates=tuple(others), site=site)
    return forward_pattern(_trained(space)[asked.rows], asked.values, asked.confounds)


def group_step(
    space: LatentSpace, scans: pd.DataFrame, group: str, a: str, b: str, *, others: Sequence[str], site: str = ""
) -> np.ndarray:
    """(coordinate,) by which the latents of group `a` differ from those of group `b` (a minus b), other columns held.

    Parameters
    ----------
    space, scans, site
        As in :func:`directions`.
    group : str
        A column of words.
    a, b : str
        Two of its levels; scans of others have no say.
    others : Sequence[str]
        Columns that are held.

    Raises
    ------
    NotComparableError
        When a group has too few training subjects, or the others tell the groups apart.
    SettingError
        When a level or a column does not exist.
    """
    table = training_table(space, scans)
    asked = compare_groups(table, group=group, contrast=f"{a}:{b}", covariates=tuple(others), site=site)
    return forward_pattern(_trained(space)[asked.rows], asked.is_case.astype(float), asked.confounds)


def training_table(space: LatentSpace, scans: pd.DataFrame) -> pd.DataFrame:
    """Rows of the training scans of a space, in its order.

    Raises
    ------
    CohortError
        When a scan of the space is not in the table, or stands in it twice.
    """
    absent = space.scans.difference(scans.index)
    if len(absent) or not scans.index.is_unique:
        which = absent[0] if len(absent) else scans.index[scans.index.duplicated()][0]
        raise CohortError(
            f"Scan {which} of the latent space is not exactly once in the cohort. Take the cohort of the run."
        )
    training: pd.DataFrame = scans.loc[space.scans[space.training]]
    return training


def compared(table: pd.DataFrame, one: Direction, *, site: str) -> Comparison | Gradient:
    """The rows of a table on which a direction of a column is fitted, with the column and its confounds.

    Raises
    ------
    NotComparableError
        When the table does not hold what the direction needs.
    """
    if one.levels:
        contrast = ":".join(one.levels)
        return compare_groups(table, group=one.column, contrast=contrast, covariates=one.held, site=site)
    return compare_target(table, target=one.column, covariates=one.held, site=site)


def values_of(asked: Comparison | Gradient) -> np.ndarray:
    """(row,) float64: the number, or 1 for a case and 0 for the reference."""
    return np.asarray(asked.is_case if isinstance(asked, Comparison) else asked.values, dtype=np.float64)


def _trained(space: LatentSpace) -> np.ndarray:
    return np.asarray(space.coordinates[space.training])


def _unlabelled(space: LatentSpace, table: pd.DataFrame) -> list[Direction]:
    """Latents and principal components; SD are those of the first training scan of each subject."""
    rows = first_scans(table)
    z = _trained(space)[rows]
    if len(z) < 2:
        return []
    sd = z.std(axis=0, ddof=1)
    found = [
        Direction(name, "latent", np.eye(len(sd))[number] * sd[number], "1 SD")
        for number, name in enumerate(space.names)
        if sd[number] > FLAT_SHARE * sd.max()
    ]
    _, singular, axes = np.linalg.svd(z - z.mean(axis=0), full_matrices=False)
    axes = axes * np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)])[:, None]
    of_axes = singular / np.sqrt(len(z) - 1)
    kept = np.flatnonzero(of_axes > FLAT_SHARE * of_axes.max(initial=0))[:N_COMPONENTS]
    found += [Direction(f"pc{number + 1}", "component", axes[number] * of_axes[number], "1 SD") for number in kept]
    return [replace(one, n_subjects=len(rows), n_left_out=len(table) - len(rows)) for one in found]


def _wanted(
    space: LatentSpace, table: pd.DataFrame, group: str, contrasts: Sequence[str], covariates: Sequence[str]
) -> Iterator[Direction]:
    """Every direction that a column defines, its step still to be fitted; all models of a cohort name them alike."""
    blank = np.empty(0)
    pairs = [(case, reference) for case, _, reference in (pair.partition(":") for pair in contrasts)]
    for column in dict.fromkeys(covariates):
        held = (*(name for name in covariates if name != column), *([group] if pairs else []))
        if column not in table or _is_number(table[column]):
            yield Direction(column, "covariate", blank, "", column, held=held)
            if column not in space.told:
                yield Direction(f"pls:{column}", "pls", blank, "1 SD", column, held=held)
            continue
        for levels in _against_most_frequent(table, column):
            yield Direction(":".join((column, *levels)), "covariate", blank, "", column, levels, held=held)
    for levels in pairs:
        yield Direction(":".join((group, *levels)), "group", blank, "", group, levels, held=tuple(covariates))
    for levels in pairs:
        name = ":".join(("discriminant", *levels))
        yield Direction(name, "discriminant", blank, "", group, levels, held=tuple(covariates))


def _is_number(values: pd.Series) -> bool:
    return bool(pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values))


def _against_most_frequent(table: pd.DataFrame, column: str) -> list[tuple[str, str]]:
    words = list(map(str, level_words(table[column]).dropna()))
    # Of levels of one size the first by name, or the order of rows would decide.
    levels = sorted(set(words), key=lambda level: (-words.count(level), level))
    return [(level, levels[0]) for level in sorted(levels[1:])]


def _fitted(space: LatentSpace, table: pd.DataFrame, wanted: Direction, *, site: str) -> Direction:
    if wanted.column in space.told:
        raise NotComparableError("the decoder is told of it, so the latents need not hold it")
    asked = compared(table, wanted, site=site)
    z, values, size, unit = _trained(space)[asked.rows], values_of(asked), 1.0, wanted.unit
    if isinstance(asked, Comparison):
        unit = f"{asked.case} minus {asked.reference}"
    elif wanted.kind == "covariate":
        size = AGE_YEARS if wanted.column == "age" else float(values.std(ddof=1))
        unit = f"{AGE_YEARS:g} years" if wanted.column == "age" else f"1 SD ({size:.3g})"
    if wanted.kind == "pls":
        step = pls_pattern(z, values, asked.confounds)
    elif wanted.kind == "discriminant":
        step = discriminant_pattern(z, values == 1, asked.confounds)
    else:
        step = size * forward_pattern(z, values, asked.confounds)
    n_left_out = len(table) - len(asked.rows)
    return replace(wanted, step=step, unit=unit, size=size, n_subjects=len(asked.rows), n_left_out=n_left_out)
