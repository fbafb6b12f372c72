"""What LRCP says in words: the answer, and what the reader must not conclude."""

import numpy as np
import pandas as pd
import xarray as xr

from nilatent.analysis.contrast import Comparison, Gradient
from nilatent.analysis.lrcp.profile import LrcpConfig
from nilatent.analysis.lrcp.table import Answered

# Ratio of the SD of latents, unseen to seen scans, under which the reader is told.
NARROW_RATIO = 0.8
N_NAMED = 5


def answer(parts: list[Answered], config: LrcpConfig) -> str:
    """One or two sentences with numbers; of several contrasts, as much for each."""
    return " ".join(_of_one(part, config, n_contrasts=len(parts)) for part in parts)


def _of_one(part: Answered, config: LrcpConfig, *, n_contrasts: int) -> str:
    table, asked = part.table, part.asked
    blended = config.reading == "blended"
    called = table[table["grade"] != "none"]
    does = "tells them apart" if isinstance(asked, Comparison) else "is related to it"
    plain = int((table["p_region"] <= config.alpha).sum())
    beside = f"Plain regional grey matter, without a model, {does} in {plain} (same error control)."
    over = f" over regions and {n_contrasts} contrasts" if n_contrasts > 1 else ""
    if blended:
        claim = f"does grey matter that the latents carry, blended with what they say of it, {_tell(asked)}"
    else:
        claim = f"do the latents both carry the grey matter and {_tell(asked)}"
    if called.empty:
        best = table.sort_values("p", kind="stable").iloc[0]
        lent = int((table["p"] <= config.alpha).sum())
        but = f"; {lent} would, and their own grey matter does not bear them out" if lent else ""
        kind = "p" if blended else "family-wise p"
        return (
            f"In none of {len(table)} regions {claim}; the smallest {kind}{over} is {best['p']:.2g} ({best['name']}){but}. "
            f"{beside}"
        )
    shown = "; ".join(
        f"{row['name']} ({row['direction']}, {_skill(row, asked)}, p = {row['p']:.2g})"
        for _, row in called.head(N_NAMED).iterrows()
    )
    strong = int((called["grade"] == "strong").sum())
    more = "" if len(called) <= N_NAMED else f" and {len(called) - N_NAMED} more"
    within = "within the groups too" if isinstance(asked, Comparison) else f"at equal {asked.target} too"
    alone = int((called["p_readout"] <= config.alpha).sum())
    by_latents = f" What the latents say of a region does so by itself in {alone} of these." if blended else ""
    level = f"p <= {config.alpha:g}{over}" if blended else f"family-wise p <= {config.alpha:g}{over}"
    claim = claim.removeprefix("does ").removeprefix("do ")
    claim = claim.replace(", tell ", ", tells ").replace(", follow ", ", follows ") if blended else claim
    return (
        f"In {len(called)} of {len(table)} regions {claim} at {level}, and the region's own grey matter bears it out: "
        f"{shown}{more}.{by_latents} The association holds {within} in {strong}. {beside}"
    )


def _tell(asked: Comparison | Gradient) -> str:
    if isinstance(asked, Gradient):
        return f"follow {asked.target} ({len(asked.values)} subjects)"
    n_case = int(asked.is_case.sum())
    return f"tell {asked.case} ({n_case}) from {asked.reference} ({len(asked.is_case) - n_case})"


def _skill(row: "pd.Series[float]", asked: Comparison | Gradient) -> str:
    if isinstance(asked, Gradient):
        return f"r = {row['r_target']:.2f}"
    return f"balanced accuracy {row['bal_acc']:.2f}"


def caveats(
    latents: xr.Dataset,
    parts: list[Answered],
    config: LrcpConfig,
    *,
    covariates: list[str],
    refused: list[str],
    n_models: int,
) -> tuple[str, ...]:
    """What the reader must not conclude, and which scans, regions and contrasts are not in it."""
    several = len(parts) + len(refused) > 1
    target = config.target
    about = target or "the groups"
    removed = ", ".join([*covariates, *([config.site] if config.site else [])]) or "nothing"
    lines = [
        "LRCP as implemented here: the equations are ours, not those of the paper that gave the name.",
        "Regions and latents come from the same images, so an association by itself is expected; only together with "
        f"{'prediction' if target else 'discriminability'} does it speak about {about}. "
        + ("A relation is not a cause." if target else "A difference between groups is not its cause."),
        f"Removed from regions, latents and {target or 'groups'} before any test: {removed}. An effect that acts through "
        "these is removed with them.",
        _who_was_seen(latents, n_models),
        f"The linked {'prediction' if target else 'classifier'} uses on average {_mean(parts, 'n_linked'):.1f} latents per "
        "region. Regions that share latents share its verdict, so it is not specific to a region.",
        "A region that is correlated with an affected region, or touches it, can be called with it.",
    ]
    if config.reading == "blended":
        lines.append(
            "What is tested for the "
            + (f"relation to {target}" if target else "difference")
            + " is the region's grey matter blended with what the latents say of it, which counts by at most half and by the "
            "share of the region that they predict: p_d is family-wise over regions. That latents carry the region is "
            "controlled by false discovery rate: p_a is a q-value, so of the regions called a few may differ without being "
            "carried."
        )
    if len(parts) > 1:
        lines.append(
            f"p is corrected for the regions by the maximum statistic and for the {len(parts)} contrasts by their number."
        )
    lines += [f"Not compared: {reason}." for reason in refused]
    for part in parts:
        lines += _of_part(part, config, several=several)
    if config.adjust_global and "head_size_factor" not in covariates:
        lines.append("No head size was found in the cohort, so only total grey matter was adjusted for.")
    if not config.site:
        lines.append(
            "No site column was named: differences between scanners can appear as differences between groups."
            if not target
            else f"No site column was named: differences between scanners can appear as effects of {target}."
        )
    return tuple(lines)


def _of_part(part: Answered, config: LrcpConfig, *, several: bool) -> list[str]:
    lines, table, of = [], part.table, f"{part.asked.label}: " if several else ""
    lent = table.loc[(table["p"] <= config.alpha) & (table["grade"] == "none"), "name"]
    if len(lent):
        lines.append(
            f"{of}Found and not called, because the region's own grey matter does not bear it out (p_own): "
            f"{', '.join(lent)}. Few latents describe many regions, so they can lend a region the effect of another."
        )
    alone = table.loc[(table["grade"] != "none") & (table["p_region"] > config.alpha), "name"]
    if len(alone):
        lines.append(
            f"{of}Called, although plain analysis of all regions would not have found them: {', '.join(alone)}; their own grey "
            "matter was tested among the regions that the latents found."
        )
    lines += [f"{of}Left out: {len(ids)} scans ({reason})." for reason, ids in part.asked.left_out.items()]
    if part.flat:
        lines.append(f"{of}Constant, or explained by the confounds, and so left out: {', '.join(part.flat)}.")
    return lines


def _mean(parts: list[Answered], column: str) -> float:
    return float(pd.concat([part.table[column] for part in parts]).mean())


def _who_was_seen(latents: xr.Dataset, n_models: int) -> str:
    scans, marks = latents["subject_in_training"].size, latents["subject_in_training"].values
    if n_models:
        return (
            f"Readouts, p-values and accuracies rest on {n_models} models, each judged on scans of subjects it has not seen; "
            "only numbers in units of the region are pooled over models. The profile of single latents is that of one model "
            f"fitted on {int(marks.sum())} of the {scans} scans."
        )
    return (
        f"The model was fitted on {int(marks.sum())} of the {scans} scans of the cohort, without their labels."
        + _narrower(latents["mean"].values, marks)
    )


def _narrower(z: np.ndarray, seen: np.ndarray) -> str:
    """A sentence when latents of unseen scans spread less than those the model was fitted on; empty otherwise."""
    if seen.sum() < 2 or (~seen).sum() < 2:
        return ""
    ratio = float(np.median(z[~seen].std(axis=0) / np.maximum(z[seen].std(axis=0), 1e-12)))
    if ratio > NARROW_RATIO:
        return ""
    return (
        f" Latents of the other scans spread less (median ratio of SD {ratio:.2f}): the model describes scans it was fitted "
        "on in more detail, which costs power and mixes two scales."
    )
