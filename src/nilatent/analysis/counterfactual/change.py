"""What is asked of a study: which column changes, by how much, and whose scans."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from nilatent.analysis.contrast import NotComparableError, contrasts_of, level_words
from nilatent.analysis.counterfactual.shift import is_amount, is_number
from nilatent.errors import SettingError

AGE, YEARS = "age", "+10"
HEAD_SIZE = ("head_size_factor", "tiv_ml", "intracranial_ml")
"""Columns of the size of the head: of preparation, of tissue maps, and of simulations."""
WORDS = {True: "older", False: "younger"}


@dataclass(frozen=True)
class CounterfactualConfig:
    """Settings of :func:`nilatent.analysis.counterfactual.counterfactual`.

    Parameters
    ----------
    changes : tuple[str, ...]
        ``"age=+10"`` adds to a column of numbers; ``"group=control"`` asks for everyone else as a control. Empty: ten years
        where there is an age, and of each contrast the first group as the second.
    group, contrast : str
        Column of the groups and the contrasts, as in :func:`nilatent.analysis.contrast.contrasts_of`.
    covariates : tuple[str, ...]
        Columns that are held while the pattern of another one is fitted; the group is too, where every scan has one.
    site : str
        Column of the site: held, and the block within which permutations stay. Empty for none.
    head_size : str
        Column of the size of the head, held where every scan has it and no covariate is one: volumes differ by it more than by
        most changes. Empty holds none.
    n_bootstrap : int
        Resamples of the subjects behind an interval.
    n_permutations : int
        Permutations of the column over subjects.
    seed : int
        Of both.
    """

    changes: tuple[str, ...] = ()
    group: str = "group"
    contrast: str = ""
    covariates: tuple[str, ...] = ()
    site: str = ""
    head_size: str = "head_size_factor"
    n_bootstrap: int = 1000
    n_permutations: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values that mean nothing.

        Raises
        ------
        SettingError
            Names the setting and its range.
        """
        for name in ("n_bootstrap", "n_permutations"):
            if getattr(self, name) < 100:
                raise SettingError(f"counterfactual.{name} is {getattr(self, name)}; it must be at least 100.")
        for text in self.changes:
            column, equals, value = text.partition("=")
            if not (column.strip() and equals and value.strip()):
                raise SettingError(f"counterfactual.changes holds '{text}'; write age=+10 or group=control.")


@dataclass(frozen=True)
class Change:
    """One change of one column.

    Parameters
    ----------
    column : str
        The column.
    amount : float
        What is added to a number; 1 for a category, which is left once.
    levels : tuple[str, str] or None
        Of a category: the level it becomes, and the one whose scans are changed.
    """

    column: str
    amount: float = 1.0
    levels: tuple[str, str] | None = None

    @property
    def label(self) -> str:
        """In words: ``"10 years older"``, ``"patient as control"``."""
        if self.levels is not None:
            return f"{self.levels[1]} as {self.levels[0]}"
        if self.column == AGE:
            return f"{abs(self.amount):g} years {WORDS[self.amount > 0]}"
        return f"{self.column} {self.amount:+g}"

    def value(self, dose: float) -> str:
        """The change at a dose, as :func:`nilatent.analysis.counterfactual.shift.shift` takes it."""
        return self.levels[0] if self.levels is not None else f"{self.amount * dose:+.17g}"


def changes_of(scans: pd.DataFrame, config: CounterfactualConfig) -> list[Change]:
    """Every change that is asked of a cohort.

    Raises
    ------
    NotComparableError
        When nothing is asked: there is neither an age nor a contrast.
    SettingError
        When a change names what does not exist, or sets a number instead of adding to it.
    """
    if config.changes:
        asked = list(dict.fromkeys(one for text in config.changes for one in _asked(scans, text, config)))
        labels = [one.label for one in asked]
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if twice:
            raise SettingError(
                f"Two changes of counterfactual.changes are called '{twice[0]}'. Ask one, or rename levels."
            )
        return asked
    found = [Change(AGE, float(YEARS))] if AGE in scans and is_number(scans[AGE]) else []
    if config.group in scans and level_words(scans[config.group]).nunique() > 1:
        pairs = [pair.split(":") for pair in contrasts_of(scans, group=config.group, contrast=config.contrast)]
        found += [Change(config.group, levels=(reference, case)) for case, reference in pairs]
    if not found:
        raise NotComparableError("there is neither a column age nor two groups to ask about; name a change")
    return found


def _asked(scans: pd.DataFrame, text: str, config: CounterfactualConfig) -> list[Change]:
    column, _, value = (part.strip() for part in text.partition("="))
    if column not in scans:
        raise SettingError(
            f"counterfactual.changes names the column '{column}'; the cohort has {', '.join(map(str, scans.columns))}."
        )
    if is_number(scans[column]) and column != config.group:
        if not is_amount(value) or not _is_finite(value) or float(value) == 0:
            raise SettingError(
                f"counterfactual.changes holds '{text}'. In a study a number changes by one amount for all: write {column}=+10."
            )
        return [Change(column, float(value))]
    levels = sorted(level_words(scans[column]).dropna().unique())
    if value not in levels:
        raise SettingError(f"counterfactual.changes holds '{text}'; the column '{column}' holds {', '.join(levels)}.")
    return [Change(column, levels=(value, level)) for level in levels if level != value]


def _is_finite(value: str) -> bool:
    try:
        return abs(float(value)) < float("inf")
    except ValueError:
        return False


def held_columns(scans: pd.DataFrame, change: Change, config: CounterfactualConfig) -> Sequence[str]:
    """Columns that are held while the pattern of one is fitted; the site is named apart."""
    held = [name for name in config.covariates if name not in (change.column, config.site)]
    has_group = config.group in scans and level_words(scans[config.group]).notna().all()
    if has_group and config.group not in (*held, change.column, config.site) and scans[config.group].nunique() > 1:
        held.append(config.group)
    if config.head_size in scans and not holds_head_size(held, config) and config.head_size != change.column:
        sizes = pd.to_numeric(scans[config.head_size], errors="coerce")
        if sizes.notna().all() and sizes.nunique() > 1:
            held.append(config.head_size)
    return tuple(held)


def holds_head_size(held: Sequence[str], config: CounterfactualConfig) -> bool:
    """Whether one of the held columns is the size of the head."""
    return any(name in (*HEAD_SIZE, config.head_size) for name in held)
