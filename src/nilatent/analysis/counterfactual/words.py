"""What counterfactuals say in words: the answer, and what the reader must not conclude."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import xarray as xr

from nilatent.analysis.counterfactual.table import TOTAL, Answered

# Relative difference above which the decoder is said to be far from linear.
FAR_FROM_LINEAR = 0.2


def answer(answers: Sequence[Answered], table: pd.DataFrame) -> str:
    """What the judged scans gain or lose, and whether unseen scans agree; where the model adds nothing, this first."""
    worse = [one.change.label for one in answers if np.isfinite(one.model.rho) and not one.beats_regression]
    first = (
        [
            "Regional regression alone, without a model of images, agrees with unseen scans as well or better, in rank or in "
            f"amount ({'; '.join(worse)})."
        ]
        if worse
        else []
    )
    return " ".join([*first, *(_one(one, table[table["change"] == one.change.label]) for one in answers)])


def _one(found: Answered, table: pd.DataFrame) -> str:
    total = table[table["region"] == TOTAL].iloc[0]
    people = f"{len(found.judged)} scans that their model had not seen"
    if found.told:
        sure = "no interval, as the decoder was told"
    else:
        sure = f"95 % interval {total['ml_low']:+.1f} to {total['ml_high']:+.1f}"
        sure += "" if total["ml_low"] * total["ml_high"] > 0 else ", which holds no change"
    words = (
        f"{found.change.label[:1].upper()}{found.change.label[1:]}, {people} {'gain' if total['ml'] > 0 else 'lose'} "
        f"{abs(total['ml']):.1f} ml of grey matter on average ({total['percent']:+.1f} %, change {total['ml']:+.1f} ml, {sure}); "
        f"regional regression says {total['regression_percent']:+.1f} %."
    )
    return " ".join([words, _agreement(found), *_beyond(found)])


def _agreement(found: Answered) -> str:
    model, regression = found.model, found.regression
    if not np.isfinite(model.rho):
        return "Too few unseen scans to ask whether they agree."
    return (
        f"Regions rank as among unseen scans with a correlation of {model.rho:.2f} (p = {model.p_value:.2g}; regional regression "
        f"{regression.rho:.2f}, p = {regression.p_value:.2g}); of the variance among these scans it explains "
        f"{100 * model.explained:.1f} % (p = {model.explained_p:.2g}; regional regression {100 * regression.explained:.1f} %, "
        f"p = {regression.explained_p:.2g})."
    )


def _beyond(found: Answered) -> list[str]:
    if not found.beyond.any():
        return []
    return [
        f"For {int(found.beyond.sum())} of them the new {found.change.column} lies beyond all training scans: extrapolated."
    ]


def caveats(
    answers: Sequence[Answered], data: xr.Dataset, refused: Mapping[str, str], *, n_spaces: int, head_size_held: bool
) -> tuple[str, ...]:
    """What the reader must not conclude, and how the numbers were made."""
    lines = [
        "A counterfactual is what a model of many people expects, from a cross-section: no prediction for this person, and no "
        "cause. Who is older was also born earlier, and who is ill differs in more than the illness.",
        "A decoder draws the mean that it expects, so changes are smoother, and as a rule smaller, than those between scans; "
        "what a person's latents do not hold does not change.",
        "Intervals resample subjects, of training and of those judged, and fit the pattern again; encoder and decoder are held "
        "as they are, so what another training would change is not in them.",
        "The p of the rank correlation permutes the column over subjects and fits patterns and slopes again; regions are not "
        "independent, so a p of the correlation itself would be far too small. It uses the decoder made linear about unseen "
        "scans.",
    ]
    if n_spaces > 1:
        lines.append(
            f"Every scan is changed by the one of {n_spaces} models that has not seen its subject, along the pattern of that "
            "model's training scans; effects on images are averaged over subjects, rank correlations over the models. The "
            "cross-section in the table is of all unseen scans together, whose subjects other models were trained on."
        )
    if not head_size_held:
        lines.append(
            "Head size is not held. It differs between people by more than most changes, so intervals are wide, and where it "
            "differs with the column by chance it is taken for an effect of the column: hold it with study.covariates."
        )
    for one in answers:
        lines += _of_change(one, data.sel(change=one.change.label))
    lines += [f"Not asked: {what} ({reason})." for what, reason in refused.items()]
    return tuple(lines)


def _of_change(found: Answered, data: xr.Dataset) -> list[str]:
    label = found.change.label[:1].upper() + found.change.label[1:]
    lines = [
        f"{label}: of all unseen scans the nearest to the changed image is the scan itself for {float(data['own_changed']):.0%}, "
        f"and to the unchanged reconstruction for {float(data['own_now']):.0%} (chance {float(data['own_chance']):.0%}).",
    ]
    share = float(data["monotone_share"])
    if np.isfinite(share) and share < 1:
        lines.append(
            f"{label}: total grey matter goes one way from the opposite change through half to twice the change for {share:.0%}."
        )
    gap, asymmetry = float(data["linear_gap"]), float(data["asymmetry"])
    if np.nanmax([gap, asymmetry, 0.0]) > FAR_FROM_LINEAR:
        lines.append(
            f"{label}: the decoder is far from linear here: the opposite change differs by {asymmetry:.0%} from the change "
            "turned round, and the decoder made linear, on which the rank correlation, its p and the width of intervals rest, "
            f"by {gap:.0%} from what is drawn. What is drawn ranks with a correlation of {float(data['rho_drawn']):.2f}."
        )
    if found.told:
        lines.append(
            f"{label}: the decoder is told {found.change.column}, so latents stay and no pattern is fitted. There is no "
            "interval, for which it would be trained again on other subjects. The p of several models is twice their mean."
        )
    lines += [f"{label}: left out {len(ids)} scans ({reason})." for reason, ids in found.people.left_out.items()]
    return lines
