"""What an external cohort shows, in words: the answer, whether it may be trusted, and what must not be concluded."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from nilatent.analysis.external.measures import Measure
from nilatent.analysis.external.shift import Shift

# A convention: a mean squared error that is surely this many times the study's is no longer the same kind of image.
FAR_RATIO = 1.5
ALPHA = 0.05
FEW = 20


def answer(
    target: str,
    measures: Sequence[Measure],
    shift: Shift,
    *,
    n_subjects: int,
    n_known: int,
    classes: Mapping[str, int],
) -> str:
    """Two or three sentences with numbers.

    Parameters
    ----------
    target : str
        What is predicted.
    measures : Sequence of Measure
        Of the prediction; none when the target is not known of anybody.
    shift : Shift
        Of the cohort.
    n_subjects, n_known : int
        Subjects, and those whose target is known.
    classes : Mapping[str, int]
        Class to known subjects; empty for a number.
    """
    return f"{_performance(target, measures, n_subjects=n_subjects, n_known=n_known, classes=classes)} {trust(shift)}"


def _performance(
    target: str, measures: Sequence[Measure], *, n_subjects: int, n_known: int, classes: Mapping[str, int]
) -> str:
    if n_known == 0:
        return f"'{target}' is predicted for {n_subjects} subjects and known of none of them: how right this is cannot be said."
    present = [level for level, count in classes.items() if count > 0]
    if len(present) == 1:
        only = measures[0]
        return (
            f"All {n_known} subjects with a known '{target}' are '{present[0]}': a one-class cohort. {_capital(told(only))}, "
            "exact interval; how often others would be called the same it cannot say."
        )
    absent = [level for level, count in classes.items() if count == 0]
    lacking = f" Nobody is {' or '.join(map(repr, absent))}, so no overall measure is given." if absent else ""
    shown = "; ".join(told(measure) for measure in measures[:4])
    of_all = f"{n_known} of {n_subjects}" if n_known < n_subjects else f"{n_known}"
    return f"'{target}' in {of_all} subjects that neither model nor head has seen: {shown}.{lacking}"


def told(measure: Measure) -> str:
    """A measure with its interval."""
    value = f"{measure.name} {measure.value:.2f}"
    return value if np.isnan(measure.low) else f"{value} ({measure.low:.2f} to {measure.high:.2f})"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def trust(shift: Shift) -> str:
    """Whether the cohort is of the kind that model and head know."""
    error = ""
    if np.isfinite(shift.error_ratio):
        limits = "" if np.isnan(shift.error_low) else f" ({shift.error_low:.2f} to {shift.error_high:.2f})"
        error = (
            f"the model's squared error is {shift.error_ratio:.2f}{limits} times that of held-out scans of the study"
        )
    alike = ""
    if np.isfinite(shift.p_value):
        does = "differ" if shift.p_value <= ALPHA else "do not show a difference"
        alike = f"the latents of the two cohorts {does} (MMD, p = {shift.p_value:.2g})"
    known = _capital(" and ".join(filter(None, (error, alike))))
    if not known:
        return "How far the cohort lies from the study was not measured."
    if shift.error_low > FAR_RATIO:
        return f"{known}: these images are outside what the model knows, and the predictions are not to be relied on."
    if shift.error_low > 1 or shift.p_value <= ALPHA:
        return (
            f"{known}: the cohort is shifted. Ranks of subjects may hold where thresholds and probabilities do not: look at the "
            "calibration."
        )
    few = min(shift.n_new, shift.n_study if np.isfinite(shift.p_value) else shift.n_error) < FEW
    short = " So few subjects would show a large shift only." if few else ""
    return f"{known}: no shift is seen.{short}"


def caveats(
    column: str, kind: str, shift: Shift, scans: pd.DataFrame, y: np.ndarray, *, unseen: bool
) -> tuple[str, ...]:
    """What the reader must not conclude.

    Parameters
    ----------
    column, kind : str
        Of the target.
    shift : Shift
        Of the cohort.
    scans : DataFrame
        The new scans.
    y : ndarray
        (scan,) what is known; NaN elsewhere.
    unseen : bool
        Whether the latents that the new ones are compared with are of subjects the model has not seen.
    """
    found = [
        "Model, head and threshold were frozen before: nothing was fitted to this cohort. The head was fitted on latents of "
        "scans most of which the model had seen; those of new scans lie a little nearer to the mean.",
        "A shift is a difference of any kind: other scanners, other ages or other diagnoses. It does not say which.",
    ]
    if column not in scans:
        found.append(f"The cohort has no column '{column}': predictions alone, without a measure.")
    elif not np.isfinite(y).all():
        found.append(
            f"{int((~np.isfinite(y)).sum())} of {len(y)} scans have no value of '{column}' that the head knows: they are "
            "predicted and not judged."
        )
    if scans["subject_id"].nunique() < len(scans):
        found.append(
            "Of a subject with several scans the first that is known is judged, so that subjects are independent."
        )
    if kind != "continuous":
        found.append(
            "The probabilities presume that classes are as frequent as where the head was fitted (equally frequent for a "
            "network head); here they may not be."
        )
    if np.isfinite(shift.p_value) and not unseen:
        found.append("The latents compared with are of scans the model was fitted on: part of the difference is that.")
    return tuple(found)
