"""LRCP, latent-regional correlation profiling: which regions the latents carry, and whether that tells groups apart.

A region is called when two things hold at once: the latents are associated with its grey matter (*association*), and what
they carry of it separates the groups, or follows a number (*discriminability*), family-wise over regions and contrasts; and
when its own grey matter bears that out. Its p-value is the larger of the two. The default reading blends the region with
what the latents say of it, and holds the association at a false discovery rate. The published abstract joins these two
ingredients; the equations are ours: "LRCP as implemented here". The array core is :mod:`nilatent.analysis.lrcp.profile`.

References
----------
arXiv:2509.03675. Freedman & Lane 1983, doi:10.1080/07350015.1983.10509354. Nichols et al. 2005 (conjunction),
doi:10.1016/j.neuroimage.2004.12.005.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from nilatent.analysis import stats
from nilatent.analysis.contrast import (
    Comparison,
    Gradient,
    NotComparableError,
    compare_groups,
    compare_target,
    confound_matrix,
    contrasts_of,
)
from nilatent.analysis.crossfit import CrossFit, cross_fit
from nilatent.analysis.lrcp.profile import LrcpConfig, Profile, profile, ranking_score
from nilatent.analysis.lrcp.table import COLUMNS, Answered, arrays, over_contrasts, region_table, stacked
from nilatent.analysis.lrcp.words import answer, caveats
from nilatent.atlas import RegionWeights, region_map
from nilatent.errors import CohortError
from nilatent.finding import Finding, not_run
from nilatent.latents import check_latents
from nilatent.volumes import Grid

__all__ = ["COLUMNS", "NAME", "QUESTION", "LrcpConfig", "Profile", "lrcp", "profile", "ranking_score"]

NAME = "lrcp"
QUESTION = "In which brain regions does the latent description carry grey matter that differs between the groups?"


def lrcp(
    latents: xr.Dataset,
    regions: pd.DataFrame,
    scans: pd.DataFrame,
    weights: RegionWeights,
    grid: Grid,
    mask: npt.NDArray[np.bool_],
    config: LrcpConfig,
    *,
    folds: Sequence[xr.Dataset] = (),
    label: str = "",
) -> Finding:
    """Latent-regional correlation profile of a cohort.

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
    config : LrcpConfig
        Settings.
    folds : Sequence of Dataset
        Latents of all scans by each cross-fitted model; every scan is then judged by the model that has not seen its
        subject, and `latents` serves the profile of single latents alone. None for `latents` throughout.
    label : str
        What to call this work when its progress is shown; empty shows none.

    Returns
    -------
    Finding
        Table of regions by rank, profile matrices, maps; or "not run" with the reason.

    Raises
    ------
    CohortError
        When latents, regions and scans do not hold the same scans, or the folds are not cross-fitted.
    SettingError
        When a setting names what does not exist.
    """
    z, x = _joined(latents, regions, scans, weights)
    crossed = cross_fit(folds, scans.index) if len(folds) else None
    global_columns = ["total_gm"] if config.adjust_global else []
    if config.adjust_global and "head_size_factor" in scans and scans["head_size_factor"].notna().any():
        global_columns.append("head_size_factor")
    covariates = [*config.covariates, *global_columns]
    asked, refused = _questions(scans.assign(total_gm=x @ weights.n_voxels), covariates, config)
    parts: list[Answered] = []
    for comparison in asked:
        try:
            part = _answered(
                z, x, scans, comparison, config, weights=weights, latent=latents["latent"].values,
                crossed=crossed, n_contrasts=len(asked), label=label,
            )  # fmt: skip
        except NotComparableError as error:
            refused.append(f"{comparison.label}, {error}" if len(asked) > 1 else str(error))
        else:
            parts.append(part)
    if not parts:
        return not_run(NAME, _question(config), "; ".join(refused))
    table, data = stacked(parts)
    rows = np.unique(np.concatenate([part.asked.rows for part in parts]))
    left_out = {part.asked.label: part.asked.left_out for part in parts}
    return Finding(
        name=NAME,
        question=_question(config),
        answer=answer(parts, config),
        table=table,
        data=data,
        settings=asdict(config)
        | {
            "contrast": "" if config.target else ",".join(part.asked.label for part in parts),
            "confounds": covariates,
            "left_out": left_out if len(parts) > 1 else parts[0].asked.left_out,
            "n_models": len(folds),
        },
        caveats=caveats(latents, parts, config, covariates=covariates, refused=refused, n_models=len(folds)),
        n_scans=len(rows),
        n_subjects=scans["subject_id"].iloc[rows].nunique(),
        maps=_maps(parts, weights, grid, mask),
    )


def _question(config: LrcpConfig) -> str:
    if not config.target:
        return QUESTION
    return f"In which brain regions does the latent description carry grey matter that follows {config.target}?"


def _questions(
    scans: pd.DataFrame, covariates: list[str], config: LrcpConfig
) -> tuple[list[Comparison | Gradient], list[str]]:
    """What can be asked of the cohort, and why the rest cannot."""
    asked: list[Comparison | Gradient] = []
    refused: list[str] = []
    if config.target:
        try:
            asked.append(compare_target(scans, target=config.target, covariates=covariates, site=config.site))
        except NotComparableError as error:
            refused.append(str(error))
        return asked, refused
    try:
        contrasts = contrasts_of(scans, group=config.group, contrast=config.contrast)
    except NotComparableError as error:
        return [], [str(error)]
    for contrast in contrasts:
        try:
            asked.append(
                compare_groups(scans, group=config.group, contrast=contrast, covariates=covariates, site=config.site)
            )
        except NotComparableError as error:
            refused.append(f"{contrast}, {error}" if len(contrasts) > 1 else str(error))
    return asked, refused


def _answered(
    z: np.ndarray,
    x: np.ndarray,
    scans: pd.DataFrame,
    asked: Comparison | Gradient,
    config: LrcpConfig,
    *,
    weights: RegionWeights,
    latent: np.ndarray,
    crossed: CrossFit | None,
    n_contrasts: int,
    label: str,
) -> Answered:
    chosen, z, x = scans.iloc[asked.rows], z[asked.rows], x[asked.rows]
    target = asked.is_case if isinstance(asked, Comparison) else asked.values
    with_target = np.column_stack([asked.confounds, target])
    of_models = None if crossed is None else crossed.rows(asked.rows)
    if of_models is not None:
        _check_folds(of_models, asked, with_target)
        with_target = np.column_stack([with_target, of_models.dummies])
    kept_z, kept_x = stats.varying(z, with_target), stats.varying(x, with_target)
    if not kept_z.any() or not kept_x.any():
        raise NotComparableError("no latent or no region varies between scans once confounds are removed")
    sites = [config.site] if config.site else []
    plain = confound_matrix(chosen, [*config.covariates, *sites], levels=sites)
    found = profile(
        z[:, kept_z], x[:, kept_x], asked, config,
        unadjusted=plain, crossed=of_models, n_contrasts=n_contrasts, label=label,
    )  # fmt: skip
    found = over_contrasts(found, n_contrasts)
    names, labels = np.asarray(weights.names)[kept_x], weights.labels[kept_x]
    return Answered(
        asked=asked,
        table=region_table(found, x[:, kept_x], asked, config, names=names, labels=labels, crossed=crossed is not None),
        data=arrays(found, asked, chosen.index, names=names, latent=latent[kept_z]),
        flat=(*np.asarray(weights.names)[~kept_x], *latent[~kept_z]),
    )


def _check_folds(crossed: CrossFit, asked: Comparison | Gradient, with_target: np.ndarray) -> None:
    """Refuse folds that cannot be judged: too few, one without variation, or groups that equal folds."""
    if len(crossed.latents) < 2:
        raise NotComparableError("all scans compared are new to one and the same cross-fitted model")
    confounds = np.column_stack([asked.confounds, crossed.dummies])
    if not stats.varying(with_target[:, -1], confounds)[0]:
        raise NotComparableError("the cross-fitted models tell what is asked about without error; draw folds across it")
    for number, latents in enumerate(crossed.latents):
        seen = crossed.folds != number
        if isinstance(asked, Comparison) and len(np.unique(asked.is_case[seen])) < 2:
            raise NotComparableError(f"cross-fitted model {number} has seen one of the two groups only")
        if seen.sum() < 2 or not stats.varying(latents[seen]).any():
            raise NotComparableError(f"no latent of cross-fitted model {number} varies between the scans it has seen")


def _maps(
    parts: list[Answered], weights: RegionWeights, grid: Grid, mask: npt.NDArray[np.bool_]
) -> dict[str, nib.Nifti1Image]:
    """Maps by name; of several contrasts one each, and under the plain name the largest of them."""
    of_each = [_values(part.table, weights) for part in parts]
    found = pd.concat(of_each).groupby(level=0).max().reindex(weights.labels)
    images = {str(name): region_map(weights, found[name].fillna(0).to_numpy(), grid, mask) for name in found}
    if len(parts) > 1:
        for part, values in zip(parts, of_each, strict=True):
            stem = re.sub(r"[^A-Za-z0-9]+", "-", part.asked.label).strip("-")
            images |= {
                f"{name}_{stem}": region_map(weights, values[name].fillna(0).to_numpy(), grid, mask) for name in values
            }
    return images


def _values(table: pd.DataFrame, weights: RegionWeights) -> pd.DataFrame:
    by_label = table.set_index("label").reindex(weights.labels)
    return pd.DataFrame({"a": by_label["a"], "minus_log10_p": -np.log10(by_label["p"]), "score": by_label["score"]})


def _joined(
    latents: xr.Dataset, regions: pd.DataFrame, scans: pd.DataFrame, weights: RegionWeights
) -> tuple[np.ndarray, np.ndarray]:
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
    return z, regions.loc[scans.index].to_numpy(dtype=np.float64)
