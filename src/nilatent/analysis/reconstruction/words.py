"""Reconstruction in words: how a model stands to its baselines, where it is worse, and what must not be concluded."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from nilatent.analysis import stats
from nilatent.analysis.reconstruction.measures import MAX_CANDIDATES, Measures
from nilatent.analysis.reconstruction.table import ratio
from nilatent.analysis.similarity import SCALE_WEIGHTS

# Differences in FVU below this are rounding: an anchored model that kept its start draws what PCA draws.
SAME_FVU = 5e-5
# A bootstrap over fewer subjects has an interval that is far too narrow.
MIN_SUBJECTS_JUDGED = 5
ALPHA = 0.05
N_PERMUTATIONS = 2000

Strata = Mapping[tuple[str, str], npt.NDArray[np.intp]]
Difference = tuple[float, float, float]


def verdict(difference: Difference) -> str:
    """How a model stands to a baseline, from the paired difference in error and its interval; below zero is better."""
    _, low, high = difference
    if max(abs(low), abs(high)) < SAME_FVU:
        return "the same as"
    return "better than" if high < 0 else "worse than" if low > 0 else "not distinguishable from"


def standing(
    measures: Measures, subjects: npt.NDArray[np.object_], rows: npt.NDArray[np.intp], baseline: str, *, seed: int
) -> tuple[Difference, Difference, float]:
    """FVU with its interval, its difference from a baseline's with the interval, and the baseline's, over some scans."""
    model, other, mean = (measures.of("mse", method)[rows] for method in ("model", baseline, "mean image"))
    found = stats.bootstrap_ratio(model, mean, subjects[rows], seed=seed)
    difference = stats.bootstrap_ratio(model - other, mean, subjects[rows], seed=seed)
    return found, difference, float(other.sum() / mean.sum())


def answer(
    measures: Measures,
    subjects: npt.NDArray[np.object_],
    strata: Strata,
    table: pd.DataFrame,
    *,
    n_latent: int,
    n_components: int,
    n_coarse: int,
    seed: int,
) -> str:
    """The first sentence is the verdict; then down-sampling, similarity, total grey matter, and where the model is worse.

    Parameters
    ----------
    measures : Measures
        Of every scan.
    subjects : ndarray
        (scan,) subject of every scan.
    strata : mapping
        (column, level) to the rows of held-out scans; ("", "all") holds all.
    table : DataFrame
        By stratum and method.
    n_latent, n_components, n_coarse : int
        Numbers that the model, PCA and down-sampling keep of a scan.
    seed : int
        Of the bootstrap.
    """
    held_out = strata["", "all"]
    (fvu, low, high), against_pca, pca_fvu = standing(measures, subjects, held_out, "pca", seed=seed)
    difference, from_, to = against_pca
    _, against_coarse, coarse_fvu = standing(measures, subjects, held_out, "down-sampling", seed=seed)
    held = table[(table["stratum"] == "all") & (table["part"] == "test")].set_index("method")
    ssim, multi_scale = held["ssim"], held["ms_ssim"]["model"]
    size = "PCA of equal size" if n_components == n_latent else "the largest PCA that the training scans allow"
    said = (
        f"On {len(held_out)} held-out scans of {len(set(subjects[held_out]))} subjects the model is "
        f"{verdict((fvu - 1, low - 1, high - 1))} the mean image (FVU {fvu:.3f} [{low:.3f}, {high:.3f}]) and "
        f"{verdict(against_pca)} {size} ({n_components} components, FVU {pca_fvu:.3f}; difference "
        f"{difference:+z.4f} [{from_:+z.4f}, {to:+z.4f}]){_cohorts(measures, subjects, strata, seed=seed)}. "
        f"It is {verdict(against_coarse)} down-sampling to as many values ({n_coarse} values, FVU {coarse_fvu:.3f}). "
        f"Structural similarity is {ssim['model']:.3f} for the model, {ssim['pca']:.3f} for PCA and "
        f"{ssim['mean image']:.3f} for the mean image; at several scales it is {multi_scale:.3f} for the model"
    )
    if "feature_distance" in held:
        feature = held["feature_distance"]
        said += (
            f"; the distance of deep features is {feature['model']:.2f} for the model and {feature['pca']:.2f} for PCA"
        )
    if "gm_error_percent" in held:
        total = held.loc["model"]
        said += (
            f"; total grey matter is off by {total['gm_error_percent']:.1f} % on average "
            f"(bias {total['gm_bias_ml']:+z.1f} ml, concordance {total['gm_ccc']:.2f})"
        )
    return f"{said}.{worse_levels(measures, subjects, strata, seed=seed)}"


def _cohorts(measures: Measures, subjects: npt.NDArray[np.object_], strata: Strata, *, seed: int) -> str:
    said, too_few = [], []
    for (column, level), rows in strata.items():
        if column != "dataset":
            continue
        if len(set(subjects[rows])) < MIN_SUBJECTS_JUDGED:
            too_few.append(f"{level} ({len(rows)})")
            continue
        (fvu, low, high), against_pca, _ = standing(measures, subjects, rows, "pca", seed=seed)
        to_mean, to_pca = verdict((fvu - 1, low - 1, high - 1)), verdict(against_pca)
        said.append(f"; in {level} ({len(rows)} scans, FVU {fvu:.3f}) {to_mean} the mean image and {to_pca} PCA")
    if too_few:
        said.append(f"; too few held-out scans to say in {', '.join(too_few)}")
    return "".join(said)


def worse_levels(measures: Measures, subjects: npt.NDArray[np.object_], strata: Strata, *, seed: int) -> str:
    """Sentences on the data sets, groups and sites of which the model keeps clearly less than of the other held-out scans.

    A level is clearly worse when the difference in FVU is larger than in 95 % of permutations of the subjects, over all
    levels of its column together (Bonferroni); both sides need five subjects. Two columns that part the scans alike are
    one.
    """
    held_out, said, seen = strata["", "all"], [], set()
    for column in dict.fromkeys(column for column, _ in strata if column):
        levels = {level: rows for (of, level), rows in strata.items() if of == column}
        partition = frozenset(tuple(rows) for rows in levels.values())
        judged = {
            level: rows
            for level, rows in levels.items()
            if min(len(set(subjects[rows])), len(set(subjects[np.setdiff1d(held_out, rows)]))) >= MIN_SUBJECTS_JUDGED
        }
        for level, rows in judged.items() if partition not in seen else ():
            here, elsewhere, p = _compared(measures, subjects, held_out, rows, seed=seed)
            if here[0] - elsewhere[0] > SAME_FVU and p * len(judged) <= ALPHA:
                said.append(
                    f" Of {column} {level} ({len(rows)} scans) the model keeps clearly less than of the others: FVU "
                    f"{here[0]:.3f} against {elsewhere[0]:.3f}; for PCA it is {here[1]:.3f} against {elsewhere[1]:.3f}."
                )
        seen.add(partition)
    return "".join(said)


def _compared(
    measures: Measures,
    subjects: npt.NDArray[np.object_],
    held_out: npt.NDArray[np.intp],
    rows: npt.NDArray[np.intp],
    *,
    seed: int,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], float]:
    """FVU of model and PCA in some scans, in the others, and the one-sided p-value of the model's difference."""
    here = np.isin(held_out, rows)
    # A subject's scans go together, those here and those elsewhere apart.
    names, units = np.unique(2 * pd.factorize(subjects[held_out])[0] + here, return_inverse=True)
    sums = np.zeros((len(names), 3))
    np.add.at(
        sums, units, np.stack([measures.of("mse", by)[held_out] for by in ("model", "pca", "mean image")], axis=1)
    )
    inside = (names % 2).astype(np.float64)

    def fvu(chosen: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        total = chosen @ sums
        return ratio(total[..., :2], total[..., 2:])

    drawn = inside[stats.permutations(len(names), N_PERMUTATIONS, seed=seed)]
    permuted = fvu(drawn)[:, 0] - fvu(1 - drawn)[:, 0]
    observed, elsewhere = fvu(inside), fvu(1 - inside)
    return observed, elsewhere, float(stats.max_p(observed[:1] - elsewhere[:1], permuted)[0])


def regions_sentence(data: xr.Dataset) -> str:
    """Which regions survive best and worst."""
    fvu = data["region_fvu"].sel(approach="model").dropna("region")
    if not fvu.sizes["region"]:
        return ""
    ordered = fvu.sortby(fvu)
    names, values = ordered["region"].values, ordered.values
    return f" Of {len(names)} regions {names[0]} is kept best (FVU {values[0]:.3f}) and {names[-1]} worst (FVU {values[-1]:.3f})."


def caveats(settings: Mapping[str, Any], *, n_held_out: int) -> list[str]:
    """How the measures and the baselines must be read."""
    n_components, n_latent, n_scales = (settings[name] for name in ("n_components_pca", "n_latent", "n_scales_ssim"))
    cells = " x ".join(str(side) for side in settings["cells_downsampling"])
    said = [
        "FVU is the squared error divided by that of the mean training image: 1 keeps nothing that differs, 0 everything.",
        "The mean squared error rewards blur; a low FVU is not a sharp image, and smoother maps give a lower FVU.",
        "On the whole volume every method is zero outside the mask and the scan is as it was packed. Background that is easy "
        "to get right raises SSIM and PSNR there, and what the mask cuts off lowers them: compare methods inside the mask.",
        f"Multi-scale SSIM uses {n_scales} of the five scales of Wang et al. (2003); the grid has no room for more."
        if n_scales < len(SCALE_WEIGHTS)
        else "Multi-scale SSIM uses the five scales of Wang et al. (2003).",
        "Cosine similarity is that of the deviations of scan and reconstruction from the mean training image, so the mean "
        "image itself has none.",
        f"Down-sampling keeps {settings['n_values_downsampling']} averages of a scan, on {cells} cells around the mask, and "
        "learns nothing: of a few values it makes a smooth blob, farther from a scan than the mean image is.",
    ]
    if settings["features"]:
        said.append(
            f"Deep features come from {settings['features']}. Their distance is divided by the mean distance of training "
            "scans from the mean training image: 1 is as far as a scan usually is from the mean image."
        )
    if n_components < n_latent:
        said.append(
            f"PCA has {n_components} components, not {n_latent}: there are {settings['n_train']} training scans."
        )
    if n_held_out > MAX_CANDIDATES:
        said.append(
            f"Best, median and worst are chosen among {MAX_CANDIDATES} of the {n_held_out} held-out scans, drawn by the seed."
        )
    return said
