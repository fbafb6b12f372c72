"""Leak audit: does anything let the scans that judge a result be known to what they judge.

The audit lists and never raises: one row per check with what was found, examples and what to do. Where a leak would turn a
number wrong, the analyses refuse by themselves (:class:`~nilatent.errors.LeakageError`); the row says so.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
import xarray as xr

from nilatent.analysis.leaks import columns as leaks_columns
from nilatent.analysis.leaks import features as leaks_features
from nilatent.analysis.leaks import images as leaks_images
from nilatent.analysis.leaks import split as leaks_split
from nilatent.analysis.leaks.row import CLEAN, FOUND, NOT_CHECKED, Check
from nilatent.errors import CohortError
from nilatent.finding import Finding
from nilatent.latents import check_latents
from nilatent.volumes import Volumes

__all__ = ["CLEAN", "COLUMNS", "FOUND", "NAME", "NOT_CHECKED", "QUESTION", "LeaksConfig", "leaks"]

NAME = "leaks"
QUESTION = "Is there anything by which a result could look better than it is?"
COLUMNS = ("check", "verdict", "what", "n", "examples", "advice", "elsewhere")


@dataclass(frozen=True)
class LeaksConfig:
    """Settings of the leak audit.

    Parameters
    ----------
    group : str
        Column of the groups; empty for none.
    site : str
        Column of the site; empty for none.
    covariates : tuple[str, ...]
        Columns that are adjusted for or predicted with.
    targets : tuple[str, ...]
        Columns that are predicted, beside the group.
    family : str
        Column that siblings share; empty for none.
    n_permutations : int
        Shuffles behind the p-value of the site.
    seed : int
        Draws the shuffles.
    """

    group: str = ""
    site: str = ""
    covariates: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    family: str = ""
    n_permutations: int = 1000
    seed: int = 0


def leaks(
    scans: pd.DataFrame,
    parts: pd.DataFrame,
    config: LeaksConfig,
    *,
    latents: xr.Dataset | None = None,
    folds: Sequence[xr.Dataset] = (),
    regions: pd.DataFrame | None = None,
    volumes: Volumes | None = None,
) -> Finding:
    """Audit a cohort, its split and its models.

    Parameters
    ----------
    scans : DataFrame
        Index scan_id; ``subject_id``, ``sha256`` (may be absent or empty) and the columns that `config` names.
    parts : DataFrame
        Index scan_id: the split. ``part`` (train, validation or test), and ``fold`` where there is cross-fitting.
    config : LeaksConfig
        Settings.
    latents : Dataset or None
        Latents by the study's model.
    folds : Sequence of Dataset
        Latents of all scans by the model of each fold, in the order of the folds.
    regions : DataFrame or None
        Index scan_id, one column per region.
    volumes : Volumes or None
        What the models were trained on.

    Returns
    -------
    Finding
        One row per check: verdict "found", "clean" or "not checked", how many, the worst examples, what to do, and where
        the same leak is refused.

    Raises
    ------
    CohortError
        When the tables do not hold the scans of the cohort.
    """
    _check_scans(scans, parts, latents=latents, folds=folds, regions=regions, volumes=volumes)
    split = parts.loc[scans.index]
    twins, near = leaks_images.copies(scans), leaks_images.near_copies(scans, volumes, regions)
    checks = [
        leaks_images.same_image(scans, twins, split),
        leaks_images.similar_image(scans, near, split, volumes, regions),
        leaks_split.subjects_apart(scans, split),
        leaks_split.families_apart(scans, split, config.family),
        leaks_split.encoder_blind(scans, split, latents, folds, copies=[*twins, *near]),
        leaks_columns.site_is_group(scans, group=config.group, site=config.site),
        *leaks_columns.hidden_targets(
            scans, covariates=config.covariates, targets=[config.group, *config.targets], seed=config.seed
        ),
        *leaks_features.site_told(
            scans, split, site=config.site, latents=latents, folds=folds, regions=regions,
            n_permutations=config.n_permutations, seed=config.seed,
        ),
        *leaks_features.scaled_over_all(scans, latents=latents, regions=regions),
    ]  # fmt: skip
    table = pd.DataFrame([asdict(check) for check in checks], columns=list(COLUMNS))
    return Finding(
        name=NAME,
        question=QUESTION,
        answer=_answer(checks),
        table=table,
        data=xr.Dataset(),
        settings=asdict(config) | {"n_models": len(folds)},
        caveats=_caveats(checks),
        n_scans=len(scans),
        n_subjects=int(scans["subject_id"].nunique()),
    )


def _answer(checks: list[Check]) -> str:
    found = [check for check in checks if check.verdict == FOUND]
    skipped = sum(check.verdict == NOT_CHECKED for check in checks)
    done = len(checks) - skipped
    rest = f" {skipped} could not be made." if skipped else ""
    if not found:
        return f"None of {done} checks found a leak.{rest}"
    said = " ".join(f"{check.check[0].upper()}{check.check[1:]}: {check.what}" for check in found)
    return f"{len(found)} of {done} checks found something.{rest} {said}"


def _caveats(checks: list[Check]) -> tuple[str, ...]:
    skipped = [f"{check.check} ({check.what.rstrip('.')})" for check in checks if check.verdict == NOT_CHECKED]
    lines = [
        "A clean row says that this check found nothing, not that there is nothing: what was done to the images and tables "
        "before they came here leaves few traces.",
        "Features that know the site are no leak by themselves; they become one when site and group go together.",
    ]
    return (*lines, f"Not checked: {'; '.join(skipped)}.") if skipped else tuple(lines)


def _check_scans(
    scans: pd.DataFrame,
    parts: pd.DataFrame,
    *,
    latents: xr.Dataset | None,
    folds: Sequence[xr.Dataset],
    regions: pd.DataFrame | None,
    volumes: Volumes | None,
) -> None:
    tables = {"the split": parts.index}
    for number, made in enumerate(folds):
        check_latents(made)
        tables[f"the latents of fold {number}"] = pd.Index(made["scan"].values)
    if latents is not None:
        check_latents(latents)
        tables["the latents"] = pd.Index(latents["scan"].values)
    if regions is not None:
        tables["the regions"] = regions.index
    if volumes is not None:
        tables["the volumes"] = volumes.scans.index
    for what, index in tables.items():
        absent = scans.index.difference(index)
        if len(absent):
            raise CohortError(
                f"Scan {absent[0]} ({len(absent)} in all) is in the cohort and not in {what}. Audit the cohort that was split "
                "and encoded."
            )
    if "part" not in parts or not np.isin(parts["part"], ("train", "validation", "test")).all():
        raise CohortError("The split has no column 'part' of train, validation and test. Split the cohort again.")
