"""What the error profile says in words: the answer and what must not be concluded from it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from nilatent.analysis.error_profile.classes import Groups
from nilatent.analysis.error_profile.gain import Gain
from nilatent.analysis.error_profile.scans import Chosen

MODEL_WORDS = {"ridge": "ridge regression", "trees": "boosted trees"}


def answer(gains: Sequence[Gain], gate: np.ndarray, table: pd.DataFrame, facts: Mapping[str, Any]) -> str:
    """One or two sentences with numbers.

    Parameters
    ----------
    gains : Sequence[Gain]
        Of each model.
    gate : ndarray
        (model,) p-values adjusted for the number of models.
    table : DataFrame
        Regions by rank; empty when the gate is closed.
    facts : Mapping
        Attributes of the finding's data: ``deciding`` model (empty when the gate is closed), ``alpha``, stability.
    """
    of_models = "; ".join(
        f"{MODEL_WORDS[gain.model]} {100 * gain.gain:+.1f} % (p = {p:.2g})" for gain, p in zip(gains, gate, strict=True)
    )
    known = f"the null model explains {100 * gains[0].r2_null:.1f} % of the log error out of fold"
    if not facts["deciding"]:
        return (
            f"Beyond the null model, regional grey matter does not tell which scans are hard to reconstruct: {known}, and "
            f"the regions add {of_models}. No p is at most {facts['alpha']:g}, so no region is named and no SHAP picture drawn."
        )
    shown = "; ".join(
        f"{row['name']} ({row['direction']}, {100 * row['mean_abs_phi']:.1f} % of the error)"
        for _, row in table.head(5).iterrows()
    )
    return (
        f"Beyond the null model, regional grey matter tells which scans are hard to reconstruct: {known}, and the regions "
        f"add {of_models}. By {MODEL_WORDS[facts['deciding']]}, most is contributed by {shown}; the order of regions agrees "
        f"between folds with Kendall's W = {facts['w_folds']:.2f} ({facts['w_folds_shuffled']:.2f} with shuffled errors)."
    )


def caveats(
    chosen: Chosen,
    facts: Mapping[str, Any],
    groups: Groups,
    *,
    badges: Mapping[str, str],
    site: str,
    flat: Sequence[str],
) -> tuple[str, ...]:
    """What the reader must not conclude, and which fallback was taken."""
    lines = [
        "SHAP explains the model that predicts the error, not the brain, and not why the autoencoder errs: a region can "
        "stand for another that is correlated with it (see its cluster).",
        "The error is mechanically tied to how much grey matter a scan holds. The evidence is therefore only what regions "
        f"add to the null model: {', '.join(chosen.null_model)}.",
        "p: residuals of the null model are shuffled within each cross-fitted model"
        + (" and site" if site else "")
        + " (Freedman-Lane), and the whole nested cross-validation is repeated for each shuffle; adjusted for the "
        "number of models (Holm).",
    ]
    if facts["deciding"]:
        worst = "; ".join(f"{MODEL_WORDS[model]} {badge}" for model, badge in badges.items())
        lines += [
            f"Worst case by statistical agnostic regression, which decides nothing: {worst}.",
            "Contributions are in log error: 0.05 is about 5 % of the error. Their order is not tested; only the gain and "
            "the class differences are.",
            "Folds share most of their training scans, so they agree to some degree about nothing at all; only a Kendall's W "
            "well above that of shuffled errors speaks for the order of regions.",
        ]
        if not groups.names:
            lines.append("There are no two groups of enough scans, so contributions are not compared between classes.")
        elif not groups.compared:
            lines.append(
                "The null model tells the groups apart without error, so their contributions cannot be compared."
            )
        if groups.small:
            lines.append(f"Too small to be compared, and used in the pooled model only: {', '.join(groups.small)}.")
    if chosen.notes:
        lines.append(f"Not in the null model: {'; '.join(chosen.notes)}.")
    if not site:
        lines.append("No site column was named: differences between scanners can appear as regional errors.")
    lines += [f"Left out: {len(ids)} scans ({reason})." for reason, ids in chosen.left_out.items()]
    if flat:
        lines.append(f"Constant, or explained by the null model, and so left out: {', '.join(flat)}.")
    return tuple(lines)
