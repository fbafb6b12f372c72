"""Modalities from tables that know some of the scans: joined by scan id, what is missing stays missing."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from nilatent.analysis.prediction.sets import FeatureSet
from nilatent.errors import CohortError


def joined_set(
    name: str, tables: Sequence[pd.DataFrame], scans: pd.DataFrame, *, seen: np.ndarray | None = None
) -> FeatureSet:
    """A modality from tables with an index of scan ids, such as the latents of a model that was trained apart.

    Parameters
    ----------
    name : str
        In words, for the table.
    tables : Sequence of DataFrame
        Index scan_id, columns numbers: one table for every outer fold, or one alone where nothing was fitted. Scans may
        lack rows, and there may be rows of others.
    scans : DataFrame
        Index scan_id: the scans, in their order.
    seen : ndarray or None
        (fold, scan) bool: what made the table of the fold was fitted with this subject.

    Returns
    -------
    FeatureSet
        NaN in every scan that the tables lack; names of columns that are columns of `scans` too are kept, so that none
        of them predicts itself.

    Raises
    ------
    CohortError
        When an id comes twice, a column holds words, or no scan of the cohort is in a table.

    Examples
    --------
    >>> scans = pd.DataFrame(index=pd.Index(["a", "b"], name="scan_id"))
    >>> joined_set("blood", [pd.DataFrame({"CRP": [3.0]}, index=["b"])], scans).finite
    array([False,  True])
    """
    values = []
    for table in tables:
        twice = table.index[table.index.duplicated()]
        if len(twice):
            raise CohortError(f"'{name}' has two rows of scan {twice[0]}. Leave one row per scan.")
        words = [column for column in table if not pd.api.types.is_numeric_dtype(table[column].dtype)]
        if words:
            raise CohortError(
                f"Column '{words[0]}' of '{name}' holds words. Write its levels as 0/1 columns, or leave it out."
            )
        if not table.index.isin(scans.index).any():
            raise CohortError(
                f"'{name}' has rows such as {list(table.index[:2])}, and none is a scan of the cohort, such as "
                f"{list(scans.index[:2])}. Index it by scan_id."
            )
        values.append(table.reindex(scans.index).to_numpy(dtype=np.float64))
    columns = tuple(map(str, tables[0].columns))
    return FeatureSet(name, tuple(values), seen, baseline=False, columns=columns if set(columns) & set(scans) else ())
