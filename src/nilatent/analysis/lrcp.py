"""LRCP, latent-regional correlation profiling: which regions the latents carry, and whether that tells groups apart.

A region is called when two things hold at once, family-wise over regions: the latents are associated with its grey matter
(*association*), and what they carry of it separates the groups (*discriminability*). Its p-value is the larger of the
two. The published abstract joins these two ingredients; the equations are ours: "LRCP as implemented here".

References
----------
arXiv:2509.03675. Freedman & Lane 1983, doi:10.1080/07350015.1983.10509354. Nichols et al. 2005 (conjunction),
doi:10.1016/j.neuroimage.2004.12.005.
"""

from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr
from sklearn.metrics import roc_auc_score

from nilatent.analysis import discriminability, stats
from nilatent.analysis.contrast import Comparison, NotComparableError, compare_groups, confound_matrix
from nilatent.atlas import RegionWeights, region_map
from nilatent.errors import CohortError, SettingError
from nilatent.finding import Finding, not_run
from nilatent.latents import check_latents
from nilatent.volumes import Grid

NAME = "lrcp"
# Ratio of the SD of latents, unseen to seen scans, under which the reader is told.
NARROW_RATIO = 0.8
QUESTION = "In which brain regions does the latent description carry grey matter that differs between the groups?"
COLUMNS = ("name", "label", "a", "p_a", "bal_acc", "p_d", "p", "grade", "badge", "rank")


@dataclass(frozen=True)
class LrcpConfig:
    """Settings of :func:`lrcp`.

    Parameters
    ----------
    group : str
        Column of the groups.
    contrast : str
        ``"A:B"`` with B the reference; empty takes the two groups when there are exactly two.
    covariates : tuple[str, ...]
        Confounds removed from regions, latents and groups.
    site : str
        Column of the site: a confound, and the block within which permutations stay. Empty for none.
    adjust_global : bool
        Also remove total grey matter and head size, so that one global latent does not mark every region.
    reading : {"joint", "linked"}
        Which reading decides ``p_a`` and ``p_d``; the other stands beside it. *Joint* uses all latents at once and does
        not depend on their basis: the region's share explained by all, and its out-of-fold readout from all. *Linked*
        uses single latents: the largest correlation, and a classifier on the latents correlated with the region.
    n_permutations : int
        Permutations of association and of the readout.
    n_permutations_linked : int
        Permutations of the linked classifier, which is refitted in each.
    n_folds : int
        Cross-validation folds over subjects.
    alpha : float
        Family-wise error rate at which a region is called, above 0 and at most 1.
    seed : int
        Of folds and permutations.
    """

    group: str = "group"
    contrast: str = ""
    covariates: tuple[str, ...] = ()
    site: str = ""
    adjust_global: bool = True
    reading: Literal["joint", "linked"] = "joint"
    n_permutations: int = 5000
    n_permutations_linked: int = 2000
    n_folds: int = 10
    alpha: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values that would call every region, or none whatever the data say.

        Raises
        ------
        SettingError
            Names the setting and its range.
        """
        for name, lowest in (("n_permutations", 1), ("n_permutations_linked", 1), ("n_folds", 2), ("seed", 0)):
            if getattr(self, name) < lowest:
                raise SettingError(f"lrcp.{name} is {getattr(self, name)}; it must be at least {lowest}.")
        if not 0 < self.alpha <= 1:
            raise SettingError(f"lrcp.alpha is {self.alpha}; it must be above 0 and at most 1, usually 0.05.")


@dataclass(frozen=True, eq=False)
class Profile:
    """Array results of :func:`profile`; every array is (region,) or (region, latent)."""

    pooled: stats.CorrelationTest
    centred: stats.CorrelationTest
    a_unadjusted: np.ndarray
    joint_p: np.ndarray
    joint_centred_p: np.ndarray
    joint_unadjusted_p: np.ndarray
    readout: np.ndarray
    r2: np.ndarray
    readout_acc: np.ndarray
    readout_p: np.ndarray
    linked: discriminability.LinkedTest
    region_p: np.ndarray


def profile(
    latents: np.ndarray, regions: np.ndarray, comparison: Comparison, config: LrcpConfig, *, unadjusted: np.ndarray
) -> Profile:
    """Association and discriminability of every region: the array core.

    Parameters
    ----------
    latents, regions : ndarray
        (scan, latent) and (scan, region) of the scans of the comparison, in its order.
    comparison : Comparison
        Groups, confounds and blocks of the same scans.
    config : LrcpConfig
        Settings.
    unadjusted : ndarray
        (scan, confound) the confounds without total grey matter and head size.

    Returns
    -------
    Profile
        Observed values and p-values.
    """
    is_case, blocks, confounds = comparison.is_case, comparison.blocks, comparison.confounds
    orders = stats.permutations(len(latents), config.n_permutations, seed=config.seed, blocks=blocks)
    site = np.full(len(latents), "") if blocks is None else blocks
    within = [f"{block}/{case}" for block, case in zip(site, is_case, strict=True)]
    centred_orders = stats.permutations(len(latents), config.n_permutations, seed=config.seed + 1, blocks=within)
    with_class = np.column_stack([confounds, is_case])
    folds = discriminability.label_free_folds(len(latents), config.n_folds, seed=config.seed + 2)
    readout, r2 = discriminability.readout_scores(latents, regions, confounds, folds)
    targets = discriminability.balanced_targets(is_case)
    linked_orders = orders[: config.n_permutations_linked]
    return Profile(
        pooled=stats.permuted_correlation(regions, latents, orders, confounds=confounds),
        centred=stats.permuted_correlation(regions, latents, centred_orders, confounds=with_class),
        a_unadjusted=stats.partial_correlation(regions, latents, unadjusted),
        joint_p=_joint_p(regions, latents, orders, confounds),
        joint_centred_p=_joint_p(regions, latents, centred_orders, with_class),
        joint_unadjusted_p=_joint_p(regions, latents, orders, unadjusted),
        readout=readout,
        r2=r2,
        readout_acc=discriminability.score_accuracy(readout, is_case, folds),
        readout_p=stats.permuted_correlation(readout, targets, orders, confounds=confounds).p_fwe[:, 0],
        linked=discriminability.linked_test(
            latents, regions, confounds, is_case=is_case, folds=folds, orders=linked_orders
        ),
        region_p=stats.permuted_correlation(regions, targets, orders, confounds=confounds).p_fwe[:, 0],
    )


def _joint_p(regions: np.ndarray, latents: np.ndarray, orders: np.ndarray, confounds: np.ndarray) -> np.ndarray:
    return stats.permuted_r2(regions, latents, orders, confounds=confounds, penalty=discriminability.PENALTY)[1]


def ranking_score(r2: np.ndarray, bal_acc: np.ndarray) -> np.ndarray:
    """Ranking score sqrt(A_r max(0, 2 bal_acc - 1)), in [0, 1]; it orders the table and decides nothing.

    A_r is the cross-validated multiple correlation sqrt(max(A2_r, 0)) of the region with all latents, not the largest
    single |a_rj|: a region's signal may spread over several latents, and how much falls on one depends on their basis.
    """
    association = np.sqrt(np.clip(r2, 0, 1))
    return np.asarray(np.sqrt(association * np.maximum(0, 2 * bal_acc - 1)))


def lrcp(
    latents: xr.Dataset,
    regions: pd.DataFrame,
    scans: pd.DataFrame,
    weights: RegionWeights,
    grid: Grid,
    mask: npt.NDArray[np.bool_],
    config: LrcpConfig,
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

    Returns
    -------
    Finding
        Table of regions by rank, profile matrices, maps; or "not run" with the reason.

    Raises
    ------
    CohortError
        When latents, regions and scans do not hold the same scans.
    SettingError
        When a setting names what does not exist.
    """
    z, x = _joined(latents, regions, scans, weights)
    global_columns = ["total_gm"] if config.adjust_global else []
    if config.adjust_global and "head_size_factor" in scans and scans["head_size_factor"].notna().any():
        global_columns.append("head_size_factor")
    table = scans.assign(total_gm=x @ weights.n_voxels)
    covariates = [*config.covariates, *global_columns]
    try:
        comparison = compare_groups(
            table, group=config.group, contrast=config.contrast, covariates=covariates, site=config.site
        )
    except NotComparableError as error:
        return not_run(NAME, QUESTION, str(error))
    chosen = scans.iloc[comparison.rows]
    z, x = z[comparison.rows], x[comparison.rows]
    with_class = np.column_stack([comparison.confounds, comparison.is_case])
    kept_z, kept_x = stats.varying(z, with_class), stats.varying(x, with_class)
    if not kept_z.any() or not kept_x.any():
        return not_run(NAME, QUESTION, "no latent or no region varies between scans once confounds are removed")
    sites = [config.site] if config.site else []
    plain = confound_matrix(chosen, [*config.covariates, *sites], levels=sites)
    result = profile(z[:, kept_z], x[:, kept_x], comparison, config, unadjusted=plain)
    labels, names = weights.labels[kept_x], np.asarray(weights.names)[kept_x]
    found = _table(result, x[:, kept_x], comparison, config, names=names, labels=labels)
    data = _data(result, comparison, chosen, names=names, latent=latents["latent"].values[kept_z])
    by_label = found.set_index("label").reindex(weights.labels)
    values = {"a": by_label["a"], "minus_log10_p": -np.log10(by_label["p"]), "score": by_label["score"]}
    flat = [*np.asarray(weights.names)[~kept_x], *latents["latent"].values[~kept_z]]
    return Finding(
        name=NAME,
        question=QUESTION,
        answer=_answer(found, comparison, config),
        table=found,
        data=data,
        settings=asdict(config)
        | {"contrast": comparison.label, "confounds": covariates, "left_out": comparison.left_out},
        caveats=_caveats(latents, comparison, config, covariates=covariates, flat=flat, table=found),
        n_scans=len(chosen),
        n_subjects=len(chosen),
        maps={name: region_map(weights, column.fillna(0).to_numpy(), grid, mask) for name, column in values.items()},
    )


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


def _table(
    result: Profile,
    regions: np.ndarray,
    comparison: Comparison,
    config: LrcpConfig,
    *,
    names: np.ndarray,
    labels: np.ndarray,
) -> pd.DataFrame:
    linked, p_pair, p_pair_centred = result.linked, result.pooled.p_fwe.min(axis=1), result.centred.p_fwe.min(axis=1)
    if config.reading == "joint":
        p_a, p_centred, bal_acc, p_d = result.joint_p, result.joint_centred_p, result.readout_acc, result.readout_p
    else:
        p_a, p_centred, bal_acc, p_d = p_pair, p_pair_centred, linked.bal_acc, linked.p_fwe
    p = np.maximum(p_a, p_d)
    held = np.where(p_centred <= config.alpha, "strong", "class-mediated")
    cases = result.readout[comparison.is_case].mean(axis=0) < result.readout[~comparison.is_case].mean(axis=0)
    table = pd.DataFrame(
        {
            "name": names,
            "label": labels,
            "a": np.abs(result.pooled.observed).max(axis=1),
            "p_a": p_a,
            "bal_acc": bal_acc,
            "p_d": p_d,
            "p": p,
            "grade": np.where(p <= config.alpha, held, "none"),
            "badge": "not assessed",
            "rank": 0,
            "score": ranking_score(result.r2, bal_acc),
            "direction": np.where(cases, f"lower in {comparison.case}", f"higher in {comparison.case}"),
            "r2_latents": result.r2,
            "a_centred": np.abs(result.centred.observed).max(axis=1),
            "p_centred": p_centred,
            "a_unadjusted": np.abs(result.a_unadjusted).max(axis=1),
            "p_unadjusted": result.joint_unadjusted_p,
            "p_joint": result.joint_p,
            "p_pair": p_pair,
            "bal_acc_readout": result.readout_acc,
            "p_readout": result.readout_p,
            "bal_acc_linked": linked.bal_acc,
            "p_linked": linked.p_fwe,
            "n_linked": linked.n_linked,
            # P(a case has less grey matter than a reference): what plain ROI analysis of the raw region says.
            "auc_region": [roc_auc_score(comparison.is_case, -column) for column in regions.T],
            "p_region": result.region_p,
        }
    )
    table = table.sort_values(["score", "p", "label"], ascending=[False, True, True], ignore_index=True)
    return table.assign(rank=np.arange(1, len(table) + 1))


def _data(
    result: Profile, comparison: Comparison, chosen: pd.DataFrame, *, names: np.ndarray, latent: np.ndarray
) -> xr.Dataset:
    pair = ("region", "latent")
    return xr.Dataset(
        {
            "a": (pair, result.pooled.observed),
            "p_a": (pair, result.pooled.p_fwe),
            "q_a": (pair, stats.fdr(result.pooled.p_value)),
            "a_centred": (pair, result.centred.observed),
            "p_centred": (pair, result.centred.p_fwe),
            "readout": (("scan", "region"), result.readout),
            "group": ("scan", np.where(comparison.is_case, comparison.case, comparison.reference).astype(str)),
        },
        coords={
            "region": ("region", names.astype(str)),
            "latent": ("latent", np.asarray(latent, dtype=str)),
            "scan": ("scan", chosen.index.to_numpy().astype(str)),
        },
        attrs={"case": comparison.case, "reference": comparison.reference},
    )


def _answer(table: pd.DataFrame, comparison: Comparison, config: LrcpConfig) -> str:
    called = table[table["grade"] != "none"]
    versus = f"{comparison.case} ({int(comparison.is_case.sum())}) from {comparison.reference} "
    versus += f"({int((~comparison.is_case).sum())})"
    plain = int((table["p_region"] <= config.alpha).sum())
    beside = f"Plain regional grey matter, without a model, tells them apart in {plain} (same error control)."
    if called.empty:
        best = table.sort_values("p", kind="stable").iloc[0]
        return (
            f"In none of {len(table)} regions do the latents both carry the grey matter and tell {versus}; the smallest "
            f"family-wise p is {best['p']:.2g} ({best['name']}). {beside}"
        )
    shown = "; ".join(
        f"{row['name']} ({row['direction']}, balanced accuracy {row['bal_acc']:.2f}, p = {row['p']:.2g})"
        for _, row in called.head(5).iterrows()
    )
    strong = int((called["grade"] == "strong").sum())
    more = "" if len(called) <= 5 else f" and {len(called) - 5} more"
    return (
        f"In {len(called)} of {len(table)} regions the latents carry the grey matter and tell {versus} at family-wise "
        f"p <= {config.alpha:g}: {shown}{more}. The association holds within the groups too in {strong}. {beside}"
    )


def _narrower(z: np.ndarray, seen: np.ndarray) -> str:
    """A sentence when latents of unseen scans spread less than those the model was fitted on; empty otherwise."""
    if seen.sum() < 2 or (~seen).sum() < 2:
        return ""
    ratio = float(np.median(z[~seen].std(axis=0) / np.maximum(z[seen].std(axis=0), 1e-12)))
    if ratio > NARROW_RATIO:
        return ""
    return (
        f" Latents of the other scans spread less (median ratio of SD {ratio:.2f}): the model describes scans it was fitted "
        "on in more detail, which costs power and mixes two scales."
    )


def _caveats(
    latents: xr.Dataset,
    comparison: Comparison,
    config: LrcpConfig,
    *,
    covariates: list[str],
    flat: list[str],
    table: pd.DataFrame,
) -> tuple[str, ...]:
    scans = latents["subject_in_training"].size
    seen = int(latents["subject_in_training"].values.sum())
    removed = ", ".join([*covariates, *([config.site] if config.site else [])]) or "nothing"
    lines = [
        "LRCP as implemented here: the equations are ours, not those of the paper that gave the name.",
        "Regions and latents come from the same images, so an association by itself is expected; only together with "
        "discriminability does it speak about the groups. A difference between groups is not its cause.",
        f"Removed from regions, latents and groups before any test: {removed}. An effect that acts through these is "
        "removed with them.",
        f"The model was fitted on {seen} of the {scans} scans of the cohort, without their labels."
        + _narrower(latents["mean"].values, latents["subject_in_training"].values),
        f"The linked classifier uses on average {table['n_linked'].mean():.1f} latents per region. Regions that share latents "
        "share its verdict, so it is not specific to a region.",
        "A region that is correlated with an affected region, or touches it, can be called with it.",
    ]
    alone = table.loc[(table["grade"] != "none") & (table["p_region"] > config.alpha), "name"]
    if len(alone):
        lines.append(
            f"Called by the latents but not by the grey matter of the region itself: {', '.join(alone)}. Few latents "
            "describe many regions, so they can lend a region the effect of another; read these with reserve."
        )
    if config.adjust_global and "head_size_factor" not in covariates:
        lines.append("No head size was found in the cohort, so only total grey matter was adjusted for.")
    if not config.site:
        lines.append("No site column was named: differences between scanners can appear as differences between groups.")
    lines += [f"Left out: {len(ids)} scans ({reason})." for reason, ids in comparison.left_out.items()]
    if flat:
        lines.append(f"Constant, or explained by the confounds, and so left out: {', '.join(flat)}.")
    return tuple(lines)
