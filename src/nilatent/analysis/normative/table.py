"""From deviations to one row per scan, and to the comparison of groups by them."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr
from scipy.stats import norm

from nilatent.analysis import stats
from nilatent.analysis.normative.latent import auc_interval, conformal_p, predicted_p
from nilatent.analysis.normative.scans import EVERYBODY, Asked, NormativeConfig
from nilatent.errors import SettingError

COLUMNS = (
    "scan_id", "subject_id", "group", "reference", "deviates", "p", "q", "mahalanobis", "p_latents", "p_rank", "n_extreme",
    "n_expected", "p_extreme", "mean_z", "region", "region_z", "p_regions", "mean_error_z", "error_region",
    "error_region_z", "p_error", "note",
)  # fmt: skip
EXTREME = 1.96
MIN_CASES = 5
ALONE = "no reference scan of another fold has its site or other level, so nothing is expected of it"
EXTRAPOLATED = "outside the ages of the reference: what is expected is extrapolated"
MEASURES = {
    "latent deviation": "mahalanobis",
    "regional z, largest": "largest_z",
    "regional z, root mean square": "rms_z",
    "error z, mean": "mean_error_z",
    "error z, largest": "largest_error_z",
}
"""Measure of deviation, in words, to its column; higher is more unusual."""
LEVELS = np.linspace(0.005, 0.995, 100)


@dataclass(frozen=True, eq=False)
class Scores:
    """Deviations of every scan of the cohort; NaN where it was not judged.

    Parameters
    ----------
    z, error_z : ndarray
        (scan, region) of the regions, and of the logarithm of their error of reconstruction.
    latent_z : ndarray
        (scan, latent) in the coordinates of the scan's own fold, which no other fold shares.
    distance : ndarray
        (scan,) Mahalanobis deviation in latent space.
    curved, uneven : float
        Share of the regions, over folds, with a curve of age, and with a variance that changes with age.
    """

    z: np.ndarray
    error_z: np.ndarray
    latent_z: np.ndarray
    distance: np.ndarray
    curved: float
    uneven: float


def scan_table(
    scores: Scores, scans: pd.DataFrame, asked: Asked, config: NormativeConfig, *, names: np.ndarray
) -> pd.DataFrame:
    """One row per scan, those that deviate most first.

    Parameters
    ----------
    scores : Scores
        Of all scans.
    scans : DataFrame
        The cohort.
    asked : Asked
        Reference and groups.
    config : NormativeConfig
        Settings.
    names : ndarray
        (region,) names.

    Returns
    -------
    DataFrame
        :data:`COLUMNS`, what :data:`MEASURES` needs, and the covariates. ``p`` is the smallest p of latents, regions and
        errors times their number; ``q`` its false discovery rate, over reference scans and over
        the others.
    """
    table = pd.DataFrame(
        {
            "scan_id": scans.index.astype(str),
            "subject_id": asked.subject,
            "group": asked.group,
            "reference": asked.reference,
        }
    )
    table["mahalanobis"] = scores.distance
    table["p_latents"] = predicted_p(scores.distance, asked.fitted, asked.subject, tail="normal")
    table["p_rank"] = conformal_p(scores.distance, asked.fitted, asked.subject)
    table = table.join(_largest(scores.z, asked, names, "region", "p_regions"))
    table = table.join(_largest(scores.error_z, asked, names, "error_region", "p_error"))
    measured = np.isfinite(scores.z)
    judged = measured.any(axis=1)
    beyond = (np.abs(np.where(measured, scores.z, 0)) > EXTREME).sum(axis=1)
    table["n_extreme"] = np.where(judged, beyond, np.nan)
    table["n_expected"] = np.where(judged, 2 * norm.sf(EXTREME) * measured.sum(axis=1), np.nan)
    table["p_extreme"] = conformal_p(table["n_extreme"].to_numpy(), asked.fitted, asked.subject)
    table["mean_z"], table["mean_error_z"] = _mean(scores.z), _mean(scores.error_z)
    table["rms_z"] = np.sqrt(_mean(np.square(scores.z)))
    table["largest_z"], table["largest_error_z"] = table["region_z"].abs(), table["error_region_z"].abs()
    looks = table[["p_latents", "p_regions", "p_error"]]
    table["p"] = np.minimum(looks.min(axis=1) * looks.notna().sum(axis=1), 1.0)
    table["q"] = np.nan
    # Reference scans are there to see how often one like them is called, and scans without a group are asked of by nobody:
    # neither must dilute the others.
    nameless = ~asked.reference & (asked.group == "")
    for family in (asked.reference, ~asked.reference & ~nameless, nameless):
        known = family & table["p"].notna().to_numpy()
        if known.any():
            table.loc[known, "q"] = stats.fdr(table.loc[known, "p"].to_numpy())
    table["deviates"] = table["q"] <= config.alpha
    table["note"] = _notes(judged, asked)
    columns = list(dict.fromkeys([*config.covariates, *([config.site] if config.site else [])]))
    taken = {*table.columns, *COLUMNS} - ({config.group} if config.group == "group" else set())
    clash = [name for name in columns if name in taken]
    if clash:
        raise SettingError(
            f"The covariate '{clash[0]}' has the name of a column of this finding. Rename it: --column OURS={clash[0]}."
        )
    for name in columns:
        table[name] = scans[name].to_numpy()
    shown = [*COLUMNS[:3], *(name for name in columns if name not in COLUMNS), *COLUMNS[3:]]
    extra = [name for name in MEASURES.values() if name not in shown]
    # The largest z parts scans whose p has reached 1.
    order = table.sort_values(["p", "largest_z"], ascending=[True, False], kind="stable", na_position="last")
    return order[[*shown, *extra]].reset_index(drop=True)


def _largest(z: np.ndarray, asked: Asked, names: np.ndarray, name: str, p_name: str) -> pd.DataFrame:
    """The most deviating region of each scan, its z, and its p over all regions.

    The larger of two p: Bonferroni, which rests on normal residuals, and where the largest |z| of held-out reference scans
    puts it, which does not, but knows the tail from few scans.
    """
    size = np.where(np.isfinite(z), np.abs(z), -1.0)
    most = size.argmax(axis=1)
    known = size.max(axis=1) >= 0
    largest = np.where(known, z[np.arange(len(z)), most], np.nan)
    bonferroni = np.minimum(np.isfinite(z).sum(axis=1) * 2 * norm.sf(np.abs(largest)), 1.0)
    p = np.fmax(bonferroni, predicted_p(np.abs(largest), asked.fitted, asked.subject, tail="gumbel"))
    return pd.DataFrame({name: np.where(known, names[most], ""), f"{name}_z": largest, p_name: p})


def _mean(values: np.ndarray) -> np.ndarray:
    """(row,) mean over what is known; NaN where nothing is."""
    known = np.isfinite(values)
    total = np.where(known, values, 0).sum(axis=1)
    return np.where(known.any(axis=1), total / np.maximum(known.sum(axis=1), 1), np.nan)


def _notes(judged: np.ndarray, asked: Asked) -> np.ndarray:
    notes = np.where(asked.complete, ALONE, "a covariate or the site is missing")
    return np.where(judged, np.where(asked.beyond_age, EXTRAPOLATED, ""), notes)


def case_groups(table: pd.DataFrame, asked: Asked) -> list[str]:
    """Groups beside the reference that have enough subjects to be compared with it."""
    if asked.label == EVERYBODY:
        return []
    cases = table[~table["reference"] & (table["group"] != "")]
    counted = cases.groupby("group")["subject_id"].nunique()
    return [str(name) for name in counted.index[counted >= MIN_CASES]]


def arrays(scores: Scores, table: pd.DataFrame, scans: pd.DataFrame, asked: Asked, *, names: np.ndarray) -> xr.Dataset:
    """What figures and pages need: z by scan and region, groups compared, and how normal held-out reference scans are."""
    both = ("scan", "region")
    data = xr.Dataset(
        {
            "z": (both, scores.z),
            "error_z": (both, scores.error_z),
            "latent_z": (("scan", "latent"), scores.latent_z),
            "fitted": ("scan", asked.fitted),
        },
        coords={
            "scan": np.asarray(scans.index, dtype=str),
            "region": np.asarray(names, dtype=str),
            "latent": np.arange(scores.latent_z.shape[1]),
        },
    )
    data["qq_expected"] = ("level", norm.ppf(LEVELS))
    kinds = {"regions": scores.z, "errors": scores.error_z, "latents": scores.latent_z}
    held_out = {kind: values[asked.fitted] for kind, values in kinds.items()}
    held_out = {kind: values[np.isfinite(values)] for kind, values in held_out.items()}
    held_out = {kind: values for kind, values in held_out.items() if len(values)}
    data["qq_seen"] = (("kind", "level"), np.array([np.quantile(values, LEVELS) for values in held_out.values()]))
    data["reference_sd"] = ("kind", np.array([values.std() for values in held_out.values()]))
    beyond = np.array([(np.abs(values) > EXTREME).mean() for values in held_out.values()])
    data["reference_extreme"] = ("kind", beyond)
    data = data.assign_coords(kind=np.array(list(held_out), dtype=str))
    groups = case_groups(table, asked)
    if groups:
        data = data.merge(_compared(table, asked, groups, scans=scans))
        rows = [asked.first & (asked.group == group) & np.isfinite(scores.z).any(axis=1) for group in groups]
        data["mean_z"] = (("case_group", "region"), np.array([_mean(scores.z[row].T) for row in rows]))
    return data


def _compared(table: pd.DataFrame, asked: Asked, groups: list[str], *, scans: pd.DataFrame) -> xr.Dataset:
    """Area under the curve of every case group against held-out reference subjects, by every measure."""
    by_scan = table.set_index("scan_id").loc[scans.index.astype(str)]
    found = np.full((len(groups), len(MEASURES), 4), np.nan)
    for row, group in enumerate(groups):
        cases = asked.first & (asked.group == group)
        for column, measure in enumerate(MEASURES.values()):
            values = by_scan[measure].to_numpy(dtype=np.float64)
            of_cases, of_reference = (values[chosen & np.isfinite(values)] for chosen in (cases, asked.fitted))
            if len(of_cases) >= MIN_CASES and len(of_reference) >= MIN_CASES:
                found[row, column] = auc_interval(of_cases, of_reference)
    both = ("case_group", "measure")
    names = ("auc", "auc_low", "auc_high", "auc_p")
    return xr.Dataset(
        {name: (both, found[:, :, position]) for position, name in enumerate(names)},
        coords={"case_group": np.array(groups, dtype=str), "measure": np.array(list(MEASURES), dtype=str)},
    )
