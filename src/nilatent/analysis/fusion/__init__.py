"""Fusion: whether several modalities together tell more than the best of them alone, and which carries what.

Single modalities, the features of all side by side, latents of a joint model and late fusion are judged inside one nested
cross-validation: the same scans, outer folds, inner folds, heads and search for the penalty. What they have to beat is the
best single modality as it would be chosen without looking: on inner folds.

References
----------
Varma & Simon 2006 (nested), doi:10.1186/1471-2105-7-91. Wolpert 1992 (stacking), doi:10.1016/S0893-6080(05)80023-1.
Chamma et al. 2023 (conditional permutation importance), arXiv 2309.07593.
"""

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import pandas as pd

from nilatent.analysis.fusion.config import FusionConfig
from nilatent.analysis.fusion.judged import Row, judge
from nilatent.analysis.fusion.questions import check_barred, questions
from nilatent.analysis.fusion.table import arrays_of, ordered, table_of
from nilatent.analysis.fusion.words import answer, caveats
from nilatent.analysis.prediction.sets import FeatureSet, check_sets
from nilatent.analysis.prediction.targets import check_named
from nilatent.errors import SettingError
from nilatent.finding import Finding, not_run
from nilatent.progress import track

__all__ = ["NAME", "QUESTION", "FusionConfig", "fusion"]

NAME = "fusion"
QUESTION = "Do several kinds of measurement together tell more than the best of them alone, and which carries what?"


def fusion(
    modalities: Sequence[FeatureSet],
    joint: FeatureSet | None,
    scans: pd.DataFrame,
    folds: np.ndarray,
    config: FusionConfig,
    *,
    label: str = "",
) -> Finding:
    """Compare modalities alone and together, and say what each of them carries.

    Parameters
    ----------
    modalities : Sequence[FeatureSet]
        Two or more, rows in the order of `scans`; a scan in which a value is NaN lacks the modality.
    joint : FeatureSet or None
        Latents of a model of all modalities, made in every fold without its subjects; None leaves a row that says so.
    scans : DataFrame
        Index scan_id; ``subject_id`` and the columns named in `config`.
    folds : ndarray
        (scan,) outer fold in which each scan is held out, counted from 0.
    config : FusionConfig
        Settings.
    label : str
        What to call this work when its progress is shown; empty shows none.

    Returns
    -------
    Finding
        A row per target and way, those of single modalities with what they carry; or "not run" with the reason.

    Raises
    ------
    LeakageError
        When features of a fold come from a model that has seen a subject held out in it, or a subject is in two folds.
    SettingError
        When a setting names what does not exist, or shapes do not fit.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> ids = [f"sub-{i:02d}" for i in range(60)]
    >>> age, other = rng.normal(70, 8, 60), rng.standard_normal(60)
    >>> scans = pd.DataFrame({"subject_id": ids, "age": age}, index=pd.Index(ids, name="scan_id"))
    >>> image = FeatureSet("image", (np.c_[age + 8 * other],), None, False)
    >>> blood = FeatureSet("blood", (np.c_[other],), None, False)
    >>> found = fusion([image, blood], None, scans, np.arange(60) % 5, FusionConfig(targets=("age",)))
    >>> found.table.loc[0, "way"]
    'early fusion'
    """
    folds = np.asarray(folds)
    check_sets([*modalities, *([] if joint is None else [joint])], scans, folds)
    check_barred(modalities, scans, config)
    check_named([], scans, config.of_target(""))
    asked, refused = questions(modalities, joint, scans, folds, config)
    rows: list[Row] = []
    for question in track(asked, total=len(asked), label=label) if label else asked:
        try:
            rows += judge(question, scans, folds, config)
        except SettingError as error:
            refused[question.target.name] = str(error)
    if not rows:
        return not_run(NAME, QUESTION, "; ".join(f"{name}: {reason}" for name, reason in refused.items()))
    rows = ordered(rows)
    used = np.unique(np.concatenate([row.target.rows for row in rows]))
    table = table_of(rows)
    return Finding(
        name=NAME,
        question=QUESTION,
        answer=answer(table, config.alpha),
        table=table,
        data=arrays_of(rows, scans.index),
        settings=asdict(config)
        | {
            "modalities": {one.name: int(one.finite.sum()) for one in modalities},
            "n_folds": len(np.unique(folds)),
            "left_out": {question.target.name: question.target.left_out for question in asked},
            "refused": refused,
        },
        caveats=caveats(asked, refused=refused),
        n_scans=len(used),
        n_subjects=int(scans["subject_id"].iloc[used].nunique()),
    )
