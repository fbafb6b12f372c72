"""What can be asked: targets, the modalities that may tell them, and the scans that have these."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from nilatent.analysis.contrast import NotComparableError
from nilatent.analysis.fusion.config import FusionConfig
from nilatent.analysis.prediction.sets import FeatureSet
from nilatent.analysis.prediction.targets import Target, known_by, make_target, make_targets
from nilatent.errors import SettingError

NO_JOINT = "no model of all modalities together was handed in"


@dataclass(frozen=True, eq=False)
class Question:
    """What is predicted, from what.

    Parameters
    ----------
    target : Target
        With the scans that have every modality.
    present : Target or None
        The same with the scans that have one modality at least; None when no scan lacks one.
    modalities : Sequence[FeatureSet]
        Those that may tell it, two or more.
    joint : FeatureSet or None
        Latents of all modalities together.
    without_joint : str
        Why there is none.
    """

    target: Target
    present: Target | None
    modalities: Sequence[FeatureSet]
    joint: FeatureSet | None
    without_joint: str


def check_barred(modalities: Sequence[FeatureSet], scans: pd.DataFrame, config: FusionConfig) -> None:
    """Refuse to bar what does not exist: a slip of the pen would let a score predict the diagnosis that it defines.

    Raises
    ------
    SettingError
        Names the modality or the column.
    """
    names = [one.name for one in modalities]
    for name, columns in config.barred.items():
        if name not in names:
            raise SettingError(f"fusion.barred names '{name}', which is no modality. There are: {', '.join(names)}.")
        absent = [column for part in columns.split(",") if (column := part.strip()) not in scans]
        if absent:
            raise SettingError(f"fusion.barred: '{name}' must not predict '{absent[0]}', and there is no such column.")


def questions(
    modalities: Sequence[FeatureSet],
    joint: FeatureSet | None,
    scans: pd.DataFrame,
    folds: np.ndarray,
    config: FusionConfig,
) -> tuple[list[Question], dict[str, str]]:
    """Everything that the cohort can be asked, and why it cannot be asked other things.

    Parameters
    ----------
    modalities, joint, scans, folds, config
        As in :func:`nilatent.analysis.fusion.fusion`.

    Returns
    -------
    questions : list[Question]
        In the order asked.
    refused : dict[str, str]
        Name of a target, or of a target and a modality, to reason.
    """
    columns = config.targets or tuple(dict.fromkeys(name for name in (config.group, "sex", "age") if name in scans))
    found: list[Question] = []
    refused: dict[str, str] = {}
    everyone = np.ones(len(scans), dtype=bool)
    for column in columns:
        targets, reasons = make_targets(scans, folds, config.of_target(column), usable=everyone)
        refused |= reasons
        for target in targets:
            unfit = {one.name: why for one in modalities if (why := _unfit(one, target, config))}
            refused |= {f"{target.name} from {name}": reason for name, reason in unfit.items()}
            some = [one for one in modalities if one.name not in unfit]
            try:
                found.append(_question(target, some, joint, scans, folds, config, apart=list(unfit)))
            except NotComparableError as error:
                refused[target.name] = str(error)
    return found, refused


def _unfit(features: FeatureSet, target: Target, config: FusionConfig) -> str:
    """Why a modality must not tell a target; empty when it may."""
    if config.is_barred(features.name, target.column):
        return "it defines what is predicted"
    if features.columns and set(features.columns) == {target.column}:
        return "it holds nothing but what is predicted"
    known = features.finite[target.rows]
    of_known = Target(target.name, target.kind, target.rows[known], target.y[known], target.levels, {}, target.column)
    return known_by(features, of_known) if known.any() else "no scan with a value has it"


def _question(
    target: Target,
    some: Sequence[FeatureSet],
    joint: FeatureSet | None,
    scans: pd.DataFrame,
    folds: np.ndarray,
    config: FusionConfig,
    *,
    apart: Sequence[str],
) -> Question:
    if len(some) < 2:
        raise NotComparableError(f"{len(some)} modality may tell it, and two at least are needed")
    knows = [one.name for one in some if target.column in one.columns]
    without = NO_JOINT if joint is None else ""
    if joint is not None and (apart or knows):
        without = f"the joint latents know {', '.join([*apart, *knows])}, which must not tell {target.name}"
    has = np.array([one.finite for one in some])
    whole = has.all(axis=0) if without or joint is None else has.all(axis=0) & joint.finite
    some_of_it = np.asarray(has.any(axis=0))
    settings = config.of_target(target.column)

    def of(usable: np.ndarray) -> Target:
        return make_target(scans, folds, target.column, name=target.name, config=settings, usable=usable)

    complete = of(np.asarray(whole))
    lacking = len(target.rows) > len(complete.rows)
    return Question(complete, of(some_of_it) if lacking else None, some, None if without else joint, without)
