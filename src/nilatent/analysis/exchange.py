"""What may be exchanged besides single rows: signs, for symmetric errors, and whole blocks, for repeated measures.

References
----------
Winkler et al. 2014, doi:10.1016/j.neuroimage.2014.01.060; Winkler et al. 2015 (multi-level blocks),
doi:10.1016/j.neuroimage.2015.05.092.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from nilatent.analysis import stats
from nilatent.errors import SettingError


def sign_flips(
    n_rows: int, n_flips: int, *, seed: int, blocks: Sequence[object] | np.ndarray | None = None
) -> np.ndarray:
    """Random signs of the rows, one sign for all rows of a block.

    Flipping asks that errors be symmetric around zero, not that they have equal variance.

    Parameters
    ----------
    n_rows, n_flips : int
        Rows, and how many draws.
    seed : int
        Seed of the draw.
    blocks : Sequence or None
        (row,) label of the rows that keep one sign because their errors belong together, such as the subject; None flips
        each row by itself.

    Returns
    -------
    ndarray
        (flip, row) float32, 1 or -1.

    Raises
    ------
    SettingError
        When there are fewer than two blocks: two signs make no test.

    Examples
    --------
    >>> sign_flips(3, 2, seed=0, blocks=["a", "a", "b"]).shape
    (2, 3)
    """
    labels = np.arange(n_rows) if blocks is None else pd.factorize(np.asarray(blocks))[0]
    if len(labels) != n_rows or len(np.unique(labels)) < 2:
        raise SettingError(
            f"{len(labels)} labels of {len(np.unique(labels))} blocks were given for {n_rows} rows. Signs need one label per "
            "row and two blocks at least."
        )
    drawn = np.random.default_rng(seed).integers(0, 2, size=(n_flips, labels.max() + 1), dtype=np.int8)
    return (2 * drawn - 1).astype(np.float32)[:, labels]


def whole_blocks(blocks: Sequence[object] | np.ndarray, n_permutations: int, *, seed: int) -> np.ndarray:
    """Random orders in which blocks of equal size change places as a whole and rows keep their place in their block.

    For a value that belongs to the block, such as the group of a subject with several scans.

    Parameters
    ----------
    blocks : Sequence
        (row,) label of the block of each row.
    n_permutations : int
        How many orders.
    seed : int
        Seed of the draw.

    Returns
    -------
    ndarray
        (permutation, row) int32, as :func:`nilatent.analysis.stats.permutations` gives. The first row of a block stays the
        first, so rows must come in the order in which they correspond, such as by session.

    Raises
    ------
    SettingError
        When no two blocks have the same size, so that nothing can be exchanged.
    """
    labels = pd.factorize(np.asarray(blocks))[0]
    sizes = np.bincount(labels)
    members = [np.flatnonzero(labels == block) for block in range(len(sizes))]
    counts = np.bincount(sizes)
    if counts.max() < 2:
        raise SettingError(
            f"No two of the {len(sizes)} blocks have the same number of rows, so none can change places. Leave rows out until "
            "blocks are of one size."
        )
    rng = np.random.default_rng(seed)
    orders = np.tile(np.arange(len(labels), dtype=np.int32), (n_permutations, 1))
    for size in np.flatnonzero(counts > 1):
        rows = np.array([members[block] for block in np.flatnonzero(sizes == size)], dtype=np.int32)
        drawn = rng.permuted(np.tile(np.arange(len(rows)), (n_permutations, 1)), axis=1)
        orders[:, rows.ravel()] = rows[drawn].reshape(n_permutations, -1)
    return orders


@dataclass(frozen=True, eq=False)
class MeanTest:
    """Means of columns against zero by sign flipping; every array is (column,).

    Parameters
    ----------
    mean : ndarray
        In units of the column.
    t : ndarray
        Mean by its standard error.
    p_value, p_fwe : ndarray
        Two-sided p of each column by itself, and corrected for all columns by the maximum of |t|.
    """

    mean: np.ndarray
    t: np.ndarray
    p_value: np.ndarray
    p_fwe: np.ndarray


def flipped_mean(values: np.ndarray, flips: np.ndarray) -> MeanTest:
    """Whether the mean of each column differs from zero: the one-sample test, or the paired test on differences.

    Parameters
    ----------
    values : ndarray
        (row, column) values, such as second minus first session.
    flips : ndarray
        (flip, row) signs from :func:`sign_flips`.

    Returns
    -------
    MeanTest
        Means, t and p-values.

    Raises
    ------
    SettingError
        When a value is missing or a column is constant, so that t is not defined.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> differences = rng.normal(loc=[0.0, 2.0], size=(30, 2))
    >>> bool(flipped_mean(differences, sign_flips(30, 199, seed=0)).p_fwe[1] <= 0.05)
    True
    """
    values = stats.check_finite(values, what="The table of differences")
    flat = np.flatnonzero(~stats.varying(values))
    if len(flat):
        raise SettingError(f"Column {flat[0]} is constant, so its mean has no standard error. Leave it out.")
    n_rows = len(values)
    # A flip changes the mean but not the sum of squares, so t follows from the mean alone.
    square = np.square(values).mean(axis=0)

    def t_of(mean: np.ndarray) -> np.ndarray:
        return np.asarray(mean / np.sqrt(np.maximum(square - mean**2, 1e-12 * square) / (n_rows - 1)))

    observed, drawn = t_of(values.mean(axis=0)), np.abs(t_of(flips.astype(np.float64) @ values / n_rows))
    size = np.abs(observed) * (1 - 1e-9)
    return MeanTest(
        mean=values.mean(axis=0),
        t=observed,
        p_value=(1 + (drawn >= size).sum(axis=0)) / (1 + len(flips)),
        p_fwe=(1 + (drawn.max(axis=1)[:, None] >= size).sum(axis=0)) / (1 + len(flips)),
    )
