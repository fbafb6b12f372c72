"""What each analysis says of one cohort, at the same error rate: counts of regions called, and badges given."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from tests.calibration.cohorts import Cohort

from nilatent.analysis.agnostic import AgnosticConfig, agnostic
from nilatent.analysis.error_profile import ErrorProfileConfig, error_profile
from nilatent.analysis.lrcp import LrcpConfig, lrcp

ALPHA, N_PERMUTATIONS = 0.05, 199


def called_regions(cohort: Cohort, seed: int) -> dict[str, float]:
    """Planted and other regions that LRCP and its rivals call.

    ``lrcp`` is what LRCP calls by default, ``lent`` the same without the support of the region's own grey matter; ``joint``
    and ``linked`` are its other readings, without that support too, and ``roi`` the t-test of regional grey matter by the
    maximum statistic. ``strong`` counts planted regions that LRCP grades strong.
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
    called = {
        "lrcp": table["grade"] != "none",
        "lent": table["p"] <= ALPHA,
        "joint": (table["p_joint"] <= ALPHA) & (table["p_readout"] <= ALPHA),
        "linked": (table["p_pair"] <= ALPHA) & (table["p_linked"] <= ALPHA),
        "roi": table["p_region"] <= ALPHA,
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
