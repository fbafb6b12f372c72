"""Agnostic validation in words: its answer and its caveats, from the table of certificates."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
import xarray as xr

from nilatent.analysis import bounds

CUBV, SAR, SAM = "CUBV", "SAR", "SAM"
LATENTS, REGIONS, COVARIATES = "latents", "regions", "covariates only"
OWN, READ_OUT = "own grey matter", "read out of the latents"


def _said(row: "pd.Series[Any]") -> str:
    unit = "balanced error" if row["test"] == CUBV else "loss"
    return (
        f"{row['features']} {unit} {row['error']:.2f}, at most {row['bound']:.2f} (guessing {row['threshold']:.2f}), "
        f"p = {row['p']:.2g}: {row['badge']}"
    )


def answer(found: pd.DataFrame) -> str:
    """What the certificates say, question by question."""
    parts = []
    for target, rows in found[found["test"] != SAM].groupby("target", sort=False):
        parts.append(f"{target}: " + "; ".join(_said(row) for _, row in rows.iterrows()) + ".")
    for target, regions in found[found["test"] == SAM].groupby("target", sort=False):
        own, read = (regions[regions["features"] == name] for name in (OWN, READ_OUT))
        counts = [int((part["badge"] == bounds.VALIDATED).sum()) for part in (own, read)]
        parts.append(
            f"Region by region ({target}), the badge goes to {counts[0]} of {len(own)} by their own grey matter and to "
            f"{counts[1]} of {len(read)} by what the latents carry of them."
        )
    return " ".join(parts)


def caveats(
    latents: xr.Dataset,
    found: pd.DataFrame,
    covariates: list[str],
    settings: Mapping[str, Any],
    *,
    skipped: dict[str, str],
    left_out: dict[str, list[str]],
    flat: list[str],
) -> tuple[str, ...]:
    """What the reader must not conclude, and what was not asked."""
    seen, scans = int(latents["subject_in_training"].values.sum()), latents["subject_in_training"].size
    removed = ", ".join([*covariates, *([settings["site"]] if settings["site"] else [])]) or "nothing"
    lines = [
        "These certificates are one-sided: with the badge, the rule beats guessing in the worst case; without it the result "
        "is inconclusive, which is no evidence that there is no effect. The badge decides nothing by itself.",
        "The n of the bounds is the size of the training part (with groups, twice the smaller one), as published; that is a "
        "convention, no theorem about held-out errors. So a badge needs the permutation p as well, and an exact binomial "
        "limit of the held-out error stands beside it.",
        f"Every scan was judged by the one of {settings['n_models']} models that had not seen its subject."
        if settings["n_models"]
        else f"The model was fitted on {seen} of the {scans} scans of the cohort"
        + (", with labels." if latents.attrs.get("supervised") else ", without their labels."),
        f"Removed inside each fold: {removed}; from a predicted target all of these but itself.",
    ]
    if (found["method"] == "pac_bayes").any():
        lines.append(
            f"From {bounds.FROM_PAC_BAYES} weights on the PAC-Bayes bound is used. Its theorem is about a randomised rule; "
            "here it is applied to the rule itself, as published."
        )
    if (found["test"] == SAR).any():
        lines.append(
            "The loss of a prediction has no upper limit, which the bounds assume; SAR takes the SD of the target as its unit, "
            "as published. A badge needs the published loss and the plain mean loss to be below that of the mean."
        )
    below = (found["test"] == SAR) & (found["bound"] < found["threshold"]) & (found["p"] <= settings["alpha"])
    for _, row in found[below & (found["badge"] != bounds.VALIDATED)].iterrows():
        lines.append(
            f"{row['target']} from {row['features']} is below guessing in the worst case by the published loss, and not by the "
            "plain mean loss; so it has no badge."
        )
    if (found["test"] == SAM).any():
        lines.append(
            "sam_z says which region stands out from the others, as published; it is no test against chance. Each region's "
            f"bound may fail with probability {settings['eta']:g}; its p is family-wise."
        )
    if flat:
        lines.append(f"Constant, or explained by the confounds, and so left out: {', '.join(flat)}.")
    lines += [f"Not asked about {what}: {why.rstrip('.')}." for what, why in skipped.items()]
    return (*lines, *(f"Left out: {len(ids)} scans ({reason})." for reason, ids in left_out.items()))
