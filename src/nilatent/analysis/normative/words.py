"""What the normative model says in words: the answer, and what the reader must not conclude."""

import numpy as np
import pandas as pd
import xarray as xr

from nilatent.analysis.normative.scans import EVERYBODY, Asked, NormativeConfig
from nilatent.analysis.normative.table import ALONE, EXTRAPOLATED, EXTREME, MIN_CASES, Scores

N_NAMED = 5
# Reference subjects under which the reader is told what so few can say.
SMALL_REFERENCE = 50
# Bounds on the SD of z of held-out reference scans outside which the reader is told.
SD_BOUNDS = (0.9, 1.1)


def answer(table: pd.DataFrame, data: xr.Dataset, asked: Asked, config: NormativeConfig) -> str:
    """Two or three sentences with numbers."""
    known = table[table["p"].notna()]
    others, reference = known[~known["reference"] & (known["group"] != "")], known[known["reference"]]
    expected = _expected(config)
    level = f"false discovery rate {config.alpha:g}"
    if asked.label == EVERYBODY:
        found = reference[reference["deviates"]]
        first = f"{len(found)} of {len(reference)} scans deviate from what all others let expect{expected} ({level})"
        return f"{first}{_named(found)}. {_calibrated(data)}"
    found = others[others["deviates"]]
    first = (
        f"{len(found)} of {len(others)} scans that are not {asked.label} deviate from what {int(asked.fitted.sum())} "
        f"{asked.label} let expect{expected} ({level}){_named(found)}; of the {len(reference)} {asked.label}, each judged by "
        f"the others, {int(reference['deviates'].sum())} do."
    )
    return " ".join([first, *_areas(data, asked), _calibrated(data)])


def _expected(config: NormativeConfig) -> str:
    names = [*config.covariates, *([config.site] if config.site else [])]
    return f" of their {', '.join(names)}" if names else ""


def _named(found: pd.DataFrame) -> str:
    if found.empty:
        return ""
    shown = [
        f"{row['scan_id']} ({row['region']}, z = {row['region_z']:.1f})" for _, row in found.head(N_NAMED).iterrows()
    ]
    more = f" and {len(found) - N_NAMED} more" if len(found) > N_NAMED else ""
    return f": {', '.join(shown)}{more}"


def _areas(data: xr.Dataset, asked: Asked) -> list[str]:
    """One sentence per case group: areas of what there is, beside each other."""
    if "auc" not in data:
        return [f"No other group has {MIN_CASES} subjects, so none is compared with the reference."]
    lines = []
    for group in data["case_group"].values:
        one = data.sel(case_group=group)
        parts = [
            f"{measure} {float(one['auc'].sel(measure=measure)):.2f} "
            f"({float(one['auc_low'].sel(measure=measure)):.2f} to {float(one['auc_high'].sel(measure=measure)):.2f})"
            for measure in one["measure"].values
            if np.isfinite(one["auc"].sel(measure=measure))
        ]
        lines.append(f"Area under the curve of {group} against held-out {asked.label}: {', '.join(parts)}.")
    return lines


def _calibrated(data: xr.Dataset) -> str:
    sd, beyond = float(data["reference_sd"].sel(kind="regions")), float(data["reference_extreme"].sel(kind="regions"))
    return (
        f"Regional z of held-out reference scans have an SD of {sd:.2f} (1 is calibrated), and {beyond:.1%} of them lie beyond "
        f"{EXTREME} (5% is expected)."
    )


def caveats(
    table: pd.DataFrame,
    data: xr.Dataset,
    scores: Scores,
    asked: Asked,
    scans: pd.DataFrame,
    config: NormativeConfig,
) -> tuple[str, ...]:
    """What the reader must not conclude, and which scans are not in it."""
    lines = [
        "A deviation is a distance from these reference subjects, no diagnosis: an artefact, another scanner, a large head or a "
        "variant of health deviates too. And no deviation is no proof of health.",
        "Every scan, reference scans included, is judged by a model that was not fitted on its subject. z is that of a "
        "prediction, so the uncertainty of the reference is in it. Maps of z are not corrected for the number of voxels.",
        f"Age acted along a curve in {scores.curved:.0%} of the regional models and changed the spread in {scores.uneven:.0%}; "
        "either was chosen on reference scans of the other folds, where it predicted left-out ones better by two standard "
        "errors.",
        "p_latents takes the logarithm of the distances of held-out reference scans as normal; p_rank, beside it, is their rank "
        f"and cannot be below {1 / (1 + asked.fitted.sum()):.2g}. p_regions and p_error are family-wise over regions: the larger "
        "of Bonferroni and of what the largest |z| of held-out reference scans let expect. p is the smallest of the three times "
        "their number.",
    ]
    lines += _on_reference(data, asked, config)
    lines += _on_latents(table)
    lines += [f"Left out: {len(ids)} scans ({reason})." for reason, ids in asked.left_out.items()]
    extrapolated = int((table["note"] == EXTRAPOLATED).sum())
    if extrapolated:
        lines.append(
            f"{extrapolated} scans are of subjects younger or older than all of the reference: what is expected of them is "
            "extrapolated, and errs in the same direction for all of them."
        )
    apart = int((table["note"] == ALONE).sum())
    if apart:
        lines.append(
            f"Not judged: {apart} scans of a site or other level without a reference scan in another fold. Nothing "
            "is said of them rather than something wide."
        )
    if not config.site:
        lines.append(
            "No site column was named: a scan of another scanner than the reference can deviate because of it."
        )
    if "head_size_factor" in scans and "head_size_factor" not in config.covariates:
        lines.append("Head size is no covariate: a large or small head deviates in most regions.")
    return tuple(lines)


def _on_reference(data: xr.Dataset, asked: Asked, config: NormativeConfig) -> list[str]:
    lines, n_reference = [], int(asked.fitted.sum())
    if asked.label == EVERYBODY:
        lines.append(
            f"No group of column '{config.group}' is the reference, so all scans are: what many of them have in common does not "
            "stand out. Name one as normative.reference."
        )
    if n_reference < SMALL_REFERENCE:
        lines.append(
            f"The reference has {n_reference} subjects. z-scores stay standard normal, but what is expected is known to "
            f"{1 / np.sqrt(n_reference):.2f} SD at best, so moderate deviations are missed; a curve of age or an uneven spread "
            "can hardly be seen, and ranges of age with few reference subjects are extrapolated."
        )
    for kind in data["kind"].values:
        sd = float(data["reference_sd"].sel(kind=kind))
        if not SD_BOUNDS[0] <= sd <= SD_BOUNDS[1]:
            why = (
                " The model was fitted on the reference scans that say what is expected and not on the ones judged, whose "
                "latents or errors can lie elsewhere."
                if kind != "regions"
                else ""
            )
            lines.append(
                f"z of the {kind} of held-out reference scans have an SD of {sd:.2f} instead of 1: do not take single ones at "
                f"face value.{why}"
            )
    return lines


def _on_latents(table: pd.DataFrame) -> list[str]:
    if table["mahalanobis"].isna().all():
        return ["Latents were not judged: none were given, or no model has scans whose subjects it has not seen."]
    if table["p_latents"].isna().all():
        return ["Latent deviations have no p: fewer than ten reference scans are new to the model that judges them."]
    return []
