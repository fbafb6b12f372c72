"""What the fusion says in words: whether together is more than the best alone, and what must not be concluded."""

from collections.abc import Sequence

import pandas as pd

from nilatent.analysis.fusion.questions import Question
from nilatent.analysis.fusion.ways import INSIDE, PRESENT, SINGLE

MEASURE_WORDS = {"balanced_accuracy": "balanced accuracy", "kendall_tau": "Kendall's tau", "r2": "R²"}


def answer(table: pd.DataFrame, alpha: float) -> str:
    """Two sentences with numbers for each target at most: fusion against the best single modality, and what each carries.

    Parameters
    ----------
    table : DataFrame
        From :func:`~nilatent.analysis.fusion.table.table_of`.
    alpha : float
        False discovery rate.
    """
    groups = [part for _, part in table.groupby("target", sort=False)]
    against = [_against(part, alpha) for part in groups]
    better, worse, neither = ([text for verdict, text in against if verdict == sign] for sign in (1, -1, 0))
    said = []
    if worse:
        said.append(f"Together they tell less than the best single modality: {'; '.join(worse)}.")
    if neither:
        said.append(
            f"That several modalities together tell more than the best single one is not shown: {'; '.join(neither)}."
        )
    if better:
        said.append(f"Together they tell more than the best single modality: {'; '.join(better)}.")
    return " ".join([*said, *(_carried(part, alpha) for part in groups)])


def _against(part: pd.DataFrame, alpha: float) -> tuple[int, str]:
    """Verdict of one target (1 better, -1 worse, 0 neither), and its numbers.

    Where nothing can be told, an average of useless heads errs less than one of them: what tells nothing is not better.
    """
    compared = part[part["difference"].notna() & (part["way"] != PRESENT)].sort_values("difference")
    sure = compared[compared["q_difference"] <= alpha]
    better = sure[(sure["difference"] > 0) & (sure["low"] > sure["chance"])]
    best = (compared if better.empty else better).iloc[-1]
    rival = part[part["way"] == INSIDE].iloc[0]
    worse = len(sure) == len(compared) and bool((sure["difference"] < 0).all())
    text = (
        f"{best['target']} ({best['way']}, {MEASURE_WORDS[best['main']]} {best['value']:.2f} "
        f"[{best['low']:.2f}, {best['high']:.2f}] against {rival['value']:.2f} of {rival['features']}, difference "
        f"{best['difference']:+.2f} [{best['difference_low']:.2f}, {best['difference_high']:.2f}], "
        f"q = {best['q_difference']:.2g}{_chance(rival, best)})"
    )
    return -1 if worse else int(not better.empty), text


def _chance(rival: pd.Series, best: pd.Series) -> str:
    """A word where nothing is told at all, together or alone."""
    alone, together = (row["low"] <= row["chance"] for row in (rival, best))
    return ", neither told from chance" if alone and together else ""


def _carried(part: pd.DataFrame, alpha: float) -> str:
    single = part[part["way"] == SINGLE].sort_values("conditional", ascending=False)
    own = single[(single["q_conditional"] <= alpha) & (single["conditional"] > 0)]
    target = part["target"].iloc[0]
    unit = "of the squared error of knowing nothing" if part["kind"].iloc[0] == "continuous" else "of the log loss"
    named = [
        f"{row['features']} ({100 * row['conditional']:.0f} % {unit} [{100 * row['conditional_low']:.0f}, "
        f"{100 * row['conditional_high']:.0f}], q = {row['q_conditional']:.2g})"
        for _, row in own.iterrows()
    ]
    if not named:
        return f"No modality is shown to carry something of {target} that the others lack."
    rest = [str(name) for name in single["features"] if name not in set(own["features"])]
    others = f"; not shown of {', '.join(rest)}" if rest else ""
    return f"What the others lack of {target} is carried by {', '.join(named)}{others}."


def caveats(asked: Sequence[Question], *, refused: dict[str, str]) -> tuple[str, ...]:
    """What the reader must not conclude.

    Parameters
    ----------
    asked : Sequence[Question]
        What was asked.
    refused : dict[str, str]
        What was not judged, and why.
    """
    said = [
        "Heads are linear (L2 logistic, ridge). The comparator is the single modality that is best on inner folds, chosen anew "
        "in each outer fold; the best of the single rows was found by looking and is no fair rival. q-values are "
        "corrected for all ways, modalities and targets of the table.",
        "Intervals of measures resample subjects with the heads as they were fitted; those of differences, and their p-values, "
        "allow for heads that share training scans (Nadeau & Bengio). No row is tested against chance here: where "
        "its interval holds chance, it tells nothing.",
        "What a modality carries is judged in early fusion: what the decision loses when, of this modality, only that is known "
        "which ridge regression on the others expects of it. Dependence that is not linear, or of more features than the "
        "training part can learn, is credited to it; where early fusion tells nothing, nothing can be lost. Its intervals and "
        "p-values allow for folds that learn from each other's scans.",
        "Encoders have seen the inner held-out scans without their labels, tables have not: choice and weights, which are made "
        "on inner folds, may favour latents a little. Held-out scans of the outer folds were seen by none.",
    ]
    without: dict[str, list[str]] = {}
    for question in asked:
        if question.without_joint:
            without.setdefault(question.without_joint, []).append(question.target.name)
    said += [f"No joint latents for {', '.join(names)}: {reason}." for reason, names in without.items()]
    for question in asked:
        name, target = question.target.name, question.target
        for reason, scans in target.left_out.items():
            said.append(f"Left out of the comparison for {name}: {reason}: {len(scans)} scans.")
    said += [f"Not judged: {name}: {reason}." for name, reason in refused.items()]
    return tuple(said)
