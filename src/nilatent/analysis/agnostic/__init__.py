"""Agnostic validation: which results would hold in the worst case, whatever the distribution of the data.

A rule fitted on few scans can look better than it is. Here every rule is judged on held-out scans, and a margin is added for
all that its kind could have fitted (:mod:`nilatent.analysis.bounds`). What is still better than guessing earns the badge
"bound-validated"; everything else is "inconclusive", which is no evidence against an effect.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from nilatent.analysis.agnostic import words as words
from nilatent.analysis.agnostic.rows import AgnosticConfig, judge, question_rows
from nilatent.analysis.agnostic.words import LATENTS, OWN, REGIONS, SAM
from nilatent.analysis.bounds import badge, badges, upper_bound
from nilatent.analysis.contrast import (
    Comparison,
    Gradient,
    NotComparableError,
    compare_groups,
    compare_target,
    contrasts_of,
)
from nilatent.analysis.crossfit import cross_fit
from nilatent.analysis.held_out import certify_calls, cubv
from nilatent.analysis.sar import certify_predictions, sar
from nilatent.atlas import RegionWeights, region_map
from nilatent.errors import CohortError
from nilatent.finding import Finding, not_run
from nilatent.latents import check_latents
from nilatent.volumes import Grid

__all__ = [
    "AgnosticConfig",
    "agnostic",
    "badge",
    "badges",
    "certify_calls",
    "certify_predictions",
    "cubv",
    "sar",
    "upper_bound",
]

NAME = "agnostic"
QUESTION = (
    "Would what the latents and the regions say about the groups hold in the worst case, whatever the data are like?"
)
COLUMNS = (
    "test", "target", "features", "name", "error", "delta", "bound", "threshold", "p", "badge", "limit", "d", "method",
    "n_eff", "sam_z", "label",
)  # fmt: skip


def agnostic(
    latents: xr.Dataset,
    regions: pd.DataFrame,
    scans: pd.DataFrame,
    weights: RegionWeights,
    grid: Grid,
    mask: npt.NDArray[np.bool_],
    config: AgnosticConfig,
    *,
    folds: Sequence[xr.Dataset] = (),
) -> Finding:
    """Certificates of the group contrast, of continuous targets, and of every region.

    Parameters
    ----------
    latents : Dataset
        Latents with the schema of :mod:`nilatent.latents`.
    regions : DataFrame
        Index scan_id, one column per region in the order of `weights`: mean grey matter.
    scans : DataFrame
        Index scan_id; ``subject_id`` and the columns named in `config`; ``head_size_factor`` is used when present.
    weights : RegionWeights
        The atlas on the grid.
    grid, mask : Grid, ndarray
        Grid and (x, y, z) mask of the volumes.
    config : AgnosticConfig
        Settings.
    folds : Sequence of Dataset
        Latents of all scans by each cross-fitted model; every scan is then judged by the model that has not seen its
        subject. None for `latents` throughout.

    Returns
    -------
    Finding
        One row per certificate: CUBV of the contrast, SAR of each target, SAM of each region; the map of SAM. Or "not run".

    Raises
    ------
    CohortError
        When latents, regions and scans do not hold the same scans, or the folds are not cross-fitted.
    SettingError
        When a setting names what does not exist.
    """
    features = _joined(latents, regions, scans, weights)
    crossed = cross_fit(folds, scans.index) if len(folds) else None
    covariates = [*config.covariates, *_global_columns(scans, config)]
    table = scans.assign(total_gm=features[REGIONS] @ weights.n_voxels)
    asked, skipped = _questions(table, covariates, config)
    if latents.attrs.get("supervised") and crossed is None:
        del features[LATENTS]
        skipped["the latents"] = (
            f"labels ('{latents.attrs['supervised']}') shaped them on training scans, which would be resubstitution"
        )
    if not asked:
        return not_run(NAME, QUESTION, "; ".join(f"{what}: {why}" for what, why in skipped.items()))
    judged = [judge(one, features, crossed, config) for one in asked]
    rows = [made for one in judged for made in question_rows(one, weights, config)]
    if not rows:
        return not_run(NAME, QUESTION, "neither latents nor regions vary between scans once confounds are removed")
    found = pd.concat(rows, ignore_index=True)[list(COLUMNS)]
    names = {LATENTS: latents["latent"].values, REGIONS: np.asarray(weights.names)}
    flat = {str(name) for one in judged for what, kept in one.kept.items() for name in names[what][~kept]}
    left_out = {f"{one.label}: {reason}": ids for one in asked for reason, ids in one.left_out.items()}
    n_scans = len({row for one in asked for row in one.rows})
    return Finding(
        name=NAME,
        question=QUESTION,
        answer=words.answer(found),
        table=found,
        data=xr.Dataset(),
        settings=asdict(config)
        | {"confounds": covariates, "left_out": left_out, "not_asked": skipped}
        | {"n_models": len(folds)},
        caveats=words.caveats(
            latents,
            found,
            covariates,
            asdict(config) | {"n_models": len(folds)},
            skipped=skipped,
            left_out=left_out,
            flat=sorted(flat),
        ),
        n_scans=n_scans,
        n_subjects=n_scans,
        maps=_maps(found, weights, grid, mask),
    )


def _joined(
    latents: xr.Dataset, regions: pd.DataFrame, scans: pd.DataFrame, weights: RegionWeights
) -> dict[str, np.ndarray]:
    check_latents(latents)
    if list(regions.columns) != list(weights.names):
        raise CohortError("The columns of the regions are not the regions of the atlas. Compute the regions again.")
    for what, index in (("latents", pd.Index(latents["scan"].values)), ("regions", regions.index)):
        apart = scans.index.symmetric_difference(index)
        if len(apart):
            raise CohortError(
                f"The {what} and the cohort do not hold the same scans: {apart[0]} ({len(apart)} in all) is in one only. "
                "Encode and measure the same cohort."
            )
    z = latents["mean"].sel(scan=scans.index.to_numpy()).values.reshape(len(scans), -1).astype(np.float64)
    return {LATENTS: z, REGIONS: regions.loc[scans.index].to_numpy(dtype=np.float64)}


def _global_columns(scans: pd.DataFrame, config: AgnosticConfig) -> list[str]:
    if not config.adjust_global:
        return []
    known = "head_size_factor" in scans and bool(scans["head_size_factor"].notna().any())
    return ["total_gm", "head_size_factor"] if known else ["total_gm"]


def _questions(
    scans: pd.DataFrame, covariates: list[str], config: AgnosticConfig
) -> tuple[list[Comparison | Gradient], dict[str, str]]:
    """The contrasts and targets that the cohort can answer, and why it cannot answer the others."""
    asked: list[Comparison | Gradient] = []
    skipped: dict[str, str] = {}
    try:
        contrasts = contrasts_of(scans, group=config.group, contrast=config.contrast)
    except NotComparableError as error:
        contrasts, skipped["the groups"] = [], str(error)
    for contrast in contrasts:
        try:
            asked.append(
                compare_groups(scans, group=config.group, contrast=contrast, covariates=covariates, site=config.site)
            )
        except NotComparableError as error:
            skipped[contrast] = str(error)
    known = ("age",) if "age" in scans and scans["age"].notna().any() else ()
    for target in config.targets or known:
        others = [name for name in covariates if name != target]
        try:
            asked.append(compare_target(scans, target=target, covariates=others, site=config.site))
        except NotComparableError as error:
            skipped[target] = str(error)
    return asked, skipped


def _maps(
    found: pd.DataFrame, weights: RegionWeights, grid: Grid, mask: npt.NDArray[np.bool_]
) -> dict[str, nib.Nifti1Image]:
    """Accuracy and worst-case accuracy of the regions' own grey matter; of several contrasts, the first has the plain name."""
    maps = {}
    own = found[(found["test"] == SAM) & (found["features"] == OWN)]
    for number, (label, table) in enumerate(own.groupby("target", sort=False)):
        by_label = table.set_index("label").reindex(weights.labels)
        ending = "" if number == 0 else "_" + re.sub(r"\W+", "-", str(label))
        for name, values in {"accuracy": 1 - by_label["error"], "worst_case_accuracy": 1 - by_label["bound"]}.items():
            maps[name + ending] = region_map(weights, values.clip(lower=0).fillna(0).to_numpy(), grid, mask)
    return maps
