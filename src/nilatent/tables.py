"""Tables: TSV and CSV files as people really save them, read as text and never guessed at."""

import codecs
import csv
import re
from collections.abc import Iterable
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd

from nilatent.errors import CohortError

MISSING_WORDS = frozenset({"", "n/a", "N/A", "na", "NA", "nan", "NaN", "null", "None", "."})
# Columns the cohort fills itself; a source's own column of that name is kept as `source_<name>`.
RESERVED = ("scan_id", "subject_id", "session_id", "source_id", "dataset", "sha256", "path")


def image_column(modality: str) -> str:
    """The column that holds the images of a further modality; their hashes stand in ``<column>_sha256``."""
    return f"image_{modality}"


def image_columns(table: pd.DataFrame) -> list[str]:
    """The columns that hold images of further modalities, without those of their hashes.

    Examples
    --------
    >>> image_columns(pd.DataFrame(columns=["image_wm", "image_wm_sha256", "image_quality"]))
    ['image_wm']
    """
    return [str(name) for name in table if str(name).startswith("image_") and f"{name}_sha256" in table]


def image_files(table: pd.DataFrame) -> list[str]:
    """The columns that say where images of further modalities lie and what their hashes are: files, not people."""
    return [name for column in image_columns(table) for name in (column, f"{column}_sha256")]


def read_tsv(path: Path) -> pd.DataFrame:
    """A TSV or CSV as text: byte-order mark, line ends, blank lines and encoding forgiven.

    Parameters
    ----------
    path : Path
        The table; a file ending in ``.tsv`` is parted by tabs, others by tab, semicolon or comma.

    Returns
    -------
    DataFrame
        Text without surrounding spaces and line breaks; the index ``line`` counts the lines of the file from one.

    Raises
    ------
    CohortError
        When the file is empty, its rows differ in length, or a column name repeats.
    """
    reader = _cells(path)
    try:
        lines = [(reader.line_num, [re.sub(r"[\r\n]+", " ", cell).strip() for cell in cells]) for cells in reader]
    except csv.Error as error:
        raise CohortError(
            f"{path}, line {reader.line_num}, cannot be read as a table: {error}. Look for a quotation mark too many."
        ) from error
    lines = [(number, cells) for number, cells in lines if any(cells)]
    if not lines:
        raise CohortError(f"{path} is empty. It needs a line of column names and one line per row.")
    header = lines[0][1]
    while not header[-1]:
        header.pop()
    names = [name or f"unnamed_{position}" for position, name in enumerate(header, start=1)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise CohortError(
            f"{path} has the column '{twice[0]}' twice. Every column name stands once: rename or remove one."
        )
    for number, cells in lines[1:]:
        while len(cells) > len(names) and not cells[-1]:
            cells.pop()
        if len(cells) != len(names):
            raise CohortError(
                f"{path}, line {number}, has {len(cells)} cells and the header {len(names)}. Every row has as many cells "
                "as the header: write n/a where a value is missing."
            )
    index = pd.Index([number for number, _ in lines[1:]], name="line", dtype=int)
    return pd.DataFrame([cells for _, cells in lines[1:]], columns=names, index=index, dtype=str)


def _cells(path: Path) -> Any:
    raw = path.read_bytes()
    utf16 = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = raw.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        if utf16:
            raise CohortError(f"{path} is not whole UTF-16 text: {error}. Save it again as UTF-8.") from error
        text = raw.decode("latin-1")
    first = re.split(r"[\r\n]", text.lstrip("\r\n"), maxsplit=1)[0]
    separator = next((mark for mark in "\t;" if mark in first), ",")
    if path.suffix.lower() == ".tsv":
        separator = "\t"
    return csv.reader(StringIO(text, newline=""), delimiter=separator, strict=True, skipinitialspace=True)


def pick(table: pd.DataFrame, names: Iterable[str], place: Path) -> str | None:
    """The column that has one of the names, in any case; None when there is none.

    Parameters
    ----------
    table : DataFrame
        From :func:`read_tsv`.
    names : Iterable[str]
        In lower case; the first that is there wins.
    place : Path
        File of the table, for the message.

    Returns
    -------
    str or None
        The column as the table writes it.

    Raises
    ------
    CohortError
        When two columns differ in case only.
    """
    for name in names:
        found = [str(column) for column in table.columns if str(column).lower() == name]
        if len(found) > 1:
            raise CohortError(f"{place} has the columns {' and '.join(found)}. Keep one of them.")
        if found:
            return found[0]
    return None
