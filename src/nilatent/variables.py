"""Variables: ages in years, sex, units, and which columns are numbers."""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from nilatent.errors import CohortError
from nilatent.tables import MISSING_WORDS, RESERVED

SEX_WORDS = {"m": "M", "male": "M", "man": "M", "f": "F", "female": "F", "woman": "F"}
SEX_WORDS |= dict.fromkeys(("o", "other", "u", "unknown", "x"), "")
MAX_AGE_YEARS = 120.0
# Above this share of numbers, however written, a column of words was meant as numbers.
NEARLY = 0.5
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
# 007 is a code, not a number.
CODE = re.compile(r"[+-]?0\d")
# Digits and what people put between them: a decimal comma, marks of thousands, a sign from a word processor.
WRITTEN = re.compile(r"[-+\u2212]?\s?(\d[\d\s.,'\u2019_]*|[.,]\d+)\s?%?")


def check_age(table: pd.DataFrame, columns: Mapping[str, Any], place: str) -> None:
    """Refuse an age that is no number of years.

    Parameters
    ----------
    table : DataFrame
        Text, with ``scan_id``; nothing is checked without a column ``age``.
    columns : Mapping[str, Any]
        Data dictionary, whose ``Units`` of age must be years when given.
    place : str
        Name of the source, for the message.

    Raises
    ------
    CohortError
        Names the scan and the value.
    """
    if "age" not in table:
        return
    units = str(_described(columns, "age").get("Units", "years")).strip().lower()
    if not units.startswith(("y", "a")):
        raise CohortError(f"The data dictionary of {place} gives age in '{units}'. Age is in years: convert it.")
    for scan_id, text in zip(table["scan_id"], table["age"], strict=True):
        years = _number(_text_of_age(text))
        if text not in MISSING_WORDS and (years is None or not 0 <= years <= MAX_AGE_YEARS):
            raise CohortError(
                f"Scan {scan_id} of {place} has the age '{text}', which is no number of years from 0 to "
                f"{MAX_AGE_YEARS:g}. Write years with a decimal point, and n/a when the age is unknown."
            )


def sex(table: pd.DataFrame, columns: Mapping[str, Any], place: str) -> list[str]:
    """Sex of every row as M, F or empty, from words or from codes that the data dictionary explains.

    Parameters
    ----------
    table : DataFrame
        Text, with ``scan_id`` and ``sex``.
    columns : Mapping[str, Any]
        Data dictionary, whose ``Levels`` of sex may explain codes.
    place : str
        Name of the source, for the message.

    Returns
    -------
    list[str]
        One per row; empty when missing, other or unknown.

    Raises
    ------
    CohortError
        When a value is no known word.
    """
    levels = _described(columns, "sex").get("Levels", {})
    words = []
    for scan_id, code in zip(table["scan_id"], table["sex"], strict=True):
        level = levels.get(code, code) if isinstance(levels, Mapping) else code
        word = str(level.get("Description", code) if isinstance(level, Mapping) else level).strip().lower()
        if code not in MISSING_WORDS and word not in SEX_WORDS:
            raise CohortError(
                f"Scan {scan_id} of {place} has the sex '{code}', which is none of {', '.join(SEX_WORDS)}. Write one of "
                "these, n/a when it is unknown, or explain the code under Levels in participants.json."
            )
        words.append("" if code in MISSING_WORDS else SEX_WORDS[word])
    return words


def check_units(known: Mapping[str, Any], added: Mapping[str, Any], place: str) -> None:
    """Refuse two data dictionaries that give one column in different units.

    Parameters
    ----------
    known, added : Mapping[str, Any]
        Data dictionaries, of the sources so far and of one more.
    place : str
        Name of the added source, for the message.

    Raises
    ------
    CohortError
        Names the column and both units.
    """
    for name in known.keys() & added.keys():
        ours, theirs = (str(_described(columns, name).get("Units", "")).strip() for columns in (known, added))
        if ours and theirs and ours.casefold() != theirs.casefold():
            raise CohortError(
                f"{place} gives '{name}' in {theirs}, another source in {ours}. Bring them to one unit, or rename one."
            )


def typed(table: pd.DataFrame) -> pd.DataFrame:
    """The table with each variable as numbers where every value is one, otherwise as text.

    Parameters
    ----------
    table : DataFrame
        Any types; left as it is.

    Returns
    -------
    DataFrame
        Reserved columns as text without gaps, numbers as float64, other text with NaN where missing.
    """
    typed_columns = {}
    for column in table.columns:
        text = table[column].astype("string").fillna("").str.strip()
        if column in RESERVED:
            typed_columns[column] = text.astype(str)
            continue
        missing = text.isin(list(MISSING_WORDS))
        if str(column).lower() == "age":
            text = text.map(_text_of_age)
        numbers = [None if absent else _number(word) for word, absent in zip(text, missing, strict=True)]
        as_number = not missing.all() and all(
            (number is None) == absent for number, absent in zip(numbers, missing, strict=True)
        )
        filled = (
            pd.Series(numbers, index=table.index, dtype=float)
            if as_number
            else text.astype(object).mask(missing, np.nan)
        )
        typed_columns[column] = filled
    return pd.DataFrame(typed_columns, index=table.index)


def nearly_numbers(table: pd.DataFrame) -> list[str]:
    """A sentence for every column that is words, though nearly all that stands in it are numbers.

    Parameters
    ----------
    table : DataFrame
        From :func:`typed`, by ``scan_id``.

    Returns
    -------
    list[str]
        Names the column, the first cell that is no number, and its scan.

    Examples
    --------
    >>> said = nearly_numbers(pd.DataFrame({"bmi": ["21.5", "23,5"], "code": ["007", "8"]}, index=["sub-1", "sub-2"]))
    >>> [line.partition(":")[0] for line in said]
    ["The column 'bmi' is read as words, not numbers"]
    """
    said = []
    for name in table.columns:
        values = table[name].dropna()
        if name in RESERVED or values.empty or pd.api.types.is_numeric_dtype(values):
            continue
        words = values.astype(str)
        # A number without end, such as 1e999, has the form of one and is none.
        numbers = words.map(lambda word: _number(word) is not None).astype(bool)
        if numbers.all() or words.str.match(CODE).any() or (numbers | words.str.fullmatch(WRITTEN)).mean() <= NEARLY:
            continue
        odd = words[~numbers]
        said.append(
            f"The column '{name}' is read as words, not numbers: {len(odd)} of its {len(words)} cells, such as "
            f"'{odd.iloc[0]}' of {odd.index[0]}, {'is' if len(odd) == 1 else 'are'} no number as we read them. Write a decimal "
            "point, no marks or spaces between digits, and n/a where a value is missing."
        )
    return said


def _described(columns: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    entry = columns.get(name)
    return entry if isinstance(entry, Mapping) else {}


def _text_of_age(text: str) -> str:
    # BIDS hides the age of the oldest as "89+".
    return re.sub(r"^(\d+)\+$", r"\1", text)


def _number(text: str) -> float | None:
    """A finite decimal number; codes such as 007 are none. Exact, which the parser of pandas is not in the last bit."""
    if NUMBER.fullmatch(text) is None or CODE.match(text) is not None:
        return None
    value = float(text)
    return value if math.isfinite(value) else None
