"""What the harmonisation says in words: the answer, and what the reader must not conclude."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from nilatent.analysis.combat import ADJUSTED, ONE_SUBJECT, UNSEEN
from nilatent.analysis.harmonise.folds import Harmonised, Usable
from nilatent.analysis.site_signal import LINEAR, NON_LINEAR

FRESH = "balanced accuracy, fresh scans"
"""Told by a classifier that learnt from harmonised scans which ComBat was not fitted on."""
ALPHA = 0.05
# Share of a covariate's variance between sites from which the reader is told.
CONFOUNDED = 0.25
SMALL_SITE = 10
N_NAMED = 5


def answer(table: pd.DataFrame, scans: Usable, *, covariates: Sequence[str]) -> str:
    """How well the site is told before and after, and the first kept covariate, of each description of the scans."""
    return " ".join(_of_one(str(name), part, scans, covariates) for name, part in table.groupby("measures", sort=False))


def _of_one(name: str, table: pd.DataFrame, scans: Usable, covariates: Sequence[str]) -> str:
    of_site = table[table["what"] == scans.site_name].set_index(["measure", "model"]).to_dict("index")
    line, other = (of_site["balanced accuracy", model] for model in (LINEAR, NON_LINEAR))
    kept = "" if np.isnan(line["from_kept"]) else f"; the kept covariates alone give {line['from_kept']:.0%}"
    said = [
        f"From {name} of held-out scans of {len(np.unique(scans.site))} sites a linear classifier tells the site in "
        f"{line['before']:.0%} before harmonisation and {line['after']:.0%} after it (p = {line['p_after']:.2g}), a non-linear "
        f"one in {other['before']:.0%} and {other['after']:.0%} (p = {other['p_after']:.2g}), balanced over sites; chance is "
        f"{line['chance']:.0%}{kept}."
    ]
    if (FRESH, LINEAR) in of_site:
        fresh = of_site[FRESH, LINEAR]
        said.append(
            "A linear classifier that learns from fewer scans, which ComBat was not fitted on, tells it in "
            f"{fresh['before']:.0%} before and {fresh['after']:.0%} after (p = {fresh['p_after']:.2g})."
        )
    said += [_of_covariate(table[table["what"] == covariate], covariate) for covariate in covariates[:1]]
    return " ".join(said)


def _of_covariate(table: pd.DataFrame, covariate: str) -> str:
    rows = table.set_index("measure").to_dict("index")
    if "correlation within sites" in rows:
        row = rows["correlation within sites"]
        told = f"with a correlation within sites of {row['before']:.2f} before and {row['after']:.2f} after"
    else:
        row = rows["balanced accuracy"]
        told = f"with a balanced accuracy of {row['before']:.0%} before and {row['after']:.0%} after"
    pattern = rows["pattern of slopes"]["after"]
    slopes = "" if np.isnan(pattern) else f" Its slopes over features correlate with those before at r = {pattern:.2f}."
    return f"{covariate.capitalize()} is predicted {told}.{slopes}"


def caveats(
    table: pd.DataFrame,
    made: list[Harmonised],
    scans: Usable,
    *,
    confounded: dict[str, float],
    refused: list[str],
) -> tuple[str, ...]:
    """What the reader must not conclude, and which scans and sites are not in it."""
    kept = ", ".join(one.name for one in scans.kept) or "nothing"
    lines = [
        f"Kept: {kept}. Whatever else differs between sites, disease too, is taken out with the site.",
        "ComBat aligns mean and variance of one feature at a time. What features do together can still differ between sites.",
        "A covariate that is kept enters the harmonised values; to predict it from them is circular. Here it was hidden from "
        "ComBat when it was predicted.",
        "p is of calls that stay while sites are shuffled among held-out scans of a fold. Classifiers that learn from the "
        "training scans see sites that ComBat has aligned better than in any other scans, and can miss what it leaves in these: "
        "the rows on fresh scans and the share of variance do not.",
    ]
    lines += _still_told(table, scans)
    for name, share in confounded.items():
        if share >= CONFOUNDED:
            lines.append(
                f"Sites differ in {name}, which is kept ({share:.0%} of its variance lies between sites): so far the site can be "
                "told from it, and its effect rests on few scans that overlap."
            )
    for one in made:
        lines += _flagged(one, scans)
    lines += _of_sites(scans)
    lines += [f"Left out: {len(ids)} scans ({reason})." for reason, ids in scans.left_out.items()]
    lines += [f"Not harmonised: {reason}." for reason in refused]
    return tuple(lines)


def _still_told(table: pd.DataFrame, scans: Usable) -> list[str]:
    rows = table[(table["what"] == scans.site_name) & table["measure"].isin(["balanced accuracy", FRESH])]
    lines = []
    for _, row in rows[rows["p_after"] <= ALPHA].iterrows():
        learnt = " that learnt from fresh scans" if row["measure"] == FRESH else ""
        lines.append(
            f"After harmonisation a {row['model']} classifier{learnt} still tells the site from {row['measures']} better than "
            f"chance ({row['after']:.0%} against {row['chance']:.0%}, p = {row['p_after']:.2g})."
        )
        if row["after"] > row["before"]:
            lines[-1] += (
                f" Harmonisation made it easier to tell (before: {row['before']:.0%}): it took out of these sites what chance "
                "had put into few training scans, and so put it into all others. Do not harmonise sites as small as these."
            )
    return lines


def _flagged(made: Harmonised, scans: Usable) -> list[str]:
    lines, name = [], made.measures.name
    reasons = {
        UNSEEN: "no training scan is of their site",
        ONE_SUBJECT: "one subject alone is of their site in training, and a site cannot be told from a person",
    }
    for flag, reason in reasons.items():
        of_flag = made.flags == flag
        if of_flag.any():
            sites = ", ".join(map(str, np.unique(scans.site[of_flag])[:N_NAMED]))
            lines.append(
                f"Unchanged and not judged: {name} of {int(of_flag.sum())} scans (site {sites}), for {reason}."
            )
    if not made.measures.comparable:
        lines.append(
            f"Each fold has its own encoder, so harmonised {name} of different folds must not be put into one table; the fold of "
            "each scan stands beside it."
        )
    if (made.flags != ADJUSTED).all():
        lines.append(f"No scan's {name} could be harmonised.")
    return lines


def _of_sites(scans: Usable) -> list[str]:
    lines = []
    names, counts = np.unique(scans.site[scans.first], return_counts=True)
    small = names[counts < SMALL_SITE]
    if len(small):
        lines.append(
            f"{len(small)} of {len(names)} sites have fewer than {SMALL_SITE} subjects ({', '.join(map(str, small[:N_NAMED]))}): "
            "what is taken out of them leans on what their other features say."
        )
    if not scans.first.all():
        lines.append(
            f"{int((~scans.first).sum())} scans are later ones of the same subjects: harmonised as if independent, and not "
            "judged."
        )
    return lines
