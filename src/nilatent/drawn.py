"""Analyses of a run folder that draw: what directions in the latent space do, and how good drawn brains are."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from nilatent.analysis.blur import NAME as BLUR
from nilatent.analysis.blur import QUESTION as BLUR_QUESTION
from nilatent.analysis.blur import blur
from nilatent.analysis.counterfactual import NAME as COUNTERFACTUAL
from nilatent.analysis.counterfactual import QUESTION as COUNTERFACTUAL_QUESTION
from nilatent.analysis.counterfactual import counterfactual
from nilatent.analysis.fidelity import NAME as FIDELITY
from nilatent.analysis.fidelity import QUESTION as FIDELITY_QUESTION
from nilatent.analysis.fidelity import fidelity
from nilatent.analysis.longitudinal import NAME as LONGITUDINAL
from nilatent.analysis.longitudinal import QUESTION as LONGITUDINAL_QUESTION
from nilatent.analysis.longitudinal import longitudinal
from nilatent.analysis.regional import regional
from nilatent.analysis.sensitivity import NAME as SENSITIVITY
from nilatent.analysis.sensitivity import QUESTION as SENSITIVITY_QUESTION
from nilatent.analysis.sensitivity import sensitivity
from nilatent.asked import Asked
from nilatent.finding import Finding, not_run, read_finding
from nilatent.models.features import image_features
from nilatent.pools import Pools
from nilatent.provenance import content_hash
from nilatent.spaces import fold_spaces, head_size, study_space
from nilatent.volumes import gm_mask

QUESTIONS = {
    SENSITIVITY: SENSITIVITY_QUESTION,
    COUNTERFACTUAL: COUNTERFACTUAL_QUESTION,
    FIDELITY: FIDELITY_QUESTION,
    BLUR: BLUR_QUESTION,
    LONGITUDINAL: LONGITUDINAL_QUESTION,
}
LRCP = "lrcp"


def drawn(pools: Pools, crossfit: Sequence[str]) -> dict[str, Asked]:
    """Every analysis that draws, by its name, in the order of the report; none is run yet.

    Parameters
    ----------
    pools : Pools
        Of the run folder.
    crossfit : Sequence[str]
        Stages of the cross-fitted models.
    """
    config = pools.config
    needs = ["latents", "model", "regions", "volumes", "split", "prepared", *crossfit]
    return {
        SENSITIVITY: Asked(
            lambda: _sensitivity(pools),
            {"sensitivity": config.sensitivity, "head_size": config.counterfactual.head_size},
            [*needs, LRCP],
        ),
        COUNTERFACTUAL: Asked(lambda: _counterfactual(pools), {"counterfactual": config.counterfactual}, needs),
        FIDELITY: Asked(lambda: _fidelity(pools), {"fidelity": config.fidelity}, needs),
        BLUR: Asked(lambda: _blur(pools), {"fwhm_mm": pools.fwhm_mm, "seed": config.seed}, needs),
        LONGITUDINAL: Asked(
            lambda: _longitudinal(pools),
            {
                "longitudinal": config.longitudinal,
                "seed": config.seed,
                "within_subject": config.recipe.within_subject,
            },
            needs,
        ),
    }


def _sensitivity(pools: Pools) -> Finding:
    if _shaped(pools):
        return not_run(SENSITIVITY, SENSITIVITY_QUESTION, _shaped(pools))
    grid, mask = pools.volumes.grid, pools.volumes.mask
    lrcp = read_finding(pools.out / "findings" / LRCP).table if done(pools.out, LRCP) else pd.DataFrame()
    return sensitivity(
        study_space(pools),
        fold_spaces(pools),
        _means(pools),
        pools.prepared.scans,
        pools.of_mask,
        grid,
        mask,
        replace(pools.config.sensitivity, covariates=(*pools.config.study.covariates, *head_size(pools))),
        lrcp=lrcp if len(lrcp) else None,
        label="sensitivity",
    )


def _counterfactual(pools: Pools) -> Finding:
    if _shaped(pools):
        return not_run(COUNTERFACTUAL, COUNTERFACTUAL_QUESTION, _shaped(pools))
    if pools.config.recipe.target != "gm":
        reason = "T1 intensities are modelled, whose sums are no volumes; model grey matter to ask this"
        return not_run(COUNTERFACTUAL, COUNTERFACTUAL_QUESTION, reason)
    if not pools.config.recipe.modulation:
        reason = "the maps are not modulated, so their sums are no volumes; prepare with modulation to ask this"
        return not_run(COUNTERFACTUAL, COUNTERFACTUAL_QUESTION, reason)
    scans, config = pools.prepared.scans, pools.config.counterfactual
    spaces, means = fold_spaces(pools), _means(pools)
    return counterfactual(spaces, pools.volumes, means, scans, pools.of_mask, config, label="counterfactual")


def _fidelity(pools: Pools) -> Finding:
    features, note = image_features(pools.volumes.mask)
    return fidelity(
        fold_spaces(pools),
        pools.volumes,
        pools.prepared.scans,
        pools.of_mask,
        pools.config.fidelity,
        features=features,
        features_note=note,
        label="fidelity",
    )


def _blur(pools: Pools) -> Finding:
    scans, fwhm_mm = pools.prepared.scans, pools.fwhm_mm
    return blur(fold_spaces(pools), pools.volumes, scans, fwhm_mm=fwhm_mm, seed=pools.config.seed, label="blur")


def _longitudinal(pools: Pools) -> Finding:
    scans, volumes, grid = pools.prepared.scans, pools.volumes, pools.volumes.grid
    # Decoders draw what they were trained on: beside regions of grey matter only grey matter may stand.
    spaces = fold_spaces(pools) if pools.config.recipe.target == "gm" and scans["subject_id"].duplicated().any() else []
    return longitudinal(
        spaces,
        pools.regions.loc[scans.index],
        scans,
        pools.weights,
        grid,
        gm_mask(grid),
        pools.config.longitudinal,
        study=study_space(pools) if spaces and not _shaped(pools) else None,
        masked=lambda names: volumes.masked(volumes.rows(list(names))),
        within_subject=pools.config.recipe.within_subject,
        seed=pools.config.seed,
        label="longitudinal",
    )


def _means(pools: Pools) -> pd.DataFrame:
    """(scan, region) means of what the model draws: grey matter, or T1 intensities in its wider mask."""
    if pools.config.recipe.target == "gm":
        return pools.regions
    return regional(pools.volumes, pools.of_mask)


def done(out: Path, name: str) -> str:
    """Content hash of a finding of a run folder; empty where it was not run."""
    record = out / "findings" / name / "provenance.json"
    return content_hash(record) if record.is_file() else ""


def _shaped(pools: Pools) -> str:
    label = pools.latents.attrs.get("supervised")
    return (
        f"'{label}' shaped the latents of training scans; train a model without model.align to ask this"
        if label
        else ""
    )
