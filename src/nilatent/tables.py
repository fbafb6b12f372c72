"""Tables: TSV and CSV files as people really save them, and the JSON beside them, read within limits and never guessed at."""

import codecs
import csv
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

import pandas as pd

from nilatent.errors import CohortError

MISSING_WORDS = frozenset(
    {"", "n/a", "N/A", "#N/A", "na", "NA", "<NA>", "nan", "NaN", "NAN", "null", "NULL", "#NULL!", "None", "."}
)
# Columns the cohort fills itself; a source's own column of that name is kept as `source_<name>`.
RESERVED = ("scan_id", "subject_id", "session_id", "source_id", "dataset", "sha256", "path")
# Ten thousand rows of two thousand columns are 20 million cells, which take 2 GB of memory.
MAX_TABLE_BYTES, MAX_LINE, MAX_CELLS = 256 * 2**20, 4 * 2**20, 20_000_000
# What a row costs in memory beside its cells, in cells.
ROW_COST = 3
# The largest dictionaries of real data sets have some hundred kilobytes, and four levels.
MAX_JSON_BYTES, MAX_JSON_LEVELS = 8 * 2**20, 64
# Marks that copying from web pages and spreadsheets leaves, which nobody sees.
UNSEEN = "\ufeff\u200b\u200e\u200f\u2060"
# Bytes that are no letter of code page 1252; Latin-1 has a sign for every byte.
NOT_WINDOWS = re.compile(rb"[\x81\x8d\x8f\x90\x9d]")
# Brackets of JSON outside its strings; possessive, and whole to the end of the text, so that no text takes long.
JSON_MARK = re.compile(r'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)|[\[\]{}]', re.DOTALL)
UNPACK = "Unpack it first."
EXPORT = (
    "Open it there and save the sheet as text: in Excel with File > Save As > 'CSV UTF-8' or 'Text (Tab delimited)', in "
    "LibreOffice with Save As > 'Text CSV' and the character set UTF-8."
)
# How files begin that are given where a table is wanted, what they are, and what to do.
OTHER_FILES = {
    b"PK\x03\x04": ("a workbook (.xlsx, .ods) or another zip file", EXPORT),
    b"\xd0\xcf\x11\xe0": ("an Excel workbook (.xls)", EXPORT),
    b"\x1f\x8b": ("packed by gzip", UNPACK),
    b"BZh": ("packed by bzip2", UNPACK),
    b"\xfd7zXZ": ("packed by xz", UNPACK),
    b"7z\xbc\xaf": ("packed by 7-Zip", UNPACK),
    b"\x28\xb5\x2f\xfd": ("packed by Zstandard", UNPACK),
    b"PAR1": ("a Parquet file", "Save it as a TSV."),
    b"$FL2": ("an SPSS file", "Save it in SPSS as 'Tab delimited'."),
    b"$FL3": ("an SPSS file", "Save it in SPSS as 'Tab delimited'."),
    b"MATLAB 5.0": ("a MATLAB file", "Write the table in MATLAB with writetable."),
    b"%PDF": ("a PDF", "Save the table as a TSV."),
    b"{\\rtf": ("a text document with formatting", "Save it as plain text."),
    b"<": ("XML or a web page, such as the log-in page of a server", "Fetch the table itself."),
}


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
        The table; a file ending in ``.tsv`` is parted by tabs, others by tab, semicolon or comma. UTF-8, UTF-16 with its
        mark, or else what Windows calls ANSI (code page 1252, of which Latin-1 is the larger part).

    Returns
    -------
    DataFrame
        Text without surrounding spaces and line breaks; the index ``line`` counts the lines of the file from one.

    Raises
    ------
    CohortError
        When the file is empty or no table of text, its rows differ in length, a column name repeats, or it is larger
        than :data:`MAX_TABLE_BYTES` or :data:`MAX_CELLS`, or has a line of more than :data:`MAX_LINE` characters.
    """
    encoding = _encoding(path)
    with path.open(encoding=encoding, newline="") as file:
        reader = csv.reader(
            _lines(file, path), delimiter=_separator(path, encoding), strict=True, skipinitialspace=True
        )
        try:
            lines = _rows(reader, path)
        except csv.Error as error:
            raise CohortError(
                f"{path}, line {reader.line_num}, cannot be read as a table: {error}. Look for a quotation mark too many."
            ) from error
        except UnicodeError as error:
            raise CohortError(f"{path} is not whole UTF-16 text: {error}. Save it again as UTF-8.") from error
    if not lines:
        raise CohortError(f"{path} is empty. It needs a line of column names and one line per row.")
    return _table(lines, path)


def _rows(reader: Any, path: Path) -> list[tuple[int, list[str]]]:
    """Every row that is not blank, with the number of its line."""
    lines, left = [], MAX_CELLS
    for row in reader:
        cells = [_bare(cell) for cell in row]
        if any(cells):
            lines.append((int(reader.line_num), cells))
            left -= len(cells) + ROW_COST
        if left < 0:
            raise CohortError(
                f"{path} has more than {MAX_CELLS} cells by line {reader.line_num}, the most that a table may have (a row "
                f"counts for {ROW_COST} more). Keep the columns and rows that are needed."
            )
    return lines


def own_names(columns: Iterable[str], taken: Iterable[str]) -> dict[str, str]:
    """What each column of a source is called by us: its own name, with ``source_`` in front where that is taken.

    Examples
    --------
    >>> own_names(["age", "path", "source_path"], ["path"])
    {'age': 'age', 'path': 'source_path', 'source_path': 'source_source_path'}
    """
    given, used = [str(column) for column in columns], set(taken)
    # A name that a renamed column would take moves on too, so that no two columns ever become one.
    moved: set[str] = set()
    for column in sorted(given, key=len):
        if column in used or (column.removeprefix("source_") in moved and column.startswith("source_")):
            moved.add(column)
    return {column: f"source_{column}" if column in moved else column for column in given}


def _table(lines: list[tuple[int, list[str]]], path: Path) -> pd.DataFrame:
    header = lines[0][1]
    while not header[-1]:
        header.pop()
    names = [name or f"unnamed_{position}" for position, name in enumerate(header, start=1)]
    seen: dict[str, int] = {}
    for position, name in enumerate(names, start=1):
        if name in seen:
            raise CohortError(
                f"{path} has the column '{name}' twice, as columns {seen[name]} and {position}. Every column name stands "
                "once: rename or remove one."
            )
        seen[name] = position
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


def _bare(cell: str) -> str:
    if "\n" in cell or "\r" in cell:
        cell = re.sub(r"[\r\n]+", " ", cell)
    return cell.strip().strip(UNSEEN).strip()


def _lines(file: TextIO, path: Path) -> Iterator[str]:
    """Lines of a text file; one at a time, so that a file of one endless line does not fill the memory."""
    number = 0
    while line := file.readline(MAX_LINE + 1):
        number += 1
        if len(line) > MAX_LINE:
            raise CohortError(
                f"{path}, line {number}, has more than {MAX_LINE} characters, the most that a row may have. Look whether "
                "this is the table that you meant, and keep the columns that are needed."
            )
        if "\0" in line:
            # Seen here in UTF-16 only; written into our own tables it would be read as the mark of a file that is no text.
            raise CohortError(
                f"{path}, line {number}, holds a zero character, which no text has. Save the table again."
            )
        yield line


def _encoding(path: Path) -> str:
    """How the text of a table is written; refuses what is too large or no text."""
    size = path.stat().st_size
    if size > MAX_TABLE_BYTES:
        raise CohortError(
            f"{path} has {size} bytes; a table may have {MAX_TABLE_BYTES}. Keep the columns and rows that are needed."
        )
    with path.open("rb") as file:
        start = file.read(4096)
    if start.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        raise CohortError(f"{path} is written in UTF-32. Save it again as UTF-8.")
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    bare = start.removeprefix(codecs.BOM_UTF8).lstrip()
    for mark, (kind, step) in OTHER_FILES.items():
        if bare.startswith(mark):
            raise CohortError(f"{path} is no table of text: it is {kind}. {step}")
    decoder = codecs.getincrementaldecoder("utf-8")()
    is_utf8, is_windows = True, True
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            if b"\0" in chunk:
                raise CohortError(f"{path} is no table of text: {_binary(start)}")
            try:
                if is_utf8:
                    decoder.decode(chunk, final=file.tell() >= size)
            except UnicodeDecodeError:
                is_utf8 = False
            is_windows = is_windows and NOT_WINDOWS.search(chunk) is None
    return "utf-8-sig" if is_utf8 else "cp1252" if is_windows else "latin-1"


def _binary(start: bytes) -> str:
    few, many = sorted(start[side::2].count(0) / max(len(start) // 2, 1) for side in (0, 1))
    if many > 0.8 and few < 0.05:
        return "it looks like UTF-16 without its mark. Save it again as UTF-8."
    return "it holds bytes that no text has. Give a TSV or CSV; images are named in one, or given as a folder."


def _separator(path: Path, encoding: str) -> str:
    if path.suffix.lower() == ".tsv":
        return "\t"
    with path.open(encoding=encoding, newline="") as file:
        try:
            first = next((line for line in _lines(file, path) if line.strip("\r\n")), "")
        except UnicodeError as error:
            raise CohortError(f"{path} is not whole UTF-16 text: {error}. Save it again as UTF-8.") from error
    return next((mark for mark in "\t;" if mark in first), ",")


def read_described(path: Path) -> dict[str, Any]:
    """The JSON object that somebody else wrote beside a table or an image.

    Parameters
    ----------
    path : Path
        UTF-8, with or without a mark.

    Returns
    -------
    dict[str, Any]
        Text that no file could hold (halves of characters) is replaced by the sign for that.

    Raises
    ------
    OSError
        When the file is absent or cannot be read.
    ValueError
        When it is no JSON object, larger than :data:`MAX_JSON_BYTES`, or nested deeper than :data:`MAX_JSON_LEVELS`.
    """
    size = path.stat().st_size
    if size > MAX_JSON_BYTES:
        raise ValueError(f"it has {size} bytes, and may have {MAX_JSON_BYTES}")
    text = path.read_bytes().decode("utf-8-sig")
    # Before it is read: what nests deeper than any dictionary would end in the parser's own depth, or in ours.
    depth = 0
    for mark in JSON_MARK.finditer(text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(mark.group(), 0)
        if depth > MAX_JSON_LEVELS:
            raise ValueError(f"it is nested more than {MAX_JSON_LEVELS} levels deep, the most that it may be")
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError("it is no JSON object")
    whole: dict[str, Any] = json.loads(json.dumps(found, ensure_ascii=False).encode("utf-8", "replace"))
    return whole


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
