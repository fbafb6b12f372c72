"""What each analysis says of one cohort, at the same error rate: counts of regions called, and badges given."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import xarray as xr
from tests.calibration.cohorts import Cohort

from nilatent.analysis import discriminability, stats
from nilatent.analysis.agnostic import AgnosticConfig, agnostic
from nilatent.analysis.contrast import compare_groups
from nilatent.analysis.error_profile import ErrorProfileConfig, error_profile
from nilatent.analysis.lrcp import LrcpConfig, lrcp

ALPHA, N_PERMUTATIONS = 0.05, 199
# How much of a region's share that latents predict goes to the readout in the blend; the rest is its own grey matter.
READ_SHARE = 0.5


def called_regions(cohort: Cohort, seed: int) -> dict[str, float]:
    """Planted and other regions that LRCP and its rivals call.

    ``lrcp`` is what LRCP calls, ``own`` what remains of it when the region's own grey matter must support it; ``linked`` is
    its other reading, and ``roi`` the t-test of regional grey matter by the maximum statistic. ``blend`` is a rule that
    might replace ``lrcp``: see :func:`blend_calls`. ``strong`` counts planted regions that LRCP grades strong.
    """
    config = LrcpConfig(
        contrast=cohort.contrast,
        covariates=cohort.covariates,
        site=cohort.site,
        n_permutations=N_PERMUTATIONS,
        n_permutations_linked=N_PERMUTATIONS,
        seed=seed,
    )
    found = lrcp(cohort.latents, cohort.regions, cohort.scans, cohort.weights, cohort.grid, cohort.mask, config)
    table = found.table.set_index("name").loc[list(cohort.regions.columns)]
    decided = table["grade"] != "none"
    called = {
        "lrcp": decided,
        "own": decided & (table["p_own"] <= ALPHA),
        "linked": (table["p_pair"] <= ALPHA) & (table["p_linked"] <= ALPHA),
        "roi": table["p_region"] <= ALPHA,
        "blend": blend_calls(cohort, found.data, table["r2_latents"].to_numpy(), seed),
    }
    strong = (table["grade"] == "strong") & cohort.planted
    return counted(called, cohort.planted, cohort.spared) | {"strong": int(strong.sum())}


def counted(called: Mapping[str, npt.ArrayLike], planted: np.ndarray, spared: np.ndarray) -> dict[str, float]:
    """Planted regions, and regions spared by the disease, that each method calls; what lies between is not counted."""
    row: dict[str, float] = {"n_planted": int(planted.sum())}
    for method, regions in called.items():
        hit = np.asarray(regions, dtype=bool)
        row |= {f"{method}_planted": int((hit & planted).sum()), f"{method}_other": int((hit & spared).sum())}
    return row


def blend_calls(cohort: Cohort, arrays: xr.Dataset, r2: np.ndarray, seed: int) -> np.ndarray:
    """(region,) bool: the latents carry the region, and its grey matter blended with its readout tells the groups apart.

    The readout has less noise than the region and borrows the effect of others. It counts by half the share of the region
    that the latents predict out of fold, which no label has shaped, so the permutation test stays exact. Carried is
    controlled by false discovery rate: of the group it says nothing, so the family-wise level rests on the blend.

    Parameters
    ----------
    cohort : Cohort
        The cohort.
    arrays : Dataset
        Of LRCP, with ``readout`` (scan, region).
    r2 : ndarray
        (region,) share of each region that the latents predict.
    seed : int
        Of the permutations.
    """
    scans = cohort.scans.assign(total_gm=cohort.regions.to_numpy() @ cohort.weights.n_voxels)
    compared = compare_groups(
        scans, group="group", contrast=cohort.contrast, covariates=[*cohort.covariates, "total_gm"], site=cohort.site
    )
    x, z = (
        values[compared.rows] for values in (cohort.regions.to_numpy(), cohort.latents["mean"].values.astype(float))
    )
    orders = stats.permutations(len(x), N_PERMUTATIONS, seed=seed, blocks=compared.blocks)
    confounds, basis = compared.confounds, stats.confound_basis(compared.confounds, len(x))
    carried = stats.permuted_share(x, z, orders, confounds=confounds, penalty=discriminability.PENALTY).p_value
    readout = arrays["readout"].sel(scan=scans.index[compared.rows], region=list(cohort.regions.columns))
    own = stats.unit_residuals(x, basis, what="The regions")
    read = stats.unit_residuals(readout.transpose("scan", "region").values, basis, what="The readout")
    share = READ_SHARE * np.clip(r2, 0, 1)
    targets = discriminability.balanced_targets(compared.is_case)
    test = stats.permuted_correlation((1 - share) * own + share * read, targets, orders, confounds=confounds)
    return np.asarray((stats.fdr(carried) <= ALPHA) & (test.p_fwe[:, 0] <= ALPHA))


def badges(cohort: Cohort, seed: int) -> dict[str, float]:
    """Badges of agnostic validation: CUBV and SAR of latents and of regions, and whether SAM marks any region."""
    config = AgnosticConfig(
        contrast=cohort.contrast,
        covariates=cohort.covariates,
        site=cohort.site,
        targets=("score",),
        n_permutations=N_PERMUTATIONS,
        seed=seed,
    )
    found = agnostic(
        cohort.latents, cohort.regions, cohort.scans, cohort.weights, cohort.grid, cohort.mask, config
    ).table
    validated = found["badge"] == "bound-validated"
    row: dict[str, float] = {}
    for test in ("CUBV", "SAR"):
        for features in ("latents", "regions"):
            chosen = (found["test"] == test) & (found["features"] == features)
            row[f"{test.lower()}_{features}"] = int(validated[chosen].any())
            row[f"{test.lower()}_{features}_p"] = int((found.loc[chosen, "p"] <= ALPHA).any())
    return row | {"sam": int(validated[found["test"] == "SAM"].any())}


def gate(cohort: Cohort, seed: int, *, models: tuple[str, ...]) -> dict[str, float]:
    """Whether the gate of the error profile opens."""
    config = ErrorProfileConfig(
        covariates=cohort.covariates,
        site=cohort.site,
        models=models,
        n_permutations=N_PERMUTATIONS,
        n_permutations_trees=N_PERMUTATIONS,
        seed=seed,
    )
    found = error_profile(cohort.errors, cohort.regions, cohort.scans, cohort.weights, cohort.grid, cohort.mask, config)
    return {"gate": int((found.data["p_gate"] <= ALPHA).any())}
