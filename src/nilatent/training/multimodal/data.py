"""Several modalities joined by scan id: volumes and tables, any of which may lack any scan."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from nilatent.errors import CohortError, LeakageError, SettingError
from nilatent.training.conditions import Column
from nilatent.training.validation import Rows, read_batch
from nilatent.variables import CODE, NUMBER
from nilatent.volumes import Volumes

Modality = Volumes | pd.DataFrame
# A mean and an SD of fewer cells would be those of chance.
MIN_CELLS = 5


@dataclass(frozen=True, eq=False)
class Joined:
    """Modalities of the same scans.

    Parameters
    ----------
    scans : Index
        Every scan, in the order of all arrays.
    volumes : dict[str, tuple[Volumes, ndarray]]
        Of each modality of images: the volumes, and (scan,) the row of every scan in them, -1 where it has none.
    cells : dict[str, ndarray]
        Of each table: (scan, 2, value) float32, coded values (0 where they are not known) and 1 where they are.
    names : tuple[str, ...]
        Of the modalities, in the order in which they were given.
    present : ndarray
        (scan, modality) bool.
    """

    scans: "pd.Index[str]"
    volumes: dict[str, tuple[Volumes, Rows]]
    cells: dict[str, npt.NDArray[np.float32]]
    names: tuple[str, ...]
    present: npt.NDArray[np.bool_]

    def batch(self, rows: Rows, device: torch.device) -> tuple[dict[str, Tensor], Tensor]:
        """Values of every modality, and which are there; an absent volume is zeros, which nobody looks at.

        Returns
        -------
        x : dict[str, Tensor]
            (batch, 1, x, y, z) or (batch, 2, value).
        present : Tensor
            (batch, modality) bool.
        """
        x = {}
        for name in self.names:
            if name in self.cells:
                x[name] = torch.from_numpy(self.cells[name][rows]).to(device)
                continue
            volumes, places = self.volumes[name]
            there = places[rows] >= 0
            values = torch.zeros(len(rows), 1, *volumes.grid.shape)
            if there.any():
                values[torch.from_numpy(there)] = read_batch(volumes, places[rows][there])
            x[name] = values.to(device)
        return x, torch.from_numpy(self.present[rows]).to(device)


def learn_columns(table: pd.DataFrame, training: Sequence[str], *, name: str) -> tuple[Column, ...]:
    """Learn from the training scans how the columns of a table become numbers.

    Parameters
    ----------
    table : DataFrame
        Index ``scan_id``; numbers or words, any cell may be missing.
    training : Sequence[str]
        Scans of the training part; no other is looked at.
    name : str
        Of the modality.

    Returns
    -------
    tuple[Column, ...]
        The levels of a category are those of the training scans, the commonest first.

    Raises
    ------
    SettingError
        When a column is constant among them, or known of fewer than five.
    """
    if table.columns.empty:
        raise SettingError(f"The table '{name}' has no column. Name its columns, or leave the modality out.")
    table = _named(table, name)
    own = table.loc[table.index.intersection(pd.Index(training))]
    return tuple(_learned(_as_numbers(own[column].dropna()), f"{name}: {column}", str(column)) for column in table)


def _named(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """The table with words as names of columns: what a model knows of them is written down."""
    table = table.rename(columns=str)
    if table.columns.has_duplicates:
        raise SettingError(
            f"The table '{name}' has the column '{table.columns[table.columns.duplicated()][0]}' twice. Rename one of the two."
        )
    return table


def _as_numbers(known: "pd.Series[Any]") -> "pd.Series[Any]":
    """Numbers where every value is one, whatever the type of the column; 007 is a code, as it is in a cohort."""
    if pd.api.types.is_numeric_dtype(known):
        return known
    words = known.astype(str).str.strip()
    is_number = words.str.fullmatch(NUMBER) & ~words.str.match(CODE)
    return pd.to_numeric(words) if is_number.all() else known


def _learned(known: "pd.Series[Any]", place: str, name: str) -> Column:
    if len(known) < MIN_CELLS or known.nunique() < 2:
        raise SettingError(
            f"{place} is known of {len(known)} training scans and has {known.nunique()} values among them; at least "
            f"{MIN_CELLS} scans and 2 values are needed. Leave the column out."
        )
    if pd.api.types.is_numeric_dtype(known):
        numbers = known.to_numpy(float)
        if not np.isfinite(numbers).all():
            raise SettingError(f"{place} holds a number that is not finite. Leave the cell empty, or put it right.")
        return Column(name, (), (float(numbers.mean()),), (float(numbers.std()),))
    counts = known.astype(str).value_counts().sort_index()
    reference = str(counts.idxmax())
    others = [str(level) for level in counts.index if level != reference]
    share = tuple(float(counts[level] / counts.sum()) for level in others)
    return Column(name, (reference, *others), share, (1.0,) * len(others))


def code(table: pd.DataFrame, columns: Sequence[Column], scans: Sequence[str], *, name: str) -> npt.NDArray[np.float32]:
    """Cells of a table as numbers.

    Parameters
    ----------
    table : DataFrame
        Index ``scan_id``.
    columns : Sequence[Column]
        From :func:`learn_columns`.
    scans : Sequence[str]
        Order of the rows; a scan that the table lacks has no known cell.
    name : str
        Of the modality.

    Returns
    -------
    ndarray
        (scan, 2, value) float32: values, then 1 where they are known.

    Raises
    ------
    SettingError
        When a column is absent, a word stands among numbers, or a category was not among the training scans.
    """
    table = _named(table, name)
    absent = [column.name for column in columns if column.name not in table]
    if absent:
        raise SettingError(
            f"The table '{name}' lacks the column '{absent[0]}', which the model knows. Add it; its cells may be empty."
        )
    rows = table.reindex(pd.Index(scans))
    coded = [_coded(rows[column.name], column, f"{name}: {column.name}") for column in columns]
    values = np.concatenate(coded, axis=1)
    known = np.isfinite(values)
    return np.stack([np.where(known, values, 0.0), known], axis=1).astype(np.float32)


def _coded(values: "pd.Series[Any]", column: Column, place: str) -> npt.NDArray[np.float64]:
    known = values.notna().to_numpy()
    if not column.levels:
        numbers = pd.to_numeric(values, errors="coerce").to_numpy(float)
        if (~np.isfinite(numbers) & known).any():
            scan = values.index[~np.isfinite(numbers) & known][0]
            raise SettingError(f"{place} is '{values[scan]}' for scan {scan}, which is no number. Put it right.")
        return np.asarray((numbers[:, None] - column.mean) / column.sd)
    words = values.astype(str).to_numpy()
    unknown = sorted(set(words[known]) - set(column.levels))
    if unknown:
        raise SettingError(
            f"{place} is '{unknown[0]}' for scan {values.index[known & (words == unknown[0])][0]}; the training scans had "
            f"{', '.join(column.levels)}. Leave the cell empty."
        )
    indicator = (words[:, None] == np.array(column.levels[1:])).astype(float) - column.mean
    indicator[~known] = np.nan
    return np.asarray(indicator)


def join(modalities: Mapping[str, Modality], scans: Sequence[str], columns: Mapping[str, Sequence[Column]]) -> Joined:
    """Join modalities by scan id.

    Parameters
    ----------
    modalities : Mapping[str, Volumes or DataFrame]
        By name. Volumes may be on grids of their own.
    scans : Sequence[str]
        The scans wanted, in this order. One that a modality lacks is missing there; none need have all.
    columns : Mapping[str, Sequence[Column]]
        Of each table, from :func:`learn_columns`.

    Returns
    -------
    Joined
        A row of a table without any known cell counts as missing.
    """
    index = pd.Index(scans)
    volumes, cells, present = {}, {}, []
    for name, modality in modalities.items():
        if isinstance(modality, Volumes):
            places = np.asarray(modality.scans.index.get_indexer(index), dtype=np.intp)
            volumes[name] = (modality, places)
            present.append(places >= 0)
        else:
            cells[name] = code(modality, columns[name], list(scans), name=name)
            present.append(np.asarray(cells[name][:, 1].any(axis=1)))
    return Joined(index, volumes, cells, tuple(modalities), np.stack(present, axis=1))


def check_modalities(modalities: Mapping[str, Modality], parts: pd.DataFrame) -> None:
    """Refuse modalities that nothing joint can be learned from.

    Parameters
    ----------
    modalities : Mapping
        As in :func:`join`.
    parts : DataFrame
        Index ``scan_id``, columns ``subject_id`` and ``part``.

    Raises
    ------
    SettingError
        When there are fewer than two modalities or none of them is volumes, a modality has no training or no validation
        scan, or no training scan has two modalities.
    CohortError
        When a scan stands twice in a table or in the split, or volumes and split disagree whose it is.
    LeakageError
        When a subject is in the training and in the validation part.
    """
    if len(modalities) < 2 or not any(isinstance(one, Volumes) for one in modalities.values()):
        raise SettingError(
            f"A joint model takes two modalities or more, one of them volumes; given: {', '.join(modalities) or 'none'}."
        )
    for name in modalities:
        check_name(name)
    for name, index in [*((name, _index(one)) for name, one in modalities.items()), ("the split", parts.index)]:
        if index.has_duplicates:
            raise CohortError(f"Scan {index[index.duplicated()][0]} stands twice in {name}. Every scan has one row.")
    _check_subjects(modalities, parts)
    of = {part: parts.index[parts["part"] == part] for part in ("train", "validation")}
    both = sorted({*parts.loc[of["train"], "subject_id"]} & {*parts.loc[of["validation"], "subject_id"]})
    if both:
        raise LeakageError(
            f"Subjects {', '.join(both[:5])} are in the training and in the validation part. Split by subject again."
        )
    has = {name: known_scans(one) for name, one in modalities.items()}
    for name, known in has.items():
        for part, index in of.items():
            if not len(index.intersection(known)):
                raise SettingError(
                    f"No scan of the part '{part}' ({len(index)} scans) has the modality '{name}' ({len(known)} scans). Leave "
                    "it out, or see that the scans have the same ids everywhere."
                )
    joint = np.sum([of["train"].isin(known) for known in has.values()], axis=0)
    if not (joint >= 2).any():
        sizes = ", ".join(f"{name} ({len(known)} scans)" for name, known in has.items())
        raise SettingError(
            f"No training scan has two of the modalities {sizes}, so what they share cannot be learned. See that the same "
            "scans have the same ids in all of them."
        )


def check_name(name: str) -> None:
    """Refuse what cannot be the name of a modality.

    Raises
    ------
    SettingError
        For anything but letters, digits and _, and for the words that torch keeps to itself.
    """
    if not name.isidentifier() or hasattr(torch.nn.ModuleDict(), name):
        raise SettingError(
            f"A modality cannot be named '{name}'. Use letters, digits and _, and no word such as 'type'."
        )


def _check_subjects(modalities: Mapping[str, Modality], parts: pd.DataFrame) -> None:
    for name, one in modalities.items():
        if not isinstance(one, Volumes):
            continue
        both = parts.index.intersection(one.scans.index)
        theirs, ours = (table.loc[both, "subject_id"].astype(str) for table in (one.scans, parts))
        if (theirs != ours).any():
            scan = both[(theirs != ours).to_numpy()][0]
            raise CohortError(
                f"Scan {scan} is of subject {theirs[scan]} in '{name}' and of {ours[scan]} in the split. The same id stands for "
                "the same scan everywhere: rename one of them."
            )


def _index(modality: Modality) -> "pd.Index[Any]":
    return modality.scans.index if isinstance(modality, Volumes) else modality.index


def known_scans(modality: Modality) -> "pd.Index[Any]":
    """Scans of which there is anything."""
    return modality.scans.index if isinstance(modality, Volumes) else modality.index[modality.notna().any(axis=1)]
