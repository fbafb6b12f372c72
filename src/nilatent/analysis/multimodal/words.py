"""What is said of several kinds of measurement: whether the joint model is worth it, what is shared, what more of them does."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from nilatent.analysis.multimodal.asked import ALL, JOINT, SHARED, Fold
from nilatent.analysis.multimodal.judged import EQUAL, RIVAL
from nilatent.analysis.multimodal.table import ITSELF

# Of more targets than these the table tells; sentences would be lists.
MOST_NAMED = 4


def answer(table: pd.DataFrame, steps: pd.DataFrame, alpha: float) -> str:
    """First whether the joint model beats the best simple regression, then what can be told at all.

    Parameters
    ----------
    table, steps : DataFrame
        From :func:`~nilatent.analysis.multimodal.table.table_of` and :func:`~nilatent.analysis.multimodal.table.steps_of`.
    alpha : float
        False discovery rate.
    """
    nothing = [] if len(from_all(table)) else ["Nothing could be told from anything else; the table says why."]
    return " ".join([*nothing, *_against(table, alpha), *_shared(table, alpha), *_steps(steps, alpha)])


def from_all(table: pd.DataFrame) -> pd.DataFrame:
    """The joint model's line of each target that tells it from most others."""
    joint = table[
        (table["way"] == JOINT) & (table["sources"] != ITSELF) & (table["scans"] == ALL) & (table["note"] == "")
    ]
    return joint.groupby("target", sort=False).head(1)


def _against(table: pd.DataFrame, alpha: float) -> list[str]:
    lines = from_all(table)
    sure = lines["q_difference"] <= alpha
    said = []
    for chosen, words in (
        (sure & (lines["difference"] > 0), "The joint model predicts worse than the best simple regression"),
        (~sure, "That the joint model predicts otherwise than the best simple regression is not shown"),
        (sure & (lines["difference"] < 0), "The joint model predicts better than the best simple regression"),
    ):
        told = [_compared(line, table) for _, line in lines[chosen].iterrows()]
        if told:
            said.append(f"{words}: {_listed(told)}.")
    return said


def _compared(line: pd.Series, table: pd.DataFrame) -> str:
    same = (
        (table["target"] == line["target"]) & (table["sources"] == line["sources"]) & (table["scans"] == line["scans"])
    )
    rival = table[same & (table["way"] == RIVAL)].iloc[0]
    return (
        f"{line['target']} from {line['sources']} ({_of(line)} {_percent(line['unexplained'])} "
        f"[{_percent(line['low'])}, {_percent(line['high'])}] against {_percent(rival['unexplained'])}, difference "
        f"{100 * line['difference']:+.1f} points [{100 * line['difference_low']:+.1f}, {100 * line['difference_high']:+.1f}], "
        f"q = {line['q_difference']:.2g})"
    )


def _of(line: pd.Series) -> str:
    return "log loss as a share of the base rate's" if line["kind"] == "category" else "variance unexplained"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _explained(unexplained: float) -> str:
    # A little can be certain: it is not nothing.
    return _percent(1 - unexplained) if abs(1 - unexplained) >= 0.01 else "under 1 %"


def _listed(told: Sequence[str]) -> str:
    more = f"; and {len(told) - MOST_NAMED} more in the table" if len(told) > MOST_NAMED else ""
    return "; ".join(told[:MOST_NAMED]) + more


def _shared(table: pd.DataFrame, alpha: float) -> list[str]:
    lines = from_all(table)
    can = (lines["q_mean"] <= alpha) & (lines["unexplained"] < 1)
    said = []
    if can.any():
        told = [f"{line['target']} ({_explained(line['unexplained'])})" for _, line in lines[can].iterrows()]
        said.append(
            f"Told from the others better than by the mean of the training scans, and so shared: {_listed(told)}."
        )
    if not can.all():
        rival = table[(table["way"] == RIVAL) & (table["q_mean"] <= alpha) & (table["unexplained"] < 1)]
        also = set(rival["target"])
        named = [f"{name}{' (a simple regression can)' if name in also else ''}" for name in lines["target"][~can]]
        said.append(f"That anything of {_listed(named)} can be told from the others by the joint model is not shown.")
    own = table[(table["sources"] == ITSELF) & (table["way"] == SHARED)]
    if len(own):
        kept = [_kept(line, table) for _, line in own.iterrows()]
        said.append(f"Found in a kind itself, the shared latents explain {_listed(kept)}.")
    return said


def _kept(line: pd.Series, table: pd.DataFrame) -> str:
    same = table[(table["target"] == line["target"]) & (table["sources"] == ITSELF)].set_index("way")["unexplained"]
    return (
        f"{_percent(1 - line['unexplained'])} of {line['target']} (all its latents {_percent(1 - same[JOINT])}, principal "
        f"components of the same number {_percent(1 - same[EQUAL])})"
    )


def _steps(steps: pd.DataFrame, alpha: float) -> list[str]:
    worse = steps[(steps["q_value"] <= alpha) & (steps["change"] > 0)]
    told = [
        f"{line['target']} from {line['more']} rather than {line['fewer'] or 'nothing'} "
        f"({100 * line['change']:+.1f} points [{100 * line['low']:+.1f}, {100 * line['high']:+.1f}])"
        for _, line in worse.iterrows()
    ]
    if told:
        return [f"In theory more can only help, but it harms: {_listed(told)}."]
    return ["Looking at more kinds was nowhere shown to harm."] if len(steps) else []


def balance(folds: Sequence[Fold]) -> dict[str, dict[str, float]]:
    """How much each kind weighs, mean over the models; as ``balance`` of their results."""
    found: dict[str, dict[str, float]] = {}
    for name in folds[0].result["balance"]:
        each = [fold.result["balance"][name] for fold in folds]
        found[name] = {what: float(np.mean([_number(one[what]) for one in each])) for what in each[0]}
    return found


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def caveats(
    folds: Sequence[Fold], weights: Mapping[str, Mapping[str, float]], *, smoothing_mm: float
) -> tuple[str, ...]:
    """What the reader must not conclude.

    Parameters
    ----------
    folds : Sequence[Fold]
        The models.
    weights : Mapping
        From :func:`balance`.
    smoothing_mm : float
        FWHM of the smoothing of the volumes; 0 where they were not smoothed or nobody knows.
    """
    results: list[Mapping[str, Any]] = [fold.result for fold in folds]
    n_linear = sum(result["best_epoch"] == 0 for result in results)
    n_train = [int(fold.rows("train").sum()) for fold in folds]
    said = []
    if n_linear:
        said.append(
            f"In {n_linear} of {len(folds)} models the networks added nothing to the linear start, which was kept: there the "
            "joint model is a linear one."
        )
    n_nothing = sum(not result["sharing_gain"] > 0 for result in results)
    if n_nothing:
        said.append(
            f"In {n_nothing} of {len(folds)} models no kind could be told from the others of left-out training subjects: what "
            "they call shared is not shown to be."
        )
    said.append(
        f"Models learned from {_range(n_train)} scans, with {_range([int(result['n_shared']) for result in results])} shared "
        "latents. Predictions are what is expected: private latents of what is told are at the mean of their prior, so they "
        "are smoother than scans, and details of one brain are not in them."
    )
    if smoothing_mm > 0:
        said.append(
            f"Volumes were smoothed by {smoothing_mm:g} mm: neighbouring voxels agree, and shares of variance are larger than "
            "of unsmoothed ones."
        )
    said += [
        "What kinds share may be age, sex, head size or site; tissue maps of one image share its segmentation, too, in which "
        "what is one tissue is not another. None of this is held constant here.",
        "Simple regressions (ridge; partial least squares or, of categories, logistic) learn from training and validation scans "
        "and choose their settings, and which of them is compared, inside these. Intervals resample subjects with models as "
        "they were fitted; those of differences, and p-values by flipping signs of subjects, allow for folds that share "
        "training scans (Nadeau & Bengio). A category's accuracy stands beside the share of the commonest level.",
        _weighing(weights),
    ]
    return tuple(said)


def _range(numbers: Sequence[int]) -> str:
    return f"{min(numbers)}" if min(numbers) == max(numbers) else f"{min(numbers)} to {max(numbers)}"


def _noise(sd: float) -> str:
    return f", noise SD {sd:.2g}" if np.isfinite(sd) else ""


def _weighing(weights: Mapping[str, Mapping[str, float]]) -> str:
    told = [
        f"{name} {one['nats_per_percent']:.3g} ({one['n_values']:.0f} values, weight {one['weight']:g}"
        f"{_noise(one['noise_sd'])}), and tells "
        f"{one['shared_nats']:.2g} nats of the shared latents by itself"
        for name, one in weights.items()
    ]
    return f"What one per cent less squared error is worth in training, in nats: {'; '.join(told)}."
