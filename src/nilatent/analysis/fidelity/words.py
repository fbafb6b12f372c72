"""What fidelity says in words: the answer, and what the reader must not conclude."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from nilatent.analysis import utility as use
from nilatent.analysis.copies import MIN_SUBJECTS
from nilatent.analysis.fidelity.table import FEATURES, HALVES
from nilatent.analysis.latent_space import LatentSpace

# Standard errors beyond which one discrepancy is called smaller than another.
CLEAR = 1.96
SMALL = 30
Q = 0.05


def answer(
    table: pd.DataFrame,
    gains: Mapping[str, float],
    data: xr.Dataset,
    verdict: Mapping[str, Any],
    useful: pd.DataFrame,
    reason: str,
) -> str:
    """Likeness, copies and usefulness, each in a sentence or two."""
    return " ".join([_likeness(table, gains, data), _copies(verdict), _usefulness(useful, reason)])


def _likeness(table: pd.DataFrame, gains: Mapping[str, float], data: xr.Dataset) -> str:
    parts = []
    for kind, words in FEATURES.items():
        one = table[table["features"] == words].set_index("comparison").to_dict("index")
        gain = gains[kind]
        how = "nearer to" if gain < -CLEAR else "farther from" if gain > CLEAR else "no nearer to"
        parts.append(
            f"by {words} {how} unseen brains than those of PCA of equal size (MMD² {one['samples']['mmd2']:.3f}, p = "
            f"{one['samples']['mmd2_p']:.2g}; PCA {one['samples of PCA']['mmd2']:.3f}; reconstructions "
            f"{one['reconstructions']['mmd2']:.3f}; 95 % of random halves of unseen scans below "
            f"{one[HALVES]['mmd2_high']:.3f})"
        )
    regions = table[table["features"] == FEATURES["regions"]].set_index("comparison").to_dict("index")
    n_apart = int((data["region_q"] <= Q).sum())
    return (
        f"Brains drawn from the latent space lie {', and '.join(parts)}. Beside unseen scans, "
        f"their voxels have {regions['samples']['spread']:.2f} of the variance and their regional means "
        f"{float(np.median(data['region_ratio'])):.2f} of the SD (median), {n_apart} of {data.sizes['region']} regions are "
        f"distributed otherwise (q <= {Q:g}), and a classifier tells them apart with an area of "
        f"{regions['samples']['auc']:.2f}."
    )


def _copies(verdict: Mapping[str, Any]) -> str:
    if not verdict:
        return f"Whether they are copies was not judged: fewer than {MIN_SUBJECTS} training subjects."
    flagged = f"{verdict['flagged']:.1%} of them are flagged as copies of training scans"
    if verdict["copies"]:
        words = f"They are copies: {flagged}, more than a sound model would have."
    else:
        words = f"They are no copies: {flagged}, which is what a sound model has too."
    if verdict["learnt_by_heart"]:
        words += (
            " The decoder has learnt training scans by heart: it draws them for "
            f"{verdict['unseen_flagged']:.0%} of the scans that it has never seen."
        )
    return words


def _usefulness(useful: pd.DataFrame, reason: str) -> str:
    if reason:
        return f"Usefulness was not judged: {reason.rstrip('.')}."
    by = useful.set_index("trained_on").to_dict("index")
    synthetic, both = by[use.SYNTHETIC], by[use.BOTH]
    return (
        f"On unseen real scans a classifier that learnt from synthetic scans alone reaches an area of "
        f"{synthetic['auc']:.2f}, from as many real ones {by[use.REAL]['auc']:.2f} (difference {synthetic['auc_gain']:+.2f}, "
        f"{synthetic['auc_gain_low']:+.2f} to {synthetic['auc_gain_high']:+.2f}), from both {both['auc']:.2f} "
        f"({both['auc_gain']:+.2f}, {both['auc_gain_low']:+.2f} to {both['auc_gain_high']:+.2f}), and from synthetic scans of "
        f"PCA {by[use.PCA]['auc']:.2f}."
    )


def caveats(
    table: pd.DataFrame, settings: Mapping[str, Any], spaces: Sequence[LatentSpace], useful: pd.DataFrame
) -> tuple[str, ...]:
    """What the reader must not conclude."""
    n_real = int(table["n_real"].min())
    lines = [
        "A decoder draws what it expects on average, without the noise of a scanner and without what it could not learn: images "
        "are smoother than scans, and vary less. Deep features see this more than regional means do.",
        "MMD² (Gaussian kernel, median distance of training scans) and KID (polynomial of degree 3) are unbiased and 0 for one "
        "distribution at any size; a p above 0.05 does not prove that images and scans are alike, it can mean too few scans. "
        "Two halves have half the scans each, so chance moves them more than the other comparisons. Coverage and density are "
        "those of balls around unseen scans: smooth images near the average fall into many of them, which looks like density "
        "above 1.",
        f"Each latent space draws {settings['n_samples']} images, which are compared with the unseen scans of the same "
        f"space, one per subject; over {settings['n_models']} spaces, values are averaged by unseen subjects, and permutations "
        "stay within a space and, of reconstructions, within a subject.",
        f"Density of the latents: {settings['density']}{', of the last space' if len(spaces) > 1 else ''}. "
        f"Deep features: {settings['features']}.",
        "Copies are told by how near the nearest training subject is beside the next ones, in comparison with what training "
        f"subjects are to each other; of images that are no copies about {settings['alpha']:.0%} are flagged. The check sees "
        "whole images: a copy of a part of a brain passes, and no verdict of copying is no guarantee of privacy.",
    ]
    if "membership" in settings:
        lines.append(
            f"The distance to the nearest sample tells training from unseen scans with an area of {settings['membership']:.2f} "
            f"(samples of PCA: {settings['membership_pca']:.2f}; 0.5 tells nothing). The reconstruction of an unseen scan lies "
            f"nearer to some training scan than to the scan itself in {settings['elsewhere']:.0%} of them (PCA: "
            f"{settings['elsewhere_pca']:.0%}); smooth images do without any copying."
        )
    most = settings["max_compared"]
    if any(_subjects(space, part) > most for space in spaces for part in (space.unseen, space.training)):
        lines.append(
            f"Of more than {most:,} unseen or training subjects of a space, {most:,} spread over all are compared. Copies are "
            "looked for among all training scans; what is normal between them was learnt from as many subjects."
        )
    if n_real < SMALL:
        lines.append(f"{n_real} unseen subjects: only large differences can be seen.")
    if any(space.values.shape[1] > len(space.names) for space in spaces):
        lines.append(
            f"The latents lie on a grid. Samples move along {len(spaces[0].names)} of its components and keep the rest of the "
            "average scan; reconstructions use all of it, PCA as many components as samples do."
        )
    if not any(space.has_prior for space in spaces):
        lines.append("The model has no prior, so there are no samples of it.")
    if len(useful):
        lines.append(
            "Synthetic scans got their labels from a density conditioned on the group, and as many were drawn as there are real "
            "training scans. Nothing was done about confounds: a group that differs in age or site is told apart by these too."
        )
    return tuple(lines)


def _subjects(space: LatentSpace, chosen: np.ndarray) -> int:
    return len(np.unique(space.subjects[chosen]))
