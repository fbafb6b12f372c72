"""Fitting the head that a study passes on, on the latents of its own scans."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pandas as pd
import xarray as xr

from nilatent.analysis.prediction.heads import LinearHead, fit_linear
from nilatent.analysis.prediction.table import AS_IT_IS
from nilatent.analysis.prediction.targets import Target
from nilatent.finding import Finding
from nilatent.head import Head, HeadError, Reference
from nilatent.provenance import hash_values, versions
from nilatent.training.heads import HeadConfig, NetworkHead, fit_network
from nilatent.training.origin import Origin, Seen, seen_by
from nilatent.volumes import Volumes

# Column of the study's prediction to the name of the same measure on an external cohort.
MEASURES = {
    "auc": "AUC",
    "balanced_accuracy": "balanced accuracy",
    "brier": "Brier score",
    "calibration_slope": "calibration slope",
    "mae": "mean absolute error",
    "r2": "R2",
    "r": "correlation",
}


def fit_head(
    latents: xr.Dataset,
    target: Target,
    volumes: Volumes,
    *,
    network: HeadConfig | None = None,
    errors: pd.DataFrame | None = None,
    held_out: Mapping[str, float] | None = None,
    seed: int = 0,
) -> Head:
    """Fit the head that a study passes on: on the latents of all its scans whose target is known.

    Parameters
    ----------
    latents : Dataset
        Of the study's model.
    target : Target
        ``rows`` are positions in the order of `latents`.
    volumes : Volumes
        The study's scans, of which hashes are kept, so that a copy of one is recognised elsewhere.
    network : HeadConfig, optional
        Fit a residual network on a latent grid; left out, a linear head.
    errors : DataFrame, optional
        Index ``scan_id``, columns ``subject_id`` and ``error``: squared reconstruction errors of scans the model has not
        seen, from :func:`nilatent.crossfit.errors_of`.
    held_out : Mapping[str, float], optional
        Measures of this kind of head on held-out subjects of the study.
    seed : int
        Of all that is drawn.

    Returns
    -------
    Head
        Not yet written.

    Raises
    ------
    HeadError
        When the latents are components of latents, the target shaped them, the errors are of scans that the model has seen,
        or a network has no grid to look at.

    Notes
    -----
    The model has seen most of these scans, and their latents spread a little more than those of new scans do. The head is made
    for subjects whom neither has seen; how well it does there must be judged on others, by the cross-fitted ``prediction`` of
    the study or on an external cohort, never on these scans.
    """
    if latents.attrs.get("compact"):
        raise HeadError(
            "These latents are components of latents, which scans from elsewhere do not have. Give the latents of the model "
            "themselves, as in latents.nc."
        )
    if target.column and latents.attrs.get("supervised") == target.column:
        raise HeadError(
            f"'{target.column}' shaped the latents of the scans the model was trained on, and not those of new scans: a head "
            "fitted on both would lean on what new scans do not have. Train a model without model.align."
        )
    x = np.asarray(latents["mean"].values, dtype=np.float64)
    subjects = latents["subject"].values.astype(str)
    known = subjects[target.rows]
    rule: LinearHead | NetworkHead
    if network is None:
        rule = fit_linear(x[target.rows], target.y, kind=target.kind, levels=target.levels, subjects=known, seed=seed)
    else:
        shape = tuple(int(side) for side in latents.attrs["latent_shape"])
        if len(shape) != 4:
            raise HeadError(
                f"A network head looks at a grid, and these latents are a vector of {x.shape[1]}. Fit a linear head, or train "
                "a spatial_vae."
            )
        rule = fit_network(
            x[target.rows],
            target.y,
            grid=(shape[0], shape[1], shape[2], shape[3]),
            kind=target.kind,
            levels=target.levels,
            config=network,
            seed=seed,
            subjects=list(known),
        )
    return Head(
        target=target.name,
        column=target.column or target.name,
        rule=rule,
        model_hash=str(latents.attrs["model_hash"]),
        seen=_fitted_on(latents, target, volumes),
        reference=_reference(latents, errors),
        held_out={name: float(value) for name, value in ({} if held_out is None else held_out).items()},
        versions=versions(),
    )


def held_out_of(finding: Finding, target: Target, *, features: str, head: str = "linear") -> dict[str, float]:
    """How well a head did on held-out subjects, from the study's prediction, by the names an external cohort's measures have.

    Parameters
    ----------
    finding : Finding
        Of ``prediction``.
    target : Target
        What the head predicts.
    features, head : str
        Row of the table: name of the feature set that holds the latents, and of the head.

    Returns
    -------
    dict[str, float]
        Measure to value; empty when there is no such row.
    """
    table = finding.table
    if table.empty:
        return {}
    wanted = {"target": target.name, "features": features, "head": head, "head_size": AS_IT_IS}
    rows = table[np.logical_and.reduce([table[name] == value for name, value in wanted.items()])]
    if len(rows) != 1:
        return {}
    names = MEASURES
    if target.kind == "binary":
        reference, case = target.levels
        names = names | {"sensitivity": f"sensitivity ({case})", "specificity": f"specificity ({reference})"}
    row = rows.iloc[0]
    return {ours: float(row[name]) for name, ours in names.items() if name in rows and np.isfinite(float(row[name]))}


def _fitted_on(latents: xr.Dataset, target: Target, volumes: Volumes) -> Seen:
    scans = latents["scan"].values.astype(str)[target.rows]
    subjects = latents["subject"].values.astype(str)[target.rows]
    parts = pd.DataFrame({"subject_id": subjects, "part": "train"}, index=pd.Index(scans, name="scan_id"))
    salt = hash_values([str(latents.attrs["model_hash"]), target.name, np.asarray(target.y, dtype=float)])[:32]
    return seen_by(salt, parts.drop_duplicates("subject_id"), Origin(volumes, parts))


def _reference(latents: xr.Dataset, errors: pd.DataFrame | None) -> Reference:
    mean = np.asarray(latents["mean"].values, dtype=np.float64)
    n_subjects = len(np.unique(latents["subject"].values))
    found = Reference(mean.mean(axis=0), mean.std(axis=0, ddof=1), n_subjects)
    if errors is None:
        return found
    seen = latents["scan"].values[latents["subject_in_training"].values].astype(str)
    both = errors.index.intersection(seen)
    if len(both):
        raise HeadError(
            f"The model has seen the subject of {both[0]}, whose reconstruction error was given as one of a new scan. Give the "
            "errors of the test part alone."
        )
    of_subject = errors.groupby("subject_id")["error"].mean()
    spread = float(of_subject.std(ddof=1) / np.sqrt(len(of_subject))) if len(of_subject) > 1 else float("nan")
    return replace(found, error=float(of_subject.mean()), error_se=spread, n_error=len(of_subject))
