"""Table, arrays and maps of LRCP: what :class:`~nilatent.analysis.lrcp.profile.Profile` says, with names."""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import xarray as xr

from nilatent.analysis import bounds, discriminability, held_out, stats
from nilatent.analysis.contrast import Comparison, Gradient
from nilatent.analysis.lrcp.profile import LrcpConfig, Profile, ranking_score

COLUMNS = ("name", "label", "a", "p_a", "bal_acc", "p_d", "p", "grade", "badge", "rank")
# A cut on one score: its direction and its threshold.
CUT_WEIGHTS = 2


@dataclass(frozen=True, eq=False)
class Answered:
    """One contrast or target with its results.

    Parameters
    ----------
    asked : Comparison or Gradient
        What was compared.
    table : DataFrame
        One row per region, best first.
    data : Dataset
        Arrays for figures.
    flat : tuple[str, ...]
        Regions and latents that were constant, or explained by the confounds.
    """

    asked: Comparison | Gradient
    table: pd.DataFrame
    data: xr.Dataset
    flat: tuple[str, ...]


def over_contrasts(found: Profile, n_contrasts: int) -> Profile:
    """The same with every family-wise p multiplied by the number of contrasts (Bonferroni), at most 1.

    Within a contrast the maximum statistic covers its regions with strong control; the union over contrasts is then at
    most alpha whatever the groups share. A joint maximum would have to shuffle scans of all groups together, which is not
    exact for two groups when a third differs in spread, and would gain little: for three groups against a fourth the
    critical value falls from 2.39 to 2.35 standard errors.

    References
    ----------
    Dunnett 1955, doi:10.1080/01621459.1955.10501294.
    """

    def raised(p_value: np.ndarray) -> np.ndarray:
        return np.asarray(np.minimum(1, p_value * n_contrasts))

    return replace(
        found,
        joint_p=raised(found.joint_p),
        joint_centred_p=raised(found.joint_centred_p),
        joint_unadjusted_p=raised(found.joint_unadjusted_p),
        readout_p=raised(found.readout_p),
        blend_p=raised(found.blend_p),
        carried_q=raised(found.carried_q),
        region_p=raised(found.region_p),
        linked=replace(found.linked, p_fwe=raised(found.linked.p_fwe)),
        pooled=replace(found.pooled, p_fwe=raised(found.pooled.p_fwe)),
        centred=replace(found.centred, p_fwe=raised(found.centred.p_fwe)),
    )


def region_table(
    found: Profile,
    regions: np.ndarray,
    asked: Comparison | Gradient,
    config: LrcpConfig,
    *,
    names: np.ndarray,
    labels: np.ndarray,
    crossed: bool,
) -> pd.DataFrame:
    """One row per region by rank: the decision first, then both readings and everything beside them.

    Parameters
    ----------
    found : Profile
        Results, family-wise over regions and contrasts.
    regions : ndarray
        (scan, region) grey matter.
    asked : Comparison or Gradient
        What was compared.
    config : LrcpConfig
        Settings.
    names, labels : ndarray
        (region,) of the atlas.
    crossed : bool
        Whether the latents are cross-fitted: no single latent then has a place in all scans, and ``a`` is the
        correlation of the out-of-model readout with its region.
    """
    linked, p_pair, p_pair_centred = found.linked, found.pooled.p_fwe.min(axis=1), found.centred.p_fwe.min(axis=1)
    decided = {
        "blended": (found.carried_q, found.joint_centred_p, found.blend_acc, found.blend_p),
        "joint": (found.joint_p, found.joint_centred_p, found.readout_acc, found.readout_p),
        "linked": (p_pair, p_pair_centred, linked.bal_acc, linked.p_fwe),
    }
    p_a, p_centred, bal_acc, p_d = decided[config.reading]
    r_target, r2_target = (
        (found.blend_r, found.blend_r2) if config.reading == "blended" else (found.readout_r, found.readout_r2)
    )
    p = np.maximum(p_a, p_d)
    # Few latents describe many regions and can lend one the effect of another: among the regions found, a region's own grey
    # matter has to speak too. Where none was found there is nothing to ask, and its p is NaN.
    called = (p <= config.alpha) & ~(found.own_p > config.alpha)
    groups = isinstance(asked, Comparison)
    held = np.where(p_centred <= config.alpha, "strong", "class-mediated" if groups else "target-mediated")
    skill = bal_acc if groups else (1 + np.sqrt(np.maximum(r2_target, 0))) / 2
    table = pd.DataFrame(
        {
            "name": names,
            "label": labels,
            "a": np.abs(found.readout_a) if crossed else np.abs(found.pooled.observed).max(axis=1),
            "p_a": p_a,
            "bal_acc": bal_acc,
            "p_d": p_d,
            "p": p,
            "grade": np.where(called, held, "none"),
            "badge": region_badges(found.blend if config.reading == "blended" else found.readout, found.folds, asked),
            "rank": 0,
            "score": ranking_score(found.r2, skill),
            "direction": directions(r_target, asked),
            "r2_latents": found.r2,
            "latent_weighted": found.weighted,
            "p_own": found.own_p,
            "a_centred": np.abs(found.centred.observed).max(axis=1),
            "p_centred": p_centred,
            "a_unadjusted": np.abs(found.a_unadjusted).max(axis=1),
            "p_unadjusted": found.joint_unadjusted_p,
            "p_joint": found.joint_p,
            "p_blend": found.blend_p,
            "p_pair": p_pair,
            "bal_acc_readout": found.readout_acc,
            "p_readout": found.readout_p,
            "bal_acc_linked": linked.bal_acc,
            "p_linked": linked.p_fwe,
            "n_linked": linked.n_linked,
            # By one region alone: both tests, uncorrected, for the false discovery rate. A choice among single latents has no
            # such p; the linked reading stands beside that of the joint one.
            "p_single": np.maximum(
                found.joint_single_p, found.blend_single_p if config.reading == "blended" else found.readout_single_p
            ),
        }
        | _own_grey_matter(found, regions, asked)
    )
    if not groups:
        table["r_target"], table["r2_target"] = r_target, r2_target
    return ranked(table)


def _own_grey_matter(found: Profile, regions: np.ndarray, asked: Comparison | Gradient) -> dict[str, np.ndarray]:
    """What plain analysis of the raw region says; the AUC is P(a case has less grey matter than a reference)."""
    if isinstance(asked, Gradient):
        return {"r_region": found.region_r, "p_region": found.region_p, "p_region_single": found.region_single_p}
    auc = (1 - discriminability.separation(regions, asked.is_case)) / 2
    return {"auc_region": auc, "p_region": found.region_p, "p_region_single": found.region_single_p}


def ranked(table: pd.DataFrame) -> pd.DataFrame:
    """Rows by ranking score, with their rank from 1 and the false discovery rate over all of them as ``q``."""
    by = ["score", "p", *(["contrast"] if "contrast" in table else []), "label"]
    table = table.sort_values(by, ascending=[False, *[True] * (len(by) - 1)], ignore_index=True)
    return table.assign(rank=np.arange(1, len(table) + 1), q=stats.fdr(table["p_single"].to_numpy()))


def directions(way: np.ndarray, asked: Comparison | Gradient) -> np.ndarray:
    """(region,) in words, which way the partial correlation of what decided goes."""
    if isinstance(asked, Gradient):
        return np.where(way < 0, f"lower with {asked.target}", f"higher with {asked.target}")
    return np.where(way < 0, f"lower in {asked.case}", f"higher in {asked.case}")


def region_badges(scores: np.ndarray, folds: np.ndarray, asked: Comparison | Gradient) -> np.ndarray:
    """(region,) badge of the classifier that cuts each score (scan, region); a number has none."""
    n_regions = scores.shape[1]
    if isinstance(asked, Gradient):
        return np.full(n_regions, "not assessed")
    if any(len(np.unique(asked.is_case[folds != fold])) < 2 for fold in np.unique(folds)):
        return np.full(n_regions, bounds.INCONCLUSIVE)
    called = discriminability.score_calls(scores, asked.is_case, folds)
    errors = held_out.balanced_errors(called, asked.is_case, folds)
    return bounds.badges(errors, held_out.effective_sizes(asked.is_case, folds), d=CUT_WEIGHTS)


def arrays(
    found: Profile, asked: Comparison | Gradient, scans: pd.Index, *, names: np.ndarray, latent: np.ndarray
) -> xr.Dataset:
    """Profile matrices and readouts, with names on every axis."""
    pair = ("region", "latent")
    variables: dict[str, tuple[str | tuple[str, str], np.ndarray]] = {
        "a": (pair, found.pooled.observed),
        "p_a": (pair, found.pooled.p_fwe),
        "q_a": (pair, stats.fdr(found.pooled.p_value)),
        "a_centred": (pair, found.centred.observed),
        "p_centred": (pair, found.centred.p_fwe),
        "readout": (("scan", "region"), found.readout),
    }
    if isinstance(asked, Comparison):
        variables["group"] = ("scan", np.where(asked.is_case, asked.case, asked.reference).astype(str))
        attrs = {"case": asked.case, "reference": asked.reference}
    else:
        variables["target"] = ("scan", asked.values)
        attrs = {"target": asked.target}
    coordinates = {
        "region": ("region", names.astype(str)),
        "latent": ("latent", np.asarray(latent, dtype=str)),
        "scan": ("scan", scans.to_numpy().astype(str)),
    }
    return xr.Dataset(variables, coords=coordinates, attrs=attrs)


def stacked(answers: list[Answered]) -> tuple[pd.DataFrame, xr.Dataset]:
    """Table and arrays of all contrasts; with several, a column and a dimension ``contrast``.

    Scans, regions and latents that a contrast does not have are NaN in its arrays.
    """
    if len(answers) == 1:
        return answers[0].table, answers[0].data
    named = [answer.table.assign(contrast=answer.asked.label) for answer in answers]
    table = ranked(pd.concat(named, ignore_index=True))
    rest = [column for column in table if column not in (*COLUMNS, "contrast")]
    pieces = [answer.data.drop_vars("group").drop_attrs() for answer in answers]
    data = xr.concat(xr.align(*pieces, join="outer"), dim=pd.Index([a.asked.label for a in answers], name="contrast"))
    groups = pd.DataFrame({answer.asked.label: answer.data["group"].to_series() for answer in answers}).fillna("")
    data["group"] = (("contrast", "scan"), groups.reindex(data["scan"].values).to_numpy().T.astype(str))
    return table[[*COLUMNS, "contrast", *rest]], data
