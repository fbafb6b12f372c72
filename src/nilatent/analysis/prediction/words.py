"""What the prediction says in words: whether the latents beat what stands beside them, and what must not be concluded."""

from collections.abc import Sequence

import numpy as np

from nilatent.analysis.prediction.config import PredictionConfig
from nilatent.analysis.prediction.table import Row

MEASURE_WORDS = {
    "balanced_accuracy": "balanced accuracy",
    "kendall_tau": "Kendall's tau",
    "r2": "R²",
}
MOST_NAMED = 6


def answer(rows: Sequence[Row], config: PredictionConfig) -> str:
    """Whether each set that is no baseline beats the best one, target by target, and whether anything is predicted at all."""
    asked = [row for row in rows if not row.of_site and not row.adjusted]
    first = [row for row in asked if row.head == asked[0].head]
    compared = [row for row in first if row.against is not None]
    said = [_beaten(compared, config.alpha)] if compared else []
    said.append(_found(compared or first, config.alpha))
    told = [
        row for row in rows if row.of_site and not row.baseline and not row.adjusted and row.p_value <= config.alpha
    ]
    if told:
        worst = max(told, key=lambda row: row.value)
        said.append(
            f"The site is told from the {worst.features} with a balanced accuracy of {worst.value:.2f} "
            f"(chance {worst.chance:.2f}, p = {worst.p_value:.2g})."
        )
    return " ".join(said)


def _beaten(rows: Sequence[Row], alpha: float) -> str:
    """The first sentence."""
    better: list[str] = []
    worse: list[str] = []
    neither: list[str] = []
    for row in rows:
        found = row.against
        if found is None:
            continue
        name = f"{row.target.name} ({_versus(row)})"
        sure = found.p_value <= alpha
        (better if sure and found.difference > 0 else worse if sure and found.difference < 0 else neither).append(name)
    who = "The " + " and the ".join(dict.fromkeys(row.features for row in rows))
    parts = []
    if worse:
        parts.append(f"predict worse than the best baseline: {_listed(worse)}")
    if neither:
        parts.append(f"do not beat the best baseline: {_listed(neither)}")
    if better:
        parts.append(f"beat the best baseline: {_listed(better)}")
    return f"{who} " + "; they ".join(parts) + "."


def _versus(row: Row) -> str:
    found = row.against
    if found is None:
        return ""
    several = f"{row.features}, " if row.features != "latents" else ""
    return (
        f"{several}{MEASURE_WORDS[row.main]} {row.value:.2f} against {row.value - found.difference:.2f} of {found.against}, "
        f"difference {found.difference:+.2f} [{found.low:.2f}, {found.high:.2f}], p = {found.p_value:.2g}"
    )


def _listed(names: Sequence[str]) -> str:
    more = "" if len(names) <= MOST_NAMED else f" and {len(names) - MOST_NAMED} more"
    return "; ".join(names[:MOST_NAMED]) + more


def _found(rows: Sequence[Row], alpha: float) -> str:
    above: list[str] = []
    not_above: list[str] = []
    untested: list[str] = []
    for row in rows:
        limits = f"[{row.measured.low[row.main]:.2f}, {row.measured.high[row.main]:.2f}]"
        plain = f"{row.target.name} from the {row.features} ({MEASURE_WORDS[row.main]} {row.value:.2f} {limits}"
        if np.isnan(row.p_value):
            untested.append(f"{plain})")
        else:
            (above if row.p_value <= alpha else not_above).append(f"{plain}, p = {row.p_value:.2g})")
    parts = []
    if above:
        parts.append(f"Predicted above chance: {_listed(above)}.")
    if not_above:
        parts.append(f"Not told from chance: {_listed(not_above)}.")
    if untested:
        parts.append(f"Not tested against chance: {_listed(untested)}.")
    return " ".join(parts)


def caveats(rows: Sequence[Row], *, refused: dict[str, str], head_size: str) -> tuple[str, ...]:
    """What the reader must not conclude.

    Parameters
    ----------
    rows : Sequence[Row]
        All rows.
    refused : dict[str, str]
        What was not judged, and why.
    head_size : str
        Why there are no rows without head size; empty when there are.
    """
    said = [
        "Intervals resample subjects with the heads as they were fitted: they say how sure the number is for these heads, and "
        "not how much it would change with other training subjects. p-values are of each row by itself.",
        "The best baseline is the one that turned out best on these scans, which favours it a little.",
    ]
    if any(row.badge == "inconclusive" for row in rows):
        said.append("An inconclusive bound is no evidence that there is no effect; few scans or many features suffice.")
    if any(row.head == "svm" for row in rows):
        said.append(
            "Probabilities of the machine come from its decision values by a logistic curve fitted inside the training part."
        )
    if any(row.head == "network" for row in rows):
        said.append(
            "The network is not trained again under shuffled labels: its rows have no p-value against chance and no bound, and "
            "the class with the larger probability is called."
        )
    if any(row.target.kind in ("multi-class", "ordinal") for row in rows):
        said.append(
            "Of more than two classes the one whose probability grew most over its share is called, so that rare classes are "
            "found at the price of false calls."
        )
    if head_size:
        said.append(head_size)
    left = {row.target.name: row.target.left_out for row in rows if row.target.left_out}
    for name, reasons in left.items():
        listed = "; ".join(f"{reason}: {len(scans)} scans" for reason, scans in reasons.items())
        said.append(f"Left out of {name}: {listed}.")
    said += [f"Not judged: {name}: {reason}." for name, reason in refused.items()]
    return tuple(said)
