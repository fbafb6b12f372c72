"""Normative deviation: how far each scan lies from what reference subjects of its age, sex and site let expect.

A model of regions, of their error of reconstruction and of latents is fitted on reference scans; every scan, reference ones
included, is judged by one that was not fitted on its subject. The array cores are
:mod:`nilatent.analysis.normative.reference` and :mod:`nilatent.analysis.normative.latent`.

References
----------
Marquand et al. 2016, doi:10.1016/j.biopsych.2015.12.023. Rutherford et al. 2022, doi:10.1038/s41596-022-00696-5.
"""

from collections.abc import Sequence
from dataclasses import asdict

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from nilatent.analysis.contrast import NotComparableError
from nilatent.analysis.normative.latent import latents_by_fold, mahalanobis
from nilatent.analysis.normative.maps import deviation_maps
from nilatent.analysis.normative.scans import Asked, NormativeConfig, ask, crossfitted
from nilatent.analysis.normative.table import COLUMNS, Scores, arrays, scan_table
from nilatent.analysis.normative.words import answer, caveats
from nilatent.atlas import RegionWeights, region_map
from nilatent.errors import CohortError
from nilatent.finding import Finding, not_run
from nilatent.provenance import file_stems
from nilatent.volumes import Grid

__all__ = ["COLUMNS", "NAME", "QUESTION", "NormativeConfig", "deviation_maps", "normative"]

NAME = "normative"
QUESTION = "Which brains deviate from what is expected of their age, sex and site, by how much, and where?"


def normative(
    latents: Sequence[xr.Dataset],
    regions: pd.DataFrame,
    errors: pd.DataFrame | None,
    scans: pd.DataFrame,
    folds: npt.NDArray[np.integer],
    weights: RegionWeights,
    grid: Grid,
    mask: npt.NDArray[np.bool_],
    config: NormativeConfig,
) -> Finding:
    """Deviation of every scan from a reference model that was not fitted on its subject.

    Parameters
    ----------
    latents : Sequence of Dataset
        One per cross-fitted model, in the order of the folds; or the study's own alone, of which only scans of subjects it
        has not seen are then judged by latents. With none, latents are left out.
    regions : DataFrame
        Index scan_id, one column per region in the order of `weights`: mean grey matter.
    errors : DataFrame or None
        Index scan_id, one column per region: mean squared error of reconstruction by the model that has not seen the
        subject, above 0; scans without one are absent or NaN. None leaves errors out.
    scans : DataFrame
        Index scan_id; ``subject_id`` and the columns named in `config`.
    folds : ndarray
        (scan,) fold of each row of `scans`; all scans of a subject in one.
    weights : RegionWeights
        The atlas on the grid.
    grid, mask : Grid, ndarray
        Grid and (x, y, z) mask of the weights.
    config : NormativeConfig
        Settings.

    Returns
    -------
    Finding
        Table of scans, those that deviate most first; z by scan and region; areas under the curve where there is a case
        group; maps of the mean z of each. Or "not run" with the reason.

    Raises
    ------
    CohortError
        When latents, regions, errors and scans do not belong together.
    LeakageError
        When a subject stands in two folds, or the model of a fold has seen a subject of that fold.
    SettingError
        When a setting names what does not exist.
    """
    x, log_error = _joined(regions, errors, scans, weights)
    try:
        asked = ask(scans, folds, config)
    except NotComparableError as error:
        return not_run(NAME, QUESTION, str(error))
    scores = _scores(latents, x, log_error, scans, asked, config)
    judged = np.isfinite(scores.z).any(axis=1)
    if not judged[asked.fitted].any():
        return not_run(NAME, QUESTION, "no region varies between reference scans beyond the covariates")
    names = np.asarray(weights.names)
    table = scan_table(scores, scans, asked, config, names=names)
    data = arrays(scores, table, scans, asked, names=names)
    return Finding(
        name=NAME,
        question=QUESTION,
        answer=answer(table, data, asked, config),
        table=table,
        data=data,
        settings=asdict(config)
        | {
            "reference": asked.label,
            "n_reference": int(asked.fitted.sum()),
            "n_models": len(latents),
            "mapped": list(table.loc[table["p"].notna(), "scan_id"].head(config.n_maps)),
            "left_out": asked.left_out,
        },
        caveats=caveats(table, data, scores, asked, scans, config),
        n_scans=int(judged.sum()),
        n_subjects=len(set(asked.subject[judged])),
        maps=_maps(data, weights, grid, mask),
    )


def _scores(
    latents: Sequence[xr.Dataset],
    x: np.ndarray,
    log_error: np.ndarray,
    scans: pd.DataFrame,
    asked: Asked,
    config: NormativeConfig,
) -> Scores:
    z, error_z = np.full(x.shape, np.nan), np.full(x.shape, np.nan)
    curved, uneven = [], []
    for rows, found in crossfitted(x, asked):
        z[rows] = found.z
        curved.append(found.curved.mean())
        uneven.append(found.uneven.mean())
    for rows, found in crossfitted(log_error, asked):
        error_z[rows] = found.z
    distance, latent_z = np.full(len(x), np.nan), np.empty((len(x), 0))
    if len(latents):
        of_folds = latents_by_fold(latents, scans.index.to_numpy(), asked.folds)
        latent_z = np.full((len(x), max(one.shape[1] for one in of_folds.by_fold.values())), np.nan)
        for fold, values in of_folds.by_fold.items():
            for rows, found in crossfitted(values, asked, fold=fold):
                kept = of_folds.judged[rows]
                distance[rows[kept]] = mahalanobis(found, n_components=config.n_components)[kept]
                latent_z[rows[kept], : values.shape[1]] = found.z[kept]
    return Scores(z, error_z, latent_z, distance, float(np.mean(curved or 0)), float(np.mean(uneven or 0)))


def _joined(
    regions: pd.DataFrame, errors: pd.DataFrame | None, scans: pd.DataFrame, weights: RegionWeights
) -> tuple[np.ndarray, np.ndarray]:
    """Regions, and the logarithm of their errors with NaN where there is none, in the order of the scans."""
    for what, table in (("regions", regions), ("errors", errors)):
        if table is not None and list(table.columns) != list(weights.names):
            raise CohortError(f"The columns of the {what} are not the regions of the atlas. Compute the {what} again.")
    apart = scans.index.symmetric_difference(regions.index)
    if len(apart):
        raise CohortError(
            f"The regions and the cohort do not hold the same scans: {apart[0]} ({len(apart)} in all) is in one only. Measure "
            "the same cohort."
        )
    x = regions.loc[scans.index].to_numpy(dtype=np.float64)
    if errors is None:
        return x, np.full(x.shape, np.nan)
    odd = errors.index[errors.index.duplicated() | ~errors.index.isin(scans.index)]
    if len(odd):
        raise CohortError(f"Scan {odd[0]} of the errors repeats or is not in the cohort. Compute the errors again.")
    values = errors.reindex(scans.index).to_numpy(dtype=np.float64)
    bad = np.argwhere(values <= 0)
    if len(bad):
        raise CohortError(
            f"The error of scan {scans.index[bad[0, 0]]} in {weights.names[bad[0, 1]]} is {values[tuple(bad[0])]}; a mean "
            f"squared error is above 0 ({len(bad)} such). Compute the errors again."
        )
    return x, np.log(values)


def _maps(
    data: xr.Dataset, weights: RegionWeights, grid: Grid, mask: npt.NDArray[np.bool_]
) -> dict[str, nib.Nifti1Image]:
    """Mean z of the cases; of several groups one each, and under the plain name that which is farthest from 0."""
    if "mean_z" not in data:
        return {}
    values = np.nan_to_num(data["mean_z"].values)
    farthest = values[np.abs(values).argmax(axis=0), np.arange(values.shape[1])]
    images = {"mean_z": region_map(weights, farthest, grid, mask)}
    if len(values) > 1:
        groups = [str(group) for group in data["case_group"].values]
        stems = file_stems(groups)
        for group, value in zip(groups, values, strict=True):
            images[f"mean_z_{stems[group]}"] = region_map(weights, value, grid, mask)
    return images
