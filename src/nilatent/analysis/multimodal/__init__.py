"""Several kinds of measurement: what they share, and whether a joint model tells one from others better than regressions.

Each kind is told from all others, from fewer, and, volumes, from itself. Beside the joint model stand the mean of the training
scans, ridge regression, partial least squares and logistic regression, which learn from the same scans; errors are those of
scans whose subject no model has seen.

References
----------
Wu & Goodman 2018 (products of experts, missing modalities), arXiv:1802.05335. Nadeau & Bengio 2003,
doi:10.1023/A:1024068626366.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from nilatent.analysis.multimodal.asked import JOINT, SHARED, Array, Fold, Told, present, questions, source_sets
from nilatent.analysis.multimodal.judged import RIVAL, judge, simply_told
from nilatent.analysis.multimodal.table import Settings, arrays_of, steps_of, table_of
from nilatent.analysis.multimodal.words import answer, balance, caveats
from nilatent.errors import LeakageError, SettingError
from nilatent.finding import Finding, not_run
from nilatent.progress import track

__all__ = [
    "JOINT",
    "NAME",
    "QUESTION",
    "RIVAL",
    "SHARED",
    "Fold",
    "Told",
    "multimodal",
    "present",
    "simply_told",
    "source_sets",
]

NAME = "multimodal"
QUESTION = (
    "What do several kinds of measurement share, can one be told from the others, and does a joint model do it better than "
    "simple regressions?"
)


def multimodal(
    kinds: Mapping[str, Array | pd.DataFrame],
    told: Sequence[Told],
    folds: Sequence[Fold],
    *,
    seed: int = 0,
    n_bootstrap: int = 2000,
    n_flips: int = 5000,
    alpha: float = 0.05,
    smoothing_mm: float = 0.0,
    label: str = "",
) -> Finding:
    """Judge what joint models tell of unseen scans, beside simple regressions.

    Parameters
    ----------
    kinds : Mapping[str, ndarray or DataFrame]
        By name, in the order of the model, a row per scan in the order of the folds' index. Of volumes (scan, value)
        coordinates in which scans are as far apart as their voxels, NaN where a scan has none; or a table, in which cells may
        be missing.
    told : Sequence[Told]
        What the models said, every scan by the one that has not seen its subject: for each kind and each of its
        :func:`source_sets`, and for volumes themselves.
    folds : Sequence[Fold]
        The models and their splits; no scan in two test parts.
    seed : int
        Of inner folds, resamples and flips.
    n_bootstrap, n_flips : int
        Resamples of subjects for the intervals; flips of the signs of their differences for the p-values.
    alpha : float
        False discovery rate; intervals cover 1 - alpha.
    smoothing_mm : float
        FWHM by which the volumes were smoothed, for the caveats; 0 where they were not or nobody knows.
    label : str
        What to call this work when its progress is shown; empty shows none.

    Returns
    -------
    Finding
        A row per target, sources and way, with the share of its variance (of a category: of the log loss of the base rate)
        that is left unexplained; or "not run" with the reason.

    Raises
    ------
    LeakageError
        When a subject is in the test part and another part of a fold, or a scan in two test parts.
    SettingError
        When folds or kinds have other scans, or the joint model told nothing of a scan that is asked.
    """
    _check(kinds, folds)
    subjects = folds[0].parts["subject_id"].to_numpy(str)
    asked = questions(kinds, folds)
    rows = [
        judge(question, kinds, told, folds, seed=seed)
        for question in (track(asked, total=len(asked), label=label) if label else asked)
    ]
    if all(row.note for row in rows):
        return not_run(NAME, QUESTION, "; ".join(dict.fromkeys(row.note for row in rows)))
    settings = Settings(n_bootstrap, n_flips, alpha, seed, len(folds))
    table, steps = table_of(rows, subjects, settings), steps_of(rows, subjects, settings)
    weights = balance(folds)
    used = np.any([np.isfinite(error) for row in rows for error in row.error.values()], axis=0)
    return Finding(
        name=NAME,
        question=QUESTION,
        answer=answer(table, steps, alpha),
        table=table,
        data=arrays_of(rows, table, steps, folds[0].parts.index),
        settings={
            "kinds": {name: int(present(one).sum()) for name, one in kinds.items()},
            "n_folds": len(folds),
            "n_bootstrap": n_bootstrap,
            "n_flips": n_flips,
            "alpha": alpha,
            "seed": seed,
            "models": [str(fold.result["summary"]) for fold in folds],
            "n_shared": [int(fold.result["n_shared"]) for fold in folds],
            "best_epoch": [int(fold.result["best_epoch"]) for fold in folds],
            "balance": weights,
        },
        caveats=caveats(folds, weights, smoothing_mm=smoothing_mm),
        n_scans=int(used.sum()),
        n_subjects=len(np.unique(subjects[used])),
    )


def _check(kinds: Mapping[str, Array | pd.DataFrame], folds: Sequence[Fold]) -> None:
    if not folds or len(kinds) < 2:
        raise SettingError(
            f"{len(kinds)} kinds and {len(folds)} models were given. Give two kinds and one model at least."
        )
    index = folds[0].parts.index
    tested = np.sum([fold.rows("test") for fold in folds], axis=0)
    if (tested > 1).any():
        raise LeakageError(
            f"Scan {index[tested > 1][0]} is in the test part of {tested.max()} folds. Split again, by subject."
        )
    for number, fold in enumerate(folds):
        if not fold.parts.index.equals(index):
            raise SettingError(
                f"The split of fold {number} has other scans than the first, or another order. Give the same."
            )
        subject = fold.parts["subject_id"]
        both = set(subject[fold.rows("test")]) & set(subject[fold.rows("train", "validation")])
        if both:
            raise LeakageError(
                f"Subject {min(map(str, both))} is in the test part of fold {number} and in another. Split again."
            )
    for name, one in kinds.items():
        if len(one) != len(index):
            raise SettingError(
                f"'{name}' has {len(one)} rows for {len(index)} scans. Give a row per scan, empty where it has none."
            )
